//! Scores a submission file against a truth file.
//!
//! Both files are CSV with the columns `id` and `caption_title_and_reference_description`, in any order and among other
//! columns. Captions are compared byte by byte. Every id of the truth counts once; an id without a row in the
//! submission scores 0. The rows of an id need not be consecutive; their order is their rank, and only the first five
//! count. An id with several rows in the truth has several relevant captions, of which the best rank counts. Memory is
//! the truth plus 40 bytes for each id of the submission, independent of the length of the submission.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use serde::Serialize;
use twox_hash::XxHash3_64;

use super::metrics::{DEPTH, Tally};
use super::submission::{CAPTION_COLUMN, ID_COLUMN};

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
        "the submission has no row for any id of the truth, whose first is `{first}`: they are of different test sets"
    )]
    NoCommonId {
        /// First id of the truth.
        first: String,
    },
}

/// Metrics of a submission, and counts of its irregularities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Ids of the truth, over which every mean is taken.
    pub ids: u64,
    /// Mean NDCG@5.
    pub ndcg5: f64,
    /// Share of ids with a relevant caption at rank 1.
    pub recall1: f64,
    /// Share of ids with a relevant caption at ranks 1 to 5.
    pub recall5: f64,
    /// Mean reciprocal rank over ranks 1 to 5.
    pub mrr: f64,
    /// Rows of the submission.
    pub rows: u64,
    /// Ids of the truth without a row in the submission; they score 0.
    pub missing_ids: u64,
    /// Distinct ids of the submission that the truth does not contain; they are ignored.
    pub unknown_ids: u64,
    /// Rows beyond the fifth of an id of the truth; they are ignored.
    pub rows_beyond_five: u64,
    /// Rows among the first five of an id that repeat one of its captions; each still occupies a rank.
    pub repeated_rows: u64,
}

/// State of one id of the truth.
#[derive(Default)]
struct IdState {
    relevant: Vec<Box<str>>,
    /// Rows of the truth.
    truth_rows: u32,
    /// Best rank of a relevant caption so far, from 1.
    best_rank: Option<u8>,
    /// Rows of the submission so far, at most [`DEPTH`].
    rows: u8,
    /// Hashes of the captions of these rows.
    hashes: [u64; DEPTH],
}

/// Scores a submission.
///
/// # Errors
/// When a file lacks a column, a row cannot be read or has no id, or the truth is empty.
pub fn evaluate(submission: impl Read, truth: impl Read) -> Result<Scores, EvaluateError> {
    score_files(submission, truth).map(|scored| scored.scores)
}

/// Scores a submission that a user names, which may be the truth by mistake.
///
/// # Errors
/// As [`evaluate`]; also when the columns or the repeated ids of the two files show that they are swapped, or they have no
/// id in common.
pub fn evaluate_files(submission: impl Read, truth: impl Read) -> Result<Scores, EvaluateError> {
    let Scored { scores, ids, first_id, truth_names_language, submission_names_language } =
        score_files(submission, truth)?;
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

fn score_files(submission: impl Read, truth: impl Read) -> Result<Scored, EvaluateError> {
    let mut index: HashMap<Box<str>, usize> = HashMap::new();
    // In the order of the truth, so that sums do not depend on the order of the map.
    let mut ids: Vec<IdState> = Vec::new();
    let mut first_id: Option<Box<str>> = None;
    let truth = for_each_row(FileRole::Truth, truth, |id, caption| {
        let at = if let Some(&at) = index.get(id) {
            at
        } else {
            first_id.get_or_insert_with(|| id.into());
            index.insert(id.into(), ids.len());
            ids.push(IdState::default());
            ids.len() - 1
        };
        ids[at].truth_rows += 1;
        if !ids[at].relevant.iter().any(|known| **known == *caption) {
            ids[at].relevant.push(caption.into());
        }
    })?;
    if ids.is_empty() {
        return Err(EvaluateError::NoTruth);
    }

    let mut unknown = HashSet::new();
    let mut rows_beyond_five = 0;
    let mut repeated_rows = 0;
    let submission = for_each_row(FileRole::Submission, submission, |id, caption| {
        let Some(&at) = index.get(id) else {
            unknown.insert(XxHash3_64::oneshot(id.as_bytes()));
            return;
        };
        let state = &mut ids[at];
        let filled = usize::from(state.rows);
        if filled == DEPTH {
            rows_beyond_five += 1;
            return;
        }
        let hash = XxHash3_64::oneshot(caption.as_bytes());
        repeated_rows += u64::from(state.hashes[..filled].contains(&hash));
        state.hashes[filled] = hash;
        state.rows += 1;
        if state.best_rank.is_none() && state.relevant.iter().any(|known| **known == *caption) {
            state.best_rank = Some(state.rows);
        }
    })?;

    let mut tally = Tally::default();
    let mut missing_ids = 0;
    for id in &ids {
        tally.add(id.best_rank.map(usize::from));
        missing_ids += u64::from(id.rows == 0);
    }
    let scores = Scores {
        ids: tally.ids(),
        ndcg5: tally.ndcg5(),
        recall1: tally.recall1(),
        recall5: tally.recall5(),
        mrr: tally.mrr(),
        rows: submission.rows,
        missing_ids,
        unknown_ids: unknown.len() as u64,
        rows_beyond_five,
        repeated_rows,
    };
    Ok(Scored {
        scores,
        ids,
        first_id: first_id.unwrap_or_default(),
        truth_names_language: truth.names_language,
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

/// Calls `visit` with id and caption of each row.
fn for_each_row(
    role: FileRole,
    input: impl Read,
    mut visit: impl FnMut(&str, &str),
) -> Result<ReadFile, EvaluateError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(input);
    let unreadable = |row| move |source| EvaluateError::Row { role, row, source };
    let header = reader.headers().map_err(unreadable(0))?.clone();
    let id_at = find_column(role, &header, ID_COLUMN)?;
    let caption_at = find_column(role, &header, CAPTION_COLUMN)?;
    let mut record = csv::StringRecord::new();
    let mut row = 0;
    while reader.read_record(&mut record).map_err(unreadable(row + 1))? {
        row += 1;
        // The reader rejects rows whose number of fields differs from the header's.
        let (id, caption) = (&record[id_at], &record[caption_at]);
        if id.is_empty() {
            return Err(EvaluateError::EmptyId { role, row, column: ID_COLUMN });
        }
        visit(id, caption);
    }
    Ok(ReadFile { rows: row, names_language: header.iter().any(|name| name == LANGUAGE_COLUMN) })
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
