//! Parses `preprocessor_config.json`, the image preprocessing of a checkpoint.
//!
//! Reads the layouts of transformers 4.0 and later as transformers 5 does. An absent key takes the default of the image
//! processor class that the file names; without a name, of the class of the model's family. An unknown class is
//! rejected, because its defaults and steps are unknown. The module does no I/O.

mod class;
mod raw;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::json;

use class::CLASSES;
use class::IMAGENET_MEAN;
use class::IMAGENET_STD;
use class::ProcessorClass;
use class::family_class;
use class::find_class;
use raw::RawChannels;
use raw::RawFloat;
use raw::RawPreprocessor;
use raw::RawResample;
use raw::RawSize;

use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::model::json::parse_json;

/// Upper bound on the side of an image, in pixels.
const MAX_SIDE_PX: u64 = 1 << 16;
/// Side below which `ConvNextImageProcessor` crops after resizing, in pixels.
const CONVNEXT_CROP_BELOW_PX: u32 = 384;

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

impl Preprocessor {
    /// Returns the preprocessing of the family's published checkpoints, for a checkpoint without the file.
    pub fn family_default(family: Family) -> Self {
        let class = family_class(family);
        let own = Self {
            resize: Some(class.size),
            crop_px: class.crop_px.filter(|_| class.do_center_crop),
            resample: Some(class.resample),
            rescale: 1.0 / 255.0,
            mean: class.mean,
            std: class.std,
        };
        match family {
            Family::Dinov2 | Family::Dinov2WithRegisters => {
                Self { resize: Some(Resize::ShortestEdge { px: 256 }), mean: IMAGENET_MEAN, std: IMAGENET_STD, ..own }
            }
            Family::VitMae | Family::Swin | Family::Swinv2 => Self { mean: IMAGENET_MEAN, std: IMAGENET_STD, ..own },
            _ => own,
        }
    }

    /// Parses and checks the text of a `preprocessor_config.json`; `path` appears in errors.
    pub(super) fn parse(text: &[u8], path: &Path, family: Family) -> Result<Self, ModelError> {
        let raw: RawPreprocessor = parse_json(text, path)?;
        let class = raw.class(path, family)?;
        let (resize, crop_px) = raw.geometry(&class, path)?;
        let resample = match raw.resample.value("resample", "do_resize", path) {
            Err(error) if resize.is_some() => return Err(error),
            Ok(Some(resample)) => parse_resample(&resample, path)?,
            _ => class.resample,
        };
        let rescale = if raw.do_rescale.is_on(true) {
            let factor = raw.rescale_factor.value("rescale_factor", "do_rescale", path)?;
            factor.map_or(1.0 / 255.0, |factor| factor.value() as f32)
        } else {
            1.0
        };
        if !rescale.is_finite() {
            return Err(ModelError::value(path, "rescale_factor", format!("is `{rescale}`; it must be finite")));
        }
        let (mean, std) = if raw.do_normalize.is_on(true) {
            let mean = raw.image_mean.value("image_mean", "do_normalize", path)?;
            let std = raw.image_std.value("image_std", "do_normalize", path)?;
            (mean.map_or(class.mean, expand_channels), std.map_or(class.std, expand_channels))
        } else {
            ([0.0; 3], [1.0; 3])
        };
        if mean.iter().any(|value| !value.is_finite()) {
            return Err(ModelError::value(path, "image_mean", format!("is `{mean:?}`; it must be finite")));
        }
        if std.iter().any(|value| !(value.is_finite() && *value != 0.0)) {
            return Err(ModelError::value(path, "image_std", format!("is `{std:?}`; it must be finite and not zero")));
        }
        Ok(Self { resize, crop_px, resample: Some(resample), rescale, mean, std })
    }

    /// Returns the values as the content of a `preprocessor_config.json` for transformers.
    pub(super) fn to_json(&self, family: Family) -> serde_json::Value {
        let class = family_class(family);
        let mut value = json!({
            "image_processor_type": class.name,
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
        // Some classes have no crop step.
        if class.do_center_crop {
            value["do_center_crop"] = json!(self.crop_px.is_some());
        }
        if let Some(px) = self.crop_px {
            value["crop_size"] = json!({"height": px, "width": px});
        }
        value
    }
}

impl RawPreprocessor {
    /// Returns the image processor class that the file names, or else the class of the family.
    fn class(&self, path: &Path, family: Family) -> Result<ProcessorClass, ModelError> {
        let (key, name) = match (&self.image_processor_type, &self.feature_extractor_type) {
            (Some(name), _) => ("image_processor_type", name),
            (None, Some(name)) => ("feature_extractor_type", name),
            (None, None) => return Ok(family_class(family)),
        };
        find_class(name).ok_or_else(|| {
            let supported = CLASSES.map(|class| format!("`{}`", class.name)).join(", ");
            ModelError::value(path, key, format!("is `{name}`, which is not supported; supported are {supported}"))
        })
    }

    /// Returns the resize step and the side of the centre crop.
    fn geometry(&self, class: &ProcessorClass, path: &Path) -> Result<(Option<Resize>, Option<u32>), ModelError> {
        let resize = if self.do_resize.is_on(true) {
            let size = self.size.value("size", "do_resize", path)?;
            Some(size.map_or(Ok(class.size), |size| parse_size(size, class.default_to_square, "size", path))?)
        } else {
            None
        };
        let crop_px =
            if self.do_center_crop.is_on(class.do_center_crop) { Some(self.crop_size(class, path)?) } else { None };
        let Some(default_pct) = class.crop_pct else { return Ok((resize, crop_px)) };
        if crop_px.is_some() {
            let problem = format!("is `true`, which is not supported for `{}`", class.name);
            return Err(ModelError::value(path, "do_center_crop", problem));
        }
        // ConvNextImageProcessor.resize: a small size is cropped out of a larger image, a large one is a plain square.
        match resize {
            None => Ok((None, None)),
            Some(Resize::ShortestEdge { px }) if px < CONVNEXT_CROP_BELOW_PX => {
                let pct = self.crop_pct.value("crop_pct", "do_resize", path)?.map_or(default_pct, RawFloat::value);
                // transformers truncates: int(shortest_edge / crop_pct). The cast maps NaN and negative numbers to 0.
                let edge_px = (f64::from(px) / pct) as u64;
                if edge_px < u64::from(px) || edge_px > MAX_SIDE_PX {
                    let problem =
                        format!("is `{pct}`; it must be at most 1, and `size` / `crop_pct` at most {MAX_SIDE_PX}");
                    return Err(ModelError::value(path, "crop_pct", problem));
                }
                Ok((Some(Resize::ShortestEdge { px: edge_px as u32 }), Some(px)))
            }
            Some(Resize::ShortestEdge { px }) => Ok((Some(Resize::Squash { height_px: px, width_px: px }), None)),
            Some(Resize::Squash { .. }) => {
                let problem = format!("must be a number or `shortest_edge` for `{}`", class.name);
                Err(ModelError::value(path, "size", problem))
            }
        }
    }

    /// Returns the side of the centre crop, which must be a square.
    fn crop_size(&self, class: &ProcessorClass, path: &Path) -> Result<u32, ModelError> {
        let Some(size) = self.crop_size.value("crop_size", "do_center_crop", path)? else {
            let absent = || ModelError::value(path, "crop_size", "is absent although `do_center_crop` is `true`");
            return class.crop_px.ok_or_else(absent);
        };
        match parse_size(size, true, "crop_size", path)? {
            Resize::Squash { height_px, width_px } if height_px == width_px => Ok(height_px),
            other => Err(ModelError::value(path, "crop_size", format!("is {other:?}; only a square is supported"))),
        }
    }
}

/// Parses a filter: Pillow's code, or a name of torchvision's `InterpolationMode`.
///
/// torchvision's `nearest` is not supported: it rounds positions down, unlike Pillow's nearest filter.
fn parse_resample(resample: &RawResample, path: &Path) -> Result<u8, ModelError> {
    const NAMES: [&str; 6] = ["nearest-exact", "lanczos", "bilinear", "bicubic", "box", "hamming"];
    let problem = match resample {
        RawResample::Code(code) => match u8::try_from(*code) {
            Ok(code) if usize::from(code) < NAMES.len() => return Ok(code),
            _ => format!("is `{code}`; Pillow's filters are `0` to `5`"),
        },
        RawResample::Name(name) => match (0..).zip(NAMES).find(|(_, known)| known == name) {
            Some((code, _)) => return Ok(code),
            None => format!("is `{name}`; supported are `{}`", NAMES.join("`, `")),
        },
    };
    Err(ModelError::value(path, "resample", problem))
}

/// Expands a value to all channels.
fn expand_channels(channels: RawChannels) -> [f32; 3] {
    let values = match channels {
        RawChannels::Same(value) => [value; 3],
        RawChannels::Each(values) => values,
    };
    values.map(|value| value.value() as f32)
}

/// Parses a size; `default_to_square`: whether a bare number is the side of a square or the shorter side.
fn parse_size(size: RawSize, default_to_square: bool, key: &'static str, path: &Path) -> Result<Resize, ModelError> {
    let check_side = |value: u64| {
        if (1..=MAX_SIDE_PX).contains(&value) {
            Ok(value as u32)
        } else {
            let problem = format!("gives `{value}` pixels; a side must lie between 1 and {MAX_SIDE_PX}");
            Err(ModelError::value(path, key, problem))
        }
    };
    match size {
        RawSize::Side(px) if default_to_square => {
            Ok(Resize::Squash { height_px: check_side(px)?, width_px: check_side(px)? })
        }
        RawSize::Side(px)
        | RawSize::Sides { height: None, width: None, shortest_edge: Some(px), longest_edge: None } => {
            Ok(Resize::ShortestEdge { px: check_side(px)? })
        }
        RawSize::HeightWidth([height, width])
        | RawSize::Sides { height: Some(height), width: Some(width), shortest_edge: None, longest_edge: None } => {
            Ok(Resize::Squash { height_px: check_side(height)?, width_px: check_side(width)? })
        }
        RawSize::Sides { .. } => {
            let problem = "must be a number, `[height, width]`, `height` and `width`, or `shortest_edge`";
            Err(ModelError::value(path, key, problem))
        }
    }
}
