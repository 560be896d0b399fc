//! The forward pass of plain backbones on CUDA as a few kernels of this crate's own, in CUDA C++ (`kernels/*.cu`).
//!
//! [`crate::card`] compiles and launches them, and has the products. A block is seven launches: norm, query-key-value
//! product, attention, output product, norm, and the two products of the MLP. Biases, activation, gates, residual sums,
//! tables and rotations of positions are part of the products, relative positions of attention; `LayerScale` is multiplied
//! into the weights when they are loaded. Sums, statistics of norms and the softmax are f32; weights and activations are
//! bf16.
//!
//! [`find_gap`] says which models are covered; burn's operations run the others.

mod backbone;
mod product;
mod transfer;

use crate::card::{LEAST_CAPABILITY, VECTOR};
use crate::model::config::{BackboneConfig, Body, FeedForward, PlainConfig, ProjectionHead};
use crate::model::pooling::Pooling;

pub(super) use backbone::{CardBackbone, Shape};
pub(super) use transfer::Features;

/// Widest token whose norm fits the registers of a warp.
const MAX_HIDDEN: usize = 2048;

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

/// Returns whether the kernels cover a model, on a GPU that can run them.
pub(super) fn cover(config: &BackboneConfig, pooling: Pooling) -> bool {
    find_gap(config, pooling, LEAST_CAPABILITY).is_none()
}

/// Returns the first part of a model that the kernels do not cover; `None` if they cover all of it.
pub(super) fn find_gap(config: &BackboneConfig, pooling: Pooling, capability: u32) -> Option<&'static str> {
    let Body::Plain(plain) = &config.body else { return Some("attention within windows") };
    if capability < LEAST_CAPABILITY {
        return Some("a GPU without bf16");
    }
    let (FeedForward::Mlp { inner } | FeedForward::Gated { inner, .. }) = plain.feed_forward;
    find_odd_width(plain, inner).or_else(|| find_odd_pooling(plain, pooling))
}

fn find_odd_width(plain: &PlainConfig, inner: usize) -> Option<&'static str> {
    let width = plain.hidden / plain.heads;
    if plain.hidden > MAX_HIDDEN || !plain.hidden.is_multiple_of(VECTOR) || !inner.is_multiple_of(VECTOR) {
        return Some("the width of its layers");
    }
    (width > MAX_HEAD_WIDTH || !width.is_multiple_of(VECTOR)).then_some("the width of its heads")
}

fn find_odd_pooling(plain: &PlainConfig, pooling: Pooling) -> Option<&'static str> {
    match (pooling, plain.head) {
        (Pooling::Head, Some(ProjectionHead::Linear { dim })) if !dim.is_multiple_of(VECTOR) => {
            Some("the width of its projection")
        }
        _ => None,
    }
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
            cover(checkpoint.config(), Pooling::Cls)
        };
        assert!(covered("model/vit") && !covered("families/swin"));
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
