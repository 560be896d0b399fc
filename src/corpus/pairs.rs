//! Rows of `train-*.tsv`: language, image URL and caption, by column name.

use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
use crate::corpus::rows::Delimiter;
use crate::corpus::rows::Fields;
use crate::corpus::rows::Kind;
use crate::corpus::rows::Mark;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RowSplitter;

const LANGUAGE: &str = "language";
const IMAGE_URL: &str = "image_url";
const TARGET: &str = "caption_title_and_reference_description";

/// One image with one of its captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The row's number in the file.
    pub row: u64,
    /// Language code, such as `en`.
    pub language: &'a str,
    /// The URL as it stands in the file; rows are joined on it unchanged.
    pub image_url: &'a str,
    /// `caption_title_and_reference_description` as it stands in the file; more than white space.
    pub target: &'a str,
}

/// One row of a pairs file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairRow<'a> {
    /// A row with a URL and a caption in a wanted language.
    Pair(Pair<'a>),
    /// A row that is passed over, and counted.
    Skipped {
        /// The row's number in the file.
        row: u64,
        /// Why.
        reason: PairProblem,
    },
}

/// Why a row of a pairs file is passed over. The first that holds is the one that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PairProblem {
    /// The row is longer than the limit.
    RowTooLong,
    /// Not as many fields as the header.
    WrongFieldCount,
    /// The language is not among those asked for.
    LanguageFiltered,
    /// The image URL is empty.
    MissingUrl,
    /// The caption is empty or white space.
    MissingCaption,
    /// Language, image URL or caption is not UTF-8.
    InvalidUtf8,
}

impl PairProblem {
    /// Every problem, in the order in which they are looked for.
    pub const ALL: [Self; 6] = [
        Self::RowTooLong,
        Self::WrongFieldCount,
        Self::LanguageFiltered,
        Self::MissingUrl,
        Self::MissingCaption,
        Self::InvalidUtf8,
    ];

    /// The name under which it is counted.
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

/// What became of the rows of a pairs file: `rows = pairs + Σ skipped`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PairCounts {
    /// Rows read, header and blank lines not counted.
    pub rows: u64,
    /// Rows given out as pairs.
    pub pairs: u64,
    skipped: [u64; PairProblem::ALL.len()],
}

impl PairCounts {
    /// Rows passed over for one reason.
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

/// Reads a pairs file.
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
    /// A reader at the start of `file`, which is the name that errors give. No `languages` means all.
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

    /// Whether the header was read; it may need another block.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn has_header(&mut self) -> Result<bool, CorpusError> {
        if self.columns.is_none() {
            self.columns = self.read_header()?;
        }
        Ok(self.columns.is_some())
    }

    /// Where the next row begins, if the file can be read on from there.
    pub fn mark(&self) -> Option<Mark> {
        self.columns.and(self.rows.mark())
    }

    /// Goes on at `mark`, where the next block starts, behind rows that were counted as `counts`. The header was read.
    pub fn skip_to(&mut self, mark: Mark, counts: PairCounts) {
        self.rows = RowSplitter::resumed(Delimiter::Tab, self.rows.max_record_bytes(), mark);
        self.counts = counts;
    }

    /// What became of the rows so far.
    pub fn counts(&self) -> &PairCounts {
        &self.counts
    }

    /// The next row, or `None` when another block is needed or the file has ended.
    ///
    /// # Errors
    /// The header is absent, unreadable, or lacks a column that is needed.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<PairRow<'_>>, CorpusError> {
        let (true, Some(columns)) = (self.has_header()?, self.columns) else { return Ok(None) };
        let Some(record) = self.rows.next() else {
            return Ok(None);
        };
        // Record 0 is the header.
        let row = record.number.saturating_sub(1);
        let read = match record.kind {
            Kind::Ok(fields) => read(row, &fields, columns, &self.languages),
            Kind::Oversized { .. } => PairRow::Skipped { row, reason: PairProblem::RowTooLong },
        };
        self.counts.count(&read);
        Ok(Some(read))
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

fn read<'a>(row: u64, fields: &Fields<'a>, columns: Columns, languages: &[String]) -> PairRow<'a> {
    let skipped = |reason| PairRow::Skipped { row, reason };
    if fields.len() != columns.count {
        return skipped(PairProblem::WrongFieldCount);
    }
    let language = fields.get(columns.language).unwrap_or_default();
    if !languages.is_empty() && !languages.iter().any(|wanted| wanted.as_bytes() == language) {
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

    fn all(text: &[u8], languages: &[&str]) -> Result<(Vec<String>, PairCounts), CorpusError> {
        let languages: Vec<_> = languages.iter().map(|&language| language.to_owned()).collect();
        let mut pairs = Pairs::new("train.tsv", &languages, 200);
        let mut seen = Vec::new();
        for block in text.chunks(7) {
            pairs.feed(block);
            while let Some(row) = pairs.next()? {
                seen.push(format!("{row:?}"));
            }
        }
        pairs.finish();
        while let Some(row) = pairs.next()? {
            seen.push(match row {
                PairRow::Pair(pair) => format!("{pair:?}"),
                PairRow::Skipped { reason, .. } => reason.to_string(),
            });
        }
        Ok((seen, *pairs.counts()))
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
    fn each_skipped_row_is_counted_under_one_reason() {
        let mut text = HEADER.as_bytes().to_vec();
        text.extend_from_slice(b"only\tthree\tfields\n");
        text.extend_from_slice(b"c\tx\thttp://a\tfr\n");
        text.extend_from_slice(b"c\tx\t\ten\n");
        text.extend_from_slice(b"\tx\thttp://a\ten\n");
        text.extend_from_slice("\u{a0} \tx\thttp://a\ten\n".as_bytes());
        text.extend_from_slice(b"\xFF\tx\thttp://a\ten\n");
        text.extend_from_slice(b"c\t\xFF\thttp://a\ten\n");
        text.extend_from_slice(format!("c\t{}\thttp://a\ten\n", "x".repeat(300)).as_bytes());
        let (rows, counts) = all(&text, &["en", "de"]).unwrap();
        assert_eq!(rows.len(), 8);
        assert_eq!((counts.rows, counts.pairs), (8, 1));
        let skipped = PairProblem::ALL.map(|reason| counts.skipped(reason));
        assert_eq!(skipped, [1, 1, 1, 1, 2, 1]);
        assert_eq!(counts.rows, counts.pairs + skipped.iter().sum::<u64>());
    }

    #[test]
    fn a_missing_column_is_named_with_those_found() {
        let error = all(b"language\turl\nen\thttp://a\n", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`train.tsv` has no column `image_url`; its header names `language`, `url`: give the published file, or rename the column"
        );
        assert!(matches!(all(b"", &[]), Err(CorpusError::Empty { .. })));
        assert!(matches!(
            all(b"language\tlanguage\timage_url\tx\n", &[]),
            Err(CorpusError::DuplicateColumn { column: "language", .. })
        ));
        assert!(matches!(all("x".repeat(500).as_bytes(), &[]), Err(CorpusError::Header { .. })));
    }
}
