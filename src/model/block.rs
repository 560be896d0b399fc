//! The layers of a pre-norm vision transformer, for inference.
//!
//! Written here because burn's own attention module never takes the fused path of a backend, and its
//! norms compute in the backend's number format: here they are in f32 whatever the format of the matrix products.

use burn::tensor::DType;
use burn::tensor::Int;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::TensorPrimitive;
use burn::tensor::activation;
use burn::tensor::backend::Backend;
use burn::tensor::module::linear;

use crate::model::attention::Attention;
use crate::model::config::Activation;

/// `x · weight + bias`.
#[derive(Debug)]
pub(super) struct Linear<B: Backend> {
    /// `[in, out]`.
    weight: Tensor<B, 2>,
    /// `[out]`.
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Linear<B> {
    /// From values in torch's order, `[out, in]`; the device gets them as `[in, out]`.
    pub(super) fn new(
        values: &[f32],
        bias: Option<Vec<f32>>,
        input: usize,
        out: usize,
        place: (&B::Device, DType),
    ) -> Self {
        let transposed = transpose(values, out, input);
        let weight = Tensor::from_data(TensorData::new(transposed, [input, out]), place);
        let bias = bias.map(|bias| Tensor::from_data(TensorData::new(bias, [out]), place));
        Self { weight, bias }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(input, self.weight.clone(), self.bias.clone())
    }
}

/// `[rows, columns]` to `[columns, rows]`, in tiles that stay in cache.
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

/// Layer normalisation over the last dimension, in f32.
#[derive(Debug)]
pub(super) struct Norm<B: Backend> {
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
}

impl<B: Backend> Norm<B> {
    pub(super) fn new(gamma: Vec<f32>, beta: Vec<f32>, epsilon: f64, device: &B::Device) -> Self {
        let vector = |values: Vec<f32>| {
            let length = values.len();
            Tensor::from_data(TensorData::new(values, [length]), (device, DType::F32))
        };
        Self { gamma: vector(gamma), beta: vector(beta), epsilon }
    }

    /// `[…, width]` to the same, in the same format.
    pub(super) fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let format = input.dtype();
        in_format(self.forward_f32(input), format)
    }

    /// `[…, width]` to the same, in f32.
    pub(super) fn forward_f32<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        let normed = B::layer_norm(
            in_format(input, DType::F32).into_primitive().tensor(),
            self.gamma.clone().into_primitive().tensor(),
            Some(self.beta.clone().into_primitive().tensor()),
            self.epsilon,
        );
        Tensor::from_primitive(TensorPrimitive::Float(normed))
    }
}

/// Casts, or hands the tensor back untouched where it is in that format already.
pub(super) fn in_format<B: Backend, const D: usize>(tensor: Tensor<B, D>, format: DType) -> Tensor<B, D> {
    if tensor.dtype() == format { tensor } else { tensor.cast(format) }
}

/// The feed-forward part.
#[derive(Debug)]
pub(super) enum Mlp<B: Backend> {
    Plain {
        inner: Linear<B>,
        activation: Activation,
        outer: Linear<B>,
    },
    /// `inner` gives gate and up side by side, `width` each.
    SwiGlu {
        inner: Linear<B>,
        width: usize,
        outer: Linear<B>,
    },
}

impl<B: Backend> Mlp<B> {
    fn forward(&self, input: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Plain { inner, activation, outer } => outer.forward(activate(*activation, inner.forward(input))),
            Self::SwiGlu { inner, width, outer } => {
                let both = inner.forward(input);
                let gate = both.clone().narrow(1, 0, *width);
                let up = both.narrow(1, *width, *width);
                let format = gate.dtype();
                let gated = activation::silu(in_format(gate, DType::F32)) * in_format(up, DType::F32);
                outer.forward(in_format(gated, format))
            }
        }
    }
}

/// Applies the nonlinearity to each value, in f32: each of its steps would round once more otherwise.
pub(super) fn activate<B: Backend>(kind: Activation, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let format = x.dtype();
    let x = in_format(x, DType::F32);
    let x = match kind {
        Activation::Gelu => activation::gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::Relu => activation::relu(x),
        Activation::QuickGelu => activation::sigmoid(x.clone() * 1.702) * x,
    };
    in_format(x, format)
}

/// One block: attention and feed-forward, each after a norm and added to its input.
#[derive(Debug)]
pub(super) struct Block<B: Backend> {
    pub(super) attention_norm: Norm<B>,
    /// Query, key and value in one product: `[hidden, 3 · hidden]`.
    pub(super) query_key_value: Linear<B>,
    pub(super) attention_output: Linear<B>,
    /// `LayerScale` after attention, `[1, hidden]`.
    pub(super) attention_scale: Option<Tensor<B, 2>>,
    pub(super) mlp_norm: Norm<B>,
    pub(super) mlp: Mlp<B>,
    /// `LayerScale` after the feed-forward part, `[1, hidden]`.
    pub(super) mlp_scale: Option<Tensor<B, 2>>,
    pub(super) heads: usize,
}

impl<B: Backend> Block<B> {
    /// `[rows · tokens, hidden]` to the same; attention is among the tokens of one row.
    pub(super) fn forward(&self, input: Tensor<B, 2>, rows: usize, attention: Attention) -> Tensor<B, 2> {
        let all_three = self.query_key_value.forward(self.attention_norm.forward(input.clone()));
        let attended = self.attention_output.forward(attention.forward(&all_three, rows, self.heads));
        let input = input + scaled(attended, self.attention_scale.as_ref());
        let fed = self.mlp.forward(self.mlp_norm.forward(input.clone()));
        input + scaled(fed, self.mlp_scale.as_ref())
    }
}

fn scaled<B: Backend>(values: Tensor<B, 2>, scale: Option<&Tensor<B, 2>>) -> Tensor<B, 2> {
    match scale {
        Some(scale) => values * scale.clone(),
        None => values,
    }
}

/// Cuts images into patches and projects each: the convolution whose stride is its kernel, as one matrix product.
#[derive(Debug)]
pub(super) struct Patches<B: Backend> {
    /// Its input is a patch as it lies in the image: row, column, channel.
    projection: Linear<B>,
    /// `pixel · scale + shift`, `[1, 3 · patch²]`, f32.
    scale: Tensor<B, 2>,
    shift: Tensor<B, 2>,
    patch: usize,
}

impl<B: Backend> Patches<B> {
    /// From the convolution's weight `[hidden, 3, patch, patch]`; a pixel is `(u8 · rescale − mean) / std`.
    pub(super) fn new(
        weight: &[f32],
        bias: Vec<f32>,
        patch: usize,
        normalisation: (f32, [f32; 3], [f32; 3]),
        place: (&B::Device, DType),
    ) -> Self {
        let (hidden, area) = (bias.len(), patch * patch);
        let mut reordered = Vec::with_capacity(weight.len());
        for kernel in weight.chunks_exact(3 * area) {
            reordered.extend((0..area).flat_map(|cell| (0..3).map(move |channel| kernel[channel * area + cell])));
        }
        let (rescale, mean, std) = normalisation;
        let tiled = |value: &dyn Fn(usize) -> f32| {
            let values: Vec<f32> = (0..3 * area).map(|index| value(index % 3)).collect();
            Tensor::from_data(TensorData::new(values, [1, 3 * area]), (place.0, DType::F32))
        };
        Self {
            projection: Linear::new(&reordered, Some(bias), 3 * area, hidden, place),
            scale: tiled(&|channel| rescale / std[channel]),
            shift: tiled(&|channel| -mean[channel] / std[channel]),
            patch,
        }
    }

    /// Pixels `[rows · side · side · 3]` to `[rows, (side / patch)², hidden]`, patches row by row.
    pub(super) fn forward(&self, pixels: Tensor<B, 1, Int>, rows: usize, side: usize, format: DType) -> Tensor<B, 3> {
        let (patch, grid, line) = (self.patch, side / self.patch, self.patch * 3);
        let pixels = pixels.reshape([rows, grid, patch, grid, line]);
        // Values up to 255 are exact in every float format; the normalisation is not, so it happens in f32.
        let patches = pixels.swap_dims(2, 3).reshape([rows * grid * grid, patch * line]).float();
        let patches = in_format(patches, DType::F32) * self.scale.clone() + self.shift.clone();
        let tokens = self.projection.forward(in_format(patches, format));
        let [_, hidden] = tokens.dims();
        tokens.reshape([rows, grid * grid, hidden])
    }
}
