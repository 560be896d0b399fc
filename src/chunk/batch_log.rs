//! [`BatchLog`]: log of device results on scratch disk, batch by batch. A kill then costs only seconds of work.
//!
//! A chunk of features is committed as a whole, and so is the ranking of all test images. Either takes a second on a
//! GPU, but minutes on a laptop's CPU. Once an artefact has taken [`LOG_AFTER`], each batch is appended to a file. A
//! resumed run reads the batches back, bit for bit equal to a new computation. Each record carries a hash of its inputs
//! and a checksum. A record that a crash cut short ends the file.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use twox_hash::XxHash3_64;

use crate::objects::StoreError;

/// Computing time of an artefact after which its batches are logged.
const LOG_AFTER: Duration = Duration::from_secs(2);
/// Size of a record's header: hash of the inputs, number of values, checksum of the values.
const HEADER_BYTES: usize = 24;

/// Batches of an artefact that an earlier process logged.
#[derive(Debug)]
pub(crate) struct LoggedBatches(VecDeque<Vec<f32>>);

impl LoggedBatches {
    /// Removes and returns the next batch, if it was logged and has `values` numbers.
    pub(crate) fn next_batch(&mut self, values: usize) -> Option<Vec<f32>> {
        self.0.pop_front().filter(|batch| batch.len() == values)
    }
}

/// Log of the batches of one artefact.
#[derive(Debug)]
pub(crate) struct BatchLog {
    path: PathBuf,
    key: u64,
    /// Batches that are not written yet.
    pending: Vec<Vec<f32>>,
    /// Length of the undamaged part of the file.
    bytes: u64,
    file: Option<File>,
    started: Instant,
}

impl BatchLog {
    /// Opens the log of an artefact. Returns the batches that were logged for equal `inputs`, a string that names
    /// everything the values depend on.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub(crate) fn open(path: PathBuf, inputs: &str) -> Result<(LoggedBatches, Self), StoreError> {
        let key = XxHash3_64::oneshot(inputs.as_bytes());
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io(&path, "read", error)),
        };
        let (logged, bytes) = parse(&content, key);
        let (pending, started) = (Vec::new(), Instant::now());
        Ok((LoggedBatches(logged), Self { path, key, pending, bytes, file: None, started }))
    }

    /// Appends a batch. Nothing is written before the artefact has taken [`LOG_AFTER`].
    ///
    /// # Errors
    /// When the disk is full or the write fails.
    pub(crate) fn append(&mut self, values: &[f32]) -> Result<(), StoreError> {
        self.pending.push(values.to_vec());
        if self.started.elapsed() < LOG_AFTER && self.bytes == 0 {
            return Ok(());
        }
        let path = self.path.clone();
        self.write().map_err(|error| StoreError::io(&path, "written", error))
    }

    /// Removes the log of an artefact that is complete.
    ///
    /// # Errors
    /// When the file exists and cannot be removed.
    pub(crate) fn remove(self) -> Result<(), StoreError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io(&self.path, "removed", error))
            }
            _ => Ok(()),
        }
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

/// Parses the undamaged records at the start of a file. Returns their values and their size in bytes.
fn parse(content: &[u8], key: u64) -> (VecDeque<Vec<f32>>, u64) {
    let mut batches = VecDeque::new();
    let mut rest = content;
    while let Some((head, tail)) = rest.split_at_checked(HEADER_BYTES) {
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

/// Returns the path of a feature chunk's log, next to its pixel file.
pub(crate) fn log_path(pixels: &Path) -> PathBuf {
    pixels.with_extension("features")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::fuzz::config(crate::fuzz::CHEAP_CASES))]

        #[test]
        fn damaged_file_yields_its_undamaged_start(which: prop::sample::Index, all in crate::fuzz::damage()) {
            let batches: Vec<Vec<f32>> = (1..4).map(|size| vec![size as f32; size * 9]).collect();
            let file: Vec<u8> = batches.iter().flat_map(|batch| record(batch, 7)).collect();
            let other: Vec<u8> = batches.iter().flat_map(|batch| record(batch, 8)).collect();
            let data = crate::fuzz::damaged(&[file, other], which, &all);
            let (found, bytes) = crate::fuzz::bounded(&data, 64 * 1024, || parse(&data, 7))?;
            prop_assert!(bytes <= data.len() as u64);
            prop_assert!(found.iter().all(|batch| batches.contains(batch)));
        }

        #[test]
        fn truncated_or_damaged_log_yields_a_prefix(
            sizes in prop::collection::vec(1usize..40, 1..8), cut in 0.0f64..1.0, flip: Option<prop::sample::Index>,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.features");
            let batches: Vec<Vec<f32>> =
                sizes.iter().enumerate().map(|(batch, size)| (0..*size).map(|i| (batch * 100 + i) as f32 * 0.1).collect()).collect();
            let (_, mut log) = BatchLog::open(path.clone(), "g 3").unwrap();
            log.started -= LOG_AFTER;
            for batch in &batches {
                log.append(batch).unwrap();
            }
            let mut content = std::fs::read(&path).unwrap();
            let end = (content.len() as f64 * cut) as usize;
            content.truncate(end);
            if let (Some(index), false) = (flip, content.is_empty()) {
                let at = index.index(content.len());
                content[at] ^= 4;
            }
            std::fs::write(&path, &content).unwrap();
            let (mut logged, mut again) = BatchLog::open(path.clone(), "g 3").unwrap();
            let count = logged.0.len();
            for batch in &batches[..count] {
                prop_assert_eq!(logged.next_batch(batch.len()), Some(batch.clone()));
            }
            for batch in &batches[count..] {
                prop_assert_eq!(logged.next_batch(batch.len()), None);
                again.started -= LOG_AFTER;
                again.append(batch).unwrap();
            }
            prop_assert_eq!(Vec::from(BatchLog::open(path.clone(), "g 3").unwrap().0.0), batches);
            prop_assert!(BatchLog::open(path, "other").unwrap().0.0.is_empty());
        }
    }
}
