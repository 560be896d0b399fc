//! Benchmark of the backbone's forward pass.

use std::borrow::BorrowMut as _;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use tokio::task::JoinHandle;

use super::{open, random_bytes, read_file, require_replaceable_file, write_file};
use crate::config::MachineConfig;
use crate::model::{Checkpoint, ExtractOptions};
use crate::pipeline::device::{LoadedBackbone, MemoryNeeds, model_error};
use crate::pipeline::error::PipelineError;
use crate::types::{Pool, Precision};

/// Settings of the benchmark.
#[derive(Debug, Clone)]
pub struct ForwardBench {
    /// Directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// Number format of the computation.
    pub precision: Precision,
    /// Tokens of the hidden state that make the feature.
    pub pool: Pool,
    /// Blocks whose outputs become the feature.
    pub layers: Vec<i32>,
    /// Side of the images in pixels. Default: that of the checkpoint.
    pub size_px: Option<u32>,
    /// Images in a batch; 0 selects the size automatically.
    pub batch_size: u32,
    /// Number of random images.
    pub rows: usize,
    /// File with images to use instead: raw u8 `[rows, size, size, 3]`.
    pub pixels: Option<PathBuf>,
    /// File for the features: raw little-endian f32 `[rows, dim]`, rounded to the stored precision.
    pub features: Option<PathBuf>,
    /// Number of timed passes.
    pub passes: u32,
}

/// Result of the benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct ForwardReport {
    /// The device.
    pub device: String,
    /// True if the device is the CPU.
    pub on_cpu: bool,
    /// Format of the features, and of the computation if the device supports it.
    pub precision: &'static str,
    /// Images in a batch.
    pub batch_size: usize,
    /// Images in a pass.
    pub rows: usize,
    /// Dimension of a feature.
    pub feature_dim: usize,
    /// Implementation of attention: `plain`, `tuned`, `products`, `flash` of this program's own kernels, or `direct` of its path
    /// for CPUs.
    pub attention: &'static str,
    /// Kernels: `burn`; `direct`, this program's path for CPUs; or the instruction of its own products on a GPU, `mma.sync`
    /// or `wgmma`.
    pub kernels: &'static str,
    /// Seconds until the first batch of features: device check, loading, compilation and auto-tuning.
    pub first_features_s: f64,
    /// Seconds of the timed passes.
    pub seconds: f64,
    /// Images a second in the timed passes.
    pub images_per_s: f64,
    /// Floating-point operations in the forward pass of an image, without a head.
    pub flop_per_image: u64,
    /// Floating-point operations a second, in 10¹².
    pub tflop_per_s: f64,
}

/// Runs a backbone over images in memory.
///
/// # Errors
/// When a file, the checkpoint or the device cannot be used, or a feature is not a finite number.
pub async fn forward(bench: ForwardBench, machine: &MachineConfig) -> Result<ForwardReport, PipelineError> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&bench.checkpoint).map_err(model_error)?;
    let size_px = bench.size_px.unwrap_or_else(|| checkpoint.image_size_px());
    let options = ExtractOptions { size_px, layers: bench.layers.clone(), pool: bench.pool };
    let flop_per_image = checkpoint.flop_per_image(size_px, &bench.layers, bench.pool).map_err(model_error)?;
    let parts = checkpoint.feature_parts(&options.layers, options.pool).map_err(model_error)?;
    let feature_dim: usize = parts.iter().sum();
    let image = 3 * size_px as usize * size_px as usize;
    let pixels = match &bench.pixels {
        Some(path) => {
            let pixels = read_file(path)?;
            if image == 0 || pixels.is_empty() || pixels.len() % image != 0 {
                let (path, found) = (path.display(), pixels.len());
                return Err(PipelineError::Input(format!(
                    "`{path}` has {found} bytes, which is not a whole number of images of {size_px} × {size_px} × 3"
                )));
            }
            pixels
        }
        None => random_bytes(bench.rows * image),
    };
    let rows = pixels.len() / image;
    if let Some(path) = &bench.features {
        require_replaceable_file("--features", path, 4 * feature_dim as u64)?;
    }
    let needs = MemoryNeeds {
        parameters: checkpoint.parameters(),
        activation_bytes: checkpoint.activation_bytes(size_px),
        pixel_bytes: image as u64,
        host_bytes: machine.limits.memory.0,
        precision: bench.precision,
        own_kernel_bytes: options.own_kernel_bytes(&checkpoint),
    };
    let (device, chosen) = open(machine, needs, bench.batch_size).await?;
    let backbone = device.load_backbone(checkpoint, options).await?;
    let mut first_features_s = 0.0;
    let features = pass(&backbone, &pixels, image, &mut || {
        if first_features_s == 0.0 {
            first_features_s = started.elapsed().as_secs_f64();
        }
    })
    .await?;
    if let Some(bad) = features.iter().position(|value| !value.is_finite()) {
        let (image, path) = (bad / feature_dim.max(1), bench.checkpoint.display());
        return Err(PipelineError::Model(format!(
            "the feature of image {image}, from 0, is not a finite number: the weights of `{path}` are unusable"
        )));
    }
    if let Some(path) = &bench.features {
        let stored = features.iter().map(|value| match bench.precision {
            Precision::Bf16 => half::bf16::from_f32(*value).to_f32(),
            Precision::F32 => *value,
        });
        write_file(path, &stored.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())?;
    }
    let timed = Instant::now();
    for _ in 0..bench.passes {
        pass(&backbone, &pixels, image, &mut || ()).await?;
    }
    let seconds = timed.elapsed().as_secs_f64();
    let images_per_s = f64::from(bench.passes) * rows as f64 / seconds;
    Ok(ForwardReport {
        device: chosen.to_string(),
        on_cpu: chosen.gpu.is_none(),
        precision: bench.precision.as_str(),
        batch_size: device.batch_rows,
        rows,
        feature_dim,
        attention: backbone.attention,
        kernels: backbone.kernels,
        first_features_s,
        seconds,
        images_per_s,
        flop_per_image,
        tflop_per_s: images_per_s * flop_per_image as f64 / 1e12,
    })
}

/// Computes all features, with as many batches in flight as in a run. Calls `arrived` after each batch.
async fn pass(
    backbone: &LoadedBackbone,
    pixels: &[u8],
    image: usize,
    arrived: &mut impl FnMut(),
) -> Result<Vec<f32>, PipelineError> {
    let device = backbone.device();
    let mut features = Vec::new();
    let mut waiting: VecDeque<JoinHandle<Result<Vec<f32>, PipelineError>>> = VecDeque::new();
    for batch in pixels.chunks(device.batch_rows * image) {
        if waiting.len() == device.in_flight
            && let Some(oldest) = waiting.pop_front()
        {
            features.extend(oldest.await??);
            arrived();
        }
        let (mut pixels, rows) = (device.buffers.acquire_pooled(), batch.len() / image);
        let buffer: &mut Vec<u8> = pixels.borrow_mut();
        buffer.clear();
        buffer.extend_from_slice(batch);
        let pending = backbone.submit(pixels, rows).await?;
        waiting.push_back(tokio::task::spawn_blocking(move || pending.wait()));
    }
    for batch in waiting {
        features.extend(batch.await??);
        arrived();
    }
    Ok(features)
}
