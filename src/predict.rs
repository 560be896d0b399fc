//! From features and a trained head to ranked captions, a submission, and its score.
//!
//! Host vectors come in, ranked classes and numbers go out; no tensor crosses this boundary. Ranking is a
//! total order (higher logit first, then the lower class index; NaN never ranks), so the same logits give
//! the same ranks whatever the blocks. Knows nothing of how pixels were decoded or how the head was trained.

pub mod evaluate;
pub mod metrics;
pub mod rank;
pub mod scorer;
pub mod submission;
pub mod tiles;

/// Why the head could not score features.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PredictError {
    /// A vector does not have the length that its dims ask for.
    #[error("`{what}` holds `{actual}` values, expected `{expected}`")]
    Length {
        /// The vector.
        what: &'static str,
        /// Its length, in values.
        actual: usize,
        /// The length that the dims ask for, in values.
        expected: usize,
    },
    /// A dim or a block length is zero.
    #[error("`{what}` must be at least `1`")]
    Zero {
        /// The dim or block length.
        what: &'static str,
    },
    /// A label names no class of the head.
    #[error("label `{label}` of row `{row}` is outside the `{classes}` classes of the head")]
    Label {
        /// Row within the batch, from zero.
        row: usize,
        /// The label.
        label: u32,
        /// Classes of the head.
        classes: usize,
    },
    /// The device did not give its numbers back.
    #[error("the device failed while scoring: {0}")]
    Device(String),
}
