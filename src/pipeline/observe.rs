//! What a run tells about itself: `status.json` while it works, `events/` as it happens, `report.json` at its end.

pub(crate) mod events;
pub mod report;
pub mod status;
