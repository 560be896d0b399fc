//! GIF → RGB: the first frame on its screen, as Pillow draws it.
//!
//! Pillow fills the screen with the transparent index, or with index 0 where there is none (never with the
//! background colour), and enlarges the screen where the frame reaches over it. Without any colour table an index is a
//! grey.
//!
//! The crate `gif` refuses unknown extensions and stray bytes before the frame, which Pillow skips. It therefore reads a
//! head that is [rewritten](rewrite_head) without them, and the file from the frame on.

use std::io::Read;
use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::colour::Alpha;
use super::error::DecodeError;
use super::scratch;
use super::sniff::Format;
use super::{Buffers, Limits, Size};

/// Bytes that the decoder may allocate for palettes and for tables of its own.
const FIXED_BYTES: u64 = 1 << 20;

pub(super) fn decode(
    data: &[u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let (head, frame_at) = rewrite_head(data)?;
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Bytes(NonZeroU64::new(FIXED_BYTES).unwrap_or(NonZeroU64::MIN)));
    let mut decoder = options.read_info(head.as_slice().chain(&data[frame_at..])).map_err(refusal)?;
    let (screen_width, screen_height) = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().map_err(refusal)?;
    let frame = frame.ok_or_else(|| DecodeError::corrupt(Format::Gif, "it has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    let (clear, interlaced) = (frame.transparent, frame.interlaced);
    if width == 0 || height == 0 {
        return Err(DecodeError::corrupt(Format::Gif, "its frame is 0 pixels wide or high"));
    }
    let right = (left + width).max(usize::from(screen_width));
    let bottom = (top + height).max(usize::from(screen_height));
    let size = limits.check(right as u64, bottom as u64)?;
    limits.admit(size, (width * height) as u64 + 2 * FIXED_BYTES)?;

    let indices = scratch::grow(&mut buffers.raw, width * height);
    if !decoder.fill_buffer(indices).map_err(refusal)? {
        return Err(DecodeError::Truncated { format: Format::Gif });
    }
    let mut palette = [[0, 0, 0, 255]; 256];
    let colours = decoder.palette().map_err(refusal)?;
    for (entry, &[r, g, b]) in palette.iter_mut().zip(colours.as_chunks::<3>().0) {
        *entry = [r, g, b, 255];
    }
    if let Some(index) = clear {
        palette[usize::from(index)][3] = 0;
    }
    let palette = palette.map(|entry| alpha.apply(entry));

    let stride = size.width as usize;
    let rgb = scratch::grow(&mut buffers.rgb, size.pixels() * 3);
    let pixels = rgb.as_chunks_mut::<3>().0;
    pixels.fill(palette[usize::from(clear.unwrap_or(0))]);
    for (row, line) in indices.chunks_exact(width).enumerate() {
        let row = if interlaced { interlaced_row(row, height) } else { row };
        let start = (top + row) * stride + left;
        for (pixel, &index) in pixels[start..start + width].iter_mut().zip(line) {
            *pixel = palette[usize::from(index)];
        }
    }
    Ok(size)
}

/// Copies what precedes the first frame without extensions, except for the transparent index, and without stray bytes. Adds a
/// table of greys where there is none at all. Returns it with the offset of the frame.
fn rewrite_head(data: &[u8]) -> Result<(Vec<u8>, usize), DecodeError> {
    const TRUNCATED: DecodeError = DecodeError::Truncated { format: Format::Gif };
    /// Bytes of signature and screen.
    const SCREEN_BYTES: usize = 13;
    let table_bytes = |flags: u8| if flags & 0x80 == 0 { 0 } else { 6 << (flags & 7) };
    let flags = *data.get(10).ok_or(TRUNCATED)?;
    let mut at = SCREEN_BYTES + table_bytes(flags);
    let mut head = data.get(..at).ok_or(TRUNCATED)?.to_vec();
    let mut transparent = None;
    loop {
        let rest = data.get(at..).unwrap_or_default();
        match *rest {
            [] => return Err(TRUNCATED),
            // Extension: a label, then blocks up to one of length 0.
            [0x21, label, ..] => {
                at += 2;
                // Graphic control: at least 4 bytes, with a flag for the transparent index.
                let control = data.get(at..).and_then(|rest| rest.first_chunk());
                if let (0xf9, Some(&[size, flags, _, _, index])) = (label, control)
                    && size >= 4
                {
                    transparent = (flags & 1 == 1).then_some(index);
                }
                loop {
                    let length = usize::from(*data.get(at).ok_or(TRUNCATED)?);
                    at += 1 + length;
                    if length == 0 {
                        break;
                    }
                }
            }
            [0x2c, ..] => break,
            [0x3b, ..] => return Err(DecodeError::corrupt(Format::Gif, "it has no frame")),
            [_, ..] => at += 1,
        }
    }
    if table_bytes(flags) == 0 && data.get(at + 9).is_some_and(|flags| table_bytes(*flags) == 0) {
        head[10] = flags | 0x87;
        head.extend((0..=255).flat_map(|grey| [grey; 3]));
    }
    if let Some(index) = transparent {
        head.extend([0x21, 0xf9, 4, 1, 0, 0, index, 0]);
    }
    Ok((head, at))
}

/// Position of the `stored`-th row of an interlaced frame of `height` rows: every 8th from 0, every 8th from 4, every 4th from
/// 2, every 2nd from 1 (`GIF89a`, appendix E).
fn interlaced_row(stored: usize, height: usize) -> usize {
    let mut before = 0;
    for (first, step) in [(0, 8), (4, 8), (2, 4)] {
        let rows = height.saturating_sub(first).div_ceil(step);
        if stored < before + rows {
            return first + (stored - before) * step;
        }
        before += rows;
    }
    1 + (stored - before) * 2
}

fn refusal(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::UnexpectedEof => DecodeError::Truncated { format: Format::Gif },
        DecodingError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: Format::Gif }
        }
        other => DecodeError::corrupt(Format::Gif, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interlacing_visits_every_row_once() {
        for height in 1..40 {
            let mut rows: Vec<usize> = (0..height).map(|row| interlaced_row(row, height)).collect();
            assert_eq!(rows.first(), Some(&0));
            rows.sort_unstable();
            assert_eq!(rows, (0..height).collect::<Vec<_>>());
        }
    }
}
