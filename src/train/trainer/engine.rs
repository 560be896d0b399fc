//! Interface between the trainer and its implementations on the CPU and on a GPU.

use std::borrow::Cow;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::card::CardRows;
use super::{Options, Sgd};
use crate::predict::scorer::Scorer;
use crate::train::{HeadState, Targets, TrainError};

/// Features of a row tile, `[rows, dim]`, f32.
pub(in crate::train) enum TileFeatures<'a, B: Backend> {
    /// Row-major, on the host.
    Host(&'a [f32]),
    /// On the device.
    Device(Tensor<B, 2>),
    /// Rows on a GPU, by their indices, in bf16.
    Card(&'a CardRows, &'a [u32]),
}

/// Some rows of a micro-batch. There is at least one row, and each row has a target class.
pub(super) struct RowTile<'a, B: Backend> {
    pub(super) features: TileFeatures<'a, B>,
    pub(super) targets: &'a Targets,
    /// Samples of the whole step.
    pub(super) effective: usize,
    /// Label smoothing ε.
    pub(super) smoothing: f64,
    /// Whether this is the first tile of the step, which resets the gradient.
    pub(super) first: bool,
}

/// Owner of head, gradient and momentum that computes the training steps.
pub(super) trait Engine<B: Backend> {
    /// Returns the kernels that compute: `direct` on a CPU, `burn`, or the instruction of the products of this crate's own kernels.
    fn kernels(&self) -> &'static str;
    /// Returns the largest number of rows of a tile.
    fn tile_rows(&self, options: Options) -> usize {
        options.tiling.rows
    }
    /// Adds the gradient and the loss of a row tile.
    ///
    /// # Errors
    /// When the device fails.
    fn add_tile(&mut self, tile: RowTile<'_, B>) -> Result<(), TrainError>;
    /// Updates the head with the accumulated gradient.
    fn update(&mut self, sgd: &Sgd, rate: f64);
    /// Returns and clears the summed loss of each row tile, in order.
    fn take_losses(&mut self) -> Result<Vec<f64>, TrainError>;
    /// Returns the gradient norm of the last update, before clipping.
    fn grad_norm(&self) -> Result<Option<f64>, TrainError>;
    /// Returns weights and momentum; borrowed if they are on the host.
    fn state(&self) -> Result<Cow<'_, HeadState>, TrainError>;
    /// Returns a scorer with the current weights.
    fn scorer(&self, options: Options, device: &B::Device) -> Result<Scorer<B>, TrainError>;
}
