//! Test set: ids, their images, and the optional truth.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::catalog::{UrlSet, url_hash};
use crate::corpus::{TestId, TestIds};
use crate::objects::{Object, Store};
use crate::pipeline::error::PipelineError;
use crate::pipeline::error::chain;
use crate::pipeline::feed::feed_parser;
use crate::pipeline::inputs::{ImageInput, visit_image_names};
use crate::predict::evaluate::{ImageOfId, TruthRow, evaluate, read_truth};
use crate::predict::metrics;
use crate::predict::submission::{CAPTION_COLUMN, ID_COLUMN};

/// Upper bound on a row of the ids file.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Upper bound on the truth file. The published list of captions is a few megabytes.
const MAX_TRUTH_BYTES: u64 = 1 << 30;

/// Origin of the ids.
#[derive(Debug, Clone)]
pub(crate) enum IdSource {
    /// A file with the columns `id` and `image_url`.
    File(String),
    /// The images themselves, each of which is an id of the same name.
    Images {
        /// Format and columns of the shards.
        input: ImageInput,
        /// Shards in order.
        shards: Arc<Vec<Object>>,
        /// Largest encoded image.
        max_encoded_bytes: u64,
    },
}

impl IdSource {
    /// Returns the file of the configuration, or the images where there is none.
    pub(crate) fn new(ids: &str, (input, shards): (&ImageInput, &[Object]), max_encoded_bytes: u64) -> Self {
        if ids.is_empty() {
            Self::Images { input: input.clone(), shards: Arc::new(shards.to_vec()), max_encoded_bytes }
        } else {
            Self::File(ids.to_owned())
        }
    }

    /// Returns the name of the source and its configuration key, for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(name) => format!("`{}` (`predict.ids`)", Store::redact(name)),
            Self::Images { shards, .. } => {
                format!("`{}` (`predict.images`)", shards.first().map_or("", |shard| shard.url.as_str()))
            }
        }
    }
}

/// Distinct images of the ids.
pub(crate) struct TestSet {
    pub(super) urls: Arc<UrlSet>,
    /// Number of ids.
    pub(crate) ids: u64,
    /// Number of ids of each distinct image, in no particular order.
    pub(crate) ids_per_image: Vec<u64>,
}

impl TestSet {
    /// Reads the ids file.
    ///
    /// # Errors
    /// When a row is malformed, or the file has no id.
    pub(crate) async fn read(store: &Store, ids: &IdSource) -> Result<Self, PipelineError> {
        let mut hashes = Vec::new();
        visit_ids(store, ids, |id| {
            hashes.push(url_hash(id.image_url));
            Ok(())
        })
        .await?;
        if hashes.is_empty() {
            return Err(PipelineError::Input(format!("{} holds no id: check the file", ids.name())));
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

/// Passes each id to `visit`: the rows of a file in order, or the distinct images in the order of their first rows.
///
/// # Errors
/// Those of `visit`; or when a row of the file is malformed, or the images cannot be read.
pub(crate) async fn visit_ids(
    store: &Store,
    ids: &IdSource,
    mut visit: impl FnMut(TestId<'_>) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let ids = match ids {
        IdSource::File(ids) => ids,
        IdSource::Images { input, shards, max_encoded_bytes } => {
            let (mut seen, mut row) = (HashSet::new(), 0);
            for shard in shards.iter() {
                visit_image_names(store, shard, input, *max_encoded_bytes, |name| {
                    if !seen.insert(url_hash(name)) {
                        return Ok(());
                    }
                    row += 1;
                    visit(TestId { row: row - 1, id: name, image_url: name })
                })
                .await?;
            }
            return Ok(());
        }
    };
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
    evaluate(empty_submission.as_bytes(), &*truth, None)
        .map(|_| ())
        .map_err(|error| PipelineError::Input(format!("`{path}` (`predict.truth`): {}", chain(&error))))
}

/// Fetches the truth file.
///
/// # Errors
/// When the file cannot be read.
pub(crate) async fn read_truth_bytes(store: &Store, path: &str) -> Result<Vec<u8>, PipelineError> {
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

/// Images of the ids of a file, for `evaluate --ids`.
#[derive(Debug, Default)]
pub struct TestImages {
    /// Image of each id.
    pub image_of: ImageOfId,
    /// Upper bound on NDCG@5 if all ids of an image get the same ranking.
    pub ndcg5_ceiling: f64,
}

/// Reads the images of the ids of a file.
///
/// # Errors
/// When a row is malformed.
pub async fn read_test_images(ids: &str) -> Result<TestImages, PipelineError> {
    let (mut images, mut image_of) = (HashMap::<u64, u64>::new(), ImageOfId::new());
    visit_ids(&Store::default(), &IdSource::File(ids.to_owned()), |id| {
        let image = url_hash(id.image_url);
        *images.entry(image).or_default() += 1;
        image_of.insert(id.id.into(), image);
        Ok(())
    })
    .await?;
    // Sort the counts, so that the sum does not depend on the order of the map.
    let mut counts: Vec<u64> = images.into_values().collect();
    counts.sort_unstable();
    Ok(TestImages { image_of, ndcg5_ceiling: metrics::ceiling(counts) })
}
