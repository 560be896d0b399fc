//! Handle to features that the device may still be computing.

use burn::tensor::StreamId;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::model::error::ModelError;
use crate::model::kernels::Features;

/// Features on their way.
#[derive(Debug)]
pub(super) enum Computed<B: Backend> {
    /// `[rows with padding, feature_dim]`, in the extractor's format.
    Burn(Tensor<B, 2>),
    /// As these, with their dimension.
    Card(Features, usize),
}

/// Features of one batch; any thread may wait for them. [`Pending::wait`] launches operations that are still queued.
#[derive(Debug)]
#[must_use = "the features are lost unless they are waited for"]
pub struct Pending<B: Backend> {
    /// `None` without rows.
    features: Option<Computed<B>>,
    rows: usize,
    /// Stream of the computation. A read from another stream would wait for later work of this one.
    stream: StreamId,
}

impl<B: Backend> Pending<B> {
    /// Wraps features that are computed on the current stream.
    pub(super) fn new(features: Option<Computed<B>>, rows: usize) -> Self {
        Self { features, rows, stream: StreamId::current() }
    }

    /// Blocks until the features are computed and returns them, `[rows, feature_dim]`, row-major, without padding.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(self) -> Result<Vec<f32>, ModelError> {
        let features = match self.features {
            None => return Ok(Vec::new()),
            Some(Computed::Burn(features)) => features,
            Some(Computed::Card(features, dim)) => return features.wait(self.rows * dim),
        };
        let failed = |reason: String| ModelError::Device { reason };
        let [_, dim] = features.dims();
        let data = self.stream.executes(|| features.try_into_data()).map_err(|cause| failed(cause.to_string()))?;
        let mut values = data.convert::<f32>().into_vec::<f32>().map_err(|cause| failed(format!("{cause:?}")))?;
        values.truncate(self.rows * dim);
        Ok(values)
    }
}
