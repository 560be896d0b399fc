//! Rows of the image shards: image URL, base64, metadata URL; tab-separated, without a header.

use crate::corpus::rows::Delimiter;
use crate::corpus::rows::Fields;
use crate::corpus::rows::Kind;
use crate::corpus::rows::PushParser;
use crate::corpus::rows::RowSplitter;

/// Longest image URL, in bytes: a title of 255 bytes with every byte escaped, twice over, beside a path. What a chunk keeps of
/// a row is bounded by it.
pub const MAX_URL_BYTES: usize = 2048;

/// One row of an image shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRow<'a> {
    /// A row with a URL and data.
    Ok {
        /// The row's number in the shard.
        row: u64,
        /// The URL as it stands in the file; rows are joined on it unchanged.
        image_url: &'a str,
        /// The image in base64, not looked at; never empty.
        base64: &'a [u8],
    },
    /// A row that cannot be used.
    Bad {
        /// The row's number in the shard.
        row: u64,
        /// Why.
        reason: ImageRowProblem,
        /// The same in words, with the numbers.
        detail: String,
        /// The URL: unchanged for [`ImageRowProblem::MissingData`], whose URL is sound; else what of it can be shown,
        /// 512 bytes of it at most.
        image_url: Option<String>,
    },
}

/// Why a row of an image shard cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageRowProblem {
    /// Not 3 fields; 2 are accepted too, as the metadata URL is not used.
    WrongFieldCount,
    /// The image URL is not UTF-8.
    InvalidUtf8,
    /// The image URL is empty.
    MissingUrl,
    /// The image URL is longer than [`MAX_URL_BYTES`].
    UrlTooLong,
    /// The base64 field is empty.
    MissingData,
    /// The row is longer than the limit.
    RowTooLong,
}

impl ImageRowProblem {
    /// Every problem, in the order of the declaration.
    pub const ALL: [Self; 6] = [
        Self::WrongFieldCount,
        Self::InvalidUtf8,
        Self::MissingUrl,
        Self::UrlTooLong,
        Self::MissingData,
        Self::RowTooLong,
    ];

    /// The name under which it is counted and stored.
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

/// Reads an image shard.
#[derive(Debug)]
pub struct ImageRows {
    rows: RowSplitter,
}

impl ImageRows {
    /// A reader at the start of a shard.
    pub fn new(max_record_bytes: usize) -> Self {
        Self { rows: RowSplitter::new(Delimiter::Tab, max_record_bytes) }
    }

    /// Gives back what unusually long rows have taken.
    pub fn trim(&mut self) {
        self.rows.trim();
    }

    /// The next row, or `None` when another block is needed or the shard has ended.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Option<ImageRow<'_>> {
        let limit_bytes = self.rows.max_record_bytes();
        let record = self.rows.next()?;
        let row = record.number;
        Some(match record.kind {
            Kind::Ok(fields) => read(row, &fields),
            Kind::Oversized { head } => ImageRow::Bad {
                row,
                reason: ImageRowProblem::RowTooLong,
                detail: format!("longer than {limit_bytes} bytes, at byte {} of the shard", record.byte_offset),
                image_url: head.iter().position(|&byte| byte == b'\t').and_then(|end| url(head.get(..end)?)),
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

fn read<'a>(row: u64, fields: &Fields<'a>) -> ImageRow<'a> {
    let image_url = fields.get(0).unwrap_or_default();
    let base64 = fields.get(1).unwrap_or_default();
    let bad = |reason, detail: String| ImageRow::Bad { row, reason, detail, image_url: url(image_url) };
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
        // The URL is sound and decides, unchanged, whether the row is wanted or a duplicate.
        return ImageRow::Bad {
            row,
            reason: ImageRowProblem::MissingData,
            detail: "the base64 field is empty".to_owned(),
            image_url: Some(text.to_owned()),
        };
    }
    ImageRow::Ok { row, image_url: text, base64 }
}

/// What to show of a URL field that may hold anything. A broken row can carry megabytes here, so it is cut.
fn url(field: &[u8]) -> Option<String> {
    let shown = field.get(..MAX_URL_BYTES / 4).unwrap_or(field);
    let shown = String::from_utf8_lossy(shown).trim().to_owned();
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8], limit: usize) -> Vec<String> {
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
        assert_eq!(all(b"http://a\tQUJD\thttp://m\nhttp://b\tRA==", 100), ["0 http://a QUJD", "1 http://b RA=="]);
    }

    #[test]
    fn each_bad_row_is_named_and_loses_no_other() {
        let text = b"one\n\
            a\tb\tc\td\n\
            \tQUJD\tm\n\
            \xFFx\tQUJD\tm\n\
            http://e\t\tm\n\
            http://long\tAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\tm\n\
            http://g\tQUJD\tm\n";
        assert_eq!(
            all(text, 40),
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
    fn a_stray_quote_costs_one_row() {
        let text = b"\"http://a\tQUJD\tm\nhttp://b\tQUJD\tm\nhttp://c\tQUJD\tm\nhttp://d\tQUJD\tm\n";
        assert_eq!(
            all(text, 30),
            ["0 row_too_long Some(\"\\\"http://a\")", "1 http://b QUJD", "2 http://c QUJD", "3 http://d QUJD"]
        );
    }
}
