//! Errors of opening, loading, running and exporting a checkpoint.

use std::path::Path;
use std::path::PathBuf;

use crate::model::family::Family;
use crate::types::Pool;

/// Error of a checkpoint, or of computing with it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// The failed operation: `read` or `write`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        cause: std::io::Error,
    },
    /// A JSON file is not JSON, or a key in it has the wrong type.
    #[error("`{}` cannot be used: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Key and defect.
        reason: String,
    },
    /// A file holds something else, for example the pointer of a Git LFS file.
    #[error("`{}` is {content}, not {expected}: {advice}", path.display())]
    WrongContent {
        /// The file.
        path: PathBuf,
        /// Content of the file.
        content: &'static str,
        /// Expected content.
        expected: &'static str,
        /// Advice to the user.
        advice: &'static str,
    },
    /// A value of a JSON file is not supported.
    #[error("`{}`: `{key}` {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Defect, with the value found.
        problem: String,
    },
    /// The configuration names an unsupported model family.
    #[error("`{}` has model_type `{found}`; supported are {}", path.display(), Family::list())]
    Family {
        /// The file.
        path: PathBuf,
        /// The `model_type` found.
        found: String,
    },
    /// The directory has no safetensors weights.
    #[error("`{}` holds neither `model.safetensors` nor `model.safetensors.index.json`{hint}", dir.display())]
    NoWeights {
        /// The checkpoint directory.
        dir: PathBuf,
        /// Advice where the directory holds weights in another format, else empty.
        hint: &'static str,
    },
    /// A weight file is damaged or contradicts its index.
    #[error("weight file `{}` cannot be used: {reason}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// Defect of the file.
        reason: String,
    },
    /// Tensor names differ from those that the configuration implies.
    #[error("the weights in `{}` do not match its config.json: missing [{}], unexpected [{}]", dir.display(), join_keys(missing), join_keys(unexpected))]
    Keys {
        /// The checkpoint directory.
        dir: PathBuf,
        /// Absent tensors, without the family's prefix.
        missing: Vec<String>,
        /// Tensors that the configuration does not imply, as named in the file.
        unexpected: Vec<String>,
    },
    /// Tensor shapes differ from those that the configuration implies.
    #[error("the weights in `{}` do not match its config.json: {}", dir.display(), mismatches.join(", "))]
    Shapes {
        /// The checkpoint directory.
        dir: PathBuf,
        /// Key, found shape and expected shape of each tensor.
        mismatches: Vec<String>,
    },
    /// The input size is not a multiple of the patch size.
    #[error("size_px `{size_px}` is not a positive multiple of the model's patch, `{patch_px}` pixels")]
    PatchSize {
        /// Side of the requested input, in pixels.
        size_px: u32,
        /// Side of a patch, in pixels.
        patch_px: u32,
    },
    /// The input size is too small for the windows of the last stage.
    #[error(
        "size_px `{size_px}` is too small: the model's windows of `{window}` tokens need at least `{least_px}` pixels"
    )]
    WindowSize {
        /// Side of the requested input, in pixels.
        size_px: u32,
        /// Side of a window, in tokens.
        window: usize,
        /// Smallest side that works, in pixels.
        least_px: u32,
    },
    /// The backbone has no such pooling.
    #[error(
        "pool `{pool}` does not exist for this checkpoint of the family `{family}`; it has {}",
        join_pools(supported)
    )]
    Pool {
        /// Requested pooling.
        pool: Pool,
        /// Family of the checkpoint.
        family: &'static str,
        /// Poolings that the checkpoint has.
        supported: Vec<Pool>,
    },
    /// transformers has no class of a classifier for the family.
    #[error("a classifier on a backbone of the family `{family}` cannot be exported: transformers has no class for it")]
    NoClassifierClass {
        /// Family of the checkpoint.
        family: &'static str,
    },
    /// The requested block does not exist.
    #[error("layer `{layer}` does not exist: the model has `{layers}` blocks, so it goes from `-{layers}` to `{}`", layers - 1)]
    Layer {
        /// Requested layer.
        layer: i32,
        /// Number of blocks, at least 1.
        layers: u32,
    },
    /// The length of the pixel buffer is not rows × side × side × 3.
    #[error("`{found}` bytes of pixels are not `{rows}` rows of `{size_px}` × `{size_px}` × 3")]
    Pixels {
        /// Bytes in the buffer.
        found: usize,
        /// Rows according to the caller.
        rows: usize,
        /// Side of the extractor's input, in pixels.
        size_px: u32,
    },
    /// A batch is larger than the extractor's fixed batch size.
    #[error("a batch of `{rows}` rows does not fit the extractor's batches of `{batch_rows}`")]
    Batch {
        /// Rows of the batch.
        rows: usize,
        /// Rows of a fixed-size batch.
        batch_rows: usize,
    },
    /// Weight, bias and labels of a classifier do not match each other or the backbone.
    #[error("the classifier cannot be used: {reason}")]
    Classifier {
        /// The mismatch.
        reason: String,
    },
    /// The tokenizer rejected a caption.
    #[error("the text encoder's tokenizer failed: {reason}")]
    Tokenizer {
        /// Error of the tokenizer.
        reason: String,
    },
    /// The device failed during a computation.
    #[error("the device failed: {reason}")]
    Device {
        /// Error of the backend.
        reason: String,
    },
    /// A thread of the device's runtime panicked. The panic names the cause.
    #[error("a thread of the device's runtime failed")]
    Runtime,
}

impl ModelError {
    /// Returns a constructor of read errors for `map_err`.
    pub(super) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Self::Io { action: "read", path: path.to_owned(), cause }
    }

    /// Returns a constructor of write errors for `map_err`.
    pub(super) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Self::Io { action: "write", path: path.to_owned(), cause }
    }

    /// Creates an error about a weight file.
    pub(super) fn weights(path: &Path, reason: impl Into<String>) -> Self {
        Self::Weights { path: path.to_owned(), reason: reason.into() }
    }

    /// Creates an error about an unsupported value.
    pub(super) fn value(path: &Path, key: &'static str, problem: impl Into<String>) -> Self {
        Self::Value { path: path.to_owned(), key, problem: problem.into() }
    }
}

/// Joins key names for a message. Shows the first twelve and counts the rest: a wrong `num_hidden_layers` gives
/// hundreds.
fn join_keys(keys: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = keys.iter().take(SHOWN).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN {
        let more = format!(" and {} more", keys.len() - SHOWN);
        text.push_str(&more);
    }
    text
}

/// Joins the words of poolings for a message.
fn join_pools(pools: &[Pool]) -> String {
    pools.iter().map(|pool| format!("`{pool}`")).collect::<Vec<_>>().join(", ")
}
