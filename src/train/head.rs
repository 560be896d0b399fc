//! Host state of a classifier head: a linear layer and its momentum.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Standard deviation of initial weights, the `initializer_range` of published `ViT` configurations.
const INITIAL_STD: f64 = 0.02;

/// Weights and momentum of a linear layer from features, `[rows, dim]`, to logits, `[rows, classes]`.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadState {
    /// Number of classes, at least 1.
    pub classes: usize,
    /// Width of a feature, at least 1.
    pub dim: usize,
    /// Weight, `[classes, dim]`, row-major, as in `torch.nn.Linear`.
    pub weight: Vec<f32>,
    /// Bias, `[classes]`.
    pub bias: Vec<f32>,
    /// Momentum buffer of the weight, `[classes, dim]`.
    pub weight_momentum: Vec<f32>,
    /// Momentum buffer of the bias, `[classes]`.
    pub bias_momentum: Vec<f32>,
}

impl HeadState {
    /// Initialises a head: normal weights with standard deviation 0.02, everything else zero.
    ///
    /// A pure function of its arguments. Normal numbers are computed here (Box and Muller 1958) from the stream of
    /// `ChaCha8`, so they do not depend on the version of a library.
    pub fn init(classes: usize, dim: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let values = classes * dim;
        let mut weight = Vec::with_capacity(values + 1);
        while weight.len() < values {
            // 1 − unit is in (0, 1], so the logarithm is finite.
            let radius = (-2.0 * (1.0 - draw_unit(&mut random)).ln()).sqrt() * INITIAL_STD;
            let (sin, cos) = (std::f64::consts::TAU * draw_unit(&mut random)).sin_cos();
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

    /// Returns name, actual and expected length of the first vector whose length contradicts the dimensions.
    pub fn find_length_mismatch(&self) -> Option<(&'static str, usize, usize)> {
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

/// Draws a uniform number in [0, 1) with 53 random bits.
fn draw_unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_weights_have_published_spread() {
        let head = HeadState::init(301, 33, 5);
        assert_eq!(head.find_length_mismatch(), None);
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
    fn odd_number_of_weights_is_complete() {
        assert_eq!(HeadState::init(3, 3, 0).weight.len(), 9);
    }
}
