//! Captions → vectors: each distinct caption is embedded once by the frozen text encoder.
//!
//! Vectors are stored in chunks under `texts/`, in a folder for each set of captions. Its name is a hash of everything
//! that the vectors depend on: the encoder's files, the prefix, the precision, and the captions in order. Two sets never
//! mix. A caption that another set of the same encoder has is copied and not embedded again, so a changed list costs its new
//! captions only. A chunk exists if and only if its entry under `journal/texts/` does.

mod known;
mod vector_set;
mod vector_store;

use std::path::PathBuf;
use std::sync::Arc;

use crate::catalog::Texts;
use crate::chunk::Checksum;
use crate::chunk::batch_log::BatchLog;
use crate::chunk::texts::Vectors;
use crate::config::{ConfigError, Problem, RunConfig, Stage, StageKeys, TextConfig, TrainConfig};
use crate::model::text::{CaptionTokenizer, TextCheckpoint, batch_by_length};
use crate::objects::StoreError;
use crate::pipeline::catalog::StoredClasses;
use crate::pipeline::context::{RunContext, disk_problem};
use crate::pipeline::device::{DeviceWorker, LoadedEncoder, TextBatches, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::hub::require_checkpoint;
use crate::pipeline::manifest::ENCODER_FILES;
use crate::telemetry::{Activity, Party, StageProgress, StageTimer};
use crate::types::{Part, Precision};

use known::KnownVectors;
use vector_set::{CHUNK_CAPTIONS, SetWriter, StoredSet, chunk_captions};

pub(crate) use vector_set::VectorSet;
pub(crate) use vector_store::VectorStore;

/// The frozen text encoder of a run.
#[derive(Clone)]
pub(crate) struct Encoder {
    pub(crate) checkpoint: TextCheckpoint,
    /// Hash of the checkpoint's files.
    pub(crate) fingerprint: String,
    /// Prefix of each caption.
    pub(crate) prefix: String,
    /// Origin of the prefix, for people.
    prefix_origin: String,
    /// Format of the stored vectors.
    pub(crate) precision: Precision,
}

impl Encoder {
    /// Opens the encoder of a configuration. `snapshot` is its folder if it comes from the hub, or the folder of the
    /// backbone for a paired encoder.
    ///
    /// # Errors
    /// When the checkpoint cannot be used.
    pub(crate) fn open(text: &TextConfig, snapshot: Option<PathBuf>) -> Result<Self, PipelineError> {
        let dir = snapshot.unwrap_or_else(|| PathBuf::from(&text.encoder));
        require_checkpoint("text.encoder", &text.encoder, &dir)?;
        let open = if text.is_paired() { TextCheckpoint::open_paired } else { TextCheckpoint::open };
        let mut checkpoint = open(&dir).map_err(model_error)?;
        if let Some(kept) = text.truncate_dim {
            checkpoint = checkpoint.truncated(kept as usize);
        }
        let (prefix, prefix_origin) = choose_prefix(text.prefix.as_deref(), &checkpoint);
        // Loaded here so that a damaged tokenizer is reported before anything runs.
        CaptionTokenizer::load(&checkpoint, &prefix).map_err(model_error)?;
        let fingerprint = checkpoint.fingerprint().map_err(model_error)?;
        Ok(Self { checkpoint, fingerprint, prefix, prefix_origin, precision: text.precision })
    }

    /// Describes the encoder for people: size, vectors, and the prefix of the captions with its origin.
    pub(crate) fn describe(&self) -> String {
        let checkpoint = &self.checkpoint;
        let (dim, full) = (checkpoint.dim(), checkpoint.full_dim());
        let values = if dim < full { format!("the first {dim} of {full} values") } else { format!("{dim} values") };
        format!(
            "{} parameters without the word table, vectors of {values} in {}, captions of up to {} tokens, {}",
            checkpoint.parameters(),
            self.precision,
            checkpoint.max_tokens(),
            self.prefix_origin
        )
    }

    /// Returns the keys that caption vectors depend on. A hash of its files identifies the encoder, not its path.
    pub(crate) fn stage_keys(&self, config: &RunConfig) -> StageKeys {
        let mut keys = config.keys(Stage::Text);
        keys.remove("text.encoder");
        keys.insert(ENCODER_FILES.to_owned(), self.fingerprint.clone());
        // Those in effect, wherever they come from.
        keys.insert("text.prefix".to_owned(), toml::Value::String(self.prefix.clone()).to_string());
        keys.remove("text.truncate_dim");
        if self.checkpoint.dim() < self.checkpoint.full_dim() {
            keys.insert("text.truncate_dim".to_owned(), self.checkpoint.dim().to_string());
        }
        keys
    }

    /// Returns the stored size of the vectors of some captions, in bytes.
    fn stored_bytes(&self, captions: usize) -> u64 {
        let width = if self.precision == Precision::Bf16 { 2 } else { 4 };
        captions as u64 * self.checkpoint.dim() as u64 * width
    }
}

/// Returns the prefix of the captions and its origin: the configuration, else the encoder's default prompt.
fn choose_prefix(configured: Option<&str>, checkpoint: &TextCheckpoint) -> (String, String) {
    match (configured, checkpoint.default_prompt()) {
        (Some(""), _) => (String::new(), "no prefix (`text.prefix`)".to_owned()),
        (Some(prefix), _) => (prefix.to_owned(), format!("prefix `{prefix}` (`text.prefix`)")),
        (None, Some((name, prompt))) => {
            (prompt.to_owned(), format!("prefix `{prompt}` (the encoder's default prompt, `{name}`)"))
        }
        (None, None) => {
            let prompts = checkpoint.prompts().values().filter(|prompt| !prompt.is_empty());
            let prompts: Vec<String> = prompts.map(|prompt| format!("`{prompt}`")).collect();
            let hint = if prompts.is_empty() {
                String::new()
            } else {
                format!(
                    " (the encoder has prompts, {}, and none is its default: see `text.prefix`)",
                    prompts.join(", ")
                )
            };
            (String::new(), format!("no prefix{hint}"))
        }
    }
}

/// Returns the memory that caption vectors may take, in bytes: a quarter of `limits.memory`. Larger sets go to scratch
/// disk.
fn resident_limit_bytes(config: &RunConfig) -> u64 {
    config.machine().limits.memory.0 / 4
}

/// Returns the problem of captions whose vectors fit neither in memory nor on scratch disk. Their number suffices, so
/// this is known before anything is embedded.
pub(crate) fn vector_space_problem(config: &RunConfig, encoder: &Encoder, captions: usize) -> Option<Problem> {
    let bytes = encoder.stored_bytes(captions);
    if bytes <= resident_limit_bytes(config) {
        return None;
    }
    disk_problem(config, bytes, "the vectors of the captions, which are more than a quarter of `limits.memory`,")
}

/// Returns the problem of captions whose vectors take more than `limits.memory`, since all are ranked in memory.
pub(crate) fn ranking_problem(config: &RunConfig, encoder: &Encoder, captions: usize) -> Option<Problem> {
    let blocks = config.train().map_or(1, TrainConfig::caption_blocks);
    let bytes = 4 * (captions * blocks) as u64 * encoder.checkpoint.dim() as u64;
    let limit = config.limits().memory;
    let what = || {
        format!(
            "`{limit}` is less than the {} that the vectors of the {captions} captions to rank take: raise it, or rank a \
             shorter list (`predict.captions`)",
            bytesize::ByteSize(bytes)
        )
    };
    (bytes > limit.0).then(|| Problem::new("limits.memory", what()))
}

/// Refuses captions whose vectors take more than `limits.memory`, since all are ranked in memory.
///
/// # Errors
/// A configuration error that names the key.
pub(crate) fn require_vector_memory(
    config: &RunConfig,
    encoder: &Encoder,
    captions: usize,
) -> Result<(), PipelineError> {
    let problem = ranking_problem(config, encoder, captions);
    problem.map_or(Ok(()), |problem| Err(ConfigError(vec![problem]).into()))
}

/// Embeds the captions whose vectors the run directory lacks. Progress and report show the work under the name `stage`.
///
/// # Errors
/// When the tokenizer, the device or the disk fails; [`PipelineError::Stopped`] if the run has to stop.
pub(crate) async fn embed(
    ctx: &RunContext,
    encoder: &Encoder,
    device: &Arc<DeviceWorker>,
    stage: &str,
    captions: Arc<Texts>,
) -> Result<VectorSet, PipelineError> {
    let writer = SetWriter::open(ctx, encoder, &captions).await?;
    let chunks = embed_missing((ctx, encoder, device), stage, &writer, &captions, Part::WHOLE).await?;
    Ok(writer.finish(chunks, encoder))
}

/// Embeds a part of the chunks of the classes of a run. Returns whether the chunks of all parts are complete.
///
/// # Errors
/// As [`embed`]; or when the captions cannot be read.
pub(crate) async fn embed_part(
    ctx: &RunContext,
    encoder: &Encoder,
    device: &Arc<DeviceWorker>,
    classes: StoredClasses,
    part: Part,
) -> Result<bool, PipelineError> {
    let captions = Arc::new(tokio::task::spawn_blocking(move || classes.read_texts()).await??);
    let writer = SetWriter::open(ctx, encoder, &captions).await?;
    embed_missing((ctx, encoder, device), "captions", &writer, &captions, part).await?;
    Ok(writer.committed_chunks()?.iter().all(Option::is_some))
}

/// Embeds the missing chunks of a part. Returns the checksum of each committed chunk.
async fn embed_missing(
    (ctx, encoder, device): (&RunContext, &Encoder, &Arc<DeviceWorker>),
    stage: &str,
    writer: &SetWriter,
    captions: &Arc<Texts>,
    part: Part,
) -> Result<Vec<Option<Checksum>>, PipelineError> {
    let mut chunks = writer.committed_chunks()?;
    writer.sweep(&chunks, part)?;
    let own: Vec<usize> = (0..chunks.len()).filter(|chunk| part.contains(*chunk as u32)).collect();
    let missing: Vec<usize> = own.iter().copied().filter(|chunk| chunks[*chunk].is_none()).collect();
    if !missing.is_empty() {
        let rows = |chunk: &usize| (captions.len() - chunk * CHUNK_CAPTIONS).min(CHUNK_CAPTIONS) as u64;
        let stage_progress = ctx.progress.stage(stage, "captions", own.iter().map(rows).sum());
        let committed = own.iter().filter(|chunk| chunks[**chunk].is_some());
        stage_progress.add_resumed(committed.map(rows).sum());
        let known = find_known(ctx, encoder, writer, captions, &missing).await?;
        stage_progress.add_resumed(known.len() as u64);
        ctx.events.stage_started(&stage_progress);
        let new = missing.iter().map(rows).sum::<u64>() - known.len() as u64;
        let loaded = match new {
            0 => None,
            _ => Some(device.load_encoder(encoder.checkpoint.clone(), encoder.precision).await?),
        };
        let embedding = Embedding {
            ctx,
            encoder,
            loaded: loaded.as_ref(),
            text_batches: device.text_batches,
            writer,
            captions,
            known: Arc::new(known),
            stage_progress: &stage_progress,
        };
        embedding.run(&missing, &mut chunks).await?;
        if let Some(loaded) = loaded {
            loaded.unload().await?;
        }
        ctx.events.stage_finished(&stage_progress);
    }
    Ok(chunks)
}

/// Finds vectors of the missing chunks' captions in other sets.
async fn find_known(
    ctx: &RunContext,
    encoder: &Encoder,
    writer: &SetWriter,
    captions: &Arc<Texts>,
    missing: &[usize],
) -> Result<KnownVectors, PipelineError> {
    let (writer, captions, missing) = (writer.clone(), Arc::clone(captions), missing.to_vec());
    let format = (encoder.checkpoint.dim(), encoder.precision);
    let limit_bytes = resident_limit_bytes(&ctx.config) / 2;
    let shutdown = ctx.shutdown.clone();
    let find = move || KnownVectors::find(&writer, &captions, &missing, format, limit_bytes, &shutdown);
    tokio::task::spawn_blocking(find).await?
}

/// As [`embed`], for the classes of a run. If the run directory has all of their vectors, the captions are neither read
/// nor hashed.
///
/// # Errors
/// As [`embed`]; or when the captions cannot be read.
pub(crate) async fn embed_classes(
    ctx: &RunContext,
    encoder: &Encoder,
    device: &Arc<DeviceWorker>,
    stage: &str,
    classes: StoredClasses,
) -> Result<VectorSet, PipelineError> {
    let known = classes.identity().map(|identity| StoredSet::new(ctx.dir.clone(), encoder, &identity));
    if let Some(generation) = known.as_ref().map(StoredSet::generation).transpose()?.flatten() {
        let writer = SetWriter::new(ctx.dir.clone(), generation, classes.count, encoder);
        let chunks = writer.committed_chunks()?;
        if chunks.iter().all(Option::is_some) {
            return Ok(writer.finish(chunks, encoder));
        }
    }
    let captions = tokio::task::spawn_blocking(move || classes.read_texts()).await??;
    let set = embed(ctx, encoder, device, stage, Arc::new(captions)).await?;
    if let Some(known) = known {
        known.record(set.generation())?;
    }
    Ok(set)
}

/// Token ids of a chunk's captions, without those whose vectors are known.
struct TokenizedChunk {
    chunk: usize,
    /// Position of each caption in the chunk.
    places: Vec<usize>,
    tokens: Vec<Vec<u32>>,
}

/// State of an embedding in progress.
struct Embedding<'a> {
    ctx: &'a RunContext,
    encoder: &'a Encoder,
    /// The encoder; absent if all vectors are known.
    loaded: Option<&'a LoadedEncoder>,
    text_batches: TextBatches,
    writer: &'a SetWriter,
    captions: &'a Arc<Texts>,
    known: Arc<KnownVectors>,
    stage_progress: &'a StageProgress,
}

impl Embedding<'_> {
    async fn run(&self, missing: &[usize], chunks: &mut [Option<Checksum>]) -> Result<(), PipelineError> {
        let (checkpoint, prefix) = (self.encoder.checkpoint.clone(), self.encoder.prefix.clone());
        let tokenizer = tokio::task::spawn_blocking(move || CaptionTokenizer::load(&checkpoint, &prefix)).await?;
        let tokenizer = Arc::new(tokenizer.map_err(model_error)?);
        let timer = self.stage_progress.part(StageTimer::device().starved_by(Party::Tokenizer));
        // Tokenize the next chunk while this one is embedded.
        let mut waiting = missing.iter().copied();
        let mut next = waiting.next().map(|chunk| self.tokenize(&tokenizer, chunk));
        let scratch = self.ctx.scratch_path();
        std::fs::create_dir_all(&scratch).map_err(|error| StoreError::io(&scratch, "created", error))?;
        while let Some(tokenizing) = next.take() {
            let tokenized = timer.wait(Activity::Starved, tokenizing).await??;
            next = waiting.next().map(|chunk| self.tokenize(&tokenizer, chunk));
            let chunk = tokenized.chunk;
            chunks[chunk] = Some(self.embed_chunk(tokenized).await?);
        }
        Ok(())
    }

    fn tokenize(
        &self,
        tokenizer: &Arc<CaptionTokenizer>,
        chunk: usize,
    ) -> tokio::task::JoinHandle<Result<TokenizedChunk, PipelineError>> {
        let (tokenizer, captions, known) = (Arc::clone(tokenizer), Arc::clone(self.captions), Arc::clone(&self.known));
        tokio::task::spawn_blocking(move || {
            let all = chunk_captions(&captions, chunk);
            let is_new = |place: &usize| !known.contains(chunk * CHUNK_CAPTIONS + place);
            let places: Vec<usize> = (0..all.len()).filter(is_new).collect();
            let new: Vec<&str> = places.iter().map(|place| all[*place]).collect();
            let tokens = tokenizer.encode(&new).map_err(model_error)?;
            Ok(TokenizedChunk { chunk, places, tokens })
        })
    }

    /// Embeds, writes and commits a chunk.
    async fn embed_chunk(&self, tokenized: TokenizedChunk) -> Result<Checksum, PipelineError> {
        let TokenizedChunk { chunk, places, tokens: mut numbers } = tokenized;
        let dim = self.encoder.checkpoint.dim();
        let lengths: Vec<usize> = numbers.iter().map(Vec::len).collect();
        let TextBatches { tokens: budget, fixed_shapes } = self.text_batches;
        let path = self.ctx.scratch_path().join(format!("texts-{}-{chunk:06}", self.writer.set()));
        let rows = chunk_captions(self.captions, chunk).len();
        let mut inputs = format!("{} {chunk} {budget} {fixed_shapes}", self.writer.generation);
        if places.len() < rows {
            inputs.push_str(&format!(
                " {}",
                blake3::hash(&places.iter().flat_map(|at| at.to_le_bytes()).collect::<Vec<u8>>())
            ));
        }
        let (mut logged, mut log) = BatchLog::open(path, &inputs)?;
        let mut values = vec![0.0_f32; rows * dim];
        for place in 0..rows {
            if let Some(vector) = self.known.read(chunk * CHUNK_CAPTIONS + place) {
                values[place * dim..(place + 1) * dim].copy_from_slice(&vector);
            }
        }
        for batch in batch_by_length(&lengths, budget, fixed_shapes) {
            if let Some(signal) = self.ctx.shutdown.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            let count = batch.members.len();
            let vectors = if let Some(vectors) = logged.next_batch(count * dim) {
                vectors
            } else {
                let rows: Vec<Vec<u32>> =
                    batch.members.iter().map(|member| std::mem::take(&mut numbers[*member])).collect();
                let tokens = batch.tokens.min(self.encoder.checkpoint.max_tokens());
                // Empty captions pad the batch to its fixed shape.
                let batch_rows = if fixed_shapes { (budget / tokens.max(1)).max(count) } else { count };
                let absent = || PipelineError::Internal("the text encoder is not loaded".to_owned());
                let vectors = self.loaded.ok_or_else(absent)?.embed(rows, tokens, batch_rows).await?;
                log.append(&vectors)?;
                vectors
            };
            if vectors.iter().any(|value| !value.is_finite()) {
                return Err(PipelineError::Model(
                    "the vector of a caption is not a finite number: the text encoder's weights are unusable"
                        .to_owned(),
                ));
            }
            for (member, vector) in batch.members.iter().zip(vectors.chunks_exact(dim)) {
                let place = places[*member];
                values[place * dim..(place + 1) * dim].copy_from_slice(vector);
            }
            self.stage_progress.add(count as u64);
        }
        let vectors = Vectors { values, dim, precision: self.encoder.precision };
        let (writer, captions) = (self.writer.clone(), Arc::clone(self.captions));
        let commit = move || writer.commit(chunk, &chunk_captions(&captions, chunk), &vectors);
        let sum = tokio::task::spawn_blocking(commit).await??;
        log.remove()?;
        Ok(sum)
    }
}
