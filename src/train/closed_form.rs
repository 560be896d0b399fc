//! Heads in closed form: regularised canonical correlation and ridge regression, from one pass over the features.
//!
//! [`PairMoments`] accumulates weighted means and covariances in f64, block by block, so memory does not depend on the
//! number of images. [`Cca`] and [`Ridge`] solve for a head; [`ndcg5_by_language`] compares candidates on held-out images.
//! The sums are taken in the order of the rows and are split by columns alone, so the result does not depend on the number
//! of threads.
//!
//! Covariances are shrunk towards a multiple of the identity: `(1 − α) S + α (tr S / d) I` (Ledoit and Wolf 2004). The
//! canonical directions of features and captions are scaled by powers of their correlations (Gong et al. 2014).

mod cca;
mod choice;
mod moments;
mod ridge;
mod validation;

pub use cca::{Cca, CcaShrinkage};
pub use choice::{
    Candidate, DEFAULT_SHRINKAGE, HeldOutPairs, LEAST_HELD_OUT_IMAGES, MappedPairs, SHRINKAGES, choose_projection,
    map_pairs,
};
pub use moments::{Covariances, PairMoments};
pub use ridge::{ClassMoments, ClassTargets, Ridge};
pub use validation::{Answers, MixedScores, ndcg5_by_language, score_mixed};

use faer::linalg::solvers::Llt;
use faer::{Mat, MatRef, Side};

/// Error of solving for a head.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClosedFormError {
    /// There is nothing to fit.
    #[error("no training image has a caption")]
    Empty,
    /// A covariance is zero or holds values that are not finite.
    #[error(
        "a head in closed form needs {0} that differ, and those of all training images are equal, or some are not finite: train on more images"
    )]
    Singular(&'static str),
    /// The singular value decomposition does not converge.
    #[error("the correlation of features and captions has no singular value decomposition")]
    Decomposition,
}

/// Shrinks a covariance towards a multiple of the identity, and decomposes it (Cholesky).
fn decompose(covariance: MatRef<'_, f64>, shrinkage: f64, what: &'static str) -> Result<Llt<f64>, ClosedFormError> {
    let dim = covariance.nrows();
    let mean_variance = (0..dim).map(|at| covariance[(at, at)]).sum::<f64>() / dim.max(1) as f64;
    let shrunk = Mat::from_fn(dim, dim, |row, column| {
        let diagonal = if row == column { shrinkage * mean_variance } else { 0.0 };
        (1.0 - shrinkage) * covariance[(row, column)] + diagonal
    });
    Llt::new(shrunk.as_ref(), Side::Lower).map_err(|_| ClosedFormError::Singular(what))
}

#[cfg(test)]
mod tests;
