//! Computes gradient and update of the head on a device, with burn's operations.
//!
//! Rows are processed in tiles, so only one `[tile rows, classes]` matrix of logits and one of probabilities exist at a
//! time. The head is stored in tiles of classes, so every other temporary has the size of one tile. The last tile is
//! padded with classes whose bias is [`PADDING_BIAS`](crate::predict::tiles::PADDING_BIAS): their probability and
//! gradient are zero.

use std::borrow::Cow;
use std::mem;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

use super::engine::{Engine, RowTile, TileFeatures};
use super::{CLIP_EPSILON, Options, Sgd, TrainError};
use crate::predict::PredictError;
use crate::predict::scorer::Scorer;
use crate::predict::tiles::{
    Compute, cast_to, download, softmax_and_lse, tile_logits, tile_ranges, upload, upload_rows, upload_tiles,
};
use crate::train::{HeadState, Targets};

/// Number of losses on the device after which they are downloaded even without a caller.
const PENDING_LOSSES: usize = 4096;

/// Number of values of one download, 1 MiB.
const DOWNLOAD_VALUES: usize = 1 << 18;

/// Training engine on a device; owns head, gradient and momentum.
pub(super) struct GpuEngine<B: Backend> {
    classes: usize,
    dim: usize,
    options: Options,
    device: B::Device,
    weight: Vec<Tensor<B, 2>>,
    bias: Vec<Tensor<B, 2>>,
    weight_momentum: Vec<Tensor<B, 2>>,
    bias_momentum: Vec<Tensor<B, 2>>,
    /// Weight in the format of the products; empty if that is f32.
    cast_weight: Vec<Tensor<B, 2>>,
    weight_gradient: Vec<Tensor<B, 2>>,
    bias_gradient: Vec<Tensor<B, 2>>,
    grad_norm: Option<Tensor<B, 1>>,
    /// Losses on the device.
    pending: Vec<Tensor<B, 1>>,
    /// Downloaded losses.
    losses: Vec<f64>,
}

impl<B: Backend> GpuEngine<B> {
    pub(super) fn new(state: HeadState, options: Options, device: &B::Device) -> Self {
        let tile = options.tiling.classes;
        // Each vector is dropped after its upload, so the host never holds a second copy of the head.
        let matrix = |values: Vec<f32>| upload_tiles(&values, state.dim, tile, device);
        let row = |values: Vec<f32>, pad: f32| upload_rows(&values, tile, pad, device);
        let mut this = Self {
            classes: state.classes,
            dim: state.dim,
            options,
            device: device.clone(),
            weight: matrix(state.weight),
            bias: row(state.bias, crate::predict::tiles::PADDING_BIAS),
            weight_momentum: matrix(state.weight_momentum),
            bias_momentum: row(state.bias_momentum, 0.0),
            cast_weight: Vec::new(),
            weight_gradient: Vec::new(),
            bias_gradient: Vec::new(),
            grad_norm: None,
            pending: Vec::new(),
            losses: Vec::new(),
        };
        this.refresh_cast();
        this
    }

    /// Uploads the j-th class of each row and its share, `[rows, 1]` each, for every j.
    ///
    /// A row with fewer classes repeats its first class with share 0.
    fn upload_targets(&self, targets: &Targets) -> Vec<(Tensor<B, 2, Int>, Tensor<B, 2>)> {
        let (rows, most) = (targets.rows(), targets.iter().map(|(_, classes)| classes.len()).max().unwrap_or(0));
        let nth = |nth: usize| {
            let entry = |(_, classes): (usize, &[u32])| match classes.get(nth) {
                Some(class) => (i64::from(*class), 1.0 / classes.len() as f32),
                None => (i64::from(classes[0]), 0.0),
            };
            let (classes, shares): (Vec<i64>, Vec<f32>) = targets.iter().map(entry).unzip();
            let classes = Tensor::from_data(TensorData::new(classes, [rows, 1]), &self.device);
            (classes, upload(&shares, rows, 1, &self.device))
        };
        (0..most).map(nth).collect()
    }

    fn download_losses(&mut self) -> Result<(), TrainError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        // One download for all of them.
        let sums = download(Tensor::cat(mem::take(&mut self.pending), 0))?;
        self.losses.extend(sums.into_iter().map(f64::from));
        Ok(())
    }

    /// Computes the gradient norm and returns the clipping factor, `[1, 1]`; `None` without clipping.
    fn clip_factor(&mut self, clip_norm: f64) -> Option<Tensor<B, 2>> {
        if clip_norm == 0.0 {
            self.grad_norm = None;
            return None;
        }
        // Sums rows first: on the CPU backend, a sum over a whole tile runs on several threads in no fixed order.
        let squares = self.weight_gradient.iter().chain(&self.bias_gradient);
        let squares = squares.map(|tile| tile.clone().square().sum_dim(1).sum());
        let norm = Tensor::cat(squares.collect(), 0).sum().sqrt();
        self.grad_norm = Some(norm.clone());
        let factor = norm.add_scalar(CLIP_EPSILON).recip().mul_scalar(clip_norm).clamp_max(1.0);
        Some(factor.reshape([1, 1]))
    }

    /// Returns the weight in the format of the products.
    fn product_weight(&self) -> &[Tensor<B, 2>] {
        if self.cast_weight.is_empty() { &self.weight } else { &self.cast_weight }
    }

    /// Casts the weight to the format of the products.
    fn refresh_cast(&mut self) {
        if self.options.compute == Compute::F32 {
            return;
        }
        let dtype = self.options.compute.dtype();
        self.cast_weight.clear();
        self.cast_weight.extend(self.weight.iter().map(|tile| tile.clone().cast(dtype)));
    }

    /// Downloads tiles without padding classes, row-major.
    ///
    /// Downloads a few rows at a time: CUDA's runtime pins a buffer as large as each download and keeps it.
    fn download_tiles(&self, tiles: &[Tensor<B, 2>], by_row: bool) -> Result<Vec<f32>, PredictError> {
        let (mut values, real) = (Vec::new(), tile_ranges(self.classes, self.options.tiling.classes));
        for (tile, real) in tiles.iter().zip(real) {
            let tile = tile.clone().narrow(usize::from(!by_row), 0, real.len());
            let [rows, columns] = tile.dims();
            let columns_at_once = columns.min(DOWNLOAD_VALUES);
            for row in tile_ranges(rows, DOWNLOAD_VALUES / columns_at_once) {
                for column in tile_ranges(columns, columns_at_once) {
                    let part = tile.clone().narrow(0, row.start, row.len()).narrow(1, column.start, column.len());
                    values.extend(download(part)?);
                }
            }
        }
        Ok(values)
    }
}

impl<B: Backend> Engine<B> for GpuEngine<B> {
    fn kernels(&self) -> &'static str {
        "burn"
    }

    fn add_tile(&mut self, tile: RowTile<'_, B>) -> Result<(), TrainError> {
        if self.pending.len() >= PENDING_LOSSES {
            self.download_losses()?;
        }
        let RowTile { features, targets, effective, smoothing, first } = tile;
        let (rows, product) = (targets.rows(), self.options.compute.dtype());
        let features = match features {
            TileFeatures::Host(values) => upload(values, rows, self.dim, &self.device),
            TileFeatures::Device(values) => values,
            TileFeatures::Card(from, indices) => {
                upload(&from.read(indices).map_err(PredictError::Device)?, rows, self.dim, &self.device)
            }
        };
        let targets = self.upload_targets(targets);

        let inputs = cast_to(features.clone(), product);
        let tiles = self.product_weight().iter().zip(&self.bias);
        let logits = tiles.map(|(weight, bias)| tile_logits(&inputs, weight, bias));
        let logits = Tensor::cat(logits.collect(), 1);
        let target_logits =
            targets.iter().map(|(classes, shares)| logits.clone().gather(1, classes.clone()) * shares.clone());
        let target_logits = target_logits.reduce(|sum, next| sum + next);
        let mut expected =
            target_logits.map_or_else(|| Tensor::zeros([rows, 1], &self.device), |sum| sum.mul_scalar(1.0 - smoothing));
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

        // `B · D`. The features are divided by B instead, because they are much smaller.
        let mut difference = probabilities;
        for (classes, shares) in targets {
            let less = shares.mul_scalar(smoothing - 1.0);
            difference = difference.scatter(1, classes, less, IndexingUpdateOp::Add);
        }
        if let Some(uniform) = uniform {
            difference = difference - uniform;
        }
        let scale = 1.0 / effective as f64;
        let scaled = cast_to(features.mul_scalar(scale), product);
        let mut start = 0;
        let mut earlier = mem::take(&mut self.weight_gradient).into_iter().zip(mem::take(&mut self.bias_gradient));
        for tile in 0..self.weight.len() {
            let [width, _] = self.weight[tile].dims();
            let part = difference.clone().narrow(1, start, width);
            start += width;
            let bias = part.clone().sum_dim(0).mul_scalar(scale);
            let weight = cast_to(part, product).transpose().matmul(scaled.clone());
            let weight = cast_to(weight, DType::F32);
            let (weight, bias) = match earlier.next() {
                Some((weight_sum, bias_sum)) if !first => (weight_sum + weight, bias_sum + bias),
                _ => (weight, bias),
            };
            self.weight_gradient.push(weight);
            self.bias_gradient.push(bias);
        }
        Ok(())
    }

    fn update(&mut self, sgd: &Sgd, rate: f64) {
        let factor = self.clip_factor(sgd.clip_norm);
        let update = |tiles: (&mut Tiles<B>, &mut Tiles<B>), gradients: &mut Tiles<B>| {
            update_tiles(sgd, rate, factor.as_ref(), tiles, mem::take(gradients));
        };
        update((&mut self.weight, &mut self.weight_momentum), &mut self.weight_gradient);
        update((&mut self.bias, &mut self.bias_momentum), &mut self.bias_gradient);
        self.refresh_cast();
    }

    fn take_losses(&mut self) -> Result<Vec<f64>, TrainError> {
        self.download_losses()?;
        Ok(mem::take(&mut self.losses))
    }

    fn grad_norm(&self) -> Result<Option<f64>, TrainError> {
        let Some(norm) = &self.grad_norm else {
            return Ok(None);
        };
        Ok(download(norm.clone())?.first().copied().map(f64::from))
    }

    fn state(&self) -> Result<Cow<'_, HeadState>, TrainError> {
        Ok(Cow::Owned(HeadState {
            classes: self.classes,
            dim: self.dim,
            weight: self.download_tiles(&self.weight, true)?,
            bias: self.download_tiles(&self.bias, false)?,
            weight_momentum: self.download_tiles(&self.weight_momentum, true)?,
            bias_momentum: self.download_tiles(&self.bias_momentum, false)?,
        }))
    }

    fn scorer(&self, options: Options, device: &B::Device) -> Result<Scorer<B>, TrainError> {
        let (weight, bias) = (self.product_weight().to_vec(), self.bias.clone());
        Ok(Scorer::from_tiles(self.classes, self.dim, options.tiling, options.compute, weight, bias, device))
    }
}

/// Tiles of a matrix or of a row.
type Tiles<B> = Vec<Tensor<B, 2>>;

/// Updates tiles. [`Tensor::inplace`] would allocate an empty tensor for each.
fn update_tiles<B: Backend>(
    sgd: &Sgd,
    rate: f64,
    factor: Option<&Tensor<B, 2>>,
    (values, velocities): (&mut Tiles<B>, &mut Tiles<B>),
    gradients: Tiles<B>,
) {
    let old = mem::take(values).into_iter().zip(mem::take(velocities)).zip(gradients);
    for ((value, velocity), gradient) in old {
        let [value, velocity] = update_tile(sgd, rate, factor, [value, velocity], gradient);
        values.push(value);
        velocities.push(velocity);
    }
}

/// Returns a tile and its velocity after an update. Every modified operand has a single owner, so the CPU backend works in place.
fn update_tile<B: Backend>(
    sgd: &Sgd,
    rate: f64,
    factor: Option<&Tensor<B, 2>>,
    [value, mut velocity]: [Tensor<B, 2>; 2],
    mut gradient: Tensor<B, 2>,
) -> [Tensor<B, 2>; 2] {
    if let Some(factor) = factor {
        gradient = gradient * factor.clone();
    }
    if sgd.weight_decay > 0.0 {
        gradient = gradient + value.clone().mul_scalar(sgd.weight_decay);
    }
    if sgd.momentum > 0.0 {
        velocity = velocity.mul_scalar(sgd.momentum) + gradient;
        gradient = velocity.clone();
    }
    [value - gradient.mul_scalar(rate), velocity]
}
