//! Saves and loads a head, its optimiser and the progress of training as a directory.
//!
//! | file | content |
//! | --- | --- |
//! | `head.safetensors` | `classifier.weight` `[classes, dim]`, `classifier.bias` `[classes]`, f32, in Hugging Face names |
//! | `optimizer.safetensors` | `classifier.weight.momentum`, `classifier.bias.momentum`, same shapes, f32 |
//! | `state.json` | [`Progress`] |
//!
//! The head of a projection head holds `projection.weight` `[output, input]`, `projection.bias`, `logit_scale` (its
//! logarithm), `features.mean`, `features.std`, `text.mean` and, with a hidden layer, `hidden.weight` and
//! `hidden.bias`. A map of captions is `text.projection.weight` `[output, embedding]` and `text.projection.bias`. The
//! optimiser holds `NAME.exp_avg` and `NAME.exp_avg_sq` for each trained tensor, and nothing for a head in closed form.
//!
//! The bytes depend on head and progress only. Tensors are streamed through a small buffer, so neither saving nor
//! loading holds a second copy. Values that are not finite are rejected by both. The caller saves to a temporary
//! directory and renames it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::HeadState;
use super::text::Columns;

mod tensors;
mod text;

use tensors::NamedTensor;
pub use text::{load_text, load_text_head, save_text, save_text_head};

/// Version of `state.json`.
const FORMAT: u32 = 1;

/// Name of the file with the head.
pub const HEAD_FILE: &str = "head.safetensors";
/// Name of the file with the state of the optimiser.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Name of the file with the progress.
pub const STATE_FILE: &str = "state.json";
/// Names of all files of a checkpoint.
pub const FILES: [&str; 3] = [HEAD_FILE, OPTIMIZER_FILE, STATE_FILE];

/// Tensors of a classifier head: bias, then weight.
const HEAD_NAMES: [&str; 2] = ["classifier.bias", "classifier.weight"];
/// Tensors of its optimiser: momentum of the bias, then of the weight.
const MOMENTUM_NAMES: [&str; 2] = ["classifier.bias.momentum", "classifier.weight.momentum"];

/// Progress of a training run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Number of updates.
    pub step: u64,
    /// Current epoch, from 0.
    pub epoch: u32,
    /// Number of samples of this epoch that were used for updates.
    pub position: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Best validation metric so far.
    #[serde(with = "exact_option")]
    pub best: Option<f64>,
    /// Sum of the losses not yet reported, in nats.
    #[serde(with = "exact")]
    pub loss_sum: f64,
    /// Number of samples in this sum.
    pub loss_count: u64,
    /// Hash of each input artefact and setting, by name.
    pub hashes: BTreeMap<String, String>,
    /// Columns of the features that the head reads; absent if it reads all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

/// Content of `state.json`.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    format: u32,
    /// XXH3 of each other file, in hex. A changed weight would go unnoticed without it.
    #[serde(default)]
    checksums: BTreeMap<String, String>,
    progress: T,
}

/// Error of saving or loading a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file system operation failed.
    #[error("cannot {action} `{path}`")]
    Io {
        /// The failed operation.
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// Error of the system.
        #[source]
        source: io::Error,
    },
    /// A file is damaged or has unexpected content.
    #[error("checkpoint file `{path}` cannot be used: {reason}; resume from an earlier checkpoint")]
    Content {
        /// The file.
        path: PathBuf,
        /// Defect of the file.
        reason: String,
    },
    /// The head to save is invalid.
    #[error("the head cannot be saved: {reason}")]
    Head {
        /// Defect of the head.
        reason: String,
    },
}

/// Saves a checkpoint to directory `dir`; replaces the directory and creates its parents.
///
/// The directory is written file by file, so save under a temporary name and rename it afterwards. When this returns,
/// all files are durable.
///
/// # Errors
/// When a length does not match, a value is not finite, or a file system operation fails. The directory is removed
/// then.
pub fn save(dir: &Path, state: &HeadState, progress: &Progress) -> Result<(), CheckpointError> {
    if let Some((what, actual, expected)) = state.find_length_mismatch() {
        let reason = format!("`{what}` holds `{actual}` values, expected `{expected}`");
        return Err(CheckpointError::Head { reason });
    }
    let (matrix, row) = ([state.classes, state.dim], [state.classes]);
    let file =
        |names: [&'static str; 2], bias, weight| vec![(names[0], &row[..], bias), (names[1], &matrix[..], weight)];
    let head = file(HEAD_NAMES, state.bias.as_slice(), state.weight.as_slice());
    let optimizer = file(MOMENTUM_NAMES, state.bias_momentum.as_slice(), state.weight_momentum.as_slice());
    save_tensors(dir, &head, &optimizer, progress)
}

/// Saves a classifier that has no optimiser, since it was solved for in closed form.
///
/// # Errors
/// As [`save`].
pub fn save_head(dir: &Path, state: &HeadState, progress: &Progress) -> Result<(), CheckpointError> {
    let (matrix, row) = ([state.classes, state.dim], [state.classes]);
    let head =
        [(HEAD_NAMES[0], &row[..], state.bias.as_slice()), (HEAD_NAMES[1], &matrix[..], state.weight.as_slice())];
    save_tensors(dir, &head, &[], progress)
}

/// Saves the tensors of a head and its optimiser, and the progress.
pub(super) fn save_tensors(
    dir: &Path,
    head: &[NamedTensor<'_>],
    optimizer: &[NamedTensor<'_>],
    progress: &Progress,
) -> Result<(), CheckpointError> {
    if [progress.loss_sum, progress.best.unwrap_or(0.0)].iter().any(|value| !value.is_finite()) {
        let reason = "its loss or its best metric is not finite".to_owned();
        return Err(CheckpointError::Head { reason });
    }
    remove(dir)?;
    fs::create_dir_all(dir).map_err(io("create directory", dir))?;
    write_all(dir, head, optimizer, progress).and_then(|()| sync(dir)).inspect_err(|_| {
        // A failure here is harmless: the name is temporary, and the next process removes it.
        remove(dir).ok();
    })
}

fn write_all(
    dir: &Path,
    head: &[NamedTensor<'_>],
    optimizer: &[NamedTensor<'_>],
    progress: &Progress,
) -> Result<(), CheckpointError> {
    let mut checksums = BTreeMap::new();
    for (file, tensors) in [(HEAD_FILE, head), (OPTIMIZER_FILE, optimizer)] {
        tensors::write(&dir.join(file), tensors)?;
        checksums.insert(file.to_owned(), checksum(&dir.join(file))?);
    }
    let path = dir.join(STATE_FILE);
    let mut text = serde_json::to_vec_pretty(&Versioned { format: FORMAT, checksums, progress })
        .map_err(|error| io("write", &path)(error.into()))?;
    text.push(b'\n');
    fs::write(&path, text).map_err(io("write", &path))?;
    sync(&path)
}

/// Loads the checkpoint of a classifier head from directory `dir`.
///
/// # Errors
/// When a file is missing, truncated, of another version, or has unexpected tensors, types, shapes or values that are
/// not finite. The error names the file.
pub fn load(dir: &Path) -> Result<(HeadState, Progress), CheckpointError> {
    let (progress, checksums) = load_state(dir)?;
    verify_checksums(dir, checksums.iter())?;
    let head = read_layer(&dir.join(HEAD_FILE), HEAD_NAMES)?;
    let optimizer = dir.join(OPTIMIZER_FILE);
    let momentum = read_layer(&optimizer, MOMENTUM_NAMES)?;
    let (shape, expected) = ([momentum.classes, momentum.dim], [head.classes, head.dim]);
    if shape != expected {
        return Err(CheckpointError::Content {
            path: optimizer,
            reason: format!("its shape is `{shape:?}`, that of the head is `{expected:?}`"),
        });
    }
    let state = HeadState {
        classes: head.classes,
        dim: head.dim,
        weight: head.weight,
        bias: head.bias,
        weight_momentum: momentum.weight,
        bias_momentum: momentum.bias,
    };
    Ok((state, progress))
}

/// Loads the head without its momentum, for prediction; the momentum buffers are empty.
///
/// # Errors
/// As [`load`], but only for the head's file and `state.json`.
pub fn load_head(dir: &Path) -> Result<HeadState, CheckpointError> {
    let (_, checksums) = load_state(dir)?;
    verify_checksums(dir, checksums.iter().filter(|(file, _)| *file == HEAD_FILE))?;
    let head = read_layer(&dir.join(HEAD_FILE), HEAD_NAMES)?;
    Ok(HeadState {
        classes: head.classes,
        dim: head.dim,
        weight: head.weight,
        bias: head.bias,
        weight_momentum: Vec::new(),
        bias_momentum: Vec::new(),
    })
}

/// Tensors of a linear layer: its parameters, or their momentum.
struct Layer {
    classes: usize,
    dim: usize,
    /// `[classes]`.
    bias: Vec<f32>,
    /// `[classes, dim]`, row-major.
    weight: Vec<f32>,
}

/// Reads a file with a linear layer; `names` are those of bias and weight.
fn read_layer(path: &Path, names: [&str; 2]) -> Result<Layer, CheckpointError> {
    let check = |shapes: &[&[usize]]| {
        let &[&[rows], &[classes, dim]] = shapes else {
            let shapes = shapes.iter().map(|shape| format!("{shape:?}")).collect::<Vec<_>>().join("` and `");
            return Err(format!("its shapes are `{shapes}`, expected `[classes]` and `[classes, dim]`"));
        };
        if rows != classes || classes == 0 || dim == 0 {
            return Err(format!("its shapes `[{rows}]` and `[{classes}, {dim}]` do not match"));
        }
        Ok(())
    };
    let mut tensors = tensors::read(path, &names, check)?.into_iter();
    match (tensors.next(), tensors.next()) {
        (Some(bias), Some(weight)) if weight.shape.len() == 2 => {
            let (classes, dim) = (weight.shape[0], weight.shape[1]);
            Ok(Layer { classes, dim, bias: bias.values, weight: weight.values })
        }
        _ => Err(CheckpointError::Content { path: path.to_owned(), reason: "it lacks a tensor".to_owned() }),
    }
}

/// Loads the progress only.
///
/// # Errors
/// When `state.json` is missing, damaged or of another version.
pub fn load_progress(dir: &Path) -> Result<Progress, CheckpointError> {
    load_state(dir).map(|(progress, _)| progress)
}

/// Loads the progress and the checksums of the other files.
fn load_state(dir: &Path) -> Result<(Progress, BTreeMap<String, String>), CheckpointError> {
    let path = dir.join(STATE_FILE);
    let text = fs::read(&path).map_err(io("read", &path))?;
    let damaged = |reason: String| CheckpointError::Content { path: path.clone(), reason };
    // Checks the version first, because another version may have other keys.
    let raw: Versioned<serde_json::Value> =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if raw.format != FORMAT {
        let reason = format!("it is of format `{}`, this program reads `{FORMAT}`", raw.format);
        return Err(damaged(reason));
    }
    let progress = serde_json::from_value(raw.progress).map_err(|error| damaged(error.to_string()))?;
    Ok((progress, raw.checksums))
}

/// Compares files with their checksums.
fn verify_checksums<'a>(
    dir: &Path,
    checksums: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<(), CheckpointError> {
    for (file, expected) in checksums.filter(|(file, _)| FILES.contains(&file.as_str())) {
        let path = dir.join(file);
        if checksum(&path)? != *expected {
            return Err(CheckpointError::Content {
                path,
                reason: "its checksum differs from the one in `state.json`".to_owned(),
            });
        }
    }
    Ok(())
}

/// Computes the XXH3 of a file, in hex.
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

/// Returns a constructor of I/O errors for `map_err`.
fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io { action, path, source }
}

/// Removes a directory if it exists.
fn remove(dir: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("remove the leftover", dir)(error)),
        _ => Ok(()),
    }
}

/// Makes the bytes of a file or the entries of a directory durable.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io("sync", path))
}

/// Serialises a double as a string. Rust's shortest representation parses to the same bits; a JSON number may not.
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

/// Serialises an optional double like [`exact`], `None` as null.
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
