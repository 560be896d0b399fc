//! `CIDEr-D` over a corpus, as pycocoevalcap's `CiderScorer` computes it and calls `CIDEr`.

use std::collections::HashMap;

use super::ngrams::{MAX_LENGTH, count};

/// Width of the penalty of differing lengths, in sequences.
const SIGMA: f64 = 6.0;
/// Factor that makes the values readable.
const SCALE: f64 = 10.0;

/// Weights of the sequences of one text.
struct Vector<'a> {
    weights: Vec<(&'a [String], f64)>,
    norms: [f64; MAX_LENGTH],
    /// Number of its sequences of two tokens.
    length: f64,
}

/// Returns the mean over the images. Each has a caption and at least one reference.
pub(super) fn score(captions: &[Vec<String>], references: &[Vec<Vec<String>>]) -> f64 {
    if captions.is_empty() {
        return 0.0;
    }
    let mut frequencies: HashMap<&[String], f64> = HashMap::new();
    for texts in references {
        let mut seen: Vec<&[String]> = texts.iter().flat_map(|text| count(text).into_keys()).collect();
        seen.sort_unstable();
        seen.dedup();
        for sequence in seen {
            *frequencies.entry(sequence).or_default() += 1.0;
        }
    }
    let images = (captions.len() as f64).ln();
    let mut total = 0.0;
    for (caption, texts) in captions.iter().zip(references) {
        let caption = weigh(caption, &frequencies, images);
        let sum: f64 = texts.iter().map(|text| similarity(&caption, &weigh(text, &frequencies, images))).sum();
        total += SCALE * sum / texts.len().max(1) as f64;
    }
    total / captions.len() as f64
}

/// Weighs the sequences of a text by their frequency in it and their rarity among the images.
fn weigh<'a>(text: &'a [String], frequencies: &HashMap<&[String], f64>, images: f64) -> Vector<'a> {
    let mut vector = Vector { weights: Vec::new(), norms: [0.0; MAX_LENGTH], length: 0.0 };
    for (sequence, found) in count(text) {
        let frequency = frequencies.get(sequence).copied().unwrap_or(0.0).max(1.0);
        let weight = found as f64 * (images - frequency.ln());
        vector.norms[sequence.len() - 1] += weight * weight;
        if sequence.len() == 2 {
            vector.length += found as f64;
        }
        vector.weights.push((sequence, weight));
    }
    vector.norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
    vector
}

/// Returns the mean over the lengths of sequences of the cosine, clipped and lowered where the texts differ in length.
fn similarity(caption: &Vector<'_>, reference: &Vector<'_>) -> f64 {
    let other: HashMap<&[String], f64> = reference.weights.iter().copied().collect();
    let mut values = [0.0; MAX_LENGTH];
    for (sequence, weight) in &caption.weights {
        let own = other.get(sequence).copied().unwrap_or(0.0);
        values[sequence.len() - 1] += weight.min(own) * own;
    }
    let difference = caption.length - reference.length;
    let penalty = (-(difference * difference) / (2.0 * SIGMA * SIGMA)).exp();
    let mut sum = 0.0;
    for (length, value) in values.iter().enumerate() {
        let norm = caption.norms[length] * reference.norms[length];
        sum += if norm == 0.0 { *value } else { value / norm } * penalty;
    }
    sum / MAX_LENGTH as f64
}
