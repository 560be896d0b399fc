//! Keys of `preprocessor_config.json` as the file has them.

use std::path::Path;

use serde::Deserialize;
use serde::Deserializer;

use crate::model::error::ModelError;

/// Keys of the file that define the preprocessing; all optional.
///
/// transformers treats null differently from an absent key: a step with null is off, and a value with null is an error
/// if its step is on.
#[derive(Debug, Deserialize)]
pub(super) struct RawPreprocessor {
    pub(super) image_processor_type: Option<String>,
    pub(super) feature_extractor_type: Option<String>,
    #[serde(default)]
    pub(super) do_resize: RawKey<bool>,
    #[serde(default)]
    pub(super) size: RawKey<RawSize>,
    #[serde(default)]
    pub(super) resample: RawKey<RawResample>,
    #[serde(default)]
    pub(super) do_center_crop: RawKey<bool>,
    #[serde(default)]
    pub(super) crop_size: RawKey<RawSize>,
    #[serde(default)]
    pub(super) do_rescale: RawKey<bool>,
    #[serde(default)]
    pub(super) rescale_factor: RawKey<RawFloat>,
    #[serde(default)]
    pub(super) do_normalize: RawKey<bool>,
    #[serde(default)]
    pub(super) image_mean: RawKey<RawChannels>,
    #[serde(default)]
    pub(super) image_std: RawKey<RawChannels>,
    #[serde(default)]
    pub(super) crop_pct: RawKey<RawFloat>,
}

/// Value of a key that may be absent or null.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum RawKey<T> {
    #[default]
    Absent,
    Null,
    Value(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for RawKey<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Value))
    }
}

impl RawKey<bool> {
    /// Returns whether a step is on.
    pub(super) fn is_on(self, default: bool) -> bool {
        match self {
            Self::Absent => default,
            Self::Null => false,
            Self::Value(value) => value,
        }
    }
}

impl<T: Clone> RawKey<T> {
    /// Returns the value for a step that is on; `None` for the class default.
    pub(super) fn value(&self, key: &'static str, step: &str, path: &Path) -> Result<Option<T>, ModelError> {
        match self {
            Self::Absent => Ok(None),
            Self::Null => Err(ModelError::value(path, key, format!("is `null` although `{step}` is `true`"))),
            Self::Value(value) => Ok(Some(value.clone())),
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum RawSize {
    Side(u64),
    HeightWidth([u64; 2]),
    Sides { height: Option<u64>, width: Option<u64>, shortest_edge: Option<u64>, longest_edge: Option<u64> },
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum RawChannels {
    Same(RawFloat),
    Each([RawFloat; 3]),
}

/// Filter as Pillow's code or as the name of torchvision's `InterpolationMode`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum RawResample {
    Code(i64),
    Name(String),
}

/// Number that may be NaN or infinite; `parse_json` hands such numbers over as strings.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum RawFloat {
    Finite(f64),
    NonFinite(NonFinite),
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum NonFinite {
    NaN,
    Infinity,
    #[serde(rename = "-Infinity")]
    NegativeInfinity,
}

impl RawFloat {
    pub(super) fn value(self) -> f64 {
        match self {
            Self::Finite(value) => value,
            Self::NonFinite(NonFinite::NaN) => f64::NAN,
            Self::NonFinite(NonFinite::Infinity) => f64::INFINITY,
            Self::NonFinite(NonFinite::NegativeInfinity) => f64::NEG_INFINITY,
        }
    }
}
