//! Shards → rows → blocks of wanted rows, cut by the input alone.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::super::PipelineError;
use super::{Block, Machine, StreamJob, THE_STORE, Views, fill, stream_bytes};
use crate::catalog::{Seen, Wanted, url_hash};
use crate::chunk::journal::Position;
use crate::chunk::pixels::image_bytes;
use crate::chunk::quarantine::Quarantined;
use crate::chunk::{ChunkId, RowHeads, Tally};
use crate::corpus::{ImageRow, ImageRowProblem, ImageRows};
use crate::decode::Spec;
use crate::flow::{Clock, Doing, Spares};
use crate::store::Intake;

/// Images that one decoding job makes, at most, all views counted.
const BLOCK_IMAGES: usize = 32;
/// Encoded bytes that one decoding job takes, about.
const BLOCK_BYTES: usize = 4 << 20;
/// Bytes handed to the row parser at a time.
const FEED_BYTES: usize = 256 << 10;

/// Largest record: an image of the largest size in base64, and its URLs.
fn max_record_bytes(spec: &Spec) -> usize {
    usize::try_from(spec.max_encoded_bytes / 3 * 4).unwrap_or(usize::MAX / 2) + (64 << 10)
}

/// Reads the shards from `position` on and sends their blocks, in order.
pub(super) async fn read_shards(
    job: Arc<StreamJob>,
    machine: Machine,
    mut seen: Seen,
    position: Position,
    blocks: mpsc::Sender<Block>,
    spares: Spares,
) -> Result<(), PipelineError> {
    let intake = Arc::new(Intake::default());
    let waited = Arc::clone(&intake);
    let clock = Clock::serial("read rows").starved_by(THE_STORE).starvation(move || waited.waited());
    let clock = job.meter.part(clock);
    let all_bytes: u64 = job.shards.iter().map(|shard| shard.size).sum();
    let mut bytes_before: u64 = job.shards.iter().take(position.shard as usize).map(|shard| shard.size).sum();
    for (index, shard) in job.shards.iter().enumerate().skip(position.shard as usize) {
        let first_row = if index == position.shard as usize { position.row } else { 0 };
        let before = intake.bytes();
        let mut reader = machine.store.open(shard, Arc::clone(&intake)).await?;
        let mut rows = ShardReader {
            job: &job,
            parser: ImageRows::new(max_record_bytes(&job.spec)),
            seen: &mut seen,
            spares: &spares,
            shard: index as u32,
            first_row,
            next_row: first_row,
            block: None,
        };
        let mut buffer = vec![0; FEED_BYTES];
        loop {
            let more = fill(&mut reader, &mut rows.parser, &mut buffer, &shard.url).await?;
            while let Some(block) = rows.next_block() {
                if !clock.wait(Doing::Blocked, hand_on(block, &job, &machine, &blocks)).await {
                    return Ok(());
                }
            }
            let shard_read = intake.bytes() - before;
            job.meter.shard(index, |shard| shard.read_bytes = shard_read);
            let read = bytes_before + shard_read;
            let done = job.meter.progress().0;
            if read > 0 {
                job.meter.set_total((done as f64 * all_bytes as f64 / read as f64).round() as u64);
            }
            if machine.stop.is_raised() {
                return Ok(());
            }
            if !more {
                break;
            }
        }
        if !clock.wait(Doing::Blocked, hand_on(rows.last_block(), &job, &machine, &blocks)).await {
            return Ok(());
        }
        bytes_before += shard.size;
    }
    clock.end();
    job.meter.set_total(job.meter.progress().0);
    Ok(())
}

/// Sends a block on once its bytes fit the budget; false when nobody takes it any more or the run stops.
async fn hand_on(mut block: Block, job: &StreamJob, machine: &Machine, blocks: &mpsc::Sender<Block>) -> bool {
    let pixels = block.heads.len() * Views::most(job.views) * image_bytes(job.spec.geometry.output_px());
    // A row with more labels than a block has room for takes all the room: its labels are those of the join index.
    let most = stream_bytes(&job.spec, machine.pool.width(), job.chunk_rows).block;
    let bytes = ((block.bytes() + pixels) as u64).min(most);
    job.meter.add(block.tally.rows);
    let send = async {
        block.held = Some(machine.budget.take(bytes).await);
        blocks.send(block).await.is_ok()
    };
    tokio::select! {
        sent = send => sent,
        () = machine.stop.raised() => false,
    }
}

/// Cuts a shard's rows into blocks and chunks.
struct ShardReader<'a> {
    job: &'a StreamJob,
    parser: ImageRows,
    seen: &'a mut Seen,
    spares: &'a Spares,
    shard: u32,
    first_row: u64,
    next_row: u64,
    block: Option<Block>,
}

impl ShardReader<'_> {
    /// The chunk that `row` belongs to. Chunks start at multiples of `chunks.rows`.
    fn chunk(&self, row: u64) -> ChunkId {
        ChunkId { shard: self.shard, row: row - row % self.job.chunk_rows }
    }

    /// The next full block of the rows that the parser has; `None` when it needs more bytes.
    fn next_block(&mut self) -> Option<Block> {
        loop {
            let (first_row, shard, chunk_rows) = (self.first_row, self.shard, self.job.chunk_rows);
            let block_rows = (BLOCK_IMAGES / Views::most(self.job.views)).max(1);
            let row = self.parser.next()?;
            let number = match row {
                ImageRow::Ok { row, .. } | ImageRow::Bad { row, .. } => row,
            };
            if number < first_row {
                continue;
            }
            self.next_row = number + 1;
            let id = ChunkId { shard, row: number - number % chunk_rows };
            let block = self.block.get_or_insert_with(|| Block::new(id, self.spares));
            block.take(row, &self.job.wanted, self.seen);
            let chunk_full = self.next_row.is_multiple_of(chunk_rows);
            if chunk_full || block.heads.len() >= block_rows || block.bytes() >= BLOCK_BYTES {
                let mut full = self.block.take()?;
                full.closes = chunk_full.then_some(false);
                return Some(full);
            }
        }
    }

    /// What is left at the end of the shard; it closes the shard's last chunk, which may be empty.
    fn last_block(&mut self) -> Block {
        let mut block = self.block.take().unwrap_or_else(|| Block::new(self.chunk(self.next_row), self.spares));
        block.closes = Some(true);
        block
    }
}

impl Block {
    fn new(id: ChunkId, spares: &Spares) -> Self {
        let mut data = spares.take();
        data.clear();
        Self {
            id,
            closes: None,
            tally: Tally::default(),
            bad: Vec::new(),
            heads: RowHeads::default(),
            row_numbers: Vec::new(),
            data,
            ends: Vec::new(),
            held: None,
        }
    }

    /// Bytes of its rows, as they came and as they are labelled.
    fn bytes(&self) -> usize {
        self.data.len() + self.heads.stored_bytes() as usize
    }

    /// Puts a row where it belongs: to be decoded, skipped or quarantined.
    fn take(&mut self, row: ImageRow<'_>, wanted: &Wanted, seen: &mut Seen) {
        self.tally.rows += 1;
        match row {
            ImageRow::Ok { row, image_url, base64 } => {
                let hash = url_hash(image_url);
                if self.skip(hash, wanted, seen) {
                    return;
                }
                self.heads.push(image_url, wanted.labels(hash));
                self.row_numbers.push(row);
                self.data.extend_from_slice(base64);
                self.ends.push(self.data.len());
            }
            ImageRow::Bad { row, reason, detail, image_url } => {
                // A row whose URL is sound is judged by it like any other before its data are.
                let hash = image_url.as_deref().filter(|_| reason == ImageRowProblem::MissingData).map(url_hash);
                if hash.is_some_and(|hash| self.skip(hash, wanted, seen)) {
                    return;
                }
                *self.tally.quarantined.entry(reason.as_str().to_owned()).or_default() += 1;
                self.bad.push(Quarantined { row, image_url, reason: reason.as_str().to_owned(), detail });
            }
        }
    }

    fn skip(&mut self, hash: u64, wanted: &Wanted, seen: &mut Seen) -> bool {
        let reason = if !wanted.wants(hash) {
            match wanted {
                Wanted::Urls(_) => "no_id",
                Wanted::Everything | Wanted::Index(_) => "no_label",
            }
        } else if !seen.first(hash) {
            "duplicate_url"
        } else {
            return false;
        };
        *self.tally.skipped.entry(reason.to_owned()).or_default() += 1;
        true
    }
}
