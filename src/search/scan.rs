//! Comparison of queries with all rows, block by block.

#![expect(
    clippy::inline_always,
    reason = "`pulp` compiles functions that are not inlined for the oldest supported CPU"
)]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use pulp::{Arch, Simd, WithSimd};

use super::file::VectorFile;
use super::top::{Hit, Top};
use crate::runtime::usable_cores;
use crate::types::Precision;

/// Bytes of a block of vectors: few enough for a core's cache, enough for few reads.
const BLOCK_BYTES: usize = 1 << 20;
/// Values that are summed side by side: a multiple of the widest vector, so that every CPU sums in the same order.
const LANES: usize = 32;

impl VectorFile {
    /// Returns the `k` rows with the largest inner products with `query`, best first. Of equal ones the lower row is better.
    ///
    /// # Errors
    /// When the query has another length, or the disk fails.
    pub fn search(&self, query: &[f32], k: usize) -> io::Result<Vec<Hit>> {
        let tops = self.scan(
            query,
            || Top::new(k),
            |top, _, hit| {
                top.add(hit);
                Ok(())
            },
            false,
        )?;
        let mut best = Top::new(k);
        for top in tops {
            best.merge(top);
        }
        Ok(best.into_hits())
    }

    /// Returns the `k` best rows of each group, as [`Self::search`] does for all rows.
    ///
    /// # Errors
    /// As [`Self::search`].
    pub fn search_groups(&self, query: &[f32], k: usize) -> io::Result<BTreeMap<u16, Vec<Hit>>> {
        let tops = self.scan(
            query,
            BTreeMap::<u16, Top>::new,
            |tops, group, hit| {
                tops.entry(group).or_insert_with(|| Top::new(k)).add(hit);
                Ok(())
            },
            true,
        )?;
        let mut best = BTreeMap::<u16, Top>::new();
        for (group, top) in tops.into_iter().flatten() {
            best.entry(group).or_insert_with(|| Top::new(k)).merge(top);
        }
        Ok(best.into_iter().map(|(group, top)| (group, top.into_hits())).collect())
    }

    /// Passes the score and group of each row to `visit`, on all cores. Returns the state of each thread.
    fn scan<S: Send>(
        &self,
        query: &[f32],
        start: impl Fn() -> S + Sync,
        visit: impl Fn(&mut S, u16, Hit) -> io::Result<()> + Sync,
        with_groups: bool,
    ) -> io::Result<Vec<S>> {
        if query.len() != self.dim {
            let what = format!("the query has {} values, and the vectors have {}", query.len(), self.dim);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let block_rows = (BLOCK_BYTES / self.row_bytes().max(1)).max(1) as u32;
        let (next, arch) = (AtomicU32::new(0), Arch::new());
        let work = || {
            let (mut state, mut scores) = (start(), Vec::new());
            let (mut rows, mut groups) = (Vec::new(), Vec::new());
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                let first = u64::from(block) * u64::from(block_rows);
                let Some(left) = u64::from(self.rows).checked_sub(first).filter(|left| *left > 0) else {
                    return Ok::<S, io::Error>(state);
                };
                let count = left.min(u64::from(block_rows)) as usize;
                rows.resize(count * self.row_bytes(), 0);
                self.vectors.read_exact_at(&mut rows, first * self.row_bytes() as u64)?;
                groups.resize(2 * count, 0);
                if with_groups {
                    self.groups.read_exact_at(&mut groups, 2 * first)?;
                }
                scores.clear();
                let (rows, precision) = (rows.as_slice(), self.precision);
                arch.dispatch(Scores { query, rows, precision, out: &mut scores });
                for ((place, score), group) in scores.iter().enumerate().zip(groups.as_chunks::<2>().0) {
                    let hit = Hit { row: first as u32 + place as u32, score: *score };
                    visit(&mut state, u16::from_le_bytes(*group), hit)?;
                }
            }
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..usable_cores()).map(|_| scope.spawn(work)).collect();
            let mut states = vec![work()?];
            for other in others {
                states.push(other.join().map_err(|_| io::Error::other("a thread of the search failed"))??);
            }
            Ok(states)
        })
    }
}

/// Inner products of a query with stored rows.
struct Scores<'a> {
    query: &'a [f32],
    rows: &'a [u8],
    precision: Precision,
    out: &'a mut Vec<f32>,
}

impl WithSimd for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { query, rows, precision, out } = self;
        match precision {
            Precision::Bf16 => out.extend(rows.chunks_exact((2 * query.len()).max(1)).map(|row| {
                dot(query, row.as_chunks::<2>().0, |pair| f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16))
            })),
            Precision::F32 => out.extend(
                rows.chunks_exact((4 * query.len()).max(1))
                    .map(|row| dot(query, row.as_chunks::<4>().0, f32::from_le_bytes)),
            ),
        }
    }
}

/// Returns the inner product of a query and a stored row.
#[inline(always)]
fn dot<const BYTES: usize>(query: &[f32], row: &[[u8; BYTES]], decode: impl Fn([u8; BYTES]) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (queries, query_rest) = query.as_chunks::<LANES>();
    let (rows, row_rest) = row.as_chunks::<LANES>();
    for (query, row) in queries.iter().zip(rows) {
        for lane in 0..LANES {
            sums[lane] += query[lane] * decode(row[lane]);
        }
    }
    let rest: f32 = query_rest.iter().zip(row_rest).map(|(query, value)| query * decode(*value)).sum();
    // Pairs of halves, which a vector instruction can sum.
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0] + rest
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::super::VectorWriter;
    use super::*;

    fn file(rows: &[Vec<f32>], dim: usize, precision: Precision) -> VectorFile {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = VectorWriter::create(dir.path(), dim, precision).unwrap();
        for (row, vector) in rows.iter().enumerate() {
            writer.push(vector, (row % 3) as u16, b"").unwrap();
        }
        writer.finish().unwrap()
    }

    fn naive(rows: &[Vec<f32>], query: &[f32], k: usize, wanted: impl Fn(usize) -> bool) -> Vec<u32> {
        let mut top = Top::new(k);
        for (row, vector) in rows.iter().enumerate().filter(|(row, _)| wanted(*row)) {
            let score: f64 = vector.iter().zip(query).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum();
            top.add(Hit { row: row as u32, score: score as f32 });
        }
        top.into_hits().into_iter().map(|hit| hit.row).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn search_finds_what_a_plain_loop_finds(
            dim in 1..70_usize, count in 0..50_usize, k in 1..9_usize, seed in 0..1000_u32, bf16_rows: bool,
        ) {
            // Small integers are exact in both formats, so that equal scores are equal.
            let value = |at: usize| f32::from(i8::try_from((at as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 28).unwrap()) - 7.0;
            let rows: Vec<Vec<f32>> = (0..count).map(|row| (0..dim).map(|at| value(row * dim + at)).collect()).collect();
            let query: Vec<f32> = (0..dim).map(|at| value(at + 1_000_003)).collect();
            let file = file(&rows, dim, if bf16_rows { Precision::Bf16 } else { Precision::F32 });
            let found: Vec<u32> = file.search(&query, k).unwrap().into_iter().map(|hit| hit.row).collect();
            prop_assert_eq!(found, naive(&rows, &query, k, |_| true));
            for (group, hits) in file.search_groups(&query, k).unwrap() {
                let found: Vec<u32> = hits.into_iter().map(|hit| hit.row).collect();
                prop_assert_eq!(found, naive(&rows, &query, k, |row| row % 3 == usize::from(group)));
            }
        }
    }

    #[test]
    fn blocks_cover_all_rows() {
        let dim = 64;
        let rows: Vec<Vec<f32>> =
            (0..20_000).map(|row| vec![bf16::from_f32((row % 97) as f32).to_f32(); dim]).collect();
        let file = file(&rows, dim, Precision::Bf16);
        let hits = file.search(&vec![1.0; dim], 3).unwrap();
        assert_eq!(hits.iter().map(|hit| hit.row).collect::<Vec<_>>(), [96, 193, 290]);
        assert!(file.search(&[1.0], 3).is_err());
    }
}
