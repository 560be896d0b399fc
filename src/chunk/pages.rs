//! What the pages of a Parquet file say of themselves, held against what the footer says of their columns.
//!
//! The reader takes memory for rows and for a page's size before it looks whether there is so much, 2 GiB and more. Page headers are
//! structs in Thrift's compact protocol (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>);
//! those of our files hold numbers and structs of numbers alone.

use std::io::Read;

use parquet::basic::Type;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::ChunkReader;

/// Structs in structs, at most; ours are two deep.
const MAX_DEPTH: u32 = 8;

fn refused(what: impl Into<String>) -> ParquetError {
    ParquetError::General(what.into())
}

/// Refuses a file with rows that its columns have no bytes for, or a page that is larger than its column.
///
/// # Errors
/// When the footer contradicts itself, or a page header cannot be read or contradicts the footer.
pub(super) fn check<R: ChunkReader>(file: &R, metadata: &ParquetMetaData) -> Result<()> {
    check_rows(metadata)?;
    for column in metadata.row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let (mut at, bytes) = column.byte_range();
        let end = at.saturating_add(bytes);
        while at < end {
            let mut header = Header { input: file.get_read(at)?, bytes: 0 };
            let (plain, stored) = header.sizes()?;
            let column_bytes = u64::try_from(column.uncompressed_size()).unwrap_or(0);
            if plain > column_bytes {
                return Err(refused(format!("a page of {plain} bytes in a column of {column_bytes}")));
            }
            at = at.saturating_add(header.bytes).saturating_add(stored);
        }
    }
    Ok(())
}

/// The reader takes memory for a batch of rows at once, of as many as there are said to be.
fn check_rows(metadata: &ParquetMetaData) -> Result<()> {
    let rows = metadata.file_metadata().num_rows();
    if rows < 0 {
        return Err(refused(format!("{rows} rows")));
    }
    for (index, column) in metadata.file_metadata().schema_descr().columns().iter().enumerate() {
        let width = if column.physical_type() == Type::FIXED_LEN_BYTE_ARRAY { column.type_length() } else { 0 };
        let parts = metadata.row_groups().iter().filter_map(|group| group.columns().get(index));
        let bytes = parts.fold(0i64, |sum, part| sum.saturating_add(part.uncompressed_size()));
        if width < 0 || i64::from(width).checked_mul(rows).is_none_or(|needed| needed > bytes) {
            return Err(refused(format!("{rows} rows of {width} bytes in a column of {bytes}")));
        }
    }
    Ok(())
}

/// A page header while it is read.
struct Header<R> {
    input: R,
    bytes: u64,
}

impl<R: Read> Header<R> {
    /// Bytes of the page after and before decompression: the second and third field.
    fn sizes(&mut self) -> Result<(u64, u64)> {
        let (mut plain, mut stored) = (None, None);
        let mut id = 0;
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (2, 5) => plain = Some(self.number()?),
                (3, 5) => stored = Some(self.number()?),
                _ => self.skip(kind, MAX_DEPTH)?,
            }
        }
        let size = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        size(plain).zip(size(stored)).ok_or_else(|| refused("a page header without sizes"))
    }

    /// The kind of the next field, if there is one; `id` is that of the field before.
    fn field(&mut self, id: &mut i64) -> Result<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        *id = if byte >> 4 == 0 { self.number()? } else { id.saturating_add(i64::from(byte >> 4)) };
        Ok(Some(byte & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Result<()> {
        match kind {
            // A boolean is its kind.
            1 | 2 => {}
            3 => {
                self.byte()?;
            }
            4..=6 => {
                self.number()?;
            }
            12 if depth > 0 => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth - 1)?;
                }
            }
            _ => return Err(refused(format!("a page header with a field of kind {kind}"))),
        }
        Ok(())
    }

    /// A signed number: seven bits a byte, the sign in the lowest.
    fn number(&mut self) -> Result<i64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(refused("a number that does not end"))
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        self.bytes += 1;
        Ok(byte[0])
    }
}
