//! WebP → RGB (RFC 9649): lossy, lossless, or the first frame of an animation on a transparent canvas.
//!
//! The chunks are read first, for two reasons. The decoder allocates for the size in a frame's own header before it
//! compares it with the size of the file: a canvas of 10 × 10 pixels can hold a frame that announces 16,383 × 16,383. It also
//! trusts flags where libwebp, and so Pillow, trusts chunks; [`repair_flags`] makes both agree.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::colour::Alpha;
use super::error::DecodeError;
use super::scratch;
use super::sniff::Format;
use super::{Buffers, Limits, Size};

/// Bytes that the decoder allocates besides those for each pixel.
const FIXED_BYTES: u64 = 2 << 20;

pub(super) fn decode(
    data: &mut [u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let bytes_per_px = decoder_bytes_per_px(data)?;
    repair_flags(data);
    let mut decoder = WebPDecoder::new(Cursor::new(&*data)).map_err(refusal)?;
    let (width, height) = decoder.dimensions();
    let size = limits.check(u64::from(width), u64::from(height))?;
    let pixels = size.pixels() as u64;
    let decoder_bytes = pixels * bytes_per_px + FIXED_BYTES;
    // RGB is decoded in place.
    let transparent = decoder.has_alpha();
    limits.admit(size, decoder_bytes + if transparent { 4 * pixels } else { 0 })?;
    decoder.set_memory_limit(decoder_bytes as usize);
    if decoder.is_animated() {
        decoder.set_background_color([0; 4]).map_err(refusal)?;
    }
    let rgb = scratch::grow(&mut buffers.rgb, size.pixels() * 3);
    let raw = if transparent { scratch::grow(&mut buffers.raw, size.pixels() * 4) } else { &mut *rgb };
    raw.fill(0);
    if decoder.is_animated() {
        decoder.read_frame(raw).map_err(refusal)?;
    } else {
        decoder.read_image(raw).map_err(refusal)?;
    }
    if transparent {
        for (to, from) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(buffers.raw.as_chunks::<4>().0) {
            *to = alpha.apply(*from);
        }
    }
    Ok(size)
}

fn refusal(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: Format::WebP }
        }
        DecodingError::UnsupportedFeature(detail) => DecodeError::variant(Format::WebP, detail),
        other => DecodeError::corrupt(Format::WebP, other),
    }
}

fn corrupt(detail: &'static str) -> DecodeError {
    DecodeError::corrupt(Format::WebP, detail)
}

/// Chunks of a part of the file: name, content.
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

// Flags of the `VP8X` chunk.
const ANIMATED: u8 = 0x02;
const HAS_XMP: u8 = 0x04;
const HAS_EXIF: u8 = 0x08;
const HAS_ALPHA: u8 = 0x10;
const HAS_PROFILE: u8 = 0x20;

/// Makes the flags of an extended file agree with its chunks, which libwebp trusts. The decoder refuses a flag without its
/// chunk, and ignores an alpha channel without its flag.
///
/// The first frame of an animation is made to replace the canvas, as in libwebp's `WebPAnimDecoder`. Blended with the canvas,
/// it would lose the colours of transparent pixels.
fn repair_flags(data: &mut [u8]) {
    const FLAGS_AT: usize = 20;
    if data.get(12..16) != Some(b"VP8X") || data.len() <= FLAGS_AT {
        return;
    }
    let mut flags = data[FLAGS_AT] & ANIMATED;
    let (mut first_frame, mut at) = (None, 12);
    for (name, content) in Chunks(&data[12..]) {
        flags |= match name {
            b"XMP " => HAS_XMP,
            b"EXIF" => HAS_EXIF,
            b"ICCP" => HAS_PROFILE,
            b"ALPH" => HAS_ALPHA,
            // The bit behind a signature and two sizes of 14 bits.
            b"VP8L" if content.get(4).is_some_and(|byte| byte & 0x10 != 0) => HAS_ALPHA,
            b"ANMF" => {
                // Its flags follow name, length, position, size and duration.
                first_frame.get_or_insert(at + 8 + 15);
                data[FLAGS_AT] & HAS_ALPHA
            }
            _ => 0,
        };
        at += 8 + content.len().next_multiple_of(2);
    }
    data[FLAGS_AT] = flags;
    if let Some(byte) = first_frame.and_then(|at| data.get_mut(at)) {
        *byte |= 0x02;
    }
}

/// Checks that no frame is larger than the canvas. Returns an upper bound on the bytes that the decoder allocates for each
/// pixel, besides its output.
fn decoder_bytes_per_px(data: &[u8]) -> Result<u64, DecodeError> {
    let announced = data.get(4..8).and_then(|field| field.first_chunk::<4>()).map(|&field| u32::from_le_bytes(field));
    if announced.is_none_or(|bytes| (data.len() as u64) < u64::from(bytes) + 8) {
        return Err(DecodeError::Truncated { format: Format::WebP });
    }
    let mut canvas = None;
    // Three planes, two of them subsampled.
    let mut bytes_per_px = 2;
    for (name, content) in Chunks(data.get(12..).unwrap_or_default()) {
        match name {
            b"VP8X" => canvas = content.get(4..10).map(|size| (read_u24(&size[..3]) + 1, read_u24(&size[3..]) + 1)),
            b"VP8 " => check_frame(content, canvas)?,
            // A lossless image without alpha is decoded to 4 bytes, and its transforms need about 1.
            b"VP8L" => bytes_per_px = bytes_per_px.max(5),
            // The alpha plane, and the image of four channels that it is decoded to.
            b"ALPH" => bytes_per_px = bytes_per_px.max(8),
            b"ANMF" => {
                // Canvas, frame, and the frame's planes.
                bytes_per_px = 16u64;
                for (name, content) in Chunks(content.get(16..).unwrap_or_default()) {
                    if name == b"VP8 " {
                        check_frame(content, canvas)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(bytes_per_px)
}

fn read_u24(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

/// Refuses a lossy frame that depends on another one, which no file may have; a frame that is larger than the canvas, where
/// there is one; and partitions that are longer than their data.
fn check_frame(content: &[u8], canvas: Option<(u32, u32)>) -> Result<(), DecodeError> {
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
    let first = (read_u24(&[tag0, tag1, tag2]) >> 5) as usize;
    let (first, rest) = rest.split_at_checked(first).ok_or(truncated.clone())?;
    let count = count_partitions(first);
    let (sizes, rest) = rest.split_at_checked(3 * (count - 1)).ok_or(truncated.clone())?;
    let announced: u64 = sizes.chunks_exact(3).map(|size| u64::from(read_u24(size))).sum();
    if announced > rest.len() as u64 { Err(truncated) } else { Ok(()) }
}

/// Returns the number of partitions behind the first one of a lossy frame. It follows the fields for segments and for the
/// loop filter (RFC 6386, sections 9.2 to 9.5).
fn count_partitions(first: &[u8]) -> usize {
    let mut bits = Bits { data: first, value: 0, range: 255, left: 0 };
    // Colour space and clamping.
    bits.read_literal(2);
    if bits.read_flag() {
        let map = bits.read_flag();
        if bits.read_flag() {
            bits.read_flag();
            for width in [7; 4].into_iter().chain([6; 4]) {
                bits.skip_optional(width + 1);
            }
        }
        if map {
            for _ in 0..3 {
                bits.skip_optional(8);
            }
        }
    }
    // Type, level and sharpness of the loop filter.
    bits.read_literal(10);
    if bits.read_flag() && bits.read_flag() {
        for _ in 0..8 {
            bits.skip_optional(7);
        }
    }
    1 << bits.read_literal(2)
}

/// The arithmetic decoder of VP8 (RFC 6386, section 7) for bits of probability 1/2. Zeros follow the data.
struct Bits<'a> {
    data: &'a [u8],
    /// Bits that were read and not yet consumed, the newest lowest.
    value: u32,
    range: u32,
    /// Number of these bits behind the eight that the next decision needs.
    left: i32,
}

impl Bits<'_> {
    fn read_flag(&mut self) -> bool {
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

    fn read_literal(&mut self, width: u32) -> usize {
        (0..width).fold(0, |value, _| value << 1 | usize::from(self.read_flag()))
    }

    /// Skips a flag, and the value of so many bits that follows if it is set.
    fn skip_optional(&mut self, width: u32) {
        if self.read_flag() {
            self.read_literal(width);
        }
    }
}
