//! BMP → RGB, with Pillow's reading of headers, palettes and run lengths (`BmpImagePlugin.py`).
//!
//! The decoder of the crate `image` differs where files are unusual but shown by Windows, browsers and Pillow: a data offset
//! of 0, a wrong number of planes, short lines of run lengths, headers of OS/2.
//!
//! The fourth byte of a pixel of 32 bits is ignored unless the header names a mask for it.

use super::colour::Alpha;
use super::error::DecodeError;
use super::scratch;
use super::sniff::Format;
use super::{Buffers, Limits, Size};

/// Bytes of the file header, which precedes the image header.
const FILE_HEADER_BYTES: usize = 14;

/// Colours that a palette may announce; no index reaches beyond the first 256.
const MAX_COLOURS: u32 = 1 << 16;

const TRUNCATED: DecodeError = DecodeError::Truncated { format: Format::Bmp };

pub(super) fn decode(
    data: &[u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let header = Header::read(data)?;
    let size = limits.check(u64::from(header.width), u64::from(header.height))?;
    let coding = header.coding(data)?;
    let indices = if matches!(coding, Coding::RunLengths { .. }) { size.pixels() as u64 } else { 0 };
    limits.admit(size, indices)?;
    let pixels = data.get(header.pixels_at..).unwrap_or_default();
    let rgb = scratch::grow(&mut buffers.rgb, size.pixels() * 3);
    let rgb = rgb.as_chunks_mut::<3>().0;
    let width = size.width as usize;
    // Lines are stored from the bottom to the top, unless the height was negative.
    let position = |line: usize| if header.top_down { line } else { size.height as usize - 1 - line };
    let lines = 0..size.height as usize;
    match coding {
        Coding::RunLengths { four_bits } => {
            let colours = header.palette(data);
            let indices = scratch::grow(&mut buffers.raw, size.pixels());
            expand(pixels, header.pixels_at, four_bits, width, indices)?;
            for line in lines {
                let to = &mut rgb[position(line) * width..][..width];
                for (pixel, index) in to.iter_mut().zip(&indices[line * width..][..width]) {
                    *pixel = colours[usize::from(*index)];
                }
            }
        }
        Coding::Indices => {
            let colours = header.palette(data);
            let stride = header.stride();
            for line in lines {
                let from = line_bytes(pixels, line, stride, width * usize::from(header.bits))?;
                let to = &mut rgb[position(line) * width..][..width];
                let (bits, mask) = (header.bits, u8::MAX >> (8 - header.bits));
                let samples =
                    from.iter().flat_map(|byte| (1..=8 / bits).map(move |at| (byte >> (8 - at * bits)) & mask));
                for (pixel, index) in to.iter_mut().zip(samples) {
                    *pixel = colours[usize::from(index)];
                }
            }
        }
        Coding::Pixels(layout) => {
            let stride = header.stride();
            for line in lines {
                let from = line_bytes(pixels, line, stride, width * usize::from(header.bits))?;
                let to = &mut rgb[position(line) * width..][..width];
                for (pixel, bytes) in to.iter_mut().zip(from.chunks_exact(usize::from(header.bits / 8))) {
                    *pixel = layout.read(bytes, alpha);
                }
            }
        }
    }
    Ok(size)
}

/// Returns the bytes of a line of so many bits. The padding of the last line may be missing.
fn line_bytes(pixels: &[u8], line: usize, stride: usize, bits: usize) -> Result<&[u8], DecodeError> {
    let start = line.saturating_mul(stride);
    pixels.get(start..start.saturating_add(bits.div_ceil(8))).ok_or(TRUNCATED)
}

/// Coding of the pixels.
enum Coding {
    Indices,
    RunLengths { four_bits: bool },
    Pixels(Layout),
}

/// Layout of a pixel without a palette.
#[derive(Clone, Copy)]
enum Layout {
    /// 16 bits, 5 for each colour.
    Bits555,
    /// 16 bits, 6 for green.
    Bits565,
    /// Bytes: offsets of red, green, blue and, if there is one, alpha.
    Bytes([usize; 3], Option<usize>),
}

impl Layout {
    fn read(self, bytes: &[u8], alpha: Alpha) -> [u8; 3] {
        // `ImagingUnpackBGR15` and `ImagingUnpackBGR16` scale by division.
        let scaled = |value: u16, shift: u32, most: u16| {
            let value = value >> shift & most;
            (value * 255 / most) as u8
        };
        match self {
            Self::Bits555 | Self::Bits565 => {
                let value = bytes.first_chunk::<2>().map_or(0, |two| u16::from_le_bytes(*two));
                let blue = scaled(value, 0, 31);
                if matches!(self, Self::Bits555) {
                    [scaled(value, 10, 31), scaled(value, 5, 31), blue]
                } else {
                    [scaled(value, 11, 31), scaled(value, 5, 63), blue]
                }
            }
            Self::Bytes([r, g, b], None) => [bytes[r], bytes[g], bytes[b]],
            Self::Bytes([r, g, b], Some(a)) => alpha.apply([bytes[r], bytes[g], bytes[b], bytes[a]]),
        }
    }
}

struct Header {
    width: u32,
    height: u32,
    top_down: bool,
    bits: u8,
    compression: u32,
    colours: u32,
    /// Bytes of a palette entry.
    entry_bytes: usize,
    /// Masks of red, green, blue and alpha for a compression of 3.
    masks: [u32; 4],
    palette_at: usize,
    pixels_at: usize,
}

impl Header {
    fn read(data: &[u8]) -> Result<Self, DecodeError> {
        let long = |at: usize| -> Result<u32, DecodeError> {
            let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(TRUNCATED)?;
            Ok(u32::from_le_bytes(*bytes))
        };
        let short = |at: usize| -> Result<u32, DecodeError> {
            let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<2>()).ok_or(TRUNCATED)?;
            Ok(u32::from(u16::from_le_bytes(*bytes)))
        };
        let header_bytes = long(FILE_HEADER_BYTES)? as usize;
        let mut palette_at = FILE_HEADER_BYTES + header_bytes;
        let mut masks = [0; 4];
        let (width, height, top_down, bits, compression, entry_bytes);
        let mut colours;
        if header_bytes == 12 {
            (width, height, top_down, bits) = (short(18)?, short(20)?, false, short(24)?);
            (compression, colours, entry_bytes) = (0, 0, 3);
        } else {
            let signed = long(22)?;
            // Pillow looks at the highest byte alone, which differs only for heights that no limit admits.
            top_down = signed >> 24 == 0xff;
            (width, height, bits) = (long(18)?, if top_down { signed.wrapping_neg() } else { signed }, short(28)?);
            // The shortest header of OS/2 2.0 ends here.
            (compression, colours) = if header_bytes == 16 { (0, 0) } else { (long(30)?, long(46)?) };
            entry_bytes = 4;
            if compression == 3 {
                // Longer headers hold the masks; behind shorter ones follow three.
                let count = if header_bytes >= 56 { 4 } else { 3 };
                for (mask, at) in masks.iter_mut().zip((54..).step_by(4)).take(count) {
                    *mask = long(at)?;
                }
                if header_bytes < 52 {
                    palette_at += 12;
                }
            }
        }
        if !matches!(bits, 1 | 4 | 8 | 16 | 24 | 32) {
            return Err(DecodeError::variant(Format::Bmp, format!("BMP of {bits} bits a pixel")));
        }
        let bits = bits as u8;
        if colours == 0 {
            colours = 1 << bits.min(16);
        }
        // With an offset of 0, or with one that points to the palette, the pixels follow the palette.
        let offset = long(10)? as usize;
        let mut pixels_at = offset;
        let behind_palette = palette_at + if bits <= 8 { entry_bytes * colours.min(MAX_COLOURS) as usize } else { 0 };
        if offset == 0 || bits <= 8 && offset == FILE_HEADER_BYTES + header_bytes {
            pixels_at = behind_palette;
        }
        Ok(Self { width, height, top_down, bits, compression, colours, entry_bytes, masks, palette_at, pixels_at })
    }

    /// Bytes from one line to the next.
    fn stride(&self) -> usize {
        (self.width as usize * usize::from(self.bits)).div_ceil(32) * 4
    }

    fn coding(&self, data: &[u8]) -> Result<Coding, DecodeError> {
        let variant = |detail: String| DecodeError::variant(Format::Bmp, detail);
        if self.bits <= 8 && (self.colours > MAX_COLOURS || self.palette_at > data.len()) {
            return Err(DecodeError::corrupt(Format::Bmp, format!("a palette of {} colours", self.colours)));
        }
        match (self.compression, self.bits) {
            (0, 1 | 4 | 8) => Ok(Coding::Indices),
            (0, 16) => Ok(Coding::Pixels(Layout::Bits555)),
            (0, _) => Ok(Coding::Pixels(Layout::Bytes([2, 1, 0], None))),
            (1 | 2, 1 | 4 | 8) => Ok(Coding::RunLengths { four_bits: self.compression == 2 }),
            (3, 16 | 24 | 32) => self.masked_layout().map(Coding::Pixels),
            (3, bits) => Err(variant(format!("BMP of {bits} bits a pixel with masks"))),
            (4, _) => Err(variant("BMP with a JPEG inside".to_owned())),
            (5, _) => Err(variant("BMP with a PNG inside".to_owned())),
            (other, bits) => Err(variant(format!("BMP of {bits} bits a pixel with compression {other}"))),
        }
    }

    /// Returns the layout that the masks describe.
    fn masked_layout(&self) -> Result<Layout, DecodeError> {
        let [r, g, b, a] = self.masks;
        let byte = |mask: u32| (0..4).find(|at| mask == 0xff << (8 * at));
        let layout = match self.bits {
            16 if [r, g, b] == [0xf800, 0x07e0, 0x001f] => Some(Layout::Bits565),
            16 if [r, g, b] == [0x7c00, 0x03e0, 0x001f] => Some(Layout::Bits555),
            24 if [r, g, b] == [0xff_0000, 0xff00, 0xff] => Some(Layout::Bytes([2, 1, 0], None)),
            32 if self.masks == [0; 4] => Some(Layout::Bytes([2, 1, 0], Some(3))),
            32 => match (byte(r), byte(g), byte(b), byte(a)) {
                (Some(r), Some(g), Some(b), alpha) if a == 0 || alpha.is_some() => {
                    Some(Layout::Bytes([r, g, b].map(|at: u32| at as usize), alpha.map(|at| at as usize)))
                }
                _ => None,
            },
            _ => None,
        };
        layout.ok_or_else(|| {
            let detail = format!("BMP of {} bits a pixel with masks {r:#x}, {g:#x}, {b:#x}, {a:#x}", self.bits);
            DecodeError::variant(Format::Bmp, detail)
        })
    }

    /// Returns the RGB of each index. Indices outside the palette are black.
    fn palette(&self, data: &[u8]) -> [[u8; 3]; 256] {
        let colours = self.colours as usize;
        let stored = data.get(self.palette_at..).unwrap_or_default();
        let entry = |index: usize| {
            let bytes = stored.get(index * self.entry_bytes..)?.first_chunk::<3>()?;
            Some([bytes[2], bytes[1], bytes[0]])
        };
        // Pillow drops a palette of all greys: an index is its grey, even outside the palette.
        if colours > 2 && (0..colours).all(|index| entry(index) == Some([index as u8; 3])) {
            return std::array::from_fn(|index| [index as u8; 3]);
        }
        std::array::from_fn(|index| if index < colours { entry(index).unwrap_or_default() } else { [0; 3] })
    }
}

/// Expands run lengths into indices, in stored order of lines. `start` is the offset of the codes in the file, because literal
/// runs are padded to even offsets.
fn expand(codes: &[u8], start: usize, four_bits: bool, width: usize, indices: &mut [u8]) -> Result<(), DecodeError> {
    let (mut at, mut done, mut column) = (0, 0, 0);
    while done < indices.len() {
        let Some(&[count, value]) = codes.get(at..).and_then(|rest| rest.first_chunk::<2>()) else { break };
        at += 2;
        let nibble = |value: u8, at: usize| if at.is_multiple_of(2) { value >> 4 } else { value & 0x0f };
        let rest = indices.len() - done;
        match (count, value) {
            // End of a line; its rest has index 0.
            (0, 0) => {
                let padding = (width - done % width) % width;
                indices[done..done + padding].fill(0);
                (done, column) = (done + padding, 0);
            }
            // End of the image.
            (0, 1) => break,
            // A move to the right and up; the pixels between have index 0.
            (0, 2) => {
                let Some(&[right, up]) = codes.get(at..).and_then(|rest| rest.first_chunk::<2>()) else { break };
                at += 2;
                let skipped = rest.min(usize::from(right) + usize::from(up) * width);
                indices[done..done + skipped].fill(0);
                done += skipped;
                column = done % width;
            }
            (0, count) => {
                let count_here = rest.min(usize::from(count));
                let bytes = if four_bits { count_here.div_ceil(2) } else { count_here };
                let run = codes.get(at..at + bytes).ok_or(TRUNCATED)?;
                for (number, index) in indices[done..done + count_here].iter_mut().enumerate() {
                    *index = if four_bits { nibble(run[number / 2], number) } else { run[number] };
                }
                (done, at, column) = (done + count_here, at + bytes, column + usize::from(count));
                at += (start + at) % 2;
            }
            (count, value) => {
                // A run does not continue on the next line.
                let count = usize::from(count).min(width.saturating_sub(column)).min(rest);
                for (number, index) in indices[done..done + count].iter_mut().enumerate() {
                    *index = if four_bits { nibble(value, number) } else { value };
                }
                (done, column) = (done + count, column + count);
            }
        }
    }
    if done < indices.len() { Err(TRUNCATED) } else { Ok(()) }
}
