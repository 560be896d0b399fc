//! `status.json`: progress of a run for other processes.
//!
//! The process that works on the run writes the file every second (every 10 s on S3); `status` reads it. Nothing
//! resumes from it, and a failure to write it does not stop the run.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use super::events::{Event, Events};
use super::report;
use crate::config::StoreConfig;
use crate::objects::StoreError;
use crate::pipeline::claims::{self, PARTS_FOLDER};
use crate::pipeline::error::PipelineError;
use crate::pipeline::store::open_store;
use crate::run_dir::{Directory, Process};
use crate::runtime::Resources;
use crate::telemetry::ProgressRegistry;
use crate::types::Part;

mod content;
mod killed;

pub use content::{ContainerStatus, ReadingStatus, ShardStatus, StageStatus, State, Status};
pub(crate) use killed::report_killed_process;

/// Name of the file in the run directory.
pub(crate) const FILE: &str = "status.json";

/// Time between two updates on a local disk.
const LOCAL_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two updates on S3, where each is a paid request.
const REMOTE_INTERVAL: Duration = Duration::from_secs(10);
/// Missed updates after which a process counts as dead. [`GRACE`] comes on top.
const MAX_MISSED: u32 = 3;
/// Tolerance for differing clocks, on top of the missed updates.
const GRACE: Duration = Duration::from_secs(10);
/// Timeout of the last update, since the process is about to exit.
const LAST_UPDATE_TIMEOUT: Duration = Duration::from_secs(3);

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Removes the status of the previous process, after its report was written.
///
/// # Errors
/// When the run directory cannot be written.
pub(crate) fn forget(directory: &Directory) -> Result<(), StoreError> {
    directory.remove(FILE)
}

/// A file that holds the status of a run, or of a part: name, part, content.
type StatusFile = (String, Option<Part>, Vec<u8>);

/// Reads the files that hold the status of a run, without a part, and of each part.
fn read_files(directory: &Directory) -> Result<Vec<StatusFile>, StoreError> {
    let folders = directory.list(PARTS_FOLDER)?;
    let parts = folders.iter().filter_map(|name| Part::from_folder(name));
    let files = std::iter::once((FILE.to_owned(), None))
        .chain(parts.map(|part| (format!("{}/{FILE}", claims::part_folder(part)), Some(part))));
    let (names, parts): (Vec<String>, Vec<Option<Part>>) = files.unzip();
    let contents = directory.read_all(&names)?;
    let files = names.into_iter().zip(parts).zip(contents);
    Ok(files.filter_map(|((name, part), content)| Some((name, part, content?))).collect())
}

/// Merges the statuses of a run and of its parts; `None` without any.
fn merge(found: Vec<(Option<Part>, Status)>) -> Option<Status> {
    let (mut whole, mut parts) = (None, BTreeMap::new());
    for (part, status) in found {
        match part {
            Some(part) => drop(parts.insert(part, status)),
            None => whole = Some(status),
        }
    }
    super::parts::merge(whole, &parts)
}

impl Status {
    /// Reads the status of a run directory, which is a path or URL.
    ///
    /// # Errors
    /// When the directory has no status, or it cannot be read.
    pub fn read(run_dir: &str, store: &StoreConfig) -> Result<Self, PipelineError> {
        let directory = Directory::read_only(&open_store(store), run_dir)?;
        let parse = |(name, part, content): (String, Option<Part>, Vec<u8>)| {
            let status = serde_json::from_slice::<Self>(&content).map_err(|error| {
                let path = directory.display(&name);
                PipelineError::Input(format!("`{path}` is not a status of this version ({error})"))
            })?;
            Ok::<_, PipelineError>((part, status))
        };
        let found = read_files(&directory)?.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if let Some(status) = merge(found) {
            return Ok(status);
        }
        Err(if directory.read("run.toml")?.is_some() {
            PipelineError::Input(format!("no process has reported on `{run_dir}` yet"))
        } else {
            let advice = "`run.toml` is missing; give the `run.dir` of a pipeline file";
            PipelineError::Input(format!("`{run_dir}` holds no run: {advice}"))
        })
    }

    /// Reads the status of a run directory, with all parts; `None` if there is none that this version understands.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read_known(directory: &Directory) -> Result<Option<Self>, StoreError> {
        let parse =
            |(_, part, content): (String, Option<Part>, Vec<u8>)| Some((part, serde_json::from_slice(&content).ok()?));
        Ok(merge(read_files(directory)?.into_iter().filter_map(parse).collect()))
    }

    /// Reads the status that the previous process of a run left; `None` if there is none that this version understands.
    pub(crate) fn previous(directory: &Directory) -> Option<Self> {
        serde_json::from_slice(&directory.read(FILE).ok()??).ok()
    }

    /// Returns the time since the last update, by the clock of this machine.
    pub fn age(&self) -> Duration {
        let written = humantime::parse_rfc3339(&self.updated).unwrap_or(SystemTime::UNIX_EPOCH);
        SystemTime::now().duration_since(written).unwrap_or_default()
    }

    /// Whether the process appears to be alive.
    pub fn is_live(&self) -> bool {
        let silent = self.age() > Duration::from_secs(self.every_s) * MAX_MISSED + GRACE;
        self.state == State::Running && !self.process.is_gone() && !silent
    }

    /// Updates all variable fields to their current values.
    fn refresh(&mut self, registry: &ProgressRegistry) {
        self.updated = now();
        self.stages = registry.snapshots().iter().map(Into::into).collect();
        self.memory_bytes = report::memory_bytes();
        self.peak_memory_bytes = report::peak_memory_bytes();
        self.container = Some(Resources::read().into());
        self.readings = registry
            .readings()
            .into_iter()
            .map(|reading| (reading.name.to_owned(), ReadingStatus { value: reading.value, limit: reading.limit }))
            .collect();
    }
}

/// Writer of `status.json` on its own thread, until the run ends. No stage waits for it.
#[derive(Debug)]
pub(crate) struct Reporter {
    outcome: SyncSender<(State, Option<String>)>,
    finished: Receiver<()>,
}

impl Reporter {
    /// Writes the event that the run started, and starts the thread. `started` is the start of the process, and `report`
    /// the report that it writes at its end.
    pub(crate) fn start(
        directory: Directory,
        registry: ProgressRegistry,
        events: Events,
        part: Option<Part>,
        started: &str,
        report: &str,
    ) -> Self {
        let name = part.map_or_else(|| FILE.to_owned(), |part| format!("{}/{FILE}", claims::part_folder(part)));
        let (outcome, ended) = sync_channel(1);
        let (done, finished) = sync_channel(1);
        let interval = if directory.is_remote() { REMOTE_INTERVAL } else { LOCAL_INTERVAL };
        let status = Status {
            process: Process::current(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            part: part.map(|part| part.to_string()),
            started: started.to_owned(),
            report: report.to_owned(),
            every_s: interval.as_secs(),
            ..Status::default()
        };
        let (version, host) = (&status.version, &status.process.host);
        events.write(&Event::RunStarted { version, process: status.process.process, host });
        let started = std::thread::Builder::new().name("status".to_owned()).spawn(move || {
            write_updates((&directory, &name), &registry, &events, status, &ended);
            done.send(()).ok();
        });
        if let Err(error) = started {
            tracing::warn!(%error, "the status is not written");
        }
        Self { outcome, finished }
    }

    /// Writes the last update and waits at most [`LAST_UPDATE_TIMEOUT`] for it. Blocks the thread.
    pub(crate) fn finish(self, state: State, detail: Option<String>) {
        self.outcome.try_send((state, detail)).ok();
        self.finished.recv_timeout(LAST_UPDATE_TIMEOUT).ok();
    }
}

fn write_updates(
    (directory, name): (&Directory, &str),
    registry: &ProgressRegistry,
    events: &Events,
    mut status: Status,
    ended: &Receiver<(State, Option<String>)>,
) {
    let interval = Duration::from_secs(status.every_s);
    loop {
        status.refresh(registry);
        // Numbers and strings serialise without error.
        let content = serde_json::to_vec_pretty(&status).unwrap_or_default();
        if let Err(error) = directory.write_volatile(name, &content) {
            tracing::debug!(%error, "the status was not written");
        }
        let is_last = status.state != State::Running;
        events.flush(is_last);
        if is_last {
            return;
        }
        match ended.recv_timeout(interval) {
            Ok((state, detail)) => {
                events.write(&Event::RunEnded { state: state.as_str(), detail: detail.as_deref() });
                (status.state, status.detail) = (state, detail);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The run panicked; leave the last update as it is.
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::LocalDirectory;

    fn directory() -> (tempfile::TempDir, Directory, String) {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path()).unwrap().into();
        let name = dir.path().display().to_string();
        (dir, directory, name)
    }

    #[test]
    fn status_is_readable_by_another_process() {
        let (_guard, directory, name) = directory();
        let error = Status::read(&name, &StoreConfig::default()).unwrap_err().to_string();
        assert!(error.contains("holds no run: `run.toml` is missing"), "{error}");
        let registry = ProgressRegistry::default();
        let stage_progress = registry.stage("images", "rows", 10);
        stage_progress.add(4);
        stage_progress.set_shards(vec![crate::telemetry::Shard {
            name: "part-0".to_owned(),
            bytes: 8,
            read_bytes: 2,
            ..Default::default()
        }]);
        let events = Events::open(&directory, None);
        let reporter = Reporter::start(directory.clone(), registry, events, None, &now(), report::FILE);
        while Status::read(&name, &StoreConfig::default()).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let live = Status::read(&name, &StoreConfig::default()).unwrap();
        assert!(live.is_live());
        assert_eq!((live.stages[0].done, live.stages[0].total, live.stages[0].shards[0].read), (4, Some(10), 0.25));
        reporter.finish(State::Stopped, Some("asked to".to_owned()));
        let last = Status::read(&name, &StoreConfig::default()).unwrap();
        assert_eq!((last.state, last.detail.as_deref(), last.is_live()), (State::Stopped, Some("asked to"), false));
        let events = directory.list("events").unwrap();
        let lines = String::from_utf8(directory.read(&format!("events/{}", events[0])).unwrap().unwrap()).unwrap();
        let kinds: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(kinds[0]["event"], "run_started");
        assert_eq!((&kinds[1]["event"], &kinds[1]["state"]), (&"run_ended".into(), &"stopped".into()));
    }

    #[test]
    fn gone_or_silent_process_is_not_live() {
        let this = Status { process: Process::current(), updated: now(), every_s: 1, ..Status::default() };
        assert!(this.is_live());
        let mut gone = Process::current();
        gone.process = u32::MAX;
        assert!(!Status { process: gone, ..this.clone() }.is_live());
        assert!(!Status { updated: "2026-01-01T00:00:00Z".to_owned(), ..this }.is_live());
    }
}
