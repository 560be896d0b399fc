//! Stage `features`: images → backbone → feature chunks, committed one by one; or published features → feature chunks.
//!
//! [`images`](mod@crate::pipeline::images) writes pixel chunks into a scratch spool. Three tasks of [`forward`] read them
//! batch by batch, run the backbone and write the features. A chunk leaves the spool once its features are committed.

mod forward;

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::chunk::journal::{Journal, Layout};
use crate::chunk::spool::{Spool, SpooledChunk};
use crate::config::bytes::chunk_disk_bytes;
use crate::model::caption::CaptionCheckpoint;
use crate::pipeline::chunk_files::{FeatureSet, settle_duplicates};
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{DeviceWorker, LoadedBackbone};
use crate::pipeline::error::PipelineError;
use crate::pipeline::images::{self, RowContent, Sink, StartPoint, StreamJob};
use crate::pipeline::observe::report::StreamReport;
use crate::pipeline::resolve::{Backbone, FeatureShape, ResolvedModel};
use crate::run_dir::LocalDirectory;
use crate::runtime::{channel, queue_length};
use crate::telemetry::{Party, StageProgress, StageTimer};
use crate::types::{Compression, Precision};

pub(crate) use forward::Thumbnails;

use forward::{BatchReader, DeviceFeeder, FeatureCommitter, ITEMS_WAITING};

/// Upper bound on the descriptions of complete chunks between decoder and model. The spool limits the chunks
/// themselves.
const CHUNKS_WAITING: usize = 4096;

/// Input of the stage.
pub(crate) struct FeaturesInput<'a> {
    /// The images.
    pub(crate) job: StreamJob,
    /// Location of the feature chunks in the run directory.
    pub(crate) layout: Layout,
    /// Name of the spool, and of the stage in progress reports.
    pub(crate) name: &'a str,
    /// Origin of the features.
    pub(crate) source: FeatureSource<'a>,
}

/// Origin of features.
pub(crate) enum FeatureSource<'a> {
    /// A model computes them from pixels.
    Backbone {
        /// The model.
        backbone: &'a Backbone,
        /// The device of the model.
        device: &'a Arc<DeviceWorker>,
        /// Thumbnails to store with the features.
        thumbnails: Option<Thumbnails>,
    },
    /// A captioning model writes captions of the pixels; a feature is the tokens of one.
    Captioner {
        /// Files of the model.
        checkpoint: &'a CaptionCheckpoint,
        /// The device of the model.
        device: &'a Arc<DeviceWorker>,
    },
    /// The rows of the job hold them.
    Published,
}

impl<'a> FeatureSource<'a> {
    /// Returns the origin of the features of a model. Published features have no thumbnails.
    ///
    /// # Errors
    /// An internal error if the model or its device is missing.
    pub(crate) fn of(
        model: &'a ResolvedModel,
        device: Option<&'a Arc<DeviceWorker>>,
        thumbnails: Option<Thumbnails>,
    ) -> Result<Self, PipelineError> {
        if let RowContent::Numbers(_) = model.content {
            return Ok(Self::Published);
        }
        let absent = || PipelineError::Internal("a model has no device".to_owned());
        Ok(Self::Backbone { backbone: model.backbone()?, device: device.ok_or_else(absent)?, thumbnails })
    }
}

/// Output of the stage.
pub(crate) struct FeaturesOutput {
    /// The committed feature chunks.
    pub(crate) features: FeatureSet,
    /// Counts of the rows.
    pub(crate) report: StreamReport,
}

/// Streams all shards to feature chunks, or resumes an earlier process, and finds the duplicates across shards.
///
/// # Errors
/// When an input, the disk or the device fails, or the counts do not add up; [`PipelineError::Stopped`] when the run
/// has to stop.
pub(crate) async fn run(ctx: &RunContext, input: FeaturesInput<'_>) -> Result<FeaturesOutput, PipelineError> {
    let generation = input.job.generation.clone();
    let (journal, mut report) = complete_part(ctx, input).await?;
    let settle = move || {
        settle_duplicates(&journal, &generation)?;
        FeatureSet::open(journal)
    };
    let features = tokio::task::spawn_blocking(settle).await??;
    report.duplicates = features.duplicates();
    Ok(FeaturesOutput { features, report })
}

/// Streams the shards of the job's part to feature chunks, or resumes an earlier process.
///
/// # Errors
/// When an input, the disk or the device fails, or the counts do not add up; [`PipelineError::Stopped`] when the run
/// has to stop.
pub(crate) async fn run_part(ctx: &RunContext, input: FeaturesInput<'_>) -> Result<StreamReport, PipelineError> {
    Ok(complete_part(ctx, input).await?.1)
}

/// Completes the shards of a part. If they are complete, loads no model and reads no chunk.
async fn complete_part(ctx: &RunContext, input: FeaturesInput<'_>) -> Result<(Journal, StreamReport), PipelineError> {
    let (shards, content) = (Arc::clone(&input.job.shards), input.job.content.clone());
    let mut journal = Journal::open(ctx.dir.clone(), input.layout.clone(), &input.job.generation, input.job.part)?;
    let rows = Arc::clone(&input.job.stage_progress);
    let images = ctx.progress.stage(format!("features ({})", input.name), "images", 0);
    let tally = journal.tally();
    rows.add_resumed(tally.rows);
    images.add_resumed(tally.kept);
    images::show_committed(&input.job, &journal);
    if journal.pending(shards.len() as u32).is_empty() {
        // An earlier process may have been killed before it removed its empty spool.
        remove_spool(ctx, input.name)?;
        rows.set_total(tally.rows);
        images.set_total(tally.kept);
    } else {
        journal = match input.source {
            FeatureSource::Backbone { backbone, device, thumbnails } => {
                let loaded = device.load_backbone(backbone.checkpoint.clone(), backbone.options.clone()).await?;
                let model = (backbone.shape, loaded, thumbnails);
                stream_features(ctx, (input.job, input.name), model, journal, Arc::clone(&images)).await?
            }
            FeatureSource::Captioner { checkpoint, device } => {
                let shape = FeatureShape { dim: checkpoint.generation().max_new_tokens(), precision: Precision::F32 };
                let loaded = device.load_captioner(checkpoint.clone(), input.job.content.size_px()).await?;
                let model = (shape, loaded, None);
                stream_features(ctx, (input.job, input.name), model, journal, Arc::clone(&images)).await?
            }
            FeatureSource::Published => store_published(ctx, input.job, input.layout, journal, &images).await?,
        };
    }
    ctx.events.stage_finished(&rows);
    ctx.events.stage_finished(&images);
    let report = images::report_stream(&journal, &shards, &content)?;
    Ok((journal, report))
}

/// Removes the spool of an earlier process.
fn remove_spool(ctx: &RunContext, name: &str) -> Result<(), PipelineError> {
    let path = ctx.scratch_path();
    if path.join(name).exists() {
        LocalDirectory::create(path)?.remove(name)?;
    }
    Ok(())
}

/// Streams the unfinished shards of published features. Nothing waits on scratch disk, except a chunk on its way to a remote
/// run directory.
async fn store_published(
    ctx: &RunContext,
    job: StreamJob,
    layout: Layout,
    journal: Journal,
    images: &StageProgress,
) -> Result<Journal, PipelineError> {
    ctx.events.stage_started(&job.stage_progress);
    ctx.events.stage_started(images);
    if ctx.dir.is_remote() {
        let chunk = u64::from(ctx.config.chunks().rows) * (job.content.decoded_bytes() + 1024) + (1 << 20);
        ctx.require_disk(chunk, "the chunk on its way to the run directory")?;
    }
    let start = StartPoint::after(&journal, &[], journal.pending(job.shards.len() as u32))?;
    let (generation, part, before) = (job.generation.clone(), job.part, journal.tally().kept);
    images::stream_images(ctx, job, start, Sink::Product(journal, Compression::None)).await?;
    let journal = Journal::open(ctx.dir.clone(), layout, &generation, part)?;
    images.add(journal.tally().kept - before);
    images.set_total(journal.tally().kept);
    Ok(journal)
}

/// Streams the unfinished shards through the backbone. Unloads it at the end.
async fn stream_features(
    ctx: &RunContext,
    (job, name): (StreamJob, &str),
    (shape, backbone, thumbnails): (FeatureShape, LoadedBackbone, Option<Thumbnails>),
    journal: Journal,
    images: Arc<StageProgress>,
) -> Result<Journal, PipelineError> {
    let spools = LocalDirectory::create(ctx.scratch_path())?;
    let disk_bytes = spool_bytes(ctx, &job, shape)?;
    let mut pending = journal.pending(job.shards.len() as u32);
    let directory = LocalDirectory::create(spools.path(name))?;
    let (spool, spooled) = Spool::open(directory, disk_bytes, &job.generation, &mut pending).await?;
    for chunk in &spooled {
        job.stage_progress.add_resumed(chunk.entry.tally.rows);
    }
    let start = StartPoint::after(&journal, &spooled, pending)?;
    let forward = Forward { shape, backbone: backbone.clone(), thumbnails, images };
    let journal = forward.stream(ctx, job, start, journal, (spool, spooled)).await?;
    // The spool is empty now. Remove it here, because no other process of this run may follow.
    spools.remove(name)?;
    backbone.unload().await?;
    Ok(journal)
}

/// Returns the spool's part of `limits.disk`. The rest is for the features of the open chunk: a log of their batches,
/// and a staged copy if the run directory is remote.
fn spool_bytes(ctx: &RunContext, job: &StreamJob, shape: FeatureShape) -> Result<u64, PipelineError> {
    let rows = ctx.config.chunk_images();
    let log = u64::from(rows) * (4 * shape.dim as u64 + 24);
    let staged = u64::from(rows) * (4 * shape.dim as u64 + 1024) + (1 << 20);
    let beside = log + if ctx.dir.is_remote() { staged } else { 0 };
    let least = 2 * chunk_disk_bytes(rows, job.content.size_px()) + beside;
    ctx.require_disk(least, "two chunks of pixels and the features of one")?;
    Ok(ctx.config.limits().disk.0 - beside)
}

/// State of the forward pass.
struct Forward {
    shape: FeatureShape,
    backbone: LoadedBackbone,
    thumbnails: Option<Thumbnails>,
    /// Counts features.
    images: Arc<StageProgress>,
}

impl Forward {
    /// Starts the image stream and the three tasks of the model and waits for all of them.
    async fn stream(
        self,
        ctx: &RunContext,
        job: StreamJob,
        start: StartPoint,
        journal: Journal,
        (spool, spooled): (Spool, Vec<SpooledChunk>),
    ) -> Result<Journal, PipelineError> {
        let Self { shape, backbone, thumbnails, images } = self;
        let device = Arc::clone(backbone.device());
        // The model's memory is reserved first, so that decoders cannot starve the model.
        let images_held = device.host_batches * device.batch_rows;
        let reserved = ctx.budget.acquire(job.content.decoded_bytes() * images_held as u64).await;
        let (chunks_in, chunks) = channel(CHUNKS_WAITING.max(spooled.len()));
        ctx.progress.gauge(
            "chunks_waiting",
            "Chunks of pixels that wait for the model",
            None,
            queue_length(&chunks_in),
        );
        let disk = spool.disk().clone();
        let limit = Some(disk.limit_bytes());
        ctx.progress.gauge("ring_bytes", "Scratch disk of the spool", limit, move || Some(disk.in_flight_bytes()));
        ctx.events.stage_started(&job.stage_progress);
        ctx.events.stage_started(&images);
        for chunk in spooled {
            if chunks_in.send(chunk).await.is_err() {
                return Err(PipelineError::Internal("the channel to the model closed early".to_owned()));
            }
        }
        let (batches_in, batches) = channel(1);
        let (features_in, features) = channel(device.in_flight + ITEMS_WAITING);
        let timer = job.stage_progress.part(StageTimer::device().blocked_by(Party::RunDirectory));
        let reader = BatchReader {
            shape,
            batch_rows: device.batch_rows,
            buffers: device.buffers.clone(),
            thumbnails,
            shutdown: ctx.shutdown.clone(),
        };
        let feeder = DeviceFeeder { backbone, timer, shutdown: ctx.shutdown.clone() };
        let committer = FeatureCommitter {
            journal,
            shards: Arc::clone(&job.shards),
            shape,
            with_thumbnails: thumbnails.is_some(),
            images,
            rows: Arc::clone(&job.stage_progress),
            shutdown: ctx.shutdown.clone(),
            events: ctx.events.clone(),
        };
        let mut tasks: JoinSet<Result<Option<Journal>, PipelineError>> = JoinSet::new();
        tasks.spawn(async move { reader.run(chunks, batches_in).await.map(|()| None) });
        tasks.spawn(async move { feeder.run(batches, features_in).await.map(|()| None) });
        tasks.spawn(committer.run(features));
        let (ctx, sink) = (ctx.clone(), Sink::Spool(spool, chunks_in));
        tasks.spawn(async move { images::stream_images(&ctx, job, start, sink).await.map(|()| None) });
        let mut finished = None;
        while let Some(done) = tasks.join_next().await {
            finished = done??.or(finished);
        }
        drop(reserved);
        finished.ok_or_else(|| PipelineError::Internal("the model's stage ended without its journal".to_owned()))
    }
}
