//! The head on the device, cut into tiles of classes.
//!
//! One tile is a `[classes of the tile, dim]` matrix. Every temporary of a product or an update is then one tile
//! large, never the whole head (284 MB at 768 × 92,366 in f32), and on the CPU such temporaries are small
//! enough for the allocator to reuse their pages. Logits are `features · weightᵀ + bias`, in f32 whatever
//! the type of the product.

use std::ops::Range;

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::PredictError;

/// How far the work on the device is cut into blocks. Results do not depend on it beyond rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Rows (samples) a block of logits covers. Default: 128.
    pub rows: usize,
    /// Classes a tile of the head covers. Default: 8,192, 25 MB in f32 at 768 values a class.
    pub classes: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { rows: 128, classes: 8192 }
    }
}

impl Blocks {
    /// Refuses a block length of zero.
    ///
    /// # Errors
    /// [`PredictError::Zero`].
    pub fn check(self) -> Result<(), PredictError> {
        if self.rows == 0 {
            return Err(PredictError::Zero { what: "blocks.rows" });
        }
        if self.classes == 0 {
            return Err(PredictError::Zero { what: "blocks.classes" });
        }
        Ok(())
    }
}

/// The type in which the products of matrices are computed; everything else is f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// 32-bit products: the reference, and the only sensible choice on a CPU.
    #[default]
    F32,
    /// bfloat16 inputs of the products, for tensor cores. Logits are cast to f32 before softmax and loss.
    Bf16,
}

impl Compute {
    /// The element type of a product's inputs.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// `0..total` in steps of `block`; the last range may be shorter. `block` must not be zero.
pub(crate) fn spans(total: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..total).step_by(block).map(move |start| start..(start + block).min(total))
}

/// Uploads a row-major `[rows, columns]` matrix as f32, whatever the backend's default float is.
pub(crate) fn upload<B: Backend>(values: &[f32], rows: usize, columns: usize, device: &B::Device) -> Tensor<B, 2> {
    let data = TensorData::new(values.to_vec(), [rows, columns]);
    Tensor::from_data(data, (device, DType::F32))
}

/// The bias of a class that pads a tile: none is ever predicted. Far from −∞, so that no sum or product of it is.
pub(crate) const NEVER: f32 = -1e30;

/// Classes that a tile is padded to a multiple of, where that is no more than a whole tile: what tensor cores like.
const PADDING: usize = 64;

/// Classes of a tile with its padding.
pub(crate) fn padded(classes: usize, tile: usize) -> usize {
    classes.next_multiple_of(PADDING).min(tile)
}

/// Uploads a head's matrix tile by tile, the last one padded with zeros.
pub(crate) fn upload_tiles<B: Backend>(
    values: &[f32],
    columns: usize,
    tile: usize,
    device: &B::Device,
) -> Vec<Tensor<B, 2>> {
    let of_tile = |part: &[f32]| {
        let classes = padded(part.len() / columns, tile);
        upload_padded(part, classes, columns, 0.0, device)
    };
    values.chunks(tile * columns).map(of_tile).collect()
}

/// Uploads a bias, one `[1, classes of the tile]` row a tile, the last one padded.
pub(crate) fn upload_rows<B: Backend>(values: &[f32], tile: usize, pad: f32, device: &B::Device) -> Vec<Tensor<B, 2>> {
    values.chunks(tile).map(|part| upload_padded(part, 1, padded(part.len(), tile), pad, device)).collect()
}

fn upload_padded<B: Backend>(
    values: &[f32],
    rows: usize,
    columns: usize,
    pad: f32,
    device: &B::Device,
) -> Tensor<B, 2> {
    let mut all = Vec::with_capacity(rows * columns);
    all.extend_from_slice(values);
    all.resize(rows * columns, pad);
    Tensor::from_data(TensorData::new(all, [rows, columns]), (device, DType::F32))
}

/// Reads an f32 tensor back to the host, row-major.
pub(crate) fn download<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>, PredictError> {
    let data = tensor.try_into_data().map_err(|error| PredictError::Device(error.to_string()))?;
    data.into_vec::<f32>().map_err(|error| PredictError::Device(format!("{error:?}")))
}

/// `[rows, dim]` features and one tile of the head to `[rows, classes of the tile]` logits in f32.
///
/// Features and weight are in the type of the product; the bias is f32.
pub(crate) fn tile_logits<B: Backend>(
    features: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    bias: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    let product = features.clone().matmul(weight.clone().transpose());
    as_type(product, DType::F32) + bias.clone()
}

/// Casts, or hands the tensor back untouched where it has the type already.
pub(crate) fn as_type<B: Backend>(tensor: Tensor<B, 2>, dtype: DType) -> Tensor<B, 2> {
    if tensor.dtype() == dtype { tensor } else { tensor.cast(dtype) }
}

/// `[rows, classes]` logits to `(softmax [rows, classes], log Σ exp [rows, 1])`.
///
/// The softmax is one fused pass on the CPU, so the logarithm is taken from its largest entry:
/// `log Σ exp(x) = max x − log max softmax(x)`, where that entry is at least 1 / classes and cannot underflow.
pub(crate) fn softmax_and_lse<B: Backend>(logits: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let largest = logits.clone().max_dim(1);
    let probabilities = softmax(logits, 1);
    let lse = largest - probabilities.clone().max_dim(1).log();
    (probabilities, lse)
}
