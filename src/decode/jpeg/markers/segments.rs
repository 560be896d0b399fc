//! Splits a JPEG into marker segments, as libjpeg finds them.

use std::ops::Range;

use super::{TRUNCATED, corrupt};
use crate::decode::error::DecodeError;

/// A marker segment, and the entropy-coded data behind it if it starts a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::decode::jpeg) struct Segment {
    pub(in crate::decode::jpeg) marker: u8,
    /// Content, without the length.
    pub(in crate::decode::jpeg) body: Range<usize>,
    /// End of the entropy-coded data; the end of the body where there is none.
    pub(in crate::decode::jpeg) scan_end: usize,
    /// True if there are restart markers, stray bytes or meaningless markers before the segment or in its scan.
    pub(super) irregular: bool,
}

/// The segments of a file, up to the end-of-image marker.
pub(in crate::decode::jpeg) struct Segments<'a> {
    data: &'a [u8],
    at: usize,
    ended: bool,
}

impl<'a> Segments<'a> {
    pub(in crate::decode::jpeg) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 2, ended: false }
    }

    fn read_segment(&mut self) -> Result<Segment, DecodeError> {
        let mut irregular = false;
        let marker = loop {
            let marker = next_marker(self.data, self.at).ok_or(TRUNCATED)?;
            irregular |= marker.start != self.at;
            self.at = marker.end;
            if !stands_alone(marker.code) {
                break marker.code;
            }
            irregular = true;
        };
        if marker == 0xd9 || marker == 0xd8 {
            self.ended = true;
            return Ok(Segment { marker, body: self.at..self.at, scan_end: self.at, irregular });
        }
        let length = self.data.get(self.at..self.at + 2).ok_or(TRUNCATED)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length < 2 {
            return Err(corrupt("a segment is shorter than its length field"));
        }
        let body = self.at + 2..self.at + length;
        if body.end > self.data.len() {
            return Err(TRUNCATED);
        }
        self.at = body.end;
        if marker == 0xda {
            loop {
                let next = next_marker(self.data, self.at).ok_or(TRUNCATED)?;
                if !stands_alone(next.code) {
                    self.at = next.start;
                    break;
                }
                self.at = next.end;
                irregular = true;
            }
        }
        Ok(Segment { marker, scan_end: self.at, body, irregular })
    }
}

impl Iterator for Segments<'_> {
    type Item = Result<Segment, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let segment = self.read_segment();
        self.ended |= segment.is_err();
        Some(segment)
    }
}

/// True for markers without a length: TEM, restart markers, and reserved codes, which libjpeg skips as damage.
fn stands_alone(code: u8) -> bool {
    matches!(code, 0x01..=0xbf | 0xd0..=0xd7 | 0xf0..=0xfd)
}

/// A marker: offsets of its 0xFF and behind its code.
struct Marker {
    code: u8,
    start: usize,
    end: usize,
}

/// Finds the next marker as libjpeg's `next_marker` does, with entropy-coded data and stray bytes skipped alike: 0xFF, any
/// number of fill bytes 0xFF, and a code that is not 0.
fn next_marker(data: &[u8], mut at: usize) -> Option<Marker> {
    loop {
        let start = at + memchr::memchr(0xff, data.get(at..)?)?;
        at = start + 1;
        while data.get(at)? == &0xff {
            at += 1;
        }
        let code = *data.get(at)?;
        at += 1;
        if code != 0 {
            return Some(Marker { code, start, end: at });
        }
    }
}
