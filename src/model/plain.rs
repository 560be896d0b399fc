//! Plain backbone, with global attention (every token attends to all tokens): patches → blocks → features.

mod direct;
mod head;
mod positions;

use std::sync::Arc;

use burn::tensor::DType;
use burn::tensor::Int;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::model::attention::{Attention, AttentionPositions};
use crate::model::block::{Block, Mlp, Norm, PatchEmbedding, cast_to};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{Activation, BackboneConfig, Biases, FeedForward, FinalNorm, PlainConfig, Positions};
use crate::model::cpu;
use crate::model::error::ModelError;
use crate::model::layout;
use crate::model::layout::Names;
use crate::model::load::Loader;
use crate::model::pooling::{PooledTokens, Pooling, TapFeatures};
use crate::model::position;
use crate::model::relative;

use head::{Head, load_head};

pub(super) use head::load_pooling_projections;
pub(super) use positions::{compute_rotation, load_biases};

/// Blocks on a device, or on the direct path for CPUs.
#[derive(Debug)]
enum Blocks<B: Backend> {
    Device(Vec<Block<B>>),
    Direct(cpu::Blocks),
}

/// Backbone of equal blocks on a device.
#[derive(Debug)]
pub(super) struct PlainBackbone<B: Backend> {
    patches: PatchEmbedding<B>,
    /// Tokens before the patches with their positions, `[1, tokens, hidden]`.
    leading: Option<Tensor<B, 3>>,
    /// Positions of the patches, `[1, grid², hidden]`.
    positions: Option<Tensor<B, 3>>,
    first_norm: Option<Norm<B>>,
    blocks: Blocks<B>,
    final_norm: Norm<B>,
    norm_input: FinalNorm,
    head: Option<Head<B>>,
    pooling: Pooling,
    /// Tokens that the pooling of features reads.
    pooled: PooledTokens,
    attention: Attention,
}

impl<B: Backend> PlainBackbone<B> {
    /// Loads the blocks up to `last`, and the head if `pooling` needs it. `attention` returns the implementation for
    /// batches of a shape, `[tokens, heads, width of a head]`.
    pub(super) fn load(
        (checkpoint, plain): (&Checkpoint, &PlainConfig),
        size_px: u32,
        last: u32,
        pooling: Pooling,
        loader: &Loader<'_, B>,
        attention: impl FnOnce([usize; 3]) -> Result<Attention, ModelError>,
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let names = layout::names(config.family);
        let patches = load_patches(checkpoint, loader, names.patch, plain.biases.patch)?;
        let grid = (size_px / config.patch_px) as usize;
        let [leading, positions] = load_embeddings(config, plain, grid, loader)?;
        let leading_tokens = plain.leading_tokens();
        let tokens = leading_tokens + grid * grid;
        let rotation = match plain.positions {
            Positions::Rotary { theta } => Some(compute_rotation(theta, plain, grid)),
            _ => None,
        };
        let bias = |name: String| -> Result<Vec<f32>, ModelError> {
            Ok(relative::bias_with_cls(&loader.values(name)?, plain.heads, config.native_grid(), grid))
        };
        let block = BlockConfig {
            hidden: plain.hidden,
            heads: plain.heads,
            feed_forward: plain.feed_forward,
            activation: config.activation,
            biases: plain.biases,
            layer_scale: plain.layer_scale,
            split_gate: checkpoint.split_gate(),
        };
        let blocks = if let Some(arch) = loader.direct {
            let bias = |name| bias(name).map(Arc::new);
            let biases = load_biases(plain, &names, last, bias)?;
            Blocks::Direct(direct::load_blocks(arch, &names, &block, loader, biases, rotation)?)
        } else {
            let bias = |name| Ok(loader.upload(bias(name)?, [1, plain.heads, tokens, tokens]));
            let rotation = rotation.map(|rotation| positions::upload_rotation(rotation, tokens, loader));
            let load = |(index, bias)| {
                let positions = AttentionPositions { bias, rotation: rotation.clone() };
                load_block(&names, &block, index, loader, positions)
            };
            let biases = load_biases(plain, &names, last, bias)?;
            Blocks::Device((0..).zip(biases).map(load).collect::<Result<_, _>>()?)
        };
        let first_norm = if plain.first_norm { Some(loader.norm(names.first_norm)?) } else { None };
        let head = if pooling == Pooling::Head { load_head(config, plain, loader)? } else { None };
        Ok(Self {
            patches,
            leading: leading.map(|values| loader.upload(values, [1, leading_tokens, plain.hidden])),
            positions: positions.map(|values| loader.upload(values, [1, grid * grid, plain.hidden])),
            first_norm,
            attention: match (&blocks, plain.relative) {
                (Blocks::Direct(_), _) => Attention::Direct,
                // The bias is added to scores in memory.
                (_, Some(_)) => Attention::Products,
                _ => attention([tokens, plain.heads, plain.hidden / plain.heads])?,
            },
            blocks,
            final_norm: loader.norm(layout::final_norm(config, plain))?,
            norm_input: plain.final_norm,
            head,
            pooling,
            pooled: plain.pooled_tokens(pooling),
        })
    }

    /// Returns the attention implementation in use.
    pub(super) fn attention(&self) -> Attention {
        self.attention
    }

    /// Maps pixels, `[rows · side · side · 3]`, to the features of the blocks `taps`, each `[rows, width]` in f32.
    pub(super) fn forward(
        &self,
        pixels: Tensor<B, 1, Int>,
        (rows, side): (usize, usize),
        format: DType,
        taps: &[u32],
    ) -> Result<Vec<Tensor<B, 2>>, ModelError> {
        let (states, patches) = self.embed(pixels, (rows, side), format);
        let [all, hidden] = states.dims();
        let leading = all / rows - patches;
        let mut features = TapFeatures::new(taps);
        self.run_blocks(states, (rows, all / rows), taps, self.pooled, |block, states| {
            let count = states.dims()[0] / rows;
            features.collect(block, || self.pool(states.reshape([rows, count, hidden]), leading));
        })?;
        Ok(features.into_vec())
    }

    /// Maps pixels, `[rows · side · side · 3]`, to the states of all tokens after the last loaded block and the final norm,
    /// `[rows, tokens, hidden]`. `taps` names that block.
    pub(super) fn states(
        &self,
        pixels: Tensor<B, 1, Int>,
        (rows, side): (usize, usize),
        format: DType,
        taps: &[u32],
    ) -> Result<Tensor<B, 3>, ModelError> {
        let (mut states, _) = self.embed(pixels, (rows, side), format);
        let [all, hidden] = states.dims();
        self.run_blocks(states.clone(), (rows, all / rows), taps, PooledTokens::All, |_, after| states = after)?;
        Ok(self.final_norm.forward(states).reshape([rows, all / rows, hidden]))
    }

    /// Applies the blocks to `[rows · tokens, hidden]` and passes the states after each block, or after those of `taps` alone, to
    /// `collect`: after the last block, those of the tokens that `pooled` names.
    fn run_blocks(
        &self,
        mut states: Tensor<B, 2>,
        (rows, count): (usize, usize),
        taps: &[u32],
        pooled: PooledTokens,
        mut collect: impl FnMut(u32, Tensor<B, 2>),
    ) -> Result<(), ModelError> {
        match &self.blocks {
            Blocks::Device(blocks) => {
                for (block, index) in blocks.iter().zip(0..) {
                    states = if pooled == PooledTokens::First && index as usize + 1 == blocks.len() {
                        block.forward_first(states, rows)
                    } else {
                        block.forward(states, rows, self.attention)
                    };
                    collect(index, states.clone());
                }
                Ok(())
            }
            Blocks::Direct(blocks) => direct::forward(blocks, states, (rows, count), taps, pooled, collect),
        }
    }

    /// Maps pixels to the input of the first block, `[rows · tokens, hidden]`; returns it with the number of patches.
    fn embed(&self, pixels: Tensor<B, 1, Int>, (rows, side): (usize, usize), format: DType) -> (Tensor<B, 2>, usize) {
        let mut tokens = self.patches.forward(pixels, rows, side, format);
        let [_, patches, hidden] = tokens.dims();
        if let Some(positions) = &self.positions {
            tokens = tokens + positions.clone();
        }
        if let Some(leading) = &self.leading {
            let [_, count, _] = leading.dims();
            tokens = Tensor::cat(vec![leading.clone().expand([rows, count, hidden]), tokens], 1);
        }
        let [_, count, _] = tokens.dims();
        let states = tokens.reshape([rows * count, hidden]);
        let states = match &self.first_norm {
            Some(norm) => norm.forward(states),
            None => states,
        };
        (states, patches)
    }

    /// Pools the tokens of a block, `[rows, tokens, hidden]`; the first `leading` are no patches.
    fn pool(&self, states: Tensor<B, 3>, leading: usize) -> Tensor<B, 2> {
        let [rows, count, hidden] = states.dims();
        let first = |states: Tensor<B, 3>| states.narrow(1, 0, 1).reshape([rows, hidden]);
        let mean = |states: Tensor<B, 3>| {
            cast_to(states.narrow(1, leading, count - leading), DType::F32).mean_dim(1).squeeze_dim::<2>(1)
        };
        let norm = &self.final_norm;
        match (self.pooling, self.norm_input) {
            (Pooling::MeanBeforeNorm, _) => mean(states),
            // The norm treats each token by itself, so only the CLS token needs it.
            (Pooling::Cls, _) => norm.forward_f32(first(states)),
            (Pooling::Mean, FinalNorm::Tokens) => mean(norm.forward_f32(states)),
            (Pooling::Mean, FinalNorm::Feature) => norm.forward_f32(mean(states)),
            (Pooling::ClsMean, FinalNorm::Tokens) => {
                let states = norm.forward_f32(states);
                Tensor::cat(vec![first(states.clone()), mean(states)], 1)
            }
            (Pooling::ClsMean, FinalNorm::Feature) => {
                let parts = [first(states.clone()), cast_to(mean(states.clone()), states.dtype())];
                Tensor::cat(parts.map(|part| norm.forward_f32(part)).to_vec(), 1)
            }
            (Pooling::Head, _) => match &self.head {
                Some(Head::Attention(head)) => head.forward(&norm.forward(states)),
                Some(Head::Linear(projection)) => cast_to(projection.forward(norm.forward(first(states))), DType::F32),
                // Unreachable: the head is loaded for this pooling, and a checkpoint without one has no such pooling.
                None => norm.forward_f32(first(states)),
            },
        }
    }
}

/// Loads the patch embedding.
pub(super) fn load_patches<B: Backend>(
    checkpoint: &Checkpoint,
    loader: &Loader<'_, B>,
    name: &str,
    bias: bool,
) -> Result<PatchEmbedding<B>, ModelError> {
    let preprocessor = checkpoint.preprocessor();
    let bias = if bias { Some(loader.values(format!("{name}.bias"))?) } else { None };
    Ok(PatchEmbedding::new(
        &loader.values(format!("{name}.weight"))?,
        bias,
        checkpoint.config().patch_px as usize,
        (preprocessor.rescale, preprocessor.mean, preprocessor.std),
        (loader.device, loader.format),
    ))
}

/// Reads the tokens before the patches with their positions, and the positions of the patches.
pub(super) fn load_embeddings<B: Backend>(
    config: &BackboneConfig,
    plain: &PlainConfig,
    grid: usize,
    loader: &Loader<'_, B>,
) -> Result<[Option<Vec<f32>>; 2], ModelError> {
    let names = layout::names(config.family);
    let (hidden, native) = (plain.hidden, config.native_grid());
    let mut leading = Vec::new();
    for (present, name) in
        [(plain.cls, names.cls), (plain.distillation, names.distillation), (plain.registers > 0, names.registers)]
    {
        if present {
            leading.extend(loader.values(name)?);
        }
    }
    let mut positions = None;
    if let Positions::Table { leading: rows, antialias } = plain.positions {
        let table = loader.values(names.positions)?;
        let mut table = position::interpolate(table, rows, native, grid, hidden, antialias);
        positions = Some(table.split_off(rows * hidden));
        // Registers come last and have no position.
        leading.iter_mut().zip(table).for_each(|(value, position)| *value += position);
    }
    Ok([(!leading.is_empty()).then_some(leading), positions])
}

/// Architecture of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockConfig {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) feed_forward: FeedForward,
    pub(super) activation: Activation,
    pub(super) biases: Biases,
    pub(super) layer_scale: bool,
    /// True if the gate and up projections of a gated MLP are two tensors.
    pub(super) split_gate: bool,
}

/// Loads block `index`.
pub(super) fn load_block<B: Backend>(
    names: &Names,
    config: &BlockConfig,
    index: u32,
    loader: &Loader<'_, B>,
    positions: AttentionPositions<B>,
) -> Result<Block<B>, ModelError> {
    let (hidden, biases) = (config.hidden, config.biases);
    let key = |part: &str| names.block(index, part);
    let scale = |part: &str| -> Result<Option<Tensor<B, 2>>, ModelError> {
        Ok(if config.layer_scale { Some(loader.upload(loader.values(key(part))?, [1, hidden])) } else { None })
    };
    let mlp = match config.feed_forward {
        FeedForward::Mlp { inner } => {
            let layers = [key(names.inner), key(names.outer)];
            loader.mlp(layers, [hidden, inner], config.activation, biases.mlp)?
        }
        FeedForward::Gated { inner: width, activation } => {
            let sources = layout::gate_and_up_names(config.split_gate);
            let sources: Vec<(String, bool)> = sources.iter().map(|part| (key(part), biases.mlp)).collect();
            Mlp::Gated {
                inner: loader.joined(&sources, hidden, 2 * width)?,
                width,
                activation,
                outer: loader.linear(&key(names.gated_outer), width, hidden, biases.mlp)?,
            }
        }
    };
    let [query, key_part, value] = names.query_key_value;
    // Projections of the same input are joined to one product.
    let query_key_value = [(key(query), biases.query), (key(key_part), biases.key), (key(value), biases.value)];
    Ok(Block {
        attention_norm: loader.norm(&key(names.attention_norm))?,
        query_key_value: loader.joined(&query_key_value, hidden, 3 * hidden)?,
        attention_output: loader.linear(&key(names.attention_output), hidden, hidden, biases.attention_output)?,
        attention_scale: scale(names.attention_scale)?,
        mlp_norm: loader.norm(&key(names.mlp_norm))?,
        mlp,
        mlp_scale: scale(names.mlp_scale)?,
        heads: config.heads,
        positions,
    })
}
