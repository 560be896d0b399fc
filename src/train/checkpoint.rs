//! A head and its progress as a directory on disk.
//!
//! | file | content |
//! | --- | --- |
//! | `head.safetensors` | `classifier.weight` `[classes, dim]`, `classifier.bias` `[classes]`, f32, in Hugging Face names |
//! | `optimizer.safetensors` | `classifier.weight.momentum`, `classifier.bias.momentum`, same shapes, f32 |
//! | `state.json` | [`Progress`] |
//!
//! That of a map into the space of captions' vectors holds `projection.weight` `[output, input]`, `projection.bias`, where there is
//! a hidden layer `hidden.weight` and `hidden.bias`, `logit_scale` (its logarithm), `features.mean`, `features.std` and `text.mean`;
//! and for each that is trained `NAME.exp_avg` and `NAME.exp_avg_sq`.
//!
//! The bytes are a function of head and progress alone. Tensors are streamed through a small buffer: neither saving nor
//! loading holds a second copy. Every value must be finite, on both ways. Whoever saves gives the directory its name last.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::HeadState;

mod tensors;
mod text;

use tensors::Part;
pub use text::{load_text, load_text_head, save_text};

/// The version of `state.json` that this code writes and reads.
const FORMAT: u32 = 1;

/// Name of the head's file.
pub const HEAD_FILE: &str = "head.safetensors";
/// Name of the momentum buffers' file.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Name of the progress file.
pub const STATE_FILE: &str = "state.json";
/// All files of a checkpoint.
pub const FILES: [&str; 3] = [HEAD_FILE, OPTIMIZER_FILE, STATE_FILE];

const HEAD_NAMES: [&str; 2] = ["classifier.bias", "classifier.weight"];
const MOMENTUM_NAMES: [&str; 2] = ["classifier.bias.momentum", "classifier.weight.momentum"];

/// Where a run stands, beside its weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Updates made.
    pub step: u64,
    /// Epoch at work, from 0.
    pub epoch: u32,
    /// Samples of this epoch that the updates consumed.
    pub position: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Best validation metric so far.
    #[serde(with = "exact_option")]
    pub best: Option<f64>,
    /// Sum of the losses that were not reported yet, in nats.
    #[serde(with = "exact")]
    pub loss_sum: f64,
    /// Samples of that sum.
    pub loss_count: u64,
    /// What the checkpoint was made from: name of the artefact or setting to its hash.
    pub hashes: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    format: u32,
    /// XXH3 of each of the other files, in hexadecimal: a changed weight would never be noticed otherwise.
    #[serde(default)]
    checksums: BTreeMap<String, String>,
    progress: T,
}

/// Why a checkpoint could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what its name promises.
    #[error("checkpoint file `{path}` cannot be used: {reason}; resume from an earlier checkpoint")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The head that was to be saved is not usable.
    #[error("the head cannot be saved: {reason}")]
    Head {
        /// What is wrong with it.
        reason: String,
    },
}

/// Saves a checkpoint as directory `dir`, which is made anew; its parent is created if need be.
///
/// The directory grows file by file: save under a temporary name, and give it its own once this returns, when everything in
/// it outlives a crash of the machine.
///
/// # Errors
/// When the head's lengths do not fit or a value is not finite, or the file system refuses; the directory is removed then.
pub fn save(dir: &Path, state: &HeadState, progress: &Progress) -> Result<(), CheckpointError> {
    if let Some((what, actual, expected)) = state.misfit() {
        let reason = format!("`{what}` holds `{actual}` values, expected `{expected}`");
        return Err(CheckpointError::Head { reason });
    }
    let (matrix, row) = ([state.classes, state.dim], [state.classes]);
    let file =
        |names: [&'static str; 2], bias, weight| vec![(names[0], &row[..], bias), (names[1], &matrix[..], weight)];
    let head = file(HEAD_NAMES, state.bias.as_slice(), state.weight.as_slice());
    let optimizer = file(MOMENTUM_NAMES, state.bias_momentum.as_slice(), state.weight_momentum.as_slice());
    save_parts(dir, &head, &optimizer, progress)
}

/// Saves what a head and its optimiser consist of.
pub(super) fn save_parts(
    dir: &Path,
    head: &[Part<'_>],
    optimizer: &[Part<'_>],
    progress: &Progress,
) -> Result<(), CheckpointError> {
    if [progress.loss_sum, progress.best.unwrap_or(0.0)].iter().any(|value| !value.is_finite()) {
        let reason = "its loss or its best metric is not finite".to_owned();
        return Err(CheckpointError::Head { reason });
    }
    remove(dir)?;
    fs::create_dir_all(dir).map_err(io("create directory", dir))?;
    write_all(dir, head, optimizer, progress).and_then(|()| sync(dir)).inspect_err(|_| {
        // What cannot be removed either has a temporary name, and is swept by the next process.
        remove(dir).ok();
    })
}

fn write_all(
    dir: &Path,
    head: &[Part<'_>],
    optimizer: &[Part<'_>],
    progress: &Progress,
) -> Result<(), CheckpointError> {
    let mut checksums = BTreeMap::new();
    for (file, parts) in [(HEAD_FILE, head), (OPTIMIZER_FILE, optimizer)] {
        tensors::write(&dir.join(file), parts)?;
        checksums.insert(file.to_owned(), checksum(&dir.join(file))?);
    }
    let path = dir.join(STATE_FILE);
    let mut text = serde_json::to_vec_pretty(&Versioned { format: FORMAT, checksums, progress })
        .map_err(|error| io("write", &path)(error.into()))?;
    text.push(b'\n');
    fs::write(&path, text).map_err(io("write", &path))?;
    sync(&path)
}

/// Loads the checkpoint in directory `dir`.
///
/// # Errors
/// When a file is missing, cut short, of another version, has other tensors, types or shapes than it should, or holds
/// a value that is not finite. The error names the file.
pub fn load(dir: &Path) -> Result<(HeadState, Progress), CheckpointError> {
    let (progress, checksums) = load_state(dir)?;
    verify(dir, checksums.iter())?;
    let head = pair(&dir.join(HEAD_FILE), HEAD_NAMES)?;
    let optimizer = dir.join(OPTIMIZER_FILE);
    let momentum = pair(&optimizer, MOMENTUM_NAMES)?;
    let (shape, own) = ([momentum.classes, momentum.dim], [head.classes, head.dim]);
    if shape != own {
        return Err(CheckpointError::Content {
            path: optimizer,
            reason: format!("its shape is `{shape:?}`, that of the head is `{own:?}`"),
        });
    }
    let state = HeadState {
        classes: head.classes,
        dim: head.dim,
        weight: head.matrix,
        bias: head.row,
        weight_momentum: momentum.matrix,
        bias_momentum: momentum.row,
    };
    Ok((state, progress))
}

/// Loads the head alone, for prediction; the momentum buffers are left empty and are not read.
///
/// # Errors
/// As [`load`], for the head's file and its checksum in `state.json` alone.
pub fn load_head(dir: &Path) -> Result<HeadState, CheckpointError> {
    let (_, checksums) = load_state(dir)?;
    verify(dir, checksums.iter().filter(|(file, _)| *file == HEAD_FILE))?;
    let head = pair(&dir.join(HEAD_FILE), HEAD_NAMES)?;
    Ok(HeadState {
        classes: head.classes,
        dim: head.dim,
        weight: head.matrix,
        bias: head.row,
        weight_momentum: Vec::new(),
        bias_momentum: Vec::new(),
    })
}

/// A row and a matrix as they were read.
struct Pair {
    /// Length of the row, rows of the matrix.
    classes: usize,
    /// Columns of the matrix.
    dim: usize,
    /// `[classes]`.
    row: Vec<f32>,
    /// `[classes, dim]`, row-major.
    matrix: Vec<f32>,
}

/// Reads a file that holds a row and a matrix under these names, the row's first.
fn pair(path: &Path, names: [&str; 2]) -> Result<Pair, CheckpointError> {
    let fits = |shapes: &[&[usize]]| {
        let &[&[rows], &[classes, dim]] = shapes else {
            let shapes = shapes.iter().map(|shape| format!("{shape:?}")).collect::<Vec<_>>().join("` and `");
            return Err(format!("its shapes are `{shapes}`, expected `[classes]` and `[classes, dim]`"));
        };
        if rows != classes || classes == 0 || dim == 0 {
            return Err(format!("its shapes `[{rows}]` and `[{classes}, {dim}]` do not fit together"));
        }
        Ok(())
    };
    let mut tensors = tensors::read(path, &names, fits)?.into_iter();
    match (tensors.next(), tensors.next()) {
        (Some(row), Some(matrix)) if matrix.shape.len() == 2 => {
            let (classes, dim) = (matrix.shape[0], matrix.shape[1]);
            Ok(Pair { classes, dim, row: row.values, matrix: matrix.values })
        }
        _ => Err(CheckpointError::Content { path: path.to_owned(), reason: "it lacks a tensor".to_owned() }),
    }
}

/// Loads the progress alone.
///
/// # Errors
/// When `state.json` is missing, of another version, or not what this code writes.
pub fn load_progress(dir: &Path) -> Result<Progress, CheckpointError> {
    load_state(dir).map(|(progress, _)| progress)
}

/// The progress, and the checksums of the other files.
fn load_state(dir: &Path) -> Result<(Progress, BTreeMap<String, String>), CheckpointError> {
    let path = dir.join(STATE_FILE);
    let text = fs::read(&path).map_err(io("read", &path))?;
    let refused = |reason: String| CheckpointError::Content { path: path.clone(), reason };
    // The version first: another version may have another shape.
    let raw: Versioned<serde_json::Value> =
        serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
    if raw.format != FORMAT {
        let reason = format!("it is of format `{}`, this program reads `{FORMAT}`", raw.format);
        return Err(refused(reason));
    }
    let progress = serde_json::from_value(raw.progress).map_err(|error| refused(error.to_string()))?;
    Ok((progress, raw.checksums))
}

/// Compares files with their checksums.
fn verify<'a>(dir: &Path, checksums: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), CheckpointError> {
    for (file, expected) in checksums.filter(|(file, _)| FILES.contains(&file.as_str())) {
        let path = dir.join(file);
        if checksum(&path)? != *expected {
            return Err(CheckpointError::Content {
                path,
                reason: "its bytes are not those that were saved".to_owned(),
            });
        }
    }
    Ok(())
}

fn checksum(path: &Path) -> Result<String, CheckpointError> {
    use std::hash::Hasher as _;
    use std::io::Read as _;

    let mut file = File::open(path).map_err(io("open", path))?;
    let (mut hash, mut block) = (twox_hash::XxHash3_64::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block).map_err(io("read", path))? {
            0 => return Ok(format!("{:016x}", hash.finish())),
            read => hash.write(&block[..read]),
        }
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io { action, path, source }
}

fn remove(dir: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("remove the leftover", dir)(error)),
        _ => Ok(()),
    }
}

/// Makes a file's bytes, or a directory's names, outlive a crash of the machine.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io("sync", path))
}

/// A double as text: Rust's shortest form reads back to the same bits, a JSON number parsed fast need not.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference to the field")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        parse(&String::deserialize(from)?)
    }

    pub(super) fn parse<E: Error>(text: &str) -> Result<f64, E> {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(E::custom(format!("`{text}` is not a finite number"))),
        }
    }
}

/// As [`exact`], or null.
mod exact_option {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.collect_str(value),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Option::<String>::deserialize(from)?.map(|text| super::exact::parse(&text)).transpose()
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
