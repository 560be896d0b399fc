//! The report on a process that was killed, from its last status.

use super::{FILE, StageStatus, State, Status};
use crate::objects::TrafficSnapshot;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::process::seconds_between;
use crate::pipeline::observe::report::{Outcome, ProcessReport, Report, StageReport};
use crate::run_dir::Directory;

/// Adds the process that wrote the last status to its report, if it ended without one.
///
/// # Errors
/// When the run directory cannot be read or written.
pub(crate) fn report_killed_process(directory: &Directory) -> Result<(), PipelineError> {
    let Some(content) = directory.read(FILE)? else { return Ok(()) };
    // A status of another version says nothing about its process.
    let Ok(status) = serde_json::from_slice::<Status>(&content) else { return Ok(()) };
    if status.state == State::Done {
        // It wrote its report. If that is gone, `--from` removed it.
        return Ok(());
    }
    let process = ProcessReport::from(&status);
    let mut found = Report::load(directory, &status.report)?;
    // The only process of a report of an earlier version is the one that wrote the status.
    let is_known = match found.processes.as_slice() {
        [only] if only.started.is_empty() => true,
        known => known.iter().any(|known| known.is_same(&process)),
    };
    if is_known {
        return Ok(());
    }
    found.add_process(process);
    found.save(directory, &status.report)
}

impl From<&Status> for ProcessReport {
    fn from(status: &Status) -> Self {
        let stage = |stage: &StageStatus| StageReport {
            name: stage.name.clone(),
            unit: stage.unit.clone(),
            done: stage.done - stage.resumed.min(stage.done),
            seconds: stage.seconds,
            per_second: stage.per_second,
            bottleneck: stage.bottleneck.clone(),
            device_waited: stage.parts.iter().find(|part| part.name == "device").map(|part| part.starved),
            parts: stage.parts.clone(),
            discarded: false,
        };
        let reading = |name: &str| status.readings.get(name).map_or(0, |reading| reading.value);
        Self {
            process: status.process.clone(),
            version: status.version.clone(),
            started: status.started.clone(),
            ended: status.updated.clone(),
            seconds: seconds_between(&status.started, &status.updated),
            outcome: match status.state {
                State::Running => Outcome::Killed,
                State::Done => Outcome::Done,
                State::Stopped => Outcome::Stopped,
                State::Failed => Outcome::Failed,
            },
            detail: status.detail.clone(),
            device: None,
            stages: status.stages.iter().map(stage).collect(),
            peak_memory_bytes: status.peak_memory_bytes,
            peak_in_flight_bytes: 0,
            traffic: TrafficSnapshot {
                requests: reading("store_requests"),
                retries: reading("store_retries"),
                bytes_read: reading("store_read_bytes"),
                bytes_written: reading("store_written_bytes"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::observe::report;
    use crate::run_dir::LocalDirectory;

    #[test]
    fn killed_process_is_reported_once_from_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let directory: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let stage =
            StageStatus { name: "images".to_owned(), done: 9, resumed: 4, seconds: 2.0, ..StageStatus::default() };
        let status = Status {
            started: "2026-01-01T00:00:00Z".to_owned(),
            updated: "2026-01-01T00:00:05Z".to_owned(),
            report: report::FILE.to_owned(),
            stages: vec![stage],
            ..Status::default()
        };
        directory.write(FILE, &serde_json::to_vec(&status).unwrap()).unwrap();
        for _ in 0..2 {
            report_killed_process(&directory).unwrap();
            let found = Report::load(&directory, report::FILE).unwrap();
            assert_eq!((found.processes.len(), found.stages[0].done, found.seconds), (1, 5, 5.0));
            assert_eq!(found.processes[0].outcome, Outcome::Killed);
        }
    }

    #[test]
    fn removed_report_of_a_finished_process_stays_removed() {
        let dir = tempfile::tempdir().unwrap();
        let directory: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let status = Status { state: State::Done, report: "other.report.json".to_owned(), ..Status::default() };
        directory.write(FILE, &serde_json::to_vec(&status).unwrap()).unwrap();
        report_killed_process(&directory).unwrap();
        assert_eq!(directory.read("other.report.json").unwrap(), None);
    }
}
