//! Writes a submission file with the same bytes as Python's `csv` module.
//!
//! The header is `id,caption_title_and_reference_description`; one row a rank follows, best first. Rows end in `\n`, as
//! with pandas' `to_csv` on Linux. Quoting follows `csv.QUOTE_MINIMAL`: a field with a comma, a quote, `\n` or `\r` is
//! quoted, and inner quotes are doubled. A lone `\r` is quoted, as in Python 3.13 and later; older versions leave it
//! unquoted, and their own reader then rejects the row.

use std::io::Write;

use csv::{QuoteStyle, Terminator, Writer, WriterBuilder};

/// Name of the id column.
pub const ID_COLUMN: &str = "id";
/// Name of the caption column.
pub const CAPTION_COLUMN: &str = "caption_title_and_reference_description";

/// Error of writing a submission.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// Writing to the output failed.
    #[error("cannot write row `{row}` of the submission")]
    Write {
        /// Rows written before, without the header.
        row: u64,
        /// Error of the output.
        #[source]
        source: std::io::Error,
    },
}

/// Writer of a submission, id by id.
pub struct SubmissionWriter<W: Write> {
    rows: u64,
    writer: Writer<W>,
}

impl<W: Write> SubmissionWriter<W> {
    /// Starts a submission and writes its header.
    ///
    /// # Errors
    /// When writing fails.
    pub fn new(output: W) -> Result<Self, SubmissionError> {
        let writer = WriterBuilder::new()
            .quote_style(QuoteStyle::Necessary)
            .terminator(Terminator::Any(b'\n'))
            .from_writer(output);
        let mut this = Self { rows: 0, writer };
        this.write_row(ID_COLUMN, CAPTION_COLUMN)?;
        Ok(this)
    }

    /// Writes the captions of one id, best first.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write<'a>(&mut self, id: &str, captions: impl IntoIterator<Item = &'a str>) -> Result<(), SubmissionError> {
        for caption in captions {
            self.write_row(id, caption)?;
            self.rows += 1;
        }
        Ok(())
    }

    /// Returns the number of written rows, without the header.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Flushes and returns the output.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(self) -> Result<W, SubmissionError> {
        let row = self.rows;
        self.writer.into_inner().map_err(|error| SubmissionError::Write { row, source: error.into_error() })
    }

    fn write_row(&mut self, id: &str, caption: &str) -> Result<(), SubmissionError> {
        let row = self.rows;
        self.writer
            .write_record([id, caption])
            .map_err(|error| SubmissionError::Write { row, source: std::io::Error::from(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CASES: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/submission.json"));
    const EXPECTED: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/submission.csv"));

    fn write_all(rows: &[(String, Vec<String>)]) -> Vec<u8> {
        let mut writer = SubmissionWriter::new(Vec::new()).unwrap();
        for (id, captions) in rows {
            writer.write(id, captions.iter().map(String::as_str)).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn bytes_match_python() {
        let rows: Vec<(String, Vec<String>)> = serde_json::from_str(CASES).unwrap();
        assert_eq!(String::from_utf8_lossy(&write_all(&rows)), String::from_utf8_lossy(EXPECTED));
    }

    #[test]
    fn lone_carriage_return_is_quoted() {
        let bytes = write_all(&[("1".to_owned(), vec!["a\rb".to_owned()])]);
        assert!(bytes.ends_with(b"1,\"a\rb\"\n"));
    }

    #[test]
    fn full_output_is_an_error() {
        let mut space = [0_u8; 60];
        let mut writer = SubmissionWriter::new(&mut space[..]).unwrap();
        let wrote = writer.write("1", ["a caption that does not fit any more"]);
        let error = wrote.and_then(|()| writer.finish().map(drop)).unwrap_err();
        assert!(error.to_string().contains("row"));
    }

    /// Quotes a field by the rule in the documentation of Python's csv module.
    fn quote_minimal(field: &str) -> String {
        if field.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    }

    proptest! {
        #[test]
        fn quoting_is_minimal(id in "[a-z0-9,\" #]{0,4}", caption in "[,\"\n\r#' \t\\\\a-c\u{a0}\u{feff}é;|]{0,12}") {
            let bytes = write_all(&[(id.clone(), vec![caption.clone()])]);
            let expected = format!("{ID_COLUMN},{CAPTION_COLUMN}\n{},{}\n", quote_minimal(&id), quote_minimal(&caption));
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }
    }
}
