//! Why a checkpoint cannot be opened, loaded, used or written.

use std::path::Path;
use std::path::PathBuf;

/// What can go wrong between a checkpoint directory and a feature.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: `read` or `write`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        cause: std::io::Error,
    },
    /// A JSON file is not JSON, or a key in it has the wrong type.
    #[error("`{}` cannot be used: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The key and what is wrong with it.
        reason: String,
    },
    /// A value of `config.json` or `preprocessor_config.json` is outside what is supported.
    #[error("`{}`: `{key}` {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong, with the value found.
        problem: String,
    },
    /// The configuration names a model that is not a supported family.
    #[error("`{}` has model_type `{found}`; supported are `vit` and `dinov2`", path.display())]
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
        /// What to do when another format lies there, else empty.
        hint: &'static str,
    },
    /// A weight file is damaged, or is not what its index says.
    #[error("weight file `{}` cannot be used: {reason}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors are not those that the configuration asks for.
    #[error("the weights in `{}` do not match its config.json: missing [{}], unexpected [{}]", dir.display(), listed(missing), listed(unexpected))]
    Keys {
        /// The checkpoint directory.
        dir: PathBuf,
        /// Keys that the configuration asks for, without the family's prefix.
        missing: Vec<String>,
        /// Keys, as in the file, that the configuration has no place for.
        unexpected: Vec<String>,
    },
    /// Tensors have other shapes than the configuration asks for.
    #[error("the weights in `{}` do not match its config.json: {}", dir.display(), mismatches.join(", "))]
    Shapes {
        /// The checkpoint directory.
        dir: PathBuf,
        /// One entry a tensor: key, shape found, shape expected.
        mismatches: Vec<String>,
    },
    /// The input size is not a whole number of patches.
    #[error("size_px `{size_px}` is not a positive multiple of the model's patch, `{patch_px}` pixels")]
    PatchSize {
        /// The side of the input asked for, in pixels.
        size_px: u32,
        /// The side of a patch, in pixels.
        patch_px: u32,
    },
    /// The block asked for does not exist.
    #[error("layer `{layer}` does not exist: the model has `{layers}` blocks, so it goes from `-{layers}` to `{}`", layers - 1)]
    Layer {
        /// The layer asked for.
        layer: i32,
        /// The number of blocks, at least 1.
        layers: u32,
    },
    /// The pixel buffer has another length than rows × side × side × 3.
    #[error("`{found}` bytes of pixels are not `{rows}` rows of `{size_px}` × `{size_px}` × 3")]
    Pixels {
        /// Bytes in the buffer.
        found: usize,
        /// Rows that the caller named.
        rows: usize,
        /// The side that the extractor was loaded for, in pixels.
        size_px: u32,
    },
    /// A batch is larger than the one shape that the device was told of.
    #[error("a batch of `{rows}` rows does not fit the extractor's batches of `{batch_rows}`")]
    Batch {
        /// Rows handed over.
        rows: usize,
        /// Rows of every batch.
        batch_rows: usize,
    },
    /// A classifier's weight, bias and labels do not fit each other or the backbone.
    #[error("the classifier cannot be used: {reason}")]
    Classifier {
        /// What does not fit.
        reason: String,
    },
    /// A caption could not be made into tokens.
    #[error("the text encoder's tokenizer failed: {reason}")]
    Tokenizer {
        /// What it said.
        reason: String,
    },
    /// The device failed while it computed.
    #[error("the device failed: {reason}")]
    Device {
        /// What the backend said.
        reason: String,
    },
}

impl ModelError {
    /// An error of reading `path`, for `map_err`.
    pub(super) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Self::Io { action: "read", path: path.to_owned(), cause }
    }

    /// An error of writing `path`, for `map_err`.
    pub(super) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Self::Io { action: "write", path: path.to_owned(), cause }
    }

    /// A damaged weight file.
    pub(super) fn weights(path: &Path, reason: impl Into<String>) -> Self {
        Self::Weights { path: path.to_owned(), reason: reason.into() }
    }

    /// A value that is not supported.
    pub(super) fn value(path: &Path, key: &'static str, problem: impl Into<String>) -> Self {
        Self::Value { path: path.to_owned(), key, problem: problem.into() }
    }
}

/// Key names for a message: the first twelve, then how many more, since a wrong `num_hidden_layers` alone gives hundreds.
fn listed(keys: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = keys.iter().take(SHOWN).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN {
        let more = format!(" and {} more", keys.len() - SHOWN);
        text.push_str(&more);
    }
    text
}
