//! Journal of committed chunks: one small JSON file per chunk, created if absent after the chunk's files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::schedule::Schedule;
use super::{Checksum, ChunkError, ChunkId, JournalEntry, Tally, verify};
use crate::objects::StoreError;
use crate::run_dir::Directory;

/// Folders of a stream's entries, chunks and quarantine files, relative to the run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Folder of the entries.
    pub entries: String,
    /// Folder of the chunks.
    pub chunks: String,
    /// Folder of the quarantine.
    pub quarantine: String,
}

impl Layout {
    /// Returns the layout for the training images; `kind` is `features` or `chunks`.
    pub fn train(kind: &str) -> Self {
        Self { entries: format!("journal/{kind}"), chunks: kind.to_owned(), quarantine: "quarantine".to_owned() }
    }

    /// Returns the layout for a set of test images, named after the file stem of the submission.
    pub fn predict(stem: &str) -> Self {
        Self {
            entries: format!("journal/predict-{stem}"),
            chunks: format!("predict/{stem}/features"),
            quarantine: format!("predict/{stem}/quarantine"),
        }
    }

    /// Returns the path of a chunk's file.
    pub fn chunk(&self, id: ChunkId) -> String {
        format!("{}/{id}.parquet", self.chunks)
    }

    /// Returns the path of a chunk's quarantine file.
    pub fn quarantine(&self, id: ChunkId) -> String {
        format!("{}/{id}.parquet", self.quarantine)
    }

    /// Returns whether the entry's counts add up and its files are exactly those that it must have.
    fn is_consistent(&self, id: ChunkId, entry: &JournalEntry) -> bool {
        let required =
            [(self.chunk(id), entry.tally.kept > 0), (self.quarantine(id), entry.tally.quarantined_rows() > 0)];
        let named =
            required.iter().filter(|(name, is_required)| *is_required && entry.files.contains_key(name)).count();
        entry.tally.adds_up()
            && named == entry.files.len()
            && required.iter().filter(|(_, is_required)| *is_required).count() == named
    }

    fn entry_path(&self, id: ChunkId) -> String {
        format!("{}/{id}.json", self.entries)
    }
}

/// Committed chunks of one stream, a prefix of their [`Schedule`].
#[derive(Debug)]
pub struct Journal {
    directory: Directory,
    layout: Layout,
    entries: BTreeMap<ChunkId, JournalEntry>,
}

impl Journal {
    /// Reads the journal without changing anything. Keeps, of each shard, the longest prefix of complete chunks of
    /// `generation`, or of any generation if `None`.
    ///
    /// # Errors
    /// Fails if an entry cannot be read.
    pub fn read(directory: Directory, layout: Layout, generation: Option<&str>) -> Result<Self, ChunkError> {
        let mut entries = BTreeMap::new();
        let ids: Vec<ChunkId> = directory
            .list(&layout.entries)?
            .iter()
            .filter_map(|name| name.strip_suffix(".json").and_then(ChunkId::parse))
            .collect();
        if ids.is_empty() {
            return Ok(Self { directory, layout, entries });
        }
        let names: Vec<String> = ids.iter().map(|id| layout.entry_path(*id)).collect();
        let contents = directory.read_all(&names)?;
        let mut sizes = directory.list_recursive(&layout.chunks)?;
        sizes.append(&mut directory.list_recursive(&layout.quarantine)?);
        // Shard and the row at which its next chunk must start; `None` after the prefix has ended.
        let mut expected = (0, Some(0));
        for (id, content) in ids.into_iter().zip(contents) {
            if expected.0 != id.shard {
                expected = (id.shard, Some(0));
            }
            if expected.1.take() != Some(id.row) {
                continue;
            }
            // An empty or truncated entry, which only a power failure leaves, counts as absent. So does an inconsistent
            // one.
            let Some(entry) = content.and_then(|content| serde_json::from_slice::<JournalEntry>(&content).ok()) else {
                continue;
            };
            let complete = entry.files.iter().all(|(file, bytes)| sizes.get(file) == Some(bytes));
            if !complete
                || !layout.is_consistent(id, &entry)
                || generation.is_some_and(|wanted| wanted != entry.generation)
            {
                continue;
            }
            expected.1 = if entry.last { None } else { id.row.checked_add(entry.tally.rows) };
            entries.insert(id, entry);
        }
        Ok(Self { directory, layout, entries })
    }

    /// Reads the journal of a corpus of `shards` shards and removes leftovers of a killed process: entries beyond the
    /// prefix of the schedule, and files without an entry.
    ///
    /// # Errors
    /// Fails if an entry cannot be read or a leftover cannot be removed.
    pub fn open(directory: Directory, layout: Layout, generation: &str, shards: u32) -> Result<Self, ChunkError> {
        let mut journal = Self::read(directory, layout, Some(generation))?;
        let (_, known) = journal.follow_schedule(shards);
        journal.entries.retain(|id, _| known.contains(id));
        let (directory, layout) = (&journal.directory, &journal.layout);
        let known: BTreeSet<&str> =
            journal.entries.values().flat_map(|entry| entry.files.keys().map(String::as_str)).collect();
        // Entries are removed first, so a kill in between leaves files without an entry, never the reverse.
        directory.sweep(&layout.entries, |name| {
            name.strip_suffix(".json").and_then(ChunkId::parse).is_some_and(|id| journal.entries.contains_key(&id))
        })?;
        for folder in [&layout.chunks, &layout.quarantine] {
            directory.sweep(folder, |name| known.contains(format!("{folder}/{name}").as_str()))?;
        }
        Ok(journal)
    }

    /// Returns the layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the run directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Returns the committed chunks in order of shards and rows.
    pub fn entries(&self) -> &BTreeMap<ChunkId, JournalEntry> {
        &self.entries
    }

    /// Returns the position of the schedule after the committed chunks, for a corpus of `shards` shards.
    pub fn schedule(&self, shards: u32) -> Schedule {
        self.follow_schedule(shards).0
    }

    /// Follows the schedule while there are entries. Returns the position reached and the ids passed.
    fn follow_schedule(&self, shards: u32) -> (Schedule, BTreeSet<ChunkId>) {
        let (mut schedule, mut passed) = (Schedule::start(shards), BTreeSet::new());
        while let Some((id, entry)) = schedule.next().and_then(|id| self.entries.get_key_value(&id)) {
            // An entry without rows, which no valid journal has, would repeat forever.
            if !passed.insert(*id) {
                break;
            }
            schedule.advance(entry.tally.rows, entry.last);
        }
        (schedule, passed)
    }

    /// Verifies the checksum of a committed chunk's file, which can be read at `copy`.
    ///
    /// # Errors
    /// Fails if the file is damaged or cannot be read.
    pub fn verify(&self, name: &str, copy: &Path) -> Result<(), ChunkError> {
        let id = Path::new(name).file_stem().and_then(|stem| ChunkId::parse(stem.to_str()?));
        let entry = id.and_then(|id| self.entries.get(&id));
        let sum: Option<Checksum> = entry.and_then(|entry| entry.checksums.get(name).copied());
        verify(copy, &self.directory.display(name), sum)
    }

    /// Commits a chunk whose files are complete and durable. Committing the same entry twice has no effect.
    ///
    /// # Errors
    /// Fails if the entry cannot be written or another process has committed a different one.
    pub fn commit(&mut self, id: ChunkId, entry: JournalEntry) -> Result<(), ChunkError> {
        let name = self.layout.entry_path(id);
        let text = serde_json::to_vec(&entry).map_err(|error| ChunkError::damaged(&name, "journal entry", error))?;
        if !self.directory.create_new(&name, &text)? && self.directory.read(&name)?.as_ref() != Some(&text) {
            // The lease admits one process at a time, which has removed all unknown entries.
            let (path, holder) = (self.directory.display(&name), "another process".to_owned());
            return Err(StoreError::Lost { path, holder }.into());
        }
        self.entries.insert(id, entry);
        Ok(())
    }

    /// Returns the row counts of each shard.
    pub fn shard_tallies(&self) -> BTreeMap<u32, Tally> {
        let mut shards: BTreeMap<u32, Tally> = BTreeMap::new();
        for (id, entry) in &self.entries {
            shards.entry(id.shard).or_default().merge(&entry.tally);
        }
        shards
    }

    /// Returns the row counts of all shards together.
    pub fn tally(&self) -> Tally {
        let mut total = Tally::default();
        for entry in self.entries.values() {
            total.merge(&entry.tally);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rows: u64, last: bool, files: &[(&str, u64)]) -> JournalEntry {
        JournalEntry {
            generation: "g".to_owned(),
            last,
            tally: if files.is_empty() {
                Tally { rows, skipped: BTreeMap::from([("no_label".to_owned(), rows)]), ..Tally::default() }
            } else {
                Tally { rows, kept: rows, ..Tally::default() }
            },
            labels: 0,
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
            checksums: BTreeMap::new(),
        }
    }

    fn setup() -> (tempfile::TempDir, Directory, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let directory = crate::run_dir::LocalDirectory::create(dir.path()).unwrap().into();
        (dir, directory, Layout::train("features"))
    }

    #[test]
    fn schedule_resumes_after_the_last_complete_chunk() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 2).unwrap();
        assert_eq!(journal.schedule(2).next(), Some(ChunkId { shard: 0, row: 0 }));
        journal.commit(ChunkId { shard: 0, row: 0 }, entry(10, false, &[])).unwrap();
        journal.commit(ChunkId { shard: 1, row: 0 }, entry(10, false, &[])).unwrap();
        journal.commit(ChunkId { shard: 0, row: 10 }, entry(4, true, &[])).unwrap();
        let reopened = Journal::open(directory, layout, "g", 2).unwrap();
        let schedule = reopened.schedule(2);
        assert_eq!(schedule.next(), Some(ChunkId { shard: 1, row: 10 }));
        assert!(schedule.is_past(0) && !schedule.is_past(1));
        assert_eq!(reopened.tally().rows, 24);
        assert_eq!(reopened.shard_tallies()[&0].rows, 14);
    }

    #[test]
    fn conflicting_commit_is_refused() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 1).unwrap();
        let mut other = Journal::open(directory, layout, "g", 1).unwrap();
        let id = ChunkId { shard: 0, row: 0 };
        journal.commit(id, entry(10, false, &[])).unwrap();
        journal.commit(id, entry(10, false, &[])).unwrap();
        other.commit(id, entry(10, false, &[])).unwrap();
        let error = other.commit(id, entry(9, false, &[])).unwrap_err();
        assert!(matches!(error, ChunkError::Store(StoreError::Lost { .. })), "{error}");
    }

    #[test]
    fn truncated_file_ends_the_prefix() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 1).unwrap();
        for (row, content) in [(0, "whole"), (5, "cut"), (10, "whole")] {
            let id = ChunkId { shard: 0, row };
            let name = layout.chunk(id);
            directory.write(&name, content.as_bytes()).unwrap();
            journal.commit(id, entry(5, false, &[(&name, 5)])).unwrap();
        }
        directory.write("features/00000-000000000099.parquet", b"without entry").unwrap();
        let reopened = Journal::open(directory.clone(), layout, "g", 1).unwrap();
        assert_eq!(reopened.schedule(1).next(), Some(ChunkId { shard: 0, row: 5 }));
        assert_eq!(directory.list("features").unwrap(), ["00000-000000000000.parquet"]);
        assert_eq!(directory.list("journal/features").unwrap(), ["00000-000000000000.json"]);
    }

    #[test]
    fn entries_after_a_gap_are_removed() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 2).unwrap();
        for (shard, row) in [(0, 0), (0, 10), (1, 10)] {
            journal.commit(ChunkId { shard, row }, entry(10, false, &[])).unwrap();
        }
        let read = Journal::read(directory.clone(), layout.clone(), Some("g")).unwrap();
        assert_eq!(read.entries().len(), 2, "the second shard has no first chunk");
        let reopened = Journal::open(directory.clone(), layout, "g", 2).unwrap();
        assert_eq!(reopened.schedule(2).next(), Some(ChunkId { shard: 1, row: 0 }));
        assert_eq!(directory.list("journal/features").unwrap(), ["00000-000000000000.json"]);
    }

    #[test]
    fn chunks_of_another_generation_are_ignored() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 1).unwrap();
        journal.commit(ChunkId { shard: 0, row: 0 }, entry(10, true, &[])).unwrap();
        assert!(Journal::open(directory, layout, "other", 1).unwrap().entries().is_empty());
    }
}
