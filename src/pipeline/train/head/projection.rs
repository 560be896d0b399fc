//! The projection head: maps features into the space of caption vectors, trained by `AdamW` with a contrastive loss.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CurvePosition, Head, Trainers, VALIDATION_TOP_K, ValidationScores};
use crate::catalog::Languages;
use crate::config::Trial;
use crate::pipeline::captions::VectorStore;
use crate::pipeline::device::{
    DeviceWorker, LossSum, MicroBatch, ProjectionStart, ProjectionTrainers, Update, damaged, linear_layer,
};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::ValidationPoint;
use crate::pipeline::train::TrainJob;
use crate::pipeline::train::ensemble::WeightData;
use crate::pipeline::train::feature_store::{FeatureStore, StepSamples};
use crate::pipeline::train::held_out::{HeldOut, HeldOutSample};
use crate::predict::metrics;
use crate::train::closed_form::{Answers, ndcg5_by_language, score_mixed};
use crate::train::text::{AdamW, MemberSpec, RunningMoments, TextHead, TextState};
use crate::train::{CheckpointError, Progress, Targets, checkpoint};

/// A projection into the space of the captions' vectors.
pub(in crate::pipeline::train) struct ProjectionHead {
    /// Vectors of the classes' captions.
    pub(in crate::pipeline::train) vectors: Arc<VectorStore>,
    /// Language of each class.
    pub(in crate::pipeline::train) languages: Arc<Languages>,
    /// Width of the hidden layer; 0 for none.
    pub(in crate::pipeline::train) hidden: usize,
    /// Logarithm of the scale of a checkpoint that pairs features and captions already: the head starts from its map.
    pub(in crate::pipeline::train) log_scale: Option<f32>,
}

/// Projection heads in training.
pub(in crate::pipeline::train) struct TrainingProjections {
    trainers: ProjectionTrainers,
    device: Arc<DeviceWorker>,
    vectors: Arc<VectorStore>,
    /// Rows in a micro-batch.
    batch: usize,
    held_out: Arc<HeldOut>,
    /// Right captions of the held-out images, by language.
    answers: Arc<Answers>,
    is_ensemble: bool,
}

impl TrainingProjections {
    /// Returns NDCG@5 of vectors of the held-out images, averaged over languages.
    async fn score_languages(&self, images: Vec<f32>, dim: usize) -> Result<f64, PipelineError> {
        let (held_out, answers) = (Arc::clone(&self.held_out), Arc::clone(&self.answers));
        let score = move || ndcg5_by_language(&images, &held_out.vectors, dim, &answers);
        Ok(tokio::task::spawn_blocking(score).await?)
    }
}

/// Returns the size of a projection head's checkpoint in bytes.
pub(in crate::pipeline::train) fn projection_checkpoint_bytes(dim: u64, hidden: u64, output: u64) -> u64 {
    // The head and two moments of each parameter. No layer is larger than this product.
    12 * (dim + 1 + hidden) * (hidden + output + 1)
}

fn adam(job: &TrainJob, trial: &Trial, seed: u64) -> AdamW {
    AdamW {
        momentum: trial.momentum,
        weight_decay: trial.weight_decay,
        clip_norm: job.settings.clip_norm,
        fixed_scale: job.settings.temperature.is_some(),
        dropout: job.settings.dropout,
        seed,
    }
}

impl Head for ProjectionHead {
    const CONTRASTIVE: bool = true;
    type Start = ProjectionStart;
    type HeldOut = HeldOutSample;
    type Trainers = TrainingProjections;

    fn languages(&self) -> Option<&Arc<Languages>> {
        Some(&self.languages)
    }

    fn bytes(&self, _job: &TrainJob) -> u64 {
        0
    }

    fn collect_held_out(&self, job: &TrainJob) -> HeldOutSample {
        HeldOutSample::new(job.split.seed, job.shape.dim)
    }

    async fn init(
        &self,
        job: &TrainJob,
        trials: &[Trial],
        store: &Arc<FeatureStore>,
    ) -> Result<Vec<ProjectionStart>, PipelineError> {
        let store = Arc::clone(store);
        let features = tokio::task::spawn_blocking(move || feature_statistics(&store)).await??;
        let statistics = [features.mean(), features.std(), self.vectors.mean().to_vec()];
        let start = |(trial, member): (&Trial, &MemberSpec)| {
            let dim = job.shape.dim;
            let [mean, std, text_mean] = &statistics;
            let statistics = [member.select(mean, dim), member.select(std, dim), text_mean.clone()];
            let head = match self.log_scale {
                Some(log_scale) => TextHead::init_paired(statistics, log_scale),
                None => TextHead::init(statistics, self.hidden, member.seed),
            };
            let head = head.with_columns(member.columns(dim));
            let head = match job.settings.temperature {
                Some(temperature) => head.with_scale(1.0 / temperature),
                None => head,
            };
            let state = TextState::new(head);
            ProjectionStart { state, adam: adam(job, trial, member.seed), loss: LossSum::default() }
        };
        Ok(trials.iter().zip(&job.members).map(start).collect())
    }

    fn resume(
        &self,
        job: &TrainJob,
        (trial, member): (&Trial, &MemberSpec),
        checkpoint: &Path,
    ) -> Result<Option<(ProjectionStart, Progress)>, PipelineError> {
        let (state, progress) = checkpoint::load_text(checkpoint).map_err(damaged)?;
        let dim = job.shape.dim;
        let fits = (state.head.width(), state.head.columns) == (dim, member.columns(dim));
        if !job.is_checkpoint_of(&progress) || !fits {
            return Ok(None);
        }
        let loss = LossSum::from((progress.loss_sum, progress.loss_count));
        Ok(Some((ProjectionStart { state, adam: adam(job, trial, member.seed), loss }, progress)))
    }

    async fn load(
        self,
        job: &TrainJob,
        starts: Vec<ProjectionStart>,
        step: u64,
        held_out: HeldOutSample,
    ) -> Result<TrainingProjections, PipelineError> {
        let trainers = job.device.load_projection_trainers(starts, step).await?;
        let vectors = Arc::clone(&self.vectors);
        let read = move || held_out.finish(|captions| vectors.read_centred(captions));
        let held_out = Arc::new(tokio::task::spawn_blocking(read).await??);
        let (batch, device) = (job.settings.batch_size as usize, Arc::clone(&job.device));
        let Self { vectors, languages, .. } = self;
        let language_of = |place: u32| languages.code(held_out.captions[place as usize]);
        let answers = Arc::new(Answers::new(&held_out.captions_of, language_of));
        let is_ensemble = job.settings.ensemble.is_some();
        Ok(TrainingProjections { trainers, device, vectors, batch, held_out, answers, is_ensemble })
    }
}

impl Trainers for TrainingProjections {
    async fn step(&self, samples: StepSamples, update: Update) -> Result<Option<Vec<LossSum>>, PipelineError> {
        let StepSamples { features, targets } = samples;
        let (vectors, batch) = (Arc::clone(&self.vectors), self.batch);
        let micro_batches =
            tokio::task::spawn_blocking(move || split_micro_batches(&vectors, &targets, batch)).await??;
        self.trainers.step(features, micro_batches, update).await
    }

    async fn take_losses(&self) -> Result<Vec<LossSum>, PipelineError> {
        self.trainers.take_losses().await
    }

    async fn validate(&self, trial: usize, position: CurvePosition) -> Result<ValidationPoint, PipelineError> {
        let HeldOut { features, captions_of, captions, vectors, .. } = &*self.held_out;
        let (images, captions) = (captions_of.rows(), captions.len());
        let (mut scores, mut by_language) = (ValidationScores::default(), None);
        if let Some(dim) = vectors.len().checked_div(captions) {
            let (queries, scale) = self.trainers.project(trial, features.clone(), images).await?;
            let weight = vectors.iter().map(|value| value * scale).collect();
            let scorer = self.device.load_scorer(Arc::new(linear_layer(weight, vec![0.0; captions], dim))).await?;
            let (mut rows, mut labels, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
            for (image, places) in captions_of.iter() {
                for place in places {
                    rows.extend_from_slice(&queries[image * dim..(image + 1) * dim]);
                    labels.push(*place);
                    numbers.push(image);
                }
            }
            let scored = scorer.score(rows, labels.clone(), VALIDATION_TOP_K).await?;
            scores.add(&numbers, &labels, &scored);
            scorer.unload().await?;
            if self.is_ensemble && !self.answers.is_empty() {
                by_language = Some(self.score_languages(queries, dim).await?);
            }
        }
        let point = scores.finish(trial, position, captions_of.iter().map(|(_, places)| places.len() as u64));
        Ok(ValidationPoint { ndcg5_languages: by_language, ..point })
    }

    async fn validate_ensemble(
        &self,
        trials: usize,
        position: CurvePosition,
    ) -> Result<Option<ValidationPoint>, PipelineError> {
        let HeldOut { features, captions_of, captions, vectors, .. } = &*self.held_out;
        let images = captions_of.rows();
        let Some(dim) = vectors.len().checked_div(captions.len()).filter(|_| !self.answers.is_empty()) else {
            return Ok(None);
        };
        // All heads map to the captions' own vectors, so their mean is the vector of the ensemble.
        let (mut mean, mut log_scale) = (vec![0.0; images * dim], 0.0);
        for trial in 0..trials {
            let (own, scale) = self.trainers.project(trial, features.clone(), images).await?;
            mean.iter_mut().zip(own).for_each(|(sum, value)| *sum += value / trials as f32);
            log_scale += f64::from(scale).ln() / trials as f64;
        }
        let (held_out, answers) = (Arc::clone(&self.held_out), Arc::clone(&self.answers));
        let score = move || {
            let scores = score_mixed(&mean, &held_out.vectors, dim, log_scale.exp(), &answers);
            (scores, ndcg5_by_language(&mean, &held_out.vectors, dim, &answers))
        };
        let (scores, by_language) = tokio::task::spawn_blocking(score).await?;
        Ok(Some(ValidationPoint {
            step: position.step,
            epoch: position.epoch,
            loss: scores.loss,
            ndcg5: scores.ndcg5,
            ndcg5_ceiling: metrics::ceiling(captions_of.iter().map(|(_, places)| places.len() as u64)),
            recall1: scores.recall1,
            recall5: scores.recall5,
            ndcg5_interval: scores.interval,
            ndcg5_languages: Some(by_language),
            trial: trials as u32,
        }))
    }

    fn weight_data(&self) -> Option<WeightData> {
        Some(WeightData { held_out: Arc::clone(&self.held_out), answers: Arc::clone(&self.answers) })
    }

    async fn save(
        &self,
        trial: usize,
        dir: PathBuf,
        progress: Progress,
    ) -> Result<Result<(), CheckpointError>, PipelineError> {
        self.trainers.save(trial, dir, progress).await
    }

    async fn unload(self) -> Result<(), PipelineError> {
        self.trainers.unload().await
    }
}

/// Computes mean and spread of the features of the training images. Blocks the thread.
fn feature_statistics(store: &FeatureStore) -> Result<RunningMoments, PipelineError> {
    let (mut running, mut feature) = (RunningMoments::default(), Vec::new());
    store.visit_chunks(|chunk| {
        for row in chunk.rows.training_rows() {
            feature.clear();
            chunk.copy_feature(row, &mut feature);
            running.add(&feature);
        }
    })?;
    Ok(running)
}

/// Splits a step into micro-batches of `batch` pairs. Each row of `targets` holds the pair's caption, followed by all
/// captions of its image. Blocks the thread.
fn split_micro_batches(
    vectors: &VectorStore,
    targets: &Targets,
    batch: usize,
) -> Result<Vec<MicroBatch>, PipelineError> {
    let rows = targets.rows();
    let micro_batch = |first: usize| {
        let span = first..(first + batch).min(rows);
        let own: Vec<u32> = span.clone().filter_map(|row| targets.row(row).first().copied()).collect();
        let mut columns: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (column, class) in own.iter().enumerate() {
            columns.entry(*class).or_default().push(column as u32);
        }
        // Another caption of the same image is never a negative, at any position in the batch.
        let mut masked = Vec::new();
        for (row, pair) in span.clone().enumerate() {
            for class in &targets.row(pair)[1..] {
                let same = columns.get(class).into_iter().flatten();
                masked.extend(same.filter(|column| **column != row as u32).map(|column| (row as u32, *column)));
            }
        }
        Ok(MicroBatch { span, captions: vectors.read_centred(&own)?, masked })
    };
    (0..rows).step_by(batch.max(1)).map(micro_batch).collect()
}
