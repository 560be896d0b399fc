//! Column lookup by name and UTF-8 conversion, shared by the parsers of files with a header.

use crate::corpus::columns::ColumnKind;
use crate::corpus::error::CorpusError;
use crate::corpus::rows::Fields;
use crate::corpus::rows::Record;
use crate::corpus::rows::RecordContent;

/// Number of column names shown in a message, because a damaged header can be megabytes long.
const SHOWN_COLUMNS: usize = 24;
/// Number of characters shown of each name.
const SHOWN_CHARS: usize = 80;

/// Columns of a file, in the order of its header.
#[derive(Debug)]
pub(super) struct Header {
    names: Vec<String>,
    count: usize,
}

impl Header {
    /// Parses the first record and trims the names.
    pub(super) fn read(file: &str, record: &Record<'_>, limit_bytes: usize) -> Result<Self, CorpusError> {
        let unreadable = |detail: String| CorpusError::Header { file: file.to_owned(), detail };
        let fields = match record.content {
            RecordContent::Fields(fields) => fields,
            RecordContent::Oversized { .. } => {
                return Err(unreadable(format!("it is longer than {limit_bytes} bytes")));
            }
        };
        let names = fields
            .iter()
            .map(|name| std::str::from_utf8(name).map(|name| name.trim().to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|_| unreadable("it is not UTF-8".to_owned()))?;
        Ok(Self { names, count: fields.len() })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn first(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Returns whether there is a column of this name.
    pub(super) fn has(&self, column: &str) -> bool {
        self.names.iter().any(|name| name == column)
    }

    /// Returns the index of a column, which must occur exactly once.
    pub(super) fn column(&self, file: &str, column: &str) -> Result<usize, CorpusError> {
        let mut found = self.names.iter().enumerate().filter(|(_, name)| *name == column);
        let (file, column) = (|| file.to_owned(), || column.to_owned());
        let Some((index, _)) = found.next() else {
            return Err(CorpusError::MissingColumn {
                file: file(),
                column: column(),
                key: "",
                found: self.list_names(),
            });
        };
        if found.next().is_some() {
            return Err(CorpusError::DuplicateColumn { file: file(), column: column() });
        }
        Ok(index)
    }

    /// Returns the index of a column by its kind: the one that the configuration names, or the first usual one.
    pub(super) fn find(&self, file: &str, kind: ColumnKind, set: Option<&str>) -> Result<usize, CorpusError> {
        let name = kind.find(file, set, |name| self.has(name), || self.list_names())?;
        self.column(file, &name)
    }

    /// Lists the names in backticks, for a message.
    pub(super) fn list_names(&self) -> String {
        let shown: Vec<_> =
            self.names.iter().take(SHOWN_COLUMNS).map(|name| format!("`{}`", truncate_for_display(name))).collect();
        let rest = self.count - shown.len();
        if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
    }
}

/// Truncates a text for display.
pub(super) fn truncate_for_display(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Returns the number and the fields of a row below the header, which has `columns` columns.
pub(super) fn fields_of_row<'a>(
    record: Record<'a>,
    (columns, delimiter): (usize, &'static str),
    file: &str,
    limit_bytes: usize,
) -> Result<(u64, Fields<'a>), CorpusError> {
    // Record 0 is the header.
    let (row, byte_offset) = (record.number.saturating_sub(1), record.byte_offset);
    let file = || file.to_owned();
    let RecordContent::Fields(fields) = record.content else {
        return Err(CorpusError::RowTooLong { file: file(), row, byte_offset, limit_bytes });
    };
    let (expected, found) = (columns, fields.len());
    if found != expected {
        return Err(CorpusError::FieldCount { file: file(), row, expected, found, delimiter });
    }
    Ok((row, fields))
}

/// Returns field `index` as UTF-8 text.
pub(super) fn utf8_field<'a>(
    fields: &Fields<'a>,
    index: usize,
    column: &str,
    file: &str,
    row: u64,
) -> Result<&'a str, CorpusError> {
    std::str::from_utf8(fields.get(index).unwrap_or_default()).map_err(|error| CorpusError::NotUtf8 {
        file: file.to_owned(),
        row,
        column: column.to_owned(),
        valid_bytes: error.valid_up_to(),
    })
}
