//! METEOR with its stages of equal words and equal stems, as NLTK computes it without `WordNet`.

use std::collections::HashMap;

use rust_stemmers::{Algorithm, Stemmer};

/// Weight of precision against recall.
const ALPHA: f64 = 0.9;
/// Exponent of the share of chunks.
const BETA: f64 = 3.0;
/// Largest penalty of a scattered match.
const GAMMA: f64 = 0.5;

/// Scorer with its stemmer.
pub(super) struct Meteor(Stemmer);

/// Number of a word in its text, and the word or its stem.
type Word = (usize, String);

impl Meteor {
    pub(super) fn new() -> Self {
        Self(Stemmer::create(Algorithm::English))
    }

    /// Returns the best score of a caption over its references.
    pub(super) fn score(&self, caption: &[String], references: &[Vec<String>]) -> f64 {
        references.iter().map(|reference| self.score_pair(caption, reference)).fold(0.0, f64::max)
    }

    fn score_pair(&self, caption: &[String], reference: &[String]) -> f64 {
        let enumerate = |text: &[String]| -> Vec<Word> { text.iter().cloned().enumerate().collect() };
        let (mut own, mut other) = (enumerate(caption), enumerate(reference));
        let mut matches = match_words(&mut own, &mut other);
        for (_, word) in own.iter_mut().chain(&mut other) {
            *word = self.0.stem(word).into_owned();
        }
        matches.extend(match_words(&mut own, &mut other));
        if matches.is_empty() {
            return 0.0;
        }
        matches.sort_unstable();
        let found = matches.len() as f64;
        let (precision, recall) = (found / caption.len() as f64, found / reference.len() as f64);
        let mean = precision * recall / (ALPHA * precision + (1.0 - ALPHA) * recall);
        let is_gap = |pair: &&[(usize, usize)]| pair[1].0 != pair[0].0 + 1 || pair[1].1 != pair[0].1 + 1;
        let chunks = 1 + matches.windows(2).filter(is_gap).count();
        (1.0 - GAMMA * (chunks as f64 / found).powf(BETA)) * mean
    }
}

/// Removes equal words from both texts and returns their places. From the end, each word takes the last equal word of the
/// other text that is still free.
fn match_words(own: &mut Vec<Word>, other: &mut Vec<Word>) -> Vec<(usize, usize)> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, (_, word)) in other.iter().enumerate() {
        places.entry(word).or_default().push(place);
    }
    let (mut matches, mut taken) = (Vec::new(), Vec::new());
    for (place, (number, word)) in own.iter().enumerate().rev() {
        if let Some(found) = places.get_mut(word.as_str()).and_then(Vec::pop) {
            matches.push((*number, other[found].0));
            taken.push((place, found));
        }
    }
    let mut place = 0;
    own.retain(|_| {
        place += 1;
        taken.iter().all(|(own, _)| *own != place - 1)
    });
    place = 0;
    other.retain(|_| {
        place += 1;
        taken.iter().all(|(_, other)| *other != place - 1)
    });
    matches
}
