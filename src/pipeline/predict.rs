//! Stage `predict`: features of the test images → ranked captions → submission.
//!
//! [`Ranker`] has one implementation for each kind of head: a classifier ranks the classes of the run, a projection head
//! ranks any captions.

mod candidates;
mod classifier;
mod eval_set;
mod examples;
mod export;
mod file_names;
mod finished_key;
mod fusion;
mod held_out;
mod hubness;
mod other_run;
mod prepare;
mod projection;
mod questions;
mod ranking;
mod submission;
mod test_set;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalog::ImageFilter;
use crate::chunk::Tally;
use crate::chunk::journal::Layout;
use crate::config::{HeadConfig, PredictConfig, output_stem};
use crate::objects::Object;
use crate::pipeline::chunk_files::FeatureSet;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::DeviceWorker;
use crate::pipeline::error::PipelineError;
use crate::pipeline::features::{self, FeatureSource, FeaturesInput, FeaturesOutput};
use crate::pipeline::images::StreamJob;
use crate::pipeline::inputs::ImageInput;
use crate::pipeline::manifest::Manifest;
use crate::pipeline::observe::report::{PredictionReport, StageRemarks, TextReport};
use crate::pipeline::resolve::ResolvedModel;
use crate::pipeline::train::checkpoints::{self, PickedCheckpoint};

use classifier::ClassifierRanker;
use projection::ProjectionRanker;
use questions::Questions;
use ranking::Ranking;
use submission::Submission;

pub use export::export;
pub use test_set::{TestImages, read_test_images};

pub(crate) use candidates::Candidates;
pub(crate) use prepare::{PreparedPrediction, prepare};
pub(crate) use ranking::read_chunk;
pub(crate) use test_set::{IdSource, TestSet, check_truth, read_truth_bytes, visit_ids};

/// Input of the stage.
pub(crate) struct PredictInput<'a> {
    pub(crate) model: &'a ResolvedModel,
    pub(crate) manifest: &'a Manifest,
    pub(crate) prepared: PreparedPrediction,
    pub(crate) device: &'a Arc<DeviceWorker>,
}

/// Result of the stage.
#[derive(Serialize, Deserialize)]
pub(crate) struct PredictOutput {
    pub(crate) report: PredictionReport,
    pub(crate) remarks: StageRemarks,
}

/// Ranking of captions by one kind of head.
trait Ranker {
    /// Description of the fallback captions, for a note of the report.
    const FALLBACK: &'static str;
    /// The head on the host.
    type Head;

    /// Returns the number of ranked captions.
    fn captions(&self) -> usize;

    /// Returns the numbers of those of some captions that are ranked.
    ///
    /// # Errors
    /// When the texts cannot be read.
    fn find_captions<'t>(&self, captions: &HashSet<&'t str>) -> Result<HashMap<&'t str, u32>, PipelineError>;

    /// Adds the languages of captions that the truth does not name and the run knows.
    fn add_languages(&self, _questions: &mut Questions) {}

    /// Reads the texts that a submission of this ranking needs, if they are not in memory.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read_captions(&mut self, _ranking: &Ranking) -> Result<(), PipelineError> {
        Ok(())
    }

    /// Returns the text of a caption.
    fn caption(&self, number: u32) -> &str;

    /// Returns the captions for ids without a ranking.
    fn fallback(&self, top_k: usize) -> Vec<u32>;

    /// Loads the head from the newest checkpoint of the run, and checks that it fits the features; `None` without a head.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or holds a head that does not fit.
    fn load_head(&self, checkpoint: Option<&PickedCheckpoint>) -> Result<Option<Self::Head>, PipelineError>;

    /// Ranks captions for the test images.
    ///
    /// # Errors
    /// When an input, the disk or the device fails; [`PipelineError::Stopped`] if the run has to stop.
    async fn rank(&self, ctx: &RunContext, head: Self::Head, input: RankInput<'_>)
    -> Result<RankOutput, PipelineError>;
}

/// Input of [`Ranker::rank`].
struct RankInput<'a> {
    settings: &'a PredictConfig,
    /// Origin of the ids.
    ids: &'a IdSource,
    /// Committed feature chunks of the test images.
    features: &'a FeatureSet,
    test_set: &'a TestSet,
    device: &'a Arc<DeviceWorker>,
    /// Captions to rank for each image.
    top_k: usize,
    /// Stem of the prediction's files.
    stem: &'a str,
    /// True if the ranking is the submission of the run.
    own: bool,
    /// Right captions of `predict.truth`, if any of them is ranked.
    questions: Option<&'a Questions>,
}

/// Result of [`Ranker::rank`].
struct RankOutput {
    ranking: Ranking,
    report: Option<TextReport>,
    remarks: StageRemarks,
}

/// Ranks captions for the test images and writes the submission. Without a trained head no features are computed. If an
/// earlier process has finished the same prediction, its result is returned.
///
/// # Errors
/// When an input, the disk or the device fails; [`PipelineError::Stopped`] if the run has to stop.
pub(crate) async fn run(ctx: &RunContext, input: PredictInput<'_>) -> Result<Option<PredictOutput>, PipelineError> {
    let Some(settings) = ctx.config.predict() else { return Ok(None) };
    let finished = finished_key::compute(ctx, settings, &input).await?;
    if let Some(output) = tokio::task::block_in_place(|| finished.read())? {
        return Ok(Some(output));
    }
    let PredictInput { model, manifest, prepared, device } = input;
    let PreparedPrediction { input, shards, ids, generation, test_set, candidates, own } = prepared;
    let prediction = Prediction { settings, model, input, shards, ids, generation, test_set, device, own };
    let output = match ctx.config.head() {
        HeadConfig::Classes => {
            prediction.run(ctx, ClassifierRanker::open(ctx, manifest, settings.top_k as usize)?).await
        }
        HeadConfig::Text { .. } => {
            let ranker = ProjectionRanker::open(ctx, model, manifest, candidates)?;
            prediction.run(ctx, ranker).await
        }
        HeadConfig::Paired { .. } => {
            let ranker = ProjectionRanker::open_paired(ctx, model, manifest, candidates)?;
            prediction.run(ctx, ranker).await
        }
    }?;
    let files: Vec<&str> = output.remarks.output_paths().collect();
    tokio::task::block_in_place(|| finished.write(&output, &files))?;
    Ok(Some(output))
}

/// A prediction with any kind of head.
struct Prediction<'a> {
    settings: &'a PredictConfig,
    model: &'a ResolvedModel,
    /// Format and columns of the shards.
    input: ImageInput,
    /// Shards of the test images.
    shards: Vec<Object>,
    /// Origin of the ids.
    ids: IdSource,
    /// Hash of everything that the features of the test images depend on.
    generation: String,
    test_set: TestSet,
    device: &'a Arc<DeviceWorker>,
    /// True if the ranking is the submission of the run.
    own: bool,
}

impl Prediction<'_> {
    /// Computes the features of the test images.
    async fn extract_features(
        &self,
        ctx: &RunContext,
        shards: Vec<Object>,
        stem: &str,
    ) -> Result<FeaturesOutput, PipelineError> {
        let filter = ImageFilter::Urls(Arc::clone(self.test_set.urls()));
        let shards = (self.input.clone(), shards);
        let job = StreamJob::new(ctx, "test images", &self.model.content, shards, filter, &self.generation);
        let (layout, source) = (Layout::predict(stem), FeatureSource::of(self.model, Some(self.device), None)?);
        features::run(ctx, FeaturesInput { job, layout, name: stem, source }).await
    }

    async fn run<R: Ranker>(mut self, ctx: &RunContext, mut ranker: R) -> Result<PredictOutput, PipelineError> {
        let shards = std::mem::take(&mut self.shards);
        let Self { settings, ids, test_set, device, own, .. } = &self;
        let top_k = settings.top_k as usize;
        let picked = match ctx.config.head() {
            HeadConfig::Paired { .. } => None,
            HeadConfig::Classes | HeadConfig::Text { .. } => checkpoints::pick(&ctx.dir, settings.checkpoint)?,
        };
        let mut remarks = StageRemarks::default();
        let (mut tally, mut text) = (Tally::default(), None);
        let questions = match &settings.truth {
            Some(truth) => Some(Questions::read(ctx, truth, ids, test_set, &ranker).await?),
            None => None,
        };
        let (questions, why_no_score) = match questions {
            Some(Ok(questions)) => (Some(questions), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        // Refuse another kind of head before the long computation of the features.
        let ranking = if let Some(head) = ranker.load_head(picked.as_ref())? {
            let stem = output_stem(&settings.output);
            let features = self.extract_features(ctx, shards, stem).await?;
            tally = features.report.tally;
            let (features, own) = (&features.features, *own);
            let questions = questions.as_ref();
            let input = RankInput { settings, ids, features, test_set, device, top_k, stem, own, questions };
            let ranked = ranker.rank(ctx, head, input).await?;
            (text, remarks) = (ranked.report, ranked.remarks);
            ranked.ranking
        } else {
            remarks.add_note(format!("the run has no trained head, so every id gets {}", R::FALLBACK));
            Ranking::empty(test_set.urls.len(), top_k)
        };
        ranker.read_captions(&ranking)?;
        let output = ctx.config.output();
        let fallback = ranker.fallback(top_k);
        let submission = Submission { ids, output, test_set, ranking: &ranking, fallback: &fallback };
        let ids_without_image = submission.write(ctx, |number| ranker.caption(number)).await?;
        let scores = match (&settings.truth, &questions) {
            (Some(truth), Some(questions)) => {
                let captions = ranker.captions() as u64;
                let (scores, remark) =
                    submission::score(ctx, (truth, questions), output, test_set, (&ranking, captions)).await?;
                if let Some(remark) = remark {
                    remarks.add_note(remark);
                }
                Some(scores)
            }
            _ => None,
        };
        if let Some(why) = why_no_score {
            remarks.add_note(why);
        }
        let report = PredictionReport {
            ids: test_set.ids,
            images: test_set.urls.len() as u64,
            ids_without_image,
            tally,
            checkpoint_step: picked.as_ref().map(|picked| picked.step),
            trial: picked.as_ref().map_or(0, |picked| picked.trial),
            scores,
            text,
        };
        remarks.add_output("submission", output);
        Ok(PredictOutput { report, remarks })
    }
}
