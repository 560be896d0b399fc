//! Linear layers whose outputs are finished in registers.

use pulp::{Arch, Simd, WithSimd};

use super::functions::activate;
use super::product::{Finish, Packed, Rows};
use crate::model::config::Activation;

/// Linear layer, `x · weight + bias`.
#[derive(Debug)]
pub(in crate::model) struct Linear {
    weight: Packed,
    bias: Vec<f32>,
}

impl Linear {
    /// Packs a weight in torch's layout, `[out, in]`.
    pub(in crate::model) fn new(arch: Arch, weight: &[f32], bias: Option<Vec<f32>>, input: usize, out: usize) -> Self {
        struct Pack<'a>(&'a [f32], usize, usize);
        impl WithSimd for Pack<'_> {
            type Output = Packed;

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Packed {
                let mut packed = Packed::default();
                packed.pack_transposed::<S>(self.0, self.1, self.1, self.2);
                packed
            }
        }
        Self { weight: arch.dispatch(Pack(weight, input, out)), bias: bias.unwrap_or_else(|| vec![0.0; out]) }
    }

    /// Maps rows to `[rows, out]`, and applies an activation function if there is one.
    #[inline(always)]
    pub(super) fn store<S: Simd>(&self, simd: S, input: Rows<'_>, activation: Option<Activation>, out: &mut [f32]) {
        self.weight.multiply(simd, input, &mut Store { linear: self, activation, out });
    }

    /// Maps rows to `[rows, out]`, multiplies by `scale` and adds the result to `states`.
    #[inline(always)]
    pub(super) fn add<S: Simd>(&self, simd: S, input: Rows<'_>, scale: Option<&[f32]>, states: &mut [f32]) {
        self.weight.multiply(simd, input, &mut Add { linear: self, scale, states });
    }
}

struct Store<'a> {
    linear: &'a Linear,
    activation: Option<Activation>,
    out: &'a mut [f32],
}

impl Finish for Store<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, row: usize, column: usize, used: usize, sums: S::f32s) {
        let bias = &self.linear.bias;
        let sums = simd.add_f32s(sums, simd.partial_load_f32s(&bias[column..][..used]));
        let values = match self.activation {
            Some(kind) => activate(simd, kind, sums),
            None => sums,
        };
        simd.partial_store_f32s(&mut self.out[row * bias.len() + column..][..used], values);
    }
}

struct Add<'a> {
    linear: &'a Linear,
    scale: Option<&'a [f32]>,
    states: &'a mut [f32],
}

impl Finish for Add<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, row: usize, column: usize, used: usize, sums: S::f32s) {
        let bias = &self.linear.bias;
        let sums = simd.add_f32s(sums, simd.partial_load_f32s(&bias[column..][..used]));
        let states = &mut self.states[row * bias.len() + column..][..used];
        let old = simd.partial_load_f32s(states);
        let new = match self.scale {
            Some(scale) => simd.mul_add_f32s(sums, simd.partial_load_f32s(&scale[column..][..used]), old),
            None => simd.add_f32s(sums, old),
        };
        simd.partial_store_f32s(states, new);
    }
}
