//! Names and shapes of a backbone's tensors in published checkpoints.
//!
//! Published names are written without the family's prefix. Names of the in-memory modules of transformers 5 (`q_proj`,
//! `o_proj`, `layers`, …) are recognised too, because transformers can save them. Linear weights are `[out, in]`, the
//! weight of the patch convolution is `[hidden, 3, patch, patch]`.

mod names;
mod plain;
pub(super) mod windowed;

use std::collections::BTreeMap;

use crate::model::config::{BackboneConfig, Body};
use crate::model::family::Family;

pub(super) use names::{Names, names};
pub(super) use plain::final_norm;

pub(super) const MASK: &str = "embeddings.mask_token";
/// Gate and up projections of a `SwiGLU` as one tensor, `[2 · inner, hidden]`.
const SWIGLU_IN: &str = "mlp.weights_in";
/// Gate and up projections of a gated MLP as two tensors, `[inner, hidden]` each.
pub(super) const GATED_SPLIT: [&str; 2] = ["mlp.gate_proj", "mlp.up_proj"];
/// Attention pooling of `SigLIP`.
pub(super) const POOLING_HEAD: &str = "head";
/// Projection of CLIP into the space that both towers share.
pub(super) const PROJECTION: &str = "visual_projection.weight";

/// Returns the tensors with the gate and up projections of a gated MLP; `split`: whether they are two.
pub(super) fn gate_and_up_names(split: bool) -> &'static [&'static str] {
    if split { &GATED_SPLIT } else { &[SWIGLU_IN] }
}

/// Role of a tensor in a weight file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TensorRole {
    /// A tensor of the backbone, by its published name; the configuration may not expect it.
    Backbone(String),
    /// The mask token, which only pre-training uses.
    Mask,
    /// A tensor of a pooler, a text tower or a decoder, which the feature does not depend on.
    Unused,
    /// A classifier from an earlier training.
    Classifier,
}

/// Returns the role of the tensor with this name in a file.
pub(super) fn classify_name(family: Family, name: &str) -> TensorRole {
    if ["classifier.", "cls_classifier.", "distillation_classifier."].iter().any(|head| name.starts_with(head)) {
        return TensorRole::Classifier;
    }
    // The head of masked image modelling comes before the prefix is removed: a `layernorm` may be part of either.
    let outside: &[&str] = match family {
        Family::Vit | Family::Deit | Family::VitMae | Family::Swin | Family::Swinv2 => &["decoder."],
        Family::Siglip | Family::Clip | Family::MetaClip2 | Family::AltClip => {
            &["text_model.", "text_projection.", "logit_scale", "logit_bias"]
        }
        Family::Beit => &["lm_head.", "decode_head.", "auxiliary_head.", "fpn1.", "fpn2."],
        _ => &[],
    };
    if outside.iter().any(|prefix| name.starts_with(prefix)) {
        return TensorRole::Unused;
    }
    let bare = name.strip_prefix(family.tensor_prefix()).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name);
    if bare == MASK {
        TensorRole::Mask
    } else if bare.starts_with("pooler.dense.") {
        TensorRole::Unused
    } else {
        TensorRole::Backbone(published_name(family, bare))
    }
}

/// Translates a module name of transformers 5 to the published name; returns any other name unchanged.
fn published_name(family: Family, name: &str) -> String {
    if family.is_windowed() {
        return windowed::published_name(name);
    }
    if family == Family::Beit {
        let shared = name.strip_prefix("shared_position_bias.");
        if let Some(table) = shared {
            return format!("encoder.relative_position_bias.{table}");
        }
    }
    let names = names(family);
    let numbered = ["encoder.layer.", "encoder.layers.", "layers.", "layer."];
    let Some(rest) = numbered.iter().find_map(|prefix| name.strip_prefix(prefix)) else {
        return name.to_owned();
    };
    let Some((index, part)) = rest.split_once('.') else {
        return name.to_owned();
    };
    if !index.bytes().all(|digit| digit.is_ascii_digit()) {
        return name.to_owned();
    }
    let block = format!("{}.{index}", names.blocks);
    // `lambda_1` and the bias table have no module of their own.
    let renamed = match (family, part) {
        (Family::Beit, "relative_position_bias.relative_position_bias_table") => names::BIAS_TABLE,
        (_, other) => other,
    };
    let (module, kind) = renamed.rsplit_once('.').unwrap_or((renamed, ""));
    let module = match module {
        "attention.q_proj" => names.query_key_value[0],
        "attention.k_proj" => names.query_key_value[1],
        "attention.v_proj" => names.query_key_value[2],
        "attention.o_proj" => names.attention_output,
        "mlp.fc1" => names.inner,
        "mlp.fc2" => names.outer,
        "mlp.down_proj" if matches!(family, Family::Dinov2 | Family::Dinov2WithRegisters) => names.gated_outer,
        other => other,
    };
    if kind.is_empty() { format!("{block}.{module}") } else { format!("{block}.{module}.{kind}") }
}

/// Returns name and shape of every tensor that the configuration implies.
///
/// `split`: whether the gate and up projections of a gated MLP are two tensors.
pub(super) fn expected_shapes(config: &BackboneConfig, split: bool) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = Shapes::default();
    match &config.body {
        Body::Plain(plain) => plain::add_shapes(config, plain, split, &mut shapes),
        Body::Windowed(windowed) => windowed::add_shapes(config, windowed, &mut shapes),
    }
    shapes.0
}

/// Names and shapes of tensors.
#[derive(Default)]
struct Shapes(BTreeMap<String, Vec<usize>>);

impl Shapes {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.insert(name.into(), shape.to_vec());
    }

    /// Adds weight and bias of a norm.
    fn add_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }

    /// Adds the weight of a linear layer, and its bias if it has one.
    fn add_linear(&mut self, name: &str, out: usize, input: usize, bias: bool) {
        self.add(format!("{name}.weight"), &[out, input]);
        if bias {
            self.add(format!("{name}.bias"), &[out]);
        }
    }
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
            assert_eq!(classify_name(Family::VitMae, name), query);
        }
        let backbone = |family, name: &str| match classify_name(family, name) {
            TensorRole::Backbone(name) => name,
            other => panic!("{name}: {other:?}"),
        };
        for (family, name, published) in [
            (Family::Vit, "layers.0.mlp.fc2.weight", "encoder.layer.0.output.dense.weight"),
            (Family::Dinov2, "dinov2.encoder.layer.0.layer_scale1.lambda1", "encoder.layer.0.layer_scale1.lambda1"),
            (Family::Dinov2WithRegisters, "encoder.layer.1.mlp.down_proj.bias", "encoder.layer.1.mlp.weights_out.bias"),
            (Family::Beit, "beit.layers.2.lambda_1", "encoder.layer.2.lambda_1"),
            (
                Family::Beit,
                "layers.2.relative_position_bias.relative_position_bias_table",
                "encoder.layer.2.attention.attention.relative_position_bias.relative_position_bias_table",
            ),
            (Family::Siglip, "vision_model.head.probe", "head.probe"),
            (Family::Clip, "encoder.layers.1.self_attn.q_proj.bias", "encoder.layers.1.self_attn.q_proj.bias"),
            (Family::Dinov3Vit, "model.layer.4.mlp.up_proj.bias", "layer.4.mlp.up_proj.bias"),
            (Family::Vit, "dinov2.layernorm.bias", "dinov2.layernorm.bias"),
        ] {
            assert_eq!(backbone(family, name), published, "another family's prefix is not removed");
        }
        assert_eq!(classify_name(Family::Dinov2, "dinov2.embeddings.mask_token"), TensorRole::Mask);
        assert_eq!(classify_name(Family::Vit, "pooler.dense.bias"), TensorRole::Unused);
        assert_eq!(classify_name(Family::Siglip, "text_model.head.bias"), TensorRole::Unused);
        assert_eq!(classify_name(Family::Vit, "classifier.bias"), TensorRole::Classifier);
        for family in [Family::Vit, Family::Deit, Family::VitMae, Family::Swin, Family::Swinv2] {
            assert_eq!(classify_name(family, "decoder.0.weight"), TensorRole::Unused, "masked image modelling");
        }
    }
}
