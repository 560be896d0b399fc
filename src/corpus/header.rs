//! Columns by name, and text from bytes: what the files with a header share.

use crate::corpus::error::CorpusError;
use crate::corpus::rows::Fields;
use crate::corpus::rows::Kind;
use crate::corpus::rows::Record;

/// Names and characters that a message shows of a header; a header can be megabytes of something else.
const SHOWN_COLUMNS: usize = 24;
const SHOWN_CHARS: usize = 80;

/// The columns of a file, as its first record names them.
#[derive(Debug)]
pub(super) struct Header {
    names: Vec<String>,
    count: usize,
}

impl Header {
    /// Reads the names, without white space around them.
    pub(super) fn read(file: &str, record: &Record<'_>, limit_bytes: usize) -> Result<Self, CorpusError> {
        let refused = |detail: String| CorpusError::Header { file: file.to_owned(), detail };
        let fields = match record.kind {
            Kind::Ok(fields) => fields,
            Kind::Oversized { .. } => {
                return Err(refused(format!("it is longer than {limit_bytes} bytes")));
            }
        };
        let names = fields
            .iter()
            .map(|name| std::str::from_utf8(name).map(|name| name.trim().to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|_| refused("it is not UTF-8".to_owned()))?;
        Ok(Self { names, count: fields.len() })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn first(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// The one position of a column.
    pub(super) fn column(&self, file: &str, column: &'static str) -> Result<usize, CorpusError> {
        let mut found = self.names.iter().enumerate().filter(|(_, name)| *name == column);
        let Some((index, _)) = found.next() else {
            return Err(CorpusError::MissingColumn { file: file.to_owned(), column, found: self.listed() });
        };
        if found.next().is_some() {
            return Err(CorpusError::DuplicateColumn { file: file.to_owned(), column });
        }
        Ok(index)
    }

    /// The names in backticks, for a message.
    pub(super) fn listed(&self) -> String {
        let shown: Vec<_> =
            self.names.iter().take(SHOWN_COLUMNS).map(|name| format!("`{}`", shortened(name))).collect();
        let rest = self.count - shown.len();
        if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
    }
}

/// The first characters of a text that may be long.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Field `index` as text.
pub(super) fn text<'a>(
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
