//! [`ResolvedModel`]: preprocessing, models and device of a configuration, once its checkpoints are open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{ConfigError, HeadConfig, Problem, RunConfig, Stage, StageKeys};
use crate::device::SelectedDevice;
use crate::model::{Checkpoint, ExtractOptions};
use crate::pipeline::captions::Encoder;
use crate::pipeline::context::{RunContext, workers};
use crate::pipeline::device::{self, DeviceWorker, MemoryNeeds, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::hub::{self, HubModel};
use crate::pipeline::images::preprocess::{CheckpointPreprocessing, resolve_spec};
use crate::pipeline::images::{NumberSpec, RowContent};
use crate::pipeline::manifest::CHECKPOINT_FILES;
use crate::pipeline::observe::report::ModelReport;
use crate::types::{FeatureOrigin, Precision};

/// Shape and storage format of a feature.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FeatureShape {
    /// Dimension of a feature.
    pub(crate) dim: usize,
    /// Format in which a value is stored.
    pub(crate) precision: Precision,
}

impl From<NumberSpec> for FeatureShape {
    fn from(NumberSpec { dim, precision }: NumberSpec) -> Self {
        Self { dim: dim as usize, precision }
    }
}

/// The frozen image model.
pub(crate) struct Backbone {
    /// Files of the model.
    pub(crate) checkpoint: Checkpoint,
    /// Choice of the output that makes the feature.
    pub(crate) options: ExtractOptions,
    /// Shape of the feature.
    pub(crate) shape: FeatureShape,
    /// Hash of the model's files.
    pub(crate) fingerprint: String,
}

/// Opened models of a run, and the device chosen for them.
pub(crate) struct ResolvedModel {
    /// Images with their preprocessing, or published features.
    pub(crate) content: RowContent,
    /// The frozen image model; `None` if pixel chunks are the product, or features are published.
    pub(crate) backbone: Option<Backbone>,
    /// The frozen text encoder of a text head.
    pub(crate) text_encoder: Option<Encoder>,
    /// Device of the models and heads; `None` if neither runs.
    pub(crate) device: Option<SelectedDevice>,
}

impl ResolvedModel {
    /// Downloads the files that the hub's cache lacks, opens both models, checks the limits and chooses a device.
    ///
    /// # Errors
    /// When a model, the device or a limit does not fit the configuration; or when the run has to stop.
    pub(crate) async fn open(ctx: &RunContext) -> Result<Self, PipelineError> {
        let RunContext { config, store, progress, shutdown, .. } = ctx;
        let backbone_dir = hub::download(config, HubModel::Backbone, store, progress, shutdown).await?;
        let encoder_dir = hub::download(config, HubModel::TextEncoder, store, progress, shutdown).await?;
        let encoder_dir = encoder_dir.or_else(|| paired_encoder_dir(config, backbone_dir.as_deref()));
        let own = Arc::clone(config);
        let (content, backbone) = tokio::task::spawn_blocking(move || resolve_backbone(&own, backbone_dir)).await??;
        let text_encoder = match config.text().cloned() {
            Some(text) => Some(tokio::task::spawn_blocking(move || Encoder::open(&text, encoder_dir)).await??),
            None => None,
        };
        let device = if backbone.is_some() || needs_device_alone(config) {
            Some(device::choose(config.device()).await?)
        } else {
            None
        };
        Ok(Self { content, backbone, text_encoder, device })
    }

    /// Returns the backbone.
    ///
    /// # Errors
    /// An internal error if the configuration has no backbone. Only stages that need one call this.
    pub(crate) fn backbone(&self) -> Result<&Backbone, PipelineError> {
        let absent = || PipelineError::Internal("a stage needs a model that the configuration lacks".to_owned());
        self.backbone.as_ref().ok_or_else(absent)
    }

    /// Returns the shape of the features; `None` if pixel chunks are the product.
    pub(crate) fn feature_shape(&self) -> Option<FeatureShape> {
        match (&self.backbone, &self.content) {
            (Some(backbone), _) => Some(backbone.shape),
            (None, RowContent::Numbers(spec)) => Some((*spec).into()),
            (None, RowContent::Images(_)) => None,
        }
    }

    /// Returns the shape of the features.
    ///
    /// # Errors
    /// An internal error without features. Only stages that need them call this.
    pub(crate) fn shape(&self) -> Result<FeatureShape, PipelineError> {
        let absent = || PipelineError::Internal("a stage needs features that the configuration lacks".to_owned());
        self.feature_shape().ok_or_else(absent)
    }

    /// Returns the text encoder.
    ///
    /// # Errors
    /// As [`Self::backbone`].
    pub(crate) fn text_encoder(&self) -> Result<&Encoder, PipelineError> {
        let absent = || PipelineError::Internal("a stage needs a text encoder that the configuration lacks".to_owned());
        self.text_encoder.as_ref().ok_or_else(absent)
    }

    /// Describes the models for the report; `None` without features.
    pub(crate) fn report(&self, config: &RunConfig) -> Option<ModelReport> {
        let text_encoder = config.text().map(|text| text.encoder.clone());
        if let RowContent::Numbers(NumberSpec { dim, precision }) = self.content {
            let (feature_dim, precision) = (u64::from(dim), precision.to_string());
            let family = FeatureOrigin::Published.to_string();
            return Some(ModelReport { family, feature_dim, precision, text_encoder, ..ModelReport::default() });
        }
        let (Backbone { checkpoint, options, shape, fingerprint }, model) = (self.backbone.as_ref()?, config.model()?);
        Some(ModelReport {
            checkpoint: model.checkpoint.clone(),
            files: fingerprint.clone(),
            family: checkpoint.family().name().to_owned(),
            parameters: checkpoint.parameters(),
            image_px: options.size_px,
            feature_dim: shape.dim as u64,
            precision: shape.precision.to_string(),
            text_encoder,
        })
    }

    /// Opens the device; `None` if no stage needs one.
    ///
    /// # Errors
    /// When host or GPU have too little memory.
    pub(crate) async fn open_device(&self, ctx: &RunContext) -> Result<Option<Arc<DeviceWorker>>, PipelineError> {
        let (Some(chosen), Some(shape)) = (&self.device, self.feature_shape()) else { return Ok(None) };
        let needs = match &self.backbone {
            None => MemoryNeeds::for_head(shape.precision),
            Some(backbone) => {
                let bytes = self.content.stream_bytes(ctx.pool.width(), u64::from(ctx.config.chunks().rows));
                MemoryNeeds {
                    parameters: backbone.checkpoint.parameters(),
                    activation_bytes: backbone.checkpoint.activation_bytes(backbone.options.size_px),
                    pixel_bytes: self.content.decoded_bytes(),
                    host_bytes: bytes.left_for_model(ctx.config.limits().memory.0),
                    precision: shape.precision,
                    own_kernel_bytes: backbone.options.own_kernel_bytes(&backbone.checkpoint),
                }
            }
        };
        let device = device::open(chosen, needs, *ctx.config.device(), &ctx.scratch_path()).await?;
        tracing::info!(device = %chosen, batch = device.batch_rows, "the model runs");
        Ok(Some(device))
    }

    /// Returns the keys that the chunks of an image stream depend on, without its input files.
    pub(crate) fn stream_keys(&self, config: &RunConfig, stage: Stage) -> StageKeys {
        let mut keys = config.keys(stage);
        if let RowContent::Images(spec) = &self.content {
            let geometry = serde_json::to_string(&spec.geometry).unwrap_or_default();
            let resolved = format!("{geometry} {}", spec.resample.fingerprint_name());
            keys.insert("preprocess (resolved)".to_owned(), resolved);
        }
        if let Some(backbone) = &self.backbone {
            // The content of the files counts, not their path.
            keys.insert(CHECKPOINT_FILES.to_owned(), backbone.fingerprint.clone());
            keys.remove("model.checkpoint");
        }
        keys
    }
}

/// Returns the directory of the backbone if the text encoder is its text tower. `snapshot` is that of a backbone from the
/// hub.
pub(crate) fn paired_encoder_dir(config: &RunConfig, snapshot: Option<&Path>) -> Option<PathBuf> {
    config.text().filter(|text| text.is_paired())?;
    let named = || config.model().map(|model| PathBuf::from(&model.checkpoint));
    snapshot.map(Path::to_owned).or_else(named)
}

/// Returns whether training starts from the projection of the backbone's pair, if the features have the width of its vectors.
pub(crate) fn starts_paired(config: &RunConfig) -> bool {
    // Heads that score together start at random, or those of one layer would all be the same.
    let is_single = config.train().is_some_and(|train| train.ensemble.is_none());
    is_single && matches!(config.head(), HeadConfig::Text { hidden: 0, encoder } if encoder.is_paired())
}

/// Returns whether a head needs a device although no backbone does.
pub(crate) fn needs_device_alone(config: &RunConfig) -> bool {
    config.published_dim().is_some() && (config.train().is_some() || config.predict().is_some())
}

/// Opens the backbone of a configuration and resolves its preprocessing. `snapshot` is the directory of a checkpoint
/// from the hub.
///
/// # Errors
/// A configuration error that lists every key that does not fit the checkpoint or the limits.
pub(crate) fn resolve_backbone(
    config: &RunConfig,
    snapshot: Option<PathBuf>,
) -> Result<(RowContent, Option<Backbone>), PipelineError> {
    let Some(model) = config.model() else {
        let content = RowContent::Images(resolve_spec(config, CheckpointPreprocessing::default()));
        check_bounds(config, &content)?;
        return Ok((content, None));
    };
    if let Some(dim) = model.published_dim {
        let content = RowContent::Numbers(NumberSpec { dim, precision: model.precision });
        check_bounds(config, &content)?;
        return Ok((content, None));
    }
    let dir = snapshot.unwrap_or_else(|| PathBuf::from(&model.checkpoint));
    hub::require_checkpoint("model.checkpoint", &model.checkpoint, &dir)?;
    let checkpoint = Checkpoint::open(&dir).map_err(model_error)?;
    let preprocessing = CheckpointPreprocessing::read(checkpoint.preprocessor(), checkpoint.image_size_px())?;
    let spec = resolve_spec(config, preprocessing);
    let options = ExtractOptions { size_px: spec.geometry.output_px(), layers: model.layers.clone(), pool: model.pool };
    let patch = checkpoint.patch_size_px();
    if checkpoint.check_size(options.size_px).is_err() && !options.size_px.is_multiple_of(patch) {
        let what = format!(
            "`{}` is not a multiple of the checkpoint's patch of {patch} pixels; {} would be",
            options.size_px,
            options.size_px / patch.max(1) * patch
        );
        return Err(refuse_key("preprocess.size_px", what));
    }
    checkpoint.check_size(options.size_px).map_err(|error| refuse_key("preprocess.size_px", error.to_string()))?;
    let layers = i64::from(checkpoint.layers());
    if let Some(layer) = model.layers.iter().find(|layer| !(-layers..layers).contains(&i64::from(**layer))) {
        let what = format!("`{layer}` names no block: the checkpoint has {layers}, from 0 or from -1 backwards");
        return Err(refuse_key("model.layer", what));
    }
    let parts = checkpoint.feature_parts(&model.layers, model.pool);
    let dim = parts.map_err(|error| refuse_key("model.pool", error.to_string()))?.iter().sum();
    if matches!(config.head(), HeadConfig::Paired { .. }) && checkpoint.pairing().map_err(model_error)?.is_none() {
        let what = format!("`{}` has no `logit_scale`: name a checkpoint with both towers", model.checkpoint);
        return Err(refuse_key("model.checkpoint", what));
    }
    if starts_paired(config) {
        // Training needs the scale after all features are computed.
        checkpoint.pairing().map_err(model_error)?;
    }
    let fingerprint = checkpoint.fingerprint().map_err(model_error)?;
    let shape = FeatureShape { dim, precision: model.precision };
    let content = RowContent::Images(spec);
    check_bounds(config, &content)?;
    Ok((content, Some(Backbone { checkpoint, options, shape, fingerprint })))
}

/// Refuses limits under which the image stream cannot work.
///
/// # Errors
/// A configuration error that lists the limits.
pub(crate) fn check_bounds(config: &RunConfig, content: &RowContent) -> Result<(), PipelineError> {
    let bytes = content.stream_bytes(workers(config), u64::from(config.chunks().rows));
    let problems = config.check_bounds(content.size_px(), bytes);
    if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems).into()) }
}

/// Refuses to rank more captions than there are.
///
/// # Errors
/// A configuration error that names `predict.top_k`.
pub(crate) fn require_captions(captions: usize, top_k: u32) -> Result<(), PipelineError> {
    if captions >= top_k as usize {
        return Ok(());
    }
    let what = format!("`{top_k}` is more than the number of distinct captions, {captions}: lower it");
    Err(refuse_key("predict.top_k", what))
}

/// Returns the configuration error of a key that does not fit, with the reason `what`.
fn refuse_key(key: &str, what: String) -> PipelineError {
    ConfigError(vec![Problem { key: key.to_owned(), what }]).into()
}
