//! Checksum of a chunk file: computed while the file is written, stored in the entry that commits it, and compared when
//! it is read.
//!
//! The size reveals a truncated file. Only the checksum reveals changed bytes; otherwise a changed pixel or weight
//! would go unnoticed.

use std::fmt;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{Read as _, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::ChunkError;
use crate::objects::StoreError;

/// Number of bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Size of a segment in bytes; the last one of a file may be shorter.
const SEGMENT_BYTES: usize = 64 << 10;
/// Prefix of segment checksums, which whole-file checksums lack.
const SEGMENTS_PREFIX: &str = "segments:";

/// XXH3 checksum of a file. JSON stores it as hexadecimal text, because JSON numbers are not exact to 64 bits
/// everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Checksum {
    /// XXH3 of the concatenated XXH3 hashes of all segments, 8 bytes each, little-endian.
    Segments(u64),
    /// XXH3 of all bytes, as written by versions of this program before 2026-11.
    Whole(u64),
}

impl fmt::Display for Checksum {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segments(sum) => write!(out, "{SEGMENTS_PREFIX}{sum:016x}"),
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
        match text.strip_prefix(SEGMENTS_PREFIX) {
            Some(sum) => u64::from_str_radix(sum, 16).map(Self::Segments),
            None => u64::from_str_radix(&text, 16).map(Self::Whole),
        }
    }
}

/// Verifies that a file has the checksum with which it was committed. Without an expected checksum, any file is
/// accepted.
///
/// # Errors
/// Fails if the file cannot be read or differs from what was written.
pub fn verify(path: &Path, named: &str, expected: Option<Checksum>) -> Result<(), ChunkError> {
    let Some(expected) = expected else { return Ok(()) };
    let mut file = File::open(path).map_err(|error| StoreError::io(path, "opened", error))?;
    let (mut segments, mut whole, mut block) = (SegmentHasher::default(), XxHash3_64::new(), vec![0; BLOCK_BYTES]);
    loop {
        match file.read(&mut block).map_err(|error| StoreError::io(path, "read", error))? {
            0 => break,
            read if matches!(expected, Checksum::Segments(_)) => segments.add(&block[..read]),
            read => whole.write(&block[..read]),
        }
    }
    let found = match expected {
        Checksum::Segments(_) => segments.finish(),
        Checksum::Whole(_) => Checksum::Whole(whole.finish()),
    };
    if found == expected {
        return Ok(());
    }
    Err(ChunkError::damaged(named, "chunk", "its checksum does not match"))
}

/// Incremental checksum.
#[derive(Default)]
struct SegmentHasher {
    /// Hash of the segment hashes.
    hash: XxHash3_64,
    /// Bytes of the unfinished segment.
    rest: Vec<u8>,
}

impl SegmentHasher {
    fn add(&mut self, mut bytes: &[u8]) {
        if !self.rest.is_empty() {
            let (more, behind) = bytes.split_at(bytes.len().min(SEGMENT_BYTES - self.rest.len()));
            self.rest.extend_from_slice(more);
            bytes = behind;
            if self.rest.len() == SEGMENT_BYTES {
                self.push_hash(XxHash3_64::oneshot(&self.rest));
                self.rest.clear();
            }
        }
        let segments = bytes.chunks_exact(SEGMENT_BYTES);
        let behind = segments.remainder();
        for segment in segments {
            self.push_hash(XxHash3_64::oneshot(segment));
        }
        self.rest.extend_from_slice(behind);
    }

    fn push_hash(&mut self, sum: u64) {
        self.hash.write(&sum.to_le_bytes());
    }

    fn finish(mut self) -> Checksum {
        if !self.rest.is_empty() {
            self.push_hash(XxHash3_64::oneshot(&self.rest));
        }
        Checksum::Segments(self.hash.finish())
    }
}

/// Writer that computes the checksum of what it writes.
pub(super) struct ChecksumWriter<W> {
    inner: W,
    sum: SegmentHasher,
}

impl<W: Write> ChecksumWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, sum: SegmentHasher::default() }
    }

    pub(super) fn get(&self) -> &W {
        &self.inner
    }

    /// Returns the checksum of what was written.
    pub(super) fn finish(self) -> Checksum {
        self.sum.finish()
    }
}

impl<W: Write> Write for ChecksumWriter<W> {
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
    fn changed_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = ChecksumWriter::new(File::create(&path).unwrap());
        file.write_all(&vec![7; 3 << 20]).unwrap();
        let sum = file.finish();
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
    fn checksums_of_earlier_versions_are_accepted() {
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
    fn checksum_is_independent_of_write_sizes() {
        let bytes: Vec<u8> = (0..5 * SEGMENT_BYTES + 77).map(|at| (at ^ (at >> 7)) as u8).collect();
        for len in [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, bytes.len()] {
            let mut outer = XxHash3_64::new();
            bytes[..len].chunks(SEGMENT_BYTES).for_each(|one| outer.write(&XxHash3_64::oneshot(one).to_le_bytes()));
            let expected = Checksum::Segments(outer.finish());
            for piece in [1000, SEGMENT_BYTES, 3 * SEGMENT_BYTES - 1, bytes.len()] {
                let mut file = ChecksumWriter::new(Vec::new());
                bytes[..len].chunks(piece).for_each(|piece| file.write_all(piece).unwrap());
                assert_eq!(file.finish(), expected, "{len} bytes, {piece} at a time");
            }
        }
    }
}
