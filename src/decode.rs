//! Encoded image → RGB bytes of one fixed square; synchronous, pure, and without knowledge of files.
//!
//! One [`Decoder`] belongs to one worker and keeps its buffers. The pixels are those of Pillow 13's
//! `Image.open(…).convert("RGB").resize((S, S), …)`, bit for bit for a PNG, GIF, BMP, TIFF or lossless WebP (796
//! real PNGs at S = 64, 224 and 384, bilinear, both ways with transparency: none of 963 million samples differs). A
//! JPEG adds the differences of another inverse DCT and another upsampling: 1 level in 1 of 100 samples of 2,000
//! real ones at S = 224, and no more; up to 2 levels in the small drawings of the tests. A CMYK TIFF may be 1
//! level off.
//! Nothing is decoded before the header's size was checked, and nothing is written to the output unless the
//! whole image is good.
//!
//! Formats go by content, never by name: see [`Format`]. EXIF orientation is ignored, as `open` and `convert`
//! ignore it; a TIFF's is applied, as Pillow does. Colour profiles are ignored. 16-bit grey is cut off at 255,
//! as Pillow's `convert` does.
//!
//! Memory for one image: its encoded bytes, and up to about 25 bytes for each of its pixels in the worst format
//! (a 16-bit TIFF; a JPEG needs 3, or 9 if progressive). Buffers over 8 MiB are freed afterwards.

mod base64;
mod colour;
mod convolve;
mod error;
mod geometry;
mod gif;
mod jpeg;
mod other;
mod png;
mod resize;
mod scratch;
mod sniff;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::colour::Alpha;
pub use self::error::{DecodeError, Reason};
pub use self::geometry::Geometry;
pub use self::resize::Resample;
pub use self::sniff::Format;

use self::resize::{CHANNELS, Squarer};

/// What to make of an image, and what to refuse.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// How any size becomes a square.
    pub geometry: Geometry,
    /// Kernel of the resampling.
    pub resample: Resample,
    /// What becomes of transparency.
    pub alpha: Alpha,
    /// Longest encoded image, in bytes.
    pub max_encoded_bytes: u64,
    /// Most pixels (width × height) that a header may announce.
    pub max_pixels: u64,
}

/// What the image was before it was resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Format, by content.
    pub format: Format,
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
}

/// Decodes images one after another, with buffers that stay.
pub struct Decoder {
    spec: Spec,
    buffers: Buffers,
    squarer: Squarer,
    encoded: Vec<u8>,
    compact: Vec<u8>,
}

impl Decoder {
    /// A decoder without any buffers yet; the first image brings them.
    pub fn new(spec: Spec) -> Self {
        let squarer = Squarer::new(spec.geometry, spec.resample);
        Self { spec, buffers: Buffers::default(), squarer, encoded: Vec::new(), compact: Vec::new() }
    }

    /// Bytes of one output image: 3·S·S.
    pub fn pixel_bytes(&self) -> usize {
        let edge = self.spec.geometry.output_px() as usize;
        CHANNELS * edge * edge
    }

    /// Decodes an image in base64 (standard alphabet, padded; white space is skipped) into `out`, which has
    /// [`pixel_bytes`](Self::pixel_bytes) bytes: RGB, row-major, height × width × channel.
    ///
    /// # Errors
    /// The text is not base64, or as [`decode_into`](Self::decode_into).
    pub fn decode_base64_into(&mut self, base64: &[u8], out: &mut [u8]) -> Result<Source, DecodeError> {
        let mut encoded = std::mem::take(&mut self.encoded);
        let result = base64::decode(base64, self.spec.max_encoded_bytes, &mut self.compact, &mut encoded)
            .and_then(|()| self.decode_into(&encoded, out));
        self.encoded = encoded;
        scratch::trim(&mut self.encoded);
        scratch::trim(&mut self.compact);
        result
    }

    /// Decodes an image file into `out`, which has [`pixel_bytes`](Self::pixel_bytes) bytes: RGB, row-major,
    /// height × width × channel. After an error `out` is as it was.
    ///
    /// # Errors
    /// The image is missing, over a limit, of a kind that is not read, truncated or corrupt; or `out` has the
    /// wrong length.
    pub fn decode_into(&mut self, encoded: &[u8], out: &mut [u8]) -> Result<Source, DecodeError> {
        let expected = self.pixel_bytes();
        if out.len() != expected {
            return Err(DecodeError::OutputSize { expected, found: out.len() });
        }
        let result = self.pixels(encoded).map(|(format, size)| {
            let rgb = &self.buffers.rgb[..size.pixels() * CHANNELS];
            self.squarer.run(rgb, size.width, size.height, out);
            Source { format, width_px: size.width, height_px: size.height }
        });
        self.buffers.trim();
        self.squarer.trim();
        result
    }

    /// Fills the RGB buffer.
    fn pixels(&mut self, encoded: &[u8]) -> Result<(Format, Size), DecodeError> {
        let bytes = encoded.len() as u64;
        if bytes > self.spec.max_encoded_bytes {
            return Err(DecodeError::TooLarge { bytes, limit: self.spec.max_encoded_bytes });
        }
        let format = sniff::sniff(encoded)?;
        let limits = Limits { format, max_pixels: self.spec.max_pixels };
        let (alpha, buffers) = (self.spec.alpha, &mut self.buffers);
        let size = match format {
            Format::Jpeg => jpeg::decode(encoded, limits, buffers),
            Format::Png => png::decode(encoded, limits, alpha, buffers),
            Format::Gif => gif::decode(encoded, limits, alpha, buffers),
            Format::WebP => other::webp(encoded, limits, alpha, buffers),
            Format::Bmp => other::bmp(encoded, limits, alpha, buffers),
            Format::Tiff => other::tiff(encoded, limits, alpha, buffers),
        }?;
        Ok((format, size))
    }
}

/// Buffers that the formats share.
#[derive(Default)]
struct Buffers {
    /// The image in RGB.
    rgb: Vec<u8>,
    /// The image as its format stores it.
    raw: Vec<u8>,
    /// A copy of the encoded bytes, where one of them has to be changed.
    patched: Vec<u8>,
}

impl Buffers {
    fn trim(&mut self) {
        for buffer in [&mut self.rgb, &mut self.raw, &mut self.patched] {
            scratch::trim(buffer);
        }
    }
}

/// Width and height that passed the limits.
#[derive(Clone, Copy)]
struct Size {
    width: u32,
    height: u32,
}

impl Size {
    fn pixels(self) -> usize {
        self.width as usize * self.height as usize
    }
}

/// What a decoder may allocate.
#[derive(Clone, Copy)]
struct Limits {
    format: Format,
    max_pixels: u64,
}

impl Limits {
    /// Refuses a size before anything is allocated for it.
    fn check(self, width: u64, height: u64) -> Result<Size, DecodeError> {
        let limit = self.max_pixels;
        let too_many = DecodeError::TooManyPixels { width_px: width, height_px: height, limit };
        if width == 0 || height == 0 {
            return Err(DecodeError::corrupt(self.format, "it is 0 pixels wide or high"));
        }
        match (u32::try_from(width), u32::try_from(height)) {
            (Ok(width), Ok(height)) if u64::from(width) * u64::from(height) <= limit => Ok(Size { width, height }),
            _ => Err(too_many),
        }
    }

    /// Bound on what a decoder may allocate at `bytes_per_px`, with room for tables.
    fn decoder_bytes(self, bytes_per_px: u64) -> usize {
        let bytes = self.max_pixels.saturating_mul(bytes_per_px).saturating_add(1 << 20);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}
