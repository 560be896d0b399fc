//! [`RangeFile`]: a Parquet file that is read in ranges of 4 MiB, with every page header checked before it is believed.
//!
//! The Parquet reader asks for each page in two small reads, header and data. A range serves many of them from memory. The
//! first range is the end of the file, which holds the footer; a chunk of features is hardly larger and is read at once.
//! Afterwards each column has a range of its own, because the columns of a row group are read in turn.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};

use super::pages;

/// Bytes of a range.
pub(super) const RANGE_BYTES: u64 = 4 << 20;
/// Upper bound on a page header. Those of this program have at most 100 bytes.
const HEADER_BYTES: u64 = 64 << 10;

/// File whose claimed offsets and lengths are checked against its size before memory is allocated. Clones share ranges.
#[derive(Clone)]
pub(super) struct RangeFile(Arc<Shared>);

struct Shared {
    file: File,
    bytes: u64,
    /// Column chunks to read; unset until the footer is known.
    columns: OnceLock<Vec<ColumnChunk>>,
    ranges: Mutex<Vec<CachedRange>>,
    reads: AtomicU64,
}

/// A column of a row group.
struct ColumnChunk {
    /// Position of the column among those of its row group.
    column: usize,
    start: u64,
    end: u64,
    /// Bytes before compression.
    plain_bytes: u64,
}

/// Bytes in memory.
struct CachedRange {
    /// Position of the column in its row group; `None` for the end of the file.
    column: Option<usize>,
    start: u64,
    bytes: Bytes,
}

impl CachedRange {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Returns the bytes from `start` to `end` as far as they are in the range; empty if `start` is not.
    fn part(&self, start: u64, end: u64) -> Bytes {
        if !(self.start..self.end()).contains(&start) {
            return Bytes::new();
        }
        self.bytes.slice((start - self.start) as usize..(end.min(self.end()) - self.start) as usize)
    }
}

impl RangeFile {
    /// Takes an open file of this size.
    pub(super) fn new(file: File, bytes: u64) -> Self {
        let (columns, ranges, reads) = (OnceLock::new(), Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Shared { file, bytes, columns, ranges, reads }))
    }

    /// Sets the columns that will be read; all if `names` is empty. From then on page headers are checked.
    pub(super) fn set_columns(&self, metadata: &ParquetMetaData, names: &[&str]) {
        let mut columns = Vec::new();
        for group in metadata.row_groups() {
            for (column, chunk) in group.columns().iter().enumerate() {
                // The first part of a path is the column, the others are its nested fields.
                let name = chunk.column_path().parts().first().map_or("", String::as_str);
                if names.is_empty() || names.contains(&name) {
                    let (start, bytes) = chunk.byte_range();
                    let plain_bytes = u64::try_from(chunk.uncompressed_size()).unwrap_or(0);
                    columns.push(ColumnChunk { column, start, end: start.saturating_add(bytes), plain_bytes });
                }
            }
        }
        columns.sort_by_key(|column| column.start);
        self.0.columns.set(columns).ok();
    }

    /// Returns the number of reads so far.
    #[cfg(test)]
    pub(super) fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// Returns the column chunk that holds the byte `at`.
    fn column_at(&self, at: u64) -> Option<&ColumnChunk> {
        let columns = self.0.columns.get()?;
        let before = columns.partition_point(|column| column.start <= at);
        columns.get(before.checked_sub(1)?).filter(|column| at < column.end)
    }

    /// Returns the bytes from `start` to `end`, which must not be after the end of the file.
    fn read(&self, start: u64, end: u64) -> Result<Bytes> {
        let mut ranges = self.lock();
        let known = ranges.iter().map(|range| range.part(start, end)).max_by_key(Bytes::len).unwrap_or_default();
        if known.len() as u64 == end - start {
            return Ok(known);
        }
        let column = self.column_at(start);
        // Before the columns are known, the end of the file is read for its footer.
        let (from, to) = match (column, self.0.columns.get()) {
            (Some(column), _) => (start, end.max(column.end.min(self.0.bytes).min(start.saturating_add(RANGE_BYTES)))),
            (None, Some(_)) => (start, end),
            (None, None) => (start.min(self.0.bytes.saturating_sub(RANGE_BYTES)), self.0.bytes),
        };
        // The end of one range is often the start of the next page.
        let kept = if from == start { known } else { Bytes::new() };
        let mut buffer = Vec::with_capacity((to - from) as usize);
        buffer.extend_from_slice(&kept);
        buffer.resize((to - from) as usize, 0);
        self.0.file.read_exact_at(&mut buffer[kept.len()..], from + kept.len() as u64)?;
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        let range = CachedRange { column: column.map(|column| column.column), start: from, bytes: buffer.into() };
        let found = range.part(start, end);
        ranges.retain(|other| other.column != range.column);
        ranges.push(range);
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<CachedRange>> {
        self.0.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Length for RangeFile {
    fn len(&self) -> u64 {
        self.0.bytes
    }
}

/// Reader that reports an error at the end of its bytes. A valid page header never extends to the end. In a damaged one,
/// the Parquet reader skips a list element by element, up to the claimed length, unless the end is an error.
pub(super) struct FailAtEof(Bytes);

impl Read for FailAtEof {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = buffer.len().min(self.0.len());
        buffer[..count].copy_from_slice(&self.0.split_to(count));
        Ok(count)
    }
}

/// Reader of a page header, or of the footer. A page header is checked when it is first read. The Parquet reader also asks
/// for a reader at the values of a page whose header it has already read, and reads nothing from it.
pub(super) struct HeaderReader {
    bytes: FailAtEof,
    /// Bytes of the column before compression, until the header is checked; `None` for the footer.
    unchecked: Option<u64>,
}

impl Read for HeaderReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(plain_bytes) = self.unchecked.take() {
            pages::check_header(FailAtEof(self.bytes.0.clone()), plain_bytes).map_err(io::Error::other)?;
        }
        self.bytes.read(buffer)
    }
}

impl ChunkReader for RangeFile {
    type T = HeaderReader;

    /// Returns a reader of the page header at `start`, or of the footer.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        if start > self.0.bytes {
            return Err(ParquetError::EOF(format!("it refers to byte {start} of {}", self.0.bytes)));
        }
        let column = self.column_at(start);
        let limit = column.map_or(self.0.bytes, |column| column.end.min(self.0.bytes));
        let bytes = FailAtEof(self.read(start, limit.min(start.saturating_add(HEADER_BYTES)))?);
        Ok(HeaderReader { bytes, unchecked: column.map(|column| column.plain_bytes) })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        match start.checked_add(length as u64) {
            Some(end) if end <= self.0.bytes => self.read(start, end),
            _ => Err(ParquetError::EOF(format!("it refers to {length} bytes from byte {start} of {}", self.0.bytes))),
        }
    }
}
