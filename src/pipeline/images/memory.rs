//! Memory and queue limits of an image stream.

use super::{StreamJob, Views};
use crate::chunk::pixels::image_bytes;
use crate::config::bytes::{StreamBytes, block_images};
use crate::decode::{HEADER_BYTES, ImageSpec, RETAINED_BYTES};

/// Capacity of the channel between reader and decoders, in blocks.
pub(super) const BLOCKS_WAITING: usize = 2;

/// Upper bound on the number of shards that are read side by side.
pub(crate) const MAX_OPEN_SHARDS: usize = 4;

/// Largest block buffer kept for reuse. A buffer that held a huge image is freed. Idle buffers count on top of
/// `limits.memory`, at most one for each block that was in flight at once.
pub(super) const MAX_REUSED_BYTES: usize = 8 << 20;

/// Returns the bytes of `limits.memory` that each part of a stream takes.
pub(crate) fn stream_bytes(spec: &ImageSpec, threads: usize, chunk_rows: u64) -> StreamBytes {
    let decoders = spec.decode_bytes() + threads as u64 * (RETAINED_BYTES + HEADER_BYTES);
    StreamBytes::new(spec.geometry.output_px(), spec.max_encoded_bytes, decoders, chunk_rows)
}

/// Returns the number of rows that fill a block.
pub(super) fn block_rows(job: &StreamJob) -> usize {
    let images = block_images(image_bytes(job.spec.geometry.output_px()) as u64);
    (images / Views::per_image(job.views)).max(1)
}

/// Upper bound on the blocks between decoder and writer, including the block being written.
///
/// All threads work on one block if it has enough rows for them. One more block per thread keeps all threads busy while
/// the writer is busy.
pub(super) fn max_decoded_blocks(job: &StreamJob, threads: usize) -> usize {
    threads + threads.div_ceil(block_rows(job))
}
