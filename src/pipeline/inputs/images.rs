//! Rows of images of one object, in any format.

use std::sync::Arc;

use super::folder::FolderImages;
use super::parquet::ParquetImages;
use super::{ImageInput, JSON_LINES, TAR, TEXT, open_stream};
use crate::corpus::{EncodedImage, ImageRow, ImageRowProblem, ImageRows, JsonImageRows, ResumePoint, WebDatasetImages};
use crate::objects::{Object, ReadStats, Reader, Store};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feed::feed_parser;
use crate::types::ImageFormat;

/// Start of an object.
const START: ResumePoint = ResumePoint { byte_offset: 0, number: 0 };

/// Limits on what a reader holds in memory.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "each is an upper bound")]
pub(crate) struct ReadLimits {
    /// Largest encoded image.
    pub(crate) max_encoded_bytes: u64,
    /// Longest row of text: an image of the largest size in base64, and its URLs.
    pub(crate) max_record_bytes: usize,
    /// Bytes of a JSON line beyond those of a row of text.
    pub(crate) max_json_bytes: usize,
    /// Largest page of a Parquet column, compressed and decompressed together.
    pub(crate) max_page_bytes: u64,
}

/// Returns the rows that are at hand.
pub(crate) trait NextRow {
    /// Returns the next row; `None` if more bytes have to be read.
    ///
    /// # Errors
    /// When the object is damaged.
    fn next(&mut self) -> Result<Option<ImageRow<'_>>, PipelineError>;
}

impl NextRow for ImageRows {
    fn next(&mut self) -> Result<Option<ImageRow<'_>>, PipelineError> {
        Ok(Self::next(self)?)
    }
}

/// Reads the rows of one object.
pub(crate) struct ImageReader {
    url: String,
    kind: Kind,
    limits: ReadLimits,
}

#[expect(clippy::large_enum_variant, reason = "one for each open shard")]
enum Kind {
    Tsv(Reader, ImageRows),
    Jsonl(Reader, JsonImageRows),
    Tar(Reader, WebDatasetImages),
    Parquet(Box<ParquetImages>),
    Folder(FolderImages),
}

impl ImageReader {
    /// Opens an object to read its rows from `first_row` on. Formats whose rows cannot be found return the rows before it as
    /// well, unless `offset` says where it begins in the decompressed bytes.
    ///
    /// # Errors
    /// When the object cannot be read, or lacks a column.
    pub(crate) async fn open(
        store: &Store,
        object: &Object,
        input: &ImageInput,
        limits: ReadLimits,
        (first_row, offset): (u64, Option<u64>),
        stats: &Arc<ReadStats>,
    ) -> Result<Self, PipelineError> {
        let (url, columns) = (object.url.clone(), &input.columns);
        let point = offset.map_or(START, |byte_offset| ResumePoint { byte_offset, number: first_row });
        let stream = |formats, offset| open_stream(store, formats, (object, offset), stats);
        let kind = match input.format {
            ImageFormat::Auto | ImageFormat::Tsv => {
                Kind::Tsv(stream(TEXT, 0).await?, ImageRows::new(&url, columns.clone(), limits.max_record_bytes))
            }
            ImageFormat::Jsonl => {
                let max_line_bytes = limits.max_record_bytes.saturating_add(limits.max_json_bytes);
                let rows = JsonImageRows::new(&url, &object.name, columns, max_line_bytes, point);
                Kind::Jsonl(stream(JSON_LINES, point.byte_offset).await?, rows)
            }
            ImageFormat::WebDataset => {
                let rows = WebDatasetImages::new(&url, &object.name, columns, limits.max_encoded_bytes, point);
                Kind::Tar(stream(TAR, point.byte_offset).await?, rows)
            }
            ImageFormat::Parquet => {
                let open = ParquetImages::open(object, columns, limits.max_page_bytes, first_row, stats);
                Kind::Parquet(Box::new(open.await?))
            }
            ImageFormat::Folder => Kind::Folder(FolderImages::new(object, limits.max_encoded_bytes, first_row, stats)?),
        };
        Ok(Self { url, kind, limits })
    }

    /// Reads further rows, in bounded steps. Returns whether more may follow.
    ///
    /// # Errors
    /// When the object cannot be read or is damaged.
    pub(crate) async fn fill(&mut self) -> Result<bool, PipelineError> {
        match &mut self.kind {
            Kind::Tsv(reader, rows) => feed_parser(reader, rows, &self.url).await,
            Kind::Jsonl(reader, rows) => feed_parser(reader, rows, &self.url).await,
            Kind::Tar(reader, rows) => feed_parser(reader, rows, &self.url).await,
            Kind::Parquet(rows) => rows.fill().await,
            Kind::Folder(rows) => rows.fill().await,
        }
    }

    /// Frees the memory that unusually long rows needed.
    pub(crate) fn trim(&mut self) {
        match &mut self.kind {
            Kind::Tsv(_, rows) => rows.trim(),
            Kind::Jsonl(_, rows) => rows.trim(),
            Kind::Tar(..) | Kind::Parquet(_) | Kind::Folder(_) => {}
        }
    }

    /// Returns the offset in the decompressed bytes at which `row` begins, if it is the next one and reading can go on there.
    /// Formats that find rows by themselves need none.
    pub(crate) fn resume_offset(&self, row: u64) -> Option<u64> {
        let point = match &self.kind {
            Kind::Jsonl(_, rows) => rows.resume_point(),
            Kind::Tar(_, rows) => rows.resume_point(),
            Kind::Tsv(..) | Kind::Parquet(_) | Kind::Folder(_) => None,
        };
        point.filter(|point| point.number == row).map(|point| point.byte_offset)
    }
}

impl NextRow for ImageReader {
    fn next(&mut self) -> Result<Option<ImageRow<'_>>, PipelineError> {
        let limits = self.limits;
        match &mut self.kind {
            Kind::Tsv(_, rows) => Ok(rows.next()?),
            Kind::Jsonl(_, rows) => Ok(rows.next()?.map(|row| limits.check(row))),
            Kind::Tar(_, rows) => Ok(rows.next()?),
            Kind::Parquet(rows) => Ok(rows.next().map(|row| limits.check(row))),
            Kind::Folder(rows) => Ok(rows.next()),
        }
    }
}

impl ReadLimits {
    /// Returns the limits of a reader that runs alone, for images of at most `max_encoded_bytes`.
    pub(crate) fn alone(max_encoded_bytes: u64) -> Self {
        Self {
            max_encoded_bytes,
            max_record_bytes: usize::try_from(max_encoded_bytes / 3 * 4).unwrap_or(usize::MAX / 2) + (64 << 10),
            max_json_bytes: 16 << 20,
            max_page_bytes: 256 << 20,
        }
    }

    /// Refuses an image over the limit, before it is copied.
    fn check(self, row: ImageRow<'_>) -> ImageRow<'_> {
        let ImageRow::Ok { row: number, image_url, image } = &row else { return row };
        let limit = match image {
            EncodedImage::Base64(_) => self.max_record_bytes as u64,
            EncodedImage::File(_) => self.max_encoded_bytes,
        };
        let bytes = image.bytes().len() as u64;
        if bytes <= limit {
            return row;
        }
        ImageRow::Bad {
            row: *number,
            reason: ImageRowProblem::RowTooLong,
            detail: format!("the image has {bytes} bytes, over the limit of {limit}"),
            image_url: Some((*image_url).to_owned()),
        }
    }
}
