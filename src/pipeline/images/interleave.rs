//! Slots, each of which reads one shard at a time → one sequence of blocks, chunk by chunk.
//!
//! Shards are independent: the order in which their chunks follow each other is free. The next chunk comes from a slot
//! whose blocks are ready.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::block::{Block, Boundary};
use super::read_ahead::{ReadAhead, read_into_queue};
use super::resume::PendingShards;
use super::shard_reader::SlotReader;
use super::{StartPoint, StreamJob, Views};
use crate::chunk::ChunkId;
use crate::objects::ReadStats;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::runtime::{BufferPool, ByteBudget, channel};
use crate::telemetry::{Activity, Party, StageTimer};

/// Upper bound on the queued blocks of a slot. The byte limit of the queue applies first, unless blocks are small.
const MAX_QUEUED_BLOCKS: usize = 256;

/// Reads the unfinished shards of a stream.
pub(super) struct Interleaver {
    job: Arc<StreamJob>,
    ctx: RunContext,
    start: StartPoint,
    read_ahead: ReadAhead,
    /// Buffers for base64. The decoders return them.
    buffers: BufferPool,
    timer: Arc<StageTimer>,
    starvation: Arc<Starvation>,
}

/// Sources of blocks.
enum Slots {
    /// One slot, whose blocks are read on demand.
    OnDemand(Box<SlotReader>),
    /// Several slots, whose tasks read blocks ahead.
    Ahead(Vec<Slot>),
}

/// A slot with a task that reads ahead.
struct Slot {
    blocks: mpsc::Receiver<Block>,
    task: AbortOnDropHandle<Result<(), PipelineError>>,
    stats: Arc<ReadStats>,
}

impl Slots {
    /// Returns the next block of slot `index`; `None` once the slot has ended.
    async fn next_block(&mut self, index: usize) -> Result<Option<Block>, PipelineError> {
        match self {
            Self::OnDemand(reader) => reader.next_block().await,
            Self::Ahead(slots) => match slots[index].blocks.recv().await {
                Some(block) => Ok(Some(block)),
                None => (&mut slots[index].task).await?.map(|()| None),
            },
        }
    }

    /// Waits until a slot has a block, preferably one after slot `last`, and returns both. Removes slots that have
    /// ended; returns `None` after the last one.
    async fn next_chunk(&mut self, last: usize) -> Result<Option<(usize, Block)>, PipelineError> {
        let slots = match self {
            Self::OnDemand(reader) => return Ok(reader.next_block().await?.map(|block| (0, block))),
            Self::Ahead(slots) => slots,
        };
        while !slots.is_empty() {
            let (index, block) = poll_fn(|context| {
                let count = slots.len();
                for index in (0..count).map(|step| (last + 1 + step) % count) {
                    if let Poll::Ready(block) = slots[index].blocks.poll_recv(context) {
                        return Poll::Ready((index, block));
                    }
                }
                Poll::Pending
            })
            .await;
            if let Some(block) = block {
                return Ok(Some((index, block)));
            }
            slots.remove(index).task.await??;
        }
        Ok(None)
    }

    /// Returns the counters of slot `index`, or of all slots.
    fn stats(&self, index: Option<usize>) -> Vec<Arc<ReadStats>> {
        match self {
            Self::OnDemand(reader) => vec![Arc::clone(reader.stats())],
            Self::Ahead(slots) => {
                let chosen = slots.iter().enumerate().filter(|(slot, _)| index.is_none_or(|index| index == *slot));
                chosen.map(|(_, slot)| Arc::clone(&slot.stats)).collect()
            }
        }
    }
}

impl Interleaver {
    pub(super) fn new(
        job: Arc<StreamJob>,
        ctx: RunContext,
        start: StartPoint,
        read_ahead: ReadAhead,
        buffers: BufferPool,
    ) -> Self {
        let starvation = Arc::new(Starvation::default());
        let measured = Arc::clone(&starvation);
        let timer = StageTimer::serial("read rows").starved_by(Party::Store).starvation(move || measured.total());
        let timer = job.stage_progress.part(timer);
        Self { job, ctx, start, read_ahead, buffers, timer, starvation }
    }

    /// Starts the slots of the read-ahead, which share the pending shards.
    fn open_slots(&mut self) -> Slots {
        let seen = std::mem::take(&mut self.start.seen);
        let pending = Arc::new(PendingShards::new(&self.start.pending, seen, &self.start.offsets));
        let open =
            || SlotReader::new(Arc::clone(&self.job), self.ctx.clone(), self.buffers.clone(), Arc::clone(&pending));
        if self.read_ahead.slots == 1 {
            return Slots::OnDemand(Box::new(open()));
        }
        let ahead = (0..self.read_ahead.slots).map(|_| {
            let reader = open();
            let stats = Arc::clone(reader.stats());
            let (blocks_in, blocks) = channel(MAX_QUEUED_BLOCKS);
            let reading = read_into_queue(reader, ByteBudget::new(self.read_ahead.queue_bytes), blocks_in);
            Slot { blocks, task: AbortOnDropHandle::new(tokio::spawn(reading)), stats }
        });
        Slots::Ahead(ahead.collect())
    }

    /// Sends the blocks of all shards, chunk by chunk, until the last shard ends or the run has to stop.
    pub(super) async fn run(mut self, blocks: mpsc::Sender<Block>) -> Result<(), PipelineError> {
        let mut progress = ReadProgress::new(&self.job, &self.start.pending);
        let (mut slots, mut last) = (self.open_slots(), 0);
        loop {
            self.starvation.begin(slots.stats(None));
            let first = slots.next_chunk(last).await?;
            self.starvation.end();
            let Some((slot, mut block)) = first else { break };
            last = slot;
            loop {
                self.job.stage_progress.add(block.tally.rows);
                progress.add_block(&block, &self.job);
                let boundary = block.boundary;
                if !self.timer.wait(Activity::Blocked, self.send(block, &blocks)).await {
                    return Ok(());
                }
                if boundary != Boundary::None {
                    break;
                }
                self.starvation.begin(slots.stats(Some(slot)));
                let next = slots.next_block(slot).await?;
                self.starvation.end();
                // A slot that ends within a chunk was asked to stop.
                let Some(next) = next else { return Ok(()) };
                block = next;
            }
        }
        if !self.ctx.shutdown.is_raised() {
            self.timer.end();
            self.job.stage_progress.set_total(self.job.stage_progress.progress().0);
        }
        Ok(())
    }

    /// Sends a block once its bytes fit the budget. Returns false if the receiver is gone or the run has to stop.
    async fn send(&self, mut block: Block, blocks: &mpsc::Sender<Block>) -> bool {
        let Self { job, ctx, .. } = self;
        let pixels = block.rows.len() * Views::per_image(job.views) * job.content.decoded_bytes() as usize;
        // A row can have more labels than the planned block size allows. The permit is capped at that size, because a
        // larger permit might never be granted. The cap is safe because the labels are in the join index anyway.
        let most = job.content.stream_bytes(ctx.pool.width(), job.chunk_rows).block;
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

/// Time for which the interleaver waited for slots that all waited for the store.
#[derive(Default)]
struct Starvation(Mutex<StarvationState>);

#[derive(Default)]
struct StarvationState {
    /// Earlier waits.
    past: Duration,
    /// Slots that the interleaver waits for, and their total waits when it began.
    current: Vec<(Arc<ReadStats>, Duration)>,
}

impl StarvationState {
    fn current(&self) -> Duration {
        let waits = self.current.iter().map(|(stats, before)| stats.waited().saturating_sub(*before));
        waits.min().unwrap_or_default()
    }
}

impl Starvation {
    fn begin(&self, stats: Vec<Arc<ReadStats>>) {
        let with_wait = |stats: Arc<ReadStats>| {
            let before = stats.waited();
            (stats, before)
        };
        self.state().current = stats.into_iter().map(with_wait).collect();
    }

    fn end(&self) {
        let mut state = self.state();
        let wait = state.current();
        state.past += wait;
        state.current.clear();
    }

    fn total(&self) -> Duration {
        let state = self.state();
        state.past + state.current()
    }

    fn state(&self) -> MutexGuard<'_, StarvationState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Estimates the total number of rows from the share of stored bytes read.
struct ReadProgress {
    /// Bytes of all shards of the part.
    total: u64,
    /// Bytes of the shards that have ended.
    ended: u64,
    /// Bytes read of each open shard.
    open: BTreeMap<u32, u64>,
    /// Rows by earlier processes of shards that this process has not opened yet. The size of those rows is unknown.
    unopened: BTreeMap<u32, u64>,
}

impl ReadProgress {
    fn new(job: &StreamJob, pending: &[ChunkId]) -> Self {
        let own = || (0..).zip(job.shards.iter()).filter(|(index, _)| job.part.contains(*index));
        let is_ended = |index: u32| pending.iter().all(|next| next.shard != index);
        Self {
            total: own().map(|(_, shard)| shard.size).sum(),
            ended: own().filter(|(index, _)| is_ended(*index)).map(|(_, shard)| shard.size).sum(),
            open: BTreeMap::new(),
            unopened: pending.iter().map(|next| (next.shard, next.row)).collect(),
        }
    }

    fn add_block(&mut self, block: &Block, job: &StreamJob) {
        let (shard, read) = (block.id.shard, block.read_bytes);
        self.unopened.remove(&shard);
        job.stage_progress.shard(shard as usize, |shard| shard.read_bytes = read);
        if block.boundary == Boundary::Shard {
            self.open.remove(&shard);
            self.ended += job.shards[shard as usize].size;
        } else {
            self.open.insert(shard, read);
        }
        let rows = job.stage_progress.progress().0.saturating_sub(self.unopened.values().sum());
        let read = self.ended + self.open.values().sum::<u64>();
        if read > 0 {
            job.stage_progress.set_total((rows as f64 * self.total as f64 / read as f64).round() as u64);
        }
    }
}
