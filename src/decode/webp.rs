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

/// Refuses a lossy frame that builds on another one, which a file has no place for and whose header is another one; one
/// that announces more than the canvas, which is the frame itself where there is none; and a partition that is longer
/// than its data.
fn frame(content: &[u8], canvas: Option<(u32, u32)>) -> Result<(), DecodeError> {
    let Some((&[tag0, tag1, tag2, _, _, _, w0, w1, h0, h1], rest)) = content.split_first_chunk::<10>() else {
        return Ok(());
    };
    // RFC 6386, section 9.1: 0 is a key frame.
    if tag0 & 1 == 1 {
        return Err(corrupt("a frame is not a key frame"));
    }
    let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
    if canvas.is_some_and(|(width, height)| side(w0, w1) > width || side(h0, h1) > height) {
        return Err(corrupt("a frame is larger than its canvas"));
    }
    let truncated = DecodeError::Truncated { format: Format::WebP };
    let first = (triple(&[tag0, tag1, tag2]) >> 5) as usize;
    let (first, rest) = rest.split_at_checked(first).ok_or(truncated.clone())?;
    let count = partitions(first);
    let (sizes, rest) = rest.split_at_checked(3 * (count - 1)).ok_or(truncated.clone())?;
    let announced: u64 = sizes.chunks_exact(3).map(|size| u64::from(triple(size))).sum();
    if announced > rest.len() as u64 { Err(truncated) } else { Ok(()) }
}

/// How many partitions follow the first one of a lossy frame, which says so behind what it says of segments and of the
/// loop filter (RFC 6386, sections 9.2 to 9.5).
fn partitions(first: &[u8]) -> usize {
    let mut bits = Bits { data: first, value: 0, range: 255, left: 0 };
    // Colour space and clamping.
    bits.literal(2);
    if bits.flag() {
        let map = bits.flag();
        if bits.flag() {
            bits.flag();
            for width in [7; 4].into_iter().chain([6; 4]) {
                bits.optional(width + 1);
            }
        }
        if map {
            for _ in 0..3 {
                bits.optional(8);
            }
        }
    }
    // Type, level and sharpness of the loop filter.
    bits.literal(10);
    if bits.flag() && bits.flag() {
        for _ in 0..8 {
            bits.optional(7);
        }
    }
    1 << bits.literal(2)
}

/// The arithmetic decoder of VP8 (RFC 6386, section 7) for bits of even odds; zeros follow the data.
struct Bits<'a> {
    data: &'a [u8],
    /// Bits of the data that were taken and not used up, the newest lowest.
    value: u32,
    range: u32,
    /// How many of them are beyond the eight that are looked at.
    left: i32,
}

impl Bits<'_> {
    fn flag(&mut self) -> bool {
        while self.left < 8 {
            let (byte, rest) = self.data.split_first().map_or((0, self.data), |(byte, rest)| (*byte, rest));
            self.data = rest;
            self.value = self.value << 8 | u32::from(byte);
            self.left += 8;
        }
        let split = 1 + ((self.range - 1) >> 1);
        let place = self.left - 8;
        let set = self.value >> place >= split;
        if set {
            self.value -= split << place;
            self.range -= split;
        } else {
            self.range = split;
        }
        while self.range < 128 {
            self.range <<= 1;
            self.left -= 1;
        }
        set
    }

    fn literal(&mut self, width: u32) -> usize {
        (0..width).fold(0, |value, _| value << 1 | usize::from(self.flag()))
    }

    /// A value that need not be there.
    fn optional(&mut self, width: u32) {
        if self.flag() {
            self.literal(width);
        }
    }
}
