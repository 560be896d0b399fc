//! Chunks of pixels → batches → device → features of chunks, in order: three tasks, so that the device has its next batch while the
//! host reads chunks ahead and writes those behind.
//!
//! Batches never cross a chunk, so that a feature depends on its chunk alone; the tasks do: the first batch of a chunk is computed
//! while the chunk before is being written and committed.

use std::borrow::BorrowMut as _;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::PipelineError;
use super::events::Events;
use super::features::FeatureShape;
use super::spill::{self, Spill};
use super::stream::commit;
use super::worker::Device;
use crate::chunk::features::FeatureWriter;
use crate::chunk::journal::Journal;
use crate::chunk::pixels::PixelReader;
use crate::chunk::spool::SpooledChunk;
use crate::chunk::{RowMeta, Tally};
use crate::decode::jpeg_thumbnail;
use crate::objects::Object;
use crate::runtime::{BufferPool, PooledBuffer, Shutdown};
use crate::telemetry::{Activity, StageProgress, StageTimer};
use crate::train::validation::is_validation;

/// Batches on the host before the device: one being read, one that waits, one being handed over.
pub(super) const BATCHES_AHEAD: usize = 3;

/// Pieces that may wait for the task that writes: about a chunk's bookkeeping more than the device may have on its way.
pub(super) const PIECES_WAITING: usize = 4;

/// What goes from task to task.
pub(super) enum Piece<R> {
    /// A chunk begins; with what an earlier process kept of its features, where it has rows.
    Begin(Box<SpooledChunk>, Option<Spill>),
    /// Rows of it, and the thumbnails of the first of them.
    Rows(RowMeta, Vec<Option<Vec<u8>>>, R),
    /// It ends.
    End,
}

/// Pixels of a batch, or its features where an earlier process computed them.
pub(super) enum Input {
    Pixels(PooledBuffer),
    Known(Vec<f32>),
}

/// Features of a batch, or the task that waits for them.
pub(super) enum Output {
    Known(Vec<f32>),
    Computed(JoinHandle<Result<Vec<f32>, PipelineError>>),
}

/// Of which images thumbnails are kept: those that are held out from training.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thumbnails {
    pub(super) seed: u64,
    pub(super) fraction: f64,
    /// Side of the images in pixels.
    pub(super) side_px: u32,
}

impl Thumbnails {
    fn of(self, heads: &RowMeta, pixels: &[u8]) -> Vec<Option<Vec<u8>>> {
        let image = pixels.len() / heads.len().max(1);
        let of_row = |(row, pixels): (usize, &[u8])| {
            let held_out = is_validation(heads.url(row), self.seed, self.fraction);
            if held_out { jpeg_thumbnail(pixels, self.side_px) } else { None }
        };
        pixels.chunks_exact(image.max(1)).enumerate().map(of_row).collect()
    }
}

fn closed() -> PipelineError {
    PipelineError::Internal("a link around the model closed early".to_owned())
}

/// Reads chunks, one after the other, batch by batch. Where nobody takes the pieces any more, whoever did has ended and says why.
pub(super) struct Reading {
    pub(super) shape: FeatureShape,
    pub(super) batch_rows: usize,
    /// For the pixels of batches; the device gives them back.
    pub(super) buffers: BufferPool,
    pub(super) thumbnails: Option<Thumbnails>,
    pub(super) stop: Shutdown,
}

impl Reading {
    pub(super) async fn run(
        self,
        mut chunks: mpsc::Receiver<SpooledChunk>,
        pieces: mpsc::Sender<Piece<Input>>,
    ) -> Result<(), PipelineError> {
        while let Some(chunk) = chunks.recv().await {
            if self.stop.is_raised() {
                break;
            }
            let Some(path) = chunk.pixels() else {
                let begun = pieces.send(Piece::Begin(Box::new(chunk), None)).await;
                if begun.is_err() || pieces.send(Piece::End).await.is_err() {
                    break;
                }
                continue;
            };
            let FeatureShape { dim, .. } = self.shape;
            let made_from = format!("{} {dim} {}", chunk.entry.generation, self.batch_rows);
            let (batch_rows, buffers, pieces) = (self.batch_rows, self.buffers.clone(), pieces.clone());
            let thumbnails = self.thumbnails;
            let reading = tokio::task::spawn_blocking(move || {
                chunk.verify()?;
                let (mut known, spill) = Spill::open(spill::beside(&path), &made_from)?;
                let mut reader = PixelReader::open(&path, batch_rows)?;
                if pieces.blocking_send(Piece::Begin(Box::new(chunk), Some(spill))).is_err() {
                    return Ok(());
                }
                loop {
                    let mut pixels = buffers.acquire_pooled();
                    let Some(heads) = reader.next_batch(pixels.borrow_mut())? else { break };
                    let values = heads.len() * dim;
                    let pixels_of =
                        |lent: &PooledBuffer| thumbnails.map_or_else(Vec::new, |kept| kept.of(&heads, lent.as_ref()));
                    let pictures = pixels_of(&pixels);
                    let input = known.take(values).map_or(Input::Pixels(pixels), Input::Known);
                    if pieces.blocking_send(Piece::Rows(heads, pictures, input)).is_err() {
                        return Ok(());
                    }
                }
                pieces.blocking_send(Piece::End).ok();
                Ok::<_, PipelineError>(())
            });
            reading.await??;
        }
        Ok(())
    }
}

/// Hands batches to the device, as many as may be on their way at once.
pub(super) struct Feeding {
    pub(super) device: Arc<Device>,
    /// The device's: busy while a batch is on its way.
    pub(super) clock: Arc<StageTimer>,
    pub(super) stop: Shutdown,
}

impl Feeding {
    pub(super) async fn run(
        self,
        mut input: mpsc::Receiver<Piece<Input>>,
        output: mpsc::Sender<Piece<Output>>,
    ) -> Result<(), PipelineError> {
        let room = Arc::new(Semaphore::new(self.device.in_flight));
        while let Some(piece) = self.unless_computing(&room, Activity::Starved, input.recv()).await {
            if self.stop.is_raised() {
                break;
            }
            let piece = match piece {
                Piece::Begin(chunk, spill) => Piece::Begin(chunk, spill),
                Piece::End => Piece::End,
                Piece::Rows(heads, pictures, Input::Known(features)) => {
                    Piece::Rows(heads, pictures, Output::Known(features))
                }
                Piece::Rows(heads, pictures, Input::Pixels(pixels)) => {
                    let held = Arc::clone(&room).acquire_owned().await.map_err(|_| closed())?;
                    let rows = heads.len();
                    let pending = self.device.call(move |worker| worker.submit(pixels, rows)).await?;
                    let waiting = tokio::task::spawn_blocking(move || {
                        let features = pending.wait();
                        drop(held);
                        features
                    });
                    Piece::Rows(heads, pictures, Output::Computed(waiting))
                }
            };
            if self.unless_computing(&room, Activity::Blocked, output.send(piece)).await.is_err() {
                break;
            }
        }
        self.clock.end();
        Ok(())
    }

    /// Waits; the time in which nothing is on the device meanwhile counts as `doing`.
    async fn unless_computing<T>(&self, room: &Semaphore, doing: Activity, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
        tokio::select! {
            biased;
            done = &mut wait => return done,
            _ = room.acquire_many(self.device.in_flight as u32) => {}
        }
        self.clock.wait(doing, wait).await
    }
}

/// Writes the features of chunks and commits them.
pub(super) struct Writing {
    pub(super) journal: Journal,
    pub(super) shards: Arc<Vec<Object>>,
    pub(super) shape: FeatureShape,
    /// Whether there are thumbnails.
    pub(super) thumbnails: bool,
    /// Counts the features.
    pub(super) stage_progress: Arc<StageProgress>,
    /// Counts the rows that were read, and knows about how many there are.
    pub(super) rows: Arc<StageProgress>,
    pub(super) stop: Shutdown,
    pub(super) events: Events,
}

/// The chunk in hand.
struct InHand {
    chunk: Box<SpooledChunk>,
    features: Option<(FeatureWriter, Spill)>,
}

impl Writing {
    pub(super) async fn run(
        mut self,
        mut pieces: mpsc::Receiver<Piece<Output>>,
    ) -> Result<Option<Journal>, PipelineError> {
        let Tally { mut rows, mut kept, .. } = self.journal.tally();
        let mut in_hand = None;
        while let Some(piece) = pieces.recv().await {
            if self.stop.is_raised() {
                break;
            }
            match (piece, &mut in_hand) {
                (Piece::Begin(chunk, spill), none) => {
                    if let Some(all_rows) = self.rows.progress().1 {
                        rows += chunk.entry.tally.rows;
                        kept += chunk.entry.tally.kept;
                        let all = (all_rows as f64 * kept as f64 / rows.max(1) as f64).round();
                        self.stage_progress.set_total(all as u64);
                    }
                    *none = Some(self.begin(chunk, spill)?);
                }
                (Piece::Rows(heads, pictures, output), Some(InHand { features: Some((writer, spill)), .. })) => {
                    self.write(&heads, &pictures, output, writer, spill).await?;
                }
                (Piece::End, some) => {
                    if let Some(chunk) = some.take() {
                        self.end(chunk)?;
                    }
                }
                (Piece::Rows(..), _) => return Err(closed()),
            }
        }
        match self.stop.signal() {
            Some(signal) => Err(PipelineError::Stopped(signal)),
            None => Ok(Some(self.journal)),
        }
    }

    fn begin(&self, chunk: Box<SpooledChunk>, spill: Option<Spill>) -> Result<InHand, PipelineError> {
        let Some(spill) = spill else { return Ok(InHand { chunk, features: None }) };
        let path = self.journal.directory().temporary(&self.journal.layout().chunk(chunk.entry.id))?;
        let FeatureShape { dim, precision } = self.shape;
        let create = if self.thumbnails { FeatureWriter::with_thumbnails } else { FeatureWriter::create };
        let writer = create(&path, dim, precision, &chunk.entry.generation)?;
        Ok(InHand { chunk, features: Some((writer, spill)) })
    }

    async fn write(
        &self,
        heads: &RowMeta,
        pictures: &[Option<Vec<u8>>],
        output: Output,
        writer: &mut FeatureWriter,
        spill: &mut Spill,
    ) -> Result<(), PipelineError> {
        let features = match output {
            Output::Known(features) => features,
            Output::Computed(waiting) => {
                let features = waiting.await??;
                spill.keep(&features)?;
                features
            }
        };
        if let Some(bad) = features.iter().position(|value| !value.is_finite()) {
            return Err(PipelineError::Model(format!(
                "the feature of `{}` is not a finite number: the checkpoint's weights are unusable",
                heads.url(bad / self.shape.dim)
            )));
        }
        writer.write(heads, &features, pictures)?;
        self.stage_progress.add(heads.image_count() as u64);
        Ok(())
    }

    fn end(&mut self, InHand { chunk, features }: InHand) -> Result<(), PipelineError> {
        let sum = features.map(|(writer, _)| writer.finish()).transpose()?;
        let shard = &self.shards[chunk.entry.id.shard as usize].name;
        commit(&mut self.journal, &chunk.read_entry()?, sum, shard, &self.rows, &self.events)?;
        Ok(chunk.release()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkId;
    use crate::chunk::schedule::Schedule;
    use crate::chunk::spool::{Spool, SpoolEntry};
    use crate::config::value::Precision;
    use crate::run_dir::LocalDirectory;
    use crate::runtime::channel;

    /// Why the writer ended, a stop or a full disk, must not be hidden by what the reader finds.
    #[tokio::test]
    async fn chunks_that_wait_when_the_writer_has_ended_are_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("ring")).unwrap();
        let (ring, _) = Spool::open(directory, 8 << 20, "g", &mut Schedule::start(1)).await.unwrap();
        let (chunks_in, chunks) = channel(4);
        for row in 0..3 {
            let id = ChunkId { shard: 0, row };
            let (slot, _) = ring.start(id).await.unwrap();
            let entry = SpoolEntry {
                id,
                generation: "g".to_owned(),
                last: false,
                tally: Tally { rows: 1, ..Tally::default() },
                labels: 0,
                quarantined: Vec::new(),
                bytes: 0,
                checksum: None,
                boot: String::new(),
            };
            chunks_in.send(ring.complete(slot, entry).await.unwrap()).await.unwrap();
        }
        let (pieces_in, pieces) = channel(1);
        let shape = FeatureShape { dim: 2, precision: Precision::F32 };
        let reading = Reading {
            shape,
            batch_rows: 4,
            buffers: BufferPool::new(0, 0),
            thumbnails: None,
            stop: Shutdown::default(),
        };
        drop(pieces);
        assert!(reading.run(chunks, pieces_in).await.is_ok());
    }
}
