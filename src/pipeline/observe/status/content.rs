//! Content of `status.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pipeline::observe::parts::PartStatus;
use crate::pipeline::observe::report::{self, Bottleneck, PartReport, StageReport};
use crate::run_dir::Process;
use crate::runtime::Resources;
use crate::telemetry::StageSnapshot;

/// State of a run's last process, as the process itself reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The process works on the run.
    #[default]
    Running,
    /// The process has completed every stage.
    Done,
    /// The process was asked to stop and saved its work.
    Stopped,
    /// The process failed.
    Failed,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// Progress of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// State of the process.
    pub state: State,
    /// Reason why the process failed or was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Part of the shards that the process works on, as `I/N`; absent for a whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// The process that works on the run.
    #[serde(flatten)]
    pub process: Process,
    /// Version of the program.
    pub version: String,
    /// Start time of the process, as RFC 3339.
    pub started: String,
    /// Time of this update, as RFC 3339.
    pub updated: String,
    /// Seconds between two updates.
    pub every_s: u64,
    /// Stages that have started, in their order.
    pub stages: Vec<StageStatus>,
    /// Parts of the run, if several processes work on it; `status` adds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartStatus>,
    /// Resident memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Largest resident memory so far in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Name of the report that the process writes at its end.
    #[serde(default = "default_report")]
    pub report: String,
    /// Memory of the control group or machine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<ContainerStatus>,
    /// Gauges and counters of the shared services.
    pub readings: BTreeMap<String, ReadingStatus>,
}

/// Memory of the control group in which a process runs, or of its machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Memory that the process may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Memory that all processes of the control group use, without file pages that the kernel can drop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Processes of the control group that the kernel has ended for lack of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Path of the control group.
    pub group: String,
}

impl From<Resources> for ContainerStatus {
    fn from(found: Resources) -> Self {
        Self {
            memory_limit_bytes: found.memory.map(|memory| memory.bytes),
            used_bytes: found.used_bytes.filter(|_| found.memory.is_some_and(|memory| memory.in_container)),
            oom_kills: found.oom_kills,
            group: found.group,
        }
    }
}

/// Progress of a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageStatus {
    /// Name of the stage.
    pub name: String,
    /// Unit of the counts.
    pub unit: String,
    /// Units done, including those of earlier processes.
    pub done: u64,
    /// Units that earlier processes had done.
    #[serde(default)]
    pub resumed: u64,
    /// Total number of units, if known or estimated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Units per second of this process.
    pub per_second: f64,
    /// Seconds since this process started the stage.
    pub seconds: f64,
    /// Estimated seconds left at `per_second`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
    /// True if the stage is complete.
    pub finished: bool,
    /// Party that limits the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<Bottleneck>,
    /// Times of the stage's parts.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parts: Vec<PartReport>,
    /// Shards of the stage, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shards: Vec<ShardStatus>,
}

/// Progress of a shard.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// URL of the shard.
    pub name: String,
    /// Number of committed rows.
    pub rows: u64,
    /// Number of kept rows.
    pub kept: u64,
    /// Number of skipped rows, which were not wanted.
    pub skipped: u64,
    /// Number of quarantined rows, which could not be used.
    pub quarantined: u64,
    /// Share of the shard's bytes read so far, from 0 to 1.
    pub read: f64,
    /// True if all rows of the shard are committed.
    pub done: bool,
}

/// Value of a gauge or counter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadingStatus {
    /// The value.
    pub value: u64,
    /// Upper limit of the value.
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
            resumed: stage.resumed.min(stage.done),
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

fn default_report() -> String {
    report::FILE.to_owned()
}
