//! The two passes of a resampling over rows and columns of RGB bytes, bit for bit as Pillow's 8-bit `Image.resize`.
//!
//! The algorithm is that of `src/libImaging/Resample.c`: for each output position the weights are computed and
//! normalised in double precision, rounded to 22 fractional bits, and summed up in 32-bit integers; the sum is
//! rounded half up and clipped to a byte. Integers make the result independent of the machine: `pulp` has the loops
//! compiled once more for wider vectors, and picks the version at run time.
//!
//! The second pass follows the first a few rows behind, so what lies between them stays in the first cache.
//!
//! Memory: the weights of a pass are computed for as many outputs at a time as fit into [`BLOCK_WEIGHTS`], or for one output. Those
//! of the last few windows that need less are kept: images are of few sizes. Between the passes are as many rows as an output row
//! is made of, and [`BAND_ROWS`].

#![expect(clippy::inline_always, reason = "what `pulp` does not inline is compiled for the oldest CPU")]

use std::f64::consts::PI;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::geometry::Window;
use super::resize::CHANNELS;
use super::row_group::{HALF, ROWS, RowGroup, Vectors, WEIGHT_BITS, add, pack, round, unpack, weigh};
use super::scratch;

/// Weights that are kept at once: 1 MiB, which an output row over 1,000 pixels wide does not reach.
const BLOCK_WEIGHTS: usize = 1 << 18;

/// Windows whose weights are kept, and weights of one of them, at most.
const KEPT_WINDOWS: usize = 8;
const KEPT_WEIGHTS: usize = 1 << 13;

/// Rows that a pass makes before the next one takes them.
const BAND_ROWS: usize = 4 * ROWS;

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
    source: Vec<RowGroup>,
    target: Vec<RowGroup>,
}

/// The weights of some outputs of a window.
#[derive(Default)]
struct Table {
    /// Which: kernel, window, the first output, and the first one that is left.
    of: Option<(Kernel, Window, u32, u32)>,
    /// For each output the first source position under it.
    starts: Vec<usize>,
    /// For each output as many weights as the widest has, zeros included.
    weights: Vec<i32>,
}

impl Table {
    fn is_of(&self, kernel: Kernel, window: Window, from: u32) -> bool {
        self.of.is_some_and(|of| (of.0, of.1, of.2) == (kernel, window, from))
    }

    /// Those of the outputs from `from` on that fit; `exact` is for them before they are rounded.
    fn fill(&mut self, exact: &mut Vec<f64>, kernel: Kernel, window: Window, from: u32) {
        let (taps, to) = block(kernel, window, from);
        self.starts.clear();
        self.weights.clear();
        for at in from..to {
            let (first, _) = span(kernel, window, at);
            let start = (first as usize).min(window.source as usize - taps);
            let done = self.weights.len();
            self.weights.resize(done + first as usize - start, 0);
            push(&mut self.weights, exact, kernel, window, at);
            self.weights.resize(done + taps, 0);
            self.starts.push(start);
        }
        self.of = Some((kernel, window, from, to));
    }

    /// The first output that is left.
    fn end(&self) -> u32 {
        self.of.map_or(0, |(.., to)| to)
    }

    /// Weights of an output.
    fn taps(&self) -> usize {
        (self.weights.len() / self.starts.len().max(1)).max(1)
    }
}

/// Tables that were made lately.
#[derive(Default)]
struct Tables {
    large: Table,
    kept: [Table; KEPT_WINDOWS],
    /// The one made last of them.
    newest: usize,
    exact: Vec<f64>,
}

impl Tables {
    /// The weights of the outputs from `from` on, of as many as are kept at once.
    fn table(&mut self, kernel: Kernel, window: Window, from: u32) -> &Table {
        if let Some(at) = self.kept.iter().position(|table| table.is_of(kernel, window, from)) {
            return &self.kept[at];
        }
        let (taps, to) = block(kernel, window, from);
        let whole = from == 0 && to == window.len;
        let table = if whole && taps * to as usize <= KEPT_WEIGHTS {
            self.newest = (self.newest + 1) % KEPT_WINDOWS;
            &mut self.kept[self.newest]
        } else {
            &mut self.large
        };
        if !table.is_of(kernel, window, from) {
            table.fill(&mut self.exact, kernel, window, from);
        }
        table
    }

    /// Bytes of its buffers.
    fn held(&self) -> usize {
        let all = self.kept.iter().chain([&self.large]);
        all.map(|one| scratch::held(&one.starts) + scratch::held(&one.weights)).sum::<usize>()
            + scratch::held(&self.exact)
    }
}

/// The weights of both passes and what else they need; reused.
#[derive(Default)]
pub(super) struct Resampler {
    rows: RowPass,
    columns: ColumnPass,
    /// What lies between the passes.
    middle: Vec<u8>,
}

/// Rows → rows of another length.
struct RowPass {
    arch: Arch,
    vectors: Option<Vectors>,
    tables: Tables,
    stacks: Stacks,
}

impl Default for RowPass {
    fn default() -> Self {
        let (tables, stacks) = (Tables::default(), Stacks::default());
        Self { arch: Arch::default(), vectors: Vectors::new(), tables, stacks }
    }
}

/// Rows → fewer or more rows.
#[derive(Default)]
struct ColumnPass {
    arch: Arch,
    tables: Tables,
}

impl Resampler {
    /// Bytes between the passes, at most, for an image of this size and a square of this side.
    pub(super) fn between_bytes(width: u64, height: u64, side: u64) -> u64 {
        let band = BAND_ROWS as u64;
        // Rows come first where the height shrinks by no more than twice as many pixels as the width. Under the widest kernel are 6
        // source pixels for each that an output pixel stands for, and 2 at its ends.
        let tall = height.min(2 * width + side);
        let across_down = side * tall.min((6 * width.max(tall)).div_ceil(side.max(1)) + 2 + band + ROWS as u64);
        // Columns come first only where it shrinks at all.
        let down_across = width * band.min(height).min(side);
        CHANNELS as u64 * across_down.max(down_across)
    }

    /// Bytes of its buffers.
    pub(super) fn held(&self) -> usize {
        let Stacks { source, target } = &self.rows.stacks;
        let between = scratch::held(source) + scratch::held(target) + scratch::held(&self.middle);
        self.rows.tables.held() + self.columns.tables.held() + between
    }

    /// Lets go of what only an unusually large image needed.
    pub(super) fn trim(&mut self) {
        (self.rows.tables, self.columns.tables) = (Tables::default(), Tables::default());
        scratch::trim(&mut self.rows.stacks.source);
        scratch::trim(&mut self.rows.stacks.target);
        scratch::trim(&mut self.middle);
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
        self.rows.run(kernel, window, rgb, out);
    }

    /// Resamples the columns of `rgb`, rows of `row` bytes of which the first is row `top` of the source, into the
    /// `window.len` rows of `out`.
    pub(super) fn down(&mut self, kernel: Kernel, window: Window, top: u32, rgb: &[u8], row: usize, out: &mut [u8]) {
        let mut out = out;
        let mut from = 0;
        while from < window.len {
            let table = self.columns.tables.table(kernel, window, from);
            let lines = out.split_off_mut(..table.starts.len() * row).unwrap_or_default();
            self.columns.arch.dispatch(Down::new(table, 0..table.starts.len(), top as usize, rgb, row, lines));
            from = table.end();
        }
    }

    /// Rows, then columns: rows of `3·x.source` bytes, of which the first is row `top` of the source, into `y.len` rows of
    /// `3·x.len` bytes.
    pub(super) fn across_down(&mut self, kernel: Kernel, x: Window, y: Window, top: u32, rgb: &[u8], out: &mut [u8]) {
        let (stride, row) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
        let (mut rgb, mut out) = (rgb, out);
        // Rows of the source that are in `middle`.
        let mut there = top as usize..top as usize;
        let bottom = there.end + rgb.len() / stride;
        let mut from = 0;
        while from < y.len {
            let table = self.columns.tables.table(kernel, y, from);
            let taps = table.taps();
            let end = |at: usize| (table.starts[at] + taps).min(bottom);
            let mut done = 0;
            while done < table.starts.len() {
                let first = table.starts[done].clamp(there.start, there.end);
                let asked = end(done).saturating_sub(there.end).max(BAND_ROWS).next_multiple_of(ROWS);
                let new = asked.min(bottom - there.end);
                let (kept, last) = ((there.end - first) * row, there.end + new);
                let middle = scratch::kept(&mut self.middle, kept + new * row, (first - there.start) * row, kept);
                let next = rgb.split_off(..new * stride).unwrap_or_default();
                self.rows.run(kernel, x, next, &mut middle[kept..]);
                there = first..last;
                let to = (done + 1..table.starts.len()).find(|at| end(*at) > last).unwrap_or(table.starts.len());
                let lines = out.split_off_mut(..(to - done) * row).unwrap_or_default();
                self.columns.arch.dispatch(Down::new(table, done..to, first, middle, row, lines));
                done = to;
            }
            from = table.end();
        }
    }

    /// Columns, then rows; as [`Self::across_down`].
    pub(super) fn down_across(&mut self, kernel: Kernel, x: Window, y: Window, top: u32, rgb: &[u8], out: &mut [u8]) {
        let (stride, row) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
        let mut out = out;
        let mut from = 0;
        while from < y.len {
            let table = self.columns.tables.table(kernel, y, from);
            let outputs = table.starts.len();
            for done in (0..outputs).step_by(BAND_ROWS) {
                let to = outputs.min(done + BAND_ROWS);
                let middle = scratch::grown(&mut self.middle, (to - done) * stride);
                self.columns.arch.dispatch(Down::new(table, done..to, top as usize, rgb, stride, middle));
                let lines = out.split_off_mut(..(to - done) * row).unwrap_or_default();
                self.rows.run(kernel, x, middle, lines);
            }
            from = table.end();
        }
    }
}

impl RowPass {
    fn run(&mut self, kernel: Kernel, window: Window, rgb: &[u8], out: &mut [u8]) {
        let source = window.source as usize;
        let mut from = 0;
        while from < window.len {
            let table = self.tables.table(kernel, window, from);
            self.arch.dispatch(Across {
                vectors: self.vectors,
                starts: &table.starts,
                weights: &table.weights,
                stacks: &mut self.stacks,
                rgb,
                stride: source * CHANNELS,
                out,
                width: window.len as usize * CHANNELS,
                skip: from as usize * CHANNELS,
            });
            from = table.end();
        }
    }
}

/// The most weights that an output has, of those from `from` on, and the first output that has to wait for the next block.
fn block(kernel: Kernel, window: Window, from: u32) -> (usize, u32) {
    // The widest has at most this many source pixels under it, and no more than there are.
    let widest = (from..window.len)
        .map(|at| {
            let (first, end) = span(kernel, window, at);
            end - first
        })
        .max()
        .unwrap_or(0);
    let taps = widest.max(1) as usize;
    let outputs = (BLOCK_WEIGHTS / taps).max(1);
    (taps, (from as usize + outputs).min(window.len as usize) as u32)
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

/// [`Resampler::across`] for the columns of `starts`, which begin at byte `skip` of each output row.
struct Across<'a> {
    vectors: Option<Vectors>,
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
        let Stacks { source, target } = self.stacks;
        source.resize(pixels, RowGroup::default());
        target.resize(columns, RowGroup::default());
        let groups = self.out.chunks_mut(self.width * ROWS).zip(self.rgb.chunks(self.stride * ROWS));
        for (lines, rows) in groups {
            pack(self.vectors, rows, self.stride, source);
            weigh(self.vectors, source, self.starts, self.weights, target);
            unpack(self.vectors, target, lines, self.width, self.skip);
        }
    }
}

/// [`Resampler::down`] for some outputs, with rows of the source of which the first is row `top`.
struct Down<'a> {
    starts: &'a [usize],
    weights: &'a [i32],
    top: usize,
    rgb: &'a [u8],
    row: usize,
    out: &'a mut [u8],
}

impl<'a> Down<'a> {
    fn new(table: &'a Table, outputs: Range<usize>, top: usize, rgb: &'a [u8], row: usize, out: &'a mut [u8]) -> Self {
        let taps = table.taps();
        let weights = &table.weights[outputs.start * taps..outputs.end * taps];
        Self { starts: &table.starts[outputs], weights, top, rgb, row: row.max(1), out }
    }
}

impl WithSimd for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let taps = (self.weights.len() / self.starts.len().max(1)).max(1);
        let weights = self.weights.chunks_exact(taps);
        for ((line, start), weights) in self.out.chunks_exact_mut(self.row).zip(self.starts).zip(weights) {
            // Those beside the kernel may be for rows that are not there.
            let Some(first) = weights.iter().position(|weight| *weight != 0) else {
                line.fill(0);
                continue;
            };
            let end = weights.iter().rposition(|weight| *weight != 0).map_or(taps, |last| last + 1);
            let (weights, rows) = (&weights[first..end], &self.rgb[(start + first - self.top) * self.row..]);
            match weights.len() {
                1 => lay::<1>(line, rows, weights),
                2 => lay::<2>(line, rows, weights),
                3 => lay::<3>(line, rows, weights),
                4 => lay::<4>(line, rows, weights),
                5 => lay::<5>(line, rows, weights),
                _ => lay_any(line, rows, weights),
            }
        }
    }
}

/// An output row of the first of `rows`, for a number of weights that is known to the compiler.
#[inline(always)]
fn lay<const TAPS: usize>(line: &mut [u8], rows: &[u8], weights: &[i32]) {
    let (Some(weights), row) = (weights.first_chunk::<TAPS>(), line.len()) else { return };
    let mut sources = [&rows[..0]; TAPS];
    sources.iter_mut().zip(rows.chunks_exact(row)).for_each(|(source, row)| *source = row);
    let (blocks, rest) = line.as_chunks_mut::<LANES>();
    let mut parts: [&[[u8; LANES]]; TAPS] = [&[]; TAPS];
    parts.iter_mut().zip(sources).for_each(|(part, row)| *part = &row.as_chunks().0[..blocks.len()]);
    for (number, block) in blocks.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (part, weight) in parts.iter().zip(weights) {
            add(&mut sums, &part[number], *weight);
        }
        round(&sums, block);
    }
    lay_rest(rest, rows, row, weights);
}

/// An output row for any number of weights.
#[inline(always)]
fn lay_any(line: &mut [u8], rows: &[u8], weights: &[i32]) {
    let row = line.len();
    let (blocks, rest) = line.as_chunks_mut::<LANES>();
    for (block, at) in blocks.iter_mut().zip((0..).step_by(LANES)) {
        let mut sums = [HALF; LANES];
        for (source, weight) in rows.chunks_exact(row).zip(weights) {
            add(&mut sums, &source[at..at + LANES], *weight);
        }
        round(&sums, block);
    }
    lay_rest(rest, rows, row, weights);
}

/// The last samples of an output row, fewer than [`LANES`].
#[inline(always)]
fn lay_rest(rest: &mut [u8], rows: &[u8], row: usize, weights: &[i32]) {
    let (mut sums, done) = ([HALF; LANES], row - rest.len());
    for (source, weight) in rows.chunks_exact(row).zip(weights) {
        add(&mut sums, &source[done..], *weight);
    }
    round(&sums, rest);
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
        fn a_band_at_a_time_gives_what_whole_passes_give_in_less_memory(
            kernel in prop::sample::select(vec![Kernel::Box, Kernel::Bilinear, Kernel::Hamming, Kernel::Bicubic, Kernel::Lanczos]),
            (geometry, width, height) in (geometry(), 1u32..120, 1u32..400),
            turned: bool,
            seed: u8,
        ) {
            let (width, height) = if turned { (height, width) } else { (width, height) };
            let (x, y) = geometry.windows(width, height);
            let (top, bottom) = Resampler::reach(kernel, y);
            let (stride, row) = (x.source as usize * CHANNELS, x.len as usize * CHANNELS);
            let rgb: Vec<u8> = (0..(bottom - top) as usize * stride).map(|at| (at * at / 7 + usize::from(seed)) as u8).collect();
            let [mut convolver, mut rows_first, mut columns_first] = [(); 3].map(|()| Resampler::default());
            let (mut whole, mut banded) = (vec![0; row * y.len as usize], vec![1; row * y.len as usize]);

            let mut middle = vec![0; (bottom - top) as usize * row];
            convolver.across(kernel, x, &rgb, &mut middle);
            convolver.down(kernel, y, top, &middle, row, &mut whole);
            rows_first.across_down(kernel, x, y, top, &rgb, &mut banded);
            prop_assert_eq!(&whole, &banded);

            let mut middle = vec![0; y.len as usize * stride];
            convolver.down(kernel, y, top, &rgb, stride, &mut middle);
            convolver.across(kernel, x, &middle, &mut whole);
            columns_first.down_across(kernel, x, y, top, &rgb, &mut banded);
            prop_assert_eq!(&whole, &banded);

            let taken = if resize::columns_first(x, y) { columns_first } else { rows_first };
            let (held, side) = (taken.middle.len() as u64, u64::from(geometry.output_px()));
            prop_assert!(held <= Resampler::between_bytes(width.into(), height.into(), side), "{held} bytes");
        }

        #[test]
        fn slivers_need_no_more_than_whole_passes_would(short in 1u64..400, long in 1u64..100_000_000, side in 1u64..600) {
            for (width, height) in [(short, long), (long, short)] {
                let whole = 3 * (width * height.min(side)).max(side * height.min(2 * width + side));
                prop_assert!(Resampler::between_bytes(width, height, side) <= whole, "{width} × {height}");
            }
        }
    }

    #[test]
    fn every_kernel_is_exactly_one_at_its_centre() {
        // Two single-precision constants add up to 1.00000003, which showed in a sample of 339 pixels made 83.
        for kernel in [Kernel::Box, Kernel::Bilinear, Kernel::Hamming, Kernel::Bicubic, Kernel::Lanczos] {
            assert_eq!(kernel.at(0.0).to_bits(), 1.0_f64.to_bits(), "{kernel:?}");
        }
    }
}
