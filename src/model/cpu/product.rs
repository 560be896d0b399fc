//! Products of activations with packed matrices.
//!
//! A packed matrix, `[depth, columns]`, is stored in panels of a few registers of columns, so that the inner loop reads
//! memory in order. A tile of the output stays in registers for the whole depth. Every output is therefore one chain of
//! fused multiplications and additions in the order of the depth, for any number of rows and any width of vectors.

use pulp::Simd;

/// Registers of columns in a panel: a tile of 8 × 3 sums, a row of the panel and a factor fit into 32 registers.
const PANEL: usize = 3;

/// Buffer of values that starts at a cache line, so that no vector crosses two lines.
#[derive(Debug, Default)]
pub(super) struct AlignedValues {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl AlignedValues {
    /// Values in a cache line, which is as long as the widest vector.
    const LINE: usize = 16;

    /// Returns the first `len` values. They are undefined if the buffer was shorter.
    pub(super) fn sized(&mut self, len: usize) -> &mut [f32] {
        if len > self.len {
            // Frees the old buffer first.
            self.values = Vec::new();
            self.values = vec![0.0; len + Self::LINE];
            self.start = self.values.as_ptr().align_offset(size_of::<f32>() * Self::LINE).min(Self::LINE);
            self.len = len;
        }
        &mut self.values[self.start..self.start + len]
    }

    fn get(&self, len: usize) -> &[f32] {
        &self.values[self.start..self.start + len]
    }
}

/// Receiver of the sums of a product.
pub(super) trait Finish {
    /// Receives the sums of `used` columns from `column` on.
    fn finish<S: Simd>(&mut self, simd: S, row: usize, column: usize, used: usize, sums: S::f32s);
}

/// Left operand of a product: rows of at least its depth, `stride` values apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) count: usize,
}

/// Right operand of a product, `[depth, columns]`.
#[derive(Debug, Default)]
pub(super) struct Packed {
    values: AlignedValues,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// Packs the transpose of `[columns, depth]`, whose rows are `stride` values apart: torch's layout of weights, and
    /// that of the keys of attention.
    #[inline(always)]
    pub(super) fn pack_transposed<S: Simd>(&mut self, values: &[f32], stride: usize, depth: usize, columns: usize) {
        self.for_panels::<S>(depth, columns, |panel, width, first, used| {
            for (column, source) in values[first * stride..].chunks(stride).take(used).enumerate() {
                for (row, value) in panel.chunks_exact_mut(width).zip(&source[..depth]) {
                    row[column] = *value;
                }
            }
            panel.chunks_exact_mut(width).for_each(|row| row[used..].fill(0.0));
        });
    }

    /// Packs `[depth, columns]`, whose rows are `stride` values apart: the layout of the values of attention.
    #[inline(always)]
    pub(super) fn pack<S: Simd>(&mut self, values: &[f32], stride: usize, depth: usize, columns: usize) {
        self.for_panels::<S>(depth, columns, |panel, width, first, used| {
            for (row, source) in panel.chunks_exact_mut(width).zip(values.chunks(stride)) {
                row[..used].copy_from_slice(&source[first..first + used]);
                row[used..].fill(0.0);
            }
        });
    }

    /// Calls `each` for every panel of a new matrix: its values, width, first column and number of used columns. The
    /// memory of the old matrix is used again.
    #[inline(always)]
    fn for_panels<S: Simd>(
        &mut self,
        depth: usize,
        columns: usize,
        mut each: impl FnMut(&mut [f32], usize, usize, usize),
    ) {
        (self.depth, self.columns) = (depth, columns);
        let padded = columns.next_multiple_of(S::F32_LANES);
        let target = self.values.sized(depth * padded);
        for first in (0..padded).step_by(PANEL * S::F32_LANES) {
            let width = (PANEL * S::F32_LANES).min(padded - first);
            let used = width.min(columns - first);
            each(&mut target[first * depth..(first + width) * depth], width, first, used);
        }
    }

    /// Multiplies `left` with this matrix.
    #[inline(always)]
    pub(super) fn multiply<S: Simd>(&self, simd: S, left: Rows<'_>, finish: &mut impl Finish) {
        let padded = self.columns.next_multiple_of(S::F32_LANES);
        let packed = self.values.get(self.depth * padded);
        for first in (0..padded).step_by(PANEL * S::F32_LANES) {
            let width = (PANEL * S::F32_LANES).min(padded - first);
            let panel = S::as_simd_f32s(&packed[first * self.depth..(first + width) * self.depth]).0;
            let columns = [first, self.columns];
            match width / S::F32_LANES {
                1 => multiply_panel(simd, left, panel.as_chunks::<1>().0, columns, finish),
                2 => multiply_panel(simd, left, panel.as_chunks::<2>().0, columns, finish),
                _ => multiply_panel(simd, left, panel.as_chunks::<PANEL>().0, columns, finish),
            }
        }
    }
}

/// Multiplies all rows with a panel of `N` registers; `[first, columns]` are its first column and the matrix's columns.
#[inline(always)]
fn multiply_panel<S: Simd, const N: usize>(
    simd: S,
    left: Rows<'_>,
    panel: &[[S::f32s; N]],
    columns: [usize; 2],
    finish: &mut impl Finish,
) {
    let mut row = 0;
    if S::REGISTER_COUNT >= 32 {
        while row + 8 <= left.count {
            multiply_tile::<S, 8, N>(simd, left, row, panel, columns, finish);
            row += 8;
        }
    }
    // The compiler keeps no more rows in 16 registers.
    while row + 3 <= left.count {
        multiply_tile::<S, 3, N>(simd, left, row, panel, columns, finish);
        row += 3;
    }
    while row < left.count {
        multiply_tile::<S, 1, N>(simd, left, row, panel, columns, finish);
        row += 1;
    }
}

/// Multiplies the `M` rows from `first_row` on.
#[inline(always)]
fn multiply_tile<S: Simd, const M: usize, const N: usize>(
    simd: S,
    left: Rows<'_>,
    first_row: usize,
    panel: &[[S::f32s; N]],
    [first, columns]: [usize; 2],
    finish: &mut impl Finish,
) {
    let rows: [&[f32]; M] = std::array::from_fn(|row| &left.values[(first_row + row) * left.stride..][..panel.len()]);
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    for (at, factors) in panel.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let value = simd.splat_f32s(row[at]);
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = simd.mul_add_f32s(value, *factor, *sum);
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (register, sum) in sums.into_iter().enumerate() {
            let column = first + register * S::F32_LANES;
            finish.finish(simd, first_row + row, column, S::F32_LANES.min(columns - column), sum);
        }
    }
}
