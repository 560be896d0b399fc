//! `limits.max_bad_fraction`: ends a run whose shard is mostly unusable.

use std::collections::BTreeMap;

use super::StreamJob;
use crate::chunk::quarantine::Quarantined;
use crate::chunk::{ChunkId, Tally};
use crate::pipeline::error::PipelineError;

/// Minimum number of wanted rows of a shard before the limit applies.
const MIN_ROWS: u64 = 1000;

/// Checks each shard against `limits.max_bad_fraction`.
pub(super) struct BadRowLimit {
    /// Counts of each shard so far.
    shards: BTreeMap<u32, Tally>,
}

impl BadRowLimit {
    /// Creates the check from the counts of earlier processes.
    pub(super) fn new(counted: BTreeMap<u32, Tally>) -> Self {
        Self { shards: counted }
    }

    /// Adds a complete chunk to its shard.
    ///
    /// # Errors
    /// When the shard is over the limit. The error names the most frequent reasons and an example row.
    pub(super) fn add_chunk(
        &mut self,
        id: ChunkId,
        chunk: &Tally,
        quarantined: &[Quarantined],
        job: &StreamJob,
    ) -> Result<(), PipelineError> {
        let tally = self.shards.entry(id.shard).or_default();
        tally.merge(chunk);
        let bad = tally.quarantined_rows();
        let wanted = tally.kept + bad;
        if wanted < MIN_ROWS || bad as f64 <= job.max_bad_fraction * wanted as f64 {
            return Ok(());
        }
        let mut reasons: Vec<_> = tally.quarantined.iter().collect();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), (*reason).clone()));
        let reasons: Vec<String> =
            reasons.into_iter().take(3).map(|(reason, count)| format!("{reason} {count}")).collect();
        let example = quarantined
            .first()
            .map_or_else(String::new, |row| format!("; row {} for example: {}", row.row, row.detail));
        Err(PipelineError::Input(format!(
            "{bad} of {wanted} wanted rows of `{}` cannot be used ({}{example}), over `limits.max_bad_fraction` = {}; check the file, or raise the limit",
            job.shards[id.shard as usize].url,
            reasons.join(", "),
            job.max_bad_fraction
        )))
    }
}
