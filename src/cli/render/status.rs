//! `status`: the progress of a run, by its last report.

use serde::Serialize;

use super::{Table, describe_bottleneck};
use crate::cli::format::{bytes, count, duration, number, percent, plural};
use crate::pipeline::Status;
use crate::pipeline::parts::{PartState, PartStatus};
use crate::pipeline::status::{ReadingStatus, ShardStatus, StageStatus, State};

/// A status with what only its reader knows: its age, and whether the process is alive.
#[derive(Serialize)]
pub(in crate::cli) struct LiveStatus<'a> {
    live: bool,
    age_s: u64,
    #[serde(flatten)]
    status: &'a Status,
}

impl<'a> LiveStatus<'a> {
    pub(in crate::cli) fn new(status: &'a Status) -> Self {
        Self { live: status.is_live(), age_s: status.age().as_secs(), status }
    }
}

/// Renders the progress of a run. `all_shards` lists finished shards and those not started; `verbose` adds what stages share.
pub(in crate::cli) fn status(run_dir: &str, status: &Status, all_shards: bool, verbose: bool) -> String {
    let mut table = Table::with_headings();
    table.heading(&headline(run_dir, status));
    for part in &status.parts {
        table.row(&format!("part {}", part.part), describe_part(part));
    }
    if let Some((part, left)) = slowest(&status.parts) {
        let process = part.process.as_deref().unwrap_or_default();
        table.row("slowest part", format!("{}, {} left, {process}", part.part, duration(left as f64)));
    }
    for stage in &status.stages {
        table.row(&stage.name, progress(stage, status.is_live()));
        if let Some(bottleneck) = &stage.bottleneck {
            let device = stage.parts.iter().find(|part| part.name == "device");
            table.row("  bottleneck", describe_bottleneck(bottleneck, device.map(|part| part.starved)));
        }
        if !stage.shards.is_empty() {
            shards(&mut table, &stage.shards, all_shards);
        }
    }
    if let Some(resident) = status.memory_bytes {
        table.row("memory", bytes(resident));
    }
    for (name, reading) in &status.readings {
        if verbose || name == "in_flight_bytes" {
            table.row(&name.trim_end_matches("_bytes").replace('_', " "), value(name, reading));
        }
    }
    table.text
}

/// Returns the part at work with the longest time left, if it is the only one that is far behind the others.
fn slowest(parts: &[PartStatus]) -> Option<(&PartStatus, u64)> {
    let mut left: Vec<(&PartStatus, u64)> = parts.iter().filter_map(|part| Some((part, part.left_s?))).collect();
    left.sort_by_key(|(_, left)| std::cmp::Reverse(*left));
    let next = left.get(1).map_or(0, |(_, left)| *left);
    let is_behind = |(_, left): &(&PartStatus, u64)| parts.len() > 1 && *left > next + next / 4 + 10;
    left.first().copied().filter(is_behind)
}

fn describe_part(part: &PartStatus) -> String {
    let rows = match part.total_rows.filter(|total| *total > 0 && part.state != PartState::Done) {
        Some(total) => format!("{} of about {} rows", count(part.rows), count(total)),
        None => plural(part.rows, "rows"),
    };
    let age = duration(part.age_s.unwrap_or_default() as f64);
    let process = part.process.as_deref().unwrap_or_default();
    let detail = part.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    match part.state {
        PartState::NotStarted => "not started".to_owned(),
        PartState::AtWork => {
            let left = part.left_s.map_or_else(String::new, |left| format!(", {} left", duration(left as f64)));
            format!("at work, {rows}, {} rows/s{left}", number(part.per_second))
        }
        PartState::Silent => format!("silent since {age} ({process}), {rows}"),
        PartState::Done => format!("done, {rows}"),
        PartState::Stopped => format!("stopped {age} ago, {rows}{detail}"),
        PartState::Failed => format!("failed {age} ago, {rows}{detail}"),
    }
}

fn headline(run_dir: &str, status: &Status) -> String {
    let (process, started) = (&status.process, &status.started);
    let age = duration(status.age().as_secs() as f64);
    let detail = status.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    let memory = if status.is_short_of_memory() { ", probably for lack of memory" } else { "" };
    match status.state {
        State::Running if status.is_live() => {
            format!("{run_dir} is running: {process} since {started}, last report {age} ago")
        }
        State::Running => format!(
            "{run_dir} is not running: {process} ended without a final report{memory}, the last one is {age} old; run the same command \
             again to resume"
        ),
        State::Done => format!("{run_dir} is done, since {age}"),
        State::Stopped => format!("{run_dir} was stopped {age} ago{detail}"),
        State::Failed => format!("{run_dir} failed {age} ago{detail}"),
    }
}

fn progress(stage: &StageStatus, live: bool) -> String {
    let StageStatus { done, unit, .. } = stage;
    let units = match stage.total.filter(|total| *total > 0 && !stage.finished) {
        Some(total) => {
            let share = percent((*done as f64 / total as f64).min(1.0));
            format!("{} of about {} ({share})", count(*done), plural(total, unit))
        }
        None => plural(*done, unit),
    };
    if stage.finished && stage.per_second == 0.0 {
        // An earlier process did the work.
        return format!("{units}, done");
    }
    let (rate, time) = (number(stage.per_second), duration(stage.seconds));
    let left = match stage.left_s {
        _ if stage.finished => ", done".to_owned(),
        Some(seconds) if live => format!(", {} left", duration(seconds as f64)),
        _ => String::new(),
    };
    format!("{units}, {rate} {unit}/s for {time}{left}")
}

fn shards(table: &mut Table, shards: &[ShardStatus], all: bool) {
    let done = shards.iter().filter(|shard| shard.done).count();
    table.row("  shards", format!("{done} of {} done", shards.len()));
    for shard in shards {
        let started = !shard.done && (shard.rows > 0 || shard.read > 0.0);
        if all || started {
            let state = if shard.done { "done".to_owned() } else { format!("{} read", percent(shard.read)) };
            let [rows, used, skipped, quarantined] =
                [shard.rows, shard.kept, shard.skipped, shard.quarantined].map(count);
            let name = shard.name.rsplit('/').next().unwrap_or(&shard.name);
            let rows = format!("{rows} rows saved ({used} used, {skipped} skipped, {quarantined} quarantined)");
            table.row("    shard", format!("{name}: {state}, {rows}"));
        }
    }
}

fn value(name: &str, reading: &ReadingStatus) -> String {
    let format = |value| if name.ends_with("_bytes") { bytes(value) } else { count(value) };
    let limit = reading.limit.map_or_else(String::new, |limit| format!(" of at most {}", format(limit)));
    format!("{}{limit}", format(reading.value))
}
