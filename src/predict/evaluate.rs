//! A submission file against a truth file, both CSV with the columns `id` and
//! `caption_title_and_reference_description`, in any order and among others.
//!
//! Captions are compared as they are, byte by byte. Every id of the truth counts once; one without a row in the
//! submission scores 0. The submission's rows of an id need not be consecutive; their order is their rank, and only
//! the first five count. An id with several rows in the truth has several relevant captions: the best rank of any of
//! them is taken. Memory is the truth plus 40 bytes an id of the submission, whatever the submission's length.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use serde::Serialize;
use twox_hash::XxHash3_64;

use super::metrics::{DEPTH, Tally};
use super::submission::{CAPTION_COLUMN, ID_COLUMN};

/// Which of the two files a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The file that is scored.
    Submission,
    /// The file that it is scored against.
    Truth,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Submission => "submission",
            Self::Truth => "truth",
        })
    }
}

/// Why a submission could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The header lacks a column.
    #[error("the {role} has no column `{column}`; its header is `{header}`")]
    Column {
        /// The file.
        role: Role,
        /// The column that is needed.
        column: &'static str,
        /// The header as it was read.
        header: String,
    },
    /// The header names a column twice.
    #[error("the header of the {role} names column `{column}` more than once")]
    Repeated {
        /// The file.
        role: Role,
        /// The column.
        column: &'static str,
    },
    /// A row cannot be read.
    #[error("row `{row}` of the {role} cannot be read as CSV in UTF-8")]
    Row {
        /// The file.
        role: Role,
        /// Data row, from 1; 0 is the header.
        row: u64,
        /// What the reader said.
        #[source]
        source: csv::Error,
    },
    /// A row has no id.
    #[error("row `{row}` of the {role} has an empty column `{column}`")]
    EmptyId {
        /// The file.
        role: Role,
        /// Data row, from 1.
        row: u64,
        /// The column of ids.
        column: &'static str,
    },
    /// The truth holds a header and nothing else.
    #[error("the truth has no rows, so there is nothing to score against")]
    NoTruth,
}

/// What a submission scores, and what was odd about it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Ids of the truth: what every mean is over.
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
    /// Distinct ids of the submission that the truth does not have; they count nowhere.
    pub unknown_ids: u64,
    /// Rows beyond the fifth of an id of the truth; they count nowhere.
    pub rows_beyond_five: u64,
    /// Rows among the first five of an id that repeat a caption of that id; each takes up a rank all the same.
    pub repeated_rows: u64,
}

#[derive(Default)]
struct Id {
    relevant: Vec<Box<str>>,
    best: Option<u8>,
    rows: u8,
    seen: [u64; DEPTH],
}

/// Scores a submission.
///
/// # Errors
/// When a file lacks a column, a row cannot be read or has no id, or the truth is empty.
pub fn evaluate(submission: impl Read, truth: impl Read) -> Result<Scores, EvaluateError> {
    let mut index: HashMap<Box<str>, usize> = HashMap::new();
    // In the order of the truth, so that sums do not depend on the map's order.
    let mut ids: Vec<Id> = Vec::new();
    each_row(Role::Truth, truth, |id, caption| {
        let at = if let Some(&at) = index.get(id) {
            at
        } else {
            index.insert(id.into(), ids.len());
            ids.push(Id::default());
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
    let rows = each_row(Role::Submission, submission, |id, caption| {
        let Some(&at) = index.get(id) else {
            unknown.insert(XxHash3_64::oneshot(id.as_bytes()));
            return;
        };
        let entry = &mut ids[at];
        let filled = usize::from(entry.rows);
        if filled == DEPTH {
            rows_beyond_five += 1;
            return;
        }
        let hash = XxHash3_64::oneshot(caption.as_bytes());
        repeated_rows += u64::from(entry.seen[..filled].contains(&hash));
        entry.seen[filled] = hash;
        entry.rows += 1;
        if entry.best.is_none() && entry.relevant.iter().any(|known| **known == *caption) {
            entry.best = Some(entry.rows);
        }
    })?;

    let mut tally = Tally::default();
    let mut missing_ids = 0;
    for id in &ids {
        tally.add(id.best.map(usize::from));
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

/// A row of a truth file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truth {
    /// The id.
    pub id: Box<str>,
    /// Its right caption.
    pub caption: Box<str>,
    /// Its language, where the file has a column `language`; else empty.
    pub language: Box<str>,
}

/// Reads a truth file, with its languages.
///
/// # Errors
/// As [`evaluate`].
pub fn read_truth(input: impl Read) -> Result<Vec<Truth>, EvaluateError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(input);
    let unreadable = |row| move |source| EvaluateError::Row { role: Role::Truth, row, source };
    let header = reader.headers().map_err(unreadable(0))?.clone();
    let places = [column(Role::Truth, &header, ID_COLUMN)?, column(Role::Truth, &header, CAPTION_COLUMN)?];
    let language = header.iter().position(|name| name == LANGUAGE_COLUMN);
    let mut rows = Vec::new();
    for (row, record) in (1..).zip(reader.records()) {
        let record = record.map_err(unreadable(row))?;
        let [id, caption] = places.map(|place| record[place].into());
        rows.push(Truth { id, caption, language: language.map_or("", |place| &record[place]).into() });
    }
    Ok(rows)
}

/// The column of a truth file that may say in which language a caption is.
const LANGUAGE_COLUMN: &str = "language";

/// Calls `visit` with id and caption of each row; gives the number of rows.
fn each_row(role: Role, input: impl Read, mut visit: impl FnMut(&str, &str)) -> Result<u64, EvaluateError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(input);
    let unreadable = |row| move |source| EvaluateError::Row { role, row, source };
    let header = reader.headers().map_err(unreadable(0))?.clone();
    let id_at = column(role, &header, ID_COLUMN)?;
    let caption_at = column(role, &header, CAPTION_COLUMN)?;
    let mut record = csv::StringRecord::new();
    let mut row = 0;
    while reader.read_record(&mut record).map_err(unreadable(row + 1))? {
        row += 1;
        // The reader refuses a row whose number of fields is not the header's.
        let (id, caption) = (&record[id_at], &record[caption_at]);
        if id.is_empty() {
            return Err(EvaluateError::EmptyId { role, row, column: ID_COLUMN });
        }
        visit(id, caption);
    }
    Ok(row)
}

fn column(role: Role, header: &csv::StringRecord, name: &'static str) -> Result<usize, EvaluateError> {
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
    fn the_numbers_agree_with_numpy() {
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
    fn a_missing_id_scores_nothing_and_is_counted() {
        let scores = scores("1,a\n", "1,a\n2,b\n").unwrap();
        assert_eq!((scores.ids, scores.missing_ids), (2, 1));
        assert!(close(scores.ndcg5, 0.5));
    }

    #[test]
    fn an_unknown_id_is_counted_once() {
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
    fn a_repeated_caption_takes_a_rank_and_is_counted() {
        let scores = scores("1,x\n1,x\n1,a\n1,a\n", "1,a\n").unwrap();
        assert_eq!(scores.repeated_rows, 2);
        assert!(close(scores.mrr, 1.0 / 3.0));
    }

    #[test]
    fn any_relevant_caption_of_an_id_counts_and_the_best_rank_is_taken() {
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
    fn columns_are_found_by_name_behind_a_byte_order_mark() {
        let truth = "\u{feff}id,other,caption_title_and_reference_description\n1,z,\"a, \"\"b\"\"\nc\"\n";
        let submission = "caption_title_and_reference_description,id\r\n\"a, \"\"b\"\"\nc\",1\r\n";
        let scores = evaluate(submission.as_bytes(), truth.as_bytes()).unwrap();
        assert!(close(scores.ndcg5, 1.0));
    }

    #[test]
    fn a_missing_column_names_file_and_column() {
        let error = evaluate("id,caption\n".as_bytes(), HEADER.as_bytes());
        assert!(matches!(error, Err(EvaluateError::NoTruth)));
        let error = evaluate("id,caption\n".as_bytes(), format!("{HEADER}1,a\n").as_bytes());
        let error = error.unwrap_err();
        assert!(matches!(error, EvaluateError::Column { role: Role::Submission, .. }));
        assert_eq!(
            error.to_string(),
            "the submission has no column `caption_title_and_reference_description`; its header is `id,caption`"
        );
    }

    #[test]
    fn a_short_row_names_file_and_row() {
        let error = scores("1,a\n2\n", "1,a\n").unwrap_err();
        assert!(matches!(error, EvaluateError::Row { row: 2, .. }));
        assert!(error.to_string().contains("row `2` of the submission"));
    }

    #[test]
    fn bytes_that_are_not_utf8_name_file_and_row() {
        let mut truth = format!("{HEADER}1,a\n2,").into_bytes();
        truth.extend([0xff, b'\n']);
        let error = evaluate(HEADER.as_bytes(), &truth[..]).unwrap_err();
        assert!(error.to_string().contains("row `2` of the truth"));
    }

    #[test]
    fn an_empty_id_is_refused() {
        let error = scores("1,a\n,b\n", "1,a\n").unwrap_err();
        assert!(error.to_string().contains("row `2` of the submission has an empty column `id`"));
    }

    #[test]
    fn an_empty_file_is_refused() {
        let error = evaluate("".as_bytes(), "".as_bytes()).unwrap_err();
        assert!(matches!(error, EvaluateError::Column { role: Role::Truth, .. }));
    }
}
