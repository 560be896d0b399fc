//! Blocks of a text encoder on the direct path for CPUs. Captions are not padded.

use pulp::Arch;

use super::checkpoint::TextCheckpoint;
use super::layout;
use super::modules::Pooling;
use crate::model::cpu;
use crate::model::error::ModelError;
use crate::model::pooling::PooledTokens;

/// Layers between the embeddings of tokens and pooling.
#[derive(Debug)]
pub(super) struct Direct {
    first_norm: cpu::Norm,
    blocks: cpu::Blocks,
    count: usize,
    hidden: usize,
}

impl Direct {
    /// Reads the tensors one at a time and packs them.
    pub(super) fn load(checkpoint: &TextCheckpoint, arch: Arch) -> Result<Self, ModelError> {
        let config = &checkpoint.config;
        let (hidden, inner) = (config.hidden, config.inner);
        let norm = |name: &str| -> Result<cpu::Norm, ModelError> {
            let read = |kind: &str| checkpoint.read(&[format!("{name}.{kind}")]);
            Ok(cpu::Norm { gamma: read("weight")?, beta: read("bias")?, epsilon: config.norm_epsilon as f32 })
        };
        let block = |index: usize| -> Result<cpu::Block, ModelError> {
            let key = |part: &str| layout::block_key(index, part);
            let linear = |parts: &[&str], input: usize, out: usize| -> Result<cpu::Linear, ModelError> {
                let keys = |kind: &str| parts.iter().map(|part| format!("{}.{kind}", key(part))).collect::<Vec<_>>();
                let (weight, bias) = (checkpoint.read(&keys("weight"))?, checkpoint.read(&keys("bias"))?);
                Ok(cpu::Linear::new(arch, &weight, Some(bias), input, out))
            };
            let projection = linear(&[layout::INNER], hidden, inner)?;
            Ok(cpu::Block {
                attention_norm: norm(&key(layout::ATTENTION_NORM))?,
                query_key_value: linear(&layout::QUERY_KEY_VALUE, hidden, 3 * hidden)?,
                attention_output: linear(&[layout::ATTENTION_OUTPUT], hidden, hidden)?,
                attention_scale: None,
                mlp_norm: norm(&key(layout::OUTPUT_NORM))?,
                inner: cpu::Inner { projection, activation: config.activation, gated: false, outputs: inner },
                outer: linear(&[layout::OUTER], inner, hidden)?,
                mlp_scale: None,
                bias: None,
            })
        };
        let blocks = (0..config.layers).map(block).collect::<Result<_, _>>()?;
        Ok(Self {
            first_norm: norm(layout::FIRST_NORM)?,
            blocks: cpu::Blocks::new(arch, cpu::NormOrder::Post, [hidden, config.heads], None, blocks),
            count: config.layers,
            hidden,
        })
    }

    /// Maps captions to pooled states, `[captions, hidden]`; those of a caption without tokens are zero. `lengths` are
    /// their tokens, and `embed` writes the summed embeddings of a caption.
    pub(super) fn forward(&self, lengths: &[usize], embed: impl Fn(usize, &mut [f32]), pooling: Pooling) -> Vec<f32> {
        let mut states = vec![0.0; lengths.iter().sum::<usize>() * self.hidden];
        let mut rest = states.as_mut_slice();
        for (caption, tokens) in lengths.iter().enumerate() {
            let (own, others) = rest.split_at_mut(tokens * self.hidden);
            embed(caption, own);
            rest = others;
        }
        self.blocks.normalise(&self.first_norm, &mut states);
        let pooled = if pooling == Pooling::Cls { PooledTokens::First } else { PooledTokens::All };
        self.blocks.apply(0..self.count, &mut states, lengths, pooled);
        let mut pooled = vec![0.0; lengths.len() * self.hidden];
        let mut rest = states.as_slice();
        for (to, tokens) in pooled.chunks_exact_mut(self.hidden).zip(lengths) {
            let (own, others) = rest.split_at(tokens * self.hidden);
            if *tokens > 0 {
                pool(own, pooling, to);
            }
            rest = others;
        }
        pooled
    }
}

/// Pools the states of a caption's tokens, at least one.
fn pool(states: &[f32], pooling: Pooling, to: &mut [f32]) {
    let tokens = states.len() / to.len();
    let (first, others) = states.split_at(to.len());
    to.copy_from_slice(first);
    let others = others.chunks_exact(first.len());
    match pooling {
        Pooling::Cls => {}
        Pooling::Max => others.for_each(|row| to.iter_mut().zip(row).for_each(|(to, value)| *to = to.max(*value))),
        Pooling::Mean | Pooling::MeanSqrt => {
            others.for_each(|row| to.iter_mut().zip(row).for_each(|(to, value)| *to += value));
            let count = tokens as f32;
            let divisor = if pooling == Pooling::Mean { count } else { count.sqrt() };
            for to in to {
                *to /= divisor;
            }
        }
    }
}
