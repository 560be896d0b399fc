//! Observability of a run: `status.json` and `events/` while it works, `report.json` at its end.

pub(crate) mod events;
pub mod parts;
pub(crate) mod previous;
pub mod report;
pub mod status;
