//! Journal of committed chunks: one small JSON file per chunk, created if absent after the chunk's files.
//!
//! The chunks of a shard are committed in the order of its rows and depend on that shard alone. So a [`Part`] of the
//! shards can be opened, cleaned and filled while other processes fill the other parts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::url_hashes::UrlHashes;
use super::{Checksum, ChunkError, ChunkId, JournalEntry, Tally, verify};
use crate::objects::StoreError;
use crate::run_dir::Directory;
use crate::types::Part;

/// Files with URL hashes that are read at once.
const HASH_FILES_AT_ONCE: usize = 256;

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

    /// Returns the path of the URL hashes of a chunk.
    pub fn url_hashes(&self, id: ChunkId) -> String {
        format!("{}/{id}.urls", self.entries)
    }

    /// Returns the path of the list of [duplicates](super::duplicates) across shards.
    pub fn duplicates(&self) -> String {
        match self.chunks.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/duplicates.parquet"),
            None => "duplicates.parquet".to_owned(),
        }
    }

    /// Returns whether the entry's counts add up and its files are exactly those that it must have.
    fn is_consistent(&self, id: ChunkId, entry: &JournalEntry) -> bool {
        let (kept, quarantined) = (entry.tally.kept > 0, entry.tally.quarantined_rows() > 0);
        let has = |name: String| entry.files.contains_key(&name);
        let (chunk, bad_rows, hashes) = (has(self.chunk(id)), has(self.quarantine(id)), has(self.url_hashes(id)));
        let files = usize::from(chunk) + usize::from(bad_rows) + usize::from(hashes);
        // Quarantined rows may all lack a URL.
        let hashes_fit = hashes == kept || (hashes && quarantined);
        entry.tally.adds_up() && files == entry.files.len() && (chunk, bad_rows) == (kept, quarantined) && hashes_fit
    }

    fn entry_path(&self, id: ChunkId) -> String {
        format!("{}/{id}.json", self.entries)
    }
}

/// Committed chunks of one stream: of each shard, the first ones.
#[derive(Debug)]
pub struct Journal {
    directory: Directory,
    layout: Layout,
    /// Shards whose chunks this journal knows.
    part: Part,
    entries: BTreeMap<ChunkId, JournalEntry>,
}

impl Journal {
    /// Reads the journal of all shards without changing anything. Keeps, of each shard, the longest prefix of complete
    /// chunks of `generation`, or of any generation if `None`.
    ///
    /// # Errors
    /// Fails if an entry cannot be read.
    pub fn read(directory: Directory, layout: Layout, generation: Option<&str>) -> Result<Self, ChunkError> {
        Self::read_part(directory, layout, generation, Part::WHOLE)
    }

    fn read_part(
        directory: Directory,
        layout: Layout,
        generation: Option<&str>,
        part: Part,
    ) -> Result<Self, ChunkError> {
        let mut entries = BTreeMap::new();
        let ids: Vec<ChunkId> = directory
            .list(&layout.entries)?
            .iter()
            .filter_map(|name| name.strip_suffix(".json").and_then(ChunkId::parse))
            .filter(|id| part.contains(id.shard))
            .collect();
        if ids.is_empty() {
            return Ok(Self { directory, layout, part, entries });
        }
        let names: Vec<String> = ids.iter().map(|id| layout.entry_path(*id)).collect();
        let contents = directory.read_all(&names)?;
        let mut sizes = directory.list_recursive(&layout.chunks)?;
        sizes.append(&mut directory.list_recursive(&layout.quarantine)?);
        sizes.append(&mut directory.list_recursive(&layout.entries)?);
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
        Ok(Self { directory, layout, part, entries })
    }

    /// Reads the journal of a part of the shards and removes what a killed process left of them: entries after a gap,
    /// files without an entry, and temporary files. Files of other shards stay.
    ///
    /// # Errors
    /// Fails if an entry cannot be read or a leftover cannot be removed.
    pub fn open(directory: Directory, layout: Layout, generation: &str, part: Part) -> Result<Self, ChunkError> {
        let journal = Self::read_part(directory, layout, Some(generation), part)?;
        let (directory, layout) = (&journal.directory, &journal.layout);
        let mut known: BTreeSet<String> =
            journal.entries.values().flat_map(|entry| entry.files.keys().cloned()).collect();
        known.extend(journal.entries.keys().map(|id| layout.entry_path(*id)));
        let is_own = |name: &str| match name.split('.').next().and_then(ChunkId::parse) {
            Some(id) => part.contains(id.shard),
            None => part == Part::WHOLE,
        };
        // Entries are removed first, so a kill in between leaves files without an entry, never the reverse.
        for folder in [&layout.entries, &layout.chunks, &layout.quarantine] {
            directory.sweep_own(folder, is_own, |name| known.contains(&format!("{folder}/{name}")))?;
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

    /// Returns the next chunk of each unfinished shard, for a corpus of `shards` shards, in listing order.
    pub fn pending(&self, shards: u32) -> Vec<ChunkId> {
        let own = (0..shards).filter(|shard| self.part.contains(*shard));
        let next = own.filter_map(|shard| {
            let of_shard = ChunkId { shard, row: 0 }..=ChunkId { shard, row: u64::MAX };
            match self.entries.range(of_shard).next_back() {
                None => Some(ChunkId { shard, row: 0 }),
                Some((_, entry)) if entry.last => None,
                Some((id, entry)) => Some(ChunkId { shard, row: id.row.saturating_add(entry.tally.rows) }),
            }
        });
        next.collect()
    }

    /// Reads the URL hashes of committed chunks, in groups of files. Blocks the thread.
    pub fn url_hashes(
        &self,
        ids: impl Iterator<Item = ChunkId>,
    ) -> impl Iterator<Item = Result<(ChunkId, UrlHashes), ChunkError>> {
        let stored = |id: &ChunkId| {
            self.entries.get(id).is_some_and(|entry| entry.files.contains_key(&self.layout.url_hashes(*id)))
        };
        let ids: Vec<ChunkId> = ids.filter(stored).collect();
        let groups = (0..ids.len()).step_by(HASH_FILES_AT_ONCE);
        let groups = groups.map(move |start| ids[start..ids.len().min(start + HASH_FILES_AT_ONCE)].to_vec());
        groups.flat_map(|ids| match self.read_hash_files(&ids) {
            Ok(hashes) => ids.into_iter().zip(hashes).map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    fn read_hash_files(&self, ids: &[ChunkId]) -> Result<Vec<UrlHashes>, ChunkError> {
        let names: Vec<String> = ids.iter().map(|id| self.layout.url_hashes(*id)).collect();
        let contents = self.directory.read_all(&names)?;
        let parse = |((id, name), content): ((&ChunkId, String), Option<Vec<u8>>)| {
            let kept = self.entries.get(id).map_or(0, |entry| entry.tally.kept);
            content.and_then(|content| UrlHashes::decode(&content, kept)).ok_or_else(|| {
                let path = self.directory.display(&name);
                ChunkError::damaged(path, "file of URL hashes", "its checksum does not fit")
            })
        };
        ids.iter().zip(names).zip(contents).map(parse).collect()
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
            // The lease admits one process for each shard, which has removed all unknown entries.
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
            next_offset: None,
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
    fn shards_resume_after_their_last_complete_chunks() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", Part::WHOLE).unwrap();
        assert_eq!(journal.pending(2), [ChunkId { shard: 0, row: 0 }, ChunkId { shard: 1, row: 0 }]);
        journal.commit(ChunkId { shard: 0, row: 0 }, entry(10, false, &[])).unwrap();
        journal.commit(ChunkId { shard: 1, row: 0 }, entry(10, false, &[])).unwrap();
        journal.commit(ChunkId { shard: 0, row: 10 }, entry(4, true, &[])).unwrap();
        let reopened = Journal::open(directory, layout, "g", Part::WHOLE).unwrap();
        assert_eq!(reopened.pending(2), [ChunkId { shard: 1, row: 10 }]);
        assert_eq!(reopened.tally().rows, 24);
        assert_eq!(reopened.shard_tallies()[&0].rows, 14);
    }

    #[test]
    fn conflicting_commit_is_refused() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", Part::WHOLE).unwrap();
        let mut other = Journal::open(directory, layout, "g", Part::WHOLE).unwrap();
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
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", Part::WHOLE).unwrap();
        for (row, content) in [(0, "whole"), (5, "cut"), (10, "whole")] {
            let id = ChunkId { shard: 0, row };
            let name = layout.chunk(id);
            directory.write(&name, content.as_bytes()).unwrap();
            let hashes = UrlHashes { kept: vec![row; 5], quarantined: Vec::new() }.encode();
            directory.write(&layout.url_hashes(id), &hashes).unwrap();
            let files = [(&*name, 5), (&*layout.url_hashes(id), hashes.len() as u64)];
            journal.commit(id, entry(5, false, &files)).unwrap();
        }
        directory.write("features/00000-000000000099.parquet", b"without entry").unwrap();
        let reopened = Journal::open(directory.clone(), layout, "g", Part::WHOLE).unwrap();
        assert_eq!(reopened.pending(1), [ChunkId { shard: 0, row: 5 }]);
        assert_eq!(directory.list("features").unwrap(), ["00000-000000000000.parquet"]);
        let names = ["00000-000000000000.json", "00000-000000000000.urls"];
        assert_eq!(directory.list("journal/features").unwrap(), names);
        let hashes: Vec<_> = reopened.url_hashes(reopened.entries().keys().copied()).map(Result::unwrap).collect();
        assert_eq!(hashes.len(), 1);
        assert_eq!(hashes[0].1.kept, [0; 5]);
    }

    #[test]
    fn entries_after_a_gap_are_removed() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", Part::WHOLE).unwrap();
        for (shard, row) in [(0, 0), (0, 10), (1, 10)] {
            journal.commit(ChunkId { shard, row }, entry(10, false, &[])).unwrap();
        }
        let read = Journal::read(directory.clone(), layout.clone(), Some("g")).unwrap();
        assert_eq!(read.entries().len(), 2, "the second shard has no first chunk");
        let reopened = Journal::open(directory.clone(), layout, "g", Part::WHOLE).unwrap();
        assert_eq!(reopened.pending(2), [ChunkId { shard: 0, row: 20 }, ChunkId { shard: 1, row: 0 }]);
        let names = ["00000-000000000000.json", "00000-000000000010.json"];
        assert_eq!(directory.list("journal/features").unwrap(), names);
    }

    #[test]
    fn part_reads_and_sweeps_its_own_shards() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", Part::WHOLE).unwrap();
        for shard in 0..4 {
            journal.commit(ChunkId { shard, row: 0 }, entry(10, shard < 2, &[])).unwrap();
            directory.write(&layout.chunk(ChunkId { shard, row: 10 }), b"without entry").unwrap();
            let half = directory.temporary(&layout.chunk(ChunkId { shard, row: 20 })).unwrap();
            std::fs::write(half, b"half").unwrap();
        }
        let part = Journal::open(directory.clone(), layout, "g", Part::new(1, 2).unwrap()).unwrap();
        assert_eq!(part.entries().keys().map(|id| id.shard).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(part.pending(6), [ChunkId { shard: 3, row: 10 }, ChunkId { shard: 5, row: 0 }]);
        let left = std::fs::read_dir(directory.local_root().unwrap().join("features")).unwrap();
        let mut left: Vec<String> =
            left.map(|file| file.unwrap().file_name().to_string_lossy()[..5].to_owned()).collect();
        left.sort_unstable();
        assert_eq!(left, ["00000", "00000", "00002", "00002"]);
    }

    #[test]
    fn chunks_of_another_generation_are_ignored() {
        let (_guard, directory, layout) = setup();
        let mut journal = Journal::open(directory.clone(), layout.clone(), "g", Part::WHOLE).unwrap();
        journal.commit(ChunkId { shard: 0, row: 0 }, entry(10, true, &[])).unwrap();
        assert!(Journal::open(directory, layout, "other", Part::WHOLE).unwrap().entries().is_empty());
    }
}
