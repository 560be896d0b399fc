//! Scratch spool: pixel chunks between decoder and model, within a disk limit that holds at all times.
//!
//! Bytes are reserved before they are written and released after the file is removed. One chunk is written at a time,
//! and complete chunks are released without waiting, so a limit of two chunks cannot deadlock. A single chunk
//! that exceeds the limit is refused. A complete chunk survives a kill and is used by the next process; after the loss
//! of a scratch disk, its images are decoded again. Nothing is synced: most chunks are removed before the system would
//! have written them to the disk, which may be much slower than decoding. Chunks from before the last boot are
//! therefore not trusted.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::quarantine::Quarantined;
use super::{Checksum, ChunkError, ChunkId, Tally, verify};
use crate::run_dir::LocalDirectory;
use crate::runtime::{ByteBudget, BytePermit};

/// Upper bound on the bytes of a chunk's two files beyond its rows: Parquet's footer and page headers, and the fixed
/// part of the entry.
const OVERHEAD_BYTES: u64 = 256 << 10;

/// Spool of one stream.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: LocalDirectory,
    disk: ByteBudget,
    limit_bytes: u64,
    /// Id of the current boot of the machine.
    boot: String,
}

/// Metadata of a complete chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolEntry {
    /// Id of the chunk.
    pub id: ChunkId,
    /// Hash of all inputs and settings that the chunk's bytes depend on.
    pub generation: String,
    /// Whether this is the last chunk of its shard.
    pub last: bool,
    /// Offset in the shard's decompressed bytes at which the row after the chunk begins, if reading can go on there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
    /// Row counts.
    pub tally: Tally,
    /// (image, class) pairs among the kept rows.
    pub labels: u64,
    /// Unusable rows.
    pub quarantined: Vec<Quarantined>,
    /// Size of the pixel file; 0 if no row was kept, in which case there is no file.
    pub bytes: u64,
    /// Checksum of the pixel file.
    #[serde(default)]
    pub checksum: Option<Checksum>,
    /// Id of the boot in which the chunk was written; set by the spool.
    #[serde(default)]
    pub boot: String,
}

/// Complete chunk on scratch disk.
#[derive(Debug)]
pub struct SpooledChunk {
    /// Entry without its quarantined rows, because many chunks can wait.
    pub entry: SpoolEntry,
    directory: LocalDirectory,
    permits: Vec<BytePermit>,
}

/// Chunk that is being written.
#[derive(Debug)]
pub struct PendingChunk {
    id: ChunkId,
    permits: Vec<BytePermit>,
    /// Reserved bytes.
    reserved_bytes: u64,
}

fn pixel_file_name(id: ChunkId) -> String {
    format!("{id}.parquet")
}

/// Returns the files of a chunk in the order of their removal. The last one holds the features computed so far.
fn file_names(id: ChunkId) -> [String; 3] {
    [entry_file_name(id), pixel_file_name(id), format!("{id}.features")]
}

fn entry_file_name(id: ChunkId) -> String {
    format!("{id}.json")
}

impl Spool {
    /// Opens the spool in `directory`. Recovers the complete chunks of `generation` that come next in the shards of
    /// `pending`, advances `pending` past them, and removes all other files.
    ///
    /// # Errors
    /// Fails if the directory cannot be read or cleaned.
    pub async fn open(
        directory: LocalDirectory,
        limit_bytes: u64,
        generation: &str,
        pending: &mut Vec<ChunkId>,
    ) -> Result<(Self, Vec<SpooledChunk>), ChunkError> {
        let (disk, boot) = (ByteBudget::new(limit_bytes), crate::run_dir::boot_id());
        let mut room = ByteBudget::usable(limit_bytes);
        let mut chunks: Vec<SpooledChunk> = Vec::new();
        let names = directory.list("")?;
        let mut ids: Vec<ChunkId> =
            names.iter().filter_map(|name| ChunkId::parse(name.strip_suffix(".json")?)).collect();
        ids.sort_unstable();
        for id in ids {
            let Some(place) = pending.iter().position(|next| *next == id) else { continue };
            let content = directory.read(&entry_file_name(id))?.unwrap_or_default();
            let Ok(mut entry) = serde_json::from_slice::<SpoolEntry>(&content) else { continue };
            let size_matches = entry.bytes == 0
                || directory.path(&pixel_file_name(id)).metadata().is_ok_and(|metadata| metadata.len() == entry.bytes);
            let bytes = entry.bytes.saturating_add(content.len() as u64);
            // Without boot ids no chunk is trusted.
            let consistent = !boot.is_empty()
                && (entry.id, &entry.boot) == (id, &boot)
                && entry.tally.adds_up()
                && (entry.bytes > 0) == (entry.tally.kept > 0)
                && entry.quarantined.len() as u64 == entry.tally.quarantined_rows();
            let next = id.row.checked_add(entry.tally.rows);
            let (Some(next), true) = (next, size_matches && consistent && entry.generation == generation) else {
                continue;
            };
            if ByteBudget::rounded(bytes) > room {
                continue;
            }
            room -= ByteBudget::rounded(bytes);
            if entry.last {
                pending.remove(place);
            } else {
                pending[place].row = next;
            }
            entry.quarantined = Vec::new();
            let permits = vec![disk.acquire(bytes).await];
            chunks.push(SpooledChunk { entry, directory: directory.clone(), permits });
        }
        let kept: Vec<String> = chunks.iter().flat_map(|chunk| file_names(chunk.entry.id)).collect();
        directory.sweep(".", |name| kept.iter().any(|kept| kept == name))?;
        Ok((Self { directory, disk, limit_bytes, boot }, chunks))
    }

    /// Returns the disk budget of the spool.
    pub fn disk(&self) -> &ByteBudget {
        &self.disk
    }

    /// Starts a chunk once there is room for its fixed part. Returns the path to which its pixel file is to be written.
    ///
    /// # Errors
    /// Fails if the directory cannot be created.
    pub async fn start(&self, id: ChunkId) -> Result<(PendingChunk, PathBuf), ChunkError> {
        let permits = vec![self.disk.acquire(OVERHEAD_BYTES).await];
        Ok((
            PendingChunk { id, permits, reserved_bytes: OVERHEAD_BYTES },
            self.directory.temporary(&pixel_file_name(id))?,
        ))
    }

    /// Waits until `bytes` more may be written to the chunk.
    ///
    /// # Errors
    /// Fails if the chunk would exceed the whole spool, so that waiting could not help.
    pub async fn reserve(&self, pending: &mut PendingChunk, bytes: u64) -> Result<(), ChunkError> {
        let (have, reserved_bytes) =
            (ByteBudget::rounded(pending.reserved_bytes), pending.reserved_bytes.saturating_add(bytes));
        let wanted = ByteBudget::rounded(reserved_bytes);
        if wanted > ByteBudget::usable(self.limit_bytes) {
            let ChunkId { shard, row } = pending.id;
            return Err(ChunkError::NoRoom { shard, row, limit_bytes: self.limit_bytes });
        }
        if wanted > have {
            pending.permits.push(self.disk.acquire(wanted - have).await);
        }
        pending.reserved_bytes = reserved_bytes;
        Ok(())
    }

    /// Completes a chunk. Its pixel file, if any, was written to the path that [`Self::start`] returned.
    ///
    /// # Errors
    /// Fails if the disk is full or cannot be written.
    pub async fn complete(&self, mut pending: PendingChunk, mut entry: SpoolEntry) -> Result<SpooledChunk, ChunkError> {
        let id = entry.id;
        if entry.tally.kept > 0 {
            entry.bytes = self.directory.publish_unsynced(&pixel_file_name(id))?;
        }
        entry.boot.clone_from(&self.boot);
        let failed = |error| ChunkError::damaged(entry_file_name(id), "spool entry", error);
        let content = serde_json::to_vec(&entry).map_err(failed)?;
        if content.len() as u64 > OVERHEAD_BYTES / 2 {
            self.reserve(&mut pending, content.len() as u64).await?;
        }
        self.directory.write_unsynced(&entry_file_name(id), &content)?;
        entry.quarantined = Vec::new();
        Ok(SpooledChunk { entry, directory: self.directory.clone(), permits: pending.permits })
    }
}

impl SpooledChunk {
    /// Returns the path of the pixels, or `None` if no row was kept.
    pub fn pixels(&self) -> Option<PathBuf> {
        (self.entry.bytes > 0).then(|| self.directory.path(&pixel_file_name(self.entry.id)))
    }

    /// Reads the whole entry, including the quarantined rows.
    ///
    /// # Errors
    /// Fails if the entry cannot be read any more.
    pub fn read_entry(&self) -> Result<SpoolEntry, ChunkError> {
        let name = entry_file_name(self.entry.id);
        let content = self.directory.read(&name)?.unwrap_or_default();
        serde_json::from_slice(&content)
            .map_err(|error| ChunkError::damaged(self.directory.path(&name), "spool entry", error))
    }

    /// Verifies the checksum of the pixels, which an earlier process may have written, or a disk may have damaged.
    ///
    /// # Errors
    /// Fails if they are damaged or cannot be read.
    pub fn verify(&self) -> Result<(), ChunkError> {
        match self.pixels() {
            Some(path) => verify(&path, &path.display().to_string(), self.entry.checksum),
            None => Ok(()),
        }
    }

    /// Removes the chunk and releases its bytes.
    ///
    /// # Errors
    /// Fails if a file cannot be removed.
    pub fn release(self) -> Result<(), ChunkError> {
        // The entry is removed first: after a kill in between, the next process removes the files without an entry.
        for name in file_names(self.entry.id) {
            self.directory.remove(&name)?;
        }
        drop(self.permits);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(row: u64, generation: &str) -> SpoolEntry {
        SpoolEntry {
            id: ChunkId { shard: 0, row },
            generation: generation.to_owned(),
            last: false,
            next_offset: None,
            tally: Tally { rows: 10, kept: 10, ..Tally::default() },
            labels: 0,
            quarantined: Vec::new(),
            bytes: 0,
            checksum: None,
            boot: String::new(),
        }
    }

    #[tokio::test]
    async fn chunks_of_an_earlier_boot_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("spool")).unwrap();
        let (spool, _) = open(&directory, 8 << 20, "g").await;
        let (first, second) =
            (write_chunk(&spool, 0, 1000).await.entry.id, write_chunk(&spool, 10, 1000).await.entry.id);
        let text = String::from_utf8(directory.read(&entry_file_name(second)).unwrap().unwrap()).unwrap();
        directory
            .write(&entry_file_name(second), text.replace(&crate::run_dir::boot_id(), "another").as_bytes())
            .unwrap();
        let (_, chunks) = open(&directory, 8 << 20, "g").await;
        assert_eq!(chunks.iter().map(|chunk| chunk.entry.id).collect::<Vec<_>>(), [first]);
        assert_eq!(directory.list("").unwrap().len(), 2);
    }

    #[tokio::test]
    async fn chunk_may_fill_the_spool_but_not_exceed_it() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("spool")).unwrap();
        let limit = OVERHEAD_BYTES + (1 << 20);
        let (spool, _) = open(&directory, limit, "g").await;
        let (mut pending, _) = spool.start(ChunkId { shard: 3, row: 40 }).await.unwrap();
        // Small pieces, which would each waste most of a unit if rounded separately.
        for _ in 0..(1 << 20) / 64 {
            spool.reserve(&mut pending, 64).await.unwrap();
        }
        let text = spool.reserve(&mut pending, 1).await.unwrap_err().to_string();
        assert!(text.contains("row 40 of shard 3") && text.contains("`limits.disk`"), "{text}");
    }

    async fn write_chunk(spool: &Spool, row: u64, bytes: usize) -> SpooledChunk {
        let (mut pending, path) = spool.start(ChunkId { shard: 0, row }).await.unwrap();
        spool.reserve(&mut pending, bytes as u64).await.unwrap();
        std::fs::write(path, vec![1; bytes]).unwrap();
        spool.complete(pending, entry(row, "g")).await.unwrap()
    }

    async fn open(directory: &LocalDirectory, limit: u64, generation: &str) -> (Spool, Vec<SpooledChunk>) {
        Spool::open(directory.clone(), limit, generation, &mut vec![ChunkId { shard: 0, row: 0 }]).await.unwrap()
    }

    #[tokio::test]
    async fn full_spool_blocks_until_a_chunk_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("spool")).unwrap();
        let (spool, _) = open(&directory, 2 << 20, "g").await;
        let first = write_chunk(&spool, 0, 1 << 20).await;
        let waits = tokio::time::timeout(Duration::from_millis(100), write_chunk(&spool, 10, 1 << 20)).await;
        assert!(waits.is_err(), "the second chunk does not fit beside the first");
        first.release().unwrap();
        let second = write_chunk(&spool, 10, 1 << 20).await;
        assert_eq!(second.entry.bytes, 1 << 20);
    }

    #[tokio::test]
    async fn complete_chunks_without_a_gap_are_recovered() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("spool")).unwrap();
        let (spool, _) = open(&directory, 8 << 20, "g").await;
        for row in [0, 10, 30] {
            write_chunk(&spool, row, 1000).await;
        }
        let (_, none) = open(&directory, 8 << 20, "other").await;
        assert!(none.is_empty());
        let (spool, _) = open(&directory, 8 << 20, "g").await;
        for row in [0, 10, 30] {
            write_chunk(&spool, row, 1000).await;
        }
        let (_, chunks) = open(&directory, 8 << 20, "g").await;
        assert_eq!(chunks.iter().map(|chunk| chunk.entry.id.row).collect::<Vec<_>>(), [0, 10]);
        assert_eq!(directory.list("").unwrap().len(), 4, "the chunk after the gap is removed");
        for chunk in chunks {
            chunk.release().unwrap();
        }
        assert!(directory.list("").unwrap().is_empty());
    }
}
