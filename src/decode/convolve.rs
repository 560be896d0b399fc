//! One pass of a resampling over rows or columns of RGB bytes, bit for bit as Pillow's 8-bit `Image.resize`.
//!
//! The algorithm is that of `src/libImaging/Resample.c`: for each output position the weights are computed and
//! normalised in double precision, rounded to 22 fractional bits, and summed up in 32-bit integers; the sum is
//! rounded half up and clipped to a byte. Integers make the result independent of the machine. The loops are plain;
//! `pulp` only has them compiled once more for wider vectors and picks the version at run time.
//!
//! Memory: the weights of one pass over rows are computed for as many columns at a time as fit into
//! [`BLOCK_WEIGHTS`], or for one column; those of a pass over columns for one row at a time.

#![expect(clippy::inline_always, reason = "what `pulp` does not inline is compiled for the oldest CPU")]

use std::f64::consts::PI;

use pulp::{Arch, Simd, WithSimd};

use super::geometry::Window;
use super::resize::CHANNELS;
use super::scratch;
use super::stack::{ROWS, Shuffles, Stack, pack, unpack};

/// Fractional bits of a weight: 8 bits of the sample and 2 of overshoot leave 22 of 32.
const WEIGHT_BITS: u32 = 22;

/// One half, so that the shift rounds.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// Weights that are kept at once: 1 MiB, which an output row over 1,000 pixels wide does not reach.
const BLOCK_WEIGHTS: usize = 1 << 18;

/// Samples of an output row that are summed up side by side, in registers.
const LANES: usize = 32;

/// A function of the distance from the centre, 0 from its radius on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

impl Kernel {
    /// In source pixels at scale 1.
    const fn radius(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            // Open on one side, so that a sample on the border of two outputs counts once.
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            // Without this the two constants below would add up to a little more.
            Self::Hamming if distance == 0.0 => 1.0,
            Self::Hamming if distance < 1.0 => {
                // The two constants have single precision there, and 22 bits show it.
                let [rest, wave] = [0.54_f32, 0.46_f32].map(f64::from);
                sinc(distance) * (rest + wave * (PI * distance).cos())
            }
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0),
            Self::Lanczos if distance < 3.0 => sinc(distance) * sinc(distance / 3.0),
            Self::Hamming | Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
}

/// A few rows on their way through [`Across`].
#[derive(Default)]
struct Stacks {
    source: Vec<Stack>,
    target: Vec<Stack>,
}

/// The weights of a pass and what else it needs; reused.
pub(super) struct Convolver {
    arch: Arch,
    shuffles: Option<Shuffles>,
    /// For each column of a block the first source pixel under it.
    starts: Vec<usize>,
    /// For each column of a block as many weights as the widest has, zeros included.
    weights: Vec<i32>,
    /// What these are of, and the columns: images of one width follow each other.
    made: Option<(Kernel, Window, u32, u32)>,
    /// The weights of one row.
    row_weights: Vec<i32>,
    /// The weights before they are rounded.
    exact: Vec<f64>,
    stacks: Stacks,
}

impl Default for Convolver {
    fn default() -> Self {
        Self {
            arch: Arch::default(),
            shuffles: Shuffles::new(),
            starts: Vec::new(),
            weights: Vec::new(),
            made: None,
            row_weights: Vec::new(),
            exact: Vec::new(),
            stacks: Stacks::default(),
        }
    }
}

impl Convolver {
    /// Bytes of its buffers.
    pub(super) fn held(&self) -> usize {
        let weights = scratch::held(&self.starts) + scratch::held(&self.weights) + scratch::held(&self.row_weights);
        let Stacks { source, target } = &self.stacks;
        weights + scratch::held(&self.exact) + scratch::held(source) + scratch::held(target)
    }

    /// Lets go of what only an unusually large image needed.
    pub(super) fn trim(&mut self) {
        scratch::trim(&mut self.starts);
        scratch::trim(&mut self.weights);
        self.made = None;
        scratch::trim(&mut self.row_weights);
        scratch::trim(&mut self.exact);
        scratch::trim(&mut self.stacks.source);
        scratch::trim(&mut self.stacks.target);
    }

    /// The source positions that the kept part of the window looks at: first, and one past the last.
    pub(super) fn reach(kernel: Kernel, window: Window) -> (u32, u32) {
        let (first, _) = span(kernel, window, 0);
        let (_, end) = span(kernel, window, window.len.saturating_sub(1));
        (first, end)
    }

    /// Resamples each row of `rgb`, `3·window.source` bytes, into one of `out`, `3·window.len` bytes; as many
    /// rows as `out` has.
    pub(super) fn across(&mut self, kernel: Kernel, window: Window, rgb: &[u8], out: &mut [u8]) {
        let source = window.source as usize;
        let mut from = 0;
        while from < window.len {
            let to = self.block(kernel, window, from);
            self.arch.dispatch(Across {
                shuffles: self.shuffles,
                starts: &self.starts,
                weights: &self.weights,
                stacks: &mut self.stacks,
                rgb,
                stride: source * CHANNELS,
                out,
                width: window.len as usize * CHANNELS,
                skip: from as usize * CHANNELS,
            });
            from = to;
        }
    }

    /// The weights of the columns from `from` on; returns the first one that is left.
    fn block(&mut self, kernel: Kernel, window: Window, from: u32) -> u32 {
        if let Some((_, _, _, to)) = self.made.filter(|made| (made.0, made.1, made.2) == (kernel, window, from)) {
            return to;
        }
        // The widest has at most this many source pixels under it, and no more than there are.
        let widest = (from..window.len)
            .map(|at| {
                let (first, end) = span(kernel, window, at);
                end - first
            })
            .max()
            .unwrap_or(0);
        let taps = widest.max(1) as usize;
        let columns = (BLOCK_WEIGHTS / taps).max(1);
        let to = (from as usize + columns).min(window.len as usize) as u32;
        self.starts.clear();
        self.weights.clear();
        for at in from..to {
            let (first, _) = span(kernel, window, at);
            let start = (first as usize).min(window.source as usize - taps);
            let done = self.weights.len();
            self.weights.resize(done + first as usize - start, 0);
            push(&mut self.weights, &mut self.exact, kernel, window, at);
            self.weights.resize(done + taps, 0);
            self.starts.push(start);
        }
        self.made = Some((kernel, window, from, to));
        to
    }

    /// Resamples the columns of `rgb`, rows of `row` bytes of which the first is row `top` of the source, into the
    /// `window.len` rows of `out`.
    pub(super) fn down(&mut self, kernel: Kernel, window: Window, top: u32, rgb: &[u8], row: usize, out: &mut [u8]) {
        for (at, line) in (0..window.len).zip(out.chunks_exact_mut(row.max(1))) {
            self.row_weights.clear();
            push(&mut self.row_weights, &mut self.exact, kernel, window, at);
            let (first, end) = span(kernel, window, at);
            self.arch.dispatch(Down {
                weights: &self.row_weights,
                rows: &rgb[(first - top) as usize * row..(end - top) as usize * row],
                row,
                line,
            });
        }
    }
}

/// Appends the weights of one output position; `exact` is for them before they are rounded.
fn push(weights: &mut Vec<i32>, exact: &mut Vec<f64>, kernel: Kernel, window: Window, at: u32) {
    let narrowing = 1.0 / window.scale().max(1.0);
    let centre = centre(window, at);
    let (first, end) = span(kernel, window, at);
    exact.clear();
    exact.extend((first..end).map(|source| kernel.at((f64::from(source) - centre + 0.5) * narrowing)));
    let sum: f64 = exact.iter().sum();
    weights.extend(exact.iter().map(|weight| {
        let share = if sum == 0.0 { *weight } else { weight / sum };
        (share * f64::from(1 << WEIGHT_BITS) + 0.5_f64.copysign(share)) as i32
    }));
}

/// Where the middle of an output pixel lies in the source.
fn centre(window: Window, at: u32) -> f64 {
    ((window.first + u64::from(at)) as f64 + 0.5) * window.scale()
}

/// The source positions under the kernel at one output position: first, and one past the last.
#[expect(clippy::cast_sign_loss, reason = "negative numbers become 0, as they should")]
fn span(kernel: Kernel, window: Window, at: u32) -> (u32, u32) {
    let radius = kernel.radius() * window.scale().max(1.0);
    let centre = centre(window, at);
    let end = ((centre + radius + 0.5) as u32).min(window.source);
    let first = (centre - radius + 0.5) as u32;
    (first.min(end.saturating_sub(1)), end)
}

/// Sum → byte.
#[expect(clippy::cast_sign_loss, reason = "clamped")]
#[inline(always)]
fn byte(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// [`Convolver::across`] for the columns of `starts`, which begin at byte `skip` of each output row.
struct Across<'a> {
    shuffles: Option<Shuffles>,
    starts: &'a [usize],
    weights: &'a [i32],
    stacks: &'a mut Stacks,
    rgb: &'a [u8],
    stride: usize,
    out: &'a mut [u8],
    width: usize,
    skip: usize,
}

impl WithSimd for Across<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (columns, pixels) = (self.starts.len(), self.stride / CHANNELS);
        if columns == 0 {
            return;
        }
        let taps = self.weights.len() / columns;
        let Stacks { source, target } = self.stacks;
        source.resize(pixels, Stack::default());
        target.resize(columns, Stack::default());
        let groups = self.out.chunks_mut(self.width * ROWS).zip(self.rgb.chunks(self.stride * ROWS));
        for (lines, rows) in groups {
            pack(self.shuffles, rows, self.stride, source);
            // A known number saves a branch for each pixel; 300 pixels to 224 need 3.
            match taps {
                2 => weigh::<2>(target, source, self.starts, self.weights),
                3 => weigh::<3>(target, source, self.starts, self.weights),
                4 => weigh::<4>(target, source, self.starts, self.weights),
                5 => weigh::<5>(target, source, self.starts, self.weights),
                6 => weigh::<6>(target, source, self.starts, self.weights),
                7 => weigh::<7>(target, source, self.starts, self.weights),
                8 => weigh::<8>(target, source, self.starts, self.weights),
                _ => {
                    let columns = self.starts.iter().zip(self.weights.chunks_exact(taps));
                    for (stack, (start, weights)) in target.iter_mut().zip(columns) {
                        weighted(stack, &source[*start..*start + taps], weights);
                    }
                }
            }
            unpack(self.shuffles, target, lines, self.width, self.skip);
        }
    }
}

/// The pixels of a few rows, for a number of weights that is known to the compiler.
#[inline(always)]
fn weigh<const TAPS: usize>(target: &mut [Stack], source: &[Stack], starts: &[usize], weights: &[i32]) {
    let (weights, _) = weights.as_chunks::<TAPS>();
    for (stack, (start, weights)) in target.iter_mut().zip(starts.iter().zip(weights)) {
        weighted(stack, &source[*start..*start + TAPS], weights);
    }
}

#[inline(always)]
fn weighted(target: &mut Stack, source: &[Stack], weights: &[i32]) {
    let mut sums = [HALF; 4 * ROWS];
    for (stack, weight) in source.iter().zip(weights) {
        for (sum, sample) in sums.iter_mut().zip(stack.as_flattened()) {
            *sum = sum.wrapping_add(i32::from(*sample).wrapping_mul(*weight));
        }
    }
    // Not `map`, which the compiler leaves in scalars.
    target.as_flattened_mut().iter_mut().zip(sums).for_each(|(sample, sum)| *sample = byte(sum));
}

/// [`Convolver::down`] for one output row.
struct Down<'a> {
    weights: &'a [i32],
    rows: &'a [u8],
    row: usize,
    line: &'a mut [u8],
}

impl WithSimd for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (blocks, rest) = self.line.as_chunks_mut::<LANES>();
        let done = blocks.len() * LANES;
        for (block, at) in blocks.iter_mut().zip((0..).step_by(LANES)) {
            let mut sums = [HALF; LANES];
            for (source, weight) in self.rows.chunks_exact(self.row).zip(self.weights) {
                let samples = &source[at..at + LANES];
                for (sum, sample) in sums.iter_mut().zip(samples) {
                    *sum = sum.wrapping_add(i32::from(*sample).wrapping_mul(*weight));
                }
            }
            // Not `map`, which the compiler leaves in scalars.
            block.iter_mut().zip(sums).for_each(|(sample, sum)| *sample = byte(sum));
        }
        for (at, target) in (done..).zip(rest) {
            let column = self.rows.chunks_exact(self.row).map(|source| source[at]);
            *target = byte(
                column
                    .zip(self.weights)
                    .fold(HALF, |sum, (sample, weight)| sum.wrapping_add(i32::from(sample).wrapping_mul(*weight))),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_exactly_one_at_its_centre() {
        // Two single-precision constants add up to 1.00000003, which showed in a sample of 339 pixels made 83.
        for kernel in [Kernel::Box, Kernel::Bilinear, Kernel::Hamming, Kernel::Bicubic, Kernel::Lanczos] {
            assert_eq!(kernel.at(0.0).to_bits(), 1.0_f64.to_bits(), "{kernel:?}");
        }
    }
}
