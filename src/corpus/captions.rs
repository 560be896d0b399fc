//! The caption list: comma-separated, a header with any name, one column.

use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
use crate::corpus::header::text;
use crate::corpus::rows::Delimiter;
use crate::corpus::rows::Kind;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RowSplitter;

/// One row of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptionRow<'a> {
    /// The row's number in the file.
    pub row: u64,
    /// The caption as it stands in the file; it may be empty, and may have occurred before.
    pub text: &'a str,
}

/// How many rows the list has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptionCounts {
    /// Rows given out, header and blank lines not counted.
    pub rows: u64,
    /// Those of them whose caption is empty or white space.
    pub empty: u64,
}

/// Reads the caption list. Every row must be sound, because classes are numbered by it.
#[derive(Debug)]
pub struct CaptionList {
    file: String,
    rows: RowSplitter,
    finished: bool,
    /// Name of the one column, once the header was read.
    column: Option<String>,
    counts: CaptionCounts,
}

impl CaptionList {
    /// A reader at the start of `file`, which is the name that errors give.
    pub fn new(file: &str, max_record_bytes: usize) -> Self {
        Self {
            file: file.to_owned(),
            rows: RowSplitter::new(Delimiter::Comma, max_record_bytes),
            finished: false,
            column: None,
            counts: CaptionCounts::default(),
        }
    }

    /// The name of the column, once the header was read.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// How many rows were given out so far.
    pub fn counts(&self) -> &CaptionCounts {
        &self.counts
    }

    /// The next row, or `None` when another block is needed or the list has ended.
    ///
    /// # Errors
    /// The header is absent or names several columns, or a row has several fields, is not UTF-8 or too long.
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
                    return Err(CorpusError::SeveralColumns { file: self.file.clone(), found: header.listed() });
                }
                unread.insert(header.first().to_owned())
            }
        };
        let Some(record) = self.rows.next() else {
            return Ok(None);
        };
        // Record 0 is the header.
        let row = record.number.saturating_sub(1);
        let file = &self.file;
        let fields = match record.kind {
            Kind::Ok(fields) => fields,
            Kind::Oversized { .. } => {
                let byte_offset = record.byte_offset;
                return Err(CorpusError::RowTooLong { file: file.clone(), row, byte_offset, limit_bytes });
            }
        };
        let found = fields.len();
        if found > 1 {
            return Err(CorpusError::FieldCount { file: file.clone(), row, expected: 1, found, delimiter: "comma" });
        }
        let text = text(&fields, 0, column, file, row)?;
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

    fn all(text: &[u8]) -> Result<(Vec<(u64, String)>, CaptionCounts), CorpusError> {
        let mut list = CaptionList::new("list.csv", 100);
        let mut seen = Vec::new();
        for block in text.chunks(5) {
            list.feed(block);
            while let Some(row) = list.next()? {
                seen.push((row.row, row.text.to_owned()));
            }
        }
        list.finish();
        while let Some(row) = list.next()? {
            seen.push((row.row, row.text.to_owned()));
        }
        Ok((seen, *list.counts()))
    }

    #[test]
    fn captions_keep_commas_newlines_and_duplicates() {
        let (rows, counts) = all(b"any name\r\n\"a, b\"\r\nNA\r\n\"two\nlines\"\r\n\"\"\r\n\r\nNA\r\n").unwrap();
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
    fn an_unquoted_comma_is_refused_with_its_row() {
        let error = all(b"c\na\nb, c\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "row 1 of `list.csv` has 2 fields, the header has 1: correct the row, and put fields that hold a comma, a quote or a newline in double quotes"
        );
    }

    #[test]
    fn a_list_that_is_not_a_list_is_refused() {
        assert!(matches!(all(b"id,caption\n1,a\n"), Err(CorpusError::SeveralColumns { .. })));
        assert!(matches!(all(b"\n\n"), Err(CorpusError::Empty { .. })));
        assert!(matches!(all(b"c\n\xFF\n"), Err(CorpusError::NotUtf8 { row: 0, valid_bytes: 0, .. })));
        assert!(matches!(
            all(format!("c\n\"{}", "a\n".repeat(90)).as_bytes()),
            Err(CorpusError::RowTooLong { byte_offset: 2, .. })
        ));
        assert!(matches!(all(b"c\n").unwrap().0.len(), 0));
    }
}
