//! Pixel chunks. Columns: `image_url` Utf8, `labels` `List<UInt32>`, `view` `UInt8`, `pixels` FixedSizeBinary(3·S·S):
//! RGB, row-major, height × width × channel, u8.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, FixedSizeBinaryArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field};

use super::fixed_width::FixedWidthParquetWriter;
use super::table::{TableReader, TableWriter};
use super::{Checksum, ChunkError, RowMeta};
use crate::types::Compression;

/// Approximate bytes of a row group of compressed pixels, which the writer holds in memory.
const GROUP_BYTES: usize = 16 << 20;

/// Approximate bytes of pixels that are copied and compressed at a time.
const PIECE_BYTES: usize = 2 << 20;

/// Returns the bytes of one image of three channels.
pub fn image_bytes(size_px: u32) -> usize {
    3 * size_px as usize * size_px as usize
}

/// Upper bound on the bytes that each write adds to the file beyond its rows.
pub const GROUP_OVERHEAD_BYTES: u64 = super::fixed_width::GROUP_OVERHEAD_BYTES;

/// Writer of one pixel chunk.
pub struct PixelWriter {
    inner: Encoder,
    image_bytes: usize,
}

/// Encoder by compression: uncompressed pixels are written without copies.
enum Encoder {
    Uncompressed(Box<FixedWidthParquetWriter>),
    Compressed(Box<TableWriter>),
}

impl PixelWriter {
    /// Creates the file at `path` and stores `generation` and the image size in its metadata.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn create(path: &Path, size_px: u32, compression: Compression, generation: &str) -> Result<Self, ChunkError> {
        let image_bytes = image_bytes(size_px);
        let mut fields = RowMeta::fields().to_vec();
        fields.push(Field::new("pixels", DataType::FixedSizeBinary(image_bytes as i32), false));
        let metadata = [
            ("kind", "pixels".to_owned()),
            ("size_px", size_px.to_string()),
            ("layout", "RGB, row-major, height x width x channel, u8".to_owned()),
            ("generation", generation.to_owned()),
        ];
        let inner = if compression == Compression::None {
            Encoder::Uncompressed(Box::new(FixedWidthParquetWriter::create(path, fields, image_bytes, &metadata)?))
        } else {
            Encoder::Compressed(Box::new(TableWriter::create(
                path,
                fields,
                compression,
                GROUP_BYTES / image_bytes,
                &metadata,
            )?))
        };
        Ok(Self { inner, image_bytes })
    }

    /// Appends rows; `pixels` holds one image for each.
    ///
    /// # Errors
    /// Fails if the disk is full or cannot be written.
    pub fn write(&mut self, rows: &RowMeta, pixels: &[u8]) -> Result<(), ChunkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let table = match &mut self.inner {
            Encoder::Uncompressed(file) => return file.write(rows, pixels),
            Encoder::Compressed(table) => table,
        };
        let columns = rows.columns();
        let step = (PIECE_BYTES / self.image_bytes).max(1);
        for (first, piece) in (0..).step_by(step).zip(pixels.chunks(step * self.image_bytes)) {
            let rows = piece.len() / self.image_bytes;
            let mut columns: Vec<ArrayRef> = columns.iter().map(|column| column.slice(first, rows)).collect();
            let piece = FixedSizeBinaryArray::new(self.image_bytes as i32, Buffer::from_slice_ref(piece), None);
            columns.push(Arc::new(piece));
            table.write(columns)?;
        }
        Ok(())
    }

    /// Returns a handle of the unfinished file, so that the system can be told to write it out. `None` for compressed
    /// pixels, because compression is slower than the disk.
    pub fn handle(&self) -> Option<File> {
        match &self.inner {
            Encoder::Uncompressed(file) => file.handle(),
            Encoder::Compressed(_) => None,
        }
    }

    /// Completes the file.
    ///
    /// # Errors
    /// Fails if the disk is full or cannot be written.
    pub fn finish(self) -> Result<Checksum, ChunkError> {
        match self.inner {
            Encoder::Uncompressed(file) => file.finish(),
            Encoder::Compressed(table) => table.finish(),
        }
    }
}

/// Reader of one pixel chunk in batches.
pub struct PixelReader {
    table: TableReader,
    size_px: u32,
}

impl PixelReader {
    /// Opens the file; a batch has at most `batch_rows` rows.
    ///
    /// # Errors
    /// Fails if the file is not a pixel chunk.
    pub fn open(path: &Path, batch_rows: usize) -> Result<Self, ChunkError> {
        let table = TableReader::open(path, batch_rows, &[])?;
        let size_px = table
            .metadata("size_px")
            .and_then(|text| text.parse().ok())
            .filter(|size_px| (1..=u32::from(u16::MAX)).contains(size_px))
            .ok_or_else(|| ChunkError::damaged(path, "pixel chunk", "its metadata lacks a valid `size_px`"))?;
        Ok(Self { table, size_px })
    }

    /// Returns the side of the images, in pixels.
    pub fn size_px(&self) -> u32 {
        self.size_px
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        self.table.rows()
    }

    /// Reads the next rows and replaces `pixels` with their images, one after the other.
    ///
    /// # Errors
    /// Fails if the file is damaged.
    pub fn next_batch(&mut self, pixels: &mut Vec<u8>) -> Result<Option<RowMeta>, ChunkError> {
        let Some(batch) = self.table.next()? else { return Ok(None) };
        let damaged = |reason: &str| ChunkError::damaged(self.table.path(), "pixel chunk", reason);
        let mut rows = RowMeta::default();
        rows.append_batch(&batch).map_err(|reason| damaged(&reason))?;
        let column = batch
            .column_by_name("pixels")
            .and_then(|column| column.as_fixed_size_binary_opt())
            .filter(|column| column.value_length() as usize == image_bytes(self.size_px))
            .ok_or_else(|| damaged("the column `pixels` is missing or its size differs from `size_px`"))?;
        pixels.clear();
        pixels.extend_from_slice(column.value_data());
        Ok(Some(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::bytes::chunk_disk_bytes;

    #[test]
    fn pixels_round_trip_across_row_groups_and_batches() {
        let dir = tempfile::tempdir().unwrap();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let path = dir.path().join(format!("{compression}.parquet"));
            let mut writer = PixelWriter::create(&path, 8, compression, "g").unwrap();
            let mut all = Vec::new();
            for block in 0..5u32 {
                let mut rows = RowMeta::default();
                let mut pixels = Vec::new();
                for row in 0..7u32 {
                    rows.push(&format!("u{block}-{row}"), [block, row]);
                    pixels.extend((0..192u32).map(|i| (i * 7 + row * 31 + block) as u8));
                }
                all.extend_from_slice(&pixels);
                writer.write(&rows, &pixels).unwrap();
            }
            writer.finish().unwrap();
            let mut reader = PixelReader::open(&path, 4).unwrap();
            assert_eq!((reader.size_px(), reader.rows()), (8, 35));
            let (mut rows, mut pixels, mut bytes) = (RowMeta::default(), Vec::new(), Vec::new());
            while let Some(meta) = reader.next_batch(&mut bytes).unwrap() {
                assert!(meta.len() <= 4 && bytes.len() == meta.len() * 192);
                rows.append(&meta);
                pixels.extend_from_slice(&bytes);
            }
            assert_eq!(pixels, all);
            assert_eq!((rows.url(34), rows.labels(34)), ("u4-6", &[4, 6][..]));
        }
    }

    /// Before the reader of a list column leaves a page, it reads the header of the next page to see whether a row goes on.
    #[test]
    fn labels_of_any_number_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        // Many rows in each of several pages; rows whose page is smaller than a range of 4 MiB, just larger, and much larger.
        let cases = [
            (60_u32, 20_000, Compression::None, 7),
            (60, 20_000, Compression::Lz4, 1000),
            (3, 400_000, Compression::None, 1),
            (2, 1 << 20, Compression::None, 1000),
            (2, 1_300_000, Compression::None, 1),
            (5, 0, Compression::None, 2),
        ];
        for (count, labels, compression, batch_rows) in cases {
            let mut rows = RowMeta::default();
            for row in 0..count {
                rows.push(&format!("u{row}"), (0..labels).map(|label: u32| label.wrapping_mul(2_654_435_761) ^ row));
            }
            let mut writer = PixelWriter::create(&path, 2, compression, "g").unwrap();
            writer.write(&rows, &vec![7; count as usize * image_bytes(2)]).unwrap();
            writer.finish().unwrap();
            let mut reader = PixelReader::open(&path, batch_rows).unwrap();
            let (mut read, mut bytes) = (RowMeta::default(), Vec::new());
            while let Some(batch) = reader.next_batch(&mut bytes).unwrap() {
                read.append(&batch);
            }
            assert!(read == rows, "{count} rows of {labels} labels, {compression}, {batch_rows} at a time");
        }
    }

    #[test]
    fn file_has_its_checksum_and_fits_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let mut writer = PixelWriter::create(&path, 224, Compression::None, "g").unwrap();
        let block = |block: u32| {
            let mut rows = RowMeta::default();
            (0..13).for_each(|row| rows.push(&format!("u{block}-{row}"), [block, row]));
            let bytes = 0..13 * image_bytes(224) as u32;
            (rows, bytes.map(|at| (at ^ (at >> 11) ^ block) as u8).collect::<Vec<u8>>())
        };
        for number in 0..3 {
            let (rows, pixels) = block(number);
            writer.write(&rows, &pixels).unwrap();
        }
        let checksum = writer.finish().unwrap();
        super::super::verify(&path, "chunk", Some(checksum)).unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert!((39 * image_bytes(224) as u64..chunk_disk_bytes(39, 224)).contains(&bytes));
        let mut reader = PixelReader::open(&path, 13).unwrap();
        let mut read = Vec::new();
        for number in 0..3 {
            let (rows, pixels) = block(number);
            assert_eq!(reader.next_batch(&mut read).unwrap(), Some(rows));
            assert!(read == pixels, "block {number}");
        }
        assert!(reader.next_batch(&mut read).unwrap().is_none());
    }

    #[test]
    fn other_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        std::fs::write(&path, b"PAR1 nothing PAR1").unwrap();
        let error = PixelReader::open(&path, 4).err().unwrap().to_string();
        assert!(error.contains("x.parquet") && error.contains("remove it"), "{error}");
    }
}
