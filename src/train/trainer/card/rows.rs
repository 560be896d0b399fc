//! Features that stay in the memory of a GPU, for this crate's own kernels.

use cubecl::server::Handle;
use half::bf16;

use super::kernels::gather;
use crate::card::Card;

/// Features, `[rows, dim]`, in bf16.
#[derive(Debug)]
pub(in crate::train) struct CardRows {
    card: Card,
    values: Handle,
    rows: usize,
    dim: usize,
}

impl CardRows {
    /// Allocates rows without a content.
    pub(in crate::train) fn new(card: Card, rows: usize, dim: usize) -> Self {
        let values = card.allocate(rows * dim);
        Self { card, values, rows, dim }
    }

    /// Returns `[rows, dim]`.
    pub(in crate::train) fn dims(&self) -> [usize; 2] {
        [self.rows, self.dim]
    }

    /// Writes `count` rows from row `first` on.
    pub(in crate::train) fn write(&self, first: usize, values: &[f32], count: usize) {
        let to = self.values.clone().offset_start((size_of::<bf16>() * first * self.dim) as u64);
        let indices: Vec<u32> = (0..count as u32).collect();
        gather(&self.card, &self.card.upload(values), &indices, [count, self.dim], &to);
    }

    /// Copies rows by their indices, and zeros behind them, `padded` rows in all.
    pub(super) fn gather(&self, indices: &[u32], padded: usize) -> Handle {
        let to = self.card.allocate(padded * self.dim);
        gather(&self.card, &self.values, indices, [padded, self.dim], &to);
        to
    }

    /// Downloads rows by their indices.
    pub(in crate::train) fn read(&self, indices: &[u32]) -> Result<Vec<f32>, String> {
        let bytes = self.card.read(self.gather(indices, indices.len()))?;
        let values = bytes.as_chunks::<2>().0.iter().take(indices.len() * self.dim);
        Ok(values.map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect())
    }
}
