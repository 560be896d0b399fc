//! What a plan comes to once its checkpoint is looked at: preprocessing, backbone, and whether both fit the limits.

use std::path::PathBuf;
use std::sync::Arc;

use crate::chunk::schedule::LANES;
use crate::config::StageKeys;
use crate::config::plan::Stage;
use crate::config::value::Pool as Word;
use crate::config::{ConfigError, Problem, RunConfig};
use crate::decode::Spec;
use crate::device::Chosen;
use crate::model::{Checkpoint, ExtractOptions, Pool};
use crate::pipeline::captions::Encoder;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{self, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::features::FeatureShape;
use crate::pipeline::manifest::CHECKPOINT_FILES;
use crate::pipeline::{hub, preprocess, stream};

/// The models that a run uses, opened, and the device chosen for them.
pub(crate) struct ResolvedModel {
    /// How images are decoded.
    pub(crate) spec: Spec,
    /// The frozen image model; `None` where pixel chunks are the product.
    pub(crate) backbone: Option<Backbone>,
    /// The frozen text encoder, for a text head.
    pub(crate) text_encoder: Option<Encoder>,
    /// The device on which they run; `None` without a backbone.
    pub(crate) device: Option<Chosen>,
}

impl ResolvedModel {
    /// Downloads what the hub's cache lacks, opens both models, checks the limits and chooses a device.
    ///
    /// # Errors
    /// When a model, the device or a limit does not fit the configuration; or when the run has to stop.
    pub(crate) async fn open(ctx: &RunContext) -> Result<Self, PipelineError> {
        let RunContext { config, store, progress, shutdown, .. } = ctx;
        let backbone_dir = hub::fetch(config, hub::Which::Backbone, store, progress, shutdown).await?;
        let encoder_dir = hub::fetch(config, hub::Which::Encoder, store, progress, shutdown).await?;
        let own = Arc::clone(config);
        let (spec, backbone) = tokio::task::spawn_blocking(move || resolve(&own, backbone_dir)).await??;
        let text_encoder = match config.pipeline().text.clone() {
            Some(text) => Some(tokio::task::spawn_blocking(move || Encoder::open(&text, encoder_dir)).await??),
            None => None,
        };
        let device = if backbone.is_some() { Some(device::choose(&config.machine().device).await?) } else { None };
        Ok(Self { spec, backbone, text_encoder, device })
    }

    /// Returns the backbone.
    ///
    /// # Errors
    /// An internal error where the configuration has none: only stages that need one ask for it.
    pub(crate) fn backbone(&self) -> Result<&Backbone, PipelineError> {
        let absent = || PipelineError::Internal("a stage needs a model that the configuration lacks".to_owned());
        self.backbone.as_ref().ok_or_else(absent)
    }

    /// Returns the text encoder.
    ///
    /// # Errors
    /// As [`Self::backbone`].
    pub(crate) fn text_encoder(&self) -> Result<&Encoder, PipelineError> {
        let absent = || PipelineError::Internal("a stage needs a text encoder that the configuration lacks".to_owned());
        self.text_encoder.as_ref().ok_or_else(absent)
    }

    /// Returns the keys that the chunks of an image stream depend on, apart from its input files.
    pub(crate) fn stream_keys(&self, config: &RunConfig, stage: Stage) -> StageKeys {
        let mut keys = config.keys(stage);
        let geometry = serde_json::to_string(&self.spec.geometry).unwrap_or_default();
        keys.insert("images (shards side by side)".to_owned(), LANES.to_string());
        keys.insert(
            "preprocess (resolved)".to_owned(),
            format!("{geometry} {}", self.spec.resample.fingerprint_name()),
        );
        if let Some(backbone) = &self.backbone {
            keys.insert(CHECKPOINT_FILES.to_owned(), backbone.fingerprint.clone());
            keys.remove("model.checkpoint");
        }
        keys
    }
}

/// What a backbone is, as far as the wiring needs it.
pub(super) struct Backbone {
    pub(super) checkpoint: Checkpoint,
    pub(super) options: ExtractOptions,
    pub(super) shape: FeatureShape,
    pub(super) fingerprint: String,
}

/// Preprocessing and backbone of a plan, with everything that is wrong with them. `snapshot`: where the checkpoint is, if it
/// is one of the hub's.
pub(super) fn resolve(plan: &RunConfig, snapshot: Option<PathBuf>) -> Result<(Spec, Option<Backbone>), PipelineError> {
    let Some(model) = &plan.pipeline().model else {
        let spec = preprocess::resolve(plan, preprocess::Asked::default());
        return bounded(plan, spec, None);
    };
    {
        let dir = snapshot.unwrap_or_else(|| PathBuf::from(&model.checkpoint));
        let checkpoint = Checkpoint::open(&dir).map_err(model_error)?;
        let asked = preprocess::asked_by(checkpoint.preprocessor(), checkpoint.image_size_px())?;
        let spec = preprocess::resolve(plan, asked);
        let pool = pool_of(model.pool);
        let options = ExtractOptions { size_px: spec.geometry.output_px(), layer: model.layer, pool };
        let patch = checkpoint.patch_size_px();
        if !options.size_px.is_multiple_of(patch) {
            let what = format!(
                "`{}` is no multiple of the checkpoint's patch of {patch} pixels; {} would be",
                options.size_px,
                options.size_px / patch.max(1) * patch
            );
            return Err(refused("preprocess.size_px", what));
        }
        let layers = i64::from(checkpoint.layers());
        if !(-layers..layers).contains(&i64::from(model.layer)) {
            let what =
                format!("`{}` names no block: the checkpoint has {layers}, from 0 or from -1 backwards", model.layer);
            return Err(refused("model.layer", what));
        }
        let fingerprint = checkpoint.fingerprint().map_err(model_error)?;
        let shape = FeatureShape { dim: checkpoint.feature_dim(pool), precision: model.precision };
        bounded(plan, spec, Some(Backbone { checkpoint, options, shape, fingerprint }))
    }
}

/// A configuration's word as the model's.
pub(super) fn pool_of(word: Word) -> Pool {
    match word {
        Word::Default => Pool::Default,
        Word::Cls => Pool::Cls,
        Word::ClsMean => Pool::ClsMean,
    }
}

fn bounded(
    plan: &RunConfig,
    spec: Spec,
    backbone: Option<Backbone>,
) -> Result<(Spec, Option<Backbone>), PipelineError> {
    let bytes = stream::stream_bytes(&spec, workers(plan), u64::from(plan.pipeline().chunks.rows));
    let problems = plan.check_bounds(spec.geometry.output_px(), bytes);
    if problems.is_empty() { Ok((spec, backbone)) } else { Err(ConfigError(problems).into()) }
}

/// Decoding threads that a plan asks for.
pub(crate) fn workers(plan: &RunConfig) -> usize {
    match plan.machine().limits.cpu_workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => count as usize,
    }
}

/// Refuses to rank more captions than there are.
pub(super) fn enough_captions(captions: usize, top_k: u32) -> Result<(), PipelineError> {
    if captions >= top_k as usize {
        return Ok(());
    }
    let what = format!("`{top_k}` is more than the number of distinct captions, {captions}: lower it");
    Err(refused("predict.top_k", what))
}

/// A key that does not fit what it names.
fn refused(key: &str, what: String) -> PipelineError {
    ConfigError(vec![Problem { key: key.to_owned(), what }]).into()
}
