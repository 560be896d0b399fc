//! Parser of the image shards: image URL, base64, metadata URL; tab-separated, without a header.

use crate::corpus::rows::Delimiter;
use crate::corpus::rows::Fields;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RecordContent;
use crate::corpus::rows::RowSplitter;

/// Longest accepted image URL, in bytes. A title of 255 bytes, percent-encoded twice, still fits beside its path. This
/// limit bounds the metadata that a chunk stores for a row.
pub const MAX_URL_BYTES: usize = 2048;

/// One row of an image shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRow<'a> {
    /// A row with a URL and data.
    Ok {
        /// Row number in the shard.
        row: u64,
        /// URL exactly as in the file; it is the join key.
        image_url: &'a str,
        /// Base64 of the image, not validated and never empty.
        base64: &'a [u8],
    },
    /// An unusable row.
    Bad {
        /// Row number in the shard.
        row: u64,
        /// Reason.
        reason: ImageRowProblem,
        /// Description with the numbers.
        detail: String,
        /// URL. Exact for [`ImageRowProblem::MissingData`]; otherwise a displayable prefix of at most 512 bytes.
        image_url: Option<String>,
    },
}

/// Reason why a row of an image shard is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageRowProblem {
    /// The row has neither 2 nor 3 fields. The metadata URL is optional because it is not used.
    WrongFieldCount,
    /// The image URL is not UTF-8.
    InvalidUtf8,
    /// The image URL is empty.
    MissingUrl,
    /// The image URL is longer than [`MAX_URL_BYTES`].
    UrlTooLong,
    /// The base64 field is empty.
    MissingData,
    /// The row exceeds the length limit.
    RowTooLong,
}

impl ImageRowProblem {
    /// All problems in declaration order.
    pub const ALL: [Self; 6] = [
        Self::WrongFieldCount,
        Self::InvalidUtf8,
        Self::MissingUrl,
        Self::UrlTooLong,
        Self::MissingData,
        Self::RowTooLong,
    ];

    /// Returns the name used in counts and quarantine files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrongFieldCount => "wrong_field_count",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::MissingUrl => "missing_url",
            Self::UrlTooLong => "url_too_long",
            Self::MissingData => "missing_data",
            Self::RowTooLong => "row_too_long",
        }
    }
}

impl std::fmt::Display for ImageRowProblem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Parses an image shard.
#[derive(Debug)]
pub struct ImageRows {
    rows: RowSplitter,
}

impl ImageRows {
    /// Creates a parser for the start of a shard.
    pub fn new(max_record_bytes: usize) -> Self {
        Self { rows: RowSplitter::new(Delimiter::Tab, max_record_bytes) }
    }

    /// Frees the memory that unusually long rows needed.
    pub fn trim(&mut self) {
        self.rows.trim();
    }

    /// Returns the next row, or `None` if another block is needed or the shard has ended.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Option<ImageRow<'_>> {
        let limit_bytes = self.rows.max_record_bytes();
        let record = self.rows.next()?;
        let row = record.number;
        Some(match record.content {
            RecordContent::Fields(fields) => parse_row(row, &fields),
            RecordContent::Oversized { prefix } => ImageRow::Bad {
                row,
                reason: ImageRowProblem::RowTooLong,
                detail: format!("longer than {limit_bytes} bytes, at byte {} of the shard", record.byte_offset),
                image_url: prefix
                    .iter()
                    .position(|&byte| byte == b'\t')
                    .and_then(|end| displayable_url(prefix.get(..end)?)),
            },
        })
    }
}

impl PushParser for ImageRows {
    fn feed(&mut self, block: &[u8]) {
        self.rows.feed(block);
    }

    fn finish(&mut self) {
        self.rows.finish();
    }
}

fn parse_row<'a>(row: u64, fields: &Fields<'a>) -> ImageRow<'a> {
    let image_url = fields.get(0).unwrap_or_default();
    let base64 = fields.get(1).unwrap_or_default();
    let bad = |reason, detail: String| ImageRow::Bad { row, reason, detail, image_url: displayable_url(image_url) };
    if !(2..=3).contains(&fields.len()) {
        return bad(ImageRowProblem::WrongFieldCount, format!("{} fields where 3 are expected", fields.len()));
    }
    let text = match std::str::from_utf8(image_url) {
        Ok(text) => text,
        Err(error) => {
            let detail = format!("the image URL is not UTF-8 from its byte {} on", error.valid_up_to());
            return bad(ImageRowProblem::InvalidUtf8, detail);
        }
    };
    if text.trim().is_empty() {
        return bad(ImageRowProblem::MissingUrl, "the image URL is empty".to_owned());
    }
    if text.len() > MAX_URL_BYTES {
        let detail = format!("the image URL has {} bytes, over the limit of {MAX_URL_BYTES}", text.len());
        return bad(ImageRowProblem::UrlTooLong, detail);
    }
    if base64.is_empty() {
        // The URL is valid and is needed unchanged, to filter the row and to find duplicates.
        return ImageRow::Bad {
            row,
            reason: ImageRowProblem::MissingData,
            detail: "the base64 field is empty".to_owned(),
            image_url: Some(text.to_owned()),
        };
    }
    ImageRow::Ok { row, image_url: text, base64 }
}

/// Returns a displayable prefix of a URL field. A malformed row can have megabytes here.
fn displayable_url(field: &[u8]) -> Option<String> {
    let shown = field.get(..MAX_URL_BYTES / 4).unwrap_or(field);
    let shown = String::from_utf8_lossy(shown).trim().to_owned();
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &[u8], limit: usize) -> Vec<String> {
        let mut rows = ImageRows::new(limit);
        rows.feed(text);
        rows.finish();
        let mut seen = Vec::new();
        while let Some(row) = rows.next() {
            seen.push(match row {
                ImageRow::Ok { row, image_url, base64 } => {
                    format!("{row} {image_url} {}", String::from_utf8_lossy(base64))
                }
                ImageRow::Bad { row, reason, image_url, .. } => format!("{row} {reason} {image_url:?}"),
            });
        }
        seen
    }

    #[test]
    fn rows_with_two_or_three_fields_are_read() {
        assert_eq!(read_all(b"http://a\tQUJD\thttp://m\nhttp://b\tRA==", 100), ["0 http://a QUJD", "1 http://b RA=="]);
    }

    #[test]
    fn each_bad_row_is_reported_and_affects_no_other() {
        let text = b"one\n\
            a\tb\tc\td\n\
            \tQUJD\tm\n\
            \xFFx\tQUJD\tm\n\
            http://e\t\tm\n\
            http://long\tAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\tm\n\
            http://g\tQUJD\tm\n";
        assert_eq!(
            read_all(text, 40),
            [
                "0 wrong_field_count Some(\"one\")",
                "1 wrong_field_count Some(\"a\")",
                "2 missing_url None",
                "3 invalid_utf8 Some(\"\u{FFFD}x\")",
                "4 missing_data Some(\"http://e\")",
                "5 row_too_long Some(\"http://long\")",
                "6 http://g QUJD",
            ]
        );
    }

    #[test]
    fn stray_quote_costs_one_row() {
        let text = b"\"http://a\tQUJD\tm\nhttp://b\tQUJD\tm\nhttp://c\tQUJD\tm\nhttp://d\tQUJD\tm\n";
        assert_eq!(
            read_all(text, 30),
            ["0 row_too_long Some(\"\\\"http://a\")", "1 http://b QUJD", "2 http://c QUJD", "3 http://d QUJD"]
        );
    }
}
