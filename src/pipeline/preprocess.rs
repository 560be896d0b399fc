//! What the preprocessing is, once configuration, checkpoint and defaults are put together.

use crate::config::RunConfig;
use crate::config::value as word;
use crate::decode::{Alpha, Geometry, ImageSpec, Resample};

/// Side of the square where neither configuration nor checkpoint says one.
const DEFAULT_SIZE_PX: u32 = 224;

/// What a checkpoint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Asked {
    pub(super) geometry: Option<Geometry>,
    pub(super) resample: Option<Resample>,
}

/// What the configuration says goes first, then the checkpoint, then the defaults.
pub(super) fn resolve(plan: &RunConfig, asked: Asked) -> ImageSpec {
    let raw = &plan.pipeline().preprocess;
    let geometry = asked.geometry.unwrap_or(Geometry::Squash { size_px: DEFAULT_SIZE_PX });
    let resample = raw.resample.map(|resample| match resample {
        word::Resample::Bilinear => Resample::Bilinear,
        word::Resample::Nearest => Resample::Nearest,
        word::Resample::Bicubic => Resample::Bicubic,
        word::Resample::Lanczos => Resample::Lanczos,
    });
    ImageSpec {
        geometry: raw.size_px.map_or(geometry, |size_px| scaled(geometry, size_px)),
        resample: resample.or(asked.resample).unwrap_or(Resample::Bilinear),
        alpha: match raw.alpha {
            word::Alpha::White => Alpha::White,
            word::Alpha::Drop => Alpha::Drop,
        },
        max_encoded_bytes: raw.max_encoded.0,
        max_pixels: raw.max_pixels,
        crops: plan.views() > 0,
    }
}

/// The same geometry at another output size: the part of the image that a crop keeps stays the same.
fn scaled(geometry: Geometry, size_px: u32) -> Geometry {
    let edge = |edge: u32, crop: u32| {
        let scaled = (u64::from(edge) * u64::from(size_px) + u64::from(crop) / 2) / u64::from(crop.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX)
    };
    match geometry {
        Geometry::Squash { .. } => Geometry::Squash { size_px },
        Geometry::SquashThenCrop { size_px: squash_px, crop_px } => {
            Geometry::SquashThenCrop { size_px: edge(squash_px, crop_px), crop_px: size_px }
        }
        Geometry::ShortestEdge { edge_px, crop_px } => {
            Geometry::ShortestEdge { edge_px: edge(edge_px, crop_px), crop_px: size_px }
        }
    }
}

/// What a checkpoint's preprocessor configuration means for the decoder.
///
/// # Errors
/// When it asks for an output that is no square, or for a filter that does not exist.
pub(super) fn asked_by(
    preprocessor: &crate::model::Preprocessor,
    image_size_px: u32,
) -> Result<Asked, super::PipelineError> {
    use crate::model::Resize;
    let refused = |what: String| super::PipelineError::Model(format!("`preprocessor_config.json` {what}"));
    let square = |height: u32, width: u32| {
        if height == width {
            Ok(height)
        } else {
            Err(refused(format!("asks for {height} × {width} pixels; only squares are supported")))
        }
    };
    let geometry = match (preprocessor.resize, preprocessor.crop_px) {
        (Some(Resize::Squash { height_px, width_px }), None) => {
            Geometry::Squash { size_px: square(height_px, width_px)? }
        }
        (Some(Resize::Squash { height_px, width_px }), Some(crop_px)) => {
            Geometry::SquashThenCrop { size_px: square(height_px, width_px)?, crop_px }
        }
        (Some(Resize::ShortestEdge { px }), crop) => {
            // Without a crop the images would differ in shape, which no batch can hold.
            Geometry::ShortestEdge { edge_px: px, crop_px: crop.unwrap_or(px) }
        }
        (None, _) => Geometry::Squash { size_px: image_size_px },
    };
    let resample = match preprocessor.resample {
        None => None,
        Some(code) => Some(
            Resample::from_pillow(u64::from(code))
                .ok_or_else(|| refused(format!("names no known filter by {code}")))?,
        ),
    };
    Ok(Asked { geometry: Some(geometry), resample })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_size_keeps_the_part_that_a_crop_keeps() {
        let geometry = Geometry::ShortestEdge { edge_px: 256, crop_px: 224 };
        assert_eq!(scaled(geometry, 448), Geometry::ShortestEdge { edge_px: 512, crop_px: 448 });
        assert_eq!(scaled(geometry, 224), geometry);
    }
}
