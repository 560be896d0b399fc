//! The part of a report on a stage: work, time, rate and bottleneck.

use serde::{Deserialize, Serialize};

use crate::telemetry::{Activity, Party, StageSnapshot, TimerSnapshot};

/// Time and rate of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Name of the stage.
    pub name: String,
    /// Unit of the counts.
    pub unit: String,
    /// Units done, without those of earlier processes. In totals, work that a killed process lost counts too.
    pub done: u64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Units per second.
    pub per_second: f64,
    /// Party that limited the rate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bottleneck: Option<Bottleneck>,
    /// Share of the time, from 0 to 1, for which the device had no input; absent if the stage uses no device.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device_waited: Option<f64>,
    /// Times of the stage's parts.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parts: Vec<PartReport>,
    /// True if a later process has discarded the results, so that the totals leave them out.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub discarded: bool,
}

/// Party that limited the rate of a stage: its busiest part, or an outside party that a part waited for even longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// Limiting party.
    pub who: Party,
    /// Share of the time, from 0 to 1.
    pub share: f64,
}

/// Time of one part of a stage. The shares, from 0 to 1, add up to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartReport {
    /// Name of the part.
    pub name: String,
    /// Number of workers of the part.
    pub lanes: u32,
    /// Share of time spent working.
    pub busy: f64,
    /// Share of time spent waiting for input.
    pub starved: f64,
    /// Share of time spent waiting for room in the output.
    pub blocked: f64,
}

impl From<&StageSnapshot> for StageReport {
    fn from(snapshot: &StageSnapshot) -> Self {
        let part = |part: &TimerSnapshot| PartReport {
            name: part.name.to_owned(),
            lanes: part.workers,
            busy: part.share(Activity::Busy),
            starved: part.share(Activity::Starved),
            blocked: part.share(Activity::Blocked),
        };
        Self {
            name: snapshot.name.clone(),
            unit: snapshot.unit.to_owned(),
            done: snapshot.done - snapshot.resumed.min(snapshot.done),
            seconds: snapshot.elapsed.as_secs_f64(),
            per_second: snapshot.rate(),
            bottleneck: snapshot.bottleneck().map(|(who, share)| Bottleneck { who, share }),
            device_waited: snapshot.device_starved(),
            parts: snapshot.parts.iter().map(part).collect(),
            discarded: false,
        }
    }
}
