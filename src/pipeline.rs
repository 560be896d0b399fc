//! The wiring of the stages: which run, on what, in which order; supervision and shutdown.
//!
//! Stages run one after the other (catalog, images, captions, training, prediction), each a small graph of links inside. Every
//! stage looks at what the run directory already holds, goes on behind it, and refuses to mix generations. Nothing here
//! prints: progress goes to the [`ProgressRegistry`], results into the [`Report`].

mod batch_log;
pub mod bench;
mod captions;
mod catalog;
mod check;
mod chunk_files;
mod context;
mod device;
mod error;
mod events;
mod features;
mod forward;
mod hub;
pub mod ingest;
mod inspect;
mod manifest;
mod partial;
mod predict;
mod preprocess;
pub mod report;
mod resolve;
mod run;
pub mod status;
mod stream;
mod train;

use std::sync::Arc;

use crate::config::RunConfig;
use crate::config::plan::Stage;
use crate::objects::{Object, Store};
use crate::run_dir::{Directory, Lock};
use crate::runtime::Shutdown;
use crate::telemetry::ProgressRegistry;

pub use check::{Check, check};
pub use error::PipelineError;
pub(crate) use error::chain;
pub use inspect::{Inspection, inspect};
pub use predict::{ceiling_of, export};
pub use report::Report;
pub(crate) use resolve::workers;
pub use status::Status;

use context::{open_store, scratch_path, stopped};
use events::Events;
use manifest::Manifest;
use run::Run;
use status::{Reporter, State};

/// Which stages a command runs, and what it throws away first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// Only prediction, from the run's newest checkpoint.
    pub predict_only: bool,
    /// Throw away what this stage and those after it made.
    pub from: Option<Stage>,
}

/// Runs, or resumes, every stage that the plan names.
///
/// # Errors
/// Why the run ended early; what was done is kept, and the same call goes on from there.
pub async fn run(
    config: RunConfig,
    request: Request,
    progress: ProgressRegistry,
    shutdown: Shutdown,
) -> Result<Report, PipelineError> {
    let store = open_store(&config.machine().store);
    let opened = open(config, store.clone());
    // A claim of a process that may still be alive is watched for a while.
    let (config, dir, _lock) = tokio::select! {
        opened = opened => opened?,
        () = shutdown.raised() => return Err(stopped(&shutdown)),
    };
    let manifest = Manifest::open(dir.clone(), request.from)?;
    let mut run = Run::open(Arc::new(config), store, dir, manifest, progress, shutdown).await?;
    // Everything that can refuse the run does so before anything is made or removed.
    let prepared = run.prepare(request).await?;
    run.manifest.accept(&run.ctx.config)?;
    for folder in [".", "journal", "catalog"] {
        // The stages sweep their own folders; here are files alone that a killed process may have left half written.
        run.ctx.dir.sweep(folder, |_| true)?;
    }
    let events = Events::open(&run.ctx.dir);
    run.ctx.events = events.clone();
    let reporter = Reporter::start(run.ctx.dir.clone(), run.ctx.progress.clone(), events);
    let outcome = run.stages(prepared).await;
    let (state, detail) = match &outcome {
        Ok(_) => (State::Done, None),
        Err(error @ PipelineError::Stopped(_)) => (State::Stopped, Some(chain(error))),
        Err(error) => (State::Failed, Some(chain(error))),
    };
    tokio::task::spawn_blocking(move || reporter.end(state, detail)).await?;
    outcome
}

/// Opens the run's directory and claims it.
async fn open(plan: RunConfig, store: Store) -> Result<(RunConfig, Directory, Lock), PipelineError> {
    tokio::task::spawn_blocking(move || {
        let dir = &plan.pipeline().run.dir;
        let directory = Directory::open(&store, dir, &scratch_path(&plan).join("staging"))?;
        let lock = directory.lock()?;
        Ok((plan, directory, lock))
    })
    .await?
}

/// Inputs and generation of one stage.
struct Ready {
    shards: Vec<Object>,
    generation: String,
}

/// The stages of this start, each with what it reads.
#[derive(Default)]
struct Prepared {
    catalog: Option<Ready>,
    stream: Option<Ready>,
    train: Option<String>,
    predict: Option<predict::PreparedPrediction>,
}
