//! Plain backbones, with global attention: the differences between their families.

use super::{Activation, FeedForward, Keys, MAX_LAYERS, MAX_WIDTH, check_heads, check_range};
use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::model::pooling::{PooledTokens, Pooling};

/// Upper bound on register tokens. Far above published models.
const MAX_REGISTERS: u64 = 1 << 10;

/// Linear layers that have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each layer has a bias or not, in any combination")]
pub(in crate::model) struct Biases {
    pub(in crate::model) query: bool,
    pub(in crate::model) key: bool,
    pub(in crate::model) value: bool,
    pub(in crate::model) attention_output: bool,
    pub(in crate::model) mlp: bool,
    pub(in crate::model) patch: bool,
}

/// Encoding of the positions of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::model) enum Positions {
    /// None in the embedding.
    Absent,
    /// A table that is added to the embedding. `leading`: its rows for tokens before the patches.
    Table { leading: usize, antialias: bool },
    /// Rotation of queries and keys of patches (Su et al. 2021).
    Rotary { theta: f64 },
}

/// Relative position bias of attention scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum RelativeBias {
    /// One table for all blocks.
    Shared,
    /// A table for each block.
    PerBlock,
}

/// Input of the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum FinalNorm {
    /// Each token, before pooling.
    Tokens,
    /// The pooled feature.
    Feature,
}

/// Layers that map the last hidden states to the space of the family's text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum ProjectionHead {
    /// Attention of a learned query to all tokens, then an MLP (`SigLIP`).
    Attention,
    /// Linear projection of the CLS token (CLIP).
    Linear { dim: usize },
}

/// Architecture of a backbone whose tokens all attend to each other.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "families combine these parts freely")]
pub(in crate::model) struct PlainConfig {
    pub(in crate::model) hidden: usize,
    pub(in crate::model) layers: u32,
    pub(in crate::model) heads: usize,
    pub(in crate::model) feed_forward: FeedForward,
    pub(in crate::model) biases: Biases,
    /// True if the first token is a CLS token.
    pub(in crate::model) cls: bool,
    /// True if a distillation token follows the CLS token.
    pub(in crate::model) distillation: bool,
    /// Register tokens between these tokens and the patches.
    pub(in crate::model) registers: usize,
    pub(in crate::model) positions: Positions,
    pub(in crate::model) relative: Option<RelativeBias>,
    /// True if a norm precedes the first block.
    pub(in crate::model) first_norm: bool,
    /// True if blocks scale their updates by channel (`LayerScale`).
    pub(in crate::model) layer_scale: bool,
    pub(in crate::model) final_norm: FinalNorm,
    pub(in crate::model) head: Option<ProjectionHead>,
}

impl PlainConfig {
    /// Returns the number of tokens before the patches.
    pub(in crate::model) fn leading_tokens(&self) -> usize {
        usize::from(self.cls) + usize::from(self.distillation) + self.registers
    }

    /// Returns the tokens of a block that its feature needs.
    pub(in crate::model) fn pooled_tokens(&self, pooling: Pooling) -> PooledTokens {
        match (pooling, self.head) {
            (Pooling::Cls, _) | (Pooling::Head, Some(ProjectionHead::Linear { .. })) => PooledTokens::First,
            _ => PooledTokens::All,
        }
    }
}

impl Keys<'_> {
    /// Checks the keys of a plain backbone.
    pub(super) fn plain(&self) -> Result<PlainConfig, ModelError> {
        let (raw, family) = (self.raw, self.family);
        let dinov3 = family == Family::Dinov3Vit;
        let (width, head_count) = if dinov3 { (384, 6) } else { (768, 12) };
        let hidden = self.count("hidden_size", raw.hidden_size, width, MAX_WIDTH)?;
        let heads = self.count("num_attention_heads", raw.num_attention_heads, head_count, MAX_WIDTH)?;
        check_heads(self.path, heads as u64, hidden as u64)?;
        let layers = self.count("num_hidden_layers", raw.num_hidden_layers, 12, MAX_LAYERS)? as u32;
        let plain = PlainConfig {
            hidden,
            layers,
            heads,
            feed_forward: self.feed_forward(hidden)?,
            biases: self.biases(),
            cls: family != Family::Siglip,
            distillation: family == Family::Deit,
            registers: self.registers()?,
            positions: self.positions()?,
            relative: self.relative(),
            first_norm: family.is_clip(),
            layer_scale: match family {
                Family::Dinov2 | Family::Dinov2WithRegisters | Family::Dinov3Vit => true,
                Family::Beit => raw.layer_scale_init_value.unwrap_or(0.1) > 0.0,
                _ => false,
            },
            final_norm: match family {
                Family::Beit if raw.use_mean_pooling.unwrap_or(true) => FinalNorm::Feature,
                _ => FinalNorm::Tokens,
            },
            head: self.head()?,
        };
        if dinov3 && !(hidden / heads).is_multiple_of(4) {
            let problem = format!(
                "is `{heads}`; heads of `{}` values have no rotary positions, which need a multiple of 4",
                hidden / heads
            );
            return Err(ModelError::value(self.path, "num_attention_heads", problem));
        }
        Ok(plain)
    }

    fn feed_forward(&self, hidden: usize) -> Result<FeedForward, ModelError> {
        let raw = self.raw;
        if !matches!(self.family, Family::Dinov2 | Family::Dinov2WithRegisters) {
            let default = if self.family == Family::Dinov3Vit { 1536 } else { 3072 };
            let inner = self.count("intermediate_size", raw.intermediate_size, default, 64 * MAX_WIDTH)?;
            let gated = self.family == Family::Dinov3Vit && raw.use_gated_mlp.unwrap_or(false);
            return Ok(if gated {
                FeedForward::Gated { inner, activation: self.activation()? }
            } else {
                FeedForward::Mlp { inner }
            });
        }
        // transformers truncates: int(hidden_size * mlp_ratio). A negative or NaN product becomes 0 and is rejected.
        let inner = (hidden as f64 * raw.mlp_ratio.unwrap_or(4.0)) as u64;
        let inner = check_range(self.path, "mlp_ratio", inner, 64 * MAX_WIDTH)?;
        Ok(if raw.use_swiglu_ffn.unwrap_or(false) {
            // transformers' SwiGLU: two thirds of the width, rounded up to a multiple of 8.
            let inner = (inner * 2 / 3).div_ceil(8) as usize * 8;
            FeedForward::Gated { inner, activation: Activation::Silu }
        } else {
            FeedForward::Mlp { inner: inner as usize }
        })
    }

    fn biases(&self) -> Biases {
        let raw = self.raw;
        let all = Biases { query: true, key: true, value: true, attention_output: true, mlp: true, patch: true };
        match self.family {
            Family::Beit => Biases { key: false, ..all },
            Family::Clip | Family::MetaClip2 | Family::AltClip => Biases { patch: false, ..all },
            Family::Siglip => all,
            Family::Dinov3Vit => Biases {
                query: raw.query_bias.unwrap_or(true),
                key: raw.key_bias.unwrap_or(false),
                value: raw.value_bias.unwrap_or(true),
                attention_output: raw.proj_bias.unwrap_or(true),
                mlp: raw.mlp_bias.unwrap_or(true),
                patch: true,
            },
            _ => {
                let qkv = raw.qkv_bias.unwrap_or(true);
                Biases { query: qkv, key: qkv, value: qkv, ..all }
            }
        }
    }

    fn registers(&self) -> Result<usize, ModelError> {
        let default = match self.family {
            Family::Dinov2WithRegisters => 4,
            Family::Dinov3Vit => 0,
            _ => return Ok(0),
        };
        match self.raw.num_register_tokens.unwrap_or(default) {
            registers if registers <= MAX_REGISTERS => Ok(registers as usize),
            registers => {
                let problem = format!("is `{registers}`; it must be at most {MAX_REGISTERS}");
                Err(ModelError::value(self.path, "num_register_tokens", problem))
            }
        }
    }

    fn positions(&self) -> Result<Positions, ModelError> {
        let table = |leading| Positions::Table { leading, antialias: false };
        Ok(match self.family {
            Family::Siglip => table(0),
            Family::Deit => table(2),
            Family::Beit if !self.raw.use_absolute_position_embeddings.unwrap_or(false) => Positions::Absent,
            // transformers smooths only for this family.
            Family::Dinov2WithRegisters => Positions::Table { leading: 1, antialias: true },
            Family::Dinov3Vit => match self.raw.rope_theta.unwrap_or(100.0) {
                theta if theta.is_finite() && theta > 0.0 => Positions::Rotary { theta },
                theta => {
                    return Err(ModelError::value(self.path, "rope_theta", format!("is `{theta}`; it must be over 0")));
                }
            },
            _ => table(1),
        })
    }

    fn relative(&self) -> Option<RelativeBias> {
        let raw = self.raw;
        match self.family {
            Family::Beit if raw.use_relative_position_bias.unwrap_or(false) => Some(RelativeBias::PerBlock),
            Family::Beit if raw.use_shared_relative_position_bias.unwrap_or(false) => Some(RelativeBias::Shared),
            _ => None,
        }
    }

    fn head(&self) -> Result<Option<ProjectionHead>, ModelError> {
        Ok(match self.family {
            Family::Siglip => self.raw.vision_use_head.unwrap_or(true).then_some(ProjectionHead::Attention),
            Family::Clip | Family::MetaClip2 | Family::AltClip => {
                let dim = self.count("projection_dim", self.raw.projection_dim, 512, MAX_WIDTH)?;
                Some(ProjectionHead::Linear { dim })
            }
            _ => None,
        })
    }
}
