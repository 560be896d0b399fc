//! Memory and operations of a backbone's forward pass, from its configuration alone.

use crate::model::config::{BackboneConfig, Body, FeedForward, PlainConfig, WindowedConfig};
use crate::model::pooling::Pooling;

/// Multiple to which the queries of fused attention are padded.
const QUERY_MULTIPLE: u64 = 64;

/// Returns an upper bound on the activation memory of one image in f32, in bytes. All blocks share this memory.
pub(super) fn activation_bytes(config: &BackboneConfig, size_px: u32) -> u64 {
    let block = match &config.body {
        Body::Plain(plain) => {
            let tokens = tokens(config, plain, size_px);
            let scores = 4 * plain.heads as u64 * tokens * tokens.next_multiple_of(QUERY_MULTIPLE);
            block_values(tokens, plain.hidden as u64, plain_inner(plain), scores)
        }
        Body::Windowed(windowed) => {
            let stages = 0..windowed.depths.len();
            stages.map(|stage| stage_values(config, windowed, stage, size_px)).max().unwrap_or(0)
        }
    };
    // Before the first block: pixels as bytes and in two float formats.
    4 * block + 9 * 3 * u64::from(size_px) * u64::from(size_px)
}

/// Counts the values of a block's buffers.
///
/// Twelve buffers of `[tokens, hidden]`: residual and sum, both norms in f32, query, key and value with copies by head,
/// attention output. Then either the MLP before and after its activation, or the attention scores before and after the
/// softmax, each in two formats.
fn block_values(tokens: u64, hidden: u64, inner: u64, scores: u64) -> u64 {
    tokens * 12 * hidden + (tokens * 4 * inner).max(scores)
}

fn stage_values(config: &BackboneConfig, windowed: &WindowedConfig, stage: usize, size_px: u32) -> u64 {
    let (tokens, area) = window_tokens(config, windowed, stage, size_px);
    let scores = 4 * windowed.heads[stage] as u64 * tokens * area;
    block_values(tokens, windowed.width(stage) as u64, windowed.inner(stage) as u64, scores)
}

/// Returns the floating-point operations of one image's forward pass up to block `last`, without the head.
///
/// Counts two operations for each multiplication of the matrix products and of attention. Block `last` computes the first
/// token alone if `pooling` reads no other; its keys, values and queries are one product, so they count for all tokens.
pub(super) fn flop_per_image(config: &BackboneConfig, size_px: u32, last: u32, pooling: Pooling) -> u64 {
    let patch = 3 * u64::from(config.patch_px).pow(2);
    let patches = u64::from(size_px / config.patch_px.max(1)).pow(2);
    match &config.body {
        Body::Plain(plain) => {
            let (tokens, hidden) = (tokens(config, plain, size_px), plain.hidden as u64);
            let after_projection = 2 * hidden * hidden + 4 * hidden * plain_inner(plain) + 4 * tokens * hidden;
            let block = |computed: u64| tokens * 6 * hidden * hidden + computed * after_projection;
            let computed = plain.pooled_tokens(pooling).count(tokens as usize) as u64;
            u64::from(last) * block(tokens) + block(computed) + patches * 2 * hidden * patch
        }
        Body::Windowed(windowed) => {
            let block = |index: u32| {
                let stage = windowed.stage_of(index as usize);
                let (tokens, area) = window_tokens(config, windowed, stage, size_px);
                let (width, inner) = (windowed.width(stage) as u64, windowed.inner(stage) as u64);
                tokens * (8 * width * width + 4 * width * inner + 4 * area * width)
            };
            let merging = |stage: usize| {
                let tokens = window_tokens(config, windowed, stage + 1, size_px).0;
                tokens * 16 * (windowed.width(stage) as u64).pow(2)
            };
            let merged: u64 = (0..windowed.stage_of(last as usize)).map(merging).sum();
            (0..=last).map(block).sum::<u64>() + merged + patches * 2 * windowed.embed as u64 * patch
        }
    }
}

/// Returns the number of tokens: the patches and those before them.
fn tokens(config: &BackboneConfig, plain: &PlainConfig, size_px: u32) -> u64 {
    plain.leading_tokens() as u64 + u64::from(size_px / config.patch_px.max(1)).pow(2)
}

/// Returns the tokens of a stage with their padding, and those of a window.
fn window_tokens(config: &BackboneConfig, windowed: &WindowedConfig, stage: usize, size_px: u32) -> (u64, u64) {
    let grid = WindowedConfig::grid((size_px / config.patch_px.max(1)) as usize, stage);
    let (window, _) = windowed.window_and_shift(stage, grid);
    ((grid.next_multiple_of(window) as u64).pow(2), (window as u64).pow(2))
}

/// Returns the inner width of the MLP; one and a half times the width of a gated MLP, which has a third projection.
fn plain_inner(plain: &PlainConfig) -> u64 {
    match plain.feed_forward {
        FeedForward::Mlp { inner } => inner as u64,
        FeedForward::Gated { inner, .. } => 3 * inner as u64 / 2,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// ViT-B/16 at 224 px: 17.6 billion multiplications (Dosovitskiy et al. 2021), fewer for its CLS token alone.
    #[test]
    fn cls_token_needs_fewer_operations_than_all_tokens() {
        let config = BackboneConfig::parse(br#"{"model_type": "vit"}"#, Path::new("config.json")).unwrap();
        let flop = |last, pooling| flop_per_image(&config, 224, last, pooling);
        assert_eq!(flop(11, Pooling::Mean), 35_126_120_448);
        // 196 queries of attention, and as many rows of the products after it.
        let skipped = 196 * (2 * 768 * 768 + 2 * 2 * 768 * 3072 + 2 * 2 * 197 * 768);
        assert_eq!(flop(11, Pooling::Cls), flop(11, Pooling::ClsMean) - skipped);
        assert_eq!(flop(0, Pooling::Cls), flop(0, Pooling::ClsMean) - skipped);
    }
}
