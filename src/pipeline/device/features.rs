//! Feature rows as input of a training step: host values, or rows that are resident on the device.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::DType;

use super::{DeviceState, DeviceWorker, OnDevice, model_error};
use crate::model::Any;
use crate::pipeline::error::PipelineError;
use crate::train::{DeviceFeatures, Features, Options};
use crate::types::Precision;

/// Features of all training images, resident on the device for all epochs. Clones share the same rows.
#[derive(Clone)]
pub(crate) struct FeaturesOnDevice {
    device: Arc<DeviceWorker>,
    rows: OnDevice<DeviceFeatures<Any>>,
}

impl DeviceWorker {
    /// Allocates memory for `rows` features of dimension `dim`, for a classifier or for a projection head. Every row must be
    /// written before its use.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) async fn allocate_features(
        self: &Arc<Self>,
        rows: usize,
        dim: usize,
        precision: Precision,
        for_classifier: bool,
    ) -> Result<FeaturesOnDevice, PipelineError> {
        let format = match precision {
            Precision::Bf16 => DType::BF16,
            Precision::F32 => DType::F32,
        };
        let allocate = move |state: &mut DeviceState| {
            // Projection heads have no kernels of our own.
            let options = if for_classifier { state.options } else { Options::default() };
            Ok(OnDevice::new(DeviceFeatures::new(rows, dim, format, options, &state.device)))
        };
        let rows = self.run(allocate).await?;
        Ok(FeaturesOnDevice { device: Arc::clone(self), rows })
    }
}

impl FeaturesOnDevice {
    /// Writes rows, `[n, dim]`, from row `first` on.
    ///
    /// # Errors
    /// When the rows do not fit, or the device fails.
    pub(crate) async fn write(&self, first: usize, values: Vec<f32>) -> Result<(), PipelineError> {
        let rows = self.rows.clone();
        self.device.run(move |_| rows.get().write_rows(first, &values).map_err(model_error)).await
    }

    /// Frees the memory, unless a clone of the handle remains.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(crate) async fn unload(self) -> Result<(), PipelineError> {
        let free = move |state: &mut DeviceState| {
            drop(self.rows);
            state.release_memory();
        };
        self.device.post(free).await
    }
}

/// Rows of features in the order of training.
#[derive(Clone)]
pub(crate) enum FeatureRows {
    /// `[rows, dim]` values in memory.
    Host {
        /// Row-major values.
        values: Vec<f32>,
        /// Dimension of a row.
        dim: usize,
    },
    /// Row numbers of features on the device.
    Device {
        /// The features.
        features: FeaturesOnDevice,
        /// Row numbers.
        rows: Vec<u32>,
    },
}

impl FeatureRows {
    fn empty_like(&self) -> Self {
        match self {
            Self::Host { dim, .. } => Self::Host { values: Vec::new(), dim: *dim },
            Self::Device { features, .. } => Self::Device { features: features.clone(), rows: Vec::new() },
        }
    }

    /// Appends the rows of `other` from `first` on. If the variants differ, these rows replace all of `self`, since a
    /// feature store yields one variant only.
    pub(crate) fn append_from(&mut self, other: &Self, first: usize) {
        match (self, other) {
            (Self::Host { values, dim }, Self::Host { values: more, dim: width }) => {
                // Rows that hold nothing yet have no width.
                *dim = *width;
                values.extend_from_slice(&more[first * width..]);
            }
            (Self::Device { rows, .. }, Self::Device { rows: more, .. }) => rows.extend_from_slice(&more[first..]),
            (this, other) => {
                *this = other.empty_like();
                this.append_from(other, first);
            }
        }
    }

    /// Passes a range of the rows to `job`. The caller must be on the device's thread.
    pub(super) fn with_slice<R>(&self, span: Range<usize>, job: impl FnOnce(&Features<'_, Any>) -> R) -> R {
        match self {
            Self::Host { values, dim } => job(&Features::Host(&values[span.start * dim..span.end * dim])),
            Self::Device { features, rows } => job(&Features::Device(&features.rows.get(), &rows[span])),
        }
    }
}
