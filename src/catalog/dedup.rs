//! Which image URLs are wanted, and which were taken already.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::hash::Hasher;
use std::sync::Arc;

use crate::catalog::join::JoinIndex;
use crate::catalog::join::Labels;

/// A set of URLs by [`url_hash`](crate::catalog::url_hash), 8 bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UrlSet {
    sorted: Vec<u64>,
}

impl UrlSet {
    /// How many distinct URLs there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Whether the URL is among them.
    pub fn contains(&self, url_hash: u64) -> bool {
        self.position(url_hash).is_some()
    }

    /// The hash of the URL at a place.
    pub fn hash(&self, place: usize) -> u64 {
        self.sorted[place]
    }

    /// The URL's place among all in ascending order of hash.
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

/// Which images are worth decoding.
#[derive(Debug, Clone)]
pub enum ImageFilter {
    /// All of them; none has labels.
    Everything,
    /// Those that a row labels.
    Index(Arc<JoinIndex>),
    /// Those that an id asks for; none has labels.
    Urls(Arc<UrlSet>),
}

impl ImageFilter {
    /// Whether the image is wanted.
    pub fn wants(&self, url_hash: u64) -> bool {
        match self {
            Self::Everything => true,
            Self::Index(index) => index.contains(url_hash),
            Self::Urls(urls) => urls.contains(url_hash),
        }
    }

    /// The labels of the image, ascending.
    pub fn labels(&self, url_hash: u64) -> Labels<'_> {
        match self {
            Self::Index(index) => index.lookup(url_hash),
            Self::Everything | Self::Urls(_) => Labels::none(),
        }
    }
}

/// The wanted images that were taken already: the first row of a URL is used, later ones are duplicates.
///
/// Where the wanted URLs are known it takes one bit for each; else 10 to 20 bytes for each URL seen.
#[derive(Debug)]
pub struct UrlDedup {
    wanted: ImageFilter,
    /// One bit for each entry of the index or URL of the set.
    bits: Vec<u64>,
    hashes: HashSet<u64, BuildHasherDefault<AsIs>>,
    count: u64,
}

impl UrlDedup {
    /// Nothing taken yet.
    pub fn new(wanted: ImageFilter) -> Self {
        let known = match &wanted {
            ImageFilter::Everything => 0,
            ImageFilter::Index(index) => index.len(),
            ImageFilter::Urls(urls) => urls.len(),
        };
        Self { wanted, bits: vec![0; known.div_ceil(64)], hashes: HashSet::default(), count: 0 }
    }

    /// Whether the image is wanted and was not taken before; it is taken from now on.
    pub fn first(&mut self, url_hash: u64) -> bool {
        let position = match &self.wanted {
            ImageFilter::Everything => None,
            ImageFilter::Index(index) => {
                let range = index.range(url_hash);
                if range.is_empty() {
                    return false;
                }
                // An image's first entry stands for it; the bits of its other entries stay unused.
                Some(range.start)
            }
            ImageFilter::Urls(urls) => match urls.position(url_hash) {
                Some(position) => Some(position),
                None => return false,
            },
        };
        let first = match position {
            None => self.hashes.insert(url_hash),
            Some(position) => self.bits.get_mut(position / 64).is_some_and(|word| {
                let bit = 1 << (position % 64);
                let unset = *word & bit == 0;
                *word |= bit;
                unset
            }),
        };
        self.count += u64::from(first);
        first
    }

    /// How many images were taken.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether none was taken.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A hasher for values that are hashes.
#[derive(Debug, Default, Clone, Copy)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `u64` is hashed here, which goes through `write_u64`; this is for completeness.
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
    use crate::catalog::matching::Match;

    #[test]
    fn an_image_is_first_once() {
        let mut classes = Classes::new(ClassSource::Train, Match::Exact);
        let mut builder = JoinIndexBuilder::new();
        for (hash, caption) in [(5, "a"), (5, "b"), (u64::MAX, "a"), (6, "c")] {
            let group = classes.add(caption).unwrap();
            builder.add(hash, group).unwrap();
        }
        let index = ImageFilter::Index(Arc::new(builder.build(&classes).unwrap()));
        let urls = ImageFilter::Urls(Arc::new([6, 5, u64::MAX, 5].into_iter().collect()));
        for (wanted, others) in [(index, false), (urls, false), (ImageFilter::Everything, true)] {
            assert!(wanted.wants(5) && wanted.wants(7) == others);
            let mut seen = UrlDedup::new(wanted);
            let taken: Vec<_> = [5, 7, 5, u64::MAX, 6, 6, u64::MAX].into_iter().map(|hash| seen.first(hash)).collect();
            assert_eq!(taken, [true, others, false, true, true, false, false]);
            assert_eq!(seen.len(), 3 + u64::from(others));
        }
    }

    #[test]
    fn a_url_set_holds_each_url_once() {
        let urls: UrlSet = [3, 1, 3].into_iter().collect();
        assert_eq!((urls.len(), urls.contains(3), urls.contains(2), urls.position(3)), (2, true, false, Some(1)));
    }
}
