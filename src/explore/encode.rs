//! A picture or a text → a query, by the run's own models, on the CPU.

use std::borrow::BorrowMut as _;
use std::sync::Arc;

use tokio::sync::{OnceCell, Semaphore};

use super::internal;
use super::opened::{Head, OpenRun};
use crate::config::MachineConfig;
use crate::decode::{Decoder, ImageSpec};
use crate::device::select_device;
use crate::model::text::CaptionTokenizer;
use crate::pipeline::PipelineError;
use crate::pipeline::captions::Encoder;
use crate::pipeline::device::{
    self, DeviceWorker, LoadedBackbone, LoadedEncoder, LoadedProjector, MemoryNeeds, model_error,
};
use crate::pipeline::hub::{self, HubModel};
use crate::pipeline::images::RowContent;
use crate::pipeline::resolve::{Backbone, paired_encoder_dir, resolve_backbone};
use crate::train::text::centre_and_normalise;
use crate::types::{DeviceKind, Precision};

/// Vectors to compare with.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// For images: a vector of the space that images are in.
    pub(super) images: Vec<f32>,
    /// For captions; `None` if captions cannot be compared with it.
    pub(super) captions: Option<Vec<f32>>,
}

/// The models of a run, loaded when they are first needed.
pub(super) struct Encoders {
    run: Arc<OpenRun>,
    device: OnceCell<Arc<DeviceWorker>>,
    resolved: OnceCell<Arc<(ImageSpec, Option<Backbone>)>>,
    backbone: OnceCell<LoadedBackbone>,
    texts: OnceCell<(Arc<CaptionTokenizer>, LoadedEncoder, usize)>,
    projector: OnceCell<Option<LoadedProjector>>,
    /// One picture is decoded at a time, which bounds the memory of decoding.
    decoding: Semaphore,
}

impl Encoders {
    pub(super) fn new(run: Arc<OpenRun>) -> Self {
        Self {
            run,
            device: OnceCell::new(),
            resolved: OnceCell::new(),
            backbone: OnceCell::new(),
            texts: OnceCell::new(),
            projector: OnceCell::new(),
            decoding: Semaphore::new(1),
        }
    }

    /// Returns the thread that runs models.
    pub(super) async fn device(&self) -> Result<&Arc<DeviceWorker>, PipelineError> {
        let open = || async {
            let cpu = select_device(DeviceKind::Cpu, 0).map_err(|error| PipelineError::Model(error.to_string()))?;
            let settings = MachineConfig::default().device;
            device::open(&cpu, MemoryNeeds::for_head(Precision::F32), settings, &super::scratch()).await
        };
        self.device.get_or_try_init(open).await
    }

    /// Returns the preprocessing of the images, and the backbone.
    async fn resolved(&self) -> Result<&Arc<(ImageSpec, Option<Backbone>)>, PipelineError> {
        let resolve = || async {
            let (config, store) = (Arc::clone(&self.run.config), self.run.store.clone());
            let resolve = move || {
                let snapshot = hub::find_cached(&config, HubModel::Backbone, &store)?;
                let (content, backbone) = resolve_backbone(&config, snapshot)?;
                let RowContent::Images(spec) = content else {
                    return Err(PipelineError::Input(
                        "the run reads published features, so it has no pictures, and no model to encode one"
                            .to_owned(),
                    ));
                };
                Ok(Arc::new((spec, backbone)))
            };
            tokio::task::spawn_blocking(resolve).await?
        };
        self.resolved.get_or_try_init(resolve).await
    }

    /// Returns the preprocessing of the images.
    ///
    /// # Errors
    /// When the checkpoint is not on this machine.
    pub(super) async fn spec(&self) -> Result<ImageSpec, PipelineError> {
        Ok(self.resolved().await?.0.clone())
    }

    /// Decodes a picture to the square that the model sees. One picture is decoded at a time.
    ///
    /// # Errors
    /// When it is no picture, or over a limit of `[preprocess]`.
    pub(super) async fn decode(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>, PipelineError> {
        let spec = self.spec().await?;
        let _permit = self.decoding.acquire().await.map_err(|_| internal("decoding has ended"))?;
        let decode = move || {
            let mut decoder = Decoder::new(spec);
            let mut pixels = vec![0; decoder.pixel_bytes()];
            let decoded = decoder.decode_into(&mut bytes, &mut pixels, |_| ());
            decoded.map_err(|error| PipelineError::Input(format!("the picture cannot be used: {error}")))?;
            Ok(pixels)
        };
        tokio::task::spawn_blocking(decode).await?
    }

    /// Encodes a picture.
    ///
    /// # Errors
    /// When it cannot be decoded, or the model is not on this machine.
    pub(super) async fn encode_picture(&self, bytes: Vec<u8>) -> Result<Query, PipelineError> {
        let pixels = self.decode(bytes).await?;
        let load = || async {
            let resolved = Arc::clone(self.resolved().await?);
            let backbone = resolved.1.as_ref().ok_or_else(|| internal("the run has no backbone"))?;
            self.device().await?.load_backbone(backbone.checkpoint.clone(), backbone.options.clone()).await
        };
        let backbone = self.backbone.get_or_try_init(load).await?;
        let mut buffer = backbone.device().buffers.acquire_pooled();
        let into: &mut Vec<u8> = buffer.borrow_mut();
        into.clear();
        into.extend_from_slice(&pixels);
        let pending = backbone.submit(buffer, 1).await?;
        let feature = tokio::task::spawn_blocking(move || pending.wait()).await??;
        if feature.iter().any(|value| !value.is_finite()) {
            return Err(PipelineError::Model("the features of the picture are not finite numbers".to_owned()));
        }
        let captions = match &self.run.head {
            Head::Classes(head) => Some(class_query(head.dim, &feature, 1.0)?),
            Head::Projection(_) | Head::Paired => None,
        };
        let images = self.project(feature, 1).await?;
        Ok(Query { captions: captions.or_else(|| Some(images.clone())), images })
    }

    /// Encodes a text.
    ///
    /// # Errors
    /// When the run has no text encoder, or the encoder is not on this machine.
    pub(super) async fn encode_text(&self, text: &str) -> Result<Query, PipelineError> {
        if matches!(self.run.head, Head::Classes(_)) {
            return Err(PipelineError::Input(
                "a text cannot be compared with images: the run has a classifier, and only a text head (`[head] kind = \"text\"`) \
                 or a paired encoder (`kind = \"paired\"`) knows texts"
                    .to_owned(),
            ));
        }
        let load = || async {
            let (config, store) = (Arc::clone(&self.run.config), self.run.store.clone());
            let open = move || {
                let backbone = hub::find_cached(&config, HubModel::Backbone, &store)?;
                let own = hub::find_cached(&config, HubModel::TextEncoder, &store)?;
                let snapshot = own.or_else(|| paired_encoder_dir(&config, backbone.as_deref()));
                let text = config.text().ok_or_else(|| internal("the run has no text encoder"))?;
                let encoder = Encoder::open(text, snapshot)?;
                let tokenizer = CaptionTokenizer::load(&encoder.checkpoint, &encoder.prefix).map_err(model_error)?;
                Ok::<_, PipelineError>((Arc::new(tokenizer), encoder))
            };
            let (tokenizer, encoder) = tokio::task::spawn_blocking(open).await??;
            let max_tokens = encoder.checkpoint.max_tokens();
            let loaded = self.device().await?.load_encoder(encoder.checkpoint, encoder.precision).await?;
            Ok::<_, PipelineError>((tokenizer, loaded, max_tokens))
        };
        let (tokenizer, encoder, max_tokens) = self.texts.get_or_try_init(load).await?;
        let rows = tokenizer.encode(&[text]).map_err(model_error)?;
        let tokens = rows.iter().map(Vec::len).max().unwrap_or(0).clamp(1, *max_tokens);
        let mut vector = encoder.embed(rows, tokens, 1).await?;
        if let Head::Projection(head) = &self.run.head {
            vector = head.map_captions(vector);
        } else {
            let mean = vec![0.0; vector.len()];
            centre_and_normalise(&mut vector, &mean);
        }
        Ok(Query { captions: Some(vector.clone()), images: vector })
    }

    /// Maps features, `[rows, dim]`, to vectors of length 1 in the space in which images are compared.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) async fn project(&self, mut features: Vec<f32>, rows: usize) -> Result<Vec<f32>, PipelineError> {
        let load = || async {
            let Head::Projection(head) = &self.run.head else { return Ok(None) };
            self.device().await?.load_projector(head).await.map(Some)
        };
        if let Some(projector) = self.projector.get_or_try_init(load).await? {
            return projector.project(features, rows).await;
        }
        let dim = features.len() / rows.max(1);
        centre_and_normalise(&mut features, &vec![0.0; dim]);
        Ok(features)
    }
}

/// Builds the query for the captions of a classifier: the feature, and 1 for the bias.
///
/// # Errors
/// When the feature has another size.
pub(super) fn class_query(dim: usize, feature: &[f32], factor: f32) -> Result<Vec<f32>, PipelineError> {
    if feature.len() != dim {
        return Err(PipelineError::Generation(format!(
            "a feature has {} values, and the head expects {dim}; train again with --from train",
            feature.len()
        )));
    }
    Ok(feature.iter().map(|value| value * factor).chain([1.0]).collect())
}
