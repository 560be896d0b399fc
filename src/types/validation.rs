//! Split of the images into training and validation: a function of URL, seed and fraction alone.

use twox_hash::XxHash3_64;

/// Images held out for validation.
///
/// An image is on one side only, in whatever chunk it is, whatever its labels and the order of reading. A larger
/// fraction holds out every image that a smaller one with the same seed holds out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValidationSplit {
    /// Seed of the hash.
    pub seed: u64,
    /// Share of the images that is held out. 0 or less, or NaN, holds out none; 1 or more holds out all.
    pub fraction: f64,
}

impl ValidationSplit {
    /// Tells whether the image is held out.
    ///
    /// It is if the seeded XXH3-64 of the raw URL's bytes, read as a number in [0, 1), is below the fraction.
    pub fn contains(self, image_url: &str) -> bool {
        let hash = XxHash3_64::oneshot_with_seed(self.seed, image_url.as_bytes());
        // The upper 53 bits: a double represents them exactly.
        let unit = (hash >> 11) as f64 / (1_u64 << 53) as f64;
        unit < self.fraction
    }

    /// Tells whether any image can be held out.
    pub fn is_empty(self) -> bool {
        self.fraction <= 0.0 || self.fraction.is_nan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_out(seed: u64, fraction: f64) -> Vec<usize> {
        let url = |i| format!("https://example.org/{i}.jpg");
        (0..20_000).filter(|&i| ValidationSplit { seed, fraction }.contains(&url(i))).collect()
    }

    #[test]
    fn share_is_about_the_fraction() {
        let share = held_out(42, 0.02).len() as f64 / 20_000.0;
        assert!((share - 0.02).abs() < 0.004, "{share}");
    }

    #[test]
    fn larger_fraction_includes_a_smaller_one() {
        let large = held_out(42, 0.1);
        assert!(held_out(42, 0.02).iter().all(|i| large.binary_search(i).is_ok()));
    }

    #[test]
    fn seed_changes_the_split() {
        assert_ne!(held_out(1, 0.02), held_out(2, 0.02));
    }

    #[test]
    fn extreme_fractions_hold_out_none_and_all() {
        for none in [0.0, -1.0, f64::NAN] {
            assert!(ValidationSplit { seed: 1, fraction: none }.is_empty());
            assert!(held_out(1, none).is_empty());
        }
        assert_eq!(held_out(1, 1.0).len(), 20_000);
    }

    #[test]
    fn split_is_stable_across_versions() {
        assert_eq!(held_out(42, 0.0005), [2067, 7633, 8026, 10239, 10390, 12580, 12618, 12891, 14834, 16724]);
    }
}
