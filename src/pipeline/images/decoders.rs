//! Blocks of encoded images → blocks of decoded images. All threads of the pool work on one block at a time.
//!
//! Each thread takes the next row of the current block, and moves on to the next block when no row is left. A block
//! thus completes soon after it starts: few blocks lie between reader and writer, and no thread finishes the last block
//! alone.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::block::{Block, Boundary};
use super::content::{RowContent, RowDecoder, RowError};
use super::memory::MAX_REUSED_BYTES;
use super::{StreamJob, Views};
use crate::chunk::quarantine::Quarantined;
use crate::chunk::{ChunkId, RowMeta, Tally};
use crate::decode::View;
use crate::pipeline::error::PipelineError;
use crate::runtime::{BufferPool, ByteBudget, BytePermit, CpuPool, JobPanicked, channel};
use crate::telemetry::{Activity, StageTimer};

/// A block with the pixels of its images.
pub(super) struct DecodedBlock {
    pub(super) id: ChunkId,
    pub(super) boundary: Boundary,
    pub(super) next_offset: Option<u64>,
    pub(super) tally: Tally,
    pub(super) quarantined: Vec<Quarantined>,
    /// URL, labels and view of each image.
    pub(super) rows: RowMeta,
    pub(super) pixels: Vec<u8>,
    pub(super) memory_permit: Option<BytePermit>,
}

/// Blocks that are being decoded, in order.
pub(super) struct DecodedBlocks {
    blocks: mpsc::Receiver<JoinHandle<Result<DecodedBlock, JobPanicked>>>,
    submitting: AbortOnDropHandle<()>,
}

impl DecodedBlocks {
    /// Waits for the next block; `None` after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<DecodedBlock>, PipelineError> {
        match self.blocks.recv().await {
            Some(block) => Ok(Some(block.await??)),
            // The task panics if the system refuses a thread.
            None => Ok((&mut self.submitting).await.map(|()| None)?),
        }
    }
}

/// Decodes blocks on the pool. Threads borrow decoders from this struct, so that decoder buffers are reused.
#[derive(Clone)]
pub(super) struct Decoders {
    pool: CpuPool,
    content: RowContent,
    views: Option<Views>,
    /// Memory of images being decoded, across all threads.
    decode_budget: ByteBudget,
    /// Buffers for the encoded images of blocks.
    encoded_buffers: BufferPool,
    /// Buffers for the pixels of blocks.
    pixel_buffers: BufferPool,
    idle: Arc<Mutex<Vec<RowDecoder>>>,
    timer: Arc<StageTimer>,
}

impl Decoders {
    /// Creates decoders for at most `max_blocks` blocks at once, including the block being written.
    pub(super) fn new(job: &StreamJob, pool: CpuPool, encoded_buffers: BufferPool, max_blocks: usize) -> Self {
        let timer = job.stage_progress.part(StageTimer::pool("decode", pool.width() as u32));
        Self {
            pool,
            content: job.content.clone(),
            views: job.views,
            decode_budget: ByteBudget::new(job.content.decode_bytes()),
            encoded_buffers,
            pixel_buffers: BufferPool::new(max_blocks, MAX_REUSED_BYTES),
            idle: Arc::default(),
            timer,
        }
    }

    /// Starts to decode at most `max_blocks` blocks at once. The last block taken from the result counts too.
    pub(super) fn start(&self, blocks: mpsc::Receiver<Block>, max_blocks: usize) -> DecodedBlocks {
        let (submitted, decoded) = channel(max_blocks.saturating_sub(1).max(1));
        let submitting = tokio::spawn(self.clone().submit_all(blocks, submitted));
        DecodedBlocks { blocks: decoded, submitting: AbortOnDropHandle::new(submitting) }
    }

    /// Submits one block after the other to the pool, whenever the receiver has room for one more.
    async fn submit_all(
        self,
        mut blocks: mpsc::Receiver<Block>,
        submitted: mpsc::Sender<JoinHandle<Result<DecodedBlock, JobPanicked>>>,
    ) {
        while let Ok(room) = submitted.reserve().await {
            let Some(block) = blocks.recv().await else { break };
            let decoders = self.clone();
            // A thread outside the pool waits for the block.
            room.send(tokio::task::spawn_blocking(move || decoders.decode(block)));
        }
    }

    /// Decodes the rows of a block on the pool. Blocks the thread.
    fn decode(&self, block: Block) -> Result<DecodedBlock, JobPanicked> {
        self.decode_with(block, |rows, work| self.pool.run_on_all(rows, work))
    }

    /// Decodes the rows of a block. `run` executes the work on its threads.
    pub(super) fn decode_with(
        &self,
        mut block: Block,
        run: impl FnOnce(usize, &(dyn Fn() + Sync)) -> Result<(), JobPanicked>,
    ) -> Result<DecodedBlock, JobPanicked> {
        let mut pixels = Vec::new();
        let is_base64 = block.is_base64;
        let rows = Mutex::new(PendingRows {
            views: self.views,
            image_bytes: self.content.decoded_bytes() as usize,
            rows: &block.rows,
            spans: &block.spans,
            next: 0,
            encoded: Remaining(&mut block.encoded),
            buffer: Some(&mut pixels),
            pixels: Remaining(&mut []),
        });
        let failed = Mutex::new(Vec::new());
        run(block.rows.len(), &|| self.decode_rows(&rows, is_base64, &failed))?;
        let done = rows.into_inner().unwrap_or_else(PoisonError::into_inner).next;
        if done < block.rows.len() {
            return Err(JobPanicked);
        }
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(self.drop_failed(block, pixels, failed))
    }

    /// Decodes rows of a block until none is left.
    fn decode_rows(&self, rows: &Mutex<PendingRows<'_>>, is_base64: bool, failed: &Mutex<Vec<(usize, RowError)>>) {
        let started = Instant::now();
        let idle = lock(&self.idle).pop();
        let mut decoder = idle.unwrap_or_else(|| RowDecoder::new(&self.content));
        let mut views = Vec::new();
        let next = |views: &mut Vec<View>| lock(rows).next(views, &self.pixel_buffers);
        while let Some(PendingRow { index, encoded, pixels }) = next(&mut views) {
            let reserve = |bytes| self.decode_budget.acquire_blocking(bytes);
            if let Err(error) = decoder.decode((encoded, is_base64), &views, pixels, reserve) {
                lock(failed).push((index, error));
            }
        }
        lock(&self.idle).push(decoder);
        self.timer.add(Activity::Busy, started.elapsed());
    }

    /// Quarantines the rows that could not be decoded and closes the gaps in the pixels.
    fn drop_failed(&self, block: Block, mut pixels: Vec<u8>, mut failed: Vec<(usize, RowError)>) -> DecodedBlock {
        let image = self.content.decoded_bytes() as usize;
        let Block {
            id,
            boundary,
            next_offset,
            mut tally,
            mut quarantined,
            rows,
            row_numbers,
            encoded,
            memory_permit,
            ..
        } = block;
        self.encoded_buffers.release(encoded);
        failed.sort_by_key(|(index, _)| *index);
        let mut failed = failed.into_iter().peekable();
        let mut kept = RowMeta::with_capacity(rows.len() * Views::per_image(self.views));
        let (mut views, mut offset) = (Vec::new(), 0);
        for (index, row) in row_numbers.into_iter().enumerate() {
            let url = rows.url(index);
            let first = Views::list(self.views, url, &mut views);
            let (from, to, bytes) = (offset, kept.len() * image, views.len() * image);
            offset += bytes;
            if let Some((_, error)) = failed.next_if(|(failed, _)| *failed == index) {
                let reason = error.reason().to_owned();
                *tally.quarantined.entry(reason.clone()).or_default() += 1;
                let image_url = Some(url.to_owned());
                quarantined.push(Quarantined { row, image_url, reason, detail: error.to_string() });
                continue;
            }
            if to < from {
                pixels.copy_within(from..from + bytes, to);
            }
            for (number, _) in (first..).zip(&views) {
                kept.push_view(url, rows.labels(index).iter().copied(), number);
            }
            tally.kept += 1;
        }
        pixels.truncate(kept.len() * image);
        quarantined.sort_by_key(|row| row.row);
        DecodedBlock { id, boundary, next_offset, tally, quarantined, rows: kept, pixels, memory_permit }
    }

    /// Takes back the pixel buffer of a written block.
    pub(super) fn recycle(&self, pixels: Vec<u8>) {
        self.pixel_buffers.release(pixels);
    }

    /// Stops the timer at the end of decoding.
    pub(super) fn finish(self) {
        self.timer.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows of a block that no thread has taken yet.
struct PendingRows<'a> {
    views: Option<Views>,
    /// Size of one view in bytes.
    image_bytes: usize,
    rows: &'a RowMeta,
    spans: &'a [Range<usize>],
    next: usize,
    /// Encoded images from the next row on.
    encoded: Remaining<'a>,
    /// Room for the pixels from the next row on.
    pixels: Remaining<'a>,
    /// Buffer behind `pixels`. It is taken with the first row, when an earlier block has returned its own buffer.
    buffer: Option<&'a mut Vec<u8>>,
}

/// A row for one thread to decode.
struct PendingRow<'a> {
    index: usize,
    encoded: &'a mut [u8],
    pixels: &'a mut [u8],
}

impl<'a> PendingRows<'a> {
    /// Takes the next row and lists its views.
    fn next(&mut self, views: &mut Vec<View>, buffers: &BufferPool) -> Option<PendingRow<'a>> {
        let index = self.next;
        let span = self.spans.get(index)?;
        self.next += 1;
        if let Some(buffer) = self.buffer.take() {
            *buffer = buffers.acquire_sized(self.image_bytes * self.spans.len() * Views::per_image(self.views));
            self.pixels = Remaining(buffer);
        }
        // Dropped duplicates leave gaps.
        let gap = span.start - index.checked_sub(1).map_or(0, |before| self.spans[before].end);
        self.encoded.split_front(gap);
        Views::list(self.views, self.rows.url(index), views);
        let pixels = self.pixels.split_front(self.image_bytes * views.len());
        Some(PendingRow { index, encoded: self.encoded.split_front(span.len()), pixels })
    }
}

/// The rest of a buffer.
struct Remaining<'a>(&'a mut [u8]);

impl<'a> Remaining<'a> {
    /// Splits off the first `bytes` bytes. The buffer must hold that many.
    fn split_front(&mut self, bytes: usize) -> &'a mut [u8] {
        let (front, rest) = std::mem::take(&mut self.0).split_at_mut(bytes);
        self.0 = rest;
        front
    }
}
