//! The device and the thread that owns it.
//!
//! Callers send host vectors and receive numbers, or a handle to features that are still being computed. Loading a
//! model returns a typed handle ([`LoadedBackbone`], [`LoadedScorer`], …). Every use of the model goes through its
//! handle, so no call can reach a model that is not loaded. Unloading consumes the handle and frees the memory. Only
//! the device's thread touches tensors.
//!
//! A GPU works on several *streams*. Each stream has its own memory and a copy of the backbone; batches go to the
//! streams in turn. With burn's kernels, the runtime copies pixels from unpinned memory. Such a copy waits for all earlier
//! work on its stream, and so does a read of results. With one batch per stream, both wait for that batch alone, while
//! the GPU computes the batches of the other streams. With this crate's own kernels, pixels and features pass through
//! pinned memory. An upload waits for the batch before the last of its stream, from 32 MiB a batch on for the last one.

mod backbone;
mod encoder;
mod features;
mod open;
mod scorer;
mod trainers;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::Backend as _;
use cubecl::Runtime as _;
use cubecl::cuda::CudaRuntime;

pub(crate) use backbone::{LoadedBackbone, NO_TOKEN};
pub(crate) use encoder::LoadedEncoder;
pub(crate) use features::{FeatureRows, FeaturesOnDevice};
pub(crate) use open::{MemoryNeeds, choose, open, training_options};
pub(crate) use scorer::{LoadedProjector, LoadedScorer, linear_layer};
pub(crate) use trainers::{
    ClassifierStart, ClassifierTrainers, LossSum, MicroBatch, ProjectionStart, ProjectionTrainers, Update,
};

use crate::device;
use crate::model::{Any, AnyDevice, ModelError, Numerics};
use crate::pipeline::error::{PipelineError, chain};
use crate::predict::scorer::Selection;
use crate::runtime::{BufferPool, DeviceGone, DeviceThread};
use crate::train::Options;

/// The device's thread, and the properties of the device that callers plan with.
pub(crate) struct DeviceWorker {
    thread: DeviceThread<DeviceState>,
    /// Rows in a batch of images.
    pub(crate) batch_rows: usize,
    /// Largest number of batches on the device at once.
    pub(crate) in_flight: usize,
    /// Largest number of batches of pixels in the memory of the host at once.
    pub(crate) host_batches: usize,
    /// Pixel buffers for all batches on the host.
    pub(crate) buffers: BufferPool,
    /// Settings with which heads are trained.
    pub(crate) options: Options,
    /// Size limits of caption batches.
    pub(crate) text_batches: TextBatches,
    /// Free memory of a GPU when it was opened; `None` for the CPU, whose memory is the host's.
    pub(crate) free_bytes: Option<u64>,
}

/// Size limits of the caption batches of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextBatches {
    /// Tokens in a batch, padding included.
    pub(crate) tokens: usize,
    /// Whether batches should have few distinct shapes.
    pub(crate) fixed_shapes: bool,
}

impl DeviceWorker {
    /// Runs `job` on the device's thread and waits for its result.
    ///
    /// # Errors
    /// The job's own error; or when a thread of the device's runtime panicked, or the device's thread is gone.
    async fn run<T, F>(&self, job: F) -> Result<T, PipelineError>
    where
        T: Send + 'static,
        F: FnOnce(&mut DeviceState) -> Result<T, PipelineError> + Send + 'static,
    {
        let checked = |state: &mut DeviceState| {
            let result = job(state)?;
            check_panics(state.panics)?;
            Ok(result)
        };
        self.thread.call(checked).await?
    }

    /// Runs a job that cannot fail on the device's thread and waits for its end.
    ///
    /// # Errors
    /// When the device's thread is gone.
    async fn post(&self, job: impl FnOnce(&mut DeviceState) + Send + 'static) -> Result<(), PipelineError> {
        Ok(self.thread.call(job).await?)
    }
}

/// State of the device's thread. It lives as long as the run.
struct DeviceState {
    device: AnyDevice,
    numerics: Numerics,
    options: Options,
    selection: Selection,
    /// Streams with a copy of the backbone.
    streams: usize,
    /// Number of panics in the runtime's threads when the last warm-up ended. Results of a warm-up are discarded.
    panics: u64,
}

impl DeviceState {
    fn new(device: AnyDevice, numerics: Numerics, options: Options, selection: Selection, streams: usize) -> Self {
        Self { device, numerics, options, selection, streams, panics: device::panic_count() }
    }

    /// Returns the memory of the current stream to the GPU. A failure of the GPU surfaces at its next use.
    ///
    /// burn's own cleanup has no effect through `Dispatch`.
    fn release_memory(&self) {
        if let AnyDevice::Cuda(cuda) = &self.device {
            Any::sync(&self.device).ok();
            CudaRuntime::client(cuda).memory_cleanup();
        }
    }
}

/// Value that only jobs on the device's thread access. Other threads merely hold and pass on the handle.
struct OnDevice<T>(Arc<Mutex<T>>);

impl<T> OnDevice<T> {
    fn new(value: T) -> Self {
        Self(Arc::new(Mutex::new(value)))
    }

    /// Returns the value. Never waits, because only the device's thread locks it.
    fn get(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the value if this is the last handle to it.
    fn into_inner(self) -> Option<T> {
        Arc::into_inner(self.0).map(|value| value.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Clone for OnDevice<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Fails if the runtime's threads have panicked since the count `before`. Results after a panic cannot be trusted.
fn check_panics(before: u64) -> Result<(), PipelineError> {
    if device::panic_count() == before {
        return Ok(());
    }
    Err(PipelineError::Internal(
        "a thread of the device's runtime failed, and its results cannot be trusted".to_owned(),
    ))
}

/// Converts an error and its causes into one sentence about a damaged artefact of the run.
pub(crate) fn damaged(error: impl std::error::Error) -> PipelineError {
    PipelineError::Input(chain(&error))
}

/// Converts an error of the backbone on a device. After a panic of the runtime's threads, the panic tells the cause.
fn backbone_error(error: ModelError) -> PipelineError {
    match error {
        ModelError::Runtime => DeviceGone.into(),
        error => model_error(error),
    }
}

/// Converts an error of the model and its causes into one sentence.
pub(crate) fn model_error(error: impl std::error::Error) -> PipelineError {
    PipelineError::Model(chain(&error))
}
