//! Rows that could not be used, of the training images and of each set of test images.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::{App, Failure};
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::{ChunkError, ChunkId, quarantine};
use crate::run_dir::Directory;

/// Rows of one answer.
const PAGE_ROWS: usize = 50;
/// Upper bound on the quarantine files that one answer reads, so that it is quick on a remote store.
const MAX_FILES: usize = 64;

/// Query of the view.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Filter {
    /// Stream of images; the training images by default.
    stream: Option<String>,
    reason: Option<String>,
    shard: Option<u32>,
    /// Chunk to start from, as the answer before named it in `next`.
    from: Option<String>,
}

/// Answer: counts of the whole stream, and some of its rows.
#[derive(Debug, Serialize)]
struct Answer {
    /// Streams of the run: `train`, and the stems of the submissions.
    streams: Vec<String>,
    stream: String,
    /// Number of rows by reason, in all shards.
    reasons: BTreeMap<String, u64>,
    /// Number of rows by shard index, for the reason of the query or all reasons.
    shards: BTreeMap<u32, u64>,
    rows: Vec<Row>,
    /// Chunk from which the next answer starts; absent at the end.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the fields are those of a quarantine file")]
struct Row {
    shard: u32,
    /// Row in the shard, from 0.
    row: u64,
    url: Option<String>,
    reason: String,
    detail: String,
}

/// Answers the query.
pub(super) async fn show(
    State(app): State<App>,
    Path(number): Path<usize>,
    Query(filter): Query<Filter>,
) -> Result<Response, Failure> {
    let run = app.run(number)?;
    if let Some(from) = filter.from.as_deref().filter(|from| ChunkId::parse(from).is_none()) {
        return Err(Failure::bad_request(format!("`{from}` is not a chunk")));
    }
    super::json(&super::read(move || collect(&run.directory, &filter)).await?)
}

/// Lists the streams of a run that have a journal.
fn list_streams(directory: &Directory) -> Result<Vec<(String, Layout)>, ChunkError> {
    let mut streams = Vec::new();
    for name in directory.list("journal")? {
        match name.strip_prefix("predict-") {
            Some(stem) => streams.push((stem.to_owned(), Layout::predict(stem))),
            None if ["features", "chunks"].contains(&name.as_str()) => {
                streams.insert(0, ("train".to_owned(), Layout::train(&name)));
            }
            None => {}
        }
    }
    Ok(streams)
}

/// Finds the record of a quarantined row.
///
/// # Errors
/// When the run directory cannot be read.
pub(super) fn find(
    directory: &Directory,
    stream: &str,
    shard: u32,
    row: u64,
) -> Result<Option<quarantine::Quarantined>, ChunkError> {
    let streams = list_streams(directory)?;
    let Some((_, layout)) = streams.into_iter().find(|(name, _)| name == stream) else { return Ok(None) };
    let journal = Journal::read(directory.clone(), layout, None)?;
    // A chunk covers the rows from its own to that of the next chunk.
    let mut chunks = journal.entries().iter().filter(|(id, _)| id.shard == shard && id.row <= row);
    let Some((id, _)) = chunks.next_back().filter(|(_, entry)| !entry.tally.quarantined.is_empty()) else {
        return Ok(None);
    };
    let copy = journal.directory().fetch(&journal.layout().quarantine(*id))?;
    Ok(quarantine::read(&copy)?.into_iter().find(|found| found.row == row))
}

fn collect(directory: &Directory, filter: &Filter) -> Result<Answer, ChunkError> {
    let streams = list_streams(directory)?;
    let names: Vec<String> = streams.iter().map(|(name, _)| name.clone()).collect();
    let wanted = filter.stream.as_ref();
    let chosen = streams.into_iter().find(|(name, _)| wanted.is_none_or(|wanted| wanted == name));
    let Some((stream, layout)) = chosen else {
        let stream = wanted.cloned().unwrap_or_default();
        return Ok(Answer {
            streams: names,
            stream,
            reasons: BTreeMap::new(),
            shards: BTreeMap::new(),
            rows: Vec::new(),
            next: None,
        });
    };
    let journal = Journal::read(directory.clone(), layout, None)?;
    let matches = |reason: &str| filter.reason.as_deref().is_none_or(|wanted| wanted == reason);
    let mut shards = BTreeMap::new();
    for (shard, tally) in journal.shard_tallies() {
        let count: u64 = tally.quarantined.iter().filter(|(reason, _)| matches(reason)).map(|(_, count)| count).sum();
        if count > 0 {
            shards.insert(shard, count);
        }
    }
    let (rows, next) = collect_rows(&journal, filter, matches)?;
    Ok(Answer { streams: names, stream, reasons: journal.tally().quarantined, shards, rows, next })
}

/// Reads the rows of a query, and names the chunk with which the next answer starts.
fn collect_rows(
    journal: &Journal,
    filter: &Filter,
    matches: impl Fn(&str) -> bool,
) -> Result<(Vec<Row>, Option<String>), ChunkError> {
    let from = filter.from.as_deref().and_then(ChunkId::parse);
    let chunks = journal.entries().iter().filter(|(id, entry)| {
        from.is_none_or(|from| **id >= from)
            && filter.shard.is_none_or(|shard| shard == id.shard)
            && entry.tally.quarantined.keys().any(|reason| matches(reason))
    });
    let mut rows = Vec::new();
    for (read, (id, _)) in chunks.enumerate() {
        if rows.len() >= PAGE_ROWS || read == MAX_FILES {
            return Ok((rows, Some(id.to_string())));
        }
        let copy = journal.directory().fetch(&journal.layout().quarantine(*id))?;
        let found = quarantine::read(&copy)?.into_iter().filter(|row| matches(&row.reason));
        rows.extend(found.map(|found| Row {
            shard: id.shard,
            row: found.row,
            url: found.image_url,
            reason: found.reason,
            detail: found.detail,
        }));
    }
    Ok((rows, None))
}
