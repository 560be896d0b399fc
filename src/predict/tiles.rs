//! Device representation of a head: tiles of classes.
//!
//! A tile is a `[tile classes, dim]` matrix. Temporaries of products and updates have the size of one tile instead of
//! the whole head (284 MB at 768 × 92,366 in f32). On the CPU they are small enough for the allocator to reuse their
//! pages. Logits are `features · weightᵀ + bias`, in f32 for every format of the product.

use std::ops::Range;

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use half::bf16;

use super::PredictError;

/// Tile sizes of the work on a device. Results depend on them only by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Rows (samples) of a tile of logits. Default: 128.
    pub rows: usize,
    /// Classes of a tile of the head. Default: 8,192, which is 25 MB in f32 at 768 values a class.
    pub classes: usize,
}

impl Default for Tiling {
    fn default() -> Self {
        Self { rows: 128, classes: 8192 }
    }
}

impl Tiling {
    /// Rejects a tile size of zero.
    ///
    /// # Errors
    /// [`PredictError::Zero`].
    pub fn check(self) -> Result<(), PredictError> {
        if self.rows == 0 {
            return Err(PredictError::Zero { what: "tiling.rows" });
        }
        if self.classes == 0 {
            return Err(PredictError::Zero { what: "tiling.classes" });
        }
        Ok(())
    }
}

/// Number format of matrix products; everything else computes in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// f32: the reference, and the faster format on a CPU.
    #[default]
    F32,
    /// bf16 inputs, for tensor cores. Logits are cast to f32 before softmax and loss.
    Bf16,
}

impl Compute {
    /// Returns the element type of a product's inputs.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Splits `0..total` into ranges of `size`; the last one may be shorter.
///
/// # Panics
/// When `size` is zero.
pub(crate) fn tile_ranges(total: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..total).step_by(size).map(move |start| start..(start + size).min(total))
}

/// Uploads a row-major `[rows, columns]` matrix as f32, independent of the backend's default float type.
pub(crate) fn upload<B: Backend>(values: &[f32], rows: usize, columns: usize, device: &B::Device) -> Tensor<B, 2> {
    let data = TensorData::new(values.to_vec(), [rows, columns]);
    Tensor::from_data(data, (device, DType::F32))
}

/// Bias of a padding class, so low that the class is never predicted. Finite, so that sums and products stay finite.
pub(crate) const PADDING_BIAS: f32 = -1e30;

/// Multiple to which the classes of the last tile are padded, for tensor cores.
const PADDING: usize = 64;

/// Returns the number of classes of a tile with padding; at most a full tile.
pub(crate) fn padded_classes(classes: usize, tile: usize) -> usize {
    classes.next_multiple_of(PADDING).min(tile)
}

/// Uploads a weight matrix as tiles, `[tile classes, columns]` each; the last one is padded with zeros.
pub(crate) fn upload_tiles<B: Backend>(
    values: &[f32],
    columns: usize,
    tile: usize,
    device: &B::Device,
) -> Vec<Tensor<B, 2>> {
    let upload_tile = |values: &[f32]| {
        let classes = padded_classes(values.len() / columns, tile);
        upload_padded(values, classes, columns, 0.0, device)
    };
    values.chunks(tile * columns).map(upload_tile).collect()
}

/// Uploads a bias as tiles, `[1, tile classes]` each; the last one is padded with `pad`.
pub(crate) fn upload_rows<B: Backend>(values: &[f32], tile: usize, pad: f32, device: &B::Device) -> Vec<Tensor<B, 2>> {
    values
        .chunks(tile)
        .map(|values| upload_padded(values, 1, padded_classes(values.len(), tile), pad, device))
        .collect()
}

/// Uploads values, extended with `pad`, as a `[rows, columns]` matrix.
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

/// Uploads the classes of a weight matrix in bf16 as a tile, `[rows, columns]`, padded with zeros.
pub(crate) fn upload_bf16<B: Backend>(
    mut values: Vec<bf16>,
    rows: usize,
    columns: usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    values.resize(rows * columns, bf16::ZERO);
    Tensor::from_data(TensorData::new(values, [rows, columns]), (device, DType::BF16))
}

/// Downloads an f32 tensor to the host, row-major.
pub(crate) fn download<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>, PredictError> {
    let data = tensor.try_into_data().map_err(|error| PredictError::Device(error.to_string()))?;
    data.into_vec::<f32>().map_err(|error| PredictError::Device(format!("{error:?}")))
}

/// Maps features, `[rows, dim]`, and one tile of the head to f32 logits, `[rows, tile classes]`.
///
/// Features and weight have the format of the product; the bias is f32.
pub(crate) fn tile_logits<B: Backend>(
    features: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    bias: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    let product = features.clone().matmul(weight.clone().transpose());
    cast_to(product, DType::F32) + bias.clone()
}

/// Casts a tensor; returns it unchanged if it has this type.
pub(crate) fn cast_to<B: Backend>(tensor: Tensor<B, 2>, dtype: DType) -> Tensor<B, 2> {
    if tensor.dtype() == dtype { tensor } else { tensor.cast(dtype) }
}

/// Maps logits, `[rows, classes]`, to `(softmax, log Σ exp)` of shapes `[rows, classes]` and `[rows, 1]`.
///
/// The softmax is one fused pass on the CPU, so `log Σ exp` is computed from its largest entry:
/// `log Σ exp(x) = max x − log max softmax(x)`. This entry is at least 1 / classes and cannot underflow.
pub(crate) fn softmax_and_lse<B: Backend>(logits: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let largest = logits.clone().max_dim(1);
    let probabilities = softmax(logits, 1);
    let lse = largest - probabilities.clone().max_dim(1).log();
    (probabilities, lse)
}
