//! From an image URL to the classes of its rows, at 12 bytes a labelled row and at most 512 KiB beside.
//!
//! Entries are collected in any order, then sorted once: `[hash >> 32, hash & 0xFFFF_FFFF, class]` with the
//! first class of the row's [`Group`], strictly ascending, so each URL with each group once. A table over the
//! hash's top bits leads to the few entries among which a lookup searches. (A hash map would take twice the
//! memory; a minimal perfect hash would take less, and a second pass over the rows.)

use std::ops::Range;

use twox_hash::XxHash3_64;

use crate::catalog::classes::Classes;
use crate::catalog::classes::Group;
use crate::catalog::classes::Groups;
use crate::catalog::error::CatalogError;

/// Entries that the top-bits table can point at.
const MOST_ENTRIES: u32 = u32::MAX;
/// 2¹⁷ pointers of 4 bytes are 512 KiB; with 17 million entries each leads to 130.
const MOST_RADIX_BITS: u32 = 17;
/// The entry vector grows by an eighth and not to the double, which alone would break 16 bytes a row.
const SMALLEST_GROWTH: usize = 1 << 12;

/// The 64-bit xxh3 hash of a URL, seed 0, by which images are joined and told apart.
///
/// Any two of n distinct URLs collide with odds of n² / 2⁶⁵: 6 in a million for 15 million URLs. A collision
/// would give one image the labels of another as well, or skip it as a duplicate.
pub fn url_hash(url: &str) -> u64 {
    XxHash3_64::oneshot(url.as_bytes())
}

/// How many rows went into an index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RowTally {
    /// Rows with a URL and a caption.
    pub rows: u64,
    /// Those of them whose caption is a class.
    pub labelled_rows: u64,
}

/// Collects rows for a [`JoinIndex`].
#[derive(Debug, Default)]
pub struct JoinIndexBuilder {
    entries: Vec<[u32; 3]>,
    tally: RowTally,
}

impl JoinIndexBuilder {
    /// No rows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a row, and keeps it if its caption is a class.
    ///
    /// # Errors
    /// There are more labelled rows than `u32` can number.
    pub fn add(&mut self, url_hash: u64, group: Option<Group>) -> Result<(), CatalogError> {
        self.tally.rows += 1;
        let Some(group) = group else { return Ok(()) };
        if self.entries.len() >= MOST_ENTRIES as usize {
            return Err(CatalogError::TooManyEntries { limit: MOST_ENTRIES });
        }
        self.tally.labelled_rows += 1;
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact((self.entries.len() / 8).max(SMALLEST_GROWTH));
        }
        self.entries.push([(url_hash >> 32) as u32, url_hash as u32, group.first_class()]);
        Ok(())
    }

    /// Goes on behind the [`Self::entries`] of an earlier builder, which had counted `tally` by then.
    pub fn resumed(entries: Vec<[u32; 3]>, tally: RowTally) -> Self {
        Self { entries, tally }
    }

    /// The labelled rows so far, in the order in which they came.
    pub fn entries(&self) -> &[[u32; 3]] {
        &self.entries
    }

    /// How many rows were counted so far.
    pub fn tally(&self) -> RowTally {
        self.tally
    }

    /// Memory that is held, in bytes.
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<[u32; 3]>()
    }

    /// Sorts the rows into an index over `classes`, in place.
    ///
    /// # Errors
    /// A row was added with a group of other classes.
    pub fn build(mut self, classes: &Classes) -> Result<JoinIndex, CatalogError> {
        self.entries.sort_unstable();
        self.entries.dedup();
        self.entries.shrink_to_fit();
        JoinIndex::from_sorted_entries(self.entries, classes.groups(), self.tally)
    }
}

/// The classes of each labelled image, by URL hash.
#[derive(Debug)]
pub struct JoinIndex {
    entries: Vec<[u32; 3]>,
    groups: Groups,
    /// For each value of the hash's top bits, and one more, the first entry that is not below it.
    radix: Vec<u32>,
    radix_bits: u32,
    images: usize,
    tally: RowTally,
}

impl JoinIndex {
    /// Takes entries as [`JoinIndex::entries`] gave them, for the same classes ([`Classes::groups`]).
    ///
    /// # Errors
    /// They are not strictly ascending, too many, or name a class that does not exist.
    pub fn from_sorted_entries(entries: Vec<[u32; 3]>, groups: Groups, tally: RowTally) -> Result<Self, CatalogError> {
        if entries.len() > MOST_ENTRIES as usize {
            return Err(CatalogError::TooManyEntries { limit: MOST_ENTRIES });
        }
        // A sixteenth of the entries, so that a small index has a small table.
        let radix_bits = entries.len().max(16).ilog2().saturating_sub(4).min(MOST_RADIX_BITS);
        let mut radix = Vec::with_capacity((1 << radix_bits) + 1);
        let mut images = 0;
        let mut before: Option<[u32; 3]> = None;
        for (position, &entry) in entries.iter().enumerate() {
            let [high, low, class] = entry;
            if before.is_some_and(|before| before >= entry) {
                return Err(CatalogError::Unsorted { position });
            }
            if class as usize >= groups.classes() {
                return Err(CatalogError::UnknownClass { position, class, classes: groups.classes() });
            }
            images +=
                usize::from(before.is_none_or(|[other_high, other_low, _]| (other_high, other_low) != (high, low)));
            let bucket = bucket(hash_of(entry), radix_bits);
            while radix.len() <= bucket {
                radix.push(position as u32);
            }
            before = Some(entry);
        }
        radix.resize((1 << radix_bits) + 1, entries.len() as u32);
        Ok(Self { entries, groups, radix, radix_bits, images, tally })
    }

    /// The entries, `[hash >> 32, hash & 0xFFFF_FFFF, first class of the group]`, strictly ascending.
    pub fn entries(&self) -> &[[u32; 3]] {
        &self.entries
    }

    /// How many rows went into it.
    pub fn tally(&self) -> RowTally {
        self.tally
    }

    /// How many entries there are: each URL with each group once.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no row was labelled.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many distinct URLs are labelled.
    pub fn images(&self) -> usize {
        self.images
    }

    /// How many classes there are, with images or without.
    pub fn classes(&self) -> usize {
        self.groups.classes()
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Memory that is held by entries and table, in bytes; groups, which depend on the caption list alone,
    /// are not counted.
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<[u32; 3]>() + self.radix.capacity() * size_of::<u32>()
    }

    /// Whether any row labels this URL.
    pub fn contains(&self, url_hash: u64) -> bool {
        !self.range(url_hash).is_empty()
    }

    /// The classes of a URL, ascending and distinct; none when no row labels it.
    pub fn lookup(&self, url_hash: u64) -> Labels<'_> {
        let found = self.entries.get(self.range(url_hash)).unwrap_or_default();
        if self.groups.is_trivial() || found.iter().all(|&[_, _, first]| self.groups.members(first).is_none()) {
            return Labels(Inner::Entries(found.iter()));
        }
        let mut classes = Vec::new();
        for &[_, _, first] in found {
            match self.groups.members(first) {
                Some(members) => classes.extend_from_slice(members),
                None => classes.push(first),
            }
        }
        // Groups are disjoint, but their members interleave.
        classes.sort_unstable();
        Labels(Inner::Expanded(classes.into_iter()))
    }

    /// Where the entries of a URL are.
    pub(super) fn range(&self, url_hash: u64) -> Range<usize> {
        let bucket = bucket(url_hash, self.radix_bits);
        let bound = |index| self.radix.get(index).map_or(self.entries.len(), |&bound| bound as usize);
        let start = bound(bucket);
        let near = self.entries.get(start..bound(bucket + 1)).unwrap_or_default();
        let first = near.partition_point(|&entry| hash_of(entry) < url_hash);
        let count = near.iter().skip(first).take_while(|&&entry| hash_of(entry) == url_hash).count();
        start + first..start + first + count
    }

    /// BLAKE3 over the entries: equal for equal labels of the same classes alone.
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

/// The top `bits` of a hash, at most 17.
const fn bucket(hash: u64, bits: u32) -> usize {
    ((hash >> 32) >> (32 - bits)) as usize
}

/// The classes of one image, ascending.
#[derive(Debug, Clone)]
pub struct Labels<'a>(Inner<'a>);

#[derive(Debug, Clone)]
enum Inner<'a> {
    Entries(std::slice::Iter<'a, [u32; 3]>),
    Expanded(std::vec::IntoIter<u32>),
}

impl Labels<'_> {
    /// The labels of an image that no row labels.
    pub fn none() -> Self {
        Self(Inner::Entries([].iter()))
    }
}

impl Iterator for Labels<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match &mut self.0 {
            Inner::Entries(entries) => entries.next().map(|&[_, _, class]| class),
            Inner::Expanded(classes) => classes.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Inner::Entries(entries) => entries.size_hint(),
            Inner::Expanded(classes) => classes.size_hint(),
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
    use crate::catalog::matching::Match;

    fn titles() -> Classes {
        let mut classes = Classes::new(ClassSource::List, Match::Title);
        for caption in ["A [SEP] 1", "B [SEP] 1", "A [SEP] 2", "C", "B", "A"] {
            classes.add(caption).unwrap();
        }
        classes
    }

    #[test]
    fn a_url_has_the_classes_of_all_its_rows_ascending() {
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
    fn the_hash_is_xxh3_with_seed_zero() {
        // What the reference implementation, xxHash 0.8, gives for these inputs.
        assert_eq!(url_hash(""), 0x2D06_8005_38D3_94C2);
        assert_eq!(url_hash("a"), 0xE6C6_32B6_1E96_4E1F);
    }

    #[test]
    fn stored_entries_are_checked() {
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
    fn an_index_takes_no_more_than_sixteen_bytes_a_row() {
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
        fn lookups_are_those_of_a_map(
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
            let again = JoinIndex::from_sorted_entries(index.entries().to_vec(), classes.groups(), index.tally()).unwrap();
            prop_assert_eq!(again.digest(), index.digest());
        }
    }
}
