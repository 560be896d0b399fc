//! The processes of a run: what each did, and totals over all.

use serde::{Deserialize, Serialize};

use super::{PartReport, Report, StageReport, peak_memory_bytes};
use crate::config::Stage;
use crate::objects::{Store, TrafficSnapshot};
use crate::pipeline::error::{PipelineError, chain};
use crate::run_dir::Process;
use crate::runtime::ByteBudget;
use crate::telemetry::ProgressRegistry;

/// End of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It completed every stage.
    Done,
    /// It was asked to stop and saved its work.
    Stopped,
    /// It failed.
    Failed,
    /// It ended without a report. Its figures are those of its last status, at most some seconds before its end.
    #[default]
    Killed,
}

/// A process that worked on the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// The process and its host.
    #[serde(flatten)]
    pub process: Process,
    /// Version of the program.
    pub version: String,
    /// Time of its start, as RFC 3339.
    pub started: String,
    /// Time of its end, as RFC 3339.
    pub ended: String,
    /// Seconds from start to end.
    pub seconds: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// Reason why it failed or was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Device of the model, and why it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Work, time and rate of each of its stages.
    pub stages: Vec<StageReport>,
    /// Its peak resident memory in bytes; absent if the system does not report it.
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
    /// Its peak number of bytes in flight between stages; 0 if it was killed.
    #[serde(default)]
    pub peak_in_flight_bytes: u64,
    /// Its requests and bytes to and from remote stores.
    #[serde(default)]
    pub traffic: TrafficSnapshot,
}

impl ProcessReport {
    /// Summarises this process, which started at `started` and ends now.
    pub(crate) fn current(
        started: &str,
        outcome: Result<(), &PipelineError>,
        progress: &ProgressRegistry,
        budget: &ByteBudget,
        store: &Store,
    ) -> Self {
        let (outcome, detail) = match outcome {
            Ok(()) => (Outcome::Done, None),
            Err(error @ PipelineError::Stopped(_)) => (Outcome::Stopped, Some(chain(error))),
            Err(error) => (Outcome::Failed, Some(chain(error))),
        };
        let ended = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        Self {
            process: Process::current(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seconds: seconds_between(started, &ended),
            started: started.to_owned(),
            ended,
            outcome,
            detail,
            device: None,
            stages: progress.snapshots().iter().map(Into::into).collect(),
            peak_memory_bytes: peak_memory_bytes(),
            peak_in_flight_bytes: budget.peak_bytes(),
            traffic: store.traffic().snapshot(),
        }
    }

    /// Returns whether both are reports of one process.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.process, &self.started) == (&other.process, &other.started)
    }

    /// Returns whether it did any work.
    pub fn worked(&self) -> bool {
        self.stages.iter().any(|stage| stage.done > 0)
    }
}

/// Returns the seconds between two times in RFC 3339; 0 if one is not a time.
pub(crate) fn seconds_between(start: &str, end: &str) -> f64 {
    let times = humantime::parse_rfc3339(start).ok().zip(humantime::parse_rfc3339(end).ok());
    times.and_then(|(start, end)| end.duration_since(start).ok()).unwrap_or_default().as_secs_f64()
}

/// Returns the stage of the pipeline that a stage of the progress belongs to; `None` for downloads.
fn stage_of(name: &str) -> Option<Stage> {
    Some(match name {
        "download" => return None,
        "pairs" => Stage::Catalog,
        "images" | "features (images)" => Stage::Stream,
        "captions" => Stage::Text,
        "train" => Stage::Train,
        _ => Stage::Predict,
    })
}

impl Report {
    /// Adds a process and computes the totals over all processes again.
    pub(crate) fn add_process(&mut self, process: ProcessReport) {
        self.processes.retain(|other| !other.is_same(&process));
        self.processes.push(process);
        self.compute_totals();
    }

    /// Marks the work of `from` and of later stages as discarded.
    pub(super) fn discard_work(&mut self, from: Stage) {
        let stages = self.processes.iter_mut().flat_map(|process| &mut process.stages);
        for stage in stages.filter(|stage| stage_of(&stage.name).is_some_and(|stage| stage >= from)) {
            stage.discarded = true;
        }
        self.compute_totals();
    }

    /// Keeps the figures of a report that an earlier version wrote, as those of a process without a start.
    pub(super) fn infer_process(&mut self) {
        if self.processes.is_empty() && !self.stages.is_empty() {
            self.processes.push(ProcessReport {
                outcome: Outcome::Done,
                device: self.device.clone(),
                stages: self.stages.clone(),
                peak_memory_bytes: self.peak_memory_bytes,
                peak_in_flight_bytes: self.peak_in_flight_bytes,
                traffic: self.traffic,
                ..ProcessReport::default()
            });
        }
    }

    fn compute_totals(&mut self) {
        let all = &self.processes;
        self.stages = total_stages(all);
        self.started = all.first().map(|process| process.started.clone()).unwrap_or_default();
        self.ended = all.last().map(|process| process.ended.clone()).unwrap_or_default();
        self.version = all.last().map(|process| process.version.clone()).unwrap_or_default();
        self.seconds = all.iter().map(|process| process.seconds).sum();
        self.peak_memory_bytes = all.iter().filter_map(|process| process.peak_memory_bytes).max();
        self.peak_in_flight_bytes = all.iter().map(|process| process.peak_in_flight_bytes).max().unwrap_or(0);
        self.traffic = all.iter().fold(TrafficSnapshot::default(), |sum, process| TrafficSnapshot {
            requests: sum.requests + process.traffic.requests,
            retries: sum.retries + process.traffic.retries,
            bytes_read: sum.bytes_read + process.traffic.bytes_read,
            bytes_written: sum.bytes_written + process.traffic.bytes_written,
        });
    }
}

/// Adds up the stages of all processes by name, in the order in which they first occur. A process that found a stage
/// complete does not count: it would lower the rate.
fn total_stages(processes: &[ProcessReport]) -> Vec<StageReport> {
    let kept = || processes.iter().flat_map(|process| &process.stages).filter(|stage| !stage.discarded);
    let mut names: Vec<&str> = Vec::new();
    for stage in kept() {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    names
        .into_iter()
        .filter_map(|name| total_stage(&kept().filter(|stage| stage.name == name).collect::<Vec<_>>()))
        .collect()
}

/// Returns the report of the longest work on a stage.
fn longest_of<'a>(stages: &[&'a StageReport]) -> Option<&'a StageReport> {
    stages.iter().copied().max_by(|one, other| one.seconds.total_cmp(&other.seconds))
}

/// Adds up the work of several processes on one stage.
fn total_stage(all: &[&StageReport]) -> Option<StageReport> {
    let worked: Vec<&StageReport> = all.iter().copied().filter(|stage| stage.done > 0).collect();
    let (Some(longest), false) = (longest_of(&worked), worked.len() < 2) else {
        // If only a killed process worked, and before its first status, the process that finished the stage took longest.
        return worked.first().copied().or_else(|| longest_of(all)).cloned();
    };
    let seconds: f64 = worked.iter().map(|stage| stage.seconds).sum();
    let mean = |values: &mut dyn Iterator<Item = (f64, f64)>| {
        let (weighted, weight) =
            values.fold((0.0, 0.0), |(sum, all), (value, weight)| (sum + value * weight, all + weight));
        (weight > 0.0).then(|| weighted / weight)
    };
    let part = |part: &PartReport| {
        let same = || {
            worked
                .iter()
                .filter_map(|stage| Some((stage.parts.iter().find(|other| other.name == part.name)?, stage.seconds)))
        };
        let share =
            |pick: fn(&PartReport) -> f64| mean(&mut same().map(|(part, time)| (pick(part), time))).unwrap_or(0.0);
        PartReport {
            name: part.name.clone(),
            lanes: part.lanes,
            busy: share(|part| part.busy),
            starved: share(|part| part.starved),
            blocked: share(|part| part.blocked),
        }
    };
    Some(StageReport {
        done: worked.iter().map(|stage| stage.done).sum(),
        seconds,
        per_second: mean(&mut worked.iter().map(|stage| (stage.per_second, stage.seconds))).unwrap_or(0.0),
        device_waited: mean(&mut worked.iter().filter_map(|stage| Some((stage.device_waited?, stage.seconds)))),
        parts: longest.parts.iter().map(part).collect(),
        ..longest.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(started: &str, stages: &[(&str, u64, f64)]) -> ProcessReport {
        let stage = |(name, done, seconds): &(&str, u64, f64)| StageReport {
            name: (*name).to_owned(),
            done: *done,
            seconds: *seconds,
            per_second: *done as f64 / seconds,
            ..StageReport::default()
        };
        ProcessReport {
            started: started.to_owned(),
            ended: "2026-01-01T00:01:00Z".to_owned(),
            seconds: seconds_between(started, "2026-01-01T00:01:00Z"),
            stages: stages.iter().map(stage).collect(),
            peak_memory_bytes: Some(stages.len() as u64),
            ..ProcessReport::default()
        }
    }

    #[test]
    fn totals_cover_all_processes() {
        let mut report = Report::default();
        report.add_process(process("2026-01-01T00:00:00Z", &[("images", 100, 10.0), ("train", 5, 1.0)]));
        report.add_process(process("2026-01-01T00:00:30Z", &[("images", 50, 2.0)]));
        // A process that finds everything done changes no rate.
        report.add_process(process("2026-01-01T00:00:59Z", &[("images", 0, 0.5)]));
        let found: Vec<(&str, u64, f64, f64)> = report
            .stages
            .iter()
            .map(|stage| (stage.name.as_str(), stage.done, stage.seconds, stage.per_second))
            .collect();
        assert_eq!(found, [("images", 150, 12.0, 12.5), ("train", 5, 1.0, 5.0)]);
        assert_eq!((report.processes.len(), report.peak_memory_bytes), (3, Some(2)));
        assert!((report.seconds - 91.0).abs() < 1e-9, "{}", report.seconds);
        assert_eq!(report.started, "2026-01-01T00:00:00Z");
    }

    #[test]
    fn time_of_a_stage_without_counted_work_is_the_longest() {
        let mut report = Report::default();
        // It finished what a killed process had read before its first status.
        report.add_process(process("2026-01-01T00:00:00Z", &[("images", 0, 10.0)]));
        report.add_process(process("2026-01-01T00:00:30Z", &[("images", 0, 0.001)]));
        let seconds: Vec<f64> = report.stages.iter().map(|stage| stage.seconds).collect();
        assert_eq!(seconds, [10.0]);
    }

    #[test]
    fn discarded_work_does_not_count() {
        let mut report = Report::default();
        report.add_process(process("2026-01-01T00:00:00Z", &[("images", 100, 10.0), ("train", 5, 1.0)]));
        report.discard_work(Stage::Train);
        report.add_process(process("2026-01-01T00:00:30Z", &[("images", 0, 0.1), ("train", 9, 3.0)]));
        let done: Vec<u64> = report.stages.iter().map(|stage| stage.done).collect();
        assert_eq!(done, [100, 9]);
    }

    #[test]
    fn report_of_an_earlier_version_keeps_its_figures() {
        let stages = process("2026-01-01T00:00:00Z", &[("images", 100, 10.0)]).stages;
        let mut report = Report { stages, peak_memory_bytes: Some(9), ..Report::default() };
        report.infer_process();
        report.add_process(process("2026-01-01T00:00:30Z", &[("images", 0, 0.1)]));
        assert_eq!((report.stages[0].done, report.peak_memory_bytes, report.processes.len()), (100, Some(9), 2));
    }

    #[test]
    fn process_is_reported_once() {
        let mut report = Report::default();
        report.add_process(process("2026-01-01T00:00:00Z", &[("images", 1, 1.0)]));
        report.add_process(process("2026-01-01T00:00:00Z", &[("images", 2, 1.0)]));
        assert_eq!((report.processes.len(), report.stages[0].done), (1, 2));
    }
}
