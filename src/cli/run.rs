//! `run`: the stages, with progress on the screen, the servers beside them and a stop by signals.

use std::path::Path;
use std::time::{Duration, Instant};

use super::output::emit;
use super::{Failure, announce, metrics, progress, render, sample_failure};
use crate::config::RunConfig;
use crate::pipeline::{self, PipelineError, Report, Request};
use crate::runtime::{Shutdown, Signal};
use crate::sample::{self, SampleOptions};
use crate::serve::Server;
use crate::telemetry::ProgressRegistry;

/// Longest time between a signal and the end of the process. Clouds stop a machine about 10 s after the signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(9);

/// Threads for file I/O. A run has about eight file operations in flight, and the allocator keeps memory for every thread.
const BLOCKING_THREADS: usize = 8;

/// Time that blocking jobs of a stopped run get before the process ends without them.
const ABANDON_TIMEOUT: Duration = Duration::from_millis(200);

/// Form of a run's result.
#[derive(Clone, Copy)]
pub(super) struct RunOutput {
    pub(super) json: bool,
    pub(super) verbose: bool,
}

/// Addresses of the servers beside a run.
#[derive(Clone, Copy, Default)]
pub(super) struct Pages<'a> {
    pub(super) metrics: Option<&'a str>,
    pub(super) page: Option<&'a str>,
}

pub(super) fn run(
    config: RunConfig,
    request: Request,
    pages: Pages<'_>,
    screen: &progress::Screen,
    output: RunOutput,
) -> Result<(), Failure> {
    let started = Instant::now();
    let report = run_pipeline(config, request, pages, screen)?;
    emit(output.json, &report, || render::run(&report, started.elapsed(), output.verbose))
}

/// Runs the stages, with progress on the screen and the servers beside them.
pub(super) fn run_pipeline(
    config: RunConfig,
    request: Request,
    pages: Pages<'_>,
    screen: &progress::Screen,
) -> Result<Report, Failure> {
    // A port that is in use is reported before a corpus is rendered.
    let listener = pages.metrics.map(metrics::bind).transpose().map_err(|message| Failure::new(2, message))?;
    let dir = config.run_dir().to_owned();
    let page =
        pages.page.map(|address| announce(Server::beside_run(address, &dir, &config.machine().store))).transpose()?;
    render_sample(&config)?;
    run_to_end(pipeline::workers(&config), screen, |registry, shutdown| {
        if let Some(listener) = listener {
            tokio::spawn(metrics::serve(listener, registry.clone(), request.part, shutdown.clone()));
        }
        if let Some(page) = page {
            tokio::spawn(page.run(shutdown.clone()));
        }
        Box::pin(pipeline::run(config, request, registry, shutdown))
    })
}

/// Starts the runtime and does some work on it to its end, or to a signal, with progress on the screen.
pub(super) fn run_to_end<F>(
    decoding_threads: usize,
    screen: &progress::Screen,
    start: impl FnOnce(ProgressRegistry, Shutdown) -> F,
) -> Result<Report, Failure>
where
    F: Future<Output = Result<Report, PipelineError>> + Send + 'static,
{
    let (registry, shutdown) = (ProgressRegistry::default(), Shutdown::default());
    let runtime = start_runtime(decoding_threads)?;
    let outcome = runtime.block_on(async {
        let signals = tokio::spawn(watch_signals(shutdown.clone()));
        let display = screen.follow(&registry);
        // A task of its own turns a panic into an error.
        let work = start(registry.clone(), shutdown.clone());
        let outcome = tokio::spawn(work).await.unwrap_or_else(|error| Err(error.into()));
        display.end();
        signals.abort();
        outcome
    });
    runtime.shutdown_timeout(ABANDON_TIMEOUT);
    Ok(outcome?)
}

/// Asks the run to stop at the first signal and ends the process at the second, which is as safe as a kill.
pub(super) async fn watch_signals(shutdown: Shutdown) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be caught; a signal ends the run at once, and the same command resumes it");
        return;
    };
    loop {
        let signal = tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        };
        if shutdown.is_raised() {
            #[expect(clippy::exit, reason = "the second signal asks for it; committed work is durable")]
            std::process::exit(i32::from(signal.exit_code()));
        }
        tracing::warn!("stopping: saving finished work; a second signal stops at once");
        shutdown.raise(signal);
        tokio::spawn(async move {
            tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
            tracing::warn!("stopping without the unfinished work, which takes too long to save");
            #[expect(clippy::exit, reason = "the machine may go away any moment; committed work is durable")]
            std::process::exit(i32::from(signal.exit_code()));
        });
    }
}

/// Renders the corpus of the configuration's `[sample]`, unless it is there.
pub(super) fn render_sample(config: &RunConfig) -> Result<(), Failure> {
    let Some(sample) = config.sample() else { return Ok(()) };
    let out = Path::new(&sample.out);
    let (train_images, test_images) = (sample.train_images, sample.test_images);
    if !out.join("sample.json").is_file() {
        tracing::info!("rendering a corpus of {train_images} training images into `{}`", sample.out);
    }
    let options = SampleOptions { train_images, test_images, seed: sample.seed, ..SampleOptions::default() };
    let waits = || tracing::info!("waiting for another process, which renders a corpus beside `{}`", sample.out);
    sample::write_if_absent(out, &options, waits).map_err(|error| sample_failure(&error))
}

/// Starts the async runtime, with threads for file I/O and for blocks of images that are decoded or wait for it.
pub(super) fn start_runtime(decoding_threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS + 2 * decoding_threads)
        .build()
        .map_err(|error| Failure::new(5, format!("cannot start threads: {error}")))
}
