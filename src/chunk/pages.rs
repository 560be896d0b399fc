//! Checks the page sizes of a Parquet file against its footer.
//!
//! The Parquet reader allocates memory for the claimed rows and page sizes, 2 GiB and more, before it checks them. Page
//! headers are structs in Thrift's compact protocol
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>). Those of this program's files
//! contain only numbers and structs of numbers.

use std::io::Read;

use parquet::basic::Type;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;

/// Upper bound on the nesting of structs; valid headers nest two deep.
const MAX_DEPTH: u32 = 8;

fn refused(reason: impl Into<String>) -> ParquetError {
    ParquetError::General(reason.into())
}

/// Refuses a page header that is unreadable, or claims more bytes than its column has before compression.
///
/// # Errors
/// Fails if the header contradicts the footer.
pub(super) fn check_header(input: impl Read, column_bytes: u64) -> Result<()> {
    let plain = Header { input }.plain_bytes()?;
    if plain > column_bytes {
        return Err(refused(format!("a page of {plain} bytes in a column of {column_bytes}")));
    }
    Ok(())
}

/// Refuses a footer that claims more rows than its columns have bytes for. The reader allocates memory for all rows of a
/// batch at once.
///
/// # Errors
/// Fails if the footer is inconsistent.
pub(super) fn check_rows(metadata: &ParquetMetaData) -> Result<()> {
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
}

impl<R: Read> Header<R> {
    /// Parses a whole header and returns the bytes of the page after decompression, field 2.
    fn plain_bytes(&mut self) -> Result<u64> {
        let (mut plain, mut id) = (None, 0);
        while let Some(field_type) = self.field(&mut id)? {
            match (id, field_type) {
                (2, 5) => plain = Some(self.number()?),
                _ => self.skip(field_type, MAX_DEPTH)?,
            }
        }
        plain.and_then(|number| u64::try_from(number).ok()).ok_or_else(|| refused("a page header without sizes"))
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
        Ok(byte[0])
    }
}
