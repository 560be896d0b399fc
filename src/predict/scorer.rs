//! Scores features against a head on the device and keeps the best classes of each row.
//!
//! Memory on top of the head is a few `[rows of a block, classes of a tile]` matrices, on the device and, where the host
//! selects, there too. A backend's own top-k is not used: it leaves ties open, and sorts whole rows (on CUDA even on the host).
//! Labels are checked on the host before any work.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::PredictError;
use super::rank::TopK;
use super::tiles::{
    Blocks, Compute, NEVER, as_type, download, softmax_and_lse, spans, tile_logits, upload, upload_rows, upload_tiles,
};

/// One row against its label.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The best classes.
    pub top: TopK,
    /// Cross-entropy of the row, in nats: `log Σ exp(logits) − logits[label]`.
    pub loss: f64,
    /// `log Σ exp(logits)`; the probability of a ranked class is `exp(logit − lse)`.
    pub lse: f64,
}

/// Where the best classes of a tile are picked. Both give the same ranking, except that a logit of −∞ never ranks on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selection {
    /// All logits go to the host, which looks at each once: best where the device is the host.
    #[default]
    Host,
    /// The device takes the largest of each row k times, and the k of each tile alone go to the host.
    Device,
}

/// A head that ranks classes.
#[derive(Debug, Clone)]
pub struct Scorer<B: Backend> {
    classes: usize,
    dim: usize,
    blocks: Blocks,
    compute: Compute,
    selection: Selection,
    weight: Vec<Tensor<B, 2>>,
    bias: Vec<Tensor<B, 2>>,
    device: B::Device,
}

impl<B: Backend> Scorer<B> {
    /// Puts a head on the device: `weight` is `[classes, dim]` row-major, `bias` is `[classes]`.
    ///
    /// # Errors
    /// When a dim or a block length is zero or a length does not fit.
    pub fn new(
        weight: &[f32],
        bias: &[f32],
        classes: usize,
        dim: usize,
        blocks: Blocks,
        compute: Compute,
        device: &B::Device,
    ) -> Result<Self, PredictError> {
        blocks.check()?;
        for (what, value) in [("classes", classes), ("dim", dim)] {
            if value == 0 {
                return Err(PredictError::Zero { what });
            }
        }
        length("weight", weight.len(), classes.saturating_mul(dim))?;
        length("bias", bias.len(), classes)?;
        let weight = upload_tiles(weight, dim, blocks.classes, device)
            .into_iter()
            .map(|tile| as_type(tile, compute.dtype()))
            .collect();
        let bias = upload_rows(bias, blocks.classes, NEVER, device);
        Ok(Self::from_tiles(classes, dim, blocks, compute, weight, bias, device))
    }

    /// Shares tiles that are on the device already; `weight` is in the type of the product.
    pub(crate) fn from_tiles(
        classes: usize,
        dim: usize,
        blocks: Blocks,
        compute: Compute,
        weight: Vec<Tensor<B, 2>>,
        bias: Vec<Tensor<B, 2>>,
        device: &B::Device,
    ) -> Self {
        let selection = Selection::default();
        Self { classes, dim, blocks, compute, selection, weight, bias, device: device.clone() }
    }

    /// Chooses where the best are picked.
    #[must_use]
    pub fn selecting(self, selection: Selection) -> Self {
        Self { selection, ..self }
    }

    /// Classes of the head.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The `k` best classes of each row of `features`, `[rows, dim]` row-major, in row order.
    ///
    /// A `k` above the number of classes gives every class.
    ///
    /// # Errors
    /// When the length does not fit or the device fails.
    pub fn top_k(&self, features: &[f32], rows: usize, k: usize) -> Result<Vec<TopK>, PredictError> {
        length("features", features.len(), rows.saturating_mul(self.dim))?;
        let mut ranked = Vec::with_capacity(rows);
        for span in spans(rows, self.blocks.rows) {
            let block = self.block(features, span.start, span.end);
            let mut best = Best::new(span.len(), k.min(self.classes), self.selection);
            for (first, logits) in self.tiles(&block) {
                best.add(first, logits)?;
            }
            ranked.append(&mut best.finish()?);
        }
        Ok(ranked)
    }

    /// The `k` best classes and the loss of each row, for validation.
    ///
    /// # Errors
    /// When a length does not fit, a label is outside the classes, or the device fails.
    pub fn score(&self, features: &[f32], labels: &[u32], k: usize) -> Result<Vec<Scored>, PredictError> {
        length("features", features.len(), labels.len().saturating_mul(self.dim))?;
        check_labels(labels, self.classes)?;
        let mut scored = Vec::with_capacity(labels.len());
        for span in spans(labels.len(), self.blocks.rows) {
            let block = self.block(features, span.start, span.end);
            let labels = &labels[span];
            let mut best = Best::new(labels.len(), k.min(self.classes), self.selection);
            let mut lse = vec![f64::NEG_INFINITY; labels.len()];
            let mut own = vec![0.0_f64; labels.len()];
            for (first, logits) in self.tiles(&block) {
                let width = logits.dims()[1];
                // Of a label in another tile the last class stands in; it is not looked at.
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
                best.add(first, logits)?;
            }
            let tops = best.finish()?;
            scored.extend(tops.into_iter().zip(lse).zip(own).map(|((top, lse), own)| {
                let loss = lse - own;
                Scored { top, loss, lse }
            }));
        }
        Ok(scored)
    }

    /// For each class `log Σ exp` of its logits over all rows.
    ///
    /// # Errors
    /// When the length does not fit or the device fails.
    pub fn lse_by_class(&self, features: &[f32], rows: usize) -> Result<Vec<f64>, PredictError> {
        length("features", features.len(), rows.saturating_mul(self.dim))?;
        let mut sums = vec![f64::NEG_INFINITY; self.classes];
        for span in spans(rows, self.blocks.rows) {
            let block = self.block(features, span.start, span.end);
            for (first, logits) in self.tiles(&block) {
                let (_, lse) = softmax_and_lse(logits.transpose());
                for (sum, more) in sums[first as usize..].iter_mut().zip(download(lse)?) {
                    *sum = log_add(*sum, f64::from(more));
                }
            }
        }
        Ok(sums)
    }

    /// Offers each class's logits over the rows to its list of the `k` largest, in descending order.
    ///
    /// # Errors
    /// When a length does not fit or the device fails.
    pub fn largest_by_class(
        &self,
        features: &[f32],
        rows: usize,
        k: usize,
        largest: &mut [Vec<f32>],
    ) -> Result<(), PredictError> {
        length("features", features.len(), rows.saturating_mul(self.dim))?;
        length("lists", largest.len(), self.classes)?;
        for span in spans(rows, self.blocks.rows) {
            let block = self.block(features, span.start, span.end);
            for (first, logits) in self.tiles(&block) {
                let width = logits.dims()[1];
                let logits = download(logits)?;
                for row in logits.chunks_exact(width) {
                    for (list, logit) in largest[first as usize..].iter_mut().zip(row) {
                        if list.len() < k || list.last().is_some_and(|least| logit > least) {
                            let at = list.partition_point(|kept| kept >= logit);
                            list.insert(at, *logit);
                            list.truncate(k);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn block(&self, features: &[f32], start: usize, end: usize) -> Tensor<B, 2> {
        let values = &features[start * self.dim..end * self.dim];
        let block = upload(values, end - start, self.dim, &self.device);
        as_type(block, self.compute.dtype())
    }

    /// First class and logits of each tile, in class order.
    fn tiles(&self, block: &Tensor<B, 2>) -> impl Iterator<Item = (u32, Tensor<B, 2>)> {
        let starts = (0..self.classes).step_by(self.blocks.classes);
        starts.zip(self.weight.iter().zip(&self.bias)).map(move |(first, (weight, bias))| {
            // Without the classes that pad the tile.
            let real = (self.classes - first).min(self.blocks.classes);
            (first as u32, tile_logits(block, weight, bias).narrow(1, 0, real))
        })
    }
}

/// Picks the best classes of the rows of a block, tile by tile in class order.
struct Best<B: Backend> {
    tops: Vec<TopK>,
    k: usize,
    selection: Selection,
    /// Logits and classes that the device picked of each tile, `[rows, k]` each, not read yet.
    picked: Vec<(Tensor<B, 2>, Tensor<B, 2, Int>)>,
}

impl<B: Backend> Best<B> {
    fn new(rows: usize, k: usize, selection: Selection) -> Self {
        Self { tops: vec![TopK::with_capacity(k); rows], k, selection, picked: Vec::new() }
    }

    fn add(&mut self, first: u32, logits: Tensor<B, 2>) -> Result<(), PredictError> {
        match self.selection {
            Selection::Device => self.picked.extend(pick(first, logits, self.k)),
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

    fn finish(mut self) -> Result<Vec<TopK>, PredictError> {
        if self.picked.is_empty() {
            return Ok(self.tops);
        }
        let (logits, classes): (Vec<_>, Vec<_>) = self.picked.into_iter().unzip();
        // One read for all tiles.
        let (logits, classes) = (Tensor::cat(logits, 1), Tensor::cat(classes, 1));
        let width = logits.dims()[1];
        let logits = download(logits)?;
        let classes = classes.try_into_data().map_err(|error| PredictError::Device(error.to_string()))?;
        let classes: Vec<i64> = classes.iter().collect();
        let rows = logits.chunks_exact(width).zip(classes.chunks_exact(width));
        for (top, (logits, classes)) in self.tops.iter_mut().zip(rows) {
            for (logit, class) in logits.iter().zip(classes).filter(|(logit, _)| **logit > NOWHERE) {
                top.offer(*class as u32, std::slice::from_ref(logit), self.k);
            }
        }
        Ok(self.tops)
    }
}

/// Stands for a logit that never ranks. Not −∞: of a row of nothing else CUDA's maximum has no position, and reading there fails.
const NOWHERE: f32 = f32::MIN;

/// The `k` largest logits of each row, largest first, and their classes, lowest first among equals; what is no number is nowhere.
fn pick<B: Backend>(first: u32, logits: Tensor<B, 2>, k: usize) -> Option<(Tensor<B, 2>, Tensor<B, 2, Int>)> {
    let ([rows, width], device) = (logits.dims(), logits.device());
    let columns = Tensor::<B, 1, Int>::arange(0..width as i64, &device).reshape([1, width]).expand([rows, width]);
    let no_number = logits.clone().is_nan();
    let mut rest = logits.mask_fill(no_number, NOWHERE).clamp_min(NOWHERE);
    let (mut largest, mut classes) = (Vec::with_capacity(k), Vec::with_capacity(k));
    for _ in 0..k.min(width) {
        let (value, column) = rest.clone().max_dim_with_indices(1);
        rest = rest.mask_fill(columns.clone().equal(column.clone().expand([rows, width])), NOWHERE);
        largest.push(value);
        classes.push(column + i64::from(first));
    }
    (!largest.is_empty()).then(|| (Tensor::cat(largest, 1), Tensor::cat(classes, 1)))
}

/// Refuses a vector whose length does not fit its dims.
pub(crate) fn length(what: &'static str, actual: usize, expected: usize) -> Result<(), PredictError> {
    if actual == expected {
        return Ok(());
    }
    Err(PredictError::Length { what, actual, expected })
}

/// Refuses a label outside the classes: a device may read or write elsewhere instead.
fn check_labels(labels: &[u32], classes: usize) -> Result<(), PredictError> {
    match labels.iter().position(|&label| label as usize >= classes) {
        None => Ok(()),
        Some(row) => Err(PredictError::Label { row, label: labels[row], classes }),
    }
}

/// `log(exp a + exp b)`; NaN if either is.
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
mod tests {
    use burn::backend::Flex;
    use burn::tensor::backend::BackendTypes;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;

    fn scorer(weight: &[f32], bias: &[f32], dim: usize, rows: usize, tile: usize) -> Scorer<Flex> {
        let blocks = Blocks { rows, classes: tile };
        let device = <Flex as BackendTypes>::Device::default();
        Scorer::new(weight, bias, bias.len(), dim, blocks, Compute::F32, &device).unwrap()
    }

    #[test]
    fn ranking_and_loss_agree_with_torch_for_any_blocks() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/topk.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| {
            let (words, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
            words.to_vec()
        };
        let floats = |name| -> Vec<f32> { words(name).into_iter().map(f32::from_le_bytes).collect() };
        let ints = |name| -> Vec<u32> { words(name).into_iter().map(u32::from_le_bytes).collect() };
        let (features, labels) = (floats("features"), ints("labels"));
        for (rows, tile) in [(1, 203), (7, 10), (100, 1000), (4, 1)] {
            let head = scorer(&floats("weight"), &floats("bias"), 12, rows, tile);
            let scored = head.score(&features, &labels, 5).unwrap();
            let tops: Vec<TopK> = scored.iter().map(|row| row.top.clone()).collect();
            assert_eq!(tops, head.top_k(&features, 17, 5).unwrap());
            let classes: Vec<u32> = tops.iter().flat_map(|top| top.classes.clone()).collect();
            assert_eq!(classes, ints("classes"), "blocks {rows} × {tile}");
            let logits = tops.iter().flat_map(|top| top.logits.clone());
            for (logit, expected) in logits.zip(floats("logits")) {
                assert!((logit - expected).abs() < 1e-5);
            }
            for (row, expected) in scored.iter().zip(floats("loss")) {
                assert!((row.loss - f64::from(expected)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn figures_of_a_class_are_over_all_rows_for_any_blocks() {
        let weight: Vec<f32> = (0..7 * 3).map(|at| (at as f32 * 0.9).sin()).collect();
        let bias: Vec<f32> = (0..7).map(|at| at as f32 * 0.1).collect();
        let features: Vec<f32> = (0..11 * 3).map(|at| (at as f32 * 0.4).cos()).collect();
        let logit = |row: usize, class: usize| -> f32 {
            let product = |at: usize| features[row * 3 + at] * weight[class * 3 + at];
            (0..3).map(product).sum::<f32>() + bias[class]
        };
        for (rows, tile) in [(11, 7), (4, 3), (1, 1)] {
            let head = scorer(&weight, &bias, 3, rows, tile);
            let sums = head.lse_by_class(&features, 11).unwrap();
            let mut largest = vec![Vec::new(); 7];
            // In two calls, as chunks come.
            head.largest_by_class(&features[..15], 5, 4, &mut largest).unwrap();
            head.largest_by_class(&features[15..], 6, 4, &mut largest).unwrap();
            for class in 0..7 {
                let mut all: Vec<f32> = (0..11).map(|row| logit(row, class)).collect();
                let sum = all.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
                assert!((sums[class] - sum).abs() < 1e-5);
                all.sort_by(|one, other| other.total_cmp(one));
                assert!(largest[class].iter().zip(&all[..4]).all(|(one, other)| (one - other).abs() < 1e-5));
                assert_eq!(largest[class].len(), 4);
            }
        }
    }

    #[test]
    fn a_k_above_the_classes_gives_every_class() {
        let head = scorer(&[1.0, 1.0, 2.0], &[0.0; 3], 1, 2, 2);
        let top = head.top_k(&[1.0, -1.0], 2, 9).unwrap();
        assert_eq!(top[0].classes, [2, 0, 1]);
        assert_eq!(top[1].classes, [0, 1, 2]);
        assert!(head.top_k(&[], 0, 5).unwrap().is_empty());
    }

    #[test]
    fn nan_never_ranks_and_shows_in_the_loss() {
        let head = scorer(&[1.0, f32::NAN, 2.0], &[0.0; 3], 1, 2, 2);
        for selection in [Selection::Host, Selection::Device] {
            let scored = head.clone().selecting(selection).score(&[1.0], &[0], 3).unwrap();
            assert_eq!(scored[0].top.classes, [2, 0], "{selection:?}");
            assert!(scored[0].loss.is_nan());
        }
    }

    #[test]
    fn lengths_and_labels_that_do_not_fit_are_refused() {
        let head = scorer(&[1.0; 6], &[0.0; 3], 2, 2, 2);
        let error = head.top_k(&[0.0; 3], 2, 1).unwrap_err();
        assert_eq!(error.to_string(), "`features` holds `3` values, expected `4`");
        let error = head.score(&[0.0; 2], &[3], 1).unwrap_err();
        assert!(matches!(error, PredictError::Label { row: 0, label: 3, classes: 3 }));
        let device = <Flex as BackendTypes>::Device::default();
        let new = |weight: &[f32], classes, dim| {
            let (blocks, compute) = (Blocks::default(), Compute::F32);
            Scorer::<Flex>::new(weight, &[0.0; 3], classes, dim, blocks, compute, &device).unwrap_err()
        };
        assert!(matches!(new(&[0.0; 5], 3, 2), PredictError::Length { what: "weight", .. }));
        assert!(matches!(new(&[], 3, 0), PredictError::Zero { what: "dim" }));
        assert!(matches!(new(&[0.0; 8], 4, 2), PredictError::Length { what: "bias", .. }));
    }

    #[test]
    fn adding_logarithms_survives_infinities() {
        assert!((log_add(1000.0, 1000.0) - (1000.0 + 2.0_f64.ln())).abs() < 1e-9);
        assert!((log_add(f64::NEG_INFINITY, 3.0) - 3.0).abs() < 1e-12);
        assert!(log_add(f64::NEG_INFINITY, f64::NEG_INFINITY) == f64::NEG_INFINITY);
        assert!(log_add(f64::INFINITY, f64::NEG_INFINITY) == f64::INFINITY);
        assert!(log_add(f64::NAN, 1.0).is_nan());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn blocks_do_not_change_the_ranking(
            weight in prop::collection::vec((-2i8..3).prop_map(f32::from), 1..40),
            features in prop::collection::vec((-2i8..3).prop_map(f32::from), 0..12),
            rows in 1usize..6, tile in 1usize..12, k in 0usize..7,
        ) {
            // Small integers: the products are exact, so ties are ties in every split.
            let bias = vec![0.0; weight.len()];
            let whole = scorer(&weight, &bias, 1, 100, 100).top_k(&features, features.len(), k).unwrap();
            let split = scorer(&weight, &bias, 1, rows, tile);
            prop_assert_eq!(&whole, &split.top_k(&features, features.len(), k).unwrap());
            // Ties and signed zeros included, the device picks the same.
            let on_device = split.clone().selecting(Selection::Device);
            prop_assert_eq!(&whole, &on_device.top_k(&features, features.len(), k).unwrap());
            let labels: Vec<u32> = (0..features.len()).map(|row| (row * 7 % weight.len()) as u32).collect();
            prop_assert_eq!(split.score(&features, &labels, k).unwrap(), on_device.score(&features, &labels, k).unwrap());
        }
    }
}
