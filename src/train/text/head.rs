//! Host state of a projection head and its optimiser.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{MAX_SCALE, MIN_LENGTH};

/// Initial factor of the similarities, the inverse of the temperature 0.07 (Radford et al. 2021).
const INITIAL_SCALE: f64 = 1.0 / 0.07;

/// Named tensor of a projection head.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Name in a checkpoint.
    pub name: &'static str,
    /// Rows and columns; a bias is `[1, n]`.
    pub shape: [usize; 2],
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// Columns of the features that a head reads, where it does not read all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// The first column. The width of the head's input is their number.
    pub first: usize,
    /// Width of the features.
    pub of: usize,
}

/// Linear map of caption embeddings into another space, where images are compared with them.
#[derive(Debug, Clone, PartialEq)]
pub struct TextMap {
    /// Weight, `[output, embedding]`, row-major.
    pub weight: Vec<f32>,
    /// Bias, `[output]`.
    pub bias: Vec<f32>,
}

impl TextMap {
    /// Maps embeddings, `[rows, embedding]`, to vectors of unit length, `[rows, output]`.
    pub fn apply(&self, vectors: &[f32]) -> Vec<f32> {
        let output = self.bias.len();
        let input = self.weight.len() / output.max(1);
        let rows = vectors.len() / input.max(1);
        let mut mapped: Vec<f32> = (0..rows).flat_map(|_| &self.bias).copied().collect();
        let weight = MatRef::from_row_major_slice(&self.weight, output, input);
        let vectors = MatRef::from_row_major_slice(vectors, rows, input);
        let out = MatMut::from_row_major_slice_mut(&mut mapped, rows, output);
        matmul(out, Accum::Add, vectors, weight.transpose(), 1.0, Par::Seq);
        centre_and_normalise(&mut mapped, &vec![0.0; output]);
        mapped
    }
}

/// Projection head.
#[derive(Debug, Clone, PartialEq)]
pub struct TextHead {
    /// Width of the input: that of a feature, or the number of its columns that the head reads.
    pub input: usize,
    /// Columns that the head reads; `None` for all.
    pub columns: Option<Columns>,
    /// Width of the hidden layer; 0 for a linear head.
    pub hidden: usize,
    /// Width of the projection: that of a caption embedding, or of the map of captions.
    pub output: usize,
    /// Mean of the features, `[input]`.
    pub feature_mean: Vec<f32>,
    /// Standard deviation of the features, `[input]`, never zero.
    pub feature_std: Vec<f32>,
    /// Mean of the caption embeddings, `[embedding]`.
    pub text_mean: Vec<f32>,
    /// Map of the centred embeddings, if images are compared in another space.
    pub text_map: Option<TextMap>,
    /// Weight and bias of the hidden layer, if there is one, and of the projection, then λ, the logarithm of the scale.
    pub parameters: Vec<Parameter>,
}

/// Projection head and the state of its optimiser.
#[derive(Debug, Clone, PartialEq)]
pub struct TextState {
    /// Projection head.
    pub head: TextHead,
    /// First moment of each parameter.
    pub first: Vec<Vec<f32>>,
    /// Second moment of each parameter.
    pub second: Vec<Vec<f32>>,
}

/// Returns name and shape of each parameter.
pub(in crate::train) fn parameter_shapes(
    input: usize,
    hidden: usize,
    output: usize,
) -> Vec<(&'static str, [usize; 2])> {
    let mut shapes = Vec::new();
    if hidden > 0 {
        shapes.extend([("hidden.weight", [hidden, input]), ("hidden.bias", [1, hidden])]);
    }
    let last = if hidden > 0 { hidden } else { input };
    shapes.extend([("projection.weight", [output, last]), ("projection.bias", [1, output]), ("logit_scale", [1, 1])]);
    shapes
}

impl TextHead {
    /// Initialises a head as `torch.nn.Linear` does: uniform in ±1 / √inputs. A pure function of its arguments.
    ///
    /// `statistics` are the means and standard deviations of the features and the means of the caption embeddings.
    pub fn init(statistics: [Vec<f32>; 3], hidden: usize, seed: u64) -> Self {
        let [feature_mean, feature_std, text_mean] = statistics;
        let (input, output) = (feature_mean.len(), text_mean.len());
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut fan_in = input;
        let parameter = |(name, shape): (&'static str, [usize; 2])| {
            if name.ends_with("weight") {
                fan_in = shape[1];
            }
            let bound = 1.0 / (fan_in as f64).sqrt();
            let unit = |random: &mut ChaCha8Rng| (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
            let values = match name {
                "logit_scale" => vec![INITIAL_SCALE.ln() as f32],
                _ => (0..shape[0] * shape[1]).map(|_| (bound * (2.0 * unit(&mut random) - 1.0)) as f32).collect(),
            };
            Parameter { name, shape, values }
        };
        let parameters = parameter_shapes(input, hidden, output).into_iter().map(parameter).collect();
        let (columns, text_map) = (None, None);
        Self { input, columns, hidden, output, feature_mean, feature_std, text_mean, text_map, parameters }
    }

    /// Initialises a linear head for features that are in the space of the captions already: it undoes the division by
    /// the standard deviation, so that it maps a feature to its difference from the mean.
    ///
    /// `statistics` as for [`TextHead::init`], with means of one width. The scale is at most 100, as in training.
    pub fn init_paired(statistics: [Vec<f32>; 3], log_scale: f32) -> Self {
        let [feature_mean, feature_std, text_mean] = statistics;
        let dim = feature_mean.len();
        let log_scale = log_scale.min(MAX_SCALE.ln() as f32);
        let parameters = diagonal_parameters(&feature_std, log_scale);
        let (input, output, hidden, columns, text_map) = (dim, dim, 0, None, None);
        Self { input, columns, hidden, output, feature_mean, feature_std, text_mean, text_map, parameters }
    }

    /// Creates a linear head from a weight, `[output, input]`, without a bias.
    ///
    /// `statistics` as for [`TextHead::init`]. Captions are mapped by `text_map`, if there is one.
    pub fn from_weight(statistics: [Vec<f32>; 3], weight: Vec<f32>, text_map: Option<TextMap>, scale: f32) -> Self {
        let [feature_mean, feature_std, text_mean] = statistics;
        let (input, output) = (feature_mean.len(), weight.len() / feature_mean.len().max(1));
        let mut weight = Some(weight);
        let mut values = |name: &str| match name {
            "logit_scale" => vec![scale.ln()],
            "projection.bias" => vec![0.0; output],
            _ => weight.take().unwrap_or_default(),
        };
        let shapes = parameter_shapes(input, 0, output).into_iter();
        let parameters = shapes.map(|(name, shape)| Parameter { name, shape, values: values(name) }).collect();
        let (hidden, columns) = (0, None);
        Self { input, columns, hidden, output, feature_mean, feature_std, text_mean, text_map, parameters }
    }

    /// Returns the head that maps features of width `dim` to themselves, scaled to unit length.
    pub fn identity(dim: usize, log_scale: f32) -> Self {
        let ones = vec![1.0; dim];
        let parameters = diagonal_parameters(&ones, log_scale);
        let (feature_mean, text_mean) = (vec![0.0; dim], vec![0.0; dim]);
        let (input, output, hidden, columns, text_map) = (dim, dim, 0, None, None);
        Self { input, columns, hidden, output, feature_mean, feature_std: ones, text_mean, text_map, parameters }
    }

    /// Sets the columns that the head reads.
    #[must_use]
    pub fn with_columns(self, columns: Option<Columns>) -> Self {
        Self { columns, ..self }
    }

    /// Returns the width of the features that the head reads columns of.
    pub fn width(&self) -> usize {
        self.columns.map_or(self.input, |columns| columns.of)
    }

    /// Returns the factor of the similarities, exp(λ).
    pub fn scale(&self) -> f32 {
        self.parameters.last().and_then(|last| last.values.first()).map_or(1.0, |log| log.exp())
    }

    /// Sets the factor of the similarities.
    #[must_use]
    pub fn with_scale(mut self, scale: f64) -> Self {
        if let Some(value) = self.parameters.last_mut().and_then(|last| last.values.first_mut()) {
            *value = scale.ln() as f32;
        }
        self
    }

    /// Maps caption embeddings, `[rows, embedding]`, to the vectors that images are compared with, `[rows, output]`: the mean of
    /// the training captions is subtracted, and the map of captions applied. All have unit length.
    pub fn map_captions(&self, vectors: Vec<f32>) -> Vec<f32> {
        self.map_centred(vectors, &self.text_mean)
    }

    /// As [`TextHead::map_captions`], with another mean.
    pub fn map_centred(&self, mut vectors: Vec<f32>, mean: &[f32]) -> Vec<f32> {
        centre_and_normalise(&mut vectors, mean);
        match &self.text_map {
            Some(map) => map.apply(&vectors),
            None => vectors,
        }
    }
}

/// Returns the parameters of a linear head whose weight is a diagonal matrix.
fn diagonal_parameters(diagonal: &[f32], log_scale: f32) -> Vec<Parameter> {
    let dim = diagonal.len();
    let values = |name: &str| match name {
        "logit_scale" => vec![log_scale],
        "projection.bias" => vec![0.0; dim],
        _ => {
            let mut weight = vec![0.0; dim * dim];
            weight.iter_mut().step_by(dim + 1).zip(diagonal).for_each(|(place, value)| *place = *value);
            weight
        }
    };
    let shapes = parameter_shapes(dim, 0, dim).into_iter();
    shapes.map(|(name, shape)| Parameter { name, shape, values: values(name) }).collect()
}

/// Subtracts a mean, `[dim]`, from vectors, `[rows, dim]`, and scales them to unit length.
pub fn centre_and_normalise(vectors: &mut [f32], mean: &[f32]) {
    for vector in vectors.chunks_exact_mut(mean.len().max(1)) {
        vector.iter_mut().zip(mean).for_each(|(value, mean)| *value -= mean);
        let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(MIN_LENGTH);
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

impl TextState {
    /// Creates the state of an untrained head.
    pub fn new(head: TextHead) -> Self {
        let zeros: Vec<Vec<f32>> = head.parameters.iter().map(|parameter| vec![0.0; parameter.values.len()]).collect();
        Self { head, first: zeros.clone(), second: zeros }
    }
}
