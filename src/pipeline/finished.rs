//! Results of finished stages, so that a run that is complete does not repeat their work when it is started again.
//!
//! A record holds a hash of everything that the result depends on. It is written last, and it counts only while the hash
//! and the artefacts are the same. It is stored in `journal/finished/`; `--from` removes it with the artefacts of its stage.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pipeline::error::PipelineError;
use crate::run_dir::Directory;

/// Folder of the records.
pub(crate) const FOLDER: &str = "journal/finished";
/// Version of the results. It changes when equal keys yield other results.
const FORMAT: &str = "1";

/// Content of a record.
#[derive(Debug, Serialize, Deserialize)]
struct Record<T> {
    key: String,
    /// File of the result → hash of its content.
    files: Vec<(String, String)>,
    result: T,
}

/// The record of one stage with one key.
pub(crate) struct FinishedStage {
    dir: Directory,
    name: String,
    key: String,
}

impl FinishedStage {
    /// Names the record of a stage whose result depends on `parts` alone.
    pub(crate) fn new<'a>(dir: &Directory, stage: &str, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in std::iter::once(FORMAT).chain(parts) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let key = hasher.finalize().to_hex()[..32].to_owned();
        Self { dir: dir.clone(), name: format!("{FOLDER}/{stage}.json"), key }
    }

    /// Returns the result; `None` if the stage is not finished, its key has changed, or a file of the result is not as
    /// it was. Blocks the thread.
    ///
    /// # Errors
    /// When the run directory cannot be read.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, PipelineError> {
        let Some(content) = self.dir.read(&self.name)? else { return Ok(None) };
        // A record of another version does not count.
        let Ok(record) = serde_json::from_slice::<Record<T>>(&content) else { return Ok(None) };
        if record.key != self.key {
            return Ok(None);
        }
        for (name, hash) in &record.files {
            if self.hash_file(name)?.as_ref() != Some(hash) {
                return Ok(None);
            }
        }
        Ok(Some(record.result))
    }

    /// Records the result, whose files are `files`. Blocks the thread.
    ///
    /// # Errors
    /// When the run directory cannot be read or written.
    pub(crate) fn write<T: Serialize>(&self, result: &T, files: &[&str]) -> Result<(), PipelineError> {
        let mut hashes = Vec::with_capacity(files.len());
        for name in files {
            hashes.extend(self.hash_file(name)?.map(|hash| ((*name).to_owned(), hash)));
        }
        let record = Record { key: self.key.clone(), files: hashes, result };
        let content = serde_json::to_vec_pretty(&record).map_err(|error| PipelineError::Internal(error.to_string()))?;
        Ok(self.dir.write(&self.name, &content)?)
    }

    /// Hashes a small file; `None` if it is absent.
    fn hash_file(&self, name: &str) -> Result<Option<String>, PipelineError> {
        Ok(self.dir.read(name)?.map(|content| blake3::hash(&content).to_hex()[..32].to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::LocalDirectory;

    #[test]
    fn result_is_believed_while_key_and_files_are_the_same() {
        let root = tempfile::tempdir().unwrap();
        let dir = Directory::from(LocalDirectory::create(root.path().to_owned()).unwrap());
        dir.write("out.csv", b"1").unwrap();
        let record = |key: &'static str| FinishedStage::new(&dir, "predict-x", ["g", key]);
        assert_eq!(record("a").read::<u32>().unwrap(), None);
        record("a").write(&7_u32, &["out.csv"]).unwrap();
        assert_eq!(record("a").read().unwrap(), Some(7_u32));
        assert_eq!(record("b").read::<u32>().unwrap(), None, "another key");
        assert_eq!(record("a").read::<Vec<String>>().unwrap(), None, "another format");
        dir.write("out.csv", b"2").unwrap();
        assert_eq!(record("a").read::<u32>().unwrap(), None, "a changed file");
        std::fs::remove_file(root.path().join("out.csv")).unwrap();
        assert_eq!(record("a").read::<u32>().unwrap(), None, "a removed file");
    }

    #[test]
    fn parts_of_the_key_do_not_run_together() {
        let dir = Directory::read_only(&crate::objects::Store::default(), "run").unwrap();
        let key = |parts: [&'static str; 2]| FinishedStage::new(&dir, "x", parts).key;
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
    }
}
