//! Event log of a run: JSON lines in `events/TIME-HOST-PROCESS.jsonl` of the run directory, one file for each process. The
//! name of a process that works on a part ends with `-part-I-of-N`.
//!
//! Events cover everything that an operator may ask about later, but not single rows. Nothing resumes from the log.

use std::time::SystemTime;

use serde::Serialize;

use crate::chunk::spool::SpoolEntry;
use crate::run_dir::{Directory, Log, Process};
use crate::telemetry::{Party, StageProgress};
use crate::types::Part;

/// Folder of the log files.
const FOLDER: &str = "events";

/// An event.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// A process started to work on the run.
    RunStarted { version: &'a str, process: u32, host: &'a str },
    /// The kernel ended the previous process for lack of memory.
    PreviousKilled { detail: &'a str },
    /// The process ended; `state` is `done`, `stopped` or `failed`.
    RunEnded { state: &'a str, detail: Option<&'a str> },
    /// A stage started, after earlier processes had done `resumed` units of it.
    StageStarted { stage: &'a str, unit: &'a str, resumed: u64 },
    /// A stage is complete.
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
    /// A head was scored on the validation images.
    Validated { step: u64, epoch: u32, trial: u32, loss: f64, ndcg5: f64 },
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// Writer of the event log. Clones write to the same file; the default writes nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events {
    log: Option<Log>,
}

impl Events {
    /// Starts the log file of this process. If that fails, the run continues without events.
    pub(crate) fn open(directory: &Directory, part: Option<Part>) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "-");
        let Process { process, host, .. } = Process::current();
        // In containers all hosts may count their processes from 1.
        let host: String = host.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
        let part = part.map_or_else(String::new, |part| format!("-part-{}", part.folder()));
        let name = format!("{FOLDER}/{now}-{host}-{process}{part}");
        let log = directory.open_log(&name).inspect_err(|error| tracing::warn!(%error, "events are not written"));
        Self { log: log.ok() }
    }

    /// Writes an event.
    pub(crate) fn write(&self, event: &Event<'_>) {
        let Some(log) = &self.log else { return };
        let line = Line { time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(), event };
        // Numbers and strings serialise without error.
        if let Ok(text) = serde_json::to_string(&line) {
            log.append_line(&text);
        }
    }

    /// Uploads the part of the log that is due, or all of it.
    pub(crate) fn flush(&self, all: bool) {
        if let Some(log) = &self.log {
            log.flush(all);
        }
    }

    /// Writes the event that a stage started, with its resumed units.
    pub(crate) fn stage_started(&self, stage_progress: &StageProgress) {
        let now = stage_progress.snapshot();
        if now.resumed > 0 && now.total.is_none_or(|total| now.done < total) {
            tracing::info!(stage = now.name, "going on: {} {} are done", now.resumed, now.unit);
        }
        self.write(&Event::StageStarted { stage: &now.name, unit: now.unit, resumed: now.resumed });
    }

    /// Stops the timers of a stage and writes the event that it is complete.
    pub(crate) fn stage_finished(&self, stage_progress: &StageProgress) {
        stage_progress.finish();
        let now = stage_progress.snapshot();
        let (seconds, bottleneck) = (now.elapsed.as_secs_f64(), now.bottleneck().map(|(who, _)| who));
        let bottleneck = bottleneck.as_ref().map(Party::as_str);
        self.write(&Event::StageFinished { stage: &now.name, unit: now.unit, done: now.done, seconds, bottleneck });
    }

    /// Adds a committed chunk to the progress of its shard and writes an event.
    pub(crate) fn chunk_committed(&self, stage_progress: &StageProgress, chunk: &SpoolEntry, shard: &str) {
        let (tally, ends_shard) = (&chunk.tally, chunk.last);
        let (skipped, quarantined) = (tally.skipped_rows(), tally.quarantined_rows());
        stage_progress.shard(chunk.id.shard as usize, |shard| {
            shard.rows += tally.rows;
            shard.kept += tally.kept;
            shard.skipped += skipped;
            shard.quarantined += quarantined;
            shard.done = ends_shard;
        });
        self.write(&Event::ChunkCommitted {
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
