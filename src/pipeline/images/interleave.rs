//! Several shard slots → one sequence of blocks in the order of the [`Schedule`], without duplicate URLs.
//!
//! The first row of each URL in schedule order is kept, so the order must not depend on timing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::block::{Block, Boundary};
use super::memory::stream_bytes;
use super::read_ahead::{AheadTask, ReadAhead};
use super::shard_reader::SlotReader;
use super::{StreamJob, Views};
use crate::catalog::UrlDedup;
use crate::chunk::pixels::image_bytes;
use crate::chunk::schedule::Schedule;
use crate::objects::{Object, ReadStats};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::runtime::{BufferPool, ByteBudget, channel};
use crate::telemetry::{Activity, Party, StageTimer};

/// Upper bound on the queued blocks of a slot. The byte limit of the queue applies first, unless blocks are small.
const MAX_QUEUED_BLOCKS: usize = 256;

/// Reads the shards of a stream through its slots.
pub(super) struct Interleaver {
    job: Arc<StreamJob>,
    ctx: RunContext,
    schedule: Schedule,
    read_ahead: ReadAhead,
    /// Buffers for base64. The decoders return them.
    buffers: BufferPool,
    timer: Arc<StageTimer>,
    starvation: Arc<Starvation>,
}

/// Source of a slot's blocks.
enum Slot {
    /// Blocks are read on demand.
    OnDemand(Box<SlotReader>),
    /// A task reads blocks ahead.
    Ahead(mpsc::Receiver<Block>, AbortOnDropHandle<Result<(), PipelineError>>),
}

impl Slot {
    async fn next_block(&mut self) -> Result<Option<Block>, PipelineError> {
        match self {
            Self::OnDemand(reader) => reader.next_block().await,
            Self::Ahead(blocks, task) => match blocks.recv().await {
                Some(block) => Ok(Some(block)),
                None => task.await?.map(|()| None),
            },
        }
    }
}

impl Interleaver {
    pub(super) fn new(
        job: Arc<StreamJob>,
        ctx: RunContext,
        schedule: Schedule,
        read_ahead: ReadAhead,
        buffers: BufferPool,
    ) -> Self {
        let starvation = Arc::new(Starvation::default());
        let measured = Arc::clone(&starvation);
        let timer = StageTimer::serial("read rows").starved_by(Party::Store).starvation(move || measured.total());
        let timer = job.stage_progress.part(timer);
        Self { job, ctx, schedule, read_ahead, buffers, timer, starvation }
    }

    /// Opens each slot at its next chunk in the schedule. `turn` holds the number of the current chunk.
    fn open_slots(&self, turn: &watch::Receiver<u64>) -> Vec<(Arc<ReadStats>, Slot)> {
        let (count, number) = (self.schedule.slots().len(), self.schedule.number());
        let open = |(slot, next)| {
            let reader = SlotReader::new(Arc::clone(&self.job), self.ctx.clone(), self.buffers.clone(), next, count);
            let stats = Arc::clone(reader.stats());
            if self.read_ahead.slots == 0 {
                return (stats, Slot::OnDemand(Box::new(reader)));
            }
            let first = number + ((slot + count - self.schedule.slot()) % count) as u64;
            let (blocks_in, blocks) = channel(MAX_QUEUED_BLOCKS);
            let ahead = AheadTask {
                turn: turn.clone(),
                number: first,
                step: count as u64,
                ahead: self.read_ahead.slots as u64,
                queue: ByteBudget::new(self.read_ahead.queue_bytes),
            };
            let task = AbortOnDropHandle::new(tokio::spawn(ahead.run(reader, blocks_in)));
            (stats, Slot::Ahead(blocks, task))
        };
        self.schedule.slots().iter().copied().enumerate().map(open).collect()
    }

    /// Sends the blocks of all shards in schedule order, until the last shard ends or the run has to stop.
    pub(super) async fn run(mut self, mut seen: UrlDedup, blocks: mpsc::Sender<Block>) -> Result<(), PipelineError> {
        let job = Arc::clone(&self.job);
        let (turn, turns) = watch::channel(self.schedule.number());
        let mut slots = self.open_slots(&turns);
        let mut progress = ReadProgress::new(&job.shards, &self.schedule);
        let mut rows = 0;
        while self.schedule.next().is_some() {
            let index = self.schedule.slot();
            let Some((stats, slot)) = slots.get_mut(index) else { break };
            self.starvation.begin(stats);
            let block = slot.next_block().await?;
            self.starvation.end();
            let Some(mut block) = block else { return Ok(()) };
            block.drop_duplicates(&mut seen);
            rows += block.tally.rows;
            job.stage_progress.add(block.tally.rows);
            progress.add_block(index, &block, &job);
            let boundary = block.boundary;
            if !self.timer.wait(Activity::Blocked, self.send(block, &blocks)).await {
                return Ok(());
            }
            if boundary != Boundary::None {
                self.schedule.advance(std::mem::take(&mut rows), boundary == Boundary::Shard);
                turn.send_replace(self.schedule.number());
            }
        }
        self.timer.end();
        job.stage_progress.set_total(job.stage_progress.progress().0);
        Ok(())
    }

    /// Sends a block once its bytes fit the budget. Returns false if the receiver is gone or the run has to stop.
    async fn send(&self, mut block: Block, blocks: &mpsc::Sender<Block>) -> bool {
        let Self { job, ctx, .. } = self;
        let pixels = block.rows.len() * Views::per_image(job.views) * image_bytes(job.spec.geometry.output_px());
        // A row can have more labels than the planned block size allows. The permit is capped at that size, because a
        // larger permit might never be granted. The cap is safe because the labels are in the join index anyway.
        let most = stream_bytes(&job.spec, ctx.pool.width(), job.chunk_rows).block;
        let bytes = (block.bytes() as u64 + pixels as u64).min(most);
        let send = async {
            block.memory_permit = Some(ctx.budget.acquire(bytes).await);
            block.queue_permit = None;
            blocks.send(block).await.is_ok()
        };
        tokio::select! {
            sent = send => sent,
            () = ctx.shutdown.raised() => false,
        }
    }
}

/// Time that each slot spent waiting for the store in its turn.
#[derive(Default)]
struct Starvation(Mutex<StarvationState>);

#[derive(Default)]
struct StarvationState {
    /// Waits of earlier turns.
    past: Duration,
    /// Current slot, and its total wait when its turn began.
    current: Option<(Arc<ReadStats>, Duration)>,
}

impl Starvation {
    fn begin(&self, stats: &Arc<ReadStats>) {
        self.end();
        let before = stats.waited();
        self.state().current = Some((Arc::clone(stats), before));
    }

    fn end(&self) {
        let mut state = self.state();
        if let Some((stats, before)) = state.current.take() {
            state.past += stats.waited().saturating_sub(before);
        }
    }

    fn total(&self) -> Duration {
        let StarvationState { past, current } = &*self.state();
        let now = current.as_ref().map_or(Duration::ZERO, |(stats, before)| stats.waited().saturating_sub(*before));
        *past + now
    }

    fn state(&self) -> MutexGuard<'_, StarvationState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Estimates the total number of rows from the share of stored bytes read.
struct ReadProgress {
    /// Bytes of all shards.
    total: u64,
    /// Bytes of the shards that have ended.
    ended: u64,
    /// Bytes read of each slot's open shard. `None` if an earlier process read rows of the shard and this process none
    /// yet: the size of those rows is unknown.
    open: Vec<Option<u64>>,
}

impl ReadProgress {
    fn new(shards: &[Object], schedule: &Schedule) -> Self {
        let ended = shards.iter().enumerate().filter(|(index, _)| schedule.is_past(*index as u32));
        Self {
            total: shards.iter().map(|shard| shard.size).sum(),
            ended: ended.map(|(_, shard)| shard.size).sum(),
            open: schedule.slots().iter().map(|next| (next.row == 0).then_some(0)).collect(),
        }
    }

    fn add_block(&mut self, slot: usize, block: &Block, job: &StreamJob) {
        let (shard, read) = (block.id.shard as usize, block.read_bytes);
        self.open[slot] = Some(read);
        job.stage_progress.shard(shard, |shard| shard.read_bytes = read);
        if block.boundary == Boundary::Shard {
            self.open[slot] = Some(0);
            self.ended += job.shards[shard].size;
        }
        let Some(open) = self.open.iter().copied().sum::<Option<u64>>() else { return };
        let (rows, read) = (job.stage_progress.progress().0, self.ended + open);
        if read > 0 {
            job.stage_progress.set_total((rows as f64 * self.total as f64 / read as f64).round() as u64);
        }
    }
}
