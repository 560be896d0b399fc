//! Backbone and trained head as a directory that transformers opens.

use std::path::Path;

use super::worker::model_error;
use super::{PipelineError, catalog, checkpoints, generation, hub, store};
use crate::config::RunConfig;
use crate::config::plan::Stage;
use crate::config::value::{HeadKind, Pick, Pool};
use crate::model::{Checkpoint, Classifier, export_hf};
use crate::run_dir::Directory;

/// Writes the run's newest head with its backbone to `out`; returns the head's step.
///
/// # Errors
/// When the run has no head, or its features are not what the family's classifier sees.
pub fn export(plan: &RunConfig, out: &Path) -> Result<u64, PipelineError> {
    let Some(model) = &plan.pipeline().model else {
        return Err(PipelineError::Input("the pipeline has no `[model]`, so there is nothing to export".to_owned()));
    };
    if plan.pipeline().head.kind == HeadKind::Text {
        return Err(PipelineError::Input(
            "a text head is no classifier that transformers could open; its tensors are in `checkpoints/`".to_owned(),
        ));
    }
    if model.layer != -1 || model.pool != Pool::Default {
        return Err(PipelineError::Input(
            "a head on `model.layer` or `model.pool` other than the default is no classifier of the family in transformers"
                .to_owned(),
        ));
    }
    let store = store(&plan.machine().store);
    let directory = Directory::read_only(&store, &plan.pipeline().run.dir)?;
    let Some(picked) = checkpoints::pick(&directory, Pick::Last)? else {
        return Err(PipelineError::Input(format!(
            "`{}` has no checkpoint: run the pipeline first",
            plan.pipeline().run.dir
        )));
    };
    let head = picked.head()?;
    let labels: Vec<String> =
        catalog::load_captions(&directory)?.into_iter().map(|caption| caption.text.into_string()).collect();
    let dir = hub::cached(plan, hub::Which::Backbone, &store)?.unwrap_or_else(|| model.checkpoint.clone().into());
    let backbone = Checkpoint::open(&dir).map_err(model_error)?;
    check_backbone(&directory, &backbone, &model.checkpoint)?;
    let classifier = Classifier::new(head.weight, head.bias).map_err(model_error)?;
    export_hf(&backbone, &classifier, &labels, out).map_err(model_error)?;
    Ok(picked.step)
}

/// A head belongs to the backbone whose features it was trained on, and a branch of the hub moves.
fn check_backbone(directory: &Directory, backbone: &Checkpoint, name: &str) -> Result<(), PipelineError> {
    let recorded = generation::read(directory)?
        .and_then(|file| file.stages.get(Stage::Stream.as_str())?.keys.get(generation::CHECKPOINT_FILES).cloned());
    if recorded.is_none_or(|recorded| backbone.fingerprint().is_ok_and(|now| now == recorded)) {
        return Ok(());
    }
    Err(PipelineError::Generation(format!(
        "`model.checkpoint`: `{name}` has other files than the features of `{}` were made with; name those, with `@` and their commit if they are from the hub",
        directory.display("")
    )))
}
