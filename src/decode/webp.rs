//! The chunks of a WebP file (RFC 9649), read far enough to know what its decoder will allocate.
//!
//! The decoder allocates for the size in a frame's own header before it compares it with the size of the file: a canvas
//! of 10 × 10 pixels can hold a frame that announces 16,383 × 16,383.

use super::error::DecodeError;
use super::sniff::Format;

fn corrupt(detail: &'static str) -> DecodeError {
    DecodeError::corrupt(Format::WebP, detail)
}

/// Chunks of a stretch of the file: name, content.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_at_checked(8)?;
        let (name, length) = head.split_at(4);
        let length = u32::from_le_bytes(*length.first_chunk::<4>()?) as usize;
        let content = rest.get(..length).unwrap_or(rest);
        // Chunks start at even offsets.
        self.0 = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
        Some((name, content))
    }
}

/// Checks that no frame is larger than the canvas, and returns the bytes for each of its pixels that the decoder takes
/// at most, beside the pixels that it gives out.
pub(super) fn walk(data: &[u8]) -> Result<u64, DecodeError> {
    let announced = data.get(4..8).and_then(|field| field.first_chunk::<4>()).map(|&field| u32::from_le_bytes(field));
    if announced.is_none_or(|bytes| (data.len() as u64) < u64::from(bytes) + 8) {
        return Err(DecodeError::Truncated { format: Format::WebP });
    }
    let mut canvas = None;
    // Three planes, two of them coarser.
    let mut bytes_per_px = 2;
    for (name, content) in Chunks(data.get(12..).unwrap_or_default()) {
        match name {
            b"VP8X" => canvas = content.get(4..10).map(|size| (triple(&size[..3]) + 1, triple(&size[3..]) + 1)),
            b"VP8 " => frame(content, canvas)?,
            // A lossless image without alpha takes 4 bytes before it gives 3, and its transforms about 1.
            b"VP8L" => bytes_per_px = bytes_per_px.max(5),
            // The alpha plane, and the image in four channels that it is made of.
            b"ALPH" => bytes_per_px = bytes_per_px.max(8),
            b"ANMF" => {
                // Canvas, frame, and the frame's planes.
                bytes_per_px = 16u64;
                for (name, content) in Chunks(content.get(16..).unwrap_or_default()) {
                    if name == b"VP8 " {
                        frame(content, canvas)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(bytes_per_px)
}

fn triple(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

/// Refuses a lossy frame that announces more than the canvas; one without a canvas is its own.
fn frame(content: &[u8], canvas: Option<(u32, u32)>) -> Result<(), DecodeError> {
    let (Some(size), Some((width, height))) = (content.get(6..10), canvas) else { return Ok(()) };
    let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
    if side(size[0], size[1]) > width || side(size[2], size[3]) > height {
        return Err(corrupt("a frame is larger than its canvas"));
    }
    Ok(())
}
