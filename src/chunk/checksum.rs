//! A file's checksum: taken while the file is written, kept in the entry that commits it, compared when it is read back.
//!
//! Sizes tell a file that was cut; only its bytes tell one that was changed, and a changed pixel or weight would never be
//! noticed otherwise.

use std::fmt;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{Read as _, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::ChunkError;
use crate::store::StoreError;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// XXH3 of a file's bytes; 16 hexadecimal digits in JSON, whose numbers are not exact to 64 bits everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Checksum(u64);

impl fmt::Display for Checksum {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
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
        u64::from_str_radix(&text, 16).map(Self)
    }
}

/// Refuses a file that does not have the checksum with which it was committed; any will do where none was kept.
///
/// # Errors
/// When the file cannot be read, or is not what was written.
pub fn verify(path: &Path, named: &str, expected: Option<Checksum>) -> Result<(), ChunkError> {
    let Some(expected) = expected else { return Ok(()) };
    let mut file = File::open(path).map_err(|error| StoreError::io(path, "opened", error))?;
    let (mut hash, mut block) = (XxHash3_64::new(), vec![0; BLOCK_BYTES]);
    loop {
        match file.read(&mut block).map_err(|error| StoreError::io(path, "read", error))? {
            0 => break,
            read => hash.write(&block[..read]),
        }
    }
    if Checksum(hash.finish()) == expected {
        return Ok(());
    }
    Err(ChunkError::damaged(named, "chunk", "its bytes are not those that were written"))
}

/// Hashes what passes through on its way to a file.
pub(super) struct Summing<W> {
    inner: W,
    hash: XxHash3_64,
}

impl<W: Write> Summing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hash: XxHash3_64::new() }
    }

    pub(super) fn get(&self) -> &W {
        &self.inner
    }

    /// Gives back the file, and the sum of what passed.
    pub(super) fn end(self) -> (W, Checksum) {
        (self.inner, Checksum(self.hash.finish()))
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.write(&bytes[..written]);
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
        let (_, sum) = file.end();
        verify(&path, "file", Some(sum)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2 << 20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        verify(&path, "file", None).unwrap();
        let error = verify(&path, "the/file", Some(sum)).unwrap_err().to_string();
        assert!(error.contains("`the/file`") && error.contains("remove it and run again"), "{error}");
        let json = serde_json::to_string(&sum).unwrap();
        assert_eq!((json.len(), serde_json::from_str::<Checksum>(&json).unwrap()), (18, sum));
    }
}
