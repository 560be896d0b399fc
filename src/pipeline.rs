//! Stages of a run, in their order.
//!
//! [`run`] opens the run directory, plans the stages and executes them one after the other. Planning checks every
//! input, model and fingerprint before anything is written or removed. Each stage is a folder with a function `run`
//! over the `RunContext`. A stage resumes after the artefacts in the run directory and returns its part of the
//! [`Report`]. Nothing here prints; progress goes to the [`ProgressRegistry`].
//!
//! | part | does | may name |
//! | --- | --- | --- |
//! | `context`, `error`, `store` | items shared by all stages | – |
//! | `manifest` | `run.toml`: the keys that artefacts depend on; a changed key is refused | – |
//! | `observe` | status, events, report | – |
//! | `finished` | results of finished stages | – |
//! | `chunk_files`, `feed` | reading chunk files, feeding parsers | – |
//! | `hub` | checkpoints of the hub | – |
//! | `device` | the thread that owns the device | – |
//! | `catalog` | captions and pairs → classes and join index | – |
//! | `images` | image shards → pixel chunks | – |
//! | `captions` | captions → text encoder → vectors | `catalog`, `device` |
//! | `resolve` | models, preprocessing and limits | `captions`, `device`, `hub`, `images` |
//! | `features` | pixel chunks → backbone → feature chunks | `device`, `images`, `resolve` |
//! | `train` | feature chunks → trained heads | `captions`, `catalog`, `device`, `resolve` |
//! | `predict` | test images → ranked captions | all of the above |
//! | `needs` | memory and disk that grow with the classes | `captions`, `device`, `resolve`, `train` |
//! | `plan` | the stages of one start, with inputs and generations | `predict`, `resolve` |
//! | `check`, `inspect` | commands that run no stage | all but `plan` |
//!
//! Every part may name the parts of the first five rows. The test `tests/it/layering.rs` enforces this table.

mod captions;
mod catalog;
mod check;
mod chunk_files;
pub(crate) mod context;
pub(crate) mod device;
pub(crate) mod error;
mod features;
pub(crate) mod feed;
mod finished;
mod hub;
pub(crate) mod images;
mod inspect;
mod manifest;
mod needs;
pub(crate) mod observe;
mod plan;
mod predict;
mod resolve;
pub(crate) mod store;
mod train;

use std::sync::Arc;
use std::time::SystemTime;

use crate::catalog::ImageFilter;
use crate::chunk::journal::Layout;
use crate::config::{ConfigError, RunConfig, Stage};
use crate::device::HostMemory;
use crate::runtime::{Resources, Shutdown};
use crate::telemetry::ProgressRegistry;
use crate::types::Part;

pub use check::{Check, check};
pub(crate) use context::workers;
pub use error::PipelineError;
pub(crate) use error::chain;
pub use inspect::{Inspection, inspect};
pub use observe::report::Report;
pub use observe::status::Status;
pub use observe::{report, status};
pub use plan::Request;
pub use predict::{ceiling_of, export};
pub(crate) use store::open_store;

use catalog::{Catalog, CatalogInput};
use context::RunContext;
use device::DeviceWorker;
use features::{FeaturesInput, Thumbnails};
use images::{ImagesInput, StreamJob, Views};
use manifest::{Manifest, report_name, without_secrets};
use needs::ClassNeeds;
use observe::events::{Event, Events};
use observe::previous::explain_kill;
use observe::report::ProcessReport;
use observe::status::{Reporter, State};
use plan::{Plan, StageInput};
use predict::{PredictInput, PreparedPrediction};
use resolve::{ResolvedModel, require_captions};
use train::TrainInput;

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
    let (mut ctx, lock) = RunContext::open(config, progress, shutdown).await?;
    let (model, plan, manifest) = match prepare(&ctx, request).await {
        Ok(prepared) => prepared,
        Err(error) => {
            let dir = ctx.dir.clone();
            tokio::task::spawn_blocking(move || dir.abandon(Some(lock))).await?;
            return Err(error);
        }
    };
    let _lock = lock;
    let own = plan.predict.as_ref().is_none_or(|predict| predict.own);
    let report = if own { report::FILE.to_owned() } else { report_name(ctx.config.output()) };
    status::report_killed_process(&ctx.dir)?;
    for folder in [".", "journal", "catalog"] {
        // Removes half-written files of a killed process. The stages sweep their own folders.
        ctx.dir.sweep(folder, |_| true)?;
    }
    ctx.events = Events::open(&ctx.dir);
    if let Some(text) = Status::previous(&ctx.dir).and_then(|status| explain_kill(&status, &Resources::read())) {
        tracing::warn!("{text}");
        ctx.events.write(&Event::PreviousKilled { detail: &text });
    }
    let reporter = Reporter::start(ctx.dir.clone(), ctx.progress.clone(), ctx.events.clone(), &started, &report);
    let process = ProcessStart { started: &started, report: &report };
    let outcome = execute_and_report(Execution { ctx: &ctx, model: &model, manifest: &manifest }, plan, process).await;
    let (state, detail) = match &outcome {
        Ok(_) => (State::Done, None),
        Err(error @ PipelineError::Stopped(_)) => (State::Stopped, Some(chain(error))),
        Err(error) => (State::Failed, Some(chain(error))),
    };
    tokio::task::spawn_blocking(move || reporter.finish(state, detail)).await?;
    outcome
}

/// Opens the models, plans the stages and records them. Nothing is written or removed before everything is accepted.
async fn prepare(ctx: &RunContext, request: Request) -> Result<(ResolvedModel, Plan, Manifest), PipelineError> {
    let mut manifest = Manifest::open(ctx.dir.clone(), request.from)?;
    let model = ResolvedModel::open(ctx).await?;
    ctx.register_metrics();
    // All checks that can refuse the run come before the first write or removal.
    let plan = Plan::new(ctx, &model, &mut manifest, request).await?;
    ctx.progress.expect(plan.expected_stages(ctx.config.runs(Stage::Text)));
    manifest.accept(&ctx.config, request.predict_only)?;
    Ok((model, plan, manifest))
}

/// Start of this process, and the report that it adds to.
#[derive(Clone, Copy)]
struct ProcessStart<'a> {
    started: &'a str,
    report: &'a str,
}

/// Context shared by the stages of one execution.
#[derive(Clone, Copy)]
struct Execution<'a> {
    ctx: &'a RunContext,
    model: &'a ResolvedModel,
    manifest: &'a Manifest,
}

/// Executes the plan. Writes the report even if the run fails.
async fn execute_and_report(
    execution: Execution<'_>,
    plan: Plan,
    process: ProcessStart<'_>,
) -> Result<Report, PipelineError> {
    let Execution { ctx, model, .. } = execution;
    // The report keeps the results of stages that this process does not run, and all processes.
    let mut report = Report::load(&ctx.dir, process.report)?;
    report.notes.clear();
    let machine = ctx.config.stored_machine();
    report.config = serde_json::json!({ "pipeline": without_secrets(ctx.config.stored()), "machine": machine });
    report.model = model.report(&ctx.config).or(report.model.take());
    let outcome = execution.run(plan, &mut report).await;
    // Do not wait again for a store that is out of reach.
    let unreachable = ctx.dir.is_remote() && outcome.as_ref().is_err_and(PipelineError::is_out_of_reach);
    let ended = outcome.as_ref().copied();
    let mut this = ProcessReport::current(process.started, ended, &ctx.progress, &ctx.budget, &ctx.store);
    this.device.clone_from(&report.device);
    report.add_process(this);
    let written = if unreachable { Ok(()) } else { report.save(&ctx.dir, process.report) };
    // The error of a stage matters more than an error of the report.
    outcome?;
    written?;
    Ok(report)
}

impl Execution<'_> {
    /// Runs the stages of the plan in their order. Each adds its part to the report once it is complete.
    async fn run(self, plan: Plan, report: &mut Report) -> Result<(), PipelineError> {
        let Plan { catalog, images, train, predict } = plan;
        let device = self.model.open_device(self.ctx).await?;
        if device.is_some() {
            report.device = self.model.device.as_ref().map(ToString::to_string);
        }
        let catalog = self.run_catalog(catalog, report).await?;
        let ranks_classes = predict.as_ref().is_some_and(PreparedPrediction::ranks_classes);
        if let (Some(catalog), Some(predict), true) = (&catalog, self.ctx.config.predict(), ranks_classes) {
            // Check as soon as the number of classes is known, rather than after days of training.
            require_captions(catalog.classes, predict.top_k)?;
        }
        if let Some(catalog) = &catalog {
            self.require_class_needs(catalog, ranks_classes)?;
        }
        match (images, &device) {
            (Some(images), Some(device)) => {
                self.run_features_and_training(images, train, catalog.as_ref(), device, report).await?;
            }
            (Some(images), None) => self.run_pixels(images, catalog.as_ref(), report).await?,
            (None, _) => {}
        }
        drop(catalog);
        if let (Some(prepared), Some(device)) = (predict, &device) {
            let input = PredictInput { model: self.model, manifest: self.manifest, prepared, device };
            if let Some(output) = predict::run(self.ctx, input).await? {
                report.prediction = Some(output.report);
                report.add_remarks(&self.ctx.dir, output.remarks);
            }
        }
        Ok(())
    }

    /// Refuses a number of classes that exceeds memory or disk, before any image is read.
    fn require_class_needs(self, catalog: &Catalog, ranks_classes: bool) -> Result<(), PipelineError> {
        let (Some(backbone), Some(device)) = (&self.model.backbone, &self.model.device) else { return Ok(()) };
        let needs = ClassNeeds {
            config: &self.ctx.config,
            classes: catalog.classes as u64,
            held_bytes: catalog.index.bytes() as u64,
            labelled: Some((catalog.index.images() as u64, catalog.index.len() as u64)),
            shape: backbone.shape,
            device,
            host: HostMemory::detect(),
            encoder: self.model.text_encoder.as_ref(),
            ranks_classes,
        };
        let problems = needs.problems();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems).into()) }
    }

    /// Builds or loads the catalog, if the plan has one.
    async fn run_catalog(
        self,
        input: Option<StageInput>,
        report: &mut Report,
    ) -> Result<Option<Catalog>, PipelineError> {
        let (Some(config), Some(StageInput { shards, generation })) = (self.ctx.config.catalog(), input) else {
            return Ok(None);
        };
        let output = catalog::run(self.ctx, CatalogInput { config, shards, generation }).await?;
        report.add_remarks(&self.ctx.dir, output.remarks);
        report.catalog = Some(output.catalog.report.clone());
        Ok(Some(output.catalog))
    }

    /// Runs the image stream whose product is pixel chunks.
    async fn run_pixels(
        self,
        images: StageInput,
        catalog: Option<&Catalog>,
        report: &mut Report,
    ) -> Result<(), PipelineError> {
        let StageInput { shards, generation } = images;
        let (filter, spec) = (image_filter(catalog), &self.model.spec);
        let input = ImagesInput { shards, part: Part::WHOLE, filter, spec, generation };
        report.images = Some(images::run(self.ctx, input).await?);
        report.add_output(&self.ctx.dir, "pixel chunks", "chunks");
        Ok(())
    }

    /// Computes the features of the training images and, if the plan says so, trains heads on them.
    async fn run_features_and_training(
        self,
        images: StageInput,
        train: Option<String>,
        catalog: Option<&Catalog>,
        device: &Arc<DeviceWorker>,
        report: &mut Report,
    ) -> Result<(), PipelineError> {
        let Self { ctx, model, .. } = self;
        let StageInput { shards, generation } = images;
        let mut job = StreamJob::new(ctx, "images", &model.spec, shards, image_filter(catalog), &generation);
        job.views = Views::from_config(&ctx.config);
        let (split, side_px) = (ctx.config.validation_split(), model.spec.geometry.output_px());
        let input = FeaturesInput {
            job,
            layout: Layout::train("features"),
            name: "images",
            backbone: model.backbone()?,
            device,
            thumbnails: (!split.is_empty()).then_some(Thumbnails { split, side_px }),
        };
        let features = features::run(ctx, input).await?;
        report.images = Some(features.report);
        report.add_output(&ctx.dir, "features", "features");
        if let (Some(generation), Some(catalog)) = (train, catalog) {
            let input = TrainInput { features: features.features, generation, catalog, model, device };
            let output = train::run(ctx, input).await?;
            report.training = output.report;
            report.add_remarks(&ctx.dir, output.remarks);
        }
        Ok(())
    }
}

/// Returns the filter of the training images: those with a label, or all if there is no catalog.
fn image_filter(catalog: Option<&Catalog>) -> ImageFilter {
    catalog.map_or(ImageFilter::Everything, |catalog| ImageFilter::Index(Arc::clone(&catalog.index)))
}
