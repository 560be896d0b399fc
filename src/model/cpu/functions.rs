//! Functions of vectors: exponential, activation functions, softmax and layer normalisation.

use pulp::Simd;

use crate::model::config::Activation;

/// Partial sums of a row: a multiple of the widest vector, and fixed, so that every CPU sums in the same order.
const LANES: usize = 32;

/// Computes eˣ with a relative error of 2⁻²³. Values below -86 count as -86, those above 88 as 88.
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 1.5 · 2²³: a sum with it rounds to an integer, which its low bits hold.
    let round = simd.splat_f32s(12_582_912.0);
    let x = simd.min_f32s(simd.max_f32s(x, simd.splat_f32s(-86.0)), simd.splat_f32s(88.0));
    let shifted = simd.mul_add_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), round);
    let power = simd.sub_f32s(shifted, round);
    // ln 2 in two parts, the first of which is exact in few bits.
    let rest = simd.mul_add_f32s(power, simd.splat_f32s(-0.693_359_4), x);
    let rest = simd.mul_add_f32s(power, simd.splat_f32s(2.121_944_4e-4), rest);
    // Coefficients of Cephes' expf.
    let mut sum = simd.splat_f32s(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        sum = simd.mul_add_f32s(sum, rest, simd.splat_f32s(coefficient));
    }
    // Adds the power to the exponent's bits.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(sum), exponent))
}

/// Computes σ(x) = 1 / (1 + e⁻ˣ).
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// Computes x·Φ(x) by the error function of Abramowitz and Stegun, 7.1.26, whose absolute error is 1.5 · 10⁻⁷. It is
/// the formula of torch's kernels.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let size = simd.abs_f32s(x);
    let y = simd.mul_f32s(size, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
    let one = simd.splat_f32s(1.0);
    let t = simd.div_f32s(one, simd.mul_add_f32s(y, simd.splat_f32s(0.327_591_1), one));
    let mut sum = simd.splat_f32s(1.061_405_4);
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        sum = simd.mul_add_f32s(sum, t, simd.splat_f32s(coefficient));
    }
    // The complement of the error function of |x| / √2.
    let tail = simd.mul_f32s(simd.mul_f32s(sum, t), exp(simd, simd.neg_f32s(simd.mul_f32s(y, y))));
    let half = simd.mul_f32s(size, simd.splat_f32s(-0.5));
    simd.mul_add_f32s(half, tail, simd.max_f32s(x, simd.splat_f32s(0.0)))
}

/// Applies an activation function.
#[inline(always)]
pub(super) fn activate<S: Simd>(simd: S, kind: Activation, x: S::f32s) -> S::f32s {
    let gate = match kind {
        Activation::Gelu => return gelu(simd, x),
        Activation::Relu => return simd.max_f32s(x, simd.splat_f32s(0.0)),
        Activation::Silu => x,
        Activation::QuickGelu => simd.mul_f32s(x, simd.splat_f32s(1.702)),
        // x · (1 + tanh(z)) / 2 = x · σ(2z), z = √(2/π) · (x + 0.044715 x³).
        Activation::GeluTanh => {
            let cubic = simd.mul_f32s(simd.mul_f32s(x, x), simd.splat_f32s(0.044_715));
            let inner = simd.mul_add_f32s(cubic, x, x);
            simd.mul_f32s(inner, simd.splat_f32s(2.0 * 0.797_884_6))
        }
    };
    simd.mul_f32s(x, sigmoid(simd, gate))
}

/// Replaces the gates, the first half of each row, by `activation(gate) · up`; the second half are the `up` values.
#[inline(always)]
pub(super) fn gate<S: Simd>(simd: S, kind: Activation, rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(2 * width) {
        let (gates, ups) = row.split_at_mut(width);
        for (gates, ups) in gates.chunks_mut(S::F32_LANES).zip(ups.chunks(S::F32_LANES)) {
            let value = activate(simd, kind, simd.partial_load_f32s(gates));
            simd.partial_store_f32s(gates, simd.mul_f32s(value, simd.partial_load_f32s(ups)));
        }
    }
}

/// Replaces values by their exponentials relative to the largest, and returns the sum of these. The length is a multiple
/// of every vector's.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(simd: S, values: &mut [f32]) -> f32 {
    let registers = S::as_mut_simd_f32s(values).0;
    let mut largest = simd.splat_f32s(f32::MIN);
    for value in registers.iter() {
        largest = simd.max_f32s(largest, *value);
    }
    let largest = simd.splat_f32s(simd.reduce_max_f32s(largest));
    for value in registers {
        *value = exp(simd, simd.sub_f32s(*value, largest));
    }
    sum(values, |value| value)
}

/// Sums terms in an order that only the length decides.
#[inline(always)]
fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += term(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += term(*value);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for at in 0..width {
            lanes[at] += lanes[at + width];
        }
    }
    lanes[0]
}

/// Layer normalisation of rows.
#[derive(Debug)]
pub(in crate::model) struct Norm {
    pub(in crate::model) gamma: Vec<f32>,
    pub(in crate::model) beta: Vec<f32>,
    pub(in crate::model) epsilon: f32,
}

impl Norm {
    /// Normalises a row in place, with two passes for the moments, since one pass would cancel.
    #[inline(always)]
    pub(super) fn normalise(&self, row: &mut [f32]) {
        let count = row.len() as f32;
        let mean = sum(row, |value| value) / count;
        let variance = sum(row, |value| (value - mean) * (value - mean)) / count;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for (value, (gamma, beta)) in row.iter_mut().zip(self.gamma.iter().zip(&self.beta)) {
            *value = (*value - mean) * scale * gamma + beta;
        }
    }
}
