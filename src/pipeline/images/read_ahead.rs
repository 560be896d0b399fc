//! Read-ahead: several shards are read side by side into queues of blocks.
//!
//! One core decompresses one gzipped shard at a time, which feeds about seven decoding cores. Therefore up to
//! [`MAX_OPEN_SHARDS`] shards are open at once, if `limits.memory` has room for it. The chunks are the same either way.

use tokio::sync::mpsc;

use super::block::Block;
use super::memory::MAX_OPEN_SHARDS;
use super::shard_reader::SlotReader;
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

/// Number of slots, each of which reads one shard at a time, and their queue size.
pub(super) struct ReadAhead {
    /// Number of slots. A single slot reads on demand, without a queue.
    pub(super) slots: usize,
    /// Base64 bytes that each slot may queue. A single block may be larger.
    pub(super) queue_bytes: u64,
    /// Permit for the bytes of `limits.memory` that all queues and additional readers take.
    _permit: Option<BytePermit>,
}

impl ReadAhead {
    /// Chooses the largest number of slots that fits the memory in addition to `blocks` blocks being decoded, for
    /// `shards` unfinished shards.
    pub(super) async fn plan(shards: usize, ctx: &RunContext, bytes: StreamBytes, blocks: usize) -> Self {
        let threads = ctx.pool.width() as u64;
        let free = ctx.budget.limit_bytes().saturating_sub(ctx.budget.in_flight_bytes());
        let left = free.saturating_sub(bytes.block + blocks as u64 * bytes.usual_block(TYPICAL_IMAGE_BYTES));
        let enough = if threads > THREADS_PER_SLOT { threads * QUEUE_BYTES_PER_THREAD } else { SMALL_QUEUE_BYTES };
        for slots in (2..=shards.min(MAX_OPEN_SHARDS).min(threads as usize)).rev() {
            let readers = (slots as u64 - 1) * bytes.reader;
            let share = left.saturating_sub(readers) / slots as u64;
            // A block larger than the queue occupies it alone, so there must be room for the largest block.
            if share >= bytes.text {
                let queue_bytes = share.min(enough);
                let permit = ctx.budget.acquire(readers + slots as u64 * queue_bytes.max(bytes.text)).await;
                return Self { slots, queue_bytes, _permit: Some(permit) };
            }
        }
        Self { slots: 1, queue_bytes: 0, _permit: None }
    }

    /// Upper bound on the buffers of queued blocks. A block takes about 512 KiB; larger blocks are fewer.
    pub(super) fn max_buffers(&self) -> usize {
        self.slots * (self.queue_bytes >> 19) as usize
    }
}

/// Sends the blocks of a slot until no shard is left, the run has to stop or the receiver is gone. `queue` limits the
/// bytes of the blocks that wait.
pub(super) async fn read_into_queue(
    mut slot: SlotReader,
    queue: ByteBudget,
    blocks: mpsc::Sender<Block>,
) -> Result<(), PipelineError> {
    while let Some(mut block) = slot.next_block().await? {
        // Slots share buffers. A slot with small images must not pay for a buffer that held large ones.
        if block.encoded.capacity() > 2 * block.encoded.len() + MAX_SLACK_BYTES {
            block.encoded.shrink_to_fit();
        }
        let bytes = block.bytes() + block.quarantined.len() * QUARANTINED_BYTES as usize;
        block.queue_permit = Some(queue.acquire(bytes as u64).await);
        if blocks.send(block).await.is_err() {
            break;
        }
    }
    Ok(())
}
