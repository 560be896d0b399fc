//! Evaluation on images with known captions: choice of fusion weights, and scores by signal, slice and language.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::pipeline::device::DeviceWorker;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{SignalReport, SignalScores, SliceReport};
use crate::pipeline::predict::fusion::{
    CandidateVectors, FusionSignal, FusionWeights, ImageSignals, add_bias, fuse_queries,
};
use crate::pipeline::predict::hubness::HubnessCorrection;
use crate::predict::metrics::{Tally, rank_of};
use crate::types::Correction;

/// Number of captions ranked for an image, from which its reciprocal rank is computed.
const TOP_K: usize = 20;
/// Candidate weights of a signal.
const WEIGHTS: [f32; 9] = [0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0];

/// An image and one of its right captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) image: usize,
    /// Position among the candidates; `None` if the caption is not a candidate.
    pub(super) caption: Option<u32>,
    /// Index of the caption's language, if it is known.
    pub(super) language: Option<usize>,
    /// Whether a training image has the caption.
    pub(super) seen: bool,
}

/// Best captions of each image by each signal; pixels come first.
pub(super) type Rankings = Vec<(FusionSignal, Vec<Vec<u32>>)>;

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
    pub(super) correction: Correction,
    pub(super) device: &'a Arc<DeviceWorker>,
}

impl EvalSet<'_> {
    fn images(&self) -> usize {
        self.images.pixels.len() / self.candidates.dim.max(1)
    }

    /// Ranks candidates for each image.
    async fn rank(
        &self,
        candidates: &CandidateVectors,
        signal: FusionSignal,
        weights: FusionWeights,
    ) -> Result<Vec<Vec<u32>>, PipelineError> {
        let (images, captions) = (self.images(), candidates.len());
        if captions == 0 || images == 0 {
            return Ok(vec![Vec::new(); images]);
        }
        let EvalImages { pixels, names, features } = &self.images;
        let (names, features) = (names.as_deref(), features.as_deref());
        let rows = fuse_queries(signal, weights, ImageSignals { pixels, names, features, dim: candidates.dim });
        let mut layer = Arc::new(candidates.linear_layer(signal, weights));
        let mut correction = HubnessCorrection::new(self.correction, captions);
        if self.correction != Correction::None {
            let scorer = self.device.load_scorer(Arc::clone(&layer)).await?;
            correction.add(&scorer, rows.clone(), images).await?;
            scorer.unload().await?;
        }
        add_bias(Arc::make_mut(&mut layer), correction.bias().as_deref());
        let scorer = self.device.load_scorer(layer).await?;
        let tops = scorer.top_k(rows, images, TOP_K).await?;
        scorer.unload().await?;
        Ok(tops.into_iter().map(|top| top.classes).collect())
    }

    async fn ndcg5(&self, signal: FusionSignal, weights: FusionWeights) -> Result<f64, PipelineError> {
        let ranked = self.rank(self.candidates, signal, weights).await?;
        Ok(score(self.queries.iter(), &ranked).ndcg5)
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
                rankings.push((signal, self.rank(self.candidates, signal, weights).await?));
            }
        }
        Ok(rankings)
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
        let mut groups: BTreeMap<usize, Vec<Query>> = BTreeMap::new();
        for query in &self.queries {
            if let (Some(language), Some(_)) = (query.language, query.caption) {
                groups.entry(language).or_default().push(*query);
            }
        }
        for (language, queries) in groups {
            let mut places: Vec<u32> = queries.iter().filter_map(|query| query.caption).collect();
            places.sort_unstable();
            places.dedup();
            let candidates = self.candidates.subset(&places);
            let position = |caption: u32| places.binary_search(&caption).ok().map(|place| place as u32);
            let own: Vec<Query> =
                queries.iter().map(|query| Query { caption: query.caption.and_then(position), ..*query }).collect();
            let mut within = Vec::new();
            for (signal, _) in rankings {
                within.push((*signal, self.rank(&candidates, *signal, weights).await?));
            }
            let own: Vec<&Query> = own.iter().collect();
            by_language.push(score_slice(&self.languages[language], places.len(), &own, &within));
        }
        by_language.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(SignalReport {
            images: self.images() as u64,
            captions: self.candidates.len() as u64,
            groups: score_slices(&self.queries, self.candidates.len(), rankings),
            by_language,
        })
    }
}

fn score<'a>(queries: impl Iterator<Item = &'a Query>, ranked: &[Vec<u32>]) -> SignalScores {
    let mut tally = Tally::default();
    for query in queries {
        tally.add(query.caption.and_then(|caption| rank_of(caption, &ranked[query.image])));
    }
    SignalScores { ndcg5: tally.ndcg5(), recall1: tally.recall1(), recall5: tally.recall5(), mrr: tally.mrr() }
}

fn score_slice(name: &str, captions: usize, queries: &[&Query], rankings: &Rankings) -> SliceReport {
    let by = |signal: FusionSignal| {
        let ranked = rankings.iter().find(|(ranked_by, _)| *ranked_by == signal);
        ranked.map(|(_, ranked)| score(queries.iter().copied(), ranked))
    };
    SliceReport {
        name: name.to_owned(),
        questions: queries.len() as u64,
        captions: captions as u64,
        pixels: by(FusionSignal::Pixels).unwrap_or_default(),
        names: by(FusionSignal::Names),
        both: by(FusionSignal::Both),
    }
}

/// Scores all queries, the queries whose caption a training image has, and the other queries. Leaves out empty slices.
pub(super) fn score_slices(queries: &[Query], captions: usize, rankings: &Rankings) -> Vec<SliceReport> {
    let slice = |name: &str, contains: &dyn Fn(&Query) -> bool| {
        let chosen: Vec<&Query> = queries.iter().filter(|query| contains(query)).collect();
        (!chosen.is_empty()).then(|| score_slice(name, captions, &chosen, rankings))
    };
    let seen = slice("captions seen in training", &|query| query.seen);
    let unseen = slice("captions never seen", &|query| !query.seen);
    slice("all captions", &|_| true).into_iter().chain(seen).chain(unseen).collect()
}

/// Scores the queries of each language by the same rankings.
pub(super) fn score_by_language(
    queries: &[Query],
    languages: &[String],
    captions: usize,
    rankings: &Rankings,
) -> Vec<SliceReport> {
    let mut groups: BTreeMap<&str, Vec<&Query>> = BTreeMap::new();
    for query in queries {
        if let Some(language) = query.language {
            groups.entry(&languages[language]).or_default().push(query);
        }
    }
    groups.into_iter().map(|(name, queries)| score_slice(name, captions, &queries, rankings)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_query_counts_in_its_slices() {
        let query = |image, caption, language, seen| Query { image, caption, language, seen };
        let queries =
            [query(0, Some(4), Some(1), true), query(0, Some(9), Some(0), false), query(1, None, None, false)];
        let rankings =
            vec![(FusionSignal::Pixels, vec![vec![4, 9], vec![1]]), (FusionSignal::Names, vec![vec![9], vec![]])];
        let slices = score_slices(&queries, 12, &rankings);
        let shown: Vec<(&str, u64, f64)> =
            slices.iter().map(|slice| (slice.name.as_str(), slice.questions, slice.pixels.recall1)).collect();
        let third = 1.0 / 3.0;
        assert_eq!(
            shown,
            [("all captions", 3, third), ("captions seen in training", 1, 1.0), ("captions never seen", 2, 0.0)]
        );
        assert!(slices[2].names.as_ref().is_some_and(|scores| (scores.recall1 - 0.5).abs() < 1e-9));
        assert!(slices[2].both.is_none());
        let languages = score_by_language(&queries, &["de".to_owned(), "ar".to_owned()], 12, &rankings);
        assert_eq!(languages.iter().map(|slice| slice.name.as_str()).collect::<Vec<_>>(), ["ar", "de"]);
        assert!((languages[1].pixels.mrr - 0.5).abs() < 1e-9);
    }
}
