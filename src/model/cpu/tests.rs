//! Compares the direct path with straightforward code in f64, and its outputs among batches and CPUs.

use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};

use super::functions::{activate, exponentials};
use super::product::{Finish, Packed, Rows};
use super::{Block, Blocks, Inner, Linear, Norm, NormOrder, Rotation};
use crate::model::config::Activation;
use crate::model::pooling::PooledTokens;

const ACTIVATIONS: [Activation; 5] =
    [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::QuickGelu, Activation::Silu];

/// Returns every set of vectors of this CPU.
fn archs() -> Vec<Arch> {
    let mut archs = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    archs.push(Arch::new());
    archs
}

/// Returns values in [-1, 1] without a pattern.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mix = |at: usize| (at as u32 ^ seed.wrapping_mul(0x1234_5679)).wrapping_mul(0x9E37_79B1).rotate_left(15);
    (0..count).map(|at| mix(at).wrapping_mul(0x85EB_CA77) as f32 / (1u32 << 31) as f32 - 1.0).collect()
}

/// Returns the error function by its series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

fn reference_activation(kind: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        Activation::Gelu => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x * 0.5 * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
    }
}

struct Activate<'a>(Activation, &'a mut [f32]);

impl WithSimd for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for part in self.1.chunks_mut(S::F32_LANES) {
            simd.partial_store_f32s(part, activate(simd, self.0, simd.partial_load_f32s(part)));
        }
    }
}

#[test]
fn activations_match_f64() {
    for kind in ACTIVATIONS {
        let inputs: Vec<f32> = (-550..=550).map(|at| at as f32 / 100.0).chain([-1e30, -90.0, 90.0, 1e4]).collect();
        for arch in archs() {
            let mut found = inputs.clone();
            arch.dispatch(Activate(kind, &mut found));
            for (x, found) in inputs.iter().zip(found) {
                // The series does not converge for large values.
                let large = if *x > 0.0 { f64::from(*x) } else { 0.0 };
                let wanted = if x.abs() > 50.0 { large } else { reference_activation(kind, f64::from(*x)) };
                let most = 1e-6 * wanted.abs().max(1.0);
                assert!((f64::from(found) - wanted).abs() <= most, "{kind:?}({x}) = {found}, not {wanted}");
            }
        }
    }
}

struct Exponentials<'a>(&'a mut [f32]);

impl WithSimd for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        exponentials(simd, self.0)
    }
}

#[test]
fn softmax_matches_f64_at_any_offset() {
    for offset in [0.0, -300.0, 300.0] {
        let mut values: Vec<f32> = noise(48, 3).iter().map(|value| value * 20.0 + offset).collect();
        values[40..].fill(f32::MIN);
        let exact: Vec<f64> = values.iter().map(|value| f64::from(*value - offset).exp()).collect();
        let total: f64 = exact.iter().sum();
        for arch in archs() {
            let mut found = values.clone();
            let sum = arch.dispatch(Exponentials(&mut found));
            for (found, exact) in found.iter().zip(&exact) {
                assert!((f64::from(found / sum) - exact / total).abs() < 3e-6, "{found} / {sum}, {exact} / {total}");
            }
        }
    }
}

struct Collect<'a>(&'a mut [f32], usize);

impl Finish for Collect<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, row: usize, column: usize, used: usize, sums: S::f32s) {
        simd.partial_store_f32s(&mut self.0[row * self.1 + column..][..used], sums);
    }
}

struct Product<'a>(&'a [f32], &'a [f32], [usize; 3], bool);

impl WithSimd for Product<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let [rows, depth, columns] = self.2;
        let mut packed = Packed::default();
        // An earlier matrix leaves values in memory.
        packed.pack::<S>(&[f32::NAN; 4096], 64, 64, 64);
        if self.3 {
            packed.pack_transposed::<S>(self.1, depth, depth, columns);
        } else {
            packed.pack::<S>(self.1, columns, depth, columns);
        }
        let mut out = vec![f32::NAN; rows * columns];
        let left = Rows { values: self.0, stride: depth + 1, count: rows };
        packed.multiply(simd, left, &mut Collect(&mut out, columns));
        out
    }
}

#[test]
fn products_match_f64_for_any_shape() {
    for shape in [[1, 1, 1], [3, 5, 17], [9, 7, 49], [13, 33, 96], [21, 64, 100], [4, 2, 15]] {
        let [rows, depth, columns] = shape;
        let (left, right) = (noise(rows * (depth + 1), 1), noise(depth * columns, 2));
        let wanted = |row: usize, column: usize, transposed: bool| -> f64 {
            let at = |step: usize| if transposed { column * depth + step } else { step * columns + column };
            let terms = (0..depth).map(|step| f64::from(left[row * (depth + 1) + step]) * f64::from(right[at(step)]));
            terms.sum()
        };
        for transposed in [false, true] {
            let mut first: Option<Vec<f32>> = None;
            for arch in archs() {
                let found = arch.dispatch(Product(&left, &right, shape, transposed));
                for (at, value) in found.iter().enumerate() {
                    let wanted = wanted(at / columns, at % columns, transposed);
                    assert!((f64::from(*value) - wanted).abs() < 1e-5, "{shape:?}: {value}, not {wanted}");
                }
                assert_eq!(first.get_or_insert(found.clone()), &found, "{shape:?}: other bits on another CPU");
            }
        }
    }
}

/// Positions of the tokens of sequences of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Positions {
    None,
    Rotary { tokens: usize },
    Bias { tokens: usize },
}

/// Returns two blocks of 3 heads of 8 values.
fn blocks(arch: Arch, order: NormOrder, gated: bool, positions: Positions) -> Blocks {
    let (hidden, inner) = (24, 40);
    let outputs = if gated { 2 * inner } else { inner };
    let linear = |input: usize, out: usize, seed: u32| {
        Linear::new(arch, &noise(input * out, seed), Some(noise(out, seed + 1)), input, out)
    };
    let norm = |seed| Norm { gamma: noise(hidden, seed), beta: noise(hidden, seed + 1), epsilon: 1e-6 };
    let block = |seed: u32| Block {
        attention_norm: norm(seed),
        query_key_value: linear(hidden, 3 * hidden, seed + 2),
        attention_output: linear(hidden, hidden, seed + 4),
        attention_scale: Some(noise(hidden, seed + 6)),
        mlp_norm: norm(seed + 7),
        inner: Inner { projection: linear(hidden, outputs, seed + 9), activation: Activation::Gelu, gated, outputs },
        outer: linear(inner, hidden, seed + 11),
        mlp_scale: None,
        bias: match positions {
            Positions::Bias { tokens } => Some(Arc::new(noise(3 * tokens * tokens, seed + 13))),
            _ => None,
        },
    };
    let rotation = match positions {
        Positions::Rotary { tokens } => Some(Rotation { cosine: noise(tokens * 8, 1), sine: noise(tokens * 8, 2) }),
        _ => None,
    };
    Blocks::new(arch, order, [hidden, 3], rotation, vec![block(20), block(40)])
}

#[test]
fn outputs_do_not_depend_on_batch_or_cpu() {
    for (order, gated) in [(NormOrder::Pre, false), (NormOrder::Pre, true), (NormOrder::Post, false)] {
        let lengths = [5, 0, 1, 70, 12, 3];
        let tokens: usize = lengths.iter().sum();
        let input = noise(tokens * 24, 7);
        let mut first: Option<Vec<f32>> = None;
        for arch in archs() {
            let blocks = blocks(arch, order, gated, Positions::None);
            let mut together = input.clone();
            blocks.apply(0..2, &mut together, &lengths, PooledTokens::All);
            let mut alone = input.clone();
            let mut rest = alone.as_mut_slice();
            for tokens in lengths {
                let (own, others) = rest.split_at_mut(tokens * 24);
                blocks.apply(0..1, own, &[tokens], PooledTokens::All);
                blocks.apply(1..2, own, &[tokens], PooledTokens::All);
                rest = others;
            }
            assert!(together.iter().all(|value| value.is_finite()));
            assert_eq!(together, alone, "{order:?}, gated: {gated}");
            assert_eq!(first.get_or_insert(together.clone()), &together, "other bits on another CPU");
        }
    }
}

#[test]
fn first_token_alone_has_the_bits_of_a_whole_block() {
    let of_any_length: [usize; 6] = [2, 0, 1, 70, 12, 3];
    let of_one_length = [70; 5];
    let equal = |positions| (NormOrder::Pre, false, positions, of_one_length.as_slice());
    for (order, gated, positions, lengths) in [
        (NormOrder::Pre, false, Positions::None, of_any_length.as_slice()),
        (NormOrder::Pre, true, Positions::None, &of_any_length),
        (NormOrder::Post, false, Positions::None, &of_any_length),
        equal(Positions::Rotary { tokens: 70 }),
        equal(Positions::Bias { tokens: 70 }),
    ] {
        let input = noise(lengths.iter().sum::<usize>() * 24, 7);
        for arch in archs() {
            let blocks = blocks(arch, order, gated, positions);
            let apply = |pooled| {
                let mut states = input.clone();
                blocks.apply(0..2, &mut states, lengths, pooled);
                states
            };
            let (whole, short) = (apply(PooledTokens::All), apply(PooledTokens::First));
            assert_ne!(whole, short, "the other tokens were computed");
            let mut first = 0;
            for tokens in lengths.iter().filter(|tokens| **tokens > 0) {
                let own = first * 24..(first + 1) * 24;
                assert_eq!(short[own.clone()], whole[own], "{order:?}, gated: {gated}, {positions:?}, token {first}");
                first += tokens;
            }
        }
    }
}

#[test]
fn rotation_turns_queries_and_keys_alone() {
    let quarter = Rotation { cosine: vec![0.0; 4], sine: vec![1.0; 4] };
    // One token, one head of four values.
    let mut values: Vec<f32> = (1..=12).map(|value| value as f32).collect();
    quarter.apply(&mut values, 4);
    assert_eq!(values, [-3.0, -4.0, 1.0, 2.0, -7.0, -8.0, 5.0, 6.0, 9.0, 10.0, 11.0, 12.0]);
}
