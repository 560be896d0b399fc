//! Blocks and projection of a text tower on a device.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::super::checkpoint::TextCheckpoint;
use super::{FINAL_NORM, PairedConfig};
use crate::model::attention::{Attention, AttentionPositions};
use crate::model::block::{Block, Linear, Norm, cast_to};
use crate::model::config::{Biases, FeedForward};
use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::model::layout;
use crate::model::load::Loader;
use crate::model::plain::{BlockConfig, load_block};

/// Score of a token that must not be attended to. Far below any real score, but finite.
const MASKED_SCORE: f32 = -1e30;

/// Text tower without its table of words.
#[derive(Debug)]
pub(in crate::model::text) struct PairedTower<B: Backend> {
    blocks: Vec<Block<B>>,
    final_norm: Norm<B>,
    /// Projection into the shared space, f32: small, and nothing after it would hide a rounding.
    projection: Linear<B>,
    causal: bool,
}

impl<B: Backend> PairedTower<B> {
    /// Reads the tensors one at a time and uploads them.
    pub(in crate::model::text) fn load(
        checkpoint: &TextCheckpoint,
        paired: &PairedConfig,
        format: DType,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let config = &checkpoint.config;
        let read = |keys: &[String]| checkpoint.read(keys);
        let loader = Loader { read: &read, device, format, norm_epsilon: config.norm_epsilon, direct: None };
        let names = layout::names(Family::Clip);
        let block = BlockConfig {
            hidden: config.hidden,
            heads: config.heads,
            feed_forward: FeedForward::Mlp { inner: config.inner },
            activation: config.activation,
            biases: Biases { query: true, key: true, value: true, attention_output: true, mlp: true, patch: true },
            layer_scale: false,
            split_gate: false,
        };
        let blocks = (0..config.layers as u32)
            .map(|index| load_block(&names, &block, index, &loader, AttentionPositions::none()))
            .collect::<Result<_, _>>()?;
        let projection = paired.projection();
        let weight = loader.values(format!("{projection}.weight"))?;
        let has_bias = paired.family == Family::Siglip;
        let bias = if has_bias { Some(loader.values(format!("{projection}.bias"))?) } else { None };
        Ok(Self {
            blocks,
            final_norm: loader.norm(FINAL_NORM)?,
            projection: Linear::new(&weight, bias, config.hidden, paired.dim, (device, DType::F32)),
            causal: paired.causal,
        })
    }

    /// Maps summed embeddings, `[rows · tokens, hidden]`, to embeddings of captions, `[rows, dim]`, in f32.
    ///
    /// `pooled`: position of the pooled token of each row.
    pub(in crate::model::text) fn forward(
        &self,
        mut states: Tensor<B, 2>,
        rows: usize,
        tokens: usize,
        pooled: &[usize],
    ) -> Tensor<B, 2> {
        let device = states.device();
        let bias = self.causal.then(|| {
            let mask = (0..tokens * tokens).map(|at| if at % tokens > at / tokens { MASKED_SCORE } else { 0.0 });
            let data = TensorData::new(mask.collect::<Vec<f32>>(), [1, 1, tokens, tokens]);
            Tensor::from_data(data, (&device, DType::F32))
        });
        let positions = AttentionPositions { bias, rotation: None };
        for block in &self.blocks {
            states = block.forward_with(states, rows, Attention::Products, &positions);
        }
        let places: Vec<i64> = pooled.iter().enumerate().map(|(row, place)| (row * tokens + place) as i64).collect();
        let places = Tensor::<B, 1, Int>::from_data(TensorData::new(places, [rows]), &device);
        let states = cast_to(states, DType::F32).select(0, places);
        self.projection.forward(self.final_norm.forward_f32(states))
    }
}
