//! Fields of one record, as slices of the splitter's buffer in which doubled quotes are resolved in place.

use memchr::memchr;
use memchr::memchr_iter;

use super::QUOTE;

/// Number of fields of a record that can be read; further ones are only counted. Otherwise a record of delimiters alone
/// would need 24 bytes of field table for each of its bytes. The widest published file has 18 fields.
const MAX_READABLE_FIELDS: usize = 4096;

/// Record with its position in the file.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Index among the records of the file; blank lines are not counted.
    pub number: u64,
    /// Offset of the first byte in the decompressed file.
    pub byte_offset: u64,
    /// Fields, or a prefix if the record was too long.
    pub content: RecordContent<'a>,
}

/// Content of a record.
#[derive(Debug, Clone, Copy)]
pub enum RecordContent<'a> {
    /// Fields of a record within the limit.
    Fields(Fields<'a>),
    /// The record exceeds the limit; it stands for one physical line, which was dropped.
    Oversized {
        /// First bytes of that line as stored in the file, at most 4,096.
        prefix: &'a [u8],
    },
}

impl<'a> Record<'a> {
    /// Returns the field at `index` without its quotes; `None` if the record is oversized or has fewer fields.
    pub fn field(&self, index: usize) -> Option<&'a [u8]> {
        match self.content {
            RecordContent::Fields(fields) => fields.get(index),
            RecordContent::Oversized { .. } => None,
        }
    }

    /// Returns the number of fields; 0 for an oversized record.
    pub fn len(&self) -> usize {
        match self.content {
            RecordContent::Fields(fields) => fields.len(),
            RecordContent::Oversized { .. } => 0,
        }
    }

    /// Returns whether the record is oversized; all other records have at least one field.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Fields of one record, as bytes.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    pub(super) buffer: &'a [u8],
    pub(super) spans: &'a [Span],
    pub(super) count: usize,
}

impl<'a> Fields<'a> {
    /// Returns the number of fields, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a record without a field is a blank line, which is skipped")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns the field at `index`, if it is among the first 4,096.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let span = self.spans.get(index)?;
        self.buffer.get(span.start..span.end)
    }

    /// Iterates over the readable fields in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let fields = *self;
        (0..fields.spans.len()).filter_map(move |index| fields.get(index))
    }
}

/// Position of a field in the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: usize,
    end: usize,
}

/// Field table that is filled for each record.
pub(super) struct FieldTable<'a> {
    pub(super) spans: &'a mut Vec<Span>,
    pub(super) count: usize,
}

impl FieldTable<'_> {
    /// Splits the record `buffer[at..]` and returns its number of fields. A record without a `quoted` field is split at
    /// its delimiters alone.
    pub(super) fn fill_from(mut self, buffer: &mut [u8], at: usize, delimiter: u8, quoted: bool) -> usize {
        self.spans.clear();
        let start = at;
        let mut at = at;
        if !quoted {
            for distance in memchr_iter(delimiter, buffer.get(start..).unwrap_or_default()) {
                let end = start + distance;
                self.push(Span { start: at, end });
                at = end + 1;
            }
            self.push(Span { start: at, end: buffer.len() });
            return self.count;
        }
        loop {
            let (span, end) = parse_field(buffer, at, delimiter);
            self.push(span);
            if end >= buffer.len() {
                return self.count;
            }
            at = end + 1;
        }
    }

    /// Counts the field and stores it if the table has room.
    fn push(&mut self, span: Span) {
        if self.count < MAX_READABLE_FIELDS {
            self.spans.push(span);
        }
        self.count += 1;
    }
}

/// Parses the field at `at`. Returns the position of its value and the index of the delimiter or record end after it.
///
/// A value is never longer than its text, so its quotes are removed in place.
fn parse_field(record: &mut [u8], at: usize, delimiter: u8) -> (Span, usize) {
    let delimiter_from = |record: &[u8], from: usize| {
        memchr(delimiter, record.get(from..).unwrap_or_default()).map_or(record.len(), |distance| from + distance)
    };
    if record.get(at) != Some(&QUOTE) {
        let end = delimiter_from(record, at);
        return (Span { start: at, end }, end);
    }
    let mut value = Value { start: at + 1, end: at + 1 };
    // First byte that is not part of the value yet.
    let mut from = at + 1;
    loop {
        let Some(distance) = memchr(QUOTE, record.get(from..).unwrap_or_default()) else {
            // Only the last record of a file can end inside quotes.
            let end = record.len();
            return (value.append(record, from, end).span(), end);
        };
        let quote = from + distance;
        match record.get(quote + 1) {
            Some(&QUOTE) => {
                value = value.append(record, from, quote + 1);
                from = quote + 2;
            }
            Some(&byte) if byte != delimiter => {
                let end = delimiter_from(record, quote + 1);
                return (value.append(record, from, quote).append(record, quote + 1, end).span(), end);
            }
            Some(_) | None => {
                return (value.append(record, from, quote).span(), quote + 1);
            }
        }
    }
}

/// Part of a field's value that is complete.
struct Value {
    start: usize,
    end: usize,
}

impl Value {
    /// Appends `from..to`, which must not start before the end of the value.
    fn append(self, record: &mut [u8], from: usize, to: usize) -> Self {
        if from > self.end {
            record.copy_within(from..to, self.end);
        }
        Self { end: self.end + (to - from), ..self }
    }

    fn span(self) -> Span {
        Span { start: self.start, end: self.end }
    }
}
