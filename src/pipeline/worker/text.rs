//! The device's part in captions' vectors: the text encoder, and maps from features into its space.

use std::ops::Range;
use std::path::Path;

use burn::tensor::DType;

use super::{DeviceWorker, Losses, absent, give_back, model_error};
use crate::config::value::Precision;
use crate::model::text::{TextCheckpoint, TextEncoder, TextNumerics};
use crate::pipeline::PipelineError;
use crate::pipeline::feature_store::Rows;
use crate::train::text::{AdamW, ContrastiveBatch, Projector, TextHead, TextState, TextTrainer};
use crate::train::{CheckpointError, Features, Progress, checkpoint};

/// Where a map's training starts.
pub(in crate::pipeline) struct TextStart {
    pub(in crate::pipeline) state: TextState,
    pub(in crate::pipeline) adam: AdamW,
    /// The losses that were not taken yet.
    pub(in crate::pipeline) loss: Losses,
}

/// Pairs of a step that are told apart from each other.
pub(in crate::pipeline) struct TextPart {
    /// Rows of the step.
    pub(in crate::pipeline) span: Range<usize>,
    /// Vectors of their captions, `[rows, dim]`.
    pub(in crate::pipeline) captions: Vec<f32>,
    /// Rows and captions that are no negatives of each other.
    pub(in crate::pipeline) masked_negatives: Vec<(u32, u32)>,
}

impl DeviceWorker {
    /// Puts the text encoder on the device.
    pub(in crate::pipeline) fn load_text_encoder(
        &mut self,
        checkpoint: &TextCheckpoint,
        precision: Precision,
    ) -> Result<(), PipelineError> {
        // A CPU computes in f32.
        let half = precision == Precision::Bf16 && self.numerics.fused;
        let format = if half { DType::BF16 } else { DType::F32 };
        let encoder = TextEncoder::load(checkpoint, TextNumerics { format }, &self.device).map_err(model_error)?;
        self.text_encoder = Some(encoder);
        Ok(())
    }

    /// The vectors of captions by their token numbers, computed in a batch of `all` rows of `tokens` tokens.
    pub(in crate::pipeline) fn embed(
        &mut self,
        captions: &[Vec<u32>],
        tokens: usize,
        all: usize,
    ) -> Result<Vec<f32>, PipelineError> {
        let encoder = self.text_encoder.as_ref().ok_or_else(|| absent("text encoder"))?;
        let mut rows: Vec<&[u32]> = captions.iter().map(Vec::as_slice).collect();
        rows.resize(all.max(captions.len()), &[]);
        let mut vectors = encoder.embed(&rows, tokens).map_err(model_error)?;
        vectors.truncate(captions.len() * encoder.dim());
        Ok(vectors)
    }

    /// Frees the text encoder.
    pub(in crate::pipeline) fn unload_text_encoder(&mut self) {
        self.text_encoder = None;
        give_back(&self.device);
    }

    fn text_trainer(&mut self, trial: usize) -> Result<&mut TextTrainer<crate::model::Any>, PipelineError> {
        self.text_trainers.get_mut(trial).ok_or_else(|| absent("trainer"))
    }

    /// Puts maps and their optimisers on the device, those of a sweep in their order; `step`: the updates that they have made.
    pub(in crate::pipeline) fn load_text_trainers(
        &mut self,
        starts: Vec<TextStart>,
        step: u64,
    ) -> Result<(), PipelineError> {
        let device = self.device.clone();
        let trainer = |start: TextStart| TextTrainer::new(start.state, start.adam, step, start.loss, &device);
        self.text_trainers = starts.into_iter().map(trainer).collect::<Result<_, _>>().map_err(model_error)?;
        Ok(())
    }

    /// One update of each map, at its own rate; the losses of each since they were last taken, where asked for.
    pub(in crate::pipeline) fn train_text(
        &mut self,
        features: &Rows,
        parts: &[TextPart],
        rates: &[f64],
        loss: bool,
    ) -> Result<Option<Vec<Losses>>, PipelineError> {
        let rows = parts.iter().map(|part| part.span.len()).sum();
        for (trainer, rate) in self.text_trainers.iter_mut().zip(rates) {
            for TextPart { span, captions, masked_negatives } in parts {
                let features = match features {
                    Rows::Host { values, dim } => Features::Host(&values[span.start * dim..span.end * dim]),
                    Rows::Kept(indices) => {
                        let kept = self.kept.as_ref().ok_or_else(|| absent("set of features"))?;
                        Features::Device(kept, &indices[span.clone()])
                    }
                };
                trainer
                    .accumulate(&features, ContrastiveBatch { captions, masked_negatives }, rows)
                    .map_err(model_error)?;
            }
            trainer.step(*rate).map_err(model_error)?;
        }
        if loss { self.take_losses().map(Some) } else { Ok(None) }
    }

    /// Saves a map and its optimiser.
    pub(super) fn save_text(
        &mut self,
        trial: usize,
        dir: &Path,
        mut progress: Progress,
    ) -> Result<Result<(), CheckpointError>, PipelineError> {
        let trainer = self.text_trainer(trial)?;
        (progress.loss_sum, progress.loss_count) = trainer.loss().map_err(model_error)?;
        let state = trainer.state().map_err(model_error)?;
        Ok(checkpoint::save_text(dir, &state, &progress))
    }

    /// Puts a map there to project with.
    pub(in crate::pipeline) fn load_projector(&mut self, head: &TextHead) -> Result<(), PipelineError> {
        self.projector = Some(Projector::new(head, &self.device).map_err(model_error)?);
        Ok(())
    }

    /// Projects with a map that is being trained, as it is now; gives what similarities are multiplied by.
    pub(in crate::pipeline) fn project_with_trainer(&mut self, trial: usize) -> Result<f32, PipelineError> {
        let trainer = self.text_trainer(trial)?;
        let scale = trainer.state().map_err(model_error)?.head.scale();
        self.projector = Some(trainer.projector());
        Ok(scale)
    }

    /// Features as vectors in the captions' space, `[rows, dim]`.
    pub(in crate::pipeline) fn project(&mut self, features: &[f32], rows: usize) -> Result<Vec<f32>, PipelineError> {
        let projector = self.projector.as_ref().ok_or_else(|| absent("map"))?;
        projector.project(features, rows).map_err(model_error)
    }

    /// Frees the map.
    pub(in crate::pipeline) fn unload_projector(&mut self) {
        self.projector = None;
    }
}
