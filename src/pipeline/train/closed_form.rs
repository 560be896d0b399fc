//! Heads in closed form: one pass over the features, then a choice of the settings on the held-out images.
//!
//! The pass visits chunks and rows in the order of the corpus, so a fit that was killed starts again and ends with the same
//! bytes.

use std::sync::Arc;

use super::checkpoints::{self, CURVE_FILE};
use super::chunk::{Chunk, SampleSpec};
use super::curve::Curve;
use super::feature_store::{ChunkSet, FeaturePlacement, FeatureStore, resident_bytes};
use super::held_out::{HeldOut, HeldOutSample};
use super::inventory::{Inventory, InventorySpec};
use super::session::save_error;
use super::{TrainJob, head};
use crate::catalog::Languages;
use crate::chunk::features::READ_BYTES;
use crate::pipeline::captions::VectorStore;
use crate::pipeline::device::{linear_layer, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{ClosedFormReport, MixingReport, TrainingReport, ValidationPoint};
use crate::predict::metrics::{self, Tally, rank_of};
use crate::train::closed_form::{
    Answers, Candidate, ClassMoments, ClassTargets, Covariances, DEFAULT_SHRINKAGE, HeldOutPairs, PairMoments, Ridge,
    SHRINKAGES, choose_projection, map_pairs, score_mixed,
};
use crate::train::{HeadState, Progress, checkpoint};

/// Captions that a head is fitted to.
pub(super) enum Captions {
    /// Vectors of the classes' captions, and their languages.
    Vectors { vectors: Arc<VectorStore>, languages: Arc<Languages> },
    /// The number of classes of a classifier.
    Classes(usize),
}

/// The only step of a fit.
const STEP: u64 = 1;
/// Captions ranked for a held-out image.
const TOP_K: usize = 5;
/// Held-out images that a classifier is scored on at a time.
const SCORED_ROWS: usize = 1024;

/// Inputs of a fit.
struct Fit {
    job: TrainJob,
    inventory: Inventory,
    held_out: HeldOut,
}

/// A classifier, its settings and its scores.
type FittedClassifier = (Candidate, Arc<HeadState>, Option<ValidationPoint>);

/// A head and its description.
struct Fitted {
    chosen: Candidate,
    candidates: Vec<Candidate>,
    validation: Option<ValidationPoint>,
}

/// Fits a head; `None` if there is no sample to fit to.
///
/// # Errors
/// When a chunk, the disk or the device fails; [`PipelineError::Stopped`] if the run has to stop.
pub(super) async fn train(job: TrainJob, captions: Captions) -> Result<Option<TrainingReport>, PipelineError> {
    let fit = Fit::read(job, &captions).await?;
    let samples = fit.inventory.epoch_samples(0);
    if samples == 0 {
        return Ok(None);
    }
    fit.job.stage_progress.set_total(samples);
    fit.job.ctx.events.stage_started(&fit.job.stage_progress);
    // What an interrupted fit left. A finished one is not made again.
    fit.job.ctx.dir.sweep(checkpoints::FOLDER, |_| false)?;
    let fit = Arc::new(fit);
    let fitted = match captions {
        Captions::Vectors { vectors, languages } => fit_projection(&fit, vectors, languages).await?,
        Captions::Classes(classes) => fit_classifier(&fit, classes).await?,
    };
    fit.job.ctx.events.stage_finished(&fit.job.stage_progress);
    let Fitted { chosen, candidates, validation } = fitted;
    Ok(Some(TrainingReport {
        steps: STEP,
        samples,
        validation_images: fit.inventory.validation_images,
        mixing: MixingReport::default(),
        validation,
        best: validation,
        validations: validation.into_iter().collect(),
        closed_form: Some(ClosedFormReport { method: fit.job.settings.method.to_string(), chosen, candidates }),
        ..TrainingReport::default()
    }))
}

impl Fit {
    /// Counts the samples and reads the held-out images, with the vectors of their captions.
    async fn read(job: TrainJob, captions: &Captions) -> Result<Self, PipelineError> {
        let vectors = match captions {
            Captions::Vectors { vectors, .. } => Some(Arc::clone(vectors)),
            Captions::Classes(_) => None,
        };
        tokio::task::spawn_blocking(move || {
            let spec = InventorySpec {
                split: job.split,
                targets: job.settings.targets,
                dim: job.shape.dim,
                epochs: 1,
                balanced: None,
            };
            let mut held_out = HeldOutSample::new(job.split.seed, job.shape.dim);
            let budget = &job.ctx.budget;
            let bytes = READ_BYTES + job.ctx.config.limits().memory.0 / head::HELD_OUT_SHARE;
            let permit = budget.acquire_blocking(bytes.min(budget.limit_bytes() - budget.in_flight_bytes()));
            let inventory = Inventory::read(&job.features, &spec, &mut held_out)?;
            drop(permit);
            let held_out = held_out.finish(|captions| match vectors {
                Some(vectors) => vectors.read_centred(captions),
                None => Ok(Vec::new()),
            })?;
            Ok(Self { job, inventory, held_out })
        })
        .await?
    }

    /// Passes each training image with a caption to `add`: its feature, its classes, and the share of this view. Blocks the
    /// thread.
    fn visit_images(
        &self,
        mut add: impl FnMut(&[f32], &[u32], f64) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let Self { job, inventory, .. } = self;
        let spec = SampleSpec {
            split: job.split,
            dim: job.shape.dim,
            targets: job.settings.targets,
            contrastive: false,
            balance: None,
        };
        let chunk_bytes =
            |(rows, labels): &(u64, u64)| resident_bytes(*rows, *labels, job.shape.dim, job.shape.precision);
        let bytes = inventory.sizes.iter().map(chunk_bytes).collect();
        let chunks = ChunkSet { dir: job.ctx.dir.clone(), files: inventory.files.clone(), bytes };
        let store = FeatureStore::new(chunks, spec, FeaturePlacement::Files, job.ctx.budget.clone());
        let mut feature = Vec::with_capacity(job.shape.dim);
        store.try_visit_chunks(|chunk: &Chunk| {
            if let Some(signal) = job.ctx.shutdown.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            let share = 1.0 / f64::from(chunk.rows.views.max(1));
            for row in chunk.rows.training_rows() {
                let classes = chunk.rows.classes(row);
                if !classes.is_empty() {
                    feature.clear();
                    chunk.copy_feature(row, &mut feature);
                    add(&feature, classes, share)?;
                }
            }
            job.stage_progress.add(chunk.rows.samples.len() as u64);
            Ok(())
        })
    }

    /// Writes the curve with the only validation, then the checkpoint, which `save` writes to a folder.
    fn commit(
        &self,
        validation: Option<ValidationPoint>,
        save: impl FnOnce(&std::path::Path, &Progress) -> Result<(), checkpoint::CheckpointError>,
    ) -> Result<(), PipelineError> {
        let (job, dir) = (&self.job, &self.job.ctx.dir);
        let curve = Curve { losses: Vec::new(), validations: validation.into_iter().collect() };
        let content = curve.to_csv().map_err(|error| PipelineError::Internal(error.to_string()))?;
        dir.write(CURVE_FILE, &content)?;
        let progress = Progress {
            step: STEP,
            epoch: 1,
            seed: job.split.seed,
            best: validation.map(|point| point.ndcg5),
            hashes: [("train".to_owned(), job.generation.clone())].into(),
            ..Progress::default()
        };
        let name = checkpoints::folder_name(STEP, 0);
        save(&dir.temporary(&name)?, &progress).map_err(save_error)?;
        dir.publish_folder(&name)?;
        Ok(())
    }

    /// Returns a validation point with the ceiling of the held-out images.
    fn validation(&self, loss: f64, ndcg5: f64, recall: [f64; 2]) -> ValidationPoint {
        let captions_per_image = self.held_out.captions_of.iter().map(|(_, captions)| captions.len() as u64);
        ValidationPoint {
            step: STEP,
            epoch: 1,
            loss,
            ndcg5,
            ndcg5_ceiling: metrics::ceiling(captions_per_image),
            recall1: recall[0],
            recall5: recall[1],
            trial: 0,
        }
    }
}

async fn fit_projection(
    fit: &Arc<Fit>,
    vectors: Arc<VectorStore>,
    languages: Arc<Languages>,
) -> Result<Fitted, PipelineError> {
    let fit = Arc::clone(fit);
    tokio::task::spawn_blocking(move || {
        let held = &fit.held_out;
        let mut moments = PairMoments::new(fit.job.shape.dim, vectors.mean().len());
        fit.visit_images(|feature, classes, share| {
            moments.add(feature, &vectors.read_centred(classes)?, share);
            Ok(())
        })?;
        let covariances = finish(moments)?;
        let language_of = |place: u32| languages.code(held.captions[place as usize]);
        let answers = Answers::new(&held.captions_of, language_of);
        let pairs = HeldOutPairs { features: &held.features, captions: &held.vectors, answers };
        let pairs = Some(pairs).filter(|pairs| !pairs.answers.is_empty());
        let method = fit.job.settings.method;
        let (head, chosen, candidates) =
            choose_projection(method, &covariances, vectors.mean(), pairs.as_ref()).map_err(model_error)?;
        let validation = pairs.map(|pairs| {
            let mapped = map_pairs(&head, &pairs);
            let scale = f64::from(head.scale());
            let scores = score_mixed(&mapped.images, &mapped.captions, head.output, scale, &pairs.answers);
            fit.validation(scores.loss, scores.ndcg5, [scores.recall1, scores.recall5])
        });
        fit.commit(validation, |dir, progress| checkpoint::save_text_head(dir, &head, progress))?;
        Ok(Fitted { chosen, candidates, validation })
    })
    .await?
}

/// Returns the standardised covariances of all images.
fn finish(moments: PairMoments) -> Result<Covariances, PipelineError> {
    let mut covariances = moments.finish().map_err(model_error)?;
    covariances.standardise();
    Ok(covariances)
}

async fn fit_classifier(fit: &Arc<Fit>, classes: usize) -> Result<Fitted, PipelineError> {
    let own = Arc::clone(fit);
    let sums = move || {
        let dim = own.job.shape.dim;
        let (mut moments, mut sums) = (PairMoments::new(dim, 0), ClassMoments::new(classes, dim));
        own.visit_images(|feature, labels, share| {
            moments.add(feature, &[], share);
            sums.add(feature, labels, share);
            Ok(())
        })?;
        Ok::<_, PipelineError>((finish(moments)?, sums))
    };
    let sums = Arc::new(tokio::task::spawn_blocking(sums).await??);
    let has_held_out = fit.held_out.captions_of.iter().any(|(_, labels)| !labels.is_empty());
    let shrinkages = if has_held_out { &SHRINKAGES[..] } else { &[DEFAULT_SHRINKAGE] };
    let targets = if has_held_out { &[ClassTargets::Means, ClassTargets::OneHot][..] } else { &[ClassTargets::Means] };
    let (mut best, mut candidates) = (None::<FittedClassifier>, Vec::new());
    for shrinkage in shrinkages {
        let (own, shrinkage) = (Arc::clone(&sums), *shrinkage);
        let ridge = tokio::task::spawn_blocking(move || Ridge::new(&own.0, shrinkage)).await?.map_err(model_error)?;
        let ridge = Arc::new(ridge);
        for targets in targets {
            let (own, ridge, kind, dim) = (Arc::clone(&sums), Arc::clone(&ridge), *targets, fit.job.shape.dim);
            let solve = move || ridge.classifier(&own.0, &own.1, kind);
            let (weight, bias) = tokio::task::spawn_blocking(solve).await?;
            let head = Arc::new(linear_layer(weight, bias, dim));
            let point = if has_held_out { Some(score_classifier(fit, &head).await?) } else { None };
            let ndcg5 = point.map(|point| point.ndcg5);
            let candidate =
                Candidate { shrinkage, targets: Some(kind.as_str().to_owned()), ndcg5, ..Candidate::default() };
            candidates.push(candidate.clone());
            if best.as_ref().is_none_or(|(best, ..)| candidate.ndcg5 > best.ndcg5) {
                best = Some((candidate, head, point));
            }
        }
    }
    let nothing = || PipelineError::Internal("no classifier was fitted".to_owned());
    let (chosen, head, validation) = best.ok_or_else(nothing)?;
    let own = Arc::clone(fit);
    let commit = move || own.commit(validation, |dir, progress| checkpoint::save_head(dir, &head, progress));
    tokio::task::spawn_blocking(commit).await??;
    Ok(Fitted { chosen, candidates, validation })
}

/// Scores a classifier on the held-out images.
async fn score_classifier(fit: &Fit, head: &Arc<HeadState>) -> Result<ValidationPoint, PipelineError> {
    let HeldOut { features, captions_of, captions, .. } = &fit.held_out;
    let scorer = fit.job.device.load_scorer(Arc::clone(head)).await?;
    let (mut tally, mut loss) = (Tally::default(), 0.0);
    let pairs: Vec<(usize, u32)> = captions_of
        .iter()
        .flat_map(|(image, places)| places.iter().map(move |place| (image, captions[*place as usize])))
        .collect();
    for pairs in pairs.chunks(SCORED_ROWS) {
        let rows = pairs.iter().flat_map(|(image, _)| &features[image * head.dim..(image + 1) * head.dim]);
        let labels: Vec<u32> = pairs.iter().map(|(_, label)| *label).collect();
        let scored = scorer.score(rows.copied().collect(), labels.clone(), TOP_K).await?;
        for (label, row) in labels.iter().zip(scored) {
            tally.add(rank_of(*label, &row.top.classes));
            loss += row.loss;
        }
    }
    scorer.unload().await?;
    let loss = loss / pairs.len().max(1) as f64;
    Ok(fit.validation(loss, tally.ndcg5(), [tally.recall1(), tally.recall5()]))
}
