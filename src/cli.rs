//! Command line: arguments, progress, printing and exit codes. The only module that prints.
//!
//! Results go to standard output, as text or with `--json` as JSON. Progress, logs and errors go to standard error. An error
//! is one sentence per problem. Exit codes: 0 done; 2 command line or configuration; 3 input; 4 storage; 5 device or model;
//! 130 and 143 stopped by a signal after saving.

mod args;
mod caption;
mod cards;
mod device;
mod failure;
mod files;
mod format;
mod init;
mod metrics;
mod output;
mod part;
mod predict;
mod progress;
mod render;
mod row;
mod run;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use crate::bench;
use crate::config::{self, AdHocCaptions, AdHocRanking, MachineConfig, RunConfig, Stage};
use crate::pipeline::{self, Request};
use crate::predict::evaluate::evaluate_files;
use crate::runtime::Shutdown;
use crate::sample::{self, SampleOptions};
use crate::serve::{ServeError, Server, compare};

use args::{Args, Command, ConfigCommand, Files};
use failure::{FIRST_PANIC, Failure};
use files::{config_failure, load_config, load_config_files, load_machine, load_share};
use output::{emit, print, print_failure, print_json, print_raw, print_usage_error};
use run::{Pages, RunOutput, render_sample, run, run_pipeline, run_to_end, start_runtime, watch_signals};

/// Exit code of `status --check` for a run that is neither alive nor complete; container health checks expect this one.
const UNHEALTHY: u8 = 1;

/// Longest part of a panic message that is shown, in characters.
const PANIC_CHARS: usize = 200;

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
            if !Stage::ALL.into_iter().any(|stage| config.runs(stage)) {
                return Err(Failure::new(
                    2,
                    "the pipeline file has no stage to run: `caption` writes the captions of its `[caption]`",
                ));
            }
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
        Command::Caption { files, images, ids, output: name, references, wait } => {
            let captions = AdHocCaptions { images, ids, output: name, references };
            caption::run(&files, captions, wait, screen, output)
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
        Command::Evaluate { captions: Some(captions), truth, .. } => caption::evaluate(&captions, &truth, json),
        Command::Evaluate { submission, truth, ids, captions: None } => {
            score(&submission.unwrap_or_default(), &truth, ids.as_deref(), json)
        }
        Command::Inspect { path, row: Some(row), output, machine } => {
            row::inspect(&path, &row, output.as_deref(), machine.as_deref(), json)
        }
        Command::Inspect { path, row: None, .. } => {
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
