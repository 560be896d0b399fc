//! Parses and checks `config.json`.
//!
//! transformers omits keys that equal the default of the family's configuration class (`ViTConfig`, `Dinov2Config`), so
//! an absent key takes that default. Unknown keys are ignored, because the file also describes training. The module
//! does no I/O.

use std::path::Path;

use serde::Deserialize;

use crate::model::error::ModelError;
use crate::model::json::parse_json;

/// Upper bound on the number of blocks. Far above published models; keeps the list of expected tensors small.
const MAX_LAYERS: u64 = 1_000;
/// Upper bound on a layer's width. Far above published models; the product of two widths fits into a u64.
const MAX_WIDTH: u64 = 1 << 20;
/// Upper bound on the side of an image or a patch, in pixels.
const MAX_SIDE_PX: u64 = 1 << 16;

/// Family of vision transformers, named by `model_type` in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `ViTModel` and `ViTForImageClassification`.
    Vit,
    /// `Dinov2Model` and `Dinov2ForImageClassification`.
    Dinov2,
}

impl Family {
    /// Returns the `model_type`, which also prefixes the backbone's tensors in a classifier's weights.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vit => "vit",
            Self::Dinov2 => "dinov2",
        }
    }

    /// Returns the transformers class of this backbone with a classifier.
    pub fn classifier_class(self) -> &'static str {
        match self {
            Self::Vit => "ViTForImageClassification",
            Self::Dinov2 => "Dinov2ForImageClassification",
        }
    }
}

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
}

/// Kind and inner width of a block's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedForward {
    /// Linear, activation, linear. `inner` is the width of the hidden layer.
    Mlp { inner: usize },
    /// `down(silu(gate(x)) · up(x))` (Shazeer 2020). `inner` is the width of `gate` and of `up`.
    SwiGlu { inner: usize },
}

/// Architecture of a backbone.
#[derive(Debug, Clone, PartialEq)]
pub struct BackboneConfig {
    pub(super) family: Family,
    pub(super) hidden: usize,
    pub(super) layers: u32,
    pub(super) heads: usize,
    pub(super) feed_forward: FeedForward,
    pub(super) activation: Activation,
    pub(super) norm_epsilon: f64,
    pub(super) image_px: u32,
    pub(super) patch_px: u32,
    pub(super) qkv_bias: bool,
    /// Whether transformers expects the tensor `embeddings.mask_token` (`DINOv2`).
    pub(super) mask_token: bool,
}

/// Keys of `config.json` that define the architecture; all optional.
#[derive(Debug, Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    intermediate_size: Option<u64>,
    mlp_ratio: Option<f64>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    image_size: Option<RawSide>,
    patch_size: Option<RawSide>,
    num_channels: Option<u64>,
    qkv_bias: Option<bool>,
    use_swiglu_ffn: Option<bool>,
    use_mask_token: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum RawSide {
    Side(u64),
    HeightWidth([u64; 2]),
}

impl BackboneConfig {
    /// Parses and checks the text of a `config.json`; `path` appears in errors.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Self, ModelError> {
        let raw: RawConfig = parse_json(text, path)?;
        let family = match raw.model_type.as_deref() {
            Some("vit") => Family::Vit,
            Some("dinov2") => Family::Dinov2,
            other => {
                return Err(ModelError::Family { path: path.to_owned(), found: other.unwrap_or("(none)").to_owned() });
            }
        };
        let dinov2 = family == Family::Dinov2;
        let count = |key, value: Option<u64>, default, limit| check_range(path, key, value.unwrap_or(default), limit);

        let hidden = count("hidden_size", raw.hidden_size, 768, MAX_WIDTH)?;
        let heads = count("num_attention_heads", raw.num_attention_heads, 12, MAX_WIDTH)?;
        let layers = count("num_hidden_layers", raw.num_hidden_layers, 12, MAX_LAYERS)?;
        check_heads(path, heads, hidden)?;
        let channels = raw.num_channels.unwrap_or(3);
        if channels != 3 {
            return Err(ModelError::value(path, "num_channels", format!("is `{channels}`; only `3` is supported")));
        }
        let image_px = parse_square_side(path, "image_size", raw.image_size, 224)?;
        let patch_px = parse_square_side(path, "patch_size", raw.patch_size, if dinov2 { 14 } else { 16 })?;
        if patch_px > image_px {
            let problem = format!("is `{patch_px}`, larger than `image_size`, `{image_px}`");
            return Err(ModelError::value(path, "patch_size", problem));
        }
        let norm_epsilon = check_norm_epsilon(path, raw.layer_norm_eps.unwrap_or(if dinov2 { 1e-6 } else { 1e-12 }))?;

        let mlp_inner = if dinov2 {
            let ratio = raw.mlp_ratio.unwrap_or(4.0);
            // transformers truncates: int(hidden_size * mlp_ratio). A negative or NaN product becomes 0 and is
            // rejected.
            let inner = (hidden as f64 * ratio) as u64;
            check_range(path, "mlp_ratio", inner, 64 * MAX_WIDTH)?
        } else {
            count("intermediate_size", raw.intermediate_size, 3072, 64 * MAX_WIDTH)?
        };
        let feed_forward = if dinov2 && raw.use_swiglu_ffn.unwrap_or(false) {
            // transformers' Dinov2SwiGLUFFN: two thirds of the width, rounded up to a multiple of 8.
            FeedForward::SwiGlu { inner: (mlp_inner * 2 / 3).div_ceil(8) as usize * 8 }
        } else {
            FeedForward::Mlp { inner: mlp_inner as usize }
        };
        let activation = parse_activation(raw.hidden_act.as_deref(), path)?;
        Ok(Self {
            family,
            hidden: hidden as usize,
            layers: layers as u32,
            heads: heads as usize,
            feed_forward,
            activation,
            norm_epsilon,
            image_px,
            patch_px,
            qkv_bias: raw.qkv_bias.unwrap_or(true),
            mask_token: dinov2 && raw.use_mask_token.unwrap_or(true),
        })
    }

    /// Returns the number of patches along one side at the native image size; the convolution drops a remainder.
    pub(super) fn native_grid(&self) -> usize {
        (self.image_px / self.patch_px) as usize
    }

    /// Returns the index of block `layer`; a negative `layer` counts from the end.
    pub(super) fn resolve_layer(&self, layer: i32) -> Result<u32, ModelError> {
        let layers = i64::from(self.layers);
        let index = if layer < 0 { layers + i64::from(layer) } else { i64::from(layer) };
        u32::try_from(index)
            .ok()
            .filter(|index| *index < self.layers)
            .ok_or(ModelError::Layer { layer, layers: self.layers })
    }
}

/// Parses `hidden_act`; the default in transformers is `gelu`.
pub(super) fn parse_activation(name: Option<&str>, path: &Path) -> Result<Activation, ModelError> {
    match name.unwrap_or("gelu") {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        other => {
            let problem =
                format!("is `{other}`; supported are `gelu`, `gelu_new`, `gelu_pytorch_tanh`, `relu` and `quick_gelu`");
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
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BackboneConfig, ModelError> {
        BackboneConfig::parse(text.as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn absent_keys_take_transformers_defaults() {
        let vit = parse(r#"{"model_type": "vit"}"#).unwrap();
        assert_eq!((vit.hidden, vit.layers, vit.heads, vit.image_px, vit.patch_px), (768, 12, 12, 224, 16));
        assert_eq!(vit.feed_forward, FeedForward::Mlp { inner: 3072 });
        assert!(vit.qkv_bias && !vit.mask_token && (vit.norm_epsilon - 1e-12).abs() < 1e-20);
        let dinov2 =
            parse(r#"{"model_type": "dinov2", "mlp_ratio": 4, "hidden_size": 1536, "use_swiglu_ffn": true}"#).unwrap();
        assert_eq!(dinov2.feed_forward, FeedForward::SwiGlu { inner: 4096 });
        assert!(dinov2.mask_token && dinov2.patch_px == 14 && (dinov2.norm_epsilon - 1e-6).abs() < 1e-12);
    }

    #[test]
    fn unsupported_family_is_rejected() {
        let error = parse(r#"{"model_type": "swin"}"#).unwrap_err();
        assert_eq!(error.to_string(), "`config.json` has model_type `swin`; supported are `vit` and `dinov2`");
        assert!(matches!(parse("{}"), Err(ModelError::Family { .. })));
    }

    #[test]
    fn invalid_values_name_their_key() {
        for (text, expected) in [
            (r#""num_attention_heads": 5"#, "`num_attention_heads` is `5`, which does not divide `hidden_size`, `768`"),
            (r#""num_channels": 1"#, "`num_channels` is `1`; only `3` is supported"),
            (r#""hidden_size": 0"#, "`hidden_size` gives `0`"),
            (r#""num_hidden_layers": 4000000000"#, "`num_hidden_layers` gives `4000000000`"),
            (r#""image_size": [224, 112]"#, "`image_size` is `[224, 112]`; only squares"),
            (r#""patch_size": 300"#, "`patch_size` is `300`, larger than `image_size`"),
            (r#""hidden_act": "selu""#, "`hidden_act` is `selu`; supported are"),
            (r#""layer_norm_eps": -1"#, "`layer_norm_eps` is `-1`"),
            (r#""hidden_size": "768""#, "`hidden_size`: invalid type: string"),
        ] {
            let error = parse(&format!(r#"{{"model_type": "vit", {text}}}"#)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = parse(r#"{"model_type": "dinov2", "mlp_ratio": -2}"#).unwrap_err().to_string();
        assert!(error.contains("`mlp_ratio` gives `0`"), "{error}");
        assert!(matches!(parse("{\"model_type\": "), Err(ModelError::Json { .. })));
    }

    #[test]
    fn negative_layers_count_from_the_end() {
        let config = parse(r#"{"model_type": "vit"}"#).unwrap();
        for (layer, block) in [(-1, 11), (-2, 10), (-12, 0), (0, 0), (11, 11)] {
            assert_eq!(config.resolve_layer(layer).unwrap(), block);
        }
        for layer in [12, -13, i32::MIN, i32::MAX] {
            let error = config.resolve_layer(layer).unwrap_err().to_string();
            assert!(error.contains("the model has `12` blocks"), "{error}");
        }
    }
}
