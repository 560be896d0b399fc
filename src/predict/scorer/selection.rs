//! Selects the best classes of each row, on the host or on the device.
//!
//! A backend's own top-k is not used: it leaves the order of ties undefined and sorts whole rows, on CUDA on the host.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::predict::PredictError;
use crate::predict::rank::TopK;
use crate::predict::tiles::download;

/// Place where the best classes of a tile are selected.
///
/// Both variants give the same ranking, except that a logit of −∞ never ranks on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selection {
    /// The host downloads and scans all logits; the faster choice if the device is the CPU.
    #[default]
    Host,
    /// The device extracts the maximum of each row k times; the host downloads k logits of each tile.
    Device,
}

/// Selector of the best classes of some rows; tiles are added in class order.
pub(super) struct TopKSelector<B: Backend> {
    tops: Vec<TopK>,
    k: usize,
    selection: Selection,
    /// Logits and classes that the device selected of each tile, `[rows, k]` each, not downloaded yet.
    selected: Vec<(Tensor<B, 2>, Tensor<B, 2, Int>)>,
}

impl<B: Backend> TopKSelector<B> {
    /// Creates a selector of the `k` best classes of `rows` rows.
    pub(super) fn new(rows: usize, k: usize, selection: Selection) -> Self {
        Self { tops: vec![TopK::with_capacity(k); rows], k, selection, selected: Vec::new() }
    }

    /// Adds the logits of a tile, `[rows, tile classes]`, whose first class is `first`.
    pub(super) fn add_tile(&mut self, first: u32, logits: Tensor<B, 2>) -> Result<(), PredictError> {
        match self.selection {
            Selection::Device => self.selected.extend(select_on_device(first, logits, self.k)),
            Selection::Host => {
                let width = logits.dims()[1];
                let logits = download(logits)?;
                for (top, row) in self.tops.iter_mut().zip(logits.chunks_exact(width)) {
                    top.offer(first, row, self.k);
                }
            }
        }
        Ok(())
    }

    /// Returns the best classes of each row.
    pub(super) fn finish(mut self) -> Result<Vec<TopK>, PredictError> {
        if self.selected.is_empty() {
            return Ok(self.tops);
        }
        let (logits, classes): (Vec<_>, Vec<_>) = self.selected.into_iter().unzip();
        // One download for all tiles.
        let (logits, classes) = (Tensor::cat(logits, 1), Tensor::cat(classes, 1));
        let width = logits.dims()[1];
        let logits = download(logits)?;
        let classes = classes.try_into_data().map_err(|error| PredictError::Device(error.to_string()))?;
        let classes: Vec<i64> = classes.iter().collect();
        let rows = logits.chunks_exact(width).zip(classes.chunks_exact(width));
        for (top, (logits, classes)) in self.tops.iter_mut().zip(rows) {
            for (logit, class) in logits.iter().zip(classes).filter(|(logit, _)| **logit > UNRANKED) {
                top.offer(*class as u32, std::slice::from_ref(logit), self.k);
            }
        }
        Ok(self.tops)
    }
}

/// Logit that never ranks. Finite: CUDA's argmax of a row of −∞ is invalid, and reading at it fails.
const UNRANKED: f32 = f32::MIN;

/// Returns the `k` largest logits of each row with their classes, `[rows, k]` each; `None` if `k` is zero.
///
/// Logits are in descending order, equal logits in the order of their classes. NaN becomes [`UNRANKED`].
fn select_on_device<B: Backend>(
    first: u32,
    logits: Tensor<B, 2>,
    k: usize,
) -> Option<(Tensor<B, 2>, Tensor<B, 2, Int>)> {
    let ([rows, width], device) = (logits.dims(), logits.device());
    let columns = Tensor::<B, 1, Int>::arange(0..width as i64, &device).reshape([1, width]).expand([rows, width]);
    let nan = logits.clone().is_nan();
    let mut rest = logits.mask_fill(nan, UNRANKED).clamp_min(UNRANKED);
    let (mut largest, mut classes) = (Vec::with_capacity(k), Vec::with_capacity(k));
    for _ in 0..k.min(width) {
        let (value, column) = rest.clone().max_dim_with_indices(1);
        rest = rest.mask_fill(columns.clone().equal(column.clone().expand([rows, width])), UNRANKED);
        largest.push(value);
        classes.push(column + i64::from(first));
    }
    (!largest.is_empty()).then(|| (Tensor::cat(largest, 1), Tensor::cat(classes, 1)))
}
