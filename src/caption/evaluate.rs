//! Reads captions and references from CSV files and scores them.
//!
//! Both files have a column `id` and a column with text, in any order and among other columns. The text of captions is in
//! `caption`; that of references in `caption`, `reference` or `caption_title_and_reference_description`, so a truth file of
//! `predict` is a file of references too. An id may have several references. Every id with a reference counts once: one
//! without a caption, or with an empty one, scores 0.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::bleu::Bleu;
use super::meteor::Meteor;
use super::{cider, tokenize};

/// Column of the ids.
const ID: &str = "id";
/// Column of generated captions.
const CAPTION: &str = "caption";
/// Columns of references; the first that a file has counts.
const REFERENCE_COLUMNS: [&str; 3] = ["caption", "reference", "caption_title_and_reference_description"];

/// Error of scoring captions.
#[derive(Debug, thiserror::Error)]
pub enum CaptionEvaluateError {
    /// A file cannot be opened.
    #[error("`{path}` cannot be opened")]
    Open {
        /// The file.
        path: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The header lacks a column.
    #[error("`{path}` has no column {wanted}; its header is `{header}`")]
    Column {
        /// The file.
        path: String,
        /// Names that the column may have.
        wanted: String,
        /// Header of the file.
        header: String,
    },
    /// A row cannot be read.
    #[error("row {row} of `{path}` cannot be read as CSV in UTF-8")]
    Row {
        /// The file.
        path: String,
        /// Data row, from 1; 0 is the header.
        row: u64,
        /// Error of the CSV reader.
        #[source]
        source: csv::Error,
    },
    /// A row has no id.
    #[error("row {row} of `{path}` has an empty column `id`")]
    EmptyId {
        /// The file.
        path: String,
        /// Data row, from 1.
        row: u64,
    },
    /// An id has two captions.
    #[error("`{path}` has two captions for the id `{id}`: one a file is scored")]
    Repeated {
        /// The file.
        path: String,
        /// The id.
        id: String,
    },
    /// There is nothing to score against.
    #[error("`{path}` has no references")]
    Empty {
        /// The file.
        path: String,
    },
    /// The two files belong to different images.
    #[error("no id of `{captions}` is in `{references}`: do the files belong together?")]
    NoCommonId {
        /// File of captions.
        captions: String,
        /// File of references.
        references: String,
    },
}

/// Scores of generated captions. BLEU is over the corpus; the others are means over the ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionScores {
    /// Ids with references.
    pub ids: u64,
    /// References of these ids.
    pub references: u64,
    /// Ids with references that have no caption, or an empty one. They score 0.
    pub without_caption: u64,
    /// Captions whose ids have no references. They are not scored.
    pub without_reference: u64,
    /// BLEU with sequences of one token.
    pub bleu1: f64,
    /// BLEU with sequences of one and two tokens.
    pub bleu2: f64,
    /// BLEU with sequences of up to three tokens.
    pub bleu3: f64,
    /// BLEU with sequences of up to four tokens.
    pub bleu4: f64,
    /// METEOR with its stages of equal words and equal stems.
    pub meteor_exact_stem: f64,
    /// `CIDEr-D`.
    pub cider: f64,
}

/// References of each id.
#[derive(Debug, Clone, Default)]
pub struct References {
    path: String,
    texts: BTreeMap<Box<str>, Vec<String>>,
}

impl References {
    /// Reads a file of references; `path` appears in errors.
    ///
    /// # Errors
    /// When a column is missing, a row cannot be read, or there is no row.
    pub fn read(file: impl Read, path: &str) -> Result<Self, CaptionEvaluateError> {
        let mut texts: BTreeMap<Box<str>, Vec<String>> = BTreeMap::new();
        read_rows(file, path, &REFERENCE_COLUMNS, |id, text| {
            texts.entry(id.into()).or_default().push(text.to_owned());
            Ok(())
        })?;
        if texts.is_empty() {
            return Err(CaptionEvaluateError::Empty { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), texts })
    }

    /// Scores a file of captions; `path` appears in errors.
    ///
    /// # Errors
    /// When a column is missing, a row cannot be read, an id has two captions, or no id has references.
    pub fn score(&self, captions: impl Read, path: &str) -> Result<CaptionScores, CaptionEvaluateError> {
        let mut scoring = self.scoring(path);
        read_rows(captions, path, &[CAPTION], |id, text| scoring.add(id, text))?;
        scoring.finish()
    }

    /// Tells whether an id has references.
    pub fn contains(&self, id: &str) -> bool {
        self.texts.contains_key(id)
    }

    /// Returns the ids with references, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(AsRef::as_ref)
    }

    /// Starts to score captions one by one; `path` names them in errors.
    pub fn scoring(&self, path: &str) -> Scoring<'_> {
        Scoring { references: self, path: path.to_owned(), caption_of: BTreeMap::new(), without_reference: 0 }
    }
}

/// Captions that are scored one by one.
pub struct Scoring<'a> {
    references: &'a References,
    path: String,
    caption_of: BTreeMap<Box<str>, Vec<String>>,
    without_reference: u64,
}

impl Scoring<'_> {
    /// Adds the caption of an id.
    ///
    /// # Errors
    /// When the id has one already.
    pub fn add(&mut self, id: &str, caption: &str) -> Result<(), CaptionEvaluateError> {
        if !self.references.contains(id) {
            self.without_reference += 1;
            return Ok(());
        }
        match self.caption_of.entry(id.into()) {
            Entry::Occupied(_) => Err(CaptionEvaluateError::Repeated { path: self.path.clone(), id: id.to_owned() }),
            Entry::Vacant(entry) => {
                entry.insert(tokenize(caption));
                Ok(())
            }
        }
    }

    /// Returns the scores.
    ///
    /// # Errors
    /// When no id has references.
    pub fn finish(self) -> Result<CaptionScores, CaptionEvaluateError> {
        let Self { references, path, mut caption_of, without_reference } = self;
        if caption_of.is_empty() {
            let references = references.path.clone();
            return Err(CaptionEvaluateError::NoCommonId { captions: path, references });
        }
        let texts = &references.texts;
        let captions: Vec<Vec<String>> = texts.keys().map(|id| caption_of.remove(id).unwrap_or_default()).collect();
        let references: Vec<Vec<Vec<String>>> =
            texts.values().map(|texts| texts.iter().map(|text| tokenize(text)).collect()).collect();
        Ok(CaptionScores { without_reference, ..score(&captions, &references) })
    }
}

/// Scores tokens against the tokens of their references.
pub(super) fn score(captions: &[Vec<String>], references: &[Vec<Vec<String>>]) -> CaptionScores {
    let (mut bleu, meteor, mut sum) = (Bleu::default(), Meteor::new(), 0.0);
    for (caption, references) in captions.iter().zip(references) {
        bleu.add(caption, references);
        sum += meteor.score(caption, references);
    }
    let [bleu1, bleu2, bleu3, bleu4] = bleu.scores();
    CaptionScores {
        ids: captions.len() as u64,
        references: references.iter().map(|texts| texts.len() as u64).sum(),
        without_caption: captions.iter().filter(|caption| caption.is_empty()).count() as u64,
        without_reference: 0,
        bleu1,
        bleu2,
        bleu3,
        bleu4,
        meteor_exact_stem: sum / captions.len().max(1) as f64,
        cider: cider::score(captions, references),
    }
}

/// Scores two files.
///
/// # Errors
/// As [`References::read`] and [`References::score`]; and when a file cannot be opened.
pub fn evaluate_caption_files(captions: &Path, references: &Path) -> Result<CaptionScores, CaptionEvaluateError> {
    let open = |path: &Path| {
        let name = path.display().to_string();
        let opened = std::fs::File::open(path);
        opened.map(|file| (file, name.clone())).map_err(|source| CaptionEvaluateError::Open { path: name, source })
    };
    let (file, name) = open(references)?;
    let references = References::read(file, &name)?;
    let (file, name) = open(captions)?;
    references.score(file, &name)
}

/// Passes the id and the text of each row to `visit`. The text is in the first of `columns` that the file has.
fn read_rows(
    file: impl Read,
    path: &str,
    columns: &[&str],
    mut visit: impl FnMut(&str, &str) -> Result<(), CaptionEvaluateError>,
) -> Result<(), CaptionEvaluateError> {
    let failed = |row: u64| move |source: csv::Error| CaptionEvaluateError::Row { path: path.to_owned(), row, source };
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
    let header = reader.headers().map_err(failed(0))?.clone();
    let place = |name: &str| header.iter().position(|column| column.trim_start_matches('\u{feff}').trim() == name);
    let missing = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| format!("`{name}`")).collect();
        let header = header.iter().collect::<Vec<_>>().join(",");
        CaptionEvaluateError::Column { path: path.to_owned(), wanted: wanted.join(" or "), header }
    };
    let id = place(ID).ok_or_else(|| missing(&[ID]))?;
    let text = columns.iter().find_map(|name| place(name)).ok_or_else(|| missing(columns))?;
    for (record, row) in reader.into_records().zip(1..) {
        let record = record.map_err(failed(row))?;
        match record.get(id).filter(|id| !id.is_empty()) {
            Some(id) => visit(id, record.get(text).unwrap_or_default())?,
            None => return Err(CaptionEvaluateError::EmptyId { path: path.to_owned(), row }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUTH: &str = "language,id,caption_title_and_reference_description\nen,1,a red dog\nen,1,the red dog runs\n\
                         en,2,two men on a hill\n";

    fn score_texts(captions: &str, references: &str) -> Result<CaptionScores, String> {
        References::read(references.as_bytes(), "truth.csv")
            .and_then(|references| references.score(captions.as_bytes(), "captions.csv"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn ids_without_a_caption_count_as_empty_ones() {
        let one = score_texts("id,caption\n1,a red dog\n9,unknown\n", TRUTH).unwrap();
        assert_eq!((one.ids, one.references, one.without_caption, one.without_reference), (2, 3, 1, 1));
        let empty = score_texts("id,caption\n1,a red dog\n2,\n", TRUTH).unwrap();
        assert_eq!(CaptionScores { without_reference: 1, ..empty }, one);
    }

    #[test]
    fn equal_captions_have_the_highest_scores() {
        let scores = score_texts("id,caption\n1,The red dog runs.\n2,\"Two men, on a hill\"\n", TRUTH).unwrap();
        assert!(scores.bleu4 > 0.999 && scores.meteor_exact_stem > 0.98, "{scores:?}");
    }

    #[test]
    fn unusable_files_are_refused_in_one_sentence() {
        for (captions, references, expected) in [
            ("id,caption\n", "id,caption\n", "`truth.csv` has no references"),
            ("id,text\n1,a\n", TRUTH, "`captions.csv` has no column `caption`; its header is `id,text`"),
            ("caption\na\n", TRUTH, "`captions.csv` has no column `id`"),
            ("id,caption\n1,a\n1,b\n", TRUTH, "`captions.csv` has two captions for the id `1`"),
            ("id,caption\n,a\n", TRUTH, "row 1 of `captions.csv` has an empty column `id`"),
            ("id,caption\n7,a\n", TRUTH, "no id of `captions.csv` is in `truth.csv`"),
            ("id,caption\n1,a\n", "id,x\n1,a\n", "`truth.csv` has no column `caption` or `reference`"),
        ] {
            let error = score_texts(captions, references).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
