//! Bytes of one column in a row group, lent to the `parquet` crate page by page, with a limit on the memory of a page.
//!
//! The crate allocates what a page header states, so each header is checked first: the size before and after decompression, and
//! the number of values of a dictionary. The size that gzip pages really unpack to is counted as well, because the crate
//! does not limit it. All other compressions stop at the stated size.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

/// Part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// Offset of its first byte.
    pub start: u64,
    /// Offset after its last byte.
    pub end: u64,
}

/// Reads the bytes of a [`FileRange`], mostly forwards.
pub trait RangeReader: Send + Sync {
    /// Reads `bytes` bytes at `start`. Blocks the thread.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    fn read(&self, start: u64, bytes: usize) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>>;

    /// Returns how many of the `bytes` at `start` can be read at once without waiting for more.
    fn at_hand(&self, start: u64, bytes: usize) -> usize;
}

/// Bytes that a header takes at most: its statistics can hold values. It is read in pieces.
const MAX_HEADER_BYTES: usize = 16 << 20;
/// First bytes of a header that are kept to check it: they hold all sizes.
const KEPT_HEADER_BYTES: usize = 128;
/// Bytes of a header that are read at once.
const HEADER_PIECE_BYTES: usize = 1 << 10;
/// Memory of a value of a dictionary, beside its bytes.
const DICTIONARY_VALUE_BYTES: u64 = 32;

/// Bytes of a column, for the crate's page reader.
pub(super) struct ColumnBytes {
    source: Box<dyn RangeReader>,
    end: u64,
    codec: Compression,
    max_page_bytes: u64,
    headers: Mutex<Headers>,
    this: std::sync::Weak<ColumnBytes>,
}

/// Headers of pages whose content may be asked for.
#[derive(Default)]
struct Headers {
    /// First bytes of the header that was read last, and the offset after it.
    last: (Vec<u8>, u64),
    /// The same of the first page, which may be a dictionary that is read late.
    first: Option<(Vec<u8>, u64)>,
}

impl ColumnBytes {
    pub(super) fn new(source: Box<dyn RangeReader>, end: u64, codec: Compression, max_page_bytes: u64) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            source,
            end,
            codec,
            max_page_bytes,
            headers: Mutex::default(),
            this: std::sync::Weak::clone(this),
        })
    }

    fn read(&self, start: u64, bytes: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(bytes as u64).is_none_or(|end| end > self.end) {
            return Err(ParquetError::EOF(
                "a page lies outside its column: the file is damaged, fetch it again".to_owned(),
            ));
        }
        self.source.read(start, bytes).map_err(ParquetError::External)
    }

    /// Checks the header of the page whose content is at `start`.
    fn check_page(&self, start: u64, bytes: usize) -> Result<PageSizes, ParquetError> {
        let Headers { last, first } = &*self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        let header = [Some(last), first.as_ref()].into_iter().flatten().find(|(_, end)| *end == start);
        let sizes = header.and_then(|(header, _)| PageSizes::read(header));
        let sizes = sizes.filter(|sizes| sizes.compressed == bytes as u64);
        let Some(sizes) = sizes else {
            return Err(ParquetError::General(
                "a page has a malformed header: the file is damaged, fetch it again".to_owned(),
            ));
        };
        let dictionary = sizes.dictionary_values.saturating_mul(DICTIONARY_VALUE_BYTES);
        let memory = sizes.compressed.saturating_add(sizes.uncompressed).saturating_add(dictionary);
        if memory > self.max_page_bytes {
            return Err(ParquetError::General(format!(
                "a page takes {} of memory, over the {} that `limits.memory` leaves for it: raise `limits.memory`, or write the \
                 file with smaller pages or fewer rows in a row group",
                bytesize::ByteSize(memory),
                bytesize::ByteSize(self.max_page_bytes)
            )));
        }
        Ok(sizes)
    }
}

impl Length for ColumnBytes {
    fn len(&self) -> u64 {
        self.end
    }
}

impl ChunkReader for ColumnBytes {
    type T = HeaderReader;

    fn get_read(&self, start: u64) -> Result<HeaderReader, ParquetError> {
        let Some(column) = self.this.upgrade() else {
            return Err(ParquetError::General("the column is closed".to_owned()));
        };
        Ok(HeaderReader {
            column,
            piece: Bytes::new(),
            next: start,
            position: start,
            started: false,
            left: MAX_HEADER_BYTES,
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let sizes = self.check_page(start, length)?;
        let bytes = self.read(start, length)?;
        if matches!(self.codec, Compression::GZIP(_)) && sizes.is_compressed {
            let levels = (sizes.level_bytes as usize).min(bytes.len());
            let limit = sizes.uncompressed + 1;
            let mut unpacked = flate2::read::MultiGzDecoder::new(&bytes[levels..]).take(limit);
            let count = std::io::copy(&mut unpacked, &mut std::io::sink())?;
            if count >= limit {
                return Err(ParquetError::General(
                    "a page unpacks to more than it states: the file is damaged".to_owned(),
                ));
            }
        }
        Ok(bytes)
    }
}

/// Reads a page header and keeps its first bytes.
pub(super) struct HeaderReader {
    column: Arc<ColumnBytes>,
    piece: Bytes,
    /// Offset after `piece`.
    next: u64,
    /// Offset of the next byte to return.
    position: u64,
    started: bool,
    left: usize,
}

impl Read for HeaderReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() {
            let rest = self.column.end.saturating_sub(self.next);
            let wanted = self.left.min(HEADER_PIECE_BYTES).min(usize::try_from(rest).unwrap_or(usize::MAX));
            if wanted == 0 {
                return Ok(0);
            }
            let bytes = self.column.source.at_hand(self.next, wanted).clamp(1, wanted);
            self.piece = self.column.read(self.next, bytes).map_err(std::io::Error::other)?;
            self.next += self.piece.len() as u64;
            self.left -= self.piece.len();
        }
        let bytes = out.len().min(self.piece.len());
        let returned = self.piece.split_to(bytes);
        out[..bytes].copy_from_slice(&returned);
        self.position += bytes as u64;
        let Headers { last, first } = &mut *self.column.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut self.started, true) {
            let before = std::mem::take(last);
            if !before.0.is_empty() {
                first.get_or_insert(before);
            }
        }
        let (kept, end) = last;
        let room = KEPT_HEADER_BYTES - kept.len();
        kept.extend_from_slice(&returned[..bytes.min(room)]);
        *end = self.position;
        Ok(bytes)
    }
}

/// Sizes that a page header states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct PageSizes {
    uncompressed: u64,
    compressed: u64,
    /// Values of a dictionary; 0 for other pages.
    dictionary_values: u64,
    /// Uncompressed bytes in front of the values of a page of version 2.
    level_bytes: u64,
    is_compressed: bool,
}

impl PageSizes {
    /// Reads the start of a header in Thrift's compact protocol; `None` if it is malformed.
    fn read(header: &[u8]) -> Option<Self> {
        let mut fields = Thrift { bytes: header, last_field: 0 };
        let mut sizes = Self { is_compressed: true, ..Self::default() };
        // The kind of page, its sizes, and perhaps a checksum are numbers; the header of the kind is a structure.
        loop {
            match fields.next_field()? {
                (1 | 4, Thrift::I32) => {
                    fields.number()?;
                }
                (2, Thrift::I32) => sizes.uncompressed = fields.size()?,
                (3, Thrift::I32) => sizes.compressed = fields.size()?,
                (7, Thrift::STRUCT) => {
                    let mut dictionary = Thrift { bytes: fields.bytes, last_field: 0 };
                    let (1, Thrift::I32) = dictionary.next_field()? else { return None };
                    sizes.dictionary_values = dictionary.size()?;
                    return Some(sizes);
                }
                (8, Thrift::STRUCT) => {
                    let mut page = Thrift { bytes: fields.bytes, last_field: 0 };
                    for field in 1..=6 {
                        let (found, Thrift::I32) = page.next_field()? else { return None };
                        if found != field {
                            return None;
                        }
                        let number = page.size()?;
                        if field >= 5 {
                            sizes.level_bytes += number;
                        }
                    }
                    sizes.is_compressed = page.next_field() != Some((7, Thrift::FALSE));
                    return Some(sizes);
                }
                // The sizes of a data page of version 1 are known by now; an index page has no content that is read.
                (5 | 6, Thrift::STRUCT) | (0, _) => return Some(sizes),
                _ => return None,
            }
        }
    }
}

/// Fields of a structure in Thrift's compact protocol.
struct Thrift<'a> {
    bytes: &'a [u8],
    last_field: u64,
}

impl Thrift<'_> {
    const FALSE: u8 = 2;
    const I32: u8 = 5;
    const STRUCT: u8 = 12;

    /// Returns number and type of the next field; field 0 is the end.
    fn next_field(&mut self) -> Option<(u64, u8)> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        if *first == 0 {
            return Some((0, 0));
        }
        let delta = u64::from(first >> 4);
        self.last_field = if delta == 0 { u64::try_from(self.number()?).ok()? } else { self.last_field + delta };
        Some((self.last_field, first & 0x0f))
    }

    /// Returns a number of variable length.
    fn number(&mut self) -> Option<i64> {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                // Positive and negative numbers alternate.
                return Some((value >> 1) as i64 ^ -((value & 1) as i64));
            }
            if shift > 63 {
                return None;
            }
        }
    }

    /// Returns a number that is not negative.
    fn size(&mut self) -> Option<u64> {
        u64::try_from(self.number()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_headers_of_all_kinds() {
        // Kind 0, 200 and 100 bytes, a checksum, then the header of a data page.
        let data = [0x15, 0x00, 0x15, 0x90, 0x03, 0x15, 0xc8, 0x01, 0x15, 0x07, 0x1c, 0x15, 0x02];
        let sizes = PageSizes { uncompressed: 200, compressed: 100, is_compressed: true, ..PageSizes::default() };
        assert_eq!(PageSizes::read(&data), Some(sizes));
        let dictionary = [0x15, 0x04, 0x15, 0x90, 0x03, 0x15, 0xc8, 0x01, 0x4c, 0x15, 0x14, 0x15, 0x00];
        assert_eq!(PageSizes::read(&dictionary), Some(PageSizes { dictionary_values: 10, ..sizes }));
        let version_2 = [
            0x15, 0x06, 0x15, 0x90, 0x03, 0x15, 0xc8, 0x01, 0x5c, 0x15, 2, 0x15, 0, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 4,
            0x12,
        ];
        assert_eq!(PageSizes::read(&version_2), Some(PageSizes { level_bytes: 5, is_compressed: false, ..sizes }));
        for malformed in [&[][..], &[0x15], &[0x15, 0x80, 0x80], &[0x18, 0x01], &[0x15, 0, 0x15, 0x01], &[0xff; 128]] {
            assert_eq!(PageSizes::read(malformed), None, "{malformed:?}");
        }
    }
}
