//! Pixels of a few rows side by side: what [`convolve`](super::resample) weighs at once.
//!
//! Where the processor has AVX2, four pixels of four rows at a time are turned by shuffles of whole vectors (pixel by pixel, the turning
//! takes twice as long as the weighing), and the sums are spelled out in vectors: from plain loops the compiler makes them for some
//! numbers of weights, and for four, eight, or more code that is five times slower.

#![expect(clippy::inline_always, reason = "what `pulp` does not inline is compiled for the oldest CPU")]

use super::resize::CHANNELS;

/// Fractional bits of a weight: 8 bits of the sample and 2 of overshoot leave 22 of 32.
pub(super) const WEIGHT_BITS: u32 = 22;

/// One half, so that the shift rounds.
pub(super) const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// Rows that are resampled across side by side: a weight and where it counts are looked up once for all.
pub(super) const ROWS: usize = 4;

/// A pixel of each of so many rows, with a fourth sample that means nothing, so that pixels are vectors.
pub(super) type RowGroup = [[u8; 4]; ROWS];

/// Adds weighted samples to their sums.
#[inline(always)]
pub(super) fn add(sums: &mut [i32], samples: &[u8], weight: i32) {
    for (sum, sample) in sums.iter_mut().zip(samples) {
        *sum = sum.wrapping_add(i32::from(*sample).wrapping_mul(weight));
    }
}

/// Sums → bytes.
#[expect(clippy::cast_sign_loss, reason = "clamped")]
#[inline(always)]
pub(super) fn round(sums: &[i32], samples: &mut [u8]) {
    // Not `map` over an array, which the compiler leaves in scalars.
    for (sample, sum) in samples.iter_mut().zip(sums) {
        *sample = (sum >> WEIGHT_BITS).clamp(0, 255) as u8;
    }
}

/// Rows of at least `CHANNELS * stacks.len()` bytes → stacks, one for each pixel. Of fewer rows than [`ROWS`] only so many pixels of each
/// stack are filled.
#[inline(always)]
pub(super) fn pack(vectors: Option<Vectors>, rows: &[u8], stride: usize, stacks: &mut [RowGroup]) {
    // Not `map_or`, which is a function of its own.
    let done = match vectors {
        Some(vectors) => vectors.pack(rows, stride, stacks),
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
pub(super) fn unpack(vectors: Option<Vectors>, stacks: &[RowGroup], rows: &mut [u8], stride: usize, skip: usize) {
    let done = match vectors {
        Some(vectors) => vectors.unpack(stacks, rows, stride, skip),
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

/// Weighs stacks: each of `target` gets the sum of as many of `source`, from its number in `starts` on, as it has `weights`, of which all
/// have the same number.
#[inline(always)]
pub(super) fn weigh(
    vectors: Option<Vectors>,
    source: &[RowGroup],
    starts: &[usize],
    weights: &[i32],
    target: &mut [RowGroup],
) {
    let taps = (weights.len() / target.len().max(1)).max(1);
    if let Some(vectors) = vectors {
        // A known number saves a branch for each weight; 300 pixels to 224 need 3.
        return match taps {
            2 => vectors.weigh::<2>(source, starts, weights, target),
            3 => vectors.weigh::<3>(source, starts, weights, target),
            4 => vectors.weigh::<4>(source, starts, weights, target),
            5 => vectors.weigh::<5>(source, starts, weights, target),
            6 => vectors.weigh::<6>(source, starts, weights, target),
            7 => vectors.weigh::<7>(source, starts, weights, target),
            8 => vectors.weigh::<8>(source, starts, weights, target),
            _ => vectors.weigh_any(source, starts, weights, target, taps),
        };
    }
    for ((target, start), weights) in target.iter_mut().zip(starts).zip(weights.chunks_exact(taps)) {
        let mut sums = [HALF; 4 * ROWS];
        for (stack, weight) in source[*start..*start + taps].iter().zip(weights) {
            add(&mut sums, stack.as_flattened(), *weight);
        }
        round(&sums, target.as_flattened_mut());
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m128i, __m256i};

    use pulp::cast;
    use pulp::x86::V3;

    use super::{CHANNELS, HALF, RowGroup, WEIGHT_BITS};

    /// Bytes of a vector, and of the four pixels in it.
    const VECTOR: usize = 16;
    const FOUR: usize = 4 * CHANNELS;

    /// The vectors of a processor that has AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Vectors(V3);

    /// The sums of a stack.
    type Sums = [__m256i; 2];

    /// Four pixels of a row, and what a vector has room for beside them, again and again.
    #[inline(always)]
    fn fours(row: &[u8]) -> impl Iterator<Item = &[u8]> {
        row.windows(VECTOR).step_by(FOUR)
    }

    impl Vectors {
        pub(crate) fn new() -> Option<Self> {
            V3::try_new().map(Self)
        }

        /// Fills stacks in fours as far as vectors of the rows reach; returns how many.
        #[inline(always)]
        pub(super) fn pack(self, rows: &[u8], stride: usize, stacks: &mut [RowGroup]) -> usize {
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
        pub(super) fn unpack(self, stacks: &[RowGroup], rows: &mut [u8], stride: usize, skip: usize) -> usize {
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

        /// [`weigh`](super::weigh) for a number of weights that is known to the compiler, two stacks at a time.
        #[inline(always)]
        pub(super) fn weigh<const TAPS: usize>(
            self,
            source: &[RowGroup],
            starts: &[usize],
            weights: &[i32],
            target: &mut [RowGroup],
        ) {
            let (twos, one) = target.as_chunks_mut::<2>();
            let (starts, start) = starts.as_chunks::<2>();
            let (weights, last) = weights.as_chunks::<TAPS>().0.as_chunks::<2>();
            for ((two, [a, b]), [to_a, to_b]) in twos.iter_mut().zip(starts).zip(weights) {
                let a = self.sums(&source[*a..*a + TAPS], to_a);
                let b = self.sums(&source[*b..*b + TAPS], to_b);
                *two = self.bytes(a, b);
            }
            self.weigh_any(source, start, last.as_flattened(), one, TAPS);
        }

        /// [`weigh`](super::weigh) for any number.
        #[inline(always)]
        pub(super) fn weigh_any(
            self,
            source: &[RowGroup],
            starts: &[usize],
            weights: &[i32],
            target: &mut [RowGroup],
            taps: usize,
        ) {
            for ((target, start), weights) in target.iter_mut().zip(starts).zip(weights.chunks_exact(taps)) {
                let sums = self.sums(&source[*start..*start + taps], weights);
                [*target, _] = self.bytes(sums, sums);
            }
        }

        #[inline(always)]
        fn sums(self, source: &[RowGroup], weights: &[i32]) -> Sums {
            let simd = self.0.avx2;
            let mut sums = [self.0.avx._mm256_set1_epi32(HALF); 2];
            for (stack, weight) in source.iter().zip(weights) {
                let weight = self.0.avx._mm256_set1_epi32(*weight);
                let halves: [u64; 2] = cast(*stack);
                for (sum, half) in sums.iter_mut().zip(halves) {
                    let samples = simd._mm256_cvtepu8_epi32(cast([half, 0]));
                    *sum = simd._mm256_add_epi32(*sum, simd._mm256_mullo_epi32(samples, weight));
                }
            }
            sums
        }

        /// Sums of two stacks → the stacks: clipping to signed words and then to bytes is clipping to bytes.
        #[inline(always)]
        fn bytes(self, a: Sums, b: Sums) -> [RowGroup; 2] {
            let simd = self.0.avx2;
            let [a, b] = [a, b].map(|[first, second]| {
                let whole = |sums| simd._mm256_srai_epi32::<{ WEIGHT_BITS as i32 }>(sums);
                simd._mm256_packs_epi32(whole(first), whole(second))
            });
            // Vectors are packed by halves.
            cast(simd._mm256_permutevar8x32_epi32(simd._mm256_packus_epi16(a, b), cast([0u32, 4, 1, 5, 2, 6, 3, 7])))
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
pub(super) use x86::Vectors;

/// No such processor.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
pub(super) enum Vectors {}

#[cfg(not(target_arch = "x86_64"))]
impl Vectors {
    pub(super) fn new() -> Option<Self> {
        None
    }

    fn pack(self, _: &[u8], _: usize, _: &mut [RowGroup]) -> usize {
        match self {}
    }

    fn unpack(self, _: &[RowGroup], _: &mut [u8], _: usize, _: usize) -> usize {
        match self {}
    }

    fn weigh<const TAPS: usize>(self, _: &[RowGroup], _: &[usize], _: &[i32], _: &mut [RowGroup]) {
        match self {}
    }

    fn weigh_any(self, _: &[RowGroup], _: &[usize], _: &[i32], _: &mut [RowGroup], _: usize) {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_become_stacks_and_rows_again_with_vectors_and_without() {
        for vectors in [None, Vectors::new()] {
            for (pixels, count) in (1..40).flat_map(|pixels| (1..=ROWS).map(move |count| (pixels, count))) {
                let stride = pixels * CHANNELS;
                let rows: Vec<u8> = (0..stride * count).map(|at| (at * 7 % 251) as u8).collect();
                let mut stacks = vec![[[9; 4]; ROWS]; pixels];
                pack(vectors, &rows, stride, &mut stacks);
                // The first pixels of wider rows.
                let mut first = vec![[[9; 4]; ROWS]; pixels.div_ceil(2)];
                pack(vectors, &rows, stride, &mut first);
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
                    unpack(vectors, &stacks, &mut out, wide, before);
                    for (wide, row) in out.chunks_exact(wide).zip(rows.chunks_exact(stride)) {
                        assert_eq!(wide[before..before + stride], *row, "{pixels} pixels of {count} rows");
                        assert!(wide[..before].iter().chain(&wide[before + stride..]).all(|byte| *byte == 1));
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn vectors_weigh_as_plain_loops_do(
            taps in 1usize..20,
            beside in 0usize..5,
            columns in 0usize..9,
            seed in any::<u32>(),
            bits in 1u32..24,
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 8
            };
            let source: Vec<RowGroup> = (0..taps + beside).map(|_| [[0; 4]; ROWS].map(|four| four.map(|_| next() as u8))).collect();
            let starts: Vec<usize> = (0..columns).map(|_| next() as usize % (beside + 1)).collect();
            let weights: Vec<i32> = (0..columns * taps).map(|_| (next() << 8).cast_signed() >> (32 - bits)).collect();
            let [plain, vectors] = [None, Vectors::new()].map(|vectors| {
                let mut target = vec![RowGroup::default(); columns];
                weigh(vectors, &source, &starts, &weights, &mut target);
                target
            });
            prop_assert_eq!(plain, vectors);
        }
    }
}
