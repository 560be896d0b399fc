//! Position and state at which a stream resumes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::StreamJob;
use super::block::claims_url;
use crate::catalog::url_hash;
use crate::chunk::features::read_row_meta;
use crate::chunk::journal::Journal;
use crate::chunk::quarantine::Quarantined;
use crate::chunk::spool::SpooledChunk;
use crate::chunk::{ChunkId, RowMeta, Tally};
use crate::objects::Object;
use crate::pipeline::error::PipelineError;
use crate::telemetry::Shard;

/// State of a stream at its start.
pub(crate) struct StartPoint {
    /// Next chunk of each unfinished shard, in listing order.
    pub(crate) pending: Vec<ChunkId>,
    /// Counts of each shard by earlier processes.
    pub(crate) counted: BTreeMap<u32, Tally>,
    /// URL hashes of the earlier rows of shards that were begun.
    pub(crate) seen: BTreeMap<u32, Vec<u64>>,
    /// Offset of the next row in shards that were begun, if reading can go on there.
    pub(crate) offsets: BTreeMap<u32, u64>,
}

impl StartPoint {
    /// Returns the start of a new stream of `shards` shards.
    pub(crate) fn fresh(shards: u32) -> Self {
        let pending = (0..shards).map(|shard| ChunkId { shard, row: 0 }).collect();
        Self { pending, counted: BTreeMap::new(), seen: BTreeMap::new(), offsets: BTreeMap::new() }
    }

    /// Returns the point after all committed and spooled chunks; `pending` holds the next chunk of each unfinished
    /// shard. Of committed chunks, only the URL hashes of unfinished shards are read. Blocks the thread.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub(crate) fn after(
        journal: &Journal,
        spooled: &[SpooledChunk],
        pending: Vec<ChunkId>,
    ) -> Result<Self, PipelineError> {
        let mut counted = journal.shard_tallies();
        for chunk in spooled {
            counted.entry(chunk.entry.id.shard).or_default().merge(&chunk.entry.tally);
        }
        let is_begun = |shard: u32| pending.iter().any(|next| next.shard == shard && next.row > 0);
        let mut seen: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for hashes in journal.url_hashes(journal.entries().keys().copied().filter(|id| is_begun(id.shard))) {
            let (id, hashes) = hashes?;
            seen.entry(id.shard).or_default().extend(hashes.kept.into_iter().chain(hashes.quarantined));
        }
        for chunk in spooled.iter().filter(|chunk| is_begun(chunk.entry.id.shard)) {
            let seen = seen.entry(chunk.entry.id.shard).or_default();
            if let Some(path) = chunk.pixels() {
                seen.extend(image_hashes(&read_row_meta(&path)?));
            }
            if chunk.entry.tally.quarantined_rows() > 0 {
                seen.extend(claimed_hashes(&chunk.read_entry()?.quarantined));
            }
        }
        let committed = journal.entries().iter().map(|(id, entry)| (*id, entry.tally.rows, entry.next_offset));
        let waiting = spooled.iter().map(|SpooledChunk { entry, .. }| (entry.id, entry.tally.rows, entry.next_offset));
        let offsets = committed
            .chain(waiting)
            .filter(|(id, rows, _)| pending.contains(&ChunkId { row: id.row + rows, ..*id }))
            .filter_map(|(id, _, offset)| Some((id.shard, offset?)))
            .collect();
        Ok(Self { pending, counted, seen, offsets })
    }
}

/// Returns the URL hashes of the images of some rows.
pub(crate) fn image_hashes(rows: &RowMeta) -> impl Iterator<Item = u64> {
    (0..rows.len()).filter(|row| rows.view(*row) <= 1).map(|row| url_hash(rows.url(row)))
}

/// Returns the URL hashes of the quarantined rows that count as the first row of their URL.
pub(super) fn claimed_hashes(rows: &[Quarantined]) -> impl Iterator<Item = u64> {
    rows.iter().filter(|row| claims_url(&row.reason)).filter_map(|row| row.image_url.as_deref()).map(url_hash)
}

/// Shards that no reader has opened yet.
pub(super) struct PendingShards(Mutex<VecDeque<PendingShard>>);

/// The rest of a shard.
pub(super) struct PendingShard {
    /// The next chunk.
    pub(super) next: ChunkId,
    /// Offset of its first row, if reading can start there.
    pub(super) offset: Option<u64>,
    /// URL hashes of the rows before it.
    pub(super) seen: Vec<u64>,
}

impl PendingShards {
    /// Creates the queue of the unfinished shards, in listing order.
    pub(super) fn new(pending: &[ChunkId], mut seen: BTreeMap<u32, Vec<u64>>, offsets: &BTreeMap<u32, u64>) -> Self {
        let shard = |next: &ChunkId| PendingShard {
            next: *next,
            offset: offsets.get(&next.shard).copied(),
            seen: seen.remove(&next.shard).unwrap_or_default(),
        };
        Self(Mutex::new(pending.iter().map(shard).collect()))
    }

    /// Removes and returns the next shard.
    pub(super) fn take_next(&self) -> Option<PendingShard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Shows the committed part of each shard in the progress of the stage.
pub(crate) fn show_committed(job: &StreamJob, journal: &Journal) {
    let mut tallies = journal.shard_tallies();
    let pending = journal.pending(job.shards.len() as u32);
    let shard = |(index, shard): (usize, &Object)| {
        let index = index as u32;
        let tally = tallies.remove(&index).unwrap_or_default();
        Shard {
            name: shard.url.clone(),
            bytes: shard.size,
            read_bytes: 0,
            rows: tally.rows,
            kept: tally.kept,
            skipped: tally.skipped_rows(),
            quarantined: tally.quarantined_rows(),
            done: job.part.contains(index) && pending.iter().all(|next| next.shard != index),
        }
    };
    job.stage_progress.set_shards(job.shards.iter().enumerate().map(shard).collect());
}
