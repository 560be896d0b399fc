//! Parser of the caption list: comma-separated, one column, with a header such as `caption`.
//!
//! Any other first line may be a caption itself. The list is then refused, because a caption that is taken for the
//! header would be lost in silence.

use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
use crate::corpus::header::fields_of_row;
use crate::corpus::header::truncate_for_display;
use crate::corpus::header::utf8_field;
use crate::corpus::rows::Delimiter;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RowSplitter;

/// Names of the column besides those that contain `caption`, in any case.
const COLUMN_NAMES: [&str; 9] =
    ["text", "texts", "title", "label", "labels", "class", "name", "description", "sentence"];

/// Returns whether a first line is a header: one of [`COLUMN_NAMES`], or a word with `caption`, such as the published
/// `caption_title_and_reference_description`.
fn is_column_name(line: &str) -> bool {
    let is_word = !line.contains(|c: char| !c.is_ascii_alphanumeric() && !"_-.".contains(c));
    is_word && line.to_ascii_lowercase().contains("caption")
        || COLUMN_NAMES.iter().any(|known| known.eq_ignore_ascii_case(line))
}

/// One row of the caption list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptionRow<'a> {
    /// Row number in the file.
    pub row: u64,
    /// Caption exactly as in the file. It may be empty or repeat an earlier one.
    pub text: &'a str,
}

/// Row counts of the caption list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptionCounts {
    /// Rows returned, without header and blank lines.
    pub rows: u64,
    /// Returned rows whose caption is empty or white space.
    pub empty: u64,
}

/// Parses the caption list. An invalid row is an error, because class ids follow the row order.
#[derive(Debug)]
pub struct CaptionList {
    file: String,
    rows: RowSplitter,
    finished: bool,
    /// Name of the only column, once the header has been parsed.
    column: Option<String>,
    counts: CaptionCounts,
}

impl CaptionList {
    /// Creates a parser for the start of `file`; errors quote that name.
    pub fn new(file: &str, max_record_bytes: usize) -> Self {
        Self {
            file: file.to_owned(),
            rows: RowSplitter::new(Delimiter::Comma, max_record_bytes),
            finished: false,
            column: None,
            counts: CaptionCounts::default(),
        }
    }

    /// Returns the name of the column, once the header has been parsed.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// Returns the counts of the rows returned so far.
    pub fn counts(&self) -> &CaptionCounts {
        &self.counts
    }

    /// Returns the next row, or `None` if another block is needed or the list has ended.
    ///
    /// # Errors
    /// Fails if the header is absent, has several columns or is not a name of a caption column. Fails if a row has
    /// several fields, is not UTF-8 or exceeds the length limit.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<CaptionRow<'_>>, CorpusError> {
        let limit_bytes = self.rows.max_record_bytes();
        let column = match &mut self.column {
            Some(column) => column,
            unread @ None => {
                let Some(record) = self.rows.next() else {
                    return if self.finished { Err(CorpusError::Empty { file: self.file.clone() }) } else { Ok(None) };
                };
                let header = Header::read(&self.file, &record, limit_bytes)?;
                if header.len() > 1 {
                    return Err(CorpusError::SeveralColumns { file: self.file.clone(), found: header.list_names() });
                }
                // A byte order mark is not part of the name.
                let name = header.first().trim_start_matches('\u{feff}');
                if !is_column_name(name) {
                    return Err(CorpusError::NoCaptionHeader {
                        file: self.file.clone(),
                        found: truncate_for_display(name),
                    });
                }
                unread.insert(name.to_owned())
            }
        };
        let Some(record) = self.rows.next() else {
            return Ok(None);
        };
        let (row, fields) = fields_of_row(record, (1, "comma"), &self.file, limit_bytes)?;
        let text = utf8_field(&fields, 0, column, &self.file, row)?;
        self.counts.rows += 1;
        self.counts.empty += u64::from(text.trim().is_empty());
        Ok(Some(CaptionRow { row, text }))
    }
}

impl PushParser for CaptionList {
    fn feed(&mut self, block: &[u8]) {
        self.rows.feed(block);
    }

    fn finish(&mut self) {
        self.rows.finish();
        self.finished = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &[u8]) -> Result<(Vec<(u64, String)>, CaptionCounts), CorpusError> {
        let mut list = CaptionList::new("list.csv", 100);
        let mut rows = Vec::new();
        for block in text.chunks(5) {
            list.feed(block);
            while let Some(row) = list.next()? {
                rows.push((row.row, row.text.to_owned()));
            }
        }
        list.finish();
        while let Some(row) = list.next()? {
            rows.push((row.row, row.text.to_owned()));
        }
        Ok((rows, *list.counts()))
    }

    #[test]
    fn captions_keep_commas_newlines_and_duplicates() {
        let (rows, counts) = read_all(b"Caption\r\n\"a, b\"\r\nNA\r\n\"two\nlines\"\r\n\"\"\r\n\r\nNA\r\n").unwrap();
        let expected = ["a, b", "NA", "two\nlines", "", "NA"];
        assert_eq!(
            rows,
            expected
                .iter()
                .map(|&text| text.to_owned())
                .enumerate()
                .map(|(row, text)| (row as u64, text))
                .collect::<Vec<_>>()
        );
        assert_eq!(counts, CaptionCounts { rows: 5, empty: 1 });
    }

    #[test]
    fn unquoted_comma_error_names_the_row() {
        let error = read_all(b"text\na\nb, c\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "row 1 of `list.csv` has 2 fields, but the header has 1: correct the row; put fields that contain a comma, a quote or a newline in double quotes"
        );
    }

    #[test]
    fn malformed_lists_are_refused() {
        assert!(matches!(read_all(b"id,caption\n1,a\n"), Err(CorpusError::SeveralColumns { .. })));
        let error = read_all(b"A cat on a mat\nA dog\n").unwrap_err().to_string();
        assert!(
            error.contains("starts with `A cat on a mat`") && error.contains("add a first line `caption`"),
            "{error}"
        );
        assert!(matches!(read_all(b"\n\n"), Err(CorpusError::Empty { .. })));
        assert!(matches!(read_all(b"text\n\xFF\n"), Err(CorpusError::NotUtf8 { row: 0, valid_bytes: 0, .. })));
        assert!(matches!(
            read_all(format!("text\n\"{}", "a\n".repeat(90)).as_bytes()),
            Err(CorpusError::RowTooLong { byte_offset: 5, .. })
        ));
        assert!(matches!(read_all(b"\xEF\xBB\xBFtext\n").unwrap().0.len(), 0));
    }
}
