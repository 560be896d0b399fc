//! Captions of images: rows, counts, and the parser of text with a header, such as `train-*.tsv`.

use crate::corpus::columns::{ColumnKind, PairColumns, language_candidates};
use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
use crate::corpus::rows::Delimiter;
use crate::corpus::rows::Fields;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RecordContent;
use crate::corpus::rows::ResumePoint;
use crate::corpus::rows::RowSplitter;

/// One image URL with one of its captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Row number in the file.
    pub row: u64,
    /// Language code, such as `en`; empty if the row has none.
    pub language: &'a str,
    /// URL exactly as in the file; it is the join key.
    pub image_url: &'a str,
    /// Caption exactly as in the file; contains more than white space.
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
    /// The row is not a JSON object.
    InvalidJson,
}

impl PairProblem {
    /// All reasons in the order in which they are checked.
    pub const ALL: [Self; 7] = [
        Self::RowTooLong,
        Self::WrongFieldCount,
        Self::LanguageFiltered,
        Self::MissingUrl,
        Self::MissingCaption,
        Self::InvalidUtf8,
        Self::InvalidJson,
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
            Self::InvalidJson => "invalid_json",
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

    pub(super) fn count(&mut self, row: &PairRow<'_>) {
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
    language: Option<usize>,
    image_url: usize,
    target: usize,
}

/// Parses a pairs file.
#[derive(Debug)]
pub struct Pairs {
    file: String,
    languages: Vec<String>,
    names: PairColumns,
    delimiter: Delimiter,
    rows: RowSplitter,
    finished: bool,
    columns: Option<Columns>,
    counts: PairCounts,
}

impl Pairs {
    /// Creates a parser for the start of `file`; errors quote that name. An empty `languages` selects all.
    pub fn new(
        file: &str,
        delimiter: Delimiter,
        names: &PairColumns,
        languages: &[String],
        max_record_bytes: usize,
    ) -> Self {
        Self {
            file: file.to_owned(),
            languages: languages.to_vec(),
            names: names.clone(),
            delimiter,
            rows: RowSplitter::new(delimiter, max_record_bytes),
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
        self.rows = RowSplitter::resume_at(self.delimiter, self.rows.max_record_bytes(), point);
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
        let PairColumns { url, caption, language } = &self.names;
        let caption = ColumnKind::Caption.find(
            &self.file,
            caption.as_deref(),
            |name| header.has(name),
            || header.list_names(),
        )?;
        let language = match language {
            Some(_) => Some(header.find(&self.file, ColumnKind::Language, language.as_deref())?),
            None => language_candidates(&caption)
                .iter()
                .find(|name| header.has(name))
                .map(|name| header.column(&self.file, name))
                .transpose()?,
        };
        Ok(Some(Columns {
            count: header.len(),
            language,
            image_url: header.find(&self.file, ColumnKind::PairUrl, url.as_deref())?,
            target: header.column(&self.file, &caption)?,
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
    let field = |index: usize| fields.get(index).unwrap_or_default();
    let language = columns.language.map_or(&[][..], field);
    check_pair(row, language, field(columns.image_url), field(columns.target), languages)
}

/// Returns the pair of an image and a caption, or the first reason to skip it. An empty `languages` selects all.
pub(super) fn check_pair<'a>(
    row: u64,
    language: &'a [u8],
    image_url: &'a [u8],
    target: &'a [u8],
    languages: &[String],
) -> PairRow<'a> {
    let skipped = |reason| PairRow::Skipped { row, reason };
    if !languages.is_empty() && !languages.iter().any(|selected| selected.as_bytes() == language) {
        return skipped(PairProblem::LanguageFiltered);
    }
    if image_url.trim_ascii().is_empty() {
        return skipped(PairProblem::MissingUrl);
    }
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
        let mut pairs = Pairs::new("train.tsv", Delimiter::Tab, &PairColumns::default(), &languages, 200);
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
        let mut pairs = Pairs::new("train.tsv", Delimiter::Tab, &PairColumns::default(), &[], 200);
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
        assert_eq!(skipped, [1, 1, 1, 1, 2, 1, 0]);
        assert_eq!(counts.rows, counts.pairs + skipped.iter().sum::<u64>());
    }

    #[test]
    fn missing_column_error_lists_the_header() {
        let error = read_all(b"language\tlink\ttext\nen\thttp://a\tx\n", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`train.tsv` has no column with the URL or name of the image: it has `language`, `link`, `text`, but none of \
             `image_url`, `url`, `URL`, `file_name`, `key`, `id`; name the column in `pairs.url_column`"
        );
        assert!(matches!(read_all(b"", &[]), Err(CorpusError::Empty { .. })));
        assert!(matches!(
            read_all(b"language\tlanguage\timage_url\tcaption\n", &[]),
            Err(CorpusError::DuplicateColumn { .. })
        ));
        assert!(matches!(read_all("x".repeat(500).as_bytes(), &[]), Err(CorpusError::Header { .. })));
    }

    #[test]
    fn columns_are_set_or_usual_and_language_is_optional() {
        let read = |text: &[u8], delimiter, names: &PairColumns| {
            let mut pairs = Pairs::new("own.csv", delimiter, names, &[], 200);
            pairs.feed(text);
            pairs.finish();
            pairs.next().map(|row| format!("{row:?}")).map_err(|error| error.to_string())
        };
        let row = read(b"file_name,text\na.jpg,\"one, two\"\n", Delimiter::Comma, &PairColumns::default()).unwrap();
        assert!(row.contains(r#"language: "", image_url: "a.jpg", target: "one, two""#), "{row}");
        let name = |name: &str| Some(name.to_owned());
        let names = PairColumns { url: name("f"), caption: name("c"), language: name("l") };
        let row = read(b"f\tc\tl\ttext\nx\ty\tz\tw\n", Delimiter::Tab, &names).unwrap();
        assert!(row.contains(r#"language: "z", image_url: "x", target: "y""#), "{row}");
        let error = read(b"f\tc\ttext\nx\ty\tz\n", Delimiter::Tab, &names).unwrap_err();
        assert_eq!(
            error,
            "`own.csv` has no column `l`, which `pairs.language_column` names; it has `f`, `c`, `text`: correct the name"
        );
    }
}
