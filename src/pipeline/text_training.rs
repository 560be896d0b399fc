//! What is particular to training a map into the space of captions' vectors: where it starts, the pairs of a step, validation.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::PipelineError;
use super::feature_store::{FeatureStore, unit};
use super::report::ValidationPoint;
use super::texts::TextStore;
use super::training::TrainJob;
use super::worker::{Device, DeviceWorker, Losses, TextPart, TextStart, damaged};
use crate::catalog::Languages;
use crate::config::raw::Trial;
use crate::predict::metrics::{self, rank_of};
use crate::train::text::{AdamW, RunningMoments, TextHead, TextState};
use crate::train::{HeadState, Progress, Targets, checkpoint};

/// BytePermit-out images that a map is validated on, at most: those whose turn it is by a hash.
const VALIDATED: u64 = 4096;
/// Keeps this use of a seed apart from others.
const VALIDATED_SEED: u64 = 0x7661_6c69_6461_7465;

/// What a map is trained towards.
#[derive(Clone)]
pub(super) struct TextGoal {
    pub(super) store: Arc<TextStore>,
    pub(super) languages: Arc<Languages>,
    /// Values of a caption's vector.
    pub(super) dim: usize,
    /// Values of the hidden layer; 0: none.
    pub(super) hidden: usize,
}

fn adam(job: &TrainJob, trial: &Trial) -> AdamW {
    let Trial { momentum, weight_decay, .. } = *trial;
    AdamW { momentum, weight_decay, clip_norm: job.settings.clip_norm }
}

/// New maps, one for each trial.
pub(super) fn new(job: &TrainJob, goal: &TextGoal, trials: &[Trial], features: &RunningMoments) -> Vec<TextStart> {
    let statistics = [features.mean(), features.std(), goal.store.mean().to_vec()];
    let start = |trial: &Trial| {
        let state = TextState::new(TextHead::init(statistics.clone(), goal.hidden, job.seed));
        TextStart { state, adam: adam(job, trial), loss: (0.0, 0) }
    };
    trials.iter().map(start).collect()
}

/// A trial's map at a step, if it is of this generation.
pub(super) fn resumed(
    job: &TrainJob,
    trial: &Trial,
    copy: &std::path::Path,
) -> Result<Option<(TextStart, Progress)>, PipelineError> {
    let (state, progress) = checkpoint::load_text(copy).map_err(damaged)?;
    let same = progress.hashes.get("train") == Some(&job.generation);
    let loss: Losses = (progress.loss_sum, progress.loss_count);
    let fits = same && state.head.input == job.shape.dim;
    Ok(fits.then(|| (TextStart { state, adam: adam(job, trial), loss }, progress)))
}

/// Mean and spread of the features of the training side.
pub(super) fn statistics(store: &FeatureStore) -> Result<RunningMoments, PipelineError> {
    let mut running = RunningMoments::default();
    let mut row_values = Vec::new();
    for index in 0..store.len() {
        for chunk in store.chunks(&[index])? {
            for row in chunk.training_rows() {
                row_values.clear();
                chunk.feature(row, &mut row_values);
                running.add(&row_values);
            }
        }
    }
    Ok(running)
}

/// The micro-batches of a step. Each row of `targets` is the pair's caption, then all captions of its image.
pub(super) fn parts(store: &TextStore, targets: &Targets, batch: usize) -> Result<Vec<TextPart>, PipelineError> {
    let rows = targets.rows();
    let part = |first: usize| {
        let span = first..(first + batch).min(rows);
        let own: Vec<u32> = span.clone().filter_map(|row| targets.row(row).first().copied()).collect();
        let mut columns: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (column, class) in own.iter().enumerate() {
            columns.entry(*class).or_default().push(column as u32);
        }
        let mut masked_negatives = Vec::new();
        for (row, at) in span.clone().enumerate() {
            for class in &targets.row(at)[1..] {
                let same = columns.get(class).into_iter().flatten();
                masked_negatives
                    .extend(same.filter(|column| **column != row as u32).map(|column| (row as u32, *column)));
            }
        }
        Ok(TextPart { span, captions: store.centred(&own)?, masked_negatives })
    };
    (0..rows).step_by(batch.max(1)).map(part).collect()
}

/// Images that are held out, with what they are to be ranked among.
pub(super) struct HeldOut {
    /// `[images, dim]`.
    pub(super) features: Vec<f32>,
    /// The captions of each image, by their place among `captions`.
    pub(super) captions_of: Targets,
    /// Captions of these images: numbers of classes, ascending.
    pub(super) captions: Vec<u32>,
    /// Their vectors, `[captions, dim]`.
    pub(super) vectors: Vec<f32>,
    /// URL of each image.
    pub(super) urls: Vec<Box<str>>,
}

impl HeldOut {
    /// Reads them; `vectors_of` gives captions' vectors, `validation_rows` are by chunk. Blocks.
    pub(super) fn read(
        store: &FeatureStore,
        vectors_of: impl FnOnce(&[u32]) -> Result<Vec<f32>, PipelineError>,
        validation_rows: &[u64],
        seed: u64,
    ) -> Result<Self, PipelineError> {
        let share = VALIDATED as f64 / validation_rows.iter().sum::<u64>().max(1) as f64;
        let (mut features, mut labels, mut urls) = (Vec::new(), Targets::default(), Vec::new());
        for (index, _) in validation_rows.iter().enumerate().filter(|(_, rows)| **rows > 0) {
            for chunk in store.chunks(&[index])? {
                let chosen = |row: u32| unit(&[seed ^ VALIDATED_SEED, index as u64, u64::from(row)]) < share;
                for (row, url) in chunk.validation.iter().copied().zip(&chunk.validation_urls) {
                    if chosen(row) {
                        chunk.feature(row, &mut features);
                        labels.push(chunk.classes(row));
                        urls.push(url.clone());
                    }
                }
            }
        }
        let mut captions = labels.classes().to_vec();
        captions.sort_unstable();
        captions.dedup();
        let mut captions_of = Targets::default();
        for (_, classes) in labels.iter() {
            let places = classes.iter().filter_map(|class| captions.binary_search(class).ok());
            captions_of.push(&places.map(|place| place as u32).collect::<Vec<_>>());
        }
        let vectors = vectors_of(&captions)?;
        Ok(Self { features, captions_of, captions, vectors, urls })
    }

    /// Images.
    pub(super) fn images(&self) -> usize {
        self.captions_of.rows()
    }

    /// How well a map ranks these captions for these images; it is on the device. `scale`: what similarities are multiplied by.
    pub(super) async fn score(
        self: &Arc<Self>,
        device: &Device,
        scale: f32,
        (step, epoch, trial): (u64, u32, u32),
    ) -> Result<ValidationPoint, PipelineError> {
        let mut tally = metrics::Tally::default();
        let mut loss = 0.0;
        let (images, captions, dim) =
            (self.images(), self.captions.len(), self.vectors.len() / self.captions.len().max(1));
        if captions > 0 {
            let own = Arc::clone(self);
            let queries = device.call(move |worker| worker.project(&own.features, images)).await?;
            let weight = self.vectors.iter().map(|value| value * scale).collect();
            let head = scorer_of(weight, vec![0.0; captions], dim);
            device.call(move |worker| worker.load_scorer(&head)).await?;
            let (mut rows, mut labels) = (Vec::new(), Vec::new());
            for (image, places) in self.captions_of.iter() {
                for place in places {
                    rows.extend_from_slice(&queries[image * dim..(image + 1) * dim]);
                    labels.push(*place);
                }
            }
            let asked = labels.clone();
            let scored = device.call(move |worker| worker.score(&rows, &labels, 5)).await?;
            for (label, row) in asked.iter().zip(&scored) {
                tally.add(rank_of(*label, &row.top.classes));
                loss += row.loss;
            }
            device.tell(DeviceWorker::unload_scorer).await?;
        }
        Ok(ValidationPoint {
            step,
            epoch,
            loss: loss / tally.ids().max(1) as f64,
            ndcg5: tally.ndcg5(),
            ndcg5_ceiling: metrics::ceiling(self.captions_of.iter().map(|(_, places)| places.len() as u64)),
            recall1: tally.recall1(),
            recall5: tally.recall5(),
            trial,
        })
    }
}

/// Captions' vectors as a head that ranks them.
pub(super) fn scorer_of(weight: Vec<f32>, bias: Vec<f32>, dim: usize) -> HeadState {
    HeadState { classes: bias.len(), dim, weight, bias, weight_momentum: Vec::new(), bias_momentum: Vec::new() }
}
