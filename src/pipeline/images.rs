//! Stage `images`: image shards → decoded square images → chunks.
//!
//! [`stream_images`] runs three tasks, linked by bounded channels:
//!
//! ```text
//! SlotReader ×4 ─► Interleaver ───► Decoders ─────► ChunkWriter ─► Sink
//! rows, blocks,    chunk by chunk   all threads,    one chunk      spool, run directory
//! no duplicates                     in order        at a time      or nothing
//! ```
//!
//! A shard and the settings alone determine the boundaries and the rows of its blocks and chunks. A URL is kept once in
//! each shard; across shards, [`crate::chunk::duplicates`] decides when the chunks are read. Results leave the decoders
//! in order, so the chunks have the same bytes for any number of threads, and for any number of processes that share the
//! shards.
//!
//! | part | does |
//! | --- | --- |
//! | `shard_reader` | rows of a shard → blocks |
//! | `interleave`, `read_ahead` | blocks of several shards → one sequence, chunk by chunk |
//! | `decoders` | base64 → pixels, or text → features, on the CPU pool |
//! | `content` | images or published features: decoder, writer, sizes |
//! | `writer`, `committer` | blocks → chunk files; chunks that are the product → journal |
//! | `bad_rows` | `limits.max_bad_fraction` |
//! | `resume` | state after an interruption |
//! | `memory` | memory and queue limits |
//! | `preprocess` | configuration and checkpoint → `ImageSpec` |
//!
//! [`run`] is the stage whose product is pixels. Stage `features` streams into a scratch spool instead; published features
//! are the product of their stream.

mod bad_rows;
mod block;
mod committer;
mod content;
mod decoders;
mod interleave;
mod memory;
pub(crate) mod preprocess;
mod read_ahead;
mod resume;
mod shard_reader;
#[cfg(test)]
mod tests;
mod views;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::catalog::ImageFilter;
use crate::chunk::Tally;
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::spool::{Spool, SpooledChunk};
use crate::config::bytes::chunk_disk_bytes;
use crate::objects::Object;
use crate::pipeline::chunk_files::settle_duplicates;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::inputs::ImageInput;
use crate::pipeline::observe::report::StreamReport;
use crate::runtime::{BufferPool, channel, queue_length};
use crate::telemetry::StageProgress;
use crate::types::{Compression, Part};

pub(crate) use committer::{RowFile, commit_chunk};
pub(crate) use content::{NumberSpec, RowContent, RowDecoder};
pub(crate) use memory::MAX_OPEN_SHARDS;
pub(crate) use resume::{StartPoint, image_hashes, show_committed};
pub(crate) use views::Views;

use bad_rows::BadRowLimit;
use block::Block;
use decoders::Decoders;
use interleave::Interleaver;
use memory::{BLOCKS_WAITING, MAX_REUSED_BYTES, input_memory, max_decoded_blocks};
use read_ahead::ReadAhead;
use writer::ChunkWriter;

/// Input and settings of one image stream.
pub(crate) struct StreamJob {
    /// Format and columns of the shards.
    pub(crate) input: ImageInput,
    /// All shards in order.
    pub(crate) shards: Arc<Vec<Object>>,
    /// Shards to stream.
    pub(crate) part: Part,
    /// Filter of the wanted images, with their labels.
    pub(crate) filter: ImageFilter,
    /// Images with their preprocessing, or published features.
    pub(crate) content: RowContent,
    /// Random crops of each image; `None` for the whole image.
    pub(crate) views: Option<Views>,
    /// Source rows that a chunk covers.
    pub(crate) chunk_rows: u64,
    /// Hash of everything that the chunks depend on.
    pub(crate) generation: String,
    /// Share of a shard's wanted rows that may be unusable.
    pub(crate) max_bad_fraction: f64,
    /// Counts rows.
    pub(crate) stage_progress: Arc<StageProgress>,
}

impl StreamJob {
    /// Describes a stream of whole images and starts its progress under `name`.
    pub(crate) fn new(
        ctx: &RunContext,
        name: &str,
        content: &RowContent,
        (input, shards): (ImageInput, Vec<Object>),
        filter: ImageFilter,
        generation: &str,
    ) -> Self {
        Self {
            input,
            shards: Arc::new(shards),
            part: Part::WHOLE,
            filter,
            content: content.clone(),
            views: None,
            chunk_rows: u64::from(ctx.config.chunks().rows),
            generation: generation.to_owned(),
            max_bad_fraction: ctx.config.limits().max_bad_fraction,
            stage_progress: ctx.progress.stage(name, "rows", 0),
        }
    }
}

/// Destination of complete chunks.
pub(crate) enum Sink {
    /// Into the scratch spool, and on to a consumer.
    Spool(Spool, mpsc::Sender<SpooledChunk>),
    /// Into the run directory, as the product of the run.
    Product(Journal, Compression),
    /// Nowhere, for measurements.
    Discard,
}

/// Streams images from `start` to the end of all shards of the part.
///
/// # Errors
/// When an input or the disk fails, or a shard is over `limits.max_bad_fraction`; [`PipelineError::Stopped`] when the
/// run has to stop. The rows read so far are then committed first.
pub(crate) async fn stream_images(
    ctx: &RunContext,
    job: StreamJob,
    start: StartPoint,
    sink: Sink,
) -> Result<(), PipelineError> {
    // The fixed share of each part is reserved first, so that blocks cannot starve a part.
    let bytes = job.content.stream_bytes(ctx.pool.width(), job.chunk_rows);
    let input_bytes = input_memory(job.input.format, bytes, ctx.config.limits().memory.0).total_bytes;
    let reserved = ctx.budget.acquire(bytes.reader + bytes.decoders + bytes.writer + input_bytes).await;
    let decoded_blocks = max_decoded_blocks(&job, ctx.pool.width());
    // Add the blocks in the channel and the block that the reader holds.
    let blocks_at_once = decoded_blocks + BLOCKS_WAITING + 1;
    let read_ahead = ReadAhead::plan(start.pending.len(), ctx, bytes, blocks_at_once).await;
    let buffers = BufferPool::new(blocks_at_once + read_ahead.max_buffers(), MAX_REUSED_BYTES);
    let (blocks_in, blocks) = channel::<Block>(BLOCKS_WAITING);
    let (help, limit) = ("Blocks of rows that wait for a decoder", Some(BLOCKS_WAITING as u64));
    ctx.progress.gauge("blocks_waiting", help, limit, queue_length(&blocks_in));

    let job = Arc::new(job);
    let bad_rows = BadRowLimit::new(start.counted.clone());
    let reader = Interleaver::new(Arc::clone(&job), ctx.clone(), start, read_ahead, buffers.clone());
    let decoders = Decoders::new(&job, ctx.pool.clone(), buffers, decoded_blocks);
    let writer = ChunkWriter::new(job, sink, bad_rows, ctx.events.clone());

    let mut reading = AbortOnDropHandle::new(tokio::spawn(reader.run(blocks_in)));
    let decoded = decoders.start(blocks, decoded_blocks);
    let mut writing = AbortOnDropHandle::new(tokio::spawn(writer.run(decoded, decoders)));
    tokio::select! {
        read = &mut reading => {
            // Write and commit the rows that were read first, even if the reader ended with an error.
            let wrote = writing.await;
            read??;
            wrote??;
        }
        wrote = &mut writing => {
            wrote??;
            reading.await??;
        }
    }
    drop(reserved);
    if ctx.shutdown.is_raised() { Err(ctx.stopped()) } else { Ok(()) }
}

/// Input of the stage whose product is pixel chunks.
pub(crate) struct ImagesInput<'a> {
    /// Format and columns of the shards.
    pub(crate) input: ImageInput,
    /// Image shards in order.
    pub(crate) shards: Vec<Object>,
    /// Shards to stream.
    pub(crate) part: Part,
    /// Filter of the wanted images.
    pub(crate) filter: ImageFilter,
    /// Preprocessing of the images.
    pub(crate) content: &'a RowContent,
    /// Hash of everything that the chunks depend on.
    pub(crate) generation: String,
}

/// Streams images to pixel chunks in the run directory, or resumes an earlier process.
///
/// # Errors
/// As [`stream_images`]; and when the counts do not add up.
pub(crate) async fn run(ctx: &RunContext, input: ImagesInput<'_>) -> Result<StreamReport, PipelineError> {
    let ImagesInput { input, shards, part, filter, content, generation } = input;
    let job = StreamJob { part, ..StreamJob::new(ctx, "images", content, (input, shards), filter, &generation) };
    let (stage_progress, shards) = (Arc::clone(&job.stage_progress), Arc::clone(&job.shards));
    let mut journal = Journal::open(ctx.dir.clone(), Layout::train("chunks"), &generation, part)?;
    stage_progress.add_resumed(journal.tally().rows);
    show_committed(&job, &journal);
    let pending = journal.pending(shards.len() as u32);
    if pending.is_empty() {
        stage_progress.set_total(stage_progress.progress().0);
    }
    ctx.events.stage_started(&stage_progress);
    if !pending.is_empty() {
        let start = StartPoint::after(&journal, &[], pending)?;
        let chunks = ctx.config.chunks();
        if ctx.dir.is_remote() {
            let chunk = chunk_disk_bytes(chunks.rows, content.size_px());
            ctx.require_disk(chunk, "the chunk on its way to the run directory")?;
        }
        stream_images(ctx, job, start, Sink::Product(journal, chunks.compression)).await?;
        journal = Journal::open(ctx.dir.clone(), Layout::train("chunks"), &generation, part)?;
    }
    ctx.events.stage_finished(&stage_progress);
    let mut report = report_stream(&journal, &shards, content)?;
    if part == Part::WHOLE {
        report.duplicates = settle_duplicates(&journal, &generation)?.count();
    }
    Ok(report)
}

/// Sums up the finished shards of a part and checks that their counts add up.
///
/// # Errors
/// When the counts do not add up, a shard is missing, or no row can be used.
pub(crate) fn report_stream(
    journal: &Journal,
    shards: &[Object],
    content: &RowContent,
) -> Result<StreamReport, PipelineError> {
    let name = |shard: u32| shards.get(shard as usize).map_or_else(String::new, |object| object.url.clone());
    let by_shard: BTreeMap<String, Tally> =
        journal.shard_tallies().into_iter().map(|(shard, tally)| (name(shard), tally)).collect();
    if let Some((shard, tally)) = by_shard.iter().find(|(_, tally)| !tally.adds_up()) {
        return Err(PipelineError::Internal(format!(
            "the rows of `{shard}` do not add up: {} read, {} kept, {} skipped, {} quarantined",
            tally.rows,
            tally.kept,
            tally.skipped_rows(),
            tally.quarantined_rows()
        )));
    }
    if !journal.pending(shards.len() as u32).is_empty() {
        return Err(PipelineError::Internal("the stream ended before its last shard".to_owned()));
    }
    let tally = journal.tally();
    if tally.rows > 0 && tally.quarantined_rows() == tally.rows {
        let reasons: Vec<String> =
            tally.quarantined.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        return Err(PipelineError::Input(format!(
            "none of the {} rows of {} shards can be used ({}): check the files",
            tally.quarantined_rows(),
            shards.len(),
            reasons.join(", ")
        )));
    }
    Ok(StreamReport {
        shards: by_shard.len() as u64,
        tally,
        by_shard,
        labels: journal.entries().values().map(|entry| entry.labels).sum(),
        chunks: journal.entries().values().filter(|entry| entry.tally.kept > 0).count() as u64,
        size_px: content.size_px(),
        duplicates: 0,
    })
}
