//! Several lanes of shards → one row of blocks in the order of the schedule, without the rows whose URL was taken before.
//!
//! Where there is memory, lanes read ahead of their turn, each on a task of its own and up to its share; else each reads in its turn
//! alone. The blocks are the same either way.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::super::PipelineError;
use super::reader::LaneReader;
use super::{Block, RunContext, StreamJob, THE_STORE, Views, stream_bytes, takes_its_url};
use crate::catalog::{UrlDedup, url_hash};
use crate::chunk::Tally;
use crate::chunk::pixels::image_bytes;
use crate::chunk::schedule::Schedule;
use crate::config::bytes::{QUARANTINED_BYTES, StreamBytes, in_pages};
use crate::objects::{Object, ReadStats};
use crate::runtime::{BufferPool, ByteBudget, BytePermit, channel};
use crate::telemetry::{Activity, StageTimer};

/// Blocks of a lane that wait for its turn; the bytes of its share are the bound, and blocks can be small.
const BLOCKS_AHEAD: usize = 256;
/// Decoding threads that one lane has enough images for.
const FED_BY_ONE: u64 = 6;
/// Text of blocks ahead, for each decoding thread and lane: what makes a turn's chunk come from memory where one lane is not enough
/// for them.
const AHEAD_BYTES_PER_WORKER: u64 = 8 << 20;
/// The same, for all threads together, where one lane is enough. Reading ahead pays there if few rows are wanted, which do not take
/// more.
const AHEAD_BYTES: u64 = 2 << 20;
/// What the buffer of a block that waits may have beside its text and as much again.
const SLACK_BYTES: usize = 1 << 20;
/// What an image of the corpus takes as text, about.
const USUAL_TEXT_BYTES: u64 = 64 << 10;

/// How far lanes read ahead of their turn.
pub(super) struct ReadAhead {
    /// Lanes that do beside the one in turn; 0: each reads in its turn.
    lanes: usize,
    /// Text that each of them holds, or one block of more.
    queue_bytes: u64,
    /// All that they take of `limits.memory`.
    _held: Option<BytePermit>,
}

impl ReadAhead {
    /// As many lanes as have enough to do and as there is memory for beside the blocks that are decoded.
    pub(super) async fn plan(schedule: &Schedule, machine: &RunContext, bytes: StreamBytes, blocks: usize) -> Self {
        let workers = machine.pool.width() as u64;
        let free = machine.budget.limit_bytes().saturating_sub(machine.budget.in_flight_bytes());
        let left = free.saturating_sub(bytes.block + blocks as u64 * bytes.usual_block(USUAL_TEXT_BYTES));
        let enough = if workers > FED_BY_ONE { workers * AHEAD_BYTES_PER_WORKER } else { AHEAD_BYTES };
        // A lane reads at the rate at which several threads decode; where few rows are wanted, at which one looks through them.
        for lanes in (1..schedule.unfinished_slots().min(workers as usize)).rev() {
            let (own, queues) = (lanes as u64 * bytes.reader, lanes as u64 + 1);
            let share = left.saturating_sub(own) / queues;
            // A block over the queue's bytes has it for itself, so there has to be room for the largest.
            if share >= bytes.text {
                let queue_bytes = share.min(enough);
                let held = machine.budget.acquire(own + queues * queue_bytes.max(bytes.text)).await;
                return Self { lanes, queue_bytes, _held: Some(held) };
            }
        }
        Self { lanes: 0, queue_bytes: 0, _held: None }
    }

    /// Buffers of blocks that wait ahead, which take 512 KiB each, or more and are fewer.
    pub(super) fn buffers(&self) -> usize {
        (self.lanes + usize::from(self.lanes > 0)) * (self.queue_bytes >> 19) as usize
    }
}

/// What the lanes share.
pub(super) struct Lanes {
    pub(super) job: Arc<StreamJob>,
    pub(super) machine: RunContext,
    pub(super) schedule: Schedule,
    pub(super) ahead: ReadAhead,
    /// Buffers of base64, which come back from the decoders.
    pub(super) texts: BufferPool,
}

/// A lane as the reader of all has it.
enum Source {
    Here(Box<LaneReader>),
    ReadAhead(mpsc::Receiver<Block>, AbortOnDropHandle<Result<(), PipelineError>>),
}

impl Source {
    async fn next(&mut self) -> Result<Option<Block>, PipelineError> {
        match self {
            Self::Here(lane) => lane.next_block().await,
            Self::ReadAhead(blocks, reading) => match blocks.recv().await {
                Some(block) => Ok(Some(block)),
                None => reading.await?.map(|()| None),
            },
        }
    }
}

/// The store's part in waiting for the lane in turn: what it waited before, and the lane that is waited for since.
#[derive(Default)]
struct Starvation(Mutex<Waited>);

#[derive(Default)]
struct Waited {
    before: Duration,
    /// And how long that lane had waited when its turn came.
    since: Option<(Arc<ReadStats>, Duration)>,
}

impl Starvation {
    fn begin(&self, intake: &Arc<ReadStats>) {
        self.end();
        let before = intake.waited();
        self.state().since = Some((Arc::clone(intake), before));
    }

    fn end(&self) {
        let mut state = self.state();
        if let Some((intake, before)) = state.since.take() {
            state.before += intake.waited().saturating_sub(before);
        }
    }

    fn so_far(&self) -> Duration {
        let Waited { before, since } = &*self.state();
        let now = since.as_ref().map_or(Duration::ZERO, |(intake, before)| intake.waited().saturating_sub(*before));
        *before + now
    }

    fn state(&self) -> MutexGuard<'_, Waited> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of the stored bytes the rows handed on come from.
struct Progress {
    all: u64,
    /// Of shards that have ended.
    ended: u64,
    /// Of the open shard of each lane; `None` where rows of it were read by an earlier process and nothing by this one, so that nobody
    /// knows how much that is.
    open: Vec<Option<u64>>,
}

impl Progress {
    fn new(shards: &[Object], schedule: &Schedule) -> Self {
        let ended = shards.iter().enumerate().filter(|(index, _)| schedule.is_past(*index as u32));
        Self {
            all: shards.iter().map(|shard| shard.size).sum(),
            ended: ended.map(|(_, shard)| shard.size).sum(),
            open: schedule.slots().iter().map(|at| (at.row == 0).then_some(0)).collect(),
        }
    }

    fn note(&mut self, lane: usize, block: &Block, job: &StreamJob) {
        let (shard, read) = (block.id.shard as usize, block.read_bytes);
        self.open[lane] = Some(read);
        job.stage_progress.shard(shard, |shard| shard.read_bytes = read);
        if block.closes == Some(true) {
            self.open[lane] = Some(0);
            self.ended += job.shards[shard].size;
        }
        let Some(open) = self.open.iter().copied().sum::<Option<u64>>() else { return };
        let (done, read) = (job.stage_progress.progress().0, self.ended + open);
        if read > 0 {
            job.stage_progress.set_total((done as f64 * self.all as f64 / read as f64).round() as u64);
        }
    }
}

impl Lanes {
    /// Opens each lane where the schedule has it; `turn` says which chunk is in turn.
    fn sources(&self, turn: &watch::Receiver<u64>) -> Vec<(Arc<ReadStats>, Source)> {
        let (count, number) = (self.schedule.slots().len(), self.schedule.number());
        let source = |(lane, at)| {
            let reader = LaneReader::new(Arc::clone(&self.job), self.machine.clone(), self.texts.clone(), at, count);
            let intake = Arc::clone(reader.intake());
            if self.ahead.lanes == 0 {
                return (intake, Source::Here(Box::new(reader)));
            }
            let first = number + ((lane + count - self.schedule.slot()) % count) as u64;
            let (blocks_in, blocks) = channel(BLOCKS_AHEAD);
            let ahead = AheadReader {
                turn: turn.clone(),
                number: first,
                step: count as u64,
                ahead: self.ahead.lanes as u64,
                room: ByteBudget::new(self.ahead.queue_bytes),
            };
            let task = AbortOnDropHandle::new(tokio::spawn(ahead.run(reader, blocks_in)));
            (intake, Source::ReadAhead(blocks, task))
        };
        self.schedule.slots().iter().copied().enumerate().map(source).collect()
    }

    /// Reads the shards and sends their blocks on, in the order of the schedule.
    pub(super) async fn run(mut self, mut seen: UrlDedup, blocks: mpsc::Sender<Block>) -> Result<(), PipelineError> {
        let (job, machine) = (Arc::clone(&self.job), self.machine.clone());
        let starvation = Arc::new(Starvation::default());
        let so_far = Arc::clone(&starvation);
        let clock = StageTimer::serial("read rows").starved_by(THE_STORE).starvation(move || so_far.so_far());
        let clock = job.stage_progress.part(clock);
        let (turn, turns) = watch::channel(self.schedule.number());
        let mut sources = self.sources(&turns);
        let mut progress = Progress::new(&job.shards, &self.schedule);
        let mut rows = 0;
        while self.schedule.next().is_some() {
            let lane = self.schedule.slot();
            let Some((intake, source)) = sources.get_mut(lane) else { break };
            starvation.begin(intake);
            let block = source.next().await?;
            starvation.end();
            let Some(mut block) = block else { return Ok(()) };
            block.drop_taken(&mut seen);
            rows += block.tally.rows;
            job.stage_progress.add(block.tally.rows);
            progress.note(lane, &block, &job);
            let closes = block.closes;
            if !clock.wait(Activity::Blocked, hand_on(block, &job, &machine, &blocks)).await {
                return Ok(());
            }
            if let Some(last) = closes {
                self.schedule.advance(std::mem::take(&mut rows), last);
                turn.send_replace(self.schedule.number());
            }
        }
        clock.end();
        job.stage_progress.set_total(job.stage_progress.progress().0);
        Ok(())
    }
}

/// A lane's reader on a task of its own.
struct AheadReader {
    turn: watch::Receiver<u64>,
    /// Number of the lane's next chunk, and what the one after has more.
    number: u64,
    step: u64,
    /// Chunks that may be read beside the one in turn.
    ahead: u64,
    room: ByteBudget,
}

impl AheadReader {
    async fn run(mut self, mut lane: LaneReader, blocks: mpsc::Sender<Block>) -> Result<(), PipelineError> {
        // The turn is over for good once nobody says whose it is.
        while self.turn.wait_for(|turn| self.number <= turn + self.ahead).await.is_ok() {
            loop {
                let Some(mut block) = lane.next_block().await? else { return Ok(()) };
                let closes = block.closes.is_some();
                // Buffers go from lane to lane; one in which large images were is not kept for small ones.
                if block.data.capacity() > 2 * block.data.len() + SLACK_BYTES {
                    block.data.shrink_to_fit();
                }
                let bytes = block.bytes() + block.bad.len() * QUARANTINED_BYTES as usize;
                block.queued = Some(self.room.acquire(bytes as u64).await);
                if blocks.send(block).await.is_err() {
                    return Ok(());
                }
                if closes {
                    break;
                }
            }
            self.number += self.step;
        }
        Ok(())
    }
}

/// Sends a block on once its bytes fit the budget; false when nobody takes it any more or the run stops.
async fn hand_on(mut block: Block, job: &StreamJob, machine: &RunContext, blocks: &mpsc::Sender<Block>) -> bool {
    let pixels = block.heads.len() * Views::most(job.views) * image_bytes(job.spec.geometry.output_px());
    // A row with more labels than a block has room for takes all the room: its labels are those of the join index.
    let most = stream_bytes(&job.spec, machine.pool.width(), job.chunk_rows).block;
    let bytes = (block.bytes() as u64 + in_pages(pixels as u64)).min(most);
    let send = async {
        block.held = Some(machine.budget.acquire(bytes).await);
        block.queued = None;
        blocks.send(block).await.is_ok()
    };
    tokio::select! {
        sent = send => sent,
        () = machine.stop.raised() => false,
    }
}

impl Block {
    /// Takes the URLs of its rows, in their order; rows whose URL was taken before are duplicates.
    fn drop_taken(&mut self, seen: &mut UrlDedup) {
        let mut taken = BTreeSet::new();
        let mut take = |row: u64, url: u64| {
            if !seen.insert(url) {
                taken.insert(row);
            }
        };
        let sound = self.bad.iter().filter(|bad| takes_its_url(&bad.reason));
        let mut bad = sound.filter_map(|bad| Some((bad.row, url_hash(bad.image_url.as_deref()?)))).peekable();
        for (index, row) in self.row_numbers.iter().enumerate() {
            while let Some((row, url)) = bad.next_if(|(bad, _)| bad < row) {
                take(row, url);
            }
            take(*row, url_hash(self.heads.url(index)));
        }
        bad.for_each(|(row, url)| take(row, url));
        if taken.is_empty() {
            return;
        }
        let heads = std::mem::take(&mut self.heads);
        let kept: Vec<usize> = (0..heads.len()).filter(|index| !taken.contains(&self.row_numbers[*index])).collect();
        for index in &kept {
            self.heads.push(heads.url(*index), heads.labels(*index).iter().copied());
        }
        self.texts = kept.iter().map(|index| self.texts[*index].clone()).collect();
        self.row_numbers = kept.iter().map(|index| self.row_numbers[*index]).collect();
        let Tally { skipped, quarantined, .. } = &mut self.tally;
        self.bad.retain(|bad| {
            let duplicate = taken.contains(&bad.row);
            if let Some(count) = quarantined.get_mut(&bad.reason).filter(|_| duplicate) {
                *count -= 1;
            }
            !duplicate
        });
        quarantined.retain(|_, count| *count > 0);
        *skipped.entry("duplicate_url".to_owned()).or_default() += taken.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ImageFilter;
    use crate::chunk::quarantine::Quarantined;
    use crate::chunk::{ChunkId, RowMeta};
    use crate::corpus::ImageRowProblem;

    #[test]
    fn rows_whose_url_was_taken_go_with_their_text_and_their_reason() {
        let mut heads = RowMeta::default();
        for url in ["a", "b", "a", "c"] {
            heads.push(url, [7]);
        }
        let bad = |row, url: &str, reason: ImageRowProblem| Quarantined {
            row,
            image_url: Some(url.to_owned()),
            reason: reason.as_str().to_owned(),
            detail: String::new(),
        };
        let missing = ImageRowProblem::MissingData;
        // The second bad row takes its URL before the last good one; the third has no URL that counts.
        let bad = vec![bad(1, "a", missing), bad(4, "c", missing), bad(5, "b", ImageRowProblem::UrlTooLong)];
        let quarantined = [("missing_data".to_owned(), 2), ("url_too_long".to_owned(), 1)].into();
        let mut block = Block {
            id: ChunkId { shard: 0, row: 0 },
            closes: None,
            read_bytes: 0,
            tally: Tally { rows: 7, quarantined, ..Tally::default() },
            bad,
            heads,
            row_numbers: vec![0, 2, 3, 6],
            data: Vec::new(),
            texts: vec![0..1, 1..2, 2..3, 3..4],
            queued: None,
            held: None,
        };
        let mut seen = UrlDedup::new(ImageFilter::Everything);
        block.drop_taken(&mut seen);
        let urls: Vec<&str> = (0..block.heads.len()).map(|row| block.heads.url(row)).collect();
        assert_eq!((urls, block.heads.labels(1)), (vec!["a", "b"], &[7][..]));
        assert_eq!((&block.row_numbers[..], &block.texts[..]), (&[0, 2][..], &[0..1, 1..2][..]));
        assert_eq!(block.bad.iter().map(|bad| bad.row).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(block.tally.skipped["duplicate_url"], 3);
        assert_eq!(block.tally.quarantined, [("missing_data".to_owned(), 1), ("url_too_long".to_owned(), 1)].into());
        assert_eq!(seen.len(), 3);
    }
}
