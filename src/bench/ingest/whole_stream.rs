//! Benchmark of the whole image stream over the first images of the input, with and without written chunks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::chunks::TemporaryPath;
use crate::catalog::ImageFilter;
use crate::chunk::journal::{Journal, Layout};
use crate::config::{ConfigError, RunConfig};
use crate::decode::ImageSpec;
use crate::objects::Object;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::images::{RowContent, Sink, StartPoint, StreamJob, Views, stream_images};
use crate::pipeline::inputs::ImageInput;
use crate::pipeline::observe::events::Events;
use crate::pipeline::store::open_store;
use crate::run_dir::{Directory, LocalDirectory};
use crate::runtime::{ByteBudget, CpuPool, Shutdown, Signal};
use crate::telemetry::ProgressRegistry;
use crate::types::{Compression, Part};

/// Rows after which a pass ends, if scratch disk has room for them.
const MAX_ROWS: u64 = 8192;
/// Time after which a pass ends.
const MAX_TIME: Duration = Duration::from_secs(20);
/// Time between two checks of these limits.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Images per second of the whole stream on all cores.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Whole {
    /// Rate with chunks on scratch disk, checksums, journal and syncs, as in a run whose product is chunks.
    pub written_per_s: f64,
    /// Rate with the chunks discarded.
    pub counted_per_s: f64,
}

/// Refuses limits under which the stream cannot work.
pub(super) fn check_limits(config: &RunConfig, spec: &ImageSpec, threads: usize) -> Result<(), PipelineError> {
    let bytes = RowContent::Images(spec.clone()).stream_bytes(threads, u64::from(config.chunks().rows));
    let problems = config.check_bounds(spec.geometry.output_px(), bytes);
    if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems).into()) }
}

/// Runs the stream three times and measures the second and third pass.
pub(super) async fn measure(
    config: &RunConfig,
    (input, shards): (&ImageInput, &[Object]),
    spec: &ImageSpec,
    threads: usize,
) -> Result<Whole, PipelineError> {
    let row_bytes = spec.pixel_bytes() * u64::from(config.views().max(1));
    let rows = (config.limits().disk.0 / 2 / row_bytes.max(1)).clamp(1, MAX_ROWS);
    // The first pass brings the files of a local disk into the page cache.
    run_once(config, (input, shards), spec, threads, rows, None).await?;
    let folder = TemporaryPath::new(config, "run")?;
    let written_per_s = run_once(config, (input, shards), spec, threads, rows, Some(&folder)).await?;
    let counted_per_s = run_once(config, (input, shards), spec, threads, rows, None).await?;
    Ok(Whole { written_per_s, counted_per_s })
}

/// Runs the stream until `rows` rows are read; returns rows per second.
async fn run_once(
    config: &RunConfig,
    (input, shards): (&ImageInput, &[Object]),
    spec: &ImageSpec,
    threads: usize,
    rows: u64,
    folder: Option<&TemporaryPath>,
) -> Result<f64, PipelineError> {
    let chunks = config.chunks();
    let shutdown = Shutdown::default();
    let store = open_store(config.store());
    let ctx = RunContext {
        config: Arc::new(config.clone()),
        part: None,
        dir: Directory::read_only(&store, config.run_dir())?,
        store,
        pool: CpuPool::new(threads).map_err(|error| PipelineError::Input(error.to_string()))?,
        budget: ByteBudget::new(config.limits().memory.0),
        shutdown: shutdown.clone(),
        progress: ProgressRegistry::default(),
        events: Events::default(),
    };
    let stage_progress = ctx.progress.stage("images", "rows", 0);
    let job = StreamJob {
        input: input.clone(),
        shards: Arc::new(shards.to_vec()),
        part: Part::WHOLE,
        filter: ImageFilter::Everything,
        content: RowContent::Images(spec.clone()),
        views: Views::from_config(config),
        chunk_rows: u64::from(chunks.rows),
        generation: "bench".to_owned(),
        max_bad_fraction: 1.0,
        stage_progress: Arc::clone(&stage_progress),
    };
    let sink = match folder {
        Some(folder) => {
            let directory = LocalDirectory::create(&folder.path)?.into();
            let journal = Journal::open(directory, Layout::train("chunks"), "bench", Part::WHOLE)?;
            let compression = if config.model().is_some() { Compression::None } else { chunks.compression };
            Sink::Product(journal, compression)
        }
        None => Sink::Discard,
    };
    let start = StartPoint::fresh(shards.len() as u32);
    let started = Instant::now();
    let mut running = tokio::spawn(async move { stream_images(&ctx, job, start, sink).await });
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended?,
            () = tokio::time::sleep(CHECK_INTERVAL) => {
                if stage_progress.progress().0 >= rows || started.elapsed() >= MAX_TIME {
                    shutdown.raise(Signal::Interrupt);
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
