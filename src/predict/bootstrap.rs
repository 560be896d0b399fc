//! Confidence intervals of scores by the bootstrap over images (Efron 1979).
//!
//! Captions of one image share its ranking, so images are resampled and not captions. An interval holds the central 95 %
//! of the scores of `RESAMPLES` sets of images drawn with replacement. The draws come from a fixed seed, so the same
//! tallies in the same order give the same interval.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::metrics::Tally;

/// Sets of images that are drawn. The standard error of an interval's end is then about 4 % of its half width.
const RESAMPLES: usize = 1000;
/// Upper bound on the units that are drawn. More images are first combined to this many groups at random, which leaves
/// the spread of a mean as it is and bounds the time.
const MAX_UNITS: usize = 4096;
/// Share of the resampled scores below an interval, and above it.
const TAIL: f64 = 0.025;
/// Seed of the draws.
const SEED: u64 = 0x626f_6f74_7374_7261;

/// Interval of 95 % confidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Intervals of all metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreIntervals {
    /// Of NDCG@5.
    pub ndcg5: Interval,
    /// Of recall@1.
    pub recall1: Interval,
    /// Of recall@5.
    pub recall5: Interval,
    /// Of the mean reciprocal rank.
    pub mrr: Interval,
    /// Of the mean rank; absent if a resample may have no rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_rank: Option<Interval>,
}

/// Computes the intervals of the means, from the tally of each image; `None` with fewer than two images with queries.
pub fn intervals(images: &[Tally]) -> Option<ScoreIntervals> {
    let units = combine(images);
    if units.len() < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut scores: [Vec<f64>; 5] = std::array::from_fn(|_| Vec::with_capacity(RESAMPLES));
    for _ in 0..RESAMPLES {
        let mut drawn = Tally::default();
        (0..units.len()).for_each(|_| drawn.merge(&units[draw_below(&mut random, units.len())]));
        let means = [drawn.ndcg5(), drawn.recall1(), drawn.recall5(), drawn.mrr()];
        scores.iter_mut().zip(means).for_each(|(scores, mean)| scores.push(mean));
        scores[4].extend(drawn.mean_rank());
    }
    let [ndcg5, recall1, recall5, mrr, rank] = scores;
    let mean_rank = (rank.len() == RESAMPLES).then(|| central(rank));
    Some(ScoreIntervals {
        ndcg5: central(ndcg5),
        recall1: central(recall1),
        recall5: central(recall5),
        mrr: central(mrr),
        mean_rank,
    })
}

/// Tallies of images whose ranks come image by image.
#[derive(Debug, Clone, Default)]
pub struct ImageTallies {
    tallies: Vec<Tally>,
    last: Option<usize>,
}

impl ImageTallies {
    /// Adds the rank of a right caption of an image.
    pub fn add(&mut self, image: usize, rank: Option<usize>) {
        if self.last != Some(image) {
            self.last = Some(image);
            self.tallies.push(Tally::default());
        }
        if let Some(tally) = self.tallies.last_mut() {
            tally.add(rank);
        }
    }

    /// Returns the tally of all images.
    pub fn sum(&self) -> Tally {
        let mut sum = Tally::default();
        self.tallies.iter().for_each(|own| sum.merge(own));
        sum
    }

    /// Returns the interval of NDCG@5; `None` with fewer than two images.
    pub fn interval(&self) -> Option<Interval> {
        intervals(&self.tallies).map(|intervals| intervals.ndcg5)
    }
}

/// Returns the images with queries; combined to groups if they are many.
fn combine(images: &[Tally]) -> Vec<Tally> {
    let asked = images.iter().filter(|image| image.ids() > 0);
    if asked.clone().count() <= MAX_UNITS {
        return asked.copied().collect();
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED ^ 1);
    let mut groups = vec![Tally::default(); MAX_UNITS];
    asked.for_each(|image| groups[draw_below(&mut random, MAX_UNITS)].merge(image));
    groups.retain(|group| group.ids() > 0);
    groups
}

/// Draws a uniform number below `limit`, by multiplication and shift (Lemire 2019) without rejection.
fn draw_below(random: &mut ChaCha8Rng, limit: usize) -> usize {
    ((u128::from(random.next_u64()) * limit as u128) >> 64) as usize
}

/// Returns the interval between the two tails, with linear interpolation as `numpy.quantile`.
fn central(mut scores: Vec<f64>) -> Interval {
    scores.sort_by(f64::total_cmp);
    let quantile = |share: f64| {
        let place = share * (scores.len() - 1) as f64;
        let (low, high) = (scores[place.floor() as usize], scores[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    Interval { low: quantile(TAIL), high: quantile(1.0 - TAIL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the tally of an image whose captions have these ranks.
    fn image(ranks: &[usize]) -> Tally {
        let mut tally = Tally::default();
        for rank in ranks {
            tally.add(Some(*rank));
            tally.add_place(*rank as u64);
        }
        tally
    }

    #[test]
    fn interval_matches_the_normal_approximation() {
        // Recall@1 of 0.3: its standard error is √(0.3 · 0.7 / 400).
        let images: Vec<Tally> = (0..400).map(|at| image(&[if at % 10 < 3 { 1 } else { 2 }])).collect();
        let found = intervals(&images).unwrap().recall1;
        let half = 1.96 * (0.3_f64 * 0.7 / 400.0).sqrt();
        assert!((found.low - (0.3 - half)).abs() < 0.006 && (found.high - (0.3 + half)).abs() < 0.006, "{found:?}");
    }

    #[test]
    fn ranks_are_counted_by_image() {
        let mut tallies = ImageTallies::default();
        for (image, rank) in [(3, 1), (3, 2), (5, 1), (6, 9)] {
            tallies.add(image, Some(rank));
        }
        let expected = [vec![1, 2], vec![1], vec![9]].map(|ranks| {
            let mut tally = Tally::default();
            for rank in ranks {
                tally.add(Some(rank));
            }
            tally
        });
        assert_eq!(tallies.interval(), intervals(&expected).map(|own| own.ndcg5));
        assert_eq!(tallies.sum().ids(), 4);
    }

    #[test]
    fn captions_of_one_image_are_not_independent() {
        let width = |per_image: usize| {
            let images: Vec<Tally> = (0..60).map(|at| image(&vec![1 + at % 2; per_image])).collect();
            let found = intervals(&images).unwrap().recall1;
            found.high - found.low
        };
        assert!((width(1) - width(20)).abs() < 1e-9, "twenty equal captions say as much as one");
    }

    #[test]
    fn many_images_give_the_spread_of_single_images() {
        let images: Vec<Tally> = (0..20_000).map(|at| image(&[1 + at % 7])).collect();
        let found = intervals(&images).unwrap();
        let share = 2858.0 / 20_000.0;
        let half = 1.96 * (share * (1.0 - share) / 20_000.0_f64).sqrt();
        let width = found.recall1.high - found.recall1.low;
        assert!((width / (2.0 * half) - 1.0).abs() < 0.15, "{width} for {}", 2.0 * half);
        let rank = found.mean_rank.unwrap();
        assert!(rank.low < 4.0 && rank.high > 3.99 && rank.high - rank.low < 0.08, "{rank:?}");
    }

    #[test]
    fn equal_tallies_give_equal_intervals_and_one_image_none() {
        let images: Vec<Tally> = (0..30).map(|at| image(&[1 + at % 5, 9])).collect();
        assert_eq!(intervals(&images), intervals(&images));
        assert_eq!(intervals(&[Tally::default(), image(&[1])]), None);
        let mut without_place = image(&[1]);
        without_place.merge(&Tally::default());
        let mut unplaced = Tally::default();
        unplaced.add(None);
        assert_eq!(intervals(&[without_place, unplaced]).unwrap().mean_rank, None, "a resample may have no rank");
    }
}
