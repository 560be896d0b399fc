//! Files of committed chunks: fetched in groups, verified against their checksums, read in order.
//!
//! Every loop over chunk files of a run directory goes through [`fetch_files`]. The files of a remote run directory are
//! fetched in groups, so that a thousand small chunks do not cost a thousand round trips.

use crate::chunk::journal::Journal;
use crate::chunk::{Checksum, ChunkId, JournalEntry, verify};
use crate::objects::StoreError;
use crate::pipeline::error::PipelineError;
use crate::run_dir::{Directory, LocalCopy};

/// Files fetched at once. A group stays on scratch disk until each of its files is read.
const GROUP_FILES: usize = 32;

/// A file of a committed chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkFile {
    /// Name relative to the run directory.
    pub(crate) name: String,
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// Expected checksum; `None` skips the verification.
    pub(crate) sum: Option<Checksum>,
}

/// Lists the row files of all committed chunks, in corpus order.
pub(crate) fn row_files(journal: &Journal) -> Vec<ChunkFile> {
    list_files(journal, |id| journal.layout().chunk(id))
}

/// Lists the quarantine files of all committed chunks, in corpus order.
pub(crate) fn quarantine_files(journal: &Journal) -> Vec<ChunkFile> {
    list_files(journal, |id| journal.layout().quarantine(id))
}

fn list_files(journal: &Journal, name: impl Fn(ChunkId) -> String) -> Vec<ChunkFile> {
    let file = |(id, entry): (&ChunkId, &JournalEntry)| {
        let name = name(*id);
        let (bytes, sum) = (*entry.files.get(&name)?, entry.checksums.get(&name).copied());
        Some(ChunkFile { name, bytes, sum })
    };
    journal.entries().iter().filter_map(file).collect()
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
        let missing = || StoreError::NotFound { url: self.dir.display(&file.name) };
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
