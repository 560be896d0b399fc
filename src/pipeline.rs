//! The stages of a run and their order.
//!
//! [`run`] opens the run directory, plans (every input, model and fingerprint is checked before anything is written or removed)
//! and executes the stages one after the other. Each stage is a folder with a function `run` over the [`RunContext`]: it
//! resumes behind what the run directory holds and returns its part of the [`Report`]. Nothing here prints; progress goes to
//! the [`ProgressRegistry`].
//!
//! | part | does | may import, beside `context`, `error`, `chunk_files`, `feed`, `observe` |
//! | --- | --- | --- |
//! | `plan` | inputs and fingerprints of the stages that run | `manifest`, `predict`, `resolve` |
//! | `manifest` | `run.toml`: fingerprints of a run directory; a changed key is refused | – |
//! | `resolve`, `hub` | models, preprocessing, limits | `device`, `images`, `manifest` |
//! | `catalog` | captions and pairs → classes and join index | – |
//! | `images` | image shards → decoded chunks | – |
//! | `features` | decoded chunks → backbone → feature chunks | `device`, `images`, `resolve` |
//! | `captions` | captions → text encoder → vectors | `device`, `resolve` |
//! | `train` | feature chunks → trained heads | `captions`, `device`, `features`, `resolve` |
//! | `predict` | test images → ranked captions | `captions`, `catalog`, `device`, `features`, `manifest`, `resolve`, `train` |
//! | `device` | the thread that owns the device | – |
//! | `observe` | status, events, report | – |
//! | `check`, `inspect`, `bench` | commands that run no stage | anything but `plan` |

pub mod bench;
mod catalog;
mod check;
mod checkpoints;
mod chunk_files;
mod context;
mod curve;
mod error;
mod evidence;
mod examples;
mod export;
mod feature_store;
mod features;
mod feed;
mod hub;
mod images;
mod inspect;
mod manifest;
mod model_stages;
mod observe;
mod plan;
mod prediction;
mod resolve;
mod run;
mod spill;
mod text_prediction;
mod text_training;
mod texts;
mod training;
mod worker;

use std::sync::Arc;

use crate::catalog::ImageFilter;
use crate::config::{RunConfig, Stage};
use crate::run_dir::{Directory, Lock};
use crate::runtime::{ByteBudget, CpuPool, Shutdown};
use crate::telemetry::ProgressRegistry;

pub use bench::ingest;
pub use check::{Check, check};
pub use error::PipelineError;
pub(crate) use error::chain;
pub use export::export;
pub use inspect::{Inspection, inspect};
pub use observe::report::Report;
pub use observe::status::Status;
pub use observe::{report, status};
pub use prediction::ceiling_of;
pub(crate) use resolve::workers;

// Names that stages still import from here.
use crate::chunk::journal::{Journal, Layout};
use run::Run;

use context::{RunContext, open_store, scratch_path, stopped};
use manifest::Manifest;
use observe::events::Events;
use observe::status::{Reporter, State};
use plan::Plan;
use resolve::{ResolvedModel, require_captions};

/// Which stages a command runs, and what it discards first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// Only prediction, from the run's newest checkpoint.
    pub predict_only: bool,
    /// Discard the artefacts of this stage and of all later stages.
    pub from: Option<Stage>,
}

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
    let (mut ctx, _lock) = open(config, progress, shutdown).await?;
    let manifest = Manifest::open(ctx.dir.clone(), request.from)?;
    let model = ResolvedModel::open(&ctx).await?;
    ctx.register_metrics();
    // Everything that can refuse the run does so before anything is written or removed.
    let mut run = Run { ctx: ctx.clone(), manifest, model, report: Report::default() };
    let plan = Plan::new(&mut run, request).await?;
    run.manifest.accept(&ctx.config)?;
    for folder in [".", "journal", "catalog"] {
        // Removes half-written files of a killed process. The stages sweep their own folders.
        ctx.dir.sweep(folder, |_| true)?;
    }
    ctx.events = Events::open(&ctx.dir);
    run.ctx = ctx.clone();
    let reporter = Reporter::start(ctx.dir.clone(), ctx.progress.clone(), ctx.events.clone());
    let outcome = execute_and_report(&ctx, run, plan).await;
    let (state, detail) = match &outcome {
        Ok(_) => (State::Done, None),
        Err(error @ PipelineError::Stopped(_)) => (State::Stopped, Some(chain(error))),
        Err(error) => (State::Failed, Some(chain(error))),
    };
    tokio::task::spawn_blocking(move || reporter.finish(state, detail)).await?;
    outcome
}

/// Opens and locks the run directory and starts the services that all stages share.
///
/// A lock of a process that may still be alive is watched for a while.
async fn open(
    config: RunConfig,
    progress: ProgressRegistry,
    shutdown: Shutdown,
) -> Result<(RunContext, Lock), PipelineError> {
    let config = Arc::new(config);
    let store = open_store(config.store());
    let (own, client) = (Arc::clone(&config), store.clone());
    let locked = tokio::task::spawn_blocking(move || {
        let dir = Directory::open(&client, own.run_dir(), &scratch_path(&own).join("staging"))?;
        let lock = dir.lock()?;
        Ok::<_, PipelineError>((dir, lock))
    });
    let (dir, lock) = tokio::select! {
        locked = locked => locked??,
        () = shutdown.raised() => return Err(stopped(&shutdown)),
    };
    let budget = ByteBudget::new(config.limits().memory.0);
    let pool = CpuPool::new(workers(&config))?;
    Ok((RunContext { config, dir, store, budget, pool, shutdown, progress, events: Events::default() }, lock))
}

/// Executes the plan and writes the report, also of a run that fails.
async fn execute_and_report(ctx: &RunContext, mut run: Run, plan: Plan) -> Result<Report, PipelineError> {
    // The report keeps what an earlier process reported of stages that this one does not run.
    run.report = Report::load(&ctx.dir)?;
    let outcome = execute(ctx, &mut run, plan).await;
    // Do not wait once more for a store that was waited for in vain.
    let unreachable = ctx.dir.is_remote() && outcome.as_ref().is_err_and(PipelineError::is_out_of_reach);
    let written = if unreachable { Ok(()) } else { run.report.save(ctx) };
    // The error of a stage matters more than that of its report.
    outcome?;
    written?;
    Ok(run.report)
}

/// Executes the stages of the plan in their order.
async fn execute(ctx: &RunContext, run: &mut Run, plan: Plan) -> Result<(), PipelineError> {
    let device = run.open_device().await?;
    let catalog = match (ctx.config.catalog(), plan.catalog) {
        (Some(config), Some(plan::StageInput { shards, generation })) => {
            let output = catalog::run(ctx, catalog::CatalogInput { config, shards, generation }).await?;
            run.report.add_remarks(&ctx.dir, output.remarks);
            run.report.catalog = Some(output.catalog.report.clone());
            Some(output.catalog)
        }
        _ => None,
    };
    let ranks_classes = plan.predict.as_ref().is_some_and(|asking| asking.listed.is_none());
    if let (Some(catalog), Some(predict), true) = (&catalog, ctx.config.predict(), ranks_classes) {
        // As soon as it is known, rather than after days of training.
        require_captions(catalog.classes.len(), predict.top_k)?;
    }
    if let Some(plan::StageInput { shards, generation }) = plan.images {
        let filter =
            catalog.as_ref().map_or(ImageFilter::Everything, |catalog| ImageFilter::Index(Arc::clone(&catalog.index)));
        if let Some(device) = &device {
            let journal = run.features(shards, filter, &generation, device).await?;
            if let (Some(generation), Some(catalog)) = (plan.train, &catalog) {
                run.train(journal, generation, catalog, device).await?;
            }
        } else {
            let input = images::ImagesInput { shards, filter, spec: &run.model.spec, generation };
            run.report.images = Some(images::run(ctx, input).await?);
            run.output("pixel chunks", "chunks");
        }
    }
    drop(catalog);
    if let (Some(asking), Some(device)) = (plan.predict, &device) {
        run.predict(asking, device).await?;
    }
    Ok(())
}
