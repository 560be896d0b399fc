//! Language balance: pairs of rare languages are repeated, and some pairs of frequent languages are left out.

use std::sync::Arc;

use twox_hash::XxHash3_64;

use crate::catalog::Languages;

/// Upper bound on the repetitions of a pair in an epoch.
const MAX_REPEATS: f64 = 10.0;

/// Expected repetitions of a pair in an epoch, by the language of its caption.
#[derive(Debug, Clone)]
pub(crate) struct LanguageBalance {
    seed: u64,
    languages: Arc<Languages>,
    /// One value per language; the last value is for captions without a language.
    expected: Vec<f64>,
}

impl LanguageBalance {
    /// Creates a balance with equal shares of an epoch for all languages. `pairs` counts the pairs of each language;
    /// its last entry counts pairs without a language.
    pub(crate) fn new(seed: u64, languages: Arc<Languages>, pairs: &[u64]) -> Self {
        let present = pairs.iter().filter(|count| **count > 0).count().max(1);
        let share = pairs.iter().sum::<u64>() as f64 / present as f64;
        let expected = pairs.iter().map(|count| (share / (*count).max(1) as f64).min(MAX_REPEATS)).collect();
        Self { seed, languages, expected }
    }

    /// Returns the position of a caption's language in the counts of [`LanguageBalance::new`].
    pub(crate) fn language_index(languages: &Languages, class: u32) -> usize {
        languages.code(class).unwrap_or(languages.names().len())
    }

    /// Returns the number of times that a sample occurs in an epoch: its expectation, rounded up or down at random.
    /// Depends only on seed and arguments.
    pub(super) fn repeats(&self, chunk: usize, sample: usize, class: u32, epoch: u32) -> usize {
        self.repeats_by_language(chunk, sample, Self::language_index(&self.languages, class), epoch)
    }

    /// Returns [`LanguageBalance::repeats`] of a sample with a known language index.
    pub(super) fn repeats_by_language(&self, chunk: usize, sample: usize, language: usize, epoch: u32) -> usize {
        let expected = self.expected.get(language).copied().unwrap_or(1.0);
        let chance = hash_to_unit(&[self.seed, chunk as u64, sample as u64, u64::from(epoch)]);
        expected.floor() as usize + usize::from(chance < expected.fract())
    }
}

/// Hashes numbers to a number in [0, 1).
pub(super) fn hash_to_unit(parts: &[u64]) -> f64 {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
    (XxHash3_64::oneshot(&bytes) >> 11) as f64 / (1_u64 << 53) as f64
}
