//! Blocks of a plain backbone on the direct path for CPUs.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use pulp::Arch;

use super::BlockConfig;
use crate::model::config::FeedForward;
use crate::model::cpu;
use crate::model::error::ModelError;
use crate::model::layout::{self, Names};
use crate::model::load::Loader;
use crate::model::pooling::PooledTokens;

/// Loads a block for each of `biases`, its relative position bias.
pub(super) fn load_blocks<B: Backend>(
    arch: Arch,
    names: &Names,
    config: &BlockConfig,
    loader: &Loader<'_, B>,
    biases: Vec<Option<Arc<Vec<f32>>>>,
    rotation: Option<cpu::Rotation>,
) -> Result<cpu::Blocks, ModelError> {
    let load = |(index, bias)| load_block(arch, names, config, index, loader, bias);
    let blocks = (0..).zip(biases).map(load).collect::<Result<_, _>>()?;
    Ok(cpu::Blocks::new(arch, cpu::NormOrder::Pre, [config.hidden, config.heads], rotation, blocks))
}

fn load_block<B: Backend>(
    arch: Arch,
    names: &Names,
    config: &BlockConfig,
    index: u32,
    loader: &Loader<'_, B>,
    bias: Option<Arc<Vec<f32>>>,
) -> Result<cpu::Block, ModelError> {
    let (hidden, biases) = (config.hidden, config.biases);
    let key = |part: &str| names.block(index, part);
    let linear = |parts: &[(&str, bool)], input: usize, out: usize| -> Result<cpu::Linear, ModelError> {
        let parts: Vec<(String, bool)> = parts.iter().map(|(part, bias)| (key(part), *bias)).collect();
        let (weight, bias) = loader.joined_values(&parts, out)?;
        Ok(cpu::Linear::new(arch, &weight, bias, input, out))
    };
    let norm = |part: &str| -> Result<cpu::Norm, ModelError> {
        let read = |kind: &str| loader.values(format!("{}.{kind}", key(part)));
        Ok(cpu::Norm { gamma: read("weight")?, beta: read("bias")?, epsilon: loader.norm_epsilon as f32 })
    };
    let scale = |part: &str| if config.layer_scale { loader.values(key(part)).map(Some) } else { Ok(None) };
    let (inner, outer) = match config.feed_forward {
        FeedForward::Mlp { inner } => {
            let projection = linear(&[(names.inner, biases.mlp)], hidden, inner)?;
            let first = cpu::Inner { projection, activation: config.activation, gated: false, outputs: inner };
            (first, linear(&[(names.outer, biases.mlp)], inner, hidden)?)
        }
        FeedForward::Gated { inner, activation } => {
            let sources = layout::gate_and_up_names(config.split_gate);
            let sources: Vec<(&str, bool)> = sources.iter().map(|part| (*part, biases.mlp)).collect();
            let projection = linear(&sources, hidden, 2 * inner)?;
            let first = cpu::Inner { projection, activation, gated: true, outputs: 2 * inner };
            (first, linear(&[(names.gated_outer, biases.mlp)], inner, hidden)?)
        }
    };
    let [query, key_part, value] = names.query_key_value;
    let query_key_value = [(query, biases.query), (key_part, biases.key), (value, biases.value)];
    Ok(cpu::Block {
        attention_norm: norm(names.attention_norm)?,
        query_key_value: linear(&query_key_value, hidden, 3 * hidden)?,
        attention_output: linear(&[(names.attention_output, biases.attention_output)], hidden, hidden)?,
        attention_scale: scale(names.attention_scale)?,
        mlp_norm: norm(names.mlp_norm)?,
        inner,
        outer,
        mlp_scale: scale(names.mlp_scale)?,
        bias,
    })
}

/// Applies the blocks to `[rows · tokens, hidden]` and passes the states after each block of `taps` to `collect`: after the
/// last one, those of the tokens that `pooled` names.
pub(super) fn forward<B: Backend>(
    blocks: &cpu::Blocks,
    states: Tensor<B, 2>,
    (rows, tokens): (usize, usize),
    taps: &[u32],
    pooled: PooledTokens,
    mut collect: impl FnMut(u32, Tensor<B, 2>),
) -> Result<(), ModelError> {
    let failed = |reason: String| ModelError::Device { reason };
    let (device, [_, hidden]) = (states.device(), states.dims());
    let data = states.try_into_data().map_err(|cause| failed(cause.to_string()))?;
    let mut states = data.into_vec::<f32>().map_err(|cause| failed(format!("{cause:?}")))?;
    let lengths = vec![tokens; rows];
    let mut taps = taps.to_vec();
    taps.sort_unstable();
    taps.dedup();
    let last = taps.last().copied();
    let mut first = 0;
    for tap in taps {
        let end = tap as usize + 1;
        let computed = if Some(tap) == last { pooled } else { PooledTokens::All };
        blocks.apply(first..end, &mut states, &lengths, computed);
        first = end;
        let copy = match computed {
            PooledTokens::All => states.clone(),
            PooledTokens::First => {
                states.chunks_exact(tokens * hidden).flat_map(|row| &row[..hidden]).copied().collect()
            }
        };
        let shape = [copy.len() / hidden, hidden];
        collect(tap, Tensor::from_data(TensorData::new(copy, shape), (&device, DType::F32)));
    }
    Ok(())
}
