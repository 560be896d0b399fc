//! Weighted means and covariances of image features and caption vectors.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::iter::{IndexedParallelIterator as _, IntoParallelRefMutIterator as _, ParallelIterator as _};

use super::ClosedFormError;

/// Rows of a block. At 2,304 values a row these are 19 MB.
const BLOCK_ROWS: usize = 1024;
/// Columns of a covariance that one thread works on at a time.
const PANEL_COLUMNS: usize = 128;

/// Accumulator of the products of two kinds of rows: `Σ left · rightᵀ`, in panels of columns.
struct Products {
    /// Each panel is `[left, columns]`; of a product with itself, only the rows from the panel's first column on.
    panels: Vec<Mat<f64>>,
    symmetric: bool,
}

impl Products {
    fn new(left: usize, right: usize, symmetric: bool) -> Self {
        let panel = |first: usize| {
            let columns = PANEL_COLUMNS.min(right - first);
            Mat::zeros(if symmetric { left - first } else { left }, columns)
        };
        Self { panels: (0..right).step_by(PANEL_COLUMNS).map(panel).collect(), symmetric }
    }

    /// Adds rows: `left` is `[rows, left]`, `right` is `[rows, right]`.
    fn add(&mut self, left: MatRef<'_, f64>, right: MatRef<'_, f64>) {
        let symmetric = self.symmetric;
        self.panels.par_iter_mut().enumerate().for_each(|(panel, sum)| {
            let first = panel * PANEL_COLUMNS;
            let own = right.subcols(first, sum.ncols());
            let left = if symmetric { left.subcols(first, sum.nrows()) } else { left };
            matmul(sum.as_mut(), Accum::Add, left.transpose(), own, 1.0, Par::Seq);
        });
    }

    /// Returns the matrix, divided by `weight`, minus the product of the means of both sides.
    fn finish(&self, weight: f64, left: &[f64], right: &[f64]) -> Mat<f64> {
        let sum = |row: usize, column: usize| {
            let panel = column / PANEL_COLUMNS;
            let (first, within) = (panel * PANEL_COLUMNS, column % PANEL_COLUMNS);
            if self.symmetric { self.panels[panel][(row - first, within)] } else { self.panels[panel][(row, within)] }
        };
        Mat::from_fn(left.len(), right.len(), |row, column| {
            let (low, high) = if self.symmetric && row < column { (column, row) } else { (row, column) };
            sum(low, high) / weight - left[row] * right[column]
        })
    }
}

/// Running sums over images and their captions. All vectors are taken relative to the first, so that a large mean costs no
/// precision.
pub struct PairMoments {
    origins: Option<[Vec<f64>; 2]>,
    dims: [usize; 2],
    weight: f64,
    sums: [Vec<f64>; 2],
    features: Products,
    cross: Products,
    captions: Products,
    /// Rows that are not added yet, scaled by the roots of their weights: features, means of captions, captions.
    block: [Vec<f64>; 3],
}

impl PairMoments {
    /// Starts sums of features of `input` values and captions of `output` values; 0 without captions.
    pub fn new(input: usize, output: usize) -> Self {
        Self {
            origins: None,
            dims: [input, output],
            weight: 0.0,
            sums: [vec![0.0; input], vec![0.0; output]],
            features: Products::new(input, input, true),
            cross: Products::new(input, output, false),
            captions: Products::new(output, output, true),
            block: Default::default(),
        }
    }

    /// Adds an image with its captions, `[captions, output]`, which share its weight equally. An image without captions is
    /// left out, unless captions have no values.
    pub fn add(&mut self, feature: &[f32], captions: &[f32], weight: f64) {
        let [input, output] = self.dims;
        let count = captions.len().checked_div(output).unwrap_or(1);
        if count == 0 || weight <= 0.0 {
            return;
        }
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
        let [x_origin, y_origin] =
            self.origins.get_or_insert_with(|| [wide(feature), wide(&captions[..output.min(captions.len())])]);
        self.weight += weight;
        let root = weight.sqrt();
        for ((value, origin), sum) in feature.iter().zip(&*x_origin).zip(&mut self.sums[0]) {
            let value = f64::from(*value) - origin;
            *sum += weight * value;
            self.block[0].push(root * value);
        }
        let (each, mut mean) = (1.0 / count as f64, vec![0.0; output]);
        let caption_root = (weight * each).sqrt();
        for caption in captions.chunks_exact(output.max(1)) {
            for ((value, origin), mean) in caption.iter().zip(&*y_origin).zip(&mut mean) {
                let value = f64::from(*value) - origin;
                *mean += each * value;
                self.block[2].push(caption_root * value);
            }
        }
        for (mean, sum) in mean.iter().zip(&mut self.sums[1]) {
            *sum += weight * mean;
            self.block[1].push(root * mean);
        }
        if self.block[0].len() >= BLOCK_ROWS * input || self.block[2].len() >= BLOCK_ROWS * output.max(1) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let [input, output] = self.dims;
        let [features, means, captions] = &mut self.block;
        let rows = |values: &[f64], width: usize| values.len() / width.max(1);
        let x = MatRef::from_row_major_slice(features.as_slice(), rows(features, input), input);
        self.features.add(x, x);
        if output > 0 {
            let mean = MatRef::from_row_major_slice(means.as_slice(), rows(means, output), output);
            let y = MatRef::from_row_major_slice(captions.as_slice(), rows(captions, output), output);
            self.cross.add(x, mean);
            self.captions.add(y, y);
        }
        self.block.iter_mut().for_each(Vec::clear);
    }

    /// Returns means and covariances.
    ///
    /// # Errors
    /// When no image was added.
    pub fn finish(mut self) -> Result<Covariances, ClosedFormError> {
        self.flush();
        let Some([x_origin, y_origin]) = &self.origins else { return Err(ClosedFormError::Empty) };
        let means = self.sums.each_ref().map(|sum| sum.iter().map(|sum| sum / self.weight).collect::<Vec<f64>>());
        let [x, y] = &means;
        let add = |mean: &[f64], origin: &[f64]| mean.iter().zip(origin).map(|(mean, origin)| mean + origin).collect();
        Ok(Covariances {
            weight: self.weight,
            feature_mean: add(x, x_origin),
            caption_mean: add(y, y_origin),
            features: self.features.finish(self.weight, x, x),
            cross: self.cross.finish(self.weight, x, y),
            captions: self.captions.finish(self.weight, y, y),
            feature_std: vec![1.0; self.dims[0]],
        })
    }
}

/// Weighted means and covariances.
pub struct Covariances {
    /// Sum of the weights.
    pub weight: f64,
    /// Mean of the features.
    pub feature_mean: Vec<f64>,
    /// Mean of the captions.
    pub caption_mean: Vec<f64>,
    /// Covariance of the features, `[input, input]`.
    pub features: Mat<f64>,
    /// Covariance of features and captions, `[input, output]`.
    pub cross: Mat<f64>,
    /// Covariance of the captions, `[output, output]`.
    pub captions: Mat<f64>,
    /// Divisors of the features: 1 before [`Covariances::standardise`].
    pub feature_std: Vec<f64>,
}

/// Lower bound on a standard deviation; a smaller one is that of a constant value.
const MIN_STD: f64 = 1e-6;

impl Covariances {
    /// Copies the part of some features.
    #[must_use]
    pub fn of_features(&self, span: Range<usize>) -> Self {
        let (first, count) = (span.start, span.len());
        Self {
            weight: self.weight,
            feature_mean: self.feature_mean[span.clone()].to_vec(),
            caption_mean: self.caption_mean.clone(),
            features: self.features.submatrix(first, first, count, count).to_owned(),
            cross: self.cross.submatrix(first, 0, count, self.cross.ncols()).to_owned(),
            captions: self.captions.clone(),
            feature_std: self.feature_std[span].to_vec(),
        }
    }

    /// Divides each feature by its standard deviation, so that the shrinkage treats all alike.
    pub fn standardise(&mut self) {
        let deviation = |at: usize| self.features[(at, at)].max(0.0).sqrt();
        let std = (0..self.feature_mean.len()).map(deviation).map(|std| if std > MIN_STD { std } else { 1.0 });
        self.feature_std = std.collect();
        let std = &self.feature_std;
        let (features, cross) = (&self.features, &self.cross);
        let own = Mat::from_fn(std.len(), std.len(), |row, column| features[(row, column)] / (std[row] * std[column]));
        let both = Mat::from_fn(std.len(), cross.ncols(), |row, column| cross[(row, column)] / std[row]);
        (self.features, self.cross) = (own, both);
    }
}
