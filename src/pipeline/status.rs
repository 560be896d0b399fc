//! How far a run is, for other processes: `status.json` in the run directory, written every second (every 10 s on S3) by the
//! process that works on it, and read by `status`.
//!
//! It is a report and no record: nobody goes on from it, and a run whose status cannot be written goes on all the same.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::PipelineError;
use super::events::{Event, Events};
use super::report::{Bottleneck, PartReport, StageReport};
use crate::config::raw::RawStore;
use crate::objects::StoreError;
use crate::run_dir::{Directory, Process};
use crate::telemetry::{ProgressRegistry, StageSnapshot};

/// Name of the file.
const FILE: &str = "status.json";
/// Time between two reports on a local disk.
const LOCAL_EVERY: Duration = Duration::from_secs(1);
/// Time between two reports on S3, where each is a request that costs.
const REMOTE_EVERY: Duration = Duration::from_secs(10);
/// Reports missed, and time beside, after which a process counts as silent.
const MISSED: u32 = 3;
const GRACE: Duration = Duration::from_secs(10);
/// Time that the last report may take: the process is about to end.
const LAST_WITHIN: Duration = Duration::from_secs(3);

/// What became of a run's last process, by its own word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is at work.
    #[default]
    Running,
    /// Every stage is done.
    Done,
    /// It was asked to stop, and saved.
    Stopped,
    /// It failed.
    Failed,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What became of the process, by its own word.
    pub state: State,
    /// Why it failed or was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// The program's version.
    pub version: String,
    /// When it started.
    pub started: String,
    /// When it wrote this.
    pub updated: String,
    /// Seconds between two reports.
    pub every_s: u64,
    /// The stages so far, in their order.
    pub stages: Vec<StageStatus>,
    /// Resident memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What the stages share.
    pub readings: BTreeMap<String, ReadingStatus>,
}

/// How far a stage is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageStatus {
    /// Stage.
    pub name: String,
    /// What it counts.
    pub unit: String,
    /// Units done, those of earlier processes included.
    pub done: u64,
    /// Units in all, where that is known or can be estimated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Units per second of this process.
    pub per_second: f64,
    /// Seconds of this process.
    pub seconds: f64,
    /// Seconds to the end at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
    /// Whether it is over.
    pub finished: bool,
    /// Who holds it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<Bottleneck>,
    /// Where the time goes.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parts: Vec<PartReport>,
    /// Its shards, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shards: Vec<ShardStatus>,
}

/// How far a shard is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its name.
    pub name: String,
    /// Rows whose fate is committed.
    pub rows: u64,
    /// Of these, rows that were kept.
    pub kept: u64,
    /// Of these, rows that nothing wants.
    pub skipped: u64,
    /// Of these, rows that could not be used.
    pub quarantined: u64,
    /// Share of its bytes that was read, 0 to 1.
    pub read: f64,
    /// Whether all of its rows are committed.
    pub done: bool,
}

/// A reading and its limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadingStatus {
    /// The value.
    pub value: u64,
    /// The most that it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl From<&StageSnapshot> for StageStatus {
    fn from(stage: &StageSnapshot) -> Self {
        let StageReport { bottleneck, parts, .. } = StageReport::from(stage);
        let shards = stage.shards.iter().map(|shard| ShardStatus {
            name: shard.name.clone(),
            rows: shard.rows,
            kept: shard.kept,
            skipped: shard.skipped,
            quarantined: shard.quarantined,
            read: if shard.done || shard.bytes == 0 { 1.0 } else { shard.read_bytes as f64 / shard.bytes as f64 },
            done: shard.done,
        });
        Self {
            name: stage.name.clone(),
            unit: stage.unit.to_owned(),
            done: stage.done,
            total: stage.total,
            per_second: stage.rate(),
            seconds: stage.elapsed.as_secs_f64(),
            left_s: stage.eta().filter(|_| !stage.finished).map(|left| left.as_secs()),
            finished: stage.finished,
            bottleneck,
            parts,
            shards: shards.collect(),
        }
    }
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

impl Status {
    /// Reads the status of a run directory, a path or URL.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn read(run_dir: &str, store: &RawStore) -> Result<Self, PipelineError> {
        let directory = Directory::read_only(&super::store(store), run_dir)?;
        let Some(content) = directory.read(FILE)? else {
            return Err(if directory.read("run.toml")?.is_some() {
                PipelineError::Input(format!("no process has reported on `{run_dir}` yet"))
            } else {
                StoreError::NotFound { url: directory.display("run.toml") }.into()
            });
        };
        serde_json::from_slice(&content).map_err(|error| {
            PipelineError::Input(format!("`{}` is no status of this version ({error})", directory.display(FILE)))
        })
    }

    /// Time since it was written, by this machine's clock.
    pub fn age(&self) -> Duration {
        let written = humantime::parse_rfc3339(&self.updated).unwrap_or(SystemTime::UNIX_EPOCH);
        SystemTime::now().duration_since(written).unwrap_or_default()
    }

    /// Whether the process seems to be at work.
    pub fn is_live(&self) -> bool {
        let silent = self.age() > Duration::from_secs(self.every_s) * MISSED + GRACE;
        self.state == State::Running && !self.process.is_gone() && !silent
    }

    fn take(&mut self, registry: &ProgressRegistry) {
        self.updated = now();
        self.stages = registry.snapshots().iter().map(Into::into).collect();
        self.memory_bytes = super::report::memory_bytes();
        self.readings = registry
            .readings()
            .into_iter()
            .map(|reading| (reading.name.to_owned(), ReadingStatus { value: reading.value, limit: reading.limit }))
            .collect();
    }
}

/// Reports on a run until it ends, on a thread of its own: no stage waits for it.
#[derive(Debug)]
pub(super) struct Reporter {
    end: SyncSender<(State, Option<String>)>,
    over: Receiver<()>,
}

impl Reporter {
    pub(super) fn start(directory: Directory, registry: ProgressRegistry, events: Events) -> Self {
        let (end, ended) = sync_channel(1);
        let (done, over) = sync_channel(1);
        let every = if directory.is_remote() { REMOTE_EVERY } else { LOCAL_EVERY };
        let status = Status {
            process: Process::current(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: now(),
            every_s: every.as_secs(),
            ..Status::default()
        };
        let (version, host) = (&status.version, &status.process.host);
        events.note(&Event::RunStarted { version, process: status.process.process, host });
        let started = std::thread::Builder::new().name("status".to_owned()).spawn(move || {
            report(&directory, &registry, &events, status, &ended);
            done.send(()).ok();
        });
        if let Err(error) = started {
            tracing::warn!(%error, "the status is not written");
        }
        Self { end, over }
    }

    /// Writes the last report. It is waited for as long as a process that is about to end can.
    pub(super) fn end(self, state: State, detail: Option<String>) {
        self.end.try_send((state, detail)).ok();
        self.over.recv_timeout(LAST_WITHIN).ok();
    }
}

fn report(
    directory: &Directory,
    registry: &ProgressRegistry,
    events: &Events,
    mut status: Status,
    ended: &Receiver<(State, Option<String>)>,
) {
    let every = Duration::from_secs(status.every_s);
    loop {
        status.take(registry);
        // Numbers and text alone: this cannot fail.
        let content = serde_json::to_vec_pretty(&status).unwrap_or_default();
        if let Err(error) = directory.write_volatile(FILE, &content) {
            tracing::debug!(%error, "the status was not written");
        }
        let over = status.state != State::Running;
        events.flush(over);
        if over {
            return;
        }
        match ended.recv_timeout(every) {
            Ok((state, detail)) => {
                events.note(&Event::RunEnded { state: state.as_str(), detail: detail.as_deref() });
                (status.state, status.detail) = (state, detail);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The run is gone without a word; the last report stays as it is.
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
    fn another_process_reads_how_far_a_run_is() {
        let (_guard, directory, name) = directory();
        let error = Status::read(&name, &RawStore::default()).unwrap_err().to_string();
        assert!(error.contains("run.toml` does not exist"), "{error}");
        let registry = ProgressRegistry::default();
        let stage_progress = registry.stage("images", "rows", 10);
        stage_progress.add(4);
        stage_progress.set_shards(vec![crate::telemetry::Shard {
            name: "part-0".to_owned(),
            bytes: 8,
            read_bytes: 2,
            ..Default::default()
        }]);
        let reporter = Reporter::start(directory.clone(), registry, Events::open(&directory));
        while Status::read(&name, &RawStore::default()).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let live = Status::read(&name, &RawStore::default()).unwrap();
        assert!(live.is_live());
        assert_eq!((live.stages[0].done, live.stages[0].total, live.stages[0].shards[0].read), (4, Some(10), 0.25));
        reporter.end(State::Stopped, Some("asked to".to_owned()));
        let last = Status::read(&name, &RawStore::default()).unwrap();
        assert_eq!((last.state, last.detail.as_deref(), last.is_live()), (State::Stopped, Some("asked to"), false));
        let events = directory.list("events").unwrap();
        let lines = String::from_utf8(directory.read(&format!("events/{}", events[0])).unwrap().unwrap()).unwrap();
        let kinds: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(kinds[0]["event"], "run_started");
        assert_eq!((&kinds[1]["event"], &kinds[1]["state"]), (&"run_ended".into(), &"stopped".into()));
    }

    #[test]
    fn a_process_that_is_gone_or_silent_is_not_live() {
        let this = Status { process: Process::current(), updated: now(), every_s: 1, ..Status::default() };
        assert!(this.is_live());
        let mut gone = Process::current();
        gone.process = u32::MAX;
        assert!(!Status { process: gone, ..this.clone() }.is_live());
        assert!(!Status { updated: "2026-01-01T00:00:00Z".to_owned(), ..this }.is_live());
    }
}
