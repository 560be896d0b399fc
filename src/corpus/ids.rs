//! Parser of the test ids: tab-separated, with the columns `id` and `image_url` found by name.

use std::collections::HashMap;

use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
use crate::corpus::header::fields_of_row;
use crate::corpus::header::truncate_for_display;
use crate::corpus::header::utf8_field;
use crate::corpus::rows::Delimiter;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RowSplitter;

const ID: &str = "id";
const IMAGE_URL: &str = "image_url";

/// One row of the ids file. Both values contain more than white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestId<'a> {
    /// Row number in the file.
    pub row: u64,
    /// Id exactly as in the file: unique, not necessarily a number.
    pub id: &'a str,
    /// URL exactly as in the file. Several ids may share it.
    pub image_url: &'a str,
}

#[derive(Debug, Clone, Copy)]
struct Columns {
    count: usize,
    id: usize,
    image_url: usize,
}

/// Parses the ids file. An invalid row is an error, because a submission must answer every id.
#[derive(Debug)]
pub struct TestIds {
    file: String,
    rows: RowSplitter,
    finished: bool,
    columns: Option<Columns>,
    /// Row of each id so far.
    row_of_id: HashMap<Box<str>, u64>,
}

impl TestIds {
    /// Creates a parser for the start of `file`; errors quote that name.
    pub fn new(file: &str, max_record_bytes: usize) -> Self {
        Self {
            file: file.to_owned(),
            rows: RowSplitter::new(Delimiter::Tab, max_record_bytes),
            finished: false,
            columns: None,
            row_of_id: HashMap::new(),
        }
    }

    /// Returns the next row, or `None` if another block is needed or the file has ended.
    ///
    /// # Errors
    /// Fails if the header is absent or lacks a column. Fails if a row is too long, is not UTF-8, lacks id or URL,
    /// repeats an id, or has a different number of fields than the header.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<TestId<'_>>, CorpusError> {
        let limit_bytes = self.rows.max_record_bytes();
        let file = &self.file;
        let columns = if let Some(columns) = self.columns {
            columns
        } else {
            let Some(record) = self.rows.next() else {
                return if self.finished { Err(CorpusError::Empty { file: file.clone() }) } else { Ok(None) };
            };
            let header = Header::read(file, &record, limit_bytes)?;
            *self.columns.insert(Columns {
                count: header.len(),
                id: header.column(file, ID)?,
                image_url: header.column(file, IMAGE_URL)?,
            })
        };
        let Some(record) = self.rows.next() else {
            return Ok(None);
        };
        let (row, fields) = fields_of_row(record, (columns.count, "tab"), file, limit_bytes)?;
        let value = |index, column: &str| {
            let value = utf8_field(&fields, index, column, file, row)?;
            if value.trim().is_empty() {
                return Err(CorpusError::EmptyField { file: file.clone(), row, column: column.to_owned() });
            }
            Ok(value)
        };
        let id = value(columns.id, ID)?;
        let image_url = value(columns.image_url, IMAGE_URL)?;
        if let Some(first_row) = self.row_of_id.insert(id.into(), row) {
            return Err(CorpusError::DuplicateId { file: file.clone(), row, first_row, id: truncate_for_display(id) });
        }
        Ok(Some(TestId { row, id, image_url }))
    }
}

impl PushParser for TestIds {
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

    fn read_all(text: &[u8]) -> Result<Vec<String>, CorpusError> {
        let mut ids = TestIds::new("test.tsv", 100);
        ids.feed(text);
        ids.finish();
        let mut seen = Vec::new();
        while let Some(row) = ids.next()? {
            seen.push(format!("{} {} {}", row.row, row.id, row.image_url));
        }
        Ok(seen)
    }

    #[test]
    fn ids_are_read_by_column_name() {
        assert_eq!(
            read_all(b"\xEF\xBB\xBFimage_url\tid\thttp\nhttp://a\t7\tx\nhttp://a\tb\t\n").unwrap(),
            ["0 7 http://a", "1 b http://a"]
        );
        assert!(read_all(b"id\timage_url\n").unwrap().is_empty());
    }

    #[test]
    fn invalid_row_error_names_the_row() {
        let refused = |text: &[u8]| read_all(text).unwrap_err().to_string();
        assert_eq!(
            refused(b"id\timage_url\n1\ta\n2\tb\n1\tc\n"),
            "rows 0 and 2 of `test.tsv` have the same id `1`: ids must be distinct, remove one of the rows"
        );
        assert_eq!(
            refused(b"id\timage_url\n1\ta\n2\t\n"),
            "row 1 of `test.tsv` is empty in column `image_url`: fill it in or remove the row"
        );
        assert_eq!(
            refused(b"id\timage_url\n1\ta\n2\n"),
            "row 1 of `test.tsv` has 1 fields, but the header has 2: correct the row; put fields that contain a tab, a quote or a newline in double quotes"
        );
        assert_eq!(
            refused(b"id\timage_url\n1\ta\xFF\n"),
            "row 0 of `test.tsv` is not UTF-8 in column `image_url`, starting at byte 1 of the field: convert the file to UTF-8"
        );
        assert!(matches!(read_all(b"key\timage_url\n"), Err(CorpusError::MissingColumn { .. })));
    }
}
