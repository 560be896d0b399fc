//! Position and state at which a stream resumes.

use std::collections::BTreeMap;
use std::path::Path;

use super::StreamJob;
use super::block::claims_url;
use crate::catalog::{ImageFilter, UrlDedup, url_hash};
use crate::chunk::Tally;
use crate::chunk::features::read_row_meta;
use crate::chunk::journal::Journal;
use crate::chunk::quarantine::{self, Quarantined};
use crate::chunk::schedule::Schedule;
use crate::chunk::spool::SpooledChunk;
use crate::objects::Object;
use crate::pipeline::chunk_files::{fetch_files, quarantine_files, row_files};
use crate::pipeline::error::PipelineError;
use crate::telemetry::Shard;

/// Largest row file whose checksum is verified when its URLs are read. Pixel chunks in the run directory are too large
/// to be read whole for that.
const MAX_VERIFIED_BYTES: u64 = 64 << 20;

/// State of a stream at its start.
pub(crate) struct StartPoint {
    /// Next chunk of each slot.
    pub(crate) schedule: Schedule,
    /// Counts of each shard by earlier processes.
    pub(crate) counted: BTreeMap<u32, Tally>,
    /// URLs of earlier rows.
    pub(crate) seen: UrlDedup,
}

impl StartPoint {
    /// Returns the start of a new stream.
    pub(crate) fn fresh(shards: u32, filter: ImageFilter) -> Self {
        Self { schedule: Schedule::start(shards), counted: BTreeMap::new(), seen: UrlDedup::new(filter) }
    }
}

/// Collects the URLs of all rows in committed and spooled chunks, so that later rows with the same URLs count as
/// duplicates. Blocks the thread.
///
/// # Errors
/// When a file cannot be read or is damaged.
pub(crate) fn collect_seen_urls(
    journal: &Journal,
    spooled: &[SpooledChunk],
    filter: &ImageFilter,
) -> Result<UrlDedup, PipelineError> {
    let mut seen = UrlDedup::new(filter.clone());
    let mut add_rows = |path: &Path| -> Result<(), PipelineError> {
        let rows = read_row_meta(path)?;
        for row in 0..rows.len() {
            seen.insert(url_hash(rows.url(row)));
        }
        Ok(())
    };
    let mut files = row_files(journal);
    files.iter_mut().filter(|file| file.bytes > MAX_VERIFIED_BYTES).for_each(|file| file.sum = None);
    for file in fetch_files(journal.directory(), &files) {
        let (_, copy) = file?;
        add_rows(&copy)?;
    }
    for chunk in spooled {
        chunk.pixels().as_deref().map_or(Ok(()), &mut add_rows)?;
    }
    let mut add_quarantined = |rows: &[Quarantined]| {
        for row in rows.iter().filter(|row| claims_url(&row.reason)) {
            if let Some(url) = &row.image_url {
                seen.insert(url_hash(url));
            }
        }
    };
    for file in fetch_files(journal.directory(), &quarantine_files(journal)) {
        let (_, copy) = file?;
        add_quarantined(&quarantine::read(&copy)?);
    }
    for chunk in spooled.iter().filter(|chunk| chunk.entry.tally.quarantined_rows() > 0) {
        add_quarantined(&chunk.read_entry()?.quarantined);
    }
    Ok(seen)
}

/// Shows the committed part of each shard in the progress of the stage.
pub(crate) fn show_committed(job: &StreamJob, journal: &Journal) {
    let mut tallies = journal.shard_tallies();
    let schedule = journal.schedule(job.shards.len() as u32);
    let shard = |(index, shard): (usize, &Object)| {
        let tally = tallies.remove(&(index as u32)).unwrap_or_default();
        Shard {
            name: shard.url.clone(),
            bytes: shard.size,
            read_bytes: 0,
            rows: tally.rows,
            kept: tally.kept,
            skipped: tally.skipped_rows(),
            quarantined: tally.quarantined_rows(),
            done: schedule.is_past(index as u32),
        }
    };
    job.stage_progress.set_shards(job.shards.iter().enumerate().map(shard).collect());
}
