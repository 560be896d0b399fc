//! Ranked captions to a submission file, byte for byte as Python's `csv` module writes it.
//!
//! Header `id,caption_title_and_reference_description`, one row a rank, best first, `\n` after every row (what
//! pandas' `to_csv` writes on Linux). Quoting is that of `csv.QUOTE_MINIMAL`: a field is quoted when it holds a comma, a
//! quote, `\n` or `\r`, and quotes inside are doubled. Python before 3.13 leaves a lone `\r` unquoted under
//! this terminator, which its own reader then refuses; newer versions quote it, as is done here.

use std::io::Write;

use csv::{QuoteStyle, Terminator, Writer, WriterBuilder};

/// Name of the column of ids.
pub const ID_COLUMN: &str = "id";
/// Name of the column of captions.
pub const CAPTION_COLUMN: &str = "caption_title_and_reference_description";

/// Why a submission could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// The output refused bytes.
    #[error("cannot write row `{row}` of the submission")]
    Write {
        /// Rows written before, the header not counted.
        row: u64,
        /// What the output said.
        #[source]
        source: std::io::Error,
    },
}

/// Writes ranked captions, id by id.
pub struct SubmissionWriter<W: Write> {
    rows: u64,
    writer: Writer<W>,
}

impl<W: Write> SubmissionWriter<W> {
    /// Starts a submission: the header is written at once.
    ///
    /// # Errors
    /// When the output refuses bytes.
    pub fn new(output: W) -> Result<Self, SubmissionError> {
        let writer = WriterBuilder::new()
            .quote_style(QuoteStyle::Necessary)
            .terminator(Terminator::Any(b'\n'))
            .from_writer(output);
        let mut this = Self { rows: 0, writer };
        this.row(ID_COLUMN, CAPTION_COLUMN)?;
        Ok(this)
    }

    /// Writes the captions of one id, best first.
    ///
    /// # Errors
    /// When the output refuses bytes.
    pub fn write<'a>(&mut self, id: &str, captions: impl IntoIterator<Item = &'a str>) -> Result<(), SubmissionError> {
        for caption in captions {
            self.row(id, caption)?;
            self.rows += 1;
        }
        Ok(())
    }

    /// Rows written, the header not counted.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Flushes and hands the output back.
    ///
    /// # Errors
    /// When the output refuses bytes.
    pub fn finish(self) -> Result<W, SubmissionError> {
        let row = self.rows;
        self.writer.into_inner().map_err(|error| SubmissionError::Write { row, source: error.into_error() })
    }

    fn row(&mut self, id: &str, caption: &str) -> Result<(), SubmissionError> {
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

    fn written(rows: &[(String, Vec<String>)]) -> Vec<u8> {
        let mut writer = SubmissionWriter::new(Vec::new()).unwrap();
        for (id, captions) in rows {
            writer.write(id, captions.iter().map(String::as_str)).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_python() {
        let rows: Vec<(String, Vec<String>)> = serde_json::from_str(CASES).unwrap();
        assert_eq!(String::from_utf8_lossy(&written(&rows)), String::from_utf8_lossy(EXPECTED));
    }

    #[test]
    fn a_lone_carriage_return_is_quoted() {
        let bytes = written(&[("1".to_owned(), vec!["a\rb".to_owned()])]);
        assert!(bytes.ends_with(b"1,\"a\rb\"\n"));
    }

    #[test]
    fn a_full_output_is_an_error_and_not_a_short_file() {
        let mut space = [0_u8; 60];
        let mut writer = SubmissionWriter::new(&mut space[..]).unwrap();
        let wrote = writer.write("1", ["a caption that does not fit any more"]);
        let error = wrote.and_then(|()| writer.finish().map(drop)).unwrap_err();
        assert!(error.to_string().contains("row"));
    }

    /// Python's rule, from the documentation of its csv module.
    fn minimal(field: &str) -> String {
        if field.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    }

    proptest! {
        #[test]
        fn quoting_is_minimal_for_any_text(id in "[a-z0-9,\" #]{0,4}", caption in "[,\"\n\r#' \t\\\\a-c\u{a0}\u{feff}é;|]{0,12}") {
            let bytes = written(&[(id.clone(), vec![caption.clone()])]);
            let expected = format!("{ID_COLUMN},{CAPTION_COLUMN}\n{},{}\n", minimal(&id), minimal(&caption));
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }
    }
}
