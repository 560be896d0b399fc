//! Ridge regression from features to caption vectors, or to classes (Hoerl and Kennard 1970).

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{Llt, Solve as _};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::{ParallelSlice as _, ParallelSliceMut as _};

use super::moments::Covariances;
use super::{ClosedFormError, decompose};

/// Classes that one thread solves for at a time.
const TILE_CLASSES: usize = 512;
/// Bias of a class without images, which must not rank before any other.
const ABSENT_BIAS: f64 = -1e4;

/// A shrunk covariance of the features, ready to solve with.
pub struct Ridge {
    factor: Llt<f64>,
    dim: usize,
}

/// Regression targets of a classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassTargets {
    /// Each class is 1 for its images and 0 for all others.
    OneHot,
    /// The mean of each class: the linear discriminant with equal priors.
    Means,
}

impl ClassTargets {
    /// Returns the name in a report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OneHot => "one-hot",
            Self::Means => "class means",
        }
    }
}

impl Ridge {
    /// Decomposes the covariance of the features, shrunk by `shrinkage` from 0 to 1.
    ///
    /// # Errors
    /// When the covariance is singular.
    pub fn new(covariances: &Covariances, shrinkage: f64) -> Result<Self, ClosedFormError> {
        let factor = decompose(covariances.features.as_ref(), shrinkage, "features")?;
        Ok(Self { factor, dim: covariances.features.nrows() })
    }

    /// Returns the map from standardised, centred features to centred captions, `[output, input]`, row-major.
    pub fn caption_map(&self, covariances: &Covariances) -> Vec<f64> {
        let solved = self.factor.solve(covariances.cross.as_ref());
        (0..solved.ncols())
            .flat_map(|column| (0..solved.nrows()).map(move |row| (row, column)))
            .map(|at| solved[at])
            .collect()
    }

    /// Returns weight, `[classes, input]`, and bias of a classifier on raw features.
    pub fn classifier(
        &self,
        covariances: &Covariances,
        classes: &ClassMoments,
        targets: ClassTargets,
    ) -> (Vec<f32>, Vec<f32>) {
        let dim = self.dim;
        let inverse = self.factor.solve(Mat::<f64>::identity(dim, dim).as_ref());
        let count = classes.weights.len();
        let (mut weight, mut bias) = (vec![0.0_f32; count * dim], vec![0.0_f32; count]);
        let (mean, std) = (&covariances.feature_mean, &covariances.feature_std);
        let tiles = weight.par_chunks_mut(TILE_CLASSES * dim).zip(bias.par_chunks_mut(TILE_CLASSES));
        let sums = classes.sums.par_chunks(TILE_CLASSES * dim).zip(classes.weights.par_chunks(TILE_CLASSES));
        tiles.zip(sums).for_each(|((weight, bias), (sums, weights))| {
            // Centred, standardised means of the classes.
            let mut means = vec![0.0; sums.len()];
            for ((row, sum), total) in means.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(weights) {
                if *total > 0.0 {
                    for (at, (value, sum)) in row.iter_mut().zip(sum).enumerate() {
                        *value = (sum / total - mean[at]) / std[at];
                    }
                }
            }
            let mut solved = vec![0.0; sums.len()];
            let rows = weights.len();
            let out = MatMut::from_row_major_slice_mut(&mut solved, rows, dim);
            matmul(
                out,
                Accum::Replace,
                MatRef::from_row_major_slice(&means, rows, dim),
                inverse.as_ref(),
                1.0,
                Par::Seq,
            );
            for (class, total) in weights.iter().enumerate() {
                let span = class * dim..(class + 1) * dim;
                let (own, centre) = (&solved[span.clone()], &means[span.clone()]);
                let share = total / covariances.weight;
                let (factor, mut offset) = match targets {
                    ClassTargets::OneHot => (share, share),
                    ClassTargets::Means if *total <= 0.0 => (0.0, ABSENT_BIAS),
                    ClassTargets::Means => {
                        (1.0, -0.5 * own.iter().zip(centre).map(|(one, other)| one * other).sum::<f64>())
                    }
                };
                for (at, (value, out)) in own.iter().zip(&mut weight[span]).enumerate() {
                    let raw = factor * value / std[at];
                    offset -= raw * mean[at];
                    *out = raw as f32;
                }
                bias[class] = offset as f32;
            }
        });
        (weight, bias)
    }
}

/// Weighted sums of the features of each class.
pub struct ClassMoments {
    dim: usize,
    /// `[classes, input]`.
    sums: Vec<f64>,
    weights: Vec<f64>,
}

impl ClassMoments {
    /// Starts sums of `classes` classes over features of `dim` values.
    pub fn new(classes: usize, dim: usize) -> Self {
        Self { dim, sums: vec![0.0; classes * dim], weights: vec![0.0; classes] }
    }

    /// Adds an image, whose classes share its weight equally.
    pub fn add(&mut self, feature: &[f32], classes: &[u32], weight: f64) {
        let each = weight / classes.len().max(1) as f64;
        for class in classes.iter().map(|class| *class as usize) {
            self.weights[class] += each;
            let own = &mut self.sums[class * self.dim..(class + 1) * self.dim];
            own.iter_mut().zip(feature).for_each(|(sum, value)| *sum += each * f64::from(*value));
        }
    }
}
