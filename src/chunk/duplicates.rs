//! Images whose URL an earlier shard has.
//!
//! Shards are streamed independently, so a URL may be kept once in each of several shards. Its first kept row in listing
//! order counts. The others are listed here, and readers of the chunks leave them out. `duplicates.parquet` stores
//! the list, with the columns `chunk` Utf8 (the name of the chunk's file) and `image` UInt32 (the number of the image in
//! that file, from 0; without `train.views` it is the number of the row).

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, UInt32Type};

use super::journal::Journal;
use super::table::{TableReader, TableWriter};
use super::{Checksum, ChunkError, ChunkId};
use crate::types::Compression;

/// Rows written or read at a time.
const BLOCK_ROWS: usize = 65_536;

/// Images of each chunk that an earlier shard has, by their numbers in the chunk, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Duplicates {
    chunks: BTreeMap<ChunkId, Arc<[u32]>>,
}

impl Duplicates {
    /// Finds the duplicates among the committed chunks of a journal. Reads their URL hashes. Blocks the thread.
    ///
    /// # Errors
    /// Fails if the hashes of a chunk cannot be read or are damaged.
    pub fn find(journal: &Journal) -> Result<Self, ChunkError> {
        let mut chunks = Vec::new();
        for hashes in journal.url_hashes(journal.entries().keys().copied()) {
            let (id, hashes) = hashes?;
            chunks.push((id, hashes.kept));
        }
        Ok(Self::among(&chunks))
    }

    /// Finds the duplicates among chunks in listing order, given the URL hashes of their images. Takes another 8 bytes
    /// for each image.
    fn among(chunks: &[(ChunkId, Vec<u64>)]) -> Self {
        let mut sorted: Vec<u64> = chunks.iter().flat_map(|(_, hashes)| hashes).copied().collect();
        sorted.sort_unstable();
        let equal = sorted.chunk_by(|one, other| one == other);
        let repeated: Vec<u64> = equal.filter(|equal| equal.len() > 1).map(|equal| equal[0]).collect();
        drop(sorted);
        let mut seen = HashSet::new();
        let mut found = BTreeMap::new();
        for (id, hashes) in chunks {
            let repeats = |(_, hash): &(u32, &u64)| repeated.binary_search(hash).is_ok() && !seen.insert(**hash);
            let images: Arc<[u32]> = (0..).zip(hashes).filter(repeats).map(|(image, _)| image).collect();
            if !images.is_empty() {
                found.insert(*id, images);
            }
        }
        Self { chunks: found }
    }

    /// Returns the duplicates of a chunk.
    pub fn of_chunk(&self, id: ChunkId) -> Arc<[u32]> {
        self.chunks.get(&id).map_or_else(Arc::default, Arc::clone)
    }

    /// Returns the number of duplicates.
    pub fn count(&self) -> u64 {
        self.chunks.values().map(|images| images.len() as u64).sum()
    }

    /// Writes the table.
    ///
    /// # Errors
    /// Fails if the disk is full or cannot be written.
    pub fn write(&self, path: &Path, generation: &str) -> Result<Checksum, ChunkError> {
        let fields = vec![Field::new("chunk", DataType::Utf8, false), Field::new("image", DataType::UInt32, false)];
        let metadata = [("kind", "duplicates".to_owned()), ("generation", generation.to_owned())];
        let mut table = TableWriter::create(path, fields, Compression::Zstd, BLOCK_ROWS, &metadata)?;
        let rows = self.chunks.iter().flat_map(|(id, images)| images.iter().map(move |image| (*id, *image)));
        let mut rows = rows.peekable();
        while rows.peek().is_some() {
            let block: Vec<(ChunkId, u32)> = rows.by_ref().take(BLOCK_ROWS).collect();
            let names = block.iter().map(|(id, _)| format!("{id}.parquet"));
            table.write(vec![
                Arc::new(StringArray::from_iter_values(names)),
                Arc::new(UInt32Array::from_iter_values(block.iter().map(|(_, image)| *image))),
            ])?;
        }
        table.finish()
    }

    /// Reads the table; `None` if it belongs to another generation of chunks.
    ///
    /// # Errors
    /// Fails if the file is not such a table.
    pub fn read(path: &Path, generation: &str) -> Result<Option<Self>, ChunkError> {
        let mut table = TableReader::open(path, BLOCK_ROWS, &["chunk", "image"])?;
        if table.metadata("kind") != Some("duplicates") || table.metadata("generation") != Some(generation) {
            return Ok(None);
        }
        let damaged = |reason: &str| ChunkError::damaged(path, "table of duplicates", reason);
        let mut chunks: BTreeMap<ChunkId, Vec<u32>> = BTreeMap::new();
        while let Some(batch) = table.next()? {
            let names = batch.column_by_name("chunk").and_then(|column| column.as_string_opt::<i32>());
            let images = batch.column_by_name("image").and_then(|column| column.as_primitive_opt::<UInt32Type>());
            let (Some(names), Some(images)) = (names, images) else { return Err(damaged("a column is missing")) };
            for row in 0..batch.num_rows() {
                let id = names.value(row).strip_suffix(".parquet").and_then(ChunkId::parse);
                let id = id.filter(|_| names.is_valid(row)).ok_or_else(|| damaged("a name is not that of a chunk"))?;
                chunks.entry(id).or_default().push(images.value(row));
            }
        }
        if chunks.values().any(|images| !images.is_sorted_by(|one, other| one < other)) {
            return Err(damaged("its images are not in order"));
        }
        Ok(Some(Self { chunks: chunks.into_iter().map(|(id, images)| (id, images.into())).collect() }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(shard: u32, row: u64) -> ChunkId {
        ChunkId { shard, row }
    }

    #[test]
    fn first_image_in_listing_order_counts() {
        let chunks = [(id(0, 0), vec![5, 6]), (id(0, 10), vec![7]), (id(1, 0), vec![6, 8, 7]), (id(2, 0), vec![8, 6])];
        let duplicates = Duplicates::among(&chunks);
        let of = |shard, row| duplicates.of_chunk(id(shard, row)).to_vec();
        assert_eq!((of(0, 0), of(0, 10), of(1, 0), of(2, 0)), (vec![], vec![], vec![0, 2], vec![0, 1]));
        assert_eq!(duplicates.count(), 4);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("duplicates.parquet");
        duplicates.write(&path, "g").unwrap();
        assert_eq!(Duplicates::read(&path, "g").unwrap(), Some(duplicates));
        assert_eq!(Duplicates::read(&path, "other").unwrap(), None);
        Duplicates::default().write(&path, "g").unwrap();
        assert_eq!(Duplicates::read(&path, "g").unwrap(), Some(Duplicates::default()));
    }

    proptest! {
        /// Leaving out the duplicates leaves each URL once, at its first position.
        #[test]
        fn each_url_remains_once(chunks in prop::collection::vec(prop::collection::vec(0u64..20, 0..9), 0..9)) {
            let chunks: Vec<_> = (0..).zip(chunks).map(|(shard, hashes)| (id(shard, 0), hashes)).collect();
            let duplicates = Duplicates::among(&chunks);
            let mut seen = HashSet::new();
            for (id, hashes) in &chunks {
                let left_out = duplicates.of_chunk(*id);
                for (image, hash) in (0..).zip(hashes) {
                    prop_assert_eq!(left_out.binary_search(&image).is_ok(), !seen.insert(*hash));
                }
            }
        }
    }
}
