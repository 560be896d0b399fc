//! Selection and opening of the device, with batch sizes that fit the memory of host and GPU.

use std::path::Path;
use std::sync::Arc;

use burn::backend::cuda::CudaDevice;
use burn::backend::flex::FlexDevice;
use burn::tensor::DType;

use super::{DeviceState, DeviceWorker, TextBatches};
use crate::config::{ConfigError, DeviceConfig, Problem};
use crate::device::{self, GpuInfo, SelectedDevice};
use crate::model::{AnyDevice, Kernels, Numerics};
use crate::pipeline::error::PipelineError;
use crate::predict::scorer::Selection;
use crate::predict::tiles::{Compute, Tiling};
use crate::runtime::{BufferPool, DeviceThread};
use crate::train::{EngineKind, Options};
use crate::types::{KernelChoice, Precision};

/// Pixel batches queued on the host: one being read, one waiting, one being submitted.
const BATCHES_AHEAD: usize = 3;

/// Batches of each stream of a GPU in memory from which the GPU copies: one on its way, and the one before.
const STAGED_BATCHES: usize = 2;

/// Images in one forward pass on the CPU: enough for efficient matrix products, few enough for the cache.
const CPU_BATCH_ROWS: usize = 32;

/// Upper bound on the images in one forward pass on a GPU, unless the configuration sets the batch. Larger batches are
/// no faster.
const CUDA_BATCH_ROWS: usize = 128;

/// Tokens in one pass of the text encoder on the CPU, padding included. Larger batches exceed the cache.
const CPU_TEXT_TOKENS: usize = 1024;

/// Tokens in one pass of the text encoder on a GPU, padding included.
const CUDA_TEXT_TOKENS: usize = 16_384;

/// GPU memory left for the driver, compiled kernels and auto-tuning.
const CUDA_RESERVE_BYTES: u64 = 1 << 30;

/// Streams of a GPU: one computes, one is queued, one transfers data.
const CUDA_STREAMS: usize = 3;

/// Rows and classes of a tile on a GPU: 64 MiB of f32 logits when ranking. Training holds the logits of all tiles at
/// once.
const CUDA_TILING: Tiling = Tiling { rows: 1024, classes: 16_384 };

/// Memory that a run needs on device and host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryNeeds {
    /// Parameters of the backbone.
    pub(crate) parameters: u64,
    /// Activations of an image in f32, in bytes.
    pub(crate) activation_bytes: u64,
    /// Pixels of an image, in bytes.
    pub(crate) pixel_bytes: u64,
    /// Host memory for the pixels of all batches, in bytes.
    pub(crate) host_bytes: u64,
    /// Format of the computation.
    pub(crate) precision: Precision,
    /// Activations of an image for this program's own CUDA kernels, in bytes; `None` if they do not cover the model. They copy from memory
    /// that holds the pixels once more.
    pub(crate) own_kernel_bytes: Option<u64>,
}

impl MemoryNeeds {
    /// Returns the needs of a head without a backbone.
    pub(crate) fn for_head(precision: Precision) -> Self {
        let (parameters, activation_bytes, pixel_bytes, host_bytes) = (0, 0, 0, u64::MAX);
        Self { parameters, activation_bytes, pixel_bytes, host_bytes, precision, own_kernel_bytes: None }
    }
}

/// Chooses the device that a machine file names.
///
/// # Errors
/// When the device is not available.
pub(crate) async fn choose(settings: &DeviceConfig) -> Result<SelectedDevice, PipelineError> {
    let DeviceConfig { kind, index, .. } = *settings;
    let chosen = tokio::task::spawn_blocking(move || device::select_device(kind, index)).await?;
    chosen.map_err(|error| PipelineError::Model(error.to_string()))
}

/// Returns the settings with which a device trains heads.
pub(crate) fn training_options(chosen: &SelectedDevice, precision: Precision, kernels: KernelChoice) -> Options {
    let Some(gpu) = &chosen.gpu else { return Options::default() };
    let compute = match precision {
        Precision::Bf16 => Compute::Bf16,
        Precision::F32 => Compute::F32,
    };
    let engine = match kernels {
        KernelChoice::Auto => EngineKind::Own { gpu: gpu.index as usize, capability: capability(gpu) },
        KernelChoice::Burn => EngineKind::Gpu,
    };
    Options { tiling: CUDA_TILING, compute, engine }
}

/// Opens a device on its own thread. A `settings.batch_size` of 0 selects the size automatically. Compiled kernels are
/// cached in `scratch`.
///
/// # Errors
/// When host or GPU have too little memory, or the system has no thread left.
pub(crate) async fn open(
    chosen: &SelectedDevice,
    needs: MemoryNeeds,
    settings: DeviceConfig,
    scratch: &Path,
) -> Result<Arc<DeviceWorker>, PipelineError> {
    let batch_size = settings.batch_size;
    let streams = if chosen.is_cuda() { CUDA_STREAMS } else { 1 };
    let own_bytes = chosen.gpu.as_ref().and_then(|gpu| own_kernel_bytes(needs, kernels(settings, gpu)));
    let staged = if own_bytes.is_some() { STAGED_BATCHES * CUDA_STREAMS } else { 0 };
    let host_batches = BATCHES_AHEAD + streams + staged;
    let host_rows = needs.host_bytes / (needs.pixel_bytes * host_batches as u64).max(1);
    if u64::from(batch_size.max(1)) > host_rows {
        let key = if batch_size == 0 { "limits.memory" } else { "device.batch_size" };
        let what = format!(
            "it leaves room for batches of {host_rows} images of this size; raise `limits.memory`, or lower the batch"
        );
        return Err(ConfigError(vec![Problem { key: key.to_owned(), what }]).into());
    }
    let automatic = batch_size == 0;
    let (batch_rows, text_batches, state) = if let Some(gpu) = &chosen.gpu {
        let batch_rows = if automatic {
            fit_batch(needs, own_bytes, gpu)?.min(CUDA_BATCH_ROWS as u64).min(host_rows) as usize
        } else {
            batch_size as usize
        };
        let format = match needs.precision {
            Precision::Bf16 => DType::BF16,
            Precision::F32 => DType::F32,
        };
        device::configure_kernel_cache(scratch, chosen);
        let device = AnyDevice::Cuda(CudaDevice::new(gpu.index as usize));
        let kernels = kernels(settings, gpu);
        let numerics = Numerics { format, batch_rows: Some(batch_rows), fused: true, kernels, direct: false };
        let options = training_options(chosen, needs.precision, settings.kernels);
        let text_batches = TextBatches { tokens: CUDA_TEXT_TOKENS, fixed_shapes: true };
        (batch_rows, text_batches, (device, numerics, options, Selection::Device))
    } else {
        let batch_rows = if automatic { CPU_BATCH_ROWS.min(host_rows as usize) } else { batch_size as usize };
        let options = training_options(chosen, needs.precision, settings.kernels);
        let numerics = Numerics { direct: settings.kernels == KernelChoice::Auto, ..Numerics::default() };
        let state = (AnyDevice::Flex(FlexDevice), numerics, options, Selection::Host);
        (batch_rows, TextBatches { tokens: CPU_TEXT_TOKENS, fixed_shapes: false }, state)
    };
    let (device, numerics, options, selection) = state;
    let start =
        move || Ok::<_, std::convert::Infallible>(DeviceState::new(device, numerics, options, selection, streams));
    let thread = DeviceThread::start(start).await?.unwrap_or_else(|never| match never {});
    let buffers = BufferPool::new(BATCHES_AHEAD + streams, batch_rows * needs.pixel_bytes as usize);
    let free_bytes = chosen.gpu.as_ref().map(|gpu| gpu.free_bytes);
    let in_flight = streams;
    Ok(Arc::new(DeviceWorker {
        thread,
        batch_rows,
        in_flight,
        host_batches,
        buffers,
        options,
        text_batches,
        free_bytes,
    }))
}

/// Returns the bytes of an image's activations for this program's own kernels; `None` if burn's run.
fn own_kernel_bytes(needs: MemoryNeeds, kernels: Kernels) -> Option<u64> {
    needs.own_kernel_bytes.filter(|_| needs.precision == Precision::Bf16 && kernels.has_own())
}

/// Returns the kernels that may compute features on a GPU.
fn kernels(settings: DeviceConfig, gpu: &GpuInfo) -> Kernels {
    match settings.kernels {
        KernelChoice::Auto => Kernels::Own { gpu: gpu.index as usize, capability: capability(gpu) },
        KernelChoice::Burn => Kernels::Burn,
    }
}

/// Returns the compute capability as a number, such as 90 for "9.0"; without one, that of a GPU that has no kernels of ours.
fn capability(gpu: &GpuInfo) -> u32 {
    gpu.compute_capability.replace('.', "").parse().unwrap_or(0)
}

/// Computes the largest batch that fits the free memory of a GPU. `own_bytes` are the activations of an image if own kernels run.
fn fit_batch(needs: MemoryNeeds, own_bytes: Option<u64>, gpu: &GpuInfo) -> Result<u64, PipelineError> {
    let width = match needs.precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    };
    // Each stream has its own weights and activations. Activations count twice, because memory is allocated in pages.
    let streams = CUDA_STREAMS as u64;
    let activations = own_bytes.unwrap_or(needs.activation_bytes / 4 * width);
    let image = 2 * streams * (activations + needs.pixel_bytes);
    let fixed = CUDA_RESERVE_BYTES + streams * needs.parameters * width;
    let rows = gpu.free_bytes.saturating_sub(fixed) / image.max(1);
    if rows > 0 {
        return Ok(rows);
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(PipelineError::Model(format!(
        "GPU {} has {} MiB of free memory, and the model needs {} MiB: free some, take another GPU by `device.index`, or set \
         `device.kind` to `cpu`",
        gpu.index,
        mib(gpu.free_bytes),
        mib(fixed + image)
    )))
}

#[cfg(test)]
mod tests {
    use std::borrow::BorrowMut as _;

    use super::*;
    use crate::config::MachineConfig;
    use crate::model::{Checkpoint, ExtractOptions};
    use crate::pipeline::device::LoadedBackbone;
    use crate::pipeline::device::backbone::PendingFeatures;
    use crate::runtime::PooledBuffer;

    fn needs(precision: Precision) -> MemoryNeeds {
        let (activation_bytes, pixel_bytes) = (20 << 20, 150_528);
        let (parameters, host_bytes) = (86_000_000, 1 << 30);
        MemoryNeeds {
            parameters,
            activation_bytes,
            pixel_bytes,
            host_bytes,
            precision,
            own_kernel_bytes: Some(4 << 20),
        }
    }

    fn gpu(free_bytes: u64) -> GpuInfo {
        GpuInfo {
            index: 3,
            name: "X".to_owned(),
            compute_capability: "8.0".to_owned(),
            memory_bytes: 80 << 30,
            free_bytes,
            problem: None,
        }
    }

    #[test]
    fn batch_fits_the_free_memory() {
        let (large, small) = (gpu(70 << 30), gpu(3 << 30));
        assert!(fit_batch(needs(Precision::Bf16), None, &large).unwrap() > 500);
        let rows = fit_batch(needs(Precision::Bf16), None, &small).unwrap();
        assert!((1..1000).contains(&rows) && rows > fit_batch(needs(Precision::F32), None, &small).unwrap());
        assert!(fit_batch(needs(Precision::Bf16), Some(4 << 20), &small).unwrap() > 2 * rows);
    }

    #[test]
    fn compute_capability_is_a_number() {
        let auto = MachineConfig::default().device;
        assert_eq!(kernels(auto, &gpu(1 << 30)), Kernels::Own { gpu: 3, capability: 80 });
        assert_eq!(kernels(DeviceConfig { kernels: KernelChoice::Burn, ..auto }, &gpu(1 << 30)), Kernels::Burn);
    }

    #[test]
    fn own_kernels_run_in_bf16_where_the_gpu_can() {
        let bf16 = needs(Precision::Bf16);
        let own = |capability| Kernels::Own { gpu: 0, capability };
        assert_eq!(own_kernel_bytes(bf16, own(80)), Some(4 << 20));
        let uncovered = MemoryNeeds { own_kernel_bytes: None, ..bf16 };
        for (needs, kernels) in
            [(needs(Precision::F32), own(80)), (uncovered, own(80)), (bf16, own(75)), (bf16, Kernels::Burn)]
        {
            assert_eq!(own_kernel_bytes(needs, kernels), None, "{needs:?}, {kernels:?}");
        }
    }

    #[test]
    fn full_gpu_is_refused_with_both_sizes() {
        let error = fit_batch(needs(Precision::F32), None, &gpu(1 << 30)).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().starts_with("GPU 3 has 1024 MiB of free memory, and the model needs 21"), "{error}");
    }

    /// Creates a CPU worker with the streams, fixed batches and bf16 of a GPU.
    async fn gpu_like_worker(streams: usize) -> Arc<DeviceWorker> {
        let numerics =
            Numerics { format: DType::BF16, batch_rows: Some(3), fused: true, kernels: Kernels::Burn, direct: false };
        let state = move || {
            let device = AnyDevice::Flex(FlexDevice);
            Ok::<_, std::convert::Infallible>(DeviceState::new(
                device,
                numerics,
                Options::default(),
                Selection::Device,
                streams,
            ))
        };
        let thread = DeviceThread::start(state).await.unwrap().unwrap();
        let (buffers, text_batches) = (BufferPool::new(0, 0), TextBatches { tokens: 1024, fixed_shapes: false });
        let options = Options::default();
        Arc::new(DeviceWorker {
            thread,
            batch_rows: 3,
            in_flight: streams,
            host_batches: 0,
            buffers,
            options,
            text_batches,
            free_bytes: None,
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn batches_of_several_streams_can_be_awaited_in_any_order() {
        let checkpoint = Checkpoint::open(Path::new("tests/reference/model/vit")).unwrap();
        let size_px = checkpoint.image_size_px();
        let options = ExtractOptions { size_px, layers: vec![-1], pool: crate::model::Pool::Default };
        let pool = BufferPool::new(1, 1 << 20);
        let batch = |seed: usize, rows: usize| -> PooledBuffer {
            let mut buffer = pool.acquire_pooled();
            let pixels: &mut Vec<u8> = buffer.borrow_mut();
            pixels.clear();
            pixels.extend((0..rows * (3 * size_px * size_px) as usize).map(|at| (at * (31 + seed) % 251) as u8));
            buffer
        };
        let load = async |streams| -> LoadedBackbone {
            gpu_like_worker(streams).await.load_backbone(checkpoint.clone(), options.clone()).await.unwrap()
        };
        let (one, three) = (load(1).await, load(CUDA_STREAMS).await);
        let (mut expected, mut pending) = (Vec::new(), Vec::<(usize, PendingFeatures)>::new());
        for (seed, rows) in [3, 1, 2, 3, 3, 1, 0].into_iter().enumerate() {
            let features = one.submit(batch(seed, rows), rows).await.unwrap();
            expected.push(tokio::task::spawn_blocking(|| features.wait().unwrap()).await.unwrap());
            pending.push((seed, three.submit(batch(seed, rows), rows).await.unwrap()));
        }
        let waiting: Vec<_> = pending
            .into_iter()
            .rev()
            .map(|(seed, pending)| (seed, std::thread::spawn(move || pending.wait().unwrap())))
            .collect();
        for (seed, thread) in waiting {
            assert_eq!(thread.join().unwrap(), expected[seed], "batch {seed}");
        }
        three.unload().await.unwrap();
    }

    #[tokio::test]
    async fn batch_over_the_memory_limit_is_refused_by_key() {
        let cpu = device::select_device(crate::types::DeviceKind::Cpu, 0).unwrap();
        let scratch = Path::new("/nonexistent");
        let settings = |batch_size| DeviceConfig { batch_size, ..MachineConfig::default().device };
        let error = open(&cpu, needs(Precision::F32), settings(60_000), scratch).await.err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("`device.batch_size`") && error.to_string().contains("1783"), "{error}");
        let device = open(&cpu, needs(Precision::F32), settings(0), scratch).await.unwrap();
        assert_eq!((device.batch_rows, device.in_flight), (CPU_BATCH_ROWS, 1));
    }
}
