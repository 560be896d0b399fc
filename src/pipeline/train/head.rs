//! Training interface of the two kinds of caption head. [`Head`] initialises and loads heads; [`Trainers`] trains them.

mod classifier;
mod projection;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalog::Languages;
use crate::config::Trial;
use crate::pipeline::device::{LossSum, Update};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::ValidationPoint;
use crate::pipeline::train::TrainJob;
use crate::pipeline::train::ensemble::WeightData;
use crate::pipeline::train::feature_store::{FeatureStore, StepSamples};
use crate::pipeline::train::held_out::HeldOutRows;
use crate::predict::bootstrap::ImageTallies;
use crate::predict::metrics::{self, rank_of};
use crate::predict::scorer::Scored;
use crate::train::text::MemberSpec;
use crate::train::{CheckpointError, Progress};

pub(super) use classifier::{ClassifierHead, HELD_OUT_SHARE};
pub(super) use projection::{ProjectionHead, projection_checkpoint_bytes};

/// Captions ranked for a validation image.
const VALIDATION_TOP_K: usize = 5;

/// A kind of head. The heads of a sweep differ in their [`Trial`].
pub(super) trait Head {
    /// Whether the loss is contrastive, and samples carry all captions of their image.
    const CONTRASTIVE: bool;
    /// A head and its optimiser on the host.
    type Start;
    /// Collector of the held-out images.
    type HeldOut: HeldOutRows + Send + 'static;
    /// The heads of a sweep on the device.
    type Trainers: Trainers;

    /// Returns the languages that `train.balance` can balance; `None` if this kind of head does not support it.
    fn languages(&self) -> Option<&Arc<Languages>>;

    /// Returns the memory of heads, optimisers and logits on the device in bytes; 0 if it is small.
    fn bytes(&self, job: &TrainJob) -> u64;

    /// Starts to collect the held-out images.
    fn collect_held_out(&self, job: &TrainJob) -> Self::HeldOut;

    /// Initialises new heads, one per trial.
    ///
    /// # Errors
    /// When a feature chunk cannot be read.
    async fn init(
        &self,
        job: &TrainJob,
        trials: &[Trial],
        store: &Arc<FeatureStore>,
    ) -> Result<Vec<Self::Start>, PipelineError>;

    /// Loads the head of a trial and member from a checkpoint; `None` if it was made from other features or settings.
    ///
    /// # Errors
    /// When the checkpoint is damaged.
    fn resume(
        &self,
        job: &TrainJob,
        of_head: (&Trial, &MemberSpec),
        checkpoint: &Path,
    ) -> Result<Option<(Self::Start, Progress)>, PipelineError>;

    /// Loads the heads onto the device. `step` is the number of updates made so far.
    ///
    /// # Errors
    /// When the device fails, or the validation images cannot be read.
    async fn load(
        self,
        job: &TrainJob,
        starts: Vec<Self::Start>,
        step: u64,
        held_out: Self::HeldOut,
    ) -> Result<Self::Trainers, PipelineError>;
}

/// The heads of a sweep in training.
pub(super) trait Trainers {
    /// Updates each head once with these samples. Returns the losses if the update takes them.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    async fn step(&self, samples: StepSamples, update: Update) -> Result<Option<Vec<LossSum>>, PipelineError>;

    /// Returns the losses of each head and resets them to zero.
    ///
    /// # Errors
    /// As [`Trainers::step`].
    async fn take_losses(&self) -> Result<Vec<LossSum>, PipelineError>;

    /// Scores the validation images with the current weights of a head.
    ///
    /// # Errors
    /// When a feature chunk cannot be read, or the device fails.
    async fn validate(&self, trial: usize, position: CurvePosition) -> Result<ValidationPoint, PipelineError>;

    /// Scores the validation images with the current weights of all heads together, which count alike; `None` for heads that
    /// cannot rank together, or without validation images. The number of heads is that of `trials`.
    ///
    /// # Errors
    /// When the device fails.
    async fn validate_ensemble(
        &self,
        _trials: usize,
        _position: CurvePosition,
    ) -> Result<Option<ValidationPoint>, PipelineError> {
        Ok(None)
    }

    /// Returns the images that the weights of an ensemble are chosen on; `None` for heads that cannot rank together.
    fn weight_data(&self) -> Option<WeightData> {
        None
    }

    /// Saves a head and its optimiser as a checkpoint in `dir`.
    ///
    /// # Errors
    /// The outer error is that of the device, the inner error that of the checkpoint files.
    async fn save(
        &self,
        trial: usize,
        dir: PathBuf,
        progress: Progress,
    ) -> Result<Result<(), CheckpointError>, PipelineError>;

    /// Frees heads and optimisers.
    ///
    /// # Errors
    /// When the device's thread is gone.
    async fn unload(self) -> Result<(), PipelineError>;
}

/// Position of a validation in the training curve.
#[derive(Debug, Clone, Copy)]
pub(super) struct CurvePosition {
    /// Number of updates made.
    pub(super) step: u64,
    /// Number of epochs finished.
    pub(super) epoch: u32,
}

/// Running scores of a validation.
#[derive(Default)]
struct ValidationScores {
    tallies: ImageTallies,
    loss_sum: f64,
}

impl ValidationScores {
    /// Adds rows of images, each scored against its label. The rows of an image follow each other.
    fn add(&mut self, images: &[usize], labels: &[u32], scored: &[Scored]) {
        for ((image, label), row) in images.iter().zip(labels).zip(scored) {
            self.tallies.add(*image, rank_of(*label, &row.top.classes));
            self.loss_sum += row.loss;
        }
    }

    fn finish(
        self,
        trial: usize,
        position: CurvePosition,
        captions_per_image: impl IntoIterator<Item = u64>,
    ) -> ValidationPoint {
        let Self { tallies, loss_sum } = self;
        let tally = tallies.sum();
        ValidationPoint {
            step: position.step,
            epoch: position.epoch,
            loss: loss_sum / tally.ids().max(1) as f64,
            ndcg5: tally.ndcg5(),
            ndcg5_ceiling: metrics::ceiling(captions_per_image),
            recall1: tally.recall1(),
            recall5: tally.recall5(),
            ndcg5_interval: tallies.interval(),
            ndcg5_languages: None,
            trial: trial as u32,
        }
    }
}
