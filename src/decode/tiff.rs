//! The directory of a TIFF's first page, read far enough to know that its decoder will allocate little for it.
//!
//! The decoder makes 32 bytes of each value of a field that it looks at, as many as the field announces, before the
//! image's size is known. Fields that no picture of any sense has are therefore refused first.

use super::error::DecodeError;
use super::sniff::Format;

/// Fields of a directory, at most; usual are 10 to 30.
const MAX_FIELDS: u64 = 4096;
/// Values of the fields that place strips or tiles: as many rows or tiles may be on their own.
const MAX_PLACES: u64 = 32 << 10;
/// Values of the other fields that the decoder looks at.
const MAX_VALUES: u64 = 8 << 10;

/// Fields that place strips and tiles: offsets and lengths.
const PLACES: [u16; 4] = [273, 279, 324, 325];
/// The other fields that the decoder looks at: sizes, samples, compression, orientation, tables.
const LOOKED_AT: [u16; 19] =
    [254, 256, 257, 258, 259, 262, 266, 274, 277, 278, 284, 292, 317, 322, 323, 338, 339, 347, 530];

struct Bytes<'a> {
    data: &'a [u8],
    big_endian: bool,
}

impl Bytes<'_> {
    /// The number of `width` bytes at `at`.
    fn number(&self, at: u64, width: usize) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.data.get(at..at.checked_add(width)?)?;
        let push = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) })
    }
}

/// Refuses a directory that asks for too much.
pub(super) fn walk(data: &[u8]) -> Result<(), DecodeError> {
    let bytes = Bytes { data, big_endian: data.starts_with(b"MM") };
    // Classic files count in 2 and 4 bytes, big ones in 8.
    let big = bytes.number(2, 2) == Some(43);
    let (start, count_width, field_bytes, width) =
        if big { (bytes.number(8, 8), 8, 20, 8) } else { (bytes.number(4, 4), 2, 12, 4) };
    let truncated = DecodeError::Truncated { format: Format::Tiff };
    let (Some(start), Some(fields)) = (start, start.and_then(|start| bytes.number(start, count_width))) else {
        return Err(truncated);
    };
    if fields > MAX_FIELDS {
        return Err(DecodeError::corrupt(Format::Tiff, "its directory has too many fields"));
    }
    for field in 0..fields {
        let at = start.saturating_add(count_width as u64 + field * field_bytes);
        let (Some(tag), Some(values)) = (bytes.number(at, 2), bytes.number(at.saturating_add(4), width)) else {
            return Err(truncated);
        };
        let most = match tag as u16 {
            tag if PLACES.contains(&tag) => MAX_PLACES,
            tag if LOOKED_AT.contains(&tag) => MAX_VALUES,
            _ => u64::MAX,
        };
        if values > most {
            return Err(DecodeError::corrupt(Format::Tiff, format!("its field {tag} has {values} values")));
        }
    }
    Ok(())
}
