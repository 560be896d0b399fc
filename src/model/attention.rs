//! Attention among the tokens of an image.

use burn::tensor::DType;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::activation;
use burn::tensor::backend::Backend;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;

use crate::model::block::in_format;
use crate::model::error::ModelError;

/// Queries that a fused kernel takes at once: `CubeK` refuses other numbers than multiples of its planes' 16.
const QUERIES: usize = 64;

/// Largest difference between fused and plain attention over values in [-1, 1]: some roundings of the format, and far
/// less than what a kernel that reads the wrong place gives.
fn tolerance(format: DType) -> f32 {
    if format == DType::F32 { 1e-3 } else { 1.0 / 32.0 }
}

/// How attention is computed: softmax(query · keyᵀ / √width) · value for each head. The softmax is in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// By burn's operation for the backend, on the tensors as they lie.
    Plain,
    /// By that operation too, over tensors that fused kernels take: without gaps, and with queries padded.
    Fused,
    /// As two products, with the scores in memory.
    Products,
}

impl Attention {
    /// Its name, for logs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fused => "fused",
            Self::Products => "products",
        }
    }

    /// What a device is to use: fused kernels where they agree with the products, which a trial of one batch finds out. It tunes
    /// them too. `shape`: images, heads, tokens and width of a head.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn by_trial<B: Backend>(
        shape: [usize; 4],
        format: DType,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let [query, key, value] = trial_input::<B>(shape, format, device);
        let fused = Self::Fused.heads(query.clone(), key.clone(), value.clone());
        let found = difference(fused, Self::Products.heads(query, key, value))?;
        // Not a number is no agreement.
        Ok(if found <= tolerance(format) { Self::Fused } else { Self::Products })
    }

    /// `[rows · tokens, 3 · hidden]`, query, key and value side by side, to `[rows · tokens, hidden]`.
    pub(super) fn forward<B: Backend>(self, all_three: &Tensor<B, 2>, rows: usize, heads: usize) -> Tensor<B, 2> {
        let [all, three] = all_three.dims();
        let (tokens, hidden) = (all / rows, three / 3);
        let part = |index: usize| {
            let values = all_three.clone().narrow(1, index * hidden, hidden);
            values.reshape([rows, tokens, heads, hidden / heads]).swap_dims(1, 2)
        };
        self.heads(part(0), part(1), part(2)).swap_dims(1, 2).reshape([all, hidden])
    }

    /// All of them `[rows, heads, tokens, width]`.
    fn heads<B: Backend>(self, query: Tensor<B, 4>, key: Tensor<B, 4>, value: Tensor<B, 4>) -> Tensor<B, 4> {
        let [rows, heads, tokens, width] = query.dims();
        let format = query.dtype();
        // Its scale defaults to 1 / √width.
        let operation = |query, key, value| attention(query, key, value, None, None, AttentionModuleOptions::default());
        match self {
            Self::Plain => operation(query, key, value),
            Self::Fused => {
                // A shape that no view has makes a copy.
                let packed = |part: Tensor<B, 4>| {
                    part.reshape([rows * heads, tokens, width]).reshape([rows, heads, tokens, width])
                };
                let missing = tokens.next_multiple_of(QUERIES) - tokens;
                let query = if missing == 0 {
                    packed(query)
                } else {
                    let nothing = Tensor::zeros([rows, heads, missing, width], (&query.device(), format));
                    Tensor::cat(vec![query, nothing], 2)
                };
                operation(query, packed(key), packed(value)).narrow(2, 0, tokens)
            }
            Self::Products => {
                let scores = in_format(query.matmul(key.transpose()), DType::F32) / (width as f64).sqrt();
                in_format(activation::softmax(scores, 3), format).matmul(value)
            }
        }
    }
}

/// Noise for which every token attends to itself above all, so that a value from any other place shows.
fn trial_input<B: Backend>(shape: [usize; 4], format: DType, device: &B::Device) -> [Tensor<B, 4>; 3] {
    let [images, heads, tokens, width] = shape;
    let noise = |seed: u32| {
        let mixed = |at: usize| (at as u32 ^ seed).wrapping_mul(0x9E37_79B1).rotate_left(15).wrapping_mul(0x85EB_CA77);
        let values = (0..images * heads * tokens * width).map(|at| f64::from(mixed(at)) / f64::from(1u32 << 31) - 1.0);
        let values: Vec<f32> = values.map(|value| value as f32).collect();
        // As they come from a projection: heads side by side in a token.
        let data = TensorData::new(values, [images, tokens, heads, width]);
        Tensor::<B, 4>::from_data(data, (device, format)).swap_dims(1, 2)
    };
    let (key, value) = (noise(1), noise(2));
    // The score of a token with itself is then about 10.
    [key.clone() * (30.0 / (width as f64).sqrt()), key, value]
}

fn difference<B: Backend>(one: Tensor<B, 4>, other: Tensor<B, 4>) -> Result<f32, ModelError> {
    let largest = (in_format(one, DType::F32) - in_format(other, DType::F32)).abs().max();
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
    fn all_ways_agree_whatever_the_number_of_tokens() {
        let device = AnyDevice::Flex(FlexDevice);
        for (tokens, heads, width) in [(1, 1, 4), (5, 3, 8), (64, 2, 16), (197, 2, 12)] {
            let three = 3 * heads * width;
            let values: Vec<f32> = (0..2 * tokens * three).map(|at| (at as f32 * 0.37).sin()).collect();
            let input = Tensor::<Any, 2>::from_data(TensorData::new(values, [2 * tokens, three]), &device);
            let found = |way: Attention| way.forward(&input, 2, heads).into_data().into_vec::<f32>().unwrap();
            let plain = found(Attention::Plain);
            for way in [Attention::Fused, Attention::Products] {
                let other = found(way);
                let largest = plain.iter().zip(&other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
                assert!(plain.len() == other.len() && largest < 1e-5, "{way:?}, {tokens} tokens: {largest}");
            }
        }
    }

    #[test]
    fn the_trial_takes_fused_kernels_that_agree_and_shows_those_that_do_not() {
        let device = AnyDevice::Flex(FlexDevice);
        for shape in [[3, 2, 17, 16], [2, 3, 197, 64]] {
            for format in [DType::F32, DType::BF16] {
                let way = Attention::by_trial::<Any>(shape, format, &device).unwrap();
                assert_eq!(way, Attention::Fused, "{format:?}");
                let [query, key, value] = trial_input::<Any>(shape, format, &device);
                let right = Attention::Products.heads(query.clone(), key.clone(), value.clone());
                // What a kernel does that takes the tensors to lie without gaps, and one that forgets the last token.
                let packed = |part: Tensor<Any, 4>| part.swap_dims(1, 2).reshape(shape);
                let wrong =
                    Attention::Products.heads(packed(query.clone()), packed(key.clone()), packed(value.clone()));
                let last = shape[2] - 1;
                let short = |part: Tensor<Any, 4>| part.narrow(2, 0, last);
                let forgets = Attention::Products.heads(query, short(key), short(value));
                for other in [wrong, forgets] {
                    let found = difference(other, right.clone()).unwrap();
                    assert!(found > 10.0 * tolerance(format), "{format:?}: {found}");
                }
            }
        }
    }
}
