//! Computes gradient and update of the head on the CPU, tile by tile.
//!
//! A tile has a few hundred classes and is processed by one thread, so its weights, logits and gradient stay in the
//! cache. Logits are `[classes, rows]`, the layout that both products read without a copy. The exponential is computed
//! once for each element, relative to the maximum of the tile; row sums are combined from the sums of the tiles (online
//! softmax, Milakov and Gimelshein 2018). Tiles are independent and are joined in order, so the result does not depend
//! on the number of threads.

#![expect(
    clippy::inline_always,
    reason = "`pulp` compiles functions that are not inlined for the oldest supported CPU"
)]

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::{ParallelSlice as _, ParallelSliceMut as _};

use super::engine::{Engine, RowTile, TileFeatures};
use super::{CLIP_EPSILON, Options, Sgd, TrainError};
use crate::predict::PredictError;
use crate::predict::scorer::Scorer;
use crate::predict::tiles::download;
use crate::train::HeadState;

/// Classes of a tile. At 768 values a class these are 1.5 MB of weights, which fit into a core's cache.
const TILE: usize = 512;

/// SIMD lanes of sums: the width of the widest vector, and fixed, so that every CPU sums in the same order.
const LANES: usize = 16;

/// Training engine on the CPU.
pub(super) struct CpuEngine {
    state: HeadState,
    scratch: Arc<Mutex<Scratch>>,
    losses: Vec<f64>,
    grad_norm: Option<f64>,
}

/// Buffers that steps of all heads share.
#[derive(Default)]
pub(super) struct Scratch {
    weight_gradient: Vec<f32>,
    bias_gradient: Vec<f32>,
    /// Logits of the current row tile, `[classes, rows]`.
    logits: Vec<f32>,
}

impl CpuEngine {
    pub(super) fn new(state: HeadState, scratch: Arc<Mutex<Scratch>>) -> Self {
        Self { state, scratch, losses: Vec::new(), grad_norm: None }
    }
}

/// Statistics of a class tile for each row.
struct TileStatistics {
    /// Largest logit.
    max: Vec<f32>,
    /// Sum of `exp(logit − max)`.
    sum: Vec<f32>,
    /// Sum of the logits of the row's target classes, weighted by their shares.
    target: Vec<f64>,
    /// Sum of all logits; 0 without label smoothing.
    total: Vec<f64>,
}

impl<B: Backend> Engine<B> for CpuEngine {
    fn kernels(&self) -> &'static str {
        "direct"
    }

    fn add_tile(&mut self, tile: RowTile<'_, B>) -> Result<(), TrainError> {
        let RowTile { features, targets, effective, smoothing, first } = tile;
        let downloaded;
        let features = match features {
            TileFeatures::Host(values) => values,
            TileFeatures::Device(values) => {
                downloaded = download(values)?;
                &downloaded
            }
            TileFeatures::Card(rows, indices) => {
                downloaded = rows.read(indices).map_err(PredictError::Device)?;
                &downloaded
            }
        };
        let HeadState { classes, dim, .. } = self.state;
        let rows = targets.rows();
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { weight_gradient, bias_gradient, logits } = &mut *scratch;
        weight_gradient.resize(classes * dim, 0.0);
        bias_gradient.resize(classes, 0.0);
        logits.resize(classes * rows, 0.0);
        let input = MatRef::from_row_major_slice(features, rows, dim);

        let weights = self.state.weight.par_chunks(TILE * dim).zip(self.state.bias.par_chunks(TILE));
        let tiles = logits.par_chunks_mut(TILE * rows).zip(weights).enumerate();
        let statistics: Vec<TileStatistics> = tiles
            .map(|(tile, (logits, (weight, bias)))| {
                let weight = MatRef::from_row_major_slice(weight, bias.len(), dim);
                let out = MatMut::from_row_major_slice_mut(logits, bias.len(), rows);
                matmul(out, Accum::Replace, weight, input.transpose(), 1.0, Par::Seq);
                let mut target = vec![0.0; rows];
                let tile_classes = tile * TILE..tile * TILE + bias.len();
                for (row, classes) in targets.iter() {
                    let share = 1.0 / classes.len() as f64;
                    for class in
                        classes.iter().map(|class| *class as usize).filter(|class| tile_classes.contains(class))
                    {
                        let within = class - tile_classes.start;
                        target[row] += share * f64::from(logits[within * rows + row] + bias[within]);
                    }
                }
                let (max, sum) = (vec![f32::NEG_INFINITY; rows], vec![0.0; rows]);
                let mut statistics = TileStatistics { max, sum, target, total: vec![0.0; rows] };
                let with_total = smoothing > 0.0;
                Arch::new().dispatch(Exponentials { logits, bias, statistics: &mut statistics, with_total });
                statistics
            })
            .collect();

        let (uniform_share, target_share) = (smoothing / classes as f64, 1.0 - smoothing);
        let mut loss = 0.0;
        let row_lse = |row: usize| {
            let max = statistics.iter().map(|tile| f64::from(tile.max[row])).fold(f64::NEG_INFINITY, f64::max);
            let sum = |tile: &TileStatistics| f64::from(tile.sum[row]) * (f64::from(tile.max[row]) - max).exp();
            let lse = max + statistics.iter().map(sum).sum::<f64>().ln();
            let target: f64 = statistics.iter().map(|tile| tile.target[row]).sum();
            let total: f64 = statistics.iter().map(|tile| tile.total[row]).sum();
            loss += lse - target_share * target - uniform_share * total;
            lse
        };
        let lse: Vec<f64> = (0..rows).map(row_lse).collect();
        self.losses.push(loss);

        let scale = 1.0 / effective as f64;
        let gradients = weight_gradient.par_chunks_mut(TILE * dim).zip(bias_gradient.par_chunks_mut(TILE));
        let tiles = logits.par_chunks_mut(TILE * rows).zip(&statistics).zip(gradients).enumerate();
        tiles.for_each(|(tile, ((values, statistics), (weight, bias)))| {
            let factors =
                statistics.max.iter().zip(&lse).map(|(max, lse)| (scale * (f64::from(*max) - lse).exp()) as f32);
            let factors: Vec<f32> = factors.collect();
            Arch::new().dispatch(ScaleRows { values, factors: &factors, less: (uniform_share * scale) as f32 });
            let tile_classes = tile * TILE..tile * TILE + bias.len();
            for (row, classes) in targets.iter() {
                let share = (target_share * scale / classes.len() as f64) as f32;
                for class in classes.iter().map(|class| *class as usize).filter(|class| tile_classes.contains(class)) {
                    values[(class - tile_classes.start) * rows + row] -= share;
                }
            }
            for (sum, row_values) in bias.iter_mut().zip(values.chunks_exact(rows)) {
                *sum = if first { 0.0 } else { *sum } + sum_in_lanes(row_values, |value| value);
            }
            let difference = MatRef::from_row_major_slice(&*values, bias.len(), rows);
            let out = MatMut::from_row_major_slice_mut(weight, bias.len(), dim);
            let accumulate = if first { Accum::Replace } else { Accum::Add };
            matmul(out, accumulate, difference, input, 1.0, Par::Seq);
        });
        Ok(())
    }

    fn update(&mut self, sgd: &Sgd, rate: f64) {
        let dim = self.state.dim;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { weight_gradient, bias_gradient, .. } = &*scratch;
        let mut factor = 1.0;
        if sgd.clip_norm > 0.0 {
            let square = |values: &[f32]| f64::from(Arch::new().dispatch(SumSquares { values }));
            let tiles: Vec<f64> = weight_gradient.par_chunks(dim * LANES).map(square).collect();
            let norm = (tiles.iter().sum::<f64>() + square(bias_gradient)).sqrt();
            factor = (sgd.clip_norm / (norm + CLIP_EPSILON)).min(1.0);
            self.grad_norm = Some(norm);
        }
        let settings = UpdateSettings {
            factor: factor as f32,
            decay: sgd.weight_decay as f32,
            momentum: sgd.momentum as f32,
            rate: rate as f32,
        };
        let HeadState { weight, bias, weight_momentum, bias_momentum, .. } = &mut self.state;
        let tiles = weight.par_chunks_mut(TILE * dim).zip(weight_momentum.par_chunks_mut(TILE * dim));
        tiles.zip(weight_gradient.par_chunks(TILE * dim)).for_each(|((values, velocity), gradient)| {
            Arch::new().dispatch(Update { values, velocity, gradient, settings });
        });
        Arch::new().dispatch(Update { values: bias, velocity: bias_momentum, gradient: bias_gradient, settings });
    }

    fn take_losses(&mut self) -> Result<Vec<f64>, TrainError> {
        Ok(std::mem::take(&mut self.losses))
    }

    fn grad_norm(&self) -> Result<Option<f64>, TrainError> {
        Ok(self.grad_norm)
    }

    fn state(&self) -> Result<Cow<'_, HeadState>, TrainError> {
        Ok(Cow::Borrowed(&self.state))
    }

    fn scorer(&self, options: Options, device: &B::Device) -> Result<Scorer<B>, TrainError> {
        let HeadState { weight, bias, classes, dim, .. } = &self.state;
        Ok(Scorer::new(weight, bias, *classes, *dim, options.tiling, options.compute, device)?)
    }
}

/// Adds the bias of each class, finds the maximum of each row, and replaces each logit by `exp(logit − max)`.
struct Exponentials<'a> {
    logits: &'a mut [f32],
    bias: &'a [f32],
    statistics: &'a mut TileStatistics,
    with_total: bool,
}

impl WithSimd for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { logits, bias, statistics, with_total } = self;
        let rows = statistics.max.len();
        for (row_values, bias) in logits.chunks_exact_mut(rows).zip(bias) {
            for (value, max) in row_values.iter_mut().zip(&mut statistics.max) {
                *value += bias;
                *max = if *value > *max { *value } else { *max };
            }
            if with_total {
                row_values.iter().zip(&mut statistics.total).for_each(|(value, total)| *total += f64::from(*value));
            }
        }
        for row_values in logits.chunks_exact_mut(rows) {
            for ((value, max), sum) in row_values.iter_mut().zip(&statistics.max).zip(&mut statistics.sum) {
                *value = exp(*value - max);
                *sum += *value;
            }
        }
    }
}

/// Replaces each value of `[classes, rows]` by `value · factor − less`, with one factor for each row.
struct ScaleRows<'a> {
    values: &'a mut [f32],
    factors: &'a [f32],
    less: f32,
}

impl WithSimd for ScaleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row_values in self.values.chunks_exact_mut(self.factors.len()) {
            for (value, factor) in row_values.iter_mut().zip(self.factors) {
                *value = *value * factor - self.less;
            }
        }
    }
}

/// Computes the sum of the squares.
struct SumSquares<'a> {
    values: &'a [f32],
}

impl WithSimd for SumSquares<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        sum_in_lanes(self.values, |value| value * value)
    }
}

/// Sums `f(value)` in [`LANES`] partial sums, so that the order of additions is the same on every CPU.
#[inline(always)]
fn sum_in_lanes(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for chunk in whole {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += f(*value));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| f(*value)).sum::<f32>()
}

/// Factors of an update in f32.
#[derive(Clone, Copy)]
struct UpdateSettings {
    factor: f32,
    decay: f32,
    momentum: f32,
    rate: f32,
}

/// Updates values and velocity with a gradient.
struct Update<'a> {
    values: &'a mut [f32],
    velocity: &'a mut [f32],
    gradient: &'a [f32],
    settings: UpdateSettings,
}

impl WithSimd for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let UpdateSettings { factor, decay, momentum, rate } = self.settings;
        for ((value, velocity), gradient) in self.values.iter_mut().zip(self.velocity).zip(self.gradient) {
            let gradient = gradient * factor + decay * *value;
            // Without momentum, PyTorch has no velocity; here it is left unchanged.
            let moved = if momentum > 0.0 { momentum * *velocity + gradient } else { gradient };
            *velocity = if momentum > 0.0 { moved } else { *velocity };
            *value -= rate * moved;
        }
    }
}

/// Computes `eˣ` for x ≤ 0 with an error of at most 2 units in the last place; 0 below −87, NaN for NaN.
///
/// Algorithm and coefficients are from `expf` in Moshier's Cephes library (netlib.org/cephes), in a form that
/// vectorises.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³. Adding it rounds to an integer, which then occupies the lowest bits of the sum.
    const ROUNDER: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut series = 1.987_569_1e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = series * rest + coefficient;
    }
    let fraction = series * rest * rest + rest + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { fraction * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_matches_standard_library() {
        for step in 0..=870_000 {
            let x = -f32::from(u16::try_from(step % 10_000).unwrap()) * 1e-4 - (step / 10_000) as f32;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 2.5e-7 * expected, "{x}: {found} {expected}");
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sum_in_lanes_covers_every_value() {
        for length in [0, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..length).map(|value| value as f32).collect();
            assert!((sum_in_lanes(&values, |value| value) - values.iter().sum::<f32>()).abs() < 0.5);
        }
    }
}
