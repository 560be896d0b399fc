//! RGB pixels of any size → the square of the [`Geometry`], bit for bit as the `Image.resize` of Pillow 13.
//!
//! Samples are rounded to bytes between the two passes, so their order shows, most where a kernel overshoots and is
//! clipped. The horizontal pass is first unless the height shrinks by more than twice as many pixels as the width. (Before
//! Pillow 13.0 it always was.) [`Resampler`] has the arithmetic of a pass.

use super::augment::{Crop, mirror_rows};
use super::colour::CHANNELS;
use super::geometry::{Geometry, Window};
use super::resample::{Kernel, Resampler};
use super::scratch;
pub use crate::types::Resample;

/// Upper bound on the steps that are added up one by one, as Pillow does. Only a sliver has more of them before its crop.
const MAX_STEPS: u64 = 1 << 22;

impl Resample {
    /// Name in fingerprints of runs. It never changes, so that a renamed variant keeps existing runs valid.
    pub fn fingerprint_name(self) -> &'static str {
        match self {
            Self::Nearest => "Nearest",
            Self::Lanczos => "Lanczos",
            Self::Bilinear => "Bilinear",
            Self::Bicubic => "Bicubic",
            Self::Box => "Box",
            Self::Hamming => "Hamming",
        }
    }

    /// Returns the kernel with this code in a `preprocessor_config.json` (`PIL.Image.Resampling`).
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

    /// Returns `None` for nearest neighbour, which is not a convolution.
    const fn kernel(self) -> Option<Kernel> {
        match self {
            Self::Nearest => None,
            Self::Lanczos => Some(Kernel::Lanczos),
            Self::Bilinear => Some(Kernel::Bilinear),
            Self::Bicubic => Some(Kernel::Bicubic),
            Self::Box => Some(Kernel::Box),
            Self::Hamming => Some(Kernel::Hamming),
        }
    }
}

/// A resampler and its buffers, reused from image to image.
pub(super) struct Resizer {
    geometry: Geometry,
    resample: Resample,
    resampler: Resampler,
    /// The resized image where the output surrounds it with zeros.
    unpadded: Vec<u8>,
    /// A random crop of the source.
    crop: Vec<u8>,
}

impl Resizer {
    pub(super) fn new(geometry: Geometry, resample: Resample) -> Self {
        Self { geometry, resample, resampler: Resampler::default(), unpadded: Vec::new(), crop: Vec::new() }
    }

    /// Bytes of all buffers.
    pub(super) fn retained_bytes(&self) -> usize {
        let own = [&self.unpadded, &self.crop].into_iter().map(scratch::retained_bytes).sum::<usize>();
        own + self.resampler.retained_bytes()
    }

    /// Frees memory that only an unusually large image needs.
    pub(super) fn shrink(&mut self) {
        scratch::free_if_large(&mut self.unpadded);
        scratch::free_if_large(&mut self.crop);
        self.resampler.shrink();
    }

    /// Fills `out` (3·S·S bytes) from `rgb` (`3·width·height` bytes).
    pub(super) fn resize(&mut self, rgb: &[u8], width: u32, height: u32, out: &mut [u8]) {
        let output = self.geometry.output_px();
        let (x, y) = self.geometry.windows(width, height);
        if x.fills(output) && y.fills(output) {
            self.resample(rgb, x, y, out);
            return;
        }
        out.fill(0);
        let (row_bytes, rows) = (x.len as usize * CHANNELS, y.len as usize);
        if row_bytes == 0 || rows == 0 {
            return;
        }
        let mut buffer = std::mem::take(&mut self.unpadded);
        let resized = scratch::grow(&mut buffer, row_bytes * rows);
        self.resample(rgb, x, y, resized);
        let out_rows = out.chunks_exact_mut(output as usize * CHANNELS).skip(y.offset as usize);
        let left = x.offset as usize * CHANNELS;
        for (out_row, row) in out_rows.zip(resized.chunks_exact(row_bytes)) {
            out_row[left..left + row_bytes].copy_from_slice(row);
        }
        self.unpadded = buffer;
    }

    /// Fills `out` from a crop of `rgb`, an image of this width, resized to the square whatever its aspect.
    pub(super) fn resize_crop(&mut self, rgb: &[u8], width: u32, crop: Crop, out: &mut [u8]) {
        let mut buffer = std::mem::take(&mut self.crop);
        let pixels = scratch::grow(&mut buffer, crop.width as usize * crop.height as usize * CHANNELS);
        crop.copy_pixels(rgb, width, pixels);
        let size_px = self.geometry.output_px();
        let (x, y) = Geometry::Squash { size_px }.windows(crop.width, crop.height);
        self.resample(pixels, x, y, out);
        self.crop = buffer;
        if crop.mirrored {
            mirror_rows(out, size_px);
        }
    }

    fn resample(&mut self, rgb: &[u8], x: Window, y: Window, out: &mut [u8]) {
        let Some(kernel) = self.resample.kernel() else {
            resample_nearest(rgb, x, y, out);
            return;
        };
        let resampler = &mut self.resampler;
        let (stride, row_bytes) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
        // Only the rows that the output depends on.
        let (top, bottom) = Resampler::source_range(kernel, y);
        let rgb = &rgb[top as usize * stride..bottom as usize * stride];
        if x.is_identity() {
            resampler.resample_vertical(kernel, y, top, rgb, row_bytes, out);
        } else if y.is_identity() {
            resampler.resample_horizontal(kernel, x, rgb, out);
        } else if is_vertical_first(x, y) {
            resampler.resample_vertical_first(kernel, x, y, top, rgb, out);
        } else {
            resampler.resample_horizontal_first(kernel, x, y, top, rgb, out);
        }
    }
}

/// Order of `ImagingResampleInner` in Pillow 13, which depends on differences in pixels and not on ratios.
pub(super) fn is_vertical_first(x: Window, y: Window) -> bool {
    let height = u64::from(y.source).saturating_sub(y.resized);
    let width = 2 * (i128::from(x.source) - i128::from(x.resized));
    height > 0 && i128::from(height) > width
}

/// Pillow's nearest neighbour (`ImagingScaleAffine`): the source pixel under each centre.
fn resample_nearest(rgb: &[u8], x: Window, y: Window, out: &mut [u8]) {
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
    // The rounding of the sum decides on which side of a border a centre falls.
    let mut centre = if window.first <= MAX_STEPS {
        (0..window.first).fold(0.5 * scale, |centre, _| centre + scale)
    } else {
        (window.first as f64 + 0.5) * scale
    };
    (0..window.len).map(move |_| {
        #[expect(clippy::cast_sign_loss, reason = "a sum of positive numbers")]
        let position = centre as usize;
        centre += scale;
        position.min(last)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KERNELS: [Resample; 5] =
        [Resample::Lanczos, Resample::Bilinear, Resample::Bicubic, Resample::Box, Resample::Hamming];

    fn noise(len: usize, seed: u32) -> Vec<u8> {
        let step = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((*state >> 24) as u8)
        };
        std::iter::repeat_n((), len).scan(seed, |state, ()| step(state)).collect()
    }

    /// Value of a kernel by its textbook formula.
    fn kernel(resample: Resample, x: f64) -> f64 {
        use std::f64::consts::PI;
        let sinc = |x: f64| {
            if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
        };
        let d = x.abs();
        match resample {
            Resample::Lanczos if d < 3.0 => sinc(x) * sinc(x / 3.0),
            Resample::Bilinear if d < 1.0 => 1.0 - d,
            Resample::Bicubic if d < 1.0 => 1.5 * d.powi(3) - 2.5 * d.powi(2) + 1.0,
            Resample::Bicubic if d < 2.0 => -0.5 * d.powi(3) + 2.5 * d.powi(2) - 4.0 * d + 2.0,
            Resample::Box if x > -0.5 && x <= 0.5 => 1.0,
            Resample::Hamming if d < 1.0 => sinc(x) * (0.54 + 0.46 * (PI * x).cos()),
            _ => 0.0,
        }
    }

    /// Resizes one channel of a line in real arithmetic, rounded at the end. As in Pillow, a source pixel counts if its centre
    /// lies under the kernel, rounded to whole pixels, which matters where a box ends on a centre.
    #[expect(clippy::cast_sign_loss, reason = "negative numbers become 0")]
    fn resize_line(resample: Resample, source: &[f64], len: usize) -> Vec<f64> {
        let scale = source.len() as f64 / len as f64;
        let narrowing = 1.0 / scale.max(1.0);
        let radius = match resample {
            Resample::Nearest | Resample::Box => 0.5,
            Resample::Bilinear | Resample::Hamming => 1.0,
            Resample::Bicubic => 2.0,
            Resample::Lanczos => 3.0,
        } / narrowing;
        let at = |out: usize| {
            let centre = (out as f64 + 0.5) * scale;
            let end = ((centre + radius + 0.5) as usize).min(source.len());
            let (sum, total) = ((centre - radius + 0.5) as usize..end)
                .map(|k| (source[k], kernel(resample, (k as f64 - centre + 0.5) * narrowing)))
                .fold((0.0, 0.0), |(sum, total), (s, w)| (sum + w * s, total + w));
            (sum / total).clamp(0.0, 255.0).round()
        };
        (0..len).map(at).collect()
    }

    /// Largest difference from real arithmetic, for an image that is one pixel wide or high.
    fn largest_error(resample: Resample, rgb: &[u8], upright: bool, size: u32) -> f64 {
        let mut resizer = Resizer::new(Geometry::Squash { size_px: size }, resample);
        let mut out = vec![0; (size * size) as usize * CHANNELS];
        let long = (rgb.len() / CHANNELS) as u32;
        let (width, height) = if upright { (1, long) } else { (long, 1) };
        resizer.resize(rgb, width, height, &mut out);
        let mut worst: f64 = 0.0;
        for channel in 0..CHANNELS {
            let source: Vec<f64> = rgb.iter().skip(channel).step_by(CHANNELS).map(|&s| s.into()).collect();
            let expected = resize_line(resample, &source, size as usize);
            for (at, pixel) in out.chunks_exact(CHANNELS).enumerate() {
                let (row, column) = (at / size as usize, at % size as usize);
                let expected = expected[if upright { row } else { column }];
                worst = worst.max((f64::from(pixel[channel]) - expected).abs());
            }
        }
        worst
    }

    #[test]
    fn long_line_is_resized_within_a_level() {
        let rgb = noise(3000 * CHANNELS, 5);
        for resample in KERNELS {
            for size in [64, 224, 384] {
                for upright in [false, true] {
                    let worst = largest_error(resample, &rgb, upright, size);
                    assert!(worst <= 1.0, "{resample:?}, {size}, {upright}: {worst}");
                }
            }
        }
    }

    #[test]
    fn several_weight_tables_are_exact() {
        let rgb = noise(700_000 * CHANNELS, 6);
        for size in [1, 2, 5] {
            assert!(largest_error(Resample::Lanczos, &rgb, false, size) <= 1.0);
            assert!(largest_error(Resample::Bilinear, &rgb, true, size) <= 1.0);
        }
    }

    #[test]
    fn pass_order_is_that_of_pillow() {
        let order = |width, height, size_px| {
            let (x, y) = Geometry::Squash { size_px }.windows(width, height);
            is_vertical_first(x, y)
        };
        // Each order was found with Pillow 13.0.0 on noise.
        for (width, height, size, expected) in [
            (300, 225, 224, false),
            (300, 400, 224, true),
            (600, 800, 224, false),
            (181, 200, 224, false),
            (181, 230, 224, true),
            (215, 357, 64, false),
            (215, 357, 384, false),
            (500, 2000, 224, true),
        ] {
            assert_eq!(order(width, height, size), expected, "{width} × {height} → {size}");
        }
    }

    #[test]
    fn nearest_sums_steps_as_pillow_does() {
        // Columns of 300 for which Pillow 13.0.0 chooses another pixel than exact arithmetic does.
        let shifted: [(u32, &[(usize, usize)]); 3] = [
            (288, &[(87, 83), (112, 107), (137, 131), (162, 155)]),
            (296, &[(112, 110)]),
            (304, &[(37, 37), (187, 189), (262, 265)]),
        ];
        for (source, expected) in shifted {
            let (x, _) = Geometry::Squash { size_px: 300 }.windows(source, 1);
            let found: Vec<(usize, usize)> = positions(x)
                .enumerate()
                .filter(|&(at, position)| position != (2 * at + 1) * source as usize / 600)
                .collect();
            assert_eq!(found, expected, "{source} → 300");
        }
    }

    #[test]
    fn extreme_aspect_stays_inside_the_source() {
        let geometry = Geometry::ShortestEdge { edge_px: 256, crop_px: 224 };
        for long in [1_000_003, 39_999_983] {
            let (x, y) = geometry.windows(long, 1);
            for kernel in KERNELS.iter().filter_map(|resample| resample.kernel()) {
                let (first, end) = Resampler::source_range(kernel, x);
                assert!(first < end && end <= long && end - first < 10);
                assert_eq!(Resampler::source_range(kernel, y), (0, 1));
            }
        }
    }

    proptest! {
        #[test]
        fn uniform_colour_is_kept(
            colour in any::<[u8; 3]>(),
            (width, height) in (1u32..400, 1u32..400),
            size in 1u32..90,
            resample in prop::sample::select(&KERNELS[..]),
        ) {
            let rgb = colour.repeat((width * height) as usize);
            let mut out = vec![0; (size * size) as usize * CHANNELS];
            Resizer::new(Geometry::Squash { size_px: size }, resample).resize(&rgb, width, height, &mut out);
            prop_assert!(out.chunks_exact(CHANNELS).all(|pixel| pixel == colour));
        }
    }
}
