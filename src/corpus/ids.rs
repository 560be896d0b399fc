//! The test ids: tab-separated, a header with `id` and `image_url`, by name.

use std::collections::HashMap;

use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
use crate::corpus::header::shortened;
use crate::corpus::header::text;
use crate::corpus::rows::Delimiter;
use crate::corpus::rows::Kind;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RowSplitter;

const ID: &str = "id";
const IMAGE_URL: &str = "image_url";

/// One row of the ids file; both values are more than white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestId<'a> {
    /// The row's number in the file.
    pub row: u64,
    /// The id as it stands in the file, not necessarily a number; distinct in the file.
    pub id: &'a str,
    /// The URL as it stands in the file; several ids share one.
    pub image_url: &'a str,
}

#[derive(Debug, Clone, Copy)]
struct Columns {
    count: usize,
    id: usize,
    image_url: usize,
}

/// Reads the ids file. Every row must be sound, because a submission answers each id.
#[derive(Debug)]
pub struct TestIds {
    file: String,
    rows: RowSplitter,
    finished: bool,
    columns: Option<Columns>,
    /// The row in which each id was seen.
    seen: HashMap<Box<str>, u64>,
}

impl TestIds {
    /// A reader at the start of `file`, which is the name that errors give.
    pub fn new(file: &str, max_record_bytes: usize) -> Self {
        Self {
            file: file.to_owned(),
            rows: RowSplitter::new(Delimiter::Tab, max_record_bytes),
            finished: false,
            columns: None,
            seen: HashMap::new(),
        }
    }

    /// The next row, or `None` when another block is needed or the file has ended.
    ///
    /// # Errors
    /// The header is absent or lacks a column; a row has another number of fields than the header, is too
    /// long, not UTF-8, without id or URL, or repeats an id.
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
        // Record 0 is the header.
        let row = record.number.saturating_sub(1);
        let fields = match record.kind {
            Kind::Ok(fields) => fields,
            Kind::Oversized { .. } => {
                let byte_offset = record.byte_offset;
                return Err(CorpusError::RowTooLong { file: file.clone(), row, byte_offset, limit_bytes });
            }
        };
        let (expected, found) = (columns.count, fields.len());
        if found != expected {
            return Err(CorpusError::FieldCount { file: file.clone(), row, expected, found, delimiter: "tab" });
        }
        let value = |index, column: &str| {
            let value = text(&fields, index, column, file, row)?;
            if value.trim().is_empty() {
                return Err(CorpusError::EmptyField { file: file.clone(), row, column: column.to_owned() });
            }
            Ok(value)
        };
        let id = value(columns.id, ID)?;
        let image_url = value(columns.image_url, IMAGE_URL)?;
        if let Some(first_row) = self.seen.insert(id.into(), row) {
            return Err(CorpusError::DuplicateId { file: file.clone(), row, first_row, id: shortened(id) });
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

    fn all(text: &[u8]) -> Result<Vec<String>, CorpusError> {
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
            all(b"\xEF\xBB\xBFimage_url\tid\thttp\nhttp://a\t7\tx\nhttp://a\tb\t\n").unwrap(),
            ["0 7 http://a", "1 b http://a"]
        );
        assert!(all(b"id\timage_url\n").unwrap().is_empty());
    }

    #[test]
    fn an_unsound_row_is_refused_with_its_number() {
        let refused = |text: &[u8]| all(text).unwrap_err().to_string();
        assert_eq!(
            refused(b"id\timage_url\n1\ta\n2\tb\n1\tc\n"),
            "rows 0 and 2 of `test.tsv` have the same id `1`: ids must be distinct, remove one of the rows"
        );
        assert_eq!(
            refused(b"id\timage_url\n1\ta\n2\t\n"),
            "row 1 of `test.tsv` has nothing in column `image_url`: fill it in or remove the row"
        );
        assert_eq!(
            refused(b"id\timage_url\n1\ta\n2\n"),
            "row 1 of `test.tsv` has 1 fields, the header has 2: correct the row, and put fields that hold a tab, a quote or a newline in double quotes"
        );
        assert_eq!(
            refused(b"id\timage_url\n1\ta\xFF\n"),
            "row 0 of `test.tsv` is not UTF-8 in column `image_url`, from byte 1 of the field on: convert the file to UTF-8"
        );
        assert!(matches!(all(b"key\timage_url\n"), Err(CorpusError::MissingColumn { column: "id", .. })));
    }
}
