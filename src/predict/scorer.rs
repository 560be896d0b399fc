//! Scores features against a head on the device and selects the best classes of each row.
//!
//! Besides the head, memory holds a few `[tile rows, tile classes]` matrices on the device; with [`Selection::Host`]
//! also on the host. Labels are checked on the host before any work.

mod places;
mod selection;

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::PredictError;
use super::rank::TopK;
use super::tiles::{
    Compute, PADDING_BIAS, Tiling, cast_to, download, softmax_and_lse, tile_logits, tile_ranges, upload, upload_rows,
    upload_tiles,
};

pub use places::{Place, PlaceQuery};
pub use selection::Selection;
use selection::TopKSelector;

/// Ranking and loss of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Best classes of the row.
    pub top: TopK,
    /// Cross-entropy in nats, `log Σ exp(logits) − logits[label]`.
    pub loss: f64,
    /// `log Σ exp(logits)`; the probability of a class is `exp(logit − lse)`.
    pub lse: f64,
}

/// Head on a device that ranks classes.
#[derive(Debug, Clone)]
pub struct Scorer<B: Backend> {
    classes: usize,
    dim: usize,
    tiling: Tiling,
    compute: Compute,
    selection: Selection,
    weight: Vec<Tensor<B, 2>>,
    bias: Vec<Tensor<B, 2>>,
    device: B::Device,
}

impl<B: Backend> Scorer<B> {
    /// Uploads a head: `weight` is `[classes, dim]`, row-major, `bias` is `[classes]`.
    ///
    /// # Errors
    /// When a dimension or tile size is zero or a length does not match.
    pub fn new(
        weight: &[f32],
        bias: &[f32],
        classes: usize,
        dim: usize,
        tiling: Tiling,
        compute: Compute,
        device: &B::Device,
    ) -> Result<Self, PredictError> {
        tiling.check()?;
        for (what, value) in [("classes", classes), ("dim", dim)] {
            if value == 0 {
                return Err(PredictError::Zero { what });
            }
        }
        check_length("weight", weight.len(), classes.saturating_mul(dim))?;
        check_length("bias", bias.len(), classes)?;
        let weight = upload_tiles(weight, dim, tiling.classes, device)
            .into_iter()
            .map(|tile| cast_to(tile, compute.dtype()))
            .collect();
        let bias = upload_rows(bias, tiling.classes, PADDING_BIAS, device);
        Ok(Self::from_tiles(classes, dim, tiling, compute, weight, bias, device))
    }

    /// Creates a scorer from tiles on the device; `weight` has the format of the product.
    pub(crate) fn from_tiles(
        classes: usize,
        dim: usize,
        tiling: Tiling,
        compute: Compute,
        weight: Vec<Tensor<B, 2>>,
        bias: Vec<Tensor<B, 2>>,
        device: &B::Device,
    ) -> Self {
        let selection = Selection::default();
        Self { classes, dim, tiling, compute, selection, weight, bias, device: device.clone() }
    }

    /// Sets where the best classes are selected.
    #[must_use]
    pub fn with_selection(self, selection: Selection) -> Self {
        Self { selection, ..self }
    }

    /// Returns the number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Returns the `k` best classes of each row of `features`, `[rows, dim]`, row-major.
    ///
    /// A `k` above the number of classes returns all classes.
    ///
    /// # Errors
    /// When the length does not match or the device fails.
    pub fn top_k(&self, features: &[f32], rows: usize, k: usize) -> Result<Vec<TopK>, PredictError> {
        check_length("features", features.len(), rows.saturating_mul(self.dim))?;
        let mut ranked = Vec::with_capacity(rows);
        for range in tile_ranges(rows, self.tiling.rows) {
            let inputs = self.upload_tile_rows(features, &range);
            let mut selector = TopKSelector::new(range.len(), k.min(self.classes), self.selection);
            for (first, logits) in self.tiles(&inputs) {
                selector.add_tile(first, logits)?;
            }
            ranked.append(&mut selector.finish()?);
        }
        Ok(ranked)
    }

    /// Returns the `k` best classes and the loss of each row, for validation.
    ///
    /// # Errors
    /// When a length does not match, a label is not a class of the head, or the device fails.
    pub fn score(&self, features: &[f32], labels: &[u32], k: usize) -> Result<Vec<Scored>, PredictError> {
        check_length("features", features.len(), labels.len().saturating_mul(self.dim))?;
        check_labels(labels, self.classes)?;
        let mut scored = Vec::with_capacity(labels.len());
        for range in tile_ranges(labels.len(), self.tiling.rows) {
            let inputs = self.upload_tile_rows(features, &range);
            let labels = &labels[range];
            let mut selector = TopKSelector::new(labels.len(), k.min(self.classes), self.selection);
            let mut lse = vec![f64::NEG_INFINITY; labels.len()];
            let mut own = vec![0.0_f64; labels.len()];
            for (first, logits) in self.tiles(&inputs) {
                let width = logits.dims()[1];
                // A label in another tile is clamped to the last column; the gathered value is ignored.
                let within: Vec<usize> = labels.iter().map(|label| label.wrapping_sub(first) as usize).collect();
                let columns: Vec<i64> = within.iter().map(|column| (*column).min(width - 1) as i64).collect();
                let columns = TensorData::new(columns, [labels.len(), 1]);
                let columns = Tensor::<B, 2, Int>::from_data(columns, &self.device);
                let (_, tile_lse) = softmax_and_lse(logits.clone());
                let both = Tensor::cat(vec![tile_lse, logits.clone().gather(1, columns)], 1);
                for (row, pair) in download(both)?.chunks_exact(2).enumerate() {
                    lse[row] = log_add(lse[row], f64::from(pair[0]));
                    if within[row] < width {
                        own[row] = f64::from(pair[1]);
                    }
                }
                selector.add_tile(first, logits)?;
            }
            let tops = selector.finish()?;
            scored.extend(tops.into_iter().zip(lse).zip(own).map(|((top, lse), own)| {
                let loss = lse - own;
                Scored { top, loss, lse }
            }));
        }
        Ok(scored)
    }

    /// Returns for each class the `log Σ exp` of its logits over all rows.
    ///
    /// # Errors
    /// When the length does not match or the device fails.
    pub fn lse_by_class(&self, features: &[f32], rows: usize) -> Result<Vec<f64>, PredictError> {
        check_length("features", features.len(), rows.saturating_mul(self.dim))?;
        let mut sums = vec![f64::NEG_INFINITY; self.classes];
        for range in tile_ranges(rows, self.tiling.rows) {
            let inputs = self.upload_tile_rows(features, &range);
            for (first, logits) in self.tiles(&inputs) {
                let (_, lse) = softmax_and_lse(logits.transpose());
                for (sum, more) in sums[first as usize..].iter_mut().zip(download(lse)?) {
                    *sum = log_add(*sum, f64::from(more));
                }
            }
        }
        Ok(sums)
    }

    /// Returns for each class the `log Σ exp` of its logits over all rows, where each row is divided by its own `Σ exp` over the classes
    /// before. Logits are computed twice, so that memory never holds those of all classes.
    ///
    /// # Errors
    /// When the length does not match or the device fails.
    pub fn shared_lse_by_class(&self, features: &[f32], rows: usize) -> Result<Vec<f64>, PredictError> {
        check_length("features", features.len(), rows.saturating_mul(self.dim))?;
        let mut sums = vec![f64::NEG_INFINITY; self.classes];
        for range in tile_ranges(rows, self.tiling.rows) {
            let inputs = self.upload_tile_rows(features, &range);
            let mut own = vec![f64::NEG_INFINITY; range.len()];
            for (_, logits) in self.tiles(&inputs) {
                let (_, lse) = softmax_and_lse(logits);
                for (sum, more) in own.iter_mut().zip(download(lse)?) {
                    *sum = log_add(*sum, f64::from(more));
                }
            }
            let own: Vec<f32> = own.into_iter().map(|sum| sum as f32).collect();
            let own = upload::<B>(&own, range.len(), 1, &self.device);
            for (first, logits) in self.tiles(&inputs) {
                let (_, lse) = softmax_and_lse((logits - own.clone()).transpose());
                for (sum, more) in sums[first as usize..].iter_mut().zip(download(lse)?) {
                    *sum = log_add(*sum, f64::from(more));
                }
            }
        }
        Ok(sums)
    }

    /// Updates each class's list of its `k` largest logits, in descending order, with the logits of these rows.
    ///
    /// # Errors
    /// When a length does not match or the device fails.
    pub fn largest_by_class(
        &self,
        features: &[f32],
        rows: usize,
        k: usize,
        largest: &mut [Vec<f32>],
    ) -> Result<(), PredictError> {
        check_length("features", features.len(), rows.saturating_mul(self.dim))?;
        check_length("lists", largest.len(), self.classes)?;
        for range in tile_ranges(rows, self.tiling.rows) {
            let inputs = self.upload_tile_rows(features, &range);
            for (first, logits) in self.tiles(&inputs) {
                let width = logits.dims()[1];
                let logits = download(logits)?;
                for row in logits.chunks_exact(width) {
                    for (list, logit) in largest[first as usize..].iter_mut().zip(row) {
                        if list.len() < k || list.last().is_some_and(|least| logit > least) {
                            let at = list.partition_point(|other| other >= logit);
                            list.insert(at, *logit);
                            list.truncate(k);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Uploads some rows of `features` in the format of the product.
    fn upload_tile_rows(&self, features: &[f32], rows: &Range<usize>) -> Tensor<B, 2> {
        let values = &features[rows.start * self.dim..rows.end * self.dim];
        let uploaded = upload(values, rows.len(), self.dim, &self.device);
        cast_to(uploaded, self.compute.dtype())
    }

    /// Yields the first class and the logits, `[rows, tile classes]`, of each tile in class order.
    fn tiles(&self, features: &Tensor<B, 2>) -> impl Iterator<Item = (u32, Tensor<B, 2>)> {
        let starts = (0..self.classes).step_by(self.tiling.classes);
        starts.zip(self.weight.iter().zip(&self.bias)).map(move |(first, (weight, bias))| {
            // Cuts off the padding classes.
            let real = (self.classes - first).min(self.tiling.classes);
            (first as u32, tile_logits(features, weight, bias).narrow(1, 0, real))
        })
    }
}

/// Rejects a vector whose length contradicts its dimensions.
pub(crate) fn check_length(what: &'static str, actual: usize, expected: usize) -> Result<(), PredictError> {
    if actual == expected {
        return Ok(());
    }
    Err(PredictError::Length { what, actual, expected })
}

/// Rejects a label that is not a class: a device might access other memory instead of failing.
fn check_labels(labels: &[u32], classes: usize) -> Result<(), PredictError> {
    match labels.iter().position(|&label| label as usize >= classes) {
        None => Ok(()),
        Some(row) => Err(PredictError::Label { row, label: labels[row], classes }),
    }
}

/// Returns `log(exp a + exp b)`; NaN if either argument is.
fn log_add(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        return f64::NAN;
    }
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if high.is_infinite() {
        return high;
    }
    high + (low - high).exp().ln_1p()
}

#[cfg(test)]
mod tests;
