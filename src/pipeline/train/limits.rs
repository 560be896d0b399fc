//! Memory and disk of training: the place of the features, and refusals before any work.

use super::TrainJob;
use super::feature_store::{FeaturePlacement, FeatureStore, resident_bytes};
use super::head;
use super::inventory::Inventory;
use crate::config::{ConfigError, HeadConfig, Problem, RunConfig, TrainConfig};
use crate::objects::Store;
use crate::pipeline::captions::Encoder;
use crate::pipeline::context::disk_problem;
use crate::pipeline::error::PipelineError;
use crate::pipeline::resolve::FeatureShape;
use crate::train::{HeadSize, order};
use crate::types::TargetKind;

/// GPU memory that resident features leave free in addition to the heads, for temporaries, kernels and auto-tuning.
const DEVICE_RESERVE_BYTES: u64 = 6 << 30;
/// Upper bound on the values of a tensor: kernels index them with 32 bits.
const MAX_DEVICE_VALUES: u64 = 1 << 31;

/// Returns the problem of scratch disk that is too small for training from a remote run directory.
pub(crate) fn remote_disk_problem(
    config: &RunConfig,
    classes: u64,
    dim: usize,
    encoder: Option<&Encoder>,
) -> Option<Problem> {
    let (Some(settings), true) = (config.train(), Store::is_remote(config.run_dir())) else { return None };
    let checkpoint = match (config.head(), encoder) {
        (HeadConfig::Text { hidden, .. }, Some(encoder)) => {
            head::projection_checkpoint_bytes(dim as u64, u64::from(*hidden), encoder.checkpoint.dim() as u64)
        }
        _ => head_size(config, settings, classes, dim).weights().saturating_mul(8),
    };
    let window = 2 * settings.shuffle_rows * (4 * dim as u64 + 1024);
    let what = "a checkpoint and the features on their way from the run directory";
    disk_problem(config, checkpoint.saturating_add(window), what)
}

/// Returns the size of the classifiers of a configuration.
pub(crate) fn head_size(config: &RunConfig, settings: &TrainConfig, classes: u64, dim: usize) -> HeadSize {
    HeadSize {
        classes,
        dim: dim as u64,
        heads: settings.trials.len() as u64,
        batch_rows: u64::from(settings.batch_size),
        validates: !config.validation_split().is_empty(),
    }
}

/// Refuses a `limits.memory` that has no room for the largest window, beside what stays in memory for the whole training.
pub(super) fn require_window_memory(
    job: &TrainJob,
    store: &FeatureStore,
    inventory: &Inventory,
    placement: FeaturePlacement,
) -> Result<(), PipelineError> {
    if placement != FeaturePlacement::Files {
        return Ok(());
    }
    let (seed, rows) = (job.split.seed, job.settings.shuffle_rows);
    let windows = |epoch| order::plan_epoch(inventory.chunk_samples(epoch), seed, epoch, rows);
    let of_epoch = |epoch| windows(epoch).iter().map(|window| store.window_bytes(window)).max();
    let window = (0..job.settings.epochs).filter_map(of_epoch).max().unwrap_or(0);
    let limit = job.ctx.config.limits().memory;
    let left = limit.0 - limit.0 / head::HELD_OUT_SHARE;
    if window.saturating_add(job.ctx.budget.in_flight_bytes()) <= left {
        return Ok(());
    }
    Err(ConfigError(vec![refuse_window(&job.ctx.config, &job.settings, window)]).into())
}

/// Returns the problem of a `limits.memory` that has no room for a window of `bytes` bytes.
fn refuse_window(config: &RunConfig, settings: &TrainConfig, bytes: u64) -> Problem {
    let (limit, rows) = (config.limits().memory, settings.shuffle_rows);
    let what = format!(
        "`{limit}` has no room for the {} of features that are shuffled together: raise it, or lower `train.shuffle_rows` \
         (`{rows}`)",
        bytesize::ByteSize(bytes)
    );
    Problem::new("limits.memory", what)
}

/// Returns the problem of windows that will not fit `limits.memory`, as far as the labels tell before there are features:
/// `pairs` labels of `images` images. Features that fit half of it need no windows.
pub(crate) fn window_problem(config: &RunConfig, images: u64, pairs: u64, shape: FeatureShape) -> Option<Problem> {
    let settings = config.train()?;
    let views = u64::from(settings.views.max(1));
    let bytes = |images: u64| resident_bytes(images.saturating_mul(views), 0, shape.dim, shape.precision);
    let limit = config.limits().memory.0;
    let samples_per_image = match settings.targets {
        TargetKind::Pairs => pairs as f64 / images.max(1) as f64,
        TargetKind::Soft => 1.0,
    };
    let window = bytes(images.min((settings.shuffle_rows as f64 / samples_per_image.max(1.0)) as u64));
    (bytes(images) > limit / 2 && window > limit).then(|| refuse_window(config, settings, window))
}

/// Chooses where features are stored, by the memory of device and host. `head_bytes` is the GPU memory that the heads
/// take.
pub(super) fn choose_placement(job: &TrainJob, head_bytes: u64) -> FeaturePlacement {
    let (rows, FeatureShape { dim, precision }) = (job.feature_rows(), job.shape);
    let labels = job.features.entries().values().map(|entry| entry.labels).sum::<u64>() * job.views();
    let bytes = resident_bytes(rows, labels, dim, precision);
    let fits_device = job.device.free_bytes.is_some_and(|free| bytes + head_bytes + DEVICE_RESERVE_BYTES <= free)
        && rows.saturating_mul(dim as u64) <= MAX_DEVICE_VALUES;
    let (mib, memory_bytes) = (bytes >> 20, job.ctx.config.limits().memory.0);
    if fits_device {
        tracing::info!("features stay in device memory: {mib} MiB");
        FeaturePlacement::Device
    } else if bytes <= memory_bytes / 2 {
        tracing::info!("features stay in memory: {mib} MiB");
        FeaturePlacement::Memory
    } else {
        let limit = memory_bytes >> 20;
        tracing::info!(
            "features are read from their files in each epoch: {mib} MiB are more than half of `limits.memory`, {limit} MiB"
        );
        FeaturePlacement::Files
    }
}
