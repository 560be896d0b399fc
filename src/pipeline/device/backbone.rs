//! The frozen vision transformer on the device: pixels → features.

use std::sync::Arc;

use burn::tensor::StreamId;

use super::{DeviceState, DeviceWorker, OnDevice, check_panics, model_error};
use crate::device;
use crate::model::{Any, Checkpoint, ExtractOptions, Extractor, Pending};
use crate::pipeline::error::PipelineError;
use crate::runtime::PooledBuffer;

/// Upper bound on warm-up passes of a backbone. Kernels may fail while auto-tuning tries them, but not once it selects
/// them.
const WARM_UPS: usize = 3;

/// The backbone, with a copy on each stream. Clones use the same copies.
#[derive(Clone)]
pub(crate) struct LoadedBackbone {
    device: Arc<DeviceWorker>,
    copies: OnDevice<Copies>,
    /// Name of the implementation of attention that the device uses.
    pub(crate) attention: &'static str,
    /// Kernels that the device uses: `burn`, or the instruction of our own.
    pub(crate) kernels: &'static str,
}

struct Copies {
    extractors: Vec<Extractor<Any>>,
    /// Stream of the next batch.
    next: usize,
}

/// Copies of the backbone, and what computes them.
struct Loaded {
    copies: OnDevice<Copies>,
    attention: &'static str,
    kernels: &'static str,
    /// Part of the model that our own kernels do not cover.
    gap: Option<&'static str>,
}

/// Features that are being computed.
pub(crate) struct PendingFeatures {
    features: Pending<Any>,
    panics: u64,
}

impl PendingFeatures {
    /// Returns the features, `[rows, feature_dim]`, row-major. Blocks until they are computed.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn wait(self) -> Result<Vec<f32>, PipelineError> {
        let features = self.features.wait().map_err(model_error)?;
        check_panics(self.panics)?;
        Ok(features)
    }
}

impl DeviceWorker {
    /// Loads the backbone onto every stream.
    ///
    /// # Errors
    /// When the checkpoint or the device cannot be used.
    pub(crate) async fn load_backbone(
        self: &Arc<Self>,
        checkpoint: Checkpoint,
        options: ExtractOptions,
    ) -> Result<LoadedBackbone, PipelineError> {
        let load = move |state: &mut DeviceState| load_copies(state, &checkpoint, &options);
        let Loaded { copies, attention, kernels, gap } = self.run(load).await?;
        tracing::info!(kernels, attention, "the backbone is on the device");
        if let Some(gap) = gap {
            tracing::info!("burn's kernels run it, because our own do not cover {gap}");
        }
        Ok(LoadedBackbone { device: Arc::clone(self), copies, attention, kernels })
    }
}

impl LoadedBackbone {
    /// Returns the device that holds the backbone.
    pub(crate) fn device(&self) -> &Arc<DeviceWorker> {
        &self.device
    }

    /// Submits a batch of pixels to the next stream, without waiting for its features.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) async fn submit(&self, pixels: PooledBuffer, rows: usize) -> Result<PendingFeatures, PipelineError> {
        let copies = self.copies.clone();
        self.device.run(move |state| copies.get().submit(state, pixels, rows)).await
    }

    /// Frees the memory of the backbone, unless a clone of the handle remains.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(crate) async fn unload(self) -> Result<(), PipelineError> {
        let copies = self.copies;
        let free = move |state: &mut DeviceState| {
            let extractors = copies.into_inner().map(|copies| copies.extractors);
            for (stream, extractor) in extractors.into_iter().flatten().enumerate() {
                stream_id(stream).executes(|| {
                    drop(extractor);
                    state.release_memory();
                });
            }
        };
        self.device.post(free).await
    }
}

/// Returns the identifier of a stream. It counts down, because the runtime counts its threads' own streams up from 0.
fn stream_id(stream: usize) -> StreamId {
    StreamId { value: u64::MAX - stream as u64 }
}

fn load_copies(
    state: &mut DeviceState,
    checkpoint: &Checkpoint,
    options: &ExtractOptions,
) -> Result<Loaded, PipelineError> {
    let first = load_copy(state, 0, checkpoint, options)?;
    let (attention, kernels, gap) = (first.attention(), first.kernels(), first.gap());
    let mut extractors = vec![first];
    for stream in 1..state.streams {
        extractors.push(load_copy(state, stream, checkpoint, options)?);
    }
    Ok(Loaded { copies: OnDevice::new(Copies { extractors, next: 0 }), attention, kernels, gap })
}

fn load_copy(
    state: &mut DeviceState,
    stream: usize,
    checkpoint: &Checkpoint,
    options: &ExtractOptions,
) -> Result<Extractor<Any>, PipelineError> {
    let load = || Extractor::load(checkpoint, options, state.numerics, &state.device);
    let extractor = stream_id(stream).executes(load).map_err(model_error)?;
    if state.numerics.batch_rows.is_some() {
        state.panics = stream_id(stream).executes(|| warm_up(&extractor))?;
    }
    Ok(extractor)
}

/// Runs warm-up passes until one succeeds. Returns the number of panics so far.
fn warm_up(backbone: &Extractor<Any>) -> Result<u64, PipelineError> {
    let mut outcome = Ok(());
    for _ in 0..WARM_UPS {
        let before = device::panic_count();
        backbone.warm_up().map_err(model_error)?;
        outcome = check_panics(before);
        if outcome.is_ok() {
            break;
        }
    }
    outcome.map(|()| device::panic_count())
}

impl Copies {
    fn submit(
        &mut self,
        state: &DeviceState,
        pixels: PooledBuffer,
        rows: usize,
    ) -> Result<PendingFeatures, PipelineError> {
        let stream = self.next;
        self.next = (stream + 1) % self.extractors.len();
        let submit = || self.extractors[stream].submit(pixels, rows);
        let features = stream_id(stream).executes(submit).map_err(model_error)?;
        Ok(PendingFeatures { features, panics: state.panics })
    }
}
