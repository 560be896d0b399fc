//! Scores of rankings by slice of the queries: captions seen in training or not, and languages.
//!
//! A query is an image and one of its right captions. Signals rank the same captions in different ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::{MeanScores, Tally, rank_of};
use super::scorer::Place;

/// Signals of a ranking. A classifier contributes wherever pixels do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusionSignal {
    /// Pixels only.
    Pixels,
    /// File names only.
    Names,
    /// Pixels and file names.
    Both,
}

impl FusionSignal {
    /// Returns the name in the inputs of a batch log. The name never changes.
    pub fn fingerprint_name(self) -> &'static str {
        match self {
            Self::Pixels => "Pixels",
            Self::Names => "Names",
            Self::Both => "Both",
        }
    }

    /// Returns the name in progress and report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pixels => "pixels",
            Self::Names => "file names",
            Self::Both => "pixels and file names",
        }
    }
}

/// An image and one of its right captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Index of the image.
    pub image: usize,
    /// Position among the candidates; `None` if the caption is not a candidate.
    pub caption: Option<u32>,
    /// Index of the caption's language, if it is known.
    pub language: Option<usize>,
    /// Whether a training image has the caption.
    pub seen: bool,
}

/// Rankings by each signal; pixels come first.
pub type Rankings = Vec<(FusionSignal, RankedQueries)>;

/// Ranking of candidates for some images, and the ranks of the queries' captions.
#[derive(Debug, Default)]
pub struct RankedQueries {
    /// Best captions of each image.
    pub captions: Vec<Vec<u32>>,
    /// Rank of each query's caption among all candidates; `None` if it has none.
    pub places: Vec<Option<Place>>,
}

/// Scores of a slice of the queries. A query is an image and one of its right captions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceReport {
    /// Name of the slice.
    pub name: String,
    /// Number of queries.
    pub questions: u64,
    /// Number of ranked captions.
    pub captions: u64,
    /// Scores by pixels alone.
    pub pixels: MeanScores,
    /// Scores by file names alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<MeanScores>,
    /// Scores by pixels and file names together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub both: Option<MeanScores>,
}

/// Returns the rank of a query's caption in the list of its image's best captions.
pub fn rank_in_list(query: &Query, ranked: &RankedQueries) -> Option<usize> {
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

/// Scores the queries with the numbers `chosen` by each ranking. `captions` is the number of ranked captions.
pub fn score_slice(
    name: &str,
    captions: usize,
    (queries, chosen): (&[Query], &[usize]),
    rankings: &Rankings,
) -> SliceReport {
    score_slice_by(name, captions, (queries, chosen), rankings, |ranked, number| {
        (rank_in_list(&queries[number], ranked), ranked.places[number].map(|place| place.all))
    })
}

/// As [`score_slice`], by other ranks.
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
pub fn score_slices(queries: &[Query], captions: usize, rankings: &Rankings) -> Vec<SliceReport> {
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
pub fn score_by_language(
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
pub fn score_within_language(
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
