//! Lines that are added to a run directory as things happen.
//!
//! On a local disk a line is appended at once, whole, so that `tail -f` shows it. Objects on S3 cannot grow: the lines are
//! kept and uploaded together every few seconds, in numbered parts. A kill loses the lines since then, and nothing
//! else: nobody goes on from a log. A log that cannot be written never stops a run.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Directory, LocalDirectory};
use crate::objects::StoreError;

/// Time between two uploads.
const UPLOAD_EVERY: Duration = Duration::from_secs(5);
/// Bytes beyond which a part is left alone and the next one begins.
const PART_BYTES: usize = 256 << 10;

/// A log in a run directory; clones write to the same one.
#[derive(Debug, Clone)]
pub struct Log {
    place: Arc<Mutex<Place>>,
}

#[derive(Debug)]
enum Place {
    File(File),
    Parts(Parts),
    /// It could not be written once; that was said, and is not tried again.
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
    /// A new log `STEM.jsonl` in a local directory.
    pub(super) fn local(directory: &LocalDirectory, stem: &str) -> Result<Self, StoreError> {
        let path = directory.path(&format!("{stem}.jsonl"));
        let failed = |error| StoreError::io(&path, "written", error);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        Ok(Self { place: Arc::new(Mutex::new(Place::File(file))) })
    }

    /// New logs `STEM-0000.jsonl`, … in a remote directory.
    pub(super) fn remote(directory: Directory, stem: &str) -> Self {
        let parts = Parts {
            directory,
            stem: stem.to_owned(),
            number: 0,
            content: Vec::new(),
            uploaded_bytes: 0,
            uploaded: Instant::now(),
        };
        Self { place: Arc::new(Mutex::new(Place::Parts(parts))) }
    }

    /// Adds a line, given without its end.
    pub fn line(&self, text: &str) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match &mut *place {
            // One call, so that no other line comes between.
            Place::File(file) => file.write_all(format!("{text}\n").as_bytes()).map_err(|error| error.to_string()),
            Place::Parts(parts) => {
                parts.content.extend_from_slice(text.as_bytes());
                parts.content.push(b'\n');
                Ok(())
            }
            Place::Off => Ok(()),
        };
        if let Err(error) = written {
            tracing::warn!(error, "events are no longer written");
            *place = Place::Off;
        }
    }

    /// Uploads what is due, or everything with `all`; a local log has nothing to do. It may wait for the store.
    pub fn flush(&self, all: bool) {
        let (directory, name, content) = {
            let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
            let Place::Parts(parts) = &mut *place else { return };
            let due = all || parts.uploaded.elapsed() >= UPLOAD_EVERY;
            if !due || parts.content.len() == parts.uploaded_bytes {
                return;
            }
            parts.uploaded = Instant::now();
            (parts.directory.clone(), format!("{}-{:04}.jsonl", parts.stem, parts.number), parts.content.clone())
        };
        // Whoever adds lines does not wait for the store.
        let posted = directory.post(&name, &content);
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        match (posted, &mut *place) {
            (Ok(()), Place::Parts(parts)) if content.len() >= PART_BYTES => {
                parts.content.drain(..content.len());
                (parts.number, parts.uploaded_bytes) = (parts.number + 1, 0);
            }
            (Ok(()), Place::Parts(parts)) => parts.uploaded_bytes = content.len(),
            (Ok(()), _) => {}
            (Err(error), _) => tracing::debug!(%error, "events were not uploaded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_there_as_soon_as_they_are_added() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::local(&LocalDirectory::at(dir.path()), "events/one").unwrap();
        log.line("{}");
        log.clone().line("[]");
        assert_eq!(std::fs::read_to_string(dir.path().join("events/one.jsonl")).unwrap(), "{}\n[]\n");
    }

    #[test]
    fn parts_end_once_they_are_large() {
        let dir = tempfile::tempdir().unwrap();
        let directory: Directory = LocalDirectory::create(dir.path()).unwrap().into();
        let log = Log::remote(directory.clone(), "events/one");
        log.line(&"x".repeat(PART_BYTES));
        log.flush(false);
        assert!(directory.list("events").unwrap().is_empty(), "not due yet");
        log.flush(true);
        log.line("y");
        log.flush(true);
        log.line("z");
        log.flush(true);
        assert_eq!(directory.list("events").unwrap(), ["one-0000.jsonl", "one-0001.jsonl"]);
        assert_eq!(directory.read("events/one-0001.jsonl").unwrap().unwrap(), b"y\nz\n");
    }
}
