//! What happens in a run, as JSON lines in its directory: `events/TIME-PROCESS.jsonl`, one file for each process.
//!
//! One event for what an operator would ask about later, none for each row. Nobody goes on from them.

use std::time::SystemTime;

use serde::Serialize;

use crate::chunk::spool::SpoolEntry;
use crate::run_dir::{Directory, Log, Process};
use crate::telemetry::StageProgress;

/// Folder of the files.
const FOLDER: &str = "events";

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event<'a> {
    /// A process began to work on the run.
    RunStarted { version: &'a str, process: u32, host: &'a str },
    /// It ended: `done`, `stopped` or `failed`.
    RunEnded { state: &'a str, detail: Option<&'a str> },
    /// A stage began; `resumed` units were done before.
    StageStarted { stage: &'a str, unit: &'a str, resumed: u64 },
    /// A stage came to its end.
    StageFinished { stage: &'a str, unit: &'a str, done: u64, seconds: f64, bottleneck: Option<&'a str> },
    /// A chunk is durable and in the journal.
    ChunkCommitted {
        stage: &'a str,
        shard: &'a str,
        row: u64,
        rows: u64,
        kept: u64,
        skipped: u64,
        quarantined: u64,
        ends_shard: bool,
    },
    /// A checkpoint is durable.
    CheckpointSaved { step: u64, epoch: u32, seconds: f64 },
    /// The validation images were scored.
    Validated { step: u64, epoch: u32, trial: u32, loss: f64, ndcg5: f64 },
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// Where events go; clones write to the same file.
#[derive(Debug, Clone, Default)]
pub(super) struct Events {
    log: Option<Log>,
}

impl Events {
    /// Starts this process's file. A run goes on without one where it cannot be made.
    pub(super) fn open(directory: &Directory) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "-");
        let name = format!("{FOLDER}/{now}-{}", Process::current().process);
        let log = directory.open_log(&name).inspect_err(|error| tracing::warn!(%error, "events are not written"));
        Self { log: log.ok() }
    }

    /// Notes an event.
    pub(super) fn note(&self, event: &Event<'_>) {
        let Some(log) = &self.log else { return };
        let line = Line { time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(), event };
        // Numbers and text alone: this cannot fail.
        if let Ok(text) = serde_json::to_string(&line) {
            log.append_line(&text);
        }
    }

    /// Uploads what is due, or everything with `all`.
    pub(super) fn flush(&self, all: bool) {
        if let Some(log) = &self.log {
            log.flush(all);
        }
    }

    /// Notes that a stage goes on from what its meter already counts.
    pub(super) fn started(&self, stage_progress: &StageProgress) {
        let now = stage_progress.snapshot();
        self.note(&Event::StageStarted { stage: &now.name, unit: now.unit, resumed: now.resumed });
    }

    /// Ends a stage's clocks and notes it.
    pub(super) fn finished(&self, stage_progress: &StageProgress) {
        stage_progress.finish();
        let now = stage_progress.snapshot();
        let (seconds, bottleneck) = (now.elapsed.as_secs_f64(), now.bottleneck().map(|(who, _)| who));
        self.note(&Event::StageFinished { stage: &now.name, unit: now.unit, done: now.done, seconds, bottleneck });
    }

    /// Counts a chunk that was just committed, and notes it.
    pub(super) fn committed(&self, stage_progress: &StageProgress, chunk: &SpoolEntry, shard: &str) {
        let (tally, ends_shard) = (&chunk.tally, chunk.last);
        let (skipped, quarantined) = (tally.skipped_rows(), tally.quarantined_rows());
        stage_progress.shard(chunk.id.shard as usize, |shard| {
            shard.rows += tally.rows;
            shard.kept += tally.kept;
            shard.skipped += skipped;
            shard.quarantined += quarantined;
            shard.done = ends_shard;
        });
        self.note(&Event::ChunkCommitted {
            stage: stage_progress.name(),
            shard,
            row: chunk.id.row,
            rows: tally.rows,
            kept: tally.kept,
            skipped,
            quarantined,
            ends_shard,
        });
    }
}
