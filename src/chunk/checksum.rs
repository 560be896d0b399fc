//! A file's checksum: taken while the file is written, kept in the entry that commits it, compared when it is read back.
//!
//! Sizes tell a file that was cut; only its bytes tell one that was changed, and a changed pixel or weight would never be
//! noticed otherwise. It is a sum of sums of segments, so that whoever makes a segment can sum it while a processor still has it.

use std::fmt;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{Read as _, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::ChunkError;
use crate::objects::StoreError;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of a segment; a file's last is shorter mostly.
const SEGMENT_BYTES: usize = 64 << 10;
/// What tells sums of segments from those of whole files.
const OF_SEGMENTS: &str = "segments:";

/// XXH3 of a file; in JSON hexadecimal, as numbers there are not exact to 64 bits everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Checksum {
    /// Of the XXH3 of each segment, in 8 bytes each, little end first.
    Segments(u64),
    /// Of the bytes, as versions of this program up to 2026-11 have it.
    Whole(u64),
}

impl fmt::Display for Checksum {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segments(sum) => write!(out, "{OF_SEGMENTS}{sum:016x}"),
            Self::Whole(sum) => write!(out, "{sum:016x}"),
        }
    }
}

impl From<Checksum> for String {
    fn from(sum: Checksum) -> Self {
        sum.to_string()
    }
}

impl TryFrom<String> for Checksum {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix(OF_SEGMENTS) {
            Some(sum) => u64::from_str_radix(sum, 16).map(Self::Segments),
            None => u64::from_str_radix(&text, 16).map(Self::Whole),
        }
    }
}

/// Refuses a file that does not have the checksum with which it was committed; any will do where none was kept.
///
/// # Errors
/// When the file cannot be read, or is not what was written.
pub fn verify(path: &Path, named: &str, expected: Option<Checksum>) -> Result<(), ChunkError> {
    let Some(expected) = expected else { return Ok(()) };
    let mut file = File::open(path).map_err(|error| StoreError::io(path, "opened", error))?;
    let (mut segments, mut whole, mut block) = (Sum::default(), XxHash3_64::new(), vec![0; BLOCK_BYTES]);
    loop {
        match file.read(&mut block).map_err(|error| StoreError::io(path, "read", error))? {
            0 => break,
            read if matches!(expected, Checksum::Segments(_)) => segments.add(&block[..read]),
            read => whole.write(&block[..read]),
        }
    }
    let found = match expected {
        Checksum::Segments(_) => segments.end(),
        Checksum::Whole(_) => Checksum::Whole(whole.finish()),
    };
    if found == expected {
        return Ok(());
    }
    Err(ChunkError::damaged(named, "chunk", "its bytes are not those that were written"))
}

/// Bytes so far.
#[derive(Default)]
struct Sum {
    /// Of the sums of whole segments.
    hash: XxHash3_64,
    /// The segment that is not whole yet.
    rest: Vec<u8>,
}

impl Sum {
    fn add(&mut self, mut bytes: &[u8]) {
        if !self.rest.is_empty() {
            let (more, behind) = bytes.split_at(bytes.len().min(SEGMENT_BYTES - self.rest.len()));
            self.rest.extend_from_slice(more);
            bytes = behind;
            if self.rest.len() == SEGMENT_BYTES {
                self.add_sum(XxHash3_64::oneshot(&self.rest));
                self.rest.clear();
            }
        }
        let segments = bytes.chunks_exact(SEGMENT_BYTES);
        let behind = segments.remainder();
        for segment in segments {
            self.add_sum(XxHash3_64::oneshot(segment));
        }
        self.rest.extend_from_slice(behind);
    }

    fn add_sum(&mut self, sum: u64) {
        self.hash.write(&sum.to_le_bytes());
    }

    fn end(mut self) -> Checksum {
        if !self.rest.is_empty() {
            self.add_sum(XxHash3_64::oneshot(&self.rest));
        }
        Checksum::Segments(self.hash.finish())
    }
}

/// Sums what passes through on its way to a file.
pub(super) struct Summing<W> {
    inner: W,
    sum: Sum,
}

impl<W: Write> Summing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, sum: Sum::default() }
    }

    pub(super) fn get(&self) -> &W {
        &self.inner
    }

    /// The sum of what passed.
    pub(super) fn end(self) -> Checksum {
        self.sum.end()
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_was_written_or_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = Summing::new(File::create(&path).unwrap());
        file.write_all(&vec![7; 3 << 20]).unwrap();
        let sum = file.end();
        verify(&path, "file", Some(sum)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2 << 20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        verify(&path, "file", None).unwrap();
        let error = verify(&path, "the/file", Some(sum)).unwrap_err().to_string();
        assert!(error.contains("`the/file`") && error.contains("remove it and run again"), "{error}");
        let json = serde_json::to_string(&sum).unwrap();
        assert_eq!((json.len(), serde_json::from_str::<Checksum>(&json).unwrap()), (27, sum));
    }

    #[test]
    fn sums_of_earlier_versions_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"wikicap").unwrap();
        let text = format!("{:016x}", XxHash3_64::oneshot(b"wikicap"));
        let sum: Checksum = serde_json::from_value(text.clone().into()).unwrap();
        assert_eq!((sum, sum.to_string()), (Checksum::Whole(XxHash3_64::oneshot(b"wikicap")), text));
        verify(&path, "file", Some(sum)).unwrap();
        std::fs::write(&path, b"wikicaps").unwrap();
        assert!(verify(&path, "file", Some(sum)).is_err());
    }

    #[test]
    fn however_a_file_comes_its_sum_is_that_of_its_segments() {
        let bytes: Vec<u8> = (0..5 * SEGMENT_BYTES + 77).map(|at| (at ^ (at >> 7)) as u8).collect();
        for len in [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, bytes.len()] {
            let mut outer = XxHash3_64::new();
            bytes[..len].chunks(SEGMENT_BYTES).for_each(|one| outer.write(&XxHash3_64::oneshot(one).to_le_bytes()));
            let expected = Checksum::Segments(outer.finish());
            for piece in [1000, SEGMENT_BYTES, 3 * SEGMENT_BYTES - 1, bytes.len()] {
                let mut file = Summing::new(Vec::new());
                bytes[..len].chunks(piece).for_each(|piece| file.write_all(piece).unwrap());
                assert_eq!(file.end(), expected, "{len} bytes, {piece} at a time");
            }
        }
    }
}
