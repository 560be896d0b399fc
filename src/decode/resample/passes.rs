//! One pass of a resampling: along rows, or along columns.
//!
//! `pulp` compiles the loops once more for wider vectors and chooses the version at run time.

#![expect(clippy::inline_always, reason = "code that `pulp` does not inline is compiled for the oldest CPU")]

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::weights::{Kernel, WeightCache, WeightTable};
use crate::decode::colour::CHANNELS;
use crate::decode::geometry::Window;
use crate::decode::row_group::{HALF, ROWS, RowGroup, Vectors, accumulate, convolve_groups, pack, round, unpack};
use crate::decode::scratch;

/// Samples of an output row that are summed up together, in registers.
const LANES: usize = 32;

/// Buffers for a few rows of the horizontal pass, pixel by pixel.
#[derive(Default)]
struct GroupBuffers {
    source: Vec<RowGroup>,
    target: Vec<RowGroup>,
}

/// Resamples rows to another length.
pub(super) struct HorizontalPass {
    arch: Arch,
    vectors: Option<Vectors>,
    weights: WeightCache,
    groups: GroupBuffers,
}

impl Default for HorizontalPass {
    fn default() -> Self {
        let (weights, groups) = (WeightCache::default(), GroupBuffers::default());
        Self { arch: Arch::default(), vectors: Vectors::new(), weights, groups }
    }
}

impl HorizontalPass {
    /// Resamples each row of `rgb`, `3·window.source` bytes, into one of `out`, `3·window.len` bytes.
    pub(super) fn run(&mut self, kernel: Kernel, window: Window, rgb: &[u8], out: &mut [u8]) {
        let mut from = 0;
        while from < window.len {
            let table = self.weights.table(kernel, window, from);
            self.arch.dispatch(HorizontalBlock {
                vectors: self.vectors,
                starts: &table.starts,
                weights: &table.weights,
                groups: &mut self.groups,
                rgb,
                stride: window.source as usize * CHANNELS,
                out,
                out_stride: window.len as usize * CHANNELS,
                skip: from as usize * CHANNELS,
            });
            from = table.end;
        }
    }

    pub(super) fn retained_bytes(&self) -> usize {
        let GroupBuffers { source, target } = &self.groups;
        self.weights.retained_bytes() + scratch::retained_bytes(source) + scratch::retained_bytes(target)
    }

    /// Frees the weights and large buffers.
    pub(super) fn shrink(&mut self) {
        self.weights = WeightCache::default();
        scratch::free_if_large(&mut self.groups.source);
        scratch::free_if_large(&mut self.groups.target);
    }
}

/// The columns of one weight table, which begin at byte `skip` of each output row.
struct HorizontalBlock<'a> {
    vectors: Option<Vectors>,
    starts: &'a [usize],
    weights: &'a [i32],
    groups: &'a mut GroupBuffers,
    rgb: &'a [u8],
    stride: usize,
    out: &'a mut [u8],
    out_stride: usize,
    skip: usize,
}

impl WithSimd for HorizontalBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (columns, pixels) = (self.starts.len(), self.stride / CHANNELS);
        if columns == 0 {
            return;
        }
        let GroupBuffers { source, target } = self.groups;
        source.resize(pixels, RowGroup::default());
        target.resize(columns, RowGroup::default());
        let groups = self.out.chunks_mut(self.out_stride * ROWS).zip(self.rgb.chunks(self.stride * ROWS));
        for (out_rows, rows) in groups {
            pack(self.vectors, rows, self.stride, source);
            convolve_groups(self.vectors, source, self.starts, self.weights, target);
            unpack(self.vectors, target, out_rows, self.out_stride, self.skip);
        }
    }
}

/// Resamples columns to another length.
#[derive(Default)]
pub(super) struct VerticalPass {
    pub(super) arch: Arch,
    pub(super) weights: WeightCache,
}

/// Some output rows of one weight table, made of `rgb`, whose first row is row `top` of the source.
pub(super) struct VerticalBlock<'a> {
    starts: &'a [usize],
    weights: &'a [i32],
    top: usize,
    rgb: &'a [u8],
    row_bytes: usize,
    out: &'a mut [u8],
}

impl<'a> VerticalBlock<'a> {
    pub(super) fn new(
        table: &'a WeightTable,
        outputs: Range<usize>,
        top: usize,
        rgb: &'a [u8],
        row_bytes: usize,
        out: &'a mut [u8],
    ) -> Self {
        let taps = table.taps();
        let weights = &table.weights[outputs.start * taps..outputs.end * taps];
        Self { starts: &table.starts[outputs], weights, top, rgb, row_bytes: row_bytes.max(1), out }
    }
}

impl WithSimd for VerticalBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let taps = (self.weights.len() / self.starts.len().max(1)).max(1);
        let weights = self.weights.chunks_exact(taps);
        for ((out, start), weights) in self.out.chunks_exact_mut(self.row_bytes).zip(self.starts).zip(weights) {
            // Zeros at the ends may stand for rows that are not there.
            let Some(first) = weights.iter().position(|weight| *weight != 0) else {
                out.fill(0);
                continue;
            };
            let end = weights.iter().rposition(|weight| *weight != 0).map_or(taps, |last| last + 1);
            let rows = &self.rgb[(start + first - self.top) * self.row_bytes..];
            let weights = &weights[first..end];
            match weights.len() {
                1 => convolve_rows::<1>(out, rows, weights),
                2 => convolve_rows::<2>(out, rows, weights),
                3 => convolve_rows::<3>(out, rows, weights),
                4 => convolve_rows::<4>(out, rows, weights),
                5 => convolve_rows::<5>(out, rows, weights),
                _ => convolve_any_rows(out, rows, weights),
            }
        }
    }
}

/// Fills an output row from the first of `rows`, for a number of weights that the compiler knows.
#[inline(always)]
fn convolve_rows<const TAPS: usize>(out: &mut [u8], rows: &[u8], weights: &[i32]) {
    let (Some(weights), row_bytes) = (weights.first_chunk::<TAPS>(), out.len()) else { return };
    let mut sources = [&rows[..0]; TAPS];
    sources.iter_mut().zip(rows.chunks_exact(row_bytes)).for_each(|(source, row)| *source = row);
    let (blocks, rest) = out.as_chunks_mut::<LANES>();
    let mut parts: [&[[u8; LANES]]; TAPS] = [&[]; TAPS];
    parts.iter_mut().zip(sources).for_each(|(part, row)| *part = &row.as_chunks().0[..blocks.len()]);
    for (number, block) in blocks.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (part, weight) in parts.iter().zip(weights) {
            accumulate(&mut sums, &part[number], *weight);
        }
        round(&sums, block);
    }
    convolve_row_end(rest, rows, row_bytes, weights);
}

/// Fills an output row for any number of weights.
#[inline(always)]
fn convolve_any_rows(out: &mut [u8], rows: &[u8], weights: &[i32]) {
    let row_bytes = out.len();
    let (blocks, rest) = out.as_chunks_mut::<LANES>();
    for (block, at) in blocks.iter_mut().zip((0..).step_by(LANES)) {
        let mut sums = [HALF; LANES];
        for (source, weight) in rows.chunks_exact(row_bytes).zip(weights) {
            accumulate(&mut sums, &source[at..at + LANES], *weight);
        }
        round(&sums, block);
    }
    convolve_row_end(rest, rows, row_bytes, weights);
}

/// Fills the last samples of an output row, fewer than [`LANES`].
#[inline(always)]
fn convolve_row_end(rest: &mut [u8], rows: &[u8], row_bytes: usize, weights: &[i32]) {
    let (mut sums, done) = ([HALF; LANES], row_bytes - rest.len());
    for (source, weight) in rows.chunks_exact(row_bytes).zip(weights) {
        accumulate(&mut sums, &source[done..], *weight);
    }
    round(&sums, rest);
}
