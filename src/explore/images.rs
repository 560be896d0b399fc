//! Images of a stream → vectors in the space that search compares.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::encode::{Encoders, Query, class_query};
use super::jobs::Progress;
use super::opened::{Head, OpenRun};
use super::{Entry, FoundImage, internal, scratch};
use crate::chunk::ChunkId;
use crate::chunk::journal::{Journal, Layout};
use crate::objects::StoreError;
use crate::pipeline::PipelineError;
use crate::pipeline::chunk_files::{ChunkFile, FeatureSet, fetch_files};
use crate::run_dir::{LocalCopy, free_bytes};
use crate::search::{VectorFile, VectorWriter};
use crate::types::Precision;

/// Features that are projected at once.
const BATCH_ROWS: usize = 512;
/// Bytes of the row, beside its vector, that an image takes on scratch disk: URL and labels.
const ROW_BYTES: u64 = 300;
/// Scratch disk that stays free.
const RESERVE_BYTES: u64 = 1 << 30;
/// Prefix of the names of test sets.
const TEST: &str = "test:";

/// A set of images of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stream {
    /// Images that the head was not trained on.
    HeldOut,
    /// All images of the training stream, held-out ones included.
    Train,
    /// Test images, by the stem of their submission.
    Test(String),
}

impl Stream {
    /// Parses the name of a set.
    ///
    /// # Errors
    /// When the run can have no such set.
    pub(super) fn parse(run: &OpenRun, name: &str) -> Result<Self, PipelineError> {
        let is_plain = |stem: &str| !stem.is_empty() && !stem.contains(['/', '\\', '\0']) && !stem.starts_with('.');
        match (name, name.strip_prefix(TEST)) {
            ("held-out", _) if !run.config.validation_split().is_empty() => Ok(Self::HeldOut),
            ("train", _) => Ok(Self::Train),
            (_, Some(stem)) if is_plain(stem) => Ok(Self::Test(stem.to_owned())),
            _ => Err(PipelineError::Input(format!("the run has no set of images `{name}`"))),
        }
    }

    /// Returns the name of the set.
    pub(super) fn name(&self) -> String {
        match self {
            Self::HeldOut => "held-out".to_owned(),
            Self::Train => "train".to_owned(),
            Self::Test(stem) => format!("{TEST}{stem}"),
        }
    }

    /// Describes the set.
    pub(super) fn entry(&self) -> Entry {
        let title = match self {
            Self::HeldOut => "images held out from training".to_owned(),
            Self::Train => "all training images".to_owned(),
            Self::Test(stem) => format!("test images of {stem}"),
        };
        Entry { name: self.name(), title, rows: None }
    }

    fn layout(&self) -> Layout {
        match self {
            Self::HeldOut | Self::Train => Layout::train("features"),
            Self::Test(stem) => Layout::predict(stem),
        }
    }
}

/// Lists the sets of images of a run. Blocks the thread.
///
/// # Errors
/// When the run directory cannot be read.
pub(super) fn streams(run: &OpenRun) -> Result<Vec<Stream>, PipelineError> {
    let mut streams = Vec::new();
    for name in run.dir.list("journal")? {
        match name.strip_prefix("predict-") {
            Some(stem) => streams.push(Stream::Test(stem.to_owned())),
            None if name == "features" => {
                streams.insert(0, Stream::Train);
                if !run.config.validation_split().is_empty() {
                    streams.insert(0, Stream::HeldOut);
                }
            }
            None => {}
        }
    }
    Ok(streams)
}

/// An image of an index.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) url: String,
    /// Classes of the image.
    pub(super) labels: Vec<u32>,
    /// Number of the chunk in [`ImageIndex::files`].
    pub(super) file: u32,
    /// Length of the feature, for a classifier.
    pub(super) length: f32,
}

/// Images of a stream, with a vector of length 1 each.
pub(crate) struct ImageIndex {
    pub(super) file: VectorFile,
    /// Chunks of the images.
    files: Vec<ChunkFile>,
}

/// Reads the features of a stream.
///
/// # Errors
/// When a chunk is damaged, scratch disk is short, or the device fails.
pub(super) async fn build(
    run: Arc<OpenRun>,
    encoders: Arc<Encoders>,
    stream: Stream,
    progress: Progress,
) -> Result<ImageIndex, PipelineError> {
    let handle = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let journal = Journal::read(run.dir.clone(), stream.layout(), None)?;
        let features = FeatureSet::open(journal)?;
        progress.set_total(features.images());
        let mut builder = Builder { run: &run, stream: &stream, writer: None, length: Vec::new() };
        for (number, fetched) in fetch_files(&run.dir, features.files()).enumerate() {
            let (file, copy) = fetched?;
            let batch = builder.select(number as u32, file, &copy)?;
            if number == 0 || builder.writer.is_none() {
                builder.require_space(features.images(), batch.dim)?;
            }
            let (dim, rows) = (batch.dim, batch.records.len());
            for (records, values) in
                batch.records.chunks(BATCH_ROWS).zip(batch.values.chunks((BATCH_ROWS * dim).max(1)))
            {
                builder.length = lengths(values, dim);
                let vectors = handle.block_on(encoders.project(values.to_vec(), records.len()))?;
                builder.write(records, &vectors)?;
            }
            progress.add(rows as u64);
        }
        let files = features.files().to_vec();
        let empty = || PipelineError::Input(format!("there are no {} yet", stream.entry().title));
        let file = builder.writer.ok_or_else(empty)?.finish().map_err(written)?;
        if file.rows() == 0 { Err(empty()) } else { Ok(ImageIndex { file, files }) }
    })
    .await?
}

/// Returns the error of a write to scratch disk.
pub(super) fn written(error: std::io::Error) -> PipelineError {
    StoreError::io(scratch(), "written", error).into()
}

/// Returns the error of a read from scratch disk.
pub(super) fn read(error: std::io::Error) -> PipelineError {
    StoreError::io(scratch(), "read", error).into()
}

fn lengths(values: &[f32], dim: usize) -> Vec<f32> {
    let length = |row: &[f32]| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
    values.chunks_exact(dim.max(1)).map(length).collect()
}

struct Builder<'a> {
    run: &'a OpenRun,
    stream: &'a Stream,
    writer: Option<VectorWriter>,
    /// Lengths of the features of a batch.
    length: Vec<f32>,
}

/// Selected images of a chunk.
struct Batch {
    records: Vec<ImageRecord>,
    values: Vec<f32>,
    dim: usize,
}

impl Builder<'_> {
    /// Reads the images of a chunk that belong to the stream, whole images or first views.
    fn select(&self, number: u32, file: &ChunkFile, copy: &LocalCopy) -> Result<Batch, PipelineError> {
        let split = self.run.config.validation_split();
        let mut wanted = Vec::new();
        let read = file.read_selected(copy, |rows, row| {
            let is_wanted = rows.view(row) <= 1 && (*self.stream != Stream::HeldOut || split.contains(rows.url(row)));
            if is_wanted {
                wanted.push(row);
            }
            is_wanted
        })?;
        let record = |row: &usize| ImageRecord {
            url: read.rows.url(*row).to_owned(),
            labels: read.rows.labels(*row).to_vec(),
            file: number,
            length: 0.0,
        };
        let mut values = Vec::new();
        read.values.copy_to(0..read.values.len(), &mut values);
        Ok(Batch { records: wanted.iter().map(record).collect(), values, dim: read.dim })
    }

    /// Refuses an index that scratch disk has no room for.
    fn require_space(&self, images: u64, dim: usize) -> Result<(), PipelineError> {
        let share = if *self.stream == Stream::HeldOut { self.run.config.validation_split().fraction } else { 1.0 };
        let dim = match &self.run.head {
            Head::Projection(head) => head.output(),
            Head::Classes(_) | Head::Paired => dim,
        };
        let width = if self.precision() == Precision::Bf16 { 2 } else { 4 };
        let bytes = (images as f64 * share) as u64 * (width * dim as u64 + ROW_BYTES);
        require_space(bytes, &self.stream.entry().title)
    }

    /// Returns the format of the vectors: bf16 for the many training images, which are searched but not ranked.
    fn precision(&self) -> Precision {
        match (&self.run.head, self.stream) {
            (Head::Projection(_) | Head::Paired, Stream::Train) => Precision::Bf16,
            // Scores are computed from the vectors: those of held-out images are then the scores of the report.
            _ => Precision::F32,
        }
    }

    fn write(&mut self, records: &[ImageRecord], vectors: &[f32]) -> Result<(), PipelineError> {
        let dim = vectors.len() / records.len().max(1);
        let precision = self.precision();
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(VectorWriter::create(&scratch(), dim, precision).map_err(written)?),
        };
        for ((record, vector), length) in records.iter().zip(vectors.chunks_exact(dim.max(1))).zip(&self.length) {
            let record = ImageRecord { length: *length, ..record.clone() };
            let text = serde_json::to_vec(&record).map_err(|error| internal(&error.to_string()))?;
            writer.push(vector, 0, &text).map_err(written)?;
        }
        Ok(())
    }
}

/// Refuses files that scratch disk has no room for.
///
/// # Errors
/// Names the folder and the space.
pub(super) fn require_space(bytes: u64, what: &str) -> Result<(), PipelineError> {
    let free = free_bytes(&scratch()).unwrap_or(u64::MAX);
    if bytes.saturating_add(RESERVE_BYTES) <= free {
        return Ok(());
    }
    Err(PipelineError::Input(format!(
        "the {what} take {} of scratch disk to search, and `{}` has {} left, of which 1 GiB stays free: free some, or start \
         the page with TMPDIR on a larger disk",
        bytesize::ByteSize(bytes),
        scratch().display(),
        bytesize::ByteSize(free)
    )))
}

impl ImageIndex {
    /// Reads the record of a row.
    ///
    /// # Errors
    /// When there is no such row.
    pub(super) fn record(&self, row: u32) -> Result<ImageRecord, PipelineError> {
        if row >= self.file.rows() {
            return Err(PipelineError::Input(format!("there is no image {row}: the set has {}", self.file.rows())));
        }
        serde_json::from_slice(&self.file.text(row).map_err(read)?).map_err(|error| internal(&error.to_string()))
    }

    /// Returns the chunk of an image, and its file.
    ///
    /// # Errors
    /// When the name of its file is malformed.
    pub(super) fn chunk(&self, record: &ImageRecord) -> Result<(ChunkId, &ChunkFile), PipelineError> {
        let file = self.files.get(record.file as usize).ok_or_else(|| internal("an image has no chunk"))?;
        let stem = file.name.rsplit('/').next().and_then(|name| name.strip_suffix(".parquet"));
        let id = stem.and_then(ChunkId::parse).ok_or_else(|| internal("a chunk has a malformed name"))?;
        Ok((id, file))
    }

    /// Returns the query for something like an image of the index.
    ///
    /// # Errors
    /// When there is no such row.
    pub(super) fn query(&self, run: &OpenRun, row: u32) -> Result<Query, PipelineError> {
        let record = self.record(row)?;
        let images = self.file.vector(row).map_err(read)?;
        let captions = match &run.head {
            Head::Classes(head) => class_query(head.dim, &images, record.length)?,
            Head::Projection(_) | Head::Paired => images.clone(),
        };
        Ok(Query { images, captions: Some(captions) })
    }

    /// Returns the images nearest to a query.
    ///
    /// # Errors
    /// When the query has another length, or scratch disk fails.
    pub(super) fn rank(&self, query: &[f32], limit: usize) -> Result<Vec<FoundImage>, PipelineError> {
        let hits = self.file.search(query, limit).map_err(read)?;
        let found = hits
            .into_iter()
            .map(|hit| Ok(FoundImage { row: hit.row, url: self.record(hit.row)?.url, score: hit.score }));
        found.collect()
    }
}
