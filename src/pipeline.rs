//! The wiring of the stages: which run, on what, in which order; supervision and shutdown.
//!
//! Stages run one after the other (catalog, images, captions, training, prediction), each a small graph of links inside. Every
//! stage looks at what the run directory already holds, goes on behind it, and refuses to mix generations. Nothing here
//! prints: progress goes to the [`ProgressRegistry`], results into the [`Report`].

pub mod bench;
mod catalog;
mod check;
mod checkpoints;
mod curve;
mod error;
mod events;
mod evidence;
mod examples;
mod export;
mod feature_store;
mod features;
mod forward;
mod generation;
mod hub;
pub mod ingest;
mod inspect;
mod model_stages;
mod partial;
mod prediction;
mod preprocess;
pub mod report;
mod resolve;
mod spill;
pub mod status;
mod stream;
mod text_prediction;
mod text_training;
mod texts;
mod training;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalog::ImageFilter;
use crate::chunk::Tally;
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::schedule::LANES;
use crate::config::bytes::product_disk_bytes;
use crate::config::plan::Stage;
use crate::config::raw::RawStore;
use crate::config::{ConfigError, RunConfig};
use crate::decode::ImageSpec;
use crate::device::Chosen;
use crate::objects::{Object, Store, StoreSettings, TrafficSnapshot};
use crate::run_dir::{Directory, Lock};
use crate::runtime::{ByteBudget, CpuPool, Shutdown};
use crate::telemetry::ProgressRegistry;

pub use check::{Check, check};
pub use error::PipelineError;
pub use export::export;
pub use inspect::{Inspection, inspect};
pub use prediction::ceiling_of;
pub use report::Report;
pub use status::Status;

use events::Events;
use generation::{Manifest, add_inputs};
use partial::Partial;
use report::{StreamReport, peak_memory_bytes};
use resolve::enough_captions;
pub(crate) use resolve::workers;
use resolve::{Backbone, resolve};
use status::{Reporter, State};
use stream::{RunContext, Sink, Start, StreamJob, seen_so_far};

/// Which stages a command runs, and what it throws away first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// Only prediction, from the run's newest checkpoint.
    pub predict_only: bool,
    /// Throw away what this stage and those after it made.
    pub from: Option<Stage>,
}

/// The error with its causes, as one clause.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Runs, or resumes, every stage that the plan names.
///
/// # Errors
/// Why the run ended early; what was done is kept, and the same call goes on from there.
pub async fn run(
    plan: RunConfig,
    request: Request,
    registry: ProgressRegistry,
    stop: Shutdown,
) -> Result<Report, PipelineError> {
    let store = store(&plan.machine().store);
    let opened = open(plan, store.clone());
    // A claim of a process that may still be alive is watched for a while.
    let (plan, directory, _lock) = tokio::select! {
        opened = opened => opened?,
        () = stop.raised() => return Err(stop.signal().map_or_else(stopped_by_nobody, PipelineError::Stopped)),
    };
    let generations = Manifest::open(directory.clone(), request.from)?;
    let mut run = Run::open(plan, store, directory, generations, registry, stop).await?;
    // Everything that can refuse the run does so before anything is made or removed.
    let prepared = run.prepare(request).await?;
    run.generations.accept(&run.plan)?;
    for folder in [".", "journal", "catalog"] {
        // The stages sweep their own folders; here are files alone that a killed process may have left half written.
        run.directory.sweep(folder, |_| true)?;
    }
    let events = Events::open(&run.directory);
    run.machine.events = events.clone();
    let reporter = Reporter::start(run.directory.clone(), run.machine.registry.clone(), events);
    let outcome = run.stages(prepared).await;
    let (state, detail) = match &outcome {
        Ok(_) => (State::Done, None),
        Err(error @ PipelineError::Stopped(_)) => (State::Stopped, Some(chain(error))),
        Err(error) => (State::Failed, Some(chain(error))),
    };
    tokio::task::spawn_blocking(move || reporter.end(state, detail)).await?;
    outcome
}

/// The stores of a machine.
fn store(machine: &RawStore) -> Store {
    let RawStore { endpoint, patience, silence } = machine.clone();
    Store::new(StoreSettings { endpoint, patience: patience.0, silence: silence.0 })
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

/// The folder of a run on scratch disk: its own for each run directory.
fn scratch_path(plan: &RunConfig) -> PathBuf {
    let (run, scratch) = (&plan.pipeline().run.dir, &plan.machine().scratch.dir);
    let remote = Store::is_remote(run);
    if scratch.is_empty() && !remote {
        return Path::new(run.strip_prefix("file://").unwrap_or(run)).join("scratch");
    }
    let name = if remote {
        run.clone().into()
    } else {
        std::path::absolute(run).map_or_else(|_| run.clone().into(), PathBuf::into_os_string)
    };
    let hash = blake3::hash(name.as_encoded_bytes()).to_hex();
    let root = if scratch.is_empty() { std::env::temp_dir() } else { PathBuf::from(scratch) };
    root.join(format!("wikicap-{}", &hash[..16]))
}

fn stopped_by_nobody() -> PipelineError {
    PipelineError::Internal("a stage stopped without being asked to".to_owned())
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
    predict: Option<model_stages::Asking>,
}

/// A run under way.
struct Run {
    plan: RunConfig,
    directory: Directory,
    generations: Manifest,
    machine: RunContext,
    spec: ImageSpec,
    backbone: Option<Backbone>,
    encoder: Option<texts::Encoder>,
    chosen: Option<Chosen>,
    report: Report,
}

/// Readings of what all stages share.
fn show_shared(registry: &ProgressRegistry, budget: &ByteBudget, store: &Store) {
    let (bytes, limit) = (budget.clone(), Some(budget.limit_bytes()));
    registry.gauge("in_flight_bytes", "Bytes in flight between stages", limit, move || Some(bytes.in_flight_bytes()));
    let counter = |name, help, pick: fn(TrafficSnapshot) -> u64| {
        let traffic = store.traffic();
        registry.counter(name, help, move || pick(traffic.snapshot()));
    };
    counter("store_requests", "Requests to remote stores, repeated ones included", |traffic| traffic.requests);
    counter("store_retries", "Requests that repeated one that had failed", |traffic| traffic.retries);
    counter("store_read_bytes", "Bytes read of inputs and of the run directory", |traffic| traffic.bytes_read);
    counter("store_written_bytes", "Bytes written to a remote run directory", |traffic| traffic.bytes_written);
}

impl Run {
    async fn open(
        plan: RunConfig,
        store: Store,
        directory: Directory,
        generations: Manifest,
        registry: ProgressRegistry,
        stop: Shutdown,
    ) -> Result<Self, PipelineError> {
        let (snapshot, encoder_dir) = (
            hub::fetch(&plan, hub::Which::Backbone, &store, &registry, &stop).await?,
            hub::fetch(&plan, hub::Which::Encoder, &store, &registry, &stop).await?,
        );
        let (plan, resolved) = tokio::task::spawn_blocking(move || {
            let resolved = resolve(&plan, snapshot);
            (plan, resolved)
        })
        .await?;
        let (spec, backbone) = resolved?;
        let budget = ByteBudget::new(plan.machine().limits.memory.0);
        show_shared(&registry, &budget, &store);
        let pool = CpuPool::new(workers(&plan))?;
        let machine = RunContext { store, pool, budget, stop, registry, events: Events::default() };
        let report = Report { run_dir: directory.display(""), ..Report::default() };
        let encoder = match &plan.pipeline().text {
            Some(text) => {
                let text = text.clone();
                Some(tokio::task::spawn_blocking(move || texts::Encoder::open(&text, encoder_dir)).await??)
            }
            None => None,
        };
        let chosen = if backbone.is_some() { Some(worker::choose(&plan.machine().device).await?) } else { None };
        Ok(Self { plan, directory, generations, machine, spec, backbone, encoder, chosen, report })
    }

    /// Looks at every input and generation that the stages of this start need.
    async fn prepare(&mut self, request: Request) -> Result<Prepared, PipelineError> {
        let mut prepared = Prepared::default();
        let pipeline = self.plan.pipeline().clone();
        if !request.predict_only {
            if let (Some(captions), Some(pairs)) = (&pipeline.captions, &pipeline.pairs) {
                let shards = self.machine.store.list(&pairs.shards).await?;
                let mut keys = self.plan.keys(Stage::Catalog);
                add_inputs(&self.machine.store, &mut keys, "pairs.shards", &shards).await?;
                if !captions.list.is_empty() {
                    let list = self.machine.store.find(&captions.list).await?;
                    add_inputs(&self.machine.store, &mut keys, "captions.list", &[list]).await?;
                }
                let generation = self.propose(Stage::Catalog, keys, &[]);
                prepared.catalog = Some(Ready { shards, generation });
            }
            if let Some(images) = &pipeline.images {
                let shards = self.machine.store.list(&images.shards).await?;
                let keys = self.stream_keys(Stage::Stream, "images.shards", &shards).await?;
                let upstream = prepared.catalog.as_ref().map(|ready| ready.generation.as_str());
                let upstream: Vec<&str> = upstream.into_iter().collect();
                let generation = self.propose(Stage::Stream, keys, upstream.as_slice());
                prepared.stream = Some(Ready { shards, generation });
            }
            if let (true, Some(stream)) = (self.plan.runs(Stage::Train), &prepared.stream) {
                let text = if self.plan.runs(Stage::Text) {
                    let (keys, catalog) = (self.text_keys()?, prepared.catalog.as_ref());
                    let upstream: Vec<&str> = catalog.map(|ready| ready.generation.as_str()).into_iter().collect();
                    Some(self.propose(Stage::Text, keys, &upstream))
                } else {
                    None
                };
                let upstream: Vec<&str> = std::iter::once(stream.generation.as_str()).chain(text.as_deref()).collect();
                let keys = self.plan.keys(Stage::Train);
                prepared.train = Some(self.propose(Stage::Train, keys, &upstream));
            }
        }
        if self.plan.runs(Stage::Predict) {
            prepared.predict = self.prepare_prediction(request.predict_only).await?;
        }
        Ok(prepared)
    }

    fn propose(&mut self, stage: Stage, keys: crate::config::StageKeys, upstream: &[&str]) -> String {
        self.generations.propose(stage.as_str(), stage, keys, upstream)
    }

    async fn stages(mut self, prepared: Prepared) -> Result<Report, PipelineError> {
        // What an earlier process reported of stages that this one does not run stays.
        if let Some(earlier) =
            self.directory.read("report.json")?.and_then(|text| serde_json::from_slice::<Report>(&text).ok())
        {
            self.report = Report { stages: Vec::new(), notes: Vec::new(), ..earlier };
        }
        let outcome = self.each_stage(prepared).await;
        // A store that was waited for in vain is not waited for once more.
        let out_of_reach = self.directory.is_remote() && outcome.as_ref().is_err_and(PipelineError::is_out_of_reach);
        let reported = if out_of_reach { Ok(()) } else { self.write_report() };
        // Why a stage failed matters more than that its report could not be written either.
        outcome?;
        reported?;
        Ok(self.report)
    }

    fn write_report(&mut self) -> Result<(), PipelineError> {
        self.report.stages = self.machine.registry.snapshots().iter().map(Into::into).collect();
        self.report.peak_memory_bytes = peak_memory_bytes();
        self.report.peak_in_flight_bytes = self.machine.budget.peak_bytes();
        self.report.traffic = self.machine.store.traffic().snapshot();
        let path = self.directory.display("report.json");
        self.report.outputs.insert("report".to_owned(), path);
        let text =
            serde_json::to_vec_pretty(&self.report).map_err(|error| PipelineError::Internal(error.to_string()))?;
        Ok(self.directory.write("report.json", &text)?)
    }

    async fn each_stage(&mut self, prepared: Prepared) -> Result<(), PipelineError> {
        let device = self.open_device().await?;
        let catalog = self.catalog(prepared.catalog).await?;
        let ranks_classes = prepared.predict.as_ref().is_some_and(|asking| asking.listed.is_none());
        if let (Some(catalog), Some(predict), true) = (&catalog, &self.plan.pipeline().predict, ranks_classes) {
            // As soon as it is known, rather than after days of training.
            enough_captions(catalog.classes.len(), predict.top_k)?;
        }
        if let Some(stream) = prepared.stream {
            if let Some(device) = &device {
                let journal = self.features(catalog.as_ref(), stream, device).await?;
                if let (Some(generation), Some(catalog)) = (prepared.train, &catalog) {
                    device.tell(worker::DeviceWorker::unload_backbone).await?;
                    self.train(journal, generation, catalog, device).await?;
                }
            } else {
                self.pixels(catalog.as_ref(), stream).await?;
            }
        }
        drop(catalog);
        if let (Some(asking), Some(device)) = (prepared.predict, &device) {
            self.predict(asking, device).await?;
        }
        Ok(())
    }

    /// Builds or loads classes and join index; `None` without `[captions]`.
    async fn catalog(&mut self, ready: Option<Ready>) -> Result<Option<catalog::Catalog>, PipelineError> {
        let pipeline = self.plan.pipeline();
        let (Some(captions), Some(pairs), Some(ready)) = (&pipeline.captions, &pipeline.pairs, ready) else {
            return Ok(None);
        };
        let found = if let Some(found) = catalog::load(&self.directory, captions, &ready.generation)? {
            found
        } else {
            let stage_progress = self.machine.registry.stage("pairs", "rows", 0);
            let (partial, gathered) = Partial::open(self.directory.clone(), &ready.generation)?;
            let built =
                catalog::build(&self.machine, captions, pairs, &ready.shards, &stage_progress, partial, gathered)
                    .await?;
            let Some(built) = built else { return Err(self.stopped()) };
            catalog::save(&self.directory, &built, &ready.generation)?;
            Partial::clear(&self.directory)?;
            self.machine.events.finished(&stage_progress);
            built
        };
        if found.report.labelled_rows == 0 {
            self.report.notes.push(
                "no row of the pairs has a caption that is a class, so no image has a label: the published test captions \
                 hardly occur in the training rows; ways out: `captions.match = \"title\"` (compare page titles alone) or \
                 `captions.classes = \"train\"` (the training captions are the classes)"
                    .to_owned(),
            );
        }
        self.report.catalog = Some(found.report.clone());
        Ok(Some(found))
    }

    /// Refuses a limit of scratch disk under which a stage cannot go on.
    fn enough_disk(&self, bytes: u64, what: &str) -> Result<(), PipelineError> {
        let limit = self.plan.machine().limits.disk;
        if bytes <= limit.0 {
            return Ok(());
        }
        let what = format!("`{limit}` is less than the {} that {what} take: raise it", bytesize::ByteSize(bytes));
        Err(ConfigError(vec![crate::config::Problem { key: "limits.disk".to_owned(), what }]).into())
    }

    fn stopped(&self) -> PipelineError {
        match self.machine.stop.signal() {
            Some(signal) => PipelineError::Stopped(signal),
            None => stopped_by_nobody(),
        }
    }

    /// The stream's keys, with what they resolve to.
    async fn stream_keys(
        &self,
        stage: Stage,
        key: &str,
        shards: &[Object],
    ) -> Result<crate::config::StageKeys, PipelineError> {
        let mut keys = self.plan.keys(stage);
        add_inputs(&self.machine.store, &mut keys, key, shards).await?;
        let geometry = serde_json::to_string(&self.spec.geometry).unwrap_or_default();
        keys.insert("images (shards side by side)".to_owned(), LANES.to_string());
        keys.insert(
            "preprocess (resolved)".to_owned(),
            format!("{geometry} {}", self.spec.resample.fingerprint_name()),
        );
        if let Some(backbone) = &self.backbone {
            keys.insert(generation::CHECKPOINT_FILES.to_owned(), backbone.fingerprint.clone());
            keys.remove("model.checkpoint");
        }
        Ok(keys)
    }

    fn stream_job(&self, name: &str, shards: Vec<Object>, wanted: ImageFilter, generation: &str) -> StreamJob {
        StreamJob {
            shards: Arc::new(shards),
            wanted,
            spec: self.spec.clone(),
            views: None,
            chunk_rows: u64::from(self.plan.pipeline().chunks.rows),
            generation: generation.to_owned(),
            max_bad_fraction: self.plan.machine().limits.max_bad_fraction,
            stage_progress: self.machine.registry.stage(name, "rows", 0),
        }
    }

    fn train_wanted(catalog: Option<&catalog::Catalog>) -> ImageFilter {
        catalog.map_or(ImageFilter::Everything, |catalog| ImageFilter::Index(Arc::clone(&catalog.index)))
    }

    /// Streams images to pixel chunks, which are the product.
    async fn pixels(&mut self, catalog: Option<&catalog::Catalog>, ready: Ready) -> Result<(), PipelineError> {
        let Ready { shards, generation } = ready;
        let job = self.stream_job("images", shards, Self::train_wanted(catalog), &generation);
        let (stage_progress, shards) = (Arc::clone(&job.stage_progress), Arc::clone(&job.shards));
        let layout = Layout::train("chunks");
        let count = shards.len() as u32;
        let journal = Journal::open(self.directory.clone(), layout.clone(), &generation, count)?;
        stage_progress.add_resumed(journal.tally().rows);
        stream::show_shards(&job, &journal);
        self.machine.events.started(&stage_progress);
        let seen = seen_so_far(&journal, &[], &job.wanted)?;
        let start = Start { schedule: journal.schedule(count), counted: journal.shard_tallies(), seen };
        if self.directory.is_remote() {
            let chunk = product_disk_bytes(self.plan.pipeline().chunks.rows, self.spec.geometry.output_px());
            self.enough_disk(chunk, "the chunk on its way to the run directory")?;
        }
        let sink = Sink::Durable(journal, self.plan.pipeline().chunks.compression);
        stream::run(job, self.machine.clone(), start, sink).await?;
        self.machine.events.finished(&stage_progress);
        let journal = Journal::read(self.directory.clone(), layout, Some(&generation))?;
        let report = self.stream_report(&journal, &shards)?;
        self.report.images = Some(report);
        self.output("pixel chunks", "chunks");
        Ok(())
    }

    fn output(&mut self, name: &str, path: &str) {
        self.report.outputs.insert(name.to_owned(), self.directory.display(path));
    }

    /// Counts of a finished stream, which must add up.
    fn stream_report(&self, journal: &Journal, shards: &[Object]) -> Result<StreamReport, PipelineError> {
        let name = |shard: u32| shards.get(shard as usize).map_or_else(String::new, |object| object.url.clone());
        let by_shard: std::collections::BTreeMap<String, Tally> =
            journal.shard_tallies().into_iter().map(|(shard, tally)| (name(shard), tally)).collect();
        if let Some((shard, tally)) = by_shard.iter().find(|(_, tally)| !tally.adds_up()) {
            return Err(PipelineError::Internal(format!(
                "the rows of `{shard}` do not add up: {} read, {} kept, {} skipped, {} quarantined",
                tally.rows,
                tally.kept,
                tally.skipped_rows(),
                tally.quarantined_rows()
            )));
        }
        if journal.schedule(shards.len() as u32).next().is_some() {
            return Err(PipelineError::Internal("the stream ended before its last shard".to_owned()));
        }
        let tally = journal.tally();
        if tally.rows > 0 && tally.quarantined_rows() == tally.rows {
            let reasons: Vec<String> =
                tally.quarantined.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            return Err(PipelineError::Input(format!(
                "none of the {} rows of {} shards can be used ({}): check the files",
                tally.quarantined_rows(),
                shards.len(),
                reasons.join(", ")
            )));
        }
        Ok(StreamReport {
            shards: shards.len() as u64,
            tally,
            by_shard,
            labels: journal.entries().values().map(|entry| entry.labels).sum(),
            chunks: journal.entries().values().filter(|entry| entry.tally.kept > 0).count() as u64,
            size_px: self.spec.geometry.output_px(),
        })
    }
}
