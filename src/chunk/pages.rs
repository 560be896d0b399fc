//! Checks the page sizes of a Parquet file against its footer.
//!
//! The Parquet reader allocates memory for the claimed rows and page sizes, 2 GiB and more, before it checks them. Page
//! headers are structs in Thrift's compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>). Those of this program's files
//! contain only numbers and structs of numbers.

use std::io::Read;

use parquet::basic::Type;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::ChunkReader;

/// Upper bound on the nesting of structs; valid headers nest two deep.
const MAX_DEPTH: u32 = 8;

fn refused(reason: impl Into<String>) -> ParquetError {
    ParquetError::General(reason.into())
}

/// Refuses a file that claims more rows than its columns have bytes for, or a page that is larger than its column.
///
/// # Errors
/// Fails if the footer is inconsistent, or if a page header is unreadable or contradicts the footer.
pub(super) fn check_sizes<R: ChunkReader>(file: &R, metadata: &ParquetMetaData) -> Result<()> {
    check_rows(metadata)?;
    for column in metadata.row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let (mut offset, bytes) = column.byte_range();
        let end = offset.saturating_add(bytes);
        while offset < end {
            let mut header = Header { input: file.get_read(offset)?, bytes: 0 };
            let (plain, stored) = header.sizes()?;
            let column_bytes = u64::try_from(column.uncompressed_size()).unwrap_or(0);
            if plain > column_bytes {
                return Err(refused(format!("a page of {plain} bytes in a column of {column_bytes}")));
            }
            offset = offset.saturating_add(header.bytes).saturating_add(stored);
        }
    }
    Ok(())
}

/// Checks the claimed number of rows, for which the reader allocates memory at once.
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

/// Page header that is being parsed.
struct Header<R> {
    input: R,
    bytes: u64,
}

impl<R: Read> Header<R> {
    /// Parses the bytes of the page after and before decompression, fields 2 and 3.
    fn sizes(&mut self) -> Result<(u64, u64)> {
        let (mut plain, mut stored) = (None, None);
        let mut id = 0;
        while let Some(field_type) = self.field(&mut id)? {
            match (id, field_type) {
                (2, 5) => plain = Some(self.number()?),
                (3, 5) => stored = Some(self.number()?),
                _ => self.skip(field_type, MAX_DEPTH)?,
            }
        }
        let size = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        size(plain).zip(size(stored)).ok_or_else(|| refused("a page header without sizes"))
    }

    /// Parses the type of the next field, if there is one; `id` holds that of the previous field.
    fn field(&mut self, id: &mut i64) -> Result<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        *id = if byte >> 4 == 0 { self.number()? } else { id.saturating_add(i64::from(byte >> 4)) };
        Ok(Some(byte & 0x0f))
    }

    fn skip(&mut self, field_type: u8, depth: u32) -> Result<()> {
        match field_type {
            // The type encodes the value of a boolean.
            1 | 2 => {}
            3 => {
                self.byte()?;
            }
            4..=6 => {
                self.number()?;
            }
            12 if depth > 0 => {
                let mut id = 0;
                while let Some(field_type) = self.field(&mut id)? {
                    self.skip(field_type, depth - 1)?;
                }
            }
            _ => return Err(refused(format!("a page header with a field of type {field_type}"))),
        }
        Ok(())
    }

    /// Parses a zigzag varint.
    fn number(&mut self) -> Result<i64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(refused("a number without an end"))
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        self.bytes += 1;
        Ok(byte[0])
    }
}
