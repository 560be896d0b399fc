//! The frozen image model on the device: pixels → features, or pixels → tokens of captions.

use std::sync::Arc;

use burn::tensor::StreamId;

use super::{DeviceState, DeviceWorker, OnDevice, backbone_error, check_panics, model_error};
use crate::device;
use crate::model::caption::{CaptionCheckpoint, Captioner};
use crate::model::{Any, Checkpoint, ExtractOptions, Extractor, ModelError, Pending};
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
    models: Vec<ImageModel>,
    /// Stream of the next batch.
    next: usize,
}

/// Model that maps each image to a vector of fixed width.
enum ImageModel {
    Features(Box<Extractor<Any>>),
    Captions(Box<Captioner<Any>>),
}

/// Value of a vector of tokens after the last token of the caption.
pub(crate) const NO_TOKEN: f32 = -1.0;

/// Vectors that are being computed, or were.
enum Vectors {
    Pending(Pending<Any>),
    Ready(Vec<f32>),
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
    features: Vectors,
    panics: u64,
}

impl PendingFeatures {
    /// Returns the features, `[rows, feature_dim]`, row-major. Blocks until they are computed.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn wait(self) -> Result<Vec<f32>, PipelineError> {
        let features = match self.features {
            Vectors::Pending(pending) => pending.wait().map_err(backbone_error)?,
            Vectors::Ready(values) => values,
        };
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

    /// Loads a captioning model, whose features are the tokens of captions, each followed by [`NO_TOKEN`] up to the longest
    /// caption. It has one copy, because a caption takes many steps that wait for each other.
    ///
    /// # Errors
    /// When the checkpoint or the device cannot be used.
    pub(crate) async fn load_captioner(
        self: &Arc<Self>,
        checkpoint: CaptionCheckpoint,
        size_px: u32,
    ) -> Result<LoadedBackbone, PipelineError> {
        let load = move |state: &mut DeviceState| {
            let stream = stream_id(0);
            let captioner = stream
                .executes(|| Captioner::load(&checkpoint, size_px, state.numerics, &state.device))
                .map_err(model_error)?;
            if let Some(rows) = state.numerics.batch_rows {
                state.panics = stream.executes(|| warm_up(|| captioner.warm_up(rows).map_err(model_error)))?;
            }
            let models = vec![ImageModel::Captions(Box::new(captioner))];
            Ok(OnDevice::new(Copies { models, next: 0 }))
        };
        let copies = self.run(load).await?;
        tracing::info!("the captioning model is on the device");
        Ok(LoadedBackbone { device: Arc::clone(self), copies, attention: "products", kernels: "burn" })
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
            let models = copies.into_inner().map(|copies| copies.models);
            for (stream, model) in models.into_iter().flatten().enumerate() {
                stream_id(stream).executes(|| {
                    drop(model);
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
    let mut models = vec![ImageModel::Features(Box::new(first))];
    for stream in 1..state.streams {
        models.push(ImageModel::Features(Box::new(load_copy(state, stream, checkpoint, options)?)));
    }
    Ok(Loaded { copies: OnDevice::new(Copies { models, next: 0 }), attention, kernels, gap })
}

fn load_copy(
    state: &mut DeviceState,
    stream: usize,
    checkpoint: &Checkpoint,
    options: &ExtractOptions,
) -> Result<Extractor<Any>, PipelineError> {
    let load = || Extractor::load(checkpoint, options, state.numerics, &state.device);
    let extractor = stream_id(stream).executes(load).map_err(backbone_error)?;
    if state.numerics.batch_rows.is_some() {
        state.panics = stream_id(stream).executes(|| warm_up(|| extractor.warm_up().map_err(backbone_error)))?;
    }
    Ok(extractor)
}

/// Runs warm-up passes until one succeeds. Returns the number of panics so far.
fn warm_up(pass: impl Fn() -> Result<(), PipelineError>) -> Result<u64, PipelineError> {
    let mut outcome = Ok(());
    for _ in 0..WARM_UPS {
        let before = device::panic_count();
        pass()?;
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
        self.next = (stream + 1) % self.models.len();
        let submit = || -> Result<Vectors, ModelError> {
            Ok(match &self.models[stream] {
                ImageModel::Features(extractor) => Vectors::Pending(extractor.submit(pixels, rows)?),
                ImageModel::Captions(captioner) => {
                    let captions = captioner.captions(pixels, rows)?;
                    Vectors::Ready(to_vectors(&captions, captioner.max_new_tokens()))
                }
            })
        };
        let features = stream_id(stream).executes(submit).map_err(backbone_error)?;
        Ok(PendingFeatures { features, panics: state.panics })
    }
}

/// Returns the tokens of captions as vectors of `width` values. Token ids are exact in f32.
fn to_vectors(captions: &[Vec<u32>], width: usize) -> Vec<f32> {
    let mut values = vec![NO_TOKEN; captions.len() * width];
    for (vector, tokens) in values.chunks_mut(width.max(1)).zip(captions) {
        vector.iter_mut().zip(tokens).for_each(|(value, token)| *value = *token as f32);
    }
    values
}
