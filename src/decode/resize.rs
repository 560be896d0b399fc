//! RGB pixels of any size → the square of the [`Geometry`], with Pillow's arithmetic order.
//!
//! Pillow convolves along rows first, rounds to bytes, and then convolves along columns
//! (`src/libImaging/Resample.c`); where a kernel overshoots, the clipping in between makes the order visible.
//! `fast_image_resize` does bytes the other way round, so the two passes are asked for one by one. Its
//! coefficients have 16 bits where Pillow's have 22: a level may differ by 1.

use fast_image_resize::images::Image;
use fast_image_resize::images::ImageRef;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

use super::geometry::{Geometry, Window};
use super::scratch::{self, KEEP_BYTES};

/// Bytes for each pixel.
pub(super) const CHANNELS: usize = 3;

/// An intermediate image over this many pixels is avoided by convolving columns first.
const MAX_INTERMEDIATE_PX: u64 = 40_000_000;

/// The kernel of the resampling, with the names and the integer codes of Pillow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resample {
    /// The pixel under the centre of the output pixel.
    Nearest,
    /// Windowed sinc of radius 3.
    Lanczos,
    /// Triangle of radius 1, widened when shrinking.
    Bilinear,
    /// Keys' cubic with a = -0.5 (Catmull-Rom).
    Bicubic,
    /// Mean of the pixels under the output pixel.
    Box,
    /// Windowed sinc of radius 1.
    Hamming,
}

impl Resample {
    /// The kernel behind the integer in a `preprocessor_config.json` (`PIL.Image.Resampling`).
    pub const fn from_pillow(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Nearest),
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            4 => Some(Self::Box),
            5 => Some(Self::Hamming),
            _ => None,
        }
    }

    /// Filter and its radius in source pixels at scale 1; none for the one that is no convolution.
    const fn filter(self) -> Option<(FilterType, f64)> {
        match self {
            Self::Nearest => None,
            Self::Lanczos => Some((FilterType::Lanczos3, 3.0)),
            Self::Bilinear => Some((FilterType::Bilinear, 1.0)),
            Self::Bicubic => Some((FilterType::CatmullRom, 2.0)),
            Self::Box => Some((FilterType::Box, 0.5)),
            Self::Hamming => Some((FilterType::Hamming, 1.0)),
        }
    }
}

/// A size that does not fit its buffer: a mistake in this module, told instead of panicking.
#[derive(Debug)]
pub(super) struct ResizeFailed(pub(super) String);

fn failed(error: impl std::fmt::Display) -> ResizeFailed {
    ResizeFailed(error.to_string())
}

/// The resampler and its buffers, reused from image to image.
pub(super) struct Squarer {
    geometry: Geometry,
    resample: Resample,
    resizer: Resizer,
    intermediate: Vec<u8>,
    kept: Vec<u8>,
}

impl Squarer {
    pub(super) fn new(geometry: Geometry, resample: Resample) -> Self {
        Self { geometry, resample, resizer: Resizer::new(), intermediate: Vec::new(), kept: Vec::new() }
    }

    /// Lets go of what only an unusually large image needed.
    pub(super) fn trim(&mut self) {
        scratch::trim(&mut self.intermediate);
        scratch::trim(&mut self.kept);
        if self.resizer.size_of_internal_buffers() > KEEP_BYTES {
            self.resizer.reset_internal_buffers();
        }
    }

    /// Fills `out` (3·S·S bytes) from `rgb` (`3·width·height` bytes).
    pub(super) fn run(&mut self, rgb: &[u8], width: u32, height: u32, out: &mut [u8]) -> Result<(), ResizeFailed> {
        let output = self.geometry.output_px();
        let (x, y) = self.geometry.windows(width, height);
        if x.fills(output) && y.fills(output) {
            return self.fill(rgb, x, y, out);
        }
        out.fill(0);
        let (row, len) = (x.len as usize * CHANNELS, y.len as usize);
        if row == 0 || len == 0 {
            return Ok(());
        }
        let mut kept = std::mem::take(&mut self.kept);
        let part = scratch::grown(&mut kept, row * len);
        let done = self.fill(rgb, x, y, part);
        let lines = out.chunks_exact_mut(output as usize * CHANNELS).skip(y.offset as usize);
        let left = x.offset as usize * CHANNELS;
        for (line, source) in lines.zip(part.chunks_exact(row)) {
            line[left..left + row].copy_from_slice(source);
        }
        self.kept = kept;
        done
    }

    fn fill(&mut self, rgb: &[u8], x: Window, y: Window, out: &mut [u8]) -> Result<(), ResizeFailed> {
        let Some((filter, radius)) = self.resample.filter() else {
            nearest(rgb, x, y, out);
            return Ok(());
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
        let source = ImageRef::new(x.source, y.source, rgb, PixelType::U8x3).map_err(failed)?;
        let (left, span_x) = x.span();
        let (top, span_y) = y.span();
        // Only the rows that the second pass looks at, with one to spare for rounding.
        let reach = radius * y.scale().max(1.0) + 1.0;
        let first_row = (top - reach).floor().max(0.0);
        let last_row = (top + span_y + reach).ceil().min(f64::from(y.source));
        let rows = (last_row - first_row) as u32;
        if x.is_copy() || y.is_copy() || u64::from(x.len) * u64::from(rows) > MAX_INTERMEDIATE_PX {
            let mut target = Image::from_slice_u8(x.len, y.len, out, PixelType::U8x3).map_err(failed)?;
            let options = options.crop(left, top, span_x, span_y);
            return self.resizer.resize(&source, &mut target, &options).map_err(failed);
        }
        let buffer = scratch::grown(&mut self.intermediate, x.len as usize * rows as usize * CHANNELS);
        let mut middle = Image::from_slice_u8(x.len, rows, buffer, PixelType::U8x3).map_err(failed)?;
        let across = options.crop(left, first_row, span_x, f64::from(rows));
        self.resizer.resize(&source, &mut middle, &across).map_err(failed)?;
        let mut target = Image::from_slice_u8(x.len, y.len, out, PixelType::U8x3).map_err(failed)?;
        let down = options.crop(0.0, top - first_row, f64::from(x.len), span_y);
        self.resizer.resize(&middle, &mut target, &down).map_err(failed)
    }
}

/// Pillow's nearest neighbour (`ImagingScaleAffine`): the source pixel under each centre.
fn nearest(rgb: &[u8], x: Window, y: Window, out: &mut [u8]) {
    let stride = x.source as usize * CHANNELS;
    let lines = out.chunks_exact_mut((x.len as usize * CHANNELS).max(1)).zip(positions(y));
    for (line, row) in lines {
        let source = &rgb[row * stride..(row + 1) * stride];
        for (pixel, column) in line.chunks_exact_mut(CHANNELS).zip(positions(x)) {
            pixel.copy_from_slice(&source[column * CHANNELS..(column + 1) * CHANNELS]);
        }
    }
}

fn positions(window: Window) -> impl Iterator<Item = usize> {
    let scale = window.scale();
    let last = (window.source as usize).saturating_sub(1);
    (0..window.len).map(move |at| {
        let centre = (window.first + u64::from(at)) as f64 + 0.5;
        #[expect(clippy::cast_sign_loss, reason = "a product of non-negative numbers")]
        let position = (centre * scale) as usize;
        position.min(last)
    })
}
