//! Configuration: two TOML files become one checked [`RunConfig`], or a list of everything that is wrong with them.
//!
//! Pure: text in, values out; no disk, clock or environment. `raw` mirrors the files key by key, [`plan`] refuses
//! what cannot work (never clamping it) and collects every refusal, [`bytes`] says what the work takes of memory and
//! disk, [`mod@reference`] prints the keys with their meaning, unit and default from the same definitions.

pub mod bytes;
mod hub;
mod parse;
pub mod plan;
pub mod raw;
pub mod reference;
pub mod value;

pub use hub::HubName;
pub use parse::{machine, pipeline};
pub use plan::{RunConfig, StageKeys};

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key, or empty where the file as a whole is meant.
    pub key: String,
    /// What is wrong and what to do, in one clause.
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

/// A configuration was refused; every reason is listed.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);
