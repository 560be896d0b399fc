//! Progress and timing of stages, readable while they run.
//!
//! Stages count into a [`StageProgress`] and time their parts with a [`StageTimer`]. The terminal, the log, `status`,
//! Prometheus and the report read [`Snapshot`]s from the [`ProgressRegistry`]. Counting never blocks.

mod party;
mod progress;
mod stage_timer;

pub use party::Party;
pub use progress::{Kind, ProgressRegistry, Reading, Shard, Snapshot, StageProgress};
pub use stage_timer::{Activity, StageTimer, TimerSnapshot};
