//! Progress and timing of stages, readable while they run.
//!
//! Stages count into a [`StageProgress`] and time their parts with a [`StageTimer`]. The terminal, the log, `status`,
//! Prometheus and the report read [`StageSnapshot`]s from the [`ProgressRegistry`]. Counting never waits.

mod estimate;
mod party;
mod progress;
mod stage_timer;

pub use estimate::{ExpectedStage, RunEstimate, estimate_run};
pub use party::Party;
pub use progress::{Metric, MetricKind, ProgressRegistry, Shard, StageProgress, StageSnapshot};
pub use stage_timer::{Activity, StageTimer, TimerSnapshot};
