//! The scratch ring: pixel chunks between the decoder and the model, within a disk limit that holds at every instant.
//!
//! Bytes are taken from the limit before they are written and given back after the file is removed. One chunk is
//! written at a time and complete chunks are released in order without waiting for anything, so a limit of two chunks
//! cannot deadlock; a chunk that does not fit the ring alone is refused. A complete chunk survives a kill and is used by the next process; a
//! lost scratch disk costs only the decoding of what was on it. Nothing is synced: most chunks are gone before the system would have written
//! them to the disk, which may be much slower than decoding. So those of an earlier boot of the machine are not trusted.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::quarantine::Quarantined;
use super::schedule::Schedule;
use super::{Checksum, ChunkError, ChunkId, Tally, verify};
use crate::run_dir::LocalDirectory;
use crate::runtime::{ByteBudget, BytePermit};

/// Bytes of a chunk's two files beyond its rows, at most: Parquet's footer and page headers, and the entry's fixed part.
const OVERHEAD_BYTES: u64 = 256 << 10;

/// The ring of one stream.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: LocalDirectory,
    disk: ByteBudget,
    limit_bytes: u64,
    /// Which boot of the machine this is.
    boot: String,
}

/// What the ring knows of a complete chunk beside its pixels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingEntry {
    /// Which rows it starts with.
    pub id: ChunkId,
    /// Hash of everything that its bytes depend on.
    pub generation: String,
    /// Whether the shard ends with it.
    pub last: bool,
    /// What became of its rows.
    pub tally: Tally,
    /// (image, class) pairs among the kept rows.
    pub labels: u64,
    /// Rows that could not be used.
    pub quarantined: Vec<Quarantined>,
    /// Size of the pixel file; 0 where no row was kept and there is none.
    pub bytes: u64,
    /// Its checksum.
    #[serde(default)]
    pub checksum: Option<Checksum>,
    /// In which boot of the machine it was written; the ring notes it.
    #[serde(default)]
    pub boot: String,
}

/// A complete chunk on scratch disk.
#[derive(Debug)]
pub struct SpooledChunk {
    /// What is known of it, but for its quarantined rows: chunks can wait in great number.
    pub entry: RingEntry,
    directory: LocalDirectory,
    held: Vec<BytePermit>,
}

/// A chunk that is being written.
#[derive(Debug)]
pub struct Slot {
    id: ChunkId,
    held: Vec<BytePermit>,
    /// Bytes that were asked for.
    used: u64,
}

fn pixels_name(id: ChunkId) -> String {
    format!("{id}.parquet")
}

/// The files of a chunk in the order in which they go; the last is what its consumer kept of it so far.
fn names(id: ChunkId) -> [String; 3] {
    [entry_name(id), pixels_name(id), format!("{id}.features")]
}

fn entry_name(id: ChunkId) -> String {
    format!("{id}.json")
}

impl Spool {
    /// Opens the ring in `directory` and takes over the complete chunks of `generation` that are next by `schedule`, which goes on
    /// behind them; everything else in the directory is removed.
    ///
    /// # Errors
    /// When the directory cannot be read or cleaned.
    pub async fn open(
        directory: LocalDirectory,
        limit_bytes: u64,
        generation: &str,
        schedule: &mut Schedule,
    ) -> Result<(Self, Vec<SpooledChunk>), ChunkError> {
        let (disk, boot) = (ByteBudget::new(limit_bytes), crate::run_dir::boot_id());
        let mut room = ByteBudget::usable(limit_bytes);
        let mut chunks: Vec<SpooledChunk> = Vec::new();
        while let Some(id) = schedule.next() {
            let Some(content) = directory.read(&entry_name(id))? else { break };
            let Ok(mut entry) = serde_json::from_slice::<RingEntry>(&content) else { break };
            let whole = entry.bytes == 0
                || directory.path(&pixels_name(id)).metadata().is_ok_and(|metadata| metadata.len() == entry.bytes);
            let bytes = entry.bytes.saturating_add(content.len() as u64);
            // Where nobody tells one boot from another, none is trusted.
            let sound = !boot.is_empty()
                && (entry.id, &entry.boot) == (id, &boot)
                && entry.tally.adds_up()
                && (entry.bytes > 0) == (entry.tally.kept > 0)
                && entry.quarantined.len() as u64 == entry.tally.quarantined_rows();
            let passed = chunks.iter().any(|chunk| chunk.entry.id == id);
            if passed || !(whole && sound && entry.generation == generation && ByteBudget::rounded(bytes) <= room) {
                break;
            }
            room -= ByteBudget::rounded(bytes);
            schedule.advance(entry.tally.rows, entry.last);
            entry.quarantined = Vec::new();
            let held = vec![disk.acquire(bytes).await];
            chunks.push(SpooledChunk { entry, directory: directory.clone(), held });
        }
        let kept: Vec<String> = chunks.iter().flat_map(|chunk| names(chunk.entry.id)).collect();
        directory.sweep(".", |name| kept.iter().any(|kept| kept == name))?;
        Ok((Self { directory, disk, limit_bytes, boot }, chunks))
    }

    /// The disk that the ring takes.
    pub fn disk(&self) -> &ByteBudget {
        &self.disk
    }

    /// Starts a chunk: waits for room for its fixed part.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub async fn start(&self, id: ChunkId) -> Result<(Slot, PathBuf), ChunkError> {
        let held = vec![self.disk.acquire(OVERHEAD_BYTES).await];
        Ok((Slot { id, held, used: OVERHEAD_BYTES }, self.directory.temporary(&pixels_name(id))?))
    }

    /// Waits until `bytes` more may be written to the chunk.
    ///
    /// # Errors
    /// When the chunk is then larger than the whole ring: no waiting would help.
    pub async fn reserve(&self, slot: &mut Slot, bytes: u64) -> Result<(), ChunkError> {
        let (have, used) = (ByteBudget::rounded(slot.used), slot.used.saturating_add(bytes));
        let wanted = ByteBudget::rounded(used);
        if wanted > ByteBudget::usable(self.limit_bytes) {
            let ChunkId { shard, row } = slot.id;
            return Err(ChunkError::NoRoom { shard, row, limit_bytes: self.limit_bytes });
        }
        if wanted > have {
            slot.held.push(self.disk.acquire(wanted - have).await);
        }
        slot.used = used;
        Ok(())
    }

    /// Completes a chunk whose pixel file was written to the path that [`Self::start`] gave, or which has none.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub async fn complete(&self, mut slot: Slot, mut entry: RingEntry) -> Result<SpooledChunk, ChunkError> {
        let id = entry.id;
        if entry.tally.kept > 0 {
            entry.bytes = self.directory.publish_unsynced(&pixels_name(id))?;
        }
        entry.boot.clone_from(&self.boot);
        let failed = |error| ChunkError::damaged(entry_name(id), "ring entry", error);
        let content = serde_json::to_vec(&entry).map_err(failed)?;
        if content.len() as u64 > OVERHEAD_BYTES / 2 {
            self.reserve(&mut slot, content.len() as u64).await?;
        }
        self.directory.write_unsynced(&entry_name(id), &content)?;
        entry.quarantined = Vec::new();
        Ok(SpooledChunk { entry, directory: self.directory.clone(), held: slot.held })
    }
}

impl SpooledChunk {
    /// Where its pixels are; `None` where no row was kept.
    pub fn pixels(&self) -> Option<PathBuf> {
        (self.entry.bytes > 0).then(|| self.directory.path(&pixels_name(self.entry.id)))
    }

    /// Everything that is known of it.
    ///
    /// # Errors
    /// When its entry cannot be read any more.
    pub fn whole_entry(&self) -> Result<RingEntry, ChunkError> {
        let name = entry_name(self.entry.id);
        let content = self.directory.read(&name)?.unwrap_or_default();
        serde_json::from_slice(&content)
            .map_err(|error| ChunkError::damaged(self.directory.path(&name), "ring entry", error))
    }

    /// Refuses pixels that are not what was written: by an earlier process, or on a disk that failed meanwhile, which nothing that was
    /// synced would have told.
    ///
    /// # Errors
    /// When they are damaged or cannot be read.
    pub fn verify(&self) -> Result<(), ChunkError> {
        match self.pixels() {
            Some(path) => verify(&path, &path.display().to_string(), self.entry.checksum),
            None => Ok(()),
        }
    }

    /// Removes the chunk and gives its bytes back.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn release(self) -> Result<(), ChunkError> {
        // The entry first: a kill in between leaves a file without an entry, which the next process removes.
        for name in names(self.entry.id) {
            self.directory.remove(&name)?;
        }
        drop(self.held);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(row: u64, generation: &str) -> RingEntry {
        RingEntry {
            id: ChunkId { shard: 0, row },
            generation: generation.to_owned(),
            last: false,
            tally: Tally { rows: 10, kept: 10, ..Tally::default() },
            labels: 0,
            quarantined: Vec::new(),
            bytes: 0,
            checksum: None,
            boot: String::new(),
        }
    }

    #[tokio::test]
    async fn chunks_of_another_boot_of_the_machine_are_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("ring")).unwrap();
        let (ring, _) = open(&directory, 8 << 20, "g").await;
        let (first, second) = (put(&ring, 0, 1000).await.entry.id, put(&ring, 10, 1000).await.entry.id);
        let text = String::from_utf8(directory.read(&entry_name(second)).unwrap().unwrap()).unwrap();
        directory.write(&entry_name(second), text.replace(&crate::run_dir::boot_id(), "another").as_bytes()).unwrap();
        let (_, chunks) = open(&directory, 8 << 20, "g").await;
        assert_eq!(chunks.iter().map(|chunk| chunk.entry.id).collect::<Vec<_>>(), [first]);
        assert_eq!(directory.list("").unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_chunk_that_fills_the_ring_goes_on_and_one_that_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("ring")).unwrap();
        let limit = OVERHEAD_BYTES + (1 << 20);
        let (ring, _) = open(&directory, limit, "g").await;
        let (mut slot, _) = ring.start(ChunkId { shard: 3, row: 40 }).await.unwrap();
        // In odd pieces, of which each would waste most of a unit if it were rounded by itself.
        for _ in 0..(1 << 20) / 64 {
            ring.reserve(&mut slot, 64).await.unwrap();
        }
        let text = ring.reserve(&mut slot, 1).await.unwrap_err().to_string();
        assert!(text.contains("row 40 of shard 3") && text.contains("`limits.disk`"), "{text}");
    }

    async fn put(ring: &Spool, row: u64, bytes: usize) -> SpooledChunk {
        let (mut slot, path) = ring.start(ChunkId { shard: 0, row }).await.unwrap();
        ring.reserve(&mut slot, bytes as u64).await.unwrap();
        std::fs::write(path, vec![1; bytes]).unwrap();
        ring.complete(slot, entry(row, "g")).await.unwrap()
    }

    async fn open(directory: &LocalDirectory, limit: u64, generation: &str) -> (Spool, Vec<SpooledChunk>) {
        Spool::open(directory.clone(), limit, generation, &mut Schedule::start(1)).await.unwrap()
    }

    #[tokio::test]
    async fn a_full_ring_blocks_until_a_chunk_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("ring")).unwrap();
        let (ring, _) = open(&directory, 2 << 20, "g").await;
        let first = put(&ring, 0, 1 << 20).await;
        let waits = tokio::time::timeout(Duration::from_millis(100), put(&ring, 10, 1 << 20)).await;
        assert!(waits.is_err(), "the second chunk does not fit beside the first");
        first.release().unwrap();
        let second = put(&ring, 10, 1 << 20).await;
        assert_eq!(second.entry.bytes, 1 << 20);
    }

    #[tokio::test]
    async fn complete_chunks_that_follow_without_a_gap_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("ring")).unwrap();
        let (ring, _) = open(&directory, 8 << 20, "g").await;
        for row in [0, 10, 30] {
            put(&ring, row, 1000).await;
        }
        let (_, none) = open(&directory, 8 << 20, "other").await;
        assert!(none.is_empty());
        let (ring, _) = open(&directory, 8 << 20, "g").await;
        for row in [0, 10, 30] {
            put(&ring, row, 1000).await;
        }
        let (_, chunks) = open(&directory, 8 << 20, "g").await;
        assert_eq!(chunks.iter().map(|chunk| chunk.entry.id.row).collect::<Vec<_>>(), [0, 10]);
        assert_eq!(directory.list("").unwrap().len(), 4, "the chunk behind the gap is removed");
        for chunk in chunks {
            chunk.release().unwrap();
        }
        assert!(directory.list("").unwrap().is_empty());
    }
}
