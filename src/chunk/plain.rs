//! A Parquet file whose last column is written as it comes: fixed bytes for each row, neither compressed nor copied.
//!
//! The usual writer copies what it is given into pages, those into a row group, and that into the file: three times 150 KB an image.
//! Here the pages of the wide column go from the caller's buffer straight to the file; the other columns, a few bytes a row, are made by
//! the usual writer in memory and follow it. The file is one row group. A page is a header (a Thrift struct in the compact protocol,
//! <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>) and its values.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::errors::Result;
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaData, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::properties::WriterProperties;

use super::checksum::{Checksum, Summing};
use super::table::{explain, properties};
use super::{ChunkError, RowHeads};
use crate::store::StoreError;

const MAGIC: &[u8] = b"PAR1";
/// Bytes of a page, about.
const PAGE_BYTES: usize = 1 << 20;

/// Writes one file.
pub(super) struct PlainWriter {
    path: PathBuf,
    file: Summing<File>,
    /// Bytes written.
    at: u64,
    fields: Vec<Field>,
    properties: WriterProperties,
    row_bytes: usize,
    heads: RowHeads,
    /// Bytes of the wide column's pages, headers included.
    wide_bytes: u64,
}

impl PlainWriter {
    /// Creates the file. The last of `fields` is the wide column, `row_bytes` a row; the others are those of [`RowHeads`].
    pub(super) fn create(
        path: &Path,
        fields: Vec<Field>,
        row_bytes: usize,
        metadata: &[(&str, String)],
    ) -> std::result::Result<Self, ChunkError> {
        let file = File::create(path).map_err(|error| StoreError::io(path, "created", error))?;
        let properties = properties(Compression::UNCOMPRESSED, usize::MAX, metadata);
        let (path, heads) = (path.to_owned(), RowHeads::default());
        let mut this =
            Self { path, file: Summing::new(file), at: 0, fields, properties, row_bytes, heads, wide_bytes: 0 };
        this.put(MAGIC)?;
        Ok(this)
    }

    fn put(&mut self, bytes: &[u8]) -> std::result::Result<(), ChunkError> {
        self.file.write_all(bytes).map_err(|error| StoreError::io(&self.path, "written", error))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Appends rows; `values` has the wide column's bytes of each.
    pub(super) fn write(&mut self, rows: &RowHeads, values: &[u8]) -> std::result::Result<(), ChunkError> {
        self.heads.append(rows);
        let page_rows = (PAGE_BYTES / self.row_bytes.max(1)).max(1);
        for page in values.chunks(page_rows * self.row_bytes.max(1)) {
            let header = page_header(page.len(), page.len() / self.row_bytes.max(1));
            self.put(&header)?;
            self.put(page)?;
            self.wide_bytes += (header.len() + page.len()) as u64;
        }
        Ok(())
    }

    /// Writes the other columns and the footer. The file is complete afterwards, and not yet synced.
    pub(super) fn finish(mut self) -> std::result::Result<Checksum, ChunkError> {
        let path = self.path.clone();
        let (narrow, written) = self.narrow().map_err(|error| explain(&path, error))?;
        let start = self.at;
        for column in written.row_groups().iter().flat_map(RowGroupMetaData::columns) {
            let (first, bytes) = column.byte_range();
            self.put(&narrow[first as usize..(first + bytes) as usize])?;
        }
        let metadata = self.metadata(&written, start).map_err(|error| explain(&path, error))?;
        let mut footer = Vec::new();
        ParquetMetaDataWriter::new(&mut footer, &metadata).finish().map_err(|error| explain(&path, error))?;
        self.put(&footer)?;
        Ok(self.file.sum())
    }

    /// The other columns as a file in memory, and what it says of itself.
    fn narrow(&self) -> Result<(Vec<u8>, ParquetMetaData)> {
        let schema = Arc::new(Schema::new(self.fields[..self.fields.len() - 1].to_vec()));
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, Arc::clone(&schema), Some(self.properties.clone()))?;
        if !self.heads.is_empty() {
            let columns: Vec<ArrayRef> = self.heads.columns().into();
            writer.write(&RecordBatch::try_new(schema, columns)?)?;
        }
        let metadata = writer.close()?;
        Ok((bytes, metadata))
    }

    /// The footer: the other columns start at `start`.
    fn metadata(&self, narrow: &ParquetMetaData, start: u64) -> Result<ParquetMetaData> {
        // An empty file of the whole schema says how that is written down.
        let schema = Arc::new(Schema::new(self.fields.clone()));
        let whole = ArrowWriter::try_new(Vec::new(), schema, Some(self.properties.clone()))?.close()?;
        let whole = whole.file_metadata();
        let descriptor = whole.schema_descr_ptr();
        let (rows, mut at) = (self.heads.len() as i64, start as i64);
        let mut groups = Vec::new();
        if rows > 0 {
            let mut columns = Vec::new();
            let written = narrow.row_groups().iter().flat_map(RowGroupMetaData::columns);
            for (index, column) in written.enumerate() {
                let copy = ColumnChunkMetaData::builder(descriptor.column(index))
                    .set_encodings(column.encodings().collect())
                    .set_compression(Compression::UNCOMPRESSED)
                    .set_num_values(column.num_values())
                    .set_total_compressed_size(column.compressed_size())
                    .set_total_uncompressed_size(column.uncompressed_size())
                    .set_data_page_offset(at)
                    .build()?;
                at += column.compressed_size();
                columns.push(copy);
            }
            let wide = ColumnChunkMetaData::builder(descriptor.column(columns.len()))
                .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
                .set_compression(Compression::UNCOMPRESSED)
                .set_num_values(rows)
                .set_total_compressed_size(self.wide_bytes as i64)
                .set_total_uncompressed_size(self.wide_bytes as i64)
                .set_data_page_offset(MAGIC.len() as i64)
                .build()?;
            columns.push(wide);
            let bytes = columns.iter().map(ColumnChunkMetaData::uncompressed_size).sum();
            let group = RowGroupMetaData::builder(Arc::clone(&descriptor))
                .set_num_rows(rows)
                .set_total_byte_size(bytes)
                .set_column_metadata(columns)
                .set_ordinal(0)
                .build()?;
            groups.push(group);
        }
        let created_by = whole.created_by().map(ToOwned::to_owned);
        let keys = whole.key_value_metadata().cloned();
        let file =
            FileMetaData::new(whole.version(), rows, created_by, keys, descriptor, whole.column_orders().cloned());
        Ok(ParquetMetaData::new(file, groups))
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
