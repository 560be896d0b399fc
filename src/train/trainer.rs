//! Training of the head in closed form.
//!
//! With logits `X · Wᵀ + b`, targets `T` whose rows sum to 1, and the mean cross-entropy over the B samples of a step, the
//! gradient of the logits is `D = (softmax − T) / B`, that of the weight `Dᵀ · X`, that of the bias the column sums of `D`. Label smoothing
//! ε makes `(1 − ε) · T + ε / classes` of the targets, as in `PyTorch`'s `CrossEntropyLoss`.
//!
//! The update is `PyTorch`'s SGD (dampening 0, no Nesterov): with clipping `g ← g · min(1, c / (‖g‖ + 1e-6))` over weight and
//! bias together (`clip_grad_norm_`), `g ← g + λ · w` for both, `v ← μ · v + g`, `w ← w − rate · v`.
//! Dividing by the samples of the whole step equals what the Hugging Face trainer does with equal
//! micro-batches (each mean divided by their number), and stays a mean when the last one is shorter.
//!
//! Two engines do it: [`host`] on the CPU, over plain vectors, and [`card`] on a device, in tensors. Weights, momentum and
//! gradient are f32, 12 bytes a weight in all; a bf16 product rounds the gradient to bf16 on its way.

mod card;
mod host;

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{HeadState, Targets, TrainError};
use crate::predict::PredictError;
use crate::predict::scorer::{Scorer, length};
use crate::predict::tiles::{Blocks, Compute, as_type, spans, upload};

/// What `PyTorch`'s `clip_grad_norm_` adds to the norm.
const CLIP_EPSILON: f64 = 1e-6;

/// Settings of the optimiser, and of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sgd {
    /// Share of the velocity that is kept, in [0, 1); 0 is plain SGD.
    pub momentum: f64,
    /// Share of the weights (bias included, as in `torch.optim.SGD`) that is added to the gradient; 0 for none.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip_norm: f64,
    /// Share of each target that is spread over all classes, in [0, 1); 0 for none.
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
            not_negative(what, value)?;
        }
        for (what, value) in [("momentum", momentum), ("label_smoothing", label_smoothing)] {
            if value >= 1.0 {
                return Err(TrainError::Setting { what, range: "[0, 1)", value });
            }
        }
        Ok(())
    }
}

/// Where the work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// On the CPU, over plain vectors; products are in f32 whatever is asked for.
    #[default]
    Host,
    /// On the device, in the backend's tensors.
    Device,
}

/// How the work is done; the result does not depend on it beyond rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Blocks of rows and tiles of classes.
    pub blocks: Blocks,
    /// Type of the matrix products.
    pub compute: Compute,
    /// Where.
    pub place: Place,
}

/// One update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Updates so far, this one included.
    pub step: u64,
    /// The learning rate.
    pub rate: f64,
    /// Samples that the gradient was the mean of.
    pub samples: usize,
}

/// Rows of features that stay on a device, for all epochs.
pub struct Kept<B: Backend> {
    rows: Tensor<B, 2>,
}

impl<B: Backend> Kept<B> {
    /// Room for rows, which are zero until they are put there.
    pub fn new(rows: usize, dim: usize, format: DType, device: &B::Device) -> Self {
        Self { rows: Tensor::zeros([rows, dim], (device, format)) }
    }

    /// Puts rows there, `[n, dim]` row-major, rounded to the format.
    ///
    /// # Errors
    /// When they are not whole rows, or more than there is room for.
    pub fn put(&mut self, first: usize, values: &[f32]) -> Result<(), TrainError> {
        let [all, dim] = self.rows.dims();
        let count = values.len() / dim.max(1);
        length("features", values.len(), count * dim)?;
        length("rows", (first + count).max(all), all)?;
        let part = as_type(upload(values, count, dim, &self.rows.device()), self.rows.dtype());
        self.rows.inplace(|rows| rows.slice_assign([first..first + count, 0..dim], part));
        Ok(())
    }

    /// `[indices.len(), dim]`, in f32.
    pub(super) fn select(&self, indices: &[u32]) -> Tensor<B, 2> {
        let indices: Vec<i64> = indices.iter().map(|index| i64::from(*index)).collect();
        let count = indices.len();
        let indices = Tensor::<B, 1, Int>::from_data(TensorData::new(indices, [count]), &self.rows.device());
        as_type(self.rows.clone().select(0, indices), DType::F32)
    }
}

/// Features of a micro-batch.
pub enum Features<'a, B: Backend> {
    /// `[rows, dim]` row-major.
    Host(&'a [f32]),
    /// Some of the rows that stay on the device.
    Kept(&'a Kept<B>, &'a [u32]),
}

/// Features of a block of rows.
enum Block<'a, B: Backend> {
    Host(&'a [f32]),
    /// `[rows, dim]`, f32.
    Device(Tensor<B, 2>),
}

/// A block of rows on its way to an engine; there is at least one, and each has a class.
struct Part<'a, B: Backend> {
    features: Block<'a, B>,
    targets: &'a Targets,
    /// Samples of the whole step.
    effective: usize,
    smoothing: f64,
    /// Whether the gradient starts with it.
    first: bool,
}

/// What holds the head and works on it.
trait Engine<B: Backend> {
    /// Adds a block to the gradient, and its loss to the losses.
    ///
    /// # Errors
    /// When the device fails.
    fn add(&mut self, part: Part<'_, B>) -> Result<(), TrainError>;
    /// Updates the head with the gradient, which then starts anew.
    fn update(&mut self, sgd: &Sgd, rate: f64);
    /// The summed loss of each block since the last call, in their order.
    fn take_losses(&mut self) -> Result<Vec<f64>, TrainError>;
    /// The norm of the last update's gradient.
    fn norm(&self) -> Result<Option<f64>, TrainError>;
    /// Weights and momentum; borrowed where they are on the host.
    fn state(&self) -> Result<Cow<'_, HeadState>, TrainError>;
    /// A scorer over the head as it is now.
    fn scorer(&self, options: Options, device: &B::Device) -> Result<Scorer<B>, TrainError>;
}

/// A block whose loss was not looked at yet.
struct PendingLoss {
    samples: u64,
    step: u64,
    rate: f64,
}

/// Samples of the step at work, so far and in all.
#[derive(Clone, Copy)]
struct OpenStep {
    accumulated: usize,
    effective: usize,
}

/// The head and its optimiser.
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
    /// Puts a head where `options` say.
    ///
    /// # Errors
    /// When a dim or a block length is zero, a length does not fit, or a setting cannot work.
    pub fn new(state: HeadState, sgd: Sgd, options: Options, device: &B::Device) -> Result<Self, TrainError> {
        Self::with_scratch(state, sgd, options, device, &Arc::default())
    }

    /// Several heads that are trained in turn, each with whole steps: on the host they share the memory of gradient and logits.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn several(
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
        scratch: &Arc<Mutex<host::Scratch>>,
    ) -> Result<Self, TrainError> {
        sgd.check()?;
        options.blocks.check()?;
        for (what, value) in [("classes", state.classes), ("dim", state.dim)] {
            if value == 0 {
                return Err(PredictError::Zero { what }.into());
            }
        }
        if let Some((what, actual, expected)) = state.misfit() {
            length(what, actual, expected)?;
        }
        let (classes, dim) = (state.classes, state.dim);
        let engine: Box<dyn Engine<B> + Send> = match options.place {
            Place::Host => Box::new(host::Host::new(state, Arc::clone(scratch))),
            Place::Device => Box::new(card::Card::new(state, options, device)),
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

    /// Continues the counts of an earlier run: updates made, and the losses that were not taken yet.
    #[must_use]
    pub fn resumed(mut self, step: u64, loss_sum: f64, loss_count: u64) -> Self {
        self.step = step;
        self.loss_sum = loss_sum;
        self.loss_count = loss_count;
        self
    }

    /// Adds a micro-batch to the gradient and to the loss.
    ///
    /// `effective_batch` is the number of samples of the whole step. Nothing is read back from the device.
    ///
    /// # Errors
    /// When a length does not fit, a class is outside the head's, a row has none, or the micro-batches of a step disagree about its
    /// size: the gradient is untouched then. Or when the device fails.
    pub fn accumulate(
        &mut self,
        features: &Features<'_, B>,
        targets: &Targets,
        effective_batch: usize,
    ) -> Result<(), TrainError> {
        let rows = targets.rows();
        match features {
            Features::Host(values) => length("features", values.len(), rows.saturating_mul(self.dim))?,
            Features::Kept(kept, indices) => {
                let [all, dim] = kept.rows.dims();
                length("features", indices.len() * dim, rows.saturating_mul(self.dim))?;
                // A device may read elsewhere instead.
                let last = indices.iter().max().map_or(0, |last| *last as usize + 1);
                length("rows", last.max(all), all)?;
            }
        }
        for (row, of_row) in targets.iter() {
            if of_row.is_empty() {
                return Err(TrainError::NoTarget { row });
            }
            if let Some(&label) = of_row.iter().find(|&&class| class as usize >= self.classes) {
                return Err(PredictError::Label { row, label, classes: self.classes }.into());
            }
        }
        let OpenStep { accumulated, effective } =
            self.open.unwrap_or(OpenStep { accumulated: 0, effective: effective_batch });
        if effective != effective_batch || accumulated + rows > effective {
            return Err(TrainError::Accumulation { accumulated: accumulated + rows, expected: effective });
        }
        for span in spans(rows, self.options.blocks.rows) {
            let first = accumulated + span.start == 0;
            self.pending.push(PendingLoss { samples: span.len() as u64, step: self.step + 1, rate: self.rate });
            let features = match features {
                Features::Host(values) => Block::Host(&values[span.start * self.dim..span.end * self.dim]),
                Features::Kept(kept, indices) => Block::Device(kept.select(&indices[span.clone()])),
            };
            self.engine.add(Part {
                features,
                targets: &targets.part(span),
                effective,
                smoothing: self.sgd.label_smoothing,
                first,
            })?;
        }
        self.open = Some(OpenStep { accumulated: accumulated + rows, effective });
        Ok(())
    }

    /// Updates the head with what was accumulated since the last update.
    ///
    /// # Errors
    /// When the micro-batches do not add up to the announced step, or the rate is negative or not finite.
    pub fn step(&mut self, rate: f64) -> Result<StepReport, TrainError> {
        not_negative("learning_rate", rate)?;
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

    /// The norm of the last update's gradient before clipping; `None` without clipping.
    ///
    /// # Errors
    /// When the device fails.
    pub fn grad_norm(&self) -> Result<Option<f64>, TrainError> {
        self.engine.norm()
    }

    /// Sum of the losses since they were last taken, in nats, and the number of samples.
    ///
    /// Reads from the device what was not read yet; ask every few steps, not each one.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub fn loss(&mut self) -> Result<(f64, u64), TrainError> {
        let sums = self.engine.take_losses()?;
        for (loss, entry) in sums.into_iter().zip(self.pending.drain(..)) {
            if !loss.is_finite() {
                return Err(TrainError::Loss { step: entry.step, loss, rate: entry.rate });
            }
            // In the order of the samples, so that the sum does not depend on when it is read.
            self.loss_sum += loss;
            self.loss_count += entry.samples;
        }
        Ok((self.loss_sum, self.loss_count))
    }

    /// As [`Trainer::loss`], and starts anew.
    ///
    /// # Errors
    /// When a loss is not finite, or the device fails.
    pub fn take_loss(&mut self) -> Result<(f64, u64), TrainError> {
        let loss = self.loss()?;
        self.loss_sum = 0.0;
        self.loss_count = 0;
        Ok(loss)
    }

    /// A scorer over the head as it is now; on a device it shares the tiles, so drop it before the next update.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scorer(&self) -> Result<Scorer<B>, TrainError> {
        self.engine.scorer(self.options, &self.device)
    }

    /// Weights and momentum, on the host; a copy only where they are on a device.
    ///
    /// A gradient that was accumulated but not applied is not part of it: save between steps.
    ///
    /// # Errors
    /// When the device fails.
    pub fn view(&self) -> Result<Cow<'_, HeadState>, TrainError> {
        self.engine.state()
    }

    /// As [`Trainer::view`], a copy in any case.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<HeadState, TrainError> {
        self.view().map(Cow::into_owned)
    }
}

fn not_negative(what: &'static str, value: f64) -> Result<(), TrainError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(TrainError::Setting { what, range: "[0, ∞)", value })
}

#[cfg(test)]
mod tests;
