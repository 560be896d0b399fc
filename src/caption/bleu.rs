//! BLEU over a corpus, with the closest reference length, as pycocoevalcap's `BleuScorer` computes it.

use super::ngrams::{MAX_LENGTH, count};

/// Added to numerators, so that no match gives 0 rather than an undefined logarithm.
const TINY: f64 = 1e-15;
/// Added to denominators.
const SMALL: f64 = 1e-9;

/// Counts of a corpus.
#[derive(Debug, Default)]
pub(super) struct Bleu {
    correct: [u64; MAX_LENGTH],
    guessed: [u64; MAX_LENGTH],
    tokens: u64,
    reference_tokens: u64,
}

impl Bleu {
    /// Adds a caption and its references.
    pub(super) fn add(&mut self, caption: &[String], references: &[Vec<String>]) {
        let counts = count(caption);
        let references_counts: Vec<_> = references.iter().map(|reference| count(reference)).collect();
        for (sequence, found) in &counts {
            let most = references_counts.iter().filter_map(|counts| counts.get(sequence)).max();
            self.correct[sequence.len() - 1] += (*found).min(most.copied().unwrap_or(0));
        }
        for (length, guessed) in self.guessed.iter_mut().enumerate() {
            *guessed += caption.len().saturating_sub(length) as u64;
        }
        self.tokens += caption.len() as u64;
        let closest = references.iter().map(Vec::len).min_by_key(|length| (length.abs_diff(caption.len()), *length));
        self.reference_tokens += closest.unwrap_or(0) as u64;
    }

    /// Returns BLEU-1 to BLEU-4.
    pub(super) fn scores(&self) -> [f64; MAX_LENGTH] {
        let mut product = 1.0;
        let mut scores = [0.0; MAX_LENGTH];
        for (length, score) in scores.iter_mut().enumerate() {
            product *= (self.correct[length] as f64 + TINY) / (self.guessed[length] as f64 + SMALL);
            *score = product.powf(1.0 / (length + 1) as f64);
        }
        let ratio = (self.tokens as f64 + TINY) / (self.reference_tokens as f64 + SMALL);
        if ratio < 1.0 {
            let penalty = (1.0 - 1.0 / ratio).exp();
            for score in &mut scores {
                *score *= penalty;
            }
        }
        scores
    }
}
