//! WebP → RGB (RFC 9649): lossy, lossless, or the first frame of an animation on a transparent canvas.
//!
//! The chunks are read first, for two reasons. The decoder allocates for the size in a frame's own header before it
//! compares it with the size of the file: a canvas of 10 × 10 pixels can hold a frame that announces 16,383 × 16,383. And it
//! trusts flags where libwebp, and so Pillow, trusts chunks; [`repair_flags`] makes both agree.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::colour::Alpha;
use super::error::DecodeError;
use super::scratch;
use super::sniff::Format;
use super::{Buffers, Limits, Size};

/// Bytes that the decoder takes besides those for each pixel.
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
    let held = pixels * bytes_per_px + FIXED_BYTES;
    // RGB goes where it belongs at once.
    let transparent = decoder.has_alpha();
    limits.admit(size, held + if transparent { 4 * pixels } else { 0 })?;
    decoder.set_memory_limit(held as usize);
    if decoder.is_animated() {
        decoder.set_background_color([0; 4]).map_err(refusal)?;
    }
    let rgb = scratch::grown(&mut buffers.rgb, size.pixels() * 3);
    let raw = if transparent { scratch::grown(&mut buffers.raw, size.pixels() * 4) } else { &mut *rgb };
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

/// Bits of the `VP8X` chunk.
const ANIMATED: u8 = 0x02;
const HAS_XMP: u8 = 0x04;
const HAS_EXIF: u8 = 0x08;
const HAS_ALPHA: u8 = 0x10;
const HAS_PROFILE: u8 = 0x20;

/// Makes the flags of an extended file agree with its chunks, which are what libwebp trusts: the decoder refuses a flag
/// without its chunk, and ignores an alpha channel without its flag. The first frame of an animation replaces the canvas,
/// as in libwebp's `WebPAnimDecoder`, and is never blended with it, which would lose hidden colours.
fn repair_flags(data: &mut [u8]) {
    const FLAGS_AT: usize = 20;
    if data.get(12..16) != Some(b"VP8X") || data.len() <= FLAGS_AT {
        return;
    }
    let mut flags = data[FLAGS_AT] & ANIMATED;
    let mut first_frame = None;
    let start = data.as_ptr().addr();
    for (name, content) in Chunks(&data[12..]) {
        flags |= match name {
            b"XMP " => HAS_XMP,
            b"EXIF" => HAS_EXIF,
            b"ICCP" => HAS_PROFILE,
            b"ALPH" => HAS_ALPHA,
            // The bit behind a signature and two sizes of 14 bits.
            b"VP8L" if content.get(4).is_some_and(|byte| byte & 0x10 != 0) => HAS_ALPHA,
            b"ANMF" => {
                first_frame.get_or_insert(content.as_ptr().addr() - start + 15);
                data[FLAGS_AT] & HAS_ALPHA
            }
            _ => 0,
        };
    }
    data[FLAGS_AT] = flags;
    if let Some(byte) = first_frame.and_then(|at| data.get_mut(at)) {
        *byte |= 0x02;
    }
}

/// Checks that no frame is larger than the canvas, and returns the bytes for each of its pixels that the decoder takes
/// at most, beside the pixels that it gives out.
fn decoder_bytes_per_px(data: &[u8]) -> Result<u64, DecodeError> {
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
