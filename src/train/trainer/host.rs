//! The head's gradient and update on the CPU, tile by tile.
//!
//! A tile is a few hundred classes, and one thread does all of it, so that its weights, logits and gradient are in the cache for
//! every pass over them. Logits lie class by class, `[classes, rows]`: the layout in which both products read
//! what they need without a copy. The exponential is taken once an element, relative to the tile's own maximum; what
//! the whole row needs comes from the tiles' sums. Threads decide nothing: a tile's numbers do not depend on the
//! others, and tiles are joined in their order.

#![expect(clippy::inline_always, reason = "what `pulp` does not inline is compiled for the oldest CPU")]

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::{ParallelSlice as _, ParallelSliceMut as _};

use super::{Block, CLIP_EPSILON, Engine, Options, Part, Sgd, TrainError};
use crate::predict::scorer::Scorer;
use crate::predict::tiles::download;
use crate::train::HeadState;

/// Classes of a tile: at 768 values 1.5 MB of weights, which a core's cache takes.
const TILE: usize = 512;

/// Lanes of the loops that sum: as wide as any vector, and the same on every CPU.
const LANES: usize = 16;

/// The head in memory.
pub(super) struct Host {
    state: HeadState,
    scratch: Arc<Mutex<Scratch>>,
    losses: Vec<f64>,
    norm: Option<f64>,
}

/// What a step needs and leaves to the next one, of whichever head.
#[derive(Default)]
pub(super) struct Scratch {
    weight_gradient: Vec<f32>,
    bias_gradient: Vec<f32>,
    /// `[classes, rows]` of the block at hand.
    logits: Vec<f32>,
}

impl Host {
    pub(super) fn new(state: HeadState, scratch: Arc<Mutex<Scratch>>) -> Self {
        Self { state, scratch, losses: Vec::new(), norm: None }
    }
}

/// What a tile knows of each row of a block.
struct Seen {
    /// The largest logit.
    max: Vec<f32>,
    /// Sum of `exp(logit − max)`.
    sum: Vec<f32>,
    /// Sum of the logits of the row's own classes, each times its share.
    own: Vec<f64>,
    /// Sum of all logits, where it is needed.
    total: Vec<f64>,
}

impl<B: Backend> Engine<B> for Host {
    fn add(&mut self, part: Part<'_, B>) -> Result<(), TrainError> {
        let Part { features, targets, effective, smoothing, first } = part;
        let from_device;
        let features = match features {
            Block::Host(values) => values,
            Block::Device(values) => {
                from_device = download(values)?;
                &from_device
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
        let seen: Vec<Seen> = tiles
            .map(|(tile, (logits, (weight, bias)))| {
                let weight = MatRef::from_row_major_slice(weight, bias.len(), dim);
                let out = MatMut::from_row_major_slice_mut(logits, bias.len(), rows);
                matmul(out, Accum::Replace, weight, input.transpose(), 1.0, Par::Seq);
                let mut own = vec![0.0; rows];
                let of_tile = tile * TILE..tile * TILE + bias.len();
                for (row, classes) in targets.iter() {
                    let share = 1.0 / classes.len() as f64;
                    for class in classes.iter().map(|class| *class as usize).filter(|class| of_tile.contains(class)) {
                        let within = class - of_tile.start;
                        own[row] += share * f64::from(logits[within * rows + row] + bias[within]);
                    }
                }
                let (max, sum) = (vec![f32::NEG_INFINITY; rows], vec![0.0; rows]);
                let mut seen = Seen { max, sum, own, total: vec![0.0; rows] };
                Arch::new().dispatch(Exponentials { logits, bias, seen: &mut seen, total: smoothing > 0.0 });
                seen
            })
            .collect();

        let (everywhere, own_share) = (smoothing / classes as f64, 1.0 - smoothing);
        let mut loss = 0.0;
        let of_row = |row: usize| {
            let max = seen.iter().map(|tile| f64::from(tile.max[row])).fold(f64::NEG_INFINITY, f64::max);
            let sum = |tile: &Seen| f64::from(tile.sum[row]) * (f64::from(tile.max[row]) - max).exp();
            let lse = max + seen.iter().map(sum).sum::<f64>().ln();
            let own: f64 = seen.iter().map(|tile| tile.own[row]).sum();
            let total: f64 = seen.iter().map(|tile| tile.total[row]).sum();
            loss += lse - own_share * own - everywhere * total;
            lse
        };
        let lse: Vec<f64> = (0..rows).map(of_row).collect();
        self.losses.push(loss);

        let scale = 1.0 / effective as f64;
        let gradients = weight_gradient.par_chunks_mut(TILE * dim).zip(bias_gradient.par_chunks_mut(TILE));
        let tiles = logits.par_chunks_mut(TILE * rows).zip(&seen).zip(gradients).enumerate();
        tiles.for_each(|(tile, ((values, seen), (weight, bias)))| {
            let factors = seen.max.iter().zip(&lse).map(|(max, lse)| (scale * (f64::from(*max) - lse).exp()) as f32);
            let factors: Vec<f32> = factors.collect();
            Arch::new().dispatch(Scaled { values, factors: &factors, less: (everywhere * scale) as f32 });
            let of_tile = tile * TILE..tile * TILE + bias.len();
            for (row, classes) in targets.iter() {
                let share = (own_share * scale / classes.len() as f64) as f32;
                for class in classes.iter().map(|class| *class as usize).filter(|class| of_tile.contains(class)) {
                    values[(class - of_tile.start) * rows + row] -= share;
                }
            }
            for (sum, of_class) in bias.iter_mut().zip(values.chunks_exact(rows)) {
                *sum = if first { 0.0 } else { *sum } + lanes(of_class, |value| value);
            }
            let difference = MatRef::from_row_major_slice(&*values, bias.len(), rows);
            let out = MatMut::from_row_major_slice_mut(weight, bias.len(), dim);
            let how = if first { Accum::Replace } else { Accum::Add };
            matmul(out, how, difference, input, 1.0, Par::Seq);
        });
        Ok(())
    }

    fn update(&mut self, sgd: &Sgd, rate: f64) {
        let dim = self.state.dim;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { weight_gradient, bias_gradient, .. } = &*scratch;
        let mut factor = 1.0;
        if sgd.clip_norm > 0.0 {
            let square = |values: &[f32]| f64::from(Arch::new().dispatch(Squares { values }));
            let tiles: Vec<f64> = weight_gradient.par_chunks(dim * LANES).map(square).collect();
            let norm = (tiles.iter().sum::<f64>() + square(bias_gradient)).sqrt();
            factor = (sgd.clip_norm / (norm + CLIP_EPSILON)).min(1.0);
            self.norm = Some(norm);
        }
        let settings = Step {
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

    fn norm(&self) -> Result<Option<f64>, TrainError> {
        Ok(self.norm)
    }

    fn state(&self) -> Result<Cow<'_, HeadState>, TrainError> {
        Ok(Cow::Borrowed(&self.state))
    }

    fn scorer(&self, options: Options, device: &B::Device) -> Result<Scorer<B>, TrainError> {
        let HeadState { weight, bias, classes, dim, .. } = &self.state;
        Ok(Scorer::new(weight, bias, *classes, *dim, options.blocks, options.compute, device)?)
    }
}

/// Adds the bias of each class, finds the largest logit of each row, and puts `exp(logit − max)` in place.
struct Exponentials<'a> {
    logits: &'a mut [f32],
    bias: &'a [f32],
    seen: &'a mut Seen,
    total: bool,
}

impl WithSimd for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { logits, bias, seen, total } = self;
        let rows = seen.max.len();
        for (of_class, bias) in logits.chunks_exact_mut(rows).zip(bias) {
            for (value, max) in of_class.iter_mut().zip(&mut seen.max) {
                *value += bias;
                *max = if *value > *max { *value } else { *max };
            }
            if total {
                of_class.iter().zip(&mut seen.total).for_each(|(value, total)| *total += f64::from(*value));
            }
        }
        for of_class in logits.chunks_exact_mut(rows) {
            for ((value, max), sum) in of_class.iter_mut().zip(&seen.max).zip(&mut seen.sum) {
                *value = exp(*value - max);
                *sum += *value;
            }
        }
    }
}

/// Makes `values · factor − less` of the values of each class, with a factor for each row.
struct Scaled<'a> {
    values: &'a mut [f32],
    factors: &'a [f32],
    less: f32,
}

impl WithSimd for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for of_class in self.values.chunks_exact_mut(self.factors.len()) {
            for (value, factor) in of_class.iter_mut().zip(self.factors) {
                *value = *value * factor - self.less;
            }
        }
    }
}

/// The sum of the squares.
struct Squares<'a> {
    values: &'a [f32],
}

impl WithSimd for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        lanes(self.values, |value| value * value)
    }
}

/// Sums in as many lanes as a vector has at most, so that the order is the same on every CPU.
#[inline(always)]
fn lanes(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for chunk in whole {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += of(*value));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| of(*value)).sum::<f32>()
}

#[derive(Clone, Copy)]
struct Step {
    factor: f32,
    decay: f32,
    momentum: f32,
    rate: f32,
}

struct Update<'a> {
    values: &'a mut [f32],
    velocity: &'a mut [f32],
    gradient: &'a [f32],
    settings: Step,
}

impl WithSimd for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Step { factor, decay, momentum, rate } = self.settings;
        for ((value, velocity), gradient) in self.values.iter_mut().zip(self.velocity).zip(self.gradient) {
            let gradient = gradient * factor + decay * *value;
            // Without momentum PyTorch has no velocity; here it stays what it was.
            let moved = if momentum > 0.0 { momentum * *velocity + gradient } else { gradient };
            *velocity = if momentum > 0.0 { moved } else { *velocity };
            *value -= rate * moved;
        }
    }
}

/// `eˣ` for x ≤ 0, to 2 units in the last place; 0 below -87, and what is no number stays none.
///
/// The steps and coefficients are those of `expf` in Moshier's Cephes library (netlib.org/cephes), in a form that vectorises.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, whose bits are then the lowest of the sum.
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
    fn the_exponential_is_that_of_the_standard_library_to_its_last_places() {
        for step in 0..=870_000 {
            let x = -f32::from(u16::try_from(step % 10_000).unwrap()) * 1e-4 - (step / 10_000) as f32;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 2.5e-7 * expected, "{x}: {found} {expected}");
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_take_every_value_once() {
        for length in [0, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..length).map(|value| value as f32).collect();
            assert!((lanes(&values, |value| value) - values.iter().sum::<f32>()).abs() < 0.5);
        }
    }
}
