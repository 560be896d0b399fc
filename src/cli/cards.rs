//! `run --cards`: one process for each GPU of this machine, each with a part of the shards; then one process that trains and
//! predicts.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as ProcessSignal};

use super::args::Files;
use super::format::{count, duration, number};
use super::{Failure, RunOutput, load_config, render_sample, start_runtime, watch_signals};
use crate::config::{RunConfig, StoreConfig};
use crate::device;
use crate::pipeline::Status;
use crate::runtime::{Shutdown, Signal};

/// Time between two looks at the processes.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Time between two lines of progress.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Runs a pipeline on several cards.
pub(super) fn run(cards: &str, files: &Files, output: RunOutput) -> Result<(), Failure> {
    let config = load_config(files)?;
    if config.device().index != 0 {
        return Err(Failure::new(2, "`device.index` chooses a card, and so does --cards: remove one of them"));
    }
    let cards = list(cards)?;
    render_sample(&config)?;
    let runtime = start_runtime(0)?;
    runtime.block_on(async {
        let shutdown = Shutdown::default();
        let signals = tokio::spawn(watch_signals(shutdown.clone()));
        let outcome = run_all(&cards, files, &config, output, &shutdown).await;
        signals.abort();
        outcome
    })
}

/// Parses a list of cards; `all` stands for the usable ones.
fn list(cards: &str) -> Result<Vec<String>, Failure> {
    if cards == "all" {
        let found = device::probe_cuda();
        let usable = found.devices.iter().filter(|gpu| gpu.problem.is_none());
        let usable: Vec<String> = usable.map(|gpu| gpu.index.to_string()).collect();
        let problem = found.problem.unwrap_or_else(|| "there is none".to_owned());
        return if usable.is_empty() {
            Err(Failure::new(5, format!("--cards all: no card is usable: {problem}")))
        } else {
            Ok(usable)
        };
    }
    let listed: Vec<String> = cards.split(',').map(|card| card.trim().to_owned()).collect();
    let is_name = |card: &String| {
        !card.is_empty() && card.chars().all(|letter| letter.is_ascii_alphanumeric() || "-/".contains(letter))
    };
    let mut distinct = listed.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if listed.iter().all(is_name) && distinct.len() == listed.len() {
        return Ok(listed);
    }
    Err(Failure::new(2, format!("--cards: `{cards}` is neither `all` nor a list of different cards, such as `0,1`")))
}

async fn run_all(
    cards: &[String],
    files: &Files,
    config: &RunConfig,
    output: RunOutput,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let count = cards.len();
    let mut children = Vec::with_capacity(count);
    for (index, card) in cards.iter().enumerate() {
        let mut command = command(files, card)?;
        command.args(["--quiet", "--part-only", "--part", &format!("{index}/{count}"), "--share", &count.to_string()]);
        command.stdout(Stdio::null());
        children.push(Running::start(card, command)?);
    }
    tracing::info!("{count} processes stream the images, one for each card");
    wait_for_all(children, Some((config.run_dir(), config.store())), shutdown).await?;
    let mut command = command(files, &cards[0])?;
    command.args(output.json.then_some("--json")).args(output.verbose.then_some("--verbose"));
    wait_for_all(vec![Running::start(&cards[0], command)?], None, shutdown).await
}

/// Returns the command of a process on one card.
fn command(files: &Files, card: &str) -> Result<Command, Failure> {
    let program = std::env::current_exe();
    let program = program.map_err(|error| Failure::new(5, format!("the program's own path is unknown: {error}")))?;
    let mut command = Command::new(program);
    command.arg("run").arg("--config").arg(files.config()).env("CUDA_VISIBLE_DEVICES", card).stdin(Stdio::null());
    if let Some(machine) = &files.machine {
        command.arg("--machine").arg(machine);
    }
    // A signal from the terminal reaches this process alone, which passes it on once.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.arg("--child");
    Ok(command)
}

/// A process on a card.
struct Running {
    card: String,
    child: Child,
    exit_code: Option<u8>,
}

impl Running {
    fn start(card: &str, mut command: Command) -> Result<Self, Failure> {
        let child = command.spawn();
        let child = child.map_err(|error| Failure::new(5, format!("a process cannot be started: {error}")))?;
        Ok(Self { card: card.to_owned(), child, exit_code: None })
    }

    /// Looks whether the process has ended.
    fn poll(&mut self) {
        if self.exit_code.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.exit_code = Some(status.code().map_or(5, |code| code as u8));
        }
    }

    fn signal(&self, signal: ProcessSignal) {
        if let (None, Some(pid)) = (self.exit_code, Pid::from_raw(self.child.id() as i32)) {
            rustix::process::kill_process(pid, signal).ok();
        }
    }
}

/// Waits for all processes. Passes a signal on to them, and stops the others when one fails.
async fn wait_for_all(
    mut children: Vec<Running>,
    watched: Option<(&str, &StoreConfig)>,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    let (mut stopped, mut failed, mut reported) = (false, None, Instant::now());
    while children.iter().any(|child| child.exit_code.is_none()) {
        tokio::time::sleep(POLL_EVERY).await;
        children.iter_mut().for_each(Running::poll);
        if let Some(bad) = children.iter().find(|child| child.exit_code.is_some_and(|code| code != 0))
            && failed.is_none()
            && !stopped
        {
            tracing::warn!("the process on card {} failed; the others stop after saving", bad.card);
            failed = bad.exit_code;
        }
        if !stopped && (failed.is_some() || shutdown.is_raised()) {
            stopped = true;
            let signal = match shutdown.signal() {
                Some(Signal::Interrupt) => ProcessSignal::INT,
                Some(Signal::Terminate) | None => ProcessSignal::TERM,
            };
            for child in &children {
                child.signal(signal);
            }
        }
        if let Some((run_dir, store)) = watched
            && reported.elapsed() >= REPORT_EVERY
        {
            reported = Instant::now();
            let (run_dir, store) = (run_dir.to_owned(), store.clone());
            let status = tokio::task::spawn_blocking(move || Status::read(&run_dir, &store)).await;
            if let Ok(Ok(status)) = status {
                report(&status);
            }
        }
    }
    if let Some(signal) = shutdown.signal() {
        return Err(Failure::new(signal.exit_code(), "stopped after saving; run the same command again to resume"));
    }
    // The process has said why on standard error.
    failed.map_or(Ok(()), |code| Err(Failure::new(code, "")))
}

/// Logs the progress of all processes together.
fn report(status: &Status) {
    for stage in status.stages.iter().filter(|stage| !stage.finished) {
        let total = stage.total.map_or_else(String::new, |total| format!(" of about {}", count(total)));
        let left = stage.left_s.map_or_else(String::new, |left| format!(", {} left", duration(left as f64)));
        let (name, unit, rate) = (&stage.name, &stage.unit, number(stage.per_second));
        tracing::info!("{name}: {}{total} {unit}, {rate} {unit}/s{left}", count(stage.done));
    }
}

/// Asks the system to stop this process, after saving, when the process that started it ends.
pub(super) fn end_with_parent() {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(ProcessSignal::TERM)).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_cards_is_parsed() {
        assert_eq!(list("0, 2").ok().unwrap(), ["0", "2"]);
        for cards in ["", "0,", "0,0", "a b", "0;1"] {
            assert!(list(cards).err().unwrap().message.contains("nor a list of different cards"), "{cards}");
        }
    }
}
