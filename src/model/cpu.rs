//! Direct path for transformer blocks on a CPU: f32 slices instead of a backend's tensors.
//!
//! Weights are packed once, when they are loaded. Bias, activation function, `LayerScale` and residual connection are
//! applied to the sums of a product while these are in registers, attention reads queries in place, and buffers are kept
//! from batch to batch. Sequences are independent, so each thread computes its own ones without waiting for others.
//!
//! The outputs of a sequence depend on neither the batch, the number of threads nor the width of the CPU's vectors. The
//! path needs vectors with fused multiplication and addition: AVX2, AVX-512 or NEON. `unsafe` is absent: `pulp` offers
//! the vectors of the CPU as safe functions. It has none for bf16, so weights and activations are f32 throughout.

#![expect(
    clippy::inline_always,
    reason = "`pulp` compiles functions that are not inlined for the oldest supported CPU"
)]

mod attention;
mod functions;
mod linear;
mod product;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

pub(super) use functions::Norm;
pub(super) use linear::Linear;

use crate::model::config::Activation;
use crate::model::pooling::PooledTokens;
use attention::{Attention, AttentionBuffers};
use functions::gate;
use product::{AlignedValues, Rows};

/// Rows that a thread multiplies with a weight at a time. At 256 rows the weights of small models are read once for each
/// ten thousand operations, and the activations stay in the cache.
const JOB_TOKENS: usize = 256;

/// Returns the vectors of this CPU; `None` if it has no fused multiplication and addition.
pub(super) fn detect() -> Option<Arch> {
    Some(Arch::new()).filter(|arch| !matches!(arch, Arch::Scalar))
}

/// Place of the norms of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormOrder {
    /// Before attention and MLP.
    Pre,
    /// After the residual connections.
    Post,
}

/// First projection of an MLP.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) projection: Linear,
    pub(super) activation: Activation,
    /// True if the outputs are gates and as many values that they multiply.
    pub(super) gated: bool,
    /// Outputs of the projection.
    pub(super) outputs: usize,
}

/// Transformer block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    /// Joined projections to query, key and value.
    pub(super) query_key_value: Linear,
    pub(super) attention_output: Linear,
    /// `LayerScale` after attention.
    pub(super) attention_scale: Option<Vec<f32>>,
    pub(super) mlp_norm: Norm,
    pub(super) inner: Inner,
    pub(super) outer: Linear,
    /// `LayerScale` after the MLP.
    pub(super) mlp_scale: Option<Vec<f32>>,
    /// Bias of the scaled scores of sequences of one length, `[heads, tokens, tokens]`.
    pub(super) bias: Option<Arc<Vec<f32>>>,
}

/// Rotary positions of the tokens of a sequence: cosines and sines, `[tokens, width of a head]` each.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) cosine: Vec<f32>,
    pub(super) sine: Vec<f32>,
}

/// Blocks of a transformer.
#[derive(Debug)]
pub(super) struct Blocks {
    arch: Arch,
    order: NormOrder,
    hidden: usize,
    heads: usize,
    rotation: Option<Rotation>,
    layers: Vec<Block>,
    /// Buffers that no thread uses.
    idle: Mutex<Vec<Buffers>>,
}

/// Buffers of a thread.
#[derive(Debug, Default)]
struct Buffers {
    /// Normalised states, then attention's output, `[tokens, hidden]`.
    narrow: AlignedValues,
    /// Query, key and value, then the inner values of the MLP.
    wide: AlignedValues,
    attention: AttentionBuffers,
}

impl Blocks {
    /// Creates the blocks.
    pub(super) fn new(
        arch: Arch,
        order: NormOrder,
        [hidden, heads]: [usize; 2],
        rotation: Option<Rotation>,
        layers: Vec<Block>,
    ) -> Self {
        Self { arch, order, hidden, heads, rotation, layers, idle: Mutex::default() }
    }

    /// Applies the blocks of `range` to sequences of `lengths` tokens, `[tokens of all, hidden]`. The last of these blocks
    /// computes the tokens that `pooled` names; the states of other tokens are unspecified afterwards.
    pub(super) fn apply(&self, range: Range<usize>, states: &mut [f32], lengths: &[usize], pooled: PooledTokens) {
        let blocks = &self.layers[range];
        let jobs = split_jobs(states, lengths, self.hidden);
        jobs.into_par_iter().for_each(|(states, lengths)| {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut buffers = idle.unwrap_or_default();
            for (block, left) in blocks.iter().zip((0..blocks.len()).rev()) {
                let computed = if left == 0 { pooled } else { PooledTokens::All };
                let (states, buffers) = (&mut *states, &mut buffers);
                self.arch.dispatch(Step { all: self, block, computed, states, lengths, buffers });
            }
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffers);
        });
    }

    /// Normalises rows of states.
    pub(super) fn normalise(&self, norm: &Norm, states: &mut [f32]) {
        self.arch.dispatch(Normalise { norm, states });
    }
}

/// Splits sequences into jobs of at least [`JOB_TOKENS`] tokens, or of fewer if threads would idle.
fn split_jobs<'a>(
    mut states: &'a mut [f32],
    mut lengths: &'a [usize],
    hidden: usize,
) -> Vec<(&'a mut [f32], &'a [usize])> {
    let all: usize = lengths.iter().sum();
    let target = JOB_TOKENS.min(all.div_ceil(rayon::current_num_threads()));
    let mut jobs = Vec::new();
    while !lengths.is_empty() {
        let (mut count, mut tokens) = (0, 0);
        while count < lengths.len() && (count == 0 || tokens < target) {
            tokens += lengths[count];
            count += 1;
        }
        let (job_states, other_states) = states.split_at_mut(tokens * hidden);
        let (job_lengths, other_lengths) = lengths.split_at(count);
        jobs.push((job_states, job_lengths));
        (states, lengths) = (other_states, other_lengths);
    }
    jobs
}

/// One block applied to the sequences of a job.
struct Step<'a> {
    all: &'a Blocks,
    block: &'a Block,
    /// Tokens of each sequence that the block computes.
    computed: PooledTokens,
    states: &'a mut [f32],
    lengths: &'a [usize],
    buffers: &'a mut Buffers,
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let rows = self.attend(simd);
        if self.computed == PooledTokens::First {
            gather_first(self.states, self.lengths, self.all.hidden);
        }
        self.finish(simd, rows);
        if self.computed == PooledTokens::First {
            scatter_first(self.states, self.lengths, self.all.hidden);
        }
    }
}

impl Step<'_> {
    /// Writes the attention of the tokens that the block computes to the narrow buffer, and returns their number.
    #[inline(always)]
    fn attend<S: Simd>(&mut self, simd: S) -> usize {
        let Self { all, block, computed, states, lengths, buffers } = self;
        let (hidden, count) = (all.hidden, states.len());
        let rows = count / hidden;
        let wide = buffers.wide.sized(rows * 3 * hidden);
        let narrow = buffers.narrow.sized(count);
        let input = prepare(all.order, &block.attention_norm, states, narrow);
        block.query_key_value.store(simd, Rows { values: input, stride: hidden, count: rows }, None, wide);
        let (mut first, mut done) = (0, 0);
        for tokens in lengths.iter().copied().filter(|tokens| *tokens > 0) {
            let query_key_value = &mut wide[first * 3 * hidden..(first + tokens) * 3 * hidden];
            if let Some(rotation) = &all.rotation {
                rotation.apply(query_key_value, hidden);
            }
            let queries = computed.count(tokens);
            let out = &mut narrow[done * hidden..(done + queries) * hidden];
            let (heads, bias) = (all.heads, block.bias.as_ref().map(|bias| bias.as_slice()));
            Attention { query_key_value, tokens, queries, hidden, heads, bias, out }.run(simd, &mut buffers.attention);
            first += tokens;
            done += queries;
        }
        done
    }

    /// Applies the layers after attention to the first `rows` rows of the states.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, rows: usize) {
        let Self { all, block, states, buffers, .. } = self;
        let hidden = all.hidden;
        let states = &mut states[..rows * hidden];
        let narrow = buffers.narrow.sized(rows * hidden);
        block.attention_output.add(
            simd,
            Rows { values: narrow, stride: hidden, count: rows },
            block.attention_scale.as_deref(),
            states,
        );
        if all.order == NormOrder::Post {
            states.chunks_exact_mut(hidden).for_each(|row| block.attention_norm.normalise(row));
        }
        let Inner { projection, activation, gated, outputs } = &block.inner;
        let wide = buffers.wide.sized(rows * outputs);
        let input = prepare(all.order, &block.mlp_norm, states, narrow);
        projection.store(
            simd,
            Rows { values: input, stride: hidden, count: rows },
            (!gated).then_some(*activation),
            wide,
        );
        if *gated {
            gate(simd, *activation, wide, outputs / 2);
        }
        block.outer.add(simd, Rows { values: wide, stride: *outputs, count: rows }, block.mlp_scale.as_deref(), states);
        if all.order == NormOrder::Post {
            states.chunks_exact_mut(hidden).for_each(|row| block.mlp_norm.normalise(row));
        }
    }
}

/// Moves the first token of each sequence that has one to the front of the states.
fn gather_first(states: &mut [f32], lengths: &[usize], hidden: usize) {
    for (row, first) in first_tokens(lengths).enumerate() {
        states.copy_within(first * hidden..(first + 1) * hidden, row * hidden);
    }
}

/// Moves the tokens at the front of the states to the places of the first tokens: the reverse of [`gather_first`].
fn scatter_first(states: &mut [f32], lengths: &[usize], hidden: usize) {
    let places: Vec<usize> = first_tokens(lengths).collect();
    // From the last, since a place may be that of a later row.
    for (row, first) in places.into_iter().enumerate().rev() {
        states.copy_within(row * hidden..(row + 1) * hidden, first * hidden);
    }
}

/// Iterates over the rows of the first tokens of the sequences that have any.
fn first_tokens(lengths: &[usize]) -> impl Iterator<Item = usize> {
    let starts = lengths.iter().scan(0, |next, tokens| {
        let start = *next;
        *next += tokens;
        Some((start, *tokens))
    });
    starts.filter(|(_, tokens)| *tokens > 0).map(|(start, _)| start)
}

/// Returns the input of attention or MLP: the normalised states, or the states themselves if norms come later.
#[inline(always)]
fn prepare<'a>(order: NormOrder, norm: &Norm, states: &'a [f32], normed: &'a mut [f32]) -> &'a [f32] {
    match order {
        NormOrder::Post => states,
        NormOrder::Pre => {
            let width = norm.gamma.len();
            for (to, from) in normed.chunks_exact_mut(width).zip(states.chunks_exact(width)) {
                to.copy_from_slice(from);
                norm.normalise(to);
            }
            normed
        }
    }
}

impl Rotation {
    /// Rotates queries and keys of a sequence, `[tokens, 3 · hidden]`.
    #[inline(always)]
    fn apply(&self, query_key_value: &mut [f32], hidden: usize) {
        let tokens = query_key_value.len() / (3 * hidden);
        let width = self.cosine.len() / tokens.max(1);
        for (token, row) in query_key_value.chunks_exact_mut(3 * hidden).enumerate() {
            let angles = token * width..(token + 1) * width;
            let (cosine, sine) = (&self.cosine[angles.clone()], &self.sine[angles]);
            for head in row[..2 * hidden].chunks_exact_mut(width) {
                let (first, second) = head.split_at_mut(width / 2);
                for (at, (one, other)) in first.iter_mut().zip(second).enumerate() {
                    let other_at = at + width / 2;
                    (*one, *other) =
                        (*one * cosine[at] - *other * sine[at], *other * cosine[other_at] + *one * sine[other_at]);
                }
            }
        }
    }
}

struct Normalise<'a> {
    norm: &'a Norm,
    states: &'a mut [f32],
}

impl WithSimd for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.states.chunks_exact_mut(self.norm.gamma.len()).for_each(|row| self.norm.normalise(row));
    }
}
