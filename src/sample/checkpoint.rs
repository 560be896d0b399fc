//! Vision Transformer of width 64 with two blocks and random weights, in the layout that `transformers` writes for
//! `ViTModel`: `config.json`, `preprocessor_config.json`, `model.safetensors` (f32).
//!
//! The scales below keep most of the variance of the CLS feature in the image rather than in the weights, so a linear
//! head on the frozen feature can tell the scenes apart. The CLS token starts at zero and has no position, so its
//! output depends only on what it attends to.

use super::rng::SampleRng;
use super::rng::Stream;
use safetensors::Dtype;
use safetensors::SafeTensorError;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::collections::HashMap;

/// Side of the input image, in pixels.
pub(super) const IMAGE_PX: usize = 64;
const PATCH_PX: usize = 8;
const HIDDEN: usize = 64;
const HEADS: usize = 4;
const MLP: usize = 256;
const LAYERS: usize = 2;
const PATCHES: usize = (IMAGE_PX / PATCH_PX) * (IMAGE_PX / PATCH_PX);

/// Standard deviations; those of weights are multiplied by `1 / sqrt(inputs)`.
mod scale {
    /// Large enough that heads attend to some patches instead of averaging all of them.
    pub(super) const QUERY_KEY: f32 = 2.0;
    pub(super) const VALUE_OUT: f32 = 2.0;
    pub(super) const MLP: f32 = 1.5;
    pub(super) const PATCH: f32 = 1.0;
    pub(super) const PATCH_BIAS: f32 = 0.1;
    pub(super) const POSITION: f32 = 0.2;
    pub(super) const BIAS: f32 = 0.3;
}

/// Returns `config.json`.
pub(super) fn config() -> serde_json::Value {
    json!({
        "architectures": ["ViTModel"],
        "attention_probs_dropout_prob": 0.0,
        "encoder_stride": PATCH_PX,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": HIDDEN,
        "image_size": IMAGE_PX,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "num_attention_heads": HEADS,
        "num_channels": 3,
        "num_hidden_layers": LAYERS,
        "patch_size": PATCH_PX,
        "qkv_bias": true,
        "torch_dtype": "float32",
    })
}

/// Returns `preprocessor_config.json`: resize to a square with bilinear interpolation (2 in Pillow's numbering), then
/// scale to −1 to 1.
pub(super) fn preprocessor() -> serde_json::Value {
    json!({
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "ViTImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1.0 / 255.0,
        "size": { "height": IMAGE_PX, "width": IMAGE_PX },
    })
}

struct Weight {
    name: String,
    shape: Vec<usize>,
    /// f32, little-endian.
    bytes: Vec<u8>,
}

struct Builder {
    rng: SampleRng,
    weights: Vec<Weight>,
}

impl Builder {
    fn push(&mut self, name: String, shape: &[usize], mut value: impl FnMut(&mut SampleRng) -> f32) {
        let count: usize = shape.iter().product();
        let bytes = (0..count).flat_map(|_| value(&mut self.rng).to_le_bytes()).collect();
        self.weights.push(Weight { name, shape: shape.to_vec(), bytes });
    }

    fn add_linear(&mut self, name: &str, inputs: usize, outputs: usize, scale: f32) {
        let scale = scale / (inputs as f32).sqrt();
        self.push(format!("{name}.weight"), &[outputs, inputs], |rng| scale * rng.normal());
        self.push(format!("{name}.bias"), &[outputs], |rng| scale::BIAS * rng.normal());
    }

    fn add_norm(&mut self, name: &str) {
        self.push(format!("{name}.weight"), &[HIDDEN], |_| 1.0);
        self.push(format!("{name}.bias"), &[HIDDEN], |_| 0.0);
    }
}

/// Returns the bytes of `model.safetensors` for this seed.
///
/// # Errors
/// Fails if the serialiser refuses the tensors.
pub(super) fn weights(seed: u64) -> Result<Vec<u8>, SafeTensorError> {
    let mut builder = Builder { rng: SampleRng::new(seed, Stream::Weights), weights: Vec::new() };
    builder.push("embeddings.cls_token".to_owned(), &[1, 1, HIDDEN], |_| 0.0);
    let mut index = 0;
    builder.push("embeddings.position_embeddings".to_owned(), &[1, PATCHES + 1, HIDDEN], |rng| {
        index += 1;
        if index <= HIDDEN { 0.0 } else { scale::POSITION * rng.normal() }
    });
    let patch_scale = scale::PATCH / ((3 * PATCH_PX * PATCH_PX) as f32).sqrt();
    builder.push("embeddings.patch_embeddings.projection.weight".to_owned(), &[HIDDEN, 3, PATCH_PX, PATCH_PX], |rng| {
        patch_scale * rng.normal()
    });
    builder.push("embeddings.patch_embeddings.projection.bias".to_owned(), &[HIDDEN], |rng| {
        scale::PATCH_BIAS * rng.normal()
    });
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        builder.add_norm(&name("layernorm_before"));
        builder.add_linear(&name("attention.attention.query"), HIDDEN, HIDDEN, scale::QUERY_KEY);
        builder.add_linear(&name("attention.attention.key"), HIDDEN, HIDDEN, scale::QUERY_KEY);
        builder.add_linear(&name("attention.attention.value"), HIDDEN, HIDDEN, scale::VALUE_OUT);
        builder.add_linear(&name("attention.output.dense"), HIDDEN, HIDDEN, scale::VALUE_OUT);
        builder.add_norm(&name("layernorm_after"));
        builder.add_linear(&name("intermediate.dense"), HIDDEN, MLP, scale::MLP);
        builder.add_linear(&name("output.dense"), MLP, HIDDEN, scale::MLP);
    }
    builder.add_norm("layernorm");
    let views = builder
        .weights
        .iter()
        .map(|weight| Ok((&weight.name, TensorView::new(Dtype::F32, weight.shape.clone(), &weight.bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn equal_seeds_give_equal_weights() {
        let bytes = weights(42).unwrap();
        assert_eq!(bytes, weights(42).unwrap());
        assert_ne!(bytes, weights(43).unwrap());
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 4 + 16 * LAYERS + 2);
        for (name, shape) in [
            ("embeddings.position_embeddings", vec![1, 65, 64]),
            ("embeddings.patch_embeddings.projection.weight", vec![64, 3, 8, 8]),
            ("encoder.layer.1.attention.output.dense.weight", vec![64, 64]),
            ("encoder.layer.0.intermediate.dense.weight", vec![256, 64]),
            ("encoder.layer.1.output.dense.weight", vec![64, 256]),
            ("layernorm.bias", vec![64]),
        ] {
            assert_eq!(tensors.tensor(name).unwrap().shape(), shape, "{name}");
        }
    }
}
