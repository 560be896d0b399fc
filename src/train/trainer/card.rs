//! Computes gradient and update of the head on a GPU with this crate's own kernels (`card/*.cu`), in bf16 with f32 sums.
//!
//! A batch of up to [`ROWS`] rows takes three products, and logits are never stored:
//!
//! 1. features · weightᵀ, which leaves the largest logit, `Σ exp` and `Σ logit` of each row for each strip of classes. They are
//!    joined to `log Σ exp` and to the loss of each row.
//! 2. For a part of the classes at a time, weight · featuresᵀ again, which stores `softmax − T` in bf16. Where a row has a target
//!    class, it is computed from the f32 logit of that pair.
//! 3. This matrix · features. Its epilogue updates the weight, momentum and the bf16 copy of the part, or stores the gradient if the
//!    step has more batches or is clipped.

mod batch;
mod kernels;
mod part;
mod rows;

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use cubecl::server::Handle;

use batch::Batch;
use kernels::{Kernels, Rule, Use};
use part::Part;
pub(in crate::train) use rows::CardRows;

use super::engine::{Engine, RowTile, TileFeatures};
use super::{Options, Sgd, TrainError};
use crate::card::{Card, Matrix, VECTOR};
use crate::predict::PredictError;
use crate::predict::scorer::Scorer;
use crate::predict::tiles::{PADDING_BIAS, download, padded_classes, tile_ranges, upload_bf16, upload_rows};
use crate::train::HeadState;

/// Rows of a batch. Each batch reads all weights, and more than one also a gradient.
pub(in crate::train) const ROWS: usize = 4096;

/// Number of batches on the device after which their losses are downloaded even without a caller.
const PENDING_LOSSES: usize = 512;

/// Training engine on a GPU; owns head, gradient and momentum.
pub(super) struct CardEngine {
    classes: usize,
    dim: usize,
    kernels: Kernels,
    parts: Vec<Part>,
    /// Batch that is the whole step, whose gradient is computed by the update.
    whole: Option<Batch>,
    norm: Option<Handle>,
    /// Losses of the rows of each batch on the device.
    pending: Vec<(Handle, usize)>,
    /// Downloaded losses.
    losses: Vec<f64>,
}

impl CardEngine {
    pub(super) fn new(state: HeadState, options: Options, card: Card) -> Self {
        let HeadState { classes, dim, weight, bias, weight_momentum, bias_momentum } = state;
        let kernels = Kernels::new(card);
        let mut strips = 0;
        let part = |range: std::ops::Range<usize>| {
            let weights = range.start * dim..range.end * dim;
            let values = (&weight[weights.clone()], &bias[range.clone()]);
            let velocity = (&weight_momentum[weights], &bias_momentum[range.clone()]);
            let part = Part::new(kernels.card(), [range.start, strips], values, velocity);
            strips += kernels.strips(range.len());
            part
        };
        let parts = tile_ranges(classes, options.tiling.classes).map(part).collect();
        let (pending, losses) = (Vec::new(), Vec::new());
        Self { classes, dim, kernels, parts, whole: None, norm: None, pending, losses }
    }

    /// Uploads a tile, and computes its losses.
    fn forward<B: Backend>(&self, tile: RowTile<'_, B>) -> Result<Batch, TrainError> {
        let RowTile { features, targets, effective, smoothing, .. } = tile;
        let (card, samples) = (self.kernels.card(), targets.rows());
        let padded = samples.next_multiple_of(VECTOR);
        let values = match features {
            TileFeatures::Host(values) => batch::upload(card, values, [padded, self.dim]),
            TileFeatures::Device(values) => batch::upload(card, &download(values)?, [padded, self.dim]),
            TileFeatures::Card(rows, indices) => rows.gather(indices, padded),
        };
        let features = Matrix { values, rows: padded, depth: self.dim };
        let (packed, pairs) = batch::pack(targets, smoothing);
        let strips = self.parts.iter().map(|part| self.kernels.strips(part.classes)).sum();
        let batch = Batch {
            samples,
            pairs,
            transposed: self.kernels.transpose(&features),
            features,
            targets: card.upload_u32(packed),
            target_logits: card.allocate_f32(pairs),
            lse: card.allocate_f32(padded),
            losses: card.allocate_f32(samples),
            uniform: (smoothing / self.classes as f64) as f32,
            scale: (1.0 / effective as f64) as f32,
        };
        let statistics = card.allocate_f32(4 * samples * strips);
        for part in &self.parts {
            self.kernels.statistics(&batch, part, &statistics, strips);
        }
        self.kernels.row_loss(&batch, &statistics, strips);
        Ok(batch)
    }

    /// Computes the gradient of a batch, part by part.
    fn backward(&mut self, batch: &Batch, how: Use) {
        let card = self.kernels.card();
        let widest = self.parts.iter().map(|part| part.classes).max().unwrap_or(0);
        let difference = card.allocate(widest * batch.padded());
        for part in &mut self.parts {
            if !matches!(how, Use::Update(_)) && part.gradient.is_none() {
                part.gradient = Some(card.allocate_f32(part.count()));
            }
            self.kernels.gradient(batch, part, &difference, how);
        }
    }

    fn download_losses(&mut self) -> Result<(), TrainError> {
        for (losses, samples) in std::mem::take(&mut self.pending) {
            let losses = self.kernels.card().read_f32(&losses, samples).map_err(PredictError::Device)?;
            self.losses.push(losses.into_iter().map(f64::from).sum());
        }
        Ok(())
    }

    /// Downloads weights and biases, or their momentum.
    fn read(&self, buffer: impl Fn(&Part) -> &Handle) -> Result<(Vec<f32>, Vec<f32>), PredictError> {
        let (mut weights, mut biases) = (Vec::with_capacity(self.classes * self.dim), Vec::with_capacity(self.classes));
        for part in &self.parts {
            let values = part.read(self.kernels.card(), buffer(part)).map_err(PredictError::Device)?;
            let (weight, bias) = values.split_at(part.classes * self.dim);
            weights.extend_from_slice(weight);
            biases.extend_from_slice(bias);
        }
        Ok((weights, biases))
    }
}

impl<B: Backend> Engine<B> for CardEngine {
    fn kernels(&self) -> &'static str {
        self.kernels.instruction()
    }

    fn tile_rows(&self, _: Options) -> usize {
        ROWS
    }

    fn add_tile(&mut self, tile: RowTile<'_, B>) -> Result<(), TrainError> {
        if self.pending.len() >= PENDING_LOSSES {
            self.download_losses()?;
        }
        let (first, is_step) = (tile.first, tile.targets.rows() == tile.effective);
        let batch = self.forward(tile)?;
        self.pending.push((batch.losses.clone(), batch.samples));
        if is_step {
            self.whole = Some(batch);
        } else {
            self.backward(&batch, if first { Use::Store } else { Use::Add });
        }
        Ok(())
    }

    fn update(&mut self, sgd: &Sgd, rate: f64) {
        let rule = Rule::new(sgd, rate);
        let whole = self.whole.take();
        if let (Some(batch), true) = (&whole, sgd.clip_norm == 0.0) {
            self.norm = None;
            self.backward(batch, Use::Update(rule));
            return;
        }
        if let Some(batch) = &whole {
            self.backward(batch, Use::Store);
        }
        self.norm = (sgd.clip_norm > 0.0).then(|| self.kernels.norm(&self.parts));
        for part in &mut self.parts {
            self.kernels.update(part, rule, self.norm.as_ref().map(|norm| (sgd.clip_norm, norm)));
            part.gradient = None;
        }
    }

    fn take_losses(&mut self) -> Result<Vec<f64>, TrainError> {
        self.download_losses()?;
        Ok(std::mem::take(&mut self.losses))
    }

    fn grad_norm(&self) -> Result<Option<f64>, TrainError> {
        let Some(norm) = &self.norm else {
            return Ok(None);
        };
        let norm = self.kernels.card().read_f32(norm, 1).map_err(PredictError::Device)?;
        Ok(norm.first().copied().map(f64::from))
    }

    fn state(&self) -> Result<Cow<'_, HeadState>, TrainError> {
        let (weight, bias) = self.read(|part| &part.values)?;
        let (weight_momentum, bias_momentum) = self.read(|part| &part.velocity)?;
        let (classes, dim) = (self.classes, self.dim);
        Ok(Cow::Owned(HeadState { classes, dim, weight, bias, weight_momentum, bias_momentum }))
    }

    /// burn offers no way from memory to a tensor of its dispatching backend, so the weights pass through the host in bf16, one part at
    /// a time.
    fn scorer(&self, options: Options, device: &B::Device) -> Result<Scorer<B>, TrainError> {
        let (card, width) = (self.kernels.card(), options.tiling.classes);
        let (mut weights, mut biases) = (Vec::with_capacity(self.parts.len()), Vec::with_capacity(self.parts.len()));
        for part in &self.parts {
            let weight = card.read_bf16(&part.copy, part.classes * self.dim).map_err(PredictError::Device)?;
            weights.push(upload_bf16(weight, padded_classes(part.classes, width), self.dim, device));
            let bias = card.read_f32(&part.bias(), part.classes).map_err(PredictError::Device)?;
            biases.extend(upload_rows(&bias, width, PADDING_BIAS, device));
        }
        Ok(Scorer::from_tiles(self.classes, self.dim, options.tiling, options.compute, weights, biases, device))
    }
}
