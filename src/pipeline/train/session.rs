//! The training loop: epochs, steps, validation and checkpoints of all heads of a sweep.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Trial;
use crate::objects::StoreError;
use crate::pipeline::device::{LossSum, Update, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::events::Event;
use crate::pipeline::observe::report::{
    EnsembleReport, LossPoint, MixingReport, TrainingReport, TrialReport, ValidationPoint,
};
use crate::pipeline::train::checkpoints::{self, CURVE_FILE, CheckpointList, best_point};
use crate::pipeline::train::curve::Curve;
use crate::pipeline::train::ensemble::{self, EnsembleFile, Members};
use crate::pipeline::train::feature_store::{FeatureStore, StepSamples, WindowSamples};
use crate::pipeline::train::head::{CurvePosition, Trainers};
use crate::pipeline::train::inventory::Inventory;
use crate::pipeline::train::tensorboard::EventFiles;
use crate::pipeline::train::{PLOT_FILE, TrainJob};
use crate::telemetry::{Activity, StageTimer};
use crate::train::order::{self, Window};
use crate::train::text::MemberSpec;
use crate::train::{CheckpointError, Progress, Schedule};
use crate::view::TrainingCurve;

/// Lower bound on the ratio of training time to the time of saving: saving takes at most 2 % of the time.
const MIN_TRAIN_TO_SAVE: u32 = 50;

/// State of a training in progress.
pub(super) struct Session<'a, T> {
    pub(super) job: &'a TrainJob,
    pub(super) trainers: T,
    pub(super) inventory: Arc<Inventory>,
    pub(super) store: Arc<FeatureStore>,
    pub(super) timer: Arc<StageTimer>,
    pub(super) trials: Vec<Trial>,
    /// Learning rate of each trial.
    pub(super) schedules: Vec<Schedule>,
    /// Samples of a step.
    pub(super) step_samples: u64,
    pub(super) progress: Progress,
    pub(super) curve: Curve,
    /// Time of the last checkpoint.
    pub(super) saved: Instant,
    /// Duration of the last save.
    pub(super) save_took: Duration,
    /// Event files for TensorBoard, if the configuration asks for them.
    pub(super) event_files: Option<EventFiles>,
}

impl<T: Trainers> Session<'_, T> {
    /// Trains from the current position to the end of the last epoch.
    ///
    /// # Errors
    /// When a chunk, the disk or the device fails; [`PipelineError::Stopped`] after saving, if the run has to stop.
    pub(super) async fn train(&mut self) -> Result<(), PipelineError> {
        while self.progress.epoch < self.job.settings.epochs {
            let epoch = self.progress.epoch;
            let (seed, window) = (self.job.split.seed, self.job.settings.shuffle_rows);
            let windows = order::plan_epoch(self.inventory.chunk_samples(epoch), seed, epoch, window);
            self.train_epoch(&windows).await?;
            // Take the losses at the end of an epoch too, so that the curve of a short run has a point.
            let losses = self.trainers.take_losses().await?;
            self.record_losses(&losses);
            self.progress.epoch += 1;
            self.progress.position = 0;
            self.validate().await?;
            self.save().await?;
        }
        Ok(())
    }

    /// Trains from the position to the end of the epoch.
    async fn train_epoch(&mut self, windows: &[Window]) -> Result<(), PipelineError> {
        let Some((first, offset)) = order::locate(windows, self.progress.position) else { return Ok(()) };
        let epoch_samples: u64 = windows.iter().map(|window| window.samples).sum();
        let mut done = offset as usize;
        // Samples of the next step: what the windows so far left over.
        let mut step = StepSamples::empty();
        let mut next = Some(self.load_window(&windows[first]));
        for index in first..windows.len() {
            let Some(loading) = next.take() else { break };
            let window = self.timer.wait(Activity::Starved, loading).await??;
            // The next window is read while this one is trained on.
            next = windows.get(index + 1).map(|window| self.load_window(window));
            while done < window.rows() {
                let wanted = self.step_samples.min(epoch_samples - self.progress.position) as usize;
                let taken = (wanted - step.targets.rows()).min(window.rows() - done);
                window.append_to(&mut step, done..done + taken);
                done += taken;
                if step.targets.rows() == wanted {
                    self.step(std::mem::replace(&mut step, StepSamples::empty())).await?;
                }
            }
            done = 0;
        }
        Ok(())
    }

    /// Starts to read the samples of a window, on its own thread.
    fn load_window(&self, window: &Window) -> tokio::task::JoinHandle<Result<WindowSamples, PipelineError>> {
        let (window, store, epoch) = (window.clone(), Arc::clone(&self.store), self.progress.epoch);
        tokio::task::spawn_blocking(move || store.window(&window, epoch))
    }

    async fn step(&mut self, samples: StepSamples) -> Result<(), PipelineError> {
        let count = samples.targets.rows() as u64;
        let rates = self.schedules.iter().map(|schedule| schedule.rate(self.progress.step)).collect();
        let takes_losses = (self.progress.step + 1).is_multiple_of(u64::from(self.job.settings.log_every));
        let losses = self.trainers.step(samples, Update { rates, takes_losses }).await?;
        self.progress.step += 1;
        self.progress.position += count;
        self.job.stage_progress.add(count);
        self.record_losses(&losses.unwrap_or_default());
        if let Some(signal) = self.job.ctx.shutdown.signal() {
            self.save().await?;
            return Err(PipelineError::Stopped(signal));
        }
        // The end of an epoch saves anyway, and a step has only one checkpoint.
        let ends_epoch = self.progress.position >= self.inventory.epoch_samples(self.progress.epoch);
        // A large head on a slow disk is saved less often.
        let pause = self.job.settings.checkpoint_every.max(self.save_took * MIN_TRAIN_TO_SAVE);
        if self.saved.elapsed() >= pause && !ends_epoch {
            self.save().await?;
        }
        Ok(())
    }

    /// Scores the validation images with the current weights of each head.
    async fn validate(&mut self) -> Result<(), PipelineError> {
        if self.inventory.validation_images == 0 {
            return Ok(());
        }
        let position = CurvePosition { step: self.progress.step, epoch: self.progress.epoch };
        for trial in 0..self.trials.len() {
            let point = self.trainers.validate(trial, position).await?;
            let ValidationPoint { step, epoch, loss, ndcg5, .. } = point;
            tracing::info!(epoch, step, trial, loss, ndcg5, "validated");
            self.job.ctx.events.write(&Event::Validated { step, epoch, trial: point.trial, loss, ndcg5 });
            self.curve.validations.push(point);
        }
        if self.job.settings.ensemble.is_some()
            && let Some(point) = self.trainers.validate_ensemble(self.trials.len(), position).await?
        {
            let ValidationPoint { step, epoch, loss, ndcg5, ndcg5_languages, .. } = point;
            tracing::info!(epoch, step, loss, ndcg5, ndcg5_languages, "all heads together validated");
            self.curve.validations.push(point);
        }
        self.progress.best = self.job.selection().best_score(&self.curve.validations);
        Ok(())
    }

    /// Writes a checkpoint of each head. Removes checkpoints that are neither the newest nor the best.
    async fn save(&mut self) -> Result<(), PipelineError> {
        let started = Instant::now();
        let dir = &self.job.ctx.dir;
        let content = self.curve.to_csv().map_err(|error| PipelineError::Internal(error.to_string()))?;
        dir.write(CURVE_FILE, &content)?;
        if let Some(files) = &mut self.event_files {
            files.write(&self.curve)?;
        }
        let step = self.progress.step;
        // Save the first head last, because its checkpoint marks the whole sweep as complete.
        for trial in (0..self.trials.len()).rev() {
            let name = checkpoints::folder_name(step, trial);
            let saving = self.trainers.save(trial, dir.temporary(&name)?, self.progress.clone());
            self.timer.wait(Activity::Blocked, saving).await?.map_err(save_error)?;
            let dir = dir.clone();
            let publishing = tokio::task::spawn_blocking(move || dir.publish_folder(&name));
            self.timer.wait(Activity::Blocked, publishing).await??;
        }
        self.tidy()?;
        (self.saved, self.save_took) = (Instant::now(), started.elapsed());
        let (epoch, seconds) = (self.progress.epoch, self.save_took.as_secs_f64());
        self.job.ctx.events.write(&Event::CheckpointSaved { step, epoch, seconds });
        Ok(())
    }

    /// Removes all checkpoints but the newest and the best, and redraws the training curve.
    ///
    /// # Errors
    /// When the run directory cannot be changed.
    pub(super) fn tidy(&self) -> Result<(), PipelineError> {
        let best = self.job.selection().best_heads(&self.curve.validations);
        let saved = CheckpointList::read(&self.job.ctx.dir)?;
        for step in saved.steps().into_iter().filter(|step| *step != self.progress.step) {
            let trials = (0..self.trials.len()).filter(|trial| saved.contains(step, *trial));
            for trial in trials.filter(|trial| !best.contains(&(step, *trial))) {
                self.job.ctx.dir.remove(&checkpoints::folder_name(step, trial))?;
            }
        }
        self.draw_curve()
    }

    fn record_losses(&mut self, losses: &[LossSum]) {
        let step = self.progress.step;
        for (trial, (LossSum { nats, samples }, schedule)) in losses.iter().zip(&self.schedules).enumerate() {
            if *samples > 0 {
                let (loss, learning_rate) = (nats / *samples as f64, schedule.rate(step.saturating_sub(1)));
                self.curve.losses.push(LossPoint { step, loss, learning_rate, trial: trial as u32 });
                tracing::debug!(step, trial, loss, learning_rate, "trained");
            }
        }
    }

    /// Returns a name in the legend for each head, and for an ensemble.
    fn series_names(&self) -> Vec<String> {
        if self.job.settings.ensemble.is_some() {
            let heads = self.job.members.iter().map(MemberSpec::describe);
            return heads.chain(["all together".to_owned()]).collect();
        }
        let name = |trial: &Trial| {
            let Trial { learning_rate, momentum, weight_decay } = trial;
            format!("lr {learning_rate}, m {momentum}, wd {weight_decay}")
        };
        self.trials.iter().map(name).collect()
    }

    fn draw_curve(&self) -> Result<(), PipelineError> {
        let text = self.curve.to_csv().map_err(|error| PipelineError::Internal(format!("training curve: {error}")))?;
        let picture = TrainingCurve::from_csv(&text).picture(&self.series_names());
        self.job.ctx.dir.write(PLOT_FILE, picture.as_bytes())?;
        Ok(())
    }

    /// Frees the memory of the device, and summarises the training.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(super) async fn finish(self, mixing: MixingReport) -> Result<TrainingReport, PipelineError> {
        let ensemble = self.combine_heads().await?;
        self.trainers.unload().await?;
        if let Some(store) = Arc::into_inner(self.store) {
            store.unload().await?;
        }
        let Curve { losses, validations } = self.curve;
        let heads = self.trials.len() as u32;
        let winner = match ensemble {
            Some(_) => heads,
            None => best_point(&validations).map_or(0, |point| point.trial),
        };
        let summarise = |trial: u32| {
            let own: Vec<ValidationPoint> = validations.iter().filter(|point| point.trial == trial).copied().collect();
            let loss = losses.iter().rev().find(|point| point.trial == trial).map(|point| point.loss);
            (loss, own.last().copied(), self.job.selection().best(&own).copied())
        };
        let trial_report = |(number, settings): (usize, &Trial)| {
            let (loss, validation, best) = summarise(number as u32);
            TrialReport { settings: *settings, loss, validation, best, wins: number as u32 == winner }
        };
        let trials = match self.trials.as_slice() {
            [_] => Vec::new(),
            _ if ensemble.is_some() => Vec::new(),
            several => several.iter().enumerate().map(trial_report).collect(),
        };
        let (loss, validation, best) = summarise(winner);
        // All heads train on the same samples; the loss is that of the first.
        let loss = loss.or_else(|| summarise(0).0);
        Ok(TrainingReport {
            steps: self.progress.step,
            samples: self.inventory.epoch_samples(0),
            validation_images: self.inventory.validation_images,
            mixing,
            loss,
            validation,
            best,
            trials,
            curve: losses,
            validations,
            closed_form: None,
            ensemble,
        })
    }

    /// Weights the heads of an ensemble at the best and at the last step, and writes both to the run directory. Returns the
    /// best; `None` without an ensemble.
    async fn combine_heads(&self) -> Result<Option<EnsembleReport>, PipelineError> {
        let (job, dir) = (self.job, &self.job.ctx.dir);
        let (Some(config), Some(data)) = (job.settings.ensemble, self.trainers.weight_data()) else {
            return Ok(None);
        };
        let combine = async |step: u64| {
            let load = |trial: usize| {
                let copy = checkpoints::fetch(dir, (step, trial), &checkpoints::HEAD_FILES)?;
                checkpoints::load_text_head(&copy)
            };
            let heads = (0..self.trials.len()).map(load).collect::<Result<_, PipelineError>>()?;
            let members = Members { step, heads, chosen: Vec::new() };
            ensemble::combine(&job.device, &data, members, &job.members, config.weights).await
        };
        let last = combine(self.progress.step).await?;
        let best = match job.selection().best(&self.curve.validations).map(|point| point.step) {
            Some(step) if step != last.step => combine(step).await?,
            _ => last.clone(),
        };
        let file = EnsembleFile { best: best.clone(), last };
        file.write(dir)?;
        Ok(Some(best))
    }
}

/// Converts a failed write into an error of the run directory, and a bad head into an error of the model.
pub(super) fn save_error(error: CheckpointError) -> PipelineError {
    match error {
        CheckpointError::Io { path, source, .. } => StoreError::io(path, "written", source).into(),
        other => model_error(other),
    }
}
