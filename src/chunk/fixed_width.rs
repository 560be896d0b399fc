//! A Parquet file whose last column is written as it comes: fixed bytes for each row, not compressed.
//!
//! The usual writer copies what it is given into pages, those into a row group, and that into the file: three times 150 KB an image.
//! Here the pages of the wide column go from the caller's buffer to the file; before them go the other columns, a few bytes a
//! row, which the usual writer makes in memory. What is appended at a time is a row group: nothing is held but what the footer says of
//! it. A page is a header (a Thrift struct in the compact protocol,
//! <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>) and its values.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::errors::Result;
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaData, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::properties::WriterProperties;

use super::checksum::{Checksum, Summing};
use super::table::{convert_write_error, properties};
use super::{ChunkError, RowMeta};
use crate::objects::StoreError;

const MAGIC: &[u8] = b"PAR1";
/// Bytes of a page, about.
const PAGE_BYTES: usize = 1 << 20;
/// What a row group takes beside its rows, at most: headers of pages, and four columns in the footer.
pub(super) const GROUP_BYTES: u64 = 1024;
/// Writes one file.
pub(super) struct FixedWidthParquetWriter {
    path: PathBuf,
    file: Summing<File>,
    /// Bytes written.
    at: u64,
    /// The columns before the wide one.
    narrow: SchemaRef,
    properties: WriterProperties,
    row_bytes: usize,
    /// How the whole schema is written down, by an empty file of it.
    whole: ParquetMetaData,
    groups: Vec<RowGroupMetaData>,
}

impl FixedWidthParquetWriter {
    /// Creates the file. The last of `fields` is the wide column, `row_bytes` a row; the others are those of [`RowMeta`].
    pub(super) fn create(
        path: &Path,
        mut fields: Vec<Field>,
        row_bytes: usize,
        metadata: &[(&str, String)],
    ) -> std::result::Result<Self, ChunkError> {
        let file = File::create(path).map_err(|error| StoreError::io(path, "created", error))?;
        let properties = properties(Compression::UNCOMPRESSED, usize::MAX, metadata);
        let schema = Arc::new(Schema::new(fields.clone()));
        let whole = ArrowWriter::try_new(Vec::new(), schema, Some(properties.clone())).and_then(ArrowWriter::close);
        let whole = whole.map_err(|error| convert_write_error(path, error))?;
        fields.pop();
        let narrow = Arc::new(Schema::new(fields));
        let (path, file, groups) = (path.to_owned(), Summing::new(file), Vec::new());
        let row_bytes = row_bytes.max(1);
        let mut this = Self { path, file, at: 0, narrow, properties, row_bytes, whole, groups };
        this.put(MAGIC)?;
        Ok(this)
    }

    /// The file under construction, for whoever has the system write it out meanwhile.
    pub(super) fn handle(&self) -> Option<File> {
        self.file.get().try_clone().ok()
    }

    fn put(&mut self, bytes: &[u8]) -> std::result::Result<(), ChunkError> {
        self.file.write_all(bytes).map_err(|error| StoreError::io(&self.path, "written", error))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Appends rows, of which there is at least one; `values` has the wide column's bytes of each.
    pub(super) fn write(&mut self, rows: &RowMeta, values: &[u8]) -> std::result::Result<(), ChunkError> {
        let path = self.path.clone();
        let damaged = |error| convert_write_error(&path, error);
        let (narrow, written) = self.narrow(rows).map_err(damaged)?;
        let mut columns = Vec::with_capacity(1 + self.narrow.fields().len());
        for column in written.row_groups().iter().flat_map(RowGroupMetaData::columns) {
            let (first, bytes) = column.byte_range();
            columns.push(self.column(columns.len(), self.at, column).map_err(damaged)?);
            self.put(&narrow[first as usize..(first + bytes) as usize])?;
        }
        let start = self.at;
        let page_rows = (PAGE_BYTES / self.row_bytes).max(1);
        for page in values.chunks(page_rows * self.row_bytes) {
            self.put(&page_header(page.len(), page.len() / self.row_bytes))?;
            self.put(page)?;
        }
        let group = self.group(columns, rows.len(), start).map_err(damaged)?;
        self.groups.push(group);
        Ok(())
    }

    /// Writes the footer. The file is complete afterwards, and not yet synced.
    pub(super) fn finish(mut self) -> std::result::Result<Checksum, ChunkError> {
        let whole = self.whole.file_metadata();
        let rows = self.groups.iter().map(RowGroupMetaData::num_rows).sum();
        let (created_by, keys) = (whole.created_by().map(ToOwned::to_owned), whole.key_value_metadata().cloned());
        let (schema, orders) = (whole.schema_descr_ptr(), whole.column_orders().cloned());
        let file = FileMetaData::new(whole.version(), rows, created_by, keys, schema, orders);
        let metadata = ParquetMetaData::new(file, std::mem::take(&mut self.groups));
        let mut footer = Vec::new();
        let path = self.path.clone();
        ParquetMetaDataWriter::new(&mut footer, &metadata)
            .finish()
            .map_err(|error| convert_write_error(&path, error))?;
        self.put(&footer)?;
        Ok(self.file.end())
    }

    /// The columns before the wide one as a file in memory, and what it says of itself.
    fn narrow(&self, rows: &RowMeta) -> Result<(Vec<u8>, ParquetMetaData)> {
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, Arc::clone(&self.narrow), Some(self.properties.clone()))?;
        let columns: Vec<ArrayRef> = rows.columns().into();
        writer.write(&RecordBatch::try_new(Arc::clone(&self.narrow), columns)?)?;
        let metadata = writer.close()?;
        Ok((bytes, metadata))
    }

    /// What the footer says of a column that was made in memory and starts at `at`.
    fn column(&self, index: usize, at: u64, made: &ColumnChunkMetaData) -> Result<ColumnChunkMetaData> {
        ColumnChunkMetaData::builder(self.whole.file_metadata().schema_descr().column(index))
            .set_encodings(made.encodings().collect())
            .set_compression(Compression::UNCOMPRESSED)
            .set_num_values(made.num_values())
            .set_total_compressed_size(made.compressed_size())
            .set_total_uncompressed_size(made.uncompressed_size())
            .set_data_page_offset(at as i64)
            .build()
    }

    /// What it says of a row group whose wide column starts at `start` and ends here.
    fn group(&self, mut columns: Vec<ColumnChunkMetaData>, rows: usize, start: u64) -> Result<RowGroupMetaData> {
        let schema = self.whole.file_metadata().schema_descr_ptr();
        let bytes = (self.at - start) as i64;
        let wide = ColumnChunkMetaData::builder(schema.column(columns.len()))
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_compression(Compression::UNCOMPRESSED)
            .set_num_values(rows as i64)
            .set_total_compressed_size(bytes)
            .set_total_uncompressed_size(bytes)
            .set_data_page_offset(start as i64)
            .build()?;
        columns.push(wide);
        let bytes = columns.iter().map(ColumnChunkMetaData::uncompressed_size).sum();
        let ordinal = i32::try_from(self.groups.len()).unwrap_or(i32::MAX);
        RowGroupMetaData::builder(schema)
            .set_num_rows(rows as i64)
            .set_total_byte_size(bytes)
            .set_column_metadata(columns)
            .set_ordinal(ordinal)
            .build()
    }
}

/// The header of a page of `values` plain values without levels.
fn page_header(bytes: usize, values: usize) -> Vec<u8> {
    const NEXT_INTEGER: u8 = 0x15;
    const SECOND_NEXT_STRUCT: u8 = 0x2C;
    const END: u8 = 0;
    let mut header = Vec::with_capacity(32);
    let integers = |header: &mut Vec<u8>, values: &[usize]| {
        for value in values {
            header.push(NEXT_INTEGER);
            // Zigzag, where the sign is the lowest bit, in groups of seven bits.
            let mut left = (*value as u64) << 1;
            while left >= 0x80 {
                header.push(left as u8 | 0x80);
                left >>= 7;
            }
            header.push(left as u8);
        }
    };
    // A data page, and its size before and after compression.
    integers(&mut header, &[0, bytes, bytes]);
    header.push(SECOND_NEXT_STRUCT);
    // Values, plain, and the encoding of levels, of which there are none.
    integers(&mut header, &[values, 0, 3, 3]);
    header.extend([END, END]);
    header
}
