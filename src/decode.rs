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
//! Memory for one image: nothing for its base64, which is decoded where it stands, and from 3 bytes (a baseline JPEG) to
//! about 25 (a 16-bit TIFF) for each of its pixels. What it will be is known from the header: [`Decoder`] asks before it
//! allocates, and refuses what is over [`Spec::decode_bytes`]. Between images a decoder keeps [`KEPT_BYTES`] at most.
//! A decoder that panics on an image is a reason to refuse that image.

mod augment;
mod base64;
mod bmp;
mod colour;
mod error;
#[cfg(test)]
mod fuzz;
mod geometry;
mod gif;
mod jpeg;
mod png;
mod resample;
mod resize;
mod row_group;
mod scratch;
mod sniff;
#[cfg(test)]
mod tests;
mod thumbnail;
mod tiff;
mod webp;

use serde::{Deserialize, Serialize};

pub use self::augment::View;
pub use self::colour::Alpha;
pub use self::error::{DecodeError, Reason};
pub use self::geometry::Geometry;
pub use self::resize::Resample;
pub use self::sniff::Format;
pub use thumbnail::jpeg_thumbnail;

use self::augment::Crop;
use self::resample::Resampler;
use self::resize::{CHANNELS, Resizer};

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
    /// Whether random parts are cut out of it, which takes a copy of them.
    #[serde(default)]
    pub crops: bool,
}

impl Spec {
    /// Most bytes that decoding one image may take beyond its encoded bytes: 6 for each of [`Self::max_pixels`], which is
    /// what a progressive JPEG of the usual subsampling takes (a baseline one 3, a PNG 3, a WebP 5), and 12 MiB for
    /// what does not grow with the pixels. Only an image near `max_pixels` in a format that takes more is refused by it. 3 more
    /// for each pixel of a part that is cut out.
    pub fn decode_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(6 + self.crop_bytes()).saturating_add(12 << 20)
    }

    /// Bytes of a part that is cut out, for each pixel of the image, at most.
    fn crop_bytes(&self) -> u64 {
        if self.crops { 3 } else { 0 }
    }

    /// Bytes of a decoded and resized image.
    pub fn pixel_bytes(&self) -> u64 {
        let side = u64::from(self.geometry.output_px());
        3 * side * side
    }
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
    squarer: Resizer,
}

/// What a decoder takes while it looks for an image's size, before it says what the image takes.
pub const LOOKED_AT_BYTES: u64 = 3 << 19;

/// What a decoder keeps from image to image, at most.
pub const KEPT_BYTES: u64 = scratch::KEEP_BYTES as u64;

impl Decoder {
    /// A decoder without any buffers yet; the first image brings them.
    pub fn new(spec: Spec) -> Self {
        let squarer = Resizer::new(spec.geometry, spec.resample);
        Self { spec, buffers: Buffers::default(), squarer }
    }

    /// Bytes of one output image: 3·S·S.
    pub fn pixel_bytes(&self) -> usize {
        let edge = self.spec.geometry.output_px() as usize;
        CHANNELS * edge * edge
    }

    /// Decodes an image in base64 (standard alphabet, padded; white space is skipped) into `out`, which has
    /// [`pixel_bytes`](Self::pixel_bytes) bytes: RGB, row-major, height × width × channel. After an error `out` is as it
    /// was. The text is used up: its bytes become those of the image.
    ///
    /// `admit` is called once, with an upper bound on the bytes that will be allocated, before they are; it may wait. What
    /// it returns is dropped when they are free again.
    ///
    /// # Errors
    /// The text is not base64; the image is missing, over a limit, of a kind that is not read, truncated or corrupt; or
    /// `out` has the wrong length.
    pub fn decode_base64_into<G>(
        &mut self,
        base64: &mut [u8],
        out: &mut [u8],
        admit: impl FnOnce(u64) -> G,
    ) -> Result<Source, DecodeError> {
        self.decode_base64_views(base64, &[View::Plain], out, admit)
    }

    /// As [`decode_base64_into`](Self::decode_base64_into), for several pictures of one image, one after the other in `out`.
    ///
    /// # Errors
    /// As there.
    pub fn decode_base64_views<G>(
        &mut self,
        base64: &mut [u8],
        views: &[View],
        out: &mut [u8],
        admit: impl FnOnce(u64) -> G,
    ) -> Result<Source, DecodeError> {
        let encoded = base64::decode(base64, self.spec.max_encoded_bytes)?;
        self.decode_views(encoded, views, out, admit)
    }

    /// As [`decode_base64_into`](Self::decode_base64_into), for the bytes of an image file, of which some may be changed.
    ///
    /// # Errors
    /// As there.
    pub fn decode_into<G>(
        &mut self,
        encoded: &mut [u8],
        out: &mut [u8],
        admit: impl FnOnce(u64) -> G,
    ) -> Result<Source, DecodeError> {
        self.decode_views(encoded, &[View::Plain], out, admit)
    }

    /// As [`decode_into`](Self::decode_into), for several pictures of one image, one after the other in `out`.
    ///
    /// # Errors
    /// As there.
    pub fn decode_views<G>(
        &mut self,
        encoded: &mut [u8],
        views: &[View],
        out: &mut [u8],
        admit: impl FnOnce(u64) -> G,
    ) -> Result<Source, DecodeError> {
        let expected = self.pixel_bytes() * views.len();
        if out.len() != expected {
            return Err(DecodeError::OutputSize { expected, found: out.len() });
        }
        let (mut admit, mut held) = (Some(admit), None);
        let mut take = |bytes| held = admit.take().map(|admit| admit(bytes));
        // A decoder that panics has met what its author did not think of, and its buffers go with it.
        let decoded =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.square(encoded, views, out, &mut take)));
        let result = decoded.unwrap_or_else(|_| {
            self.buffers = Buffers::default();
            self.squarer = Resizer::new(self.spec.geometry, self.spec.resample);
            let format = sniff::sniff(encoded)?;
            Err(DecodeError::corrupt(format, "its decoder fails on it"))
        });
        if self.buffers.held() + self.squarer.held() > scratch::KEEP_BYTES {
            self.buffers.trim();
            self.squarer.trim();
        }
        drop(held);
        result
    }

    fn square(
        &mut self,
        encoded: &mut [u8],
        views: &[View],
        out: &mut [u8],
        take: &mut dyn FnMut(u64),
    ) -> Result<Source, DecodeError> {
        let bytes = encoded.len() as u64;
        if bytes > self.spec.max_encoded_bytes {
            return Err(DecodeError::TooLarge { bytes, limit: self.spec.max_encoded_bytes });
        }
        let format = sniff::sniff(encoded)?;
        let mut limits = Limits {
            format,
            max_pixels: self.spec.max_pixels,
            max_bytes: self.spec.decode_bytes(),
            output_px: self.spec.geometry.output_px(),
            crop_bytes: self.spec.crop_bytes(),
            take,
        };
        let (alpha, buffers) = (self.spec.alpha, &mut self.buffers);
        let size = match format {
            Format::Jpeg => jpeg::decode(encoded, &mut limits, buffers),
            Format::Png => png::decode(encoded, &mut limits, alpha, buffers),
            Format::Gif => gif::decode(encoded, &mut limits, alpha, buffers),
            Format::WebP => webp::decode(encoded, &mut limits, alpha, buffers),
            Format::Bmp => bmp::decode(encoded, &mut limits, alpha, buffers),
            Format::Tiff => tiff::decode(encoded, &mut limits, alpha, buffers),
        }?;
        let rgb = &self.buffers.rgb[..size.pixels() * CHANNELS];
        for (view, out) in views.iter().zip(out.chunks_exact_mut(self.pixel_bytes())) {
            match view {
                View::Plain => self.squarer.run(rgb, size.width, size.height, out),
                View::Random(seed) => {
                    self.squarer.run_part(rgb, size.width, Crop::of(*seed, size.width, size.height), out);
                }
            }
        }
        Ok(Source { format, width_px: size.width, height_px: size.height })
    }
}

/// Buffers that the formats share.
#[derive(Default)]
struct Buffers {
    /// The image in RGB.
    rgb: Vec<u8>,
    /// The image as its format stores it.
    raw: Vec<u8>,
}

impl Buffers {
    fn held(&self) -> usize {
        scratch::held(&self.rgb) + scratch::held(&self.raw)
    }

    fn trim(&mut self) {
        for buffer in [&mut self.rgb, &mut self.raw] {
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
struct Limits<'a> {
    format: Format,
    max_pixels: u64,
    max_bytes: u64,
    /// Side of the square that is made of the image.
    output_px: u32,
    /// Bytes of a part that is cut out, for each pixel.
    crop_bytes: u64,
    /// Waits until so many bytes may be allocated.
    take: &'a mut dyn FnMut(u64),
}

impl Limits<'_> {
    /// Refuses a size before anything is allocated for it.
    fn check(&self, width: u64, height: u64) -> Result<Size, DecodeError> {
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

    /// Refuses an image that takes too much memory, and waits until there is enough: `bytes` for its decoder and its
    /// format's own buffers; RGB and what lies between the passes of the resizing come on top. Nothing that grows with
    /// the image may be allocated before.
    fn admit(&mut self, size: Size, bytes: u64) -> Result<(), DecodeError> {
        let (width, height, side) = (u64::from(size.width), u64::from(size.height), u64::from(self.output_px));
        let between = Resampler::between_bytes(width, height, side);
        let kernels = 64 * (width + height + 2 * side);
        let bytes = bytes + (3 + self.crop_bytes) * width * height + between + kernels;
        if bytes > self.max_bytes {
            let (format, limit) = (self.format, self.max_bytes);
            return Err(DecodeError::TooMuchMemory { format, width_px: width, height_px: height, bytes, limit });
        }
        (self.take)(bytes);
        Ok(())
    }
}
