//! Evaluation on images with known captions: choice of fusion weights, and scores by signal, slice and language.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::pipeline::device::DeviceWorker;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{SignalReport, SliceReport};
use crate::pipeline::predict::fusion::{
    CandidateVectors, FusionSignal, FusionWeights, ImageSignals, add_bias, fuse_queries,
};
use crate::pipeline::predict::hubness::HubnessCorrection;
use crate::predict::metrics::{MeanScores, Tally, rank_of};
use crate::predict::scorer::{Place, PlaceQuery};
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

/// Rankings by each signal; pixels come first.
pub(super) type Rankings = Vec<(FusionSignal, RankedQueries)>;

/// Ranking of candidates for some images, and the ranks of the queries' captions.
#[derive(Debug, Default)]
pub(super) struct RankedQueries {
    /// Best captions of each image.
    pub(super) captions: Vec<Vec<u32>>,
    /// Rank of each query's caption among all candidates; `None` if it has none.
    pub(super) places: Vec<Option<Place>>,
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
    pub(super) correction: Correction,
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
        let mut correction = HubnessCorrection::new(self.correction, captions);
        if self.correction != Correction::None {
            let scorer = self.device.load_scorer(Arc::clone(&layer)).await?;
            correction.add(&scorer, rows.clone(), images).await?;
            scorer.unload().await?;
        }
        add_bias(Arc::make_mut(&mut layer), correction.bias().as_deref());
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
                within.push((*signal, self.rank(&candidates, &own, *signal, weights).await?));
            }
            let every: Vec<usize> = (0..own.len()).collect();
            by_language.push(score_slice(&self.languages[language], places.len(), (&own, &every), &within));
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

/// Returns the rank of a query's caption in the list of its image's best captions.
fn rank_in_list(query: &Query, ranked: &RankedQueries) -> Option<usize> {
    query.caption.and_then(|caption| rank_of(caption, &ranked.captions[query.image]))
}

/// Scores the queries with the numbers `chosen`. `rank` returns the rank of a query for all means but the mean rank, and its
/// rank among all captions.
fn score(
    (queries, chosen): (&[Query], &[usize]),
    captions: usize,
    rank: impl Fn(usize) -> (Option<usize>, Option<u32>),
) -> MeanScores {
    let mut images: BTreeMap<usize, Tally> = BTreeMap::new();
    for number in chosen {
        let (listed, place) = rank(*number);
        let tally = images.entry(queries[*number].image).or_default();
        tally.add(listed);
        tally.add_place(place.map_or(captions as u64, u64::from));
    }
    MeanScores::from_images(&images.into_values().collect::<Vec<_>>())
}

fn score_slice(
    name: &str,
    captions: usize,
    (queries, chosen): (&[Query], &[usize]),
    rankings: &Rankings,
) -> SliceReport {
    score_slice_by(name, captions, (queries, chosen), rankings, |ranked, number| {
        (rank_in_list(&queries[number], ranked), ranked.places[number].map(|place| place.all))
    })
}

fn score_slice_by(
    name: &str,
    captions: usize,
    (queries, chosen): (&[Query], &[usize]),
    rankings: &Rankings,
    rank: impl Fn(&RankedQueries, usize) -> (Option<usize>, Option<u32>),
) -> SliceReport {
    let by = |signal: FusionSignal| {
        let ranked = rankings.iter().find(|(ranked_by, _)| *ranked_by == signal);
        ranked.map(|(_, ranked)| score((queries, chosen), captions, |number| rank(ranked, number)))
    };
    SliceReport {
        name: name.to_owned(),
        questions: chosen.len() as u64,
        captions: captions as u64,
        pixels: by(FusionSignal::Pixels).unwrap_or_default(),
        names: by(FusionSignal::Names),
        both: by(FusionSignal::Both),
    }
}

/// Scores all queries, the queries whose caption a training image has, and the other queries. Leaves out empty slices.
pub(super) fn score_slices(queries: &[Query], captions: usize, rankings: &Rankings) -> Vec<SliceReport> {
    let slice = |name: &str, contains: &dyn Fn(&Query) -> bool| {
        let chosen: Vec<usize> = (0..queries.len()).filter(|number| contains(&queries[*number])).collect();
        (!chosen.is_empty()).then(|| score_slice(name, captions, (queries, &chosen), rankings))
    };
    let seen = slice("captions seen in training", &|query| query.seen);
    let unseen = slice("captions never seen", &|query| !query.seen);
    slice("all captions", &|_| true).into_iter().chain(seen).chain(unseen).collect()
}

/// Returns the numbers of the queries of each language that `wants` accepts, by the name of the language.
fn group_by_language<'l>(
    queries: &[Query],
    languages: &'l [String],
    wants: impl Fn(&Query) -> bool,
) -> BTreeMap<&'l str, (usize, Vec<usize>)> {
    let mut groups: BTreeMap<&str, (usize, Vec<usize>)> = BTreeMap::new();
    for (number, query) in queries.iter().enumerate().filter(|(_, query)| wants(query)) {
        if let Some(language) = query.language {
            groups.entry(&languages[language]).or_insert((language, Vec::new())).1.push(number);
        }
    }
    groups
}

/// Scores the queries of each language by the same rankings.
pub(super) fn score_by_language(
    queries: &[Query],
    languages: &[String],
    captions: usize,
    rankings: &Rankings,
) -> Vec<SliceReport> {
    let groups = group_by_language(queries, languages, |_| true);
    groups.into_iter().map(|(name, (_, chosen))| score_slice(name, captions, (queries, &chosen), rankings)).collect()
}

/// Scores the queries of each language among the captions of that language alone. `sizes` has the number of captions of each
/// language.
pub(super) fn score_within_language(
    queries: &[Query],
    languages: &[String],
    sizes: &[usize],
    rankings: &Rankings,
) -> Vec<SliceReport> {
    let groups = group_by_language(queries, languages, |query| query.caption.is_some());
    let slice = |(name, (language, chosen)): (&str, (usize, Vec<usize>))| {
        score_slice_by(name, sizes[language], (queries, &chosen), rankings, |ranked, number| {
            let place = ranked.places[number].map(|place| place.within);
            (place.map(|place| place as usize), place)
        })
    };
    groups.into_iter().map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_query_counts_in_its_slices() {
        let query = |image, caption, language, seen| Query { image, caption, language, seen };
        let queries =
            [query(0, Some(4), Some(1), true), query(0, Some(9), Some(0), false), query(1, None, None, false)];
        let place = |all, within| Some(Place { all, within });
        let pixels =
            RankedQueries { captions: vec![vec![4, 9], vec![1]], places: vec![place(1, 1), place(2, 1), None] };
        let names = RankedQueries { captions: vec![vec![9], vec![]], places: vec![place(7, 7), place(1, 1), None] };
        let rankings = vec![(FusionSignal::Pixels, pixels), (FusionSignal::Names, names)];
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
        assert_eq!(slices[0].pixels.mean_rank, Some(5.0), "a caption that was not ranked counts as the last");
        let within = score_within_language(&queries, &["de".to_owned(), "ar".to_owned()], &[5, 7], &rankings);
        assert_eq!((within[1].captions, within[1].pixels.mean_rank, within[1].pixels.recall1), (5, Some(1.0), 1.0));
    }
}
