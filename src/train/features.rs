//! Features of a micro-batch, on the host or resident on a device.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::TrainError;
use crate::predict::scorer::check_length;
use crate::predict::tiles::{cast_to, upload};

/// Features that stay on a device for all epochs, `[rows, dim]`.
pub struct DeviceFeatures<B: Backend> {
    rows: Tensor<B, 2>,
}

impl<B: Backend> DeviceFeatures<B> {
    /// Allocates `[rows, dim]` zeros on the device.
    pub fn new(rows: usize, dim: usize, format: DType, device: &B::Device) -> Self {
        Self { rows: Tensor::zeros([rows, dim], (device, format)) }
    }

    /// Writes rows, `[n, dim]`, row-major, from row `first` on; values are rounded to the format.
    ///
    /// # Errors
    /// When the length is not a multiple of `dim`, or the rows exceed the allocation.
    pub fn write_rows(&mut self, first: usize, values: &[f32]) -> Result<(), TrainError> {
        let [all, dim] = self.rows.dims();
        let count = values.len() / dim.max(1);
        check_length("features", values.len(), count * dim)?;
        check_length("rows", (first + count).max(all), all)?;
        if count == 0 {
            return Ok(());
        }
        let uploaded = cast_to(upload(values, count, dim, &self.rows.device()), self.rows.dtype());
        // `Tensor::inplace` would allocate an empty tensor.
        let rows = std::mem::replace(&mut self.rows, uploaded.clone());
        self.rows = rows.slice_assign([first..first + count, 0..dim], uploaded);
        Ok(())
    }

    /// Returns `[rows, dim]`.
    pub(super) fn dims(&self) -> [usize; 2] {
        self.rows.dims()
    }

    /// Gathers rows as f32, `[indices.len(), dim]`.
    pub(super) fn gather(&self, indices: &[u32]) -> Tensor<B, 2> {
        let indices: Vec<i64> = indices.iter().map(|index| i64::from(*index)).collect();
        let count = indices.len();
        let indices = Tensor::<B, 1, Int>::from_data(TensorData::new(indices, [count]), &self.rows.device());
        cast_to(self.rows.clone().select(0, indices), DType::F32)
    }
}

/// Features of a micro-batch.
pub enum Features<'a, B: Backend> {
    /// `[rows, dim]`, row-major, on the host.
    Host(&'a [f32]),
    /// Rows of resident features, by their indices.
    Device(&'a DeviceFeatures<B>, &'a [u32]),
}
