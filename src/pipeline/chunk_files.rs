//! Files of committed chunks: fetched in groups, verified against their checksums, read in order.
//!
//! Every loop over chunk files of a run directory goes through [`fetch_files`]. The files of a remote run directory are
//! fetched in groups, so that a thousand small chunks do not cost a thousand round trips. Rows whose URL an earlier shard
//! has are left out here, in [`ChunkFile::read_features`] and its neighbours, for all readers of features.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::chunk::duplicates::Duplicates;
use crate::chunk::features::{self, Features, StoredFeatures};
use crate::chunk::journal::Journal;
use crate::chunk::{Checksum, ChunkId, JournalEntry, RowMeta, verify};
use crate::objects::StoreError;
use crate::pipeline::error::PipelineError;
use crate::run_dir::{Directory, LocalCopy};

/// Files fetched at once. A group stays on scratch disk until each of its files is read.
const GROUP_FILES: usize = 32;

/// A file of a committed chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChunkFile {
    /// Name relative to the run directory.
    pub(crate) name: String,
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// Expected checksum; `None` skips the verification.
    pub(crate) sum: Option<Checksum>,
    /// Numbers of the images that an earlier shard has, ascending. They are left out.
    pub(crate) duplicates: Arc<[u32]>,
}

impl ChunkFile {
    /// Reads the features of a copy of this file.
    ///
    /// # Errors
    /// When the file is not a feature chunk.
    pub(crate) fn read_features(&self, copy: &Path) -> Result<Features, PipelineError> {
        let mut features = features::read(copy)?;
        if let Some(kept) = self.kept_rows(&features.rows) {
            let rows = std::mem::take(&mut features.rows);
            let values = std::mem::take(&mut features.values);
            for row in kept {
                features.rows.push_view(rows.url(row), rows.labels(row).iter().copied(), rows.view(row));
                features.values.extend_from_slice(&values[row * features.dim..(row + 1) * features.dim]);
            }
        }
        Ok(features)
    }

    /// Reads the rows of a copy of this file, and keeps the features of those that `select` chooses, in the format of the
    /// file. `select` gets the rows so far and the number of a row among them.
    ///
    /// # Errors
    /// When the file is not a feature chunk.
    pub(crate) fn read_selected(
        &self,
        copy: &Path,
        mut select: impl FnMut(&RowMeta, usize) -> bool,
    ) -> Result<StoredFeatures, PipelineError> {
        if self.duplicates.is_empty() {
            return Ok(features::read_selected(copy, select)?);
        }
        let (mut kept, mut image) = (RowMeta::default(), 0_u32);
        let mut read = features::read_selected(copy, |rows, row| {
            // The first view of an image, or the whole image, begins the next image.
            image += u32::from(rows.view(row) <= 1);
            if self.duplicates.binary_search(&image.saturating_sub(1)).is_ok() {
                return false;
            }
            kept.push_view(rows.url(row), rows.labels(row).iter().copied(), rows.view(row));
            select(&kept, kept.len() - 1)
        })?;
        read.rows = kept;
        Ok(read)
    }

    /// Reads the row metadata of a copy of this file.
    ///
    /// # Errors
    /// When the file is not a chunk.
    pub(crate) fn read_row_meta(&self, copy: &Path) -> Result<RowMeta, PipelineError> {
        let mut rows = features::read_row_meta(copy)?;
        if let Some(kept) = self.kept_rows(&rows) {
            let all = std::mem::take(&mut rows);
            for row in &kept {
                rows.push_view(all.url(*row), all.labels(*row).iter().copied(), all.view(*row));
            }
        }
        Ok(rows)
    }

    /// Returns the rows that are not left out; `None` if all stay.
    fn kept_rows(&self, rows: &RowMeta) -> Option<Vec<usize>> {
        if self.duplicates.is_empty() {
            return None;
        }
        let mut image = 0_u32;
        let is_kept = |row: &usize| {
            // The first view of an image, or the whole image, begins the next image.
            image += u32::from(rows.view(*row) <= 1);
            self.duplicates.binary_search(&(image.saturating_sub(1))).is_err()
        };
        Some((0..rows.len()).filter(is_kept).collect())
    }
}

/// The committed feature chunks of a stream, without the images that occur in an earlier shard.
#[derive(Debug)]
pub(crate) struct FeatureSet {
    journal: Journal,
    files: Vec<ChunkFile>,
}

impl FeatureSet {
    /// Opens the chunks of a journal. Finds the duplicates among them, or reads those that were found at the end of the
    /// stream. Blocks the thread.
    ///
    /// # Errors
    /// When a list of duplicates or of URL hashes cannot be read.
    pub(crate) fn open(journal: Journal) -> Result<Self, PipelineError> {
        let generation = journal.entries().values().next().map_or("", |entry| entry.generation.as_str());
        let duplicates = match load_duplicates(&journal, generation)? {
            Some(duplicates) => duplicates,
            None => Duplicates::find(&journal)?,
        };
        let file = |(id, entry): (&ChunkId, &JournalEntry)| {
            let name = journal.layout().chunk(*id);
            let (bytes, sum) = (*entry.files.get(&name)?, entry.checksums.get(&name).copied());
            Some(ChunkFile { name, bytes, sum, duplicates: duplicates.of_chunk(*id) })
        };
        let files = journal.entries().iter().filter_map(file).collect();
        Ok(Self { journal, files })
    }

    /// Returns the files of the chunks with rows, in corpus order.
    pub(crate) fn files(&self) -> &[ChunkFile] {
        &self.files
    }

    /// Returns the run directory.
    pub(crate) fn directory(&self) -> &Directory {
        self.journal.directory()
    }

    /// Returns the journal entries, in corpus order.
    pub(crate) fn entries(&self) -> &BTreeMap<ChunkId, JournalEntry> {
        self.journal.entries()
    }

    /// Returns the number of images that are not left out.
    pub(crate) fn images(&self) -> u64 {
        self.journal.tally().kept - self.duplicates()
    }

    /// Returns the number of images that are left out.
    pub(crate) fn duplicates(&self) -> u64 {
        self.files.iter().map(|file| file.duplicates.len() as u64).sum()
    }
}

/// Finds the images of a finished stream that occur in an earlier shard, and lists them in the run directory. Reads the
/// list if it is there. Blocks the thread.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn settle_duplicates(journal: &Journal, generation: &str) -> Result<Duplicates, PipelineError> {
    if let Some(duplicates) = load_duplicates(journal, generation)? {
        return Ok(duplicates);
    }
    let duplicates = Duplicates::find(journal)?;
    let (directory, name) = (journal.directory(), journal.layout().duplicates());
    // A killed process may have left a half-written list. The run directory itself is swept at the start.
    if let Some((folder, _)) = name.rsplit_once('/') {
        directory.sweep(folder, |_| true)?;
    }
    duplicates.write(&directory.temporary(&name)?, generation)?;
    directory.publish(&name)?;
    Ok(duplicates)
}

/// Reads the list of duplicates; `None` if it is absent or belongs to another generation.
fn load_duplicates(journal: &Journal, generation: &str) -> Result<Option<Duplicates>, PipelineError> {
    let (directory, name) = (journal.directory(), journal.layout().duplicates());
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", &name));
    if !directory.list(folder)?.iter().any(|other| other == file) {
        return Ok(None);
    }
    Ok(Duplicates::read(&directory.fetch(&name)?, generation)?)
}

/// Fetches files group by group. Yields each file with its verified local copy, in the order of `files`. Blocks the
/// thread.
///
/// A copy from a remote directory is removed when it is dropped. The iterator ends after its first error.
pub(crate) fn fetch_files<'a>(dir: &'a Directory, files: &'a [ChunkFile]) -> FetchedFiles<'a> {
    FetchedFiles { dir, files, fetched: Vec::new().into_iter() }
}

/// Iterator of [`fetch_files`].
#[derive(Debug)]
pub(crate) struct FetchedFiles<'a> {
    dir: &'a Directory,
    /// Files that are not yielded yet.
    files: &'a [ChunkFile],
    /// Local copies of the first entries of `files`.
    fetched: std::vec::IntoIter<LocalCopy>,
}

impl<'a> FetchedFiles<'a> {
    fn fetch_next(&mut self, file: &'a ChunkFile) -> Result<(&'a ChunkFile, LocalCopy), PipelineError> {
        let missing = || StoreError::NotFound { url: self.dir.display(&file.name), answer: String::new() };
        if self.fetched.as_slice().is_empty() {
            let group = &self.files[..self.files.len().min(GROUP_FILES)];
            let names: Vec<String> = group.iter().map(|file| file.name.clone()).collect();
            self.fetched = self.dir.fetch_all(&names)?.into_iter();
        }
        let copy = self.fetched.next().ok_or_else(missing)?;
        verify(&copy, &self.dir.display(&file.name), file.sum)?;
        self.files = &self.files[1..];
        Ok((file, copy))
    }
}

impl<'a> Iterator for FetchedFiles<'a> {
    type Item = Result<(&'a ChunkFile, LocalCopy), PipelineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let file = self.files.first()?;
        let fetched = self.fetch_next(file);
        if fetched.is_err() {
            self.files = &[];
        }
        Some(fetched)
    }
}
