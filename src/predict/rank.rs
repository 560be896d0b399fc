//! The one order in which classes are ranked, and the bounded list that keeps the best of them.
//!
//! Higher logit first; of equal logits the lower class index first; NaN never ranks. The order is total, so
//! a list built from any split of the classes into blocks, offered in class order, is the same.

/// The best classes of one row, best first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopK {
    /// Class indices, best first; fewer than asked for when fewer logits are numbers.
    pub classes: Vec<u32>,
    /// The logit of each class, not increasing.
    pub logits: Vec<f32>,
}

impl TopK {
    /// An empty list with room for `k` entries.
    pub fn with_capacity(k: usize) -> Self {
        Self { classes: Vec::with_capacity(k), logits: Vec::with_capacity(k) }
    }

    /// Offers the logits of the classes `first..first + logits.len()` and keeps the best `k` of all offered.
    ///
    /// Blocks must be offered in class order: an equal logit of a later class never displaces an earlier one.
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
            // False for NaN and for a tie, which the lower class has already won.
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

    fn by_sorting(logits: &[f32], k: usize) -> TopK {
        let mut order: Vec<usize> = (0..logits.len()).filter(|&i| !logits[i].is_nan()).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        order.truncate(k);
        TopK { classes: order.iter().map(|&i| i as u32).collect(), logits: order.iter().map(|&i| logits[i]).collect() }
    }

    proptest! {
        #[test]
        fn the_list_is_the_head_of_a_full_sort_for_any_blocks(
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
            prop_assert_eq!(top, by_sorting(&values, k));
        }
    }

    #[test]
    fn equal_logits_rank_the_lower_class_first() {
        let mut top = TopK::default();
        top.offer(0, &[1.0, 2.0, 2.0, 1.0, 2.0], 4);
        assert_eq!(top.classes, [1, 2, 4, 0]);
    }

    #[test]
    fn a_row_of_nan_ranks_nothing() {
        let mut top = TopK::default();
        top.offer(0, &[f32::NAN; 7], 5);
        assert_eq!(top, TopK::default());
    }
}
