//! A process that works on a part of the shards, beside processes that work on the others.
//!
//! 1. The process that gets the run's lock records the settings in `run.toml` and builds the catalog. The others wait.
//! 2. Each process streams the shards of its part, and embeds its share of the captions for a text head.
//! 3. A process that finds everything complete takes the run's lock, trains and predicts. The others end.

use std::time::Duration;

use crate::chunk::journal::{Journal, Layout};
use crate::pipeline::catalog;
use crate::pipeline::claims;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::execution::{Execution, Prepared};
use crate::pipeline::manifest::Manifest;
use crate::pipeline::observe::report::{self, Report};
use crate::pipeline::plan::Plan;
use crate::pipeline::records::Records;
use crate::pipeline::resolve::ResolvedModel;
use crate::run_dir::Lock;
use crate::types::Part;

/// Time between two attempts at a lock that another part holds.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A process that works on a part, after its inputs, models and settings were checked.
pub(crate) struct PartRun {
    pub(crate) ctx: RunContext,
    pub(crate) part: Part,
    /// Start of the process.
    pub(crate) started: String,
    pub(crate) prepared: Prepared,
}

impl PartRun {
    /// Works on the part. The process that completes the last part goes on with training and prediction, unless `part_only`
    /// is set.
    ///
    /// # Errors
    /// When the part, training or prediction ends early. Everything done so far is kept, and the same call resumes.
    pub(crate) async fn run(self, part_only: bool) -> Result<Report, PipelineError> {
        let Self { ctx, part, started, mut prepared } = self;
        ctx.dir.sweep(&claims::part_folder(part), |_| true)?;
        let mut records = Records::start(&ctx, prepared.model.report(&ctx.config), &started, report::FILE)?;
        let outcome = complete_part(&mut records, part, &mut prepared).await;
        let (outcome, all_embedded) = match outcome {
            Ok(all_embedded) => (Ok(()), all_embedded),
            Err(error) => (Err(error), false),
        };
        let report = records.finish(outcome).await?;
        if part_only || !all_embedded || !is_streamed(&ctx, &prepared.plan)? {
            return Ok(report);
        }
        let dir = ctx.dir.clone();
        let claimed = tokio::task::spawn_blocking(move || claims::try_claim(&dir, "training and prediction")).await??;
        let Ok(_lock) = claimed else { return Ok(report) };
        tracing::info!("all parts are complete: part {part} finishes the run");
        let ctx = RunContext { part: None, ..ctx };
        ctx.dir.sweep(".", |_| true)?;
        Box::pin(prepared.run(&ctx, &started)).await
    }
}

/// Sets the run up, streams the shards of the part and embeds its captions. Returns whether the captions of all parts are
/// embedded.
async fn complete_part(records: &mut Records, part: Part, prepared: &mut Prepared) -> Result<bool, PipelineError> {
    let Records { ctx, report, .. } = records;
    let Prepared { model, plan, manifest } = prepared;
    prepare(ctx, model, manifest, plan, report).await?;
    Execution { ctx, model, manifest }.run_part(plan, part, report).await
}

/// Records the settings and builds the catalog, or waits until another part has done so.
async fn prepare(
    ctx: &RunContext,
    model: &ResolvedModel,
    manifest: &mut Manifest,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), PipelineError> {
    let lock = wait_for_setup(ctx, || {
        let recorded = manifest.compare()?;
        let built = plan.catalog.as_ref().map(|input| catalog::is_complete(&ctx.dir, &input.generation));
        Ok(!recorded || !built.transpose()?.unwrap_or(true))
    })
    .await?;
    if lock.is_none() {
        return Ok(());
    }
    // Another part may have recorded its settings since.
    if !manifest.compare()? {
        manifest.accept(&ctx.config, false)?;
    }
    for folder in [".", "journal", "catalog"] {
        ctx.dir.sweep(folder, |_| true)?;
    }
    Execution { ctx, model, manifest }.run_catalog(plan.catalog.clone(), report).await?;
    Ok(())
}

/// Waits for the run's lock while `is_needed` holds; `None` once another part has done the work.
async fn wait_for_setup(
    ctx: &RunContext,
    mut is_needed: impl FnMut() -> Result<bool, PipelineError>,
) -> Result<Option<Lock>, PipelineError> {
    let mut told = false;
    while is_needed()? {
        let dir = ctx.dir.clone();
        let claimed = tokio::task::spawn_blocking(move || claims::try_claim(&dir, "settings and catalog")).await??;
        match claimed {
            Ok(lock) => return Ok(Some(lock)),
            Err(holder) if !told => tracing::info!("waiting for the catalog, which {holder} prepares"),
            Err(_) => {}
        }
        told = true;
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => {}
            () = ctx.shutdown.raised() => return Err(ctx.stopped()),
        }
    }
    Ok(None)
}

/// Returns whether the shards of all parts are complete.
fn is_streamed(ctx: &RunContext, plan: &Plan) -> Result<bool, PipelineError> {
    let Some(images) = &plan.images else { return Ok(true) };
    let kind = if ctx.config.model().is_some() { "features" } else { "chunks" };
    let journal = Journal::read(ctx.dir.clone(), Layout::train(kind), Some(&images.generation))?;
    Ok(journal.pending(images.shards.len() as u32).is_empty())
}
