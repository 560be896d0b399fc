//! Swin and Swin v2: tokens attend within windows, every second block shifts the windows, and stages merge tokens.

mod bias;

use burn::tensor::Int;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, activation};

use crate::model::block::{Linear, Mlp, Norm, PatchEmbedding, cast_to};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::WindowedConfig;
use crate::model::error::ModelError;
use crate::model::layout::windowed as names;
use crate::model::load::Loader;
use crate::model::plain::load_patches;
use crate::model::pooling::TapFeatures;
use crate::model::position;

/// Epsilon of the norms after the patches and around the merging of tokens, which no key of `config.json` sets.
const FIXED_EPSILON: f64 = 1e-5;
/// Smallest length of a query or key of Swin v2, as in torch's `normalize`.
const MIN_LENGTH: f64 = 1e-12;

/// Windowed backbone on a device.
#[derive(Debug)]
pub(super) struct WindowedBackbone<B: Backend> {
    patches: PatchEmbedding<B>,
    first_norm: Norm<B>,
    /// Positions of the patches, `[1, grid², embed]`.
    positions: Option<Tensor<B, 3>>,
    stages: Vec<Stage<B>>,
    /// Norm after the last stage, if that stage is loaded.
    final_norm: Option<Norm<B>>,
}

/// Blocks of one width.
#[derive(Debug)]
struct Stage<B: Backend> {
    blocks: Vec<WindowBlock<B>>,
    /// Side of the grid of tokens.
    grid: usize,
    /// Merging of the tokens after the blocks.
    merging: Option<Merging<B>>,
}

/// Transformer block whose attention works within windows.
#[derive(Debug)]
struct WindowBlock<B: Backend> {
    attention_norm: Norm<B>,
    query_key_value: Linear<B>,
    attention_output: Linear<B>,
    mlp_norm: Norm<B>,
    mlp: Mlp<B>,
    heads: usize,
    window: usize,
    shift: usize,
    /// Position bias, and the mask of shifted windows, `[1, 1 or windows, heads, window², window²]`, f32.
    bias: Tensor<B, 5>,
    /// Factor of the cosines for each head, `[1, heads, 1, 1]`, f32: Swin v2.
    cosine_scale: Option<Tensor<B, 4>>,
}

/// Merging of each square of four tokens to one of twice the width.
#[derive(Debug)]
struct Merging<B: Backend> {
    norm: Norm<B>,
    reduction: Linear<B>,
    /// True if the norm comes after the reduction: Swin v2.
    norm_last: bool,
}

impl<B: Backend> WindowedBackbone<B> {
    /// Loads the blocks up to `last`.
    pub(super) fn load(
        (checkpoint, config): (&Checkpoint, &WindowedConfig),
        size_px: u32,
        last: u32,
        loader: &Loader<'_, B>,
    ) -> Result<Self, ModelError> {
        let patches = (size_px / checkpoint.config().patch_px) as usize;
        let positions = if config.absolute_positions {
            let table = loader.values(names::POSITIONS)?;
            let table = position::interpolate(table, 0, config.native_grid, patches, config.embed, false);
            Some(loader.upload(table, [1, patches * patches, config.embed]))
        } else {
            None
        };
        let (mut stages, mut left) = (Vec::new(), last as usize + 1);
        for (stage, depth) in config.depths.iter().enumerate().take(config.stage_of(last as usize) + 1) {
            let (grid, depth) = (WindowedConfig::grid(patches, stage), left.min(*depth));
            left -= depth;
            let activation = checkpoint.config().activation;
            let block = |block| load_block(config, (stage, block), grid, activation, loader);
            let merging = if left > 0 { Some(load_merging(config, stage, loader)?) } else { None };
            stages.push(Stage { blocks: (0..depth).map(block).collect::<Result<_, _>>()?, grid, merging });
        }
        let is_last_stage = stages.len() == config.depths.len();
        Ok(Self {
            patches: load_patches(checkpoint, loader, names::PATCH, true)?,
            first_norm: loader.norm_with(names::FIRST_NORM, FIXED_EPSILON)?,
            positions,
            stages,
            final_norm: if is_last_stage { Some(loader.norm(names::FINAL_NORM)?) } else { None },
        })
    }

    /// Maps pixels, `[rows · side · side · 3]`, to the mean tokens of the blocks `taps`, each `[rows, width]` in f32.
    ///
    /// The final norm is applied in the last stage, whose width it has.
    pub(super) fn forward(
        &self,
        pixels: Tensor<B, 1, Int>,
        (rows, side): (usize, usize),
        format: DType,
        taps: &[u32],
    ) -> Vec<Tensor<B, 2>> {
        let mut states = self.embed(pixels, (rows, side), format);
        let mut features = TapFeatures::new(taps);
        let mut index = 0;
        for stage in &self.stages {
            for block in &stage.blocks {
                states = block.forward(states, rows, stage.grid);
                let norm = self.final_norm.as_ref().filter(|_| stage.merging.is_none());
                features.collect(index, || mean_tokens(states.clone(), rows, norm));
                index += 1;
            }
            if let Some(merging) = &stage.merging {
                states = merging.forward(states, rows, stage.grid);
            }
        }
        features.into_vec()
    }

    /// Maps pixels, `[rows · side · side · 3]`, to the states of all tokens after the last loaded block, `[rows, tokens, width]`.
    ///
    /// The final norm is applied in the last stage, whose width it has.
    pub(super) fn states(
        &self,
        pixels: Tensor<B, 1, Int>,
        (rows, side): (usize, usize),
        format: DType,
    ) -> Tensor<B, 3> {
        let mut states = self.embed(pixels, (rows, side), format);
        for stage in &self.stages {
            for block in &stage.blocks {
                states = block.forward(states, rows, stage.grid);
            }
            if let Some(merging) = &stage.merging {
                states = merging.forward(states, rows, stage.grid);
            }
        }
        if let Some(norm) = &self.final_norm {
            states = norm.forward(states);
        }
        let [all, width] = states.dims();
        states.reshape([rows, all / rows, width])
    }

    /// Maps pixels to the input of the first block, `[rows · tokens, width]`.
    fn embed(&self, pixels: Tensor<B, 1, Int>, (rows, side): (usize, usize), format: DType) -> Tensor<B, 2> {
        let tokens = self.patches.forward(pixels, rows, side, format);
        let [_, count, width] = tokens.dims();
        let mut states = self.first_norm.forward(tokens);
        if let Some(positions) = &self.positions {
            states = states + positions.clone();
        }
        states.reshape([rows * count, width])
    }
}

/// Returns the mean of the tokens of each row, after the norm if there is one.
fn mean_tokens<B: Backend>(states: Tensor<B, 2>, rows: usize, norm: Option<&Norm<B>>) -> Tensor<B, 2> {
    let [all, width] = states.dims();
    let states = match norm {
        Some(norm) => norm.forward_f32(states),
        None => cast_to(states, DType::F32),
    };
    states.reshape([rows, all / rows, width]).mean_dim(1).squeeze_dim(1)
}

impl<B: Backend> WindowBlock<B> {
    /// Maps `[rows · grid², width]` to the same shape.
    fn forward(&self, input: Tensor<B, 2>, rows: usize, grid: usize) -> Tensor<B, 2> {
        if self.cosine_scale.is_some() {
            // Swin v2 normalises the updates rather than the inputs.
            let attended = self.attend(input.clone(), rows, grid);
            let input = input + self.attention_norm.forward(attended);
            let mlp = self.mlp.forward(input.clone());
            return input + self.mlp_norm.forward(mlp);
        }
        let attended = self.attend(self.attention_norm.forward(input.clone()), rows, grid);
        let input = input + attended;
        let mlp = self.mlp.forward(self.mlp_norm.forward(input.clone()));
        input + mlp
    }

    /// Attention within windows. Zeros pad the grid to a multiple of the window.
    fn attend(&self, input: Tensor<B, 2>, rows: usize, grid: usize) -> Tensor<B, 2> {
        let [_, width] = input.dims();
        let (window, heads) = (self.window, self.heads);
        let padded = grid.next_multiple_of(window);
        let across = padded / window;
        let image = roll(pad(input.reshape([rows, grid, grid, width]), padded), self.shift);
        let windows = image.reshape([rows, across, window, across, window, width]).swap_dims(2, 3);
        let (count, area) = (rows * across * across, window * window);
        let query_key_value = self.query_key_value.forward(windows.reshape([count * area, width]));
        let split = |index: usize| {
            let part = query_key_value.clone().narrow(1, index * width, width);
            part.reshape([count, area, heads, width / heads]).swap_dims(1, 2)
        };
        let scores = self.scores(split(0), split(1));
        let scores = scores.reshape([rows, across * across, heads, area, area]) + self.bias.clone();
        let shares = activation::softmax(scores.reshape([count, heads, area, area]), 3);
        let attended = cast_to(shares, query_key_value.dtype()).matmul(split(2));
        let attended = self.attention_output.forward(attended.swap_dims(1, 2).reshape([count * area, width]));
        let image = attended.reshape([rows, across, across, window, window, width]).swap_dims(2, 3);
        let image = roll(image.reshape([rows, padded, padded, width]), padded - self.shift);
        let image = image.narrow(1, 0, grid).narrow(2, 0, grid);
        image.reshape([rows * grid * grid, width])
    }

    /// Returns the scores without bias, `[windows, heads, window², window²]` in f32.
    fn scores(&self, query: Tensor<B, 4>, key: Tensor<B, 4>) -> Tensor<B, 4> {
        let Some(scale) = &self.cosine_scale else {
            let width = query.dims()[3] as f64;
            return cast_to(query.matmul(key.transpose()), DType::F32) / width.sqrt();
        };
        let format = query.dtype();
        let unit = |vectors: Tensor<B, 4>| {
            let vectors = cast_to(vectors, DType::F32);
            let length = vectors.clone().powi_scalar(2).sum_dim(3).sqrt().clamp_min(MIN_LENGTH);
            cast_to(vectors / length, format)
        };
        cast_to(unit(query).matmul(unit(key).transpose()), DType::F32) * scale.clone()
    }
}

impl<B: Backend> Merging<B> {
    /// Maps `[rows · grid², width]` to `[rows · ⌈grid / 2⌉², 2 · width]`.
    fn forward(&self, input: Tensor<B, 2>, rows: usize, grid: usize) -> Tensor<B, 2> {
        let [_, width] = input.dims();
        let half = grid.div_ceil(2);
        let image = pad(input.reshape([rows, grid, grid, width]), 2 * half);
        let squares = image.reshape([rows, half, 2, half, 2, width]);
        let corner = |row: usize, column: usize| {
            squares.clone().narrow(2, row, 1).narrow(4, column, 1).reshape([rows * half * half, width])
        };
        let joined = Tensor::cat(vec![corner(0, 0), corner(1, 0), corner(0, 1), corner(1, 1)], 1);
        if self.norm_last {
            self.norm.forward(self.reduction.forward(joined))
        } else {
            self.reduction.forward(self.norm.forward(joined))
        }
    }
}

/// Pads a square grid, `[rows, grid, grid, width]`, with zeros at its end.
fn pad<B: Backend>(image: Tensor<B, 4>, to: usize) -> Tensor<B, 4> {
    let [rows, grid, _, width] = image.dims();
    if grid == to {
        return image;
    }
    let zeros = |shape: [usize; 4]| Tensor::zeros(shape, (&image.device(), image.dtype()));
    let (right, below) = (zeros([rows, grid, to - grid, width]), zeros([rows, to - grid, to, width]));
    Tensor::cat(vec![Tensor::cat(vec![image, right], 2), below], 1)
}

/// Shifts a square grid cyclically by `shift` cells up and to the left.
fn roll<B: Backend>(image: Tensor<B, 4>, shift: usize) -> Tensor<B, 4> {
    let side = image.dims()[1];
    let shift = shift % side;
    if shift == 0 {
        return image;
    }
    let along = |image: Tensor<B, 4>, dim: usize| {
        Tensor::cat(vec![image.clone().narrow(dim, shift, side - shift), image.narrow(dim, 0, shift)], dim)
    };
    along(along(image, 1), 2)
}

fn load_merging<B: Backend>(
    config: &WindowedConfig,
    stage: usize,
    loader: &Loader<'_, B>,
) -> Result<Merging<B>, ModelError> {
    let [norm, weight] = names::merge_keys(stage);
    let width = config.width(stage);
    let target = (loader.device, loader.format);
    Ok(Merging {
        norm: loader.norm_with(&norm, FIXED_EPSILON)?,
        reduction: Linear::new(&loader.values(weight)?, None, 4 * width, 2 * width, target),
        norm_last: config.v2,
    })
}

fn load_block<B: Backend>(
    config: &WindowedConfig,
    (stage, block): (usize, usize),
    grid: usize,
    activation: crate::model::config::Activation,
    loader: &Loader<'_, B>,
) -> Result<WindowBlock<B>, ModelError> {
    let (width, inner) = (config.width(stage), config.inner(stage));
    let key = |part: &str| names::block_key(stage, block, part);
    let (window, shift) = config.window_and_shift(stage, grid);
    let shift = if block % 2 == 1 { shift } else { 0 };
    let qkv = |number: usize, part: &str| (key(part), config.qkv_bias && !(config.v2 && number == 1));
    let parts: Vec<(String, bool)> =
        names::QUERY_KEY_VALUE.iter().enumerate().map(|(number, part)| qkv(number, part)).collect();
    Ok(WindowBlock {
        attention_norm: loader.norm(&key(names::ATTENTION_NORM))?,
        query_key_value: loader.joined(&parts, width, 3 * width)?,
        attention_output: loader.linear(&key(names::ATTENTION_OUTPUT), width, width, true)?,
        mlp_norm: loader.norm(&key(names::MLP_NORM))?,
        mlp: loader.mlp([key(names::INNER), key(names::OUTER)], [width, inner], activation, true)?,
        heads: config.heads[stage],
        window,
        shift,
        bias: bias::load_bias(config, (stage, block), (grid, window, shift), loader)?,
        cosine_scale: if config.v2 { Some(bias::load_cosine_scale(config, (stage, block), loader)?) } else { None },
    })
}
