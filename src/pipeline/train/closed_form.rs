//! Heads in closed form: one pass over the features, then a choice of the settings on the held-out images.
//!
//! The pass visits chunks and rows in the order of the corpus, so a fit that was killed starts again and ends with the same
//! bytes.

use std::sync::Arc;

use super::checkpoints::{self, CURVE_FILE};
use super::chunk::{Chunk, SampleSpec};
use super::curve::Curve;
use super::ensemble::{self, EnsembleFile, Members, WeightData};
use super::feature_store::{ChunkSet, FeaturePlacement, FeatureStore, resident_bytes};
use super::held_out::{HeldOut, HeldOutSample};
use super::inventory::{Inventory, InventorySpec};
use super::session::save_error;
use super::{TrainJob, head};
use crate::catalog::Languages;
use crate::chunk::features::READ_BYTES;
use crate::config::EnsembleConfig;
use crate::pipeline::captions::VectorStore;
use crate::pipeline::device::{linear_layer, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{
    ClosedFormReport, EnsembleReport, MixingReport, TrainingReport, ValidationPoint,
};
use crate::predict::bootstrap::ImageTallies;
use crate::predict::metrics::{self, rank_of};
use crate::train::closed_form::{
    Answers, Candidate, ClassMoments, ClassTargets, Covariances, DEFAULT_SHRINKAGE, HeldOutPairs,
    LEAST_HELD_OUT_IMAGES, MixedScores, PairMoments, Ridge, SHRINKAGES, choose_projection, map_pairs, score_mixed,
};
use crate::train::text::{Ensemble, MemberSpec, TextHead};
use crate::train::{HeadState, Progress, checkpoint};
use crate::types::HeadMethod;

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
    held_out: Arc<HeldOut>,
}

/// A classifier, its settings and its scores.
type FittedClassifier = (Candidate, Arc<HeadState>, Option<ValidationPoint>);

/// Description of the heads.
struct Fitted {
    /// Settings of the best head.
    chosen: Candidate,
    candidates: Vec<Candidate>,
    /// Scores of each head; the last are those of the head that predicts, or of all together.
    validations: Vec<ValidationPoint>,
    ensemble: Option<EnsembleReport>,
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
    let Fitted { chosen, candidates, validations, ensemble } = fitted;
    let validation = validations.last().copied();
    Ok(Some(TrainingReport {
        steps: STEP,
        samples,
        validation_images: fit.inventory.validation_images,
        mixing: MixingReport::default(),
        validation,
        best: validation,
        validations,
        ensemble,
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
            Ok(Self { job, inventory, held_out: Arc::new(held_out) })
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

    /// Writes the curve with the only validations, then the checkpoint of each head, which `save` writes to a folder. `best` is
    /// the score of the checkpoint.
    fn commit(
        &self,
        validations: &[ValidationPoint],
        best: Option<f64>,
        heads: usize,
        save: impl Fn(&std::path::Path, usize, &Progress) -> Result<(), checkpoint::CheckpointError>,
    ) -> Result<(), PipelineError> {
        let (job, dir) = (&self.job, &self.job.ctx.dir);
        let curve = Curve { losses: Vec::new(), validations: validations.to_vec() };
        let content = curve.to_csv().map_err(|error| PipelineError::Internal(error.to_string()))?;
        dir.write(CURVE_FILE, &content)?;
        let progress = Progress {
            step: STEP,
            epoch: 1,
            seed: job.split.seed,
            best,
            hashes: [("train".to_owned(), job.generation.clone())].into(),
            ..Progress::default()
        };
        // The first head is saved last, because its checkpoint marks all as complete.
        for number in (0..heads).rev() {
            let name = checkpoints::folder_name(STEP, number);
            save(&dir.temporary(&name)?, number, &progress).map_err(save_error)?;
            dir.publish_folder(&name)?;
        }
        Ok(())
    }

    /// Returns the validation point of a head, with the ceiling of the held-out images.
    fn validation(&self, trial: usize, scores: MixedScores, by_language: Option<f64>) -> ValidationPoint {
        let MixedScores { loss, ndcg5, recall1, recall5, interval } = scores;
        let captions_per_image = self.held_out.captions_of.iter().map(|(_, captions)| captions.len() as u64);
        ValidationPoint {
            step: STEP,
            epoch: 1,
            loss,
            ndcg5,
            ndcg5_ceiling: metrics::ceiling(captions_per_image),
            recall1,
            recall5,
            ndcg5_interval: interval,
            ndcg5_languages: by_language,
            trial: trial as u32,
        }
    }
}

async fn fit_projection(
    fit: &Arc<Fit>,
    vectors: Arc<VectorStore>,
    languages: Arc<Languages>,
) -> Result<Fitted, PipelineError> {
    let held = &fit.held_out;
    let language_of = |place: u32| languages.code(held.captions[place as usize]);
    let answers = Arc::new(Answers::new(&held.captions_of, language_of));
    let images = answers.images();
    if fit.job.settings.method == HeadMethod::Cca && images < LEAST_HELD_OUT_IMAGES {
        tracing::warn!(
            images,
            "too few held-out images to choose the settings of the head on: they are fixed; raise `train.validation_fraction`"
        );
    }
    let (own, known) = (Arc::clone(fit), Arc::clone(&answers));
    let solve = move || {
        let mut moments = PairMoments::new(own.job.shape.dim, vectors.mean().len());
        own.visit_images(|feature, classes, share| {
            moments.add(feature, &vectors.read_centred(classes)?, share);
            Ok(())
        })?;
        let covariances = finish(moments)?;
        let members = own.job.members.iter();
        let solve = |member| solve_member(&own, member, &covariances, vectors.mean(), &known);
        members.map(solve).collect::<Result<Vec<Solved>, PipelineError>>()
    };
    let solved = tokio::task::spawn_blocking(solve).await??;
    let ensemble = match fit.job.settings.ensemble {
        Some(config) => Some(combine(fit, &solved, &answers, config).await?),
        None => None,
    };
    let (own, report) = (Arc::clone(fit), ensemble.clone());
    tokio::task::spawn_blocking(move || commit_projections(&own, solved, report, &answers)).await?
}

/// A head and the choice of its settings.
struct Solved {
    head: TextHead,
    chosen: Candidate,
    candidates: Vec<Candidate>,
}

/// Solves for one head.
fn solve_member(
    fit: &Fit,
    member: &MemberSpec,
    all: &Covariances,
    text_mean: &[f32],
    answers: &Answers,
) -> Result<Solved, PipelineError> {
    let (job, held, dim) = (&fit.job, &fit.held_out, fit.job.shape.dim);
    let part = (job.members.len() > 1).then(|| all.of_features(member.span(dim)));
    let features = member.select(&held.features, dim);
    let pairs = HeldOutPairs { features: &features, captions: &held.vectors, answers };
    let pairs = Some(pairs).filter(|pairs| !pairs.answers.is_empty());
    let covariances = part.as_ref().unwrap_or(all);
    let (head, mut chosen, mut candidates) =
        choose_projection(job.settings.method, covariances, text_mean, pairs.as_ref()).map_err(model_error)?;
    candidates.iter_mut().chain([&mut chosen]).for_each(|candidate| candidate.layer = member.layer);
    Ok(Solved { head: head.with_columns(member.columns(dim)), chosen, candidates })
}

/// Weights the heads of an ensemble.
async fn combine(
    fit: &Arc<Fit>,
    solved: &[Solved],
    answers: &Arc<Answers>,
    config: EnsembleConfig,
) -> Result<EnsembleReport, PipelineError> {
    let heads = solved.iter().map(|own| own.head.clone()).collect();
    let chosen = solved.iter().map(|own| own.chosen.clone()).collect();
    let data = WeightData { held_out: Arc::clone(&fit.held_out), answers: Arc::clone(answers) };
    let members = Members { step: STEP, heads, chosen };
    ensemble::combine(&fit.job.device, &data, members, &fit.job.members, config.weights).await
}

/// Scores the heads, alone and together, and writes curve, checkpoints and the file of the ensemble.
fn commit_projections(
    fit: &Fit,
    solved: Vec<Solved>,
    ensemble: Option<EnsembleReport>,
    answers: &Answers,
) -> Result<Fitted, PipelineError> {
    let held = &fit.held_out;
    let mut validations = Vec::new();
    if !answers.is_empty() {
        let captions = &held.vectors;
        let mut images = Vec::new();
        for (own, member) in solved.iter().zip(&fit.job.members) {
            let features = member.select(&held.features, fit.job.shape.dim);
            let mapped = map_pairs(&own.head, &HeldOutPairs { features: &features, captions, answers });
            let scale = f64::from(own.head.scale());
            let scores = score_mixed(&mapped.images, &mapped.captions, own.head.output, scale, answers);
            validations.push(fit.validation(validations.len(), scores, own.chosen.ndcg5));
            images.push(mapped.images);
        }
        if let Some(report) = &ensemble {
            let heads = solved.iter().zip(&report.members).map(|(own, member)| (own.head.clone(), member.weight));
            let all = Ensemble::new(heads.collect()).map_err(model_error)?;
            let used = images.into_iter().zip(&report.members).filter(|(_, member)| member.weight > 0.0);
            let images = all.combine_images(&used.map(|(images, _)| images).collect::<Vec<_>>());
            let captions = all.combine_captions(captions);
            let scores = score_mixed(&images, &captions, all.output(), f64::from(all.scale()), answers);
            validations.push(fit.validation(solved.len(), scores, report.ndcg5));
        }
    }
    if ensemble.is_none() {
        for point in &mut validations {
            point.ndcg5_languages = None;
        }
    }
    let validation = validations.last().copied();
    let best = if ensemble.is_some() { validation.and_then(|point| point.ndcg5_languages) } else { None };
    let heads: Vec<TextHead> = solved.iter().map(|own| own.head.clone()).collect();
    fit.commit(&validations, best.or(validation.map(|point| point.ndcg5)), heads.len(), |dir, number, progress| {
        checkpoint::save_text_head(dir, &heads[number], progress)
    })?;
    if let Some(report) = &ensemble {
        EnsembleFile { best: report.clone(), last: report.clone() }.write(&fit.job.ctx.dir)?;
    }
    let mut chosen = solved.iter().map(|own| &own.chosen).rev();
    let first = chosen.next().cloned().unwrap_or_default();
    let chosen = chosen.fold(first, |best, own| if own.ndcg5 >= best.ndcg5 { own.clone() } else { best });
    let candidates = solved.into_iter().flat_map(|own| own.candidates).collect();
    Ok(Fitted { chosen, candidates, validations, ensemble })
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
    let validations: Vec<ValidationPoint> = validation.into_iter().collect();
    let commit = move || {
        let best = validation.map(|point| point.ndcg5);
        own.commit(&validations, best, 1, |dir, _, progress| checkpoint::save_head(dir, &head, progress))?;
        Ok::<_, PipelineError>(validations)
    };
    let validations = tokio::task::spawn_blocking(commit).await??;
    Ok(Fitted { chosen, candidates, validations, ensemble: None })
}

/// Scores a classifier on the held-out images.
async fn score_classifier(fit: &Fit, head: &Arc<HeadState>) -> Result<ValidationPoint, PipelineError> {
    let HeldOut { features, captions_of, captions, .. } = &*fit.held_out;
    let scorer = fit.job.device.load_scorer(Arc::clone(head)).await?;
    let (mut tallies, mut loss) = (ImageTallies::default(), 0.0);
    let pairs: Vec<(usize, u32)> = captions_of
        .iter()
        .flat_map(|(image, places)| places.iter().map(move |place| (image, captions[*place as usize])))
        .collect();
    for pairs in pairs.chunks(SCORED_ROWS) {
        let rows = pairs.iter().flat_map(|(image, _)| &features[image * head.dim..(image + 1) * head.dim]);
        let labels: Vec<u32> = pairs.iter().map(|(_, label)| *label).collect();
        let scored = scorer.score(rows.copied().collect(), labels.clone(), TOP_K).await?;
        for (((image, _), label), row) in pairs.iter().zip(&labels).zip(scored) {
            tallies.add(*image, rank_of(*label, &row.top.classes));
            loss += row.loss;
        }
    }
    scorer.unload().await?;
    let (loss, tally) = (loss / pairs.len().max(1) as f64, tallies.sum());
    let (ndcg5, recall1, recall5) = (tally.ndcg5(), tally.recall1(), tally.recall5());
    let scores = MixedScores { loss, ndcg5, recall1, recall5, interval: tallies.interval() };
    Ok(fit.validation(0, scores, None))
}
