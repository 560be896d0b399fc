//! Decoded blocks → chunk files, in order, one file at a time.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::bad_rows::BadRowLimit;
use super::block::Boundary;
use super::committer::{Committer, CompleteChunk, WriteBack, drop_cached_pages};
use super::content::RowWriter;
use super::decoders::{DecodedBlock, DecodedBlocks, Decoders};
use super::resume::image_hashes;
use super::{Sink, StreamJob};
use crate::chunk::pixels::GROUP_OVERHEAD_BYTES;
use crate::chunk::quarantine::Quarantined;
use crate::chunk::spool::{PendingChunk, Spool, SpoolEntry, SpooledChunk};
use crate::chunk::{ChunkId, Tally};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::events::Events;
use crate::telemetry::{Activity, Party, StageTimer};
use crate::types::Compression;

/// Writes the blocks of a stream to its sink.
pub(super) struct ChunkWriter {
    job: Arc<StreamJob>,
    output: Output,
    bad_rows: BadRowLimit,
    timer: Arc<StageTimer>,
    events: Events,
}

/// Sink with the state that the writer needs.
enum Output {
    Spool(Spool, mpsc::Sender<SpooledChunk>),
    Product(Committer, Compression),
    Discard,
}

impl ChunkWriter {
    pub(super) fn new(job: Arc<StreamJob>, sink: Sink, bad_rows: BadRowLimit, events: Events) -> Self {
        let timer = StageTimer::serial("write chunks");
        let (output, timer) = match sink {
            Sink::Spool(spool, consumer) => (Output::Spool(spool, consumer), timer),
            Sink::Product(journal, compression) => {
                (Output::Product(Committer::new(journal), compression), timer.blocked_by(Party::RunDirectory))
            }
            Sink::Discard => (Output::Discard, timer),
        };
        let timer = job.stage_progress.part(timer);
        Self { job, output, bad_rows, timer, events }
    }

    /// Writes all blocks. Once this returns, no task works on the run directory, except perhaps the sync of an
    /// uncommitted file.
    pub(super) async fn run(mut self, mut blocks: DecodedBlocks, decoders: Decoders) -> Result<(), PipelineError> {
        let written = self.write_blocks(&mut blocks, &decoders).await;
        // Free the buffers while the last chunk is being committed.
        drop(blocks);
        decoders.finish();
        let committed = match &mut self.output {
            Output::Product(committer, _) => self.timer.wait(Activity::Blocked, committer.finish()).await,
            Output::Spool(..) | Output::Discard => Ok(()),
        };
        written.and(committed)?;
        self.timer.end();
        Ok(())
    }

    async fn write_blocks(&mut self, blocks: &mut DecodedBlocks, decoders: &Decoders) -> Result<(), PipelineError> {
        let mut open: Option<OpenChunk> = None;
        while let Some(block) = self.timer.wait(Activity::Starved, blocks.next()).await? {
            let mut chunk = match open.take() {
                Some(chunk) => chunk,
                None => self.timer.wait(Activity::Blocked, OpenChunk::start(block.id, &self.output)).await?,
            };
            let boundary = block.boundary;
            let buffer = chunk.write_block(block, &self.job, &self.output, &self.timer).await?;
            decoders.recycle(buffer);
            if boundary == Boundary::None {
                open = Some(chunk);
                continue;
            }
            self.bad_rows.add_chunk(chunk.id, &chunk.tally, &chunk.quarantined, &self.job)?;
            let (chunk, slot) = chunk.complete(boundary == Boundary::Shard, &self.job).await?;
            if !self.deliver(chunk, slot).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Delivers a complete chunk to the sink. Returns false if the receiver is gone.
    async fn deliver(&mut self, chunk: CompleteChunk, slot: Option<PendingChunk>) -> Result<bool, PipelineError> {
        match &mut self.output {
            Output::Spool(spool, consumer) => {
                let Some(slot) = slot else { return Ok(false) };
                let chunk = spool.complete(slot, chunk.entry).await?;
                Ok(self.timer.wait(Activity::Blocked, consumer.send(chunk)).await.is_ok())
            }
            Output::Product(committer, _) => {
                let commit = committer.commit(chunk, &self.job, &self.events);
                self.timer.wait(Activity::Blocked, commit).await?;
                Ok(true)
            }
            Output::Discard => Ok(true),
        }
    }
}

/// A chunk that is being written.
struct OpenChunk {
    id: ChunkId,
    tally: Tally,
    /// Offset of the row after the chunk, once its last block was written.
    next_offset: Option<u64>,
    labels: u64,
    quarantined: Vec<Quarantined>,
    /// URL hashes of the images, if the chunk is the product.
    url_hashes: Vec<u64>,
    /// Path of the row file, which is created with the first row.
    path: PathBuf,
    writer: Option<RowWriter>,
    write_back: WriteBack,
    /// Reservation in the spool.
    slot: Option<PendingChunk>,
}

impl OpenChunk {
    async fn start(id: ChunkId, output: &Output) -> Result<Self, PipelineError> {
        let (slot, path) = match output {
            Output::Spool(spool, _) => {
                let (slot, path) = spool.start(id).await?;
                (Some(slot), path)
            }
            Output::Product(committer, _) => (None, committer.temporary_path(id)?),
            Output::Discard => (None, PathBuf::new()),
        };
        let (tally, write_back) = (Tally::default(), WriteBack::default());
        let (quarantined, url_hashes) = (Vec::new(), Vec::new());
        let next_offset = None;
        Ok(Self { id, tally, next_offset, labels: 0, quarantined, url_hashes, path, writer: None, write_back, slot })
    }

    /// Appends a block and returns its pixel buffer for reuse.
    async fn write_block(
        &mut self,
        block: DecodedBlock,
        job: &StreamJob,
        output: &Output,
        timer: &StageTimer,
    ) -> Result<Vec<u8>, PipelineError> {
        self.tally.merge(&block.tally);
        self.next_offset = block.next_offset;
        self.labels += block.rows.label_count() as u64;
        self.quarantined.extend(block.quarantined);
        if block.rows.is_empty() || matches!(output, Output::Discard) {
            return Ok(block.pixels);
        }
        if let (Output::Spool(spool, _), Some(slot)) = (output, &mut self.slot) {
            // The fixed part of the slot and 64 bytes a row cover the page headers.
            let bytes = block.pixels.len() as u64 + block.rows.stored_bytes() + GROUP_OVERHEAD_BYTES;
            timer.wait(Activity::Blocked, spool.reserve(slot, bytes)).await?;
        }
        if matches!(output, Output::Product(..)) {
            self.url_hashes.extend(image_hashes(&block.rows));
        }
        let in_place = matches!(output, Output::Product(committer, _) if !committer.is_remote());
        let compression = match output {
            Output::Spool(..) | Output::Discard => Compression::None,
            Output::Product(_, compression) => *compression,
        };
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => RowWriter::create(&self.path, &job.content, compression, &job.generation)?,
        };
        let sync_is_due = in_place && self.write_back.add(block.pixels.len());
        let syncing = self.write_back.is_busy();
        let DecodedBlock { rows, pixels, memory_permit, .. } = block;
        let (writer, pixels, file) = tokio::task::spawn_blocking(move || {
            writer.write(&rows, &pixels)?;
            drop(memory_permit);
            let mut file = if sync_is_due { writer.handle() } else { None };
            if syncing && let Some(file) = file.take() {
                // The disk does not keep up. Dropping dirty pages starts to write them, so the disk is never idle. The
                // call waits while the disk is saturated.
                drop_cached_pages(&file, None);
            }
            Ok::<_, PipelineError>((writer, pixels, file))
        })
        .await??;
        self.writer = Some(writer);
        if let Some(file) = file {
            self.write_back.start_next(file, &self.path).await?;
        }
        Ok(pixels)
    }

    /// Completes the row file, under its temporary name.
    async fn complete(
        mut self,
        ends_shard: bool,
        job: &StreamJob,
    ) -> Result<(CompleteChunk, Option<PendingChunk>), PipelineError> {
        let checksum = match self.writer.take() {
            Some(writer) => Some(tokio::task::spawn_blocking(move || writer.finish()).await??),
            None => None,
        };
        let entry = SpoolEntry {
            id: self.id,
            generation: job.generation.clone(),
            last: ends_shard,
            next_offset: self.next_offset,
            tally: self.tally,
            labels: self.labels,
            quarantined: self.quarantined,
            bytes: 0,
            checksum,
            boot: String::new(),
        };
        let (url_hashes, path, write_back) = (self.url_hashes, self.path, self.write_back);
        Ok((CompleteChunk { entry, url_hashes, path, write_back }, self.slot))
    }
}
