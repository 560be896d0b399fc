//! Captions of formats in which one row has an image and any number of captions.

use std::collections::VecDeque;

use crate::corpus::pairs::{PairCounts, PairProblem, PairRow, check_pair};

/// Image and captions of one row. Without a caption it counts as one row whose caption is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptionedRow {
    /// Row number in the file.
    pub row: u64,
    /// URL or name of the image, exactly as in the file.
    pub image_url: Vec<u8>,
    /// Language and caption.
    pub captions: Vec<(Vec<u8>, Vec<u8>)>,
    /// Reason why the row cannot be used.
    pub problem: Option<PairProblem>,
}

impl CaptionedRow {
    /// Returns a row that cannot be used.
    pub fn unusable(row: u64, reason: PairProblem) -> Self {
        Self { row, problem: Some(reason), ..Self::default() }
    }
}

/// Queue of rows that hands out their pairs and counts them.
#[derive(Debug)]
pub struct CaptionQueue {
    rows: VecDeque<CaptionedRow>,
    /// Captions of the first row that were handed out.
    taken: usize,
    languages: Vec<String>,
    counts: PairCounts,
}

impl CaptionQueue {
    /// Creates an empty queue. An empty `languages` selects all; `counts` are those of earlier rows.
    pub fn new(languages: &[String], counts: PairCounts) -> Self {
        Self { rows: VecDeque::new(), taken: 0, languages: languages.to_vec(), counts }
    }

    /// Appends a row.
    pub fn push(&mut self, row: CaptionedRow) {
        self.rows.push_back(row);
    }

    /// Returns whether all pairs were handed out.
    pub fn is_empty(&self) -> bool {
        self.rows.front().is_none_or(|row| self.rows.len() == 1 && self.taken >= row.captions.len().max(1))
    }

    /// Returns the counts of the pairs handed out so far.
    pub fn counts(&self) -> &PairCounts {
        &self.counts
    }

    /// Hands out the next pair; `None` if the queue is empty.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the queue, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Option<PairRow<'_>> {
        let handed_out = self.rows.front().is_some_and(|row| self.taken >= row.captions.len().max(1));
        if handed_out {
            self.rows.pop_front();
            self.taken = 0;
        }
        let CaptionedRow { row, image_url, captions, problem } = self.rows.front()?;
        let (language, caption) =
            captions.get(self.taken).map_or((&[][..], &[][..]), |(language, caption)| (language, caption));
        self.taken += 1;
        let pair = match problem {
            Some(reason) => {
                self.taken = captions.len().max(1);
                PairRow::Skipped { row: *row, reason: *reason }
            }
            None if captions.is_empty() => PairRow::Skipped { row: *row, reason: PairProblem::MissingCaption },
            None => check_pair(*row, language, image_url, caption, &self.languages),
        };
        self.counts.count(&pair);
        Some(pair)
    }
}

/// Joins the values of the columns of captions and languages. A caption without a language beside it has none; a single language
/// is that of all captions. Null captions are left out.
pub(super) fn join_captions(
    captions: Vec<Option<Vec<u8>>>,
    languages: Vec<Option<Vec<u8>>>,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let only = if languages.len() == 1 { languages.first().cloned().flatten() } else { None };
    let mut languages = languages.into_iter();
    captions
        .into_iter()
        .filter_map(|caption| {
            let language = languages.next().flatten().or_else(|| only.clone()).unwrap_or_default();
            Some((language, caption?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "the values of a column may be null")]
    fn some(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn each_caption_is_a_counted_pair() {
        let mut queue = CaptionQueue::new(&["en".to_owned()], PairCounts::default());
        let captions =
            join_captions(vec![some("a"), None, some("c"), some("d")], vec![some("en"), some("de"), some("en")]);
        assert_eq!(captions.len(), 3);
        queue.push(CaptionedRow { row: 4, image_url: b"u".to_vec(), captions, problem: None });
        queue.push(CaptionedRow { row: 5, problem: Some(PairProblem::InvalidJson), ..CaptionedRow::default() });
        let captions = join_captions(vec![None], vec![some("en")]);
        queue.push(CaptionedRow { row: 6, image_url: b"v".to_vec(), captions, problem: None });
        let mut seen = Vec::new();
        while let Some(row) = queue.next() {
            seen.push(match row {
                PairRow::Pair(pair) => format!("{} {} {}", pair.row, pair.language, pair.target),
                PairRow::Skipped { row, reason } => format!("{row} {reason}"),
            });
        }
        assert_eq!(seen, ["4 en a", "4 en c", "4 language_filtered", "5 invalid_json", "6 missing_caption"]);
        assert_eq!((queue.counts().rows, queue.counts().pairs), (5, 2));
    }

    #[test]
    fn one_language_is_that_of_all_captions() {
        let joined = join_captions(vec![some("a"), some("b")], vec![some("en")]);
        assert_eq!(joined, [(b"en".to_vec(), b"a".to_vec()), (b"en".to_vec(), b"b".to_vec())]);
    }
}
