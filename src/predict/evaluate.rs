//! Scores a submission file against a truth file.
//!
//! Both files are CSV with the columns `id` and `caption_title_and_reference_description`, in any order and among other
//! columns. Captions are compared byte by byte. Every id of the truth counts once; an id without a row in the
//! submission scores 0. The rows of an id need not be consecutive; their order is their rank, and only the first five
//! count, except for the mean rank. An id with several rows in the truth has several relevant captions, of which the best
//! rank counts. With a column `language` in the truth, each language is scored by itself too. Memory is the truth plus 80
//! bytes for each of its ids, independent of the length of the submission.

mod truth;

use std::collections::HashSet;
use std::io::Read;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::metrics::MeanScores;
use super::submission::{CAPTION_COLUMN, ID_COLUMN};
use truth::{IdState, ImageTallies, Truth, score_languages};

pub use truth::ImageOfId;

/// Input file that an error refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    /// The scored file.
    Submission,
    /// The file with the relevant captions.
    Truth,
}

impl std::fmt::Display for FileRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Submission => "submission",
            Self::Truth => "truth",
        })
    }
}

/// Error of scoring a submission.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The header lacks a column.
    #[error("the {role} has no column `{column}`; its header is `{header}`")]
    Column {
        /// The file.
        role: FileRole,
        /// Missing column.
        column: &'static str,
        /// Header of the file.
        header: String,
    },
    /// The header names a column twice.
    #[error("the header of the {role} names column `{column}` more than once")]
    Repeated {
        /// The file.
        role: FileRole,
        /// The column.
        column: &'static str,
    },
    /// A row cannot be read.
    #[error("row `{row}` of the {role} cannot be read as CSV in UTF-8")]
    Row {
        /// The file.
        role: FileRole,
        /// Data row, from 1; 0 is the header.
        row: u64,
        /// Error of the CSV reader.
        #[source]
        source: csv::Error,
    },
    /// A row has no id.
    #[error("row `{row}` of the {role} has an empty column `{column}`")]
    EmptyId {
        /// The file.
        role: FileRole,
        /// Data row, from 1.
        row: u64,
        /// Name of the id column.
        column: &'static str,
    },
    /// The truth has a header but no rows.
    #[error("the truth has no rows, so there is nothing to score against")]
    NoTruth,
    /// The submission has a column that only a truth has.
    #[error("the submission has the column `{LANGUAGE_COLUMN}`, which only a truth has: are the two files swapped?")]
    TruthAsSubmission,
    /// The truth repeats ids as a submission does, and the submission does not.
    #[error(
        "the truth has up to {rows} rows an id and the submission one: are the two files swapped? A truth that really has \
         several right captions an id says so with a column `{LANGUAGE_COLUMN}`"
    )]
    Swapped {
        /// Largest number of rows of an id in the truth.
        rows: u32,
    },
    /// No id of the truth has a row in the submission.
    #[error(
        "no row of the submission has an id of the truth, such as `{first}`: the two files belong to different test sets"
    )]
    NoCommonId {
        /// First id of the truth.
        first: String,
    },
}

/// Metrics of a submission, and counts of its irregularities.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// Ids of the truth, over which every mean but the mean rank is taken.
    pub ids: u64,
    /// The means. The mean reciprocal rank is over ranks 1 to 5, the mean rank over the ids with a relevant caption in
    /// any row.
    #[serde(flatten)]
    pub means: MeanScores,
    /// Ids with a relevant caption in any of their rows.
    pub ranked_ids: u64,
    /// Rows of the submission.
    pub rows: u64,
    /// Ids of the truth without a row in the submission; they score 0.
    pub missing_ids: u64,
    /// Distinct ids of the submission that the truth does not contain; they are ignored.
    pub unknown_ids: u64,
    /// Rows beyond the fifth of an id of the truth; only the mean rank considers them.
    pub rows_beyond_five: u64,
    /// Rows among the first five of an id that repeat one of its captions; each still occupies a rank.
    pub repeated_rows: u64,
    /// Scores by the language of the relevant captions, in alphabetical order; empty if the truth names none.
    pub by_language: Vec<LanguageScores>,
}

/// Metrics of the ids with a relevant caption in one language.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LanguageScores {
    /// The language.
    pub language: String,
    /// Number of the ids.
    pub ids: u64,
    /// The means, by the captions in this language alone.
    #[serde(flatten)]
    pub means: MeanScores,
}

/// Scores a submission. Without `images`, each id counts as an image of its own.
///
/// # Errors
/// When a file lacks a column, a row cannot be read or has no id, or the truth is empty.
pub fn evaluate(submission: impl Read, truth: impl Read, images: Option<&ImageOfId>) -> Result<Scores, EvaluateError> {
    score_files(submission, truth, images).map(|scored| scored.scores)
}

/// Scores a submission that a user names, which may be the truth by mistake.
///
/// # Errors
/// As [`evaluate`]; also when the columns or the repeated ids of the two files show that they are swapped, or they have no
/// id in common.
pub fn evaluate_files(
    submission: impl Read,
    truth: impl Read,
    images: Option<&ImageOfId>,
) -> Result<Scores, EvaluateError> {
    let Scored { scores, ids, first_id, truth_names_language, submission_names_language } =
        score_files(submission, truth, images)?;
    if submission_names_language {
        return Err(EvaluateError::TruthAsSubmission);
    }
    let most_in_truth = ids.iter().map(|id| id.truth_rows).max().unwrap_or(0);
    let most_in_submission = ids.iter().map(|id| id.rows).max().unwrap_or(0);
    if most_in_submission == 0 {
        return Err(EvaluateError::NoCommonId { first: truncate(&first_id) });
    }
    if most_in_truth > 1 && most_in_submission == 1 && !truth_names_language {
        return Err(EvaluateError::Swapped { rows: most_in_truth });
    }
    Ok(scores)
}

/// Shortens an id for a message.
fn truncate(id: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    if id.chars().count() <= SHOWN_CHARS {
        id.to_owned()
    } else {
        id.chars().take(SHOWN_CHARS).chain(['…']).collect()
    }
}

/// Scores, and what shows whether the files are what they should be.
struct Scored {
    scores: Scores,
    ids: Vec<IdState>,
    /// First id of the truth.
    first_id: Box<str>,
    truth_names_language: bool,
    submission_names_language: bool,
}

fn score_files(submission: impl Read, truth: impl Read, images: Option<&ImageOfId>) -> Result<Scored, EvaluateError> {
    let Truth { index, mut ids, first_id, languages, names_language } = Truth::read(truth, images)?;
    let mut unknown = HashSet::new();
    let mut rows_beyond_five = 0;
    let mut repeated_rows = 0;
    let submission = for_each_row(FileRole::Submission, submission, |id, caption, _| {
        let Some(&at) = index.get(id) else {
            unknown.insert(XxHash3_64::oneshot(id.as_bytes()));
            return;
        };
        let state = &mut ids[at];
        let filled = state.rows as usize;
        if let Some(free) = state.hashes.get_mut(filled) {
            *free = XxHash3_64::oneshot(caption.as_bytes());
            repeated_rows += u64::from(state.hashes[..filled].contains(&state.hashes[filled]));
        } else {
            rows_beyond_five += 1;
        }
        state.rows = state.rows.saturating_add(1);
        for own in state.relevant.iter_mut().filter(|own| own.rank == 0 && *own.caption == *caption) {
            own.rank = state.rows;
        }
    })?;

    let mut images = ImageTallies::default();
    for id in &ids {
        id.add_to(&mut images, |_| true);
    }
    let (count, ranked_ids, means) = images.finish();
    let scores = Scores {
        ids: count,
        means,
        ranked_ids,
        rows: submission.rows,
        missing_ids: ids.iter().filter(|id| id.rows == 0).count() as u64,
        unknown_ids: unknown.len() as u64,
        rows_beyond_five,
        repeated_rows,
        by_language: if names_language { score_languages(&ids, &languages) } else { Vec::new() },
    };
    Ok(Scored {
        scores,
        ids,
        first_id,
        truth_names_language: names_language,
        submission_names_language: submission.names_language,
    })
}

/// Row of a truth file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TruthRow {
    /// Id of the row.
    pub id: Box<str>,
    /// Relevant caption.
    pub caption: Box<str>,
    /// Language of the caption from the column `language`; empty without this column.
    pub language: Box<str>,
}

/// Reads a truth file, including languages.
///
/// # Errors
/// As [`evaluate`].
pub fn read_truth(input: impl Read) -> Result<Vec<TruthRow>, EvaluateError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(input);
    let unreadable = |row| move |source| EvaluateError::Row { role: FileRole::Truth, row, source };
    let header = reader.headers().map_err(unreadable(0))?.clone();
    let columns =
        [find_column(FileRole::Truth, &header, ID_COLUMN)?, find_column(FileRole::Truth, &header, CAPTION_COLUMN)?];
    let language = header.iter().position(|name| name == LANGUAGE_COLUMN);
    let mut rows = Vec::new();
    for (row, record) in (1..).zip(reader.records()) {
        let record = record.map_err(unreadable(row))?;
        let [id, caption] = columns.map(|at| record[at].into());
        rows.push(TruthRow { id, caption, language: language.map_or("", |at| &record[at]).into() });
    }
    Ok(rows)
}

/// Name of the optional language column of a truth file.
const LANGUAGE_COLUMN: &str = "language";

/// A file that was read.
struct ReadFile {
    rows: u64,
    /// True if the header has the column [`LANGUAGE_COLUMN`].
    names_language: bool,
}

/// Calls `visit` with id, caption and language of each row. The language is empty without its column.
fn for_each_row(
    role: FileRole,
    input: impl Read,
    mut visit: impl FnMut(&str, &str, &str),
) -> Result<ReadFile, EvaluateError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(input);
    let unreadable = |row| move |source| EvaluateError::Row { role, row, source };
    let header = reader.headers().map_err(unreadable(0))?.clone();
    let id_at = find_column(role, &header, ID_COLUMN)?;
    let caption_at = find_column(role, &header, CAPTION_COLUMN)?;
    let language_at = header.iter().position(|name| name == LANGUAGE_COLUMN);
    let mut record = csv::StringRecord::new();
    let mut row = 0;
    while reader.read_record(&mut record).map_err(unreadable(row + 1))? {
        row += 1;
        // The reader rejects rows whose number of fields differs from the header's.
        let (id, caption) = (&record[id_at], &record[caption_at]);
        if id.is_empty() {
            return Err(EvaluateError::EmptyId { role, row, column: ID_COLUMN });
        }
        visit(id, caption, language_at.map_or("", |at| &record[at]));
    }
    Ok(ReadFile { rows: row, names_language: language_at.is_some() })
}

/// Returns the position of a column that must occur exactly once; ignores a byte order mark.
fn find_column(role: FileRole, header: &csv::StringRecord, name: &'static str) -> Result<usize, EvaluateError> {
    let mut found =
        header.iter().enumerate().filter(|(_, field)| field.trim_start_matches('\u{feff}') == name).map(|(at, _)| at);
    let first = found.next().ok_or_else(|| EvaluateError::Column {
        role,
        column: name,
        header: header.iter().collect::<Vec<_>>().join(","),
    })?;
    if found.next().is_some() {
        return Err(EvaluateError::Repeated { role, column: name });
    }
    Ok(first)
}

#[cfg(test)]
mod tests;
