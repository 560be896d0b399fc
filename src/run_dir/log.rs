//! Event log of a run directory.
//!
//! On a local disk a line is appended at once, so `tail -f` shows it. Objects on S3 cannot grow: lines are collected and
//! uploaded every few seconds, in numbered parts. A kill loses the lines since the last upload, and no reader depends on
//! them. A log that cannot be written never stops a run.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Directory, LocalDirectory};
use crate::objects::StoreError;

/// Time between two uploads.
const UPLOAD_EVERY: Duration = Duration::from_secs(5);
/// Size beyond which a part is complete and the next one begins.
const PART_BYTES: usize = 256 << 10;

/// Log of lines; clones write to the same one.
#[derive(Debug, Clone)]
pub struct Log {
    output: Arc<Mutex<Output>>,
}

#[derive(Debug)]
enum Output {
    File(File),
    Parts(Parts),
    /// Disabled by a failed write, which was reported.
    Off,
}

#[derive(Debug)]
struct Parts {
    directory: Directory,
    stem: String,
    number: u32,
    content: Vec<u8>,
    uploaded_bytes: usize,
    uploaded: Instant,
}

impl Log {
    /// Opens the log `STEM.jsonl` in a local directory.
    pub(super) fn local(directory: &LocalDirectory, stem: &str) -> Result<Self, StoreError> {
        let path = directory.path(&format!("{stem}.jsonl"));
        let failed = |error| StoreError::io(&path, "written", error);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        Ok(Self { output: Arc::new(Mutex::new(Output::File(file))) })
    }

    /// Opens a log of the parts `STEM-0000.jsonl`, … in a remote directory.
    pub(super) fn remote(directory: Directory, stem: &str) -> Self {
        let parts = Parts {
            directory,
            stem: stem.to_owned(),
            number: 0,
            content: Vec::new(),
            uploaded_bytes: 0,
            uploaded: Instant::now(),
        };
        Self { output: Arc::new(Mutex::new(Output::Parts(parts))) }
    }

    /// Appends a line, given without its line feed.
    pub fn append_line(&self, text: &str) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match &mut *output {
            // One call, so that lines of other threads do not interleave.
            Output::File(file) => file.write_all(format!("{text}\n").as_bytes()).map_err(|error| error.to_string()),
            Output::Parts(parts) => {
                parts.content.extend_from_slice(text.as_bytes());
                parts.content.push(b'\n');
                Ok(())
            }
            Output::Off => Ok(()),
        };
        if let Err(error) = written {
            tracing::warn!(error, "events are no longer written");
            *output = Output::Off;
        }
    }

    /// Uploads the lines if an upload is due, or in any case with `all`. It may wait for the store. A local log needs none.
    pub fn flush(&self, all: bool) {
        let (directory, name, content) = {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            let Output::Parts(parts) = &mut *output else { return };
            let due = all || parts.uploaded.elapsed() >= UPLOAD_EVERY;
            if !due || parts.content.len() == parts.uploaded_bytes {
                return;
            }
            parts.uploaded = Instant::now();
            (parts.directory.clone(), format!("{}-{:04}.jsonl", parts.stem, parts.number), parts.content.clone())
        };
        // Without the lock, so that nobody who appends lines waits for the store.
        let posted = directory.write_volatile(&name, &content);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        match (posted, &mut *output) {
            (Ok(()), Output::Parts(parts)) if content.len() >= PART_BYTES => {
                parts.content.drain(..content.len());
                (parts.number, parts.uploaded_bytes) = (parts.number + 1, 0);
            }
            (Ok(()), Output::Parts(parts)) => parts.uploaded_bytes = content.len(),
            (Ok(()), _) => {}
            (Err(error), _) => tracing::debug!(%error, "events were not uploaded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_lines_are_visible_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::local(&LocalDirectory::read_only(dir.path()), "events/one").unwrap();
        log.append_line("{}");
        log.clone().append_line("[]");
        assert_eq!(std::fs::read_to_string(dir.path().join("events/one.jsonl")).unwrap(), "{}\n[]\n");
    }

    #[test]
    fn large_part_ends_and_next_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let directory: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let log = Log::remote(directory.clone(), "events/one");
        log.append_line(&"x".repeat(PART_BYTES));
        log.flush(false);
        assert!(directory.list("events").unwrap().is_empty(), "not due yet");
        log.flush(true);
        log.append_line("y");
        log.flush(true);
        log.append_line("z");
        log.flush(true);
        assert_eq!(directory.list("events").unwrap(), ["one-0000.jsonl", "one-0001.jsonl"]);
        assert_eq!(directory.read("events/one-0001.jsonl").unwrap().unwrap(), b"y\nz\n");
    }
}
