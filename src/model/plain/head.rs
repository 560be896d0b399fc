//! Heads that map to the space of the text tower, by burn's operations.

use burn::tensor::activation;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::model::block::{Linear, Mlp, Norm, cast_to};
use crate::model::config::{BackboneConfig, PlainConfig, ProjectionHead};
use crate::model::error::ModelError;
use crate::model::layout;
use crate::model::load::Loader;

/// Layers that map to the space of the text tower.
#[derive(Debug)]
pub(super) enum Head<B: Backend> {
    Attention(AttentionPooling<B>),
    Linear(Linear<B>),
}

/// Attention of a learned query to all tokens, then an MLP (`SigLIP`).
#[derive(Debug)]
pub(super) struct AttentionPooling<B: Backend> {
    /// Query of the learned token, `[1, heads, 1, width of a head]`.
    query: Tensor<B, 4>,
    key_value: Linear<B>,
    output: Linear<B>,
    norm: Norm<B>,
    mlp: Mlp<B>,
}

impl<B: Backend> AttentionPooling<B> {
    /// Maps `[rows, tokens, hidden]` to `[rows, hidden]` in f32.
    pub(super) fn forward(&self, states: &Tensor<B, 3>) -> Tensor<B, 2> {
        let [rows, tokens, hidden] = states.dims();
        let [_, heads, _, width] = self.query.dims();
        let both = self.key_value.forward(states.clone().reshape([rows * tokens, hidden]));
        let split = |index: usize| {
            let part = both.clone().narrow(1, index * hidden, hidden);
            part.reshape([rows, tokens, heads, width]).swap_dims(1, 2)
        };
        let query = self.query.clone().expand([rows, heads, 1, width]);
        let scores = cast_to(query.matmul(split(0).transpose()), DType::F32) / (width as f64).sqrt();
        let pooled = cast_to(activation::softmax(scores, 3), states.dtype()).matmul(split(1));
        let pooled = self.output.forward(pooled.swap_dims(1, 2).reshape([rows, hidden]));
        let mlp = self.mlp.forward(self.norm.forward(pooled.clone()));
        cast_to(pooled, DType::F32) + cast_to(mlp, DType::F32)
    }
}

/// Query of `SigLIP`'s attention pooling, and its projection to keys and values.
pub(in crate::model) struct PoolingProjections {
    /// The query, `[hidden]`.
    pub(in crate::model) query: Vec<f32>,
    /// Weights of keys, then of values, `[2 · hidden, hidden]`.
    pub(in crate::model) weight: Vec<f32>,
    /// Biases of keys, then of values, `[2 · hidden]`.
    pub(in crate::model) bias: Vec<f32>,
}

/// Loads the projections of attention pooling. The query is the same for all images.
pub(in crate::model) fn load_pooling_projections<B: Backend>(
    loader: &Loader<'_, B>,
    hidden: usize,
) -> Result<PoolingProjections, ModelError> {
    let key = |part: &str| format!("{}.{part}", layout::POOLING_HEAD);
    let mut query_weight = loader.values(key("attention.in_proj_weight"))?;
    let mut query_bias = loader.values(key("attention.in_proj_bias"))?;
    let (weight, bias) = (query_weight.split_off(hidden * hidden), query_bias.split_off(hidden));
    let probe = loader.values(key("probe"))?;
    let product = |(row, bias): (&[f32], &f32)| {
        let sum: f64 = row.iter().zip(&probe).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum();
        (sum + f64::from(*bias)) as f32
    };
    let query = query_weight.chunks_exact(hidden).zip(&query_bias).map(product).collect();
    Ok(PoolingProjections { query, weight, bias })
}

/// Loads the head, if the model has one.
pub(super) fn load_head<B: Backend>(
    config: &BackboneConfig,
    plain: &PlainConfig,
    loader: &Loader<'_, B>,
) -> Result<Option<Head<B>>, ModelError> {
    let (hidden, heads) = (plain.hidden, plain.heads);
    match plain.head {
        None => Ok(None),
        Some(ProjectionHead::Linear { dim }) => {
            let weight = loader.values(layout::PROJECTION)?;
            Ok(Some(Head::Linear(Linear::new(&weight, None, hidden, dim, (loader.device, loader.format)))))
        }
        Some(ProjectionHead::Attention) => {
            let key = |part: &str| format!("{}.{part}", layout::POOLING_HEAD);
            let PoolingProjections { query, weight, bias } = load_pooling_projections(loader, hidden)?;
            let inner = plain.feed_forward.inner();
            Ok(Some(Head::Attention(AttentionPooling {
                query: loader.upload(query, [1, heads, 1, hidden / heads]),
                key_value: Linear::new(&weight, Some(bias), hidden, 2 * hidden, (loader.device, loader.format)),
                output: loader.linear(&key("attention.out_proj"), hidden, hidden, true)?,
                norm: loader.norm(&key("layernorm"))?,
                mlp: loader.mlp([key("mlp.fc1"), key("mlp.fc2")], [hidden, inner], config.activation, true)?,
            })))
        }
    }
}
