//! The device's parts by themselves, on input that is drawn or given: what they give, and how fast.
//!
//! They run through the same desk as a run, so that what is measured and compared is what runs. Time is taken after a
//! first pass, or the first steps, which compile kernels and tune them; that is reported apart.

use std::borrow::BorrowMut as _;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::PipelineError;
use super::feature_store;
use super::report::peak_memory_bytes;
use super::resolve::pool_of;
use super::worker::{self, Device, Load, Start, damaged, model_error};
use crate::config::raw::RawMachine;
use crate::config::value::{Pool, Precision};
use crate::device::SelectedDevice;
use crate::model::{Checkpoint, ExtractOptions};
use crate::objects::StoreError;
use crate::train::{HeadState, Progress, Sgd, Targets, checkpoint};

/// Seed of what is drawn.
const SEED: u64 = 7;
/// First steps, or fewer where there are not many, that are not timed.
const FIRST_STEPS: u64 = 10;
/// Rows that are ranked in one call, as a chunk of a run has them.
const RANKED_ROWS: usize = 2048;

/// What to measure of a forward pass.
#[derive(Debug, Clone)]
pub struct ForwardBench {
    /// Directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// Format to compute in.
    pub precision: Precision,
    /// Tokens that make the feature.
    pub pool: Pool,
    /// Block whose output is the feature.
    pub layer: i32,
    /// Side of the images; the checkpoint's, if absent.
    pub size_px: Option<u32>,
    /// Images in a batch; 0: chosen.
    pub batch_size: u32,
    /// Images; drawn.
    pub rows: usize,
    /// Images instead: raw u8 `[rows, size, size, 3]`.
    pub pixels: Option<PathBuf>,
    /// Where the features go: raw little-endian f32 `[rows, dim]`, rounded as they are stored.
    pub features: Option<PathBuf>,
    /// Passes that are timed.
    pub passes: u32,
}

/// What a forward pass gave.
#[derive(Debug, Clone, Serialize)]
pub struct ForwardReport {
    /// The device.
    pub device: String,
    /// Format of features, and of the computation where the device computes in it.
    pub precision: &'static str,
    /// Images in a batch.
    pub batch_size: usize,
    /// Images in a pass.
    pub rows: usize,
    /// Values of a feature.
    pub feature_dim: usize,
    /// How attention is computed: `plain`, `fused` or `products`.
    pub attention: &'static str,
    /// Seconds from the start to the first batch's features: checking the device, loading, compiling and tuning.
    pub first_features_s: f64,
    /// Seconds of the timed passes.
    pub seconds: f64,
    /// Images a second in the timed passes.
    pub images_per_s: f64,
    /// Operations of an image's forward pass.
    pub flop_per_image: u64,
    /// Operations a second, in 10¹².
    pub tflop_per_s: f64,
}

/// Runs a backbone over images that lie in memory.
///
/// # Errors
/// When a file, the checkpoint or the device cannot be used.
pub async fn forward(bench: ForwardBench, machine: &RawMachine) -> Result<ForwardReport, PipelineError> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&bench.checkpoint).map_err(model_error)?;
    let size_px = bench.size_px.unwrap_or_else(|| checkpoint.image_size_px());
    let options = ExtractOptions { size_px, layer: bench.layer, pool: pool_of(bench.pool) };
    let flop_per_image = checkpoint.flop_per_image(size_px, bench.layer).map_err(model_error)?;
    let feature_dim = checkpoint.feature_dim(options.pool);
    let image = 3 * size_px as usize * size_px as usize;
    let pixels = match &bench.pixels {
        Some(path) => {
            let pixels = read(path)?;
            if image == 0 || pixels.is_empty() || pixels.len() % image != 0 {
                let (path, found) = (path.display(), pixels.len());
                return Err(PipelineError::Input(format!(
                    "`{path}` has {found} bytes, which are no images of {size_px} × {size_px} × 3"
                )));
            }
            pixels
        }
        None => noise(bench.rows * image),
    };
    let rows = pixels.len() / image;
    let load = Load {
        parameters: checkpoint.parameters(),
        activation_bytes: checkpoint.activation_bytes(size_px),
        pixel_bytes: image as u64,
        host_bytes: machine.limits.memory.0,
        precision: bench.precision,
    };
    let (device, chosen) = open(machine, load, bench.batch_size).await?;
    let attention = device.call(move |worker| worker.load_backbone(&checkpoint, &options)).await?;
    let mut first_features_s = 0.0;
    let features = pass(&device, &pixels, image, &mut || {
        if first_features_s == 0.0 {
            first_features_s = started.elapsed().as_secs_f64();
        }
    })
    .await?;
    if let Some(path) = &bench.features {
        let stored = features.iter().map(|value| match bench.precision {
            Precision::Bf16 => half::bf16::from_f32(*value).to_f32(),
            Precision::F32 => *value,
        });
        write(path, &stored.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())?;
    }
    let timed = Instant::now();
    for _ in 0..bench.passes {
        pass(&device, &pixels, image, &mut || ()).await?;
    }
    let seconds = timed.elapsed().as_secs_f64();
    let images_per_s = f64::from(bench.passes) * rows as f64 / seconds;
    Ok(ForwardReport {
        device: chosen.to_string(),
        precision: bench.precision.as_str(),
        batch_size: device.batch_rows,
        rows,
        feature_dim,
        attention: attention.as_str(),
        first_features_s,
        seconds,
        images_per_s,
        flop_per_image,
        tflop_per_s: images_per_s * flop_per_image as f64 / 1e12,
    })
}

/// All features, with as many batches on their way as a run has; `arrived` is called for each batch.
async fn pass(
    device: &Device,
    pixels: &[u8],
    image: usize,
    arrived: &mut impl FnMut(),
) -> Result<Vec<f32>, PipelineError> {
    let mut features = Vec::new();
    let mut waiting: VecDeque<JoinHandle<Result<Vec<f32>, PipelineError>>> = VecDeque::new();
    for batch in pixels.chunks(device.batch_rows * image) {
        if waiting.len() == device.in_flight
            && let Some(oldest) = waiting.pop_front()
        {
            features.extend(oldest.await??);
            arrived();
        }
        let (mut lent, rows) = (device.buffers.acquire_pooled(), batch.len() / image);
        let buffer: &mut Vec<u8> = lent.borrow_mut();
        buffer.clear();
        buffer.extend_from_slice(batch);
        let pending = device.call(move |worker| worker.submit(lent, rows)).await?;
        waiting.push_back(tokio::task::spawn_blocking(move || pending.wait()));
    }
    for batch in waiting {
        features.extend(batch.await??);
        arrived();
    }
    Ok(features)
}

/// What to measure of a head's training.
#[derive(Debug, Clone)]
pub struct HeadBench {
    /// Classes.
    pub classes: usize,
    /// Values of a feature.
    pub dim: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// Steps.
    pub steps: u64,
    /// Type of the matrix products.
    pub precision: Precision,
    /// Learning rate, constant.
    pub learning_rate: f64,
    /// Share of the velocity that is kept.
    pub momentum: f64,
    /// Share of the weights that is added to the gradient.
    pub weight_decay: f64,
    /// Seed of a fresh head.
    pub seed: u64,
    /// Raw little-endian f32 `[n, dim]` and u32 `[n]`; drawn, if absent. Step i takes the rows from i · `batch_size` on, modulo n.
    pub data: Option<(PathBuf, PathBuf)>,
    /// Checkpoint to go on from.
    pub resume: Option<PathBuf>,
    /// Where the checkpoint after the last step goes.
    pub save: Option<PathBuf>,
    /// Steps between two losses.
    pub log_every: u64,
}

/// What training gave.
#[derive(Debug, Clone, Serialize)]
pub struct HeadReport {
    /// The device.
    pub device: String,
    /// Type of the matrix products.
    pub precision: &'static str,
    /// Steps made.
    pub steps: u64,
    /// Seconds of the first step, which compiles and tunes.
    pub first_step_s: f64,
    /// Seconds of the steps behind the first ones.
    pub seconds: f64,
    /// Rows a second in them.
    pub rows_per_s: f64,
    /// Most memory that the process had, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Step, and the mean loss since the entry before, in nats.
    pub losses: Vec<(u64, f64)>,
}

/// Trains a head on rows that lie in memory.
///
/// # Errors
/// When a file or the device cannot be used.
pub async fn head(bench: HeadBench, machine: &RawMachine) -> Result<HeadReport, PipelineError> {
    let (device, chosen) = open(machine, Load::of_head(bench.precision), 0).await?;
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
    let rows = Rows::of(&bench)?;
    let sgd = Sgd { momentum: bench.momentum, weight_decay: bench.weight_decay, clip_norm: 0.0, label_smoothing: 0.0 };
    let (step, loss) = (progress.step, (progress.loss_sum, progress.loss_count));
    let start = Start { state, sgd, loss };
    device.call(move |worker| worker.load_trainers(vec![start], step)).await?;
    let (mut losses, mut first_step_s) = (Vec::new(), 0.0);
    let untimed = FIRST_STEPS.min(bench.steps / 2);
    let mut timed = Instant::now();
    let batch = bench.batch_size;
    for done in 1..=bench.steps {
        let (features, targets) = rows.batch(progress.step, batch);
        let rate = bench.learning_rate;
        // The losses of the first steps are read, so that the clock starts on an idle device.
        let read = done == 1 || done == untimed || done == bench.steps;
        let read = read || progress.step.wrapping_add(1).is_multiple_of(bench.log_every.max(1));
        let loss = device.call(move |worker| worker.train(&features, &targets, batch, &[rate], read)).await?;
        progress.step += 1;
        progress.position += batch as u64;
        if let Some((sum, count)) = loss.and_then(|losses| losses.first().copied()) {
            losses.push((progress.step, sum / count.max(1) as f64));
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
        let (dir, progress) = (dir.clone(), progress.clone());
        device.call(move |worker| worker.save(0, &dir, progress)).await?.map_err(damaged)?;
    }
    Ok(HeadReport {
        device: chosen.to_string(),
        precision: bench.precision.as_str(),
        steps: bench.steps,
        first_step_s,
        seconds,
        rows_per_s: (bench.steps - untimed) as f64 * batch as f64 / seconds,
        peak_memory_bytes: peak_memory_bytes(),
        losses,
    })
}

/// Rows to train on.
struct Rows {
    features: Vec<f32>,
    labels: Vec<u32>,
    dim: usize,
}

impl Rows {
    fn of(bench: &HeadBench) -> Result<Self, PipelineError> {
        let (dim, classes) = (bench.dim, bench.classes as u32);
        let Some((features, labels)) = &bench.data else {
            // Enough of them that a step seldom meets the rows of one before it.
            let count = 16 * bench.batch_size;
            let words = |words: Vec<u8>| words.as_chunks::<4>().0.iter().copied().map(u32::from_le_bytes).collect();
            let labels: Vec<u32> = words(noise(4 * count));
            let labels = labels.into_iter().map(|word| word % classes.max(1)).collect();
            return Ok(Self { features: uniform(count * dim), labels, dim });
        };
        let floats = |bytes: &[u8]| bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
        let integers = |bytes: &[u8]| bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
        let rows = Self { features: floats(&read(features)?), labels: integers(&read(labels)?), dim };
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

    fn batch(&self, step: u64, rows: usize) -> (feature_store::Rows, Targets) {
        let first = (step % (self.labels.len() / rows) as u64) as usize * rows;
        let values = self.features[first * self.dim..(first + rows) * self.dim].to_vec();
        let features = feature_store::Rows::Host { values, dim: self.dim };
        (features, Targets::single(&self.labels[first..first + rows]))
    }
}

/// What ranking gave.
#[derive(Debug, Clone, Serialize)]
pub struct RankReport {
    /// The device.
    pub device: String,
    /// Rows ranked.
    pub rows: usize,
    /// Seconds, without the first call, which compiles and tunes.
    pub seconds: f64,
    /// Rows a second.
    pub rows_per_s: f64,
}

/// Ranks drawn rows against a fresh head.
///
/// # Errors
/// When the device cannot be used.
pub async fn rank(
    classes: usize,
    dim: usize,
    rows: usize,
    top_k: usize,
    machine: &RawMachine,
) -> Result<RankReport, PipelineError> {
    let (device, chosen) = open(machine, Load::of_head(Precision::F32), 0).await?;
    device.call(move |worker| worker.load_scorer(&HeadState::init(classes, dim, SEED))).await?;
    let chunk = rows.min(RANKED_ROWS);
    let values = uniform(chunk * dim);
    let call = |count: usize| {
        let values = values[..count * dim].to_vec();
        device.call(move |worker| worker.top_k(&values, count, top_k))
    };
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

async fn open(machine: &RawMachine, load: Load, batch_size: u32) -> Result<(Device, SelectedDevice), PipelineError> {
    let chosen = worker::choose(&machine.device).await?;
    let scratch = if machine.scratch.dir.is_empty() {
        std::env::temp_dir().join("wikicap-bench")
    } else {
        PathBuf::from(&machine.scratch.dir)
    };
    let batch_size = if batch_size == 0 { machine.device.batch_size } else { batch_size };
    Ok((worker::open(&chosen, load, batch_size, &scratch).await?, chosen))
}

fn read(path: &Path) -> Result<Vec<u8>, PipelineError> {
    std::fs::read(path).map_err(|error| PipelineError::Input(format!("`{}` cannot be read: {error}", path.display())))
}

fn write(path: &Path, content: &[u8]) -> Result<(), PipelineError> {
    Ok(std::fs::write(path, content).map_err(|error| StoreError::io(path, "written", error))?)
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    ChaCha8Rng::seed_from_u64(SEED).fill_bytes(&mut noise);
    noise
}

/// Values in [-1, 1).
fn uniform(count: usize) -> Vec<f32> {
    let words = noise(4 * count);
    words.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word) as f32 / 2.0f32.powi(31)).collect()
}
