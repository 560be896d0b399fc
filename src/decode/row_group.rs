//! Pixels of four rows, interleaved: the unit of the horizontal pass of [`resample`](super::resample).
//!
//! With AVX2, four pixels of four rows are transposed by shuffles of whole vectors; pixel by pixel, that takes twice as long
//! as the convolution. The sums are written with intrinsics, because the compiler vectorises the plain loops for some
//! numbers of weights only, and is five times slower for four, eight and more.

#![expect(clippy::inline_always, reason = "code that `pulp` does not inline is compiled for the oldest CPU")]

use super::colour::CHANNELS;

/// Fractional bits of a weight: 8 bits of the sample and 2 of overshoot leave 22 of 32.
pub(super) const WEIGHT_BITS: u32 = 22;

/// One half, which makes the shift round.
pub(super) const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// Rows of a group: each weight and its position are loaded once for all of them.
pub(super) const ROWS: usize = 4;

/// One pixel of each row, padded with a fourth sample of any value to the width of a vector.
pub(super) type RowGroup = [[u8; 4]; ROWS];

/// Adds weighted samples to their sums.
#[inline(always)]
pub(super) fn accumulate(sums: &mut [i32], samples: &[u8], weight: i32) {
    for (sum, sample) in sums.iter_mut().zip(samples) {
        *sum = sum.wrapping_add(i32::from(*sample).wrapping_mul(weight));
    }
}

/// Rounds and clips sums to bytes.
#[expect(clippy::cast_sign_loss, reason = "clamped")]
#[inline(always)]
pub(super) fn round(sums: &[i32], samples: &mut [u8]) {
    // The compiler does not vectorise `map` over an array.
    for (sample, sum) in samples.iter_mut().zip(sums) {
        *sample = (sum >> WEIGHT_BITS).clamp(0, 255) as u8;
    }
}

/// Interleaves rows of at least `CHANNELS * groups.len()` bytes into groups, one for each column. With fewer rows than
/// [`ROWS`], the other pixels of each group keep their value.
#[inline(always)]
pub(super) fn pack(vectors: Option<Vectors>, rows: &[u8], stride: usize, groups: &mut [RowGroup]) {
    // A closure for `map_or` would not be inlined.
    let done = match vectors {
        Some(vectors) => vectors.pack(rows, stride, groups),
        None => 0,
    };
    let Some(last) = groups.len().checked_sub(1) else { return };
    for (number, row) in rows.chunks_exact(stride).enumerate() {
        // Four bytes at a time; the last one belongs to the next pixel.
        for (group, four) in groups[done..last].iter_mut().zip(row[done * CHANNELS..].windows(4).step_by(CHANNELS)) {
            group[number].copy_from_slice(four);
        }
        groups[last][number][..CHANNELS].copy_from_slice(&row[last * CHANNELS..(last + 1) * CHANNELS]);
    }
}

/// Writes groups into rows of `stride` bytes, from byte `skip` of each row on.
#[inline(always)]
pub(super) fn unpack(vectors: Option<Vectors>, groups: &[RowGroup], rows: &mut [u8], stride: usize, skip: usize) {
    let done = match vectors {
        Some(vectors) => vectors.unpack(groups, rows, stride, skip),
        None => 0,
    };
    let Some(last) = groups.len().checked_sub(1) else { return };
    for (number, row) in rows.chunks_exact_mut(stride).enumerate() {
        let row = &mut row[skip..skip + groups.len() * CHANNELS];
        for (group, at) in groups[done..last].iter().zip((done * CHANNELS..).step_by(CHANNELS)) {
            row[at..at + 4].copy_from_slice(&group[number]);
        }
        row[last * CHANNELS..].copy_from_slice(&groups[last][number][..CHANNELS]);
    }
}

/// Convolves groups: each of `target` is the weighted sum of the groups of `source` from its position in `starts` on. All
/// have the same number of weights.
#[inline(always)]
pub(super) fn convolve_groups(
    vectors: Option<Vectors>,
    source: &[RowGroup],
    starts: &[usize],
    weights: &[i32],
    target: &mut [RowGroup],
) {
    let taps = (weights.len() / target.len().max(1)).max(1);
    if let Some(vectors) = vectors {
        // A constant number saves a branch for each weight; resizing 300 pixels to 224 needs 3.
        return match taps {
            2 => vectors.convolve::<2>(source, starts, weights, target),
            3 => vectors.convolve::<3>(source, starts, weights, target),
            4 => vectors.convolve::<4>(source, starts, weights, target),
            5 => vectors.convolve::<5>(source, starts, weights, target),
            6 => vectors.convolve::<6>(source, starts, weights, target),
            7 => vectors.convolve::<7>(source, starts, weights, target),
            8 => vectors.convolve::<8>(source, starts, weights, target),
            _ => vectors.convolve_any(source, starts, weights, target, taps),
        };
    }
    for ((target, start), weights) in target.iter_mut().zip(starts).zip(weights.chunks_exact(taps)) {
        let mut sums = [HALF; 4 * ROWS];
        for (group, weight) in source[*start..*start + taps].iter().zip(weights) {
            accumulate(&mut sums, group.as_flattened(), *weight);
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

    /// Bytes of a vector.
    const VECTOR: usize = 16;
    /// Bytes of the four pixels that a vector covers.
    const FOUR: usize = 4 * CHANNELS;

    /// Proof that the processor has AVX2.
    #[derive(Clone, Copy)]
    pub(crate) struct Vectors(V3);

    /// Sums of a group.
    type Sums = [__m256i; 2];

    /// Vectors of a row that begin with the next four pixels each.
    #[inline(always)]
    fn vectors_of_four(row: &[u8]) -> impl Iterator<Item = &[u8]> {
        row.windows(VECTOR).step_by(FOUR)
    }

    impl Vectors {
        pub(crate) fn new() -> Option<Self> {
            V3::try_new().map(Self)
        }

        /// Fills groups, four at a time, as far as whole vectors of the rows reach. Returns their number.
        #[inline(always)]
        pub(super) fn pack(self, rows: &[u8], stride: usize, groups: &mut [RowGroup]) -> usize {
            let spread: __m128i = cast([0u8, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12]);
            let mut rows = rows.chunks_exact(stride).map(|row| &row[..CHANNELS * groups.len()]);
            let (Some(a), Some(b), Some(c), Some(d)) = (rows.next(), rows.next(), rows.next(), rows.next()) else {
                return 0;
            };
            let windows = vectors_of_four(a).zip(vectors_of_four(b)).zip(vectors_of_four(c)).zip(vectors_of_four(d));
            let mut done = 0;
            for (four, (((a, b), c), d)) in groups.as_chunks_mut::<4>().0.iter_mut().zip(windows) {
                let load = |row: &[u8]| {
                    let mut bytes = [0; VECTOR];
                    bytes.copy_from_slice(row);
                    self.0.ssse3._mm_shuffle_epi8(cast(bytes), spread)
                };
                let [a, b, c, d] = self.transpose([load(a), load(b), load(c), load(d)]);
                *four = [cast(a), cast(b), cast(c), cast(d)];
                done += 4;
            }
            done
        }

        /// Writes groups, four at a time, as far as the rows have room for whole vectors. Returns their number.
        #[inline(always)]
        pub(super) fn unpack(self, groups: &[RowGroup], rows: &mut [u8], stride: usize, skip: usize) -> usize {
            const NONE: u8 = 0x80;
            let gather: __m128i = cast([0u8, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, NONE, NONE, NONE, NONE]);
            let bytes = groups.len() * CHANNELS;
            let mut rows = rows.chunks_exact_mut(stride).map(|row| &mut row[skip..skip + bytes]);
            let (Some(a), Some(b), Some(c), Some(d)) = (rows.next(), rows.next(), rows.next(), rows.next()) else {
                return 0;
            };
            let mut rows = [a, b, c, d];
            let mut done = 0;
            for &[a, b, c, d] in groups.as_chunks::<4>().0 {
                let at = done * CHANNELS;
                // The bytes behind the fourth pixel are overwritten by the next ones.
                if at + VECTOR > bytes {
                    break;
                }
                for (row, pixels) in rows.iter_mut().zip(self.transpose([cast(a), cast(b), cast(c), cast(d)])) {
                    let pixels: [u8; VECTOR] = cast(self.0.ssse3._mm_shuffle_epi8(pixels, gather));
                    row[at..at + VECTOR].copy_from_slice(&pixels);
                }
                done += 4;
            }
            done
        }

        /// [`convolve_groups`](super::convolve_groups) for a constant number of weights, two groups at a time.
        #[inline(always)]
        pub(super) fn convolve<const TAPS: usize>(
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
            self.convolve_any(source, start, last.as_flattened(), one, TAPS);
        }

        /// [`convolve_groups`](super::convolve_groups) for any number of weights.
        #[inline(always)]
        pub(super) fn convolve_any(
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
            for (group, weight) in source.iter().zip(weights) {
                let weight = self.0.avx._mm256_set1_epi32(*weight);
                let halves: [u64; 2] = cast(*group);
                for (sum, half) in sums.iter_mut().zip(halves) {
                    let samples = simd._mm256_cvtepu8_epi32(cast([half, 0]));
                    *sum = simd._mm256_add_epi32(*sum, simd._mm256_mullo_epi32(samples, weight));
                }
            }
            sums
        }

        /// Rounds the sums of two groups. Clipping to signed words and then to bytes is clipping to bytes.
        #[inline(always)]
        fn bytes(self, a: Sums, b: Sums) -> [RowGroup; 2] {
            let simd = self.0.avx2;
            let [a, b] = [a, b].map(|[first, second]| {
                let whole = |sums| simd._mm256_srai_epi32::<{ WEIGHT_BITS as i32 }>(sums);
                simd._mm256_packs_epi32(whole(first), whole(second))
            });
            // The pack instructions work on each half of a vector.
            cast(simd._mm256_permutevar8x32_epi32(simd._mm256_packus_epi16(a, b), cast([0u32, 4, 1, 5, 2, 6, 3, 7])))
        }

        /// Transposes four times four pixels.
        #[inline(always)]
        fn transpose(self, [a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
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

/// No other processor has them.
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

    fn convolve<const TAPS: usize>(self, _: &[RowGroup], _: &[usize], _: &[i32], _: &mut [RowGroup]) {
        match self {}
    }

    fn convolve_any(self, _: &[RowGroup], _: &[usize], _: &[i32], _: &mut [RowGroup], _: usize) {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packing_and_unpacking_restore_rows() {
        for vectors in [None, Vectors::new()] {
            for (pixels, count) in (1..40).flat_map(|pixels| (1..=ROWS).map(move |count| (pixels, count))) {
                let stride = pixels * CHANNELS;
                let rows: Vec<u8> = (0..stride * count).map(|at| (at * 7 % 251) as u8).collect();
                let mut groups = vec![[[9; 4]; ROWS]; pixels];
                pack(vectors, &rows, stride, &mut groups);
                // The first pixels of wider rows.
                let mut first = vec![[[9; 4]; ROWS]; pixels.div_ceil(2)];
                pack(vectors, &rows, stride, &mut first);
                for (one, other) in first.iter().flatten().zip(groups.iter().flatten()).take(ROWS * first.len()) {
                    assert_eq!(one[..CHANNELS], other[..CHANNELS], "{pixels} pixels of {count} rows");
                }
                for (number, row) in rows.chunks_exact(stride).enumerate() {
                    for (group, pixel) in groups.iter().zip(row.chunks_exact(CHANNELS)) {
                        assert_eq!(group[number][..CHANNELS], *pixel, "{pixels} pixels of {count} rows");
                    }
                }
                for (before, behind) in [(0, 0), (0, 5), (6, 0), (3, 1)] {
                    let wide = before + stride + behind;
                    let mut out = vec![1; wide * count];
                    unpack(vectors, &groups, &mut out, wide, before);
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
        fn vectors_equal_plain_loops(
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
                convolve_groups(vectors, &source, &starts, &weights, &mut target);
                target
            });
            prop_assert_eq!(plain, vectors);
        }
    }
}
