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
use super::transfer::{Features, Transfers};
use crate::model::error::ModelError;

/// Number of streaming multiprocessors where the driver reports none.
const MULTIPROCESSORS: u32 = 108;

/// Smallest allocation, in bytes. `CubeCL` cannot allocate nothing.
const LEAST_BYTES: usize = 16;

/// Rows and values of a tile that the copy engine brings.
const TILE: [usize; 2] = [128, 64];

/// A GPU. Memory belongs to the stream that is current when it is allocated.
pub(super) struct Card {
    client: ComputeClient<CudaRuntime>,
    transfers: Transfers,
    pub(super) multiprocessors: u32,
    pub(super) capability: u32,
}

impl std::fmt::Debug for Card {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { multiprocessors, capability, .. } = self;
        out.debug_struct("Card").field("capability", capability).field("multiprocessors", multiprocessors).finish()
    }
}

/// bf16 matrix on the device.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub(super) values: Handle,
    pub(super) rows: usize,
    pub(super) depth: usize,
}

/// Arguments of a launch: tensor maps, then buffers, then numbers of four bytes.
#[derive(Default)]
pub(super) struct Arguments {
    pub(super) maps: Vec<Matrix>,
    pub(super) buffers: Vec<Handle>,
    pub(super) numbers: Vec<u32>,
}

impl Card {
    pub(super) fn new(gpu: usize, capability: u32) -> Self {
        let device = CudaDevice::new(gpu);
        let client = CudaRuntime::client(&device);
        let multiprocessors = client.properties().hardware.num_streaming_multiprocessors.unwrap_or(MULTIPROCESSORS);
        Self { client, transfers: Transfers::new(&device), multiprocessors, capability }
    }

    /// Uploads values as bf16.
    pub(super) fn upload(&self, values: &[f32]) -> Handle {
        self.create(values.iter().flat_map(|value| bf16::from_f32(*value).to_bits().to_le_bytes()).collect())
    }

    /// Uploads values as f32.
    pub(super) fn upload_f32(&self, values: &[f32]) -> Handle {
        self.create(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn create(&self, mut bytes: Vec<u8>) -> Handle {
        let length = bytes.len().max(LEAST_BYTES);
        bytes.resize(length, 0);
        self.client.create(Bytes::from_bytes_vec(bytes))
    }

    /// Enqueues the copy of bytes to a buffer.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn write(&self, bytes: &[u8], to: &Handle) -> Result<(), ModelError> {
        self.transfers.upload(bytes, to)
    }

    /// Enqueues the copy of bf16 values to the host.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn read(&self, from: &Handle) -> Result<Features, ModelError> {
        self.transfers.download(from)
    }

    /// Runs a job on the thread with which `CubeCL` drives the GPU, and waits for its end. There, all that the job enqueues goes to
    /// the driver at once. From another thread it goes through a queue of 32 places, and the sender spins while they are taken.
    ///
    /// # Errors
    /// The job's own; [`ModelError::Runtime`] when it panicked.
    pub(super) fn exclusive<T, F>(&self, job: F) -> Result<T, ModelError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ModelError> + Send,
    {
        self.client.exclusive(job).map_err(|_| ModelError::Runtime)?
    }

    /// Allocates bf16 values without a content.
    pub(super) fn allocate(&self, count: usize) -> Handle {
        self.allocate_bytes(2 * count)
    }

    /// Allocates bytes without a content.
    pub(super) fn allocate_bytes(&self, count: usize) -> Handle {
        self.client.empty(count.max(LEAST_BYTES))
    }

    /// Enqueues a kernel of `blocks` blocks.
    pub(super) fn launch(&self, program: &Program, blocks: usize, arguments: Arguments) {
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
