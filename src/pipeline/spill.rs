//! What the device computes for an artefact that takes long, kept on scratch disk batch by batch, so that a kill costs seconds and
//! not the artefact.
//!
//! A chunk of features is committed whole, and so is the ranking of all test images. On a GPU that is every second or so; on a
//! laptop's CPU it may be every few minutes. From the second second on, each batch's values are appended to a file. Whoever goes
//! on takes them from there, bit for bit what the device would compute again. A record that a crash left half written ends
//! the file: each carries what it was made from and a checksum.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use twox_hash::XxHash3_64;

use crate::objects::StoreError;

/// Time that a chunk may take before its features are kept.
const KEPT_AFTER: Duration = Duration::from_secs(2);
/// Bytes before the values of a record: a hash of what they were made from, their number, their checksum.
const HEAD_BYTES: usize = 24;

/// The values of an artefact that an earlier process computed, batch by batch.
#[derive(Debug)]
pub(super) struct Known(VecDeque<Vec<f32>>);

impl Known {
    /// The next batch's values, if they are known: `values` numbers.
    pub(super) fn take(&mut self, values: usize) -> Option<Vec<f32>> {
        self.0.pop_front().filter(|batch| batch.len() == values)
    }
}

/// Keeps the values of one artefact.
#[derive(Debug)]
pub(super) struct Spill {
    path: PathBuf,
    key: u64,
    /// Batches that are not in the file yet.
    pending: Vec<Vec<f32>>,
    /// Sound bytes of the file.
    bytes: u64,
    file: Option<File>,
    started: Instant,
}

impl Spill {
    /// Reads what an earlier process kept of the artefact; `made_from` names everything that the values depend on.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(super) fn open(path: PathBuf, made_from: &str) -> Result<(Known, Self), StoreError> {
        let key = XxHash3_64::oneshot(made_from.as_bytes());
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io(&path, "read", error)),
        };
        let (known, bytes) = parse(&content, key);
        let (pending, started) = (Vec::new(), Instant::now());
        Ok((Known(known), Self { path, key, pending, bytes, file: None, started }))
    }

    /// Keeps a batch's values, if the artefact takes long.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub(super) fn keep(&mut self, features: &[f32]) -> Result<(), StoreError> {
        self.pending.push(features.to_vec());
        if self.started.elapsed() < KEPT_AFTER && self.bytes == 0 {
            return Ok(());
        }
        let path = self.path.clone();
        self.write().map_err(|error| StoreError::io(&path, "written", error))
    }

    fn write(&mut self) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                file.set_len(self.bytes)?;
                none.insert(file)
            }
        };
        for batch in self.pending.drain(..) {
            let record = record(&batch, self.key);
            file.write_all(&record)?;
            self.bytes += record.len() as u64;
        }
        Ok(())
    }
}

fn record(batch: &[f32], key: u64) -> Vec<u8> {
    let values: Vec<u8> = batch.iter().flat_map(|value| value.to_le_bytes()).collect();
    let head = [key, batch.len() as u64, XxHash3_64::oneshot(&values)];
    head.into_iter().flat_map(u64::to_le_bytes).chain(values).collect()
}

/// The sound records at the start of the file, and the bytes that they take.
fn parse(content: &[u8], key: u64) -> (VecDeque<Vec<f32>>, u64) {
    let mut batches = VecDeque::new();
    let mut rest = content;
    while let Some((head, tail)) = rest.split_at_checked(HEAD_BYTES) {
        let word = |index: usize| head[8 * index..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let bytes = usize::try_from(word(1)).ok().and_then(|values| values.checked_mul(4));
        let Some((values, after)) = bytes.and_then(|bytes| tail.split_at_checked(bytes)) else { break };
        if word(0) != key || word(2) != XxHash3_64::oneshot(values) {
            break;
        }
        batches.push_back(values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect());
        rest = after;
    }
    (batches, (content.len() - rest.len()) as u64)
}

/// Name of the file beside a chunk's pixels.
pub(super) fn beside(pixels: &Path) -> PathBuf {
    pixels.with_extension("features")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::fuzz::config(crate::fuzz::CHEAP_CASES))]

        #[test]
        fn damaged_files_give_what_is_sound_of_them(which: prop::sample::Index, all in crate::fuzz::damage()) {
            let batches: Vec<Vec<f32>> = (1..4).map(|size| vec![size as f32; size * 9]).collect();
            let file: Vec<u8> = batches.iter().flat_map(|batch| record(batch, 7)).collect();
            let other: Vec<u8> = batches.iter().flat_map(|batch| record(batch, 8)).collect();
            let data = crate::fuzz::damaged(&[file, other], which, &all);
            let (found, bytes) = crate::fuzz::bounded(&data, 64 * 1024, || parse(&data, 7))?;
            prop_assert!(bytes <= data.len() as u64);
            prop_assert!(found.iter().all(|batch| batches.contains(batch)));
        }

        #[test]
        fn whatever_a_crash_leaves_gives_a_prefix_of_what_was_kept(
            sizes in prop::collection::vec(1usize..40, 1..8), cut in 0.0f64..1.0, flip: Option<prop::sample::Index>,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.features");
            let batches: Vec<Vec<f32>> =
                sizes.iter().enumerate().map(|(batch, size)| (0..*size).map(|i| (batch * 100 + i) as f32 * 0.1).collect()).collect();
            let (_, mut spill) = Spill::open(path.clone(), "g 3").unwrap();
            spill.started -= KEPT_AFTER;
            for batch in &batches {
                spill.keep(batch).unwrap();
            }
            let mut content = std::fs::read(&path).unwrap();
            let end = (content.len() as f64 * cut) as usize;
            content.truncate(end);
            if let (Some(index), false) = (flip, content.is_empty()) {
                let at = index.index(content.len());
                content[at] ^= 4;
            }
            std::fs::write(&path, &content).unwrap();
            let (mut known, mut again) = Spill::open(path.clone(), "g 3").unwrap();
            let count = known.0.len();
            for batch in &batches[..count] {
                prop_assert_eq!(known.take(batch.len()), Some(batch.clone()));
            }
            for batch in &batches[count..] {
                prop_assert_eq!(known.take(batch.len()), None);
                again.started -= KEPT_AFTER;
                again.keep(batch).unwrap();
            }
            prop_assert_eq!(Vec::from(Spill::open(path.clone(), "g 3").unwrap().0.0), batches);
            prop_assert!(Spill::open(path, "other").unwrap().0.0.is_empty());
        }
    }
}
