//! Weights of the heads of an ensemble, chosen on held-out images.

use super::ensemble::{Ensemble, EnsembleError};
use super::head::TextHead;
use crate::train::closed_form::{Answers, ndcg5_by_language};

/// Rounds in which the weight of each member is changed.
const ROUNDS: usize = 2;
/// Factors that a weight is multiplied by.
const FACTORS: [f64; 3] = [0.0, 0.5, 2.0];

/// Search for the weights with the best score.
pub struct WeightSearch<'a> {
    /// The heads.
    pub heads: &'a [TextHead],
    /// Vectors of the images by each head.
    pub images: &'a [Vec<f32>],
    /// Centred vectors of the captions, of unit length.
    pub captions: &'a [f32],
    /// Right captions of the images.
    pub answers: &'a Answers,
}

impl WeightSearch<'_> {
    /// Returns NDCG@5, averaged over languages.
    ///
    /// # Errors
    /// When no weight is over 0, or the heads do not belong together.
    pub fn score(&self, weights: &[f64]) -> Result<f64, EnsembleError> {
        let heads = self.heads.iter().cloned().zip(weights.iter().copied()).collect();
        let ensemble = Ensemble::new(heads)?;
        let used = self.images.iter().zip(weights).filter(|(_, weight)| **weight > 0.0);
        let images = ensemble.combine_images(&used.map(|(images, _)| images.clone()).collect::<Vec<_>>());
        let captions = ensemble.combine_captions(self.captions);
        Ok(ndcg5_by_language(&images, &captions, ensemble.output(), self.answers))
    }

    /// Changes one weight after the other as long as the score rises. Returns the weights and their score.
    ///
    /// # Errors
    /// As [`WeightSearch::score`].
    pub fn climb(&self, mut weights: Vec<f64>) -> Result<(Vec<f64>, f64), EnsembleError> {
        let mut best = self.score(&weights)?;
        for _ in 0..ROUNDS {
            for member in 0..weights.len() {
                for factor in FACTORS {
                    let mut other = weights.clone();
                    other[member] *= factor;
                    if other[member].to_bits() == weights[member].to_bits() || other.iter().all(|own| *own <= 0.0) {
                        continue;
                    }
                    let score = self.score(&other)?;
                    if score > best {
                        (best, weights) = (score, other);
                    }
                }
            }
        }
        Ok((weights, best))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Targets;

    /// Returns a head that maps the feature `[a, b]` to itself or to `[b, a]`.
    fn head(swaps: bool) -> TextHead {
        let weight = if swaps { vec![0.0, 1.0, 1.0, 0.0] } else { vec![1.0, 0.0, 0.0, 1.0] };
        TextHead::from_weight([vec![0.0; 2], vec![1.0; 2], vec![0.0; 2]], weight, None, 5.0)
    }

    #[test]
    fn a_member_that_only_harms_loses_its_weight() {
        let images: Vec<f32> = (0..12).flat_map(|at| [(at as f32).cos(), (at as f32).sin()]).collect();
        let swapped: Vec<f32> = images.chunks(2).flat_map(|own| [own[1], own[0]]).collect();
        let mut captions_of = Targets::default();
        (0..12).for_each(|at| captions_of.push(&[at]));
        let answers = Answers::new(&captions_of, |_| None);
        let (heads, vectors) = ([head(false), head(true)], [images.clone(), swapped]);
        let search = WeightSearch { heads: &heads, images: &vectors, captions: &images, answers: &answers };
        let equal = search.score(&[1.0, 1.0]).unwrap();
        let (weights, best) = search.climb(vec![1.0, 1.0]).unwrap();
        assert!(equal < best && (best - 1.0).abs() < 1e-9, "{equal} {best}");
        assert!(weights[0] > 4.0 * weights[1], "{weights:?}");
    }
}
