//! Features of a micro-batch, on the host or resident on a device.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::trainer::card::CardRows;
use super::trainer::engine::TileFeatures;
use super::{Options, TrainError};
use crate::card::Card;
use crate::predict::PredictError;
use crate::predict::scorer::check_length;
use crate::predict::tiles::{cast_to, upload};

/// Features that stay on a device for all epochs, `[rows, dim]`.
pub struct DeviceFeatures<B: Backend> {
    rows: Rows<B>,
}

enum Rows<B: Backend> {
    Tensor(Tensor<B, 2>),
    /// bf16 in the memory of a GPU, for this crate's own kernels. burn offers no way from a tensor of its dispatching backend to its
    /// memory.
    Card(CardRows),
}

impl<B: Backend> DeviceFeatures<B> {
    /// Allocates `[rows, dim]` on the device that trains with `options`. Every row must be written before its use.
    pub fn new(rows: usize, dim: usize, format: DType, options: Options, device: &B::Device) -> Self {
        let own = options.own_gpu(dim).filter(|_| format == DType::BF16);
        let rows = match own {
            Some((gpu, capability)) => Rows::Card(CardRows::new(Card::new(gpu, capability), rows, dim)),
            None => Rows::Tensor(Tensor::zeros([rows, dim], (device, format))),
        };
        Self { rows }
    }

    /// Writes rows, `[n, dim]`, row-major, from row `first` on; values are rounded to the format.
    ///
    /// # Errors
    /// When the length is not a multiple of `dim`, or the rows exceed the allocation.
    pub fn write_rows(&mut self, first: usize, values: &[f32]) -> Result<(), TrainError> {
        let [all, dim] = self.dims();
        let count = values.len() / dim.max(1);
        check_length("features", values.len(), count * dim)?;
        check_length("rows", (first + count).max(all), all)?;
        if count == 0 {
            return Ok(());
        }
        match &mut self.rows {
            Rows::Tensor(rows) => {
                let uploaded = cast_to(upload(values, count, dim, &rows.device()), rows.dtype());
                // `Tensor::inplace` would allocate an empty tensor.
                let before = std::mem::replace(rows, uploaded.clone());
                *rows = before.slice_assign([first..first + count, 0..dim], uploaded);
            }
            Rows::Card(rows) => rows.write(first, values, count),
        }
        Ok(())
    }

    /// Returns `[rows, dim]`.
    pub(super) fn dims(&self) -> [usize; 2] {
        match &self.rows {
            Rows::Tensor(rows) => rows.dims(),
            Rows::Card(rows) => rows.dims(),
        }
    }

    /// Gathers rows as f32, `[indices.len(), dim]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn gather(&self, indices: &[u32], device: &B::Device) -> Result<Tensor<B, 2>, TrainError> {
        match self.tile(indices) {
            TileFeatures::Host(values) => Ok(upload(values, indices.len(), self.dims()[1], device)),
            TileFeatures::Device(rows) => Ok(rows),
            TileFeatures::Card(rows, _) => {
                let values = rows.read(indices).map_err(PredictError::Device)?;
                Ok(upload(&values, indices.len(), self.dims()[1], device))
            }
        }
    }

    /// Selects rows. Those of a tensor are gathered as f32.
    pub(super) fn tile<'a>(&'a self, indices: &'a [u32]) -> TileFeatures<'a, B> {
        match &self.rows {
            Rows::Tensor(rows) => {
                let (count, device) = (indices.len(), rows.device());
                let indices = indices.iter().map(|index| i64::from(*index)).collect();
                let indices = Tensor::<B, 1, Int>::from_data(TensorData::new::<i64, _>(indices, [count]), &device);
                TileFeatures::Device(cast_to(rows.clone().select(0, indices), DType::F32))
            }
            Rows::Card(rows) => TileFeatures::Card(rows, indices),
        }
    }
}

/// Features of a micro-batch.
pub enum Features<'a, B: Backend> {
    /// `[rows, dim]`, row-major, on the host.
    Host(&'a [f32]),
    /// Rows of resident features, by their indices.
    Device(&'a DeviceFeatures<B>, &'a [u32]),
}
