//! Rows of captions of one object, in any format.

use std::sync::Arc;

use super::folder::FolderPairs;
use super::parquet::ParquetPairs;
use super::{JSON_LINES, MAX_RECORD_BYTES, PairInput, TAR, TEXT, open_stream};
use crate::corpus::{Delimiter, JsonPairs, PairCounts, PairRow, Pairs, ResumePoint, WebDatasetPairs};
use crate::objects::{Object, ReadStats, Reader, Store};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feed::feed_parser;
use crate::types::PairsFormat;

/// Largest page of a column of captions, compressed and decompressed together.
const MAX_PAGE_BYTES: u64 = 256 << 20;
/// Longest JSON line. It may hold an image beside the captions.
const MAX_LINE_BYTES: usize = 2 * MAX_RECORD_BYTES;
const START: ResumePoint = ResumePoint { byte_offset: 0, number: 0 };

/// Reads the captions of one object.
pub(crate) struct PairReader {
    url: String,
    kind: Kind,
}

enum Kind {
    Text(Reader, Box<Pairs>),
    Jsonl(Reader, Box<JsonPairs>),
    Tar(Reader, Box<WebDatasetPairs>),
    Parquet(Box<ParquetPairs>),
    Folder(Box<FolderPairs>),
}

impl PairReader {
    /// Opens an object at its start, or at a point of an earlier process with the counts of the rows before it.
    ///
    /// # Errors
    /// When the object cannot be read, or lacks a column.
    pub(crate) async fn open(
        store: &Store,
        object: &Object,
        input: &PairInput,
        start: Option<(ResumePoint, PairCounts)>,
        stats: &Arc<ReadStats>,
    ) -> Result<Self, PipelineError> {
        let url = object.url.clone();
        let from = start.unwrap_or((START, PairCounts::default()));
        let stream = |formats| open_stream(store, formats, (object, from.0.byte_offset), stats);
        let PairInput { columns, languages, .. } = input;
        let kind = match input.format {
            PairsFormat::Auto | PairsFormat::Tsv | PairsFormat::Csv => {
                let delimiter = if input.format == PairsFormat::Csv { Delimiter::Comma } else { Delimiter::Tab };
                let mut pairs = Pairs::new(&url, delimiter, columns, languages, MAX_RECORD_BYTES);
                if let Some((point, counts)) = start {
                    let mut header = open_stream(store, TEXT, (object, 0), &Arc::default()).await?;
                    while !pairs.has_header()? {
                        feed_parser(&mut header, &mut pairs, &url).await?;
                    }
                    pairs.resume_at(point, counts);
                }
                Kind::Text(stream(TEXT).await?, Box::new(pairs))
            }
            PairsFormat::Jsonl => {
                let names = (url.as_str(), object.name.as_str());
                Kind::Jsonl(
                    stream(JSON_LINES).await?,
                    Box::new(JsonPairs::new(names, columns, languages, MAX_LINE_BYTES, from)),
                )
            }
            PairsFormat::WebDataset => {
                let names = (url.as_str(), object.name.as_str());
                Kind::Tar(stream(TAR).await?, Box::new(WebDatasetPairs::new(names, columns, languages, from)))
            }
            PairsFormat::Parquet => {
                let first = (from.0.number, from.1);
                let open = ParquetPairs::open(object, columns, languages, first, MAX_PAGE_BYTES, stats);
                Kind::Parquet(Box::new(open.await?))
            }
            PairsFormat::Folder => {
                Kind::Folder(Box::new(FolderPairs::open(store, object, input, (from.0.number, from.1), stats)?))
            }
        };
        Ok(Self { url, kind })
    }

    /// Returns the next row; `None` if [`Self::fill`] has to read more.
    ///
    /// # Errors
    /// When the object is damaged or lacks a column.
    pub(crate) fn next(&mut self) -> Result<Option<PairRow<'_>>, PipelineError> {
        match &mut self.kind {
            Kind::Text(_, pairs) => Ok(pairs.next()?),
            Kind::Jsonl(_, pairs) => Ok(pairs.next()?),
            Kind::Tar(_, pairs) => Ok(pairs.next()?),
            Kind::Parquet(pairs) => Ok(pairs.next()),
            Kind::Folder(pairs) => pairs.next(),
        }
    }

    /// Reads further rows, in bounded steps. Returns whether more may follow.
    ///
    /// # Errors
    /// When the object cannot be read or is damaged.
    pub(crate) async fn fill(&mut self) -> Result<bool, PipelineError> {
        match &mut self.kind {
            Kind::Text(reader, pairs) => feed_parser(reader, &mut **pairs, &self.url).await,
            Kind::Jsonl(reader, pairs) => feed_parser(reader, &mut **pairs, &self.url).await,
            Kind::Tar(reader, pairs) => feed_parser(reader, &mut **pairs, &self.url).await,
            Kind::Parquet(pairs) => pairs.fill().await,
            Kind::Folder(pairs) => pairs.fill().await,
        }
    }

    /// Returns the counts of the rows so far.
    pub(crate) fn counts(&self) -> PairCounts {
        match &self.kind {
            Kind::Text(_, pairs) => *pairs.counts(),
            Kind::Jsonl(_, pairs) => *pairs.counts(),
            Kind::Tar(_, pairs) => *pairs.counts(),
            Kind::Parquet(pairs) => *pairs.counts(),
            Kind::Folder(pairs) => pairs.counts(),
        }
    }

    /// Returns where reading can go on, once all rows at hand were returned; `None` where it cannot.
    pub(crate) fn resume_point(&self) -> Option<ResumePoint> {
        match &self.kind {
            Kind::Text(_, pairs) => pairs.resume_point(),
            Kind::Jsonl(_, pairs) => pairs.resume_point(),
            Kind::Tar(_, pairs) => pairs.resume_point(),
            Kind::Parquet(pairs) => Some(pairs.resume_point()),
            Kind::Folder(pairs) => pairs.resume_point(),
        }
    }
}
