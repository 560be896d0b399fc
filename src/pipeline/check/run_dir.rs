//! Checks of the run directory and the scratch folder: whose files they hold, and whether they can be written to.

use std::path::{Path, PathBuf};

use crate::config::{ConfigError, Problem, RunConfig};
use crate::objects::Store;
use crate::pipeline::context::scratch_path;
use crate::pipeline::error::PipelineError;
use crate::pipeline::manifest::{Manifest, PredictionRecord, RunFile};
use crate::run_dir::{Directory, check_writable, free_bytes};

/// Returns the configuration error of a key.
fn refuse(key: &str, what: String) -> PipelineError {
    ConfigError(vec![Problem::new(key, what)]).into()
}

/// Reads `run.toml`; `None` in a new or empty directory. Changes nothing.
///
/// # Errors
/// When a run would refuse the directory, or cannot write to it.
pub(super) fn check_run_dir(config: &RunConfig, store: &Store) -> Result<Option<RunFile>, PipelineError> {
    let directory = Directory::read_only(store, config.run_dir())?;
    if let Some(root) = directory.local_root() {
        check_writable(root).map_err(|why| refuse("run.dir", why))?;
    }
    let mut manifest = Manifest::open(directory.clone(), None, false)?;
    if config.predict().is_some() {
        manifest.propose_prediction(config.output(), PredictionRecord::default())?;
    }
    RunFile::read(&directory)
}

/// Checks that the scratch folder can be written to. Changes nothing.
///
/// # Errors
/// When it cannot.
pub(super) fn check_scratch(config: &RunConfig) -> Result<(), PipelineError> {
    match &config.machine().scratch_dir {
        Some(dir) => check_writable(dir).map_err(|why| refuse("scratch.dir", why)),
        // It is inside the run directory, or in that of the system.
        None => Ok(()),
    }
}

/// Returns the local run directory; `None` if it is remote.
fn local_run_dir(config: &RunConfig) -> Option<PathBuf> {
    let name = config.run_dir();
    (!Store::is_remote(name)).then(|| Path::new(name.strip_prefix("file://").unwrap_or(name)).to_owned())
}

/// Compares the bytes that the run writes to its directory with the free space there. Returns a sentence if they do not
/// fit.
pub(super) fn check_product_space(config: &RunConfig, bytes: u64) -> Option<String> {
    let dir = local_run_dir(config)?;
    check_space(&dir, "run.dir", bytes, "the pixels take, if every image is used")
}

/// Compares the scratch disk that the run may use with the free space there. `bytes` is the size of all decoded images.
pub(super) fn check_scratch_space(config: &RunConfig, bytes: u64) -> Option<String> {
    let bytes = bytes.min(config.limits().disk.0);
    check_space(
        &scratch_path(config),
        "limits.disk",
        bytes,
        "decoded images may take there: lower it, or name another `scratch.dir`",
    )
}

fn check_space(path: &Path, key: &str, bytes: u64, what: &str) -> Option<String> {
    let free = free_bytes(path).filter(|free| *free < bytes)?;
    let (free, bytes, path) = (bytesize::ByteSize(free), bytesize::ByteSize(bytes), path.display());
    Some(format!("`{key}`: the disk of `{path}` has {free} free, less than the {bytes} that {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn need_beyond_the_free_space_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/scratch");
        assert_eq!(check_space(&path, "limits.disk", 0, "chunks take"), None);
        let sentence = check_space(&path, "limits.disk", u64::MAX, "chunks take").unwrap();
        assert!(
            sentence.starts_with("`limits.disk`: the disk of `") && sentence.ends_with("that chunks take"),
            "{sentence}"
        );
        assert!(!path.exists());
    }
}
