//! Configuration: two TOML files become one checked [`RunConfig`], or a list of everything that is wrong with them.
//!
//! The module is pure: text in, values out; no disk, clock or environment. There are three steps:
//!
//! 1. [`PipelineFile::parse`] and [`MachineFile::parse`] accept known keys with values of the right type. The private
//!    `raw` structs mirror the files key by key.
//! 2. [`RunConfig::check`] refuses values that cannot work. It never clamps a value, and it collects every refusal.
//! 3. [`RunConfig`] hands out checked sections. All defaults are filled in, so the rest of the program never sees a raw
//!    value.
//!
//! [`bytes`] computes the memory and disk that a run takes. [`mod@reference`] prints every key with its meaning and
//! default, from the definitions that parse the files.

pub mod bytes;
mod limits;
mod parse;
mod raw;
pub mod reference;
mod run_config;
mod stage;
mod stored;
mod validate;
mod value;

pub use parse::{MachineFile, PipelineFile};
pub use run_config::{AdHocCaptions, AdHocRanking, RunConfig};
pub use stage::{Stage, StageKeys};
pub use stored::StoredPipeline;
pub use validate::caption::CaptionConfig;
pub use validate::ensemble::EnsembleConfig;
pub use validate::head::{HeadConfig, TextConfig};
pub use validate::images::{
    CaptionsConfig, CatalogConfig, ChunksConfig, ImageColumnNames, ImagesConfig, ModelConfig, PairsConfig,
    PreprocessConfig, SampleConfig,
};
pub use validate::machine::{DeviceConfig, LimitsConfig, MachineConfig, StoreConfig};
pub use validate::predict::{PredictConfig, output_stem};
pub use validate::train::{TrainConfig, Trial};
pub use value::{Bytes, EventFolder};

pub use crate::types::HubName;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key; empty for a problem of the whole file.
    pub key: String,
    /// The problem and its remedy, in one clause.
    pub what: String,
}

impl Problem {
    pub(crate) fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.key.is_empty() { out.write_str(&self.what) } else { write!(out, "`{}`: {}", self.key, self.what) }
    }
}

/// A refused configuration, with every reason.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);
