//! Why a file of the corpus cannot be used as a whole.

/// A file of the corpus that cannot be used. Row numbers count from 0, header and blank lines not counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// The file ends before its first record.
    #[error("`{file}` is empty: it must start with a header; download it again or correct the path")]
    Empty {
        /// The file.
        file: String,
    },
    /// The first record is not text, or is too long to be a header.
    #[error(
        "the header of `{file}` cannot be read ({detail}): check that the file is text, plain or named .gz or .zst after its compression"
    )]
    Header {
        /// The file.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A column that is needed is not in the header.
    #[error(
        "`{file}` has no column `{column}`; its header names {found}: give the published file, or rename the column"
    )]
    MissingColumn {
        /// The file.
        file: String,
        /// The column that is needed.
        column: &'static str,
        /// The columns that are there, in backticks.
        found: String,
    },
    /// A column that is needed is in the header twice.
    #[error("`{file}` names the column `{column}` twice in its header: remove or rename one of them")]
    DuplicateColumn {
        /// The file.
        file: String,
        /// The column.
        column: &'static str,
    },
    /// The caption list has several columns.
    #[error("`{file}` must have one column of captions, its header names {found}: keep the caption column alone")]
    SeveralColumns {
        /// The file.
        file: String,
        /// The columns that are there, in backticks.
        found: String,
    },
    /// A row has more or fewer fields than the header.
    #[error(
        "row {row} of `{file}` has {found} fields, the header has {expected}: correct the row, and put fields that hold a {delimiter}, a quote or a newline in double quotes"
    )]
    FieldCount {
        /// The file.
        file: String,
        /// The row.
        row: u64,
        /// Fields of the header.
        expected: usize,
        /// Fields of the row.
        found: usize,
        /// The delimiter in words.
        delimiter: &'static str,
    },
    /// A field is not UTF-8.
    #[error(
        "row {row} of `{file}` is not UTF-8 in column `{column}`, from byte {valid_bytes} of the field on: convert the file to UTF-8"
    )]
    NotUtf8 {
        /// The file.
        file: String,
        /// The row.
        row: u64,
        /// The column.
        column: String,
        /// Bytes of the field before the first bad one.
        valid_bytes: usize,
    },
    /// A field that is needed is empty.
    #[error("row {row} of `{file}` has nothing in column `{column}`: fill it in or remove the row")]
    EmptyField {
        /// The file.
        file: String,
        /// The row.
        row: u64,
        /// The column.
        column: String,
    },
    /// A row is longer than the limit.
    #[error(
        "row {row} of `{file}`, at byte {byte_offset}, is longer than {limit_bytes} bytes: look there for a double quote that is opened and not closed"
    )]
    RowTooLong {
        /// The file.
        file: String,
        /// The row.
        row: u64,
        /// Where the row starts in the decompressed file.
        byte_offset: u64,
        /// The limit.
        limit_bytes: usize,
    },
    /// An id occurs twice.
    #[error(
        "rows {first_row} and {row} of `{file}` have the same id `{id}`: ids must be distinct, remove one of the rows"
    )]
    DuplicateId {
        /// The file.
        file: String,
        /// The later row.
        row: u64,
        /// The earlier row.
        first_row: u64,
        /// The id, shortened when long.
        id: String,
    },
}
