//! The head: from features and labels to trained weights, in a fixed order, with checkpoints that resume exactly.
//!
//! Host vectors come in (`[rows, dim]` f32 features, class indices), a [`HeadState`] and numbers go out; no tensor
//! crosses this boundary. What decides the result is pure: the order of samples is a function of seed, epoch and
//! chunk sizes ([`order`]), the learning rate of the step ([`schedule`]), the split of the image URL
//! ([`crate::types::ValidationSplit`]). On the CPU backend a run that goes through a checkpoint ends bit for bit where an
//! uninterrupted one does. There are two kinds of head: classes ([`Trainer`]), and a map into the space of captions'
//! vectors ([`text`]). Knows nothing of where features come from or where checkpoints are kept.

pub mod checkpoint;
pub mod head;
pub mod order;
pub mod plot;
pub mod schedule;
mod targets;
pub mod text;
mod trainer;

pub use checkpoint::{CheckpointError, Progress};
pub use head::HeadState;
pub use schedule::{Schedule, ScheduleKind};
pub use targets::Targets;
pub use trainer::{Features, Kept, Options, Place, Sgd, StepReport, Trainer};

use crate::predict::PredictError;

/// Why the head could not be trained.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TrainError {
    /// A length, a label or the device, as in prediction.
    #[error(transparent)]
    Head(#[from] PredictError),
    /// A setting of the optimiser cannot work.
    #[error("`{what}` must be a finite number in `{range}`, got `{value}`")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it was.
        value: f64,
    },
    /// A row has no class.
    #[error("row `{row}` of a batch has no class to be trained on")]
    NoTarget {
        /// The row.
        row: usize,
    },
    /// Micro-batches of one step disagree about the step's size, or exceed it.
    #[error(
        "`{accumulated}` samples were accumulated for a step of `{expected}`; \
         every micro-batch of a step names the samples of the whole step"
    )]
    Accumulation {
        /// Samples accumulated, this micro-batch included.
        accumulated: usize,
        /// Samples that the step was announced with.
        expected: usize,
    },
    /// The loss became infinite or not a number.
    #[error(
        "the loss of step `{step}` is `{loss}` after a step at learning rate `{rate}`; \
         lower `train.learning_rate` or clip the gradient, and resume from the last checkpoint"
    )]
    Loss {
        /// The step during which the loss was computed, from 1.
        step: u64,
        /// The loss, summed over a block of samples.
        loss: f64,
        /// The learning rate of the step before it.
        rate: f64,
    },
}
