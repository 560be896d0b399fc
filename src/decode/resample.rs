//! Two-pass resampling of RGB bytes, bit for bit as Pillow's 8-bit `Image.resize`.
//!
//! The algorithm is that of `src/libImaging/Resample.c`. Weights are computed and normalised in double precision, and
//! rounded to 22 fractional bits. Products are summed up in 32-bit integers, and each sum is rounded half up and clipped
//! to a byte. Integers make the result independent of the machine.
//!
//! The second pass follows the first a few rows behind, so that the rows between them stay in the first-level cache.
//!
//! Memory: a table of at most 1 MiB of weights for each pass, a few small tables of recent sizes, and, between the passes,
//! the rows that one output row needs plus [`BAND_ROWS`].

mod passes;
mod weights;

use self::passes::{HorizontalPass, VerticalBlock, VerticalPass};
use self::weights::support;
use super::colour::CHANNELS;
use super::geometry::Window;
use super::row_group::ROWS;
use super::scratch;

pub(super) use self::weights::Kernel;

/// Rows that the first pass makes before the second one reads them.
const BAND_ROWS: usize = 4 * ROWS;

/// Weights and buffers of both passes, reused from image to image.
#[derive(Default)]
pub(super) struct Resampler {
    horizontal: HorizontalPass,
    vertical: VerticalPass,
    /// Rows between the passes.
    intermediate: Vec<u8>,
}

impl Resampler {
    /// Upper bound on the bytes between the passes, for an image of this size and a square of this side.
    pub(super) fn intermediate_bytes(width: u64, height: u64, side: u64) -> u64 {
        let band = BAND_ROWS as u64;
        // The horizontal pass is first where the height shrinks by no more than twice as many pixels as the width, or grows.
        // The widest kernel covers 6 source pixels for each that an output pixel stands for, and 2 at its ends.
        let tall = height.min(2 * width + side + 8);
        let kernel_rows = (6 * width.max(tall)).div_ceil(side.max(1)) + 2 + band + ROWS as u64;
        let horizontal_first = side * tall.min(kernel_rows);
        // The vertical pass is first only where the height shrinks at all.
        let vertical_first = width * band.min(height).min(side);
        CHANNELS as u64 * horizontal_first.max(vertical_first)
    }

    /// Bytes of all buffers.
    pub(super) fn retained_bytes(&self) -> usize {
        self.horizontal.retained_bytes()
            + self.vertical.weights.retained_bytes()
            + scratch::retained_bytes(&self.intermediate)
    }

    /// Frees memory that only an unusually large image needs.
    pub(super) fn shrink(&mut self) {
        self.horizontal.shrink();
        self.vertical.weights = weights::WeightCache::default();
        scratch::free_if_large(&mut self.intermediate);
    }

    /// Source positions that the output of the window depends on: first, and one past the last.
    pub(super) fn source_range(kernel: Kernel, window: Window) -> (u32, u32) {
        let (first, _) = support(kernel, window, 0);
        let (_, end) = support(kernel, window, window.len.saturating_sub(1));
        (first, end)
    }

    /// Resamples each row of `rgb`, `3·window.source` bytes, into one of `out`, `3·window.len` bytes.
    pub(super) fn resample_horizontal(&mut self, kernel: Kernel, window: Window, rgb: &[u8], out: &mut [u8]) {
        self.horizontal.run(kernel, window, rgb, out);
    }

    /// Resamples the columns of `rgb`, rows of `row_bytes` bytes of which the first is row `top` of the source, into the
    /// `window.len` rows of `out`.
    pub(super) fn resample_vertical(
        &mut self,
        kernel: Kernel,
        window: Window,
        top: u32,
        rgb: &[u8],
        row_bytes: usize,
        out: &mut [u8],
    ) {
        let mut out = out;
        let mut from = 0;
        while from < window.len {
            let table = self.vertical.weights.table(kernel, window, from);
            let outputs = 0..table.starts.len();
            let rows = out.split_off_mut(..outputs.end * row_bytes).unwrap_or_default();
            self.vertical.arch.dispatch(VerticalBlock::new(table, outputs, top as usize, rgb, row_bytes, rows));
            from = table.end;
        }
    }

    /// Resamples rows, then columns: `rgb` has rows of `3·x.source` bytes, of which the first is row `top` of the source;
    /// `out` has `y.len` rows of `3·x.len` bytes.
    pub(super) fn resample_horizontal_first(
        &mut self,
        kernel: Kernel,
        x: Window,
        y: Window,
        top: u32,
        rgb: &[u8],
        out: &mut [u8],
    ) {
        let (stride, row_bytes) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
        let (mut rgb, mut out) = (rgb, out);
        // Rows of the source that `intermediate` holds.
        let mut present = top as usize..top as usize;
        let bottom = present.end + rgb.len() / stride;
        let mut from = 0;
        while from < y.len {
            let table = self.vertical.weights.table(kernel, y, from);
            let taps = table.taps();
            let end = |output: usize| (table.starts[output] + taps).min(bottom);
            let mut done = 0;
            while done < table.starts.len() {
                let first = table.starts[done].clamp(present.start, present.end);
                let wanted = end(done).saturating_sub(present.end).max(BAND_ROWS).next_multiple_of(ROWS);
                let new = wanted.min(bottom - present.end);
                let (kept, last) = ((present.end - first) * row_bytes, present.end + new);
                let skipped = (first - present.start) * row_bytes;
                let rows = scratch::shift_and_grow(&mut self.intermediate, skipped, kept, kept + new * row_bytes);
                let next = rgb.split_off(..new * stride).unwrap_or_default();
                self.horizontal.run(kernel, x, next, &mut rows[kept..]);
                present = first..last;
                let to = (done + 1..table.starts.len()).find(|at| end(*at) > last).unwrap_or(table.starts.len());
                let out_rows = out.split_off_mut(..(to - done) * row_bytes).unwrap_or_default();
                self.vertical.arch.dispatch(VerticalBlock::new(table, done..to, first, rows, row_bytes, out_rows));
                done = to;
            }
            from = table.end;
        }
    }

    /// Resamples columns, then rows; otherwise as [`Self::resample_horizontal_first`].
    pub(super) fn resample_vertical_first(
        &mut self,
        kernel: Kernel,
        x: Window,
        y: Window,
        top: u32,
        rgb: &[u8],
        out: &mut [u8],
    ) {
        let (stride, row_bytes) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
        let mut out = out;
        let mut from = 0;
        while from < y.len {
            let table = self.vertical.weights.table(kernel, y, from);
            let outputs = table.starts.len();
            for done in (0..outputs).step_by(BAND_ROWS) {
                let to = outputs.min(done + BAND_ROWS);
                let rows = scratch::grow(&mut self.intermediate, (to - done) * stride);
                self.vertical.arch.dispatch(VerticalBlock::new(table, done..to, top as usize, rgb, stride, rows));
                let out_rows = out.split_off_mut(..(to - done) * row_bytes).unwrap_or_default();
                self.horizontal.run(kernel, x, rows, out_rows);
            }
            from = table.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::geometry::Geometry;
    use super::super::resize;
    use super::*;

    fn geometry() -> impl Strategy<Value = Geometry> {
        prop_oneof![
            (1u32..60).prop_map(|size_px| Geometry::Squash { size_px }),
            (1u32..60, 1u32..60).prop_map(|(size_px, crop_px)| Geometry::SquashThenCrop { size_px, crop_px }),
            (1u32..60, 1u32..60).prop_map(|(edge_px, crop_px)| Geometry::ShortestEdge { edge_px, crop_px }),
        ]
    }

    proptest! {
        #[test]
        fn bands_equal_whole_passes_in_less_memory(
            kernel in prop::sample::select(vec![Kernel::Box, Kernel::Bilinear, Kernel::Hamming, Kernel::Bicubic, Kernel::Lanczos]),
            (geometry, width, height) in (geometry(), 1u32..120, 1u32..400),
            transposed: bool,
            seed: u8,
        ) {
            let (width, height) = if transposed { (height, width) } else { (width, height) };
            let (x, y) = geometry.windows(width, height);
            let (top, bottom) = Resampler::source_range(kernel, y);
            let (stride, row) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
            let rgb: Vec<u8> = (0..(bottom - top) as usize * stride).map(|at| (at * at / 7 + usize::from(seed)) as u8).collect();
            let [mut whole_passes, mut horizontal_first, mut vertical_first] = [(); 3].map(|()| Resampler::default());
            let (mut whole, mut banded) = (vec![0; row * y.len as usize], vec![1; row * y.len as usize]);

            let mut middle = vec![0; (bottom - top) as usize * row];
            whole_passes.resample_horizontal(kernel, x, &rgb, &mut middle);
            whole_passes.resample_vertical(kernel, y, top, &middle, row, &mut whole);
            horizontal_first.resample_horizontal_first(kernel, x, y, top, &rgb, &mut banded);
            prop_assert_eq!(&whole, &banded);

            let mut middle = vec![0; y.len as usize * stride];
            whole_passes.resample_vertical(kernel, y, top, &rgb, stride, &mut middle);
            whole_passes.resample_horizontal(kernel, x, &middle, &mut whole);
            vertical_first.resample_vertical_first(kernel, x, y, top, &rgb, &mut banded);
            prop_assert_eq!(&whole, &banded);

            let used = if resize::is_vertical_first(x, y) { vertical_first } else { horizontal_first };
            let (bytes, side) = (used.intermediate.len() as u64, u64::from(geometry.output_px()));
            prop_assert!(bytes <= Resampler::intermediate_bytes(width.into(), height.into(), side), "{bytes} bytes");
        }

        #[test]
        fn slivers_need_no_more_than_whole_passes(short in 1u64..400, long in 1u64..100_000_000, side in 1u64..600) {
            for (width, height) in [(short, long), (long, short)] {
                let whole = 3 * (width * height.min(side)).max(side * height.min(2 * width + side + 8));
                prop_assert!(Resampler::intermediate_bytes(width, height, side) <= whole, "{width} × {height}");
            }
        }
    }
}
