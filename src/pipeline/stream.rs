//! Image shards → decoded squares → chunks: a few lanes of readers that take turns, a pool of decoders, one writer.
//!
//! The order of the chunks is that of a [`Schedule`](crate::chunk::schedule), because of the rule that the first of two rows with
//! one URL wins: which row is first must not depend on timing. Lanes may read ahead of their turn, which no byte depends on. Decoding, the
//! expensive part, is spread over the pool in blocks of rows whose boundaries depend on the input alone, and comes back in order, so the
//! chunks are the same bytes for any number of workers.

mod decoders;
mod lanes;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokio::io::AsyncBufReadExt as _;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::lanes::{Lanes, ReadAhead};
use super::PipelineError;
use super::events::Events;
use crate::catalog::{ImageFilter, UrlDedup, url_hash};
use crate::chunk::features::read_heads;
use crate::chunk::journal::Journal;
use crate::chunk::pixels::image_bytes;
use crate::chunk::quarantine::{self, Quarantined};
use crate::chunk::schedule::{LANES, Schedule};
use crate::chunk::spool::{RingEntry, Spool, SpooledChunk};
use crate::chunk::{Checksum, ChunkId, Entry, RowMeta, Tally};
use crate::config::RunConfig;
use crate::config::bytes::{StreamBytes, block_images};
use crate::config::value::Compression;
use crate::corpus::{ImageRowProblem, PushParser};
use crate::decode::{HEADER_BYTES, ImageSpec, RETAINED_BYTES, View};
use crate::objects::{Object, Reader, Store, explain_read};
use crate::runtime::{BufferPool, ByteBudget, BytePermit, CpuPool, Shutdown, depth, link};
use crate::telemetry::{ProgressRegistry, Shard, StageProgress};
use crate::train::validation::is_validation;

/// Files brought to local disk together, where the run is kept elsewhere.
const FETCHED_AT_ONCE: usize = 32;
/// Size up to which a chunk is read whole when a stream goes on behind it, to compare its checksum.
const VERIFIED_BYTES: u64 = 64 << 20;

/// Bytes handed to a parser at a time, at most.
pub(super) const FEED_BYTES: usize = 256 << 10;

/// Whom a reader waits for.
pub(super) const THE_STORE: &str = "the store";
/// Whom the committing of chunks waits for.
pub(super) const THE_RUN: &str = "the run directory";
/// Blocks of rows between the reader and the pool of decoders, beside those in the pool.
const BLOCKS_WAITING: usize = 2;

/// What a lane holds between its turns: ranges of its object, and what of them is unpacked with the unpacker's tables.
const RESTING_LANE_BYTES: u64 = (12 << 20) + (128 << 10);

/// Size up to which the buffer of a block is used again; one with a huge image in it is freed. There are as many as there were blocks at
/// once under the memory limit, and while they are idle they are beside it.
const SPARE_BYTES: usize = 8 << 20;

/// Rows that fill a block.
fn block_rows(job: &StreamJob) -> usize {
    let images = block_images(image_bytes(job.spec.geometry.output_px()) as u64);
    (images / Views::most(job.views)).max(1)
}

/// Blocks that are being decoded, or were and wait for the writer, one of them in its hand: as many as the threads work on at once, which
/// is one where it has rows enough for all of them; and one more for each thread, because those take as much less time as they are more.
fn decoding_blocks(job: &StreamJob, machine: &RunContext) -> usize {
    let threads = machine.pool.width();
    threads + threads.div_ceil(block_rows(job))
}

/// Everything that a stream of images is.
pub(super) struct StreamJob {
    /// Shards in order.
    pub(super) shards: Arc<Vec<Object>>,
    /// Which images are wanted, and their labels.
    pub(super) wanted: ImageFilter,
    /// How they are decoded.
    pub(super) spec: ImageSpec,
    /// Which pictures are made of an image; `None`: the whole of it.
    pub(super) views: Option<Views>,
    /// Source rows a chunk covers.
    pub(super) chunk_rows: u64,
    /// Hash of everything that the chunks depend on.
    pub(super) generation: String,
    /// Share of a shard's wanted rows that may be unusable.
    pub(super) max_bad_fraction: f64,
    /// Counts rows.
    pub(super) stage_progress: Arc<StageProgress>,
}

/// Random parts of the images that are trained on; those that are held out stay whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Views {
    /// Parts of each image.
    pub(super) count: u8,
    /// Seed of the run.
    pub(super) seed: u64,
    /// Share of the images that is held out.
    pub(super) held_out: f64,
}

impl Views {
    /// Those that a plan asks for, where it does.
    pub(super) fn of_plan(plan: &RunConfig) -> Option<Self> {
        let (count, pipeline) = (plan.views(), plan.pipeline());
        let held_out = pipeline.train.as_ref().map_or(0.0, |train| train.validation_fraction);
        (count > 0).then_some(Self { count: count as u8, seed: pipeline.run.seed, held_out })
    }

    /// Fills in the views of an image; returns the number of the first, whose followers count on.
    pub(super) fn of(views: Option<Self>, url: &str, into: &mut Vec<View>) -> u8 {
        into.clear();
        match views {
            Some(Self { count, seed, held_out }) if !is_validation(url, seed, held_out) => {
                into.extend((1..=count).map(|number| View::random(seed, url_hash(url), number)));
                1
            }
            _ => {
                into.push(View::Plain);
                0
            }
        }
    }

    /// Pictures of an image, at most.
    pub(super) fn most(views: Option<Self>) -> usize {
        views.map_or(1, |views| usize::from(views.count).max(1))
    }
}

/// What the stages of a stream share.
#[derive(Clone)]
pub(super) struct RunContext {
    pub(super) store: Store,
    pub(super) pool: CpuPool,
    pub(super) budget: ByteBudget,
    pub(super) stop: Shutdown,
    pub(super) registry: ProgressRegistry,
    pub(super) events: Events,
}

/// Where complete chunks go.
pub(super) enum Sink {
    /// Into the scratch ring, and on to whoever consumes them.
    Spool(Spool, mpsc::Sender<SpooledChunk>),
    /// Into the run's directory, as the product.
    Durable(Journal, Compression),
    /// Nowhere: a measure of everything before.
    Counted,
}

/// A few wanted rows on their way to a decoder.
pub(super) struct Block {
    pub(super) id: ChunkId,
    /// The chunk ends behind this block; whether the shard does too.
    pub(super) closes: Option<bool>,
    /// Stored bytes of the shard that were read for it and for what is before it.
    pub(super) read_bytes: u64,
    pub(super) tally: Tally,
    pub(super) bad: Vec<Quarantined>,
    pub(super) heads: RowMeta,
    pub(super) row_numbers: Vec<u64>,
    /// Base64 of the rows, one behind the other.
    pub(super) data: Vec<u8>,
    pub(super) texts: Vec<Range<usize>>,
    /// What its text takes of its lane's share until its turn comes.
    pub(super) queued: Option<BytePermit>,
    pub(super) held: Option<BytePermit>,
}

/// The URLs that chunks of an earlier process have taken.
pub(super) fn seen_so_far(
    journal: &Journal,
    ring: &[SpooledChunk],
    wanted: &ImageFilter,
) -> Result<UrlDedup, PipelineError> {
    let mut seen = UrlDedup::new(wanted.clone());
    let mut take = |path: &std::path::Path| -> Result<(), PipelineError> {
        let heads = read_heads(path)?;
        for row in 0..heads.len() {
            seen.first(url_hash(heads.url(row)));
        }
        Ok(())
    };
    let (directory, layout) = (journal.directory(), journal.layout());
    let files = |name: &dyn Fn(ChunkId) -> String| -> Vec<String> {
        let names = journal.entries().iter().map(|(id, entry)| (name(*id), entry));
        names.filter(|(name, entry)| entry.files.contains_key(name)).map(|(name, _)| name).collect()
    };
    for names in files(&|id| layout.chunk(id)).chunks(FETCHED_AT_ONCE) {
        for (name, copy) in names.iter().zip(directory.fetch_all(names)?) {
            // Pixel chunks that are the product are too large to be read whole for their URLs.
            if copy.metadata().is_ok_and(|metadata| metadata.len() <= VERIFIED_BYTES) {
                journal.verify(name, &copy)?;
            }
            take(&copy)?;
        }
    }
    for chunk in ring {
        chunk.pixels().as_deref().map_or(Ok(()), &mut take)?;
    }
    let mut note = |rows: &[Quarantined]| {
        for row in rows.iter().filter(|row| takes_its_url(&row.reason)) {
            if let Some(url) = &row.image_url {
                seen.first(url_hash(url));
            }
        }
    };
    for names in files(&|id| layout.quarantine(id)).chunks(FETCHED_AT_ONCE) {
        for (name, copy) in names.iter().zip(directory.fetch_all(names)?) {
            journal.verify(name, &copy)?;
            note(&quarantine::read(&copy)?);
        }
    }
    for chunk in ring {
        note(&chunk.whole_entry()?.quarantined);
    }
    Ok(seen)
}

/// Whether a quarantined row counts as its URL's first: all do whose URL was sound.
fn takes_its_url(reason: &str) -> bool {
    ImageRowProblem::ALL.iter().all(|problem| *problem == ImageRowProblem::MissingData || problem.as_str() != reason)
}

/// What the stages of a stream hold in memory.
pub(super) fn stream_bytes(spec: &ImageSpec, workers: usize, chunk_rows: u64) -> StreamBytes {
    let decoders = spec.decode_bytes() + workers as u64 * (RETAINED_BYTES + HEADER_BYTES);
    let bytes = StreamBytes::new(spec.geometry.output_px(), spec.max_encoded_bytes, decoders, chunk_rows);
    StreamBytes { reader: bytes.reader.saturating_add((LANES as u64 - 1) * RESTING_LANE_BYTES), ..bytes }
}

/// Where a stream goes on.
pub(super) struct Start {
    pub(super) schedule: Schedule,
    /// What earlier processes counted in each shard.
    pub(super) counted: BTreeMap<u32, Tally>,
    /// URLs that they took.
    pub(super) seen: UrlDedup,
}

/// Runs the stream from `start` to the end of the last shard, or until the stop token is raised.
pub(super) async fn run(job: StreamJob, machine: RunContext, start: Start, sink: Sink) -> Result<(), PipelineError> {
    // Each stage's own share first, so that blocks can never hold what a stage needs to go on.
    let bytes = stream_bytes(&job.spec, machine.pool.width(), job.chunk_rows);
    let own = machine.budget.take(bytes.reader + bytes.decoders + bytes.writer).await;
    let Start { schedule, counted, seen } = start;
    // Those in the link, and the one in the reader's hand.
    let blocks = decoding_blocks(&job, &machine) + BLOCKS_WAITING + 1;
    let ahead = ReadAhead::plan(&schedule, &machine, bytes, blocks).await;
    let (blocks_in, blocks_out) = link::<Block>(BLOCKS_WAITING);
    let (help, limit) = ("Blocks of rows that wait for a decoder", Some(BLOCKS_WAITING as u64));
    machine.registry.gauge("blocks_waiting", help, limit, depth(&blocks_in));
    let job = Arc::new(job);
    // Base64 goes from the decoders back to the reader.
    let texts = BufferPool::new(blocks + ahead.buffers(), SPARE_BYTES);
    let lanes = Lanes { job: Arc::clone(&job), machine: machine.clone(), schedule, ahead, texts: texts.clone() };
    let mut reading = AbortOnDropHandle::new(tokio::spawn(lanes.run(seen, blocks_in)));
    let mut writing = AbortOnDropHandle::new(tokio::spawn(writer::write_chunks(
        job,
        machine.clone(),
        blocks_out,
        texts,
        counted,
        sink,
    )));
    tokio::select! {
        read = &mut reading => {
            // What was read is written to the end, and committed; then it counts why reading ended.
            let wrote = writing.await;
            read??;
            wrote??;
        }
        wrote = &mut writing => {
            wrote??;
            reading.await??;
        }
    }
    drop(own);
    match machine.stop.signal() {
        Some(signal) => Err(PipelineError::Stopped(signal)),
        None => Ok(()),
    }
}

/// Feeds the parser what the reader has, at most [`FEED_BYTES`]; says whether more may follow.
pub(super) async fn fill(reader: &mut Reader, parser: &mut impl PushParser, url: &str) -> Result<bool, PipelineError> {
    let bytes = reader.fill_buf().await.map_err(|error| explain_read(url, error))?;
    if bytes.is_empty() {
        parser.finish();
        return Ok(false);
    }
    let fed = bytes.len().min(FEED_BYTES);
    parser.feed(&bytes[..fed]);
    reader.consume(fed);
    Ok(true)
}

/// Shows what of each shard is committed.
pub(super) fn show_shards(job: &StreamJob, journal: &Journal) {
    let mut tallies = journal.shard_tallies();
    let schedule = journal.schedule(job.shards.len() as u32);
    let shard = |(index, shard): (usize, &Object)| {
        let tally = tallies.remove(&(index as u32)).unwrap_or_default();
        Shard {
            name: shard.url.clone(),
            bytes: shard.size,
            read_bytes: 0,
            rows: tally.rows,
            kept: tally.kept,
            skipped: tally.skipped_rows(),
            quarantined: tally.quarantined_rows(),
            done: schedule.is_past(index as u32),
        }
    };
    job.stage_progress.set_shards(job.shards.iter().enumerate().map(shard).collect());
}

/// Makes a chunk's files, filled under their temporary names, durable, then enters it into the journal and tells of it. `sum` is
/// the checksum of the file with its rows, if it has any.
pub(super) fn commit(
    journal: &mut Journal,
    chunk: &RingEntry,
    sum: Option<Checksum>,
    shard: &str,
    stage_progress: &StageProgress,
    events: &Events,
) -> Result<(), PipelineError> {
    let (directory, layout) = (journal.directory().clone(), journal.layout().clone());
    let mut entry = Entry {
        generation: chunk.generation.clone(),
        last: chunk.last,
        tally: chunk.tally.clone(),
        labels: chunk.labels,
        files: BTreeMap::new(),
        checksums: BTreeMap::new(),
    };
    if chunk.tally.kept > 0 {
        let name = layout.chunk(chunk.id);
        let bytes = directory.publish(&name)?;
        entry.checksums.extend(sum.map(|sum| (name.clone(), sum)));
        entry.files.insert(name, bytes);
    }
    if !chunk.quarantined.is_empty() {
        let name = layout.quarantine(chunk.id);
        let sum = quarantine::write(&directory.temporary(&name)?, shard, &chunk.quarantined)?;
        let bytes = directory.publish(&name)?;
        entry.checksums.insert(name.clone(), sum);
        entry.files.insert(name, bytes);
    }
    journal.commit(chunk.id, entry)?;
    events.committed(stage_progress, chunk, shard);
    Ok(())
}
