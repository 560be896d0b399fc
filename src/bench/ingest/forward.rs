//! Rate of the pipeline's model on this machine's device.

use std::path::Path;

use super::IngestReport;
use crate::bench::{ForwardBench, forward};
use crate::config::RunConfig;
use crate::decode::ImageSpec;
use crate::pipeline::error::PipelineError;

/// Random images for a first measurement of the model.
const FEW_FORWARD_IMAGES: usize = 16;
/// Random images for the measurement of a fast device.
const MAX_FORWARD_IMAGES: usize = 2048;

/// Measures the model's forward pass on this machine's device: images per second, and whether the device is the CPU. `None`
/// without a model, or if its checkpoint is not in a local directory.
pub(super) async fn measure_forward(
    config: &RunConfig,
    spec: &ImageSpec,
    report: &mut IngestReport,
) -> Result<Option<(f64, bool)>, PipelineError> {
    let Some(model) = config.model() else { return Ok(None) };
    let checkpoint = Path::new(&model.checkpoint);
    if !checkpoint.is_dir() {
        return Ok(None);
    }
    let mut bench = ForwardBench {
        checkpoint: checkpoint.to_owned(),
        precision: model.precision,
        pool: model.pool,
        layers: model.layers.clone(),
        size_px: Some(spec.geometry.output_px()),
        batch_size: 0,
        rows: FEW_FORWARD_IMAGES,
        pixels: None,
        features: None,
        passes: 1,
    };
    let mut measured = forward(bench.clone(), config.machine()).await?;
    if measured.images_per_s > FEW_FORWARD_IMAGES as f64 {
        // Full batches, for about a second.
        bench.rows = (measured.images_per_s as usize).min(MAX_FORWARD_IMAGES);
        measured = forward(bench, config.machine()).await?;
    }
    report.forward = Some((measured.images_per_s, measured.device));
    Ok(Some((measured.images_per_s, measured.on_cpu)))
}
