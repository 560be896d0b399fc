//! Splits blocks of bytes into records of fields, with the quoting rules of Python's `csv.reader`.
//!
//! The rules are those of the default dialect, applied to a file opened with `newline=""`. A quote opens a quoted field
//! only as the field's first byte; elsewhere it is literal. Inside quotes, a doubled quote is one quote, and delimiters
//! and newlines are data. Text after a closing quote continues the field. A record ends at `\n`, `\r\n` or `\r`; the
//! end of the input also ends a record, even inside quotes. Blank lines, which Python returns as empty lists, and a
//! UTF-8 byte order mark at the start are skipped.
//!
//! One rule is added, because a stray opening quote can swallow a whole file. A record longer than `max_record_bytes`
//! is reported as [`RecordContent::Oversized`]. It covers only its first physical line; splitting continues after that
//! line. Records, numbers and offsets do not depend on where the blocks were cut.
//!
//! Speed comes from one `memchr3` search for quote, `\n` and `\r`. A quote opens a field only directly after a
//! delimiter or a record start, so the search never looks at delimiters. When a block ends inside a record, the search
//! resumes where it stopped. Fields are slices of the buffer. In a field with a doubled quote, or with text after its
//! closing quote, the rest of the value is moved forward in the buffer.
//!
//! Time is linear in the input, except that each oversized record costs a scan of `max_record_bytes`.

use std::io::Read;

use memchr::memchr;
use memchr::memchr2;
use memchr::memchr3;

mod record;

use record::{FieldTable, Span};
pub use record::{Fields, Record, RecordContent};

const QUOTE: u8 = b'"';
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Buffers up to this size are kept when rows are short again.
const RETAINED_BUFFER_BYTES: usize = 1 << 20;

/// Number of bytes of an oversized line that are reported: enough for an image URL.
const PREFIX_BYTES: usize = 4096;

/// Byte between two fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delimiter {
    /// `,`
    Comma,
    /// A tab.
    Tab,
}

impl Delimiter {
    const fn byte(self) -> u8 {
        match self {
            Self::Comma => b',',
            Self::Tab => b'\t',
        }
    }
}

/// Parser that is fed a file block by block.
pub trait PushParser {
    /// Appends the next block. Pull all rows before the next call, since unread input stays in memory.
    fn feed(&mut self, block: &[u8]);

    /// Marks the end of the input, so that the last record can be returned.
    fn finish(&mut self);
}

/// Feeds one `block` from `reader`, or finishes the parser at the end of the input.
///
/// Returns whether more input may follow.
///
/// # Errors
/// Returns errors of the reader, except interruptions, which are retried.
pub fn fill_from(parser: &mut impl PushParser, reader: &mut impl Read, block: &mut [u8]) -> std::io::Result<bool> {
    loop {
        match reader.read(block) {
            Ok(0) => {
                parser.finish();
                return Ok(false);
            }
            Ok(read) => {
                parser.feed(block.get(..read).unwrap_or_default());
                return Ok(true);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// State of the search for the end of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QuoteState {
    Unquoted,
    Quoted,
    /// After a quote in a quoted field; the next byte tells whether it is a doubled quote.
    AfterQuote,
}

/// Treatment of the next input bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// They may be a byte order mark.
    FileStart,
    Splitting,
    /// They are the rest of an oversized line and are dropped up to the next line end.
    Discarding,
}

/// Splits the bytes of one file into records.
///
/// Call `feed`, then `next` until it returns `None`, and repeat. After `finish`, `next` returns the remaining records.
/// With this protocol the buffer holds at most `max_record_bytes` and one block.
#[derive(Debug)]
pub struct RowSplitter {
    delimiter: u8,
    max_record_bytes: usize,
    buffer: Vec<u8>,
    /// File offset of the first byte in the buffer.
    base: u64,
    /// Start of the current record in the buffer; everything before it has been returned.
    start: usize,
    /// Position up to which the end of the record has been searched.
    scan: usize,
    state: QuoteState,
    /// Whether the current record has a quoted field.
    quoted: bool,
    phase: Phase,
    finished: bool,
    next_number: u64,
    spans: Vec<Span>,
}

/// Start of a record, where parsing of a file can resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResumePoint {
    /// Byte offset of the record in the decompressed file.
    pub byte_offset: u64,
    /// Record number.
    pub number: u64,
}

/// Result of the search for the end of a record.
enum RecordEnd {
    /// The record ends here; a line end or the end of the input follows.
    At(usize),
    Oversized,
}

impl RowSplitter {
    /// Creates a splitter for the start of a file. `max_record_bytes` limits a record as stored in the file, with its
    /// quotes but without its line end.
    pub fn new(delimiter: Delimiter, max_record_bytes: usize) -> Self {
        Self {
            delimiter: delimiter.byte(),
            max_record_bytes,
            buffer: Vec::new(),
            base: 0,
            start: 0,
            scan: 0,
            state: QuoteState::Unquoted,
            quoted: false,
            phase: Phase::FileStart,
            finished: false,
            next_number: 0,
            spans: Vec::new(),
        }
    }

    /// Creates a splitter whose first block starts at `point`; it returns the same records from there on.
    pub fn resume_at(delimiter: Delimiter, max_record_bytes: usize, point: ResumePoint) -> Self {
        Self {
            base: point.byte_offset,
            next_number: point.number,
            phase: Phase::Splitting,
            ..Self::new(delimiter, max_record_bytes)
        }
    }

    /// Returns where the next record begins, or `None` inside a line that is being dropped.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        (self.phase == Phase::Splitting)
            .then(|| ResumePoint { byte_offset: self.base + self.start as u64, number: self.next_number })
    }

    /// Returns the length limit of a record, in bytes.
    pub fn max_record_bytes(&self) -> usize {
        self.max_record_bytes
    }

    /// Returns the number of buffered bytes that have not been returned in a record.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Returns the next record, or `None` if another block is needed. After [`PushParser::finish`], `None` means that
    /// all records have been returned.
    #[expect(
        clippy::should_implement_trait,
        reason = "the record borrows from the splitter, which `Iterator` cannot say"
    )]
    pub fn next(&mut self) -> Option<Record<'_>> {
        if !self.seek_record() {
            return None;
        }
        let record_end = self.find_end()?;
        let number = self.next_number;
        self.next_number += 1;
        let byte_offset = self.base + self.start as u64;
        let first = self.start;
        match record_end {
            RecordEnd::At(end) => {
                let count = self.split(end);
                self.begin_record(end);
                Some(Record {
                    number,
                    byte_offset,
                    content: RecordContent::Fields(Fields { buffer: &self.buffer, spans: &self.spans, count }),
                })
            }
            RecordEnd::Oversized => {
                let line = self.buffer.get(first..).unwrap_or_default();
                let line_end = memchr2(b'\n', b'\r', line);
                if line_end.is_none() {
                    self.phase = Phase::Discarding;
                }
                let end = first + line_end.unwrap_or(line.len());
                self.begin_record(end);
                // The prefix does not extend to `end`, because the buffered part of an endless line depends on the
                // blocks.
                let shown = (end - first).min(PREFIX_BYTES).min(self.max_record_bytes);
                let prefix = self.buffer.get(first..first + shown).unwrap_or_default();
                Some(Record { number, byte_offset, content: RecordContent::Oversized { prefix } })
            }
        }
    }

    /// Shrinks a buffer that is much larger than its content.
    pub fn trim(&mut self) {
        self.discard_returned();
        if self.buffer.capacity() > RETAINED_BUFFER_BYTES.max(2 * self.buffer.len()) {
            self.buffer.shrink_to_fit();
        }
    }

    fn discard_returned(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.base += self.start as u64;
            self.scan -= self.start;
            self.start = 0;
        }
    }

    fn begin_record(&mut self, at: usize) {
        self.start = at;
        self.scan = at;
        self.state = QuoteState::Unquoted;
        self.quoted = false;
    }

    /// Moves to the first byte of a record, past a byte order mark and line ends. `\r\n` needs no special case, because
    /// its `\n` counts as a blank line.
    fn seek_record(&mut self) -> bool {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        if self.scan > self.start {
            return true;
        }
        let mut skipped = 0;
        if self.phase == Phase::FileStart {
            if rest.starts_with(BYTE_ORDER_MARK) {
                skipped = BYTE_ORDER_MARK.len();
            } else if BYTE_ORDER_MARK.starts_with(rest) && !self.finished {
                return false;
            }
            self.phase = Phase::Splitting;
        }
        skipped += rest.iter().skip(skipped).take_while(|&&byte| byte == b'\n' || byte == b'\r').count();
        self.begin_record(self.start + skipped);
        self.start < self.buffer.len()
    }

    /// Continues the search for the end of the current record, in at most one byte more than the limit.
    fn find_end(&mut self) -> Option<RecordEnd> {
        let limit = self.start.saturating_add(self.max_record_bytes).saturating_add(1);
        let window = self.buffer.get(..limit).unwrap_or(&self.buffer);
        loop {
            let ahead = window.get(self.scan..).unwrap_or_default();
            match self.state {
                QuoteState::Unquoted => {
                    let Some(distance) = memchr3(QUOTE, b'\n', b'\r', ahead) else {
                        break;
                    };
                    let at = self.scan + distance;
                    if window.get(at) != Some(&QUOTE) {
                        return Some(RecordEnd::At(at));
                    }
                    let opens = at == self.start || window.get(at - 1) == Some(&self.delimiter);
                    self.scan = at + 1;
                    if opens {
                        self.state = QuoteState::Quoted;
                        self.quoted = true;
                    }
                }
                QuoteState::Quoted => {
                    let Some(distance) = memchr(QUOTE, ahead) else {
                        break;
                    };
                    self.scan += distance + 1;
                    self.state = QuoteState::AfterQuote;
                }
                QuoteState::AfterQuote => match ahead.first() {
                    None => break,
                    Some(&QUOTE) => {
                        self.scan += 1;
                        self.state = QuoteState::Quoted;
                    }
                    Some(_) => self.state = QuoteState::Unquoted,
                },
            }
        }
        self.scan = window.len();
        if window.len() == limit {
            Some(RecordEnd::Oversized)
        } else if self.finished {
            Some(RecordEnd::At(window.len()))
        } else {
            None
        }
    }

    /// Splits the record `start..end` into fields and returns their number.
    fn split(&mut self, end: usize) -> usize {
        let record = self.buffer.get_mut(..end).unwrap_or_default();
        let table = FieldTable { spans: &mut self.spans, count: 0 };
        table.fill_from(record, self.start, self.delimiter, self.quoted)
    }
}

impl PushParser for RowSplitter {
    fn feed(&mut self, block: &[u8]) {
        self.discard_returned();
        let mut block = block;
        if self.phase == Phase::Discarding {
            let dropped = memchr2(b'\n', b'\r', block);
            if dropped.is_some() {
                self.phase = Phase::Splitting;
            }
            let dropped = dropped.unwrap_or(block.len());
            self.base += dropped as u64;
            block = block.get(dropped..).unwrap_or_default();
        }
        let needed = self.buffer.len() + block.len();
        if needed > self.buffer.capacity() {
            // The buffer doubles, but never beyond the maximum that the protocol can need.
            let max_capacity = self.max_record_bytes.saturating_add(block.len());
            let new_capacity = needed.max(self.buffer.capacity().saturating_mul(2).min(max_capacity));
            self.buffer.reserve_exact(new_capacity - self.buffer.len());
        }
        self.buffer.extend_from_slice(block);
    }

    fn finish(&mut self) {
        self.finished = true;
    }
}

#[cfg(test)]
mod tests;
