//! A range of classes of the head on the device.

use cubecl::server::Handle;

use crate::card::{Card, Matrix};

/// Weights, momentum and gradient of some classes. Their biases lie behind their weights.
#[derive(Debug)]
pub(super) struct Part {
    /// First class.
    pub(super) first: usize,
    pub(super) classes: usize,
    pub(super) dim: usize,
    /// First strip of the statistics.
    pub(super) first_strip: usize,
    pub(super) values: Handle,
    pub(super) velocity: Handle,
    /// Weights in bf16.
    pub(super) copy: Handle,
    /// `None` without an accumulated gradient.
    pub(super) gradient: Option<Handle>,
}

impl Part {
    /// Uploads classes from `first` on, as weights and biases.
    pub(super) fn new(
        card: &Card,
        [first, first_strip]: [usize; 2],
        values: (&[f32], &[f32]),
        velocity: (&[f32], &[f32]),
    ) -> Self {
        let upload = |(weight, bias): (&[f32], &[f32])| card.upload_f32([weight, bias].concat());
        let classes = values.1.len();
        Self {
            first,
            classes,
            dim: values.0.len() / classes.max(1),
            first_strip,
            values: upload(values),
            velocity: upload(velocity),
            copy: card.upload(values.0),
            gradient: None,
        }
    }

    /// Returns the number of weights and biases.
    pub(super) fn count(&self) -> usize {
        self.classes * (self.dim + 1)
    }

    /// Returns the part of a buffer that belongs to the biases.
    pub(super) fn bias_of(&self, buffer: &Handle) -> Handle {
        buffer.clone().offset_start((size_of::<f32>() * self.classes * self.dim) as u64)
    }

    /// Returns the biases.
    pub(super) fn bias(&self) -> Handle {
        self.bias_of(&self.values)
    }

    /// Returns the weight as an operand.
    pub(super) fn weight(&self) -> Matrix {
        Matrix { values: self.copy.clone(), rows: self.classes, depth: self.dim }
    }

    /// Downloads weights, or momentum of weights, and behind them those of the biases.
    pub(super) fn read(&self, card: &Card, buffer: &Handle) -> Result<Vec<f32>, String> {
        card.read_f32(buffer, self.count())
    }
}
