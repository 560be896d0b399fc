//! Checks before a prediction: its inputs, and the compatibility of head, features and encoder.

use crate::config::{HeadConfig, Stage, output_stem};
use crate::objects::Object;
use crate::pipeline::catalog;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::inputs::{ImageInput, list_images};
use crate::pipeline::manifest::{Manifest, PredictionRecord, add_inputs};
use crate::pipeline::predict::candidates::Candidates;
use crate::pipeline::predict::other_run::{OtherClassifier, is_feature_key};
use crate::pipeline::predict::test_set::{IdSource, TestSet, check_truth};
use crate::pipeline::resolve::{ResolvedModel, require_captions};

/// A prediction whose inputs were checked.
pub(crate) struct PreparedPrediction {
    /// Format and columns of the shards.
    pub(crate) input: ImageInput,
    /// Shards of the test images.
    pub(crate) shards: Vec<Object>,
    /// Origin of the ids.
    pub(super) ids: IdSource,
    /// Hash of everything that the features of the test images depend on.
    pub(crate) generation: String,
    pub(crate) test_set: TestSet,
    /// List that a projection head ranks; `None` if the classes of the run are ranked.
    pub(super) candidates: Option<Candidates>,
    /// True if the ranking is the submission of the run, rather than ad hoc.
    pub(crate) own: bool,
}

impl PreparedPrediction {
    /// Whether the classes of the run are ranked. The run must then have enough classes.
    pub(crate) fn ranks_classes(&self) -> bool {
        self.candidates.is_none()
    }
}

/// Reads the ids and lists the test images; `None` without `[predict]`. With `predict_only`, no other stage runs.
///
/// # Errors
/// When an input cannot be used, or does not fit the artefacts in the run directory.
pub(crate) async fn prepare(
    ctx: &RunContext,
    model: &ResolvedModel,
    manifest: &mut Manifest,
    predict_only: bool,
) -> Result<Option<PreparedPrediction>, PipelineError> {
    let Some(settings) = ctx.config.predict() else { return Ok(None) };
    let store = &ctx.store;
    let columns = ctx.config.images().map(|images| images.columns.clone()).unwrap_or_default();
    let (input, shards) = list_images(store, &settings.images, settings.format, &columns).await?;
    input.require_rows_of_numbers(&ctx.config, "predict.images")?;
    let ids = IdSource::new(&settings.ids, (&input, &shards), ctx.config.preprocess().max_encoded.0);
    let test_set = TestSet::read(store, &ids).await?;
    if let Some(truth) = &settings.truth {
        check_truth(store, truth).await?;
    }
    let candidates = match ctx.config.head() {
        HeadConfig::Classes => None,
        HeadConfig::Paired { .. } => Candidates::read_list(ctx).await?,
        HeadConfig::Text { .. } => {
            let candidates = Candidates::read_list(ctx).await?;
            if predict_only || !ctx.config.runs(Stage::Train) {
                require_same_encoder(ctx, model, manifest)?;
            }
            // Check it now. The prediction opens it again, perhaps days later.
            OtherClassifier::open(ctx, model, manifest).await?;
            candidates
        }
    };
    if let Some(candidates) = &candidates {
        require_captions(candidates.len(), settings.top_k)?;
    }
    if matches!(ctx.config.head(), HeadConfig::Paired { .. }) {
        // It depends on no artefact of the run.
    } else if predict_only || !ctx.config.runs(Stage::Stream) {
        require_same_features(ctx, model, manifest)?;
        let classes = catalog::count_classes(&ctx.dir)?;
        if candidates.is_none() {
            require_captions(classes, settings.top_k)?;
        }
    } else if candidates.is_none()
        && manifest.recorded(Stage::Catalog.as_str()).is_some()
        && let Ok(classes) = catalog::count_classes(&ctx.dir)
    {
        // An incomplete catalog is checked once it is built.
        require_captions(classes, settings.top_k)?;
    }
    let mut keys = model.stream_keys(&ctx.config, Stage::Predict);
    add_inputs(store, &mut keys, "predict.images", &shards).await?;
    input.add_key(&mut keys, "predict.format");
    if let IdSource::File(ids) = &ids {
        let file = store.find(ids).await?;
        add_inputs(store, &mut keys, "predict.ids", &[file]).await?;
    }
    let record = format!("{} {}", Stage::Predict.as_str(), output_stem(&settings.output));
    let generation = manifest.propose(&record, Stage::Predict, keys, &[])?;
    let own = propose_output(ctx, manifest, candidates.as_ref(), predict_only)?;
    Ok(Some(PreparedPrediction { input, shards, ids, generation, test_set, candidates, own }))
}

/// Proposes the file of the ranking, and returns whether it is the submission of the run.
///
/// It is if the whole pipeline runs; or if the run has none yet, or it is made again, unless the command line asks for
/// another ranking.
///
/// # Errors
/// When the ranking would replace a file of another kind, or the submission by the ranking of another list.
fn propose_output(
    ctx: &RunContext,
    manifest: &mut Manifest,
    candidates: Option<&Candidates>,
    predict_only: bool,
) -> Result<bool, PipelineError> {
    let (config, output) = (&ctx.config, ctx.config.output());
    let captions = candidates.map(|candidates| candidates.fingerprint.clone());
    let makes_run = !predict_only && config.runs(Stage::Stream);
    let earlier = manifest.own_submission();
    let own = !config.is_ad_hoc() && (makes_run || earlier.is_none_or(|(name, _)| name == output));
    if let Some((_, earlier)) = earlier.filter(|(name, _)| *name == output) {
        let other_list = earlier.captions.as_ref().zip(captions.as_ref()).is_some_and(|(then, now)| then != now);
        if config.is_ad_hoc() || (predict_only && other_list) {
            return Err(PipelineError::Generation(format!(
                "`{}` is the submission of the run and ranks another list of captions: name another file with `--output \
                 NAME.csv`, or rank the list for the whole run with `run`",
                ctx.dir.display(output)
            )));
        }
    }
    manifest.propose_prediction(output, PredictionRecord { own, captions })?;
    Ok(own)
}

/// Refuses test images whose features would differ from the features that the head was trained on.
fn require_same_features(ctx: &RunContext, model: &ResolvedModel, manifest: &Manifest) -> Result<(), PipelineError> {
    let Some(record) = manifest.recorded(Stage::Stream.as_str()) else { return Ok(()) };
    let now = model.stream_keys(&ctx.config, Stage::Predict);
    let show = |value: Option<&String>| value.map_or("(absent)", String::as_str).to_owned();
    let differences: Vec<String> = record
        .keys
        .iter()
        .filter(|(key, value)| is_feature_key(key) && now.get(*key) != Some(value))
        .map(|(key, value)| format!("  `{key}`: {value} then, {} now", show(now.get(key))))
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(PipelineError::Generation(format!(
        "the head in `{}` was trained on other features than these test images would get:\n{}\nset the keys back",
        ctx.dir.display(""),
        differences.join("\n")
    )))
}

/// Refuses a text encoder other than the one that the head was trained with.
fn require_same_encoder(ctx: &RunContext, model: &ResolvedModel, manifest: &Manifest) -> Result<(), PipelineError> {
    let Some(record) = manifest.recorded(Stage::Text.as_str()) else { return Ok(()) };
    let now = model.text_encoder()?.stage_keys(&ctx.config);
    match record.keys.iter().find(|(key, value)| now.get(*key) != Some(value)) {
        Some((key, value)) => Err(PipelineError::Generation(format!(
            "the head in `{}` was trained with another text encoder: `{key}` was {value}, and is {} now; set it back",
            ctx.dir.display(""),
            now.get(key).map_or("absent", String::as_str)
        ))),
        None => Ok(()),
    }
}
