//! Benchmark of a classifier's training.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::{open, random_bytes, random_values, read_file, require_replaceable_checkpoint};
use crate::config::MachineConfig;
use crate::pipeline::device::{ClassifierStart, FeatureRows, LossSum, MemoryNeeds, Update, damaged};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::peak_memory_bytes;
use crate::train::{HeadState, Progress, Sgd, Targets, checkpoint};
use crate::types::Precision;

/// Upper bound on the steps before the clock starts. A short benchmark uses half of its steps instead.
const FIRST_STEPS: u64 = 10;

/// Settings of the benchmark.
#[derive(Debug, Clone)]
pub struct HeadBench {
    /// Number of classes.
    pub classes: usize,
    /// Dimension of a feature.
    pub dim: usize,
    /// Rows in a step.
    pub batch_size: usize,
    /// Number of steps.
    pub steps: u64,
    /// Format of the matrix products.
    pub precision: Precision,
    /// Constant learning rate.
    pub learning_rate: f64,
    /// Momentum.
    pub momentum: f64,
    /// L2 penalty added to the gradient.
    pub weight_decay: f64,
    /// Upper bound on the norm of the gradient; 0 for none.
    pub clip_norm: f64,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// Rows whose gradient is computed at once.
    pub micro_batch: usize,
    /// Seed of a new head.
    pub seed: u64,
    /// Files with features and labels: raw little-endian f32 `[n, dim]` and u32 `[n]`. Random if absent. Step i uses
    /// the rows from i · `batch_size` on, modulo n.
    pub data: Option<(PathBuf, PathBuf)>,
    /// Checkpoint to resume from.
    pub resume: Option<PathBuf>,
    /// Folder for the checkpoint after the last step.
    pub save: Option<PathBuf>,
    /// Steps between two loss values.
    pub log_every: u64,
}

/// Result of the benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct HeadReport {
    /// The device.
    pub device: String,
    /// Format of the matrix products.
    pub precision: &'static str,
    /// Kernels that train: `direct` on a CPU, `burn`, or the instruction of the products of this program's own kernels, `mma.sync`
    /// or `wgmma`.
    pub kernels: &'static str,
    /// Number of steps.
    pub steps: u64,
    /// Seconds of the first step, which includes compilation and auto-tuning.
    pub first_step_s: f64,
    /// Seconds of the timed steps.
    pub seconds: f64,
    /// Rows a second in the timed steps.
    pub rows_per_s: f64,
    /// Peak resident memory of the process, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Step, and mean loss in nats since the previous entry.
    pub losses: Vec<(u64, f64)>,
}

/// Trains a classifier on rows in memory.
///
/// # Errors
/// When a file or the device cannot be used.
pub async fn head(bench: HeadBench, machine: &MachineConfig) -> Result<HeadReport, PipelineError> {
    if let Some(dir) = &bench.save {
        require_replaceable_checkpoint("--save", dir)?;
    }
    let (device, chosen) = open(machine, MemoryNeeds::for_head(bench.precision), 0).await?;
    let (state, mut progress) = if let Some(dir) = &bench.resume {
        checkpoint::load(dir).map_err(damaged)?
    } else {
        let progress = Progress { seed: bench.seed, ..Progress::default() };
        (HeadState::init(bench.classes, bench.dim, bench.seed), progress)
    };
    if (state.classes, state.dim) != (bench.classes, bench.dim) {
        return Err(PipelineError::Input(format!(
            "the checkpoint has {} classes × {} values, not {} × {}",
            state.classes, state.dim, bench.classes, bench.dim
        )));
    }
    let rows = BenchRows::load(&bench)?;
    let HeadBench { momentum, weight_decay, clip_norm, label_smoothing, .. } = bench;
    let sgd = Sgd { momentum, weight_decay, clip_norm, label_smoothing };
    let loss = LossSum::from((progress.loss_sum, progress.loss_count));
    let trainers = device.load_classifier_trainers(vec![ClassifierStart { state, sgd, loss }], progress.step).await?;
    let (mut losses, mut first_step_s) = (Vec::new(), 0.0);
    let untimed = FIRST_STEPS.min(bench.steps / 2);
    let mut timed = Instant::now();
    let batch = bench.batch_size;
    for done in 1..=bench.steps {
        let (features, targets) = rows.batch(progress.step, batch);
        // Taking the losses waits for the device: the clock starts and stops on an idle device.
        let waits = done == 1 || done == untimed || done == bench.steps;
        let takes_losses = waits || progress.step.wrapping_add(1).is_multiple_of(bench.log_every.max(1));
        let update = Update { rates: vec![bench.learning_rate], takes_losses };
        let losses_of_step = trainers.step(features, targets, bench.micro_batch, update).await?;
        progress.step += 1;
        progress.position += batch as u64;
        if let Some(LossSum { nats, samples }) = losses_of_step.and_then(|losses| losses.first().copied()) {
            losses.push((progress.step, nats / samples.max(1) as f64));
        }
        if done == 1 {
            first_step_s = timed.elapsed().as_secs_f64();
        }
        if done <= untimed {
            timed = Instant::now();
        }
    }
    let seconds = timed.elapsed().as_secs_f64();
    if let Some(dir) = &bench.save {
        trainers.save(0, dir.clone(), progress.clone()).await?.map_err(damaged)?;
    }
    Ok(HeadReport {
        device: chosen.to_string(),
        precision: bench.precision.as_str(),
        kernels: trainers.kernels,
        steps: bench.steps,
        first_step_s,
        seconds,
        rows_per_s: (bench.steps - untimed) as f64 * batch as f64 / seconds,
        peak_memory_bytes: peak_memory_bytes(),
        losses,
    })
}

/// Rows to train on.
struct BenchRows {
    features: Vec<f32>,
    labels: Vec<u32>,
    dim: usize,
}

impl BenchRows {
    fn load(bench: &HeadBench) -> Result<Self, PipelineError> {
        let (dim, classes) = (bench.dim, bench.classes as u32);
        let Some((features, labels)) = &bench.data else {
            // Enough rows that a step seldom repeats the rows of a recent step.
            let count = 16 * bench.batch_size;
            let words = |words: Vec<u8>| words.as_chunks::<4>().0.iter().copied().map(u32::from_le_bytes).collect();
            let labels: Vec<u32> = words(random_bytes(4 * count));
            let labels = labels.into_iter().map(|word| word % classes.max(1)).collect();
            return Ok(Self { features: random_values(count * dim), labels, dim });
        };
        let floats = |bytes: &[u8]| bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
        let integers = |bytes: &[u8]| bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
        let rows = Self { features: floats(&read_file(features)?), labels: integers(&read_file(labels)?), dim };
        let count = rows.labels.len();
        if count == 0 || !count.is_multiple_of(bench.batch_size) || rows.features.len() != count * dim {
            return Err(PipelineError::Input(format!(
                "`{}` holds {count} labels and `{}` {} values: there must be {dim} values a label, and a multiple of {} labels",
                labels.display(),
                features.display(),
                rows.features.len(),
                bench.batch_size
            )));
        }
        Ok(rows)
    }

    fn batch(&self, step: u64, rows: usize) -> (FeatureRows, Targets) {
        let first = (step % (self.labels.len() / rows) as u64) as usize * rows;
        let values = self.features[first * self.dim..(first + rows) * self.dim].to_vec();
        let features = FeatureRows::Host { values, dim: self.dim };
        (features, Targets::single(&self.labels[first..first + rows]))
    }
}
