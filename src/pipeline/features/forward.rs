//! Pixel chunks → batches → device → feature chunks, in order, by three tasks.
//!
//! The reader loads the next chunk while the device computes and the committer writes the previous chunk. The device
//! thus always has its next batch. A batch never crosses a chunk boundary, so a feature depends on its chunk alone.

use std::borrow::BorrowMut as _;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::chunk::batch_log::{BatchLog, log_path};
use crate::chunk::features::FeatureWriter;
use crate::chunk::journal::Journal;
use crate::chunk::pixels::PixelReader;
use crate::chunk::spool::SpooledChunk;
use crate::chunk::{RowMeta, Tally};
use crate::decode::jpeg_thumbnail;
use crate::objects::Object;
use crate::pipeline::device::LoadedBackbone;
use crate::pipeline::error::PipelineError;
use crate::pipeline::images::{RowFile, commit_chunk, image_hashes};
use crate::pipeline::observe::events::Events;
use crate::pipeline::resolve::FeatureShape;
use crate::runtime::{BufferPool, PooledBuffer, Shutdown};
use crate::telemetry::{Activity, StageProgress, StageTimer};
use crate::types::ValidationSplit;

/// Queue capacity of the committer on top of the batches on the device: the begin and end of about one chunk.
pub(super) const ITEMS_WAITING: usize = 4;

/// Message between the tasks. A chunk is sent as a begin, its batches and an end.
pub(super) enum Item<B> {
    /// A chunk begins. The log holds the batches that an earlier process computed; `None` if the chunk has no rows.
    Begin(Box<SpooledChunk>, Option<BatchLog>),
    /// Rows of the chunk, their thumbnails if there are any, and their pixels or features.
    Batch(RowMeta, Vec<Option<Vec<u8>>>, B),
    /// The chunk ends.
    End,
}

/// A batch before the device.
pub(super) enum BatchInput {
    /// Pixels to compute features of.
    Pixels(PooledBuffer),
    /// Features that an earlier process computed.
    Logged(Vec<f32>),
}

/// A batch after the device.
pub(super) enum BatchOutput {
    /// Features that an earlier process computed.
    Logged(Vec<f32>),
    /// Features that are being computed.
    Pending(JoinHandle<Result<Vec<f32>, PipelineError>>),
}

/// Thumbnails of the held-out images, for a page of examples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thumbnails {
    /// Images that are held out from training.
    pub(crate) split: ValidationSplit,
    /// Side of the images in pixels.
    pub(crate) side_px: u32,
}

impl Thumbnails {
    /// Encodes the thumbnail of each held-out image.
    fn encode(self, rows: &RowMeta, pixels: &[u8]) -> Vec<Option<Vec<u8>>> {
        let image_bytes = pixels.len() / rows.len().max(1);
        let encode = |(row, pixels): (usize, &[u8])| {
            let held_out = self.split.contains(rows.url(row));
            if held_out { jpeg_thumbnail(pixels, self.side_px) } else { None }
        };
        pixels.chunks_exact(image_bytes.max(1)).enumerate().map(encode).collect()
    }
}

fn closed() -> PipelineError {
    PipelineError::Internal("a channel of the model closed early".to_owned())
}

/// Reads pixel chunks one after the other, batch by batch. Ends without an error once the receiver is gone, because the
/// receiver knows the reason.
pub(super) struct BatchReader {
    pub(super) shape: FeatureShape,
    pub(super) batch_rows: usize,
    /// Pixel buffers. The device returns them for reuse.
    pub(super) buffers: BufferPool,
    pub(super) thumbnails: Option<Thumbnails>,
    pub(super) shutdown: Shutdown,
}

impl BatchReader {
    pub(super) async fn run(
        self,
        mut chunks: mpsc::Receiver<SpooledChunk>,
        items: mpsc::Sender<Item<BatchInput>>,
    ) -> Result<(), PipelineError> {
        while let Some(chunk) = chunks.recv().await {
            if self.shutdown.is_raised() {
                break;
            }
            let Some(path) = chunk.pixels() else {
                let begun = items.send(Item::Begin(Box::new(chunk), None)).await;
                if begun.is_err() || items.send(Item::End).await.is_err() {
                    break;
                }
                continue;
            };
            let FeatureShape { dim, .. } = self.shape;
            let inputs = format!("{} {dim} {}", chunk.entry.generation, self.batch_rows);
            let (batch_rows, buffers, items) = (self.batch_rows, self.buffers.clone(), items.clone());
            let thumbnails = self.thumbnails;
            let reading = tokio::task::spawn_blocking(move || {
                chunk.verify()?;
                let (mut logged, log) = BatchLog::open(log_path(&path), &inputs)?;
                let mut reader = PixelReader::open(&path, batch_rows)?;
                if items.blocking_send(Item::Begin(Box::new(chunk), Some(log))).is_err() {
                    return Ok(());
                }
                loop {
                    let mut pixels = buffers.acquire_pooled();
                    let Some(rows) = reader.next_batch(pixels.borrow_mut())? else { break };
                    let encode = |settings: Thumbnails| settings.encode(&rows, pixels.as_ref());
                    let thumbnails = thumbnails.map(encode).unwrap_or_default();
                    let input =
                        logged.next_batch(rows.len() * dim).map_or(BatchInput::Pixels(pixels), BatchInput::Logged);
                    if items.blocking_send(Item::Batch(rows, thumbnails, input)).is_err() {
                        return Ok(());
                    }
                }
                items.blocking_send(Item::End).ok();
                Ok::<_, PipelineError>(())
            });
            reading.await??;
        }
        Ok(())
    }
}

/// Submits batches to the device, at most as many at once as it can hold.
pub(super) struct DeviceFeeder {
    pub(super) backbone: LoadedBackbone,
    /// Timer of the device: busy while a batch is on it.
    pub(super) timer: Arc<StageTimer>,
    pub(super) shutdown: Shutdown,
}

impl DeviceFeeder {
    pub(super) async fn run(
        self,
        mut input: mpsc::Receiver<Item<BatchInput>>,
        output: mpsc::Sender<Item<BatchOutput>>,
    ) -> Result<(), PipelineError> {
        let room = Arc::new(Semaphore::new(self.backbone.device().in_flight));
        while let Some(item) = self.wait(&room, Activity::Starved, input.recv()).await {
            if self.shutdown.is_raised() {
                break;
            }
            let item = match item {
                Item::Begin(chunk, log) => Item::Begin(chunk, log),
                Item::End => Item::End,
                Item::Batch(rows, thumbnails, BatchInput::Logged(features)) => {
                    Item::Batch(rows, thumbnails, BatchOutput::Logged(features))
                }
                Item::Batch(rows, thumbnails, BatchInput::Pixels(pixels)) => {
                    let permit = Arc::clone(&room).acquire_owned().await.map_err(|_| closed())?;
                    let count = rows.len();
                    let pending = self.backbone.submit(pixels, count).await?;
                    let waiting = tokio::task::spawn_blocking(move || {
                        let features = pending.wait();
                        drop(permit);
                        features
                    });
                    Item::Batch(rows, thumbnails, BatchOutput::Pending(waiting))
                }
            };
            if self.wait(&room, Activity::Blocked, output.send(item)).await.is_err() {
                break;
            }
        }
        self.timer.end();
        Ok(())
    }

    /// Waits for `future`. Time without a batch on the device counts as `activity`.
    async fn wait<T>(&self, room: &Semaphore, activity: Activity, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        tokio::select! {
            biased;
            done = &mut future => return done,
            _ = room.acquire_many(self.backbone.device().in_flight as u32) => {}
        }
        self.timer.wait(activity, future).await
    }
}

/// Writes the features of chunks and commits the chunks.
pub(super) struct FeatureCommitter {
    pub(super) journal: Journal,
    pub(super) shards: Arc<Vec<Object>>,
    pub(super) shape: FeatureShape,
    pub(super) with_thumbnails: bool,
    /// Counts features.
    pub(super) images: Arc<StageProgress>,
    /// Counts the rows read. Its estimate of all rows yields the estimate of all features.
    pub(super) rows: Arc<StageProgress>,
    pub(super) shutdown: Shutdown,
    pub(super) events: Events,
}

/// The chunk that is being written.
struct OpenChunk {
    chunk: Box<SpooledChunk>,
    /// `None` if the chunk has no rows.
    features: Option<OpenFeatures>,
}

/// The file of a chunk's features.
struct OpenFeatures {
    writer: FeatureWriter,
    log: BatchLog,
    /// URL hashes of the images so far.
    url_hashes: Vec<u64>,
}

impl FeatureCommitter {
    pub(super) async fn run(
        mut self,
        mut items: mpsc::Receiver<Item<BatchOutput>>,
    ) -> Result<Option<Journal>, PipelineError> {
        let Tally { mut rows, mut kept, .. } = self.journal.tally();
        let mut open = None;
        while let Some(item) = items.recv().await {
            if self.shutdown.is_raised() {
                break;
            }
            match (item, &mut open) {
                (Item::Begin(chunk, log), open) => {
                    if let Some(all_rows) = self.rows.progress().1 {
                        rows += chunk.entry.tally.rows;
                        kept += chunk.entry.tally.kept;
                        let all = (all_rows as f64 * kept as f64 / rows.max(1) as f64).round();
                        self.images.set_total(all as u64);
                    }
                    *open = Some(self.begin(chunk, log)?);
                }
                (Item::Batch(rows, thumbnails, output), Some(OpenChunk { features: Some(features), .. })) => {
                    self.write(&rows, &thumbnails, output, features).await?;
                }
                (Item::End, open) => {
                    if let Some(chunk) = open.take() {
                        self.commit(chunk)?;
                    }
                }
                (Item::Batch(..), _) => return Err(closed()),
            }
        }
        match self.shutdown.signal() {
            Some(signal) => Err(PipelineError::Stopped(signal)),
            None => Ok(Some(self.journal)),
        }
    }

    fn begin(&self, chunk: Box<SpooledChunk>, log: Option<BatchLog>) -> Result<OpenChunk, PipelineError> {
        let Some(log) = log else { return Ok(OpenChunk { chunk, features: None }) };
        let path = self.journal.directory().temporary(&self.journal.layout().chunk(chunk.entry.id))?;
        let FeatureShape { dim, precision } = self.shape;
        let create = if self.with_thumbnails { FeatureWriter::with_thumbnails } else { FeatureWriter::create };
        let writer = create(&path, dim, precision, &chunk.entry.generation)?;
        Ok(OpenChunk { chunk, features: Some(OpenFeatures { writer, log, url_hashes: Vec::new() }) })
    }

    async fn write(
        &self,
        rows: &RowMeta,
        thumbnails: &[Option<Vec<u8>>],
        output: BatchOutput,
        file: &mut OpenFeatures,
    ) -> Result<(), PipelineError> {
        let features = match output {
            BatchOutput::Logged(features) => features,
            BatchOutput::Pending(waiting) => {
                let features = waiting.await??;
                file.log.append(&features)?;
                features
            }
        };
        if let Some(bad) = features.iter().position(|value| !value.is_finite()) {
            return Err(PipelineError::Model(format!(
                "the feature of `{}` is not a finite number: the checkpoint's weights are unusable",
                rows.url(bad / self.shape.dim)
            )));
        }
        file.writer.write(rows, &features, thumbnails)?;
        file.url_hashes.extend(image_hashes(rows));
        self.images.add(rows.image_count() as u64);
        Ok(())
    }

    fn commit(&mut self, OpenChunk { chunk, features }: OpenChunk) -> Result<(), PipelineError> {
        let rows = match features {
            Some(OpenFeatures { writer, url_hashes, .. }) => Some(RowFile { checksum: writer.finish()?, url_hashes }),
            None => None,
        };
        let shard = &self.shards[chunk.entry.id.shard as usize].name;
        // Quarantined rows stay on disk while a chunk waits, because many chunks can wait.
        let entry = if chunk.entry.tally.quarantined_rows() > 0 { &chunk.read_entry()? } else { &chunk.entry };
        commit_chunk(&mut self.journal, entry, rows, shard, &self.rows, &self.events)?;
        Ok(chunk.release()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkId;
    use crate::chunk::spool::{Spool, SpoolEntry};
    use crate::run_dir::LocalDirectory;
    use crate::runtime::channel;
    use crate::types::Precision;

    /// The writer may have ended because of a stop or a full disk. An error of the reader must not hide the writer's
    /// error.
    #[tokio::test]
    async fn reader_ends_quietly_after_writer() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("spool")).unwrap();
        let (spool, _) = Spool::open(directory, 8 << 20, "g", &mut Vec::new()).await.unwrap();
        let (chunks_in, chunks) = channel(4);
        for row in 0..3 {
            let id = ChunkId { shard: 0, row };
            let (slot, _) = spool.start(id).await.unwrap();
            let entry = SpoolEntry {
                id,
                generation: "g".to_owned(),
                last: false,
                next_offset: None,
                tally: Tally { rows: 1, ..Tally::default() },
                labels: 0,
                quarantined: Vec::new(),
                bytes: 0,
                checksum: None,
                boot: String::new(),
            };
            chunks_in.send(spool.complete(slot, entry).await.unwrap()).await.unwrap();
        }
        let (items_in, items) = channel(1);
        let shape = FeatureShape { dim: 2, precision: Precision::F32 };
        let (buffers, shutdown) = (BufferPool::new(0, 0), Shutdown::default());
        let reader = BatchReader { shape, batch_rows: 4, buffers, thumbnails: None, shutdown };
        drop(items);
        assert!(reader.run(chunks, items_in).await.is_ok());
    }
}
