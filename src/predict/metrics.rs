//! Ranking metrics with one relevant caption for each id, with their upper bound and their value by chance.
//!
//! Ranks are 1-based; `None` means that the relevant caption was not ranked. NDCG@5 with one relevant item is
//! `1 / log2(rank + 1)` up to rank 5 and 0 beyond; the ideal gain is 1 (Järvelin and Kekäläinen 2002).

use serde::{Deserialize, Serialize};

use super::bootstrap::{ScoreIntervals, intervals};

/// Cut-off rank of the metrics.
pub const DEPTH: usize = 5;

/// Returns the gain at a 1-based rank: `1 / log2(rank + 1)`; 0 beyond [`DEPTH`] and for rank 0.
pub fn gain(rank: usize) -> f64 {
    if (1..=DEPTH).contains(&rank) { 1.0 / ((rank + 1) as f64).log2() } else { 0.0 }
}

/// Sums of the metrics over ids, from which the means are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    ids: u64,
    gain: f64,
    first: u64,
    within: u64,
    reciprocal: f64,
    /// Number of known places, and their sum.
    places: u64,
    place_sum: f64,
}

/// Means of the metrics, with their confidence intervals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MeanScores {
    /// NDCG@5.
    pub ndcg5: f64,
    /// Recall@1.
    pub recall1: f64,
    /// Recall@5.
    pub recall5: f64,
    /// Mean reciprocal rank within the listed captions: the top 20 of a held-out image, the `predict.top_k` of a test
    /// image, all captions of a language within which an image is ranked, or the first five rows of an id in a file.
    pub mrr: f64,
    /// Mean rank of the right caption among all ranked captions, 1 at best. A caption that was not ranked counts as the
    /// last. Absent in reports of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_rank: Option<f64>,
    /// Intervals of 95 % confidence; absent with fewer than two images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<ScoreIntervals>,
}

impl MeanScores {
    /// Computes the means over images and their intervals, from the tally of each image.
    pub fn from_images(images: &[Tally]) -> Self {
        let mut all = Tally::default();
        for image in images {
            all.merge(image);
        }
        Self {
            ndcg5: all.ndcg5(),
            recall1: all.recall1(),
            recall5: all.recall5(),
            mrr: all.mrr(),
            mean_rank: all.mean_rank(),
            intervals: intervals(images),
        }
    }
}

impl Tally {
    /// Adds one id by the rank of its relevant caption.
    ///
    /// A rank beyond [`DEPTH`] counts for the reciprocal rank only.
    pub fn add(&mut self, rank: Option<usize>) {
        self.ids += 1;
        let Some(rank) = rank.filter(|&rank| rank > 0) else {
            return;
        };
        self.gain += gain(rank);
        self.first += u64::from(rank == 1);
        self.within += u64::from(rank <= DEPTH);
        self.reciprocal += 1.0 / rank as f64;
    }

    /// Adds the rank of a relevant caption among all captions, for the mean rank.
    pub fn add_place(&mut self, place: u64) {
        self.places += 1;
        self.place_sum += place as f64;
    }

    /// Adds the sums of another tally.
    pub fn merge(&mut self, other: &Self) {
        self.ids += other.ids;
        self.gain += other.gain;
        self.first += other.first;
        self.within += other.within;
        self.reciprocal += other.reciprocal;
        self.places += other.places;
        self.place_sum += other.place_sum;
    }

    /// Returns the number of ids.
    pub fn ids(&self) -> u64 {
        self.ids
    }

    /// Returns the mean NDCG@5; 0 without ids.
    pub fn ndcg5(&self) -> f64 {
        self.mean(self.gain)
    }

    /// Returns the share of ids whose relevant caption is at rank 1; 0 without ids.
    pub fn recall1(&self) -> f64 {
        self.mean(self.first as f64)
    }

    /// Returns the share of ids whose relevant caption is at ranks 1 to 5; 0 without ids.
    pub fn recall5(&self) -> f64 {
        self.mean(self.within as f64)
    }

    /// Returns the mean reciprocal rank over all ranks that were added; 0 without ids.
    pub fn mrr(&self) -> f64 {
        self.mean(self.reciprocal)
    }

    /// Returns the mean of the places that were added; `None` without any.
    pub fn mean_rank(&self) -> Option<f64> {
        (self.places > 0).then(|| self.place_sum / self.places as f64)
    }

    /// Returns the number of places that were added.
    pub fn places(&self) -> u64 {
        self.places
    }

    fn mean(&self, sum: f64) -> f64 {
        if self.ids == 0 { 0.0 } else { sum / self.ids as f64 }
    }
}

/// Returns the 1-based rank of `label` in a ranking, best first.
pub fn rank_of(label: u32, ranking: &[u32]) -> Option<usize> {
    ranking.iter().position(|&class| class == label).map(|at| at + 1)
}

/// Returns the upper bound on mean NDCG@5 if all ids of an image get the same ranking; 0 without ids.
///
/// `ids_per_image` yields the number of ids of each image. An image with m ids, each with its own caption, collects at
/// most the gains of ranks 1 to min(m, 5). The mean is over ids.
pub fn ceiling(ids_per_image: impl IntoIterator<Item = u64>) -> f64 {
    let mut ids = 0;
    let mut gains = 0.0;
    for of_image in ids_per_image {
        ids += of_image;
        let ranked = of_image.min(DEPTH as u64) as usize;
        gains += (1..=ranked).map(gain).sum::<f64>();
    }
    if ids == 0 { 0.0 } else { gains / ids as f64 }
}

/// Returns the expected NDCG@5 of a random ranking of `captions` distinct captions.
///
/// Each rank holds the relevant caption with probability 1 / captions: `Σ_{r=1..min(5, captions)} gain(r) / captions`.
pub fn chance(captions: u64) -> f64 {
    if captions == 0 {
        return 0.0;
    }
    let ranked = captions.min(DEPTH as u64) as usize;
    (1..=ranked).map(gain).sum::<f64>() / captions as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn gain_is_zero_beyond_rank_five() {
        assert!(close(gain(1), 1.0));
        assert!(close(gain(3), 0.5));
        assert!(close(gain(5), 1.0 / 6.0_f64.log2()));
        assert!(close(gain(6), 0.0));
        assert!(close(gain(0), 0.0));
    }

    #[test]
    fn ceiling_of_one_image_matches_published_values() {
        for (ids, expected) in [(1, 1.0), (2, 0.816), (3, 0.710), (4, 0.640), (5, 0.590)] {
            // Published with three digits; the second value is rounded up.
            assert!((ceiling([ids]) - expected).abs() < 6e-4, "{ids} ids");
        }
        // The sixth of six ids gains nothing.
        assert!(close(ceiling([6]), ceiling([5]) * 5.0 / 6.0));
        assert!(close(ceiling([0; 0]), 0.0));
    }

    #[test]
    fn ceiling_weighs_images_by_their_ids() {
        let expected = (1.0 + 2.0 * ceiling([2])) / 3.0;
        assert!(close(ceiling([1, 2]), expected));
    }

    #[test]
    fn chance_is_mean_gain_over_all_ranks() {
        let all: f64 = (1..=7).map(gain).sum();
        assert!(close(chance(7), all / 7.0));
        assert!((chance(92_366) - 3.2e-5).abs() < 1e-6);
        assert!(close(chance(1), 1.0));
        assert!(close(chance(0), 0.0));
    }

    #[test]
    fn empty_tally_has_no_nan() {
        let tally = Tally::default();
        assert!(close(tally.ndcg5() + tally.recall1() + tally.recall5() + tally.mrr(), 0.0));
    }
}
