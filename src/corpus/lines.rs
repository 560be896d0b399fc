//! Splits blocks of bytes into lines of bounded length.

use memchr::memchr;

use crate::corpus::rows::{PushParser, ResumePoint};

/// Buffers up to this size are kept when lines are short again.
const RETAINED_BUFFER_BYTES: usize = 1 << 20;

/// One line of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its end.
    Text {
        /// Number of the line; blank lines are not counted.
        number: u64,
        /// Content.
        text: &'a [u8],
    },
    /// A line over the limit. It was dropped.
    Oversized {
        /// Number of the line.
        number: u64,
        /// Offset of its first byte in the decompressed file.
        byte_offset: u64,
    },
}

/// Splits the bytes of one file into lines. Blank lines are skipped and not counted.
///
/// Call `feed`, then `next` until it returns `None`, and repeat. The buffer then holds at most one line and one block.
#[derive(Debug)]
pub struct Lines {
    max_line_bytes: usize,
    buffer: Vec<u8>,
    /// File offset of the first byte in the buffer.
    base: u64,
    /// Start of the current line in the buffer.
    start: usize,
    /// Bytes before this one hold no line end.
    scanned: usize,
    /// True if the rest of an oversized line is being dropped.
    dropping: bool,
    finished: bool,
    next_number: u64,
    /// True if the line returned last was dropped. How much of it was read depends on the blocks.
    last_dropped: bool,
}

impl Lines {
    /// Creates a splitter whose first block starts at `point`.
    pub fn new(max_line_bytes: usize, point: ResumePoint) -> Self {
        Self {
            max_line_bytes,
            buffer: Vec::new(),
            base: point.byte_offset,
            start: 0,
            scanned: 0,
            dropping: false,
            finished: false,
            next_number: point.number,
            last_dropped: false,
        }
    }

    /// Returns the limit of a line.
    pub fn max_line_bytes(&self) -> usize {
        self.max_line_bytes
    }

    /// Returns where the next line begins, or `None` after a line that was dropped.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        (!self.last_dropped)
            .then(|| ResumePoint { byte_offset: self.base + self.start as u64, number: self.next_number })
    }

    /// Returns the next line; `None` if another block is needed or the file has ended.
    #[expect(clippy::should_implement_trait, reason = "the line borrows from the buffer, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Option<Line<'_>> {
        loop {
            let from = self.scanned.max(self.start);
            let ahead = self.buffer.get(from..).unwrap_or_default();
            let (end, next) = match memchr(b'\n', ahead) {
                Some(distance) => (from + distance, from + distance + 1),
                None if self.finished && self.start < self.buffer.len() => (self.buffer.len(), self.buffer.len()),
                None => {
                    self.scanned = self.buffer.len();
                    if self.buffer.len() - self.start <= self.max_line_bytes {
                        return None;
                    }
                    // The line is too long, and its end is not in the buffer: drop everything up to that end.
                    let byte_offset = self.base + self.start as u64;
                    self.start = self.buffer.len();
                    if std::mem::replace(&mut self.dropping, true) {
                        return None;
                    }
                    self.last_dropped = true;
                    return Some(Line::Oversized { number: self.count_line(), byte_offset });
                }
            };
            let start = std::mem::replace(&mut self.start, next);
            if std::mem::take(&mut self.dropping) {
                continue;
            }
            let line = self.buffer.get(start..end).unwrap_or_default();
            // The length counts first, because the end of a long line may not be in the buffer yet.
            self.last_dropped = line.len() > self.max_line_bytes;
            if !self.last_dropped && line.trim_ascii().is_empty() {
                continue;
            }
            if line.len() > self.max_line_bytes {
                let byte_offset = self.base + start as u64;
                return Some(Line::Oversized { number: self.count_line(), byte_offset });
            }
            let number = self.count_line();
            return Some(Line::Text { number, text: self.buffer.get(start..end).unwrap_or_default() });
        }
    }

    /// Shrinks a buffer that is much larger than its content.
    pub fn trim(&mut self) {
        self.discard_returned();
        if self.buffer.capacity() > RETAINED_BUFFER_BYTES.max(2 * self.buffer.len()) {
            self.buffer.shrink_to_fit();
        }
    }

    fn count_line(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn discard_returned(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.base += self.start as u64;
            self.scanned = self.scanned.saturating_sub(self.start);
            self.start = 0;
        }
    }
}

impl PushParser for Lines {
    fn feed(&mut self, block: &[u8]) {
        self.discard_returned();
        let needed = self.buffer.len() + block.len();
        if needed > self.buffer.capacity() {
            // The buffer doubles, but never beyond the maximum that the protocol can need.
            let most = self.max_line_bytes.saturating_add(block.len());
            let capacity = needed.max(self.buffer.capacity().saturating_mul(2).min(most));
            self.buffer.reserve_exact(capacity - self.buffer.len());
        }
        self.buffer.extend_from_slice(block);
    }

    fn finish(&mut self) {
        self.finished = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(text: &[u8], limit: usize, block: usize) -> Vec<(u64, Option<Vec<u8>>)> {
        let mut lines = Lines::new(limit, ResumePoint { byte_offset: 0, number: 0 });
        let mut seen = Vec::new();
        let mut pull = |lines: &mut Lines| {
            while let Some(line) = lines.next() {
                seen.push(match line {
                    Line::Text { number, text } => (number, Some(text.to_vec())),
                    Line::Oversized { number, .. } => (number, None),
                });
            }
        };
        for block in text.chunks(block) {
            lines.feed(block);
            pull(&mut lines);
        }
        lines.finish();
        pull(&mut lines);
        seen
    }

    #[test]
    fn long_line_costs_one_row() {
        let text = b"one\n\n \nlonger than ten bytes\ntwo\nlast";
        for block in 1..40 {
            let seen = read_all(text, 10, block);
            let expected =
                [(0, Some(b"one".to_vec())), (1, None), (2, Some(b"two".to_vec())), (3, Some(b"last".to_vec()))];
            assert_eq!(seen, expected, "blocks of {block}");
        }
    }

    proptest! {
        #[test]
        fn lines_are_independent_of_blocks(text in "[ab \n]{0,120}", limit in 1usize..12, block in 1usize..20) {
            let whole = read_all(text.as_bytes(), limit, 1000);
            prop_assert_eq!(read_all(text.as_bytes(), limit, block), whole);
        }
    }
}
