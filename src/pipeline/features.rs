//! Pixel chunks of the ring → backbone → feature chunks, committed one by one.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::PipelineError;
use super::forward::{BATCHES_AHEAD, Feeding, PIECES_WAITING, Reading, Thumbnails, Writing};
use super::report::DEVICE;
use super::stream::{self, RunContext, Sink, Start, StreamJob, THE_RUN, seen_so_far};
use super::worker::Device;
use crate::chunk::features::{self, Features};
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::spool::Spool;
use crate::chunk::{Checksum, verify};
use crate::config::value::Precision;
use crate::run_dir::{Directory, LocalDirectory};
use crate::runtime::{channel, queue_length};
use crate::telemetry::{StageProgress, StageTimer};

/// Descriptions of complete chunks between decoder and model; the chunks themselves are bounded by the ring.
const CHUNKS_WAITING: usize = 4096;

/// What the features are.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeatureShape {
    pub(super) dim: usize,
    pub(super) precision: Precision,
}

/// Where the stages keep things.
pub(super) struct Places {
    pub(super) run: Directory,
    pub(super) layout: Layout,
    pub(super) scratch: LocalDirectory,
    pub(super) disk_bytes: u64,
    /// Whose thumbnails are kept beside their features.
    pub(super) thumbnails: Option<Thumbnails>,
}

/// Streams images to feature chunks, or goes on where an earlier process stopped.
///
/// # Errors
/// When an input, the disk or the device fails; [`PipelineError::Stopped`] when asked to.
pub(super) async fn run(
    job: StreamJob,
    machine: RunContext,
    places: Places,
    shape: FeatureShape,
    device: &Arc<Device>,
    stage_progress: Arc<StageProgress>,
) -> Result<Journal, PipelineError> {
    let shards = job.shards.len() as u32;
    let journal = Journal::open(places.run, places.layout, &job.generation, shards)?;
    let mut schedule = journal.schedule(shards);
    let (ring, waiting) = Spool::open(places.scratch, places.disk_bytes, &job.generation, &mut schedule).await?;
    let mut counted = journal.shard_tallies();
    job.stage_progress.add_resumed(journal.tally().rows);
    stage_progress.add_resumed(journal.tally().kept);
    stream::show_shards(&job, &journal);
    for chunk in &waiting {
        job.stage_progress.add_resumed(chunk.entry.tally.rows);
        counted.entry(chunk.entry.id.shard).or_default().merge(&chunk.entry.tally);
    }
    let start = Start { schedule, counted, seen: seen_so_far(&journal, &waiting, &job.wanted)? };

    // The model's own share of the budget, taken first so that decoders can never hold what it needs to go on.
    let batches = (BATCHES_AHEAD + device.in_flight) * device.batch_rows;
    let held = machine.budget.acquire(job.spec.pixel_bytes() * batches as u64).await;
    let (chunks_in, chunks_out) = channel(CHUNKS_WAITING.max(waiting.len()));
    let registry = &machine.registry;
    registry.gauge("chunks_waiting", "Chunks of pixels that wait for the model", None, queue_length(&chunks_in));
    let disk = ring.disk().clone();
    let limit = Some(disk.limit_bytes());
    registry.gauge("ring_bytes", "Scratch disk of the ring", limit, move || Some(disk.in_flight_bytes()));
    machine.events.started(&job.stage_progress);
    machine.events.started(&stage_progress);
    for chunk in waiting {
        if chunks_in.send(chunk).await.is_err() {
            return Err(PipelineError::Internal("the link to the model closed early".to_owned()));
        }
    }
    let (pieces_in, pieces) = channel(1);
    let (features_in, features) = channel(device.in_flight + PIECES_WAITING);
    let clock = job.stage_progress.part(StageTimer::serial(DEVICE).blocked_by(THE_RUN));
    let (batch_rows, buffers) = (device.batch_rows, device.buffers.clone());
    let thumbnails = places.thumbnails;
    let reading = Reading { shape, batch_rows, buffers, thumbnails, stop: machine.stop.clone() };
    let feeding = Feeding { device: Arc::clone(device), clock, stop: machine.stop.clone() };
    let writing = Writing {
        journal,
        shards: Arc::clone(&job.shards),
        shape,
        thumbnails: thumbnails.is_some(),
        stage_progress,
        rows: Arc::clone(&job.stage_progress),
        stop: machine.stop.clone(),
        events: machine.events.clone(),
    };
    let mut stages: JoinSet<Result<Option<Journal>, PipelineError>> = JoinSet::new();
    stages.spawn(async move { reading.run(chunks_out, pieces_in).await.map(|()| None) });
    stages.spawn(async move { feeding.run(pieces, features_in).await.map(|()| None) });
    stages.spawn(writing.run(features));
    let sink = Sink::Spool(ring, chunks_in);
    stages.spawn(async move { stream::run(job, machine, start, sink).await.map(|()| None) });
    let mut finished = None;
    while let Some(done) = stages.join_next().await {
        finished = done??.or(finished);
    }
    drop(held);
    finished.ok_or_else(|| PipelineError::Internal("the model's stage ended without its journal".to_owned()))
}

/// Reads a feature chunk of a run directory; `sum` is its checksum, unless that was compared already.
///
/// # Errors
/// When it cannot be fetched, or is not what was written.
pub(super) async fn read_features(
    directory: &Directory,
    name: &str,
    sum: Option<Checksum>,
) -> Result<Features, PipelineError> {
    let (directory, name) = (directory.clone(), name.to_owned());
    tokio::task::spawn_blocking(move || {
        let copy = directory.fetch(&name)?;
        verify(&copy, &directory.display(&name), sum)?;
        Ok(features::read(&copy)?)
    })
    .await?
}
