//! RGB pixels of any size → the square of the [`Geometry`], bit for bit as the `Image.resize` of Pillow 13.
//!
//! There are two passes with bytes in between, so their order shows, most where a kernel overshoots and is clipped.
//! Rows come first unless the height shrinks by more than twice as many pixels as the width (in Pillow since 13.0;
//! before, rows always came first). [`Resampler`] has the arithmetic of a pass.
//!
//! Memory: what lies between the passes is a band of rows, no more than are looked at.

use super::augment::{Crop, mirror};
use super::geometry::{Geometry, Window};
use super::resample::{Kernel, Resampler};
use super::scratch;
pub use crate::types::Resample;

/// Bytes for each pixel.
pub(super) const CHANNELS: usize = 3;

/// Steps that are added up one by one as Pillow does; only a sliver has more of them before the part that is kept.
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

    /// None for the one that is no convolution.
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

/// The resampler and its buffers, reused from image to image.
pub(super) struct Resizer {
    geometry: Geometry,
    resample: Resample,
    convolver: Resampler,
    kept: Vec<u8>,
    part: Vec<u8>,
}

impl Resizer {
    pub(super) fn new(geometry: Geometry, resample: Resample) -> Self {
        Self { geometry, resample, convolver: Resampler::default(), kept: Vec::new(), part: Vec::new() }
    }

    /// Bytes of its buffers.
    pub(super) fn held(&self) -> usize {
        let own = [&self.kept, &self.part].into_iter().map(scratch::held).sum::<usize>();
        own + self.convolver.held()
    }

    /// Lets go of what only an unusually large image needed.
    pub(super) fn trim(&mut self) {
        scratch::trim(&mut self.kept);
        scratch::trim(&mut self.part);
        self.convolver.trim();
    }

    /// Fills `out` (3·S·S bytes) from `rgb` (`3·width·height` bytes).
    pub(super) fn run(&mut self, rgb: &[u8], width: u32, height: u32, out: &mut [u8]) {
        let output = self.geometry.output_px();
        let (x, y) = self.geometry.windows(width, height);
        if x.fills(output) && y.fills(output) {
            self.fill(rgb, x, y, out);
            return;
        }
        out.fill(0);
        let (row, len) = (x.len as usize * CHANNELS, y.len as usize);
        if row == 0 || len == 0 {
            return;
        }
        let mut kept = std::mem::take(&mut self.kept);
        let part = scratch::grown(&mut kept, row * len);
        self.fill(rgb, x, y, part);
        let lines = out.chunks_exact_mut(output as usize * CHANNELS).skip(y.offset as usize);
        let left = x.offset as usize * CHANNELS;
        for (line, source) in lines.zip(part.chunks_exact(row)) {
            line[left..left + row].copy_from_slice(source);
        }
        self.kept = kept;
    }

    /// Fills `out` from a part of `rgb`, an image of this width: cut out, resized to the square whatever its aspect, and mirrored.
    pub(super) fn run_part(&mut self, rgb: &[u8], width: u32, crop: Crop, out: &mut [u8]) {
        let mut part = std::mem::take(&mut self.part);
        let pixels = scratch::grown(&mut part, crop.width as usize * crop.height as usize * CHANNELS);
        crop.copy(rgb, width, pixels);
        let size_px = self.geometry.output_px();
        let (x, y) = Geometry::Squash { size_px }.windows(crop.width, crop.height);
        self.fill(pixels, x, y, out);
        self.part = part;
        if crop.mirrored {
            mirror(out, size_px);
        }
    }

    fn fill(&mut self, rgb: &[u8], x: Window, y: Window, out: &mut [u8]) {
        let Some(kernel) = self.resample.kernel() else {
            nearest(rgb, x, y, out);
            return;
        };
        let convolver = &mut self.convolver;
        let (stride, row) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
        // Only the rows that the second pass looks at.
        let (top, bottom) = Resampler::reach(kernel, y);
        let rgb = &rgb[top as usize * stride..bottom as usize * stride];
        if x.is_whole_copy() {
            convolver.down(kernel, y, top, rgb, row, out);
        } else if y.is_whole_copy() {
            convolver.across(kernel, x, rgb, out);
        } else if columns_first(x, y) {
            convolver.down_across(kernel, x, y, top, rgb, out);
        } else {
            convolver.across_down(kernel, x, y, top, rgb, out);
        }
    }
}

/// The order of `ImagingResampleInner` in Pillow 13. It goes by pixels and not by ratios.
pub(super) fn columns_first(x: Window, y: Window) -> bool {
    let height = u64::from(y.source).saturating_sub(y.resized);
    let width = 2 * (i128::from(x.source) - i128::from(x.resized));
    height > 0 && i128::from(height) > width
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
    // The sum of the steps, with its rounding, decides where a centre falls on a border.
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

    /// The value of the kernel by its textbook formula.
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

    /// One channel of a line, in real arithmetic, rounded at the end. As in Pillow a source pixel counts if its
    /// centre lies under the kernel, rounded to whole pixels, which decides where a box ends on a centre.
    #[expect(clippy::cast_sign_loss, reason = "negative numbers become 0")]
    fn line(resample: Resample, source: &[f64], len: usize) -> Vec<f64> {
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

    /// Largest difference to real arithmetic, for an image that is one pixel wide or high.
    fn off_by(resample: Resample, rgb: &[u8], upright: bool, size: u32) -> f64 {
        let mut squarer = Resizer::new(Geometry::Squash { size_px: size }, resample);
        let mut out = vec![0; (size * size) as usize * CHANNELS];
        let long = (rgb.len() / CHANNELS) as u32;
        let (width, height) = if upright { (1, long) } else { (long, 1) };
        squarer.run(rgb, width, height, &mut out);
        let mut worst: f64 = 0.0;
        for channel in 0..CHANNELS {
            let source: Vec<f64> = rgb.iter().skip(channel).step_by(CHANNELS).map(|&s| s.into()).collect();
            let expected = line(resample, &source, size as usize);
            for (at, pixel) in out.chunks_exact(CHANNELS).enumerate() {
                let (row, column) = (at / size as usize, at % size as usize);
                let expected = expected[if upright { row } else { column }];
                worst = worst.max((f64::from(pixel[channel]) - expected).abs());
            }
        }
        worst
    }

    #[test]
    fn a_line_of_3000_pixels_is_resized_within_a_level() {
        let rgb = noise(3000 * CHANNELS, 5);
        for resample in KERNELS {
            for size in [64, 224, 384] {
                for upright in [false, true] {
                    let worst = off_by(resample, &rgb, upright, size);
                    assert!(worst <= 1.0, "{resample:?}, {size}, {upright}: {worst}");
                }
            }
        }
    }

    #[test]
    fn weights_that_do_not_fit_at_once_give_the_same() {
        let rgb = noise(700_000 * CHANNELS, 6);
        for size in [1, 2, 5] {
            assert!(off_by(Resample::Lanczos, &rgb, false, size) <= 1.0);
            assert!(off_by(Resample::Bilinear, &rgb, true, size) <= 1.0);
        }
    }

    #[test]
    fn the_order_is_that_of_pillow() {
        let order = |width, height, size_px| {
            let (x, y) = Geometry::Squash { size_px }.windows(width, height);
            columns_first(x, y)
        };
        // Each was tried with Pillow 13.0.0 on noise.
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
    fn a_centre_on_a_border_falls_where_the_sum_of_the_steps_puts_it() {
        // Where Pillow 13.0.0 takes another pixel than exact arithmetic does, for 300 columns.
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
    fn an_extreme_aspect_reads_nothing_outside_the_source() {
        let geometry = Geometry::ShortestEdge { edge_px: 256, crop_px: 224 };
        for long in [1_000_003, 39_999_983] {
            let (x, y) = geometry.windows(long, 1);
            for kernel in KERNELS.iter().filter_map(|resample| resample.kernel()) {
                let (first, end) = Resampler::reach(kernel, x);
                assert!(first < end && end <= long && end - first < 10);
                assert_eq!(Resampler::reach(kernel, y), (0, 1));
            }
        }
    }

    proptest! {
        #[test]
        fn one_colour_stays_that_colour(
            colour in any::<[u8; 3]>(),
            (width, height) in (1u32..400, 1u32..400),
            size in 1u32..90,
            resample in prop::sample::select(&KERNELS[..]),
        ) {
            let rgb = colour.repeat((width * height) as usize);
            let mut out = vec![0; (size * size) as usize * CHANNELS];
            Resizer::new(Geometry::Squash { size_px: size }, resample).run(&rgb, width, height, &mut out);
            prop_assert!(out.chunks_exact(CHANNELS).all(|pixel| pixel == colour));
        }
    }
}
