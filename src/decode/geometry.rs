//! Size of the source → which part of which resized image becomes the output.

use serde::{Deserialize, Serialize};

/// How an image of any size becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Geometry {
    /// Resized to size × size, whatever the aspect.
    Squash {
        /// Edge of the output.
        size_px: u32,
    },
    /// Resized to size × size, then the centre is cut out (`size: {height, width}` with `do_center_crop` in a
    /// `preprocessor_config.json`).
    SquashThenCrop {
        /// Edge of the resized image.
        size_px: u32,
        /// Edge of the output; zeros surround the image where it is larger than `size_px`.
        crop_px: u32,
    },
    /// The shorter edge is resized to `edge_px` and the longer one keeps the aspect, rounded down; then the
    /// centre is cut out (`size: {shortest_edge}` with `do_center_crop`).
    ShortestEdge {
        /// Length of the shorter edge of the resized image.
        edge_px: u32,
        /// Edge of the output; zeros surround the image where it is smaller.
        crop_px: u32,
    },
}

impl Geometry {
    /// Edge S of the output, in pixels.
    pub const fn output_px(&self) -> u32 {
        match *self {
            Self::Squash { size_px } => size_px,
            Self::SquashThenCrop { crop_px, .. } | Self::ShortestEdge { crop_px, .. } => crop_px,
        }
    }

    /// Width and height after resizing, before the crop.
    fn resized(&self, width: u32, height: u32) -> (u64, u64) {
        match *self {
            Self::Squash { size_px } | Self::SquashThenCrop { size_px, .. } => (u64::from(size_px), u64::from(size_px)),
            Self::ShortestEdge { edge_px, .. } => {
                let edge = u64::from(edge_px);
                let (short, long) = (u64::from(width.min(height)), u64::from(width.max(height)));
                let long = edge * long / short.max(1);
                if width <= height { (edge, long) } else { (long, edge) }
            }
        }
    }

    /// The windows along both axes for a source of `width` × `height`.
    pub(super) fn windows(&self, width: u32, height: u32) -> (Window, Window) {
        let (resized_width, resized_height) = self.resized(width, height);
        let output = self.output_px();
        (Window::centred(width, resized_width, output), Window::centred(height, resized_height, output))
    }
}

/// One axis: which part of the resized image is kept, and where in the output it lies.
///
/// Only the kept part is ever computed, so that a 1 × 1,000,000 image costs no more than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Length of the source.
    pub(super) source: u32,
    /// Length of the resized image.
    pub(super) resized: u64,
    /// First kept pixel of the resized image.
    pub(super) first: u64,
    /// Number of kept pixels.
    pub(super) len: u32,
    /// Where the first kept pixel lies in the output.
    pub(super) offset: u32,
}

impl Window {
    /// The centre, with transformers' rounding: towards the start where something is cut off, towards the end
    /// where something is padded (`center_crop` in `transformers/image_transforms.py`).
    fn centred(source: u32, resized: u64, output: u32) -> Self {
        match u32::try_from(resized) {
            Ok(short) if short < output => {
                Self { source, resized, first: 0, len: short, offset: (output - short).div_ceil(2) }
            }
            _ => Self { source, resized, first: (resized - u64::from(output)) / 2, len: output, offset: 0 },
        }
    }

    /// Source pixels for each resized pixel.
    pub(super) fn scale(&self) -> f64 {
        f64::from(self.source) / self.resized as f64
    }

    /// True where nothing changes along this axis.
    pub(super) fn is_whole_copy(&self) -> bool {
        self.resized == u64::from(self.source) && self.len == self.source
    }

    /// True where the window is the whole output.
    pub(super) fn fills(&self, output: u32) -> bool {
        self.len == output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_edge_is_rounded_down_and_the_crop_is_centred() {
        let geometry = Geometry::ShortestEdge { edge_px: 256, crop_px: 224 };
        let (x, y) = geometry.windows(500, 333);
        assert_eq!((x.resized, x.first, x.len, x.offset), (384, 80, 224, 0));
        assert_eq!((y.resized, y.first, y.len, y.offset), (256, 16, 224, 0));
    }

    #[test]
    fn a_small_image_is_padded_with_the_extra_pixel_before_it() {
        let geometry = Geometry::ShortestEdge { edge_px: 5, crop_px: 10 };
        let (x, y) = geometry.windows(7, 5);
        assert_eq!((x.resized, x.first, x.len, x.offset), (7, 0, 7, 2));
        assert_eq!((y.resized, y.first, y.len, y.offset), (5, 0, 5, 3));
    }

    #[test]
    fn the_config_form_is_stable() {
        let json = serde_json::to_string(&Geometry::ShortestEdge { edge_px: 256, crop_px: 224 }).unwrap();
        assert_eq!(json, r#"{"shortest_edge":{"edge_px":256,"crop_px":224}}"#);
        assert_eq!(
            serde_json::from_str::<Geometry>(r#"{"squash":{"size_px":224}}"#).unwrap(),
            Geometry::Squash { size_px: 224 }
        );
    }
}
