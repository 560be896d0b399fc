//! Which images are kept for validation: a function of URL, seed and fraction alone.
//!
//! An image is on one side only, whatever its chunk, its labels and the order of reading; a larger
//! fraction keeps every image that a smaller one kept.

use twox_hash::XxHash3_64;

/// Whether the image belongs to the validation part.
///
/// XXH3-64 of the raw URL's bytes, seeded, read as a number in [0, 1), is below `fraction`. A fraction of 0 or
/// less (or NaN) keeps none, one of 1 or more keeps all.
pub fn is_validation(image_url: &str, seed: u64, fraction: f64) -> bool {
    let hash = XxHash3_64::oneshot_with_seed(seed, image_url.as_bytes());
    // The upper 53 bits, which a double holds exactly.
    let unit = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    unit < fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(seed: u64, fraction: f64) -> Vec<usize> {
        let url = |i| format!("https://example.org/{i}.jpg");
        (0..20_000).filter(|&i| is_validation(&url(i), seed, fraction)).collect()
    }

    #[test]
    fn the_share_is_about_the_fraction() {
        let share = kept(42, 0.02).len() as f64 / 20_000.0;
        assert!((share - 0.02).abs() < 0.004, "{share}");
    }

    #[test]
    fn a_larger_fraction_keeps_what_a_smaller_one_kept() {
        let large = kept(42, 0.1);
        assert!(kept(42, 0.02).iter().all(|i| large.binary_search(i).is_ok()));
    }

    #[test]
    fn the_seed_changes_the_part() {
        assert_ne!(kept(1, 0.02), kept(2, 0.02));
    }

    #[test]
    fn the_ends_keep_none_and_all() {
        assert_eq!(kept(1, 0.0).len() + kept(1, -1.0).len() + kept(1, f64::NAN).len(), 0);
        assert_eq!(kept(1, 1.0).len(), 20_000);
    }

    #[test]
    fn the_part_does_not_change_between_versions() {
        assert_eq!(kept(42, 0.0005), FIXED);
    }

    const FIXED: &[usize] = &[2067, 7633, 8026, 10239, 10390, 12580, 12618, 12891, 14834, 16724];
}
