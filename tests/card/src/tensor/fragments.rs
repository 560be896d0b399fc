//! Products of 16 rows and 8 columns of 16-bit values, for all lanes side by side.
//!
//! Lane 4r + c holds four sums: of the rows r and r + 8 and the columns 2c and 2c + 1. Both matrices are spread over the lanes first, so
//! that a sum of all lanes takes the same value of k at the same time.

use crate::half::{Half, WARP};

/// Values of k.
pub const DEPTH: usize = 16;

/// For rows below 8 and from 8 on, and for each k: the value of each lane's row.
pub type Left = [[[f32; WARP]; DEPTH]; 2];

/// For even and odd columns, and for each k: the values of four columns.
pub type Right = [[[f32; 4]; DEPTH]; 2];

/// Sums of all lanes: `2h + p` for half `h` of the rows and parity `p` of the columns.
pub type Sums = [[f32; WARP]; 4];

/// Spreads a left matrix, given by rows.
pub fn left_of_rows<H: Half>(halves: &[[[u16; DEPTH]; 8]; 2]) -> Left {
    let mut left = [[[0.0; WARP]; DEPTH]; 2];
    for (left, rows) in left.iter_mut().zip(halves) {
        for (row, values) in rows.iter().enumerate() {
            for (left, value) in left.iter_mut().zip(values) {
                left[4 * row..][..4].fill(H::from_bits(*value).wide());
            }
        }
    }
    left
}

/// Spreads a left matrix, given by its registers.
pub fn left_of_registers<H: Half>(words: &[[u32; WARP]; 4], left: &mut Left) {
    for (register, words) in words.iter().enumerate() {
        let half = &mut left[register % 2][register / 2 * 8..][..8];
        for (row, words) in words.as_chunks::<4>().0.iter().enumerate() {
            let (low, high) = (words.map(|word| H::low(word)), words.map(|word| H::high(word)));
            for at in 0..4 {
                half[2 * at][4 * row..][..4].fill(low[at]);
                half[2 * at + 1][4 * row..][..4].fill(high[at]);
            }
        }
    }
}

/// Cache of the last left matrix in registers, spread over the lanes.
pub struct Spread {
    words: [[u32; WARP]; 4],
    /// Number of the format.
    format: u8,
    left: Left,
}

impl Default for Spread {
    fn default() -> Self {
        Self { words: [[0; WARP]; 4], format: 0, left: [[[0.0; WARP]; DEPTH]; 2] }
    }
}

impl Spread {
    /// Returns the matrix, spread over the lanes. `format`: another number for each format, from 1.
    pub fn left<H: Half>(&mut self, words: &[[u32; WARP]; 4], format: u8) -> &Left {
        if self.format != format || self.words != *words {
            (self.words, self.format) = (*words, format);
            left_of_registers::<H>(words, &mut self.left);
        }
        &self.left
    }
}

/// Spreads a right matrix, given by columns.
pub fn right_of_columns<H: Half>(columns: &[[u16; DEPTH]; 8]) -> Right {
    let mut right = [[[0.0; 4]; DEPTH]; 2];
    for (parity, right) in right.iter_mut().enumerate() {
        for (k, values) in right.iter_mut().enumerate() {
            *values = std::array::from_fn(|at| H::from_bits(columns[2 * at + parity][k]).wide());
        }
    }
    right
}

/// Spreads a right matrix, given by its registers.
pub fn right_of_registers<H: Half>(words: &[[u32; WARP]; 2]) -> Right {
    let mut right = [[[0.0; 4]; DEPTH]; 2];
    for (parity, right) in right.iter_mut().enumerate() {
        for (register, words) in words.iter().enumerate() {
            for at in 0..4 {
                let words: [u32; 4] = std::array::from_fn(|column| words[4 * (2 * column + parity) + at]);
                right[8 * register + 2 * at] = words.map(|word| H::low(word));
                right[8 * register + 2 * at + 1] = words.map(|word| H::high(word));
            }
        }
    }
    right
}

/// Adds up what `term` gives for each k and lane, in the order of k. Rows are four lanes.
#[inline(always)]
fn sum(depth: usize, term: impl Fn(usize, usize, usize) -> f32) -> [f32; WARP] {
    let mut sums = [[-0.0; 4]; WARP / 4];
    for k in 0..depth {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum += term(k, 4 * row + column, column);
            }
        }
    }
    let mut lanes = [0.0; WARP];
    lanes.as_chunks_mut::<4>().0.copy_from_slice(&sums);
    lanes
}

/// Sums products in the order of k.
pub fn in_order(left: &Left, right: &Right, sums: &mut Sums) {
    for (at, sums) in sums.iter_mut().enumerate() {
        let (left, right) = (&left[at / 2], &right[at % 2]);
        *sums = sum(DEPTH, |k, lane, column| left[k][lane] * right[k][column]);
    }
}

/// Sums products of k and k + 8 first, and these sums then.
pub fn in_parts(left: &Left, right: &Right, sums: &mut Sums) {
    for (at, sums) in sums.iter_mut().enumerate() {
        let (left, right) = (&left[at / 2], &right[at % 2]);
        *sums = sum(DEPTH / 2, |k, lane, column| {
            // Parts start at zero, which drops the sign of a product of zero.
            let part = 0.0 + left[k][lane] * right[k][column];
            part + left[k + DEPTH / 2][lane] * right[k + DEPTH / 2][column]
        });
    }
}
