//! Stage `train`: feature chunks → trained heads, with checkpoints that resume exactly.
//!
//! One pass over the features trains all heads of a sweep. Seed, epoch and chunk sizes determine the order of samples.
//! Module `head` has one implementation for each kind of head; loop, checkpoints and curve are shared.

mod balance;
pub(crate) mod checkpoints;
pub(crate) mod chunk;
mod closed_form;
mod curve;
pub(crate) mod ensemble;
pub(crate) mod feature_store;
mod head;
pub(crate) mod held_out;
mod inventory;
mod limits;
mod members;
mod session;
mod tensorboard;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::chunk::features::READ_BYTES;
use crate::config::{HeadConfig, TrainConfig, Trial};
use crate::pipeline::captions::{self, VectorStore};
use crate::pipeline::catalog::{Catalog, StoredClasses};
use crate::pipeline::chunk_files::FeatureSet;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{DeviceWorker, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::finished::FinishedStage;
use crate::pipeline::observe::report::{CatalogReport, MixingReport, StageRemarks, TrainingReport};
use crate::pipeline::resolve::{FeatureShape, ResolvedModel, starts_paired};
use crate::predict::metrics;
use crate::telemetry::{Party, StageProgress, StageTimer};
use crate::train::text::MemberSpec;
use crate::train::{Progress, Schedule, checkpoint, order};
use crate::types::{Balance, HeadMethod, ValidationSplit};

use checkpoints::{CheckpointList, Selection};
use chunk::SampleSpec;
use feature_store::{ChunkSet, FeaturePlacement, FeatureStore, resident_bytes};
use head::{ClassifierHead, Head, ProjectionHead};
use inventory::{Inventory, InventorySpec};
use limits::{choose_placement, require_window_memory};
pub(crate) use limits::{head_size, remote_disk_problem, window_problem};
use session::Session;
use tensorboard::EventFiles;

/// Plot of the training curve.
const PLOT_FILE: &str = "training.svg";
/// Files of a finished training beside its checkpoints.
const FINISHED_FILES: [&str; 2] = [checkpoints::CURVE_FILE, PLOT_FILE];

/// Input of the stage.
pub(crate) struct TrainInput<'a> {
    /// Committed feature chunks of the training images.
    pub(crate) features: FeatureSet,
    /// Hash of everything that the heads depend on.
    pub(crate) generation: String,
    pub(crate) catalog: &'a Catalog,
    pub(crate) model: &'a ResolvedModel,
    pub(crate) device: &'a Arc<DeviceWorker>,
}

/// Result of the stage.
#[derive(Default)]
pub(crate) struct TrainOutput {
    /// `None` if there is no sample to train on.
    pub(crate) report: Option<TrainingReport>,
    pub(crate) remarks: StageRemarks,
}

/// A training run with any kind of head.
struct TrainJob {
    ctx: RunContext,
    features: Arc<FeatureSet>,
    settings: TrainConfig,
    /// The heads, one for each of the trials.
    members: Vec<MemberSpec>,
    /// Split that holds out images from training. Its seed is the run's seed.
    split: ValidationSplit,
    shape: FeatureShape,
    generation: String,
    device: Arc<DeviceWorker>,
    stage_progress: Arc<StageProgress>,
}

impl TrainJob {
    /// Returns whether a checkpoint was made from the same features and settings.
    fn is_checkpoint_of(&self, progress: &Progress) -> bool {
        progress.hashes.get("train") == Some(&self.generation)
    }

    /// Returns how the best checkpoint is found.
    fn selection(&self) -> Selection {
        Selection::new(self.settings.ensemble.map(|_| self.members.len() as u32))
    }

    /// Returns the upper bound on the views of an image.
    fn views(&self) -> u64 {
        u64::from(self.settings.views.max(1))
    }

    /// Returns the upper bound on the rows of features: all views of all images.
    fn feature_rows(&self) -> u64 {
        self.features.entries().values().map(|entry| entry.tally.kept).sum::<u64>() * self.views()
    }
}

/// Trains the heads of the configuration, from the newest checkpoint if there is one.
///
/// # Errors
/// When a chunk, the disk or the device fails; [`PipelineError::Stopped`] after saving, if the run has to stop.
pub(crate) async fn run(ctx: &RunContext, input: TrainInput<'_>) -> Result<TrainOutput, PipelineError> {
    let TrainInput { features, generation, catalog, model, device } = input;
    let Some(mut settings) = ctx.config.train().cloned() else { return Ok(TrainOutput::default()) };
    resolve_method(&mut settings, &features);
    let members = members::list(&ctx.config, &settings, model)?;
    settings.trials.truncate(members.len());
    let split = ctx.config.validation_split();
    let shape = model.shape()?;
    let finished = FinishedStage::new(&ctx.dir, "train", [generation.as_str()]);
    let known = tokio::task::block_in_place(|| read_finished(ctx, &finished, settings.trials.len()))?;
    let closed_form = settings.method != HeadMethod::Sgd;
    let job = || TrainJob {
        ctx: ctx.clone(),
        features: Arc::new(features),
        settings,
        members,
        split,
        shape,
        generation,
        device: Arc::clone(device),
        stage_progress: ctx.progress.stage("train", "samples", 0),
    };
    let is_known = known.is_some();
    let report = match ctx.config.head() {
        _ if is_known => known,
        HeadConfig::Classes if closed_form => {
            closed_form::train(job(), closed_form::Captions::Classes(catalog.classes)).await?
        }
        HeadConfig::Classes => train(job(), ClassifierHead { classes: catalog.classes }).await?,
        // The configuration has no training with a paired head.
        HeadConfig::Paired { .. } => None,
        HeadConfig::Text { hidden, .. } => {
            let encoder = model.text_encoder()?;
            let pairing = if starts_paired(&ctx.config) && shape.dim == encoder.checkpoint.dim() {
                model.backbone()?.checkpoint.pairing().map_err(model_error)?
            } else {
                None
            };
            let classes = StoredClasses::open(&ctx.dir)?;
            let set = captions::embed_classes(ctx, encoder, device, "captions", classes.clone()).await?;
            let languages = Arc::new(tokio::task::spawn_blocking(move || classes.read_languages()).await??);
            let vectors = Arc::new(VectorStore::open(ctx, set).await?);
            if closed_form {
                closed_form::train(job(), closed_form::Captions::Vectors { vectors, languages }).await?
            } else {
                let (hidden, log_scale) = (*hidden as usize, pairing.map(|pairing| pairing.log_scale));
                train(job(), ProjectionHead { vectors, languages, hidden, log_scale }).await?
            }
        }
    };
    if let (Some(report), false) = (&report, is_known) {
        let ensemble = report.ensemble.as_ref().map(|_| ensemble::file_name());
        let files: Vec<&str> = FINISHED_FILES.into_iter().chain(ensemble.as_deref()).collect();
        tokio::task::block_in_place(|| finished.write(report, &files))?;
    }
    let mut remarks = StageRemarks::default();
    if let Some(report) = &report {
        if let Some(note) = explain_zero_score(report, &catalog.report, ctx.config.head()) {
            remarks.add_note(note);
        }
        remarks.add_output("checkpoints", checkpoints::FOLDER);
        if report.closed_form.is_none() {
            remarks.add_output("training curve", PLOT_FILE);
        }
    } else {
        remarks.add_note("no head was trained: no image with a label is left to train on");
    }
    Ok(TrainOutput { report, remarks })
}

/// Replaces the method `auto` by the one for the number of images, those held out included.
fn resolve_method(settings: &mut TrainConfig, features: &FeatureSet) {
    if settings.method == HeadMethod::Auto {
        let images = features.entries().values().map(|entry| entry.tally.kept).sum();
        settings.method = members::resolve_method(settings.method, images);
        tracing::info!(images, method = %settings.method, "method of the head, chosen by the number of images");
    }
}

/// Returns the report of a training that an earlier process finished, if its newest checkpoint is still there.
fn read_finished(
    ctx: &RunContext,
    finished: &FinishedStage,
    trials: usize,
) -> Result<Option<TrainingReport>, PipelineError> {
    let Some(report) = finished.read::<TrainingReport>()? else { return Ok(None) };
    let newest = CheckpointList::read(&ctx.dir)?.newest_complete(trials);
    Ok((newest == Some(report.steps)).then_some(report))
}

/// Explains a head that learned the training images and nothing else: its loss falls, but it ranks no right caption of a
/// held-out image. Returns `None` for other heads.
fn explain_zero_score(report: &TrainingReport, catalog: &CatalogReport, head: &HeadConfig) -> Option<String> {
    let single = catalog.images_per_class.iter().find(|(images, _)| images == "1").map_or(0, |(_, classes)| *classes);
    // With one image a class, a score near chance is luck.
    let is_sparse = !head.is_text() && 10 * single >= 9 * catalog.classes_with_images;
    let nothing = if is_sparse { 3.0 * metrics::chance(catalog.classes) } else { 0.0 };
    let best = report.best.as_ref().filter(|best| best.ndcg5 <= nothing && best.ndcg5_ceiling > nothing)?;
    let (first, last) = (report.curve.first()?.loss, report.loss?);
    let score = format!("{:.3}", best.ndcg5);
    if last >= first {
        return Some(format!(
            "the head learned nothing: validation NDCG@5 is {score}, and the training loss did not fall ({first:.3} to {last:.3}): raise \
             `train.learning_rate` or `train.epochs`"
        ));
    }
    let mut note = format!(
        "the head learned nothing that holds for other images: validation NDCG@5 is at most {score} on {} images in {} epochs, while the \
         training loss fell from {first:.3} to {last:.3}",
        report.validation_images,
        best.epoch.max(report.validations.last().map_or(0, |point| point.epoch))
    );
    if head.is_text() {
        note.push_str(": check that the captions of the pairs belong to their images, or train on more of them");
        return Some(note);
    }
    note.push_str(&format!(
        "; {single} of {} classes with images have a single one, and a class head cannot rank a class that no training image \
         has: use `[head] kind = \"text\"`, which ranks captions that were never seen",
        catalog.classes_with_images
    ));
    Some(note)
}

/// Trains heads of one kind; `None` if there is no sample to train on.
async fn train<H: Head>(job: TrainJob, head: H) -> Result<Option<TrainingReport>, PipelineError> {
    let spec = InventorySpec {
        split: job.split,
        targets: job.settings.targets,
        dim: job.shape.dim,
        epochs: job.settings.epochs,
        balanced: head.languages().filter(|_| job.settings.balance == Balance::Language).cloned(),
    };
    let (features, mut held_out) = (Arc::clone(&job.features), head.collect_held_out(&job));
    // Reading a chunk, and the held-out rows so far.
    let (budget, bytes) =
        (job.ctx.budget.clone(), READ_BYTES + job.ctx.config.limits().memory.0 / head::HELD_OUT_SHARE);
    let read = move || {
        let _permit = budget.acquire_blocking(bytes.min(budget.limit_bytes() - budget.in_flight_bytes()));
        Ok::<_, PipelineError>((Inventory::read(&features, &spec, &mut held_out)?, held_out))
    };
    let (inventory, held_out) = tokio::task::spawn_blocking(read).await??;
    let (inventory, settings, dim) = (Arc::new(inventory), &job.settings, job.shape.dim);
    let epoch_samples: Vec<u64> = (0..settings.epochs).map(|epoch| inventory.epoch_samples(epoch)).collect();
    let all_samples = epoch_samples.iter().sum();
    if all_samples == 0 {
        return Ok(None);
    }
    let step_samples = u64::from(settings.batch_size) * u64::from(settings.accumulation);
    let total_steps = epoch_samples.iter().map(|samples| samples.div_ceil(step_samples)).sum();
    let trials = settings.trials.clone();
    let schedule = |trial: &Trial| {
        Schedule::with_ratio(settings.schedule, trial.learning_rate, settings.warmup_ratio, total_steps)
    };
    let schedules = trials.iter().map(schedule).collect();
    let head_bytes = head.bytes(&job);
    let placement = choose_placement(&job, head_bytes);
    let spec = SampleSpec {
        split: job.split,
        dim,
        targets: settings.targets,
        contrastive: H::CONTRASTIVE,
        balance: inventory.balance.clone(),
    };
    let chunk_bytes = |(rows, labels): &(u64, u64)| resident_bytes(*rows, *labels, dim, job.shape.precision);
    let bytes = inventory.sizes.iter().map(chunk_bytes).collect();
    let chunks = ChunkSet { dir: job.ctx.dir.clone(), files: inventory.files.clone(), bytes };
    let budget = job.ctx.budget.clone();
    let store = tokio::task::spawn_blocking(move || FeatureStore::new(chunks, spec, placement, budget)).await?;
    let store = Arc::new(store);
    require_window_memory(&job, &store, &inventory, placement)?;
    let mixing = measure_mixing(&job, &store, &inventory).await?;
    if head_bytes > 0 {
        tracing::info!(heads = trials.len(), "weights, momentum, gradient and logits take {} MiB", head_bytes >> 20);
    }
    let (starts, progress) = start(&job, &head, &trials, &store).await?;
    let saved = CheckpointList::read(&job.ctx.dir)?;
    let curve = checkpoints::read_curve(&job.ctx.dir, &saved, progress.step)?;
    job.stage_progress.set_total(all_samples);
    job.stage_progress.add_resumed(epoch_samples.iter().take(progress.epoch as usize).sum::<u64>() + progress.position);
    let timer =
        job.stage_progress.part(StageTimer::device().starved_by(Party::Features).blocked_by(Party::RunDirectory));
    job.ctx.events.stage_started(&job.stage_progress);
    let trainers = head.load(&job, starts, progress.step, held_out).await?;
    if placement == FeaturePlacement::Device {
        let (rows, precision) = (job.feature_rows() as usize, job.shape.precision);
        let for_classifier = matches!(job.ctx.config.head(), HeadConfig::Classes);
        store.upload(job.device.allocate_features(rows, dim, precision, for_classifier).await?).await?;
    }
    let is_ensemble = job.settings.ensemble.is_some();
    let event_files = EventFiles::create(&job.ctx, &job.settings.tensorboard, (trials.len(), is_ensemble), &curve)?;
    let mut session = Session {
        job: &job,
        trainers,
        inventory,
        store,
        timer,
        trials,
        schedules,
        step_samples,
        progress,
        curve,
        saved: Instant::now(),
        save_took: Duration::ZERO,
        event_files,
    };
    session.train().await?;
    session.tidy()?;
    let report = session.finish(mixing).await?;
    job.ctx.events.stage_finished(&job.stage_progress);
    Ok(Some(report))
}

async fn measure_mixing(
    job: &TrainJob,
    store: &Arc<FeatureStore>,
    inventory: &Arc<Inventory>,
) -> Result<MixingReport, PipelineError> {
    let windows = order::plan_epoch(inventory.chunk_samples(0), job.split.seed, 0, job.settings.shuffle_rows);
    let (store, inventory) = (Arc::clone(store), Arc::clone(inventory));
    let measure = move || store.measure_mixing(&windows, inventory.chunk_samples(0));
    let mixing = tokio::task::spawn_blocking(measure).await??;
    let mixing = MixingReport { moved: mixing.mean_displacement(), correlation: mixing.label_autocorrelation() };
    tracing::info!(
        "shuffle: mean displacement {:.3} (ideal 0.333), label autocorrelation {:.3} (ideal 0)",
        mixing.moved,
        mixing.correlation
    );
    Ok(mixing)
}

/// Loads the newest checkpoint of each trial, or initialises new heads.
async fn start<H: Head>(
    job: &TrainJob,
    head: &H,
    trials: &[Trial],
    store: &Arc<FeatureStore>,
) -> Result<(Vec<H::Start>, Progress), PipelineError> {
    let dir = &job.ctx.dir;
    let saved = CheckpointList::read(dir)?;
    let newest = saved.newest_complete(trials.len());
    let curve = checkpoints::read_curve(dir, &saved, newest.unwrap_or(0))?;
    let Some(step) = newest else {
        dir.sweep(checkpoints::FOLDER, |_| false)?;
        let hashes = [("train".to_owned(), job.generation.clone())].into();
        let progress = Progress { seed: job.split.seed, hashes, ..Progress::default() };
        return Ok((head.init(job, trials, store).await?, progress));
    };
    let (mut starts, mut first) = (Vec::with_capacity(trials.len()), None);
    for (number, of_head) in trials.iter().zip(&job.members).enumerate() {
        let copy = checkpoints::fetch(dir, (step, number), &checkpoint::FILES)?;
        let Some((start, progress)) = head.resume(job, of_head, &copy)? else {
            return Err(PipelineError::Generation(format!(
                "`{}` was made from other features or settings; recompute with --from train",
                dir.display(&checkpoints::folder_name(step, number))
            )));
        };
        starts.push(start);
        first = first.or(Some(progress));
    }
    let progress = first.unwrap_or_default();
    let selection = job.selection();
    checkpoints::require_best(dir, selection, &curve, progress.best)?;
    // Removes the remains of an interrupted save or removal, but not the best heads so far. A head saved after `newest`
    // will be saved again.
    let best = selection.best_heads(&curve.validations);
    let newest = (0..trials.len()).map(|trial| (step, trial));
    let kept: Vec<String> = newest.chain(best).map(|(step, trial)| checkpoints::folder_name(step, trial)).collect();
    dir.sweep(checkpoints::FOLDER, |name| kept.contains(&format!("{}/{name}", checkpoints::FOLDER)))?;
    tracing::info!(step, epoch = progress.epoch + 1, position = progress.position, "training resumes");
    Ok((starts, progress))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::observe::report::{LossPoint, ValidationPoint};

    #[test]
    fn zero_score_is_explained_by_loss_and_classes() {
        let point = ValidationPoint { epoch: 3, ndcg5_ceiling: 1.0, ..ValidationPoint::default() };
        let report = |ndcg5: f64, loss: f64| TrainingReport {
            validation_images: 7,
            loss: Some(loss),
            best: Some(ValidationPoint { ndcg5, ..point }),
            curve: vec![LossPoint { loss: 4.0, ..LossPoint::default() }],
            validations: vec![point],
            ..TrainingReport::default()
        };
        let catalog = CatalogReport {
            classes_with_images: 9,
            images_per_class: vec![("0".to_owned(), 2), ("1".to_owned(), 8)],
            ..CatalogReport::default()
        };
        let note = |ndcg5, loss| explain_zero_score(&report(ndcg5, loss), &catalog, &HeadConfig::Classes);
        let overfitted = note(0.0, 1.0).unwrap();
        for part in
            ["at most 0.000 on 7 images in 3 epochs", "4.000 to 1.000", "8 of 9 classes", "[head] kind = \"text\""]
        {
            assert!(overfitted.contains(part), "{part} is not in {overfitted}");
        }
        assert!(note(0.0, 4.5).unwrap().contains("did not fall"));
        assert_eq!(note(0.1, 1.0), None);
    }
}
