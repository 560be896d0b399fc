//! Trains a head on features in a deterministic order, with checkpoints that resume exactly.
//!
//! There are two kinds of head: a linear classifier ([`Trainer`]) and a projection head into the embedding space of a
//! text encoder ([`text`]). Both can also be solved for in closed form ([`closed_form`]). Host vectors come in (`[rows, dim]` f32 features, class indices); states and numbers go
//! out. No tensor crosses the boundary.
//!
//! Pure functions determine the result: the sample order depends on seed, epoch and chunk sizes ([`order`]), the
//! learning rate on the step ([`schedule`]), the validation split on the image URL ([`crate::types::ValidationSplit`]).
//! On the CPU a run that resumes from a checkpoint ends with the same bits as an uninterrupted run. `pipeline` reads the
//! features and decides when and where checkpoints are saved.

pub mod checkpoint;
pub mod closed_form;
pub mod event_file;
mod features;
pub mod head;
mod head_bytes;
pub mod order;
pub mod schedule;
mod targets;
pub mod text;
mod trainer;

pub use checkpoint::{CheckpointError, Progress};
pub use features::{DeviceFeatures, Features};
pub use head::HeadState;
pub use head_bytes::{HeadBytes, HeadSize, ProjectionSize};
pub use schedule::{Schedule, ScheduleKind};
pub use targets::Targets;
pub use trainer::{EngineKind, Options, Sgd, StepReport, Trainer};

use crate::predict::PredictError;

/// Error of training a head.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TrainError {
    /// A length, a label or the device is wrong, as in prediction.
    #[error(transparent)]
    Head(#[from] PredictError),
    /// A setting of the optimiser is out of range.
    #[error("`{what}` must be a finite number in `{range}`, got `{value}`")]
    Setting {
        /// Name of the setting.
        what: &'static str,
        /// Valid range.
        range: &'static str,
        /// Value found.
        value: f64,
    },
    /// A row has no target class.
    #[error("row `{row}` of a batch has no class to be trained on")]
    NoTarget {
        /// Row within the batch, from 0.
        row: usize,
    },
    /// The micro-batches of a step disagree about its size, or exceed it.
    #[error(
        "`{accumulated}` samples were accumulated for a step of `{expected}`; \
         every micro-batch of a step names the samples of the whole step"
    )]
    Accumulation {
        /// Samples accumulated, including this micro-batch.
        accumulated: usize,
        /// Announced samples of the step.
        expected: usize,
    },
    /// The loss is infinite or NaN.
    #[error(
        "the loss of step `{step}` is `{loss}` after a step at learning rate `{rate}`; \
         lower `train.learning_rate` or clip the gradient, and resume from the last checkpoint"
    )]
    Loss {
        /// Step of the loss, from 1.
        step: u64,
        /// Loss, summed over some samples of the step.
        loss: f64,
        /// Learning rate of the step before.
        rate: f64,
    },
}
