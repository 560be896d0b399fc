//! Shapes of the tensors of a plain backbone.

use super::{GATED_SPLIT, POOLING_HEAD, PROJECTION, SWIGLU_IN, Shapes, names};
use crate::model::config::{
    BackboneConfig, FeedForward, FinalNorm, PlainConfig, Positions, ProjectionHead, RelativeBias,
};
use crate::model::family::Family;

/// Final norm of a `BEiT` that normalises its feature.
const FEATURE_NORM: &str = "pooler.layernorm";

/// Returns the name of the final norm.
pub(in crate::model) fn final_norm(config: &BackboneConfig, plain: &PlainConfig) -> &'static str {
    match plain.final_norm {
        FinalNorm::Feature => FEATURE_NORM,
        FinalNorm::Tokens => names(config.family).final_norm,
    }
}

/// Adds the tensors of a plain backbone.
pub(super) fn add_shapes(config: &BackboneConfig, plain: &PlainConfig, split: bool, shapes: &mut Shapes) {
    let names = names(config.family);
    let (hidden, patch) = (plain.hidden, config.patch_px as usize);
    let is_clip = config.family.is_clip();
    if plain.cls {
        let shape = [1, 1, hidden];
        shapes.add(names.cls, if is_clip { &shape[2..] } else { &shape });
    }
    if plain.distillation {
        shapes.add(names.distillation, &[1, 1, hidden]);
    }
    if matches!(config.family, Family::Dinov2WithRegisters | Family::Dinov3Vit) {
        shapes.add(names.registers, &[1, plain.registers, hidden]);
    }
    if let Positions::Table { leading, .. } = plain.positions {
        let rows = leading + config.native_grid() * config.native_grid();
        let is_embedding = is_clip || config.family == Family::Siglip;
        let shape = [1, rows, hidden];
        shapes.add(names.positions, if is_embedding { &shape[1..] } else { &shape });
    }
    shapes.add(format!("{}.weight", names.patch), &[hidden, 3, patch, patch]);
    if plain.biases.patch {
        shapes.add(format!("{}.bias", names.patch), &[hidden]);
    }
    if plain.first_norm {
        shapes.add_norm(names.first_norm, hidden);
    }
    shapes.add_norm(final_norm(config, plain), hidden);
    let distances = (2 * config.native_grid() - 1).pow(2) + 3;
    if plain.relative == Some(RelativeBias::Shared) {
        shapes.add(names.shared_bias, &[distances, plain.heads]);
    }
    for index in 0..plain.layers {
        add_block(config, plain, split, index, shapes);
        if plain.relative == Some(RelativeBias::PerBlock) {
            shapes.add(names.block(index, names.bias_table), &[distances, plain.heads]);
        }
    }
    match plain.head {
        Some(ProjectionHead::Attention) => add_pooling_head(plain, shapes),
        Some(ProjectionHead::Linear { dim }) => shapes.add(PROJECTION, &[dim, hidden]),
        None => {}
    }
}

fn add_block(config: &BackboneConfig, plain: &PlainConfig, split: bool, index: u32, shapes: &mut Shapes) {
    let names = names(config.family);
    let (hidden, biases) = (plain.hidden, plain.biases);
    for norm in [names.attention_norm, names.mlp_norm] {
        shapes.add_norm(&names.block(index, norm), hidden);
    }
    if plain.layer_scale {
        for scale in [names.attention_scale, names.mlp_scale] {
            shapes.add(names.block(index, scale), &[hidden]);
        }
    }
    let mut linear = |part: &str, out: usize, input: usize, bias: bool| {
        shapes.add_linear(&names.block(index, part), out, input, bias);
    };
    for (part, bias) in names.query_key_value.into_iter().zip([biases.query, biases.key, biases.value]) {
        linear(part, hidden, hidden, bias);
    }
    linear(names.attention_output, hidden, hidden, biases.attention_output);
    match plain.feed_forward {
        FeedForward::Mlp { inner } => {
            linear(names.inner, inner, hidden, biases.mlp);
            linear(names.outer, hidden, inner, biases.mlp);
        }
        FeedForward::Gated { inner, .. } => {
            if split {
                for part in GATED_SPLIT {
                    linear(part, inner, hidden, biases.mlp);
                }
            } else {
                linear(SWIGLU_IN, 2 * inner, hidden, biases.mlp);
            }
            linear(names.gated_outer, hidden, inner, biases.mlp);
        }
    }
}

/// Adds the attention pooling of `SigLIP`.
fn add_pooling_head(plain: &PlainConfig, shapes: &mut Shapes) {
    let hidden = plain.hidden;
    let inner = plain.feed_forward.inner();
    let name = |part: &str| format!("{POOLING_HEAD}.{part}");
    shapes.add(name("probe"), &[1, 1, hidden]);
    shapes.add(name("attention.in_proj_weight"), &[3 * hidden, hidden]);
    shapes.add(name("attention.in_proj_bias"), &[3 * hidden]);
    shapes.add_linear(&name("attention.out_proj"), hidden, hidden, true);
    shapes.add_norm(&name("layernorm"), hidden);
    shapes.add_linear(&name("mlp.fc1"), inner, hidden, true);
    shapes.add_linear(&name("mlp.fc2"), hidden, inner, true);
}
