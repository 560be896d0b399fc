//! Benchmark of a head in closed form.

use std::time::Instant;

use serde::Serialize;

use super::random_values;
use crate::pipeline::device::model_error;
use crate::pipeline::error::PipelineError;
use crate::pipeline::report::peak_memory_bytes;
use crate::train::closed_form::{PairMoments, choose_projection};
use crate::train::text::centre_and_normalise;
use crate::types::HeadMethod;

/// Distinct random images. They are added again and again, since the memory of a fit depends on their number only.
const DISTINCT_ROWS: usize = 4096;

/// Settings of the benchmark.
#[derive(Debug, Clone, Copy)]
pub struct FitBench {
    /// Method: `cca` or `ridge`.
    pub method: HeadMethod,
    /// Images.
    pub rows: usize,
    /// Values per feature.
    pub dim: usize,
    /// Values per vector of a caption.
    pub text_dim: usize,
}

/// Result of the benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct FitReport {
    /// Images.
    pub rows: usize,
    /// Values per feature.
    pub dim: usize,
    /// Images a second that are added to the covariances.
    pub rows_per_s: f64,
    /// Seconds of solving for the head.
    pub solve_s: f64,
    /// Largest resident memory of the process, in bytes.
    pub peak_memory_bytes: Option<u64>,
}

/// Adds random images to the covariances, and solves for a head once. Blocks the thread.
///
/// # Errors
/// When the method is not one of closed form.
pub fn fit(bench: FitBench) -> Result<FitReport, PipelineError> {
    let FitBench { method, rows, dim, text_dim } = bench;
    if !matches!(method, HeadMethod::Cca | HeadMethod::Ridge) {
        return Err(super::refuse("--method", format!("`{method}` has no closed form: name `cca` or `ridge`")));
    }
    let distinct = rows.min(DISTINCT_ROWS);
    let features = random_values(distinct * dim);
    let mut captions = random_values(distinct * text_dim);
    centre_and_normalise(&mut captions, &vec![0.0; text_dim]);
    let mut moments = PairMoments::new(dim, text_dim);
    let started = Instant::now();
    for row in 0..rows {
        let place = row % distinct;
        let caption = &captions[place * text_dim..(place + 1) * text_dim];
        moments.add(&features[place * dim..(place + 1) * dim], caption, 1.0);
    }
    let mut covariances = moments.finish().map_err(model_error)?;
    let rows_per_s = rows as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    covariances.standardise();
    choose_projection(method, &covariances, &vec![0.0; text_dim], None).map_err(model_error)?;
    let solve_s = started.elapsed().as_secs_f64();
    Ok(FitReport { rows, dim, rows_per_s, solve_s, peak_memory_bytes: peak_memory_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_is_measured_and_other_methods_are_refused() {
        let bench = FitBench { method: HeadMethod::Cca, rows: 40, dim: 6, text_dim: 3 };
        let report = fit(bench).unwrap();
        assert!(report.rows_per_s > 0.0 && report.solve_s > 0.0 && report.peak_memory_bytes.is_some(), "{report:?}");
        assert!(fit(FitBench { method: HeadMethod::Ridge, ..bench }).is_ok());
        let error = fit(FitBench { method: HeadMethod::Sgd, ..bench }).unwrap_err().to_string();
        assert!(error.contains("`sgd` has no closed form"), "{error}");
    }
}
