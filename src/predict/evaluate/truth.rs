//! The truth: relevant captions of each id, and the tallies of images.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use twox_hash::XxHash3_64;

use super::{EvaluateError, FileRole, LanguageScores, for_each_row};
use crate::predict::metrics::{DEPTH, MeanScores, Tally};

/// Image of each id, for confidence intervals: ids of one image share its ranking.
pub type ImageOfId = HashMap<Box<str>, u64>;

/// A relevant caption of an id.
pub(super) struct Relevant {
    pub(super) caption: Box<str>,
    /// Index into the languages.
    pub(super) language: usize,
    /// Rank of its first row, from 1; 0 if it has none.
    pub(super) rank: u32,
}

/// State of one id of the truth.
#[derive(Default)]
pub(super) struct IdState {
    pub(super) relevant: Vec<Relevant>,
    /// Rows of the truth.
    pub(super) truth_rows: u32,
    /// Image of the id.
    image: u64,
    /// Rows of the submission so far.
    pub(super) rows: u32,
    /// Hashes of the captions of the first [`DEPTH`] rows.
    pub(super) hashes: [u64; DEPTH],
}

impl IdState {
    /// Adds the best rank of the relevant captions that `chosen` accepts, if it accepts any.
    pub(super) fn add_to(&self, images: &mut ImageTallies, chosen: impl Fn(&Relevant) -> bool) {
        let ranks: Vec<u32> = self.relevant.iter().filter(|caption| chosen(caption)).map(|own| own.rank).collect();
        if ranks.is_empty() {
            return;
        }
        let best = ranks.into_iter().filter(|rank| *rank > 0).min();
        let tally = images.tally(self.image);
        tally.add(best.map(|rank| rank as usize).filter(|rank| *rank <= DEPTH));
        if let Some(rank) = best {
            tally.add_place(u64::from(rank));
        }
    }
}

/// Tallies of images, in the order of their first ids, so that sums do not depend on the order of a map.
#[derive(Default)]
pub(super) struct ImageTallies {
    place_of: HashMap<u64, usize>,
    tallies: Vec<Tally>,
}

impl ImageTallies {
    fn tally(&mut self, image: u64) -> &mut Tally {
        let place = *self.place_of.entry(image).or_insert_with(|| {
            self.tallies.push(Tally::default());
            self.tallies.len() - 1
        });
        &mut self.tallies[place]
    }

    /// Returns the number of ids, the number of those with a rank, and the means.
    pub(super) fn finish(self) -> (u64, u64, MeanScores) {
        let mut all = Tally::default();
        for image in &self.tallies {
            all.merge(image);
        }
        (all.ids(), all.places(), MeanScores::from_images(&self.tallies))
    }
}

/// Scores each language that is named.
pub(super) fn score_languages(ids: &[IdState], languages: &BTreeMap<Box<str>, usize>) -> Vec<LanguageScores> {
    let mut images: Vec<ImageTallies> = languages.iter().map(|_| ImageTallies::default()).collect();
    for id in ids {
        let mut own: Vec<usize> = id.relevant.iter().map(|caption| caption.language).collect();
        own.sort_unstable();
        own.dedup();
        for language in own {
            id.add_to(&mut images[language], |caption| caption.language == language);
        }
    }
    let named = languages.iter().filter(|(name, _)| !name.is_empty()).map(|(name, index)| (&**name, *index));
    let score = |(name, index): (&str, usize)| {
        let (ids, _, means) = std::mem::take(&mut images[index]).finish();
        LanguageScores { language: name.to_owned(), ids, means }
    };
    named.map(score).collect()
}

/// The truth, with the state of each of its ids.
pub(super) struct Truth {
    pub(super) index: HashMap<Box<str>, usize>,
    /// In the order of the file.
    pub(super) ids: Vec<IdState>,
    pub(super) first_id: Box<str>,
    /// Language → its index. An empty name stands for no language.
    pub(super) languages: BTreeMap<Box<str>, usize>,
    pub(super) names_language: bool,
}

impl Truth {
    pub(super) fn read(truth: impl Read, images: Option<&ImageOfId>) -> Result<Self, EvaluateError> {
        let (mut index, mut ids, mut languages) = (HashMap::new(), Vec::<IdState>::new(), BTreeMap::new());
        let mut first_id: Option<Box<str>> = None;
        let file = for_each_row(FileRole::Truth, truth, |id, caption, language| {
            let at = index.get(id).copied().unwrap_or_else(|| {
                first_id.get_or_insert_with(|| id.into());
                index.insert(Box::from(id), ids.len());
                let own = || XxHash3_64::oneshot(id.as_bytes());
                let image = images.and_then(|images| images.get(id).copied()).unwrap_or_else(own);
                ids.push(IdState { image, ..IdState::default() });
                ids.len() - 1
            });
            let known = languages.len();
            let language = *languages.entry(Box::from(language)).or_insert(known);
            ids[at].truth_rows += 1;
            let is_known = |own: &Relevant| *own.caption == *caption && own.language == language;
            if !ids[at].relevant.iter().any(is_known) {
                ids[at].relevant.push(Relevant { caption: caption.into(), language, rank: 0 });
            }
        })?;
        let first_id = first_id.ok_or(EvaluateError::NoTruth)?;
        Ok(Self { index, ids, first_id, languages, names_language: file.names_language })
    }
}
