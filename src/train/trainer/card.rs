//! The head's gradient and update on a device, in the operations of burn.
//!
//! Rows go through in blocks, so one `[rows of a block, classes]` matrix of logits and one of probabilities exist at a time; the
//! head is held in tiles of classes, so every other temporary is one tile. The last tile is padded with classes
//! whose bias is [`NEVER`](crate::predict::tiles::NEVER): they have no probability and so no gradient.

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

use super::{Block, CLIP_EPSILON, Engine, Options, Part, Sgd, TrainError};
use crate::predict::PredictError;
use crate::predict::scorer::Scorer;
use crate::predict::tiles::{
    Compute, as_type, download, softmax_and_lse, spans, tile_logits, upload, upload_rows, upload_tiles,
};
use crate::train::{HeadState, Targets};

/// Losses that wait on the device before they are read without being asked for.
const PENDING_LOSSES: usize = 4096;

/// Values that are read back at once: 1 MiB.
const READ_AT_ONCE: usize = 1 << 18;

/// The head on the device, with its gradient and its optimiser.
pub(super) struct Card<B: Backend> {
    classes: usize,
    dim: usize,
    options: Options,
    device: B::Device,
    weight: Vec<Tensor<B, 2>>,
    bias: Vec<Tensor<B, 2>>,
    weight_momentum: Vec<Tensor<B, 2>>,
    bias_momentum: Vec<Tensor<B, 2>>,
    /// The weight in the type of the products; empty where that is f32.
    cast_weight: Vec<Tensor<B, 2>>,
    weight_gradient: Vec<Tensor<B, 2>>,
    bias_gradient: Vec<Tensor<B, 2>>,
    norm: Option<Tensor<B, 1>>,
    /// Losses that are on the device, and those that were read.
    pending: Vec<Tensor<B, 1>>,
    losses: Vec<f64>,
}

impl<B: Backend> Card<B> {
    pub(super) fn new(state: HeadState, options: Options, device: &B::Device) -> Self {
        let tile = options.blocks.classes;
        // One vector after the other is dropped, so the host never keeps what the device has.
        let matrix = |values: Vec<f32>| upload_tiles(&values, state.dim, tile, device);
        let row = |values: Vec<f32>, pad: f32| upload_rows(&values, tile, pad, device);
        let mut this = Self {
            classes: state.classes,
            dim: state.dim,
            options,
            device: device.clone(),
            weight: matrix(state.weight),
            bias: row(state.bias, crate::predict::tiles::NEVER),
            weight_momentum: matrix(state.weight_momentum),
            bias_momentum: row(state.bias_momentum, 0.0),
            cast_weight: Vec::new(),
            weight_gradient: Vec::new(),
            bias_gradient: Vec::new(),
            norm: None,
            pending: Vec::new(),
            losses: Vec::new(),
        };
        this.refresh_cast();
        this
    }

    /// The j-th class of each row and its share, for each j; rows with fewer have a share of 0 of one of theirs.
    fn targets(&self, targets: &Targets) -> Vec<(Tensor<B, 2, Int>, Tensor<B, 2>)> {
        let (rows, most) = (targets.rows(), targets.iter().map(|(_, classes)| classes.len()).max().unwrap_or(0));
        let nth = |nth: usize| {
            let of_row = |(_, classes): (usize, &[u32])| match classes.get(nth) {
                Some(class) => (i64::from(*class), 1.0 / classes.len() as f32),
                None => (i64::from(classes[0]), 0.0),
            };
            let (classes, shares): (Vec<i64>, Vec<f32>) = targets.iter().map(of_row).unzip();
            let classes = Tensor::from_data(TensorData::new(classes, [rows, 1]), &self.device);
            (classes, upload(&shares, rows, 1, &self.device))
        };
        (0..most).map(nth).collect()
    }

    fn read_losses(&mut self) -> Result<(), TrainError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        // One read for all of them.
        let sums = download(Tensor::cat(std::mem::take(&mut self.pending), 0))?;
        self.losses.extend(sums.into_iter().map(f64::from));
        Ok(())
    }

    /// Keeps the norm, and gives the factor `[1, 1]` of the gradient; `None` without clipping.
    fn clip_factor(&mut self, clip_norm: f64) -> Option<Tensor<B, 2>> {
        if clip_norm == 0.0 {
            self.norm = None;
            return None;
        }
        // Rows first: a sum over a whole tile runs on several threads of the CPU in no fixed order.
        let squares = self.weight_gradient.iter().chain(&self.bias_gradient);
        let squares = squares.map(|part| part.clone().square().sum_dim(1).sum());
        let norm = Tensor::cat(squares.collect(), 0).sum().sqrt();
        self.norm = Some(norm.clone());
        let factor = norm.add_scalar(CLIP_EPSILON).recip().mul_scalar(clip_norm).clamp_max(1.0);
        Some(factor.reshape([1, 1]))
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

    /// The real classes of tiles, row-major; a few rows at a time: what CUDA's runtime reads into is pinned and stays so, in pages
    /// as large as what was read.
    fn join(&self, tiles: &[Tensor<B, 2>], by_row: bool) -> Result<Vec<f32>, PredictError> {
        let (mut values, real) = (Vec::new(), spans(self.classes, self.options.blocks.classes));
        for (tile, real) in tiles.iter().zip(real) {
            let tile = tile.clone().narrow(usize::from(!by_row), 0, real.len());
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
}

impl<B: Backend> Engine<B> for Card<B> {
    fn add(&mut self, part: Part<'_, B>) -> Result<(), TrainError> {
        if self.pending.len() >= PENDING_LOSSES {
            self.read_losses()?;
        }
        let Part { features, targets, effective, smoothing, first } = part;
        let (rows, product) = (targets.rows(), self.options.compute.dtype());
        let features = match features {
            Block::Host(values) => upload(values, rows, self.dim, &self.device),
            Block::Device(values) => values,
        };
        let of_rows = self.targets(targets);

        let inputs = as_type(features.clone(), product);
        let parts = self.product_weight().iter().zip(&self.bias);
        let logits = parts.map(|(weight, bias)| tile_logits(&inputs, weight, bias));
        let logits = Tensor::cat(logits.collect(), 1);
        let own = of_rows.iter().map(|(classes, shares)| logits.clone().gather(1, classes.clone()) * shares.clone());
        let own = own.reduce(|sum, next| sum + next);
        let mut expected =
            own.map_or_else(|| Tensor::zeros([rows, 1], &self.device), |own| own.mul_scalar(1.0 - smoothing));
        let uniform = (smoothing > 0.0).then(|| {
            let [_, all] = logits.dims();
            let share = (smoothing / self.classes as f64) as f32;
            let shares: Vec<f32> = (0..all).map(|class| if class < self.classes { share } else { 0.0 }).collect();
            upload::<B>(&shares, 1, all, &self.device)
        });
        if let Some(uniform) = &uniform {
            expected = expected + (logits.clone() * uniform.clone()).sum_dim(1);
        }
        let (probabilities, lse) = softmax_and_lse(logits);
        self.pending.push((lse - expected).sum());

        // `B · D`; the division by B is made on the features, which are far fewer.
        let mut difference = probabilities;
        for (classes, shares) in of_rows {
            let less = shares.mul_scalar(smoothing - 1.0);
            difference = difference.scatter(1, classes, less, IndexingUpdateOp::Add);
        }
        if let Some(uniform) = uniform {
            difference = difference - uniform;
        }
        let scale = 1.0 / effective as f64;
        let scaled = as_type(features.mul_scalar(scale), product);
        let mut start = 0;
        for tile in 0..self.weight.len() {
            let [width, _] = self.weight[tile].dims();
            let part = difference.clone().narrow(1, start, width);
            start += width;
            let bias = part.clone().sum_dim(0).mul_scalar(scale);
            let weight = as_type(part, product).transpose().matmul(scaled.clone());
            let weight = as_type(weight, DType::F32);
            if first {
                self.weight_gradient.push(weight);
                self.bias_gradient.push(bias);
            } else {
                self.weight_gradient[tile].inplace(|sum| sum + weight);
                self.bias_gradient[tile].inplace(|sum| sum + bias);
            }
        }
        Ok(())
    }

    fn update(&mut self, sgd: &Sgd, rate: f64) {
        let factor = self.clip_factor(sgd.clip_norm);
        let weights = self.weight.iter_mut().zip(&mut self.weight_momentum).zip(self.weight_gradient.drain(..));
        let biases = self.bias.iter_mut().zip(&mut self.bias_momentum).zip(self.bias_gradient.drain(..));
        for ((value, velocity), gradient) in weights.chain(biases) {
            update(sgd, rate, factor.as_ref(), value, velocity, gradient);
        }
        self.refresh_cast();
    }

    fn take_losses(&mut self) -> Result<Vec<f64>, TrainError> {
        self.read_losses()?;
        Ok(std::mem::take(&mut self.losses))
    }

    fn norm(&self) -> Result<Option<f64>, TrainError> {
        let Some(norm) = &self.norm else {
            return Ok(None);
        };
        Ok(download(norm.clone())?.first().copied().map(f64::from))
    }

    fn state(&self) -> Result<Cow<'_, HeadState>, TrainError> {
        Ok(Cow::Owned(HeadState {
            classes: self.classes,
            dim: self.dim,
            weight: self.join(&self.weight, true)?,
            bias: self.join(&self.bias, false)?,
            weight_momentum: self.join(&self.weight_momentum, true)?,
            bias_momentum: self.join(&self.bias_momentum, false)?,
        }))
    }

    fn scorer(&self, options: Options, device: &B::Device) -> Result<Scorer<B>, TrainError> {
        let (weight, bias) = (self.product_weight().to_vec(), self.bias.clone());
        Ok(Scorer::from_tiles(self.classes, self.dim, options.blocks, options.compute, weight, bias, device))
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
