//! Parses `preprocessor_config.json`, the image preprocessing of a checkpoint.
//!
//! Reads the layouts of transformers 4.0 and later: `size` and `crop_size` are a number or an object, and an absent key
//! takes the default of the family. The module does no I/O.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use crate::model::config::Family;
use crate::model::error::ModelError;
use crate::model::json::parse_json;

/// Upper bound on the side of an image, in pixels.
const MAX_SIDE_PX: u64 = 1 << 16;
/// Channel means of ImageNet in RGB order, scaled to [0, 1].
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Channel standard deviations of ImageNet in RGB order, scaled to [0, 1].
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Target size of the resize step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Fixed height and width; the aspect ratio may change.
    Squash {
        /// Height in pixels.
        height_px: u32,
        /// Width in pixels.
        width_px: u32,
    },
    /// Fixed length of the shorter side; the aspect ratio is kept.
    ShortestEdge {
        /// Length of the shorter side, in pixels.
        px: u32,
    },
}

/// Image preprocessing of a checkpoint; a disabled step is `None` or has neutral values.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    /// Resize step; `None` if `do_resize` is false.
    pub resize: Option<Resize>,
    /// Side of the centre crop after resizing, in pixels; `None` if `do_center_crop` is false.
    pub crop_px: Option<u32>,
    /// Resampling filter as Pillow's code: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
    pub resample: Option<u8>,
    /// Factor that scales u8 values to the units of `mean` and `std`; 1 if `do_rescale` is false.
    pub rescale: f32,
    /// Mean of each channel in RGB order; 0 if `do_normalize` is false.
    pub mean: [f32; 3],
    /// Standard deviation of each channel in RGB order, never 0; 1 if `do_normalize` is false.
    pub std: [f32; 3],
}

/// Keys of the file that define the preprocessing; all optional.
#[derive(Debug, Deserialize)]
struct RawPreprocessor {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<RawSize>,
    resample: Option<u8>,
    do_center_crop: Option<bool>,
    crop_size: Option<RawSize>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<RawChannels>,
    image_std: Option<RawChannels>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum RawSize {
    Side(u64),
    Sides { height: Option<u64>, width: Option<u64>, shortest_edge: Option<u64>, longest_edge: Option<u64> },
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum RawChannels {
    Same(f32),
    Each([f32; 3]),
}

impl Preprocessor {
    /// Returns the preprocessing of the family's published checkpoints, for a checkpoint without the file.
    pub fn family_default(family: Family) -> Self {
        let rescale = 1.0 / 255.0;
        match family {
            Family::Vit => Self {
                resize: Some(Resize::Squash { height_px: 224, width_px: 224 }),
                crop_px: None,
                resample: Some(2),
                rescale,
                mean: [0.5; 3],
                std: [0.5; 3],
            },
            Family::Dinov2 => Self {
                resize: Some(Resize::ShortestEdge { px: 256 }),
                crop_px: Some(224),
                resample: Some(3),
                rescale,
                mean: IMAGENET_MEAN,
                std: IMAGENET_STD,
            },
        }
    }

    /// Parses and checks the text of a `preprocessor_config.json`; `path` appears in errors.
    pub(super) fn parse(text: &[u8], path: &Path, family: Family) -> Result<Self, ModelError> {
        let raw: RawPreprocessor = parse_json(text, path)?;
        let default = Self::family_default(family);

        let resize = if raw.do_resize == Some(false) {
            None
        } else if let Some(size) = raw.size {
            // A number is the side of a square for ViT's processors and the shorter side for those of BiT and CLIP (DINOv2).
            let class = raw.image_processor_type.or(raw.feature_extractor_type);
            let squash = class.map_or(family == Family::Vit, |class| class.starts_with("ViT"));
            Some(parse_size(size, squash, path)?)
        } else {
            default.resize
        };
        let crop_px = if raw.do_center_crop.unwrap_or(default.crop_px.is_some()) {
            match raw.crop_size {
                None => Some(default.crop_px.unwrap_or(224)),
                Some(size) => match parse_size(size, true, path)? {
                    Resize::Squash { height_px, width_px } if height_px == width_px => Some(height_px),
                    other => {
                        let problem = format!("is {other:?}; only a square is supported");
                        return Err(ModelError::value(path, "crop_size", problem));
                    }
                },
            }
        } else {
            None
        };
        if let Some(code) = raw.resample.filter(|code| *code > 5) {
            let problem = format!("is `{code}`; Pillow's filters are `0` to `5`");
            return Err(ModelError::value(path, "resample", problem));
        }
        let rescale = if raw.do_rescale == Some(false) {
            1.0
        } else {
            raw.rescale_factor.map_or(default.rescale, |factor| factor as f32)
        };
        if !rescale.is_finite() {
            return Err(ModelError::value(path, "rescale_factor", format!("is `{rescale}`; it must be finite")));
        }
        let (mean, std) = if raw.do_normalize == Some(false) {
            ([0.0; 3], [1.0; 3])
        } else {
            (raw.image_mean.map_or(default.mean, expand_channels), raw.image_std.map_or(default.std, expand_channels))
        };
        if mean.iter().any(|value| !value.is_finite()) {
            return Err(ModelError::value(path, "image_mean", format!("is `{mean:?}`; it must be finite")));
        }
        if std.iter().any(|value| !(value.is_finite() && *value != 0.0)) {
            return Err(ModelError::value(path, "image_std", format!("is `{std:?}`; it must be finite and not zero")));
        }
        let resample = raw.resample.or(default.resample);
        Ok(Self { resize, crop_px, resample, rescale, mean, std })
    }

    /// Returns the values as the content of a `preprocessor_config.json` for transformers.
    pub(super) fn to_json(&self, family: Family) -> serde_json::Value {
        let class = match family {
            Family::Vit => "ViTImageProcessor",
            Family::Dinov2 => "BitImageProcessor",
        };
        let mut value = json!({
            "image_processor_type": class,
            "do_convert_rgb": true,
            "do_resize": self.resize.is_some(),
            "do_rescale": true,
            "rescale_factor": self.rescale,
            "do_normalize": true,
            "image_mean": self.mean,
            "image_std": self.std,
            "resample": self.resample,
        });
        match self.resize {
            Some(Resize::Squash { height_px, width_px }) => {
                value["size"] = json!({"height": height_px, "width": width_px});
            }
            Some(Resize::ShortestEdge { px }) => value["size"] = json!({"shortest_edge": px}),
            None => {}
        }
        // ViTImageProcessor has no crop step.
        if family == Family::Dinov2 {
            value["do_center_crop"] = json!(self.crop_px.is_some());
        }
        if let Some(px) = self.crop_px {
            value["crop_size"] = json!({"height": px, "width": px});
        }
        value
    }
}

/// Expands a value to all channels.
fn expand_channels(channels: RawChannels) -> [f32; 3] {
    match channels {
        RawChannels::Same(value) => [value; 3],
        RawChannels::Each(values) => values,
    }
}

/// Parses a size; `squash` says that a bare number is the side of a square, not the shorter side.
fn parse_size(size: RawSize, squash: bool, path: &Path) -> Result<Resize, ModelError> {
    let checked = |value: u64| {
        if (1..=MAX_SIDE_PX).contains(&value) {
            Ok(value as u32)
        } else {
            let problem = format!("gives `{value}` pixels; a side must lie between 1 and {MAX_SIDE_PX}");
            Err(ModelError::value(path, "size", problem))
        }
    };
    match size {
        RawSize::Side(px) if squash => Ok(Resize::Squash { height_px: checked(px)?, width_px: checked(px)? }),
        RawSize::Side(px)
        | RawSize::Sides { height: None, width: None, shortest_edge: Some(px), longest_edge: None } => {
            Ok(Resize::ShortestEdge { px: checked(px)? })
        }
        RawSize::Sides { height: Some(height), width: Some(width), shortest_edge: None, longest_edge: None } => {
            Ok(Resize::Squash { height_px: checked(height)?, width_px: checked(width)? })
        }
        RawSize::Sides { .. } => {
            let problem = "must be a number, `height` and `width`, or `shortest_edge`";
            Err(ModelError::value(path, "size", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, family: Family) -> Result<Preprocessor, ModelError> {
        Preprocessor::parse(text.as_bytes(), Path::new("preprocessor_config.json"), family)
    }

    #[test]
    fn legacy_vit_layout_is_read() {
        let text = r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#;
        assert_eq!(parse(text, Family::Vit).unwrap(), Preprocessor::family_default(Family::Vit));
    }

    #[test]
    fn current_layouts_are_read() {
        let text = r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 384, "width": 384},
            "do_rescale": false, "do_normalize": false, "resample": 3}"#;
        let vit = parse(text, Family::Vit).unwrap();
        assert_eq!(vit.resize, Some(Resize::Squash { height_px: 384, width_px: 384 }));
        assert_eq!((vit.rescale, vit.mean, vit.std), (1.0, [0.0; 3], [1.0; 3]));
        assert_eq!((vit.crop_px, vit.resample), (None, Some(3)));
        let text = r#"{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3,
            "do_center_crop": true, "crop_size": {"height": 224, "width": 224}, "rescale_factor": 0.00392156862745098,
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}"#;
        assert_eq!(parse(text, Family::Dinov2).unwrap(), Preprocessor::family_default(Family::Dinov2));
    }

    #[test]
    fn meaning_of_bare_number_follows_processor_class() {
        let edge = parse(r#"{"size": 256, "crop_size": 98}"#, Family::Dinov2).unwrap();
        assert_eq!((edge.resize, edge.crop_px), (Some(Resize::ShortestEdge { px: 256 }), Some(98)));
        let text = r#"{"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "do_center_crop": false}"#;
        let squash = parse(text, Family::Dinov2).unwrap();
        assert_eq!(squash.resize, Some(Resize::Squash { height_px: 64, width_px: 64 }));
        assert_eq!(parse(r#"{"do_resize": false}"#, Family::Vit).unwrap().resize, None);
    }

    #[test]
    fn invalid_values_name_their_key() {
        for (text, expected) in [
            (r#"{"size": 0}"#, "`size` gives `0` pixels"),
            (r#"{"size": {"longest_edge": 9}}"#, "`size` must be a number"),
            (r#"{"crop_size": {"height": 4, "width": 5}, "do_center_crop": true}"#, "`crop_size` is"),
            (r#"{"resample": 6}"#, "`resample` is `6`"),
            (r#"{"image_std": [1, 0, 1]}"#, "`image_std` is"),
            (r#"{"image_mean": [1, 2]}"#, "`image_mean`"),
        ] {
            let error = parse(text, Family::Vit).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn exported_json_reads_back_unchanged() {
        for family in [Family::Vit, Family::Dinov2] {
            let value = Preprocessor::family_default(family);
            let text = value.to_json(family).to_string();
            assert_eq!(parse(&text, family).unwrap(), value);
        }
    }
}
