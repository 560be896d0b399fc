//! Ranking order of classes, and a bounded list of the best classes.
//!
//! The higher logit ranks first; of equal logits the lower class index; NaN never ranks. The order is total, so any
//! split of the classes into tiles gives the same list if tiles are offered in class order.

/// Best classes of one row, best first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopK {
    /// Class indices, best first; fewer than `k` if fewer logits are numbers.
    pub classes: Vec<u32>,
    /// Logit of each class, in descending order.
    pub logits: Vec<f32>,
}

impl TopK {
    /// Creates an empty list with capacity for `k` classes.
    pub fn with_capacity(k: usize) -> Self {
        Self { classes: Vec::with_capacity(k), logits: Vec::with_capacity(k) }
    }

    /// Offers the logits of the classes `first..first + logits.len()`; the list keeps the best `k` of all offers.
    ///
    /// Offers must come in class order: a later class never displaces an earlier one with the same logit.
    pub fn offer(&mut self, first: u32, logits: &[f32], k: usize) {
        if k == 0 {
            return;
        }
        let mut rest = logits.iter().zip(first..);
        while self.classes.len() < k {
            let Some((&logit, class)) = rest.next() else {
                return;
            };
            if !logit.is_nan() {
                self.insert(class, logit);
            }
        }
        let mut worst = self.logits.last().copied();
        for (&logit, class) in rest {
            // False for NaN and for a tie, in which the lower class stays.
            if worst.is_some_and(|worst| logit > worst) {
                self.classes.pop();
                self.logits.pop();
                self.insert(class, logit);
                worst = self.logits.last().copied();
            }
        }
    }

    fn insert(&mut self, class: u32, logit: f32) {
        let at = self.logits.partition_point(|&kept| kept >= logit);
        self.classes.insert(at, class);
        self.logits.insert(at, logit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rank_by_sorting(logits: &[f32], k: usize) -> TopK {
        let mut order: Vec<usize> = (0..logits.len()).filter(|&i| !logits[i].is_nan()).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        order.truncate(k);
        TopK { classes: order.iter().map(|&i| i as u32).collect(), logits: order.iter().map(|&i| logits[i]).collect() }
    }

    proptest! {
        #[test]
        fn list_equals_sorted_prefix_for_any_tiling(
            values in prop::collection::vec(prop_oneof![
                8 => (-3i8..3).prop_map(f32::from),
                1 => Just(f32::NAN),
                1 => Just(f32::NEG_INFINITY),
                1 => Just(f32::INFINITY),
            ], 0..60),
            block in 1usize..20,
            k in 0usize..9,
        ) {
            let mut top = TopK::with_capacity(k);
            for (index, part) in values.chunks(block).enumerate() {
                top.offer((index * block) as u32, part, k);
            }
            prop_assert_eq!(top, rank_by_sorting(&values, k));
        }
    }

    #[test]
    fn tie_ranks_the_lower_class_first() {
        let mut top = TopK::default();
        top.offer(0, &[1.0, 2.0, 2.0, 1.0, 2.0], 4);
        assert_eq!(top.classes, [1, 2, 4, 0]);
    }

    #[test]
    fn row_of_nan_ranks_nothing() {
        let mut top = TopK::default();
        top.offer(0, &[f32::NAN; 7], 5);
        assert_eq!(top, TopK::default());
    }
}
