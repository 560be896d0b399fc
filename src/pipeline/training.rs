//! Feature chunks → trained head: the order of samples, steps, validation and checkpoints.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PipelineError;
use super::checkpoints::{self, CURVE, FOLDER, best};
use super::curve::Curve;
use super::events::{Event, Events};
use super::feature_store::{
    Copies, FeaturePlacement, FeatureStore, Loaded, Rows, SampleSpec, resident_bytes, samples_of,
};
use super::features::FeatureShape;
use super::report::{DEVICE, LossPoint, MixingReport, TrainingReport, TrialReport, ValidationPoint};
use super::stream::THE_RUN;
use super::text_training::{self, HeldOut, TextGoal};
use super::worker::{Device, DeviceWorker, Losses, Start, TextStart, damaged, model_error};
use crate::chunk::features::read_heads;
use crate::chunk::journal::Journal;
use crate::config::raw::{RawTrain, Trial};
use crate::config::value::{Balance, ScheduleKind as Kind};
use crate::objects::StoreError;
use crate::predict::metrics::{self, rank_of};
use crate::run_dir::Directory;
use crate::runtime::Shutdown;
use crate::telemetry::{Activity, StageProgress, StageTimer};
use crate::train::order::{self, Window};
use crate::train::validation::is_validation;
use crate::train::{HeadState, Progress, Schedule, ScheduleKind, Sgd, Targets, checkpoint, plot};

/// Memory of a card that features leave free beside the heads: logits of a block, kernels, what tuning tries.
const DEVICE_RESERVE_BYTES: u64 = 6 << 30;
/// Values of a tensor, at most: kernels count them in 32 bits.
const DEVICE_VALUES: u64 = 1 << 31;
/// Training takes at least so many times as long as saving, so that saving takes 2 % of the time.
const SAVE_SHARE: u32 = 50;
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
    /// Where the head is a map towards captions' vectors, these.
    pub(super) text: Option<TextGoal>,
    pub(super) shape: FeatureShape,
    /// Features stay in memory where they take no more than half of this.
    pub(super) memory_bytes: u64,
    pub(super) generation: String,
    pub(super) device: Arc<Device>,
    pub(super) stage_progress: Arc<StageProgress>,
    pub(super) stop: Shutdown,
    pub(super) events: Events,
}

/// What the chunks hold.
struct Inventory {
    /// Names of the feature files with rows, in the order of the corpus.
    chunks: Vec<String>,
    /// Training samples of each, in each epoch; once, where all epochs have the same.
    samples: Vec<Vec<u64>>,
    /// Validation images of each.
    validation_rows: Vec<u64>,
    /// How often samples come, where not all come once.
    copies: Option<Copies>,
}

impl Inventory {
    /// Samples of each chunk in an epoch.
    fn of_epoch(&self, epoch: u32) -> &[u64] {
        self.samples.get(epoch as usize).or(self.samples.first()).map_or(&[], Vec::as_slice)
    }

    /// Samples of an epoch.
    fn count(&self, epoch: u32) -> u64 {
        self.of_epoch(epoch).iter().sum()
    }
}

/// Trains the head, or goes on from the newest checkpoint; `None` where there is no sample to train on.
///
/// # Errors
/// When a chunk, the disk or the device fails; [`PipelineError::Stopped`], after saving, when asked to.
pub(super) async fn run(job: TrainJob) -> Result<Option<TrainingReport>, PipelineError> {
    let (inventory, job) = tokio::task::spawn_blocking(move || inventory(&job).map(|found| (found, job))).await??;
    let settings = &job.settings;
    let all_samples: u64 = (0..settings.epochs).map(|epoch| inventory.count(epoch)).sum();
    if all_samples == 0 {
        return Ok(None);
    }
    let effective = u64::from(settings.batch_size()) * u64::from(settings.accumulation);
    let total_steps = (0..settings.epochs).map(|epoch| inventory.count(epoch).div_ceil(effective)).sum();
    let kind = match settings.schedule {
        Kind::Linear => ScheduleKind::Linear,
        Kind::Cosine => ScheduleKind::Cosine,
        Kind::Constant => ScheduleKind::Constant,
    };
    let trials = settings.trials();
    let store = Arc::new(feature_store(&job, &inventory, trials.len()));
    let windows = order::plan_epoch(inventory.of_epoch(0), job.seed, 0, settings.shuffle_rows);
    let (mixed, chunk_samples) = (Arc::clone(&store), inventory.of_epoch(0).to_vec());
    let mixing = tokio::task::spawn_blocking(move || mixed.mixing(&windows, &chunk_samples)).await??;
    let mixing = MixingReport { moved: mixing.mean_displacement(), correlation: mixing.label_autocorrelation() };
    tracing::info!(moved = mixing.moved, correlation = mixing.correlation, "the order of training");
    let schedule = |trial: &Trial| Schedule::with_ratio(kind, trial.learning_rate, settings.warmup_ratio, total_steps);
    let schedules = trials.iter().map(schedule).collect();
    if job.text.is_none() {
        // Weights, momentum and what a step leaves to the next.
        let weights = (job.classes * (job.shape.dim + 1)) as u64;
        let mib = (weights * 4 * (2 * trials.len() as u64 + 1)) >> 20;
        tracing::info!(heads = trials.len(), classes = job.classes, "heads, momentum and gradient take {mib} MiB");
    }
    let (starts, progress) = start(&job, &trials, &store).await?;
    let curve = checkpoints::read_curve(&job.directory, progress.step)?;
    job.stage_progress.set_total(all_samples);
    job.stage_progress
        .add_resumed((0..progress.epoch).map(|epoch| inventory.count(epoch)).sum::<u64>() + progress.position);
    let clock = job.stage_progress.part(StageTimer::serial(DEVICE).starved_by("the features").blocked_by(THE_RUN));
    job.events.started(&job.stage_progress);
    let step = progress.step;
    job.device
        .call(move |worker| match starts {
            Starts::Classes(starts) => worker.load_trainers(starts, step),
            Starts::Text(starts) => worker.load_text_trainers(starts, step),
        })
        .await?;
    let held_out = match job.text.clone() {
        None => None,
        Some(goal) => {
            let (store, rows, seed) = (Arc::clone(&store), inventory.validation_rows.clone(), job.seed);
            let read = move || HeldOut::read(&store, |captions| goal.store.centred(captions), &rows, seed);
            Some(Arc::new(tokio::task::spawn_blocking(read).await??))
        }
    };
    if store.stay() == FeaturePlacement::Device {
        send(&job, &store).await?;
    }
    let mut session = Session {
        job: &job,
        inventory: &inventory,
        store,
        clock,
        trials,
        schedules,
        effective,
        progress,
        curve,
        held_out,
        saved: Instant::now(),
        save_took: Duration::ZERO,
    };
    session.train().await?;
    session.tidy()?;
    job.device.tell(DeviceWorker::unload_trainers).await?;
    job.events.finished(&job.stage_progress);
    let samples = inventory.count(0);
    Ok(Some(session.report(samples, mixing)))
}

/// Where the heads of a sweep start.
enum Starts {
    Classes(Vec<Start>),
    Text(Vec<TextStart>),
}

/// The newest checkpoint of this generation, or new heads.
async fn start(
    job: &TrainJob,
    trials: &[Trial],
    store: &Arc<FeatureStore>,
) -> Result<(Starts, Progress), PipelineError> {
    let found = checkpoints::Found::list(&job.directory)?;
    let newest = found.newest(trials.len());
    // What a killed save or removal left goes, but for the best head so far; one that was saved behind that will be saved again.
    let curve = checkpoints::read_curve(&job.directory, newest.unwrap_or(0))?;
    let best = best(&curve.validations).map(|point| checkpoints::name(point.step, point.trial as usize));
    let newest_names = newest.map(|step| (0..trials.len()).map(move |trial| checkpoints::name(step, trial)));
    let kept: Vec<String> = newest_names.into_iter().flatten().chain(best).collect();
    job.directory
        .sweep(FOLDER, |name| kept.iter().any(|kept| kept.strip_prefix(FOLDER) == Some(&format!("/{name}"))))?;
    let Some(step) = newest else {
        let hashes = [("train".to_owned(), job.generation.clone())].into();
        let progress = Progress { seed: job.seed, hashes, ..Progress::default() };
        let Some(goal) = &job.text else {
            let state = || HeadState::init(job.classes, job.shape.dim, job.seed);
            let start = |trial| Start { state: state(), sgd: sgd(job, trial), loss: (0.0, 0) };
            return Ok((Starts::Classes(trials.iter().map(start).collect()), progress));
        };
        let store = Arc::clone(store);
        let features = tokio::task::spawn_blocking(move || text_training::statistics(&store)).await??;
        return Ok((Starts::Text(text_training::new(job, goal, trials, &features)), progress));
    };
    let (mut classes, mut texts, mut first) = (Vec::new(), Vec::new(), None);
    for (number, trial) in trials.iter().enumerate() {
        let copy = checkpoints::fetch(&job.directory, (step, number), &checkpoint::FILES)?;
        let progress = if job.text.is_some() {
            text_training::resumed(job, trial, &copy)?.map(|(start, progress)| {
                texts.push(start);
                progress
            })
        } else {
            resumed(job, trial, &copy)?.map(|(start, progress)| {
                classes.push(start);
                progress
            })
        };
        let Some(progress) = progress else {
            return Err(PipelineError::Generation(format!(
                "`{}` was made from other features or settings; recompute with --from train",
                job.directory.display(&checkpoints::name(step, number))
            )));
        };
        first = first.or(Some(progress));
    }
    let progress = first.unwrap_or_default();
    tracing::info!(step, epoch = progress.epoch + 1, position = progress.position, "training resumes");
    Ok((if job.text.is_some() { Starts::Text(texts) } else { Starts::Classes(classes) }, progress))
}

fn sgd(job: &TrainJob, trial: &Trial) -> Sgd {
    let (clip_norm, label_smoothing) = (job.settings.clip_norm, job.settings.label_smoothing);
    Sgd { momentum: trial.momentum, weight_decay: trial.weight_decay, clip_norm, label_smoothing }
}

/// A trial's head of classes at a step, if it is of this generation.
fn resumed(job: &TrainJob, trial: &Trial, copy: &Path) -> Result<Option<(Start, Progress)>, PipelineError> {
    let (state, progress) = checkpoint::load(copy).map_err(damaged)?;
    let same = progress.hashes.get("train") == Some(&job.generation);
    let fits = same && (state.classes, state.dim) == (job.classes, job.shape.dim);
    let loss = (progress.loss_sum, progress.loss_count);
    Ok(fits.then(|| (Start { state, sgd: sgd(job, trial), loss }, progress)))
}

/// Where the features stay, by what they and the machine have.
fn feature_store(job: &TrainJob, inventory: &Inventory, trials: usize) -> FeatureStore {
    let rows = device_rows(job);
    let labels = job.journal.entries().values().map(|entry| entry.labels).sum::<u64>() * views(job);
    let FeatureShape { dim, precision } = job.shape;
    let bytes = resident_bytes(rows, labels, dim, precision);
    // Weights, momentum, gradient and what is cast of them; some room for logits and for what tuning tries. A map is small.
    let heads = if job.text.is_some() { 0 } else { 20 * (job.classes * (dim + 1) * trials) as u64 };
    let on_device = job.device.free_bytes.is_some_and(|free| bytes + heads + DEVICE_RESERVE_BYTES <= free)
        && rows.saturating_mul(dim as u64) <= DEVICE_VALUES;
    let mib = |bytes: u64| bytes >> 20;
    let stay = if on_device {
        tracing::info!("features stay on the device: {} MiB", mib(bytes));
        FeaturePlacement::Device
    } else if bytes <= job.memory_bytes / 2 {
        tracing::info!("features stay in memory: {} MiB", mib(bytes));
        FeaturePlacement::Memory
    } else {
        let limit = mib(job.memory_bytes);
        tracing::info!(
            "features are read for each epoch: {} MiB are over half of `limits.memory`, {limit} MiB",
            mib(bytes)
        );
        FeaturePlacement::Files
    };
    let RawTrain { validation_fraction: fraction, targets, .. } = job.settings;
    let (contrast, copies) = (job.text.is_some(), inventory.copies.clone());
    let wanted = SampleSpec { seed: job.seed, fraction, dim, targets, contrast, copies };
    FeatureStore::new(job.directory.clone(), inventory.chunks.clone(), wanted, stay)
}

/// Views of an image, at most.
fn views(job: &TrainJob) -> u64 {
    u64::from(job.settings.views.max(1))
}

/// Rows of features, at most: all views of all images.
fn device_rows(job: &TrainJob) -> u64 {
    job.journal.entries().values().map(|entry| entry.tally.kept).sum::<u64>() * views(job)
}

/// Sends all features to the device, chunk by chunk.
async fn send(job: &TrainJob, store: &Arc<FeatureStore>) -> Result<(), PipelineError> {
    let (rows, FeatureShape { dim, precision }) = (device_rows(job) as usize, job.shape);
    job.device.tell(move |worker| worker.keep(rows, dim, precision)).await?;
    let mut first = 0;
    for index in 0..store.len() {
        let reading = Arc::clone(store);
        for chunk in tokio::task::spawn_blocking(move || reading.chunks(&[index])).await?? {
            let values = chunk.features();
            let count = values.len() / dim.max(1);
            job.device.call(move |worker| worker.put(first, &values)).await?;
            store.sent(index, &chunk, first as u32);
            first += count;
        }
    }
    Ok(())
}

fn inventory(job: &TrainJob) -> Result<Inventory, PipelineError> {
    let mut found = Inventory { chunks: Vec::new(), samples: Vec::new(), validation_rows: Vec::new(), copies: None };
    let balanced = job.text.as_ref().filter(|_| job.settings.balance == Balance::Language);
    let (mut counts, mut languages) = (Vec::new(), Vec::new());
    let layout = job.journal.layout();
    let kept = job.journal.entries().iter().filter(|(_, entry)| entry.tally.kept > 0);
    let names: Vec<String> = kept.map(|(id, _)| layout.chunk(*id)).collect();
    for names in names.chunks(FETCHED_AT_ONCE) {
        for (name, copy) in names.iter().zip(job.directory.fetch_all(names)?) {
            job.journal.verify(name, &copy)?;
            let heads = read_heads(&copy)?;
            let (mut samples, mut validation, mut of_samples) = (0, 0, Vec::new());
            // The views of an image are one image.
            for row in (0..heads.len()).filter(|row| heads.view(*row) <= 1) {
                if is_validation(heads.url(row), job.seed, job.settings.validation_fraction) {
                    validation += 1;
                } else {
                    samples += samples_of(job.settings.targets, heads.labels(row)) as u64;
                    if let Some(goal) = balanced {
                        let place = |class: &u32| Copies::language(&goal.languages, *class) as u16;
                        of_samples.extend(heads.labels(row).iter().map(place));
                    }
                }
            }
            found.chunks.push(name.clone());
            counts.push(samples);
            languages.push(of_samples);
            found.validation_rows.push(validation);
        }
    }
    let Some(goal) = balanced else {
        found.samples = vec![counts];
        return Ok(found);
    };
    let mut pairs = vec![0; goal.languages.names().len() + 1];
    languages.iter().flatten().for_each(|language| pairs[usize::from(*language)] += 1);
    let copies = Copies::balanced(job.seed, Arc::clone(&goal.languages), &pairs);
    let in_epoch = |epoch: u32| {
        let of_chunk = |(chunk, languages): (usize, &Vec<u16>)| {
            let times = |(sample, language): (usize, &u16)| {
                copies.of_language(chunk, sample, usize::from(*language), epoch) as u64
            };
            languages.iter().enumerate().map(times).sum()
        };
        languages.iter().enumerate().map(of_chunk).collect()
    };
    found.samples = (0..job.settings.epochs).map(in_epoch).collect();
    found.copies = Some(copies);
    Ok(found)
}

struct Session<'a> {
    job: &'a TrainJob,
    inventory: &'a Inventory,
    store: Arc<FeatureStore>,
    clock: Arc<StageTimer>,
    trials: Vec<Trial>,
    /// The learning rate of each trial.
    schedules: Vec<Schedule>,
    effective: u64,
    progress: Progress,
    curve: Curve,
    /// What a map is validated on.
    held_out: Option<Arc<HeldOut>>,
    saved: Instant,
    /// How long the last save took.
    save_took: Duration,
}

impl Session<'_> {
    async fn train(&mut self) -> Result<(), PipelineError> {
        while self.progress.epoch < self.job.settings.epochs {
            let window = self.job.settings.shuffle_rows;
            let windows = order::plan_epoch(
                self.inventory.of_epoch(self.progress.epoch),
                self.job.seed,
                self.progress.epoch,
                window,
            );
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
        let mut skip = offset as usize;
        // Samples that were read and not trained on yet: less than a step, and the window at hand.
        let (mut features, mut targets) = (Rows::Kept(Vec::new()), Targets::default());
        let mut next = Some(self.load(&windows[first]));
        for index in first..windows.len() {
            let Some(loading) = next.take() else { break };
            let loaded = self.clock.wait(Activity::Starved, loading).await??;
            // The next window is read while this one is trained on.
            next = windows.get(index + 1).map(|window| self.load(window));
            features.append_from(&loaded.rows, skip);
            targets.append_from(&loaded.targets, skip);
            drop(loaded);
            skip = 0;
            let mut done = 0;
            while done < targets.rows() {
                let left = epoch_samples - self.progress.position;
                let step = self.effective.min(left) as usize;
                if targets.rows() - done < step {
                    break;
                }
                let end = done + step;
                self.step(features.part(done..end), targets.slice(done..end)).await?;
                done = end;
            }
            features.drop_first(done);
            targets.drop_first(done);
        }
        Ok(())
    }

    /// Reads a window's samples, on a thread of its own.
    fn load(&self, window: &Window) -> tokio::task::JoinHandle<Result<Loaded, PipelineError>> {
        let (window, store, epoch) = (window.clone(), Arc::clone(&self.store), self.progress.epoch);
        tokio::task::spawn_blocking(move || store.window(&window, epoch))
    }

    async fn step(&mut self, features: Rows, targets: Targets) -> Result<(), PipelineError> {
        let batch = self.job.settings.batch_size() as usize;
        let samples = targets.rows();
        let rates: Vec<f64> = self.schedules.iter().map(|schedule| schedule.rate(self.progress.step)).collect();
        let log = (self.progress.step + 1).is_multiple_of(u64::from(self.job.settings.log_every));
        let losses = if let Some(goal) = &self.job.text {
            let store = Arc::clone(&goal.store);
            let parts = tokio::task::spawn_blocking(move || text_training::parts(&store, &targets, batch)).await??;
            self.job.device.call(move |worker| worker.train_text(&features, &parts, &rates, log)).await?
        } else {
            self.job.device.call(move |worker| worker.train(&features, &targets, batch, &rates, log)).await?
        };
        self.progress.step += 1;
        self.progress.position += samples as u64;
        self.job.stage_progress.add(samples as u64);
        self.note_losses(&losses.unwrap_or_default());
        if let Some(signal) = self.job.stop.signal() {
            self.save().await?;
            return Err(PipelineError::Stopped(signal));
        }
        // The end of an epoch saves by itself, and never over a checkpoint of the same step.
        let ends_epoch = self.progress.position >= self.inventory.count(self.progress.epoch);
        // A large head on a slow disk is saved less often, so that saving takes no more than a share of the time.
        let pause = self.job.settings.checkpoint_every.0.max(self.save_took * SAVE_SHARE);
        if self.saved.elapsed() >= pause && !ends_epoch {
            self.save().await?;
        }
        Ok(())
    }

    /// Scores the validation images with each head as it is.
    async fn validate(&mut self) -> Result<(), PipelineError> {
        if self.inventory.validation_rows.iter().sum::<u64>() == 0 {
            return Ok(());
        }
        for trial in 0..self.trials.len() {
            let point = if let Some(held_out) = &self.held_out {
                let scale = self.job.device.call(move |worker| worker.project_with_trainer(trial)).await?;
                let place = (self.progress.step, self.progress.epoch, trial as u32);
                let point = held_out.score(&self.job.device, scale, place).await?;
                self.job.device.tell(DeviceWorker::unload_projector).await?;
                point
            } else {
                self.job.device.call(move |worker| worker.score_with_trainer(trial)).await?;
                let point = self.validation_point(trial as u32).await?;
                self.job.device.tell(DeviceWorker::unload_scorer).await?;
                point
            };
            tracing::info!(
                epoch = point.epoch,
                step = point.step,
                trial,
                loss = point.loss,
                ndcg5 = point.ndcg5,
                "validated"
            );
            let ValidationPoint { step, epoch, loss, ndcg5, trial, .. } = point;
            self.job.events.note(&Event::Validated { step, epoch, trial, loss, ndcg5 });
            self.curve.validations.push(point);
        }
        self.progress.best = best(&self.curve.validations).map(|point| point.ndcg5);
        Ok(())
    }

    /// The figures of the head that the device scores with.
    async fn validation_point(&self, trial: u32) -> Result<ValidationPoint, PipelineError> {
        let (mut tally, mut loss_sum) = (metrics::Tally::default(), 0.0);
        let mut labels_per_image: Vec<u64> = Vec::new();
        for (index, rows) in self.inventory.validation_rows.iter().enumerate() {
            if *rows == 0 {
                continue;
            }
            let store = Arc::clone(&self.store);
            let reading = tokio::task::spawn_blocking(move || store.chunks(&[index]));
            let (mut values, mut labels) = (Vec::new(), Vec::new());
            for chunk in self.clock.wait(Activity::Starved, reading).await?? {
                for row in chunk.validation.iter().copied() {
                    labels_per_image.push(chunk.classes(row).len() as u64);
                    for label in chunk.classes(row) {
                        chunk.feature(row, &mut values);
                        labels.push(*label);
                    }
                }
            }
            let asked = labels.clone();
            let scored = self.job.device.call(move |worker| worker.score(&values, &labels, 5)).await?;
            for (label, row) in asked.iter().zip(&scored) {
                tally.add(rank_of(*label, &row.top.classes));
                loss_sum += row.loss;
            }
        }
        Ok(ValidationPoint {
            step: self.progress.step,
            epoch: self.progress.epoch,
            loss: loss_sum / tally.ids().max(1) as f64,
            ndcg5: tally.ndcg5(),
            ndcg5_ceiling: metrics::ceiling(labels_per_image),
            recall1: tally.recall1(),
            recall5: tally.recall5(),
            trial,
        })
    }

    /// Writes a checkpoint and removes those that are neither the newest nor the best.
    async fn save(&mut self) -> Result<(), PipelineError> {
        let started = Instant::now();
        let content = self.curve.write().map_err(|error| PipelineError::Internal(error.to_string()))?;
        self.job.directory.write(CURVE, &content)?;
        let step = self.progress.step;
        // The first of a sweep last: all of them are there when it is.
        for trial in (0..self.trials.len()).rev() {
            let (name, progress) = (checkpoints::name(step, trial), self.progress.clone());
            let path = self.job.directory.temporary(&name)?;
            let saving = self.job.device.call(move |worker| worker.save(trial, &path, progress));
            self.clock.wait(Activity::Blocked, saving).await?.map_err(checkpoint_error)?;
            let directory = self.job.directory.clone();
            let publishing = tokio::task::spawn_blocking(move || directory.publish_folder(&name));
            self.clock.wait(Activity::Blocked, publishing).await??;
        }
        self.tidy()?;
        (self.saved, self.save_took) = (Instant::now(), started.elapsed());
        let (epoch, seconds) = (self.progress.epoch, self.save_took.as_secs_f64());
        self.job.events.note(&Event::CheckpointSaved { step, epoch, seconds });
        Ok(())
    }

    /// Keeps the newest checkpoints and the best one alone, and the picture of the curve up to date.
    fn tidy(&self) -> Result<(), PipelineError> {
        let best = best(&self.curve.validations).map(|point| (point.step, point.trial as usize));
        let found = checkpoints::Found::list(&self.job.directory)?;
        for old in found.steps().into_iter().filter(|step| *step != self.progress.step) {
            for trial in (0..self.trials.len()).filter(|trial| found.has(old, *trial) && Some((old, *trial)) != best) {
                self.job.directory.remove(&checkpoints::name(old, trial))?;
            }
        }
        self.draw()
    }

    /// Notes the losses since the last points at the end of an epoch, so that short runs have a curve too.
    async fn note_loss(&mut self) -> Result<(), PipelineError> {
        let losses = self.job.device.call(DeviceWorker::take_losses).await?;
        self.note_losses(&losses);
        Ok(())
    }

    fn note_losses(&mut self, losses: &[Losses]) {
        let step = self.progress.step;
        for (trial, ((sum, count), schedule)) in losses.iter().zip(&self.schedules).enumerate() {
            if *count > 0 {
                let (loss, learning_rate) = (sum / *count as f64, schedule.rate(step.saturating_sub(1)));
                self.curve.losses.push(LossPoint { step, loss, learning_rate, trial: trial as u32 });
                tracing::debug!(step, trial, loss, learning_rate, "trained");
            }
        }
    }

    fn draw(&self) -> Result<(), PipelineError> {
        let series = |(number, trial): (usize, &Trial)| {
            let own = |trial: u32| trial as usize == number;
            let losses = self.curve.losses.iter().filter(|point| own(point.trial)).map(|point| plot::CurvePoint {
                step: point.step,
                train_loss: Some(point.loss),
                ..plot::CurvePoint::default()
            });
            let validations =
                self.curve.validations.iter().filter(|point| own(point.trial)).map(|point| plot::CurvePoint {
                    step: point.step,
                    val_loss: Some(point.loss),
                    val_ndcg5: Some(point.ndcg5),
                    ..plot::CurvePoint::default()
                });
            let mut points: Vec<_> = losses.chain(validations).collect();
            points.sort_by_key(|point| point.step);
            let Trial { learning_rate, momentum, weight_decay } = trial;
            plot::Series { name: format!("{number}: lr {learning_rate}, m {momentum}, wd {weight_decay}"), points }
        };
        let series: Vec<plot::Series> = self.trials.iter().enumerate().map(series).collect();
        plot::write_training_curves(&self.job.directory.temporary(PICTURE)?, &series).map_err(model_error)?;
        self.job.directory.publish(PICTURE)?;
        Ok(())
    }

    /// What the run tells of its training.
    fn report(self, samples: u64, mixing: MixingReport) -> TrainingReport {
        let Curve { losses, validations } = self.curve;
        let winner = best(&validations).map_or(0, |point| point.trial);
        let of_trial = |trial: u32| {
            let own: Vec<ValidationPoint> = validations.iter().filter(|point| point.trial == trial).copied().collect();
            let loss = losses.iter().rev().find(|point| point.trial == trial).map(|point| point.loss);
            (loss, own.last().copied(), best(&own).copied())
        };
        let trial_report = |(number, settings): (usize, &Trial)| {
            let (loss, validation, best) = of_trial(number as u32);
            TrialReport { settings: *settings, loss, validation, best, wins: number as u32 == winner }
        };
        let trials = match self.trials.as_slice() {
            [_] => Vec::new(),
            several => several.iter().enumerate().map(trial_report).collect(),
        };
        let (loss, validation, best) = of_trial(winner);
        TrainingReport {
            steps: self.progress.step,
            samples,
            validation_images: self.inventory.validation_rows.iter().sum(),
            mixing,
            loss,
            validation,
            best,
            trials,
            curve: losses,
            validations,
        }
    }
}

/// A full disk is the store's business, not the model's.
fn checkpoint_error(error: checkpoint::CheckpointError) -> PipelineError {
    match error {
        checkpoint::CheckpointError::Io { path, source, .. } => StoreError::io(path, "written", source).into(),
        other => model_error(other),
    }
}
