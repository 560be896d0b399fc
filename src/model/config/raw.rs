//! Keys of `config.json` that define the architecture of an image backbone; all optional.

use serde::Deserialize;

/// Keys that say what the file describes.
#[derive(Debug, Deserialize)]
pub(super) struct RawKind {
    pub(super) model_type: Option<String>,
    /// Keys of the vision tower in the configuration of a pair of towers.
    pub(super) vision_config: Option<RawBackbone>,
    /// Width of the space that both towers share.
    pub(super) projection_dim: Option<u64>,
}

/// Keys of one backbone.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RawBackbone {
    pub(super) hidden_size: Option<u64>,
    pub(super) num_hidden_layers: Option<u64>,
    pub(super) num_attention_heads: Option<u64>,
    pub(super) intermediate_size: Option<u64>,
    pub(super) mlp_ratio: Option<f64>,
    pub(super) hidden_act: Option<String>,
    pub(super) layer_norm_eps: Option<f64>,
    pub(super) image_size: Option<RawSide>,
    pub(super) patch_size: Option<RawSide>,
    pub(super) num_channels: Option<u64>,
    pub(super) qkv_bias: Option<bool>,
    pub(super) query_bias: Option<bool>,
    pub(super) key_bias: Option<bool>,
    pub(super) value_bias: Option<bool>,
    pub(super) proj_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    pub(super) use_swiglu_ffn: Option<bool>,
    pub(super) use_gated_mlp: Option<bool>,
    pub(super) use_mask_token: Option<bool>,
    pub(super) num_register_tokens: Option<u64>,
    pub(super) rope_theta: Option<f64>,
    pub(super) use_absolute_position_embeddings: Option<bool>,
    pub(super) use_relative_position_bias: Option<bool>,
    pub(super) use_shared_relative_position_bias: Option<bool>,
    pub(super) layer_scale_init_value: Option<f64>,
    pub(super) use_mean_pooling: Option<bool>,
    pub(super) vision_use_head: Option<bool>,
    pub(super) projection_dim: Option<u64>,
    pub(super) embed_dim: Option<u64>,
    pub(super) depths: Option<Vec<u64>>,
    pub(super) num_heads: Option<Vec<u64>>,
    pub(super) window_size: Option<u64>,
    pub(super) pretrained_window_sizes: Option<Vec<u64>>,
    pub(super) use_absolute_embeddings: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum RawSide {
    Side(u64),
    HeightWidth([u64; 2]),
}
