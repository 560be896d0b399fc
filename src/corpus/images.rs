//! Rows of image shards, and the parser of tab-separated ones: image URL, base64, metadata URL, with or without a header.

use crate::corpus::columns::{ColumnKind, IMAGE_COLUMNS, ImageColumns, URL_COLUMNS};
use crate::corpus::error::CorpusError;
use crate::corpus::header::Header;
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
        /// URL or name exactly as in the file; it is the join key.
        image_url: &'a str,
        /// Image, never empty.
        image: EncodedImage<'a>,
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

/// Image as a shard stores it, not validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodedImage<'a> {
    /// Image file in base64.
    Base64(&'a [u8]),
    /// Bytes of the image file.
    File(&'a [u8]),
}

impl<'a> EncodedImage<'a> {
    /// Returns the stored bytes.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Base64(bytes) | Self::File(bytes) => bytes,
        }
    }
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
    /// The row is not a JSON object.
    InvalidJson,
}

impl ImageRowProblem {
    /// All problems in declaration order.
    pub const ALL: [Self; 7] = [
        Self::WrongFieldCount,
        Self::InvalidUtf8,
        Self::MissingUrl,
        Self::UrlTooLong,
        Self::MissingData,
        Self::RowTooLong,
        Self::InvalidJson,
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
            Self::InvalidJson => "invalid_json",
        }
    }
}

impl std::fmt::Display for ImageRowProblem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Positions of the columns of a file with a header.
#[derive(Debug, Clone, Copy)]
struct Positions {
    count: usize,
    url: usize,
    image: usize,
}

/// First record of a file, kept until it is known whether it is a header.
#[derive(Debug, Default)]
enum FirstRecord {
    /// It has not been read.
    #[default]
    Unread,
    /// It is a row, which has not been returned.
    Row { fields: usize, image_url: Vec<u8>, base64: Vec<u8> },
    /// It is a row over the length limit, which has not been returned.
    Oversized { byte_offset: u64, prefix: Vec<u8> },
    /// It was a header, or has been returned.
    Done,
}

/// Parses a tab-separated image shard.
#[derive(Debug)]
pub struct ImageRows {
    rows: RowSplitter,
    file: String,
    columns: ImageColumns,
    first: FirstRecord,
    /// First record, while its row is in use.
    returned: FirstRecord,
    /// Columns of the header; `None` without a header.
    positions: Option<Positions>,
}

impl ImageRows {
    /// Creates a parser for the start of `file`; errors quote that name.
    pub fn new(file: &str, columns: ImageColumns, max_record_bytes: usize) -> Self {
        Self {
            rows: RowSplitter::new(Delimiter::Tab, max_record_bytes),
            file: file.to_owned(),
            columns,
            first: FirstRecord::Unread,
            returned: FirstRecord::Done,
            positions: None,
        }
    }

    /// Frees the memory that unusually long rows needed.
    pub fn trim(&mut self) {
        self.rows.trim();
    }

    /// Returns whether the first record was a header, once the first row has been returned.
    pub fn has_header(&self) -> bool {
        self.positions.is_some()
    }

    /// Returns the next row, or `None` if another block is needed or the shard has ended.
    ///
    /// # Errors
    /// Fails if the header lacks a column that the configuration names.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<ImageRow<'_>>, CorpusError> {
        if matches!(self.first, FirstRecord::Unread) {
            self.read_first()?;
        }
        let limit_bytes = self.rows.max_record_bytes();
        if matches!(self.first, FirstRecord::Unread) {
            return Ok(None);
        }
        self.returned = std::mem::replace(&mut self.first, FirstRecord::Done);
        match &self.returned {
            FirstRecord::Row { fields, image_url, base64 } => {
                return Ok(Some(parse_row(0, *fields, image_url, base64)));
            }
            FirstRecord::Oversized { byte_offset, prefix } => {
                return Ok(Some(oversized_row(0, *byte_offset, limit_bytes, prefix)));
            }
            FirstRecord::Unread | FirstRecord::Done => {}
        }
        let Some(record) = self.rows.next() else { return Ok(None) };
        let row = record.number - u64::from(self.positions.is_some());
        Ok(Some(match record.content {
            RecordContent::Fields(fields) => {
                let field = |index| fields.get(index).unwrap_or_default();
                match self.positions {
                    None => parse_row(row, fields.len(), field(0), field(1)),
                    Some(positions) => parse_named(row, &fields, positions),
                }
            }
            RecordContent::Oversized { prefix } => oversized_row(row, record.byte_offset, limit_bytes, prefix),
        }))
    }

    /// Reads the first record, if there are enough bytes.
    ///
    /// It is a header if one field is a usual name of the URL's column and another one of the image's column, or the names
    /// that the configuration sets.
    fn read_first(&mut self) -> Result<(), CorpusError> {
        let limit_bytes = self.rows.max_record_bytes();
        let Some(record) = self.rows.next() else { return Ok(()) };
        let fields = match record.content {
            RecordContent::Fields(fields) => fields,
            RecordContent::Oversized { prefix } => {
                self.first = FirstRecord::Oversized { byte_offset: record.byte_offset, prefix: prefix.to_vec() };
                return Ok(());
            }
        };
        let is_named = |set: &Option<String>, usual: &[&str]| {
            let is_name = |name: &str| fields.iter().any(|field| field.trim_ascii() == name.as_bytes());
            set.as_deref().map_or_else(|| usual.iter().any(|name| is_name(name)), is_name)
        };
        let ImageColumns { url, image } = &self.columns;
        let has_header = is_named(url, &URL_COLUMNS) && is_named(image, &IMAGE_COLUMNS);
        if !has_header && url.is_none() && image.is_none() {
            let field = |index| fields.get(index).unwrap_or_default().to_vec();
            self.first = FirstRecord::Row { fields: fields.len(), image_url: field(0), base64: field(1) };
            return Ok(());
        }
        let header = Header::read(&self.file, &record, limit_bytes)?;
        self.positions = Some(Positions {
            count: header.len(),
            url: header.find(&self.file, ColumnKind::ImageUrl, url.as_deref())?,
            image: header.find(&self.file, ColumnKind::Image, image.as_deref())?,
        });
        self.first = FirstRecord::Done;
        Ok(())
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

fn parse_row<'a>(row: u64, fields: usize, image_url: &'a [u8], base64: &'a [u8]) -> ImageRow<'a> {
    if !(2..=3).contains(&fields) {
        let detail = format!("{fields} fields where 2 or 3 are expected");
        return bad_row(row, ImageRowProblem::WrongFieldCount, detail, image_url);
    }
    check_row(row, image_url, EncodedImage::Base64(base64))
}

fn oversized_row<'a>(row: u64, byte_offset: u64, limit_bytes: usize, prefix: &[u8]) -> ImageRow<'a> {
    let image_url = prefix.iter().position(|&byte| byte == b'\t').and_then(|end| prefix.get(..end));
    ImageRow::Bad {
        row,
        reason: ImageRowProblem::RowTooLong,
        detail: format!("longer than {limit_bytes} bytes, at byte {byte_offset} of the shard"),
        image_url: image_url.and_then(displayable_url),
    }
}

fn parse_named<'a>(row: u64, fields: &Fields<'a>, positions: Positions) -> ImageRow<'a> {
    let image_url = fields.get(positions.url).unwrap_or_default();
    if fields.len() != positions.count {
        let detail = format!("{} fields where the header has {}", fields.len(), positions.count);
        return bad_row(row, ImageRowProblem::WrongFieldCount, detail, image_url);
    }
    check_row(row, image_url, EncodedImage::Base64(fields.get(positions.image).unwrap_or_default()))
}

fn bad_row<'a>(row: u64, reason: ImageRowProblem, detail: String, image_url: &[u8]) -> ImageRow<'a> {
    ImageRow::Bad { row, reason, detail, image_url: displayable_url(image_url) }
}

/// Returns the row of a URL and an image, or the reason why it cannot be used.
pub fn check_row<'a>(row: u64, image_url: &'a [u8], image: EncodedImage<'a>) -> ImageRow<'a> {
    let bad = |reason, detail: String| bad_row(row, reason, detail, image_url);
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
    if image.bytes().is_empty() {
        let detail = match image {
            EncodedImage::Base64(_) => "the field with the data is empty",
            EncodedImage::File(_) => "the image is empty or missing",
        };
        // The URL is valid and is needed unchanged, to filter the row and to find duplicates.
        return ImageRow::Bad {
            row,
            reason: ImageRowProblem::MissingData,
            detail: detail.to_owned(),
            image_url: Some(text.to_owned()),
        };
    }
    ImageRow::Ok { row, image_url: text, image }
}

/// Returns a displayable prefix of a URL field. A malformed row can have megabytes here.
pub(super) fn displayable_url(field: &[u8]) -> Option<String> {
    let shown = field.get(..MAX_URL_BYTES / 4).unwrap_or(field);
    let shown = String::from_utf8_lossy(shown).trim().to_owned();
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &[u8], limit: usize) -> Vec<String> {
        let mut rows = ImageRows::new("part.csv", ImageColumns::default(), limit);
        rows.feed(text);
        rows.finish();
        let mut seen = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            seen.push(match row {
                ImageRow::Ok { row, image_url, image } => {
                    format!("{row} {image_url} {}", String::from_utf8_lossy(image.bytes()))
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

    #[test]
    fn header_names_the_columns() {
        let text = b"id\tb64_bytes\timage_url\n7\tQUJD\thttp://a\n8\tQUJD\n9\t\thttp://c\n";
        assert_eq!(
            read_all(text, 100),
            ["0 http://a QUJD", "1 wrong_field_count None", "2 missing_data Some(\"http://c\")"]
        );
        // One usual name alone may be the name of an image.
        assert_eq!(read_all(b"image\tQUJD\n", 100), ["0 image QUJD"]);
        assert_eq!(read_all(b"image_url\timage\tmetadata_url\n", 100), Vec::<String>::new());
    }

    #[test]
    fn columns_of_the_configuration_are_required() {
        let read = |text: &[u8]| {
            let columns = ImageColumns { url: Some("link".to_owned()), ..ImageColumns::default() };
            let mut rows = ImageRows::new("part.tsv", columns, 100);
            rows.feed(text);
            rows.finish();
            rows.next().map(|row| format!("{row:?}")).map_err(|error| error.to_string())
        };
        assert!(read(b"image\tlink\nQUJD\thttp://a\n").unwrap().contains("http://a"));
        assert_eq!(
            read(b"image\turl\nQUJD\thttp://a\n").unwrap_err(),
            "`part.tsv` has no column `link`, which `images.url_column` names; it has `image`, `url`: correct the name"
        );
    }
}
