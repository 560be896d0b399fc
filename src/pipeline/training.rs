//! Feature chunks → trained head: the order of samples, steps, validation and checkpoints.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PipelineError;
use super::curve::Curve;
use super::desk::{Desk, Device, damaged, model_error};
use super::events::{Event, Events};
use super::features::read_features;
use super::report::{DEVICE, LossPoint, TrainingReport, ValidationPoint};
use super::stream::THE_RUN;
use crate::chunk::features::{self, read_heads};
use crate::chunk::journal::Journal;
use crate::config::raw::RawTrain;
use crate::config::value::ScheduleKind as Kind;
use crate::flow::{Clock, Doing, Meter, Stop};
use crate::predict::metrics::{self, rank_of};
use crate::store::{Directory, LocalCopy, StoreError};
use crate::train::order::{self, Window};
use crate::train::validation::is_validation;
use crate::train::{HeadState, Progress, Schedule, ScheduleKind, Sgd, Targets, checkpoint, plot};

/// Folder of the checkpoints.
const FOLDER: &str = "checkpoints";
/// The curve so far; points behind the checkpoint that a run resumes from are dropped.
const CURVE: &str = "training.csv";
/// Training takes at least so many times as long as saving.
const SAVE_SHARE: u32 = 20;
/// Chunks brought to local disk together, where the run is kept elsewhere.
const FETCHED_AT_ONCE: usize = 32;
/// Its picture.
pub(super) const PICTURE: &str = "training.svg";

/// What training is.
pub(super) struct TrainJob {
    pub(super) directory: Directory,
    pub(super) journal: Journal,
    pub(super) settings: RawTrain,
    pub(super) seed: u64,
    pub(super) classes: usize,
    pub(super) dim: usize,
    pub(super) generation: String,
    pub(super) device: Arc<Device>,
    pub(super) meter: Arc<Meter>,
    pub(super) stop: Stop,
    pub(super) events: Events,
}

/// What the chunks hold.
struct Inventory {
    /// Names of the feature files with rows, in the order of the corpus.
    chunks: Vec<String>,
    /// Training samples of each.
    samples: Vec<u64>,
    /// Validation images of each.
    validation_rows: Vec<u64>,
}

/// Samples of one window in the order of training.
struct Loaded {
    features: Vec<f32>,
    labels: Vec<u32>,
}

/// The steps in the run directory that have a checkpoint, ascending.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn checkpoints(directory: &Directory) -> Result<Vec<u64>, PipelineError> {
    let files = directory.tree(FOLDER)?;
    // On S3 the files of a checkpoint come and go one by one: it is there when all of them are.
    let whole =
        |name: &str| checkpoint::FILES.iter().all(|file| files.contains_key(&format!("{FOLDER}/{name}/{file}")));
    let mut steps: Vec<u64> = files
        .keys()
        .filter_map(|file| file.strip_prefix(FOLDER)?.trim_start_matches('/').split_once('/'))
        .filter(|(name, _)| whole(name))
        .filter_map(|(name, _)| name.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps.dedup();
    Ok(steps)
}

fn checkpoint_name(step: u64) -> String {
    format!("{FOLDER}/step-{step}")
}

/// A checkpoint on local disk.
///
/// # Errors
/// When it cannot be brought there.
fn fetch_checkpoint(directory: &Directory, step: u64, files: &[&str]) -> Result<LocalCopy, StoreError> {
    directory.fetch_folder(&checkpoint_name(step), files)
}

/// The head of a checkpoint.
///
/// # Errors
/// When it cannot be fetched, or is not what was saved.
pub(super) fn load_head(directory: &Directory, step: u64) -> Result<HeadState, PipelineError> {
    let copy = fetch_checkpoint(directory, step, &[checkpoint::HEAD_FILE, checkpoint::STATE_FILE])?;
    checkpoint::load_head(&copy).map_err(damaged)
}

/// The step with the best validation figures so far, by the curve that the run keeps.
///
/// # Errors
/// When the curve cannot be read.
pub(super) fn best_step(directory: &Directory) -> Result<Option<u64>, PipelineError> {
    Ok(best(&read_curve(directory, u64::MAX)?.validations).map(|point| point.step))
}

fn best(points: &[ValidationPoint]) -> Option<&ValidationPoint> {
    // The first of equals, so that the choice does not depend on what came later.
    points.iter().rev().max_by(|one, other| one.ndcg5.total_cmp(&other.ndcg5))
}

fn read_curve(directory: &Directory, up_to_step: u64) -> Result<Curve, PipelineError> {
    Ok(directory.read(CURVE)?.map(|content| Curve::read(&content, up_to_step)).unwrap_or_default())
}

/// Trains the head, or goes on from the newest checkpoint; `None` where there is no sample to train on.
///
/// # Errors
/// When a chunk, the disk or the device fails; [`PipelineError::Stopped`], after saving, when asked to.
pub(super) async fn run(job: TrainJob) -> Result<Option<TrainingReport>, PipelineError> {
    let (inventory, job) = tokio::task::spawn_blocking(move || inventory(&job).map(|found| (found, job))).await??;
    let samples: u64 = inventory.samples.iter().sum();
    if samples == 0 {
        return Ok(None);
    }
    let settings = &job.settings;
    let effective = u64::from(settings.batch_size) * u64::from(settings.accumulation);
    let steps_per_epoch = samples.div_ceil(effective);
    let total_steps = steps_per_epoch * u64::from(settings.epochs);
    let kind = match settings.schedule {
        Kind::Linear => ScheduleKind::Linear,
        Kind::Cosine => ScheduleKind::Cosine,
        Kind::Constant => ScheduleKind::Constant,
    };
    let schedule = Schedule::with_ratio(kind, settings.learning_rate, settings.warmup_ratio, total_steps);
    let (state, progress) = start(&job)?;
    let curve = read_curve(&job.directory, progress.step)?;
    job.meter.set_total(samples * u64::from(settings.epochs));
    job.meter.add_resumed(samples * u64::from(progress.epoch) + progress.position);
    let clock = job.meter.part(Clock::serial(DEVICE).starved_by("the features").blocked_by(THE_RUN));
    job.events.started(&job.meter);
    let sgd = Sgd {
        momentum: settings.momentum,
        weight_decay: settings.weight_decay,
        clip_norm: settings.clip_norm,
        label_smoothing: 0.0,
    };
    let resumed = (progress.step, progress.loss_sum, progress.loss_count);
    job.device.call(move |desk| desk.load_trainer(state, sgd, resumed)).await?;
    let mut session = Session {
        job: &job,
        inventory: &inventory,
        clock,
        schedule,
        effective,
        progress,
        curve,
        saved: Instant::now(),
        save_took: Duration::ZERO,
    };
    session.train().await?;
    session.tidy()?;
    job.device.tell(Desk::unload_trainer).await?;
    job.events.finished(&job.meter);
    let Session { progress, curve, .. } = session;
    Ok(Some(TrainingReport {
        steps: progress.step,
        samples,
        validation_images: inventory.validation_rows.iter().sum(),
        loss: curve.losses.last().map(|point| point.loss),
        validation: curve.validations.last().copied(),
        best: best(&curve.validations).copied(),
        curve: curve.losses,
        validations: curve.validations,
    }))
}

/// The newest checkpoint of this generation, or a new head.
fn start(job: &TrainJob) -> Result<(HeadState, Progress), PipelineError> {
    // What a killed save or removal left goes.
    let whole: Vec<String> = checkpoints(&job.directory)?.iter().map(|step| format!("step-{step}")).collect();
    job.directory.sweep(FOLDER, |name| whole.iter().any(|whole| whole == name))?;
    if let Some(step) = checkpoints(&job.directory)?.last() {
        let copy = fetch_checkpoint(&job.directory, *step, &checkpoint::FILES)?;
        let (state, progress) = checkpoint::load(&copy).map_err(damaged)?;
        let same = progress.hashes.get("train") == Some(&job.generation);
        if !same || (state.classes, state.dim) != (job.classes, job.dim) {
            return Err(PipelineError::Generation(format!(
                "`{}` was made from other features or settings; recompute with --from train",
                job.directory.display(&checkpoint_name(*step))
            )));
        }
        tracing::info!(step, epoch = progress.epoch + 1, position = progress.position, "training resumes");
        return Ok((state, progress));
    }
    let mut hashes = std::collections::BTreeMap::new();
    hashes.insert("train".to_owned(), job.generation.clone());
    let progress = Progress { seed: job.seed, hashes, ..Progress::default() };
    Ok((HeadState::init(job.classes, job.dim, job.seed), progress))
}

fn inventory(job: &TrainJob) -> Result<Inventory, PipelineError> {
    let mut found = Inventory { chunks: Vec::new(), samples: Vec::new(), validation_rows: Vec::new() };
    let layout = job.journal.layout();
    let kept = job.journal.entries().iter().filter(|(_, entry)| entry.tally.kept > 0);
    let names: Vec<String> = kept.map(|(id, _)| layout.chunk(*id)).collect();
    for names in names.chunks(FETCHED_AT_ONCE) {
        for (name, copy) in names.iter().zip(job.directory.fetch_all(names)?) {
            job.journal.verify(name, &copy)?;
            let heads = read_heads(&copy)?;
            let (mut samples, mut validation) = (0, 0);
            for row in 0..heads.len() {
                if is_validation(heads.url(row), job.seed, job.settings.validation_fraction) {
                    validation += 1;
                } else {
                    samples += heads.labels(row).len() as u64;
                }
            }
            found.chunks.push(name.clone());
            found.samples.push(samples);
            found.validation_rows.push(validation);
        }
    }
    Ok(found)
}

struct Session<'a> {
    job: &'a TrainJob,
    inventory: &'a Inventory,
    clock: Arc<Clock>,
    schedule: Schedule,
    effective: u64,
    progress: Progress,
    curve: Curve,
    saved: Instant,
    /// How long the last save took.
    save_took: Duration,
}

impl Session<'_> {
    async fn train(&mut self) -> Result<(), PipelineError> {
        while self.progress.epoch < self.job.settings.epochs {
            let window = self.job.settings.shuffle_rows;
            let windows = order::plan(&self.inventory.samples, self.job.seed, self.progress.epoch, window);
            self.epoch(&windows).await?;
            self.note_loss().await?;
            self.progress.epoch += 1;
            self.progress.position = 0;
            self.validate().await?;
            self.save().await?;
        }
        Ok(())
    }

    /// Trains from the position to the end of the epoch.
    async fn epoch(&mut self, windows: &[Window]) -> Result<(), PipelineError> {
        let Some((first, offset)) = order::locate(windows, self.progress.position) else { return Ok(()) };
        let epoch_samples: u64 = windows.iter().map(|window| window.samples).sum();
        let dim = self.job.dim;
        let mut skip = offset as usize;
        // Samples that were read and not trained on yet: less than a step, and the window at hand.
        let (mut features, mut labels): (Vec<f32>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut next = Some(self.load(&windows[first]));
        for index in first..windows.len() {
            let Some(loading) = next.take() else { break };
            let loaded = self.clock.wait(Doing::Starved, loading).await??;
            // The next window is read while this one is trained on.
            next = windows.get(index + 1).map(|window| self.load(window));
            features.extend_from_slice(&loaded.features[skip * dim..]);
            labels.extend_from_slice(&loaded.labels[skip..]);
            skip = 0;
            let mut done = 0;
            while done < labels.len() {
                let left = epoch_samples - self.progress.position;
                let step = self.effective.min(left) as usize;
                if labels.len() - done < step {
                    break;
                }
                let end = done + step;
                self.step(features[done * dim..end * dim].to_vec(), labels[done..end].to_vec()).await?;
                done = end;
            }
            features.drain(..done * dim);
            labels.drain(..done);
        }
        Ok(())
    }

    /// Reads a window's samples, on a thread of its own.
    fn load(&self, window: &Window) -> tokio::task::JoinHandle<Result<Loaded, PipelineError>> {
        let names: Vec<String> = window.chunks.iter().map(|chunk| self.inventory.chunks[*chunk].clone()).collect();
        let (window, directory) = (window.clone(), self.job.directory.clone());
        let (seed, fraction, dim) = (self.job.seed, self.job.settings.validation_fraction, self.job.dim);
        tokio::task::spawn_blocking(move || load_window(&window, &directory, &names, seed, fraction, dim))
    }

    async fn step(&mut self, features: Vec<f32>, labels: Vec<u32>) -> Result<(), PipelineError> {
        let batch = self.job.settings.batch_size as usize;
        let samples = labels.len();
        let targets = Targets::single(&labels);
        let rate = self.schedule.rate(self.progress.step);
        let log = (self.progress.step + 1).is_multiple_of(u64::from(self.job.settings.log_every));
        let train = self.job.device.call(move |desk| desk.train(&features, &targets, batch, rate, log));
        let loss = train.await?;
        self.progress.step += 1;
        self.progress.position += samples as u64;
        self.job.meter.add(samples as u64);
        if let Some((sum, count)) = loss {
            let loss = sum / count.max(1) as f64;
            self.curve.losses.push(LossPoint { step: self.progress.step, loss, learning_rate: rate });
            tracing::debug!(step = self.progress.step, loss, learning_rate = rate, "trained");
        }
        if let Some(signal) = self.job.stop.signal() {
            self.save().await?;
            return Err(PipelineError::Stopped(signal));
        }
        // The end of an epoch saves by itself, and never over a checkpoint of the same step.
        let ends_epoch = self.progress.position >= self.inventory.samples.iter().sum::<u64>();
        // A large head on a slow disk is saved less often, so that saving takes no more than a share of the time.
        let pause = self.job.settings.checkpoint_every.0.max(self.save_took * SAVE_SHARE);
        if self.saved.elapsed() >= pause && !ends_epoch {
            self.save().await?;
        }
        Ok(())
    }

    /// Scores the validation images with the head as it is.
    async fn validate(&mut self) -> Result<(), PipelineError> {
        if self.inventory.validation_rows.iter().sum::<u64>() == 0 {
            return Ok(());
        }
        self.job.device.call(Desk::score_with_trainer).await?;
        let (mut tally, mut loss_sum) = (metrics::Tally::default(), 0.0);
        let mut labels_per_image: Vec<u64> = Vec::new();
        for (name, rows) in self.inventory.chunks.iter().zip(&self.inventory.validation_rows) {
            if *rows == 0 {
                continue;
            }
            let (seed, fraction) = (self.job.seed, self.job.settings.validation_fraction);
            let chunk = self.clock.wait(Doing::Starved, read_features(&self.job.directory, name, None)).await?;
            let (mut values, mut labels) = (Vec::new(), Vec::new());
            for row in (0..chunk.rows.len()).filter(|row| is_validation(chunk.rows.url(*row), seed, fraction)) {
                let of_row = chunk.rows.labels(row);
                labels_per_image.push(of_row.len() as u64);
                for label in of_row {
                    values.extend_from_slice(&chunk.values[row * chunk.dim..(row + 1) * chunk.dim]);
                    labels.push(*label);
                }
            }
            let asked = labels.clone();
            let scored = self.job.device.call(move |desk| desk.score(&values, &labels, 5)).await?;
            for (label, row) in asked.iter().zip(&scored) {
                tally.add(rank_of(*label, &row.top.classes));
                loss_sum += row.loss;
            }
        }
        self.job.device.tell(Desk::unload_scorer).await?;
        let point = ValidationPoint {
            step: self.progress.step,
            epoch: self.progress.epoch,
            loss: loss_sum / tally.ids().max(1) as f64,
            ndcg5: tally.ndcg5(),
            ndcg5_ceiling: metrics::ceiling(labels_per_image),
            recall1: tally.recall1(),
            recall5: tally.recall5(),
        };
        tracing::info!(epoch = point.epoch, step = point.step, loss = point.loss, ndcg5 = point.ndcg5, "validated");
        let ValidationPoint { step, epoch, loss, ndcg5, .. } = point;
        self.job.events.note(&Event::Validated { step, epoch, loss, ndcg5 });
        self.curve.validations.push(point);
        self.progress.best = best(&self.curve.validations).map(|point| point.ndcg5);
        Ok(())
    }

    /// Writes a checkpoint and removes those that are neither the newest nor the best.
    async fn save(&mut self) -> Result<(), PipelineError> {
        let started = Instant::now();
        let content = self.curve.write().map_err(|error| PipelineError::Internal(error.to_string()))?;
        self.job.directory.write(CURVE, &content)?;
        let step = self.progress.step;
        let (state, loss) = self.job.device.call(Desk::state).await?;
        (self.progress.loss_sum, self.progress.loss_count) = loss;
        let (directory, progress) = (self.job.directory.clone(), self.progress.clone());
        let publishing = tokio::task::spawn_blocking(move || {
            let name = checkpoint_name(step);
            checkpoint::save(&directory.temporary(&name)?, &state, &progress).map_err(checkpoint_error)?;
            Ok::<_, PipelineError>(directory.publish_folder(&name)?)
        });
        self.clock.wait(Doing::Blocked, publishing).await??;
        self.tidy()?;
        (self.saved, self.save_took) = (Instant::now(), started.elapsed());
        let (epoch, seconds) = (self.progress.epoch, self.save_took.as_secs_f64());
        self.job.events.note(&Event::CheckpointSaved { step, epoch, seconds });
        Ok(())
    }

    /// Keeps the newest and the best checkpoint alone, and the picture of the curve up to date.
    fn tidy(&self) -> Result<(), PipelineError> {
        let best = best(&self.curve.validations).map(|point| point.step);
        for old in checkpoints(&self.job.directory)? {
            if old != self.progress.step && Some(old) != best {
                self.job.directory.remove(&format!("{FOLDER}/step-{old}"))?;
            }
        }
        self.draw()
    }

    /// Notes the loss since the last point at the end of an epoch, so that short runs have a curve too.
    async fn note_loss(&mut self) -> Result<(), PipelineError> {
        let (sum, count) = self.job.device.call(Desk::take_loss).await?;
        if count > 0 {
            let learning_rate = self.schedule.rate(self.progress.step.saturating_sub(1));
            self.curve.losses.push(LossPoint { step: self.progress.step, loss: sum / count as f64, learning_rate });
        }
        Ok(())
    }

    fn draw(&self) -> Result<(), PipelineError> {
        let losses = self.curve.losses.iter().map(|point| plot::CurvePoint {
            step: point.step,
            train_loss: Some(point.loss),
            ..plot::CurvePoint::default()
        });
        let validations = self.curve.validations.iter().map(|point| plot::CurvePoint {
            step: point.step,
            val_loss: Some(point.loss),
            val_ndcg5: Some(point.ndcg5),
            ..plot::CurvePoint::default()
        });
        let mut points: Vec<_> = losses.chain(validations).collect();
        points.sort_by_key(|point| point.step);
        plot::training_curve(&self.job.directory.temporary(PICTURE)?, &points).map_err(model_error)?;
        self.job.directory.publish(PICTURE)?;
        Ok(())
    }
}

/// A full disk is the store's business, not the model's.
fn checkpoint_error(error: checkpoint::CheckpointError) -> PipelineError {
    match error {
        checkpoint::CheckpointError::Io { path, source, .. } => StoreError::io(path, "written", source).into(),
        other => model_error(other),
    }
}

/// The samples of a window in the order of training: one for each (image, class) pair of the training side.
fn load_window(
    window: &Window,
    directory: &Directory,
    names: &[String],
    seed: u64,
    fraction: f64,
    dim: usize,
) -> Result<Loaded, PipelineError> {
    let mut chunks = Vec::with_capacity(names.len());
    for (name, copy) in names.iter().zip(directory.fetch_all(names)?) {
        let chunk = features::read(&copy)?;
        if chunk.dim != dim {
            return Err(PipelineError::Input(format!(
                "`{}` holds features of another size: remove it",
                directory.display(name)
            )));
        }
        let samples: Vec<(usize, u32)> = (0..chunk.rows.len())
            .filter(|row| !is_validation(chunk.rows.url(*row), seed, fraction))
            .flat_map(|row| chunk.rows.labels(row).iter().map(move |label| (row, *label)))
            .collect();
        chunks.push((chunk.values, samples));
    }
    let order = window.order();
    let mut loaded =
        Loaded { features: Vec::with_capacity(order.len() * dim), labels: Vec::with_capacity(order.len()) };
    for place in order {
        let (values, samples) = &chunks[place.slot];
        let (row, label) = samples[place.sample as usize];
        loaded.features.extend_from_slice(&values[row * dim..(row + 1) * dim]);
        loaded.labels.push(label);
    }
    Ok(loaded)
}
