//! Shards → rows → blocks. The input alone determines the boundaries of blocks.

use std::sync::Arc;

use super::StreamJob;
use super::block::{Block, Boundary};
use super::memory::{block_rows, read_limits};
use super::resume::{PendingShard, PendingShards};
use crate::catalog::UrlDedup;
use crate::chunk::ChunkId;
use crate::corpus::ImageRow;
use crate::objects::ReadStats;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::inputs::{ImageReader, NextRow};
use crate::runtime::BufferPool;

/// Encoded bytes at which a block is full, regardless of its number of rows.
const BLOCK_BYTES: usize = 4 << 20;

/// Reads pending shards one after the other. Drops the rows whose URL occurred earlier in their shard.
pub(super) struct SlotReader {
    job: Arc<StreamJob>,
    ctx: RunContext,
    buffers: BufferPool,
    stats: Arc<ReadStats>,
    /// Shards that no slot has opened yet.
    pending: Arc<PendingShards>,
    open: Option<OpenShard>,
}

struct OpenShard {
    /// URLs of the shard's rows so far.
    seen: UrlDedup,
    reader: ImageReader,
    rows: ShardRows,
    /// Whether more bytes may follow.
    more: bool,
    /// Bytes that the slot read before this shard.
    bytes_before: u64,
}

impl SlotReader {
    /// Creates a reader that takes its shards from `pending`.
    pub(super) fn new(job: Arc<StreamJob>, ctx: RunContext, buffers: BufferPool, pending: Arc<PendingShards>) -> Self {
        Self { job, ctx, buffers, stats: Arc::default(), pending, open: None }
    }

    /// Returns the counters of bytes read and time waited.
    pub(super) fn stats(&self) -> &Arc<ReadStats> {
        &self.stats
    }

    /// Reads the next block; `None` after the last shard, or when the run has to stop.
    pub(super) async fn next_block(&mut self) -> Result<Option<Block>, PipelineError> {
        loop {
            if self.ctx.shutdown.is_raised() {
                return Ok(None);
            }
            let open = match &mut self.open {
                Some(open) => open,
                closed => {
                    let Some(PendingShard { next, offset, seen: hashes }) = self.pending.take_next() else {
                        return Ok(None);
                    };
                    let bytes_before = self.stats.bytes();
                    let (job, memory) = (&self.job, self.ctx.config.limits().memory.0);
                    let bytes = job.content.stream_bytes(self.ctx.pool.width(), job.chunk_rows);
                    let limits = read_limits(job.input.format, &job.content, bytes, memory);
                    let (shard, store) = (&job.shards[next.shard as usize], &self.ctx.store);
                    let start = (next.row, offset);
                    let reader = ImageReader::open(store, shard, &job.input, limits, start, &self.stats).await?;
                    let rows = ShardRows::new(Arc::clone(&self.job), self.buffers.clone(), next);
                    let mut seen = UrlDedup::new(self.job.filter.clone());
                    for hash in hashes {
                        seen.insert(hash);
                    }
                    closed.insert(OpenShard { seen, reader, rows, more: true, bytes_before })
                }
            };
            let mut block = open.rows.next_block(&mut open.reader)?;
            if block.is_none() && !open.more {
                block = Some(open.rows.last_block());
            }
            if let Some(mut block) = block {
                block.read_bytes = self.stats.bytes() - open.bytes_before;
                block.drop_duplicates(&mut open.seen);
                match block.boundary {
                    // The slot may wait long for its next turn. Do not keep the buffer of a huge image meanwhile.
                    Boundary::Chunk => {
                        block.next_offset = open.reader.resume_offset(open.rows.next_row);
                        open.reader.trim();
                    }
                    Boundary::Shard => self.open = None,
                    Boundary::None => {}
                }
                return Ok(Some(block));
            }
            open.more = open.reader.fill().await?;
            // Decompression never yields by itself, so yield here to other tasks.
            tokio::task::yield_now().await;
        }
    }
}

/// Cuts the rows of a shard into blocks and chunks.
pub(super) struct ShardRows {
    job: Arc<StreamJob>,
    buffers: BufferPool,
    shard: u32,
    /// First row to read. An earlier process read the rows before it.
    first_row: u64,
    next_row: u64,
    /// Number of rows that fill a block.
    block_rows: usize,
    block: Option<Block>,
}

impl ShardRows {
    pub(super) fn new(job: Arc<StreamJob>, buffers: BufferPool, start: ChunkId) -> Self {
        let block_rows = block_rows(&job);
        let ChunkId { shard, row } = start;
        Self { job, buffers, shard, first_row: row, next_row: row, block_rows, block: None }
    }

    /// Returns the chunk of a row. Chunks start at multiples of `chunks.rows`.
    fn chunk_of(&self, row: u64) -> ChunkId {
        ChunkId { shard: self.shard, row: row - row % self.job.chunk_rows }
    }

    /// Returns the next full block; `None` when the reader has to read more.
    ///
    /// # Errors
    /// When the shard is damaged.
    pub(super) fn next_block(&mut self, reader: &mut impl NextRow) -> Result<Option<Block>, PipelineError> {
        loop {
            let (first_row, shard, chunk_rows) = (self.first_row, self.shard, self.job.chunk_rows);
            let Some(row) = reader.next()? else { return Ok(None) };
            let number = match row {
                ImageRow::Ok { row, .. } | ImageRow::Bad { row, .. } => row,
            };
            if number < first_row {
                continue;
            }
            self.next_row = number + 1;
            let id = ChunkId { shard, row: number - number % chunk_rows };
            let block = self.block.get_or_insert_with(|| Block::new(id, self.block_rows, self.buffers.acquire()));
            block.add_row(row, &self.job.filter);
            let chunk_is_full = self.next_row.is_multiple_of(chunk_rows);
            if chunk_is_full || block.rows.len() >= self.block_rows || block.bytes() >= BLOCK_BYTES {
                let mut full = self.block.take();
                if let (Some(full), true) = (&mut full, chunk_is_full) {
                    full.boundary = Boundary::Chunk;
                }
                return Ok(full);
            }
        }
    }

    /// Returns the rest of the shard as a block. It ends the last chunk, so it may be empty.
    fn last_block(&mut self) -> Block {
        let id = self.chunk_of(self.next_row);
        let mut block = self.block.take().unwrap_or_else(|| Block::new(id, self.block_rows, self.buffers.acquire()));
        block.boundary = Boundary::Shard;
        block
    }
}
