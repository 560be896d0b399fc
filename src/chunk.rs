//! Durable chunks of a row stream, which let a killed run resume exactly.
//!
//! A chunk covers `chunks.rows` consecutive rows of one shard. It exists if and only if its journal entry does: the
//! entry is created, if absent, after the chunk's files are complete and durable. The chunks of a shard are committed in
//! order and depend on that shard alone, so a resumed run continues each shard after its last chunk. Files without an
//! entry are leftovers of a killed process; they are removed and never read. A URL that several shards have is kept once
//! in each; [`duplicates`] tells which of them count.
//!
//! Pixel chunks between decoder and model live in a [`spool`] on scratch disk under the same rule, with entries of
//! their own. Every Parquet file can be opened in pyarrow, DuckDB and Polars. This module knows nothing of burn or
//! HTTP.

pub(crate) mod batch_log;
mod checksum;
pub mod duplicates;
pub mod features;
mod fixed_width;
#[cfg(test)]
mod fuzz;
pub mod journal;
mod pages;
pub mod pixels;
pub mod quarantine;
mod range_file;
mod row_meta;
pub mod spool;
mod table;
pub mod tables;
pub mod texts;
pub mod url_hashes;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use checksum::{Checksum, verify};
pub use row_meta::RowMeta;

/// Identifies a chunk by its first row. Ids are ordered by shard, then row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId {
    /// Index of the shard in the listing.
    pub shard: u32,
    /// First row, counted from 0 in the shard.
    pub row: u64,
}

impl fmt::Display for ChunkId {
    /// Writes the stem of the chunk's file names. The stems sort like the ids.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:05}-{:012}", self.shard, self.row)
    }
}

impl ChunkId {
    /// Parses the output of [`fmt::Display`].
    pub fn parse(stem: &str) -> Option<Self> {
        let (shard, row) = stem.split_once('-')?;
        let id = Self { shard: shard.parse().ok()?, row: row.parse().ok()? };
        (id.to_string() == stem).then_some(id)
    }
}

/// Row counts of a chunk, a shard or a corpus; each row read is in exactly one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Rows read.
    pub rows: u64,
    /// Rows whose pixels or features are in the chunk.
    pub kept: u64,
    /// Rows that were filtered out before decoding, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Rows that are unusable, by reason.
    pub quarantined: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds another tally to this one.
    pub fn merge(&mut self, other: &Self) {
        self.rows = self.rows.saturating_add(other.rows);
        self.kept = self.kept.saturating_add(other.kept);
        for (mine, theirs) in [(&mut self.skipped, &other.skipped), (&mut self.quarantined, &other.quarantined)] {
            for (reason, count) in theirs {
                let mine = mine.entry(reason.clone()).or_default();
                *mine = mine.saturating_add(*count);
            }
        }
    }

    /// Returns the number of rows skipped for any reason.
    pub fn skipped_rows(&self) -> u64 {
        self.skipped.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns the number of rows quarantined for any reason.
    pub fn quarantined_rows(&self) -> u64 {
        self.quarantined.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns whether rows read = kept + quarantined + skipped.
    pub fn adds_up(&self) -> bool {
        let sum = self.kept.checked_add(self.quarantined_rows()).and_then(|sum| sum.checked_add(self.skipped_rows()));
        sum == Some(self.rows)
    }
}

/// Journal entry, which commits a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
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
    /// Sizes of the chunk's files in bytes, by path relative to the journal's root.
    pub files: BTreeMap<String, u64>,
    /// Checksums of these files.
    #[serde(default)]
    pub checksums: BTreeMap<String, Checksum>,
}

/// Error of reading or writing a chunk or journal file.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// Error of the store.
    #[error(transparent)]
    Store(#[from] crate::objects::StoreError),
    /// A single chunk does not fit the scratch spool.
    #[error(
        "the chunk at row {row} of shard {shard} needs more scratch disk than `limits.disk` = {limit_bytes} bytes, because of its URLs, labels or quarantined rows: raise the limit or lower `chunks.rows`"
    )]
    NoRoom {
        /// Index of the shard.
        shard: u32,
        /// First row of the chunk.
        row: u64,
        /// Limit in bytes.
        limit_bytes: u64,
    },
    /// A file is damaged or of another kind than expected.
    #[error("`{path}` is not a readable {expected}: {reason}; remove it and run again")]
    Damaged {
        /// File path.
        path: String,
        /// Expected kind.
        expected: &'static str,
        /// Reason.
        reason: String,
    },
}

impl ChunkError {
    pub(crate) fn damaged(
        path: impl AsRef<std::path::Path>,
        expected: &'static str,
        reason: impl fmt::Display,
    ) -> Self {
        Self::Damaged { path: path.as_ref().display().to_string(), expected, reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn file_names_sort_like_ids(one: (u16, u32), other: (u16, u32)) {
            let id = |(shard, row): (u16, u32)| ChunkId { shard: shard.into(), row: row.into() };
            let (one, other) = (id(one), id(other));
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
            prop_assert_eq!(ChunkId::parse(&one.to_string()), Some(one));
        }
    }
}
