//! Names and shapes of a backbone's tensors in published files.
//!
//! The names are those of the published checkpoints, without the family's prefix. Those that
//! transformers uses in memory since version 5 (`q_proj`, `o_proj`, `layers`, …) are understood as well, since it can
//! be told to save them. Linear weights are `[out, in]`, the patch convolution `[hidden, 3, patch, patch]`.

use std::collections::BTreeMap;

use crate::model::config::BackboneConfig;
use crate::model::config::Family;
use crate::model::config::FeedForward;

pub(super) const CLS: &str = "embeddings.cls_token";
pub(super) const POSITIONS: &str = "embeddings.position_embeddings";
pub(super) const MASK: &str = "embeddings.mask_token";
pub(super) const PATCH: &str = "embeddings.patch_embeddings.projection";
pub(super) const FINAL_NORM: &str = "layernorm";

/// What a name in a weight file stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A tensor of the backbone, if the configuration has a place for this name.
    Backbone(String),
    /// The mask token, which only pre-training uses.
    Mask,
    /// The tanh pooler, which no classifier uses.
    Pooler,
    /// A classifier from an earlier training.
    Classifier,
}

/// The name of a part of block `index`.
pub(super) fn block_key(index: u32, part: &str) -> String {
    format!("encoder.layer.{index}.{part}")
}

/// How the parts of a block are called.
pub(super) struct Parts {
    pub(super) attention_norm: &'static str,
    pub(super) attention_scale: Option<&'static str>,
    pub(super) mlp_norm: &'static str,
    pub(super) mlp_scale: Option<&'static str>,
    pub(super) inner: &'static str,
    pub(super) outer: &'static str,
}

pub(super) const QUERY_KEY_VALUE: [&str; 3] =
    ["attention.attention.query", "attention.attention.key", "attention.attention.value"];
pub(super) const ATTENTION_OUTPUT: &str = "attention.output.dense";
/// Gate and up projection of a `SwiGLU`, one above the other.
pub(super) const SWIGLU_IN: &str = "mlp.weights_in";
/// The same as two tensors.
pub(super) const SWIGLU_SPLIT: [&str; 2] = ["mlp.gate_proj", "mlp.up_proj"];
pub(super) const SWIGLU_OUT: &str = "mlp.weights_out";

pub(super) fn parts(family: Family) -> Parts {
    match family {
        Family::Vit => Parts {
            attention_norm: "layernorm_before",
            attention_scale: None,
            mlp_norm: "layernorm_after",
            mlp_scale: None,
            inner: "intermediate.dense",
            outer: "output.dense",
        },
        Family::Dinov2 => Parts {
            attention_norm: "norm1",
            attention_scale: Some("layer_scale1.lambda1"),
            mlp_norm: "norm2",
            mlp_scale: Some("layer_scale2.lambda1"),
            inner: "mlp.fc1",
            outer: "mlp.fc2",
        },
    }
}

/// What `name`, as found in a file, stands for.
pub(super) fn role(family: Family, name: &str) -> Role {
    if name.starts_with("classifier.") {
        return Role::Classifier;
    }
    let bare = name.strip_prefix(family.name()).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name);
    if bare == MASK {
        Role::Mask
    } else if bare.starts_with("pooler.") {
        Role::Pooler
    } else {
        Role::Backbone(published(family, bare))
    }
}

/// A name of transformers' modules since version 5 as the published one; any other name as it is.
fn published(family: Family, name: &str) -> String {
    let Some(rest) = name.strip_prefix("encoder.layer.").or_else(|| name.strip_prefix("layers.")) else {
        return name.to_owned();
    };
    let Some((index, part)) = rest.split_once('.') else {
        return name.to_owned();
    };
    let (module, kind) = part.rsplit_once('.').unwrap_or((part, ""));
    let renamed = match (family, module) {
        (_, "attention.q_proj") => QUERY_KEY_VALUE[0],
        (_, "attention.k_proj") => QUERY_KEY_VALUE[1],
        (_, "attention.v_proj") => QUERY_KEY_VALUE[2],
        (_, "attention.o_proj") => ATTENTION_OUTPUT,
        (Family::Vit, "mlp.fc1") => "intermediate.dense",
        (Family::Vit, "mlp.fc2") => "output.dense",
        (Family::Dinov2, "mlp.down_proj") => SWIGLU_OUT,
        (_, other) => other,
    };
    format!("encoder.layer.{index}.{renamed}.{kind}")
}

/// Every tensor that the configuration asks for, with its shape.
///
/// `split` says that a `SwiGLU`'s gate and up projection are two tensors.
pub(super) fn expected(config: &BackboneConfig, split: bool) -> BTreeMap<String, Vec<usize>> {
    let hidden = config.hidden;
    let patch = config.patch_px as usize;
    let positions = 1 + config.native_grid() * config.native_grid();
    let parts = parts(config.family);
    let mut shapes = BTreeMap::new();
    shapes.insert(CLS.to_owned(), vec![1, 1, hidden]);
    shapes.insert(POSITIONS.to_owned(), vec![1, positions, hidden]);
    shapes.insert(format!("{PATCH}.weight"), vec![hidden, 3, patch, patch]);
    shapes.insert(format!("{PATCH}.bias"), vec![hidden]);
    for kind in ["weight", "bias"] {
        shapes.insert(format!("{FINAL_NORM}.{kind}"), vec![hidden]);
    }
    for index in 0..config.layers {
        let mut vector = |part: String, length| shapes.insert(block_key(index, &part), vec![length]);
        for norm in [parts.attention_norm, parts.mlp_norm] {
            vector(format!("{norm}.weight"), hidden);
            vector(format!("{norm}.bias"), hidden);
        }
        for scale in [parts.attention_scale, parts.mlp_scale].into_iter().flatten() {
            vector(scale.to_owned(), hidden);
        }
        let mut linear = |part: &str, out: usize, input: usize, bias: bool| {
            shapes.insert(block_key(index, &format!("{part}.weight")), vec![out, input]);
            if bias {
                shapes.insert(block_key(index, &format!("{part}.bias")), vec![out]);
            }
        };
        for part in QUERY_KEY_VALUE {
            linear(part, hidden, hidden, config.qkv_bias);
        }
        linear(ATTENTION_OUTPUT, hidden, hidden, true);
        match config.feed_forward {
            FeedForward::Mlp { inner } => {
                linear(parts.inner, inner, hidden, true);
                linear(parts.outer, hidden, inner, true);
            }
            FeedForward::SwiGlu { inner } => {
                if split {
                    for part in SWIGLU_SPLIT {
                        linear(part, inner, hidden, true);
                    }
                } else {
                    linear(SWIGLU_IN, 2 * inner, hidden, true);
                }
                linear(SWIGLU_OUT, hidden, inner, true);
            }
        }
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_either_layout_and_prefix_are_the_same_tensor() {
        let query = Role::Backbone("encoder.layer.3.attention.attention.query.bias".to_owned());
        for name in [
            "vit.encoder.layer.3.attention.attention.query.bias",
            "encoder.layer.3.attention.attention.query.bias",
            "vit.layers.3.attention.q_proj.bias",
        ] {
            assert_eq!(role(Family::Vit, name), query);
        }
        assert_eq!(
            role(Family::Vit, "layers.0.mlp.fc2.weight"),
            Role::Backbone("encoder.layer.0.output.dense.weight".to_owned())
        );
        assert_eq!(
            role(Family::Dinov2, "dinov2.encoder.layer.0.layer_scale1.lambda1"),
            Role::Backbone("encoder.layer.0.layer_scale1.lambda1".to_owned())
        );
        assert_eq!(role(Family::Dinov2, "dinov2.embeddings.mask_token"), Role::Mask);
        assert_eq!(role(Family::Vit, "pooler.dense.bias"), Role::Pooler);
        assert_eq!(role(Family::Vit, "classifier.bias"), Role::Classifier);
        assert_eq!(
            role(Family::Vit, "dinov2.layernorm.bias"),
            Role::Backbone("dinov2.layernorm.bias".to_owned()),
            "the other family's prefix stays, and is then unexpected"
        );
    }
}
