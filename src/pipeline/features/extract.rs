//! Extraction: an image stream, the backbone on the device, and the feature chunks that they fill.

use std::sync::Arc;

use super::{Places, Thumbnails};
use crate::chunk::journal::{Journal, Layout};
use crate::config::bytes::chunk_disk_bytes;
use crate::pipeline::PipelineError;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::LoadedBackbone;
use crate::pipeline::features::FeatureShape;
use crate::pipeline::stream::StreamJob;
use crate::run_dir::LocalDirectory;

/// Chunks that an extraction fills.
pub(crate) struct FeatureTarget<'a> {
    /// Name in progress and report, and of the folder on scratch disk.
    pub(crate) name: &'a str,
    pub(crate) layout: Layout,
    pub(crate) shape: FeatureShape,
    /// Images whose thumbnails are stored next to their features.
    pub(crate) thumbnails: Option<Thumbnails>,
}

/// Streams images to feature chunks, or resumes where an earlier process stopped.
///
/// # Errors
/// When an input, the disk or the device fails; [`PipelineError::Stopped`] if the run has to stop.
pub(crate) async fn extract(
    ctx: &RunContext,
    job: StreamJob,
    backbone: &LoadedBackbone,
    target: FeatureTarget<'_>,
) -> Result<Journal, PipelineError> {
    let FeatureTarget { name, layout, shape, thumbnails } = target;
    let scratch = LocalDirectory::create(ctx.scratch_path())?;
    let places = Places {
        run: ctx.dir.clone(),
        layout,
        scratch: LocalDirectory::create(scratch.path(name))?,
        disk_bytes: spool_bytes(ctx, shape, job.spec.geometry.output_px())?,
        thumbnails,
    };
    let rows = Arc::clone(&job.stage_progress);
    let stage_progress = ctx.progress.stage(format!("features ({name})"), "images", 0);
    let journal = super::run(job, ctx.clone(), places, shape, backbone.clone(), Arc::clone(&stage_progress)).await?;
    ctx.events.finished(&rows);
    ctx.events.finished(&stage_progress);
    // The spool is empty. It is removed here because no later process of the run may have reason to clean it.
    scratch.remove(name)?;
    Ok(journal)
}

/// Share of `limits.disk` for the spool: the rest holds the batch log of one chunk's features, and their way to a remote directory.
fn spool_bytes(ctx: &RunContext, shape: FeatureShape, size_px: u32) -> Result<u64, PipelineError> {
    let rows = ctx.config.chunk_images();
    let logged = u64::from(rows) * (4 * shape.dim as u64 + 24);
    let staged = u64::from(rows) * (4 * shape.dim as u64 + 1024) + (1 << 20);
    let reserved = logged + if ctx.dir.is_remote() { staged } else { 0 };
    let least = 2 * chunk_disk_bytes(rows, size_px) + reserved;
    ctx.require_disk(least, "two chunks of pixels and the features of one")?;
    Ok(ctx.config.machine().limits.disk.0 - reserved)
}
