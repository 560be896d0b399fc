//! `preprocessor_config.json`: what was done to images before the backbone saw them in training.
//!
//! Reads the layouts of transformers from 4.0 on: `size` and `crop_size` as a number or as an object,
//! steps that are absent, which then take the family's default. Pure: text in, values out.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use crate::model::config::Family;
use crate::model::config::parse_json;
use crate::model::error::ModelError;

const MAX_SIDE_PX: u64 = 1 << 16;
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How an image is brought to size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// To exactly this height and width, whatever the aspect.
    Squash {
        /// Height in pixels.
        height_px: u32,
        /// Width in pixels.
        width_px: u32,
    },
    /// So that the shorter side has this length, the aspect kept.
    ShortestEdge {
        /// Length of the shorter side, in pixels.
        px: u32,
    },
}

/// The preprocessing that a checkpoint asks for; a step that is switched off is neutral here.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    /// How to resize; none when `do_resize` is false.
    pub resize: Option<Resize>,
    /// Side of the square cut from the centre after resizing, in pixels; none when `do_center_crop` is false.
    pub crop_px: Option<u32>,
    /// Pillow's code of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
    pub resample: Option<u8>,
    /// Factor from u8 to the scale of `mean` and `std`; 1 when `do_rescale` is false.
    pub rescale: f32,
    /// Subtracted for each of R, G, B; 0 when `do_normalize` is false.
    pub mean: [f32; 3],
    /// Divided by for each of R, G, B, never 0; 1 when `do_normalize` is false.
    pub std: [f32; 3],
}

/// The file's keys that matter here.
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
    /// What the family's published checkpoints use, for a checkpoint without the file.
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

    /// Checks the text of a `preprocessor_config.json`; `path` is for messages.
    pub(super) fn parse(text: &[u8], path: &Path, family: Family) -> Result<Self, ModelError> {
        let raw: RawPreprocessor = parse_json(text, path)?;
        let default = Self::family_default(family);

        let resize = if raw.do_resize == Some(false) {
            None
        } else if let Some(size) = raw.size {
            // A bare number means a square to ViT's processors and the shorter side to those of BiT and CLIP, which DINOv2 uses.
            let class = raw.image_processor_type.or(raw.feature_extractor_type);
            let squash = class.map_or(family == Family::Vit, |class| class.starts_with("ViT"));
            Some(target(size, squash, path)?)
        } else {
            default.resize
        };
        let crop_px = if raw.do_center_crop.unwrap_or(default.crop_px.is_some()) {
            match raw.crop_size {
                None => Some(default.crop_px.unwrap_or(224)),
                Some(size) => match target(size, true, path)? {
                    Resize::Squash { height_px, width_px } if height_px == width_px => Some(height_px),
                    other => {
                        let problem = format!("is {other:?}; only a square can be cut");
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
            (raw.image_mean.map_or(default.mean, each), raw.image_std.map_or(default.std, each))
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

    /// The values as a `preprocessor_config.json` that transformers reads.
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
        // ViT's processor has no crop.
        if family == Family::Dinov2 {
            value["do_center_crop"] = json!(self.crop_px.is_some());
        }
        if let Some(px) = self.crop_px {
            value["crop_size"] = json!({"height": px, "width": px});
        }
        value
    }
}

fn each(channels: RawChannels) -> [f32; 3] {
    match channels {
        RawChannels::Same(value) => [value; 3],
        RawChannels::Each(values) => values,
    }
}

fn target(size: RawSize, squash: bool, path: &Path) -> Result<Resize, ModelError> {
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
    fn the_old_layout_of_vit_is_read() {
        let text = r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#;
        assert_eq!(parse(text, Family::Vit).unwrap(), Preprocessor::family_default(Family::Vit));
    }

    #[test]
    fn the_new_layouts_are_read() {
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
    fn a_bare_number_means_what_the_processor_takes_it_for() {
        let edge = parse(r#"{"size": 256, "crop_size": 98}"#, Family::Dinov2).unwrap();
        assert_eq!((edge.resize, edge.crop_px), (Some(Resize::ShortestEdge { px: 256 }), Some(98)));
        let text = r#"{"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "do_center_crop": false}"#;
        let squash = parse(text, Family::Dinov2).unwrap();
        assert_eq!(squash.resize, Some(Resize::Squash { height_px: 64, width_px: 64 }));
        assert_eq!(parse(r#"{"do_resize": false}"#, Family::Vit).unwrap().resize, None);
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_key() {
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
    fn what_is_written_reads_back_the_same() {
        for family in [Family::Vit, Family::Dinov2] {
            let value = Preprocessor::family_default(family);
            let text = value.to_json(family).to_string();
            assert_eq!(parse(&text, family).unwrap(), value);
        }
    }
}
