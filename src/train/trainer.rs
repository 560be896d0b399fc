//! Gradient and update of the head on the device, in closed form.
//!
//! With logits `X · Wᵀ + b` and the mean cross-entropy over the B samples of a step, the gradient of the logits
//! is `D = (softmax − onehot) / B`, that of the weight `Dᵀ · X`, that of the bias the column sums of `D`. Rows go
//! through in blocks, so one `[rows of a block, classes]` matrix of logits and one of probabilities exist at a time;
//! the head is held in tiles of classes, so every other temporary is one tile. Weights, momentum and gradient are
//! f32, 12 bytes a weight in all; a bf16 product rounds the gradient to bf16 on its way.
//!
//! The update is `PyTorch`'s SGD (dampening 0, no Nesterov): with clipping `g ← g · min(1, c / (‖g‖ + 1e-6))` over weight and
//! bias together (`clip_grad_norm_`), `g ← g + λ · w` for both, `v ← μ · v + g`, `w ← w − rate · v`.
//! Dividing by the samples of the whole step equals what the Hugging Face trainer does with equal
//! micro-batches (each mean divided by their number), and stays a mean when the last one is shorter.

use std::mem;

use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::{HeadState, TrainError};
use crate::predict::PredictError;
use crate::predict::scorer::{Scorer, check_labels, length};
use crate::predict::tiles::{
    Blocks, Compute, as_type, download, softmax_and_lse, spans, tile_logits, upload, upload_rows, upload_tiles,
};

/// Losses that wait on the device before they are read without being asked for.
const PENDING_LOSSES: usize = 4096;

/// Values that are read back at once: 1 MiB.
const READ_AT_ONCE: usize = 1 << 18;

/// What `PyTorch`'s `clip_grad_norm_` adds to the norm.
const CLIP_EPSILON: f64 = 1e-6;

/// Settings of the optimiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Share of the velocity that is kept, in [0, 1); 0 is plain SGD.
    pub momentum: f64,
    /// Share of the weights (bias included, as in `torch.optim.SGD`) that is added to the gradient; 0 for none.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
}

impl Sgd {
    fn check(&self) -> Result<(), TrainError> {
        for (what, value) in
            [("momentum", self.momentum), ("weight_decay", self.weight_decay), ("clip_norm", self.clip_norm)]
        {
            not_negative(what, value)?;
        }
        if self.momentum >= 1.0 {
            return Err(TrainError::Setting { what: "momentum", range: "[0, 1)", value: self.momentum });
        }
        Ok(())
    }
}

/// How the work is done; the result does not depend on it beyond rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Blocks of rows and tiles of classes.
    pub blocks: Blocks,
    /// Type of the matrix products.
    pub compute: Compute,
}

/// One update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Updates so far, this one included.
    pub step: u64,
    /// The learning rate.
    pub rate: f64,
    /// Samples that the gradient was the mean of.
    pub samples: usize,
}

struct Gradient<B: Backend> {
    weight: Vec<Tensor<B, 2>>,
    bias: Vec<Tensor<B, 2>>,
    samples: usize,
    effective: usize,
}

struct PendingLoss<B: Backend> {
    sum: Tensor<B, 1>,
    samples: u64,
    step: u64,
    rate: f64,
}

/// The head on the device, with its gradient and its optimiser.
pub struct Trainer<B: Backend> {
    classes: usize,
    dim: usize,
    sgd: Sgd,
    options: Options,
    device: B::Device,
    weight: Vec<Tensor<B, 2>>,
    bias: Vec<Tensor<B, 2>>,
    weight_momentum: Vec<Tensor<B, 2>>,
    bias_momentum: Vec<Tensor<B, 2>>,
    /// The weight in the type of the products; empty where that is f32.
    cast_weight: Vec<Tensor<B, 2>>,
    gradient: Option<Gradient<B>>,
    norm: Option<Tensor<B, 1>>,
    pending: Vec<PendingLoss<B>>,
    loss_sum: f64,
    loss_count: u64,
    step: u64,
    rate: f64,
}

impl<B: Backend> Trainer<B> {
    /// Puts a head on the device.
    ///
    /// # Errors
    /// When a dim or a block length is zero, a length does not fit, or a setting cannot work.
    pub fn new(state: HeadState, sgd: Sgd, options: Options, device: &B::Device) -> Result<Self, TrainError> {
        sgd.check()?;
        options.blocks.check()?;
        for (what, value) in [("classes", state.classes), ("dim", state.dim)] {
            if value == 0 {
                return Err(PredictError::Zero { what }.into());
            }
        }
        if let Some((what, actual, expected)) = state.misfit() {
            length(what, actual, expected)?;
        }
        let tile = options.blocks.classes;
        // One vector after the other is dropped, so the host never keeps what the device has.
        let matrix = |values: Vec<f32>| upload_tiles(&values, state.dim, tile, device);
        let row = |values: Vec<f32>| upload_rows(&values, tile, device);
        let mut this = Self {
            classes: state.classes,
            dim: state.dim,
            sgd,
            options,
            device: device.clone(),
            weight: matrix(state.weight),
            bias: row(state.bias),
            weight_momentum: matrix(state.weight_momentum),
            bias_momentum: row(state.bias_momentum),
            cast_weight: Vec::new(),
            gradient: None,
            norm: None,
            pending: Vec::new(),
            loss_sum: 0.0,
            loss_count: 0,
            step: 0,
            rate: 0.0,
        };
        this.refresh_cast();
        Ok(this)
    }

    /// Continues the counts of an earlier run: updates made, and the losses that were not taken yet.
    #[must_use]
    pub fn resumed(mut self, step: u64, loss_sum: f64, loss_count: u64) -> Self {
        self.step = step;
        self.loss_sum = loss_sum;
        self.loss_count = loss_count;
        self
    }

    /// Adds a micro-batch to the gradient and to the loss.
    ///
    /// `features` is `[labels.len(), dim]` row-major; `effective_batch` is the number of samples of the whole
    /// step. Nothing is read back from the device.
    ///
    /// # Errors
    /// When a length does not fit, a label is outside the classes, the micro-batches of a step disagree about its
    /// size, or an earlier loss turns out not to be finite. The gradient is untouched then.
    pub fn accumulate(&mut self, features: &[f32], labels: &[u32], effective_batch: usize) -> Result<(), TrainError> {
        let expected = labels.len().saturating_mul(self.dim);
        length("features", features.len(), expected)?;
        check_labels(labels, self.classes)?;
        let before = self.gradient.as_ref().map_or(0, |open| open.samples);
        let announced = self.gradient.as_ref().map_or(effective_batch, |open| open.effective);
        let accumulated = before + labels.len();
        if announced != effective_batch || accumulated > announced {
            return Err(TrainError::Accumulation { accumulated, expected: announced });
        }
        if self.pending.len() >= PENDING_LOSSES {
            self.read_losses()?;
        }
        for span in spans(labels.len(), self.options.blocks.rows) {
            let block = &features[span.start * self.dim..span.end * self.dim];
            self.accumulate_block(block, &labels[span], effective_batch);
        }
        Ok(())
    }

    fn accumulate_block(&mut self, features: &[f32], labels: &[u32], effective: usize) {
        let rows = labels.len();
        let product = self.options.compute.dtype();
        let features: Tensor<B, 2> = upload(features, rows, self.dim, &self.device);
        let indices: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
        let indices = Tensor::<B, 2, Int>::from_data(TensorData::new(indices, [rows, 1]), &self.device);

        let inputs = as_type(features.clone(), product);
        let parts = self.product_weight().iter().zip(&self.bias);
        let logits = parts.map(|(weight, bias)| tile_logits(&inputs, weight, bias));
        let logits = Tensor::cat(logits.collect(), 1);
        let own = logits.clone().gather(1, indices.clone());
        let (probabilities, lse) = softmax_and_lse(logits);
        self.pending.push(PendingLoss {
            sum: (lse - own).sum(),
            samples: rows as u64,
            step: self.step + 1,
            rate: self.rate,
        });

        // `B · D`; the division by B is made on the features, which are far fewer.
        let minus_one = Tensor::full([rows, 1], -1.0, (&self.device, features.dtype()));
        let difference = probabilities.scatter(1, indices, minus_one, IndexingUpdateOp::Add);
        let scale = 1.0 / effective as f64;
        let scaled = as_type(features.mul_scalar(scale), product);
        let mut open = self.gradient.take().unwrap_or_else(|| Gradient {
            weight: Vec::with_capacity(self.weight.len()),
            bias: Vec::with_capacity(self.bias.len()),
            samples: 0,
            effective,
        });
        let first = open.samples == 0;
        for (tile, span) in spans(self.classes, self.options.blocks.classes).enumerate() {
            let part = difference.clone().narrow(1, span.start, span.len());
            let bias = part.clone().sum_dim(0).mul_scalar(scale);
            let weight = as_type(part, product).transpose().matmul(scaled.clone());
            let weight = as_type(weight, burn::tensor::DType::F32);
            if first {
                open.weight.push(weight);
                open.bias.push(bias);
            } else {
                open.weight[tile].inplace(|sum| sum + weight);
                open.bias[tile].inplace(|sum| sum + bias);
            }
        }
        open.samples += rows;
        self.gradient = Some(open);
    }

    /// Updates the head with what was accumulated since the last update.
    ///
    /// # Errors
    /// When the micro-batches do not add up to the announced step, or the rate is negative or not finite.
    pub fn step(&mut self, rate: f64) -> Result<StepReport, TrainError> {
        not_negative("learning_rate", rate)?;
        let (accumulated, expected) = self.gradient.as_ref().map_or((0, 1), |open| (open.samples, open.effective));
        let gradient = match self.gradient.take() {
            Some(open) if accumulated == expected => open,
            open => {
                self.gradient = open;
                return Err(TrainError::Accumulation { accumulated, expected });
            }
        };
        let factor = self.clip_factor(&gradient);
        self.update_tiles(rate, gradient, factor.as_ref());
        self.refresh_cast();
        self.step += 1;
        self.rate = rate;
        Ok(StepReport { step: self.step, rate, samples: accumulated })
    }

    fn update_tiles(&mut self, rate: f64, gradient: Gradient<B>, factor: Option<&Tensor<B, 2>>) {
        let sgd = self.sgd;
        let weights = self.weight.iter_mut().zip(&mut self.weight_momentum);
        let biases = self.bias.iter_mut().zip(&mut self.bias_momentum);
        let gradients = gradient.weight.into_iter().chain(gradient.bias);
        for ((value, velocity), gradient) in weights.chain(biases).zip(gradients) {
            update(&sgd, rate, factor, value, velocity, gradient);
        }
    }

    /// Keeps the norm, and gives the factor `[1, 1]` of the gradient; `None` without clipping.
    fn clip_factor(&mut self, gradient: &Gradient<B>) -> Option<Tensor<B, 2>> {
        if self.sgd.clip_norm == 0.0 {
            self.norm = None;
            return None;
        }
        // Rows first: a sum over a whole tile runs on several threads of the CPU in no fixed order.
        let squares = gradient.weight.iter().chain(&gradient.bias);
        let squares = squares.map(|part| part.clone().square().sum_dim(1).sum());
        let norm = Tensor::cat(squares.collect(), 0).sum().sqrt();
        self.norm = Some(norm.clone());
        let factor = norm.add_scalar(CLIP_EPSILON).recip().mul_scalar(self.sgd.clip_norm).clamp_max(1.0);
        Some(factor.reshape([1, 1]))
    }

    /// The norm of the last update's gradient before clipping, read from the device; `None` without clipping.
    ///
    /// # Errors
    /// When the device fails.
    pub fn grad_norm(&self) -> Result<Option<f64>, TrainError> {
        let Some(norm) = &self.norm else {
            return Ok(None);
        };
        Ok(download(norm.clone())?.first().copied().map(f64::from))
    }

    /// Sum of the losses since they were last taken, in nats, and the number of samples.
    ///
    /// Reads from the device what was not read yet; ask every few steps, not each one.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub fn loss(&mut self) -> Result<(f64, u64), TrainError> {
        self.read_losses()?;
        Ok((self.loss_sum, self.loss_count))
    }

    /// As [`Trainer::loss`], and starts anew.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub fn take_loss(&mut self) -> Result<(f64, u64), TrainError> {
        let loss = self.loss()?;
        self.loss_sum = 0.0;
        self.loss_count = 0;
        Ok(loss)
    }

    fn read_losses(&mut self) -> Result<(), TrainError> {
        let pending = mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        // One read for all of them.
        let sums = pending.iter().map(|loss| loss.sum.clone()).collect();
        let sums = download(Tensor::cat(sums, 0))?;
        for (sum, entry) in sums.into_iter().zip(&pending) {
            let loss = f64::from(sum);
            if !loss.is_finite() {
                return Err(TrainError::Loss { step: entry.step, loss, rate: entry.rate });
            }
            // In the order of the samples, so that the sum does not depend on when it is read.
            self.loss_sum += loss;
            self.loss_count += entry.samples;
        }
        Ok(())
    }

    /// A scorer over the head as it is now; it shares the tiles, so drop it before the next update.
    pub fn scorer(&self) -> Scorer<B> {
        Scorer::from_tiles(
            self.classes,
            self.dim,
            self.options.blocks,
            self.options.compute,
            self.product_weight().to_vec(),
            self.bias.clone(),
            &self.device,
        )
    }

    /// Reads weights and momentum back to the host.
    ///
    /// A gradient that was accumulated but not applied is not part of it: save between steps.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<HeadState, TrainError> {
        Ok(HeadState {
            classes: self.classes,
            dim: self.dim,
            weight: join(&self.weight)?,
            bias: join(&self.bias)?,
            weight_momentum: join(&self.weight_momentum)?,
            bias_momentum: join(&self.bias_momentum)?,
        })
    }

    fn product_weight(&self) -> &[Tensor<B, 2>] {
        if self.cast_weight.is_empty() { &self.weight } else { &self.cast_weight }
    }

    fn refresh_cast(&mut self) {
        if self.options.compute == Compute::F32 {
            return;
        }
        let dtype = self.options.compute.dtype();
        self.cast_weight.clear();
        self.cast_weight.extend(self.weight.iter().map(|tile| tile.clone().cast(dtype)));
    }
}

/// Updates one tile. Every operand that changes has one owner, so the CPU backend works in place.
fn update<B: Backend>(
    sgd: &Sgd,
    rate: f64,
    factor: Option<&Tensor<B, 2>>,
    value: &mut Tensor<B, 2>,
    velocity: &mut Tensor<B, 2>,
    mut gradient: Tensor<B, 2>,
) {
    if let Some(factor) = factor {
        gradient = gradient * factor.clone();
    }
    if sgd.weight_decay > 0.0 {
        gradient = gradient + value.clone().mul_scalar(sgd.weight_decay);
    }
    if sgd.momentum > 0.0 {
        velocity.inplace(|velocity| velocity.mul_scalar(sgd.momentum) + gradient);
        gradient = velocity.clone();
    }
    value.inplace(|value| value - gradient.mul_scalar(rate));
}

/// Reads tiles back, a few rows at a time: what CUDA's runtime reads into is pinned and stays so, in pages as large as what was read.
fn join<B: Backend>(tiles: &[Tensor<B, 2>]) -> Result<Vec<f32>, PredictError> {
    let mut values = Vec::with_capacity(tiles.iter().map(|tile| tile.shape().num_elements()).sum());
    for tile in tiles {
        let [rows, columns] = tile.dims();
        let columns_at_once = columns.min(READ_AT_ONCE);
        for row in spans(rows, READ_AT_ONCE / columns_at_once) {
            for column in spans(columns, columns_at_once) {
                let part = tile.clone().narrow(0, row.start, row.len()).narrow(1, column.start, column.len());
                values.extend(download(part)?);
            }
        }
    }
    Ok(values)
}

fn not_negative(what: &'static str, value: f64) -> Result<(), TrainError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(TrainError::Setting { what, range: "[0, ∞)", value })
}

#[cfg(test)]
mod tests;
