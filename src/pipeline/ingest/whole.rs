//! The stream as a run has it, on the first images of the input: with its chunks written, and with a counter in their place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::events::Events;
use super::super::stream::{self, RunContext, Sink, Start, StreamJob, Views, stream_bytes};
use super::super::{PipelineError, store};
use super::Temporary;
use crate::catalog::{ImageFilter, UrlDedup};
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::schedule::Schedule;
use crate::config::value::Compression;
use crate::config::{ConfigError, RunConfig};
use crate::decode::ImageSpec;
use crate::objects::Object;
use crate::run_dir::LocalDirectory;
use crate::runtime::{ByteBudget, CpuPool, Shutdown, Signal};
use crate::telemetry::ProgressRegistry;

/// Rows after which it ends, where scratch disk has room for them.
const ROWS: u64 = 8192;
/// Time after which it ends.
const LONGEST: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Images a second of the whole stream, all cores together.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Whole {
    /// With chunks on scratch disk, checksums, journal and syncs, as where chunks are the product.
    pub written_per_s: f64,
    /// With a counter in the place of the chunks.
    pub counted_per_s: f64,
}

/// Refuses limits under which the stream cannot run.
pub(super) fn check(plan: &RunConfig, spec: &ImageSpec, threads: usize) -> Result<(), PipelineError> {
    let bytes = stream_bytes(spec, threads, u64::from(plan.pipeline().chunks.rows));
    let problems = plan.check_bounds(spec.geometry.output_px(), bytes);
    if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems).into()) }
}

/// Runs the stream, and measures it the second and the third time.
pub(super) async fn measure(
    plan: &RunConfig,
    shards: &[Object],
    spec: &ImageSpec,
    threads: usize,
) -> Result<Whole, PipelineError> {
    let row_bytes = spec.pixel_bytes() * u64::from(plan.views().max(1));
    let rows = (plan.machine().limits.disk.0 / 2 / row_bytes.max(1)).clamp(1, ROWS);
    // The first pass finds the files of a local disk in no better place than the second.
    once(plan, shards, spec, threads, rows, None).await?;
    let folder = Temporary::new(plan, "run")?;
    let written_per_s = once(plan, shards, spec, threads, rows, Some(&folder)).await?;
    let counted_per_s = once(plan, shards, spec, threads, rows, None).await?;
    Ok(Whole { written_per_s, counted_per_s })
}

async fn once(
    plan: &RunConfig,
    shards: &[Object],
    spec: &ImageSpec,
    threads: usize,
    rows: u64,
    folder: Option<&Temporary>,
) -> Result<f64, PipelineError> {
    let chunks = &plan.pipeline().chunks;
    let stop = Shutdown::default();
    let machine = RunContext {
        store: store(&plan.machine().store),
        pool: CpuPool::new(threads).map_err(|error| PipelineError::Input(error.to_string()))?,
        budget: ByteBudget::new(plan.machine().limits.memory.0),
        stop: stop.clone(),
        registry: ProgressRegistry::default(),
        events: Events::default(),
    };
    let stage_progress = machine.registry.stage("images", "rows", 0);
    let job = StreamJob {
        shards: Arc::new(shards.to_vec()),
        wanted: ImageFilter::Everything,
        spec: spec.clone(),
        views: Views::of_plan(plan),
        chunk_rows: u64::from(chunks.rows),
        generation: "bench".to_owned(),
        max_bad_fraction: 1.0,
        stage_progress: Arc::clone(&stage_progress),
    };
    let sink = match folder {
        Some(folder) => {
            let directory = LocalDirectory::create(&folder.path)?.into();
            let journal = Journal::open(directory, Layout::train("chunks"), "bench", shards.len() as u32)?;
            let compression = if plan.pipeline().model.is_some() { Compression::None } else { chunks.compression };
            Sink::Durable(journal, compression)
        }
        None => Sink::Counted,
    };
    let start = Start {
        schedule: Schedule::start(shards.len() as u32),
        counted: BTreeMap::new(),
        seen: UrlDedup::new(ImageFilter::Everything),
    };
    let started = Instant::now();
    let mut running = tokio::spawn(stream::run(job, machine, start, sink));
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended?,
            () = tokio::time::sleep(LOOK) => {
                if stage_progress.progress().0 >= rows || started.elapsed() >= LONGEST {
                    stop.raise(Signal::Interrupt);
                }
            }
        }
    };
    match ended {
        Ok(()) | Err(PipelineError::Stopped(_)) => {
            Ok(stage_progress.progress().0 as f64 / started.elapsed().as_secs_f64())
        }
        Err(error) => Err(error),
    }
}
