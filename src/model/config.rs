//! Parses and checks `config.json`.
//!
//! transformers omits keys that equal the default of the family's configuration class, so an absent key takes that
//! default. Unknown keys are ignored, because the file also describes training. The module does no I/O.

mod plain;
mod raw;
mod windowed;

use std::path::Path;

use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::model::json::parse_json;

pub(super) use plain::{Biases, FinalNorm, PlainConfig, Positions, ProjectionHead, RelativeBias};
use raw::{RawBackbone, RawKind, RawSide};
pub(super) use windowed::WindowedConfig;

/// Upper bound on the number of blocks. Far above published models; keeps the list of expected tensors small.
const MAX_LAYERS: u64 = 1_000;
/// Upper bound on a layer's width. Far above published models; the product of two widths fits into a u64.
const MAX_WIDTH: u64 = 1 << 20;
/// Upper bound on the side of an image or a patch, in pixels.
const MAX_SIDE_PX: u64 = 1 << 16;

/// Activation function of the MLP, named by `hidden_act` in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `gelu`: x·Φ(x) with the exact error function.
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`: the tanh approximation.
    GeluTanh,
    /// `relu`.
    Relu,
    /// `quick_gelu`: x·σ(1.702·x).
    QuickGelu,
    /// `silu`, `swish`: x·σ(x).
    Silu,
}

/// Kind and inner width of a block's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedForward {
    /// Linear, activation, linear. `inner` is the width of the hidden layer.
    Mlp { inner: usize },
    /// `down(activation(gate(x)) · up(x))` (Shazeer 2020). `inner` is the width of `gate` and of `up`.
    Gated { inner: usize, activation: Activation },
}

impl FeedForward {
    /// Returns the width of the hidden layer, or of its gates.
    pub(super) fn inner(self) -> usize {
        match self {
            Self::Mlp { inner } | Self::Gated { inner, .. } => inner,
        }
    }
}

/// Architecture of a backbone.
#[derive(Debug, Clone, PartialEq)]
pub struct BackboneConfig {
    pub(super) family: Family,
    pub(super) activation: Activation,
    pub(super) norm_epsilon: f64,
    pub(super) image_px: u32,
    pub(super) patch_px: u32,
    /// Shape of the tensor `embeddings.mask_token`, if transformers expects it.
    pub(super) mask_token: Option<Vec<usize>>,
    /// True if the file describes a vision tower without a text tower.
    pub(super) tower_only: bool,
    pub(super) body: Body,
}

/// Architecture of the blocks.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    /// All tokens attend to all tokens; every block has the same width.
    Plain(PlainConfig),
    /// Tokens attend within windows; stages merge tokens and widen them.
    Windowed(WindowedConfig),
}

impl BackboneConfig {
    /// Parses and checks the text of a `config.json`; `path` appears in errors.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Self, ModelError> {
        let kind: RawKind = parse_json(text, path)?;
        let found = kind.model_type.as_deref().unwrap_or("(none)");
        let Some((family, tower_only)) = Family::find(found) else {
            return Err(ModelError::Family { path: path.to_owned(), found: found.to_owned() });
        };
        let raw = if family.is_paired() && !tower_only {
            // The width of the shared space is a key of the pair. The tower's own key of this name is not used.
            RawBackbone { projection_dim: kind.projection_dim, ..kind.vision_config.unwrap_or_default() }
        } else {
            parse_json(text, path)?
        };
        let keys = Keys { path, raw: &raw, family };
        keys.check_channels()?;
        let (image_px, patch_px) = keys.sides()?;
        let body = if family.is_windowed() {
            Body::Windowed(keys.windowed((image_px / patch_px) as usize)?)
        } else {
            Body::Plain(keys.plain()?)
        };
        Ok(Self {
            family,
            activation: keys.activation()?,
            norm_epsilon: keys.norm_epsilon()?,
            image_px,
            patch_px,
            mask_token: keys.mask_token(&body),
            tower_only,
            body,
        })
    }

    /// Returns the number of patches along one side at the native image size; the convolution drops a remainder.
    pub(super) fn native_grid(&self) -> usize {
        (self.image_px / self.patch_px) as usize
    }

    /// Returns the number of blocks.
    pub(super) fn layers(&self) -> u32 {
        match &self.body {
            Body::Plain(plain) => plain.layers,
            Body::Windowed(windowed) => windowed.blocks() as u32,
        }
    }

    /// Returns the width of a token after block `index`.
    pub(super) fn width(&self, index: u32) -> usize {
        match &self.body {
            Body::Plain(plain) => plain.hidden,
            Body::Windowed(windowed) => windowed.width(windowed.stage_of(index as usize)),
        }
    }

    /// Returns the width of a token after the last block.
    pub(super) fn hidden(&self) -> usize {
        self.width(self.layers() - 1)
    }

    /// Returns the index of block `layer`; a negative `layer` counts from the end.
    pub(super) fn resolve_layer(&self, layer: i32) -> Result<u32, ModelError> {
        let layers = i64::from(self.layers());
        let index = if layer < 0 { layers + i64::from(layer) } else { i64::from(layer) };
        u32::try_from(index)
            .ok()
            .filter(|index| *index < self.layers())
            .ok_or(ModelError::Layer { layer, layers: self.layers() })
    }
}

/// Keys of one backbone's configuration, with the defaults of its family.
struct Keys<'a> {
    path: &'a Path,
    raw: &'a RawBackbone,
    family: Family,
}

impl Keys<'_> {
    /// Checks that a count lies between 1 and `limit`.
    fn count(&self, key: &'static str, value: Option<u64>, default: u64, limit: u64) -> Result<usize, ModelError> {
        check_range(self.path, key, value.unwrap_or(default), limit).map(|value| value as usize)
    }

    fn check_channels(&self) -> Result<(), ModelError> {
        match self.raw.num_channels.unwrap_or(3) {
            3 => Ok(()),
            channels => {
                let problem = format!("is `{channels}`; only `3` is supported");
                Err(ModelError::value(self.path, "num_channels", problem))
            }
        }
    }

    /// Returns the sides of an image and of a patch, in pixels.
    fn sides(&self) -> Result<(u32, u32), ModelError> {
        let patch = match self.family {
            Family::Dinov2 => 14,
            Family::Clip | Family::MetaClip2 | Family::AltClip => 32,
            Family::Swin | Family::Swinv2 => 4,
            _ => 16,
        };
        let image_px = parse_square_side(self.path, "image_size", self.raw.image_size, 224)?;
        let patch_px = parse_square_side(self.path, "patch_size", self.raw.patch_size, patch)?;
        if patch_px > image_px {
            let problem = format!("is `{patch_px}`, larger than `image_size`, `{image_px}`");
            return Err(ModelError::value(self.path, "patch_size", problem));
        }
        Ok((image_px, patch_px))
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        let default = match self.family {
            Family::Siglip => "gelu_pytorch_tanh",
            Family::Clip | Family::MetaClip2 | Family::AltClip => "quick_gelu",
            _ => "gelu",
        };
        parse_activation(Some(self.raw.hidden_act.as_deref().unwrap_or(default)), self.path)
    }

    fn norm_epsilon(&self) -> Result<f64, ModelError> {
        let default = match self.family {
            Family::Vit | Family::Deit | Family::VitMae | Family::Beit => 1e-12,
            Family::Dinov2 | Family::Dinov2WithRegisters | Family::Siglip => 1e-6,
            Family::Dinov3Vit | Family::Clip | Family::MetaClip2 | Family::AltClip | Family::Swin | Family::Swinv2 => {
                1e-5
            }
        };
        check_norm_epsilon(self.path, self.raw.layer_norm_eps.unwrap_or(default))
    }

    /// Returns the shape of the mask token that transformers expects.
    fn mask_token(&self, body: &Body) -> Option<Vec<usize>> {
        let Body::Plain(PlainConfig { hidden, .. }) = body else { return None };
        let wanted = self.raw.use_mask_token;
        match self.family {
            Family::Dinov2 if wanted.unwrap_or(true) => Some(vec![1, *hidden]),
            Family::Dinov2WithRegisters => Some(vec![1, *hidden]),
            Family::Dinov3Vit => Some(vec![1, 1, *hidden]),
            Family::Beit if wanted.unwrap_or(false) => Some(vec![1, 1, *hidden]),
            _ => None,
        }
    }
}

/// Parses `hidden_act`; the default in transformers is `gelu`.
pub(super) fn parse_activation(name: Option<&str>, path: &Path) -> Result<Activation, ModelError> {
    match name.unwrap_or("gelu") {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => {
            let problem = format!(
                "is `{other}`; supported are `gelu`, `gelu_new`, `gelu_pytorch_tanh`, `relu`, `quick_gelu` and `silu`"
            );
            Err(ModelError::value(path, "hidden_act", problem))
        }
    }
}

/// Checks that the number of heads divides the width of a token.
pub(super) fn check_heads(path: &Path, heads: u64, hidden: u64) -> Result<(), ModelError> {
    if hidden.is_multiple_of(heads) {
        return Ok(());
    }
    let problem = format!("is `{heads}`, which does not divide `hidden_size`, `{hidden}`");
    Err(ModelError::value(path, "num_attention_heads", problem))
}

/// Checks that `layer_norm_eps` is finite and not negative.
pub(super) fn check_norm_epsilon(path: &Path, value: f64) -> Result<f64, ModelError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(ModelError::value(path, "layer_norm_eps", format!("is `{value}`; it must be zero or more")))
    }
}

/// Checks that a value is between 1 and `limit`.
pub(super) fn check_range(path: &Path, key: &'static str, value: u64, limit: u64) -> Result<u64, ModelError> {
    if (1..=limit).contains(&value) {
        Ok(value)
    } else {
        Err(ModelError::value(path, key, format!("gives `{value}`; it must lie between 1 and {limit}")))
    }
}

/// Returns the side of a square given as a number or as `[height, width]`.
fn parse_square_side(path: &Path, key: &'static str, side: Option<RawSide>, default: u64) -> Result<u32, ModelError> {
    let side = match side {
        None => default,
        Some(RawSide::Side(side)) => side,
        Some(RawSide::HeightWidth([height, width])) if height == width => height,
        Some(RawSide::HeightWidth([height, width])) => {
            return Err(ModelError::value(path, key, format!("is `[{height}, {width}]`; only squares are supported")));
        }
    };
    Ok(check_range(path, key, side, MAX_SIDE_PX)? as u32)
}

#[cfg(test)]
mod tests;
