//! Reader and writer of Parquet files with uniform settings: no statistics or dictionaries, fixed row groups. Equal
//! rows give equal bytes.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::ChunkError;
use super::checksum::{Checksum, ChecksumWriter};
use super::pages;
use super::range_file::RangeFile;
use crate::objects::StoreError;

/// Prefix of this program's keys in the file metadata.
const PREFIX: &str = "wikicap.";
/// Upper bound on the bytes of an unfinished row group; above it, the group ends whatever its number of rows.
const MAX_GROUP_BYTES: usize = 20 << 20;

/// Writer of one Parquet file.
pub(super) struct TableWriter {
    path: PathBuf,
    schema: SchemaRef,
    inner: ArrowWriter<ChecksumWriter<File>>,
}

impl TableWriter {
    /// Creates the file. `group_rows` is the number of rows of a row group, which is held in memory.
    pub(super) fn create(
        path: &Path,
        fields: Vec<Field>,
        compression: crate::types::Compression,
        group_rows: usize,
        metadata: &[(&str, String)],
    ) -> Result<Self, ChunkError> {
        use crate::types::Compression as Word;
        let compression = match compression {
            Word::None => Compression::UNCOMPRESSED,
            Word::Lz4 => Compression::LZ4_RAW,
            Word::Zstd => Compression::ZSTD(ZstdLevel::default()),
        };
        let properties = properties(compression, group_rows, metadata);
        let schema = Arc::new(Schema::new(fields));
        let file = File::create(path).map_err(|error| StoreError::io(path, "created", error))?;
        let inner = ArrowWriter::try_new(ChecksumWriter::new(file), Arc::clone(&schema), Some(properties))
            .map_err(|error| convert_write_error(path, error))?;
        Ok(Self { path: path.to_owned(), schema, inner })
    }

    /// Appends rows, one array per field.
    pub(super) fn write(&mut self, columns: Vec<ArrayRef>) -> Result<(), ChunkError> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| ChunkError::damaged(&self.path, "table", error))?;
        self.inner.write(&batch).map_err(|error| convert_write_error(&self.path, error))?;
        // `group_rows` is chosen for the payload; URLs and labels can exceed it.
        if self.inner.in_progress_size() > MAX_GROUP_BYTES {
            self.inner.flush().map_err(|error| convert_write_error(&self.path, error))?;
        }
        Ok(())
    }

    /// Writes the footer. The file is then complete, but not synced.
    pub(super) fn finish(self) -> Result<Checksum, ChunkError> {
        let path = self.path;
        self.inner.into_inner().map(ChecksumWriter::finish).map_err(|error| convert_write_error(&path, error))
    }
}

/// Returns the writer settings of all files.
pub(super) fn properties(compression: Compression, group_rows: usize, metadata: &[(&str, String)]) -> WriterProperties {
    let pairs = metadata.iter().map(|(key, value)| KeyValue::new(format!("{PREFIX}{key}"), value.clone()));
    WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_data_page_size_limit(1 << 20)
        .set_max_row_group_row_count(Some(group_rows.max(1)))
        .set_created_by("wikicap-pipeline".to_owned())
        .set_key_value_metadata(Some(pairs.collect()))
        .build()
}

/// Converts a write error: it comes from the disk unless Parquet itself reports a problem.
pub(super) fn convert_write_error(path: &Path, error: ParquetError) -> ChunkError {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(io) => StoreError::io(path, "written", *io).into(),
            Err(other) => ChunkError::damaged(path, "Parquet file", other),
        },
        other => {
            let text = other.to_string();
            // Parquet converts I/O errors to text. A full disk is recognised, because the user can fix it.
            if text.contains("No space left on device") || text.contains("os error 28") {
                StoreError::DiskFull { path: path.display().to_string() }.into()
            } else {
                ChunkError::damaged(path, "Parquet file", text)
            }
        }
    }
}

/// Open Parquet file. Damage is always reported as an error, even if the Parquet library panics.
pub(super) struct TableReader {
    path: PathBuf,
    #[cfg(test)]
    file: RangeFile,
    metadata: HashMap<String, String>,
    rows: u64,
    /// `None` after an error.
    batches: Option<ParquetRecordBatchReader>,
}

/// Runs the Parquet library, which may panic on damaged files.
fn catch_panics<T>(path: &Path, read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, ChunkError> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| ChunkError::damaged(path, "Parquet file", error)),
        Err(_) => Err(ChunkError::damaged(path, "Parquet file", "its structure is inconsistent")),
    }
}

impl TableReader {
    /// Opens a file for reading in batches of at most `batch_rows` rows. Empty `columns` selects all columns.
    pub(super) fn open(path: &Path, batch_rows: usize, columns: &[&str]) -> Result<Self, ChunkError> {
        let file = File::open(path).map_err(|error| StoreError::io(path, "opened", error))?;
        let bytes = file.metadata().map_err(|error| StoreError::io(path, "read", error))?.len();
        catch_panics(path, || {
            let file = RangeFile::new(file, bytes);
            let mut builder = ParquetRecordBatchReaderBuilder::try_new(file.clone())?;
            pages::check_rows(builder.metadata())?;
            file.set_columns(builder.metadata(), columns);
            let file_metadata = builder.metadata().file_metadata();
            let rows = u64::try_from(file_metadata.num_rows()).unwrap_or(0);
            let metadata = file_metadata
                .key_value_metadata()
                .into_iter()
                .flatten()
                .filter_map(|pair| Some((pair.key.strip_prefix(PREFIX)?.to_owned(), pair.value.clone()?)))
                .collect();
            if !columns.is_empty() {
                let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
                builder = builder.with_projection(mask);
            }
            let batches = Some(builder.with_batch_size(batch_rows.max(1)).build()?);
            Ok(Self {
                path: path.to_owned(),
                #[cfg(test)]
                file,
                metadata,
                rows,
                batches,
            })
        })
    }

    /// Returns a value of the file metadata.
    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Returns the number of rows that the footer claims.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the number of reads of the file so far.
    #[cfg(test)]
    pub(super) fn reads(&self) -> u64 {
        self.file.reads()
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the next batch.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, ChunkError> {
        // The reader is dropped after an error.
        let Some(mut batches) = self.batches.take() else { return Ok(None) };
        let batch = catch_panics(&self.path, || batches.next().transpose().map_err(ParquetError::from))?;
        if batch.is_some() {
            self.batches = Some(batches);
        }
        Ok(batch)
    }
}
