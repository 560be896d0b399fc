//! Trainer of a projection head: contrastive loss and `AdamW`.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::MAX_SCALE;
use super::head::{Parameter, TextHead, TextState};
use super::projector::Projector;
use crate::predict::PredictError;
use crate::predict::scorer::check_length;
use crate::predict::tiles::{download, softmax_and_lse, upload};
use crate::train::{Features, TrainError};

/// Logit of a masked negative. Far below any real logit, but finite: the difference of two infinities is NaN.
const MASKED_LOGIT: f32 = -1e30;
/// Constant ε of `torch.optim.AdamW`, added to the root of the second moment.
const EPSILON: f64 = 1e-8;
/// Constant that `clip_grad_norm_` of `PyTorch` adds to the norm.
const CLIP_EPSILON: f64 = 1e-6;
/// Decay β₂ of the second moment.
const SECOND_DECAY: f64 = 0.999;

/// Separates the stream of dropped inputs from other uses of the seed.
const MASK_DOMAIN: u64 = u64::from_le_bytes(*b"wc-mask.");

/// Settings of `AdamW` and of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay β₁ of the first moment, in [0, 1).
    pub momentum: f64,
    /// Weight decay of matrices, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Upper bound on the norm of the gradient; 0 disables clipping.
    pub clip_norm: f64,
    /// Whether the scale of the similarities stays as it is.
    pub fixed_scale: bool,
    /// Share of the projection's inputs that are dropped, in [0, 1).
    pub dropout: f64,
    /// Seed of the dropped inputs.
    pub seed: u64,
}

/// Captions of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct ContrastiveBatch<'a> {
    /// Caption embeddings, centred and of unit length, `[rows, output]`.
    pub captions: &'a [f32],
    /// Row and column of each logit to mask because the caption also belongs to the image of the row. The diagonal is
    /// ignored.
    pub masked_negatives: &'a [(u32, u32)],
}

/// Trainer of a projection head.
pub struct TextTrainer<B: Backend> {
    head: TextHead,
    projector: Projector<B>,
    adam: AdamW,
    first: Vec<Tensor<B, 2>>,
    second: Vec<Tensor<B, 2>>,
    gradient: Vec<Tensor<B, 2>>,
    step: u64,
    rate: f64,
    /// Micro-batches of the current step so far.
    micro_batches: u64,
    /// Summed losses on the device.
    pending: Vec<Tensor<B, 2>>,
    pending_rows: u64,
    loss_sum: f64,
    loss_count: u64,
}

impl<B: Backend> TextTrainer<B> {
    /// Uploads a head and the state of its optimiser after `step` updates, with the losses not yet taken.
    ///
    /// # Errors
    /// When a length does not match or a setting is out of range.
    pub fn new(
        state: TextState,
        adam: AdamW,
        step: u64,
        (loss_sum, loss_count): (f64, u64),
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        for (what, value, limit) in [
            ("momentum", adam.momentum, 1.0),
            ("weight_decay", adam.weight_decay, f64::INFINITY),
            ("clip_norm", adam.clip_norm, f64::INFINITY),
            ("dropout", adam.dropout, 1.0),
        ] {
            if !(value >= 0.0 && value < limit) {
                let range = if limit.is_finite() { "[0, 1)" } else { "[0, ∞)" };
                return Err(TrainError::Setting { what, range, value });
            }
        }
        let TextState { head, first, second } = state;
        let projector = Projector::new(&head, device)?;
        let moments = |what: &'static str, values: &[Vec<f32>]| -> Result<Vec<Tensor<B, 2>>, TrainError> {
            check_length(what, values.len(), head.parameters.len())?;
            let upload_moment = |(parameter, values): (&Parameter, &Vec<f32>)| {
                check_length(what, values.len(), parameter.values.len())?;
                Ok(upload(values, parameter.shape[0], parameter.shape[1], device))
            };
            head.parameters.iter().zip(values).map(upload_moment).collect()
        };
        let (first, second) = (moments("first moments", &first)?, moments("second moments", &second)?);
        let (gradient, pending) = (Vec::new(), Vec::new());
        Ok(Self {
            head,
            projector,
            adam,
            first,
            second,
            gradient,
            step,
            rate: 0.0,
            micro_batches: 0,
            pending,
            pending_rows: 0,
            loss_sum,
            loss_count,
        })
    }

    /// Adds the gradient and the loss of a micro-batch; `effective` is the number of pairs of the whole step.
    ///
    /// # Errors
    /// When a length does not match, or a masked negative is outside the micro-batch.
    pub fn accumulate(
        &mut self,
        features: &Features<'_, B>,
        batch: ContrastiveBatch<'_>,
        effective: usize,
    ) -> Result<(), TrainError> {
        let (output, device) = (self.projector.output, self.projector.device.clone());
        let rows = batch.captions.len() / output;
        check_length("captions", batch.captions.len(), rows * output)?;
        let features = match features {
            Features::Host(values) => {
                check_length("features", values.len(), rows * self.projector.width)?;
                upload(values, rows, self.projector.width, &device)
            }
            Features::Device(resident, indices) => {
                check_length("features", indices.len(), rows)?;
                resident.gather(indices, &device)?
            }
        };
        if rows == 0 {
            return Ok(());
        }
        let captions = upload::<B>(batch.captions, rows, output, &device);
        let mask = self.dropout_mask(rows);
        self.micro_batches += 1;
        let forward = self.projector.forward_with(features, mask);
        let scale = self.projector.parameters[self.projector.parameters.len() - 1].clone().exp();
        let mut logits = forward.outputs.clone().matmul(captions.clone().transpose()) * scale.clone();
        // Logits of the positive pairs, `[rows, 1]`.
        let positives = (forward.outputs.clone() * captions.clone()).sum_dim(1) * scale.clone();
        if !batch.masked_negatives.is_empty() {
            let mut mask = vec![0.0_f32; rows * rows];
            for &(row, caption) in batch.masked_negatives.iter().filter(|(row, caption)| row != caption) {
                let last = row.max(caption) as usize;
                if last >= rows {
                    check_length("masked negatives", last + 1, rows)?;
                }
                mask[row as usize * rows + caption as usize] = MASKED_LOGIT;
            }
            logits = logits + upload::<B>(&mask, rows, rows, &device);
        }
        let (by_row, row_lse) = softmax_and_lse(logits.clone());
        let (by_column, column_lse) = softmax_and_lse(logits.clone().transpose());
        let loss = ((row_lse + column_lse) * 0.5 - positives.clone()).sum_dim(0);
        self.pending.push(loss);
        self.pending_rows += rows as u64;
        // The loss is a mean over the pairs of the step, not of the micro-batch.
        let each = 1.0 / effective.max(1) as f64;
        let probabilities = (by_row + by_column.transpose()) * (0.5 * each);
        let outputs = (probabilities.clone().matmul(captions.clone()) - captions * each) * scale;
        let scale_gradient = (probabilities * logits).sum_dim(1).sum_dim(0) - positives.sum_dim(0) * each;
        let mut gradient = self.projector.backward(forward, outputs);
        gradient.push(if self.adam.fixed_scale { scale_gradient.zeros_like() } else { scale_gradient });
        self.gradient = match std::mem::take(&mut self.gradient) {
            sum if sum.is_empty() => gradient,
            sum => sum.into_iter().zip(gradient).map(|(sum, more)| sum + more).collect(),
        };
        Ok(())
    }

    /// Returns factors of the projection's inputs, `[rows, width]`: 0 for dropped ones, and such that the mean stays for all
    /// others; `None` without dropout. They depend on seed, step and micro-batch only, so a resumed training drops the same.
    fn dropout_mask(&self, rows: usize) -> Option<Tensor<B, 2>> {
        let AdamW { dropout, seed, .. } = self.adam;
        if dropout <= 0.0 {
            return None;
        }
        let mut key = [0; 32];
        for (place, part) in
            key.as_chunks_mut::<8>().0.iter_mut().zip([seed, self.step, self.micro_batches, MASK_DOMAIN])
        {
            *place = part.to_le_bytes();
        }
        let mut random = ChaCha8Rng::from_seed(key);
        let width = if self.head.hidden > 0 { self.head.hidden } else { self.head.input };
        let (limit, kept) = ((dropout * 2.0_f64.powi(32)) as u64, (1.0 / (1.0 - dropout)) as f32);
        let value = |_| if u64::from(random.next_u32()) < limit { 0.0 } else { kept };
        let mask: Vec<f32> = (0..rows * width).map(value).collect();
        Some(upload(&mask, rows, width, &self.projector.device))
    }

    /// Updates the head with the accumulated gradient.
    ///
    /// # Errors
    /// When the rate is negative or not finite.
    pub fn step(&mut self, rate: f64) -> Result<(), TrainError> {
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(TrainError::Setting { what: "rate", range: "[0, ∞)", value: rate });
        }
        self.step += 1;
        self.micro_batches = 0;
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
            let mut value = self.projector.parameters[at].clone() * decay - change;
            if names[at] == "logit_scale" {
                value = value.clamp_max(MAX_SCALE.ln());
            }
            (self.first[at], self.second[at], self.projector.parameters[at]) = (first, second, value);
        }
        Ok(())
    }

    /// Returns the sum of the losses since [`TextTrainer::take_loss`], in nats, and the number of pairs.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub fn loss(&mut self) -> Result<(f64, u64), TrainError> {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            let sums = download(Tensor::cat(pending, 0))?;
            // In sample order, so that the sum does not depend on when it is read.
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

    /// Returns [`TextTrainer::loss`] and resets it.
    ///
    /// # Errors
    /// As [`TextTrainer::loss`].
    pub fn take_loss(&mut self) -> Result<(f64, u64), TrainError> {
        let loss = self.loss()?;
        (self.loss_sum, self.loss_count) = (0.0, 0);
        Ok(loss)
    }

    /// Returns the current head on the device.
    pub fn projector(&self) -> Projector<B> {
        self.projector.clone()
    }

    /// Downloads the head and the state of its optimiser.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<TextState, TrainError> {
        let read = |tensors: &[Tensor<B, 2>]| -> Result<Vec<Vec<f32>>, PredictError> {
            tensors.iter().map(|tensor| download(tensor.clone())).collect()
        };
        let mut head = self.head.clone();
        for (parameter, values) in head.parameters.iter_mut().zip(read(&self.projector.parameters)?) {
            parameter.values = values;
        }
        Ok(TextState { head, first: read(&self.first)?, second: read(&self.second)? })
    }
}
