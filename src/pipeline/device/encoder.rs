//! The frozen text encoder on the device: token ids → caption vectors.

use std::sync::Arc;

use burn::tensor::DType;

use super::{DeviceState, DeviceWorker, OnDevice, TextBatches, model_error};
use crate::model::text::{TextCheckpoint, TextEncoder, TextNumerics};
use crate::model::{Any, Attention};
use crate::pipeline::error::PipelineError;
use crate::types::Precision;

/// The text encoder.
pub(crate) struct LoadedEncoder {
    device: Arc<DeviceWorker>,
    encoder: OnDevice<TextEncoder<Any>>,
    /// Implementation of attention that the device uses.
    pub(crate) attention: Attention,
}

impl DeviceWorker {
    /// Loads a text encoder.
    ///
    /// # Errors
    /// When the checkpoint or the device cannot be used.
    pub(crate) async fn load_encoder(
        self: &Arc<Self>,
        checkpoint: TextCheckpoint,
        precision: Precision,
    ) -> Result<LoadedEncoder, PipelineError> {
        let load = move |state: &mut DeviceState| {
            // The CPU computes in f32 only.
            let half = precision == Precision::Bf16 && state.numerics.fused;
            let format = if half { DType::BF16 } else { DType::F32 };
            let encoder =
                TextEncoder::load(&checkpoint, TextNumerics { format, direct: state.numerics.direct }, &state.device)
                    .map_err(model_error)?;
            let attention = encoder.attention();
            Ok((OnDevice::new(encoder), attention))
        };
        let (encoder, attention) = self.run(load).await?;
        Ok(LoadedEncoder { device: Arc::clone(self), encoder, attention })
    }
}

impl LoadedEncoder {
    /// Returns the size of batches that suits the device.
    pub(crate) fn batches(&self) -> TextBatches {
        self.device.text_batches
    }

    /// Computes caption vectors, `[captions, dim]`, from token ids. The batch has `tokens` columns. Empty rows pad it
    /// to `batch_rows`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) async fn embed(
        &self,
        captions: Vec<Vec<u32>>,
        tokens: usize,
        batch_rows: usize,
    ) -> Result<Vec<f32>, PipelineError> {
        let encoder = self.encoder.clone();
        let embed = move |_: &mut DeviceState| {
            let encoder = encoder.get();
            let mut rows: Vec<&[u32]> = captions.iter().map(Vec::as_slice).collect();
            rows.resize(batch_rows.max(captions.len()), &[]);
            let mut vectors = encoder.embed(&rows, tokens).map_err(model_error)?;
            vectors.truncate(captions.len() * encoder.dim());
            Ok(vectors)
        };
        self.device.run(embed).await
    }

    /// Frees the memory of the encoder.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(crate) async fn unload(self) -> Result<(), PipelineError> {
        let free = move |state: &mut DeviceState| {
            drop(self.encoder);
            state.release_memory();
        };
        self.device.post(free).await
    }
}
