//! Pixel chunks: `image_url` Utf8, `labels` `List<UInt32>`, `view` `UInt8`, `pixels` FixedSizeBinary(3·S·S), RGB, row-major,
//! height × width × channel, u8.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, FixedSizeBinaryArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field};

use super::fixed_width::{FixedWidthParquetWriter, Pages};
use super::table::{TableReader, TableWriter};
use super::{Checksum, ChunkError, RowMeta};
use crate::run_dir::PageCache;
use crate::types::Compression;

/// Bytes of one row group of packed pixels, about: what a writer holds in memory.
const GROUP_BYTES: usize = 16 << 20;

/// Bytes of pixels that are packed at a time, about, and copied for it.
const PIECE_BYTES: usize = 2 << 20;

/// Bytes of one image: three channels.
pub fn image_bytes(size_px: u32) -> usize {
    3 * size_px as usize * size_px as usize
}

/// What rows that are appended together take in the file of a passing chunk beside themselves, at most.
pub const GROUP_BYTES_BESIDE: u64 = super::fixed_width::GROUP_BYTES;

/// What a chunk is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is read soon, a few rows at a time, and removed.
    Passing,
    /// It is the product: laid out for the disk, and on its way there as said.
    Product(PageCache),
}

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
    /// Creates the file at `path`. `generation` and the size go into its metadata. Packed pixels are the same for any purpose, and go
    /// through the system's cache: packing takes longer than the disk does.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(
        path: &Path,
        size_px: u32,
        compression: Compression,
        generation: &str,
        purpose: Purpose,
    ) -> Result<Self, ChunkError> {
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
            let (pages, cache) = match purpose {
                Purpose::Passing => (Pages::Small, PageCache::Through),
                Purpose::Product(cache) => (Pages::Placed, cache),
            };
            Inner::Plain(Box::new(FixedWidthParquetWriter::create(path, fields, image_bytes, &metadata, pages, cache)?))
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

    /// Appends rows; `pixels` holds one image for each, and `sums` is what [`sum_segments`](super::sum_segments) says of it, or empty.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub fn write(&mut self, rows: &RowMeta, pixels: &[u8], sums: &[u64]) -> Result<(), ChunkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let table = match &mut self.inner {
            Inner::Plain(file) => return file.write(rows, pixels, sums),
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
    use super::super::sum_segments;
    use super::*;
    use crate::config::bytes::product_disk_bytes;
    use crate::run_dir::{PLACE_BYTES, PageBuffer};

    #[test]
    fn pixels_come_back_across_row_groups_and_batches() {
        let dir = tempfile::tempdir().unwrap();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let path = dir.path().join(format!("{compression}.parquet"));
            let mut writer = PixelWriter::create(&path, 8, compression, "g", Purpose::Passing).unwrap();
            let mut all = Vec::new();
            for block in 0..5u32 {
                let mut rows = RowMeta::default();
                let mut pixels = Vec::new();
                for row in 0..7u32 {
                    rows.push(&format!("u{block}-{row}"), [block, row]);
                    pixels.extend((0..192u32).map(|i| (i * 7 + row * 31 + block) as u8));
                }
                all.extend_from_slice(&pixels);
                writer.write(&rows, &pixels, &[]).unwrap();
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

    /// 13 rows of pixels that differ from block to block, of which some go beyond the last whole segment.
    fn block(block: u32, pixels: &mut PageBuffer) -> RowMeta {
        let mut rows = RowMeta::default();
        (0..13).for_each(|row| rows.push(&format!("u{block}-{row}"), [block, row]));
        pixels.resize(13 * image_bytes(224));
        pixels.iter_mut().zip(0u32..).for_each(|(byte, at)| *byte = (at ^ (at >> 11) ^ block) as u8);
        rows
    }

    #[test]
    fn a_product_is_the_same_file_with_its_checksum_whichever_way_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, mut pixels) = (Vec::new(), PageBuffer::default());
        for cache in [PageCache::Through, PageCache::Past] {
            // As they lie, from a place that no device takes, and without sums.
            for (shift, summed) in [(0, true), (1, true), (0, false)] {
                let path = dir.path().join(format!("{}.parquet", files.len()));
                let mut writer =
                    PixelWriter::create(&path, 224, Compression::None, "g", Purpose::Product(cache)).unwrap();
                for number in 0..5 {
                    let (rows, mut sums) = (block(number, &mut pixels), Vec::new());
                    if summed {
                        sum_segments(&pixels, &mut sums);
                    }
                    let shifted = [&vec![0; shift], &pixels[..]].concat();
                    let values = if shift == 0 { &pixels[..] } else { &shifted[shift..] };
                    writer.write(&rows, values, &sums).unwrap();
                }
                let sum = writer.finish().unwrap();
                super::super::verify(&path, "chunk", Some(sum)).unwrap();
                files.push(std::fs::read(&path).unwrap());
            }
        }
        assert!(files[0].len() > 9 << 20 && files.iter().all(|file| *file == files[0]));
    }

    #[test]
    fn the_pixels_of_a_product_begin_at_good_places_and_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut pixels) = (dir.path().join("x.parquet"), PageBuffer::default());
        let purpose = Purpose::Product(PageCache::Past);
        let mut writer = PixelWriter::create(&path, 224, Compression::None, "g", purpose).unwrap();
        for number in 0..3 {
            let rows = block(number, &mut pixels);
            writer.write(&rows, &pixels, &[]).unwrap();
        }
        // Little is not worth a place.
        let mut few = RowMeta::default();
        few.push("few", [1]);
        writer.write(&few, &pixels[5..5 + image_bytes(224)], &[]).unwrap();
        writer.finish().unwrap();
        let file = std::fs::read(&path).unwrap();
        for number in 0..3 {
            block(number, &mut pixels);
            let found = file.chunks(PLACE_BYTES).any(|place| place == &pixels[..PLACE_BYTES]);
            assert!(found, "the pixels of block {number} begin elsewhere");
        }
        assert!(!file.chunks(PLACE_BYTES).any(|place| place.starts_with(&pixels[5..4096])), "one image has a place");
        let bound = product_disk_bytes(40, 224) as usize;
        assert!((40 * image_bytes(224) + PLACE_BYTES / 2..bound).contains(&file.len()));
        let mut reader = PixelReader::open(&path, 13).unwrap();
        let mut read = Vec::new();
        for number in 0..3 {
            let rows = block(number, &mut pixels);
            assert_eq!(reader.next_batch(&mut read).unwrap(), Some(rows));
            assert!(read == pixels[..], "block {number}");
        }
        assert_eq!(reader.next_batch(&mut read).unwrap(), Some(few));
        assert!(read == pixels[5..5 + image_bytes(224)] && reader.next_batch(&mut read).unwrap().is_none());
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
