//! Pixel chunks: `image_url` Utf8, `labels` `List<UInt32>`, `view` `UInt8`, `pixels` FixedSizeBinary(3·S·S), RGB, row-major,
//! height × width × channel, u8.

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

/// Bytes of one row group of packed pixels, about: what a writer holds in memory.
const GROUP_BYTES: usize = 16 << 20;

/// Bytes of pixels that are packed at a time, about, and copied for it.
const PIECE_BYTES: usize = 2 << 20;

/// Bytes of one image: three channels.
pub fn image_bytes(size_px: u32) -> usize {
    3 * size_px as usize * size_px as usize
}

/// What rows that are appended together take in the file beside themselves, at most.
pub const GROUP_BYTES_BESIDE: u64 = super::fixed_width::GROUP_BYTES;

/// Writes one pixel chunk.
pub struct PixelWriter {
    inner: Inner,
    image_bytes: usize,
}

/// Pixels as they are go to the file as they come.
enum Inner {
    Plain(Box<FixedWidthParquetWriter>),
    Packed(Box<TableWriter>),
}

impl PixelWriter {
    /// Creates the file at `path`. `generation` and the size go into its metadata.
    ///
    /// # Errors
    /// When the system refuses.
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
            Inner::Plain(Box::new(FixedWidthParquetWriter::create(path, fields, image_bytes, &metadata)?))
        } else {
            Inner::Packed(Box::new(TableWriter::create(
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
    /// When the disk is full or refuses.
    pub fn write(&mut self, rows: &RowMeta, pixels: &[u8]) -> Result<(), ChunkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let table = match &mut self.inner {
            Inner::Plain(file) => return file.write(rows, pixels),
            Inner::Packed(table) => table,
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

    /// The file under construction, for whoever has the system write it out meanwhile; none where rows are packed, which takes longer
    /// than the disk does.
    pub fn handle(&self) -> Option<File> {
        match &self.inner {
            Inner::Plain(file) => file.handle(),
            Inner::Packed(_) => None,
        }
    }

    /// Completes the file.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub fn finish(self) -> Result<Checksum, ChunkError> {
        match self.inner {
            Inner::Plain(file) => file.finish(),
            Inner::Packed(table) => table.finish(),
        }
    }
}

/// Reads one pixel chunk in batches.
pub struct PixelReader {
    table: TableReader,
    size_px: u32,
}

impl PixelReader {
    /// Opens the file; batches have at most `batch_rows` rows.
    ///
    /// # Errors
    /// When it is not a pixel chunk.
    pub fn open(path: &Path, batch_rows: usize) -> Result<Self, ChunkError> {
        let table = TableReader::open(path, batch_rows, &[])?;
        let size_px = table
            .metadata("size_px")
            .and_then(|text| text.parse().ok())
            .filter(|size_px| (1..=u32::from(u16::MAX)).contains(size_px))
            .ok_or_else(|| ChunkError::damaged(path, "pixel chunk", "its metadata does not give `size_px`"))?;
        Ok(Self { table, size_px })
    }

    /// Side of the images.
    pub fn size_px(&self) -> u32 {
        self.size_px
    }

    /// Rows in the file.
    pub fn rows(&self) -> u64 {
        self.table.rows()
    }

    /// The next rows; `pixels` becomes theirs, one image after the other.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn next_batch(&mut self, pixels: &mut Vec<u8>) -> Result<Option<RowMeta>, ChunkError> {
        let Some(batch) = self.table.next()? else { return Ok(None) };
        let damaged = |reason: &str| ChunkError::damaged(self.table.path(), "pixel chunk", reason);
        let mut rows = RowMeta::default();
        rows.append_batch(&batch).map_err(|reason| damaged(&reason))?;
        let column = batch
            .column_by_name("pixels")
            .and_then(|column| column.as_fixed_size_binary_opt())
            .filter(|column| column.value_length() as usize == image_bytes(self.size_px))
            .ok_or_else(|| damaged("the column `pixels` is missing or of another size than `size_px` says"))?;
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
    fn pixels_come_back_across_row_groups_and_batches() {
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
            while let Some(heads) = reader.next_batch(&mut bytes).unwrap() {
                assert!(heads.len() <= 4 && bytes.len() == heads.len() * 192);
                rows.append(&heads);
                pixels.extend_from_slice(&bytes);
            }
            assert_eq!(pixels, all);
            assert_eq!((rows.url(34), rows.labels(34)), ("u4-6", &[4, 6][..]));
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
    fn a_file_that_is_no_chunk_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        std::fs::write(&path, b"PAR1 nothing PAR1").unwrap();
        let error = PixelReader::open(&path, 4).err().unwrap().to_string();
        assert!(error.contains("x.parquet") && error.contains("remove it"), "{error}");
    }
}
