//! Read-ahead: shard slots fill queues of blocks before their turn.
//!
//! Slots read ahead if `limits.memory` has room for it. The blocks and their order are the same either way.

use tokio::sync::{mpsc, watch};

use super::block::{Block, Boundary};
use super::shard_reader::SlotReader;
use crate::chunk::schedule::Schedule;
use crate::config::bytes::{QUARANTINED_BYTES, StreamBytes};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::runtime::{ByteBudget, BytePermit};

/// Number of decoding threads that one slot alone keeps busy.
const THREADS_PER_SLOT: u64 = 6;
/// Base64 bytes that each slot may queue per decoding thread, if one slot cannot keep all threads busy. The queue then
/// holds enough to serve the slot's chunk from memory when its turn comes.
const QUEUE_BYTES_PER_THREAD: u64 = 8 << 20;
/// Base64 bytes that each slot may queue if one slot keeps all threads busy. Read-ahead then helps only if few rows are
/// wanted, and those need no more than this.
const SMALL_QUEUE_BYTES: u64 = 2 << 20;
/// Base64 bytes of a typical image of the corpus.
const TYPICAL_IMAGE_BYTES: u64 = 64 << 10;
/// Upper bound on the capacity of a queued block's buffer beyond twice its length.
const MAX_SLACK_BYTES: usize = 1 << 20;

/// Number of slots that read ahead, and their queue size.
pub(super) struct ReadAhead {
    /// Number of slots that read in addition to the current slot. With 0, each slot reads only in its turn.
    pub(super) slots: usize,
    /// Base64 bytes that each slot may queue. A single block may be larger.
    pub(super) queue_bytes: u64,
    /// Permit for the bytes of `limits.memory` that all queues and readers take.
    _permit: Option<BytePermit>,
}

impl ReadAhead {
    /// Chooses the largest number of slots that fits the memory in addition to `blocks` blocks being decoded.
    pub(super) async fn plan(schedule: &Schedule, ctx: &RunContext, bytes: StreamBytes, blocks: usize) -> Self {
        let threads = ctx.pool.width() as u64;
        let free = ctx.budget.limit_bytes().saturating_sub(ctx.budget.in_flight_bytes());
        let left = free.saturating_sub(bytes.block + blocks as u64 * bytes.usual_block(TYPICAL_IMAGE_BYTES));
        let enough = if threads > THREADS_PER_SLOT { threads * QUEUE_BYTES_PER_THREAD } else { SMALL_QUEUE_BYTES };
        for slots in (1..schedule.unfinished_slots().min(threads as usize)).rev() {
            let (readers, queues) = (slots as u64 * bytes.reader, slots as u64 + 1);
            let share = left.saturating_sub(readers) / queues;
            // A block larger than the queue occupies it alone, so there must be room for the largest block.
            if share >= bytes.text {
                let queue_bytes = share.min(enough);
                let permit = ctx.budget.acquire(readers + queues * queue_bytes.max(bytes.text)).await;
                return Self { slots, queue_bytes, _permit: Some(permit) };
            }
        }
        Self { slots: 0, queue_bytes: 0, _permit: None }
    }

    /// Upper bound on the buffers of queued blocks. A block takes about 512 KiB; larger blocks are fewer.
    pub(super) fn max_buffers(&self) -> usize {
        (self.slots + usize::from(self.slots > 0)) * (self.queue_bytes >> 19) as usize
    }
}

/// Reads one slot on a task of its own.
pub(super) struct AheadTask {
    /// Number of the current chunk in the schedule.
    pub(super) turn: watch::Receiver<u64>,
    /// Number of the slot's next chunk.
    pub(super) number: u64,
    /// Distance between two chunk numbers of the slot.
    pub(super) step: u64,
    /// Number of chunks that may be read beyond the current one.
    pub(super) ahead: u64,
    /// Bytes of the slot's queue.
    pub(super) queue: ByteBudget,
}

impl AheadTask {
    /// Sends the blocks of the slot, at most `ahead` chunks early, until its last shard ends or the receiver is gone.
    pub(super) async fn run(mut self, mut slot: SlotReader, blocks: mpsc::Sender<Block>) -> Result<(), PipelineError> {
        // The wait fails once the interleaver is gone.
        while self.turn.wait_for(|turn| self.number <= turn + self.ahead).await.is_ok() {
            loop {
                let Some(mut block) = slot.next_block().await? else { return Ok(()) };
                let ends_chunk = block.boundary != Boundary::None;
                // Slots share buffers. A slot with small images must not pay for a buffer that held large ones.
                if block.base64.capacity() > 2 * block.base64.len() + MAX_SLACK_BYTES {
                    block.base64.shrink_to_fit();
                }
                let bytes = block.bytes() + block.quarantined.len() * QUARANTINED_BYTES as usize;
                block.queue_permit = Some(self.queue.acquire(bytes as u64).await);
                if blocks.send(block).await.is_err() {
                    return Ok(());
                }
                if ends_chunk {
                    break;
                }
            }
            self.number += self.step;
        }
        Ok(())
    }
}
