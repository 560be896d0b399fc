//! Export of backbone and trained classifier to a directory that transformers can load.

mod target;

use std::path::Path;

use crate::config::{RunConfig, Stage};
use crate::model::{Checkpoint, Classifier, export_hf};
use crate::pipeline::catalog::StoredClasses;
use crate::pipeline::device::model_error;
use crate::pipeline::error::PipelineError;
use crate::pipeline::hub::{HubModel, find_cached};
use crate::pipeline::manifest::{CHECKPOINT_FILES, RunFile};
use crate::pipeline::store::open_store;
use crate::pipeline::train::checkpoints;
use crate::run_dir::Directory;
use crate::types::{Pick, Pool};

use target::ExportTarget;

/// Writes the run's newest classifier with its backbone to `out`. Returns the classifier's step.
///
/// # Errors
/// When `out` holds anything but an earlier export of the run; or when the run has no classifier, or its features are not the input of the family's classifier in transformers.
pub fn export(config: &RunConfig, out: &Path) -> Result<u64, PipelineError> {
    let Some(model) = config.model() else {
        return Err(PipelineError::Input("the pipeline has no `[model]`, so there is nothing to export".to_owned()));
    };
    if model.published_dim.is_some() {
        return Err(PipelineError::Input(
            "transformers cannot load a head on published features, since there is no backbone to export with it; its tensors \
             are in `checkpoints/`"
                .to_owned(),
        ));
    }
    if config.head().is_text() {
        return Err(PipelineError::Input(
            "transformers cannot load a text head: it is not a classifier; its tensors are in `checkpoints/`"
                .to_owned(),
        ));
    }
    if model.layers != [-1] || model.pool != Pool::Default {
        return Err(PipelineError::Input(
            "transformers cannot load a head on another `model.layer` or `model.pool` than the default".to_owned(),
        ));
    }
    let store = open_store(config.store());
    let directory = Directory::read_only(&store, config.run_dir())?;
    let Some(picked) = checkpoints::pick(&directory, Pick::Last)? else {
        return Err(PipelineError::Input(format!("`{}` has no checkpoint: run the pipeline first", config.run_dir())));
    };
    let head = picked.load_classifier()?;
    let labels: Vec<String> = StoredClasses::open(&directory)?.read_texts()?.iter().map(ToOwned::to_owned).collect();
    let dir = find_cached(config, HubModel::Backbone, &store)?.unwrap_or_else(|| model.checkpoint.clone().into());
    let backbone = Checkpoint::open(&dir).map_err(model_error)?;
    check_backbone(&directory, &backbone, &model.checkpoint)?;
    let classifier = Classifier::new(head.weight, head.bias).map_err(model_error)?;
    let target = ExportTarget::open(out, config.run_dir())?;
    if let Err(error) = export_hf(&backbone, &classifier, &labels, &target.partial()) {
        target.abandon();
        return Err(model_error(error));
    }
    target.publish(picked.step)?;
    Ok(picked.step)
}

/// Refuses a backbone other than the one whose features the head was trained on: a branch of the hub can change.
fn check_backbone(directory: &Directory, backbone: &Checkpoint, name: &str) -> Result<(), PipelineError> {
    let recorded = RunFile::read(directory)?
        .and_then(|file| file.stages.get(Stage::Stream.as_str())?.keys.get(CHECKPOINT_FILES).cloned());
    if recorded.is_none_or(|recorded| backbone.fingerprint().is_ok_and(|now| now == recorded)) {
        return Ok(());
    }
    Err(PipelineError::Generation(format!(
        "`model.checkpoint`: the files of `{name}` are not those that made the features of `{}`; name those files, with `@` and \
         their commit if they are from the hub",
        directory.display("")
    )))
}
