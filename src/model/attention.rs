//! Self-attention among the tokens of an image.

use burn::tensor::DType;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::activation;
use burn::tensor::backend::Backend;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;

use crate::model::block::cast_to;
use crate::model::error::ModelError;

/// Multiple to which queries are padded for fused kernels. `CubeK` requires a multiple of 16, the tile of its planes.
const QUERY_MULTIPLE: usize = 64;

/// Returns the tolerated difference between fused and plain attention over values in [-1, 1].
///
/// It allows a few roundings of the format; a kernel that reads wrong memory differs far more.
fn tolerance(format: DType) -> f32 {
    if format == DType::F32 { 1e-3 } else { 1.0 / 32.0 }
}

/// Positions of tokens that attention itself takes into account.
#[derive(Debug, Clone)]
pub(super) struct AttentionPositions<B: Backend> {
    /// Bias of the scores, `[1 or rows, 1 or heads, tokens, tokens]`.
    pub(super) bias: Option<Tensor<B, 4>>,
    /// Rotation of queries and keys.
    pub(super) rotation: Option<Rotation<B>>,
}

impl<B: Backend> AttentionPositions<B> {
    /// Returns no positions.
    pub(super) fn none() -> Self {
        Self { bias: None, rotation: None }
    }
}

/// Rotary positions: the two halves of each query and key are the parts of complex numbers, which are rotated.
#[derive(Debug, Clone)]
pub(super) struct Rotation<B: Backend> {
    /// Cosines, `[1, 1, tokens, width of a head]`, f32.
    pub(super) cosine: Tensor<B, 4>,
    /// Sines, as the cosines.
    pub(super) sine: Tensor<B, 4>,
}

impl<B: Backend> Rotation<B> {
    /// Rotates `[rows, heads, tokens, width]`.
    fn apply(&self, values: Tensor<B, 4>) -> Tensor<B, 4> {
        let format = values.dtype();
        let values = cast_to(values, DType::F32);
        let half = values.dims()[3] / 2;
        let turned = vec![-values.clone().narrow(3, half, half), values.clone().narrow(3, 0, half)];
        cast_to(values * self.cosine.clone() + Tensor::cat(turned, 3) * self.sine.clone(), format)
    }
}

/// Implementation of attention, `softmax(query · keyᵀ / √width) · value` for each head (Vaswani et al. 2017).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// burn's attention operation on strided tensors; its softmax has the format of the inputs.
    Plain,
    /// burn's attention operation on contiguous tensors with padded queries, as fused kernels require. Tuning chooses one of
    /// `CubeK`'s fused kernels, or burn's own products.
    ///
    /// `CubeK` refuses bf16. Tuning then keeps burn's products, whose softmax is in bf16.
    Tuned,
    /// Two matrix products with the scores in memory; the softmax is in f32.
    Products,
    /// The direct path for CPUs, which runs whole blocks; its attention has a few rows of scores in memory.
    Direct,
}

impl Attention {
    /// Returns the name for logs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tuned => "tuned",
            Self::Products => "products",
            Self::Direct => "direct",
        }
    }

    /// Runs burn's operation on one batch and chooses it if it agrees with [`Attention::Products`]. The run also tunes
    /// its kernels.
    ///
    /// `shape` is `[images, heads, tokens, width of a head]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn choose_by_trial<B: Backend>(
        shape: [usize; 4],
        format: DType,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let [query, key, value] = trial_input::<B>(shape, format, device);
        let fused = Self::Tuned.attend(query.clone(), key.clone(), value.clone());
        let difference = max_difference(fused, Self::Products.attend(query, key, value))?;
        // False for NaN.
        Ok(if difference <= tolerance(format) { Self::Tuned } else { Self::Products })
    }

    /// Maps concatenated query, key and value, `[rows · tokens, 3 · hidden]`, to `[rows · tokens, hidden]`.
    ///
    /// A bias is added to scores in memory, so it implies [`Attention::Products`].
    pub(super) fn forward<B: Backend>(
        self,
        query_key_value: &Tensor<B, 2>,
        rows: usize,
        heads: usize,
        positions: &AttentionPositions<B>,
    ) -> Tensor<B, 2> {
        let [all, three] = query_key_value.dims();
        let [query, key, value] = split_heads(query_key_value, rows, heads, positions);
        let attended = match &positions.bias {
            Some(bias) => attend_with_bias(query, key, value, Some(bias)),
            None => self.attend(query, key, value),
        };
        attended.swap_dims(1, 2).reshape([all, three / 3])
    }

    /// Computes attention; inputs and output are `[rows, heads, tokens, width]`.
    fn attend<B: Backend>(self, query: Tensor<B, 4>, key: Tensor<B, 4>, value: Tensor<B, 4>) -> Tensor<B, 4> {
        let [rows, heads, tokens, width] = query.dims();
        let format = query.dtype();
        // The default scale is 1 / √width.
        let operation = |query, key, value| attention(query, key, value, None, None, AttentionModuleOptions::default());
        match self {
            Self::Plain => operation(query, key, value),
            Self::Tuned => {
                // No view has the intermediate shape, so the reshape copies to contiguous memory.
                let to_contiguous = |tensor: Tensor<B, 4>| {
                    tensor.reshape([rows * heads, tokens, width]).reshape([rows, heads, tokens, width])
                };
                let missing = tokens.next_multiple_of(QUERY_MULTIPLE) - tokens;
                let query = if missing == 0 {
                    to_contiguous(query)
                } else {
                    let padding = Tensor::zeros([rows, heads, missing, width], (&query.device(), format));
                    Tensor::cat(vec![query, padding], 2)
                };
                operation(query, to_contiguous(key), to_contiguous(value)).narrow(2, 0, tokens)
            }
            // Blocks of the direct path never come here.
            Self::Products | Self::Direct => attend_with_bias(query, key, value, None),
        }
    }
}

/// As [`Attention::forward`], for the first token of each row alone: maps to `[rows, hidden]`. Fused kernels would pad its
/// query to many.
pub(super) fn attend_first<B: Backend>(
    query_key_value: &Tensor<B, 2>,
    rows: usize,
    heads: usize,
    positions: &AttentionPositions<B>,
) -> Tensor<B, 2> {
    let [_, three] = query_key_value.dims();
    let [query, key, value] = split_heads(query_key_value, rows, heads, positions);
    let bias = positions.bias.as_ref().map(|bias| bias.clone().narrow(2, 0, 1));
    attend_with_bias(query.narrow(2, 0, 1), key, value, bias.as_ref()).swap_dims(1, 2).reshape([rows, three / 3])
}

/// Splits `[rows · tokens, 3 · hidden]` into query, key and value, `[rows, heads, tokens, width]`, and rotates query and key.
fn split_heads<B: Backend>(
    query_key_value: &Tensor<B, 2>,
    rows: usize,
    heads: usize,
    positions: &AttentionPositions<B>,
) -> [Tensor<B, 4>; 3] {
    let [all, three] = query_key_value.dims();
    let (tokens, hidden) = (all / rows, three / 3);
    let split = |index: usize| {
        let values = query_key_value.clone().narrow(1, index * hidden, hidden);
        values.reshape([rows, tokens, heads, hidden / heads]).swap_dims(1, 2)
    };
    let rotate = |values: Tensor<B, 4>| match &positions.rotation {
        Some(rotation) => rotation.apply(values),
        None => values,
    };
    [rotate(split(0)), rotate(split(1)), split(2)]
}

/// Computes attention with its scores in memory and their softmax in f32; `bias` is added to the scaled scores.
pub(super) fn attend_with_bias<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    bias: Option<&Tensor<B, 4>>,
) -> Tensor<B, 4> {
    let (width, format) = (query.dims()[3], query.dtype());
    let scores = cast_to(query.matmul(key.transpose()), DType::F32) / (width as f64).sqrt();
    let scores = match bias {
        Some(bias) => scores + cast_to(bias.clone(), DType::F32),
        None => scores,
    };
    cast_to(activation::softmax(scores, 3), format).matmul(value)
}

/// Returns random query, key and value in which each token attends mostly to itself, so that a misplaced value shows.
fn trial_input<B: Backend>(shape: [usize; 4], format: DType, device: &B::Device) -> [Tensor<B, 4>; 3] {
    let [images, heads, tokens, width] = shape;
    let noise = |seed: u32| {
        let mixed = |at: usize| (at as u32 ^ seed).wrapping_mul(0x9E37_79B1).rotate_left(15).wrapping_mul(0x85EB_CA77);
        let values = (0..images * heads * tokens * width).map(|at| f64::from(mixed(at)) / f64::from(1u32 << 31) - 1.0);
        let values: Vec<f32> = values.map(|value| value as f32).collect();
        // Strides as after a projection: the heads of a token are adjacent.
        let data = TensorData::new(values, [images, tokens, heads, width]);
        Tensor::<B, 4>::from_data(data, (device, format)).swap_dims(1, 2)
    };
    let (key, value) = (noise(1), noise(2));
    // The score of a token with itself is about 10.
    [key.clone() * (30.0 / (width as f64).sqrt()), key, value]
}

/// Returns the largest absolute difference, NaN if any value is NaN.
fn max_difference<B: Backend>(one: Tensor<B, 4>, other: Tensor<B, 4>) -> Result<f32, ModelError> {
    let largest = (cast_to(one, DType::F32) - cast_to(other, DType::F32)).abs().max();
    let failed = |reason: String| ModelError::Device { reason };
    let data = largest.try_into_data().map_err(|cause| failed(cause.to_string()))?;
    let found = data.into_vec::<f32>().map_err(|cause| failed(format!("{cause:?}")))?;
    Ok(found.first().copied().unwrap_or(f32::NAN))
}

#[cfg(test)]
mod tests {
    use burn::backend::flex::FlexDevice;

    use super::*;
    use crate::model::{Any, AnyDevice};

    #[test]
    fn implementations_agree_for_any_token_count() {
        let device = AnyDevice::Flex(FlexDevice);
        for (tokens, heads, width) in [(1, 1, 4), (5, 3, 8), (64, 2, 16), (197, 2, 12)] {
            let three = 3 * heads * width;
            let values: Vec<f32> = (0..2 * tokens * three).map(|at| (at as f32 * 0.37).sin()).collect();
            let input = Tensor::<Any, 2>::from_data(TensorData::new(values, [2 * tokens, three]), &device);
            let output = |way: Attention| {
                way.forward(&input, 2, heads, &AttentionPositions::none()).into_data().into_vec::<f32>().unwrap()
            };
            let plain = output(Attention::Plain);
            for way in [Attention::Tuned, Attention::Products] {
                let other = output(way);
                let largest = plain.iter().zip(&other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
                assert!(plain.len() == other.len() && largest < 1e-5, "{way:?}, {tokens} tokens: {largest}");
            }
        }
    }

    #[test]
    fn trial_detects_wrong_kernels() {
        let device = AnyDevice::Flex(FlexDevice);
        for shape in [[3, 2, 17, 16], [2, 3, 197, 64]] {
            for format in [DType::F32, DType::BF16] {
                let way = Attention::choose_by_trial::<Any>(shape, format, &device).unwrap();
                assert_eq!(way, Attention::Tuned, "{format:?}");
                let [query, key, value] = trial_input::<Any>(shape, format, &device);
                let right = Attention::Products.attend(query.clone(), key.clone(), value.clone());
                // Two faulty kernels: one ignores strides, one omits the last token.
                let packed = |part: Tensor<Any, 4>| part.swap_dims(1, 2).reshape(shape);
                let wrong =
                    Attention::Products.attend(packed(query.clone()), packed(key.clone()), packed(value.clone()));
                let last = shape[2] - 1;
                let short = |part: Tensor<Any, 4>| part.narrow(2, 0, last);
                let forgets = Attention::Products.attend(query, short(key), short(value));
                for other in [wrong, forgets] {
                    let found = max_difference(other, right.clone()).unwrap();
                    assert!(found > 10.0 * tolerance(format), "{format:?}: {found}");
                }
            }
        }
    }
}
