//! Reading ahead: shard slots that fill a queue of blocks before it is their turn.
//!
//! Slots read ahead where `limits.memory` has room for it. The blocks and their order are the same either way.

use tokio::sync::{mpsc, watch};

use super::block::{Block, Boundary};
use super::shard_reader::SlotReader;
use crate::chunk::schedule::Schedule;
use crate::config::bytes::{QUARANTINED_BYTES, StreamBytes};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::runtime::{ByteBudget, BytePermit};

/// Decoding threads that one slot keeps busy by itself.
const THREADS_PER_SLOT: u64 = 6;
/// Base64 that each slot may queue for each decoding thread, where one slot does not keep all threads busy: enough for
/// the slot's chunk to come from memory when its turn comes.
const QUEUE_BYTES_PER_THREAD: u64 = 8 << 20;
/// Base64 that each slot may queue where one slot keeps all threads busy. Reading ahead helps there only if few rows
/// are wanted, and those need no more than this.
const SMALL_QUEUE_BYTES: u64 = 2 << 20;
/// Base64 of a typical image of the corpus.
const TYPICAL_IMAGE_BYTES: u64 = 64 << 10;
/// Spare capacity that the buffer of a queued block may have on top of twice its length.
const MAX_SLACK_BYTES: usize = 1 << 20;

/// How many slots read ahead, and how far.
pub(super) struct ReadAhead {
    /// Slots that read beside the one whose turn it is; 0: each slot reads in its turn alone.
    pub(super) slots: usize,
    /// Base64 that each slot may queue. A single block may be larger.
    pub(super) queue_bytes: u64,
    /// Bytes of `limits.memory` for all queues and readers.
    _permit: Option<BytePermit>,
}

impl ReadAhead {
    /// Chooses the largest number of slots for which the memory suffices beside `blocks` blocks being decoded.
    pub(super) async fn plan(schedule: &Schedule, ctx: &RunContext, bytes: StreamBytes, blocks: usize) -> Self {
        let threads = ctx.pool.width() as u64;
        let free = ctx.budget.limit_bytes().saturating_sub(ctx.budget.in_flight_bytes());
        let left = free.saturating_sub(bytes.block + blocks as u64 * bytes.usual_block(TYPICAL_IMAGE_BYTES));
        let enough = if threads > THREADS_PER_SLOT { threads * QUEUE_BYTES_PER_THREAD } else { SMALL_QUEUE_BYTES };
        for slots in (1..schedule.unfinished_slots().min(threads as usize)).rev() {
            let (readers, queues) = (slots as u64 * bytes.reader, slots as u64 + 1);
            let share = left.saturating_sub(readers) / queues;
            // A block that is larger than the queue occupies it alone, so there must be room for the largest block.
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
    /// Number of the chunk whose turn it is.
    pub(super) turn: watch::Receiver<u64>,
    /// Number of the slot's next chunk.
    pub(super) number: u64,
    /// Distance between two chunk numbers of the slot.
    pub(super) step: u64,
    /// Chunks that may be read beyond the one whose turn it is.
    pub(super) ahead: u64,
    /// Bytes of the slot's queue.
    pub(super) queue: ByteBudget,
}

impl AheadTask {
    /// Sends the blocks of the slot, at most `ahead` chunks early, until its last shard ends or nobody receives them.
    pub(super) async fn run(mut self, mut slot: SlotReader, blocks: mpsc::Sender<Block>) -> Result<(), PipelineError> {
        // The wait fails once the interleaver is gone.
        while self.turn.wait_for(|turn| self.number <= turn + self.ahead).await.is_ok() {
            loop {
                let Some(mut block) = slot.next_block().await? else { return Ok(()) };
                let ends_chunk = block.boundary != Boundary::None;
                // Buffers circulate between slots; one that held large images must not be charged to small ones.
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
