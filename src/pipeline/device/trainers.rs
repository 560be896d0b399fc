//! Heads in training on the device. The heads of a sweep train side by side.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DeviceState, DeviceWorker, FeatureRows, LoadedScorer, OnDevice, model_error};
use crate::model::Any;
use crate::pipeline::error::PipelineError;
use crate::train::text::{AdamW, ContrastiveBatch, TextState, TextTrainer};
use crate::train::{CheckpointError, HeadState, Progress, Sgd, Targets, TrainError, Trainer, checkpoint};

/// Sum of the training losses since they were last taken.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct LossSum {
    /// Sum, in nats.
    pub(crate) nats: f64,
    /// Samples in the sum.
    pub(crate) samples: u64,
}

impl From<(f64, u64)> for LossSum {
    fn from((nats, samples): (f64, u64)) -> Self {
        Self { nats, samples }
    }
}

/// One update of every head of a sweep.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    /// Learning rate of each head.
    pub(crate) rates: Vec<f64>,
    /// Whether to take the losses. Taking them waits for the device.
    pub(crate) takes_losses: bool,
}

/// Initial state of a classifier's training.
pub(crate) struct ClassifierStart {
    pub(crate) state: HeadState,
    pub(crate) sgd: Sgd,
    /// Losses accumulated before the checkpoint and not taken yet.
    pub(crate) loss: LossSum,
}

/// Initial state of a projection head's training.
pub(crate) struct ProjectionStart {
    pub(crate) state: TextState,
    pub(crate) adam: AdamW,
    /// Losses accumulated before the checkpoint and not taken yet.
    pub(crate) loss: LossSum,
}

/// Part of a step. Its pairs are contrasted only with each other.
pub(crate) struct MicroBatch {
    /// Rows of the step.
    pub(crate) span: Range<usize>,
    /// Vectors of the rows' captions, `[rows, dim]`.
    pub(crate) captions: Vec<f32>,
    /// Masked negatives: (row, caption) pairs that do not count as negatives.
    pub(crate) masked: Vec<(u32, u32)>,
}

/// Heads of a sweep on the device, with their optimisers.
pub(crate) struct TrainerGroup<T> {
    device: Arc<DeviceWorker>,
    trainers: OnDevice<Vec<T>>,
    /// Name of the kernels that train.
    pub(crate) kernels: &'static str,
}

/// Classifiers in training.
pub(crate) type ClassifierTrainers = TrainerGroup<Trainer<Any>>;
/// Projection heads in training.
pub(crate) type ProjectionTrainers = TrainerGroup<TextTrainer<Any>>;

/// Operations that both kinds of trainer have.
pub(crate) trait HeadTrainer: Send + 'static {
    /// Returns the sum of the losses not taken yet, in nats, and the number of samples in it.
    fn loss(&mut self) -> Result<(f64, u64), TrainError>;

    /// As [`HeadTrainer::loss`], and resets both to zero.
    fn take_loss(&mut self) -> Result<(f64, u64), TrainError>;

    /// Saves head and optimiser as a checkpoint in `dir`. The outer error is that of the device.
    fn save(&self, dir: &Path, progress: &Progress) -> Result<Result<(), CheckpointError>, TrainError>;
}

impl HeadTrainer for Trainer<Any> {
    fn loss(&mut self) -> Result<(f64, u64), TrainError> {
        self.loss()
    }

    fn take_loss(&mut self) -> Result<(f64, u64), TrainError> {
        self.take_loss()
    }

    fn save(&self, dir: &Path, progress: &Progress) -> Result<Result<(), CheckpointError>, TrainError> {
        Ok(checkpoint::save(dir, &*self.view()?, progress))
    }
}

impl HeadTrainer for TextTrainer<Any> {
    fn loss(&mut self) -> Result<(f64, u64), TrainError> {
        self.loss()
    }

    fn take_loss(&mut self) -> Result<(f64, u64), TrainError> {
        self.take_loss()
    }

    fn save(&self, dir: &Path, progress: &Progress) -> Result<Result<(), CheckpointError>, TrainError> {
        Ok(checkpoint::save_text(dir, &self.state()?, progress))
    }
}

impl DeviceWorker {
    /// Loads the classifiers of a sweep, in order. `step` is the number of updates made so far.
    ///
    /// # Errors
    /// When a setting or a length is invalid, or the device fails.
    pub(crate) async fn load_classifier_trainers(
        self: &Arc<Self>,
        starts: Vec<ClassifierStart>,
        step: u64,
    ) -> Result<ClassifierTrainers, PipelineError> {
        let load = move |state: &mut DeviceState| {
            let (heads, losses): (Vec<_>, Vec<_>) =
                starts.into_iter().map(|start| ((start.state, start.sgd), start.loss)).unzip();
            let trainers = Trainer::new_group(heads, state.options, &state.device).map_err(model_error)?;
            let resume = |(trainer, loss): (Trainer<Any>, LossSum)| trainer.resumed(step, loss.nats, loss.samples);
            let kernels = trainers.first().map_or("none", Trainer::kernels);
            Ok((OnDevice::new(trainers.into_iter().zip(losses).map(resume).collect()), kernels))
        };
        let (trainers, kernels) = self.run(load).await?;
        tracing::info!(kernels, "the classifiers are on the device");
        Ok(TrainerGroup { device: Arc::clone(self), trainers, kernels })
    }

    /// Loads the projection heads of a sweep, in order. `step` is the number of updates made so far.
    ///
    /// # Errors
    /// As [`DeviceWorker::load_classifier_trainers`].
    pub(crate) async fn load_projection_trainers(
        self: &Arc<Self>,
        starts: Vec<ProjectionStart>,
        step: u64,
    ) -> Result<ProjectionTrainers, PipelineError> {
        let load = move |state: &mut DeviceState| {
            let trainer = |ProjectionStart { state: head, adam, loss }: ProjectionStart| {
                TextTrainer::new(head, adam, step, (loss.nats, loss.samples), &state.device).map_err(model_error)
            };
            Ok(OnDevice::new(starts.into_iter().map(trainer).collect::<Result<_, _>>()?))
        };
        let trainers = self.run(load).await?;
        Ok(TrainerGroup { device: Arc::clone(self), trainers, kernels: "burn" })
    }
}

impl<T: HeadTrainer> TrainerGroup<T> {
    async fn run<R, F>(&self, job: F) -> Result<R, PipelineError>
    where
        R: Send + 'static,
        F: FnOnce(&mut Vec<T>, &DeviceState) -> Result<R, PipelineError> + Send + 'static,
    {
        let trainers = self.trainers.clone();
        self.device.run(move |state| job(&mut trainers.get(), state)).await
    }

    /// Returns the losses of each head and resets them to zero.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub(crate) async fn take_losses(&self) -> Result<Vec<LossSum>, PipelineError> {
        self.run(|trainers, _| take_losses(trainers)).await
    }

    /// Saves a head and its optimiser as a checkpoint in `dir`, with the losses not taken yet.
    ///
    /// # Errors
    /// The outer error is that of the device, the inner error that of the checkpoint files.
    pub(crate) async fn save(
        &self,
        trial: usize,
        dir: PathBuf,
        mut progress: Progress,
    ) -> Result<Result<(), CheckpointError>, PipelineError> {
        // Save on the device's thread, so that a head in host memory is not copied.
        let save = move |trainers: &mut Vec<T>, _: &DeviceState| {
            let trainer = &mut trainers[trial];
            (progress.loss_sum, progress.loss_count) = trainer.loss().map_err(model_error)?;
            trainer.save(&dir, &progress).map_err(model_error)
        };
        self.run(save).await
    }

    /// Frees heads and optimisers.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(crate) async fn unload(self) -> Result<(), PipelineError> {
        let free = move |state: &mut DeviceState| {
            drop(self.trainers);
            state.release_memory();
        };
        self.device.post(free).await
    }
}

impl ClassifierTrainers {
    /// Updates each head once, with micro-batches of `batch` rows. Returns the losses if the update takes them.
    ///
    /// # Errors
    /// When a length does not fit, a loss is not finite, or the device fails.
    pub(crate) async fn step(
        &self,
        features: FeatureRows,
        targets: Targets,
        batch: usize,
        update: Update,
    ) -> Result<Option<Vec<LossSum>>, PipelineError> {
        let step = move |trainers: &mut Vec<Trainer<Any>>, _: &DeviceState| {
            let rows = targets.rows();
            for (trainer, rate) in trainers.iter_mut().zip(&update.rates) {
                for first in (0..rows).step_by(batch.max(1)) {
                    let span = first..(first + batch).min(rows);
                    let targets = targets.slice(span.clone());
                    features
                        .with_slice(span, |features| trainer.accumulate(features, &targets, rows))
                        .map_err(model_error)?;
                }
                trainer.step(*rate).map_err(model_error)?;
            }
            update.takes_losses.then(|| take_losses(trainers)).transpose()
        };
        self.run(step).await
    }

    /// Returns a scorer over the current weights of a head. Unload it before the next update: it shares the weights, or takes memory
    /// for a copy.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) async fn scorer(&self, trial: usize) -> Result<LoadedScorer, PipelineError> {
        let scorer = move |trainers: &mut Vec<Trainer<Any>>, state: &DeviceState| {
            Ok(OnDevice::new(trainers[trial].scorer().map_err(model_error)?.with_selection(state.selection)))
        };
        Ok(LoadedScorer { device: Arc::clone(&self.device), scorer: self.run(scorer).await? })
    }
}

impl ProjectionTrainers {
    /// Updates each head once. Returns the losses if the update takes them.
    ///
    /// # Errors
    /// When a length does not fit, a loss is not finite, or the device fails.
    pub(crate) async fn step(
        &self,
        features: FeatureRows,
        micro_batches: Vec<MicroBatch>,
        update: Update,
    ) -> Result<Option<Vec<LossSum>>, PipelineError> {
        let step = move |trainers: &mut Vec<TextTrainer<Any>>, _: &DeviceState| {
            let rows = micro_batches.iter().map(|batch| batch.span.len()).sum();
            for (trainer, rate) in trainers.iter_mut().zip(&update.rates) {
                for MicroBatch { span, captions, masked } in &micro_batches {
                    let pairs = ContrastiveBatch { captions, masked_negatives: masked };
                    features
                        .with_slice(span.clone(), |features| trainer.accumulate(features, pairs, rows))
                        .map_err(model_error)?;
                }
                trainer.step(*rate).map_err(model_error)?;
            }
            update.takes_losses.then(|| take_losses(trainers)).transpose()
        };
        self.run(step).await
    }

    /// Projects features by what a head has learned so far: `[rows, output]`, of unit length. Returns the factor of the
    /// similarities, too.
    ///
    /// # Errors
    /// When a length does not fit, or the device fails.
    pub(crate) async fn project(
        &self,
        trial: usize,
        features: Vec<f32>,
        rows: usize,
    ) -> Result<(Vec<f32>, f32), PipelineError> {
        let project = move |trainers: &mut Vec<TextTrainer<Any>>, _: &DeviceState| {
            let trainer = &trainers[trial];
            let vectors = trainer.projector().project(&features, rows).map_err(model_error)?;
            Ok((vectors, trainer.state().map_err(model_error)?.head.scale()))
        };
        self.run(project).await
    }
}

fn take_losses<T: HeadTrainer>(trainers: &mut [T]) -> Result<Vec<LossSum>, PipelineError> {
    trainers.iter_mut().map(|trainer| trainer.take_loss().map(LossSum::from).map_err(model_error)).collect()
}
