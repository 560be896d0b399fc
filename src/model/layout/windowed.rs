//! Names and shapes of the tensors of Swin and Swin v2.

use super::Shapes;
use crate::model::config::{BackboneConfig, WindowedConfig};

pub(in crate::model) const PATCH: &str = "embeddings.patch_embeddings.projection";
pub(in crate::model) const POSITIONS: &str = "embeddings.position_embeddings";
pub(in crate::model) const FIRST_NORM: &str = "embeddings.norm";
pub(in crate::model) const FINAL_NORM: &str = "layernorm";
pub(in crate::model) const QUERY_KEY_VALUE: [&str; 3] =
    ["attention.self.query", "attention.self.key", "attention.self.value"];
pub(in crate::model) const ATTENTION_OUTPUT: &str = "attention.output.dense";
pub(in crate::model) const ATTENTION_NORM: &str = "layernorm_before";
pub(in crate::model) const MLP_NORM: &str = "layernorm_after";
pub(in crate::model) const INNER: &str = "intermediate.dense";
pub(in crate::model) const OUTER: &str = "output.dense";
pub(in crate::model) const BIAS_TABLE: &str = "attention.self.relative_position_bias_table";
/// MLP of Swin v2 that computes the position bias from coordinates, and its scale of the cosines.
pub(in crate::model) const BIAS_INNER: &str = "attention.self.continuous_position_bias_mlp.0";
pub(in crate::model) const BIAS_OUTER: &str = "attention.self.continuous_position_bias_mlp.2.weight";
pub(in crate::model) const LOGIT_SCALE: &str = "attention.self.logit_scale";
/// Width of the hidden layer of that MLP.
pub(in crate::model) const BIAS_WIDTH: usize = 512;
const MERGE_NORM: &str = "downsample.norm";
const MERGE: &str = "downsample.reduction.weight";

/// Returns the name of a part of a block.
pub(in crate::model) fn block_key(stage: usize, block: usize, part: &str) -> String {
    format!("encoder.layers.{stage}.blocks.{block}.{part}")
}

/// Returns the names of norm and weight of the merging after a stage.
pub(in crate::model) fn merge_keys(stage: usize) -> [String; 2] {
    [MERGE_NORM, MERGE].map(|part| format!("encoder.layers.{stage}.{part}"))
}

/// Translates a module name of transformers 5 to the published name; returns any other name unchanged.
pub(super) fn published_name(name: &str) -> String {
    if !name.starts_with("encoder.layers.") {
        return name.to_owned();
    }
    let renamed = [
        (".attention.q_proj.", ".attention.self.query."),
        (".attention.k_proj.", ".attention.self.key."),
        (".attention.v_proj.", ".attention.self.value."),
        (".attention.o_proj.", ".attention.output.dense."),
        (
            ".attention.relative_position_bias.relative_position_bias_table",
            ".attention.self.relative_position_bias_table",
        ),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    ];
    match renamed.iter().find(|(from, _)| name.contains(from)) {
        Some((from, to)) => name.replace(from, to),
        None => name.to_owned(),
    }
}

/// Adds the tensors of a windowed backbone.
pub(super) fn add_shapes(config: &BackboneConfig, windowed: &WindowedConfig, shapes: &mut Shapes) {
    let (embed, patch) = (windowed.embed, config.patch_px as usize);
    shapes.add(format!("{PATCH}.weight"), &[embed, 3, patch, patch]);
    shapes.add(format!("{PATCH}.bias"), &[embed]);
    shapes.add_norm(FIRST_NORM, embed);
    if windowed.absolute_positions {
        shapes.add(POSITIONS, &[1, windowed.native_grid.pow(2), embed]);
    }
    for (stage, depth) in windowed.depths.iter().enumerate() {
        let width = windowed.width(stage);
        for block in 0..*depth {
            add_block(windowed, stage, block, shapes);
        }
        if stage + 1 < windowed.depths.len() {
            let [norm, weight] = merge_keys(stage);
            // Swin normalises before the merging layer, Swin v2 after it.
            shapes.add_norm(&norm, if windowed.v2 { 2 * width } else { 4 * width });
            shapes.add(weight, &[2 * width, 4 * width]);
        }
    }
    shapes.add_norm(FINAL_NORM, windowed.width(windowed.depths.len() - 1));
}

fn add_block(windowed: &WindowedConfig, stage: usize, block: usize, shapes: &mut Shapes) {
    let (width, heads, inner) = (windowed.width(stage), windowed.heads[stage], windowed.inner(stage));
    let key = |part: &str| block_key(stage, block, part);
    for norm in [ATTENTION_NORM, MLP_NORM] {
        shapes.add_norm(&key(norm), width);
    }
    for (number, part) in QUERY_KEY_VALUE.into_iter().enumerate() {
        // Keys of Swin v2 have no bias.
        let bias = windowed.qkv_bias && !(windowed.v2 && number == 1);
        shapes.add_linear(&key(part), width, width, bias);
    }
    shapes.add_linear(&key(ATTENTION_OUTPUT), width, width, true);
    shapes.add_linear(&key(INNER), inner, width, true);
    shapes.add_linear(&key(OUTER), width, inner, true);
    if windowed.v2 {
        shapes.add(key(LOGIT_SCALE), &[heads, 1, 1]);
        shapes.add_linear(&key(BIAS_INNER), BIAS_WIDTH, 2, true);
        shapes.add(key(BIAS_OUTER), &[heads, BIAS_WIDTH]);
    } else {
        shapes.add(key(BIAS_TABLE), &[(2 * windowed.window - 1).pow(2), heads]);
    }
}
