//! What a plan comes to once its checkpoint is looked at: preprocessing, backbone, and whether both fit the limits.

use std::path::PathBuf;

use super::features::FeatureShape;
use super::worker::model_error;
use super::{PipelineError, preprocess, stream};
use crate::config::value::Pool as Word;
use crate::config::{ConfigError, Problem, RunConfig};
use crate::decode::ImageSpec;
use crate::model::{Checkpoint, ExtractOptions, Pool};

/// What a backbone is, as far as the wiring needs it.
pub(super) struct Backbone {
    pub(super) checkpoint: Checkpoint,
    pub(super) options: ExtractOptions,
    pub(super) shape: FeatureShape,
    pub(super) fingerprint: String,
}

/// Preprocessing and backbone of a plan, with everything that is wrong with them. `snapshot`: where the checkpoint is, if it
/// is one of the hub's.
pub(super) fn resolve(
    plan: &RunConfig,
    snapshot: Option<PathBuf>,
) -> Result<(ImageSpec, Option<Backbone>), PipelineError> {
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
    spec: ImageSpec,
    backbone: Option<Backbone>,
) -> Result<(ImageSpec, Option<Backbone>), PipelineError> {
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
