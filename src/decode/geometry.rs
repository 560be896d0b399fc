//! Size of the source → size of the resized image and the part of it that becomes the output.

use serde::{Deserialize, Serialize};

/// Rule by which an image of any size becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Geometry {
    /// Resize to size × size, whatever the aspect.
    Squash {
        /// Edge of the output, in pixels.
        size_px: u32,
    },
    /// Resize to size × size, then crop the centre (`size: {height, width}` with `do_center_crop` in a
    /// `preprocessor_config.json`).
    SquashThenCrop {
        /// Edge of the resized image.
        size_px: u32,
        /// Edge of the output; zeros surround the image where it is larger than `size_px`.
        crop_px: u32,
    },
    /// Resize the shorter edge to `edge_px` and the longer one by the same ratio, rounded down; then crop the centre
    /// (`size: {shortest_edge}` with `do_center_crop`).
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

    /// Windows along both axes for a source of `width` × `height`.
    pub(super) fn windows(&self, width: u32, height: u32) -> (Window, Window) {
        let (resized_width, resized_height) = self.resized(width, height);
        let output = self.output_px();
        (Window::centred(width, resized_width, output), Window::centred(height, resized_height, output))
    }
}

/// One axis: the part of the resized image that is kept, and its position in the output.
///
/// Only this part is computed, so that a 1 × 1,000,000 image costs no more than another.
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
    /// Position of the first kept pixel in the output.
    pub(super) offset: u32,
}

impl Window {
    /// Keeps the centre. An odd pixel is cut off at the end and padded at the start, as by `center_crop` in
    /// `transformers/image_transforms.py`.
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

    /// True if this axis is copied without change.
    pub(super) fn is_identity(&self) -> bool {
        self.resized == u64::from(self.source) && self.len == self.source
    }

    /// True if the window is the whole output.
    pub(super) fn fills(&self, output: u32) -> bool {
        self.len == output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_edge_is_rounded_down() {
        let geometry = Geometry::ShortestEdge { edge_px: 256, crop_px: 224 };
        let (x, y) = geometry.windows(500, 333);
        assert_eq!((x.resized, x.first, x.len, x.offset), (384, 80, 224, 0));
        assert_eq!((y.resized, y.first, y.len, y.offset), (256, 16, 224, 0));
    }

    #[test]
    fn odd_padding_pixel_is_at_the_start() {
        let geometry = Geometry::ShortestEdge { edge_px: 5, crop_px: 10 };
        let (x, y) = geometry.windows(7, 5);
        assert_eq!((x.resized, x.first, x.len, x.offset), (7, 0, 7, 2));
        assert_eq!((y.resized, y.first, y.len, y.offset), (5, 0, 5, 3));
    }

    #[test]
    fn config_format_is_stable() {
        let json = serde_json::to_string(&Geometry::ShortestEdge { edge_px: 256, crop_px: 224 }).unwrap();
        assert_eq!(json, r#"{"shortest_edge":{"edge_px":256,"crop_px":224}}"#);
        assert_eq!(
            serde_json::from_str::<Geometry>(r#"{"squash":{"size_px":224}}"#).unwrap(),
            Geometry::Squash { size_px: 224 }
        );
    }
}
