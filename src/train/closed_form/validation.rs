//! Scores of candidate heads on held-out images, by inner products on the host.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use crate::predict::bootstrap::{ImageTallies, Interval};
use crate::predict::metrics::gain;
use crate::train::Targets;

/// Captions that a language needs to be scored by itself. The score of fewer is mostly luck.
const MIN_CAPTIONS: usize = 10;
/// Images that are scored at a time.
const BLOCK_IMAGES: usize = 256;

/// Right captions of held-out images, by language.
pub struct Answers {
    /// Position of the image and of the caption of each pair.
    pairs: Vec<(u32, u32)>,
    /// Captions of each language that is scored by itself, ascending, and the numbers of the pairs with one of them.
    groups: Vec<(Vec<u32>, Vec<usize>)>,
}

impl Answers {
    /// Groups the right captions of images by their language. If no language has enough of them, all form one group.
    pub fn new(captions_of: &Targets, language_of: impl Fn(u32) -> Option<usize>) -> Self {
        let pairs: Vec<(u32, u32)> = captions_of
            .iter()
            .flat_map(|(image, captions)| captions.iter().map(move |caption| (image as u32, *caption)))
            .collect();
        let mut by_language: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, (_, caption)) in pairs.iter().enumerate() {
            if let Some(language) = language_of(*caption) {
                by_language.entry(language).or_default().push(number);
            }
        }
        let captions_in = |numbers: &[usize]| {
            let mut captions: Vec<u32> = numbers.iter().map(|number| pairs[*number].1).collect();
            captions.sort_unstable();
            captions.dedup();
            captions
        };
        let groups = by_language.into_values().map(|numbers| (captions_in(&numbers), numbers));
        let mut groups: Vec<_> = groups.filter(|(captions, _)| captions.len() >= MIN_CAPTIONS).collect();
        if groups.is_empty() && !pairs.is_empty() {
            let all: Vec<usize> = (0..pairs.len()).collect();
            groups.push((captions_in(&all), all));
        }
        Self { pairs, groups }
    }

    /// Returns whether there is nothing to score.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Returns the number of images whose captions are scored.
    pub fn images(&self) -> usize {
        let scored = self.groups.iter().flat_map(|(_, numbers)| numbers.iter().map(|number| self.pairs[*number].0));
        scored.collect::<HashSet<u32>>().len()
    }

    /// Returns the standard error of a mean score over these images.
    ///
    /// NDCG@5 is from 0 to 1, so that of an image has at most the variance `m (1 − m)` for a mean of `m` (Bhatia and Davis 2000). The
    /// scores of an image in several languages count as one.
    pub fn standard_error(&self, score: f64) -> f64 {
        (score * (1.0 - score) / self.images().max(1) as f64).max(0.0).sqrt()
    }

    /// Returns the number of languages that are scored by themselves.
    pub fn languages(&self) -> usize {
        self.groups.len()
    }
}

/// Copies rows of a row-major matrix.
fn gather(values: &[f32], dim: usize, rows: impl Iterator<Item = usize>) -> Vec<f32> {
    rows.flat_map(|row| &values[row * dim..(row + 1) * dim]).copied().collect()
}

/// Computes the mean over languages of NDCG@5, with each image ranked among the captions of the language alone.
///
/// `images` is `[images, dim]` and `captions` is `[captions, dim]`; the score of a pair is their inner product.
pub fn ndcg5_by_language(images: &[f32], captions: &[f32], dim: usize, answers: &Answers) -> f64 {
    let score = |(own, numbers): &(Vec<u32>, Vec<usize>)| {
        let texts = gather(captions, dim, own.iter().map(|caption| *caption as usize));
        let mut sum = 0.0;
        for numbers in numbers.chunks(BLOCK_IMAGES) {
            let rows = gather(images, dim, numbers.iter().map(|number| answers.pairs[*number].0 as usize));
            let scores = products(&rows, &texts, dim);
            for (number, row) in numbers.iter().zip(scores.chunks_exact(own.len())) {
                let right = own.binary_search(&answers.pairs[*number].1).unwrap_or_default();
                sum += gain(rank(row, right));
            }
        }
        sum / numbers.len().max(1) as f64
    };
    let scores: Vec<f64> = answers.groups.as_slice().into_par_iter().map(score).collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

/// Scores over all captions in one list.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MixedScores {
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// NDCG@5.
    pub ndcg5: f64,
    /// Recall@1.
    pub recall1: f64,
    /// Recall@5.
    pub recall5: f64,
    /// Interval of 95 % confidence of NDCG@5.
    pub interval: Option<Interval>,
}

/// Scores all pairs with each image ranked among all captions. `scale` turns inner products into logits.
pub fn score_mixed(images: &[f32], captions: &[f32], dim: usize, scale: f64, answers: &Answers) -> MixedScores {
    let (count, mut tallies, mut loss) = (captions.len() / dim.max(1), ImageTallies::default(), 0.0);
    for pairs in answers.pairs.chunks(BLOCK_IMAGES) {
        let rows = gather(images, dim, pairs.iter().map(|(image, _)| *image as usize));
        let scores = products(&rows, captions, dim);
        for ((image, caption), row) in pairs.iter().zip(scores.chunks_exact(count.max(1))) {
            let right = *caption as usize;
            tallies.add(*image as usize, Some(rank(row, right)));
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|score| (scale * f64::from(score - max)).exp()).sum();
            loss += sum.ln() - scale * f64::from(row[right] - max);
        }
    }
    let (loss, tally) = (loss / answers.pairs.len().max(1) as f64, tallies.sum());
    let (ndcg5, recall1, recall5) = (tally.ndcg5(), tally.recall1(), tally.recall5());
    MixedScores { loss, ndcg5, recall1, recall5, interval: tallies.interval() }
}

/// Computes all inner products of two lists of rows, `[rows, others]`.
fn products(rows: &[f32], others: &[f32], dim: usize) -> Vec<f32> {
    let (count, other_count) = (rows.len() / dim.max(1), others.len() / dim.max(1));
    let mut out = vec![0.0; count * other_count];
    let into = MatMut::from_row_major_slice_mut(&mut out, count, other_count);
    let (rows, others) =
        (MatRef::from_row_major_slice(rows, count, dim), MatRef::from_row_major_slice(others, other_count, dim));
    matmul(into, Accum::Replace, rows, others.transpose(), 1.0, Par::Seq);
    out
}

/// Returns the rank of a position, from 1. Of equal scores the lower position ranks first.
fn rank(scores: &[f32], right: usize) -> usize {
    let own = scores[right];
    // A head without numbers ranks nothing.
    if own.is_nan() {
        return scores.len() + 1;
    }
    let is_before = |(at, score): (usize, &f32)| match score.partial_cmp(&own) {
        Some(Ordering::Greater) => true,
        Some(Ordering::Equal) => at < right,
        _ => false,
    };
    1 + scores.iter().enumerate().filter(|pair| is_before(*pair)).count()
}
