//! Filter of image URLs and detection of duplicate images.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::hash::Hasher;
use std::sync::Arc;

use crate::catalog::join::JoinIndex;
use crate::catalog::join::Labels;

/// Set of URLs by their [`url_hash`](crate::catalog::url_hash), 8 bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UrlSet {
    sorted: Vec<u64>,
}

impl UrlSet {
    /// Returns the number of distinct URLs.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Returns whether the set contains the URL.
    pub fn contains(&self, url_hash: u64) -> bool {
        self.position(url_hash).is_some()
    }

    /// Returns the hash at `position` in ascending order.
    pub fn hash_at(&self, position: usize) -> u64 {
        self.sorted[position]
    }

    /// Returns the position of the URL in ascending order of hash.
    pub fn position(&self, url_hash: u64) -> Option<usize> {
        self.sorted.binary_search(&url_hash).ok()
    }
}

impl FromIterator<u64> for UrlSet {
    fn from_iter<I: IntoIterator<Item = u64>>(hashes: I) -> Self {
        let mut sorted: Vec<_> = hashes.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        sorted.shrink_to_fit();
        Self { sorted }
    }
}

/// Selection of the images to decode.
#[derive(Debug, Clone)]
pub enum ImageFilter {
    /// All images, without labels.
    Everything,
    /// Images that a row of the index labels.
    Index(Arc<JoinIndex>),
    /// Images of a set of URLs, without labels.
    Urls(Arc<UrlSet>),
}

impl ImageFilter {
    /// Returns whether the image is selected.
    pub fn accepts(&self, url_hash: u64) -> bool {
        match self {
            Self::Everything => true,
            Self::Index(index) => index.contains(url_hash),
            Self::Urls(urls) => urls.contains(url_hash),
        }
    }

    /// Returns the labels of the image in ascending order.
    pub fn labels(&self, url_hash: u64) -> Labels<'_> {
        match self {
            Self::Index(index) => index.lookup(url_hash),
            Self::Everything | Self::Urls(_) => Labels::empty(),
        }
    }
}

/// Set of the selected images that have occurred. The first row with a URL is used; later ones are duplicates.
///
/// Memory: one bit per URL if the filter knows its URLs, otherwise 10 to 20 bytes per inserted URL.
#[derive(Debug)]
pub struct UrlDedup {
    filter: ImageFilter,
    /// One bit per entry of the index or URL of the set.
    bits: Vec<u64>,
    hashes: HashSet<u64, BuildHasherDefault<IdentityHasher>>,
    count: u64,
}

impl UrlDedup {
    /// Creates an empty set.
    pub fn new(filter: ImageFilter) -> Self {
        let known = match &filter {
            ImageFilter::Everything => 0,
            ImageFilter::Index(index) => index.len(),
            ImageFilter::Urls(urls) => urls.len(),
        };
        Self { filter, bits: vec![0; known.div_ceil(64)], hashes: HashSet::default(), count: 0 }
    }

    /// Inserts the image if the filter selects it. Returns whether it was inserted, that is, selected and not a
    /// duplicate.
    pub fn insert(&mut self, url_hash: u64) -> bool {
        let position = match &self.filter {
            ImageFilter::Everything => None,
            ImageFilter::Index(index) => {
                let range = index.range(url_hash);
                if range.is_empty() {
                    return false;
                }
                // The first entry of an image represents it; the bits of its other entries stay unused.
                Some(range.start)
            }
            ImageFilter::Urls(urls) => match urls.position(url_hash) {
                Some(position) => Some(position),
                None => return false,
            },
        };
        let inserted = match position {
            None => self.hashes.insert(url_hash),
            Some(position) => self.bits.get_mut(position / 64).is_some_and(|word| {
                let bit = 1 << (position % 64);
                let unset = *word & bit == 0;
                *word |= bit;
                unset
            }),
        };
        self.count += u64::from(inserted);
        inserted
    }

    /// Returns the number of inserted images.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Returns whether no image was inserted.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Hasher for keys that are already hashes.
#[derive(Debug, Default, Clone, Copy)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The only key type is `u64`, which uses `write_u64`; this fallback completes the trait.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::catalog::classes::ClassSource;
    use crate::catalog::classes::Classes;
    use crate::catalog::join::JoinIndexBuilder;
    use crate::types::MatchRule;

    #[test]
    fn each_image_is_inserted_once() {
        let mut classes = Classes::new(ClassSource::Train, MatchRule::Exact);
        let mut builder = JoinIndexBuilder::new();
        for (hash, caption) in [(5, "a"), (5, "b"), (u64::MAX, "a"), (6, "c")] {
            let group = classes.add(caption).unwrap();
            builder.add(hash, group).unwrap();
        }
        let index = ImageFilter::Index(Arc::new(builder.build(&classes).unwrap()));
        let urls = ImageFilter::Urls(Arc::new([6, 5, u64::MAX, 5].into_iter().collect()));
        for (filter, others) in [(index, false), (urls, false), (ImageFilter::Everything, true)] {
            assert!(filter.accepts(5) && filter.accepts(7) == others);
            let mut dedup = UrlDedup::new(filter);
            let inserted: Vec<_> =
                [5, 7, 5, u64::MAX, 6, 6, u64::MAX].into_iter().map(|hash| dedup.insert(hash)).collect();
            assert_eq!(inserted, [true, others, false, true, true, false, false]);
            assert_eq!(dedup.len(), 3 + u64::from(others));
        }
    }

    #[test]
    fn url_set_removes_duplicates() {
        let urls: UrlSet = [3, 1, 3].into_iter().collect();
        assert_eq!((urls.len(), urls.contains(3), urls.contains(2), urls.position(3)), (2, true, false, Some(1)));
    }
}
