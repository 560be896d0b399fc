//! [`ExportTarget`]: a directory that only an export of the same run may replace.
//!
//! All files are written to a folder inside the directory first and moved at the end. `export.json` names the run, and the
//! hash of each file, so that a later export replaces what this one wrote and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Problem};
use crate::objects::{Store, StoreError};
use crate::pipeline::error::PipelineError;

/// Record of an export, among its files.
const RECORD_FILE: &str = "export.json";
/// Folder in which an export is written before its files are moved.
const PARTIAL_FOLDER: &str = ".export-partial";
/// Folders of a run directory. A run removes files in them that it does not know.
const RUN_FOLDERS: [&str; 10] =
    ["catalog", "checkpoints", "chunks", "events", "features", "journal", "predict", "quarantine", "scratch", "texts"];

/// Content of the record.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    made_by: String,
    /// Absolute path or URL of the run directory.
    run_dir: String,
    /// Step of the exported head.
    step: u64,
    /// File name → BLAKE3 hash.
    files: BTreeMap<String, String>,
}

/// A directory to export to.
#[derive(Debug)]
pub(super) struct ExportTarget {
    out: PathBuf,
    run_dir: String,
    /// True if the directory was created for this export.
    created: bool,
}

/// Returns the configuration error of the argument.
fn refuse(what: String) -> PipelineError {
    ConfigError(vec![Problem::new("--out", what)]).into()
}

/// Returns the absolute path or URL of a run directory.
fn absolute_name(run_dir: &str) -> String {
    if Store::is_remote(run_dir) {
        return run_dir.trim_end_matches('/').to_owned();
    }
    let path = Path::new(run_dir.strip_prefix("file://").unwrap_or(run_dir));
    path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string()
}

impl ExportTarget {
    /// Opens a directory and creates it if absent.
    ///
    /// # Errors
    /// When it holds anything but an unchanged export of the same run, or is a folder of the run.
    pub(super) fn open(out: &Path, run_dir: &str) -> Result<Self, PipelineError> {
        let run_dir = absolute_name(run_dir);
        let shown = out.display();
        if out.exists() && !out.is_dir() {
            return Err(refuse(format!("`{shown}` is a file: name a new or empty directory")));
        }
        require_outside(out, Path::new(&run_dir))?;
        let created = !out.exists();
        if !created {
            require_own_export(out, &run_dir)?;
        }
        fs::create_dir_all(out).map_err(|error| StoreError::io(out, "created", error))?;
        let target = Self { out: out.to_owned(), run_dir, created };
        target.remove_partial()?;
        let partial = target.partial();
        fs::create_dir(&partial).map_err(|error| StoreError::io(&partial, "created", error))?;
        Ok(target)
    }

    /// Returns the folder to write to.
    pub(super) fn partial(&self) -> PathBuf {
        self.out.join(PARTIAL_FOLDER)
    }

    /// Moves the files to the directory, the record first.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn publish(self, step: u64) -> Result<(), PipelineError> {
        let partial = self.partial();
        let failed = |error| StoreError::io(&partial, "read", error);
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&partial).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let hash = hash_file(&entry.path()).map_err(failed)?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), hash);
        }
        let made_by = format!("wikicap-pipeline {}", env!("CARGO_PKG_VERSION"));
        let names: Vec<String> = files.keys().cloned().collect();
        let record = Record { made_by, run_dir: self.run_dir.clone(), step, files };
        let text = serde_json::to_vec_pretty(&record).map_err(|error| PipelineError::Internal(error.to_string()))?;
        let path = partial.join(RECORD_FILE);
        fs::write(&path, text).map_err(|error| StoreError::io(&path, "written", error))?;
        for name in std::iter::once(RECORD_FILE).chain(names.iter().map(String::as_str)) {
            let to = self.out.join(name);
            fs::rename(partial.join(name), &to).map_err(|error| StoreError::io(&to, "written", error))?;
        }
        self.remove_partial()
    }

    /// Removes what a failed export has written.
    pub(super) fn abandon(self) {
        self.remove_partial().ok();
        if self.created {
            fs::remove_dir(&self.out).ok();
        }
    }

    fn remove_partial(&self) -> Result<(), PipelineError> {
        let partial = self.partial();
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io(&partial, "removed", error).into())
            }
            _ => Ok(()),
        }
    }
}

/// Refuses the run directory and its folders.
fn require_outside(out: &Path, run_dir: &Path) -> Result<(), PipelineError> {
    let absolute = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    // Links in the part that exists.
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let rest = absolute.strip_prefix(existing).unwrap_or(Path::new(""));
    let absolute = existing.canonicalize().unwrap_or_else(|_| existing.to_owned()).join(rest);
    let Ok(inside) = absolute.strip_prefix(run_dir) else { return Ok(()) };
    let folder = inside.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned());
    if folder.is_none_or(|folder| RUN_FOLDERS.contains(&folder.as_str())) {
        let what = format!("`{}` belongs to the run: name a directory outside it", out.display());
        return Err(refuse(what));
    }
    Ok(())
}

/// Refuses a directory that is not empty, unless it holds an unchanged export of the run.
fn require_own_export(out: &Path, run_dir: &str) -> Result<(), PipelineError> {
    let failed = |error| StoreError::io(out, "listed", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(out).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name != PARTIAL_FOLDER {
            names.push(name);
        }
    }
    names.sort_unstable();
    let Some(first) = names.first() else { return Ok(()) };
    let shown = out.display();
    let content = fs::read(out.join(RECORD_FILE)).ok();
    let Some(record) = content.and_then(|content| serde_json::from_slice::<Record>(&content).ok()) else {
        return Err(refuse(format!(
            "`{shown}` holds `{first}` and is not an export of this run: name a new or empty directory"
        )));
    };
    if record.run_dir != run_dir {
        return Err(refuse(format!(
            "`{shown}` holds an export of the run `{}`: name a new or empty directory",
            record.run_dir
        )));
    }
    for (name, hash) in &record.files {
        let path = out.join(name);
        // An absent file is not a loss.
        if path.exists() && hash_file(&path).map_err(|error| StoreError::io(&path, "read", error))? != *hash {
            return Err(refuse(format!(
                "`{}` was changed since it was exported: name a new directory, or remove the file",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Returns the BLAKE3 hash of a file in hex.
fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(out: &Path, run_dir: &Path, text: &str) -> Result<(), PipelineError> {
        let target = ExportTarget::open(out, run_dir.to_str().unwrap())?;
        fs::write(target.partial().join("config.json"), text).unwrap();
        target.publish(7)
    }

    #[test]
    fn only_an_unchanged_export_of_the_run_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (run, other, out) = (dir.path().join("run"), dir.path().join("other"), dir.path().join("a/out"));
        fs::create_dir(&run).unwrap();
        fs::create_dir(&other).unwrap();
        export(&out, &run, "one").unwrap();
        fs::write(out.join("README.md"), "mine").unwrap();
        export(&out, &run, "two").unwrap();
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "two");
        assert_eq!(fs::read_to_string(out.join("README.md")).unwrap(), "mine");
        assert!(!out.join(PARTIAL_FOLDER).exists());

        let error = export(&out, &other, "three").unwrap_err().to_string();
        assert!(error.contains("an export of the run"), "{error}");
        fs::write(out.join("config.json"), "tuned").unwrap();
        let error = export(&out, &run, "three").unwrap_err().to_string();
        assert!(error.contains("was changed since it was exported"), "{error}");
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "tuned");
        for foreign in [run.join("checkpoints/new"), run.clone(), other.join("features")] {
            let run = if foreign.starts_with(&other) { &other } else { &run };
            assert!(export(&foreign, run, "x").unwrap_err().to_string().contains("belongs to the run"), "{foreign:?}");
        }
    }

    #[test]
    fn failed_export_leaves_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        ExportTarget::open(&out, "run").unwrap().abandon();
        assert!(!out.exists());
    }
}
