//! The best rows of a search.

use std::cmp::Ordering;

/// A row with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Row number.
    pub row: u32,
    /// Inner product of the query and the row.
    pub score: f32,
}

impl Hit {
    /// Compares two hits: the better one comes first, and of equal scores the lower row.
    fn order(self, other: Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.row.cmp(&other.row))
    }
}

/// The best `k` rows so far, best first. The order in which rows are added does not matter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Top {
    k: usize,
    hits: Vec<Hit>,
}

impl Top {
    /// Creates an empty list of at most `k` rows.
    pub fn new(k: usize) -> Self {
        Self { k, hits: Vec::new() }
    }

    /// Adds a row, unless it is worse than `k` others. A score that is not a number is left out.
    pub fn add(&mut self, hit: Hit) {
        let worst = self.hits.last().filter(|_| self.hits.len() == self.k);
        if self.k == 0 || hit.score.is_nan() || worst.is_some_and(|worst| worst.order(hit).is_lt()) {
            return;
        }
        let place = self.hits.partition_point(|other| other.order(hit).is_lt());
        self.hits.insert(place, hit);
        self.hits.truncate(self.k);
    }

    /// Adds the rows of another list.
    pub fn merge(&mut self, other: Self) {
        other.hits.into_iter().for_each(|hit| self.add(hit));
    }

    /// Returns the rows, best first.
    pub fn into_hits(self) -> Vec<Hit> {
        self.hits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_of_rows_does_not_matter(scores in prop::collection::vec(-3_i8..3, 0..40), k in 0..8_usize, split in 0..40_usize) {
            let hits: Vec<Hit> =
                scores.iter().enumerate().map(|(row, score)| Hit { row: row as u32, score: f32::from(*score) }).collect();
            let mut sorted = hits.clone();
            sorted.sort_by(|one, other| one.order(*other));
            sorted.truncate(k);
            let fill = |part: &[Hit]| part.iter().rev().fold(Top::new(k), |mut top, hit| { top.add(*hit); top });
            let mut top = fill(&hits[..split.min(hits.len())]);
            top.merge(fill(&hits[split.min(hits.len())..]));
            top.add(Hit { row: 99, score: f32::NAN });
            prop_assert_eq!(top.into_hits(), sorted);
        }
    }
}
