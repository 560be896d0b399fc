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
    let mut index: HashMap<Box<str>, usize> = HashMap::new();
    // In the order of the truth, so that sums do not depend on the order of the map.
    let mut ids: Vec<IdState> = Vec::new();
    for_each_row(FileRole::Truth, truth, |id, caption| {
        let at = if let Some(&at) = index.get(id) {
            at
        } else {
            index.insert(id.into(), ids.len());
            ids.push(IdState::default());
            ids.len() - 1
        };
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
    let rows = for_each_row(FileRole::Submission, submission, |id, caption| {
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
    Ok(Scores {
        ids: tally.ids(),
        ndcg5: tally.ndcg5(),
        recall1: tally.recall1(),
        recall5: tally.recall5(),
        mrr: tally.mrr(),
        rows,
        missing_ids,
        unknown_ids: unknown.len() as u64,
        rows_beyond_five,
        repeated_rows,
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

/// Calls `visit` with id and caption of each row; returns the number of rows.
fn for_each_row(role: FileRole, input: impl Read, mut visit: impl FnMut(&str, &str)) -> Result<u64, EvaluateError> {
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
    Ok(row)
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
mod tests {
    use super::*;
    use crate::predict::metrics::gain;

    const HEADER: &str = "id,caption_title_and_reference_description\n";

    fn scores(submission: &str, truth: &str) -> Result<Scores, EvaluateError> {
        evaluate(format!("{HEADER}{submission}").as_bytes(), format!("{HEADER}{truth}").as_bytes())
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn scores_match_numpy() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/");
        let open = |name: &str| std::fs::File::open(format!("{folder}{name}")).unwrap();
        let scores = evaluate(open("ranked.csv"), open("truth.csv")).unwrap();
        let expected: serde_json::Value = serde_json::from_reader(open("scores.json")).unwrap();
        let got = serde_json::to_value(scores).unwrap();
        for (name, value) in expected.as_object().unwrap() {
            let (want, have) = (value.as_f64().unwrap(), got[name].as_f64().unwrap());
            assert!(close(want, have), "{name}: {have}, expected {want}");
        }
    }

    #[test]
    fn rows_of_an_id_need_not_be_consecutive() {
        let together = scores("1,x\n1,a\n2,b\n", "1,a\n2,b\n").unwrap();
        let apart = scores("1,x\n2,b\n1,a\n", "1,a\n2,b\n").unwrap();
        assert_eq!(together, apart);
        assert!(close(together.ndcg5, f64::midpoint(gain(2), 1.0)));
    }

    #[test]
    fn missing_id_scores_zero() {
        let scores = scores("1,a\n", "1,a\n2,b\n").unwrap();
        assert_eq!((scores.ids, scores.missing_ids), (2, 1));
        assert!(close(scores.ndcg5, 0.5));
    }

    #[test]
    fn unknown_id_is_counted_once() {
        let scores = scores("9,a\n9,b\n1,a\n", "1,a\n").unwrap();
        assert_eq!((scores.unknown_ids, scores.rows), (1, 3));
        assert!(close(scores.recall1, 1.0));
    }

    #[test]
    fn only_the_first_five_rows_count() {
        let scores = scores("1,u\n1,v\n1,w\n1,x\n1,y\n1,a\n", "1,a\n").unwrap();
        assert_eq!(scores.rows_beyond_five, 1);
        assert!(close(scores.ndcg5 + scores.mrr + scores.recall5, 0.0));
    }

    #[test]
    fn repeated_caption_occupies_a_rank() {
        let scores = scores("1,x\n1,x\n1,a\n1,a\n", "1,a\n").unwrap();
        assert_eq!(scores.repeated_rows, 2);
        assert!(close(scores.mrr, 1.0 / 3.0));
    }

    #[test]
    fn best_rank_of_several_relevant_captions_counts() {
        let scores = scores("1,x\n1,b\n1,a\n", "1,a\n1,b\n1,a\n").unwrap();
        assert_eq!(scores.ids, 1);
        assert!(close(scores.mrr, 0.5));
    }

    #[test]
    fn captions_are_compared_exactly() {
        let scores = scores("1,a \n1,A\n1,\"a\n\"\n1,a\u{a0}\n", "1,a\n").unwrap();
        assert!(close(scores.mrr, 0.0));
    }

    #[test]
    fn byte_order_mark_is_ignored() {
        let truth = "\u{feff}id,other,caption_title_and_reference_description\n1,z,\"a, \"\"b\"\"\nc\"\n";
        let submission = "caption_title_and_reference_description,id\r\n\"a, \"\"b\"\"\nc\",1\r\n";
        let scores = evaluate(submission.as_bytes(), truth.as_bytes()).unwrap();
        assert!(close(scores.ndcg5, 1.0));
    }

    #[test]
    fn missing_column_error_names_file_and_column() {
        let error = evaluate("id,caption\n".as_bytes(), HEADER.as_bytes());
        assert!(matches!(error, Err(EvaluateError::NoTruth)));
        let error = evaluate("id,caption\n".as_bytes(), format!("{HEADER}1,a\n").as_bytes());
        let error = error.unwrap_err();
        assert!(matches!(error, EvaluateError::Column { role: FileRole::Submission, .. }));
        assert_eq!(
            error.to_string(),
            "the submission has no column `caption_title_and_reference_description`; its header is `id,caption`"
        );
    }

    #[test]
    fn short_row_error_names_file_and_row() {
        let error = scores("1,a\n2\n", "1,a\n").unwrap_err();
        assert!(matches!(error, EvaluateError::Row { row: 2, .. }));
        assert!(error.to_string().contains("row `2` of the submission"));
    }

    #[test]
    fn invalid_utf8_error_names_file_and_row() {
        let mut truth = format!("{HEADER}1,a\n2,").into_bytes();
        truth.extend([0xff, b'\n']);
        let error = evaluate(HEADER.as_bytes(), &truth[..]).unwrap_err();
        assert!(error.to_string().contains("row `2` of the truth"));
    }

    #[test]
    fn empty_id_is_rejected() {
        let error = scores("1,a\n,b\n", "1,a\n").unwrap_err();
        assert!(error.to_string().contains("row `2` of the submission has an empty column `id`"));
    }

    #[test]
    fn empty_file_is_rejected() {
        let error = evaluate("".as_bytes(), "".as_bytes()).unwrap_err();
        assert!(matches!(error, EvaluateError::Column { role: FileRole::Truth, .. }));
    }
}
