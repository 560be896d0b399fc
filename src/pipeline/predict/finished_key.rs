//! Key of everything that a prediction depends on, so that a finished one is not computed again.

use crate::config::{PredictConfig, Stage, StageKeys, output_stem};
use crate::objects::Store;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::finished::FinishedStage;
use crate::pipeline::manifest::{Manifest, RunFile, add_inputs};
use crate::pipeline::predict::PredictInput;
use crate::pipeline::train::checkpoints;
use crate::run_dir::Directory;
use crate::types::Pick;

/// Returns the record of a prediction.
///
/// # Errors
/// When an input or a run directory cannot be read.
pub(super) async fn compute(
    ctx: &RunContext,
    settings: &PredictConfig,
    input: &PredictInput<'_>,
) -> Result<FinishedStage, PipelineError> {
    let mut keys = match &input.model.text_encoder {
        Some(encoder) => encoder.stage_keys(&ctx.config),
        None => StageKeys::new(),
    };
    let PredictConfig { top_k, checkpoint, file_names, correction, blend, captions, truth, .. } = settings;
    // The command line may name another file than the settings.
    let output = ctx.config.output();
    keys.insert(
        "predict".to_owned(),
        format!("{top_k} {checkpoint:?} {file_names} {correction} {output} {}", input.prepared.own),
    );
    if let Some(strength) = settings.correction_strength {
        keys.insert("predict.correction_strength".to_owned(), strength.to_string());
    }
    // The features, with their images and ids.
    keys.insert("features".to_owned(), input.prepared.generation.clone());
    keys.insert("head".to_owned(), describe_head(&ctx.dir, *checkpoint, &recorded(input.manifest, Stage::Train))?);
    keys.insert("classes".to_owned(), recorded(input.manifest, Stage::Catalog));
    let list = ctx.config.catalog().and_then(|catalog| catalog.captions.list.as_ref());
    let list = if ctx.config.head().is_text() { captions.as_ref().or(list) } else { None };
    for (key, name) in [("predict.captions", list), ("predict.truth", truth.as_ref())] {
        if let Some(name) = name {
            let object = ctx.store.find(name).await?;
            add_inputs(&ctx.store, &mut keys, key, &[object]).await?;
        }
    }
    if let Some(name) = blend {
        let (store, name) = (ctx.store.clone(), name.clone());
        keys.insert(
            "predict.blend".to_owned(),
            tokio::task::spawn_blocking(move || describe_run(&store, &name)).await??,
        );
    }
    let parts: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let stage = format!("predict-{}", output_stem(output));
    Ok(FinishedStage::new(&ctx.dir, &stage, parts.iter().map(String::as_str)))
}

/// Returns the generation of a stage of this run; empty if none is recorded.
fn recorded(manifest: &Manifest, stage: Stage) -> String {
    manifest.recorded(stage.as_str()).map(|record| record.generation.clone()).unwrap_or_default()
}

/// Describes the head that predicts: its training, step and trial.
fn describe_head(dir: &Directory, pick: Pick, generation: &str) -> Result<String, PipelineError> {
    Ok(match checkpoints::choose(dir, pick)? {
        Some((step, trial)) => format!("{generation} step {step} trial {trial}"),
        None => "none".to_owned(),
    })
}

/// Describes the head of another run.
fn describe_run(store: &Store, name: &str) -> Result<String, PipelineError> {
    let dir = Directory::read_only(store, name)?;
    let generation = |file: RunFile| Some(file.stages.get(Stage::Train.as_str())?.generation.clone());
    let generation = RunFile::read(&dir)?.and_then(generation).unwrap_or_default();
    describe_head(&dir, Pick::Best, &generation)
}
