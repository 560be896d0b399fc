//! Benchmark of ranking.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::{SEED, open, random_values};
use crate::config::MachineConfig;
use crate::pipeline::device::MemoryNeeds;
use crate::pipeline::error::PipelineError;
use crate::train::HeadState;
use crate::types::Precision;

/// Rows ranked in one call, the same number as in a chunk of a run.
const RANKED_ROWS: usize = 2048;

/// Result of the benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct RankReport {
    /// The device.
    pub device: String,
    /// Number of rows.
    pub rows: usize,
    /// Seconds without the first call, which includes compilation and auto-tuning.
    pub seconds: f64,
    /// Rows a second.
    pub rows_per_s: f64,
}

/// Ranks the classes of a new classifier for random rows.
///
/// # Errors
/// When the device cannot be used.
pub async fn rank(
    classes: usize,
    dim: usize,
    rows: usize,
    top_k: usize,
    machine: &MachineConfig,
) -> Result<RankReport, PipelineError> {
    let (device, chosen) = open(machine, MemoryNeeds::for_head(Precision::F32), 0).await?;
    let scorer = device.load_scorer(Arc::new(HeadState::init(classes, dim, SEED))).await?;
    let chunk = rows.min(RANKED_ROWS);
    let values = random_values(chunk * dim);
    let call = |count: usize| scorer.top_k(values[..count * dim].to_vec(), count, top_k);
    call(chunk).await?;
    let started = Instant::now();
    let mut left = rows;
    while left > 0 {
        let count = left.min(chunk);
        call(count).await?;
        left -= count;
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(RankReport { device: chosen.to_string(), rows, seconds, rows_per_s: rows as f64 / seconds })
}
