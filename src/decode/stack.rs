//! Pixels of a few rows side by side: what [`convolve`](super::convolve) weighs at once.
//!
//! Four pixels of four rows at a time are turned by shuffles of whole vectors, where the processor has AVX2; pixel by pixel, the
//! turning takes twice as long as the weighing.

#![expect(clippy::inline_always, reason = "what `pulp` does not inline is compiled for the oldest CPU")]

use super::resize::CHANNELS;

/// Rows that are resampled across side by side: a weight and where it counts are looked up once for all.
pub(super) const ROWS: usize = 4;

/// A pixel of each of so many rows, with a fourth sample that means nothing, so that pixels are vectors.
pub(super) type Stack = [[u8; 4]; ROWS];

/// Rows of at least `CHANNELS * stacks.len()` bytes → stacks, one for each pixel. Of fewer rows than [`ROWS`] only so many pixels of each
/// stack are filled.
#[inline(always)]
pub(super) fn pack(shuffles: Option<Shuffles>, rows: &[u8], stride: usize, stacks: &mut [Stack]) {
    // Not `map_or`, which is a function of its own.
    let done = match shuffles {
        Some(shuffles) => shuffles.pack(rows, stride, stacks),
        None => 0,
    };
    let Some(last) = stacks.len().checked_sub(1) else { return };
    for (number, row) in rows.chunks_exact(stride).enumerate() {
        // Four bytes at a time, of which the last belongs to the next pixel, if there is one.
        for (stack, four) in stacks[done..last].iter_mut().zip(row[done * CHANNELS..].windows(4).step_by(CHANNELS)) {
            stack[number].copy_from_slice(four);
        }
        stacks[last][number][..CHANNELS].copy_from_slice(&row[last * CHANNELS..(last + 1) * CHANNELS]);
    }
}

/// Stacks → the pixels from byte `skip` on of rows of `stride` bytes.
#[inline(always)]
pub(super) fn unpack(shuffles: Option<Shuffles>, stacks: &[Stack], rows: &mut [u8], stride: usize, skip: usize) {
    let done = match shuffles {
        Some(shuffles) => shuffles.unpack(stacks, rows, stride, skip),
        None => 0,
    };
    let Some(last) = stacks.len().checked_sub(1) else { return };
    for (number, row) in rows.chunks_exact_mut(stride).enumerate() {
        let row = &mut row[skip..skip + stacks.len() * CHANNELS];
        for (stack, at) in stacks[done..last].iter().zip((done * CHANNELS..).step_by(CHANNELS)) {
            row[at..at + 4].copy_from_slice(&stack[number]);
        }
        row[last * CHANNELS..].copy_from_slice(&stacks[last][number][..CHANNELS]);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::__m128i;

    use pulp::cast;
    use pulp::x86::V3;

    use super::{CHANNELS, Stack};

    /// Bytes of a vector, and of the four pixels in it.
    const VECTOR: usize = 16;
    const FOUR: usize = 4 * CHANNELS;

    /// The shuffles of a processor that has them.
    #[derive(Clone, Copy)]
    pub(crate) struct Shuffles(V3);

    /// Four pixels of a row, and what a vector has room for beside them, again and again.
    #[inline(always)]
    fn fours(row: &[u8]) -> impl Iterator<Item = &[u8]> {
        row.windows(VECTOR).step_by(FOUR)
    }

    impl Shuffles {
        pub(crate) fn new() -> Option<Self> {
            V3::try_new().map(Self)
        }

        /// Fills stacks in fours as far as vectors of the rows reach; returns how many.
        #[inline(always)]
        pub(super) fn pack(self, rows: &[u8], stride: usize, stacks: &mut [Stack]) -> usize {
            let spread: __m128i = cast([0u8, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12]);
            let mut rows = rows.chunks_exact(stride).map(|row| &row[..CHANNELS * stacks.len()]);
            let (Some(a), Some(b), Some(c), Some(d)) = (rows.next(), rows.next(), rows.next(), rows.next()) else {
                return 0;
            };
            let windows = fours(a).zip(fours(b)).zip(fours(c)).zip(fours(d));
            let mut done = 0;
            for (four, (((a, b), c), d)) in stacks.as_chunks_mut::<4>().0.iter_mut().zip(windows) {
                let load = |row: &[u8]| {
                    let mut bytes = [0; VECTOR];
                    bytes.copy_from_slice(row);
                    self.0.ssse3._mm_shuffle_epi8(cast(bytes), spread)
                };
                let [a, b, c, d] = self.turn([load(a), load(b), load(c), load(d)]);
                *four = [cast(a), cast(b), cast(c), cast(d)];
                done += 4;
            }
            done
        }

        /// Fills the rows in fours of pixels as far as they have room for vectors; returns how many of the stacks.
        #[inline(always)]
        pub(super) fn unpack(self, stacks: &[Stack], rows: &mut [u8], stride: usize, skip: usize) -> usize {
            const NONE: u8 = 0x80;
            let gather: __m128i = cast([0u8, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, NONE, NONE, NONE, NONE]);
            let bytes = stacks.len() * CHANNELS;
            let mut rows = rows.chunks_exact_mut(stride).map(|row| &mut row[skip..skip + bytes]);
            let (Some(a), Some(b), Some(c), Some(d)) = (rows.next(), rows.next(), rows.next(), rows.next()) else {
                return 0;
            };
            let mut rows = [a, b, c, d];
            let mut done = 0;
            for &[a, b, c, d] in stacks.as_chunks::<4>().0 {
                let at = done * CHANNELS;
                // What is beyond the fourth pixel is written again, with the next ones.
                if at + VECTOR > bytes {
                    break;
                }
                for (row, pixels) in rows.iter_mut().zip(self.turn([cast(a), cast(b), cast(c), cast(d)])) {
                    let pixels: [u8; VECTOR] = cast(self.0.ssse3._mm_shuffle_epi8(pixels, gather));
                    row[at..at + VECTOR].copy_from_slice(&pixels);
                }
                done += 4;
            }
            done
        }

        /// Rows ↔ columns of four times four.
        #[inline(always)]
        fn turn(self, [a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
            let simd = self.0.sse2;
            let (ab, cd) = (simd._mm_unpacklo_epi32(a, b), simd._mm_unpacklo_epi32(c, d));
            let (first, second) = (simd._mm_unpacklo_epi64(ab, cd), simd._mm_unpackhi_epi64(ab, cd));
            let (ab, cd) = (simd._mm_unpackhi_epi32(a, b), simd._mm_unpackhi_epi32(c, d));
            [first, second, simd._mm_unpacklo_epi64(ab, cd), simd._mm_unpackhi_epi64(ab, cd)]
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Shuffles;

/// No such processor.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
pub(super) enum Shuffles {}

#[cfg(not(target_arch = "x86_64"))]
impl Shuffles {
    pub(super) fn new() -> Option<Self> {
        None
    }

    fn pack(self, _: &[u8], _: usize, _: &mut [Stack]) -> usize {
        match self {}
    }

    fn unpack(self, _: &[Stack], _: &mut [u8], _: usize, _: usize) -> usize {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_stacks_and_rows_again_with_shuffles_and_without() {
        for shuffles in [None, Shuffles::new()] {
            for (pixels, count) in (1..40).flat_map(|pixels| (1..=ROWS).map(move |count| (pixels, count))) {
                let stride = pixels * CHANNELS;
                let rows: Vec<u8> = (0..stride * count).map(|at| (at * 7 % 251) as u8).collect();
                let mut stacks = vec![[[9; 4]; ROWS]; pixels];
                pack(shuffles, &rows, stride, &mut stacks);
                // The first pixels of wider rows.
                let mut first = vec![[[9; 4]; ROWS]; pixels.div_ceil(2)];
                pack(shuffles, &rows, stride, &mut first);
                for (one, other) in first.iter().flatten().zip(stacks.iter().flatten()).take(ROWS * first.len()) {
                    assert_eq!(one[..CHANNELS], other[..CHANNELS], "{pixels} pixels of {count} rows");
                }
                for (number, row) in rows.chunks_exact(stride).enumerate() {
                    for (stack, pixel) in stacks.iter().zip(row.chunks_exact(CHANNELS)) {
                        assert_eq!(stack[number][..CHANNELS], *pixel, "{pixels} pixels of {count} rows");
                    }
                }
                for (before, behind) in [(0, 0), (0, 5), (6, 0), (3, 1)] {
                    let wide = before + stride + behind;
                    let mut out = vec![1; wide * count];
                    unpack(shuffles, &stacks, &mut out, wide, before);
                    for (wide, row) in out.chunks_exact(wide).zip(rows.chunks_exact(stride)) {
                        assert_eq!(wide[before..before + stride], *row, "{pixels} pixels of {count} rows");
                        assert!(wide[..before].iter().chain(&wide[before + stride..]).all(|byte| *byte == 1));
                    }
                }
            }
        }
    }
}
