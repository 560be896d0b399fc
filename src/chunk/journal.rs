//! The journal: one small JSON file for each committed chunk, created if absent, after the chunk's files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::schedule::Schedule;
use super::{Checksum, ChunkError, ChunkId, Entry, Tally, verify};
use crate::objects::StoreError;
use crate::run_dir::Directory;

/// Where a stream keeps its entries, its chunks and its quarantine, inside the run's directory.
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
    /// The layout of the training images: `kind` is `features` or `chunks`.
    pub fn train(kind: &str) -> Self {
        Self { entries: format!("journal/{kind}"), chunks: kind.to_owned(), quarantine: "quarantine".to_owned() }
    }

    /// The layout of a set of test images, named after the submission's file stem.
    pub fn predict(stem: &str) -> Self {
        Self {
            entries: format!("journal/predict-{stem}"),
            chunks: format!("predict/{stem}/features"),
            quarantine: format!("predict/{stem}/quarantine"),
        }
    }

    /// Name of a chunk's file.
    pub fn chunk(&self, id: ChunkId) -> String {
        format!("{}/{id}.parquet", self.chunks)
    }

    /// Name of a chunk's quarantine file.
    pub fn quarantine(&self, id: ChunkId) -> String {
        format!("{}/{id}.parquet", self.quarantine)
    }

    /// Whether an entry counts each row once and names the files that it must have.
    fn fits(&self, id: ChunkId, entry: &Entry) -> bool {
        let wanted =
            [(self.chunk(id), entry.tally.kept > 0), (self.quarantine(id), entry.tally.quarantined_rows() > 0)];
        let named = wanted.iter().filter(|(name, wanted)| *wanted && entry.files.contains_key(name)).count();
        entry.tally.adds_up()
            && named == entry.files.len()
            && wanted.iter().filter(|(_, wanted)| *wanted).count() == named
    }

    fn entry(&self, id: ChunkId) -> String {
        format!("{}/{id}.json", self.entries)
    }
}

/// The committed chunks of one stream, a prefix of their [`Schedule`].
#[derive(Debug)]
pub struct Journal {
    directory: Directory,
    layout: Layout,
    entries: BTreeMap<ChunkId, Entry>,
}

impl Journal {
    /// Reads the journal as it stands, changing nothing: of each shard the longest prefix of complete chunks of `generation`
    /// (any one, where `None`).
    ///
    /// # Errors
    /// When an entry cannot be read.
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
        let names: Vec<String> = ids.iter().map(|id| layout.entry(*id)).collect();
        let contents = directory.read_all(&names)?;
        let mut sizes = directory.list_recursive(&layout.chunks)?;
        sizes.append(&mut directory.list_recursive(&layout.quarantine)?);
        // In the order of shards and rows: where the rows of the shard at hand go on, or `None` where they do not.
        let mut at = (0, Some(0));
        for (id, content) in ids.into_iter().zip(contents) {
            if at.0 != id.shard {
                at = (id.shard, Some(0));
            }
            if at.1.take() != Some(id.row) {
                continue;
            }
            // An empty or cut entry, which only a power failure leaves, counts as absent, and so does one that contradicts
            // itself.
            let Some(entry) = content.and_then(|content| serde_json::from_slice::<Entry>(&content).ok()) else {
                continue;
            };
            let complete = entry.files.iter().all(|(file, bytes)| sizes.get(file) == Some(bytes));
            if !complete || !layout.fits(id, &entry) || generation.is_some_and(|wanted| wanted != entry.generation) {
                continue;
            }
            at.1 = if entry.last { None } else { id.row.checked_add(entry.tally.rows) };
            entries.insert(id, entry);
        }
        Ok(Self { directory, layout, entries })
    }

    /// Reads the journal of a corpus of so many shards and removes what a killed process left: entries behind the prefix of the
    /// schedule, and files without an entry.
    ///
    /// # Errors
    /// When an entry cannot be read or a leftover cannot be removed.
    pub fn open(directory: Directory, layout: Layout, generation: &str, shards: u32) -> Result<Self, ChunkError> {
        let mut journal = Self::read(directory, layout, Some(generation))?;
        let (_, known) = journal.walk(shards);
        journal.entries.retain(|id, _| known.contains(id));
        let (directory, layout) = (&journal.directory, &journal.layout);
        let known: BTreeSet<&str> =
            journal.entries.values().flat_map(|entry| entry.files.keys().map(String::as_str)).collect();
        // Entries first: a kill in between leaves files without an entry, never the reverse.
        directory.sweep(&layout.entries, |name| {
            name.strip_suffix(".json").and_then(ChunkId::parse).is_some_and(|id| journal.entries.contains_key(&id))
        })?;
        for folder in [&layout.chunks, &layout.quarantine] {
            directory.sweep(folder, |name| known.contains(format!("{folder}/{name}").as_str()))?;
        }
        Ok(journal)
    }

    /// Where the folders are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The run's directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The committed chunks in the order of shards and rows.
    pub fn entries(&self) -> &BTreeMap<ChunkId, Entry> {
        &self.entries
    }

    /// Where a corpus of so many shards goes on behind what is committed.
    pub fn schedule(&self, shards: u32) -> Schedule {
        self.walk(shards).0
    }

    /// Follows the schedule for as long as there are entries.
    fn walk(&self, shards: u32) -> (Schedule, BTreeSet<ChunkId>) {
        let (mut schedule, mut passed) = (Schedule::start(shards), BTreeSet::new());
        while let Some((id, entry)) = schedule.next().and_then(|id| self.entries.get_key_value(&id)) {
            // An entry that leads nowhere, which no corpus has, would lead here again.
            if !passed.insert(*id) {
                break;
            }
            schedule.advance(entry.tally.rows, entry.last);
        }
        (schedule, passed)
    }

    /// Refuses a file of a committed chunk that is not what was written; `copy` is where it can be read.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub fn verify(&self, name: &str, copy: &Path) -> Result<(), ChunkError> {
        let id = Path::new(name).file_stem().and_then(|stem| ChunkId::parse(stem.to_str()?));
        let entry = id.and_then(|id| self.entries.get(&id));
        let sum: Option<Checksum> = entry.and_then(|entry| entry.checksums.get(name).copied());
        verify(copy, &self.directory.display(name), sum)
    }

    /// Commits a chunk whose files are complete and durable. Committing twice is harmless.
    ///
    /// # Errors
    /// When the entry cannot be written, or another process entered something else.
    pub fn commit(&mut self, id: ChunkId, entry: Entry) -> Result<(), ChunkError> {
        let name = self.layout.entry(id);
        let text = serde_json::to_vec(&entry).map_err(|error| ChunkError::damaged(&name, "journal entry", error))?;
        if !self.directory.create_new(&name, &text)? && self.directory.read(&name)?.as_ref() != Some(&text) {
            // One process at a time works here, and it removed what it does not know.
            let (path, holder) = (self.directory.display(&name), "another process".to_owned());
            return Err(StoreError::Lost { path, holder }.into());
        }
        self.entries.insert(id, entry);
        Ok(())
    }

    /// What became of each shard's rows.
    pub fn shard_tallies(&self) -> BTreeMap<u32, Tally> {
        let mut shards: BTreeMap<u32, Tally> = BTreeMap::new();
        for (id, entry) in &self.entries {
            shards.entry(id.shard).or_default().merge(&entry.tally);
        }
        shards
    }

    /// What became of all rows.
    pub fn tally(&self) -> Tally {
        let mut all = Tally::default();
        for entry in self.entries.values() {
            all.merge(&entry.tally);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rows: u64, last: bool, files: &[(&str, u64)]) -> Entry {
        Entry {
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
    fn the_schedule_goes_on_behind_the_last_complete_chunk() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 2).unwrap();
        assert_eq!(journal.schedule(2).next(), Some(ChunkId { shard: 0, row: 0 }));
        journal.commit(ChunkId { shard: 0, row: 0 }, entry(10, false, &[])).unwrap();
        journal.commit(ChunkId { shard: 1, row: 0 }, entry(10, false, &[])).unwrap();
        journal.commit(ChunkId { shard: 0, row: 10 }, entry(4, true, &[])).unwrap();
        let again = Journal::open(directory, layout, "g", 2).unwrap();
        let schedule = again.schedule(2);
        assert_eq!(schedule.next(), Some(ChunkId { shard: 1, row: 10 }));
        assert!(schedule.is_past(0) && !schedule.is_past(1));
        assert_eq!(again.tally().rows, 24);
        assert_eq!(again.shard_tallies()[&0].rows, 14);
    }

    #[test]
    fn committing_twice_is_harmless_and_committing_two_things_is_refused() {
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
    fn an_entry_whose_file_is_short_ends_the_prefix_and_leftovers_go() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 1).unwrap();
        for (row, content) in [(0, "whole"), (5, "cut"), (10, "whole")] {
            let id = ChunkId { shard: 0, row };
            let name = layout.chunk(id);
            directory.write(&name, content.as_bytes()).unwrap();
            journal.commit(id, entry(5, false, &[(&name, 5)])).unwrap();
        }
        directory.write("features/00000-000000000099.parquet", b"without entry").unwrap();
        let again = Journal::open(directory.clone(), layout, "g", 1).unwrap();
        assert_eq!(again.schedule(1).next(), Some(ChunkId { shard: 0, row: 5 }));
        assert_eq!(directory.list("features").unwrap(), ["00000-000000000000.parquet"]);
        assert_eq!(directory.list("journal/features").unwrap(), ["00000-000000000000.json"]);
    }

    #[test]
    fn entries_behind_a_gap_in_the_schedule_are_removed() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 2).unwrap();
        for (shard, row) in [(0, 0), (0, 10), (1, 10)] {
            journal.commit(ChunkId { shard, row }, entry(10, false, &[])).unwrap();
        }
        let read = Journal::read(directory.clone(), layout.clone(), Some("g")).unwrap();
        assert_eq!(read.entries().len(), 2, "of the second shard there is no start");
        let again = Journal::open(directory.clone(), layout, "g", 2).unwrap();
        assert_eq!(again.schedule(2).next(), Some(ChunkId { shard: 1, row: 0 }));
        assert_eq!(directory.list("journal/features").unwrap(), ["00000-000000000000.json"]);
    }

    #[test]
    fn chunks_of_another_generation_are_not_taken_over() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", 1).unwrap();
        journal.commit(ChunkId { shard: 0, row: 0 }, entry(10, true, &[])).unwrap();
        assert!(Journal::open(directory, layout, "other", 1).unwrap().entries().is_empty());
    }
}
