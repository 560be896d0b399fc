//! Self-attention of one sequence, head by head, without copies of queries and with a few rows of scores in memory.

use pulp::Simd;

use super::functions::exponentials;
use super::product::{AlignedValues, Finish, Packed, Rows};

/// Queries whose scores are in memory at a time. At 257 tokens these are 70 KB, which stay in a core's cache.
const QUERIES: usize = 64;
/// Multiple of the length of a row of scores: the widest vector.
const LANES: usize = 16;

/// Buffers of a thread.
#[derive(Debug, Default)]
pub(super) struct AttentionBuffers {
    keys: Packed,
    values: Packed,
    scores: AlignedValues,
}

/// Attention among the tokens of a sequence.
pub(super) struct Attention<'a> {
    /// Queries, keys and values of each token, `[tokens, 3 · hidden]`.
    pub(super) query_key_value: &'a [f32],
    pub(super) tokens: usize,
    /// Number of tokens, from the first, whose attention is computed.
    pub(super) queries: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    /// Summands of the scaled scores, `[heads, tokens, tokens]`.
    pub(super) bias: Option<&'a [f32]>,
    /// `[queries, hidden]`.
    pub(super) out: &'a mut [f32],
}

impl Attention<'_> {
    /// Computes `softmax(query · keyᵀ / √width + bias) · value` for each head.
    #[inline(always)]
    pub(super) fn run<S: Simd>(self, simd: S, buffers: &mut AttentionBuffers) {
        let (tokens, hidden, stride) = (self.tokens, self.hidden, 3 * self.hidden);
        let width = hidden / self.heads;
        let scale = 1.0 / (width as f32).sqrt();
        let line = tokens.next_multiple_of(LANES);
        for head in 0..self.heads {
            let first = head * width;
            buffers.keys.pack_transposed::<S>(&self.query_key_value[hidden + first..], stride, width, tokens);
            buffers.values.pack::<S>(&self.query_key_value[2 * hidden + first..], stride, tokens, width);
            for query in (0..self.queries).step_by(QUERIES) {
                let rows = QUERIES.min(self.queries - query);
                let scores = buffers.scores.sized(rows * line);
                for row in scores.chunks_exact_mut(line) {
                    row[tokens..].fill(f32::MIN);
                }
                let bias = self.bias.map(|bias| &bias[(head * tokens + query) * tokens..]);
                let queries = Rows { values: &self.query_key_value[query * stride + first..], stride, count: rows };
                buffers.keys.multiply(simd, queries, &mut Scores { out: scores, line, scale, bias, tokens });
                let mut factors = [0.0; QUERIES];
                for (row, factor) in scores.chunks_exact_mut(line).zip(&mut factors) {
                    *factor = 1.0 / exponentials(simd, row);
                }
                let weights = Rows { values: scores, stride: line, count: rows };
                let out = &mut self.out[query * hidden + first..];
                buffers.values.multiply(simd, weights, &mut Weighted { out, stride: hidden, factors: &factors });
            }
        }
    }
}

/// Scales scores and adds their bias.
struct Scores<'a> {
    out: &'a mut [f32],
    line: usize,
    scale: f32,
    bias: Option<&'a [f32]>,
    tokens: usize,
}

impl Finish for Scores<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, row: usize, column: usize, used: usize, sums: S::f32s) {
        let scale = simd.splat_f32s(self.scale);
        let scores = match self.bias {
            Some(bias) => {
                let bias = simd.partial_load_f32s(&bias[row * self.tokens + column..][..used]);
                simd.mul_add_f32s(sums, scale, bias)
            }
            None => simd.mul_f32s(sums, scale),
        };
        simd.partial_store_f32s(&mut self.out[row * self.line + column..][..used], scores);
    }
}

/// Divides weighted sums by the sum of the weights.
struct Weighted<'a> {
    out: &'a mut [f32],
    stride: usize,
    factors: &'a [f32; QUERIES],
}

impl Finish for Weighted<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, row: usize, column: usize, used: usize, sums: S::f32s) {
        let values = simd.mul_f32s(sums, simd.splat_f32s(self.factors[row]));
        simd.partial_store_f32s(&mut self.out[row * self.stride + column..][..used], values);
    }
}
