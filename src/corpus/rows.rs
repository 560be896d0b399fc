//! Bytes in blocks of any size to records of fields, with the quoting rules of Python's `csv.reader`.
//!
//! The rules are those of the default dialect, read from a file opened with `newline=""`: a quote opens a
//! quoted field only as the field's first byte and is literal elsewhere; inside quotes, a doubled quote is a
//! quote, and delimiters and newlines are data; text after a closing quote continues the field; a record
//! ends at `\n`, `\r\n` or `\r`; the end of the input inside quotes ends the record. Blank lines, which
//! Python returns as empty lists, are skipped, and so is a UTF-8 byte order mark at the start.
//!
//! One rule is added: a record longer than `max_record_bytes` (a stray opening quote can swallow a whole
//! file) is reported as [`Kind::Oversized`], stands for its first physical line alone, and splitting goes on
//! after that line. Records, numbers and offsets do not depend on where the blocks were cut.
//!
//! How it is fast: the end of a record is found with one `memchr3` for quote, `\n` and `\r`. A quote opens a
//! field only directly after a delimiter or a record start, so the search never looks at delimiters, and is
//! resumed, never repeated, when a block ends inside a record. Fields are slices of the buffer; in a field with a
//! doubled quote, or with text after its closing quote, what follows is moved up in the buffer.
//!
//! Time is linear in the input unless it was built to be hostile: each oversized record costs a scan of
//! `max_record_bytes`.

use std::io::Read;

use memchr::memchr;
use memchr::memchr2;
use memchr::memchr3;

mod record;

use record::{FieldTable, Span};
pub use record::{Fields, Kind, Record};

const QUOTE: u8 = b'"';
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Size up to which a buffer is kept when rows are short again.
const KEEP_BYTES: usize = 1 << 20;

/// Bytes of an oversized line that are shown, enough for an image URL.
const HEAD_BYTES: usize = 4096;

/// The byte between two fields.
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

/// What takes a file's bytes block by block.
pub trait PushParser {
    /// Takes the next block. Rows should be pulled until there are none before the next call: what is not
    /// pulled stays in memory.
    fn feed(&mut self, block: &[u8]);

    /// Says that no further block follows, so that the last record may be given out.
    fn finish(&mut self);
}

/// Feeds at most one `block` from `reader`, or finishes the parser at the end of the input.
///
/// Returns whether more may follow.
///
/// # Errors
/// Those of the reader, interruptions excepted.
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

/// Where the search for the record's end stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unquoted,
    Quoted,
    /// Behind a quote in a quoted field: the next byte says whether it was doubled.
    AfterQuote,
}

/// What is done with the next bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// They may be a byte order mark.
    FileStart,
    Splitting,
    /// They are dropped up to the next line end, as the rest of a line that was too long.
    Discarding,
}

/// Splits the bytes of one file into records.
///
/// `feed`, then `next` until it returns `None`, and so on; after `finish`, `next` gives out the rest. With
/// that protocol the buffer holds at most `max_record_bytes` and one block.
#[derive(Debug)]
pub struct RowSplitter {
    delimiter: u8,
    max_record_bytes: usize,
    buffer: Vec<u8>,
    /// Offset in the file of the buffer's first byte.
    base: u64,
    /// Start of the current record in the buffer; what is before it was given out.
    start: usize,
    /// How far the search for its end has come.
    scan: usize,
    state: State,
    /// Whether the current record has a quoted field.
    quoted: bool,
    phase: Phase,
    finished: bool,
    next_number: u64,
    spans: Vec<Span>,
}

/// Where a file can be read on from: the start of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Offset of the record in the unpacked file.
    pub byte_offset: u64,
    /// The record's number.
    pub number: u64,
}

/// What the search found.
enum Found {
    /// A record up to here; behind it a line end or the end of the input.
    Record(usize),
    Oversized,
}

impl RowSplitter {
    /// A splitter at the start of a file. `max_record_bytes` counts a record as it stands in the file,
    /// quotes included and line end excluded.
    pub fn new(delimiter: Delimiter, max_record_bytes: usize) -> Self {
        Self {
            delimiter: delimiter.byte(),
            max_record_bytes,
            buffer: Vec::new(),
            base: 0,
            start: 0,
            scan: 0,
            state: State::Unquoted,
            quoted: false,
            phase: Phase::FileStart,
            finished: false,
            next_number: 0,
            spans: Vec::new(),
        }
    }

    /// A splitter whose first block starts at `mark`, for the same records from there on.
    pub fn resumed(delimiter: Delimiter, max_record_bytes: usize, mark: Mark) -> Self {
        Self {
            base: mark.byte_offset,
            next_number: mark.number,
            phase: Phase::Splitting,
            ..Self::new(delimiter, max_record_bytes)
        }
    }

    /// Where the record after the last one begins; `None` in the middle of a line that is dropped.
    pub fn mark(&self) -> Option<Mark> {
        (self.phase == Phase::Splitting)
            .then(|| Mark { byte_offset: self.base + self.start as u64, number: self.next_number })
    }

    /// The longest record that is given out, in bytes.
    pub fn max_record_bytes(&self) -> usize {
        self.max_record_bytes
    }

    /// Bytes that are held and not given out yet.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next record, or `None` when another block is needed or, after [`PushParser::finish`], when there
    /// is none left.
    #[expect(
        clippy::should_implement_trait,
        reason = "the record borrows from the splitter, which `Iterator` cannot say"
    )]
    pub fn next(&mut self) -> Option<Record<'_>> {
        if !self.seek_record() {
            return None;
        }
        let found = self.find_end()?;
        let number = self.next_number;
        self.next_number += 1;
        let byte_offset = self.base + self.start as u64;
        let first = self.start;
        match found {
            Found::Record(end) => {
                let count = self.split(end);
                self.begin_record(end);
                Some(Record {
                    number,
                    byte_offset,
                    kind: Kind::Ok(Fields { buffer: &self.buffer, spans: &self.spans, count }),
                })
            }
            Found::Oversized => {
                let line = self.buffer.get(first..).unwrap_or_default();
                let line_end = memchr2(b'\n', b'\r', line);
                if line_end.is_none() {
                    self.phase = Phase::Discarding;
                }
                let end = first + line_end.unwrap_or(line.len());
                self.begin_record(end);
                // Not up to `end`: how much of an endless line is at hand depends on the blocks.
                let shown = (end - first).min(HEAD_BYTES).min(self.max_record_bytes);
                let head = self.buffer.get(first..first + shown).unwrap_or_default();
                Some(Record { number, byte_offset, kind: Kind::Oversized { head } })
            }
        }
    }

    /// Frees a buffer that is much larger than what it holds.
    pub fn trim(&mut self) {
        self.drop_given_out();
        if self.buffer.capacity() > KEEP_BYTES.max(2 * self.buffer.len()) {
            self.buffer.shrink_to_fit();
        }
    }

    fn drop_given_out(&mut self) {
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
        self.state = State::Unquoted;
        self.quoted = false;
    }

    /// Moves to the first byte of a record, past a byte order mark and line ends. A `\r\n` needs no care of
    /// its own: its `\n` is a blank line.
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

    /// Looks on for the end of the current record, in at most one byte more than the limit.
    fn find_end(&mut self) -> Option<Found> {
        let limit = self.start.saturating_add(self.max_record_bytes).saturating_add(1);
        let window = self.buffer.get(..limit).unwrap_or(&self.buffer);
        loop {
            let ahead = window.get(self.scan..).unwrap_or_default();
            match self.state {
                State::Unquoted => {
                    let Some(distance) = memchr3(QUOTE, b'\n', b'\r', ahead) else {
                        break;
                    };
                    let at = self.scan + distance;
                    if window.get(at) != Some(&QUOTE) {
                        return Some(Found::Record(at));
                    }
                    let opens = at == self.start || window.get(at - 1) == Some(&self.delimiter);
                    self.scan = at + 1;
                    if opens {
                        self.state = State::Quoted;
                        self.quoted = true;
                    }
                }
                State::Quoted => {
                    let Some(distance) = memchr(QUOTE, ahead) else {
                        break;
                    };
                    self.scan += distance + 1;
                    self.state = State::AfterQuote;
                }
                State::AfterQuote => match ahead.first() {
                    None => break,
                    Some(&QUOTE) => {
                        self.scan += 1;
                        self.state = State::Quoted;
                    }
                    Some(_) => self.state = State::Unquoted,
                },
            }
        }
        self.scan = window.len();
        if window.len() == limit {
            Some(Found::Oversized)
        } else if self.finished {
            Some(Found::Record(window.len()))
        } else {
            None
        }
    }

    /// Fills the field table for the record `start..end`; returns how many fields it has.
    fn split(&mut self, end: usize) -> usize {
        let record = self.buffer.get_mut(..end).unwrap_or_default();
        let table = FieldTable { spans: &mut self.spans, count: 0 };
        table.fill(record, self.start, self.delimiter, self.quoted)
    }
}

impl PushParser for RowSplitter {
    fn feed(&mut self, block: &[u8]) {
        self.drop_given_out();
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
            // Doubling, as long as it stays within what the protocol needs at most.
            let most = self.max_record_bytes.saturating_add(block.len());
            let wanted = needed.max(self.buffer.capacity().saturating_mul(2).min(most));
            self.buffer.reserve_exact(wanted - self.buffer.len());
        }
        self.buffer.extend_from_slice(block);
    }

    fn finish(&mut self) {
        self.finished = true;
    }
}

#[cfg(test)]
mod tests;
