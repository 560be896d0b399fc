//! Prediction by a projection head: any captions, ranked by pixels, file names and another run's classifier.

mod evaluate;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::catalog::url_hash;
use crate::chunk::features::Features;
use crate::model::Pairing;
use crate::pipeline::captions::{self, Encoder, VectorStore};
use crate::pipeline::catalog::{RunCatalog, StoredClasses};
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{LoadedProjector, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::manifest::Manifest;
use crate::pipeline::observe::report::{StageRemarks, TextReport};
use crate::pipeline::predict::candidates::Candidates;
use crate::pipeline::predict::file_names::{FileNames, NameVectors};
use crate::pipeline::predict::fusion::{
    CandidateVectors, ClassifierRows, FusionWeights, ImageSignals, add_bias, fuse_queries,
};
use crate::pipeline::predict::held_out::HeldOutImages;
use crate::pipeline::predict::hubness::{CorrectionSettings, HubnessCorrection, LEAST_IMAGES};
use crate::pipeline::predict::other_run::OtherClassifier;
use crate::pipeline::predict::questions::Questions;
use crate::pipeline::predict::ranking::{QueryEncoder, RankJob, Ranking};
use crate::pipeline::predict::test_set::visit_ids;
use crate::pipeline::predict::{RankInput, RankOutput, Ranker};
use crate::pipeline::resolve::ResolvedModel;
use crate::pipeline::train::checkpoints::PickedCheckpoint;
use crate::predict::slices::FusionSignal;
use crate::train::text::{Ensemble, TextHead};
use crate::types::Correction;

/// Weight of names if there are no held-out images to choose it on.
const DEFAULT_NAMES_WEIGHT: f32 = 0.5;
/// Weight of a classifier if there are no held-out images to choose it on.
const DEFAULT_CLASSIFIER_WEIGHT: f32 = 1.0;
/// Images in a batch that is ranked by names only.
const NAME_BATCH_IMAGES: usize = 1024;

/// Ranks a list of captions, or the classes of the run.
pub(super) struct ProjectionRanker<'a> {
    model: &'a ResolvedModel,
    manifest: &'a Manifest,
    encoder: &'a Encoder,
    /// Classes of the run; empty with a paired head, which knows no training images.
    catalog: RunCatalog,
    candidates: Candidates,
    /// Scale and bias of the checkpoint's own pair of towers, instead of a trained head.
    pairing: Option<Pairing>,
}

impl<'a> ProjectionRanker<'a> {
    /// Loads the classes of the run. Ranks `candidates`, or the classes if it is `None`.
    ///
    /// # Errors
    /// When the run directory has no complete catalog, or the vectors of the captions exceed `limits.memory`.
    pub(super) fn open(
        ctx: &RunContext,
        model: &'a ResolvedModel,
        manifest: &'a Manifest,
        candidates: Option<Candidates>,
    ) -> Result<Self, PipelineError> {
        let encoder = model.text_encoder()?;
        let catalog = RunCatalog::load(&ctx.dir)?;
        let candidates = candidates.unwrap_or_else(|| Candidates::from_classes(&catalog));
        captions::require_vector_memory(&ctx.config, encoder, candidates.len())?;
        Ok(Self { model, manifest, encoder, catalog, candidates, pairing: None })
    }

    /// Ranks `candidates` by the checkpoint's own pair of towers, without a trained head.
    ///
    /// # Errors
    /// When the towers do not share a space, or the vectors of the captions exceed `limits.memory`.
    pub(super) fn open_paired(
        ctx: &RunContext,
        model: &'a ResolvedModel,
        manifest: &'a Manifest,
        candidates: Option<Candidates>,
    ) -> Result<Self, PipelineError> {
        let (encoder, backbone) = (model.text_encoder()?, model.backbone()?);
        let absent = |what: &str| PipelineError::Internal(format!("a paired head has no {what}"));
        let pairing = backbone.checkpoint.pairing().map_err(model_error)?.ok_or_else(|| absent("scale"))?;
        let candidates = candidates.ok_or_else(|| absent("captions"))?;
        let (images, texts) = (backbone.shape.dim, encoder.checkpoint.dim());
        if images != texts {
            return Err(PipelineError::Model(format!(
                "features of {images} values and vectors of captions of {texts} values are not in one space: name the text \
                 encoder that belongs to `model.checkpoint`, or remove `[text]`"
            )));
        }
        captions::require_vector_memory(&ctx.config, encoder, candidates.len())?;
        let catalog = RunCatalog::default();
        Ok(Self { model, manifest, encoder, catalog, candidates, pairing: Some(pairing) })
    }
}

impl Ranker for ProjectionRanker<'_> {
    const FALLBACK: &'static str = "the first captions of the list";
    type Head = Arc<Ensemble>;

    fn captions(&self) -> usize {
        self.candidates.len()
    }

    fn find_captions<'t>(&self, captions: &HashSet<&'t str>) -> Result<HashMap<&'t str, u32>, PipelineError> {
        Ok(self.candidates.captions.find_all(captions))
    }

    fn add_languages(&self, questions: &mut Questions) {
        let texts = std::mem::take(&mut questions.texts);
        let wanted = texts.iter().zip(&questions.queries).filter(|(_, query)| query.language.is_none());
        let class_of = self.catalog.texts.find_all(&wanted.map(|(text, _)| &**text).collect());
        for (number, text) in texts.iter().enumerate() {
            if let (None, Some(class)) = (questions.queries[number].language, class_of.get(&**text)) {
                questions.queries[number].language = questions.language(self.catalog.languages.language(*class));
            }
        }
        questions.texts = texts;
    }

    fn caption(&self, number: u32) -> &str {
        self.candidates.captions.get(number).unwrap_or_default()
    }

    fn fallback(&self, top_k: usize) -> Vec<u32> {
        (0..top_k as u32).collect()
    }

    fn load_head(&self, checkpoint: Option<&PickedCheckpoint>) -> Result<Option<Arc<Ensemble>>, PipelineError> {
        if let Some(pairing) = self.pairing {
            let head = TextHead::identity(self.encoder.checkpoint.dim(), pairing.log_scale);
            return Ok(Some(Arc::new(head.into())));
        }
        let Some(checkpoint) = checkpoint else { return Ok(None) };
        let head = checkpoint.load_projection()?;
        if (head.input(), head.text_mean().len()) == (self.model.shape()?.dim, self.encoder.checkpoint.dim()) {
            return Ok(Some(Arc::new(head)));
        }
        Err(PipelineError::Generation(
            "the projection head in the checkpoint does not map these features to vectors of this text encoder; recompute with \
             --from train"
                .to_owned(),
        ))
    }

    async fn rank(
        &self,
        ctx: &RunContext,
        head: Arc<Ensemble>,
        input: RankInput<'_>,
    ) -> Result<RankOutput, PipelineError> {
        let classifier = OtherClassifier::open(ctx, self.model, self.manifest).await?;
        let held_out = self.read_held_out(ctx, &head, &input).await?;
        let names = self.embed_names(ctx, &head, held_out.as_ref(), &input).await?;
        let candidates = self.embed_candidates(ctx, &head, classifier.as_ref(), &input).await?;
        let projector = input.device.load_projector(&head).await?;
        let settings = input.settings;
        let correction = CorrectionSettings::initial(settings.correction, settings.correction_strength);
        let ranking = ProjectionRanking {
            ctx,
            input,
            catalog: &self.catalog,
            list: &self.candidates,
            fingerprint: fingerprint(&head, names.as_ref()),
            head,
            projector: &projector,
            classifier,
            held_out,
            names,
            candidates,
            correction,
        };
        let output = ranking.run().await?;
        projector.unload().await?;
        Ok(output)
    }
}

impl ProjectionRanker<'_> {
    /// Reads the images held out from training, with the vectors of their captions.
    async fn read_held_out(
        &self,
        ctx: &RunContext,
        head: &Ensemble,
        input: &RankInput<'_>,
    ) -> Result<Option<HeldOutImages>, PipelineError> {
        if self.pairing.is_some() {
            return Ok(None);
        }
        let classes = StoredClasses::open(&ctx.dir)?;
        let set = captions::embed_classes(ctx, self.encoder, input.device, "captions", classes).await?;
        let read_vectors = |captions: &[u32]| Ok(head.map_captions(set.read(captions)?));
        let dim = self.model.shape()?.dim;
        tokio::task::block_in_place(|| HeldOutImages::read(ctx, self.manifest, dim, usize::MAX, read_vectors))
    }

    /// Embeds the file names of the test images and of the held-out images; `None` if names are not a signal.
    async fn embed_names(
        &self,
        ctx: &RunContext,
        head: &Arc<Ensemble>,
        held_out: Option<&HeldOutImages>,
        input: &RankInput<'_>,
    ) -> Result<Option<NameVectors>, PipelineError> {
        if !input.settings.file_names {
            return Ok(None);
        }
        let mut names = FileNames::new();
        if let Some(held_out) = held_out {
            held_out.images.urls.iter().try_for_each(|url| names.add(url))?;
        }
        visit_ids(&ctx.store, input.ids, |id| names.add(id.image_url)).await?;
        let (names, name_of) = names.finish();
        let set = captions::embed(ctx, self.encoder, input.device, "file names", Arc::clone(&names)).await?;
        let vectors = VectorStore::open(ctx, set).await?;
        Ok(Some(NameVectors::new(names, name_of, vectors, Arc::clone(head))))
    }

    /// Embeds the captions to rank.
    async fn embed_candidates(
        &self,
        ctx: &RunContext,
        head: &Ensemble,
        classifier: Option<&OtherClassifier>,
        input: &RankInput<'_>,
    ) -> Result<CandidateVectors, PipelineError> {
        let captions = &self.candidates.captions;
        let set = captions::embed(ctx, self.encoder, input.device, "captions to rank", Arc::clone(captions)).await?;
        let vectors = tokio::task::spawn_blocking(move || set.read_all()).await??;
        let vectors = head.map_captions(vectors);
        let classifier = classifier.map(|classifier| classifier.rows(captions.iter()));
        let bias = self.pairing.map_or(0.0, |pairing| pairing.bias);
        Ok(CandidateVectors { vectors, dim: head.output(), scale: head.scale(), bias, classifier })
    }
}

/// Returns a hash of everything that the projection and the vectors of names depend on.
fn fingerprint(heads: &Ensemble, names: Option<&NameVectors>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (head, weight) in heads.members() {
        let parameters = head.parameters.iter().map(|parameter| &parameter.values);
        let statistics = [&head.feature_mean, &head.feature_std, &head.text_mean];
        let map = head.text_map.iter().flat_map(|map| [&map.weight, &map.bias]);
        for value in parameters.chain(statistics).chain(map).flatten() {
            hasher.update(&value.to_le_bytes());
        }
        if heads.members().len() > 1 {
            hasher.update(&weight.to_le_bytes());
        }
    }
    if let Some(names) = names {
        names.hash_into(&mut hasher);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// State of a ranking in progress.
struct ProjectionRanking<'a> {
    ctx: &'a RunContext,
    input: RankInput<'a>,
    catalog: &'a RunCatalog,
    list: &'a Candidates,
    head: Arc<Ensemble>,
    /// Hash of everything that the projection and the names depend on.
    fingerprint: String,
    projector: &'a LoadedProjector,
    classifier: Option<OtherClassifier>,
    held_out: Option<HeldOutImages>,
    names: Option<NameVectors>,
    candidates: CandidateVectors,
    /// Hubness correction, of which `auto` is replaced by the choice on held-out images.
    correction: CorrectionSettings,
}

impl ProjectionRanking<'_> {
    async fn run(mut self) -> Result<RankOutput, PipelineError> {
        let settings = self.input.settings;
        let (mut remarks, mut report) = (StageRemarks::default(), TextReport::default());
        report.source.clone_from(&self.list.source);
        report.captions = self.list.len() as u64;
        let mut weights = FusionWeights {
            names: if self.names.is_some() { DEFAULT_NAMES_WEIGHT } else { 0.0 },
            classifier: if self.classifier.is_some() { DEFAULT_CLASSIFIER_WEIGHT } else { 0.0 },
        };
        if let Some(held_out) = &self.held_out {
            let found = self.evaluate_held_out(held_out, &mut remarks).await?;
            (weights, report.held_out) = (found.weights, Some(found.report));
            (self.correction, report.corrections) = (found.correction, found.corrections);
        } else if self.names.is_some() || self.classifier.is_some() {
            remarks.add_note(
                "no image is held out from training, so file names and the head of the other run have \
                 fixed weights",
            );
        }
        report.correction = self.correction.describe();
        let images = self.input.features.images();
        if self.correction.kind != Correction::None && images < LEAST_IMAGES {
            report.correction = Correction::None.to_string();
            remarks.add_note(format!(
                "without the hubness correction, which needs {LEAST_IMAGES} images or more: there are {images}"
            ));
        } else if settings.correction == Correction::Auto {
            let how = if report.corrections.is_empty() {
                "no image is held out to choose by"
            } else {
                "chosen on held-out images"
            };
            report.correction.push_str(&format!(", {how}"));
        }
        report.names_weight = self.names.is_some().then_some(weights.names);
        report.classes_weight = self.classifier.is_some().then_some(weights.classifier);
        // With a truth, each signal is also ranked alone. The submission comes last.
        let submitted = if self.names.is_some() { FusionSignal::Both } else { FusionSignal::Pixels };
        let mut rankings = Vec::new();
        if self.names.is_some() && self.input.questions.is_some() {
            for signal in [FusionSignal::Pixels, FusionSignal::Names] {
                rankings.push((signal, self.rank_by(signal, weights).await?));
            }
        }
        let ranking = self.rank_by(submitted, weights).await?;
        if let Some(questions) = self.input.questions {
            let shown: Vec<(FusionSignal, &Ranking)> = rankings
                .iter()
                .map(|(signal, ranking)| (*signal, ranking))
                .chain(std::iter::once((submitted, &ranking)))
                .collect();
            report.test = Some(self.score_test_set(questions, &shown));
        }
        Ok(RankOutput { ranking, report: Some(report), remarks })
    }

    /// Ranks captions for all test images by one signal.
    async fn rank_by(&self, signal: FusionSignal, weights: FusionWeights) -> Result<Ranking, PipelineError> {
        let RankInput { features, test_set, device, top_k, stem, questions, .. } = &self.input;
        let encoder = FusedQueries { ranking: self, signal, weights };
        let layer = Arc::new(self.candidates.linear_layer(signal, weights));
        let scaled = (&layer, self.candidates.scale);
        let correction =
            HubnessCorrection::measure(self.ctx, self.correction, features, scaled, device, &encoder).await?;
        let mut layer = Arc::unwrap_or_clone(layer);
        add_bias(&mut layer, correction.as_deref());
        let word = signal.as_str();
        let job = RankJob {
            features,
            layer: Arc::new(layer),
            urls: &test_set.urls,
            top_k: *top_k,
            stage: format!("rank by {word}"),
            log: self.ctx.scratch_path().join(format!("{stem}-{}.ranks", word.replace(' ', "-"))),
            device,
            questions: *questions,
        };
        let mut ranking = job.run(self.ctx, &encoder).await?;
        if let Some(names) = self.names.as_ref().filter(|_| signal != FusionSignal::Pixels) {
            let mut layer = self.candidates.linear_layer(signal, weights);
            add_bias(&mut layer, correction.as_deref());
            self.rank_by_names_only(names, &encoder, layer, &mut ranking).await?;
        }
        Ok(ranking)
    }

    /// Ranks captions for the images that have a name but no features.
    async fn rank_by_names_only(
        &self,
        names: &NameVectors,
        encoder: &FusedQueries<'_>,
        layer: crate::train::HeadState,
        ranking: &mut Ranking,
    ) -> Result<(), PipelineError> {
        let urls = &self.input.test_set.urls;
        let is_nameable = |image: &usize| ranking.captions(*image).is_none() && names.contains(urls.hash_at(*image));
        let images: Vec<usize> = (0..urls.len()).filter(is_nameable).collect();
        if images.is_empty() {
            return Ok(());
        }
        let scorer = self.input.device.load_scorer(Arc::new(layer)).await?;
        for images in images.chunks(NAME_BATCH_IMAGES) {
            let hashes: Vec<u64> = images.iter().map(|image| urls.hash_at(*image)).collect();
            let vectors = tokio::task::block_in_place(|| names.read(&hashes))?;
            let width = self.candidates.classifier.as_ref().map(ClassifierRows::width);
            let features = width.map(|width| vec![0.0; images.len() * width]);
            let signals = ImageSignals {
                pixels: &vec![0.0; vectors.len()],
                names: Some(&vectors),
                features: features.as_deref(),
                dim: self.candidates.dim,
            };
            let rows = fuse_queries(encoder.signal, encoder.weights, signals);
            if let Some(questions) = self.input.questions {
                let asked: Vec<Option<usize>> = images.iter().copied().map(Some).collect();
                let (numbers, asked) = questions.of_images(&asked);
                let places = scorer.places(rows.clone(), images.len(), asked, questions.groups.clone()).await?;
                ranking.set_places(&numbers, &places);
            }
            let tops = scorer.top_k(rows, images.len(), self.input.top_k).await?;
            images.iter().zip(tops).for_each(|(image, top)| ranking.set(*image, &top.classes));
        }
        scorer.unload().await
    }
}

/// Encoder of fused queries: projected features, name vectors and features.
struct FusedQueries<'a> {
    ranking: &'a ProjectionRanking<'a>,
    signal: FusionSignal,
    weights: FusionWeights,
}

impl QueryEncoder for FusedQueries<'_> {
    fn log_key(&self) -> String {
        let FusionWeights { names, classifier } = self.weights;
        let (signal, fingerprint) = (self.signal.fingerprint_name(), &self.ranking.fingerprint);
        format!("{signal} {} {} {fingerprint}", names.to_bits(), classifier.to_bits())
    }

    async fn encode(&self, chunk: Features) -> Result<Vec<f32>, PipelineError> {
        let Features { rows, values, .. } = chunk;
        let count = rows.len();
        let features = (self.weights.classifier != 0.0).then(|| values.clone());
        let pixels = self.ranking.projector.project(values, count).await?;
        let urls: Vec<u64> = (0..count).map(|row| url_hash(rows.url(row))).collect();
        let names = read_names(self.ranking.names.as_ref(), &urls)?;
        let (names, features) = (names.as_deref(), features.as_deref());
        let signals = ImageSignals { pixels: &pixels, names, features, dim: self.ranking.head.output() };
        Ok(fuse_queries(self.signal, self.weights, signals))
    }
}

/// Reads the vectors of the images' names; `None` if names are not a signal.
fn read_names(names: Option<&NameVectors>, urls: &[u64]) -> Result<Option<Vec<f32>>, PipelineError> {
    names.map(|names| tokio::task::block_in_place(|| names.read(urls))).transpose()
}
