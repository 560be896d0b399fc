//! What the device thread owns: backbone, head and optimiser. Host vectors cross to it, numbers come back.

use burn::backend::flex::FlexDevice;

use crate::flow::DeviceThread;
use crate::model::{Cpu, ExtractOptions, Extractor, ModelError};
use crate::predict::scorer::Scorer;
use crate::train::Trainer;

use super::PipelineError;

/// Images in one forward pass on the CPU: enough to fill the matrix product, little enough to stay in the cache.
pub(super) const BATCH_ROWS: usize = 32;

/// Everything that lives on the device. One thread has it for the whole run.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) extractor: Option<Extractor<Cpu>>,
    pub(super) trainer: Option<Trainer<Cpu>>,
    pub(super) scorer: Option<Scorer<Cpu>>,
}

/// The thread that owns the [`Desk`].
pub(super) type Device = DeviceThread<Desk>;

/// The CPU: the one device of this build.
pub(super) fn cpu() -> FlexDevice {
    FlexDevice
}

/// Opens the device.
///
/// # Errors
/// When the system has no thread left.
pub(super) async fn open() -> Result<Device, PipelineError> {
    Ok(Device::start(|| Ok::<_, std::convert::Infallible>(Desk::default()))
        .await?
        .unwrap_or_else(|never| match never {}))
}

/// Puts the backbone on the device, unless it is there.
///
/// # Errors
/// When the checkpoint cannot be read.
pub(super) async fn load_backbone(
    device: &Device,
    checkpoint: crate::model::Checkpoint,
    options: ExtractOptions,
) -> Result<(), PipelineError> {
    device
        .call(move |desk| {
            if desk.extractor.is_none() {
                desk.extractor = Some(Extractor::load(&checkpoint, &options, &cpu())?);
            }
            Ok::<_, ModelError>(())
        })
        .await?
        .map_err(model_error)
}

/// Frees what training does not need.
pub(super) async fn unload_backbone(device: &Device) -> Result<(), PipelineError> {
    Ok(device.call(|desk| desk.extractor = None).await?)
}

/// A damaged artefact of a run, with the causes, as one sentence.
pub(super) fn damaged(error: impl std::error::Error) -> PipelineError {
    PipelineError::Input(super::chain(&error))
}

/// An error of the model with its causes, as one sentence.
pub(super) fn model_error(error: impl std::error::Error) -> PipelineError {
    PipelineError::Model(super::chain(&error))
}
