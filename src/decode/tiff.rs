//! TIFF → RGB: the first page, as Pillow reads it, with its orientation applied.
//!
//! The crate `tiff` decompresses, but it supports fewer colour models than Pillow and fails on some layouts of tiles. It
//! therefore gets one strip or tile at a time, through a [rewritten directory](Directory::write_chunk) that describes an image
//! of grey samples. This module converts the samples to RGB. libjpeg decodes strips of JPEG, as in libtiff.
//!
//! It departs from the specification where Pillow does, because published models were trained on its output:
//! * 16-bit grey is cut off at 255, not scaled, and is never inverted; other 16-bit samples keep their high byte.
//! * The orientation is applied, which Pillow does for no other format.

mod directory;

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};
use tiff::TiffError;
use tiff::decoder::Decoder;

use self::directory::{Directory, Place};
use super::colour::{self, Alpha};
use super::error::DecodeError;
use super::jpeg;
use super::scratch;
use super::sniff::Format;
use super::{Buffers, Limits, Size};

/// Bytes that the decoder allocates besides the samples.
const FIXED_BYTES: u64 = 4 << 20;

/// Compression of strips that are JPEG files.
const JPEG: u64 = 7;

pub(super) fn decode(
    data: &[u8],
    limits: &mut Limits<'_>,
    alpha: Alpha,
    buffers: &mut Buffers,
) -> Result<Size, DecodeError> {
    let directory = Directory::read(data)?;
    let size = limits.check(directory.width, directory.height)?;
    let page = Page::read(&directory)?;
    let chunk_px = directory.chunk_width.saturating_mul(directory.chunk_height);
    if chunk_px > limits.max_pixels.max(1 << 22) {
        return Err(DecodeError::corrupt(Format::Tiff, "a tile is larger than any image"));
    }
    let raw_bytes = page.row_bytes(directory.width) * size.height as usize * page.planes();
    let tile_bytes = page.row_bytes(directory.chunk_width) as u64 * directory.chunk_height;
    let jpeg_bytes = if page.is_jpeg() { 6 * directory.max_jpeg_px() + 1024 * (directory.chunk_width + 64) } else { 0 };
    // The turned image and the file with its rewritten directory are copies.
    let turned = if page.orientation == Orientation::NoTransforms { 0 } else { 3 * size.pixels() as u64 };
    let file_bytes = data.len() as u64;
    limits.admit(size, raw_bytes as u64 + tile_bytes + jpeg_bytes + turned + file_bytes + FIXED_BYTES)?;

    let raw = scratch::grow(&mut buffers.raw, raw_bytes);
    raw.fill(0);
    let plane_bytes = raw_bytes / page.planes();
    let mut reader = ChunkReader { data, directory: &directory, page: &page, file: Vec::new(), buffer: Vec::new() };
    for chunk in directory.places() {
        reader.read(&chunk, &mut raw[chunk.plane * plane_bytes..][..plane_bytes])?;
    }
    if directory.reversed_bits {
        for byte in raw.iter_mut() {
            *byte = byte.reverse_bits();
        }
    }
    let rgb = scratch::grow(&mut buffers.rgb, size.pixels() * 3);
    page.convert(raw, size, alpha, rgb);
    apply_orientation(page.orientation, size, buffers)
}

/// Turns and mirrors the image, and returns its new size.
fn apply_orientation(orientation: Orientation, size: Size, buffers: &mut Buffers) -> Result<Size, DecodeError> {
    if orientation == Orientation::NoTransforms {
        return Ok(size);
    }
    let mut pixels = std::mem::take(&mut buffers.rgb);
    pixels.truncate(size.pixels() * 3);
    let upright = ImageBuffer::from_raw(size.width, size.height, pixels)
        .ok_or_else(|| DecodeError::corrupt(Format::Tiff, "its size changed while it was read"))?;
    let mut upright = DynamicImage::ImageRgb8(upright);
    upright.apply_orientation(orientation);
    let size = Size { width: upright.width(), height: upright.height() };
    buffers.rgb = upright.into_bytes();
    Ok(size)
}

/// Decodes strips and tiles into their place in a plane.
struct ChunkReader<'a> {
    data: &'a [u8],
    directory: &'a Directory,
    page: &'a Page,
    /// A copy of the file with a directory for a chunk, or a JPEG with its tables.
    file: Vec<u8>,
    /// A tile, or a line of a JPEG.
    buffer: Vec<u8>,
}

impl ChunkReader<'_> {
    fn read(&mut self, chunk: &Place, plane: &mut [u8]) -> Result<(), DecodeError> {
        let stride = self.page.row_bytes(self.directory.width);
        let (start, row_bytes) = (self.page.row_bytes(chunk.left), self.page.row_bytes(chunk.width));
        let out = &mut plane[chunk.top as usize * stride + start..];
        if self.page.is_jpeg() {
            return self.read_jpeg(chunk, row_bytes, stride, out);
        }
        if self.file.is_empty() {
            self.file.extend(self.data);
        }
        self.file.truncate(self.data.len());
        // A tile is stored whole, and the last strip is as high as the rest of the image.
        let height = if self.directory.tiled { self.directory.chunk_height } else { chunk.height };
        self.directory.write_chunk(chunk.number, height, self.page.samples_together(), &mut self.file)?;
        let mut decoder = Decoder::new(Cursor::new(&self.file)).map_err(refusal)?;
        if !self.directory.tiled {
            return decoder.read_image_bytes(&mut out[..stride * chunk.height as usize]).map_err(refusal);
        }
        let tile_stride = self.page.row_bytes(self.directory.chunk_width);
        self.buffer.resize(tile_stride * self.directory.chunk_height as usize, 0);
        decoder.read_image_bytes(&mut self.buffer).map_err(refusal)?;
        let rows = out.chunks_mut(stride).zip(self.buffer.chunks_exact(tile_stride)).take(chunk.height as usize);
        for (to, from) in rows {
            to[..row_bytes].copy_from_slice(&from[..row_bytes]);
        }
        Ok(())
    }

    fn read_jpeg(&mut self, chunk: &Place, row_bytes: usize, stride: usize, out: &mut [u8]) -> Result<(), DecodeError> {
        let (at, length) = self.directory.chunks[chunk.number];
        let strip = self.data.get(at as usize..at.saturating_add(length) as usize);
        let strip = strip.ok_or(DecodeError::Truncated { format: Format::Tiff })?;
        let tables = self.directory.jpeg_tables.get(2..).and_then(|rest| rest.strip_suffix(&[0xff, 0xd9]));
        self.file.clear();
        self.file.extend([0xff, 0xd8]);
        if self.page.samples == 3 {
            // The colour model, which a strip does not name.
            self.file.extend(*b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0");
            self.file.push(u8::from(self.page.colours == Colours::YCbCr));
        }
        self.file.extend(tables.unwrap_or_default());
        self.file.extend(strip.get(2..).unwrap_or_default());
        let max_px = self.directory.max_jpeg_px() as usize;
        let mut rows = jpeg::StripRows { out, row_bytes, stride, count: chunk.height as usize };
        let (width, height) = jpeg::decode_strip(&self.file, self.page.samples, max_px, &mut rows, &mut self.buffer)?;
        if (width as u64) < chunk.width || (height as u64) < chunk.height {
            return Err(DecodeError::corrupt(Format::Tiff, "a JPEG strip is smaller than the directory says"));
        }
        Ok(())
    }
}

/// Colour model of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    /// Inverted where 0 is white.
    Grey {
        inverted: bool,
    },
    Rgb,
    Palette,
    Cmyk,
    YCbCr,
}

impl Colours {
    /// Samples of a pixel, without alpha.
    fn samples(self) -> usize {
        match self {
            Self::Grey { .. } | Self::Palette => 1,
            Self::Rgb | Self::YCbCr => 3,
            Self::Cmyk => 4,
        }
    }
}

/// Meaning of the sample behind the colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    Ignored,
    Alpha,
    /// Alpha by which the colours were multiplied.
    AssociatedAlpha,
}

/// Interpretation of the samples of the first page.
struct Page {
    colours: Colours,
    extra: Extra,
    bits: usize,
    samples: usize,
    planar: bool,
    compression: u64,
    orientation: Orientation,
    /// RGB of each index.
    palette: Vec<[u8; 3]>,
}

impl Page {
    fn read(directory: &Directory) -> Result<Self, DecodeError> {
        let variant = |detail: &str| DecodeError::variant(Format::Tiff, detail);
        let (bits, samples) = (directory.bits, directory.samples);
        match directory.compression {
            1 | 4 | 5 | JPEG | 8 | 32773 | 32946 => {}
            2 => return Err(variant("TIFF with CCITT run-length compression")),
            3 => return Err(variant("TIFF with fax group 3 compression")),
            6 => return Err(variant("TIFF with old-style JPEG compression")),
            34712 => return Err(variant("TIFF with JPEG 2000 compression")),
            34925 => return Err(variant("TIFF with LZMA compression")),
            50000 => return Err(variant("TIFF with Zstandard compression")),
            50001 => return Err(variant("TIFF with WebP compression")),
            other => return Err(DecodeError::variant(Format::Tiff, format!("TIFF with compression {other}"))),
        }
        let colours = match (directory.photometric, samples) {
            (0, _) => Colours::Grey { inverted: bits != 16 },
            (1, _) | (6, 1) => Colours::Grey { inverted: false },
            (2, _) => Colours::Rgb,
            (3, _) => Colours::Palette,
            (5, _) => Colours::Cmyk,
            (6, _) => Colours::YCbCr,
            (4, _) => return Err(variant("transparency mask TIFF")),
            (8, _) => return Err(variant("CIE Lab TIFF")),
            (9, _) => return Err(variant("ICC Lab TIFF")),
            (10, _) => return Err(variant("ITU Lab TIFF")),
            (32803, _) => return Err(variant("colour filter array TIFF")),
            (32844 | 32845, _) => return Err(variant("LogLuv TIFF")),
            (other, _) => {
                return Err(DecodeError::variant(
                    Format::Tiff,
                    format!("TIFF with photometric interpretation {other}"),
                ));
            }
        };
        let name = match colours {
            Colours::Grey { .. } => "grey",
            Colours::Rgb => "RGB",
            Colours::Palette => "palette",
            Colours::Cmyk => "CMYK",
            Colours::YCbCr => "YCbCr",
        };
        let unread = |detail: String| Err(DecodeError::variant(Format::Tiff, detail));
        let jpeg = directory.compression == JPEG;
        let depths: &[usize] = match colours {
            _ if jpeg => &[8],
            Colours::Grey { .. } if samples == 1 => &[1, 2, 4, 8, 16],
            Colours::Palette if samples == 1 => &[1, 2, 4, 8],
            Colours::Grey { .. } | Colours::Rgb | Colours::Cmyk => &[8, 16],
            Colours::Palette | Colours::YCbCr => &[8],
        };
        if !depths.contains(&bits) {
            return unread(format!("{name} TIFF of {bits} bits a sample"));
        }
        if samples < colours.samples() {
            return unread(format!("{name} TIFF of {samples} samples a pixel"));
        }
        match directory.sample_format {
            1 => {}
            // Pillow reads signed bytes as if they had no sign.
            2 if bits == 8 && samples == 1 => {}
            2 => return unread(format!("{name} TIFF of signed samples")),
            3 => return unread(format!("{name} TIFF of floating-point samples")),
            other => return unread(format!("{name} TIFF of sample format {other}")),
        }
        if directory.reversed_bits && (directory.compression != 1 || bits > 8) {
            return unread(format!("{name} TIFF with reversed bits"));
        }
        if jpeg && (samples != colours.samples() || directory.planar || !matches!(samples, 1 | 3)) {
            return unread(format!("{name} TIFF of {samples} samples a pixel in JPEG strips"));
        }
        if directory.tiled && !(directory.chunk_width * bits as u64).is_multiple_of(8) {
            return unread(format!("{name} TIFF of tiles that end inside a byte"));
        }
        if colours == Colours::YCbCr && !jpeg && directory.subsampled {
            return unread("YCbCr TIFF of subsampled colours without JPEG compression".to_owned());
        }
        let extra = match directory.extra {
            _ if samples == colours.samples() => Extra::Ignored,
            Some(1) => Extra::AssociatedAlpha,
            Some(2 | 999) => Extra::Alpha,
            None if colours == Colours::Rgb && samples == 4 => Extra::Alpha,
            _ => Extra::Ignored,
        };
        let orientation = u8::try_from(directory.orientation).ok().and_then(Orientation::from_exif);
        Ok(Self {
            colours,
            extra,
            bits,
            samples,
            planar: directory.planar && samples > 1,
            compression: directory.compression,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
            palette: if colours == Colours::Palette { directory.palette()? } else { Vec::new() },
        })
    }

    fn is_jpeg(&self) -> bool {
        self.compression == JPEG
    }

    fn planes(&self) -> usize {
        if self.planar { self.samples } else { 1 }
    }

    /// Samples of a pixel that are stored side by side.
    fn samples_together(&self) -> usize {
        if self.planar { 1 } else { self.samples }
    }

    /// Bytes of `width` pixels of a row of a plane.
    fn row_bytes(&self, width: u64) -> usize {
        (width as usize * self.bits * self.samples_together()).div_ceil(8)
    }

    /// Converts samples to RGB, row by row.
    fn convert(&self, raw: &[u8], size: Size, alpha: Alpha, rgb: &mut [u8]) {
        let (width, row_bytes) = (size.width as usize, self.row_bytes(size.width.into()));
        let plane_bytes = row_bytes * size.height as usize;
        let mut line = vec![0; width * self.samples];
        for (row, out) in rgb.chunks_exact_mut(width * 3).enumerate() {
            for plane in 0..self.planes() {
                let from = &raw[plane * plane_bytes + row * row_bytes..][..row_bytes];
                if self.planar {
                    self.unpack(from, line.iter_mut().skip(plane).step_by(self.samples));
                } else {
                    self.unpack(from, line.iter_mut());
                }
            }
            for (pixel, samples) in out.as_chunks_mut::<3>().0.iter_mut().zip(line.chunks_exact(self.samples)) {
                *pixel = self.pixel(samples, alpha);
            }
        }
    }

    /// Unpacks samples of any depth into bytes; those of fewer bits keep their value.
    fn unpack<'a>(&self, from: &[u8], to: impl Iterator<Item = &'a mut u8>) {
        let cut_off = matches!(self.colours, Colours::Grey { .. }) && self.samples == 1;
        match self.bits {
            8 => {
                for (to, sample) in to.zip(from) {
                    *to = *sample;
                }
            }
            16 => {
                for (to, sample) in to.zip(from.as_chunks::<2>().0) {
                    let sample = u16::from_ne_bytes(*sample);
                    *to = if cut_off { sample.min(255) as u8 } else { (sample >> 8) as u8 };
                }
            }
            bits => {
                let mask = u8::MAX >> (8 - bits);
                let samples =
                    from.iter().flat_map(|byte| (1..=8 / bits).map(move |at| (byte >> (8 - at * bits)) & mask));
                for (to, sample) in to.zip(samples) {
                    *to = sample;
                }
            }
        }
    }

    fn pixel(&self, samples: &[u8], alpha: Alpha) -> [u8; 3] {
        let colour = match (self.colours, samples) {
            (Colours::Grey { inverted }, &[grey, ..]) => {
                let grey = match self.bits {
                    1 => grey * 255,
                    2 => grey * 85,
                    4 => grey * 17,
                    _ => grey,
                };
                [if inverted { 255 - grey } else { grey }; 3]
            }
            (Colours::Palette, &[index, ..]) => self.palette.get(usize::from(index)).copied().unwrap_or_default(),
            // Strips of JPEG are RGB already.
            (Colours::YCbCr, &[y, cb, cr, ..]) if !self.is_jpeg() => colour::ycbcr([y, cb, cr]),
            (Colours::Cmyk, &[c, m, y, k, ..]) => colour::cmyk([c, m, y, k]),
            (Colours::Rgb | Colours::YCbCr, &[r, g, b, ..]) => [r, g, b],
            _ => [0; 3],
        };
        let transparency = samples.get(self.colours.samples()).copied().unwrap_or(255);
        match self.extra {
            Extra::Ignored => colour,
            Extra::Alpha => alpha.apply([colour[0], colour[1], colour[2], transparency]),
            Extra::AssociatedAlpha => {
                // `unpackRGBa` of Pillow, which leaves nothing of a colour that is fully transparent.
                let [r, g, b] = colour.map(|value| match transparency {
                    0 => 0,
                    a => (u16::from(value) * 255 / u16::from(a)).min(255) as u8,
                });
                alpha.apply([r, g, b, transparency])
            }
        }
    }
}

fn refusal(error: TiffError) -> DecodeError {
    match error {
        TiffError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: Format::Tiff }
        }
        TiffError::UnsupportedError(error) => DecodeError::variant(Format::Tiff, error),
        other => DecodeError::corrupt(Format::Tiff, other),
    }
}
