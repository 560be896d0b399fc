//! The head on the host: one linear layer and its momentum, as plain vectors.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Standard deviation of fresh weights: `initializer_range` of the published `ViT` configurations.
const INITIAL_STD: f64 = 0.02;

/// Weights and momentum of a linear layer from `dim` values to `classes` logits; all in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadState {
    /// Classes, at least 1.
    pub classes: usize,
    /// Values of a feature, at least 1.
    pub dim: usize,
    /// `[classes, dim]`, row-major, as `PyTorch`'s `Linear.weight`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
    /// `[classes, dim]`: the momentum buffer of the weight.
    pub weight_momentum: Vec<f32>,
    /// `[classes]`: the momentum buffer of the bias.
    pub bias_momentum: Vec<f32>,
}

impl HeadState {
    /// A fresh head: weights normal with standard deviation 0.02, everything else zero.
    ///
    /// A pure function of its arguments. The normal numbers are made here (Box and Muller 1958) from the stream of
    /// `ChaCha8`, which never changes; a library's distribution may.
    pub fn init(classes: usize, dim: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let values = classes * dim;
        let mut weight = Vec::with_capacity(values + 1);
        while weight.len() < values {
            // In (0, 1], so that the logarithm is finite.
            let radius = (-2.0 * (1.0 - unit(&mut random)).ln()).sqrt() * INITIAL_STD;
            let (sin, cos) = (std::f64::consts::TAU * unit(&mut random)).sin_cos();
            weight.push((radius * cos) as f32);
            weight.push((radius * sin) as f32);
        }
        weight.truncate(values);
        Self {
            classes,
            dim,
            weight,
            bias: vec![0.0; classes],
            weight_momentum: vec![0.0; values],
            bias_momentum: vec![0.0; classes],
        }
    }

    /// Name, actual and expected length of the first vector whose length does not fit the dims.
    pub fn misfit(&self) -> Option<(&'static str, usize, usize)> {
        let matrix = self.classes.saturating_mul(self.dim);
        [
            ("weight", self.weight.len(), matrix),
            ("bias", self.bias.len(), self.classes),
            ("weight_momentum", self.weight_momentum.len(), matrix),
            ("bias_momentum", self.bias_momentum.len(), self.classes),
        ]
        .into_iter()
        .find(|(_, actual, expected)| actual != expected)
    }
}

/// Uniform in [0, 1), 53 bits.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_weights_have_the_published_spread_and_follow_the_seed() {
        let head = HeadState::init(301, 33, 5);
        assert_eq!(head.misfit(), None);
        let count = head.weight.len() as f64;
        let mean = head.weight.iter().map(|&w| f64::from(w)).sum::<f64>() / count;
        let square = head.weight.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / count;
        assert!(mean.abs() < 1e-3, "mean {mean}");
        assert!((square.sqrt() - INITIAL_STD).abs() < 5e-4, "std {}", square.sqrt());
        assert!(head.bias.iter().all(|&b| b == 0.0));
        assert_eq!(head, HeadState::init(301, 33, 5));
        assert_ne!(head.weight, HeadState::init(301, 33, 6).weight);
    }

    #[test]
    fn an_odd_number_of_weights_is_filled() {
        assert_eq!(HeadState::init(3, 3, 0).weight.len(), 9);
    }
}
