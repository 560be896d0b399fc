//! Features that the device may still be computing.

use burn::tensor::StreamId;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::model::error::ModelError;

/// The features of one batch, waited for on any thread. Its operations are launched at the latest when somebody waits.
#[derive(Debug)]
#[must_use = "the features are lost unless they are waited for"]
pub struct Pending<B: Backend> {
    /// `[rows and padding, feature_dim]`, in the format in which they were computed; none without rows.
    features: Option<Tensor<B, 2>>,
    rows: usize,
    /// Where they are computed: read from another, they would wait for what comes behind them.
    stream: StreamId,
}

impl<B: Backend> Pending<B> {
    /// Features that are computed on the stream at hand.
    pub(super) fn new(features: Option<Tensor<B, 2>>, rows: usize) -> Self {
        Self { features, rows, stream: StreamId::current() }
    }

    /// Blocks until the features are there: `[rows, feature_dim]`, row-major, without the rows of padding.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(self) -> Result<Vec<f32>, ModelError> {
        let Some(features) = self.features else { return Ok(Vec::new()) };
        let failed = |reason: String| ModelError::Device { reason };
        let [_, dim] = features.dims();
        let data = self.stream.executes(|| features.try_into_data()).map_err(|cause| failed(cause.to_string()))?;
        let mut values = data.convert::<f32>().into_vec::<f32>().map_err(|cause| failed(format!("{cause:?}")))?;
        values.truncate(self.rows * dim);
        Ok(values)
    }
}
