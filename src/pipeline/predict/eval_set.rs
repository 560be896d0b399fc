//! Evaluation on images with known captions: choice of fusion weights, and scores by signal, slice and language.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::pipeline::device::DeviceWorker;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{CorrectionScore, SignalReport};
use crate::pipeline::predict::fusion::{CandidateVectors, FusionWeights, ImageSignals, add_bias, fuse_queries};
use crate::pipeline::predict::hubness::{CorrectionSettings, HubnessCorrection};
use crate::predict::metrics::Tally;
use crate::predict::scorer::PlaceQuery;
use crate::predict::slices::{FusionSignal, Query, RankedQueries, Rankings, rank_in_list, score_slice, score_slices};

/// Number of captions ranked for an image, from which its reciprocal rank is computed.
const TOP_K: usize = 20;
/// Candidate weights of a signal.
const WEIGHTS: [f32; 9] = [0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0];

/// Captions that a language needs to be scored by itself. The score of fewer is mostly luck.
const MIN_CAPTIONS: usize = 10;

/// Queries of one language, with its captions alone.
struct LanguageGroup {
    language: usize,
    candidates: CandidateVectors,
    queries: Vec<Query>,
}

/// Images in memory, with their signals.
pub(super) struct EvalImages {
    /// Projected features, `[images, dim]`.
    pub(super) pixels: Vec<f32>,
    /// Vectors of the file names, `[images, dim]`, if names are a signal.
    pub(super) names: Option<Vec<f32>>,
    /// Features, if a classifier contributes.
    pub(super) features: Option<Vec<f32>>,
}

/// Images with known captions, and the candidates ranked for them.
pub(super) struct EvalSet<'a> {
    pub(super) images: EvalImages,
    pub(super) candidates: &'a CandidateVectors,
    pub(super) queries: Vec<Query>,
    /// Languages that [`Query::language`] indexes.
    pub(super) languages: Vec<String>,
    pub(super) correction: CorrectionSettings,
    pub(super) device: &'a Arc<DeviceWorker>,
}

impl EvalSet<'_> {
    fn images(&self) -> usize {
        self.images.pixels.len() / self.candidates.dim.max(1)
    }

    /// Ranks candidates for each image, and finds the ranks of the captions of `queries`.
    async fn rank(
        &self,
        candidates: &CandidateVectors,
        queries: &[Query],
        signal: FusionSignal,
        weights: FusionWeights,
    ) -> Result<RankedQueries, PipelineError> {
        let (images, captions) = (self.images(), candidates.len());
        if captions == 0 || images == 0 {
            return Ok(RankedQueries { captions: vec![Vec::new(); images], places: vec![None; queries.len()] });
        }
        let EvalImages { pixels, names, features } = &self.images;
        let (names, features) = (names.as_deref(), features.as_deref());
        let rows = fuse_queries(signal, weights, ImageSignals { pixels, names, features, dim: candidates.dim });
        let mut layer = Arc::new(candidates.linear_layer(signal, weights));
        let scaled = (&layer, candidates.scale);
        let correction =
            HubnessCorrection::measure_in_memory(self.correction, scaled, self.device, &rows, images).await?;
        add_bias(Arc::make_mut(&mut layer), correction.as_deref());
        let scorer = self.device.load_scorer(layer).await?;
        let asked =
            queries.iter().filter_map(|query| Some(PlaceQuery { row: query.image as u32, class: query.caption? }));
        let asked: Vec<PlaceQuery> = asked.collect();
        let found =
            if asked.is_empty() { Vec::new() } else { scorer.places(rows.clone(), images, asked, None).await? };
        let tops = scorer.top_k(rows, images, TOP_K).await?;
        scorer.unload().await?;
        let mut found = found.into_iter();
        let places = queries.iter().map(|query| query.caption.and_then(|_| found.next().flatten())).collect();
        Ok(RankedQueries { captions: tops.into_iter().map(|top| top.classes).collect(), places })
    }

    async fn ndcg5(&self, signal: FusionSignal, weights: FusionWeights) -> Result<f64, PipelineError> {
        let ranked = self.rank(self.candidates, &[], signal, weights).await?;
        let mut tally = Tally::default();
        self.queries.iter().for_each(|query| tally.add(rank_in_list(query, &ranked)));
        Ok(tally.ndcg5())
    }

    /// Chooses the weights with the best NDCG@5: first the weight of the classifier, then that of names. Ties go to the
    /// first weight.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) async fn choose_weights(&self) -> Result<FusionWeights, PipelineError> {
        let mut weights = FusionWeights::default();
        if self.candidates.classifier.is_some() {
            let with = |classifier| FusionWeights { classifier, ..FusionWeights::default() };
            weights = self.best_weights(FusionSignal::Pixels, weights, WEIGHTS.map(with)).await?;
        }
        if self.images.names.is_some() {
            let with = |names| FusionWeights { names, ..weights };
            weights = self.best_weights(FusionSignal::Both, weights, WEIGHTS.map(with)).await?;
        }
        Ok(weights)
    }

    async fn best_weights(
        &self,
        signal: FusionSignal,
        start: FusionWeights,
        options: [FusionWeights; WEIGHTS.len()],
    ) -> Result<FusionWeights, PipelineError> {
        let (mut weights, mut best) = (start, self.ndcg5(signal, start).await?);
        for option in options {
            let ndcg5 = self.ndcg5(signal, option).await?;
            if ndcg5 > best {
                (best, weights) = (ndcg5, option);
            }
        }
        Ok(weights)
    }

    /// Ranks by each available signal.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) async fn rank_by_signal(&self, weights: FusionWeights) -> Result<Rankings, PipelineError> {
        let mut rankings = Vec::new();
        for signal in [FusionSignal::Pixels, FusionSignal::Names, FusionSignal::Both] {
            if signal == FusionSignal::Pixels || self.images.names.is_some() {
                rankings.push((signal, self.rank(self.candidates, &self.queries, signal, weights).await?));
            }
        }
        Ok(rankings)
    }

    /// Returns the queries of each language with its captions alone.
    fn language_groups(&self) -> Vec<LanguageGroup> {
        let mut groups: BTreeMap<usize, Vec<Query>> = BTreeMap::new();
        for query in &self.queries {
            if let (Some(language), Some(_)) = (query.language, query.caption) {
                groups.entry(language).or_default().push(*query);
            }
        }
        let group = |(language, queries): (usize, Vec<Query>)| {
            let mut places: Vec<u32> = queries.iter().filter_map(|query| query.caption).collect();
            places.sort_unstable();
            places.dedup();
            let position = |caption: u32| places.binary_search(&caption).ok().map(|place| place as u32);
            let queries =
                queries.iter().map(|query| Query { caption: query.caption.and_then(position), ..*query }).collect();
            LanguageGroup { language, candidates: self.candidates.subset(&places), queries }
        };
        groups.into_iter().map(group).collect()
    }

    /// Chooses the hubness correction with the best NDCG@5 by pixels, averaged over languages with enough captions; over all
    /// captions if no language has enough. Returns every option with its score.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) async fn choose_correction(&mut self) -> Result<Vec<CorrectionScore>, PipelineError> {
        let mut groups = self.language_groups();
        groups.retain(|group| group.candidates.len() >= MIN_CAPTIONS);
        let weights = FusionWeights::default();
        let (mut tried, mut best) = (Vec::new(), (self.correction, f64::NEG_INFINITY));
        for option in CorrectionSettings::options() {
            self.correction = option;
            let mut ndcg5 = 0.0;
            for LanguageGroup { candidates, queries, .. } in &groups {
                let ranked = self.rank(candidates, queries, FusionSignal::Pixels, weights).await?;
                let mut tally = Tally::default();
                for query in queries {
                    tally.add(rank_in_list(query, &ranked));
                }
                ndcg5 += tally.ndcg5() / groups.len() as f64;
            }
            if groups.is_empty() {
                ndcg5 = self.ndcg5(FusionSignal::Pixels, weights).await?;
            }
            tried.push(CorrectionScore { correction: option.describe(), ndcg5 });
            if ndcg5 > best.1 {
                best = (option, ndcg5);
            }
        }
        self.correction = best.0;
        Ok(tried)
    }

    /// Scores rankings of all queries. For the scores of a language, only its captions are ranked.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) async fn report(
        &self,
        weights: FusionWeights,
        rankings: &Rankings,
    ) -> Result<SignalReport, PipelineError> {
        let mut by_language = Vec::new();
        for LanguageGroup { language, candidates, queries } in self.language_groups() {
            let mut within = Vec::new();
            for (signal, _) in rankings {
                within.push((*signal, self.rank(&candidates, &queries, *signal, weights).await?));
            }
            let every: Vec<usize> = (0..queries.len()).collect();
            by_language.push(score_slice(&self.languages[language], candidates.len(), (&queries, &every), &within));
        }
        by_language.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(SignalReport {
            images: self.images() as u64,
            captions: self.candidates.len() as u64,
            groups: score_slices(&self.queries, self.candidates.len(), rankings),
            by_language,
            within_language: Vec::new(),
        })
    }
}
