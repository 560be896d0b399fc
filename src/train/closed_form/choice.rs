//! Choice of a projection head in closed form: shrinkage, number of directions and power, by held-out images.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use serde::{Deserialize, Serialize};

use super::{Answers, Cca, CcaShrinkage, ClosedFormError, Covariances, Ridge, ndcg5_by_language};
use crate::train::text::{TextHead, TextMap, centre_and_normalise};
use crate::types::HeadMethod;

/// Shrinkages of features to try.
pub const SHRINKAGES: [f64; 6] = [0.003, 0.01, 0.03, 0.1, 0.3, 0.6];
/// Shrinkages of captions to try, the most cautious first.
const CAPTION_SHRINKAGES: [f64; 5] = [0.3, 0.1, 0.03, 0.01, 0.003];
/// Powers of the correlations to try; a high one relies on the strongest correlations.
const POWERS: [f64; 5] = [2.0, 1.0, 0.5, 0.25, 0.0];
/// Shares of the directions to try.
const RANK_SHARES: [f64; 4] = [0.125, 0.25, 0.5, 1.0];
/// Shrinkage of a regression without held-out images.
pub const DEFAULT_SHRINKAGE: f64 = 0.3;
/// Shrinkages of canonical correlation with too few held-out images.
const DEFAULT_CCA_SHRINKAGE: CcaShrinkage = CcaShrinkage { features: 0.1, captions: 0.3 };
/// Power without held-out images, and while shrinkages are compared.
const DEFAULT_POWER: f64 = 1.0;
/// Fewest held-out images that settings of canonical correlation are chosen on.
pub const LEAST_HELD_OUT_IMAGES: usize = 20;
/// Factor of the cosine similarities: the inverse of the temperature 0.05, at which the softmax correction works best.
const SCALE: f32 = 20.0;

/// Settings of a head in closed form, with its score.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Block of the backbone whose feature the head reads; absent if it reads all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<i32>,
    /// Share of the identity in the covariance of the features.
    pub shrinkage: f64,
    /// Share of the identity in the covariance of the captions, for canonical correlation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_shrinkage: Option<f64>,
    /// Number of canonical directions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u64>,
    /// Power of the correlations that directions are scaled by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// Regression targets of a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<String>,
    /// NDCG@5 on held-out images, averaged over languages; absent if none is held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg5: Option<f64>,
}

/// Held-out images with the centred vectors of their captions.
pub struct HeldOutPairs<'a> {
    /// `[images, input]`.
    pub features: &'a [f32],
    /// `[captions, embedding]`, centred and of unit length.
    pub captions: &'a [f32],
    /// Right captions.
    pub answers: &'a Answers,
}

/// Vectors of images and captions by a head, both of unit length.
pub struct MappedPairs {
    /// `[images, output]`.
    pub images: Vec<f32>,
    /// `[captions, output]`.
    pub captions: Vec<f32>,
}

/// Maps held-out images and captions by a linear head.
pub fn map_pairs(head: &TextHead, pairs: &HeldOutPairs<'_>) -> MappedPairs {
    let (input, output) = (head.input, head.output);
    let rows = pairs.features.len() / input.max(1);
    let mut standard = pairs.features.to_vec();
    for row in standard.chunks_exact_mut(input.max(1)) {
        let statistics = head.feature_mean.iter().zip(&head.feature_std);
        row.iter_mut().zip(statistics).for_each(|(value, (mean, std))| *value = (*value - mean) / std);
    }
    let weight = head.parameters.first().map_or(&[][..], |first| first.values.as_slice());
    let mut images = vec![0.0; rows * output];
    let (standard, weight) =
        (MatRef::from_row_major_slice(&standard, rows, input), MatRef::from_row_major_slice(weight, output, input));
    let out = MatMut::from_row_major_slice_mut(&mut images, rows, output);
    matmul(out, Accum::Replace, standard, weight.transpose(), 1.0, Par::Seq);
    centre_and_normalise(&mut images, &vec![0.0; output]);
    let captions = match &head.text_map {
        Some(map) => map.apply(pairs.captions),
        None => pairs.captions.to_vec(),
    };
    MappedPairs { images, captions }
}

/// Fits a projection head by a closed-form method, and returns it with its settings and all candidates.
///
/// `covariances` are those of standardised features and of centred captions of unit length; `text_mean` is the mean that was
/// subtracted from the captions before.
///
/// # Errors
/// When a covariance is singular.
pub fn choose_projection(
    method: HeadMethod,
    covariances: &Covariances,
    text_mean: &[f32],
    pairs: Option<&HeldOutPairs<'_>>,
) -> Result<(TextHead, Candidate, Vec<Candidate>), ClosedFormError> {
    let mut choice = Choice { covariances, text_mean, pairs, best: None, tried: Vec::new() };
    let shrinkages = if pairs.is_some() { &SHRINKAGES[..] } else { &[DEFAULT_SHRINKAGE] };
    match method {
        HeadMethod::Cca => choice.choose_cca()?,
        // The others are not solved for.
        HeadMethod::Ridge | HeadMethod::Sgd | HeadMethod::Auto => {
            for shrinkage in shrinkages {
                choice.try_ridge(&Ridge::new(covariances, *shrinkage)?, *shrinkage);
            }
        }
    }
    let (head, candidate) = choice.best.ok_or(ClosedFormError::Empty)?;
    Ok((head, candidate, choice.tried))
}

/// State of a choice.
struct Choice<'a> {
    covariances: &'a Covariances,
    text_mean: &'a [f32],
    pairs: Option<&'a HeldOutPairs<'a>>,
    best: Option<(TextHead, Candidate)>,
    tried: Vec<Candidate>,
}

impl Choice<'_> {
    /// Chooses the shrinkage of the features by the best score, then that of the captions, then directions and power.
    ///
    /// Captions of held-out images are often captions of training images as well, so their score does not show how a head does
    /// on captions and in languages that it was not trained on. The last two choices therefore follow the rule of one standard
    /// error (Breiman et al. 1984): of all settings whose score is at most one standard error below the best, the first in an order of
    /// caution. For captions the largest shrinkage comes first. All directions with power 1 come before other settings, of which those
    /// with few directions and high powers come first.
    fn choose_cca(&mut self) -> Result<(), ClosedFormError> {
        let Some(pairs) = self.pairs.filter(|pairs| pairs.answers.images() >= LEAST_HELD_OUT_IMAGES) else {
            let cca = Cca::new(self.covariances, DEFAULT_CCA_SHRINKAGE)?;
            self.try_cca(&cca, DEFAULT_CCA_SHRINKAGE, cca.correlations.len(), DEFAULT_POWER);
            return Ok(());
        };
        // The largest shrinkage comes first, so it counts among equal scores.
        for features in SHRINKAGES.iter().rev() {
            let shrinkage = CcaShrinkage { features: *features, ..DEFAULT_CCA_SHRINKAGE };
            let cca = Cca::new(self.covariances, shrinkage)?;
            self.try_cca(&cca, shrinkage, cca.correlations.len(), DEFAULT_POWER);
        }
        let features = self.best.as_ref().map_or(DEFAULT_CCA_SHRINKAGE.features, |(_, best)| best.shrinkage);
        let ways = CAPTION_SHRINKAGES.map(|captions| CcaShrinkage { features, captions });
        let mut scores = Vec::new();
        for way in &ways {
            let cca = Cca::new(self.covariances, *way)?;
            scores.push(self.try_cca(&cca, *way, cca.correlations.len(), DEFAULT_POWER));
        }
        let shrinkage = ways[first_as_good(&scores, pairs.answers)];
        let cca = Cca::new(self.covariances, shrinkage)?;
        let all = cca.correlations.len();
        let rank = |share: f64| ((all as f64 * share).ceil() as usize).max(1);
        let others = RANK_SHARES.iter().flat_map(|share| POWERS.map(|power| (rank(*share), power)));
        let ways: Vec<(usize, f64)> = std::iter::once((all, DEFAULT_POWER)).chain(others).collect();
        let scores: Vec<f64> = ways.iter().map(|(rank, power)| self.try_cca(&cca, shrinkage, *rank, *power)).collect();
        let (rank, power) = ways[first_as_good(&scores, pairs.answers)];
        self.best = None;
        self.try_cca(&cca, shrinkage, rank, power);
        Ok(())
    }

    fn try_cca(&mut self, cca: &Cca, shrinkage: CcaShrinkage, rank: usize, power: f64) -> f64 {
        let [images, captions] = cca.maps(rank, power);
        let mean = &self.covariances.caption_mean;
        let offset = |row: &[f64]| -row.iter().zip(mean).map(|(weight, mean)| weight * mean).sum::<f64>();
        let bias = captions.chunks_exact(mean.len().max(1)).map(offset);
        let map = TextMap { bias: narrow(bias), weight: narrow(captions.iter().copied()) };
        let candidate = Candidate {
            shrinkage: shrinkage.features,
            caption_shrinkage: Some(shrinkage.captions),
            rank: Some(rank as u64),
            power: Some(power),
            ..Candidate::default()
        };
        self.add(&images, Some(map), candidate)
    }

    fn try_ridge(&mut self, ridge: &Ridge, shrinkage: f64) {
        let weight = ridge.caption_map(self.covariances);
        self.add(&weight, None, Candidate { shrinkage, ..Candidate::default() });
    }

    /// Scores a head and keeps it if it is the best so far; of equal scores the first. Returns the score, 0 without held-out images.
    fn add(&mut self, weight: &[f64], map: Option<TextMap>, mut candidate: Candidate) -> f64 {
        let own = self.covariances;
        let means = [&own.feature_mean, &own.feature_std].map(|values| narrow(values.iter().copied()));
        let [mean, std] = means;
        let head =
            TextHead::from_weight([mean, std, self.text_mean.to_vec()], narrow(weight.iter().copied()), map, SCALE);
        if let Some(pairs) = self.pairs {
            let MappedPairs { images, captions } = map_pairs(&head, pairs);
            candidate.ndcg5 = Some(ndcg5_by_language(&images, &captions, head.output, pairs.answers));
        }
        if !self.tried.contains(&candidate) {
            self.tried.push(candidate.clone());
        }
        let is_better = self.best.as_ref().is_none_or(|(_, best)| candidate.ndcg5 > best.ndcg5);
        let score = candidate.ndcg5.unwrap_or_default();
        if is_better {
            self.best = Some((head, candidate));
        }
        score
    }
}

/// Returns the place of the first score that is at most one standard error below the best.
fn first_as_good(scores: &[f64], answers: &Answers) -> usize {
    let best = scores.iter().copied().fold(0.0, f64::max);
    let least = best - answers.standard_error(best);
    scores.iter().position(|score| *score >= least).unwrap_or_default()
}

fn narrow(values: impl Iterator<Item = f64>) -> Vec<f32> {
    values.map(|value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Targets;
    use crate::train::closed_form::PairMoments;

    /// Returns a number in (−1, 1) that looks random.
    fn noise(seed: usize) -> f32 {
        ((seed as f32 * 12.9898).sin() * 43_758.547).fract()
    }

    #[test]
    fn first_score_within_one_standard_error_counts() {
        // 25 images with a score of 0.5: an error of 0.1.
        let mut captions_of = Targets::default();
        (0..25).for_each(|image| captions_of.push(&[image]));
        let answers = Answers::new(&captions_of, |_| None);
        assert!((answers.images() == 25) && (answers.standard_error(0.5) - 0.1).abs() < 1e-12);
        assert_eq!(first_as_good(&[0.39, 0.41, 0.5, 0.45], &answers), 1);
        assert_eq!(first_as_good(&[0.39, 0.3, 0.5, 0.45], &answers), 2);
        assert_eq!(first_as_good(&[0.0, 0.0], &answers), 0);
        assert_eq!(first_as_good(&[0.9, 1.0], &answers), 1);
    }

    #[test]
    fn chosen_head_finds_the_captions_of_new_images() {
        let (dim, input, output, images) = (4, 12, 6, 300);
        let latent = |image: usize| (0..dim).map(|at| noise(image * 7 + at * 1013 + 5)).collect::<Vec<f32>>();
        let mix = |latent: &[f32], width: usize, salt: usize| {
            let value = |at: usize| {
                let own = latent.iter().enumerate().map(|(from, value)| value * noise(from * 31 + at * 17 + salt));
                own.sum::<f32>() + 0.05 * noise((latent[0].abs() * 1e6) as usize + at + salt)
            };
            (0..width).map(value).collect::<Vec<f32>>()
        };
        let feature = |image: usize| mix(&latent(image), input, 3);
        let caption = |image: usize| {
            let mut own = mix(&latent(image), output, 77);
            centre_and_normalise(&mut own, &[0.0; 6]);
            own
        };
        let mut moments = PairMoments::new(input, output);
        (0..images).for_each(|image| moments.add(&feature(image), &caption(image), 1.0));
        let mut covariances = moments.finish().unwrap();
        covariances.standardise();
        let (mut features, mut captions, mut captions_of) = (Vec::new(), Vec::new(), Targets::default());
        for image in images..images + 40 {
            features.extend(feature(image));
            captions.extend(caption(image));
            captions_of.push(&[(image - images) as u32]);
        }
        let answers = Answers::new(&captions_of, |_| None);
        let pairs = HeldOutPairs { features: &features, captions: &captions, answers: &answers };
        for method in [HeadMethod::Cca, HeadMethod::Ridge] {
            let (head, candidate, tried) = choose_projection(method, &covariances, &[0.0; 6], Some(&pairs)).unwrap();
            assert!(candidate.ndcg5 > Some(0.5), "{method}: {candidate:?}");
            assert!(tried.len() >= SHRINKAGES.len());
            assert_eq!(
                (candidate.rank.is_some(), head.text_map.is_some()),
                (method == HeadMethod::Cca, method == HeadMethod::Cca)
            );
            let (alone, candidate, tried) = choose_projection(method, &covariances, &[0.0; 6], None).unwrap();
            let default = if method == HeadMethod::Cca { DEFAULT_CCA_SHRINKAGE.features } else { DEFAULT_SHRINKAGE };
            assert_eq!((tried.len(), candidate.ndcg5, candidate.shrinkage.to_bits()), (1, None, default.to_bits()));
            assert_eq!(alone.input, input);
        }
    }
}
