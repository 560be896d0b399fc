//! Ranks captions by features and a trained head, writes a submission and scores it.
//!
//! Host vectors come in, ranked classes and numbers go out; no tensor crosses the boundary. The ranking is a total
//! order: higher logit first, then lower class index; NaN never ranks. The same logits therefore give the same ranks
//! for every tiling. Image decoding and training are absent.

pub mod bootstrap;
pub mod evaluate;
pub mod metrics;
pub mod rank;
pub mod scorer;
pub mod slices;
pub mod submission;
pub mod tiles;

/// Error of scoring features against a head.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PredictError {
    /// The length of a vector contradicts its dimensions.
    #[error("`{what}` holds `{actual}` values, expected `{expected}`")]
    Length {
        /// Name of the vector.
        what: &'static str,
        /// Actual length, in values.
        actual: usize,
        /// Length that the dimensions imply, in values.
        expected: usize,
    },
    /// A dimension or a tile size is zero.
    #[error("`{what}` must be at least `1`")]
    Zero {
        /// Name of the dimension or tile size.
        what: &'static str,
    },
    /// A label is not a class of the head.
    #[error("label `{label}` of row `{row}` is outside the `{classes}` classes of the head")]
    Label {
        /// Row within the batch, from 0.
        row: usize,
        /// Label of the row.
        label: u32,
        /// Number of classes of the head.
        classes: usize,
    },
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
}
