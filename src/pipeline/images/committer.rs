//! Commits the pixel chunks of a run. Each commit overlaps the decoding of the next chunk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek as _;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::StreamJob;
use super::resume::claimed_hashes;
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::quarantine;
use crate::chunk::spool::SpoolEntry;
use crate::chunk::url_hashes::UrlHashes;
use crate::chunk::{Checksum, JournalEntry};
use crate::objects::StoreError;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::events::Events;
use crate::run_dir::Directory;
use crate::telemetry::StageProgress;

/// A chunk's file of rows, complete under its temporary name.
#[derive(Debug)]
pub(crate) struct RowFile {
    pub(crate) checksum: Checksum,
    /// URL hashes of its images, in order.
    pub(crate) url_hashes: Vec<u64>,
}

/// Makes the files of a chunk durable, adds the chunk to the journal, counts it and logs an event. `rows` is the file of
/// its rows, if it has any.
///
/// # Errors
/// When the run directory cannot be written.
pub(crate) fn commit_chunk(
    journal: &mut Journal,
    chunk: &SpoolEntry,
    rows: Option<RowFile>,
    shard: &str,
    stage_progress: &StageProgress,
    events: &Events,
) -> Result<(), PipelineError> {
    let (directory, layout) = (journal.directory().clone(), journal.layout().clone());
    let mut entry = JournalEntry {
        generation: chunk.generation.clone(),
        last: chunk.last,
        next_offset: chunk.next_offset,
        tally: chunk.tally.clone(),
        labels: chunk.labels,
        files: BTreeMap::new(),
        checksums: BTreeMap::new(),
    };
    let mut hashes = UrlHashes::default();
    if let Some(RowFile { checksum, url_hashes }) = rows {
        let name = layout.chunk(chunk.id);
        let bytes = directory.publish(&name)?;
        entry.checksums.insert(name.clone(), checksum);
        entry.files.insert(name, bytes);
        hashes.kept = url_hashes;
    }
    if !chunk.quarantined.is_empty() {
        let name = layout.quarantine(chunk.id);
        let sum = quarantine::write(&directory.temporary(&name)?, shard, &chunk.quarantined)?;
        let bytes = directory.publish(&name)?;
        entry.checksums.insert(name.clone(), sum);
        entry.files.insert(name, bytes);
        hashes.quarantined = claimed_hashes(&chunk.quarantined).collect();
    }
    if hashes != UrlHashes::default() {
        let (name, content) = (layout.url_hashes(chunk.id), hashes.encode());
        directory.write(&name, &content)?;
        entry.files.insert(name, content.len() as u64);
    }
    journal.commit(chunk.id, entry)?;
    events.chunk_committed(stage_progress, chunk, shard);
    Ok(())
}

/// Commits one chunk at a time on its own thread. Syncing a few hundred megabytes takes a while, during which the
/// processor would otherwise be idle.
pub(super) struct Committer {
    directory: Directory,
    layout: Layout,
    /// `None` while a chunk is being committed.
    journal: Option<Journal>,
    committing: Option<JoinHandle<Result<Journal, PipelineError>>>,
}

/// A chunk whose row file is complete under its temporary name.
pub(super) struct CompleteChunk {
    pub(super) entry: SpoolEntry,
    /// URL hashes of its images, in order.
    pub(super) url_hashes: Vec<u64>,
    pub(super) path: PathBuf,
    pub(super) write_back: WriteBack,
}

impl Committer {
    pub(super) fn new(journal: Journal) -> Self {
        let (directory, layout) = (journal.directory().clone(), journal.layout().clone());
        Self { directory, layout, journal: Some(journal), committing: None }
    }

    /// Returns the temporary path of a chunk's row file.
    pub(super) fn temporary_path(&self, id: crate::chunk::ChunkId) -> Result<PathBuf, PipelineError> {
        Ok(self.directory.temporary(&self.layout.chunk(id))?)
    }

    /// Whether the run directory is on another machine, so that chunks are staged on scratch disk.
    pub(super) fn is_remote(&self) -> bool {
        self.directory.is_remote()
    }

    /// Waits until the chunk that is being committed is durable.
    pub(super) async fn finish(&mut self) -> Result<(), PipelineError> {
        if let Some(committing) = self.committing.take() {
            self.journal = Some(committing.await??);
        }
        Ok(())
    }

    /// Starts to commit a chunk once the previous chunk is durable. With a remote run directory, waits until the chunk
    /// itself is durable, because scratch disk has room for one chunk.
    pub(super) async fn commit(
        &mut self,
        chunk: CompleteChunk,
        job: &Arc<StreamJob>,
        events: &Events,
    ) -> Result<(), PipelineError> {
        self.finish().await?;
        let Some(mut journal) = self.journal.take() else {
            return Err(PipelineError::Internal("a journal is in use".to_owned()));
        };
        let (job, events) = (Arc::clone(job), events.clone());
        let CompleteChunk { entry: chunk, url_hashes, path, write_back } = chunk;
        self.committing = Some(tokio::task::spawn_blocking(move || {
            let written = futures::executor::block_on(write_back.finish(&path))?;
            let shard = &job.shards[chunk.id.shard as usize].name;
            let rows = chunk.checksum.map(|checksum| RowFile { checksum, url_hashes });
            commit_chunk(&mut journal, &chunk, rows, shard, &job.stage_progress, &events)?;
            if let Some(file) = written {
                drop_cached_pages(&file, None);
            }
            Ok(journal)
        }));
        if self.is_remote() { self.finish().await } else { Ok(()) }
    }
}

/// Bytes between two syncs of a chunk that is being written. Without these syncs, a disk would hold the chunk in its
/// cache until the commit, and unread data would fill the page cache.
const SYNC_BYTES: usize = 4 << 20;

/// Syncs a file in the background, range by range, while it is being written.
#[derive(Default)]
pub(super) struct WriteBack {
    /// Bytes written since the last range began.
    bytes: usize,
    /// Sync of the current range.
    syncing: Option<JoinHandle<std::io::Result<File>>>,
}

impl WriteBack {
    /// Counts bytes about to be written. Returns whether the next range is due after them.
    pub(super) fn add(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let due = self.bytes >= SYNC_BYTES;
        if due {
            self.bytes = 0;
        }
        due
    }

    /// Whether a range is being synced.
    pub(super) fn is_busy(&self) -> bool {
        self.syncing.as_ref().is_some_and(|stretch| !stretch.is_finished())
    }

    /// Waits for the current range and begins the next one.
    pub(super) async fn start_next(&mut self, file: File, path: &Path) -> Result<(), PipelineError> {
        std::mem::take(self).finish(path).await?;
        self.syncing = Some(tokio::task::spawn_blocking(move || {
            // The writer's handle shares this position and continues from it.
            let end = (&file).stream_position()?;
            file.sync_data()?;
            drop_cached_pages(&file, NonZeroU64::new(end));
            Ok(file)
        }));
        Ok(())
    }

    /// Waits for the current range. Returns the file if there was a range.
    ///
    /// The system reports a write error only once, to the first sync after it. The result must not be ignored.
    pub(super) async fn finish(self, path: &Path) -> Result<Option<File>, PipelineError> {
        let Some(stretch) = self.syncing else { return Ok(None) };
        Ok(stretch.await?.map(Some).map_err(|error| StoreError::io(path, "written", error))?)
    }
}

/// Asks the system to drop the synced pages of a file up to `end` (`None`: all) from the page cache. A container counts
/// the page cache as memory, and reused memory stays in the processor's caches. A refusal is harmless and ignored.
pub(super) fn drop_cached_pages(file: &File, end: Option<NonZeroU64>) {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, end, rustix::fs::Advice::DontNeed).ok();
    #[cfg(not(target_os = "linux"))]
    let _ = (file, end);
}
