//! A head for captions that nobody has trained on: a map from image features into the space of a frozen text encoder.
//!
//! The map is linear, or has one hidden layer of GELU; it sees features standardised, and its outputs are scaled to length 1, as
//! the vectors of captions are once the mean over the training captions is taken off. Training is by contrast (Radford et
//! al. 2021, section 2.3): within a micro-batch of B pairs, with `L = exp(λ) · U · Tᵀ`, the loss is the mean of the
//! cross-entropies of rows and of columns against the diagonal, `λ` learned and kept at most ln 100. A caption that the image of
//! a row has as well, by another pair or as an equal string, is no negative of it: its logit is left out.
//!
//! Gradients are in closed form. With the softmax `P` of the rows and `Q` of the columns, `G = (P + Q) / 2B`:
//! `dU = exp(λ) · (G · T − T / B)`, `dλ = Σ G ∘ L − tr L / B`, and back through the length: `dY = (dU − U (U · dU)) / |Y|`.
//! The optimiser is `PyTorch`'s `AdamW` (weight decay on matrices alone), the gradient clipped to a norm as in [`super::Sgd`].

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Features, TrainError};
use crate::predict::PredictError;
use crate::predict::scorer::length;
use crate::predict::tiles::{download, softmax_and_lse, upload};

/// Stands for the logit of what is no negative.
const NOWHERE: f32 = -1e30;
/// What `PyTorch`'s `AdamW` adds to the root of the second moment, and `clip_grad_norm_` to the norm.
const EPSILON: f64 = 1e-8;
const CLIP_EPSILON: f64 = 1e-6;
const SECOND_DECAY: f64 = 0.999;
/// The temperature starts at 0.07 and never falls below 0.01.
const FIRST_SCALE: f64 = 1.0 / 0.07;
const MOST_SCALE: f64 = 100.0;
/// Least length of a vector that is scaled to 1.
const LEAST_LENGTH: f64 = 1e-12;

/// A tensor of the map, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name in a checkpoint.
    pub name: &'static str,
    /// Rows and columns; a bias is one row.
    pub shape: [usize; 2],
    /// Row-major.
    pub values: Vec<f32>,
}

/// The map, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct TextHead {
    /// Values of a feature.
    pub input: usize,
    /// Values of the hidden layer; 0 where there is none.
    pub hidden: usize,
    /// Values of a caption's vector.
    pub output: usize,
    /// Mean of each value of the features, `[input]`.
    pub feature_mean: Vec<f32>,
    /// Standard deviation of each value of the features, `[input]`; none is zero.
    pub feature_std: Vec<f32>,
    /// Mean of the captions' vectors, `[output]`.
    pub text_mean: Vec<f32>,
    /// Weight and bias of the hidden layer, where there is one, and of the projection; last the logarithm of the scale.
    pub parameters: Vec<Parameter>,
}

/// The map and its optimiser, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct TextState {
    /// The map.
    pub head: TextHead,
    /// First moments, of each parameter.
    pub first: Vec<Vec<f32>>,
    /// Second moments, of each parameter.
    pub second: Vec<Vec<f32>>,
}

/// Name and shape of each parameter.
pub(super) fn layout(input: usize, hidden: usize, output: usize) -> Vec<(&'static str, [usize; 2])> {
    let mut found = Vec::new();
    if hidden > 0 {
        found.extend([("hidden.weight", [hidden, input]), ("hidden.bias", [1, hidden])]);
    }
    let last = if hidden > 0 { hidden } else { input };
    found.extend([("projection.weight", [output, last]), ("projection.bias", [1, output]), ("logit_scale", [1, 1])]);
    found
}

impl TextHead {
    /// A fresh map, as `torch.nn.Linear` starts: uniform within 1 over the root of the number of inputs. A pure function of its
    /// arguments.
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
                "logit_scale" => vec![FIRST_SCALE.ln() as f32],
                _ => (0..shape[0] * shape[1]).map(|_| (bound * (2.0 * unit(&mut random) - 1.0)) as f32).collect(),
            };
            Parameter { name, shape, values }
        };
        let parameters = layout(input, hidden, output).into_iter().map(parameter).collect();
        Self { input, hidden, output, feature_mean, feature_std, text_mean, parameters }
    }

    /// What similarities are multiplied by.
    pub fn scale(&self) -> f32 {
        self.parameters.last().and_then(|last| last.values.first()).map_or(1.0, |log| log.exp())
    }

    /// Takes the mean of the training captions off vectors of captions, `[rows, output]`, and scales them to length 1.
    pub fn centre(&self, vectors: &mut [f32]) {
        centre(vectors, &self.text_mean);
    }
}

/// Takes a mean off vectors and scales them to length 1.
pub fn centre(vectors: &mut [f32], mean: &[f32]) {
    for vector in vectors.chunks_exact_mut(mean.len().max(1)) {
        vector.iter_mut().zip(mean).for_each(|(value, mean)| *value -= mean);
        let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(LEAST_LENGTH);
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

impl TextState {
    /// A map that was not trained yet.
    pub fn new(head: TextHead) -> Self {
        let zeros: Vec<Vec<f32>> = head.parameters.iter().map(|parameter| vec![0.0; parameter.values.len()]).collect();
        Self { head, first: zeros.clone(), second: zeros }
    }
}

/// Settings of the optimiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, in [0, 1).
    pub momentum: f64,
    /// Share of the matrices that a step takes off them, times the rate.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
}

/// The map on a device.
#[derive(Debug, Clone)]
pub struct Projector<B: Backend> {
    input: usize,
    output: usize,
    mean: Tensor<B, 2>,
    inverse_std: Tensor<B, 2>,
    parameters: Vec<Tensor<B, 2>>,
    device: B::Device,
}

/// What a forward pass leaves to the one back.
struct Forward<B: Backend> {
    /// Standardised features.
    inputs: Tensor<B, 2>,
    /// Of the hidden layer: before and after its activation.
    hidden: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
    /// Lengths of the outputs, `[rows, 1]`.
    lengths: Tensor<B, 2>,
    /// Outputs, of length 1.
    outputs: Tensor<B, 2>,
}

impl<B: Backend> Projector<B> {
    /// Puts a map on a device.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn new(head: &TextHead, device: &B::Device) -> Result<Self, TrainError> {
        let TextHead { input, hidden, output, feature_mean, feature_std, text_mean, parameters } = head;
        length("feature_mean", feature_mean.len(), *input)?;
        length("feature_std", feature_std.len(), *input)?;
        length("text_mean", text_mean.len(), *output)?;
        let expected = layout(*input, *hidden, *output);
        length("parameters", parameters.len(), expected.len())?;
        for (parameter, (name, shape)) in parameters.iter().zip(expected) {
            length(name, parameter.values.len(), shape[0] * shape[1])?;
        }
        let inverse: Vec<f32> = feature_std.iter().map(|std| 1.0 / std).collect();
        let put = |parameter: &Parameter| upload(&parameter.values, parameter.shape[0], parameter.shape[1], device);
        Ok(Self {
            input: *input,
            output: *output,
            mean: upload(feature_mean, 1, *input, device),
            inverse_std: upload(&inverse, 1, *input, device),
            parameters: parameters.iter().map(put).collect(),
            device: device.clone(),
        })
    }

    /// Features `[rows, input]` to vectors of length 1, `[rows, output]`, both row-major.
    ///
    /// # Errors
    /// When the length does not fit, or the device fails.
    pub fn project(&self, features: &[f32], rows: usize) -> Result<Vec<f32>, TrainError> {
        length("features", features.len(), rows.saturating_mul(self.input))?;
        if rows == 0 {
            return Ok(Vec::new());
        }
        let features = upload(features, rows, self.input, &self.device);
        Ok(download(self.forward(features).outputs)?)
    }

    fn forward(&self, features: Tensor<B, 2>) -> Forward<B> {
        let inputs = (features - self.mean.clone()) * self.inverse_std.clone();
        let linear = |input: Tensor<B, 2>, at: usize| {
            input.matmul(self.parameters[at].clone().transpose()) + self.parameters[at + 1].clone()
        };
        let hidden = (self.parameters.len() > 3).then(|| {
            let before = linear(inputs.clone(), 0);
            (before.clone(), activation::gelu(before))
        });
        let last = hidden.as_ref().map_or_else(|| inputs.clone(), |(_, after)| after.clone());
        let outputs = linear(last, self.parameters.len() - 3);
        let lengths = outputs.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(LEAST_LENGTH);
        Forward { inputs, hidden, outputs: outputs / lengths.clone(), lengths }
    }

    /// Gradients of the parameters, but for the scale, by that of the outputs.
    fn backward(&self, forward: Forward<B>, outputs: Tensor<B, 2>) -> Vec<Tensor<B, 2>> {
        let Forward { inputs, hidden, lengths, outputs: units } = forward;
        let along = (units.clone() * outputs.clone()).sum_dim(1);
        let linear = (outputs - units * along) / lengths;
        let of_layer = |gradient: &Tensor<B, 2>, input: Tensor<B, 2>| {
            [gradient.clone().transpose().matmul(input), gradient.clone().sum_dim(0)]
        };
        let Some((before, after)) = hidden else { return of_layer(&linear, inputs).into() };
        let last = of_layer(&linear, after);
        let projection = self.parameters[self.parameters.len() - 3].clone();
        let inner = linear.matmul(projection) * gelu_slope(before);
        of_layer(&inner, inputs).into_iter().chain(last).collect()
    }
}

/// The derivative of x·Φ(x): Φ(x) + x·φ(x).
fn gelu_slope<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let density = (x.clone().powi_scalar(2) * -0.5).exp() * (1.0 / std::f64::consts::TAU.sqrt());
    let below = ((x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    below + x * density
}

/// The pairs of a micro-batch, beside the features.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// Vectors of the captions, centred and of length 1, `[rows, output]`.
    pub captions: &'a [f32],
    /// Rows and captions (by their row) that are no negatives of each other, beside the pairs themselves.
    pub exempt: &'a [(u32, u32)],
}

/// The map in training.
pub struct TextTrainer<B: Backend> {
    head: TextHead,
    map: Projector<B>,
    adam: AdamW,
    first: Vec<Tensor<B, 2>>,
    second: Vec<Tensor<B, 2>>,
    gradient: Vec<Tensor<B, 2>>,
    step: u64,
    rate: f64,
    /// Summed losses that were not looked at yet.
    pending: Vec<Tensor<B, 2>>,
    pending_rows: u64,
    loss_sum: f64,
    loss_count: u64,
}

impl<B: Backend> TextTrainer<B> {
    /// Puts a map and its optimiser on a device; `step`: the updates that it has seen; the losses that were not taken yet.
    ///
    /// # Errors
    /// When a length does not fit or a setting cannot work.
    pub fn new(
        state: TextState,
        adam: AdamW,
        step: u64,
        (loss_sum, loss_count): (f64, u64),
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        for (what, value, most) in [
            ("momentum", adam.momentum, 1.0),
            ("weight_decay", adam.weight_decay, f64::INFINITY),
            ("clip_norm", adam.clip_norm, f64::INFINITY),
        ] {
            if !(value >= 0.0 && value < most) {
                let range = if most.is_finite() { "[0, 1)" } else { "[0, ∞)" };
                return Err(TrainError::Setting { what, range, value });
            }
        }
        let TextState { head, first, second } = state;
        let map = Projector::new(&head, device)?;
        let moments = |what: &'static str, values: &[Vec<f32>]| -> Result<Vec<Tensor<B, 2>>, TrainError> {
            length(what, values.len(), head.parameters.len())?;
            let put = |(parameter, values): (&Parameter, &Vec<f32>)| {
                length(what, values.len(), parameter.values.len())?;
                Ok(upload(values, parameter.shape[0], parameter.shape[1], device))
            };
            head.parameters.iter().zip(values).map(put).collect()
        };
        let (first, second) = (moments("first moments", &first)?, moments("second moments", &second)?);
        let (gradient, pending) = (Vec::new(), Vec::new());
        Ok(Self {
            head,
            map,
            adam,
            first,
            second,
            gradient,
            step,
            rate: 0.0,
            pending,
            pending_rows: 0,
            loss_sum,
            loss_count,
        })
    }

    /// Adds a micro-batch to the gradient and to the loss; `effective`: pairs of the whole step, of which it has its share.
    ///
    /// # Errors
    /// When a length does not fit, or a pair that is named is none of the batch's.
    pub fn accumulate(
        &mut self,
        features: &Features<'_, B>,
        pairs: Pairs<'_>,
        effective: usize,
    ) -> Result<(), TrainError> {
        let (output, device) = (self.map.output, self.map.device.clone());
        let rows = pairs.captions.len() / output;
        length("captions", pairs.captions.len(), rows * output)?;
        let features = match features {
            Features::Host(values) => {
                length("features", values.len(), rows * self.map.input)?;
                upload(values, rows, self.map.input, &device)
            }
            Features::Kept(kept, indices) => {
                length("features", indices.len(), rows)?;
                kept.select(indices)
            }
        };
        if rows == 0 {
            return Ok(());
        }
        let captions = upload::<B>(pairs.captions, rows, output, &device);
        let forward = self.map.forward(features);
        let scale = self.map.parameters[self.map.parameters.len() - 1].clone().exp();
        let mut logits = forward.outputs.clone().matmul(captions.clone().transpose()) * scale.clone();
        // The pairs themselves stay, whatever is named.
        let own = (forward.outputs.clone() * captions.clone()).sum_dim(1) * scale.clone();
        if !pairs.exempt.is_empty() {
            let mut mask = vec![0.0_f32; rows * rows];
            for &(row, caption) in pairs.exempt.iter().filter(|(row, caption)| row != caption) {
                let last = row.max(caption) as usize;
                if last >= rows {
                    length("exempt", last + 1, rows)?;
                }
                mask[row as usize * rows + caption as usize] = NOWHERE;
            }
            logits = logits + upload::<B>(&mask, rows, rows, &device);
        }
        let (by_row, row_lse) = softmax_and_lse(logits.clone());
        let (by_column, column_lse) = softmax_and_lse(logits.clone().transpose());
        let loss = ((row_lse + column_lse) * 0.5 - own.clone()).sum_dim(0);
        self.pending.push(loss);
        self.pending_rows += rows as u64;
        // Of the step's mean: 1 over the pairs of the step, whatever the micro-batch.
        let each = 1.0 / effective.max(1) as f64;
        let shares = (by_row + by_column.transpose()) * (0.5 * each);
        let outputs = (shares.clone().matmul(captions.clone()) - captions * each) * scale;
        let of_scale = (shares * logits).sum_dim(1).sum_dim(0) - own.sum_dim(0) * each;
        let mut gradient = self.map.backward(forward, outputs);
        gradient.push(of_scale);
        self.gradient = match std::mem::take(&mut self.gradient) {
            sum if sum.is_empty() => gradient,
            sum => sum.into_iter().zip(gradient).map(|(sum, more)| sum + more).collect(),
        };
        Ok(())
    }

    /// One update with what was accumulated.
    ///
    /// # Errors
    /// When the rate cannot work.
    pub fn step(&mut self, rate: f64) -> Result<(), TrainError> {
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(TrainError::Setting { what: "rate", range: "[0, ∞)", value: rate });
        }
        self.step += 1;
        self.rate = rate;
        let mut gradient = std::mem::take(&mut self.gradient);
        if self.adam.clip_norm > 0.0 && !gradient.is_empty() {
            let squares =
                gradient.iter().map(|part| part.clone().powi_scalar(2).sum_dim(1).sum_dim(0)).reduce(|a, b| a + b);
            if let Some(squares) = squares {
                let factor = ((squares.sqrt() + CLIP_EPSILON).recip() * self.adam.clip_norm).clamp_max(1.0);
                gradient = gradient.into_iter().map(|part| part * factor.clone()).collect();
            }
        }
        let AdamW { momentum, weight_decay, .. } = self.adam;
        let times = i32::try_from(self.step).unwrap_or(i32::MAX);
        let first_bias = 1.0 - momentum.powi(times);
        let second_bias = (1.0 - SECOND_DECAY.powi(times)).sqrt();
        let names: Vec<&str> = self.head.parameters.iter().map(|parameter| parameter.name).collect();
        for (at, gradient) in gradient.into_iter().enumerate() {
            let first = self.first[at].clone() * momentum + gradient.clone() * (1.0 - momentum);
            let second = self.second[at].clone() * SECOND_DECAY + gradient.powi_scalar(2) * (1.0 - SECOND_DECAY);
            let decay = if names[at].ends_with("weight") { 1.0 - rate * weight_decay } else { 1.0 };
            let change = first.clone() / (second.clone().sqrt() / second_bias + EPSILON) * (rate / first_bias);
            let mut value = self.map.parameters[at].clone() * decay - change;
            if names[at] == "logit_scale" {
                value = value.clamp_max(MOST_SCALE.ln());
            }
            (self.first[at], self.second[at], self.map.parameters[at]) = (first, second, value);
        }
        Ok(())
    }

    /// The sum of the losses, in nats, since they were last taken, and of how many pairs.
    ///
    /// # Errors
    /// When the device fails, or a loss is no number.
    pub fn loss(&mut self) -> Result<(f64, u64), TrainError> {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            let sums = download(Tensor::cat(pending, 0))?;
            // One by one, so that the sum does not depend on when it is asked for.
            for sum in sums {
                self.loss_sum += f64::from(sum);
            }
            self.loss_count += std::mem::take(&mut self.pending_rows);
            if !self.loss_sum.is_finite() {
                return Err(TrainError::Loss { step: self.step, loss: self.loss_sum, rate: self.rate });
            }
        }
        Ok((self.loss_sum, self.loss_count))
    }

    /// As [`TextTrainer::loss`]; both start anew.
    ///
    /// # Errors
    /// As [`TextTrainer::loss`].
    pub fn take_loss(&mut self) -> Result<(f64, u64), TrainError> {
        let found = self.loss()?;
        (self.loss_sum, self.loss_count) = (0.0, 0);
        Ok(found)
    }

    /// The map as it is now.
    pub fn projector(&self) -> Projector<B> {
        self.map.clone()
    }

    /// Map and optimiser, on the host.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<TextState, TrainError> {
        let read = |tensors: &[Tensor<B, 2>]| -> Result<Vec<Vec<f32>>, PredictError> {
            tensors.iter().map(|tensor| download(tensor.clone())).collect()
        };
        let mut head = self.head.clone();
        for (parameter, values) in head.parameters.iter_mut().zip(read(&self.map.parameters)?) {
            parameter.values = values;
        }
        Ok(TextState { head, first: read(&self.first)?, second: read(&self.second)? })
    }
}

/// Mean and spread of rows that come one after the other.
#[derive(Debug, Clone, Default)]
pub struct Running {
    rows: u64,
    mean: Vec<f64>,
    /// Summed squares of the distances from the mean.
    squares: Vec<f64>,
}

impl Running {
    /// Adds a row (Welford 1962).
    pub fn add(&mut self, row: &[f32]) {
        self.mean.resize(row.len(), 0.0);
        self.squares.resize(row.len(), 0.0);
        self.rows += 1;
        let count = self.rows as f64;
        for ((mean, squares), value) in self.mean.iter_mut().zip(&mut self.squares).zip(row) {
            let value = f64::from(*value);
            let before = value - *mean;
            *mean += before / count;
            *squares += before * (value - *mean);
        }
    }

    /// Rows that were added.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The mean of each value.
    pub fn mean(&self) -> Vec<f32> {
        self.mean.iter().map(|mean| *mean as f32).collect()
    }

    /// The standard deviation of each value; 1 where it never changes.
    pub fn std(&self) -> Vec<f32> {
        let deviation = |squares: &f64| (squares / self.rows.max(1) as f64).sqrt() as f32;
        self.squares.iter().map(deviation).map(|std| if std > 1e-6 { std } else { 1.0 }).collect()
    }
}

#[cfg(test)]
mod tests;
