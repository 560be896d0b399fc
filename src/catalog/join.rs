//! Join index: maps an image URL to the classes of its rows, at 12 bytes per labelled row plus at most 512 KiB.
//!
//! Entries are collected in any order and sorted once. An entry is `[hash >> 32, hash & 0xFFFF_FFFF, class]`, where the
//! class is the first of the row's [`Group`]. Entries are strictly ascending, so each pair of URL and group occurs
//! once. A lookup table over the top bits of the hash narrows the binary search to a few entries. A hash map would take
//! twice the memory; a minimal perfect hash would take less, but a second pass over the rows.

use std::ops::Range;

use twox_hash::XxHash3_64;

use crate::catalog::classes::Classes;
use crate::catalog::classes::Group;
use crate::catalog::classes::Groups;
use crate::catalog::error::CatalogError;

/// Upper bound on entries: the lookup table stores `u32` positions.
const MAX_ENTRIES: u32 = u32::MAX;
/// Upper bound on the bits of the lookup table: 2¹⁷ positions take 512 KiB, and with 17 million entries each covers
/// 130.
const MAX_RADIX_BITS: u32 = 17;
/// Smallest growth of the entry vector, which otherwise grows by an eighth: doubling would exceed 16 bytes per row.
const MIN_GROWTH: usize = 1 << 12;

/// Returns the 64-bit XXH3 hash of a URL with seed 0, which identifies an image.
///
/// The odds that any two of n distinct URLs collide are n² / 2⁶⁵: 6 in a million for 15 million URLs. After a
/// collision, an image also gets the labels of the other one or is skipped as a duplicate.
pub fn url_hash(url: &str) -> u64 {
    XxHash3_64::oneshot(url.as_bytes())
}

/// Row counts of an index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RowTally {
    /// Rows with a URL and a caption.
    pub rows: u64,
    /// Rows whose caption is a class.
    pub labelled_rows: u64,
}

/// Builder of a [`JoinIndex`].
#[derive(Debug, Default)]
pub struct JoinIndexBuilder {
    entries: Vec<[u32; 3]>,
    tally: RowTally,
}

impl JoinIndexBuilder {
    /// Creates an empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a row and stores it if its caption is a class.
    ///
    /// # Errors
    /// Fails if there are more labelled rows than `u32` can number.
    pub fn add(&mut self, url_hash: u64, group: Option<Group>) -> Result<(), CatalogError> {
        self.tally.rows += 1;
        let Some(group) = group else { return Ok(()) };
        if self.entries.len() >= MAX_ENTRIES as usize {
            return Err(CatalogError::TooManyEntries { limit: MAX_ENTRIES });
        }
        self.tally.labelled_rows += 1;
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact((self.entries.len() / 8).max(MIN_GROWTH));
        }
        self.entries.push([(url_hash >> 32) as u32, url_hash as u32, group.first_class()]);
        Ok(())
    }

    /// Restores a builder from the [`Self::entries`] and [`Self::tally`] of an earlier one.
    pub fn from_parts(entries: Vec<[u32; 3]>, tally: RowTally) -> Self {
        Self { entries, tally }
    }

    /// Returns the labelled rows so far, in insertion order.
    pub fn entries(&self) -> &[[u32; 3]] {
        &self.entries
    }

    /// Returns the row counts so far.
    pub fn tally(&self) -> RowTally {
        self.tally
    }

    /// Returns the memory in use, in bytes.
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<[u32; 3]>()
    }

    /// Sorts the rows in place into an index over `classes`.
    ///
    /// # Errors
    /// Fails if a row was added with a group that is not of `classes`.
    pub fn build(self, classes: &Classes) -> Result<JoinIndex, CatalogError> {
        self.build_from_groups(classes.groups())
    }

    /// As [`Self::build`], over classes with these groups.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_from_groups(mut self, groups: Groups) -> Result<JoinIndex, CatalogError> {
        self.entries.sort_unstable();
        self.entries.dedup();
        self.entries.shrink_to_fit();
        JoinIndex::from_sorted_entries(self.entries, groups, self.tally)
    }
}

/// Classes of each labelled image, by URL hash.
#[derive(Debug)]
pub struct JoinIndex {
    entries: Vec<[u32; 3]>,
    groups: Groups,
    /// Position of the first entry with at least these top bits, for each value of the top bits and one more.
    radix: Vec<u32>,
    radix_bits: u32,
    images: usize,
    tally: RowTally,
}

impl JoinIndex {
    /// Restores an index from its [`JoinIndex::entries`] and the [`Classes::groups`] of the same classes.
    ///
    /// # Errors
    /// Fails if the entries are not strictly ascending, are too many, or refer to a class that does not exist.
    pub fn from_sorted_entries(entries: Vec<[u32; 3]>, groups: Groups, tally: RowTally) -> Result<Self, CatalogError> {
        if entries.len() > MAX_ENTRIES as usize {
            return Err(CatalogError::TooManyEntries { limit: MAX_ENTRIES });
        }
        // About a sixteenth of the entries, so that a small index has a small table.
        let radix_bits = entries.len().max(16).ilog2().saturating_sub(4).min(MAX_RADIX_BITS);
        let mut radix = Vec::with_capacity((1 << radix_bits) + 1);
        let mut images = 0;
        let mut previous: Option<[u32; 3]> = None;
        for (position, &entry) in entries.iter().enumerate() {
            let [high, low, class] = entry;
            if previous.is_some_and(|previous| previous >= entry) {
                return Err(CatalogError::Unsorted { position });
            }
            if class as usize >= groups.classes() {
                return Err(CatalogError::UnknownClass { position, class, classes: groups.classes() });
            }
            images +=
                usize::from(previous.is_none_or(|[other_high, other_low, _]| (other_high, other_low) != (high, low)));
            let bucket = bucket(hash_of(entry), radix_bits);
            while radix.len() <= bucket {
                radix.push(position as u32);
            }
            previous = Some(entry);
        }
        radix.resize((1 << radix_bits) + 1, entries.len() as u32);
        Ok(Self { entries, groups, radix, radix_bits, images, tally })
    }

    /// Returns the entries, `[hash >> 32, hash & 0xFFFF_FFFF, first class of the group]`, strictly ascending.
    pub fn entries(&self) -> &[[u32; 3]] {
        &self.entries
    }

    /// Returns the row counts.
    pub fn tally(&self) -> RowTally {
        self.tally
    }

    /// Returns the number of entries, that is, distinct pairs of URL and group.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether no row was labelled.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the number of distinct labelled URLs.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Returns the number of classes, with or without images.
    pub fn classes(&self) -> usize {
        self.groups.classes()
    }

    /// Returns the groups of the classes.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Returns the memory of entries and lookup table, in bytes. Groups are not counted, since they depend on the
    /// caption list alone.
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<[u32; 3]>() + self.radix.capacity() * size_of::<u32>()
    }

    /// Returns whether any row labels this URL.
    pub fn contains(&self, url_hash: u64) -> bool {
        !self.range(url_hash).is_empty()
    }

    /// Returns the distinct classes of a URL in ascending order; none if no row labels it.
    pub fn lookup(&self, url_hash: u64) -> Labels<'_> {
        let entries = self.entries.get(self.range(url_hash)).unwrap_or_default();
        if self.groups.is_trivial() || entries.iter().all(|&[_, _, first]| self.groups.members(first).is_none()) {
            return Labels(LabelIter::Entries(entries.iter()));
        }
        let mut classes = Vec::new();
        for &[_, _, first] in entries {
            match self.groups.members(first) {
                Some(members) => classes.extend_from_slice(members),
                None => classes.push(first),
            }
        }
        // Groups are disjoint, but their members interleave.
        classes.sort_unstable();
        Labels(LabelIter::Expanded(classes.into_iter()))
    }

    /// Returns the range of the entries of a URL.
    pub(super) fn range(&self, url_hash: u64) -> Range<usize> {
        let bucket = bucket(url_hash, self.radix_bits);
        let bound = |index| self.radix.get(index).map_or(self.entries.len(), |&bound| bound as usize);
        let start = bound(bucket);
        let near = self.entries.get(start..bound(bucket + 1)).unwrap_or_default();
        let first = near.partition_point(|&entry| hash_of(entry) < url_hash);
        let count = near.iter().skip(first).take_while(|&&entry| hash_of(entry) == url_hash).count();
        start + first..start + first + count
    }

    /// Returns a BLAKE3 hash of the entries. With the same classes, only equal labels have equal digests.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut block = Vec::with_capacity(12 * 4096);
        for entries in self.entries.chunks(4096) {
            block.clear();
            block.extend(entries.iter().flatten().flat_map(|word| word.to_le_bytes()));
            hasher.update(&block);
        }
        hasher.finalize()
    }
}

const fn hash_of([high, low, _]: [u32; 3]) -> u64 {
    (high as u64) << 32 | low as u64
}

/// Returns the top `bits` of a hash, at most 17.
const fn bucket(hash: u64, bits: u32) -> usize {
    ((hash >> 32) >> (32 - bits)) as usize
}

/// Iterator over the classes of one image in ascending order.
#[derive(Debug, Clone)]
pub struct Labels<'a>(LabelIter<'a>);

#[derive(Debug, Clone)]
enum LabelIter<'a> {
    Entries(std::slice::Iter<'a, [u32; 3]>),
    Expanded(std::vec::IntoIter<u32>),
}

impl Labels<'_> {
    /// Returns the labels of an unlabelled image.
    pub fn empty() -> Self {
        Self(LabelIter::Entries([].iter()))
    }
}

impl Iterator for Labels<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match &mut self.0 {
            LabelIter::Entries(entries) => entries.next().map(|&[_, _, class]| class),
            LabelIter::Expanded(classes) => classes.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            LabelIter::Entries(entries) => entries.size_hint(),
            LabelIter::Expanded(classes) => classes.size_hint(),
        }
    }
}

impl ExactSizeIterator for Labels<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::catalog::classes::ClassSource;
    use crate::types::MatchRule;

    fn titles() -> Classes {
        let mut classes = Classes::new(ClassSource::List, MatchRule::Title);
        for caption in ["A [SEP] 1", "B [SEP] 1", "A [SEP] 2", "C", "B", "A"] {
            classes.add(caption).unwrap();
        }
        classes
    }

    #[test]
    fn url_has_the_sorted_classes_of_all_its_rows() {
        let classes = titles();
        let mut builder = JoinIndexBuilder::new();
        for (url, caption) in [("u", "B [SEP] x"), ("u", "A"), ("u", "A [SEP] y"), ("v", "C"), ("w", "D")] {
            builder.add(url_hash(url), classes.group_of(caption)).unwrap();
        }
        let index = builder.build(&classes).unwrap();
        assert_eq!(index.lookup(url_hash("u")).collect::<Vec<_>>(), [0, 1, 2, 4, 5]);
        assert_eq!(index.lookup(url_hash("v")).collect::<Vec<_>>(), [3]);
        assert_eq!(index.lookup(url_hash("w")).len(), 0);
        assert_eq!((index.len(), index.images()), (3, 2));
        assert_eq!(index.tally(), RowTally { rows: 5, labelled_rows: 4 });
    }

    #[test]
    fn url_hash_is_xxh3_with_seed_0() {
        // Values from the reference implementation, xxHash 0.8.
        assert_eq!(url_hash(""), 0x2D06_8005_38D3_94C2);
        assert_eq!(url_hash("a"), 0xE6C6_32B6_1E96_4E1F);
    }

    #[test]
    fn stored_entries_are_validated() {
        let groups = titles().groups();
        let from = |entries: &[[u32; 3]]| {
            JoinIndex::from_sorted_entries(entries.to_vec(), groups.clone(), RowTally::default())
                .map(|index| index.images())
        };
        assert_eq!(from(&[[1, 2, 0], [1, 2, 1], [1, 3, 0]]), Ok(2));
        assert_eq!(from(&[[1, 2, 0], [1, 2, 0]]), Err(CatalogError::Unsorted { position: 1 }));
        assert_eq!(from(&[[2, 0, 0], [1, 9, 0]]), Err(CatalogError::Unsorted { position: 1 }));
        assert_eq!(from(&[[1, 2, 6]]), Err(CatalogError::UnknownClass { position: 0, class: 6, classes: 6 }));
        assert_eq!(from(&[]), Ok(0));
    }

    #[test]
    fn index_takes_at_most_16_bytes_a_row() {
        let classes = titles();
        let mut builder = JoinIndexBuilder::new();
        let group = classes.group_of("C");
        for row in 0..100_000_u64 {
            builder.add(url_hash(&row.to_string()), group).unwrap();
            assert!(row < 10_000 || builder.bytes() <= 16 * (row as usize + 1));
        }
        let index = builder.build(&classes).unwrap();
        assert!(index.bytes() <= 16 * index.len());
    }

    proptest! {
        #[test]
        fn lookups_equal_those_of_a_map(
            rows in prop::collection::vec((prop_oneof![0_u64..20, any::<u64>(), (0_u64..9).prop_map(|low| u64::MAX - low)], 0_usize..4), 0..200),
            others in prop::collection::vec(any::<u64>(), 5),
        ) {
            let classes = titles();
            let captions = ["A", "B", "C", "D"];
            let mut map: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
            let mut builder = JoinIndexBuilder::new();
            for &(hash, caption) in &rows {
                let labels: Vec<u32> = classes.classes_of(captions[caption]).collect();
                if !labels.is_empty() {
                    map.entry(hash).or_default().extend(labels);
                }
                builder.add(hash, classes.group_of(captions[caption])).unwrap();
            }
            let index = builder.build(&classes).unwrap();
            for hash in rows.iter().map(|&(hash, _)| hash).chain(others) {
                let expected: Vec<u32> = map.get(&hash).into_iter().flatten().copied().collect();
                prop_assert_eq!(index.lookup(hash).collect::<Vec<_>>(), expected);
                prop_assert_eq!(index.contains(hash), map.contains_key(&hash));
            }
            prop_assert_eq!(index.images(), map.len());
            let restored = JoinIndex::from_sorted_entries(index.entries().to_vec(), classes.groups(), index.tally()).unwrap();
            prop_assert_eq!(restored.digest(), index.digest());
        }
    }
}
