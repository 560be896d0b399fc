//! Regularised canonical correlation analysis (Hotelling 1936; Vinod 1976).

use faer::Mat;
use faer::linalg::solvers::Svd;

use super::moments::Covariances;
use super::{ClosedFormError, decompose};

/// Shares of the identity in the covariances of both sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CcaShrinkage {
    /// Share in the covariance of the features.
    pub features: f64,
    /// Share in the covariance of the captions.
    pub captions: f64,
}

/// Canonical directions of features and captions.
pub struct Cca {
    /// Correlation of each pair of directions, descending.
    pub correlations: Vec<f64>,
    /// Directions of the features, `[input, pairs]`.
    pub features: Mat<f64>,
    /// Directions of the captions, `[output, pairs]`.
    pub captions: Mat<f64>,
}

impl Cca {
    /// Computes all pairs of directions. The covariances of features and of captions are shrunk by a share from 0 to 1 each.
    ///
    /// With the Cholesky factors `L` of the shrunk covariances, the correlations are the singular values of
    /// `Lx⁻¹ Sxy Ly⁻ᵀ = U S Vᵀ`, and the directions are `Lx⁻ᵀ U` and `Ly⁻ᵀ V`.
    ///
    /// # Errors
    /// When a covariance is singular.
    pub fn new(covariances: &Covariances, shrinkage: CcaShrinkage) -> Result<Self, ClosedFormError> {
        let features = decompose(covariances.features.as_ref(), shrinkage.features, "features")?;
        let captions = decompose(covariances.captions.as_ref(), shrinkage.captions, "captions")?;
        let mut whitened = covariances.cross.clone();
        features.L().solve_lower_triangular_in_place(whitened.as_mut());
        let mut whitened = whitened.transpose().to_owned();
        captions.L().solve_lower_triangular_in_place(whitened.as_mut());
        let svd = Svd::new_thin(whitened.transpose()).map_err(|_| ClosedFormError::Decomposition)?;
        let (mut left, mut right) = (svd.U().to_owned(), svd.V().to_owned());
        features.L().transpose().solve_upper_triangular_in_place(left.as_mut());
        captions.L().transpose().solve_upper_triangular_in_place(right.as_mut());
        let correlations = svd.S().column_vector().iter().copied().collect();
        Ok(Self { correlations, features: left, captions: right })
    }

    /// Returns the maps of features, `[rank, input]`, and captions, `[rank, output]`, row-major: the first `rank` directions,
    /// scaled by the `power` of their correlations.
    pub fn maps(&self, rank: usize, power: f64) -> [Vec<f64>; 2] {
        let rank = rank.min(self.correlations.len());
        let map = |directions: &Mat<f64>| {
            let row = |pair: usize| {
                let factor = self.correlations[pair].max(0.0).powf(power);
                (0..directions.nrows()).map(move |at| factor * directions[(at, pair)])
            };
            (0..rank).flat_map(row).collect()
        };
        [map(&self.features), map(&self.captions)]
    }
}
