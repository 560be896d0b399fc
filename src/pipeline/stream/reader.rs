//! A lane's shards → rows → blocks of wanted rows, cut by the input alone.

use std::sync::Arc;

use super::super::PipelineError;
use super::{Block, RunContext, StreamJob, block_rows, fill};
use crate::catalog::{ImageFilter, url_hash};
use crate::chunk::quarantine::Quarantined;
use crate::chunk::{ChunkId, RowMeta, Tally};
use crate::corpus::{ImageRow, ImageRowProblem, ImageRows};
use crate::decode::ImageSpec;
use crate::objects::{ReadStats, Reader};
use crate::runtime::BufferPool;

/// Encoded bytes that fill a block, about.
const BLOCK_BYTES: usize = 4 << 20;

/// Largest record: an image of the largest size in base64, and its URLs.
fn max_record_bytes(spec: &ImageSpec) -> usize {
    usize::try_from(spec.max_encoded_bytes / 3 * 4).unwrap_or(usize::MAX / 2) + (64 << 10)
}

/// Reads the shards of a lane, one after the other.
pub(super) struct LaneReader {
    job: Arc<StreamJob>,
    machine: RunContext,
    spares: BufferPool,
    intake: Arc<ReadStats>,
    /// Where the lane goes on: the open shard, or the one to open.
    at: ChunkId,
    /// From a shard of the lane to its next.
    step: u32,
    open: Option<OpenShard>,
}

struct OpenShard {
    reader: Reader,
    rows: ShardRows,
    /// Whether more bytes may follow.
    more: bool,
    /// What of the intake was before it.
    before: u64,
}

impl LaneReader {
    /// A lane that goes on at `at`, and has every `step`th shard from there.
    pub(super) fn new(job: Arc<StreamJob>, machine: RunContext, spares: BufferPool, at: ChunkId, step: usize) -> Self {
        Self { job, machine, spares, intake: Arc::default(), at, step: step as u32, open: None }
    }

    /// How long it waited for the store.
    pub(super) fn intake(&self) -> &Arc<ReadStats> {
        &self.intake
    }

    /// The next block; `None` behind the last shard, or when the run stops.
    pub(super) async fn next_block(&mut self) -> Result<Option<Block>, PipelineError> {
        loop {
            if self.machine.stop.is_raised() {
                return Ok(None);
            }
            let Some(shard) = self.job.shards.get(self.at.shard as usize) else { return Ok(None) };
            let open = match &mut self.open {
                Some(open) => open,
                closed => {
                    let before = self.intake.bytes();
                    let reader = self.machine.store.open(shard, Arc::clone(&self.intake)).await?;
                    let rows = ShardRows::new(Arc::clone(&self.job), self.spares.clone(), self.at);
                    closed.insert(OpenShard { reader, rows, more: true, before })
                }
            };
            let mut block = open.rows.next_block();
            if block.is_none() && !open.more {
                block = Some(open.rows.last_block());
            }
            if let Some(mut block) = block {
                block.read_bytes = self.intake.bytes() - open.before;
                match block.closes {
                    // The lane may have to wait for its next turn, with what a large image before has left.
                    Some(false) => open.rows.parser.trim(),
                    Some(true) => {
                        self.open = None;
                        self.at = ChunkId { shard: self.at.shard.saturating_add(self.step), row: 0 };
                    }
                    None => {}
                }
                return Ok(Some(block));
            }
            open.more = fill(&mut open.reader, &mut open.rows.parser, &shard.url).await?;
            // Unpacking is work that never waits by itself, and other tasks have to have their turn.
            tokio::task::yield_now().await;
        }
    }
}

/// Cuts a shard's rows into blocks and chunks.
pub(super) struct ShardRows {
    job: Arc<StreamJob>,
    pub(super) parser: ImageRows,
    spares: BufferPool,
    shard: u32,
    first_row: u64,
    next_row: u64,
    /// Rows that fill a block.
    block_rows: usize,
    block: Option<Block>,
}

impl ShardRows {
    pub(super) fn new(job: Arc<StreamJob>, spares: BufferPool, at: ChunkId) -> Self {
        let parser = ImageRows::new(max_record_bytes(&job.spec));
        let block_rows = block_rows(&job);
        Self { job, parser, spares, shard: at.shard, first_row: at.row, next_row: at.row, block_rows, block: None }
    }

    /// The chunk that `row` belongs to. Chunks start at multiples of `chunks.rows`.
    fn chunk(&self, row: u64) -> ChunkId {
        ChunkId { shard: self.shard, row: row - row % self.job.chunk_rows }
    }

    /// The next full block of the rows that the parser has; `None` when it needs more bytes.
    pub(super) fn next_block(&mut self) -> Option<Block> {
        loop {
            let (first_row, shard, chunk_rows) = (self.first_row, self.shard, self.job.chunk_rows);
            let row = self.parser.next()?;
            let number = match row {
                ImageRow::Ok { row, .. } | ImageRow::Bad { row, .. } => row,
            };
            if number < first_row {
                continue;
            }
            self.next_row = number + 1;
            let id = ChunkId { shard, row: number - number % chunk_rows };
            let block = self.block.get_or_insert_with(|| Block::new(id, self.block_rows, self.spares.take()));
            block.take(row, &self.job.wanted);
            let chunk_full = self.next_row.is_multiple_of(chunk_rows);
            if chunk_full || block.heads.len() >= self.block_rows || block.bytes() >= BLOCK_BYTES {
                let mut full = self.block.take()?;
                full.closes = chunk_full.then_some(false);
                return Some(full);
            }
        }
    }

    /// What is left at the end of the shard; it closes the shard's last chunk, which may be empty.
    fn last_block(&mut self) -> Block {
        let id = self.chunk(self.next_row);
        let mut block = self.block.take().unwrap_or_else(|| Block::new(id, self.block_rows, self.spares.take()));
        block.closes = Some(true);
        block
    }
}

impl Block {
    /// An empty one that is to have so many rows.
    fn new(id: ChunkId, rows: usize, mut data: Vec<u8>) -> Self {
        data.clear();
        Self {
            id,
            closes: None,
            read_bytes: 0,
            tally: Tally::default(),
            bad: Vec::new(),
            heads: RowMeta::with_capacity(rows),
            row_numbers: Vec::with_capacity(rows),
            data,
            texts: Vec::with_capacity(rows),
            queued: None,
            held: None,
        }
    }

    /// Bytes of its rows, as they came and as they are labelled.
    pub(super) fn bytes(&self) -> usize {
        self.data.len() + self.heads.stored_bytes() as usize
    }

    /// Puts a row where it belongs: to be decoded, skipped or quarantined. Whether it is a duplicate is seen later, in the order of
    /// the corpus.
    fn take(&mut self, row: ImageRow<'_>, wanted: &ImageFilter) {
        self.tally.rows += 1;
        match row {
            ImageRow::Ok { row, image_url, base64 } => {
                let hash = url_hash(image_url);
                if self.skip(hash, wanted) {
                    return;
                }
                let start = self.data.len();
                self.heads.push(image_url, wanted.labels(hash));
                self.row_numbers.push(row);
                self.data.extend_from_slice(base64);
                self.texts.push(start..self.data.len());
            }
            ImageRow::Bad { row, reason, detail, image_url } => {
                // A row whose URL is sound is judged by it like any other before its data are.
                let hash = image_url.as_deref().filter(|_| reason == ImageRowProblem::MissingData).map(url_hash);
                if hash.is_some_and(|hash| self.skip(hash, wanted)) {
                    return;
                }
                *self.tally.quarantined.entry(reason.as_str().to_owned()).or_default() += 1;
                self.bad.push(Quarantined { row, image_url, reason: reason.as_str().to_owned(), detail });
            }
        }
    }

    fn skip(&mut self, hash: u64, wanted: &ImageFilter) -> bool {
        if wanted.wants(hash) {
            return false;
        }
        let reason = match wanted {
            ImageFilter::Urls(_) => "no_id",
            ImageFilter::Everything | ImageFilter::Index(_) => "no_label",
        };
        *self.tally.skipped.entry(reason.to_owned()).or_default() += 1;
        true
    }
}
