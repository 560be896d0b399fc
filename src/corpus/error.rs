//! Errors that make a corpus file unusable.

/// Error that makes a corpus file unusable. Row numbers count from 0, without header and blank lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// The file ends before its first record.
    #[error("`{file}` is empty, but must start with a header: download it again or correct the path")]
    Empty {
        /// File name.
        file: String,
    },
    /// The first record is not text, or is too long for a header.
    #[error(
        "the header of `{file}` cannot be read ({detail}): check that the file is text; a compressed file must be named `.gz` or `.zst`"
    )]
    Header {
        /// File name.
        file: String,
        /// Reason.
        detail: String,
    },
    /// The file lacks a column that it must have, or that the configuration names.
    #[error("`{file}` has no column `{column}`, which {}{}; it has {found}: {}",
        if key.is_empty() { "it must have" } else { "`" },
        if key.is_empty() { String::new() } else { format!("{key}` names") },
        if key.is_empty() { "use the published file or rename the column" } else { "correct the name" })]
    MissingColumn {
        /// File name.
        file: String,
        /// Required column.
        column: String,
        /// Configuration key that names the column; empty for a column with a fixed name.
        key: &'static str,
        /// Columns of the file, in backticks.
        found: String,
    },
    /// The file has none of the usual columns of a kind.
    #[error("`{file}` has no column with {content}: it has {found}, but none of {tried}; name the column in `{key}`")]
    NoUsualColumn {
        /// File name.
        file: String,
        /// Content of the column, as a noun phrase.
        content: &'static str,
        /// Usual names, in backticks.
        tried: String,
        /// Configuration key that names the column.
        key: &'static str,
        /// Columns of the file, in backticks.
        found: String,
    },
    /// The column has a type that cannot be used.
    #[error("the column `{column}` of `{file}` holds {found}, but {expected} is needed; name another one in `{key}`")]
    WrongColumnType {
        /// File name.
        file: String,
        /// Column name.
        column: String,
        /// Type of the column.
        found: String,
        /// Types that can be used.
        expected: &'static str,
        /// Configuration key that names the column.
        key: &'static str,
    },
    /// The structure of a container file is damaged or cannot be read.
    #[error("`{file}` cannot be read as {format}: {detail}")]
    Container {
        /// File name.
        file: String,
        /// Name of the format, with its article.
        format: &'static str,
        /// Problem, and what to do about it.
        detail: String,
    },
    /// The header names a required column twice.
    #[error("`{file}` names the column `{column}` twice in its header: remove or rename one of them")]
    DuplicateColumn {
        /// File name.
        file: String,
        /// Column name.
        column: String,
    },
    /// The caption list has several columns.
    #[error("`{file}` must have a single column of captions, but its header names {found}: remove the other columns")]
    SeveralColumns {
        /// File name.
        file: String,
        /// Columns of the header, in backticks.
        found: String,
    },
    /// The first line of the caption list is not a known name of its column.
    #[error(
        "`{file}` starts with `{found}`, which is not a known header and may be a caption: add a first line `caption`, or rename \
         the header to `caption`"
    )]
    NoCaptionHeader {
        /// File name.
        file: String,
        /// First line, truncated if long.
        found: String,
    },
    /// A row has more or fewer fields than the header.
    #[error(
        "row {row} of `{file}` has {found} fields, but the header has {expected}: correct the row; put fields that contain a {delimiter}, a quote or a newline in double quotes"
    )]
    FieldCount {
        /// File name.
        file: String,
        /// Row number.
        row: u64,
        /// Number of fields in the header.
        expected: usize,
        /// Number of fields in the row.
        found: usize,
        /// Name of the delimiter.
        delimiter: &'static str,
    },
    /// A field is not UTF-8.
    #[error(
        "row {row} of `{file}` is not UTF-8 in column `{column}`, starting at byte {valid_bytes} of the field: convert the file to UTF-8"
    )]
    NotUtf8 {
        /// File name.
        file: String,
        /// Row number.
        row: u64,
        /// Column name.
        column: String,
        /// Length of the valid prefix of the field, in bytes.
        valid_bytes: usize,
    },
    /// A required field is empty.
    #[error("row {row} of `{file}` is empty in column `{column}`: fill it in or remove the row")]
    EmptyField {
        /// File name.
        file: String,
        /// Row number.
        row: u64,
        /// Column name.
        column: String,
    },
    /// A row is longer than the limit.
    #[error(
        "row {row} of `{file}`, at byte {byte_offset}, is longer than {limit_bytes} bytes: look there for a double quote that is never closed"
    )]
    RowTooLong {
        /// File name.
        file: String,
        /// Row number.
        row: u64,
        /// Byte offset of the row in the decompressed file.
        byte_offset: u64,
        /// Length limit.
        limit_bytes: usize,
    },
    /// An id occurs twice.
    #[error(
        "rows {first_row} and {row} of `{file}` have the same id `{id}`: ids must be distinct, remove one of the rows"
    )]
    DuplicateId {
        /// File name.
        file: String,
        /// Row of the repetition.
        row: u64,
        /// Row of the first occurrence.
        first_row: u64,
        /// Id, truncated if long.
        id: String,
    },
}
