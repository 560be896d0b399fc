//! Counts of token sequences.

use std::collections::BTreeMap;

/// Longest sequences that BLEU and `CIDEr` count.
pub(super) const MAX_LENGTH: usize = 4;

/// Sequence of tokens → number of occurrences. Sorted, so that sums do not depend on the order of a map.
pub(super) type Counts<'a> = BTreeMap<&'a [String], u64>;

/// Counts all sequences of 1 to [`MAX_LENGTH`] tokens.
pub(super) fn count(tokens: &[String]) -> Counts<'_> {
    let mut counts = Counts::new();
    for length in 1..=MAX_LENGTH {
        for sequence in tokens.windows(length) {
            *counts.entry(sequence).or_default() += 1;
        }
    }
    counts
}
