//! Command line: arguments, progress, printing and exit codes. The only module that prints.
//!
//! Results go to standard output, as text or with `--json` as JSON. Progress, logs and errors go to standard error. An error
//! is one sentence per problem. Exit codes: 0 done; 2 command line or configuration; 3 input; 4 storage; 5 device or model;
//! 130 and 143 stopped by a signal after saving.

mod args;
mod cards;
mod device;
mod format;
mod init;
mod metrics;
mod output;
mod part;
mod predict;
mod progress;
mod render;

use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser as _;

use crate::bench;
use crate::config::{self, AdHocRanking, MachineConfig, MachineFile, PipelineFile, RunConfig, Stage};
use crate::pipeline::{self, PipelineError, Report, Request};
use crate::predict::evaluate::evaluate_files;
use crate::runtime::{Resources, Shutdown, Signal, usable_cores};
use crate::sample::{self, SampleOptions};
use crate::serve::{ServeError, Server, compare};
use crate::telemetry::ProgressRegistry;

use args::{Args, Command, ConfigCommand, Files};
use output::{emit, print, print_failure, print_json, print_raw, print_usage_error};

/// Longest time between a signal and the end of the process. Clouds stop a machine about 10 s after the signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(9);

/// Threads for file I/O. A run has about eight file operations in flight, and the allocator keeps memory for every thread.
const BLOCKING_THREADS: usize = 8;

/// Time that blocking jobs of a stopped run get before the process ends without them.
const ABANDON_TIMEOUT: Duration = Duration::from_millis(200);

/// Exit code of `status --check` for a run that is neither alive nor complete; container health checks expect this one.
const UNHEALTHY: u8 = 1;

/// Message of the first panic in this process.
static FIRST_PANIC: OnceLock<String> = OnceLock::new();

/// Longest part of a panic message that is shown, in characters.
const PANIC_CHARS: usize = 200;

/// Message and exit code of a failed command. An empty message prints nothing.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }

    /// Returns whether a signal asked for the end.
    fn is_stop(&self) -> bool {
        [Signal::Interrupt, Signal::Terminate].iter().any(|signal| signal.exit_code() == self.code)
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        let mut message = pipeline::chain(&error);
        // GPU libraries panic where they fail, often on their own threads; the first panic names the cause.
        if let Some(panic) = FIRST_PANIC.get().filter(|_| error.is_panic()) {
            message = with_cause(&message, panic);
        }
        Self::new(error.exit_code(), message)
    }
}

/// Adds the first panic to the message of a failure. `CubeCL` panics when the device has too little memory.
fn with_cause(message: &str, panic: &str) -> String {
    match panic.split_once("can't allocate buffer of size: ").and_then(|(_, bytes)| bytes.trim().parse::<u64>().ok()) {
        Some(bytes) => format!(
            "the device is out of memory: it has no {} MiB left; set a smaller `device.batch_size` or `train.batch_size`, or stop other users of the device",
            bytes.div_ceil(1 << 20)
        ),
        None => format!("{message} (cause: {panic})"),
    }
}

/// Converts errors of small commands; their cause is always a file named on the command line.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(3, format!("{error:#}"))
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    if let Some(code) = device::run_probe() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let code = if error.use_stderr() { 2 } else { 0 };
            print_usage_error(&error);
            return ExitCode::from(code);
        }
    };
    let screen = progress::Screen::new(args.quiet);
    progress::start_log(&screen, args.verbose, args.quiet);
    std::panic::set_hook(Box::new(|info| {
        // The owner of the thread reports the panic as one sentence; the location is for bug reports.
        tracing::debug!(location = ?info.location(), "internal error");
        let message = info.payload_as_str().and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty()));
        let file = info.location().map(std::panic::Location::file);
        crate::device::record_panic(std::thread::current().name(), file);
        FIRST_PANIC.get_or_init(|| message.unwrap_or("unknown").chars().take(PANIC_CHARS).collect());
    }));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(args, &screen)));
    let failure = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(_) => Failure::new(5, "internal error; run the command again with -vv and report what it prints"),
    };
    print_failure(&failure);
    ExitCode::from(failure.code)
}

fn dispatch(args: Args, screen: &progress::Screen) -> Result<(), Failure> {
    let json = args.json;
    let output = RunOutput { json, verbose: args.verbose > 0 };
    match args.command {
        Command::Run { files, cards: Some(cards), .. } => cards::run(&cards, &files, output),
        Command::Run { files, from, fresh, part, part_only, cards: None, share, child, metrics, serve } => {
            if child {
                cards::end_with_parent();
            }
            let part = part.as_deref().map(part::parse).transpose().map_err(|message| Failure::new(2, message))?;
            let config = load_share(&files, share.unwrap_or(1))?;
            let from = from.map(Stage::from);
            if let Some(stage) = from {
                require_stage(&config, stage)?;
            }
            let from = if fresh { Some(Stage::Catalog) } else { from };
            let request = Request { part, part_only, from, ..Request::default() };
            let pages = Pages { metrics: metrics.as_deref(), page: serve.as_deref() };
            run(config, request, pages, screen, output)
        }
        Command::Predict { files, captions, output: names, images, ids, truth, wait } => {
            let request = Request { predict_only: true, wait, ..Request::default() };
            let common = AdHocRanking { images, ids, truth, ..AdHocRanking::default() };
            let rankings = predict::pair_lists(captions, names, &common).map_err(|what| Failure::new(2, what))?;
            predict::run(&files, rankings, request, screen, output)
        }
        Command::Status { dir, run_dir, machine, shards, check } => {
            let run_dir = dir.or(run_dir).unwrap_or_default();
            let store = load_machine(machine.as_deref())?.store;
            let status = pipeline::Status::read(&run_dir, &store)?;
            emit(json, &render::LiveStatus::new(&status), || {
                render::status(&run_dir, &status, shards, output.verbose)
            })?;
            let healthy = status.is_live() || status.state == pipeline::status::State::Done;
            if check && !healthy { Err(Failure::new(UNHEALTHY, "")) } else { Ok(()) }
        }
        Command::Runs { dirs, machine } => {
            let store = load_machine(machine.as_deref())?.store;
            let comparison = compare(&dirs, &store).map_err(|error| page_failure(&error))?;
            emit(json, &comparison, || render::comparison(&comparison))
        }
        Command::Serve { dirs, address, machine } => serve(&address, &dirs, &load_machine(machine.as_deref())?),
        Command::Check { files } => check(&files, json),
        Command::Init { paths, output, run_dir, model, encoder, machine } => {
            let options = init::Options { paths, output, run_dir, model, encoder };
            init::init(&options, &load_machine(machine.as_deref())?.store, json)
        }
        Command::Sample { out, train_images, test_images, seed, format } => {
            let options = SampleOptions { train_images, test_images, seed, format: format.into() };
            let report = write_sample(&out, &options)?;
            emit(json, &report, || render::sample(&out, &report))
        }
        Command::Evaluate { submission, truth, ids } => score(&submission, &truth, ids.as_deref(), json),
        Command::Inspect { path } => {
            let inspection = pipeline::inspect(&path)?;
            emit(json, &inspection, || render::inspection(&path, &inspection))
        }
        Command::Export { files, out } => device::export(&load_config(&files)?, &out, json),
        Command::Devices { machine } => device::list(&load_machine(machine.as_deref())?.device, json),
        Command::Bench { config: Some(_), command: Some(_), .. } => {
            Err(Failure::new(2, "`bench` takes either `--config FILE` or a subcommand, not both"))
        }
        Command::Bench { machine, command: Some(command), .. } => {
            device::bench(command, &load_machine(machine.as_deref())?, json)
        }
        Command::Bench { config, machine, cluster, command: None } => {
            let config = config.ok_or_else(|| Failure::new(2, "`bench` needs `--config FILE` or a subcommand"))?;
            let config = load_config_files(&config, machine.as_deref())?;
            let runtime = start_runtime(pipeline::workers(&config))?;
            let report = runtime.block_on(bench::ingest::ingest(config, cluster.into()))?;
            emit(json, &report, || render::ingest(&report))
        }
        Command::Config { command: ConfigCommand::Reference } => {
            print(&config::reference::text());
            Ok(())
        }
        Command::Completions { shell } => {
            print_raw(&args::completion_script(shell));
            Ok(())
        }
    }
}

/// Refuses `--from` of a stage that the pipeline does not have.
fn require_stage(config: &RunConfig, stage: Stage) -> Result<(), Failure> {
    if config.runs(stage) {
        return Ok(());
    }
    let stages: Vec<&str> = Stage::ALL.into_iter().filter(|stage| config.runs(*stage)).map(Stage::as_str).collect();
    let (name, stages) = (stage.as_str(), stages.join(", "));
    Err(Failure::new(
        2,
        format!(
            "`--from {name}`: the pipeline has no stage `{name}`, because it has no {}; its stages are {stages}",
            stage.sections()
        ),
    ))
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(2, format!("`{}` cannot be read: {error}", path.display())))
}

/// Lists the problems of a configuration file, one per line.
fn config_failure(path: &Path, error: &config::ConfigError) -> Failure {
    let lines: Vec<String> = error.0.iter().map(|problem| format!("`{}`: {problem}", path.display())).collect();
    Failure::new(2, lines.join("\n"))
}

/// Reads a machine file without checking it; without one, returns the defaults. Adds the memory that this process may use.
fn read_machine_file(path: Option<&Path>) -> Result<MachineFile, Failure> {
    let file = path.map_or_else(
        || Ok(MachineFile::default()),
        |path| MachineFile::parse(&read_text(path)?).map_err(|error| config_failure(path, &error)),
    )?;
    Ok(file.with_available_memory(Resources::read().memory))
}

/// Reads and checks a machine file, for commands without a pipeline file.
fn load_machine(path: Option<&Path>) -> Result<MachineConfig, Failure> {
    MachineConfig::check(&read_machine_file(path)?)
        .map_err(|error| config_failure(path.unwrap_or(Path::new("")), &error))
}

/// Reads and checks both configuration files.
fn load_config(files: &Files) -> Result<RunConfig, Failure> {
    load_config_files(files.config(), files.machine.as_deref())
}

fn load_config_files(config: &Path, machine: Option<&Path>) -> Result<RunConfig, Failure> {
    check_config_files(config, machine, |machine| machine)
}

/// Reads both configuration files and takes one of `count` equal shares of the limits.
fn load_share(files: &Files, count: u32) -> Result<RunConfig, Failure> {
    let cores = usable_cores() as u32;
    check_config_files(files.config(), files.machine.as_deref(), |machine| {
        if count > 1 { machine.share(count, cores) } else { machine }
    })
}

fn check_config_files(
    config: &Path,
    machine: Option<&Path>,
    edit: impl FnOnce(MachineFile) -> MachineFile,
) -> Result<RunConfig, Failure> {
    let pipeline = PipelineFile::parse(&read_text(config)?).map_err(|error| config_failure(config, &error))?;
    let machine_file = edit(read_machine_file(machine)?);
    let both = machine
        .map_or_else(|| config.to_owned(), |machine| format!("{} and {}", config.display(), machine.display()).into());
    RunConfig::check(pipeline, &machine_file).map_err(|error| config_failure(&both, &error))
}

/// Starts the async runtime, with threads for file I/O and for blocks of images that are decoded or wait for it.
fn start_runtime(decoding_threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS + 2 * decoding_threads)
        .build()
        .map_err(|error| Failure::new(5, format!("cannot start threads: {error}")))
}

/// Renders the corpus of the configuration's `[sample]`, unless it is there.
fn render_sample(config: &RunConfig) -> Result<(), Failure> {
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

fn sample_failure(error: &sample::SampleError) -> Failure {
    let code = match error {
        sample::SampleError::Count { .. } | sample::SampleError::Nameless { .. } => 2,
        _ => 4,
    };
    Failure::new(code, pipeline::chain(error))
}

fn write_sample(out: &Path, options: &SampleOptions) -> Result<sample::SampleReport, Failure> {
    sample::write(out, options).map_err(|error| sample_failure(&error))
}

/// Form of a run's result.
#[derive(Clone, Copy)]
struct RunOutput {
    json: bool,
    verbose: bool,
}

/// Addresses of the servers beside a run.
#[derive(Clone, Copy, Default)]
struct Pages<'a> {
    metrics: Option<&'a str>,
    page: Option<&'a str>,
}

/// Serves the page until a signal ends the process; there is nothing to save.
fn serve(address: &str, dirs: &[String], machine: &MachineConfig) -> Result<(), Failure> {
    let server = announce(Server::open(address, dirs, &machine.store))?;
    let ended = start_runtime(0)?.block_on(server.run(Shutdown::default()));
    ended.map_err(|error| Failure::new(4, format!("the page cannot be served: {error}")))
}

fn page_failure(error: &ServeError) -> Failure {
    let code = match error {
        ServeError::Address { .. } => 2,
        ServeError::NoRun(_) => 3,
        ServeError::Store(_) => 4,
    };
    Failure::new(code, pipeline::chain(error))
}

/// Says where the page is, or why there is none.
fn announce(opened: Result<Server, ServeError>) -> Result<Server, Failure> {
    let server = opened.map_err(|error| page_failure(&error))?;
    tracing::info!("page at {}", server.url());
    if server.is_public() {
        tracing::warn!("anybody who can reach this machine can see the page, with pictures and captions of the run");
    }
    Ok(server)
}

fn run(
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
fn run_pipeline(
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
    let (registry, shutdown) = (ProgressRegistry::default(), Shutdown::default());
    let runtime = start_runtime(pipeline::workers(&config))?;
    let outcome = runtime.block_on(async {
        let signals = tokio::spawn(watch_signals(shutdown.clone()));
        if let Some(listener) = listener {
            tokio::spawn(metrics::serve(listener, registry.clone(), request.part, shutdown.clone()));
        }
        if let Some(page) = page {
            tokio::spawn(page.run(shutdown.clone()));
        }
        let display = screen.follow(&registry);
        // A task of its own turns a panic into an error.
        let run = Box::pin(pipeline::run(config, request, registry.clone(), shutdown.clone()));
        let outcome = tokio::spawn(run).await.unwrap_or_else(|error| Err(error.into()));
        display.end();
        signals.abort();
        outcome
    });
    runtime.shutdown_timeout(ABANDON_TIMEOUT);
    Ok(outcome?)
}

/// Asks the run to stop at the first signal and ends the process at the second, which is as safe as a kill.
async fn watch_signals(shutdown: Shutdown) {
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

/// Prints what a run would do. All problems are part of that output, so that nothing is left to standard error.
fn check(files: &Files, json: bool) -> Result<(), Failure> {
    let check = match load_config(files) {
        Ok(config) => start_runtime(0)?.block_on(pipeline::check(&config)),
        Err(failure) => pipeline::Check::refused(failure.message.lines(), failure.code),
    };
    emit(json, &check, || render::check(&check))?;
    if check.problems.is_empty() { Ok(()) } else { Err(Failure::new(check.exit_code, "")) }
}

fn score(submission: &Path, truth: &Path, ids: Option<&Path>, json: bool) -> Result<(), Failure> {
    let open =
        |path: &Path| std::fs::File::open(path).with_context(|| format!("`{}` cannot be opened", path.display()));
    if let (Ok(one), Ok(other)) = (submission.canonicalize(), truth.canonicalize())
        && one == other
    {
        let what = format!("`{}` is both the submission and the truth: name two files", submission.display());
        return Err(Failure::new(2, what));
    }
    let images = ids.map(device::read_test_images).transpose()?;
    let image_of = images.as_ref().map(|images| &images.image_of);
    let scores = evaluate_files(open(submission)?, open(truth)?, image_of)
        .with_context(|| format!("`{}` against `{}`", submission.display(), truth.display()))?;
    let ceiling = images.as_ref().map(|images| images.ndcg5_ceiling);
    if json {
        let mut value = serde_json::to_value(&scores).map_err(|error| Failure::new(5, error.to_string()))?;
        if let (Some(ceiling), Some(map)) = (ceiling, value.as_object_mut()) {
            map.insert("ndcg5_ceiling".to_owned(), ceiling.into());
        }
        return print_json(&value);
    }
    print(&render::scores(&scores, ceiling));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_memory_is_named_when_it_runs_out() {
        let panic = "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 20971520";
        let message = with_cause("the device stopped answering", panic);
        assert!(message.starts_with("the device is out of memory: it has no 20 MiB left; set a smaller"), "{message}");
        assert_eq!(with_cause("it failed", "why"), "it failed (cause: why)");
    }
}
