//! Parser of `train-*.tsv`: language, image URL and caption, with columns found by name.

use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
use crate::corpus::rows::Delimiter;
use crate::corpus::rows::Fields;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RecordContent;
use crate::corpus::rows::ResumePoint;
use crate::corpus::rows::RowSplitter;

const LANGUAGE: &str = "language";
const IMAGE_URL: &str = "image_url";
const TARGET: &str = "caption_title_and_reference_description";

/// One image URL with one of its captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Row number in the file.
    pub row: u64,
    /// Language code, such as `en`.
    pub language: &'a str,
    /// URL exactly as in the file; it is the join key.
    pub image_url: &'a str,
    /// `caption_title_and_reference_description` exactly as in the file; contains more than white space.
    pub target: &'a str,
}

/// One row of a pairs file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairRow<'a> {
    /// A row with a URL and a caption in a selected language.
    Pair(Pair<'a>),
    /// A row that is skipped and counted.
    Skipped {
        /// Row number in the file.
        row: u64,
        /// Reason.
        reason: PairProblem,
    },
}

/// Reason why a row of a pairs file is skipped. If several apply, the first one in declaration order is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PairProblem {
    /// The row exceeds the length limit.
    RowTooLong,
    /// The number of fields differs from the header's.
    WrongFieldCount,
    /// The language is not selected.
    LanguageFiltered,
    /// The image URL is empty.
    MissingUrl,
    /// The caption is empty or white space.
    MissingCaption,
    /// Language, image URL or caption is not UTF-8.
    InvalidUtf8,
}

impl PairProblem {
    /// All reasons in the order in which they are checked.
    pub const ALL: [Self; 6] = [
        Self::RowTooLong,
        Self::WrongFieldCount,
        Self::LanguageFiltered,
        Self::MissingUrl,
        Self::MissingCaption,
        Self::InvalidUtf8,
    ];

    /// Returns the name used in counts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RowTooLong => "row_too_long",
            Self::WrongFieldCount => "wrong_field_count",
            Self::LanguageFiltered => "language_filtered",
            Self::MissingUrl => "missing_url",
            Self::MissingCaption => "missing_caption",
            Self::InvalidUtf8 => "invalid_utf8",
        }
    }
}

impl std::fmt::Display for PairProblem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Row counts of a pairs file: `rows = pairs + Σ skipped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PairCounts {
    /// Rows read, without header and blank lines.
    pub rows: u64,
    /// Rows returned as pairs.
    pub pairs: u64,
    skipped: [u64; PairProblem::ALL.len()],
}

impl PairCounts {
    /// Returns the number of rows skipped for `reason`.
    pub fn skipped(&self, reason: PairProblem) -> u64 {
        self.skipped.get(reason as usize).copied().unwrap_or_default()
    }

    /// Adds the counts of another file.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.pairs += other.pairs;
        for (sum, count) in self.skipped.iter_mut().zip(other.skipped) {
            *sum += count;
        }
    }

    fn count(&mut self, row: &PairRow<'_>) {
        self.rows += 1;
        match row {
            PairRow::Pair(_) => self.pairs += 1,
            PairRow::Skipped { reason, .. } => {
                if let Some(count) = self.skipped.get_mut(*reason as usize) {
                    *count += 1;
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Columns {
    count: usize,
    language: usize,
    image_url: usize,
    target: usize,
}

/// Parses a pairs file.
#[derive(Debug)]
pub struct Pairs {
    file: String,
    languages: Vec<String>,
    rows: RowSplitter,
    finished: bool,
    columns: Option<Columns>,
    counts: PairCounts,
}

impl Pairs {
    /// Creates a parser for the start of `file`; errors quote that name. An empty `languages` selects all.
    pub fn new(file: &str, languages: &[String], max_record_bytes: usize) -> Self {
        Self {
            file: file.to_owned(),
            languages: languages.to_vec(),
            rows: RowSplitter::new(Delimiter::Tab, max_record_bytes),
            finished: false,
            columns: None,
            counts: PairCounts::default(),
        }
    }

    /// Returns whether the header has been parsed; if not, another block is needed.
    ///
    /// # Errors
    /// Same as [`Self::next`].
    pub fn has_header(&mut self) -> Result<bool, CorpusError> {
        if self.columns.is_none() {
            self.columns = self.read_header()?;
        }
        Ok(self.columns.is_some())
    }

    /// Returns where the next row begins, if parsing can resume there.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        self.columns.and(self.rows.resume_point())
    }

    /// Resumes at `point`, where the next block must start, with the `counts` of the rows before it. The header must
    /// have been parsed.
    pub fn resume_at(&mut self, point: ResumePoint, counts: PairCounts) {
        self.rows = RowSplitter::resume_at(Delimiter::Tab, self.rows.max_record_bytes(), point);
        self.counts = counts;
    }

    /// Returns the counts of the rows so far.
    pub fn counts(&self) -> &PairCounts {
        &self.counts
    }

    /// Returns the next row, or `None` if another block is needed or the file has ended.
    ///
    /// # Errors
    /// Fails if the header is absent, unreadable or lacks a required column.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<PairRow<'_>>, CorpusError> {
        let (true, Some(columns)) = (self.has_header()?, self.columns) else { return Ok(None) };
        let Some(record) = self.rows.next() else {
            return Ok(None);
        };
        // Record 0 is the header.
        let row = record.number.saturating_sub(1);
        let parsed = match record.content {
            RecordContent::Fields(fields) => parse_row(row, &fields, columns, &self.languages),
            RecordContent::Oversized { .. } => PairRow::Skipped { row, reason: PairProblem::RowTooLong },
        };
        self.counts.count(&parsed);
        Ok(Some(parsed))
    }

    fn read_header(&mut self) -> Result<Option<Columns>, CorpusError> {
        let limit_bytes = self.rows.max_record_bytes();
        let Some(record) = self.rows.next() else {
            return if self.finished { Err(CorpusError::Empty { file: self.file.clone() }) } else { Ok(None) };
        };
        let header = Header::read(&self.file, &record, limit_bytes)?;
        Ok(Some(Columns {
            count: header.len(),
            language: header.column(&self.file, LANGUAGE)?,
            image_url: header.column(&self.file, IMAGE_URL)?,
            target: header.column(&self.file, TARGET)?,
        }))
    }
}

impl PushParser for Pairs {
    fn feed(&mut self, block: &[u8]) {
        self.rows.feed(block);
    }

    fn finish(&mut self) {
        self.rows.finish();
        self.finished = true;
    }
}

fn parse_row<'a>(row: u64, fields: &Fields<'a>, columns: Columns, languages: &[String]) -> PairRow<'a> {
    let skipped = |reason| PairRow::Skipped { row, reason };
    if fields.len() != columns.count {
        return skipped(PairProblem::WrongFieldCount);
    }
    let language = fields.get(columns.language).unwrap_or_default();
    if !languages.is_empty() && !languages.iter().any(|selected| selected.as_bytes() == language) {
        return skipped(PairProblem::LanguageFiltered);
    }
    let image_url = fields.get(columns.image_url).unwrap_or_default();
    if image_url.trim_ascii().is_empty() {
        return skipped(PairProblem::MissingUrl);
    }
    let target = fields.get(columns.target).unwrap_or_default();
    if target.trim_ascii().is_empty() {
        return skipped(PairProblem::MissingCaption);
    }
    let text = std::str::from_utf8;
    match (text(language), text(image_url), text(target)) {
        (Ok(language), Ok(image_url), Ok(target)) if !target.trim().is_empty() => {
            PairRow::Pair(Pair { row, language, image_url, target })
        }
        (Ok(_), Ok(_), Ok(_)) => skipped(PairProblem::MissingCaption),
        _ => skipped(PairProblem::InvalidUtf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &[u8], languages: &[&str]) -> Result<(Vec<String>, PairCounts), CorpusError> {
        let languages: Vec<_> = languages.iter().map(|&language| language.to_owned()).collect();
        let mut pairs = Pairs::new("train.tsv", &languages, 200);
        let mut rows = Vec::new();
        for block in text.chunks(7) {
            pairs.feed(block);
            while let Some(row) = pairs.next()? {
                rows.push(format!("{row:?}"));
            }
        }
        pairs.finish();
        while let Some(row) = pairs.next()? {
            rows.push(match row {
                PairRow::Pair(pair) => format!("{pair:?}"),
                PairRow::Skipped { reason, .. } => reason.to_string(),
            });
        }
        Ok((rows, *pairs.counts()))
    }

    const HEADER: &str = "caption_title_and_reference_description\textra\timage_url\tlanguage\n";

    #[test]
    fn columns_are_found_by_name_in_any_order() {
        let text = format!("{HEADER}\"T [SEP] two\nlines\"\t\u{e9}\thttp://a\ten\n");
        let mut pairs = Pairs::new("train.tsv", &[], 200);
        pairs.feed(text.as_bytes());
        pairs.finish();
        let expected = Pair { row: 0, language: "en", image_url: "http://a", target: "T [SEP] two\nlines" };
        assert_eq!(pairs.next(), Ok(Some(PairRow::Pair(expected))));
        assert_eq!(pairs.next(), Ok(None));
    }

    #[test]
    fn each_skipped_row_has_one_reason() {
        let mut text = HEADER.as_bytes().to_vec();
        text.extend_from_slice(b"only\tthree\tfields\n");
        text.extend_from_slice(b"c\tx\thttp://a\tfr\n");
        text.extend_from_slice(b"c\tx\t\ten\n");
        text.extend_from_slice(b"\tx\thttp://a\ten\n");
        text.extend_from_slice("\u{a0} \tx\thttp://a\ten\n".as_bytes());
        text.extend_from_slice(b"\xFF\tx\thttp://a\ten\n");
        text.extend_from_slice(b"c\t\xFF\thttp://a\ten\n");
        text.extend_from_slice(format!("c\t{}\thttp://a\ten\n", "x".repeat(300)).as_bytes());
        let (rows, counts) = read_all(&text, &["en", "de"]).unwrap();
        assert_eq!(rows.len(), 8);
        assert_eq!((counts.rows, counts.pairs), (8, 1));
        let skipped = PairProblem::ALL.map(|reason| counts.skipped(reason));
        assert_eq!(skipped, [1, 1, 1, 1, 2, 1]);
        assert_eq!(counts.rows, counts.pairs + skipped.iter().sum::<u64>());
    }

    #[test]
    fn missing_column_error_lists_the_header() {
        let error = read_all(b"language\turl\nen\thttp://a\n", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`train.tsv` has no column `image_url`; its header names `language`, `url`: use the published file or rename the column"
        );
        assert!(matches!(read_all(b"", &[]), Err(CorpusError::Empty { .. })));
        assert!(matches!(
            read_all(b"language\tlanguage\timage_url\tx\n", &[]),
            Err(CorpusError::DuplicateColumn { column: "language", .. })
        ));
        assert!(matches!(read_all("x".repeat(500).as_bytes(), &[]), Err(CorpusError::Header { .. })));
    }
}
