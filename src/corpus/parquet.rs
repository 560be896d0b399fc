//! Parser of Parquet files: a few columns, row by row and page by page.
//!
//! The `parquet` crate decodes metadata, pages and values. `pages` lends it the bytes, and refuses pages that would take more
//! memory than the limit before they are decoded. The rows of a row group are read one by one, so that memory is that of one page
//! for each column. Reading can start at any row: pages and row groups before it are skipped where their sizes are known.
//!
//! A column is a value of a basic type, or a list of them, at any depth of groups. Names are those of `columns`.

mod pages;
mod schema;
mod values;

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};

use crate::corpus::caption_queue::{CaptionedRow, join_captions};
use crate::corpus::columns::{ColumnKind, ImageColumns, PairColumns, language_candidates};
use crate::corpus::error::CorpusError;

pub use pages::{FileRange, RangeReader};
pub use values::Value;

use schema::Schema;
use values::ColumnValues;

/// Bytes at the end of a file that say how long its metadata are.
pub const TAIL_BYTES: usize = 8;
/// Upper bound on the metadata. Those of the published files have some ten kilobytes.
const MAX_METADATA_BYTES: usize = 16 << 20;

fn damaged(file: &str, detail: impl Into<String>) -> CorpusError {
    CorpusError::Container { file: file.to_owned(), format: "Parquet", detail: detail.into() }
}

/// Returns the length of the metadata that precede the tail of a file.
///
/// # Errors
/// When the tail is not that of a Parquet file, or the metadata are encrypted or too long.
pub fn metadata_bytes(file: &str, size: u64, tail: &[u8]) -> Result<usize, CorpusError> {
    let not_parquet =
        || damaged(file, "it does not end with the mark of a Parquet file: it is truncated or another kind of file");
    let tail: &[u8; TAIL_BYTES] = tail.try_into().map_err(|_| not_parquet())?;
    let footer = FooterTail::try_new(tail).map_err(|_| not_parquet())?;
    if footer.is_encrypted_footer() {
        return Err(damaged(file, "it is encrypted: write it without encryption"));
    }
    let bytes = footer.metadata_length();
    if bytes as u64 > size.saturating_sub(TAIL_BYTES as u64) {
        return Err(damaged(
            file,
            format!("its metadata of {bytes} bytes are longer than the file: it is damaged, fetch it again"),
        ));
    }
    if bytes > MAX_METADATA_BYTES {
        let detail = format!(
            "its metadata have {bytes} bytes, over the limit of {MAX_METADATA_BYTES}: write fewer or larger row groups"
        );
        return Err(damaged(file, detail));
    }
    Ok(bytes)
}

/// Columns that a reader returns, in this order.
#[derive(Debug, Clone)]
pub struct Columns {
    /// Positions in the schema.
    leaves: Vec<usize>,
    /// Names, for messages.
    names: Vec<String>,
}

/// Columns with images.
#[derive(Debug, Clone)]
pub struct ImageLeaves {
    /// The URL, if the file has one, and then the image.
    pub columns: Columns,
    /// True if the first column is the URL.
    pub has_url: bool,
    /// True if the images are in base64: the column has the type of text.
    pub is_base64: bool,
}

/// Columns with captions.
#[derive(Debug, Clone)]
pub struct PairLeaves {
    /// The URL if the file has one, the caption, and the language if the file has one.
    pub columns: Columns,
    /// True if the first column is the URL.
    pub has_url: bool,
}

/// Metadata of a file.
#[derive(Debug, Clone)]
pub struct ParquetFile {
    file: String,
    metadata: Arc<ParquetMetaData>,
}

impl ParquetFile {
    /// Decodes the metadata of a file of `size` bytes.
    ///
    /// # Errors
    /// When they are damaged.
    pub fn new(file: &str, size: u64, metadata: &[u8]) -> Result<Self, CorpusError> {
        let decoded = std::panic::catch_unwind(|| ParquetMetaDataReader::decode_metadata(metadata));
        let metadata = match decoded {
            Ok(Ok(metadata)) => metadata,
            Ok(Err(error)) => return Err(damaged(file, format!("its metadata are damaged ({error}): fetch it again"))),
            Err(_) => return Err(damaged(file, "its metadata are damaged: fetch it again")),
        };
        for (index, group) in metadata.row_groups().iter().enumerate() {
            let columns_fit = group.columns().iter().all(|column| {
                let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
                let (Ok(start), Ok(bytes)) = (u64::try_from(start), u64::try_from(column.compressed_size())) else {
                    return false;
                };
                start.checked_add(bytes).is_some_and(|end| end <= size)
            });
            if !columns_fit || group.num_rows() < 0 {
                return Err(damaged(
                    file,
                    format!("row group {index} lies outside the file: it is damaged, fetch it again"),
                ));
            }
        }
        Ok(Self { file: file.to_owned(), metadata: Arc::new(metadata) })
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        (0..self.row_groups()).map(|group| self.rows_of(group)).sum()
    }

    /// Returns the number of row groups.
    pub fn row_groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    /// Returns the number of rows of a row group.
    pub fn rows_of(&self, group: usize) -> u64 {
        self.metadata.row_groups().get(group).map_or(0, |group| group.num_rows().max(0) as u64)
    }

    /// Returns the row group that holds a row, and its first row.
    pub fn find_row(&self, row: u64) -> (usize, u64) {
        let mut first = 0;
        for group in 0..self.row_groups() {
            let next = first + self.rows_of(group);
            if row < next {
                return (group, first);
            }
            first = next;
        }
        (self.row_groups(), first)
    }

    /// Finds the columns of images.
    ///
    /// # Errors
    /// When there is none, or it has the wrong type.
    pub fn image_columns(&self, names: &ImageColumns) -> Result<ImageLeaves, CorpusError> {
        let schema = self.schema();
        let image = schema.find(&self.file, ColumnKind::Image, names.image.as_deref())?;
        let image = schema.require(&self.file, ColumnKind::Image, &image)?;
        let url = self.find_url(&schema, ColumnKind::ImageUrl, names.url.as_deref())?;
        let has_url = url.is_some();
        let leaves = url.into_iter().chain([image]).collect();
        Ok(ImageLeaves { columns: Self::columns(&schema, leaves), has_url, is_base64: schema.is_text(image) })
    }

    /// Finds the column of URLs for images alone.
    ///
    /// # Errors
    /// When the configuration names a column that is not there.
    pub fn name_column(&self, names: &ImageColumns) -> Result<Option<Columns>, CorpusError> {
        let schema = self.schema();
        let url = self.find_url(&schema, ColumnKind::ImageUrl, names.url.as_deref())?;
        Ok(url.map(|url| Self::columns(&schema, vec![url])))
    }

    /// Finds the columns of captions.
    ///
    /// # Errors
    /// When there is none, or one has the wrong type.
    pub fn pair_columns(&self, names: &PairColumns) -> Result<PairLeaves, CorpusError> {
        let schema = self.schema();
        let caption = schema.find(&self.file, ColumnKind::Caption, names.caption.as_deref())?;
        let language = match &names.language {
            Some(name) => Some(schema.find(&self.file, ColumnKind::Language, Some(name))?),
            None => language_candidates(&caption).into_iter().find(|name| schema.has(name)),
        };
        let url = self.find_url(&schema, ColumnKind::PairUrl, names.url.as_deref())?;
        let has_url = url.is_some();
        let mut leaves: Vec<usize> = url.into_iter().collect();
        leaves.push(schema.require(&self.file, ColumnKind::Caption, &caption)?);
        if let Some(language) = language {
            leaves.push(schema.require(&self.file, ColumnKind::Language, &language)?);
        }
        Ok(PairLeaves { columns: Self::columns(&schema, leaves), has_url })
    }

    fn find_url(&self, schema: &Schema, kind: ColumnKind, set: Option<&str>) -> Result<Option<usize>, CorpusError> {
        let name = match set {
            Some(_) => Some(schema.find(&self.file, kind, set)?),
            None => kind.usual().iter().find(|name| schema.has(name)).map(|name| (*name).to_owned()),
        };
        name.map(|name| schema.require(&self.file, kind, &name)).transpose()
    }

    fn schema(&self) -> Schema {
        Schema::new(self.metadata.file_metadata().schema_descr())
    }

    fn columns(schema: &Schema, leaves: Vec<usize>) -> Columns {
        let names = leaves.iter().map(|leaf| schema.name(*leaf).to_owned()).collect();
        Columns { leaves, names }
    }

    /// Returns the bytes of each column in a row group: those to read.
    pub fn ranges(&self, group: usize, columns: &Columns) -> Vec<FileRange> {
        let Some(group) = self.metadata.row_groups().get(group) else { return Vec::new() };
        let range = |leaf: &usize| {
            let (start, bytes) = group.column(*leaf).byte_range();
            FileRange { start, end: start + bytes }
        };
        columns.leaves.iter().map(range).collect()
    }

    /// Returns the stored bytes of a row group, all columns counted.
    pub fn group_bytes(&self, group: usize) -> u64 {
        self.metadata.row_groups().get(group).map_or(0, |group| u64::try_from(group.compressed_size()).unwrap_or(0))
    }

    /// Opens a row group. `sources` read the ranges of [`Self::ranges`]. A page that takes more than `max_page_bytes` is
    /// refused.
    ///
    /// # Errors
    /// When a column has a compression that cannot be read.
    pub fn open_group(
        &self,
        group: usize,
        columns: &Columns,
        sources: Vec<Box<dyn RangeReader>>,
        max_page_bytes: u64,
    ) -> Result<GroupRows, CorpusError> {
        let place = |name: &str| format!("column `{name}` of row group {group}");
        let Some(metadata) = self.metadata.row_groups().get(group) else {
            return Err(damaged(&self.file, format!("it has no row group {group}")));
        };
        let mut values = Vec::with_capacity(columns.leaves.len());
        for ((leaf, name), source) in columns.leaves.iter().zip(&columns.names).zip(sources) {
            let chunk = metadata.column(*leaf);
            if let Compression::LZ4 | Compression::BROTLI(_) | Compression::LZO = chunk.compression() {
                let detail = format!(
                    "{} is compressed with {}: write it with zstd, snappy, gzip, lz4_raw or without compression",
                    place(name),
                    format!("{:?}", chunk.compression()).split('(').next().unwrap_or_default()
                );
                return Err(damaged(&self.file, detail));
            }
            let opened = ColumnValues::open(chunk, metadata.num_rows().max(0) as usize, source, max_page_bytes);
            values.push(opened.map_err(|reason| damaged(&self.file, format!("{}: {reason}", place(name))))?);
        }
        let names = columns.names.clone();
        Ok(GroupRows { file: self.file.clone(), group, names, values, rows: self.rows_of(group), next_row: 0 })
    }
}

/// Rows of one row group.
pub struct GroupRows {
    file: String,
    group: usize,
    names: Vec<String>,
    values: Vec<ColumnValues>,
    rows: u64,
    next_row: u64,
}

impl std::fmt::Debug for GroupRows {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "row {} of row group {} of {}", self.next_row, self.group, self.file)
    }
}

impl GroupRows {
    /// Skips rows.
    ///
    /// # Errors
    /// As [`Self::next_row`].
    pub fn skip(&mut self, rows: u64) -> Result<(), CorpusError> {
        let rows = rows.min(self.rows - self.next_row);
        self.each_column(|values| values.skip(rows as usize).map(|()| Vec::new()))?;
        self.next_row += rows;
        Ok(())
    }

    /// Returns the values of the next row, by column; `None` after the last row.
    ///
    /// # Errors
    /// When a page is damaged, or takes more memory than the limit.
    pub fn next_row(&mut self) -> Result<Option<Vec<Vec<Value>>>, CorpusError> {
        if self.next_row >= self.rows {
            return Ok(None);
        }
        let row = self.each_column(ColumnValues::next_row)?;
        self.next_row += 1;
        Ok(Some(row))
    }

    fn each_column(
        &mut self,
        mut read: impl FnMut(&mut ColumnValues) -> Result<Vec<Value>, String>,
    ) -> Result<Vec<Vec<Value>>, CorpusError> {
        let mut row = Vec::with_capacity(self.values.len());
        for (values, name) in self.values.iter_mut().zip(&self.names) {
            // Damaged pages make the crate's decoders panic in places.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(values)));
            let outcome = outcome.unwrap_or_else(|_| Err("it is damaged: fetch it again".to_owned()));
            row.push(outcome.map_err(|reason| {
                let place = format!("column `{name}` of row group {}, near row {}", self.group, self.next_row);
                damaged(&self.file, format!("{place}: {reason}"))
            })?);
        }
        Ok(row)
    }
}

/// Returns the first value of a column as bytes; `None` if it is null.
pub fn first_value(values: Vec<Value>) -> Option<Value> {
    values.into_iter().find(|value| !matches!(value, Value::Null))
}

/// Returns the captions of a row. Images without a URL are named after `short_name` and the row.
pub fn captioned_row(row: u64, values: Vec<Vec<Value>>, has_url: bool, short_name: &str) -> CaptionedRow {
    let mut columns = values.into_iter();
    let image_url = if has_url {
        columns.next().and_then(first_value).map(Value::into_text).unwrap_or_default()
    } else {
        format!("{short_name}/{row}").into_bytes()
    };
    let texts = |values: Option<Vec<Value>>| -> Vec<Option<Vec<u8>>> {
        let values = values.unwrap_or_default().into_iter();
        values.map(|value| (!matches!(value, Value::Null)).then(|| value.into_text())).collect()
    };
    let captions = texts(columns.next());
    let captions = join_captions(captions, texts(columns.next()));
    CaptionedRow { row, image_url, captions, problem: None }
}

#[cfg(test)]
pub(super) mod tests;
