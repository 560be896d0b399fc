//! The classifier head: one linear layer with an output for each class, trained by SGD.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CurvePosition, Head, Trainers, VALIDATION_TOP_K, ValidationScores};
use crate::catalog::Languages;
use crate::config::Trial;
use crate::pipeline::device::{ClassifierStart, ClassifierTrainers, LossSum, Update, damaged};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::ValidationPoint;
use crate::pipeline::train::feature_store::{FeatureStore, StepSamples};
use crate::pipeline::train::held_out::KeptRows;
use crate::pipeline::train::{TrainJob, head_size};
use crate::train::text::MemberSpec;
use crate::train::{CheckpointError, HeadState, Progress, Sgd, checkpoint};

/// A classifier over the classes of the run.
pub(in crate::pipeline::train) struct ClassifierHead {
    /// Number of classes.
    pub(in crate::pipeline::train) classes: usize,
}

/// Classifiers in training.
pub(in crate::pipeline::train) struct TrainingClassifiers {
    trainers: ClassifierTrainers,
    /// Rows in a micro-batch.
    batch: usize,
    held_out: Arc<KeptRows>,
}

/// Part of `limits.memory` that held-out rows may take. More of them go to scratch disk.
pub(in crate::pipeline::train) const HELD_OUT_SHARE: u64 = 4;
/// Held-out rows that are scored at once.
const SCORED_ROWS: usize = 1024;

fn sgd(job: &TrainJob, trial: &Trial) -> Sgd {
    let (clip_norm, label_smoothing) = (job.settings.clip_norm, job.settings.label_smoothing);
    Sgd { momentum: trial.momentum, weight_decay: trial.weight_decay, clip_norm, label_smoothing }
}

impl Head for ClassifierHead {
    const CONTRASTIVE: bool = false;
    type Start = ClassifierStart;
    type HeldOut = KeptRows;
    type Trainers = TrainingClassifiers;

    fn languages(&self) -> Option<&Arc<Languages>> {
        None
    }

    fn bytes(&self, job: &TrainJob) -> u64 {
        let size = head_size(&job.ctx.config, &job.settings, self.classes as u64, job.shape.dim);
        size.bytes(job.device.options).total()
    }

    fn collect_held_out(&self, job: &TrainJob) -> KeptRows {
        let memory = job.ctx.config.limits().memory.0 / HELD_OUT_SHARE;
        KeptRows::new(job.shape.dim, job.shape.precision, memory, job.ctx.scratch_path())
    }

    async fn init(
        &self,
        job: &TrainJob,
        trials: &[Trial],
        _store: &Arc<FeatureStore>,
    ) -> Result<Vec<ClassifierStart>, PipelineError> {
        let start = |trial| {
            let state = HeadState::init(self.classes, job.shape.dim, job.split.seed);
            ClassifierStart { state, sgd: sgd(job, trial), loss: LossSum::default() }
        };
        Ok(trials.iter().map(start).collect())
    }

    fn resume(
        &self,
        job: &TrainJob,
        (trial, _): (&Trial, &MemberSpec),
        checkpoint: &Path,
    ) -> Result<Option<(ClassifierStart, Progress)>, PipelineError> {
        let (state, progress) = checkpoint::load(checkpoint).map_err(damaged)?;
        if !job.is_checkpoint_of(&progress) || (state.classes, state.dim) != (self.classes, job.shape.dim) {
            return Ok(None);
        }
        let loss = LossSum::from((progress.loss_sum, progress.loss_count));
        Ok(Some((ClassifierStart { state, sgd: sgd(job, trial), loss }, progress)))
    }

    async fn load(
        self,
        job: &TrainJob,
        starts: Vec<ClassifierStart>,
        step: u64,
        held_out: KeptRows,
    ) -> Result<TrainingClassifiers, PipelineError> {
        let trainers = job.device.load_classifier_trainers(starts, step).await?;
        let budget = job.ctx.budget.clone();
        let held_out = tokio::task::spawn_blocking(move || held_out.finish(&budget)).await??;
        Ok(TrainingClassifiers { trainers, batch: job.settings.batch_size as usize, held_out: Arc::new(held_out) })
    }
}

impl Trainers for TrainingClassifiers {
    async fn step(&self, samples: StepSamples, update: Update) -> Result<Option<Vec<LossSum>>, PipelineError> {
        self.trainers.step(samples.features, samples.targets, self.batch, update).await
    }

    async fn take_losses(&self) -> Result<Vec<LossSum>, PipelineError> {
        self.trainers.take_losses().await
    }

    async fn validate(&self, trial: usize, position: CurvePosition) -> Result<ValidationPoint, PipelineError> {
        let scorer = self.trainers.scorer(trial).await?;
        let mut scores = ValidationScores::default();
        let targets = self.held_out.labels();
        for first in (0..self.held_out.rows()).step_by(SCORED_ROWS) {
            let span = first..(first + SCORED_ROWS).min(self.held_out.rows());
            let (held_out, rows) = (Arc::clone(&self.held_out), span.clone());
            let features = tokio::task::spawn_blocking(move || held_out.read(rows)).await??;
            let dim = features.len() / span.len();
            let (mut values, mut labels) = (Vec::with_capacity(features.len()), Vec::with_capacity(span.len()));
            let mut images = Vec::with_capacity(span.len());
            for (row, feature) in span.zip(features.chunks_exact(dim.max(1))) {
                for label in targets.row(row) {
                    values.extend_from_slice(feature);
                    labels.push(*label);
                    images.push(row);
                }
            }
            let scored = scorer.score(values, labels.clone(), VALIDATION_TOP_K).await?;
            scores.add(&images, &labels, &scored);
        }
        scorer.unload().await?;
        Ok(scores.finish(trial, position, targets.iter().map(|(_, classes)| classes.len() as u64)))
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
