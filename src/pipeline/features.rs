//! Pixel chunks of the ring → backbone → feature chunks, committed one by one.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::PipelineError;
use super::desk::{BATCH_ROWS, Device, model_error};
use super::events::Events;
use super::report::DEVICE;
use super::spill::{self, Spill};
use super::stream::{self, Machine, Sink, StreamJob, THE_RUN, commit, seen_so_far};
use crate::chunk::features::{self, FeatureWriter, Features};
use crate::chunk::journal::{Journal, Layout, Position};
use crate::chunk::pixels::PixelReader;
use crate::chunk::ring::{Ring, RingChunk};
use crate::chunk::{Checksum, RowHeads, Tally, verify};
use crate::config::value::Precision;
use crate::flow::{Clock, Doing, Meter, Stop, depth, link};
use crate::store::{Directory, LocalDirectory, Object};

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
}

/// Streams images to feature chunks, or goes on where an earlier process stopped.
///
/// # Errors
/// When an input, the disk or the device fails; [`PipelineError::Stopped`] when asked to.
pub(super) async fn run(
    job: StreamJob,
    machine: Machine,
    places: Places,
    shape: FeatureShape,
    device: &Arc<Device>,
    meter: Arc<Meter>,
) -> Result<Journal, PipelineError> {
    let journal = Journal::open(places.run, places.layout, &job.generation)?;
    let committed = journal.position();
    let (ring, waiting) = Ring::open(places.scratch, places.disk_bytes, &job.generation, committed).await?;
    let position = waiting.last().map_or(committed, |chunk| {
        let entry = &chunk.entry;
        if entry.last {
            Position { shard: entry.id.shard + 1, row: 0 }
        } else {
            Position { shard: entry.id.shard, row: entry.id.row + entry.tally.rows }
        }
    });
    let mut counted = journal.shard_tallies().remove(&position.shard).unwrap_or_default();
    job.meter.add_resumed(journal.tally().rows);
    meter.add_resumed(journal.tally().kept);
    stream::show_shards(&job, &journal);
    for chunk in &waiting {
        job.meter.add_resumed(chunk.entry.tally.rows);
        if chunk.entry.id.shard == position.shard {
            counted.merge(&chunk.entry.tally);
        }
    }
    let seen = seen_so_far(&journal, &waiting, &job.wanted)?;

    // The model's own share of the budget, taken first so that decoders can never hold what it needs to go on.
    let bytes = stream::stream_bytes(&job.spec, machine.pool.width(), job.chunk_rows);
    let held = machine.budget.take(bytes.model).await;
    let (chunks_in, chunks_out) = link(CHUNKS_WAITING.max(waiting.len()));
    let board = &machine.board;
    board.gauge("chunks_waiting", "Chunks of pixels that wait for the model", None, depth(&chunks_in));
    let disk = ring.disk().clone();
    let limit = Some(disk.limit_bytes());
    board.gauge("ring_bytes", "Scratch disk of the ring", limit, move || Some(disk.in_flight_bytes()));
    machine.events.started(&job.meter);
    machine.events.started(&meter);
    for chunk in waiting {
        if chunks_in.send(chunk).await.is_err() {
            return Err(PipelineError::Internal("the link to the model closed early".to_owned()));
        }
    }
    let consumer = Consumer {
        journal,
        shards: Arc::clone(&job.shards),
        shape,
        device: Arc::clone(device),
        meter,
        clock: job.meter.part(Clock::serial(DEVICE).blocked_by(THE_RUN)),
        rows: Arc::clone(&job.meter),
        stop: machine.stop.clone(),
        events: machine.events.clone(),
    };
    let mut stages: JoinSet<Result<Option<Journal>, PipelineError>> = JoinSet::new();
    stages.spawn(consumer.run(chunks_out));
    let sink = Sink::Ring(ring, chunks_in);
    stages.spawn(async move { stream::run(job, machine, seen, position, counted, sink).await.map(|()| None) });
    let mut finished = None;
    while let Some(done) = stages.join_next().await {
        finished = done??.or(finished);
    }
    drop(held);
    finished.ok_or_else(|| PipelineError::Internal("the model's stage ended without its journal".to_owned()))
}

struct Consumer {
    journal: Journal,
    shards: Arc<Vec<Object>>,
    shape: FeatureShape,
    device: Arc<Device>,
    meter: Arc<Meter>,
    /// Counts the rows that were read, and knows about how many there are.
    rows: Arc<Meter>,
    clock: Arc<Clock>,
    stop: Stop,
    events: Events,
}

impl Consumer {
    async fn run(mut self, mut chunks: mpsc::Receiver<RingChunk>) -> Result<Option<Journal>, PipelineError> {
        let Tally { mut rows, mut kept, .. } = self.journal.tally();
        while let Some(chunk) = self.clock.wait(Doing::Starved, chunks.recv()).await {
            if let Some(all_rows) = self.rows.progress().1 {
                rows += chunk.entry.tally.rows;
                kept += chunk.entry.tally.kept;
                self.meter.set_total((all_rows as f64 * kept as f64 / rows.max(1) as f64).round() as u64);
            }
            if self.stop.is_raised() {
                break;
            }
            let Some(sum) = self.compute(&chunk).await? else { break };
            let _committing = self.clock.start(Doing::Blocked);
            let shard = &self.shards[chunk.entry.id.shard as usize].name;
            commit(&mut self.journal, &chunk.whole_entry()?, sum, shard, &self.rows, &self.events)?;
            chunk.release()?;
        }
        self.clock.end();
        match self.stop.signal() {
            Some(signal) => Err(PipelineError::Stopped(signal)),
            None => Ok(Some(self.journal)),
        }
    }

    async fn forward(&self, pixels: Vec<u8>, rows: usize) -> Result<Vec<f32>, PipelineError> {
        self.device
            .call(move |desk| match &desk.extractor {
                Some(extractor) => extractor.features(&pixels, rows).map_err(model_error),
                None => Err(PipelineError::Internal("the backbone is not loaded".to_owned())),
            })
            .await?
    }

    /// Fills the feature file of a chunk and returns its checksum, if there is one; `None` when the run was asked to stop.
    async fn compute(&mut self, chunk: &RingChunk) -> Result<Option<Option<Checksum>>, PipelineError> {
        let Some(pixels) = chunk.pixels() else { return Ok(Some(None)) };
        chunk.verify()?;
        let name = self.journal.layout().chunk(chunk.entry.id);
        let path = self.journal.directory().temporary(&name)?;
        let FeatureShape { dim, precision } = self.shape;
        let mut writer = FeatureWriter::create(&path, dim, precision, &chunk.entry.generation)?;
        // One batch is read while the one before is computed. Batches never cross a chunk, so that a feature's bits
        // depend on its chunk alone.
        let (batches_in, mut batches) = link(1);
        let made_from = format!("{} {dim} {BATCH_ROWS}", chunk.entry.generation);
        let mut spill = Spill::open(spill::beside(&pixels), &made_from)?;
        let reading = tokio::task::spawn_blocking(move || read_batches(&pixels, &batches_in));
        while let Some((heads, pixels)) = self.clock.wait(Doing::Starved, batches.recv()).await {
            let rows = heads.len();
            let features = if let Some(known) = spill.take(rows * dim) {
                known
            } else {
                let features = self.forward(pixels, rows).await?;
                spill.keep(&features)?;
                features
            };
            if let Some(bad) = features.iter().position(|value| !value.is_finite()) {
                return Err(PipelineError::Model(format!(
                    "the feature of `{}` is not a finite number: the checkpoint's weights are unusable",
                    heads.url(bad / dim)
                )));
            }
            writer.write(&heads, &features)?;
            self.meter.add(rows as u64);
            if self.stop.is_raised() {
                return Ok(None);
            }
        }
        reading.await??;
        Ok(Some(Some(writer.finish()?)))
    }
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

fn read_batches(path: &Path, batches: &mpsc::Sender<(RowHeads, Vec<u8>)>) -> Result<(), PipelineError> {
    let mut reader = PixelReader::open(path, BATCH_ROWS)?;
    while let Some(batch) = reader.next_batch()? {
        if batches.blocking_send(batch).is_err() {
            break;
        }
    }
    Ok(())
}
