//! The classifier head: one linear layer with an output for each class, trained by SGD.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CurvePosition, Head, Trainers, TrainingData, VALIDATION_TOP_K, ValidationScores};
use crate::catalog::Languages;
use crate::config::Trial;
use crate::pipeline::device::{ClassifierStart, ClassifierTrainers, LossSum, Update, damaged};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::ValidationPoint;
use crate::pipeline::train::TrainJob;
use crate::pipeline::train::feature_store::{FeatureStore, WindowSamples};
use crate::telemetry::Activity;
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
    data: TrainingData,
}

impl ClassifierHead {
    fn weights(&self, dim: usize) -> u64 {
        (self.classes * (dim + 1)) as u64
    }
}

fn sgd(job: &TrainJob, trial: &Trial) -> Sgd {
    let (clip_norm, label_smoothing) = (job.settings.clip_norm, job.settings.label_smoothing);
    Sgd { momentum: trial.momentum, weight_decay: trial.weight_decay, clip_norm, label_smoothing }
}

impl Head for ClassifierHead {
    const CONTRASTIVE: bool = false;
    type Start = ClassifierStart;
    type Trainers = TrainingClassifiers;

    fn languages(&self) -> Option<&Arc<Languages>> {
        None
    }

    fn checkpoint_bytes(&self, dim: usize) -> u64 {
        8 * self.weights(dim)
    }

    fn device_bytes(&self, dim: usize, trials: usize) -> u64 {
        // Weights, momentum, gradient and casts, with some room for logits and for kernels that auto-tuning tries.
        20 * self.weights(dim) * trials as u64
    }

    fn host_bytes(&self, dim: usize, trials: usize) -> Option<u64> {
        // Weights and momentum of each head, and one gradient that they share.
        Some(4 * self.weights(dim) * (2 * trials as u64 + 1))
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
        trial: &Trial,
        checkpoint: &Path,
    ) -> Result<Option<(ClassifierStart, Progress)>, PipelineError> {
        let (state, progress) = checkpoint::load(checkpoint).map_err(damaged)?;
        if !job.made(&progress) || (state.classes, state.dim) != (self.classes, job.shape.dim) {
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
        data: TrainingData,
    ) -> Result<TrainingClassifiers, PipelineError> {
        let trainers = job.device.load_classifier_trainers(starts, step).await?;
        Ok(TrainingClassifiers { trainers, batch: job.settings.batch_size as usize, data })
    }
}

impl Trainers for TrainingClassifiers {
    async fn step(&self, samples: WindowSamples, update: Update) -> Result<Option<Vec<LossSum>>, PipelineError> {
        self.trainers.step(samples.features, samples.targets, self.batch, update).await
    }

    async fn take_losses(&self) -> Result<Vec<LossSum>, PipelineError> {
        self.trainers.take_losses().await
    }

    async fn validate(&self, trial: usize, position: CurvePosition) -> Result<ValidationPoint, PipelineError> {
        let TrainingData { store, inventory, timer } = &self.data;
        let scorer = self.trainers.scorer(trial).await?;
        let mut scores = ValidationScores::default();
        let mut captions_per_image: Vec<u64> = Vec::new();
        for index in (0..store.len()).filter(|index| inventory.validation_images[*index] > 0) {
            let reader = Arc::clone(store);
            let reading = tokio::task::spawn_blocking(move || reader.load_chunks(&[index]));
            let (mut values, mut labels) = (Vec::new(), Vec::new());
            for chunk in timer.wait(Activity::Starved, reading).await?? {
                for row in chunk.rows.validation.iter().copied() {
                    captions_per_image.push(chunk.rows.classes(row).len() as u64);
                    for label in chunk.rows.classes(row) {
                        chunk.copy_feature(row, &mut values);
                        labels.push(*label);
                    }
                }
            }
            let scored = scorer.score(values, labels.clone(), VALIDATION_TOP_K).await?;
            scores.add(&labels, &scored);
        }
        scorer.unload().await?;
        Ok(scores.finish(trial, position, captions_per_image))
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
