//! Resolution of the decoder's [`ImageSpec`]: configuration first, then checkpoint, then defaults.

use crate::config::RunConfig;
use crate::decode::{Geometry, ImageSpec, Resample};
use crate::model::{Preprocessor, Resize};
use crate::pipeline::error::PipelineError;

/// Side of the square if neither configuration nor checkpoint sets one.
const DEFAULT_SIZE_PX: u32 = 224;

/// Preprocessing that a checkpoint was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct CheckpointPreprocessing {
    geometry: Option<Geometry>,
    resample: Option<Resample>,
}

impl CheckpointPreprocessing {
    /// Reads a checkpoint's preprocessor configuration.
    ///
    /// # Errors
    /// When the output is not square, or the filter does not exist.
    pub(crate) fn read(preprocessor: &Preprocessor, image_size_px: u32) -> Result<Self, PipelineError> {
        let refused = |what: String| PipelineError::Model(format!("`preprocessor_config.json` {what}"));
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
                // Without a crop the images would differ in shape and fit no batch.
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
        Ok(Self { geometry: Some(geometry), resample })
    }
}

/// Resolves the preprocessing: configuration first, then checkpoint, then defaults.
pub(crate) fn resolve_spec(config: &RunConfig, checkpoint: CheckpointPreprocessing) -> ImageSpec {
    let settings = config.preprocess();
    let geometry = checkpoint.geometry.unwrap_or(Geometry::Squash { size_px: DEFAULT_SIZE_PX });
    ImageSpec {
        geometry: settings.size_px.map_or(geometry, |size_px| scale_geometry(geometry, size_px)),
        resample: settings.resample.or(checkpoint.resample).unwrap_or(Resample::Bilinear),
        alpha: settings.alpha,
        max_encoded_bytes: settings.max_encoded.0,
        max_pixels: settings.max_pixels,
        crops: config.views() > 0,
    }
}

/// Scales a geometry to another output size. A crop keeps the same part of the image.
fn scale_geometry(geometry: Geometry, size_px: u32) -> Geometry {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_keeps_the_crop_fraction() {
        let geometry = Geometry::ShortestEdge { edge_px: 256, crop_px: 224 };
        assert_eq!(scale_geometry(geometry, 448), Geometry::ShortestEdge { edge_px: 512, crop_px: 448 });
        assert_eq!(scale_geometry(geometry, 224), geometry);
    }
}
