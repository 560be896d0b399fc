//! Test set: ids, their images, and the optional truth.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::{UrlSet, url_hash};
use crate::corpus::{TestId, TestIds};
use crate::objects::Store;
use crate::pipeline::error::PipelineError;
use crate::pipeline::error::chain;
use crate::pipeline::feed::feed_parser;
use crate::predict::evaluate::{TruthRow, evaluate, read_truth};
use crate::predict::metrics;
use crate::predict::submission::{CAPTION_COLUMN, ID_COLUMN};

/// Upper bound on a row of the ids file.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Upper bound on the truth file. The published list of captions is a few megabytes.
const MAX_TRUTH_BYTES: u64 = 1 << 30;

/// Distinct images of the ids.
pub(crate) struct TestSet {
    pub(super) urls: Arc<UrlSet>,
    /// Number of ids.
    pub(super) ids: u64,
    /// Number of ids of each distinct image, in no particular order.
    pub(super) ids_per_image: Vec<u64>,
}

impl TestSet {
    /// Reads the ids file.
    ///
    /// # Errors
    /// When a row is malformed, or the file has no id.
    pub(super) async fn read(store: &Store, ids: &str) -> Result<Self, PipelineError> {
        let mut hashes = Vec::new();
        visit_ids(store, ids, |id| {
            hashes.push(url_hash(id.image_url));
            Ok(())
        })
        .await?;
        if hashes.is_empty() {
            let name = Store::redact(ids);
            return Err(PipelineError::Input(format!("`{name}` (`predict.ids`) holds no id: check the file")));
        }
        hashes.sort_unstable();
        let ids_per_image = hashes.chunk_by(|one, other| one == other).map(|ids| ids.len() as u64).collect();
        Ok(Self { ids: hashes.len() as u64, ids_per_image, urls: Arc::new(hashes.into_iter().collect()) })
    }

    /// Returns the URLs of the images.
    pub(crate) fn urls(&self) -> &Arc<UrlSet> {
        &self.urls
    }
}

/// Passes each row of an ids file to `visit`.
///
/// # Errors
/// Those of `visit`; or when a row is malformed.
pub(super) async fn visit_ids(
    store: &Store,
    ids: &str,
    mut visit: impl FnMut(TestId<'_>) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let object = store.find(ids).await?;
    let mut reader = store.open(&object, Arc::default()).await?;
    let mut rows = TestIds::new(&object.url, MAX_RECORD_BYTES);
    loop {
        let more = feed_parser(&mut reader, &mut rows, &object.url).await?;
        while let Some(id) = rows.next()? {
            visit(id)?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// Reads the truth once, so that an unusable file is reported before anything runs.
///
/// # Errors
/// When the file cannot be read or has no row.
pub(crate) async fn check_truth(store: &Store, path: &str) -> Result<(), PipelineError> {
    let truth = read_truth_bytes(store, path).await?;
    let empty_submission = format!("{ID_COLUMN},{CAPTION_COLUMN}\n");
    let path = Store::redact(path);
    evaluate(empty_submission.as_bytes(), &*truth)
        .map(|_| ())
        .map_err(|error| PipelineError::Input(format!("`{path}` (`predict.truth`): {}", chain(&error))))
}

/// Fetches the truth file.
///
/// # Errors
/// When the file cannot be read.
pub(super) async fn read_truth_bytes(store: &Store, path: &str) -> Result<Vec<u8>, PipelineError> {
    Ok(store.read(path, MAX_TRUTH_BYTES).await?)
}

/// Reads the rows of the truth file.
///
/// # Errors
/// When the file cannot be read or has no row.
pub(super) async fn read_truth_rows(store: &Store, path: &str) -> Result<Vec<TruthRow>, PipelineError> {
    let truth = read_truth_bytes(store, path).await?;
    read_truth(&*truth).map_err(|error| PipelineError::Input(chain(&error)))
}

/// Computes the ceiling of NDCG@5 from the ids file alone, for `evaluate --ids`.
///
/// # Errors
/// When a row is malformed.
pub async fn ceiling_of(ids: &str) -> Result<f64, PipelineError> {
    let mut images: HashMap<u64, u64> = HashMap::new();
    visit_ids(&Store::default(), ids, |id| {
        *images.entry(url_hash(id.image_url)).or_default() += 1;
        Ok(())
    })
    .await?;
    // Sort the counts, so that the sum does not depend on the order of the map.
    let mut counts: Vec<u64> = images.into_values().collect();
    counts.sort_unstable();
    Ok(metrics::ceiling(counts))
}
