//! Heads after the final norm: CLIP's projection and `SigLIP`'s attention pooling.

use burn::tensor::backend::Backend;
use cubecl::server::Handle;

use super::load::Load;
use super::{Attention, Buffers, Norm, Pool};
use crate::card::Card;
use crate::model::config::ProjectionHead;
use crate::model::error::ModelError;
use crate::model::kernels::product::{Epilogue, Product};
use crate::model::layout;
use crate::model::plain::load_pooling_projections;

/// Head that maps the tokens of a block to a feature.
#[derive(Debug)]
pub(super) enum Head {
    /// Projection of the normalised CLS token.
    Linear(Box<Product>),
    /// Attention pooling of all normalised tokens.
    Attention(Box<AttentionPooling>),
}

/// Attention of one learned query to all tokens of an image, and an MLP.
#[derive(Debug)]
pub(super) struct AttentionPooling {
    query_key_value: Product,
    attention: Attention,
    output: Product,
    norm: Norm,
    inner: Product,
    outer: Product,
}

impl Head {
    /// Loads the head of a checkpoint. A feature row has `pitch` values.
    pub(super) fn load<B: Backend>(load: &Load<'_, B>, head: ProjectionHead, pitch: usize) -> Result<Self, ModelError> {
        let (hidden, images) = (load.sizes.hidden, load.sizes.images);
        match head {
            ProjectionHead::Linear { dim } => {
                let weight = load.loader.values(layout::PROJECTION)?;
                let product = Product::new(load.card, (&weight, &vec![0.0; dim]), hidden, images, Epilogue::Bias);
                Ok(Self::Linear(Box::new(product)))
            }
            ProjectionHead::Attention => {
                AttentionPooling::load(load, pitch).map(|head| Self::Attention(Box::new(head)))
            }
        }
    }

    /// Enqueues the head's kernels. `to` is the feature's place in its rows, which have `pitch` values.
    pub(super) fn launch(&self, card: &Card, buffers: &Buffers, pool: &Pool, (to, pitch): (&Handle, usize)) {
        let Buffers { states, input, wide, .. } = buffers;
        match self {
            Self::Linear(projection) => {
                pool.launch(card, states, input);
                projection.launch(card, input, to, pitch);
            }
            Self::Attention(head) => {
                pool.norm.launch(card, states, input);
                head.query_key_value.launch(card, input, wide, head.query_key_value.columns());
                head.attention.launch(card, wide, input);
                head.output.launch(card, input, to, pitch);
                head.norm.launch(card, to, input);
                head.inner.launch(card, input, wide, head.inner.columns());
                head.outer.launch(card, wide, to, pitch);
            }
        }
    }
}

impl AttentionPooling {
    fn load<B: Backend>(load: &Load<'_, B>, pitch: usize) -> Result<Self, ModelError> {
        let (hidden, inner_width, images) = (load.sizes.hidden, load.sizes.inner, load.sizes.images);
        let key = |part: &str| format!("{}.{part}", layout::POOLING_HEAD);
        let projections = load_pooling_projections(load.loader, hidden)?;
        // All tokens have the same query: the bias alone. A third of the product multiplies by zeros, which spares a kernel of its own.
        let mut weight = vec![0.0; hidden * hidden];
        weight.extend(projections.weight);
        let bias = [projections.query, projections.bias].concat();
        let linear = |part: &str, [input, out]: [usize; 2], epilogue| {
            load.linear(&[(key(part), true)], [images, input, out], epilogue, None)
        };
        let activation = Epilogue::Activation(load.checkpoint.config().activation);
        Ok(Self {
            query_key_value: Product::new(load.card, (&weight, &bias), hidden, load.sizes.rows(), Epilogue::Bias),
            attention: Attention::new(load.plain, load.sizes, 1, None),
            output: linear("attention.out_proj", [hidden, hidden], Epilogue::Bias)?,
            norm: Norm { rows: images, pitch, ..load.norm(&key("layernorm"))? },
            inner: linear("mlp.fc1", [hidden, inner_width], activation)?,
            outer: linear("mlp.fc2", [inner_width, hidden], Epilogue::Residual)?,
        })
    }
}
