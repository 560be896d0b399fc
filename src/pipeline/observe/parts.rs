//! The status of a run on whose parts several processes work.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pipeline::observe::status::{ShardStatus, StageStatus, State, Status};
use crate::types::Part;

/// State of a part, as another process sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// No process has reported on the part.
    #[default]
    NotStarted,
    /// A process works on the part.
    AtWork,
    /// The last process ended without a final report, or cannot report.
    Silent,
    /// The part is complete.
    Done,
    /// The last process was asked to stop and saved its work.
    Stopped,
    /// The last process failed.
    Failed,
}

/// Progress of a part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartStatus {
    /// The part, as `I/N`.
    pub part: String,
    /// State of the part.
    pub state: PartState,
    /// The last process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Reason why the last process failed or was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Seconds since the last report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<u64>,
    /// Image rows done.
    pub rows: u64,
    /// Estimated number of image rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_rows: Option<u64>,
    /// Image rows per second.
    pub per_second: f64,
    /// Estimated seconds left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
}

impl PartStatus {
    fn new(part: Part, status: Option<&Status>) -> Self {
        let Some(status) = status else { return Self { part: part.to_string(), ..Self::default() } };
        let state = match status.state {
            State::Running if status.is_live() => PartState::AtWork,
            State::Running => PartState::Silent,
            State::Done => PartState::Done,
            State::Stopped => PartState::Stopped,
            State::Failed => PartState::Failed,
        };
        let rows = status.stages.iter().find(|stage| stage.name == "images");
        let left = status.stages.iter().filter_map(|stage| stage.left_s).max();
        Self {
            part: part.to_string(),
            state,
            process: Some(status.process.to_string()),
            detail: status.detail.clone(),
            age_s: Some(status.age().as_secs()),
            rows: rows.map_or(0, |stage| stage.done),
            total_rows: rows.and_then(|stage| stage.total),
            per_second: rows.filter(|_| state == PartState::AtWork).map_or(0.0, |stage| stage.per_second),
            left_s: left.filter(|_| state == PartState::AtWork),
        }
    }
}

/// Merges the last statuses of the parts of a run. `whole` is that of the last whole run or of the process that finishes the
/// run; it stays in front if it is newer than those of all parts.
pub(super) fn merge(whole: Option<Status>, parts: &BTreeMap<Part, Status>) -> Option<Status> {
    // After a change of the number of parts, the parts of the last partition count.
    let Some((newest, _)) = parts.iter().max_by_key(|(_, status)| status.updated.clone()) else { return whole };
    let count = newest.count();
    let own: Vec<(Part, Option<&Status>)> =
        (0..count).filter_map(|index| Part::new(index, count)).map(|part| (part, parts.get(&part))).collect();
    let list: Vec<PartStatus> = own.iter().map(|(part, status)| PartStatus::new(*part, *status)).collect();
    let reports: Vec<(Part, &Status)> = own.iter().filter_map(|(part, status)| Some((*part, (*status)?))).collect();
    let last =
        reports.iter().max_by_key(|(_, status)| (status.is_live(), &status.updated)).map(|(_, status)| *status)?;
    if let Some(whole) = whole.filter(|whole| whole.updated >= last.updated) {
        return Some(Status { parts: list, ..whole });
    }
    let is_any = |state| list.iter().any(|part| part.state == state);
    let state = if is_any(PartState::AtWork) {
        State::Running
    } else if is_any(PartState::Failed) {
        State::Failed
    } else if is_any(PartState::Stopped) {
        State::Stopped
    } else if list.iter().all(|part| part.state == PartState::Done) {
        State::Done
    } else {
        State::Running
    };
    let detail = list.iter().find_map(|part| part.detail.clone().map(|detail| format!("part {}: {detail}", part.part)));
    let memory = reports.iter().filter_map(|(_, status)| status.memory_bytes);
    Some(Status {
        state,
        detail,
        part: None,
        stages: merge_stages(&reports, count),
        memory_bytes: Some(memory.sum()),
        readings: BTreeMap::new(),
        parts: list,
        ..last.clone()
    })
}

/// Adds up stages of the same name. A total counts the parts that have not reported as the mean of the others.
fn merge_stages(reports: &[(Part, &Status)], count: u32) -> Vec<StageStatus> {
    let mut stages: Vec<StageStatus> = Vec::new();
    for (part, status) in reports {
        for stage in &status.stages {
            let live = status.is_live();
            let Some(sum) = stages.iter_mut().find(|other| other.name == stage.name) else {
                let (per_second, left_s) = if live { (stage.per_second, stage.left_s) } else { (0.0, None) };
                stages.push(StageStatus { per_second, left_s, bottleneck: None, parts: Vec::new(), ..stage.clone() });
                continue;
            };
            sum.done += stage.done;
            sum.total = sum.total.zip(stage.total).map(|(one, other)| one + other);
            sum.seconds = sum.seconds.max(stage.seconds);
            sum.finished &= stage.finished;
            if live {
                sum.per_second += stage.per_second;
                sum.left_s = sum.left_s.max(stage.left_s);
            }
            merge_shards(&mut sum.shards, &stage.shards, *part);
        }
    }
    let reported = reports.len() as u64;
    for stage in stages.iter_mut().filter(|_| reported < u64::from(count)) {
        stage.finished = false;
        stage.total = stage.total.map(|total| total * u64::from(count) / reported.max(1));
    }
    stages
}

/// Takes the shards of a part from its own report.
fn merge_shards(shards: &mut [ShardStatus], own: &[ShardStatus], part: Part) {
    for (index, (shard, own)) in (0..).zip(shards.iter_mut().zip(own)) {
        if part.contains(index) {
            shard.clone_from(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::Process;

    fn status(part: Part, state: State, done: u64) -> Status {
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let shards = (0..4)
            .map(|shard| ShardStatus { done: part.contains(shard) && state == State::Done, ..ShardStatus::default() })
            .collect();
        let stage = StageStatus {
            name: "images".to_owned(),
            unit: "rows".to_owned(),
            done,
            total: Some(100),
            per_second: 10.0,
            left_s: Some(100 - done),
            finished: state == State::Done,
            shards,
            ..StageStatus::default()
        };
        let process = Process::current();
        Status { state, process, updated: now, every_s: 1, stages: vec![stage], ..Status::default() }
    }

    #[test]
    fn parts_are_added_up() {
        let part = |index| Part::new(index, 3).unwrap();
        let silent = Status { updated: "2026-01-01T00:00:00Z".to_owned(), ..status(part(2), State::Running, 20) };
        let parts = BTreeMap::from([
            (part(0), status(part(0), State::Done, 100)),
            (part(1), status(part(1), State::Running, 40)),
            (part(2), silent),
        ]);
        let merged = merge(None, &parts).unwrap();
        assert!(merged.state == State::Running && merged.is_live());
        let states: Vec<PartState> = merged.parts.iter().map(|part| part.state).collect();
        assert_eq!(states, [PartState::Done, PartState::AtWork, PartState::Silent]);
        let stage = &merged.stages[0];
        assert_eq!((stage.done, stage.total, stage.per_second, stage.left_s), (160, Some(300), 10.0, Some(60)));
        assert_eq!(stage.shards.iter().map(|shard| shard.done).collect::<Vec<_>>(), [true, false, false, true]);
        // The process that finishes the run comes to the front.
        let finisher = status(Part::WHOLE, State::Running, 7);
        let merged = merge(Some(finisher), &BTreeMap::from([(part(0), parts[&part(0)].clone())])).unwrap();
        assert_eq!((merged.stages[0].done, merged.parts.len(), merged.parts[1].state), (7, 3, PartState::NotStarted));
        assert_eq!(merge(None, &BTreeMap::new()), None);
    }
}
