//! libjpeg-turbo, for JPEG files of any layout and for the strips of a TIFF.

use std::panic::{AssertUnwindSafe, catch_unwind};

use mozjpeg::{ColorSpace, Decompress};

use crate::decode::Size;
use crate::decode::error::DecodeError;
use crate::decode::sniff::Format;

/// Destination of a strip: `count` rows of `row_bytes` bytes, which begin `stride` bytes apart.
pub(in crate::decode) struct StripRows<'a> {
    pub(in crate::decode) out: &'a mut [u8],
    pub(in crate::decode) row_bytes: usize,
    pub(in crate::decode) stride: usize,
    pub(in crate::decode) count: usize,
}

/// Text that precedes a message of libjpeg.
const PREFIX: &str = "libjpeg fatal error: ";

/// Decodes a file of this size into `out`: CMYK as stored for four components, RGB for all others.
pub(super) fn decode(data: &[u8], size: Size, components: u8, out: &mut [u8]) -> Result<(), DecodeError> {
    let space = if components == 4 { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB };
    let decoded = catch_errors(Format::Jpeg, || {
        let image = Decompress::new_mem(data)?;
        if image.size() != (size.width as usize, size.height as usize) {
            return Err(std::io::Error::other("the size differs from the frame header"));
        }
        image.to_colorspace(space)?.read_scanlines_into(out)?;
        Ok(())
    })?;
    decoded.map_err(|error| DecodeError::corrupt(Format::Jpeg, error))
}

/// Decodes one strip or tile of a TIFF, a complete JPEG of at most `max_px` pixels, into rows of RGB or grey. Returns the width
/// and height that the strip announces; pixels outside the rows are dropped.
pub(in crate::decode) fn decode_strip(
    data: &[u8],
    channels: usize,
    max_px: usize,
    rows: &mut StripRows<'_>,
    line: &mut Vec<u8>,
) -> Result<(usize, usize), DecodeError> {
    let space = if channels == 1 { ColorSpace::JCS_GRAYSCALE } else { ColorSpace::JCS_RGB };
    let decoded = catch_errors(Format::Tiff, || {
        let image = Decompress::new_mem(data)?;
        let (width, height) = image.size();
        if width.saturating_mul(height) > max_px {
            return Err(std::io::Error::other("a strip is larger than the directory says"));
        }
        line.clear();
        line.resize(width * channels, 0);
        let mut image = image.to_colorspace(space)?;
        for row in rows.out.chunks_mut(rows.stride.max(1)).take(height.min(rows.count)) {
            image.read_scanlines_into(&mut line[..])?;
            let shared = rows.row_bytes.min(line.len()).min(row.len());
            row[..shared].copy_from_slice(&line[..shared]);
        }
        Ok((width, height))
    })?;
    decoded.map_err(|error| DecodeError::corrupt(Format::Tiff, error))
}

/// Runs `work`, in which libjpeg reports a fatal error by unwinding with its message.
fn catch_errors<T>(format: Format, work: impl FnOnce() -> T) -> Result<T, DecodeError> {
    // Nothing is observed after an error but `out`, whose content then means nothing.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let Some(message) = payload.downcast_ref::<String>() else {
            return DecodeError::corrupt(format, "its decoder fails on it");
        };
        let message = message.strip_prefix(PREFIX).unwrap_or(message);
        if ["not implemented", "Unsupported", "not supported"].iter().any(|part| message.contains(part)) {
            DecodeError::variant(format, message)
        } else {
            DecodeError::corrupt(format, message)
        }
    })
}
