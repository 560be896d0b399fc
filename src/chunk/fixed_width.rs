//! Writer of Parquet files whose last column has a fixed number of bytes per row and is written without compression or
//! copies.
//!
//! `ArrowWriter` copies its input to pages, the pages to a row group and the row group to the file: three times 150 KB
//! per image. This writer sends the pages of the wide column directly from the caller's buffer to the file. The other
//! columns, a few bytes per row, precede them and are encoded by `ArrowWriter` in memory. Each write is a row group, so
//! only footer metadata is kept. A page is a header (a Thrift struct in the compact protocol,
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

use super::checksum::{Checksum, ChecksumWriter};
use super::table::{convert_write_error, properties};
use super::{ChunkError, RowMeta};
use crate::objects::StoreError;

/// First bytes of a Parquet file.
const MAGIC: &[u8] = b"PAR1";
/// Approximate size of a page, in bytes.
const PAGE_BYTES: usize = 1 << 20;
/// Upper bound on the bytes of a row group beyond its rows: page headers, and four columns in the footer.
pub(super) const GROUP_OVERHEAD_BYTES: u64 = 1024;

/// Writer of one file.
pub(super) struct FixedWidthParquetWriter {
    path: PathBuf,
    file: ChecksumWriter<File>,
    /// Number of bytes written.
    offset: u64,
    /// Schema of the columns before the wide one.
    narrow_schema: SchemaRef,
    properties: WriterProperties,
    row_bytes: usize,
    /// Metadata of an empty file with the whole schema.
    whole: ParquetMetaData,
    groups: Vec<RowGroupMetaData>,
}

impl FixedWidthParquetWriter {
    /// Creates the file. The last of `fields` is the wide column with `row_bytes` bytes per row; the others are those
    /// of [`RowMeta`].
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
        let narrow_schema = Arc::new(Schema::new(fields));
        let (path, file, groups) = (path.to_owned(), ChecksumWriter::new(file), Vec::new());
        let row_bytes = row_bytes.max(1);
        let mut this = Self { path, file, offset: 0, narrow_schema, properties, row_bytes, whole, groups };
        this.write_bytes(MAGIC)?;
        Ok(this)
    }

    /// Returns a handle of the unfinished file, so that the system can be told to write it out.
    pub(super) fn handle(&self) -> Option<File> {
        self.file.get().try_clone().ok()
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> std::result::Result<(), ChunkError> {
        self.file.write_all(bytes).map_err(|error| StoreError::io(&self.path, "written", error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Appends at least one row; `values` holds the wide column's bytes of each.
    pub(super) fn write(&mut self, rows: &RowMeta, values: &[u8]) -> std::result::Result<(), ChunkError> {
        let path = self.path.clone();
        let damaged = |error| convert_write_error(&path, error);
        let (narrow, written) = self.encode_narrow(rows).map_err(damaged)?;
        let mut columns = Vec::with_capacity(1 + self.narrow_schema.fields().len());
        for column in written.row_groups().iter().flat_map(RowGroupMetaData::columns) {
            let (first, bytes) = column.byte_range();
            columns.push(self.column_metadata(columns.len(), self.offset, column).map_err(damaged)?);
            self.write_bytes(&narrow[first as usize..(first + bytes) as usize])?;
        }
        let start = self.offset;
        let page_rows = (PAGE_BYTES / self.row_bytes).max(1);
        for page in values.chunks(page_rows * self.row_bytes) {
            self.write_bytes(&page_header(page.len(), page.len() / self.row_bytes))?;
            self.write_bytes(page)?;
        }
        let group = self.group_metadata(columns, rows.len(), start).map_err(damaged)?;
        self.groups.push(group);
        Ok(())
    }

    /// Writes the footer. The file is then complete, but not synced.
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
        self.write_bytes(&footer)?;
        Ok(self.file.finish())
    }

    /// Encodes the columns before the wide one as a file in memory, and returns its metadata.
    fn encode_narrow(&self, rows: &RowMeta) -> Result<(Vec<u8>, ParquetMetaData)> {
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, Arc::clone(&self.narrow_schema), Some(self.properties.clone()))?;
        let columns: Vec<ArrayRef> = rows.columns().into();
        writer.write(&RecordBatch::try_new(Arc::clone(&self.narrow_schema), columns)?)?;
        let metadata = writer.close()?;
        Ok((bytes, metadata))
    }

    /// Returns the footer metadata of a column that was encoded in memory and starts at `offset`.
    fn column_metadata(&self, index: usize, offset: u64, encoded: &ColumnChunkMetaData) -> Result<ColumnChunkMetaData> {
        ColumnChunkMetaData::builder(self.whole.file_metadata().schema_descr().column(index))
            .set_encodings(encoded.encodings().collect())
            .set_compression(Compression::UNCOMPRESSED)
            .set_num_values(encoded.num_values())
            .set_total_compressed_size(encoded.compressed_size())
            .set_total_uncompressed_size(encoded.uncompressed_size())
            .set_data_page_offset(offset as i64)
            .build()
    }

    /// Returns the footer metadata of a row group whose wide column starts at `start` and ends at the current offset.
    fn group_metadata(
        &self,
        mut columns: Vec<ColumnChunkMetaData>,
        rows: usize,
        start: u64,
    ) -> Result<RowGroupMetaData> {
        let schema = self.whole.file_metadata().schema_descr_ptr();
        let bytes = (self.offset - start) as i64;
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

/// Returns the header of a page of `values` plain values without levels.
fn page_header(bytes: usize, values: usize) -> Vec<u8> {
    const NEXT_INTEGER: u8 = 0x15;
    const SECOND_NEXT_STRUCT: u8 = 0x2C;
    const END: u8 = 0;
    let mut header = Vec::with_capacity(32);
    let integers = |header: &mut Vec<u8>, values: &[usize]| {
        for value in values {
            header.push(NEXT_INTEGER);
            // Zigzag varint: the lowest bit is the sign; seven bits per byte.
            let mut left = (*value as u64) << 1;
            while left >= 0x80 {
                header.push(left as u8 | 0x80);
                left >>= 7;
            }
            header.push(left as u8);
        }
    };
    // Page type 0 (data page), and its size before and after compression.
    integers(&mut header, &[0, bytes, bytes]);
    header.push(SECOND_NEXT_STRUCT);
    // Number of values, plain encoding, and the encodings of the two kinds of levels, of which there are none.
    integers(&mut header, &[values, 0, 3, 3]);
    header.extend([END, END]);
    header
}
