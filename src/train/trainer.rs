//! Trains a linear classifier with gradients in closed form.
//!
//! For features `X`, `[batch, dim]`, logits are `X · Wᵀ + b`. Rows of the targets `T`, `[batch, classes]`, sum to one.
//! The loss is the mean cross-entropy over the B samples of a step. The gradient of the logits is
//! `D = (softmax − T) / B`, of the weight `Dᵀ · X`, and of the bias the column sums of `D`. Label smoothing ε replaces
//! `T` by `(1 − ε) · T + ε / classes`, as in `torch.nn.CrossEntropyLoss` (Szegedy et al. 2016).
//!
//! The update equals `torch.optim.SGD` with dampening 0 and without Nesterov momentum. Clipping scales weight and bias
//! together, `g ← g · min(1, c / (‖g‖ + 1e-6))`, as `clip_grad_norm_` does. Then `g ← g + λ · w`, `v ← μ · v + g` and
//! `w ← w − rate · v`. Gradients are divided by the samples of the whole step. For micro-batches of equal size this
//! equals the Hugging Face trainer, which divides each mean by their number; it stays a mean if the last micro-batch is
//! shorter.
//!
//! There are three engines: [`cpu`] works on vectors, [`gpu`] on tensors of a device, and [`mod@card`] on the memory of a GPU with this
//! crate's own kernels. Weights, momentum and gradient are
//! f32, 12 bytes a weight in total; products in bf16 round the gradient to bf16.

pub(super) mod card;
mod cpu;
pub(super) mod engine;
mod gpu;

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use burn::tensor::backend::Backend;

use engine::{Engine, RowTile, TileFeatures};

use super::{Features, HeadState, Targets, TrainError};
use crate::card::{Card, LEAST_CAPABILITY, VECTOR};
use crate::predict::PredictError;
use crate::predict::scorer::{Scorer, check_length};
use crate::predict::tiles::{Compute, Tiling, tile_ranges};

/// Constant that `clip_grad_norm_` of `PyTorch` adds to the norm.
const CLIP_EPSILON: f64 = 1e-6;

/// Settings of optimiser and loss.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sgd {
    /// Momentum μ, in [0, 1); 0 is plain SGD.
    pub momentum: f64,
    /// Weight decay λ of weight and bias, as in `torch.optim.SGD`; 0 disables it.
    pub weight_decay: f64,
    /// Upper bound on the norm of the gradient; 0 disables clipping.
    pub clip_norm: f64,
    /// Label smoothing ε, in [0, 1); 0 disables it.
    pub label_smoothing: f64,
}

impl Sgd {
    fn check(&self) -> Result<(), TrainError> {
        let Self { momentum, weight_decay, clip_norm, label_smoothing } = *self;
        for (what, value) in [
            ("momentum", momentum),
            ("weight_decay", weight_decay),
            ("clip_norm", clip_norm),
            ("label_smoothing", label_smoothing),
        ] {
            check_not_negative(what, value)?;
        }
        for (what, value) in [("momentum", momentum), ("label_smoothing", label_smoothing)] {
            if value >= 1.0 {
                return Err(TrainError::Setting { what, range: "[0, 1)", value });
            }
        }
        Ok(())
    }
}

/// Implementation of the training steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// Vectors on the CPU; products are always in f32.
    #[default]
    Cpu,
    /// Tensors on the backend's device.
    Gpu,
    /// This crate's own CUDA kernels for products in bf16, where they cover the head; else as [`EngineKind::Gpu`].
    Own {
        /// Index of the GPU.
        gpu: usize,
        /// Compute capability, such as 90 for 9.0.
        capability: u32,
    },
}

/// Computational settings, which change the result only by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Tile sizes.
    pub tiling: Tiling,
    /// Number format of matrix products.
    pub compute: Compute,
    /// Implementation of the training steps.
    pub engine: EngineKind,
}

impl Options {
    /// Returns the GPU whose own kernels train a head of `dim` values a class; `None` if another engine does.
    pub(super) fn own_gpu(self, dim: usize) -> Option<(usize, u32)> {
        match self.engine {
            EngineKind::Own { gpu, capability }
                if self.compute == Compute::Bf16 && capability >= LEAST_CAPABILITY && dim.is_multiple_of(VECTOR) =>
            {
                Some((gpu, capability))
            }
            _ => None,
        }
    }
}

/// Summary of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Number of updates, including this one.
    pub step: u64,
    /// Learning rate of the update.
    pub rate: f64,
    /// Samples over which the gradient was averaged.
    pub samples: usize,
}

/// Row tile whose loss was not read yet.
struct PendingLoss {
    samples: u64,
    step: u64,
    rate: f64,
}

/// Progress of the current step: accumulated and announced samples.
#[derive(Clone, Copy)]
struct OpenStep {
    accumulated: usize,
    effective: usize,
}

/// Trainer of a classifier head.
pub struct Trainer<B: Backend> {
    classes: usize,
    dim: usize,
    sgd: Sgd,
    options: Options,
    device: B::Device,
    engine: Box<dyn Engine<B> + Send>,
    open: Option<OpenStep>,
    pending: Vec<PendingLoss>,
    loss_sum: f64,
    loss_count: u64,
    step: u64,
    rate: f64,
}

impl<B: Backend> Trainer<B> {
    /// Creates a trainer.
    ///
    /// # Errors
    /// When a dimension or tile size is zero, a length does not match, or a setting is out of range.
    pub fn new(state: HeadState, sgd: Sgd, options: Options, device: &B::Device) -> Result<Self, TrainError> {
        Self::with_scratch(state, sgd, options, device, &Arc::default())
    }

    /// Creates trainers of several heads that train in turn, one complete step at a time.
    ///
    /// On the CPU they share the memory of gradients and logits.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn new_group(
        heads: Vec<(HeadState, Sgd)>,
        options: Options,
        device: &B::Device,
    ) -> Result<Vec<Self>, TrainError> {
        let scratch = Arc::default();
        heads.into_iter().map(|(state, sgd)| Self::with_scratch(state, sgd, options, device, &scratch)).collect()
    }

    fn with_scratch(
        state: HeadState,
        sgd: Sgd,
        options: Options,
        device: &B::Device,
        scratch: &Arc<Mutex<cpu::Scratch>>,
    ) -> Result<Self, TrainError> {
        sgd.check()?;
        options.tiling.check()?;
        for (what, value) in [("classes", state.classes), ("dim", state.dim)] {
            if value == 0 {
                return Err(PredictError::Zero { what }.into());
            }
        }
        if let Some((what, actual, expected)) = state.find_length_mismatch() {
            check_length(what, actual, expected)?;
        }
        let (classes, dim) = (state.classes, state.dim);
        let engine: Box<dyn Engine<B> + Send> = match (options.engine, options.own_gpu(dim)) {
            (EngineKind::Cpu, _) => Box::new(cpu::CpuEngine::new(state, Arc::clone(scratch))),
            (_, Some((gpu, capability))) => Box::new(card::CardEngine::new(state, options, Card::new(gpu, capability))),
            (EngineKind::Gpu | EngineKind::Own { .. }, None) => Box::new(gpu::GpuEngine::new(state, options, device)),
        };
        Ok(Self {
            classes,
            dim,
            sgd,
            options,
            device: device.clone(),
            engine,
            open: None,
            pending: Vec::new(),
            loss_sum: 0.0,
            loss_count: 0,
            step: 0,
            rate: 0.0,
        })
    }

    /// Returns the kernels in use: `direct` on a CPU, `burn`, or the instruction of the products of this crate's own kernels,
    /// `mma.sync` or `wgmma`.
    pub fn kernels(&self) -> &'static str {
        self.engine.kernels()
    }

    /// Restores the counters of an earlier run: updates, and the losses not yet taken.
    #[must_use]
    pub fn resumed(mut self, step: u64, loss_sum: f64, loss_count: u64) -> Self {
        self.step = step;
        self.loss_sum = loss_sum;
        self.loss_count = loss_count;
        self
    }

    /// Adds the gradient and the loss of a micro-batch.
    ///
    /// `effective_batch` is the number of samples of the whole step. Nothing is downloaded from the device.
    ///
    /// # Errors
    /// When a length does not match, a row has no class or one that is not in the head, or the micro-batches of a step
    /// disagree about its size; the gradient is unchanged then. Also when the device fails.
    pub fn accumulate(
        &mut self,
        features: &Features<'_, B>,
        targets: &Targets,
        effective_batch: usize,
    ) -> Result<(), TrainError> {
        let rows = targets.rows();
        match features {
            Features::Host(values) => check_length("features", values.len(), rows.saturating_mul(self.dim))?,
            Features::Device(resident, indices) => {
                let [all, dim] = resident.dims();
                check_length("features", indices.len() * dim, rows.saturating_mul(self.dim))?;
                // Checked here: a device might read other memory instead of failing.
                let last = indices.iter().max().map_or(0, |last| *last as usize + 1);
                check_length("rows", last.max(all), all)?;
            }
        }
        for (row, classes) in targets.iter() {
            if classes.is_empty() {
                return Err(TrainError::NoTarget { row });
            }
            if let Some(&label) = classes.iter().find(|&&class| class as usize >= self.classes) {
                return Err(PredictError::Label { row, label, classes: self.classes }.into());
            }
        }
        let OpenStep { accumulated, effective } =
            self.open.unwrap_or(OpenStep { accumulated: 0, effective: effective_batch });
        if effective != effective_batch || accumulated + rows > effective {
            return Err(TrainError::Accumulation { accumulated: accumulated + rows, expected: effective });
        }
        for range in tile_ranges(rows, self.engine.tile_rows(self.options)) {
            let first = accumulated + range.start == 0;
            self.pending.push(PendingLoss { samples: range.len() as u64, step: self.step + 1, rate: self.rate });
            let features = match features {
                Features::Host(values) => TileFeatures::Host(&values[range.start * self.dim..range.end * self.dim]),
                Features::Device(resident, indices) => resident.tile(&indices[range.clone()]),
            };
            self.engine.add_tile(RowTile {
                features,
                targets: &targets.slice(range),
                effective,
                smoothing: self.sgd.label_smoothing,
                first,
            })?;
        }
        self.open = Some(OpenStep { accumulated: accumulated + rows, effective });
        Ok(())
    }

    /// Updates the head with the accumulated gradient.
    ///
    /// # Errors
    /// When the micro-batches do not add up to the announced samples of the step, or the rate is negative or not
    /// finite.
    pub fn step(&mut self, rate: f64) -> Result<StepReport, TrainError> {
        check_not_negative("learning_rate", rate)?;
        let (accumulated, expected) = self.open.map_or((0, 1), |open| (open.accumulated, open.effective));
        if accumulated != expected {
            return Err(TrainError::Accumulation { accumulated, expected });
        }
        self.engine.update(&self.sgd, rate);
        self.open = None;
        self.step += 1;
        self.rate = rate;
        Ok(StepReport { step: self.step, rate, samples: accumulated })
    }

    /// Returns the gradient norm of the last update, before clipping; `None` without clipping.
    ///
    /// # Errors
    /// When the device fails.
    pub fn grad_norm(&self) -> Result<Option<f64>, TrainError> {
        self.engine.grad_norm()
    }

    /// Returns the sum of the losses since [`Trainer::take_loss`], in nats, and the number of samples.
    ///
    /// Waits for the device, so call it every few steps only.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub fn loss(&mut self) -> Result<(f64, u64), TrainError> {
        let sums = self.engine.take_losses()?;
        for (loss, tile) in sums.into_iter().zip(self.pending.drain(..)) {
            if !loss.is_finite() {
                return Err(TrainError::Loss { step: tile.step, loss, rate: tile.rate });
            }
            // In sample order, so that the sum does not depend on when it is read.
            self.loss_sum += loss;
            self.loss_count += tile.samples;
        }
        Ok((self.loss_sum, self.loss_count))
    }

    /// Returns [`Trainer::loss`] and resets it.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub fn take_loss(&mut self) -> Result<(f64, u64), TrainError> {
        let loss = self.loss()?;
        self.loss_sum = 0.0;
        self.loss_count = 0;
        Ok(loss)
    }

    /// Returns a scorer with the current weights. With burn's kernels on a GPU it shares their memory, otherwise it copies them: drop
    /// it before the next update.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scorer(&self) -> Result<Scorer<B>, TrainError> {
        self.engine.scorer(self.options, &self.device)
    }

    /// Returns weights and momentum; copies them only from a device.
    ///
    /// An accumulated gradient is not included, so save between steps.
    ///
    /// # Errors
    /// When the device fails.
    pub fn view(&self) -> Result<Cow<'_, HeadState>, TrainError> {
        self.engine.state()
    }

    /// Returns a copy of weights and momentum.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<HeadState, TrainError> {
        self.view().map(Cow::into_owned)
    }
}

/// Checks that a setting is finite and not negative.
fn check_not_negative(what: &'static str, value: f64) -> Result<(), TrainError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(TrainError::Setting { what, range: "[0, ∞)", value })
}

#[cfg(test)]
mod tests;
