//! The forward pass of plain backbones on CUDA as a few kernels of this crate's own, in CUDA C++ (`kernels/*.cu`).
//!
//! [`crate::card`] compiles and launches them, and has the products. A block is seven launches: norm, query-key-value
//! product, attention, output product, norm, and the two products of the MLP. The products include
//! biases, activations, gates, residual sums, added positions and rotations; attention includes relative positions.
//! `LayerScale` is multiplied into the weights when they are loaded. Sums, statistics of norms and the softmax are f32;
//! weights and activations are bf16.
//!
//! [`find_gap`] says which models are covered; burn's operations run the others.

mod backbone;
mod product;
mod transfer;

use crate::card::{LEAST_CAPABILITY, VECTOR};
use crate::model::config::{BackboneConfig, Body, PlainConfig, ProjectionHead};
use crate::model::pooling::Pooling;

pub(super) use backbone::{CardBackbone, Shape};
pub(super) use transfer::Features;

/// Widest token whose norm fits the registers of a warp.
const MAX_HIDDEN: usize = 2048;

/// Multiple to which the pixels of a patch are padded: the depth of a tile.
const PATCH_MULTIPLE: usize = 64;

/// Widest head whose tiles fit shared memory and registers.
const MAX_HEAD_WIDTH: usize = 128;

/// Kernels that may compute a backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// burn's operations.
    Burn,
    /// This crate's CUDA kernels in bf16 if they cover the model, else burn's operations.
    Own {
        /// Index of the GPU.
        gpu: usize,
        /// Compute capability, such as 90 for 9.0.
        capability: u32,
    },
}

impl Kernels {
    /// Returns whether a GPU can run kernels of this crate.
    pub fn has_own(self) -> bool {
        matches!(self, Self::Own { capability, .. } if capability >= LEAST_CAPABILITY)
    }
}

/// Returns the bytes of a model's activations for an image on a GPU that can run the kernels; `None` if they do not cover it.
pub(super) fn activation_bytes(config: &BackboneConfig, pooling: Pooling, size_px: u32) -> Option<u64> {
    let Body::Plain(plain) = &config.body else { return None };
    let sizes = ImageSizes::new(config, plain, size_px);
    let values = sizes.tokens * (2 * plain.hidden) + sizes.wide;
    find_gap(config, pooling, LEAST_CAPABILITY).is_none().then_some(2 * values as u64)
}

/// Sizes of an image in a model.
#[derive(Debug, Clone, Copy)]
struct ImageSizes {
    /// Patches in a row.
    grid: usize,
    /// Values of a patch with its padding.
    patch_pitch: usize,
    /// Tokens before the patches.
    leading: usize,
    tokens: usize,
    /// Values of the widest of: patches; queries, keys and values; the hidden layer of the MLP.
    wide: usize,
}

impl ImageSizes {
    fn new(config: &BackboneConfig, plain: &PlainConfig, size_px: u32) -> Self {
        let grid = (size_px / config.patch_px.max(1)) as usize;
        let patch_pitch = (3 * (config.patch_px as usize).pow(2)).next_multiple_of(PATCH_MULTIPLE);
        let leading = plain.leading_tokens();
        let tokens = leading + grid * grid;
        let wide = (grid * grid * patch_pitch).max(tokens * (3 * plain.hidden).max(plain.feed_forward.inner()));
        Self { grid, patch_pitch, leading, tokens, wide }
    }
}

/// Returns the first part of a model that the kernels do not cover; `None` if they cover all of it.
pub(super) fn find_gap(config: &BackboneConfig, pooling: Pooling, capability: u32) -> Option<&'static str> {
    let Body::Plain(plain) = &config.body else { return Some("attention within windows") };
    if capability < LEAST_CAPABILITY {
        return Some("a GPU without bf16");
    }
    find_odd_width(plain, plain.feed_forward.inner()).or_else(|| find_odd_pooling(plain, pooling))
}

fn find_odd_width(plain: &PlainConfig, inner: usize) -> Option<&'static str> {
    let width = plain.hidden / plain.heads;
    if plain.hidden > MAX_HIDDEN || !plain.hidden.is_multiple_of(VECTOR) || !inner.is_multiple_of(VECTOR) {
        return Some("the width of its layers");
    }
    (width > MAX_HEAD_WIDTH || !width.is_multiple_of(VECTOR)).then_some("the width of its heads")
}

fn find_odd_pooling(plain: &PlainConfig, pooling: Pooling) -> Option<&'static str> {
    let odd = |head| matches!(head, ProjectionHead::Linear { dim } if !dim.is_multiple_of(VECTOR));
    (pooling == Pooling::Head && plain.head.is_some_and(odd)).then_some("the width of its projection")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Checkpoint;

    #[test]
    fn gaps_follow_the_architecture() {
        let gap = |folder: &str, pooling, capability| {
            let checkpoint = Checkpoint::open(&Path::new("tests/reference").join(folder)).unwrap();
            find_gap(checkpoint.config(), pooling, capability)
        };
        for folder in [
            "model/vit",
            "model/dinov2",
            "families/clip",
            "families/deit",
            "families/dinov2_registers",
            "families/siglip",
            "families/beit",
            "families/beit_shared",
            "families/dinov3",
            "families/dinov3_gated",
            "model/dinov2_swiglu",
        ] {
            assert_eq!(gap(folder, Pooling::ClsMean, 80), None, "{folder}");
            assert_eq!(gap(folder, Pooling::ClsMean, 75), Some("a GPU without bf16"), "{folder}");
        }
        let covered = |folder: &str| {
            let checkpoint = Checkpoint::open(&Path::new("tests/reference").join(folder)).unwrap();
            activation_bytes(checkpoint.config(), Pooling::Cls, 32)
        };
        // States and their norm of 17 tokens with 32 values; the 192 values of each patch take more than query, key and value.
        assert_eq!(covered("model/vit"), Some(2 * (2 * 17 * 32 + 16 * 192)));
        assert_eq!(covered("families/swin"), None);
        for (folder, expected) in
            [("families/swin", "attention within windows"), ("families/dino", "the width of its layers")]
        {
            assert_eq!(gap(folder, Pooling::Mean, 90), Some(expected), "{folder}");
        }
    }

    #[test]
    fn widths_and_heads_that_do_not_fit_are_gaps() {
        let checkpoint = Checkpoint::open(Path::new("tests/reference/model/dinov2")).unwrap();
        let Body::Plain(plain) = &checkpoint.config().body else { unreachable!("DINOv2 has no windows") };
        let width = |hidden, heads, inner| find_odd_width(&PlainConfig { hidden, heads, ..plain.clone() }, inner);
        for (hidden, heads) in [(384, 6), (768, 12), (1024, 16), (1152, 16), (1280, 16), (1408, 16), (2048, 16)] {
            assert_eq!(width(hidden, heads, 4 * hidden), None, "{hidden} / {heads}");
        }
        for (hidden, heads, inner) in [(2304, 18, 9216), (60, 3, 240), (64, 1, 100)] {
            assert_eq!(width(hidden, heads, inner), Some("the width of its layers"), "{hidden} / {heads} / {inner}");
        }
        for (hidden, heads) in [(192, 1), (768, 192), (384, 32)] {
            assert_eq!(width(hidden, heads, 4 * hidden), Some("the width of its heads"), "{hidden} / {heads}");
        }
    }

    #[test]
    fn projections_have_a_multiple_of_eight_values() {
        let checkpoint = Checkpoint::open(Path::new("tests/reference/model/dinov2")).unwrap();
        let Body::Plain(plain) = &checkpoint.config().body else { unreachable!("DINOv2 has no windows") };
        let head = |head| find_odd_pooling(&PlainConfig { head, ..plain.clone() }, Pooling::Head);
        assert_eq!(head(Some(ProjectionHead::Linear { dim: 512 })), None);
        assert_eq!(head(Some(ProjectionHead::Linear { dim: 20 })), Some("the width of its projection"));
        assert_eq!(head(Some(ProjectionHead::Attention)), None);
        assert_eq!(find_odd_pooling(plain, Pooling::Mean), None);
    }
}
