//! The command line: arguments, progress, printing and exit codes. The only place that prints.
//!
//! Results go to standard output, as text or with `--json` as JSON; progress, logs and errors go to standard error. An
//! error is one sentence. Exit codes: 0 done; 2 the command line or the configuration is wrong; 3 the input cannot be
//! used; 4 a store cannot be reached or refuses; 5 the device or the model fails; 130 and 143 stopped after saving.

mod args;
mod device;
mod metrics;
mod progress;
mod show;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};

use crate::config::plan::Stage;
use crate::config::{self, RunConfig};
use crate::pipeline::{self, PipelineError, Request};
use crate::predict::evaluate::evaluate;
use crate::runtime::{Shutdown, Signal};
use crate::sample::{self, SampleOptions};
use crate::telemetry::ProgressRegistry;

use args::{Args, Command, ConfigCommand, Files};

/// Time between a signal and the end of the process: clouds give little more before they take the machine.
const STOP_WITHIN: std::time::Duration = std::time::Duration::from_secs(9);

/// Threads for file I/O. Few of it goes on at once (two ranges of each open shard, a chunk being written and one being committed, one being
/// read, a window of features), and the system's allocator keeps memory for each thread that ever took part.
const BLOCKING_THREADS: usize = 8;

/// What the first panic of the process said.
static FIRST_PANIC: OnceLock<String> = OnceLock::new();

/// Most of it that is shown.
const PANIC_CHARS: usize = 200;

/// Why a command failed.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        let mut message = pipeline::chain(&error);
        // The device's libraries panic where they fail, often on threads of their own; the first one says why.
        if let Some(said) = FIRST_PANIC.get().filter(|_| error.is_panic()) {
            message.push_str(&format!(" (it said: {said})"));
        }
        Self::new(error.exit_code(), message)
    }
}

/// Errors of small commands, whose cause is always a file that was named on the command line.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(3, format!("{error:#}"))
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    if let Some(code) = device::probe() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let code = if error.use_stderr() { 2 } else { 0 };
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    let screen = progress::Screen::new(args.json);
    progress::start_log(&screen, args.verbose);
    std::panic::set_hook(Box::new(|info| {
        // The thread's owner turns the panic into one sentence; where it happened helps whoever gets the report.
        tracing::debug!(location = ?info.location(), "internal error");
        let said = info.payload_as_str().and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty()));
        crate::device::note_panic(std::thread::current().name());
        FIRST_PANIC.get_or_init(|| said.unwrap_or("nothing").chars().take(PANIC_CHARS).collect());
    }));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(args, &screen)));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            complain(&failure.message);
            ExitCode::from(failure.code)
        }
        Err(_) => {
            complain("an internal error ended the program; run it again with -vv and report what it logs");
            ExitCode::from(5)
        }
    }
}

fn complain(message: &str) {
    let mut lines = message.lines();
    let mut out = std::io::stderr().lock();
    if let Some(first) = lines.next() {
        writeln!(out, "error: {first}").ok();
    }
    for line in lines {
        writeln!(out, "       {line}").ok();
    }
}

/// Writes to standard output; a reader that went away is no error of ours.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).ok();
    if !text.ends_with('\n') {
        out.write_all(b"\n").ok();
    }
    out.flush().ok();
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(5, error.to_string()))?;
    print(&text);
    Ok(())
}

/// Prints a result as JSON or as text.
fn give(json: bool, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if json {
        return print_json(value);
    }
    print(&text());
    Ok(())
}

fn dispatch(args: Args, screen: &progress::Screen) -> Result<(), Failure> {
    let json = args.json;
    match args.command {
        Command::Run { files, from, fresh, metrics } => {
            let from = if fresh { Some(Stage::Catalog) } else { from.map(Into::into) };
            run(plan(&files)?, Request { predict_only: false, from }, metrics.as_deref(), screen)
        }
        Command::Predict { files, captions, output } => {
            let request = Request { predict_only: true, from: None };
            let plan = plan(&files)?.rank(captions, output).map_err(|error| named(&files.config, &error))?;
            run(plan, request, None, screen)
        }
        Command::Status { run_dir, machine, shards } => {
            let store = self::machine(machine.as_deref())?.store;
            let status = pipeline::Status::read(&run_dir, &store)?;
            give(json, &show::LiveStatus::new(&status), || show::status(&run_dir, &status, shards))
        }
        Command::Check { files } => check(&files, json),
        Command::Sample { out, train_images, test_images, seed } => {
            let report = draw(&out, &SampleOptions { train_images, test_images, seed })?;
            give(json, &report, || show::sample(&out, &report))
        }
        Command::Evaluate { submission, truth, ids } => score(&submission, &truth, ids.as_deref(), json),
        Command::Inspect { path } => {
            let found = pipeline::inspect(&path)?;
            give(json, &found, || show::inspection(&path, &found))
        }
        Command::Export { files, out } => device::export(&plan(&files)?, &out, json),
        Command::Devices { machine } => device::list(&self::machine(machine.as_deref())?.device, json),
        Command::Bench { config: Some(_), command: Some(_), .. } => {
            Err(Failure::new(2, "`bench` takes `--config` or a part of the device, not both".to_owned()))
        }
        Command::Bench { machine, command: Some(command), .. } => {
            device::bench(command, &self::machine(machine.as_deref())?, json)
        }
        Command::Bench { config, machine, command: None } => {
            let config = config.ok_or_else(|| Failure::new(2, "`bench` needs `--config FILE`".to_owned()))?;
            let plan = plan(&Files { config, machine })?;
            let report = runtime(pipeline::workers(&plan))?.block_on(pipeline::ingest::ingest(plan))?;
            give(json, &report, || show::ingest(&report))
        }
        Command::Config { command: ConfigCommand::Reference } => {
            print(&config::reference::text());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut command = Args::command();
            let name = command.get_name().to_owned();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, name, &mut script);
            print(&String::from_utf8_lossy(&script));
            Ok(())
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(2, format!("`{}` cannot be read: {error}", path.display())))
}

/// What is wrong with a configuration file, a line each.
fn named(path: &Path, error: &config::ConfigError) -> Failure {
    let lines: Vec<String> = error.0.iter().map(|problem| format!("`{}`: {problem}", path.display())).collect();
    Failure::new(2, lines.join("\n"))
}

/// Reads a machine file; without one, the defaults.
fn machine(path: Option<&Path>) -> Result<config::raw::RawMachine, Failure> {
    path.map_or_else(
        || Ok(config::raw::RawMachine::default()),
        |path| config::machine(&read(path)?).map_err(|error| named(path, &error)),
    )
}

/// Reads and checks both files.
fn plan(files: &Files) -> Result<RunConfig, Failure> {
    let pipeline = config::pipeline(&read(&files.config)?).map_err(|error| named(&files.config, &error))?;
    let machine = machine(files.machine.as_deref())?;
    let both = files.machine.as_ref().map_or_else(
        || files.config.clone(),
        |machine| format!("{} and {}", files.config.display(), machine.display()).into(),
    );
    RunConfig::check(pipeline, machine).map_err(|error| named(&both, &error))
}

/// With threads for file I/O, and for each block of images that is decoded: as many as decoding threads work on, and some that wait.
fn runtime(decoding_threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS + 2 * decoding_threads)
        .build()
        .map_err(|error| Failure::new(5, format!("the system gives no threads: {error}")))
}

fn draw(out: &Path, options: &SampleOptions) -> Result<sample::SampleReport, Failure> {
    sample::write(out, options).map_err(|error| {
        let code = match error {
            sample::SampleError::Count { .. } | sample::SampleError::Nameless { .. } => 2,
            _ => 4,
        };
        Failure::new(code, pipeline::chain(&error))
    })
}

fn run(plan: RunConfig, request: Request, metrics: Option<&str>, screen: &progress::Screen) -> Result<(), Failure> {
    // An address that is taken should show before a corpus is drawn.
    let listener = metrics.map(metrics::bind).transpose().map_err(|message| Failure::new(2, message))?;
    if let Some(wanted) = &plan.pipeline().sample {
        let out = Path::new(&wanted.out);
        if !out.join("sample.json").is_file() {
            tracing::info!(out = wanted.out, images = wanted.train_images, "drawing the sample corpus");
            let (train_images, test_images) = (wanted.train_images, wanted.test_images);
            draw(out, &SampleOptions { train_images, test_images, seed: wanted.seed })?;
        }
    }
    let (registry, stop) = (ProgressRegistry::default(), Shutdown::default());
    let runtime = runtime(pipeline::workers(&plan))?;
    let outcome = runtime.block_on(async {
        let signals = tokio::spawn(listen(stop.clone()));
        if let Some(listener) = listener {
            tokio::spawn(metrics::serve(listener, registry.clone(), stop.clone()));
        }
        let shown = screen.follow(&registry);
        // On a task of its own, so that a panic in it is an error here.
        let run = Box::pin(pipeline::run(plan, request, registry.clone(), stop.clone()));
        let outcome = tokio::spawn(run).await.unwrap_or_else(|error| Err(error.into()));
        shown.end();
        signals.abort();
        outcome
    });
    // Blocking jobs of a stopped run must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    let report = outcome?;
    give(screen.json(), &report, || show::report(&report))
}

/// The first signal asks the run to stop; a second one ends the process at once, which is as safe as a kill.
async fn listen(stop: Shutdown) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be caught; a stopped run resumes all the same");
        return;
    };
    loop {
        let got = tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        };
        if stop.is_raised() {
            #[expect(clippy::exit, reason = "the user insists; what is committed is durable")]
            std::process::exit(i32::from(got.exit_code()));
        }
        tracing::warn!("stopping after saving; once more to stop at once");
        stop.raise(got);
        tokio::spawn(async move {
            tokio::time::sleep(STOP_WITHIN).await;
            tracing::warn!("what is in hand takes too long to save; it will be done again");
            #[expect(clippy::exit, reason = "the machine may be gone any moment; what is committed is durable")]
            std::process::exit(i32::from(got.exit_code()));
        });
    }
}

fn check(files: &Files, json: bool) -> Result<(), Failure> {
    let plan = plan(files)?;
    let found = runtime(0)?.block_on(pipeline::check(&plan));
    if json {
        print_json(&found)?;
    } else {
        print(&show::check(&found));
    }
    if found.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(found.exit_code, found.problems.join("\n")))
}

fn score(submission: &Path, truth: &Path, ids: Option<&Path>, json: bool) -> Result<(), Failure> {
    let open =
        |path: &Path| std::fs::File::open(path).with_context(|| format!("`{}` cannot be opened", path.display()));
    let scores = evaluate(open(submission)?, open(truth)?)
        .with_context(|| format!("`{}` against `{}`", submission.display(), truth.display()))?;
    let ceiling = ids.map(device::ceiling_of).transpose()?;
    if json {
        let mut value = serde_json::to_value(scores).map_err(|error| Failure::new(5, error.to_string()))?;
        if let (Some(ceiling), Some(map)) = (ceiling, value.as_object_mut()) {
            map.insert("ndcg5_ceiling".to_owned(), ceiling.into());
        }
        return print_json(&value);
    }
    print(&show::scores(&scores, ceiling));
    Ok(())
}
