//! PNG → RGB, with depth and transparency as in Pillow.
//!
//! It departs from the specification where Pillow does, because published models were trained on its output:
//! * 16-bit grey is cut off at 255, not scaled (`I;16` to `RGB`); other 16-bit samples keep their high byte.
//! * A transparent grey or colour (`tRNS`) is compared with the pixel after its conversion to 8 bits, so that it seldom
//!   matches in files of 2, 4 or 16 bits.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, DecodingError, Transformations};

use super::colour::Alpha;
use super::error::DecodeError;
use super::scratch;
use super::sniff::Format;
use super::{Buffers, Limits, Size};

/// Bytes that the decoder allocates besides rows and chunks, most of them for the window of its inflater.
const FIXED_BYTES: usize = 512 << 10;
/// Bytes before the first chunk.
const SIGNATURE_BYTES: usize = 8;

pub(super) fn decode(
    data: &[u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let chunk = largest_chunk(data);
    let (line, interlaced, size) = {
        let mut decoder = Decoder::new_with_limits(Cursor::new(data), png::Limits { bytes: FIXED_BYTES });
        let info = decoder.read_header_info().map_err(refusal)?;
        (info.raw_row_length(), info.interlaced, limits.check(u64::from(info.width), u64::from(info.height))?)
    };
    let whole = if interlaced { line * size.height as usize } else { line };
    limits.admit(size, (whole + 4 * line + chunk + FIXED_BYTES) as u64)?;
    let bytes = 4 * line + chunk + FIXED_BYTES;
    let mut decoder = Decoder::new_with_limits(Cursor::new(data), png::Limits { bytes });
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(refusal)?;
    let info = reader.info();
    let layout = Layout {
        colour: info.color_type,
        depth: info.bit_depth,
        palette: read_palette(info.palette.as_deref(), info.trns.as_deref(), alpha),
        transparent: transparent_pixel(info.color_type, info.bit_depth, info.trns.as_deref()),
        alpha,
    };
    let (line, interlaced) = (info.raw_row_length() - 1, info.interlaced);
    let width = size.width as usize;
    let rgb = scratch::grow(&mut buffers.rgb, size.pixels() * 3);
    let rows = rgb.chunks_exact_mut(width * 3);
    if interlaced {
        let raw = scratch::grow(&mut buffers.raw, line * size.height as usize);
        raw.fill(0);
        reader.next_frame(raw).map_err(refusal)?;
        for (from, to) in raw.chunks_exact(line).zip(rows) {
            layout.convert_row(from, to.as_chunks_mut::<3>().0);
        }
        return Ok(size);
    }
    let raw = scratch::grow(&mut buffers.raw, line);
    for to in rows {
        reader.read_row(raw).map_err(refusal)?;
        layout.convert_row(raw, to.as_chunks_mut::<3>().0);
    }
    // Only checksums follow the last row. A wrong one reveals damage that inflating did not notice. Pillow accepts a missing
    // one, and a missing IEND.
    match reader.read_row(raw).map_err(refusal) {
        Ok(_) | Err(DecodeError::Truncated { .. }) => Ok(size),
        Err(error) => Err(error),
    }
}

/// Size of the largest chunk besides the pixels, which the decoder may keep in memory.
fn largest_chunk(data: &[u8]) -> usize {
    let (mut at, mut largest) = (SIGNATURE_BYTES, 0);
    while let Some((length, kind)) = data.get(at..at.saturating_add(8)).map(|head| head.split_at(4)) {
        let length = length.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes)) as usize;
        if kind != b"IDAT" {
            largest = largest.max(length.min(data.len() - at));
        }
        at = at.saturating_add(length).saturating_add(12);
    }
    largest
}

/// Conversion of the samples of one image to pixels.
struct Layout {
    colour: ColorType,
    depth: BitDepth,
    /// RGB of each index.
    palette: [[u8; 3]; 256],
    /// The transparent pixel, in 8 bits a sample.
    transparent: Option<[u8; 3]>,
    alpha: Alpha,
}

impl Layout {
    fn convert_row(&self, from: &[u8], to: &mut [[u8; 3]]) {
        let wide = self.depth == BitDepth::Sixteen;
        match self.colour {
            ColorType::Indexed => {
                for (pixel, index) in to.iter_mut().zip(unpack_samples(from, self.depth)) {
                    *pixel = self.palette[usize::from(index)];
                }
            }
            ColorType::Grayscale if wide => {
                for (pixel, &sample) in to.iter_mut().zip(from.as_chunks::<2>().0) {
                    *pixel = self.apply_key([u16::from_be_bytes(sample).min(255) as u8; 3]);
                }
            }
            ColorType::Grayscale => {
                let scale = match self.depth {
                    BitDepth::One => 255,
                    BitDepth::Two => 85,
                    BitDepth::Four => 17,
                    BitDepth::Eight | BitDepth::Sixteen => 1,
                };
                for (pixel, sample) in to.iter_mut().zip(unpack_samples(from, self.depth)) {
                    *pixel = self.apply_key([sample * scale; 3]);
                }
            }
            ColorType::Rgb if wide => {
                for (pixel, &[r, _, g, _, b, _]) in to.iter_mut().zip(from.as_chunks::<6>().0) {
                    *pixel = self.apply_key([r, g, b]);
                }
            }
            ColorType::Rgb => {
                for (pixel, &colour) in to.iter_mut().zip(from.as_chunks::<3>().0) {
                    *pixel = self.apply_key(colour);
                }
            }
            ColorType::GrayscaleAlpha if wide => {
                for (pixel, &[grey, _, a, _]) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                    *pixel = self.alpha.apply([grey, grey, grey, a]);
                }
            }
            ColorType::GrayscaleAlpha => {
                for (pixel, &[grey, a]) in to.iter_mut().zip(from.as_chunks::<2>().0) {
                    *pixel = self.alpha.apply([grey, grey, grey, a]);
                }
            }
            ColorType::Rgba if wide => {
                for (pixel, &[r, _, g, _, b, _, a, _]) in to.iter_mut().zip(from.as_chunks::<8>().0) {
                    *pixel = self.alpha.apply([r, g, b, a]);
                }
            }
            ColorType::Rgba => {
                for (pixel, &colour) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                    *pixel = self.alpha.apply(colour);
                }
            }
        }
    }

    fn apply_key(&self, [r, g, b]: [u8; 3]) -> [u8; 3] {
        let a = if self.transparent == Some([r, g, b]) { 0 } else { 255 };
        self.alpha.apply([r, g, b, a])
    }
}

/// Unpacks samples of 1 to 8 bits, the first from the highest bits. Padding bits of the last byte come out too.
fn unpack_samples(row: &[u8], depth: BitDepth) -> impl Iterator<Item = u8> {
    let bits = (depth as u8).min(8);
    let mask = u8::MAX >> (8 - bits);
    row.iter().flat_map(move |&byte| (1..=8 / bits).map(move |at| (byte >> (8 - at * bits)) & mask))
}

/// RGB of each index. Indices outside the palette are black, as in Pillow.
fn read_palette(colours: Option<&[u8]>, alphas: Option<&[u8]>, alpha: Alpha) -> [[u8; 3]; 256] {
    let mut entries = [[0, 0, 0, 255]; 256];
    for (entry, &[r, g, b]) in entries.iter_mut().zip(colours.unwrap_or_default().as_chunks::<3>().0) {
        *entry = [r, g, b, 255];
    }
    for (entry, &value) in entries.iter_mut().zip(alphas.unwrap_or_default()) {
        entry[3] = value;
    }
    entries.map(|entry| alpha.apply(entry))
}

/// Returns the transparent pixel as Pillow compares it: the low bytes of `tRNS`, or black or white in a 1-bit image.
fn transparent_pixel(colour: ColorType, depth: BitDepth, key: Option<&[u8]>) -> Option<[u8; 3]> {
    let key = key?;
    match (colour, depth) {
        (ColorType::Grayscale, BitDepth::One) => key.first().map(|&grey| [if grey == 0 { 0 } else { 255 }; 3]),
        (ColorType::Grayscale, BitDepth::Sixteen) => key.get(1).map(|&grey| [grey; 3]),
        (ColorType::Grayscale, _) => key.first().map(|&grey| [grey; 3]),
        (ColorType::Rgb, BitDepth::Sixteen) => match *key {
            [_, r, _, g, _, b, ..] => Some([r, g, b]),
            _ => None,
        },
        (ColorType::Rgb, _) => key.first_chunk::<3>().copied(),
        (ColorType::Indexed | ColorType::GrayscaleAlpha | ColorType::Rgba, _) => None,
    }
}

fn refusal(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: Format::Png }
        }
        other => DecodeError::corrupt(Format::Png, other),
    }
}
