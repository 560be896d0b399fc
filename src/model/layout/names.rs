//! Names of modules and tensors that differ between families of plain backbones.

use crate::model::family::Family;

/// Table of the relative position bias of a block.
pub(super) const BIAS_TABLE: &str = "attention.attention.relative_position_bias.relative_position_bias_table";
/// Table of the relative position bias that all blocks share.
const SHARED_BIAS_TABLE: &str = "encoder.relative_position_bias.relative_position_bias_table";

/// Names of modules and tensors; those of a block follow `blocks` and the block's index.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Names {
    pub(in crate::model) cls: &'static str,
    pub(in crate::model) distillation: &'static str,
    pub(in crate::model) registers: &'static str,
    pub(in crate::model) positions: &'static str,
    pub(in crate::model) patch: &'static str,
    pub(in crate::model) first_norm: &'static str,
    pub(in crate::model) final_norm: &'static str,
    pub(in crate::model) shared_bias: &'static str,
    pub(in crate::model) blocks: &'static str,
    pub(in crate::model) attention_norm: &'static str,
    pub(in crate::model) query_key_value: [&'static str; 3],
    pub(in crate::model) attention_output: &'static str,
    pub(in crate::model) attention_scale: &'static str,
    pub(in crate::model) bias_table: &'static str,
    pub(in crate::model) mlp_norm: &'static str,
    pub(in crate::model) mlp_scale: &'static str,
    pub(in crate::model) inner: &'static str,
    pub(in crate::model) outer: &'static str,
    /// Output of a gated MLP.
    pub(in crate::model) gated_outer: &'static str,
}

impl Names {
    /// Returns the name of a module or tensor of block `index`.
    pub(in crate::model) fn block(&self, index: u32, part: &str) -> String {
        format!("{}.{index}.{part}", self.blocks)
    }
}

const VIT: Names = Names {
    cls: "embeddings.cls_token",
    distillation: "embeddings.distillation_token",
    registers: "embeddings.register_tokens",
    positions: "embeddings.position_embeddings",
    patch: "embeddings.patch_embeddings.projection",
    first_norm: "",
    final_norm: "layernorm",
    shared_bias: SHARED_BIAS_TABLE,
    blocks: "encoder.layer",
    attention_norm: "layernorm_before",
    query_key_value: ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    attention_output: "attention.output.dense",
    attention_scale: "lambda_1",
    bias_table: BIAS_TABLE,
    mlp_norm: "layernorm_after",
    mlp_scale: "lambda_2",
    inner: "intermediate.dense",
    outer: "output.dense",
    gated_outer: "mlp.weights_out",
};

const DINOV2: Names = Names {
    attention_norm: "norm1",
    attention_scale: "layer_scale1.lambda1",
    mlp_norm: "norm2",
    mlp_scale: "layer_scale2.lambda1",
    inner: "mlp.fc1",
    outer: "mlp.fc2",
    ..VIT
};

const DINOV3: Names = Names {
    patch: "embeddings.patch_embeddings",
    final_norm: "norm",
    blocks: "layer",
    query_key_value: ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    attention_output: "attention.o_proj",
    inner: "mlp.up_proj",
    outer: "mlp.down_proj",
    gated_outer: "mlp.down_proj",
    ..DINOV2
};

const CLIP: Names = Names {
    cls: "embeddings.class_embedding",
    positions: "embeddings.position_embedding.weight",
    patch: "embeddings.patch_embedding",
    // The spelling is that of the published files.
    first_norm: "pre_layrnorm",
    final_norm: "post_layernorm",
    blocks: "encoder.layers",
    attention_norm: "layer_norm1",
    query_key_value: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_output: "self_attn.out_proj",
    mlp_norm: "layer_norm2",
    inner: "mlp.fc1",
    outer: "mlp.fc2",
    ..VIT
};

/// Returns the names of a family; those of a windowed family are in `windowed`.
pub(in crate::model) fn names(family: Family) -> Names {
    match family {
        Family::Vit | Family::Deit | Family::VitMae | Family::Beit | Family::Swin | Family::Swinv2 => VIT,
        Family::Dinov2 | Family::Dinov2WithRegisters => DINOV2,
        Family::Dinov3Vit => DINOV3,
        Family::Siglip | Family::Clip | Family::MetaClip2 | Family::AltClip => CLIP,
    }
}
