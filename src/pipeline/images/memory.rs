//! Memory and queue limits of an image stream.

use super::{RowContent, StreamJob, Views};
use crate::config::bytes::{StreamBytes, block_images};
use crate::pipeline::inputs::ReadLimits;
use crate::types::ImageFormat;

/// Capacity of the channel between reader and decoders, in blocks.
pub(super) const BLOCKS_WAITING: usize = 2;

/// Upper bound on the number of shards that are read side by side.
pub(crate) const MAX_OPEN_SHARDS: usize = 4;

/// Memory of a shard for what stands beside its images: metadata in JSON, or image files that are read ahead.
const MAX_BESIDE_BYTES: u64 = 32 << 20;

/// Largest block buffer kept for reuse. A buffer that held a huge image is freed. Idle buffers count on top of
/// `limits.memory`, at most one for each block that was in flight at once.
pub(super) const MAX_REUSED_BYTES: usize = 8 << 20;

/// Memory of `limits.memory` for what a format holds beyond rows of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InputMemory {
    /// Bytes of all shards that are open at once.
    pub(super) total_bytes: u64,
    /// Bytes of each.
    pub(super) shard_bytes: u64,
}

/// Returns the memory that the shards of a format take beyond `bytes`, of which at least [`StreamBytes::floor`] is left.
pub(super) fn input_memory(format: ImageFormat, bytes: StreamBytes, memory: u64) -> InputMemory {
    let shards = MAX_OPEN_SHARDS as u64;
    let spare = memory.saturating_sub(bytes.floor()) / 2 / shards;
    let shard_bytes = match format {
        ImageFormat::Auto | ImageFormat::Tsv => 0,
        // Pages may be as large as the memory allows.
        ImageFormat::Parquet => spare,
        ImageFormat::Jsonl | ImageFormat::WebDataset | ImageFormat::Folder => spare.min(MAX_BESIDE_BYTES),
    };
    InputMemory { total_bytes: shard_bytes * shards, shard_bytes }
}

/// Returns the limits of a reader.
pub(super) fn read_limits(format: ImageFormat, content: &RowContent, bytes: StreamBytes, memory: u64) -> ReadLimits {
    let InputMemory { shard_bytes, .. } = input_memory(format, bytes, memory);
    ReadLimits {
        max_encoded_bytes: content.max_encoded_bytes(),
        max_record_bytes: content.max_record_bytes(),
        // The buffer of a line doubles as it grows.
        max_json_bytes: (shard_bytes / 2) as usize,
        max_page_bytes: shard_bytes,
    }
}

/// Returns the number of rows that fill a block.
pub(super) fn block_rows(job: &StreamJob) -> usize {
    let images = block_images(job.content.decoded_bytes());
    (images / Views::per_image(job.views)).max(1)
}

/// Upper bound on the blocks between decoder and writer, including the block being written.
///
/// All threads work on one block if it has enough rows for them. One more block per thread keeps all threads busy while
/// the writer is busy.
pub(super) fn max_decoded_blocks(job: &StreamJob, threads: usize) -> usize {
    threads + threads.div_ceil(block_rows(job))
}
