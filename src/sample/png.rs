//! PNG files in the modes that the corpus holds and the `image` encoder does not write (palette, one bit), and with headers
//! that lie. Format: PNG specification, third edition (W3C), chapters 5 and 11.
//!
//! Raw samples in, a whole file out; every chunk has its right CRC. Not a general encoder: one filter, no interlacing.

use flate2::Compression;
use flate2::Crc;
use flate2::write::ZlibEncoder;
use std::io;
use std::io::Write;

/// Samples of a pixel.
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
    /// An index into the palette, one byte.
    Palette,
    /// Red, green and blue, one byte each.
    Rgb,
    /// Red, green and blue, two bytes each, big-endian.
    Rgb16,
    /// Red, green, blue and alpha, one byte each.
    Rgba,
}

impl PngMode {
    /// Bit depth and colour type of the header, and bytes a pixel (for one bit: a byte, as the filters count).
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

/// What the header of a file says.
pub(super) struct Png {
    pub(super) width_px: u32,
    pub(super) height_px: u32,
    pub(super) mode: PngMode,
}

impl Png {
    /// The file with these samples, row by row without padding between rows (one bit: each row in whole bytes).
    ///
    /// # Errors
    /// When the deflater fails, which it does not on memory.
    pub(super) fn encode(&self, samples: &[u8], palette: &[[u8; 3]]) -> io::Result<Vec<u8>> {
        let (_, _, pixel_bytes) = self.mode.header();
        let row_bytes = match self.mode {
            PngMode::OneBit => self.width_px.div_ceil(8) as usize,
            _ => self.width_px as usize * pixel_bytes,
        };
        // Filter 1 (the difference to the pixel on the left) makes slopes of brightness small numbers; indices and bits
        // have no slopes.
        let differences = !matches!(self.mode, PngMode::OneBit | PngMode::Palette);
        let mut scan = Vec::with_capacity(samples.len() + self.height_px as usize);
        for row in samples.chunks_exact(row_bytes.max(1)) {
            scan.push(u8::from(differences));
            if differences {
                let (first, rest) = row.split_at(pixel_bytes.min(row.len()));
                scan.extend_from_slice(first);
                scan.extend(rest.iter().zip(row).map(|(sample, left)| sample.wrapping_sub(*left)));
            } else {
                scan.extend_from_slice(row);
            }
        }
        self.with_scan(&scan, palette)
    }

    /// The file with this scan (filtered rows), whether or not it holds as much as the header declares.
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
        push_chunk(&mut file, *b"IDAT", &deflated(scan)?);
        push_chunk(&mut file, *b"IEND", &[]);
        Ok(file)
    }
}

fn deflated(bytes: &[u8]) -> io::Result<Vec<u8>> {
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
