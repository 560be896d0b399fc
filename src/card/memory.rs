//! Memory and launches on the current stream of a GPU.

use burn::tensor::Bytes;
use cubecl::Runtime as _;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;
use cubecl::server::{Handle, KernelArguments, MetadataBindingInfo, TensorMapBinding, TensorMapMeta};
use cubecl::zspace::metadata::Metadata;
use half::bf16;

use super::program::Program;

/// Number of streaming multiprocessors where the driver reports none.
const MULTIPROCESSORS: u32 = 108;

/// Smallest allocation, in bytes. `CubeCL` cannot allocate nothing.
const LEAST_BYTES: usize = 16;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// Rows and values of a tile that the copy engine brings.
const TILE: [usize; 2] = [128, 64];

/// A GPU. Memory belongs to the stream that is current when it is allocated. Clones are the same GPU.
#[derive(Clone)]
pub(crate) struct Card {
    client: ComputeClient<CudaRuntime>,
    pub(crate) multiprocessors: u32,
    pub(crate) capability: u32,
}

impl std::fmt::Debug for Card {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { multiprocessors, capability, .. } = self;
        out.debug_struct("Card").field("capability", capability).field("multiprocessors", multiprocessors).finish()
    }
}

/// bf16 matrix on the device.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(crate) values: Handle,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// Arguments of a launch: tensor maps, then buffers, then numbers of four bytes.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) maps: Vec<Matrix>,
    pub(crate) buffers: Vec<Handle>,
    pub(crate) numbers: Vec<u32>,
}

impl Card {
    pub(crate) fn new(gpu: usize, capability: u32) -> Self {
        let client = CudaRuntime::client(&CudaDevice::new(gpu));
        let reported = client.properties().hardware.num_streaming_multiprocessors.filter(|count| *count > 0);
        let multiprocessors = reported.unwrap_or(MULTIPROCESSORS);
        Self { client, multiprocessors, capability }
    }

    /// Uploads values as bf16.
    pub(crate) fn upload(&self, values: &[f32]) -> Handle {
        let values = values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
        self.upload_bytes(Bytes::from_elems(not_empty(values)))
    }

    /// Uploads values as f32.
    pub(crate) fn upload_f32(&self, values: Vec<f32>) -> Handle {
        self.upload_bytes(Bytes::from_elems(not_empty(values)))
    }

    /// Uploads words.
    pub(crate) fn upload_u32(&self, values: Vec<u32>) -> Handle {
        self.upload_bytes(Bytes::from_elems(not_empty(values)))
    }

    /// Runs a job on the thread with which `CubeCL` drives the GPU, and waits for its end; `None` when it panicked. There, all that the
    /// job enqueues goes to the driver at once. From another thread it goes through a queue of 32 places, and the sender spins while
    /// they are taken.
    pub(crate) fn exclusive<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send) -> Option<T> {
        self.client.exclusive(job).ok()
    }

    /// Uploads bytes.
    pub(crate) fn upload_bytes(&self, bytes: Bytes) -> Handle {
        self.client.create(bytes)
    }

    /// Allocates bf16 values without a content.
    pub(crate) fn allocate(&self, count: usize) -> Handle {
        self.allocate_bytes(2 * count)
    }

    /// Allocates bytes without a content.
    pub(crate) fn allocate_bytes(&self, count: usize) -> Handle {
        self.client.empty(count.max(LEAST_BYTES))
    }

    /// Allocates f32 values without a content.
    pub(crate) fn allocate_f32(&self, count: usize) -> Handle {
        self.allocate(2 * count)
    }

    /// Enqueues a kernel of `blocks` blocks; nothing for none, which CUDA refuses.
    pub(crate) fn launch(&self, program: &Program, blocks: usize, arguments: Arguments) {
        if blocks == 0 {
            return;
        }
        let Arguments { maps, buffers, numbers } = arguments;
        let words: Vec<u64> = numbers
            .chunks(2)
            .map(|pair| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32)
            .collect();
        let fixed = words.len();
        let mut bound = KernelArguments::new().with_buffers(buffers.into_iter().map(Handle::binding).collect());
        bound.tensor_maps = maps.into_iter().map(tensor_map).collect();
        bound.info = MetadataBindingInfo::new(words, fixed);
        self.client.launch(Box::new(program.clone()), CubeCount::Static(blocks as u32, 1, 1), bound);
    }

    /// Waits for the bytes of a buffer. The stream that filled it must be current.
    ///
    /// `CubeCL`'s client panics when its thread does; on that thread, the panic becomes an error.
    pub(crate) fn read(&self, buffer: Handle) -> Result<Bytes, String> {
        let read = self.exclusive(|| self.client.read_one(buffer).map_err(|cause| cause.to_string()));
        read.unwrap_or_else(|| Err("a thread of the device's runtime failed".to_owned()))
    }

    /// Waits for the first `count` values of a buffer of f32. The stream that filled it must be current.
    pub(crate) fn read_f32(&self, buffer: &Handle, count: usize) -> Result<Vec<f32>, String> {
        self.read_values(buffer, count, |word| f32::from_le_bytes(*word))
    }

    /// Waits for the first `count` values of a buffer of bf16. The stream that filled it must be current.
    pub(crate) fn read_bf16(&self, buffer: &Handle, count: usize) -> Result<Vec<bf16>, String> {
        self.read_values(buffer, count, |pair| bf16::from_le_bytes(*pair))
    }

    /// Reads a few values of `WIDTH` bytes at a time: CUDA's runtime pins a buffer as large as each read and keeps it.
    fn read_values<T, const WIDTH: usize>(
        &self,
        buffer: &Handle,
        count: usize,
        value: impl Fn(&[u8; WIDTH]) -> T,
    ) -> Result<Vec<T>, String> {
        let (mut values, bytes) = (Vec::with_capacity(count), buffer.size_in_used());
        for first in (0..count).step_by(READ_BYTES / WIDTH) {
            let end = (first + READ_BYTES / WIDTH).min(count) * WIDTH;
            let part = buffer.clone().offset_start((first * WIDTH) as u64).offset_end(bytes - end as u64);
            values.extend(self.read(part)?.as_chunks::<WIDTH>().0.iter().map(&value));
        }
        Ok(values)
    }
}

/// Appends zeros to values that are too few for an allocation.
fn not_empty<T: Clone + Default>(mut values: Vec<T>) -> Vec<T> {
    values.resize(values.len().max(LEAST_BYTES / size_of::<T>()), T::default());
    values
}

fn tensor_map(matrix: Matrix) -> TensorMapBinding {
    TensorMapBinding {
        map: TensorMapMeta {
            format: TensorMapFormat::Tiled(TiledArgs { tile_size: TILE.into() }),
            metadata: Metadata::new([matrix.rows, matrix.depth], [matrix.depth, 1]),
            elem_stride: [1, 1].into(),
            interleave: TensorMapInterleave::None,
            swizzle: TensorMapSwizzle::B128,
            prefetch: TensorMapPrefetch::B128,
            oob_fill: OobFill::Zero,
            storage_ty: StorageType::Scalar(ElemType::Float(FloatKind::BF16)),
        },
        binding: matrix.values.binding(),
    }
}
