//! PNG encoder for the modes of the corpus that the `image` crate does not write (palette, one bit), and for files with
//! false headers. Format: PNG specification, third edition (W3C), chapters 5 and 11.
//!
//! The input is raw samples; every chunk has a valid CRC. Only one filter and no interlacing are supported.

use flate2::Compression;
use flate2::Crc;
use flate2::write::ZlibEncoder;
use std::io;
use std::io::Write;

/// Sample layout of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PngMode {
    /// Grey, one bit; rows padded to whole bytes.
    OneBit,
    /// Grey, one byte.
    Grey,
    /// Grey, two bytes, big-endian.
    Grey16,
    /// Grey and alpha, one byte each.
    GreyAlpha,
    /// Palette index, one byte.
    Palette,
    /// Red, green and blue, one byte each.
    Rgb,
    /// Red, green and blue, two bytes each, big-endian.
    Rgb16,
    /// Red, green, blue and alpha, one byte each.
    Rgba,
}

impl PngMode {
    /// Returns bit depth and colour type of the header, and the bytes per pixel for filtering (1 for one-bit images).
    fn header(self) -> (u8, u8, usize) {
        match self {
            Self::OneBit => (1, 0, 1),
            Self::Grey => (8, 0, 1),
            Self::Grey16 => (16, 0, 2),
            Self::GreyAlpha => (8, 4, 2),
            Self::Palette => (8, 3, 1),
            Self::Rgb => (8, 2, 3),
            Self::Rgb16 => (16, 2, 6),
            Self::Rgba => (8, 6, 4),
        }
    }
}

/// Header of a PNG file.
pub(super) struct Png {
    pub(super) width_px: u32,
    pub(super) height_px: u32,
    pub(super) mode: PngMode,
}

impl Png {
    /// Encodes samples in row order without padding; one-bit rows are padded to whole bytes.
    ///
    /// # Errors
    /// Fails if compression fails, which does not happen in memory.
    pub(super) fn encode(&self, samples: &[u8], palette: &[[u8; 3]]) -> io::Result<Vec<u8>> {
        let (_, _, pixel_bytes) = self.mode.header();
        let row_bytes = match self.mode {
            PngMode::OneBit => self.width_px.div_ceil(8) as usize,
            _ => self.width_px as usize * pixel_bytes,
        };
        // Filter 1 stores the difference to the pixel on the left, which is small in gradients. Indices and bits have
        // no gradients.
        let use_filter = !matches!(self.mode, PngMode::OneBit | PngMode::Palette);
        let mut scan = Vec::with_capacity(samples.len() + self.height_px as usize);
        for row in samples.chunks_exact(row_bytes.max(1)) {
            scan.push(u8::from(use_filter));
            if use_filter {
                let (first, rest) = row.split_at(pixel_bytes.min(row.len()));
                scan.extend_from_slice(first);
                scan.extend(rest.iter().zip(row).map(|(sample, left)| sample.wrapping_sub(*left)));
            } else {
                scan.extend_from_slice(row);
            }
        }
        self.with_scan(&scan, palette)
    }

    /// Encodes a file from filtered rows, whose size may differ from what the header claims.
    pub(super) fn with_scan(&self, scan: &[u8], palette: &[[u8; 3]]) -> io::Result<Vec<u8>> {
        let (depth, colour, _) = self.mode.header();
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut header = Vec::with_capacity(13);
        header.extend_from_slice(&self.width_px.to_be_bytes());
        header.extend_from_slice(&self.height_px.to_be_bytes());
        header.extend_from_slice(&[depth, colour, 0, 0, 0]);
        push_chunk(&mut file, *b"IHDR", &header);
        if !palette.is_empty() {
            push_chunk(&mut file, *b"PLTE", palette.as_flattened());
        }
        push_chunk(&mut file, *b"IDAT", &deflate(scan)?);
        push_chunk(&mut file, *b"IEND", &[]);
        Ok(file)
    }
}

fn deflate(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn push_chunk(file: &mut Vec<u8>, name: [u8; 4], data: &[u8]) {
    let mut crc = Crc::new();
    crc.update(&name);
    crc.update(data);
    file.extend_from_slice(&(data.len() as u32).to_be_bytes());
    file.extend_from_slice(&name);
    file.extend_from_slice(data);
    file.extend_from_slice(&crc.sum().to_be_bytes());
}
