//! How many URLs differ only in form: `http` or `https`, percent-encoded or not.
//!
//! Rows are joined on the raw URL; this says what normalising would change. Memory is bounded: URLs are
//! sampled by the hash of their normal form, so that all forms of one URL are sampled or none is, and the
//! sample is halved each time it grows beyond 65,536 URLs (3 MB). Below that the count is exact; above, with
//! m merges among the sampled URLs, its relative standard error is about 1/√m.

use std::collections::BTreeSet;

use twox_hash::XxHash3_64;

const MOST_SAMPLED: usize = 1 << 16;

/// Counts forms of URLs.
#[derive(Debug, Clone)]
pub struct UrlVariants {
    /// Hashes of the normal and of the raw form.
    sample: BTreeSet<(u64, u64)>,
    /// How often the sample was halved: it holds normal forms whose hash ends in that many zero bits.
    halvings: u32,
    most_sampled: usize,
    normal: Vec<u8>,
}

/// What normalising would merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merges {
    /// Distinct URLs minus distinct normal forms.
    pub urls: u64,
    /// Whether that is a count; else it is an estimate from a sample.
    pub exact: bool,
}

impl Default for UrlVariants {
    fn default() -> Self {
        Self::sampling(MOST_SAMPLED)
    }
}

impl UrlVariants {
    /// No URL seen.
    pub fn new() -> Self {
        Self::default()
    }

    fn sampling(most_sampled: usize) -> Self {
        Self { sample: BTreeSet::new(), halvings: 0, most_sampled, normal: Vec::new() }
    }

    /// What was seen, for [`Self::resumed`]: how often the sample was halved, and its hashes.
    pub fn sample(&self) -> (u32, impl ExactSizeIterator<Item = (u64, u64)> + '_) {
        (self.halvings, self.sample.iter().copied())
    }

    /// Goes on behind what [`Self::sample`] of an earlier one gave.
    pub fn resumed(halvings: u32, sample: impl Iterator<Item = (u64, u64)>) -> Self {
        Self { halvings, sample: sample.collect(), ..Self::default() }
    }

    /// Looks at a URL; seeing it again changes nothing.
    pub fn see(&mut self, url: &str) {
        normalise(url, &mut self.normal);
        let normal = XxHash3_64::oneshot(&self.normal);
        if !kept(normal, self.halvings) {
            return;
        }
        self.sample.insert((normal, XxHash3_64::oneshot(url.as_bytes())));
        while self.sample.len() > self.most_sampled && self.halvings < 63 {
            self.halvings += 1;
            let halvings = self.halvings;
            self.sample.retain(|&(normal, _)| kept(normal, halvings));
        }
    }

    /// What normalising would merge among the URLs seen.
    pub fn merges(&self) -> Merges {
        let mut normal_forms = 0_u64;
        let mut before = None;
        for &(normal, _) in &self.sample {
            normal_forms += u64::from(before != Some(normal));
            before = Some(normal);
        }
        let merged = self.sample.len() as u64 - normal_forms;
        Merges { urls: merged.saturating_mul(1 << self.halvings), exact: self.halvings == 0 }
    }
}

const fn kept(normal: u64, halvings: u32) -> bool {
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
        let taken = if let (Some(high), Some(low)) = (digit(1), digit(2)) {
            normal.push((high * 16 + low) as u8);
            3
        } else {
            normal.push(b'%');
            1
        };
        rest = encoded.get(taken..).unwrap_or_default();
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
    fn forms_of_one_url_have_one_normal_form() {
        assert_eq!(normal("http://x/%C3%a9%20%2"), "https://x/é %2");
        assert_eq!(normal("HTTPS://x/é %2"), "https://x/é %2");
        assert_eq!(normal("%%41%"), "%A%");
        assert_eq!(normal(""), "");
        assert_eq!(normal("é://"), "é://");
    }

    #[test]
    fn few_urls_are_counted() {
        let mut forms = UrlVariants::new();
        for url in ["http://a/é", "https://a/é", "https://a/%C3%A9", "http://a/é", "http://b"] {
            forms.see(url);
        }
        assert_eq!(forms.merges(), Merges { urls: 2, exact: true });
    }

    #[test]
    fn many_urls_are_estimated_in_bounded_memory() {
        let mut forms = UrlVariants::sampling(4096);
        for number in 0..200_000 {
            forms.see(&format!("http://x/{number}"));
            if number % 4 == 0 {
                forms.see(&format!("https://x/{number}"));
            }
            assert!(forms.sample.len() <= 4096);
        }
        let merges = forms.merges();
        assert!(!merges.exact && (45_000..55_000).contains(&merges.urls), "{merges:?}");
    }
}
