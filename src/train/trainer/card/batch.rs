//! A batch on the device, and what its forward pass leaves for the gradient.

use cubecl::server::Handle;

use crate::card::{Card, Matrix};
use crate::train::Targets;

/// Rows of one pass over the head.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) samples: usize,
    /// Pairs of a row and a target class.
    pub(super) pairs: usize,
    /// `[padded, dim]`; rows of padding are zeros.
    pub(super) features: Matrix,
    /// `[dim, padded]`.
    pub(super) transposed: Matrix,
    /// As in `targets.cu`.
    pub(super) targets: Handle,
    /// A logit for each pair.
    pub(super) target_logits: Handle,
    /// `log Σ exp` of the logits of each row.
    pub(super) lse: Handle,
    /// Loss of each row.
    pub(super) losses: Handle,
    /// Share of each class by label smoothing.
    pub(super) uniform: f32,
    /// Factor of the gradient.
    pub(super) scale: f32,
}

impl Batch {
    /// Returns the rows with padding.
    pub(super) fn padded(&self) -> usize {
        self.features.rows
    }
}

/// Packs targets as in `targets.cu`, each row's shares adding up to `1 - smoothing`. Returns the number of pairs too.
pub(super) fn pack(targets: &Targets, smoothing: f64) -> (Vec<u32>, usize) {
    let (mut rows, mut classes, mut shares, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (row, own) in targets.iter() {
        let share = (1.0 - smoothing) / own.len() as f64;
        let mut sorted = own.to_vec();
        sorted.sort_unstable();
        for same in sorted.chunk_by(|one, other| one == other) {
            rows.push(row as u32);
            classes.extend(same.first());
            shares.push(((same.len() as f64 * share) as f32).to_bits());
        }
        ends.push(rows.len() as u32);
    }
    let pairs = rows.len();
    ([rows, classes, shares, ends].concat(), pairs)
}

/// Uploads features, `[samples, dim]`, and pads them with zeros.
pub(super) fn upload(card: &Card, values: &[f32], [padded, dim]: [usize; 2]) -> Handle {
    let mut all = Vec::with_capacity(padded * dim);
    all.extend_from_slice(values);
    all.resize(padded * dim, 0.0);
    card.upload(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_a_row_share_its_target() {
        let mut targets = Targets::single(&[7]);
        targets.push(&[5, 2, 5, 5]);
        let (packed, pairs) = pack(&targets, 0.2);
        assert_eq!(pairs, 3);
        assert_eq!((&packed[..3], &packed[3..6], &packed[9..]), (&[0, 1, 1][..], &[7, 2, 5][..], &[1, 3][..]));
        let shares: Vec<f32> = packed[6..9].iter().map(|bits| f32::from_bits(*bits)).collect();
        assert_eq!(shares, [0.8, 0.2, 0.6]);
    }
}
