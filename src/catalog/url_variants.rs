//! Number of URLs that differ only in form: `http` or `https`, percent-encoded or not.
//!
//! Rows are joined on the raw URL; this module reports the effect that normalisation would have. URLs are sampled by
//! the hash of their normal form, so either all variants of a URL are in the sample or none. The sample is halved
//! whenever it exceeds 65,536 URLs (3 MB). Without halving, the count is exact. Otherwise, with m merges in the sample,
//! its relative standard error is about 1/√m.

use std::collections::BTreeSet;

use twox_hash::XxHash3_64;

/// Upper bound on the URLs in the sample.
const MAX_SAMPLED: usize = 1 << 16;

/// Counter of URL variants.
#[derive(Debug, Clone)]
pub struct UrlVariants {
    /// Hashes of the normal form and of the raw URL.
    sample: BTreeSet<(u64, u64)>,
    /// Number of halvings: the sample holds normal forms whose hash ends in this many zero bits.
    halvings: u32,
    max_sampled: usize,
    normal: Vec<u8>,
}

/// Number of URLs that normalisation would merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UrlMerges {
    /// Number of distinct URLs minus number of distinct normal forms.
    pub urls: u64,
    /// Whether the number is exact instead of an estimate.
    pub exact: bool,
}

impl Default for UrlVariants {
    fn default() -> Self {
        Self::with_max_sampled(MAX_SAMPLED)
    }
}

impl UrlVariants {
    /// Creates an empty counter.
    pub fn new() -> Self {
        Self::default()
    }

    fn with_max_sampled(max_sampled: usize) -> Self {
        Self { sample: BTreeSet::new(), halvings: 0, max_sampled, normal: Vec::new() }
    }

    /// Returns the number of halvings and the sampled hashes, for [`Self::from_parts`].
    pub fn sample(&self) -> (u32, impl ExactSizeIterator<Item = (u64, u64)> + '_) {
        (self.halvings, self.sample.iter().copied())
    }

    /// Restores a counter from the [`Self::sample`] of an earlier one.
    pub fn from_parts(halvings: u32, sample: impl Iterator<Item = (u64, u64)>) -> Self {
        Self { halvings, sample: sample.collect(), ..Self::default() }
    }

    /// Adds a URL. Adding it again changes nothing.
    pub fn add(&mut self, url: &str) {
        normalise(url, &mut self.normal);
        let normal = XxHash3_64::oneshot(&self.normal);
        if !is_sampled(normal, self.halvings) {
            return;
        }
        self.sample.insert((normal, XxHash3_64::oneshot(url.as_bytes())));
        while self.sample.len() > self.max_sampled && self.halvings < 63 {
            self.halvings += 1;
            let halvings = self.halvings;
            self.sample.retain(|&(normal, _)| is_sampled(normal, halvings));
        }
    }

    /// Returns the number of added URLs that normalisation would merge.
    pub fn merges(&self) -> UrlMerges {
        let mut normal_forms = 0_u64;
        let mut previous = None;
        for &(normal, _) in &self.sample {
            normal_forms += u64::from(previous != Some(normal));
            previous = Some(normal);
        }
        let merged = self.sample.len() as u64 - normal_forms;
        UrlMerges { urls: merged.saturating_mul(1 << self.halvings), exact: self.halvings == 0 }
    }
}

const fn is_sampled(normal: u64, halvings: u32) -> bool {
    normal.trailing_zeros() >= halvings
}

/// Writes the normal form: `https` for `http`, percent-encoded bytes decoded once.
fn normalise(url: &str, normal: &mut Vec<u8>) {
    normal.clear();
    let scheme = url.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let scheme = scheme.or_else(|| url.get(..8).filter(|scheme| scheme.eq_ignore_ascii_case("https://")));
    let mut rest = url.as_bytes();
    if let Some(scheme) = scheme {
        normal.extend_from_slice(b"https://");
        rest = rest.get(scheme.len()..).unwrap_or_default();
    }
    while let Some(at) = memchr::memchr(b'%', rest) {
        let (plain, encoded) = rest.split_at(at);
        normal.extend_from_slice(plain);
        let digit = |index: usize| encoded.get(index).and_then(|&digit| char::from(digit).to_digit(16));
        let consumed = if let (Some(high), Some(low)) = (digit(1), digit(2)) {
            normal.push((high * 16 + low) as u8);
            3
        } else {
            normal.push(b'%');
            1
        };
        rest = encoded.get(consumed..).unwrap_or_default();
    }
    normal.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(url: &str) -> String {
        let mut normal = Vec::new();
        normalise(url, &mut normal);
        String::from_utf8_lossy(&normal).into_owned()
    }

    #[test]
    fn variants_of_a_url_share_a_normal_form() {
        assert_eq!(normal("http://x/%C3%a9%20%2"), "https://x/é %2");
        assert_eq!(normal("HTTPS://x/é %2"), "https://x/é %2");
        assert_eq!(normal("%%41%"), "%A%");
        assert_eq!(normal(""), "");
        assert_eq!(normal("é://"), "é://");
    }

    #[test]
    fn small_sets_are_counted_exactly() {
        let mut variants = UrlVariants::new();
        for url in ["http://a/é", "https://a/é", "https://a/%C3%A9", "http://a/é", "http://b"] {
            variants.add(url);
        }
        assert_eq!(variants.merges(), UrlMerges { urls: 2, exact: true });
    }

    #[test]
    fn large_sets_are_estimated_in_bounded_memory() {
        let mut variants = UrlVariants::with_max_sampled(4096);
        for number in 0..200_000 {
            variants.add(&format!("http://x/{number}"));
            if number % 4 == 0 {
                variants.add(&format!("https://x/{number}"));
            }
            assert!(variants.sample.len() <= 4096);
        }
        let merges = variants.merges();
        assert!(!merges.exact && (45_000..55_000).contains(&merges.urls), "{merges:?}");
    }
}
