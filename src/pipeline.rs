//! Stages of a run, in their order.
//!
//! [`run`] opens the run directory, plans the stages and executes them one after the other, for all shards or for a part
//! of them. Planning checks every input, model and fingerprint before anything is written or removed. Each stage is a
//! folder with a function `run` over the `RunContext`. A stage resumes after the artefacts in the run directory and
//! returns its part of the [`Report`]. Nothing here prints; progress goes to the [`ProgressRegistry`].
//!
//! | part | does | may name |
//! | --- | --- | --- |
//! | `context`, `error`, `store` | items shared by all stages | – |
//! | `claims`, `records` | locks; events, status and report of a process | – |
//! | `manifest` | `run.toml`: the keys that artefacts depend on; a changed key is refused | – |
//! | `observe` | status, events, report | – |
//! | `finished` | results of finished stages | – |
//! | `chunk_files`, `feed`, `inputs` | reading chunk files and inputs of any format | – |
//! | `hub` | checkpoints of the hub | – |
//! | `device` | the thread that owns the device | – |
//! | `catalog` | captions and pairs → classes and join index | – |
//! | `images` | image shards → pixel chunks | – |
//! | `captions` | captions → text encoder → vectors | `device` |
//! | `resolve` | models, preprocessing and limits | `captions`, `device`, `hub`, `images` |
//! | `features` | pixel chunks → backbone → feature chunks | `device`, `images`, `resolve` |
//! | `train` | feature chunks → trained heads | `captions`, `catalog`, `device`, `resolve` |
//! | `predict` | test images → ranked captions | all of the above |
//! | `caption` | images → captioning model → captions | `captions`, `device`, `features`, `hub`, `images`, `predict`, `resolve` |
//! | `needs` | memory and disk that grow with the classes | `captions`, `device`, `resolve`, `train` |
//! | `plan` | the stages of one start, with inputs and generations | `predict`, `resolve` |
//! | `execution` | the stages of a plan, in order | all of the above |
//! | `part` | one of several processes: setup, its shards, the end of the run | `catalog`, `execution`, `plan`, `resolve` |
//! | `check`, `inspect` | commands that run no stage | all but `plan`, `execution` and `part` |
//!
//! Every part may name the parts of the first six rows. The test `tests/it/layering.rs` enforces this table.

mod caption;
pub(crate) mod captions;
pub(crate) mod catalog;
mod check;
pub(crate) mod chunk_files;
mod claims;
pub(crate) mod context;
pub(crate) mod device;
pub(crate) mod error;
mod execution;
mod features;
pub(crate) mod feed;
mod finished;
pub(crate) mod hub;
pub(crate) mod images;
pub(crate) mod inputs;
mod inspect;
pub(crate) mod manifest;
mod needs;
pub(crate) mod observe;
mod part;
mod plan;
mod predict;
mod records;
pub(crate) mod resolve;
pub(crate) mod store;
pub(crate) mod train;

use std::time::SystemTime;

use crate::config::{RunConfig, Stage};
use crate::runtime::Shutdown;
use crate::telemetry::ProgressRegistry;

pub use caption::write_captions;
pub use check::{Check, check};
pub(crate) use context::workers;
pub use error::PipelineError;
pub(crate) use error::{chain, driver_error};
pub use inspect::{Inspection, inspect};
pub use observe::report::Report;
pub use observe::status::Status;
pub use observe::{parts, report, status};
pub use plan::Request;
pub use predict::{TestImages, export, read_test_images};
pub(crate) use store::open_store;

use context::RunContext;
use execution::Prepared;
use manifest::Manifest;
use part::PartRun;
use plan::Plan;
use resolve::ResolvedModel;

/// Runs or resumes the stages that the configuration asks for.
///
/// # Errors
/// When the run ends early. Everything done so far is kept, and the same call resumes.
pub async fn run(
    config: RunConfig,
    request: Request,
    progress: ProgressRegistry,
    shutdown: Shutdown,
) -> Result<Report, PipelineError> {
    let started = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let (ctx, lock) = RunContext::open(config, request.part, request.wait, progress, shutdown).await?;
    let prepared = match prepare(&ctx, request).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let dir = ctx.dir.clone();
            tokio::task::spawn_blocking(move || dir.abandon(Some(lock))).await?;
            return Err(error);
        }
    };
    let _lock = lock;
    if let Some(part) = request.part {
        return Box::pin(PartRun { ctx, part, started, prepared }.run(request.part_only)).await;
    }
    for folder in [".", "journal", "catalog"] {
        // Removes half-written files of a killed process. The stages sweep their own folders.
        ctx.dir.sweep(folder, |_| true)?;
    }
    Box::pin(prepared.run(&ctx, &started)).await
}

/// Opens the models, plans the stages and records them, except for a part. Nothing is written or removed before everything
/// is accepted.
async fn prepare(ctx: &RunContext, request: Request) -> Result<Prepared, PipelineError> {
    let mut manifest = Manifest::open(ctx.dir.clone(), request.from, request.part.is_some())?;
    let model = ResolvedModel::open(ctx).await?;
    ctx.register_metrics();
    // All checks that can refuse the run come before the first write or removal.
    let plan = Plan::new(ctx, &model, &mut manifest, request).await?;
    ctx.progress.expect(plan.expected_stages(ctx.config.runs(Stage::Text)));
    if request.part.is_none() {
        manifest.accept(&ctx.config, request.predict_only)?;
    } else {
        manifest.compare()?;
    }
    Ok(Prepared { model, plan, manifest })
}
