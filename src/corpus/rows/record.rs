//! The fields of one record: slices of the splitter's buffer, where doubled quotes are undone in place.

use memchr::memchr;
use memchr::memchr_iter;

use super::QUOTE;

/// Fields of one record that are kept. Later ones are counted only: a record of nothing but delimiters
/// would otherwise take 24 bytes of field table for each of its bytes. The widest published file has 18.
const KEPT_FIELDS: usize = 4096;

/// One record: where it stands in the file, and its fields.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Position among the records of the file, from 0; blank lines are not counted.
    pub number: u64,
    /// Where the record's first byte is in the (decompressed) file.
    pub byte_offset: u64,
    /// The fields, or that the record was too long.
    pub kind: Kind<'a>,
}

/// What a record turned out to be.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    /// A record within the limit.
    Ok(Fields<'a>),
    /// A record beyond the limit, of which one physical line was given up.
    Oversized {
        /// The first bytes of that line as they stand in the file, at most 4,096.
        head: &'a [u8],
    },
}

impl<'a> Record<'a> {
    /// The field at `index`, without its quotes; `None` past the last one and for an oversized record.
    pub fn field(&self, index: usize) -> Option<&'a [u8]> {
        match self.kind {
            Kind::Ok(fields) => fields.get(index),
            Kind::Oversized { .. } => None,
        }
    }

    /// How many fields the record has; 0 for an oversized one.
    pub fn len(&self) -> usize {
        match self.kind {
            Kind::Ok(fields) => fields.len(),
            Kind::Oversized { .. } => 0,
        }
    }

    /// Whether there is no field, which is so for oversized records alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The fields of one record, as bytes.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    pub(super) buffer: &'a [u8],
    pub(super) spans: &'a [Span],
    pub(super) count: usize,
}

impl<'a> Fields<'a> {
    /// How many fields there are; at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a record without a field is a blank line, which is skipped")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// The field at `index`. Of more than 4,096 fields the later ones are counted, not kept.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let span = self.spans.get(index)?;
        self.buffer.get(span.start..span.end)
    }

    /// The fields that are kept, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let fields = *self;
        (0..fields.spans.len()).filter_map(move |index| fields.get(index))
    }
}

/// Where a field is in the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: usize,
    end: usize,
}

/// What is filled for each record.
pub(super) struct FieldTable<'a> {
    pub(super) spans: &'a mut Vec<Span>,
    pub(super) count: usize,
}

impl FieldTable<'_> {
    /// Splits `buffer` from `at` on, where a record starts that ends with the buffer; returns how many fields
    /// it has. A record without a `quoted` field is split by its delimiters alone.
    pub(super) fn fill(mut self, buffer: &mut [u8], at: usize, delimiter: u8, quoted: bool) -> usize {
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
            let (span, end) = field(buffer, at, delimiter);
            self.push(span);
            if end >= buffer.len() {
                return self.count;
            }
            at = end + 1;
        }
    }

    /// Keeps the field if the table has room for it.
    fn push(&mut self, span: Span) {
        if self.count < KEPT_FIELDS {
            self.spans.push(span);
        }
        self.count += 1;
    }
}

/// Reads the field at `at`; returns where its value is, and the position of the delimiter or end behind it.
///
/// A value is never longer than its text, so quotes that do not belong to it are undone where it stands.
fn field(record: &mut [u8], at: usize, delimiter: u8) -> (Span, usize) {
    let delimiter_from = |record: &[u8], from: usize| {
        memchr(delimiter, record.get(from..).unwrap_or_default()).map_or(record.len(), |distance| from + distance)
    };
    if record.get(at) != Some(&QUOTE) {
        let end = delimiter_from(record, at);
        return (Span { start: at, end }, end);
    }
    let mut value = Value { start: at + 1, end: at + 1 };
    // What is not taken yet starts here.
    let mut from = at + 1;
    loop {
        let Some(distance) = memchr(QUOTE, record.get(from..).unwrap_or_default()) else {
            // Only the last record of a file ends inside quotes.
            let end = record.len();
            return (value.take(record, from, end).span(), end);
        };
        let quote = from + distance;
        match record.get(quote + 1) {
            Some(&QUOTE) => {
                value = value.take(record, from, quote + 1);
                from = quote + 2;
            }
            Some(&byte) if byte != delimiter => {
                let end = delimiter_from(record, quote + 1);
                return (value.take(record, from, quote).take(record, quote + 1, end).span(), end);
            }
            Some(_) | None => {
                return (value.take(record, from, quote).span(), quote + 1);
            }
        }
    }
}

/// What was taken of a field's value so far.
struct Value {
    start: usize,
    end: usize,
}

impl Value {
    /// Appends `from..to`, which does not lie before the value's end.
    fn take(self, record: &mut [u8], from: usize, to: usize) -> Self {
        if from > self.end {
            record.copy_within(from..to, self.end);
        }
        Self { end: self.end + (to - from), ..self }
    }

    fn span(self) -> Span {
        Span { start: self.start, end: self.end }
    }
}
