//! [`Block`]: rows of one chunk on their way from a shard to the decoders.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::catalog::{ImageFilter, UrlDedup, url_hash};
use crate::chunk::quarantine::Quarantined;
use crate::chunk::{ChunkId, RowMeta, Tally};
use crate::corpus::{EncodedImage, ImageRow, ImageRowProblem};
use crate::runtime::BytePermit;

/// Boundary after a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boundary {
    /// No boundary: more rows of the chunk follow.
    None,
    /// End of the chunk.
    Chunk,
    /// End of the chunk and of its shard.
    Shard,
}

/// A few rows of one chunk: encoded images of the rows to decode, and counts of the other rows.
pub(super) struct Block {
    pub(super) id: ChunkId,
    pub(super) boundary: Boundary,
    /// At the end of a chunk: offset in the shard's decompressed bytes at which the next row begins, if reading can go on there.
    pub(super) next_offset: Option<u64>,
    /// Stored bytes of the shard up to the end of the block.
    pub(super) read_bytes: u64,
    /// Counts of the rows by outcome.
    pub(super) tally: Tally,
    /// Unusable rows.
    pub(super) quarantined: Vec<Quarantined>,
    /// URL and labels of the rows to decode.
    pub(super) rows: RowMeta,
    /// Row numbers in the shard of the rows to decode.
    pub(super) row_numbers: Vec<u64>,
    /// Concatenated images to decode.
    pub(super) encoded: Vec<u8>,
    /// True if the images are in base64, rather than bytes of image files. All images of a shard are the same.
    pub(super) is_base64: bool,
    /// Range of each row in `encoded`. Dropped rows leave gaps.
    pub(super) spans: Vec<Range<usize>>,
    /// Permit for bytes of the slot's read-ahead queue, held until the block leaves it.
    pub(super) queue_permit: Option<BytePermit>,
    /// Permit for bytes of `limits.memory`, held until the block is written.
    pub(super) memory_permit: Option<BytePermit>,
}

impl Block {
    /// Creates an empty block with room for `rows` rows. Reuses `buffer`.
    pub(super) fn new(id: ChunkId, rows: usize, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self {
            id,
            boundary: Boundary::None,
            next_offset: None,
            read_bytes: 0,
            tally: Tally::default(),
            quarantined: Vec::new(),
            rows: RowMeta::with_capacity(rows),
            row_numbers: Vec::with_capacity(rows),
            encoded: buffer,
            is_base64: true,
            spans: Vec::with_capacity(rows),
            queue_permit: None,
            memory_permit: None,
        }
    }

    /// Returns the size in bytes of the rows to decode: images, URLs and labels.
    pub(super) fn bytes(&self) -> usize {
        self.encoded.len() + self.rows.stored_bytes() as usize
    }

    /// Adds a row to decode, skip or quarantine. [`Self::drop_duplicates`] drops duplicates later.
    pub(super) fn add_row(&mut self, row: ImageRow<'_>, filter: &ImageFilter) {
        self.tally.rows += 1;
        match row {
            ImageRow::Ok { row, image_url, image } => {
                let hash = url_hash(image_url);
                if self.skip_unwanted(hash, filter) {
                    return;
                }
                let start = self.encoded.len();
                self.is_base64 = matches!(image, EncodedImage::Base64(_));
                self.rows.push(image_url, filter.labels(hash));
                self.row_numbers.push(row);
                self.encoded.extend_from_slice(image.bytes());
                self.spans.push(start..self.encoded.len());
            }
            ImageRow::Bad { row, reason, detail, image_url } => {
                // A row without data but with a valid URL is skipped like any other unwanted row.
                let hash = image_url.as_deref().filter(|_| reason == ImageRowProblem::MissingData).map(url_hash);
                if hash.is_some_and(|hash| self.skip_unwanted(hash, filter)) {
                    return;
                }
                *self.tally.quarantined.entry(reason.as_str().to_owned()).or_default() += 1;
                self.quarantined.push(Quarantined { row, image_url, reason: reason.as_str().to_owned(), detail });
            }
        }
    }

    /// Counts a row as skipped if the filter rejects its URL. Returns whether it was skipped.
    fn skip_unwanted(&mut self, hash: u64, filter: &ImageFilter) -> bool {
        if filter.accepts(hash) {
            return false;
        }
        let reason = match filter {
            ImageFilter::Urls(_) => "no_id",
            ImageFilter::Everything | ImageFilter::Index(_) => "no_label",
        };
        *self.tally.skipped.entry(reason.to_owned()).or_default() += 1;
        true
    }

    /// Drops the rows whose URL an earlier row of the shard has. Adds the URLs of the other rows to `seen`.
    ///
    /// Call it on the blocks of a shard in order.
    pub(super) fn drop_duplicates(&mut self, seen: &mut UrlDedup) {
        let mut duplicates = BTreeSet::new();
        let mut check = |row: u64, url: u64| {
            if !seen.insert(url) {
                duplicates.insert(row);
            }
        };
        // Both lists are in the order of the rows; merge them.
        let claiming = self.quarantined.iter().filter(|row| claims_url(&row.reason));
        let mut claiming = claiming.filter_map(|row| Some((row.row, url_hash(row.image_url.as_deref()?)))).peekable();
        for (index, row) in self.row_numbers.iter().enumerate() {
            while let Some((row, url)) = claiming.next_if(|(claiming, _)| claiming < row) {
                check(row, url);
            }
            check(*row, url_hash(self.rows.url(index)));
        }
        claiming.for_each(|(row, url)| check(row, url));
        if duplicates.is_empty() {
            return;
        }
        let rows = std::mem::take(&mut self.rows);
        let kept: Vec<usize> =
            (0..rows.len()).filter(|index| !duplicates.contains(&self.row_numbers[*index])).collect();
        for index in &kept {
            self.rows.push(rows.url(*index), rows.labels(*index).iter().copied());
        }
        self.spans = kept.iter().map(|index| self.spans[*index].clone()).collect();
        self.row_numbers = kept.iter().map(|index| self.row_numbers[*index]).collect();
        let Tally { skipped, quarantined, .. } = &mut self.tally;
        self.quarantined.retain(|row| {
            let duplicate = duplicates.contains(&row.row);
            if let Some(count) = quarantined.get_mut(&row.reason).filter(|_| duplicate) {
                *count -= 1;
            }
            !duplicate
        });
        quarantined.retain(|_, count| *count > 0);
        *skipped.entry("duplicate_url".to_owned()).or_default() += duplicates.len() as u64;
    }
}

/// Whether a row quarantined for `reason` counts as the first row of its URL. It does if its URL is valid.
pub(super) fn claims_url(reason: &str) -> bool {
    ImageRowProblem::ALL.iter().all(|problem| *problem == ImageRowProblem::MissingData || problem.as_str() != reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_duplicates_keeps_first_row_of_each_url() {
        let mut rows = RowMeta::default();
        for url in ["a", "b", "a", "c"] {
            rows.push(url, [7]);
        }
        let bad = |row, url: &str, reason: ImageRowProblem| Quarantined {
            row,
            image_url: Some(url.to_owned()),
            reason: reason.as_str().to_owned(),
            detail: String::new(),
        };
        let missing = ImageRowProblem::MissingData;
        // The second bad row claims its URL before the last good one; the URL of the third does not count.
        let bad = vec![bad(1, "a", missing), bad(4, "c", missing), bad(5, "b", ImageRowProblem::UrlTooLong)];
        let quarantined = [("missing_data".to_owned(), 2), ("url_too_long".to_owned(), 1)].into();
        let mut block = Block {
            tally: Tally { rows: 7, quarantined, ..Tally::default() },
            quarantined: bad,
            rows,
            row_numbers: vec![0, 2, 3, 6],
            spans: vec![0..1, 1..2, 2..3, 3..4],
            ..Block::new(ChunkId { shard: 0, row: 0 }, 4, Vec::new())
        };
        let mut seen = UrlDedup::new(ImageFilter::Everything);
        block.drop_duplicates(&mut seen);
        let urls: Vec<&str> = (0..block.rows.len()).map(|row| block.rows.url(row)).collect();
        assert_eq!((urls, block.rows.labels(1)), (vec!["a", "b"], &[7][..]));
        assert_eq!((&block.row_numbers[..], &block.spans[..]), (&[0, 2][..], &[0..1, 1..2][..]));
        assert_eq!(block.quarantined.iter().map(|row| row.row).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(block.tally.skipped["duplicate_url"], 3);
        assert_eq!(block.tally.quarantined, [("missing_data".to_owned(), 1), ("url_too_long".to_owned(), 1)].into());
        assert_eq!(seen.len(), 3);
    }
}
