//! Blocks of rows → blocks of decoded images, each by all threads of the pool at once.
//!
//! Threads take a block's rows one after the other, and go on with the next block when none is left: a block is done soon after it was
//! begun, so few blocks are between the reader and the writer, and at the end of a run no thread is left alone with the last of them.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::super::PipelineError;
use super::{Block, SPARE_BYTES, StreamJob, Views};
use crate::chunk::quarantine::Quarantined;
use crate::chunk::{ChunkId, RowMeta, Tally, sum_segments};
use crate::decode::{DecodeError, Decoder, ImageSpec, View};
use crate::run_dir::PageBuffer;
use crate::runtime::{BufferPool, ByteBudget, BytePermit, CpuPool, JobPanicked, link};
use crate::telemetry::{Activity, StageTimer};

/// A block's images.
pub(super) struct Decoded {
    pub(super) id: ChunkId,
    pub(super) closes: Option<bool>,
    pub(super) tally: Tally,
    pub(super) bad: Vec<Quarantined>,
    pub(super) heads: RowMeta,
    pub(super) pixels: PageBuffer,
    /// Of the pixels' whole segments, where they will be of use.
    pub(super) sums: Vec<u64>,
    pub(super) held: Option<BytePermit>,
}

/// Blocks on their way through the decoders, in order.
pub(super) struct Decoding {
    blocks: mpsc::Receiver<JoinHandle<Result<Decoded, JobPanicked>>>,
    handing_in: AbortOnDropHandle<()>,
}

impl Decoding {
    /// The next block; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<Decoded>, PipelineError> {
        match self.blocks.recv().await {
            Some(block) => Ok(Some(block.await??)),
            // It may have ended because the system gives no thread.
            None => Ok((&mut self.handing_in).await.map(|()| None)?),
        }
    }
}

/// Threads that decode; each borrows a decoder, so that the decoders' buffers are reused.
#[derive(Clone)]
pub(super) struct Decoders {
    pool: CpuPool,
    spec: ImageSpec,
    views: Option<Views>,
    /// What images that are being decoded take, all together.
    room: ByteBudget,
    /// Buffers of blocks before and behind them.
    texts: BufferPool,
    pixels: BufferPool<PageBuffer>,
    /// Whether what is made is summed.
    summed: bool,
    idle: Arc<Mutex<Vec<Decoder>>>,
    clock: Arc<StageTimer>,
}

impl Decoders {
    /// For at most so many blocks at once, the one that is written included.
    pub(super) fn new(job: &StreamJob, pool: CpuPool, texts: BufferPool, blocks: usize, summed: bool) -> Self {
        let (room, pixels) = (ByteBudget::new(job.spec.decode_bytes()), BufferPool::new(blocks, SPARE_BYTES));
        let clock = job.stage_progress.part(StageTimer::pool("decode", pool.width() as u32));
        Self {
            pool,
            spec: job.spec.clone(),
            views: job.views,
            room,
            texts,
            pixels,
            summed,
            idle: Arc::default(),
            clock,
        }
    }

    /// Has blocks decoded as they come, at most so many of them at once, the last one taken included.
    pub(super) fn start(&self, blocks: mpsc::Receiver<Block>, most: usize) -> Decoding {
        let (handed_in, decoding) = link(most.saturating_sub(1).max(1));
        let handing_in = tokio::spawn(self.clone().hand_in(blocks, handed_in));
        Decoding { blocks: decoding, handing_in: AbortOnDropHandle::new(handing_in) }
    }

    /// Hands one block after the other to the threads, as long as whoever waits for them has room for one more.
    async fn hand_in(
        self,
        mut blocks: mpsc::Receiver<Block>,
        decoding: mpsc::Sender<JoinHandle<Result<Decoded, JobPanicked>>>,
    ) {
        while let Ok(room) = decoding.reserve().await {
            let Some(block) = blocks.recv().await else { break };
            let decoders = self.clone();
            // Somebody has to wait for the threads, who is none of them.
            room.send(tokio::task::spawn_blocking(move || decoders.decode(block)));
        }
    }

    /// Decodes the rows of a block, in order, and waits for that.
    fn decode(&self, block: Block) -> Result<Decoded, JobPanicked> {
        self.decode_by(block, |rows, work| self.pool.all(rows, work))
    }

    /// As [`Self::decode`], by whoever `run` has do the work on so many rows.
    pub(super) fn decode_by(
        &self,
        mut block: Block,
        run: impl FnOnce(usize, &(dyn Fn() + Sync)) -> Result<(), JobPanicked>,
    ) -> Result<Decoded, JobPanicked> {
        let mut pixels = PageBuffer::default();
        let rows = Mutex::new(Untaken {
            views: self.views,
            image: self.spec.pixel_bytes() as usize,
            heads: &block.heads,
            texts: &block.texts,
            next: 0,
            data: Left(&mut block.data),
            buffer: Some(&mut pixels),
            pixels: Left(&mut []),
        });
        let failed = Mutex::new(Vec::new());
        run(block.heads.len(), &|| self.work(&rows, &failed))?;
        let taken = rows.into_inner().unwrap_or_else(PoisonError::into_inner).next;
        if taken < block.heads.len() {
            return Err(JobPanicked);
        }
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(self.gather(block, pixels, failed))
    }

    /// Takes rows of a block until none is left.
    fn work(&self, rows: &Mutex<Untaken<'_>>, failed: &Mutex<Vec<(usize, DecodeError)>>) {
        let started = Instant::now();
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = idle.unwrap_or_else(|| Decoder::new(self.spec.clone()));
        let mut views = Vec::new();
        let next =
            |views: &mut Vec<View>| rows.lock().unwrap_or_else(PoisonError::into_inner).next(views, &self.pixels);
        while let Some(Row { index, text, pixels }) = next(&mut views) {
            if let Err(error) =
                decoder.decode_base64_views(text, &views, pixels, |bytes| self.room.take_blocking(bytes))
            {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push((index, error));
            }
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        self.clock.add(Activity::Busy, started.elapsed());
    }

    /// Leaves out the rows that are no images.
    fn gather(&self, block: Block, mut pixels: PageBuffer, mut failed: Vec<(usize, DecodeError)>) -> Decoded {
        let image = self.spec.pixel_bytes() as usize;
        let Block { id, closes, mut tally, mut bad, heads: rows, row_numbers, data, held, .. } = block;
        self.texts.give(data);
        failed.sort_by_key(|(index, _)| *index);
        let mut failed = failed.into_iter().peekable();
        let mut heads = RowMeta::with_capacity(rows.len() * Views::most(self.views));
        let (mut views, mut place) = (Vec::new(), 0);
        for (index, row) in row_numbers.into_iter().enumerate() {
            let url = rows.url(index);
            let first = Views::of(self.views, url, &mut views);
            let (from, to, bytes) = (place, heads.len() * image, views.len() * image);
            place += bytes;
            if let Some((_, error)) = failed.next_if(|(failed, _)| *failed == index) {
                let reason = error.reason().as_str().to_owned();
                *tally.quarantined.entry(reason.clone()).or_default() += 1;
                bad.push(Quarantined { row, image_url: Some(url.to_owned()), reason, detail: error.to_string() });
                continue;
            }
            if to < from {
                pixels.copy_within(from..from + bytes, to);
            }
            for (number, _) in (first..).zip(&views) {
                heads.push_view(url, rows.labels(index).iter().copied(), number);
            }
            tally.kept += 1;
        }
        pixels.truncate(heads.len() * image);
        bad.sort_by_key(|row| row.row);
        let mut sums = Vec::new();
        if self.summed {
            sum_segments(&pixels, &mut sums);
        }
        Decoded { id, closes, tally, bad, heads, pixels, sums, held }
    }

    /// Takes back the buffer of a block that was written.
    pub(super) fn reuse(&self, pixels: PageBuffer) {
        self.pixels.give(pixels);
    }

    /// Nothing more will be decoded.
    pub(super) fn end(self) {
        self.clock.end();
    }
}

/// Rows of a block that no thread has taken yet.
struct Untaken<'a> {
    views: Option<Views>,
    /// Bytes of a picture.
    image: usize,
    heads: &'a RowMeta,
    texts: &'a [Range<usize>],
    next: usize,
    /// Base64 from the next row on, and room for its pictures.
    data: Left<'a>,
    pixels: Left<'a>,
    /// What that room will be part of. It is made when the first row is taken: by then a block before has given its own back.
    buffer: Option<&'a mut PageBuffer>,
}

/// A row for a thread.
struct Row<'a> {
    index: usize,
    text: &'a mut [u8],
    pixels: &'a mut [u8],
}

impl<'a> Untaken<'a> {
    /// The next row; fills in which pictures are made of it.
    fn next(&mut self, views: &mut Vec<View>, buffers: &BufferPool<PageBuffer>) -> Option<Row<'a>> {
        let index = self.next;
        let text = self.texts.get(index)?;
        self.next += 1;
        if let Some(buffer) = self.buffer.take() {
            *buffer = buffers.take();
            buffer.resize(self.image * self.texts.len() * Views::most(self.views));
            self.pixels = Left(buffer);
        }
        // Rows that are duplicates have left their text behind.
        let gap = text.start - index.checked_sub(1).map_or(0, |before| self.texts[before].end);
        self.data.take(gap);
        Views::of(self.views, self.heads.url(index), views);
        let pixels = self.pixels.take(self.image * views.len());
        Some(Row { index, text: self.data.take(text.len()), pixels })
    }
}

/// What is left of a buffer.
struct Left<'a>(&'a mut [u8]);

impl<'a> Left<'a> {
    /// Takes its first bytes; it has them.
    fn take(&mut self, bytes: usize) -> &'a mut [u8] {
        let (taken, behind) = std::mem::take(&mut self.0).split_at_mut(bytes);
        self.0 = behind;
        taken
    }
}
