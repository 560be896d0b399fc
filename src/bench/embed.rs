//! Benchmark of the text encoder.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::{open, read_file, require_replaceable_file, write_file};
use crate::config::MachineConfig;
use crate::model::text::{CaptionTokenizer, TextCheckpoint, batch_by_length};
use crate::pipeline::device::{LoadedEncoder, MemoryNeeds, model_error};
use crate::pipeline::error::PipelineError;
use crate::types::Precision;

/// Settings of the benchmark.
#[derive(Debug, Clone)]
pub struct EmbedBench {
    /// Directory of the encoder.
    pub checkpoint: PathBuf,
    /// File with a caption in each line.
    pub captions: PathBuf,
    /// Prefix of each caption.
    pub prefix: String,
    /// Number format of the computation, if the device supports it.
    pub precision: Precision,
    /// File for the vectors: raw little-endian f32 `[captions, dim]`.
    pub vectors: Option<PathBuf>,
    /// Number of timed passes.
    pub passes: u32,
}

/// Result of the benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct EmbedReport {
    /// The device.
    pub device: String,
    /// Number of captions.
    pub captions: usize,
    /// Tokens of all captions, without padding.
    pub tokens: usize,
    /// Width of a vector.
    pub dim: usize,
    /// Implementation of attention: `direct` or `products`.
    pub attention: &'static str,
    /// Seconds of tokenizing.
    pub tokenize_s: f64,
    /// Seconds of the timed passes, without tokenizing.
    pub seconds: f64,
    /// Captions a second in the timed passes.
    pub captions_per_s: f64,
    /// Tokens a second in the timed passes.
    pub tokens_per_s: f64,
}

/// Runs a text encoder over captions, in batches as in a run.
///
/// # Errors
/// When a file, the checkpoint or the device cannot be used.
pub async fn embed(bench: EmbedBench, machine: &MachineConfig) -> Result<EmbedReport, PipelineError> {
    let checkpoint = TextCheckpoint::open(&bench.checkpoint).map_err(model_error)?;
    let shown = bench.captions.display();
    let text = String::from_utf8(read_file(&bench.captions)?)
        .map_err(|_| PipelineError::Input(format!("`{shown}` is not UTF-8 text")))?;
    let captions: Vec<&str> = text.lines().collect();
    if captions.is_empty() {
        return Err(PipelineError::Input(format!("`{shown}` has no captions: write one in each line")));
    }
    let (dim, max_tokens) = (checkpoint.dim(), checkpoint.max_tokens());
    if let Some(path) = &bench.vectors {
        require_replaceable_file("--vectors", path, 4 * dim as u64)?;
    }
    let started = Instant::now();
    let tokenizer = CaptionTokenizer::load(&checkpoint, &bench.prefix).map_err(model_error)?;
    let ids = tokenizer.encode(&captions).map_err(model_error)?;
    let tokenize_s = started.elapsed().as_secs_f64();
    let (device, chosen) = open(machine, MemoryNeeds::for_head(bench.precision), 0).await?;
    let encoder = device.load_encoder(checkpoint, bench.precision).await?;
    let vectors = pass(&encoder, &ids, (dim, max_tokens)).await?;
    if let Some(path) = &bench.vectors {
        write_file(path, &vectors.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    let timed = Instant::now();
    for _ in 0..bench.passes {
        pass(&encoder, &ids, (dim, max_tokens)).await?;
    }
    let seconds = timed.elapsed().as_secs_f64();
    let tokens = ids.iter().map(Vec::len).sum();
    let rate = |count: usize| f64::from(bench.passes) * count as f64 / seconds;
    Ok(EmbedReport {
        device: chosen.to_string(),
        captions: captions.len(),
        tokens,
        dim,
        attention: encoder.attention.as_str(),
        tokenize_s,
        seconds,
        captions_per_s: rate(captions.len()),
        tokens_per_s: rate(tokens),
    })
}

/// Computes the vectors of all captions.
async fn pass(
    encoder: &LoadedEncoder,
    ids: &[Vec<u32>],
    (dim, max_tokens): (usize, usize),
) -> Result<Vec<f32>, PipelineError> {
    let batches = encoder.batches();
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    let mut vectors = vec![0.0; ids.len() * dim];
    for batch in batch_by_length(&lengths, batches.tokens, batches.fixed_shapes) {
        let rows: Vec<Vec<u32>> = batch.members.iter().map(|member| ids[*member].clone()).collect();
        let (tokens, count) = (batch.tokens.min(max_tokens), rows.len());
        let batch_rows = if batches.fixed_shapes { (batches.tokens / tokens.max(1)).max(count) } else { count };
        let found = encoder.embed(rows, tokens, batch_rows).await?;
        for (member, vector) in batch.members.iter().zip(found.chunks_exact(dim)) {
            vectors[member * dim..(member + 1) * dim].copy_from_slice(vector);
        }
    }
    Ok(vectors)
}
