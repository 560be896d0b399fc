//! Layers of a pre-norm vision transformer, for inference.
//!
//! burn's modules are not used: its attention module never selects a backend's fused kernels, and its norms compute in
//! the format of the weights. Norms here compute in f32 for every weight format.

use burn::tensor::DType;
use burn::tensor::Int;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::TensorPrimitive;
use burn::tensor::activation;
use burn::tensor::backend::Backend;
use burn::tensor::module::linear;

use crate::model::attention::{Attention, AttentionPositions, attend_first};
use crate::model::config::Activation;

/// Linear layer, `x · weight + bias`.
#[derive(Debug)]
pub(super) struct Linear<B: Backend> {
    /// `[in, out]`.
    weight: Tensor<B, 2>,
    /// `[out]`.
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Linear<B> {
    /// Creates a layer from a weight in torch's layout, `[out, in]`; the device stores `[in, out]`.
    pub(super) fn new(
        values: &[f32],
        bias: Option<Vec<f32>>,
        input: usize,
        out: usize,
        target: (&B::Device, DType),
    ) -> Self {
        Self::from_columns(transpose(values, out, input), bias, input, out, target)
    }

    /// Creates a layer from a weight that is stored `[in, out]`, as that of GPT-2.
    pub(super) fn from_columns(
        values: Vec<f32>,
        bias: Option<Vec<f32>>,
        input: usize,
        out: usize,
        target: (&B::Device, DType),
    ) -> Self {
        let weight = Tensor::from_data(TensorData::new(values, [input, out]), target);
        let bias = bias.map(|bias| Tensor::from_data(TensorData::new(bias, [out]), target));
        Self { weight, bias }
    }

    /// Maps `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(input, self.weight.clone(), self.bias.clone())
    }
}

/// Transposes `[rows, columns]` to `[columns, rows]` in tiles that fit into the cache.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for column in column_tile..(column_tile + TILE).min(columns) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

/// Layer normalisation over the last dimension, computed in f32.
#[derive(Debug)]
pub(super) struct Norm<B: Backend> {
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
    /// `true` on a CPU: a token's mean is subtracted before burn normalises it. burn's backend for CPUs computes the variance as the
    /// mean square less the squared mean, which cancels where the values of a token are nearly equal.
    centred: bool,
}

impl<B: Backend> Norm<B> {
    pub(super) fn new(gamma: Vec<f32>, beta: Vec<f32>, epsilon: f64, device: &B::Device) -> Self {
        let vector = |values: Vec<f32>| {
            let length = values.len();
            Tensor::from_data(TensorData::new(values, [length]), (device, DType::F32))
        };
        Self { gamma: vector(gamma), beta: vector(beta), epsilon, centred: B::name(device).contains("flex") }
    }

    /// Normalises `[…, width]`; the output has the format of the input.
    pub(super) fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let format = input.dtype();
        cast_to(self.forward_f32(input), format)
    }

    /// Normalises `[…, width]`; the output is f32.
    pub(super) fn forward_f32<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let mut input = cast_to(input, DType::F32);
        if self.centred {
            input = input.clone() - input.mean_dim(D - 1);
        }
        let normed = B::layer_norm(
            input.into_primitive().tensor(),
            self.gamma.clone().into_primitive().tensor(),
            Some(self.beta.clone().into_primitive().tensor()),
            self.epsilon,
        );
        Tensor::from_primitive(TensorPrimitive::Float(normed))
    }
}

/// Casts a tensor to `format`; returns it unchanged if it has this format.
pub(super) fn cast_to<B: Backend, const D: usize>(tensor: Tensor<B, D>, format: DType) -> Tensor<B, D> {
    if tensor.dtype() == format { tensor } else { tensor.cast(format) }
}

/// MLP of a transformer block.
#[derive(Debug)]
pub(super) enum Mlp<B: Backend> {
    Plain {
        inner: Linear<B>,
        activation: Activation,
        outer: Linear<B>,
    },
    /// `inner` computes gate and up projections together, `[rows, 2 · width]`.
    Gated {
        inner: Linear<B>,
        width: usize,
        activation: Activation,
        outer: Linear<B>,
    },
}

impl<B: Backend> Mlp<B> {
    /// Maps `[rows, hidden]` to `[rows, hidden]`.
    pub(super) fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Plain { inner, activation, outer } => outer.forward(activate(*activation, inner.forward(input))),
            Self::Gated { inner, width, activation, outer } => {
                let both = inner.forward(input);
                let format = both.dtype();
                let half = |index: usize| cast_to(both.clone().narrow(1, index * *width, *width), DType::F32);
                outer.forward(cast_to(activate_f32(*activation, half(0)) * half(1), format))
            }
        }
    }
}

/// Applies an activation function to each value, in f32: in a narrower format every intermediate step would round.
pub(super) fn activate<B: Backend>(kind: Activation, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let format = x.dtype();
    cast_to(activate_f32(kind, cast_to(x, DType::F32)), format)
}

/// Applies an activation function to values in f32.
fn activate_f32<B: Backend>(kind: Activation, x: Tensor<B, 2>) -> Tensor<B, 2> {
    match kind {
        Activation::Gelu => activation::gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::Relu => activation::relu(x),
        Activation::QuickGelu => activation::sigmoid(x.clone() * 1.702) * x,
        Activation::Silu => activation::silu(x),
    }
}

/// Transformer block: attention and MLP, each with a norm before it and a residual connection around it.
#[derive(Debug)]
pub(super) struct Block<B: Backend> {
    pub(super) attention_norm: Norm<B>,
    /// Projection to query, key and value in one product, `[hidden, 3 · hidden]`.
    pub(super) query_key_value: Linear<B>,
    pub(super) attention_output: Linear<B>,
    /// `LayerScale` after attention, `[1, hidden]`.
    pub(super) attention_scale: Option<Tensor<B, 2>>,
    pub(super) mlp_norm: Norm<B>,
    pub(super) mlp: Mlp<B>,
    /// `LayerScale` after the MLP, `[1, hidden]`.
    pub(super) mlp_scale: Option<Tensor<B, 2>>,
    pub(super) heads: usize,
    /// Positions that attention itself takes into account.
    pub(super) positions: AttentionPositions<B>,
}

impl<B: Backend> Block<B> {
    /// Maps `[rows · tokens, hidden]` to the same shape; tokens attend to the tokens of their own row.
    pub(super) fn forward(&self, input: Tensor<B, 2>, rows: usize, attention: Attention) -> Tensor<B, 2> {
        self.forward_with(input, rows, attention, &self.positions)
    }

    /// As [`Self::forward`], with other positions, or a mask as their bias.
    pub(super) fn forward_with(
        &self,
        input: Tensor<B, 2>,
        rows: usize,
        attention: Attention,
        positions: &AttentionPositions<B>,
    ) -> Tensor<B, 2> {
        let query_key_value = self.query_key_value.forward(self.attention_norm.forward(input.clone()));
        self.finish(input, attention.forward(&query_key_value, rows, self.heads, positions))
    }

    /// As [`Self::forward`], for the first token of each row alone: maps `[rows · tokens, hidden]` to `[rows, hidden]`.
    pub(super) fn forward_first(&self, input: Tensor<B, 2>, rows: usize) -> Tensor<B, 2> {
        let [all, hidden] = input.dims();
        let query_key_value = self.query_key_value.forward(self.attention_norm.forward(input.clone()));
        let first = input.reshape([rows, all / rows, hidden]).narrow(1, 0, 1).reshape([rows, hidden]);
        self.finish(first, attend_first(&query_key_value, rows, self.heads, &self.positions))
    }

    /// Applies the layers after attention to the input of the block and the output of attention.
    fn finish(&self, input: Tensor<B, 2>, attended: Tensor<B, 2>) -> Tensor<B, 2> {
        let attended = self.attention_output.forward(attended);
        let input = input + apply_scale(attended, self.attention_scale.as_ref());
        let mlp = self.mlp.forward(self.mlp_norm.forward(input.clone()));
        input + apply_scale(mlp, self.mlp_scale.as_ref())
    }
}

fn apply_scale<B: Backend>(values: Tensor<B, 2>, scale: Option<&Tensor<B, 2>>) -> Tensor<B, 2> {
    match scale {
        Some(scale) => values * scale.clone(),
        None => values,
    }
}

/// Patch embedding: a convolution whose stride equals its kernel, computed as one matrix product.
#[derive(Debug)]
pub(super) struct PatchEmbedding<B: Backend> {
    /// Projection of a patch in the memory order of the image: row, column, channel.
    projection: Linear<B>,
    /// Factor of each pixel value in `pixel · scale + shift`, `[1, 3 · patch²]`, f32.
    scale: Tensor<B, 2>,
    /// Summand of each pixel value, `[1, 3 · patch²]`, f32.
    shift: Tensor<B, 2>,
    patch: usize,
}

impl<B: Backend> PatchEmbedding<B> {
    /// Creates the embedding from the weight of the convolution, `[hidden, 3, patch, patch]`.
    ///
    /// `normalisation` is `(rescale, mean, std)`; a pixel becomes `(u8 · rescale − mean) / std`.
    pub(super) fn new(
        weight: &[f32],
        bias: Option<Vec<f32>>,
        patch: usize,
        normalisation: (f32, [f32; 3], [f32; 3]),
        target: (&B::Device, DType),
    ) -> Self {
        let area = patch * patch;
        let hidden = weight.len() / (3 * area);
        let mut reordered = Vec::with_capacity(weight.len());
        for kernel in weight.chunks_exact(3 * area) {
            reordered.extend((0..area).flat_map(|cell| (0..3).map(move |channel| kernel[channel * area + cell])));
        }
        let (rescale, mean, std) = normalisation;
        let tiled = |value: &dyn Fn(usize) -> f32| {
            let values: Vec<f32> = (0..3 * area).map(|index| value(index % 3)).collect();
            Tensor::from_data(TensorData::new(values, [1, 3 * area]), (target.0, DType::F32))
        };
        Self {
            projection: Linear::new(&reordered, bias, 3 * area, hidden, target),
            scale: tiled(&|channel| rescale / std[channel]),
            shift: tiled(&|channel| -mean[channel] / std[channel]),
            patch,
        }
    }

    /// Maps pixels, `[rows · side · side · 3]`, to tokens, `[rows, (side / patch)², hidden]`, in row-major order.
    ///
    /// Pixels beyond the last complete patch are ignored, as by the convolution.
    pub(super) fn forward(&self, pixels: Tensor<B, 1, Int>, rows: usize, side: usize, format: DType) -> Tensor<B, 3> {
        let (patch, grid, line) = (self.patch, side / self.patch, self.patch * 3);
        let pixels = if side.is_multiple_of(patch) {
            pixels
        } else {
            let image = pixels.reshape([rows, side, side * 3]);
            image.narrow(1, 0, grid * patch).narrow(2, 0, grid * line).reshape([rows * grid * patch * grid * line])
        };
        let pixels = pixels.reshape([rows, grid, patch, grid, line]);
        // Integers up to 255 are exact in every float format. The normalisation rounds, so it computes in f32.
        let patches = pixels.swap_dims(2, 3).reshape([rows * grid * grid, patch * line]).float();
        let patches = cast_to(patches, DType::F32) * self.scale.clone() + self.shift.clone();
        let tokens = self.projection.forward(cast_to(patches, format));
        let [_, hidden] = tokens.dims();
        tokens.reshape([rows, grid * grid, hidden])
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::flex::FlexDevice;

    use super::*;
    use crate::model::{Any, AnyDevice};

    #[test]
    fn norm_of_nearly_equal_values_does_not_cancel() {
        let device = AnyDevice::Flex(FlexDevice);
        let values: Vec<f32> = (0..8_u8).map(|step| 1000.0 + f32::from(step) / 64.0).collect();
        let norm = Norm::<Any>::new(vec![1.0; 8], vec![0.0; 8], 1e-6, &device);
        let input = Tensor::<Any, 2>::from_data(TensorData::new(values, [1, 8]), (&device, DType::F32));
        let found = norm.forward_f32(input).into_data().to_vec::<f32>().unwrap();
        let deviation = (5.25 / 64.0_f64.powi(2) + 1e-6).sqrt();
        for (step, found) in found.iter().enumerate() {
            let expected = (step as f64 - 3.5) / 64.0 / deviation;
            assert!((f64::from(*found) - expected).abs() < 1e-5, "value {step} is {found}, not {expected}");
        }
    }
}
