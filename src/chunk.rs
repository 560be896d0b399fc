//! Durable chunks of the stream, and the promise that a killed run resumes exactly.
//!
//! A chunk covers `chunks.rows` consecutive rows of one shard. It exists if and only if its journal entry does: the
//! entry is created, if absent, after the chunk's files are complete and durable. Chunks are committed in the order of
//! a [`schedule`], so what is committed is always a prefix of it, and resuming means reading on behind that.
//! Files without an entry are leftovers of a killed process: removed, never read.
//!
//! Pixel chunks between decoder and model live in a [`ring`] on scratch disk under the same rule, with entries of their
//! own. Every Parquet file opens in pyarrow, DuckDB and Polars as it is. Nothing here knows burn or HTTP.

mod checksum;
pub mod features;
mod fixed_width;
#[cfg(test)]
mod fuzz;
pub mod journal;
mod pages;
pub mod pixels;
pub mod quarantine;
mod row_meta;
pub mod schedule;
pub mod spool;
mod table;
pub mod tables;
pub mod texts;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use checksum::{Checksum, verify};
pub use row_meta::RowMeta;

/// Which rows a chunk starts with, in the order of shards and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId {
    /// Index of the shard in the listing.
    pub shard: u32,
    /// First row, counted from 0 within the shard.
    pub row: u64,
}

impl fmt::Display for ChunkId {
    /// The stem of the chunk's file names; their order as text is that of shards and rows.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:05}-{:012}", self.shard, self.row)
    }
}

impl ChunkId {
    /// Reads back what [`fmt::Display`] wrote.
    pub fn parse(stem: &str) -> Option<Self> {
        let (shard, row) = stem.split_once('-')?;
        let id = Self { shard: shard.parse().ok()?, row: row.parse().ok()? };
        (id.to_string() == stem).then_some(id)
    }
}

/// What became of the rows of a chunk, a shard or a corpus: every row read is in exactly one count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Rows read.
    pub rows: u64,
    /// Rows whose pixels or features are in the chunk.
    pub kept: u64,
    /// Rows that nothing wants, before decoding, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Rows that could not be used, by reason.
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

    /// Rows skipped for any reason.
    pub fn skipped_rows(&self) -> u64 {
        self.skipped.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Rows quarantined for any reason.
    pub fn quarantined_rows(&self) -> u64 {
        self.quarantined.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether rows read = kept + quarantined + skipped.
    pub fn adds_up(&self) -> bool {
        let sum = self.kept.checked_add(self.quarantined_rows()).and_then(|sum| sum.checked_add(self.skipped_rows()));
        sum == Some(self.rows)
    }
}

/// A journal entry: the chunk it stands for is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Hash of everything that the chunk's bytes depend on.
    pub generation: String,
    /// Whether the shard ends with this chunk.
    pub last: bool,
    /// What became of its rows.
    pub tally: Tally,
    /// (image, class) pairs among the kept rows.
    pub labels: u64,
    /// Its files, relative to the journal's root, with their sizes in bytes.
    pub files: BTreeMap<String, u64>,
    /// Their checksums.
    #[serde(default)]
    pub checksums: BTreeMap<String, Checksum>,
}

/// A chunk or journal file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] crate::objects::StoreError),
    /// A single chunk does not fit the scratch ring.
    #[error(
        "the chunk at row {row} of shard {shard} takes more than `limits.disk` = {limit_bytes} bytes of scratch disk, because of its URLs, labels or quarantined rows: raise the limit, or lower `chunks.rows`"
    )]
    NoRoom {
        /// Index of the shard.
        shard: u32,
        /// First row of the chunk.
        row: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A Parquet file is damaged or is not what its name says.
    #[error("`{path}` is not a readable {expected}: {reason}; remove it and run again")]
    Damaged {
        /// The file.
        path: String,
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
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
        fn names_sort_as_the_corpus_does(one: (u16, u32), other: (u16, u32)) {
            let id = |(shard, row): (u16, u32)| ChunkId { shard: shard.into(), row: row.into() };
            let (one, other) = (id(one), id(other));
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
            prop_assert_eq!(ChunkId::parse(&one.to_string()), Some(one));
        }
    }
}
