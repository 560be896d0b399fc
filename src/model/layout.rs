//! Names and shapes of a backbone's tensors in published checkpoints.
//!
//! Published names are written without the family's prefix. Names of the in-memory modules of transformers 5 (`q_proj`,
//! `o_proj`, `layers`, …) are recognised too, because transformers can save them. Linear weights are `[out, in]`, the
//! weight of the patch convolution is `[hidden, 3, patch, patch]`.

use std::collections::BTreeMap;

use crate::model::config::BackboneConfig;
use crate::model::config::Family;
use crate::model::config::FeedForward;

pub(super) const CLS: &str = "embeddings.cls_token";
pub(super) const POSITIONS: &str = "embeddings.position_embeddings";
pub(super) const MASK: &str = "embeddings.mask_token";
pub(super) const PATCH: &str = "embeddings.patch_embeddings.projection";
pub(super) const FINAL_NORM: &str = "layernorm";

/// Role of a tensor in a weight file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TensorRole {
    /// A tensor of the backbone, by its published name; the configuration may not expect it.
    Backbone(String),
    /// The mask token, which only pre-training uses.
    Mask,
    /// The tanh pooler, which the classifiers of transformers do not use.
    Pooler,
    /// A classifier from an earlier training.
    Classifier,
}

/// Returns the name of a module or tensor of block `index`.
pub(super) fn block_key(index: u32, part: &str) -> String {
    format!("encoder.layer.{index}.{part}")
}

/// Names of a block's modules that differ between families.
pub(super) struct ModuleNames {
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
/// Gate and up projections of a `SwiGLU` as one tensor, `[2 · inner, hidden]`.
pub(super) const SWIGLU_IN: &str = "mlp.weights_in";
/// Gate and up projections of a `SwiGLU` as two tensors, `[inner, hidden]` each.
pub(super) const SWIGLU_SPLIT: [&str; 2] = ["mlp.gate_proj", "mlp.up_proj"];
pub(super) const SWIGLU_OUT: &str = "mlp.weights_out";

/// Returns the module names of a family.
pub(super) fn module_names(family: Family) -> ModuleNames {
    match family {
        Family::Vit => ModuleNames {
            attention_norm: "layernorm_before",
            attention_scale: None,
            mlp_norm: "layernorm_after",
            mlp_scale: None,
            inner: "intermediate.dense",
            outer: "output.dense",
        },
        Family::Dinov2 => ModuleNames {
            attention_norm: "norm1",
            attention_scale: Some("layer_scale1.lambda1"),
            mlp_norm: "norm2",
            mlp_scale: Some("layer_scale2.lambda1"),
            inner: "mlp.fc1",
            outer: "mlp.fc2",
        },
    }
}

/// Returns the role of the tensor with this name in a file.
pub(super) fn classify_name(family: Family, name: &str) -> TensorRole {
    if name.starts_with("classifier.") {
        return TensorRole::Classifier;
    }
    let bare = name.strip_prefix(family.name()).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name);
    if bare == MASK {
        TensorRole::Mask
    } else if bare.starts_with("pooler.") {
        TensorRole::Pooler
    } else {
        TensorRole::Backbone(published_name(family, bare))
    }
}

/// Translates a module name of transformers 5 to the published name; returns any other name unchanged.
fn published_name(family: Family, name: &str) -> String {
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

/// Returns name and shape of every tensor that the configuration implies.
///
/// `split`: whether the gate and up projections of a `SwiGLU` are two tensors.
pub(super) fn expected_shapes(config: &BackboneConfig, split: bool) -> BTreeMap<String, Vec<usize>> {
    let hidden = config.hidden;
    let patch = config.patch_px as usize;
    let positions = 1 + config.native_grid() * config.native_grid();
    let parts = module_names(config.family);
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
    fn name_variants_map_to_one_tensor() {
        let query = TensorRole::Backbone("encoder.layer.3.attention.attention.query.bias".to_owned());
        for name in [
            "vit.encoder.layer.3.attention.attention.query.bias",
            "encoder.layer.3.attention.attention.query.bias",
            "vit.layers.3.attention.q_proj.bias",
        ] {
            assert_eq!(classify_name(Family::Vit, name), query);
        }
        assert_eq!(
            classify_name(Family::Vit, "layers.0.mlp.fc2.weight"),
            TensorRole::Backbone("encoder.layer.0.output.dense.weight".to_owned())
        );
        assert_eq!(
            classify_name(Family::Dinov2, "dinov2.encoder.layer.0.layer_scale1.lambda1"),
            TensorRole::Backbone("encoder.layer.0.layer_scale1.lambda1".to_owned())
        );
        assert_eq!(classify_name(Family::Dinov2, "dinov2.embeddings.mask_token"), TensorRole::Mask);
        assert_eq!(classify_name(Family::Vit, "pooler.dense.bias"), TensorRole::Pooler);
        assert_eq!(classify_name(Family::Vit, "classifier.bias"), TensorRole::Classifier);
        assert_eq!(
            classify_name(Family::Vit, "dinov2.layernorm.bias"),
            TensorRole::Backbone("dinov2.layernorm.bias".to_owned()),
            "another family's prefix is not removed"
        );
    }
}
