//! Captions → vectors, each distinct caption once: chunks under `texts/`, committed one by one, and what reads them.
//!
//! A set of captions has a folder named by a hash of everything that its vectors depend on: the encoder's files, the prefix, the
//! precision, and the captions in their order. So a list that was embedded once is never embedded again, in whatever run of the
//! directory, and two lists never mix. A chunk is [`CHUNK`] captions; it exists if and only if its entry under `journal/texts/` does.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use serde::{Deserialize, Serialize};

use super::PipelineError;
use super::report::DEVICE;
use super::spill::Spill;
use super::stream::RunContext;
use super::worker::{Device, DeviceWorker, damaged, model_error};
use crate::catalog::Classes;
use crate::chunk::texts::{self, Vectors};
use crate::chunk::{Checksum, verify};
use crate::config::raw::RawText;
use crate::config::value::Precision;
use crate::model::text::{CaptionTokenizer, TextCheckpoint, batch_by_length};
use crate::objects::StoreError;
use crate::run_dir::Directory;
use crate::telemetry::{Activity, StageProgress, StageTimer};
use crate::train::text::{RunningMoments, centre_and_normalise};

/// Folder of all sets.
const FOLDER: &str = "texts";
/// Folder of their entries.
const JOURNAL: &str = "journal/texts";
/// Captions of a chunk.
const CHUNK: usize = 2048;
/// Chunks brought to local disk together, where the run is kept elsewhere.
const FETCHED_AT_ONCE: usize = 32;
/// Changes when vectors change for equal names.
const FORMAT: &str = "1";

/// The frozen text encoder, as far as the wiring needs it.
#[derive(Clone)]
pub(super) struct Encoder {
    pub(super) checkpoint: TextCheckpoint,
    pub(super) fingerprint: String,
    pub(super) prefix: String,
    pub(super) precision: Precision,
}

impl Encoder {
    /// Opens the encoder of a configuration. `snapshot`: where it is, if it is one of the hub's.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(super) fn open(text: &RawText, snapshot: Option<PathBuf>) -> Result<Self, PipelineError> {
        let dir = snapshot.unwrap_or_else(|| PathBuf::from(&text.encoder));
        let checkpoint = TextCheckpoint::open(&dir).map_err(model_error)?;
        // Its tokenizer too, so that a damaged one shows before anything runs.
        CaptionTokenizer::load(&checkpoint, &text.prefix).map_err(model_error)?;
        let fingerprint = checkpoint.fingerprint().map_err(model_error)?;
        Ok(Self { checkpoint, fingerprint, prefix: text.prefix.clone(), precision: text.precision })
    }
}

/// The captions of a chunk.
fn part(captions: &Classes, chunk: usize) -> Vec<&str> {
    let span = chunk * CHUNK..((chunk + 1) * CHUNK).min(captions.len());
    span.map(|number| captions.text(number as u32).unwrap_or_default()).collect()
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    generation: String,
    checksum: Checksum,
}

/// A set whose chunks are all there.
pub(super) struct TextSet {
    directory: Directory,
    chunks: Vec<(String, Checksum)>,
    captions: usize,
    dim: usize,
    precision: Precision,
}

fn chunk_name(set: &str, chunk: usize) -> String {
    format!("{FOLDER}/{set}/{chunk:06}.parquet")
}

fn entry_name(set: &str, chunk: usize) -> String {
    format!("{JOURNAL}/{set}/{chunk:06}.json")
}

fn generation(encoder: &Encoder, captions: &Classes) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [FORMAT, &encoder.fingerprint, &encoder.prefix, encoder.precision.as_str()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    for text in captions.texts() {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Token numbers of a chunk's captions.
struct Tokenised {
    chunk: usize,
    numbers: Vec<Vec<u32>>,
}

/// Makes the vectors of captions, behind those that are there. `name`: of the stage, for whoever watches.
///
/// # Errors
/// When tokenizer, device or disk fail; [`PipelineError::Stopped`] when asked to.
pub(super) async fn embed(
    name: &str,
    captions: Arc<Classes>,
    encoder: &Encoder,
    directory: &Directory,
    scratch: &Path,
    machine: &RunContext,
    device: &Device,
) -> Result<TextSet, PipelineError> {
    let (hashed, of) = (Arc::clone(&captions), encoder.clone());
    let generation = tokio::task::spawn_blocking(move || generation(&of, &hashed)).await?;
    let set = generation[..16].to_owned();
    let (all, count) = (captions.len(), captions.len().div_ceil(CHUNK));
    let mut found = known(directory, &set, count, &generation)?;
    directory.sweep(&format!("{FOLDER}/{set}"), |file| {
        let number = file.split('.').next().and_then(|stem| stem.parse::<usize>().ok());
        number.is_some_and(|number| found.get(number).is_some_and(Option::is_some))
    })?;
    let (dim, precision) = (encoder.checkpoint.dim(), encoder.precision);
    let missing: Vec<usize> = (0..count).filter(|chunk| found[*chunk].is_none()).collect();
    if !missing.is_empty() {
        let stage_progress = machine.registry.stage(name, "captions", captions.len() as u64);
        let rows = |chunk: usize| (captions.len() - chunk * CHUNK).min(CHUNK) as u64;
        stage_progress.add_resumed((0..count).filter(|chunk| found[*chunk].is_some()).map(rows).sum());
        machine.events.started(&stage_progress);
        let job = Job { captions, encoder, directory, scratch, machine, device, generation: &generation, set: &set };
        job.run(&missing, &mut found, &stage_progress).await?;
        machine.events.finished(&stage_progress);
    }
    let chunks = found.into_iter().enumerate().filter_map(|(chunk, sum)| Some((chunk_name(&set, chunk), sum?)));
    Ok(TextSet { directory: directory.clone(), chunks: chunks.collect(), captions: all, dim, precision })
}

/// The chunks that are committed.
fn known(
    directory: &Directory,
    set: &str,
    count: usize,
    generation: &str,
) -> Result<Vec<Option<Checksum>>, PipelineError> {
    let there: std::collections::BTreeSet<String> = directory.list(&format!("{JOURNAL}/{set}"))?.into_iter().collect();
    let files: std::collections::BTreeSet<String> = directory.list(&format!("{FOLDER}/{set}"))?.into_iter().collect();
    let listed: Vec<usize> = (0..count)
        .filter(|chunk| there.contains(&format!("{chunk:06}.json")) && files.contains(&format!("{chunk:06}.parquet")))
        .collect();
    let names: Vec<String> = listed.iter().map(|chunk| entry_name(set, *chunk)).collect();
    let mut found: Vec<Option<Checksum>> = (0..count).map(|_| None).collect();
    for (chunk, text) in listed.into_iter().zip(directory.read_all(&names)?) {
        let entry = text.and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
        found[chunk] = entry.filter(|entry| entry.generation == generation).map(|entry| entry.checksum);
    }
    Ok(found)
}

struct Job<'a> {
    captions: Arc<Classes>,
    encoder: &'a Encoder,
    directory: &'a Directory,
    scratch: &'a Path,
    machine: &'a RunContext,
    device: &'a Device,
    generation: &'a str,
    set: &'a str,
}

impl Job<'_> {
    async fn run(
        self,
        missing: &[usize],
        found: &mut [Option<Checksum>],
        stage_progress: &StageProgress,
    ) -> Result<(), PipelineError> {
        let (checkpoint, precision) = (self.encoder.checkpoint.clone(), self.encoder.precision);
        self.device.call(move |worker| worker.load_text_encoder(&checkpoint, precision)).await?;
        let (checkpoint, prefix) = (self.encoder.checkpoint.clone(), self.encoder.prefix.clone());
        let tokens = tokio::task::spawn_blocking(move || CaptionTokenizer::load(&checkpoint, &prefix)).await?;
        let tokens = Arc::new(tokens.map_err(model_error)?);
        let clock = stage_progress.part(StageTimer::serial(DEVICE).starved_by("the tokenizer"));
        // The captions of the next chunk become tokens while those of this one are computed.
        let mut waiting = missing.iter().copied();
        let mut next = waiting.next().map(|chunk| self.tokenise(&tokens, chunk));
        std::fs::create_dir_all(self.scratch).map_err(|error| StoreError::io(self.scratch, "created", error))?;
        while let Some(tokenised) = next.take() {
            let tokenised = clock.wait(Activity::Starved, tokenised).await??;
            next = waiting.next().map(|chunk| self.tokenise(&tokens, chunk));
            let chunk = tokenised.chunk;
            let sum = self.chunk(tokenised, stage_progress).await?;
            found[chunk] = Some(sum);
        }
        self.device.tell(DeviceWorker::unload_text_encoder).await
    }

    fn tokenise(
        &self,
        tokens: &Arc<CaptionTokenizer>,
        chunk: usize,
    ) -> tokio::task::JoinHandle<Result<Tokenised, PipelineError>> {
        let (tokens, captions) = (Arc::clone(tokens), Arc::clone(&self.captions));
        tokio::task::spawn_blocking(move || {
            let numbers = tokens.encode(&part(&captions, chunk)).map_err(model_error)?;
            Ok(Tokenised { chunk, numbers })
        })
    }

    /// Computes, writes and commits a chunk.
    async fn chunk(
        &self,
        Tokenised { chunk, mut numbers }: Tokenised,
        stage_progress: &StageProgress,
    ) -> Result<Checksum, PipelineError> {
        let dim = self.encoder.checkpoint.dim();
        let lengths: Vec<usize> = numbers.iter().map(Vec::len).collect();
        let (budget, fixed) = self.device.text_batches;
        let kept: PathBuf = self.scratch.join(format!("texts-{}-{chunk:06}", self.set));
        let made_from = format!("{} {chunk} {budget} {fixed}", self.generation);
        let (mut earlier, mut spill) = Spill::open(kept.clone(), &made_from)?;
        let mut values = vec![0.0_f32; numbers.len() * dim];
        for batch in batch_by_length(&lengths, budget, fixed) {
            if let Some(signal) = self.machine.stop.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            let count = batch.members.len();
            let vectors = if let Some(vectors) = earlier.take(count * dim) {
                vectors
            } else {
                let rows: Vec<Vec<u32>> =
                    batch.members.iter().map(|member| std::mem::take(&mut numbers[*member])).collect();
                let tokens = batch.tokens.min(self.encoder.checkpoint.max_tokens());
                // A device that likes one shape has empty captions for those that are missing.
                let all = if fixed { (budget / tokens.max(1)).max(count) } else { count };
                let vectors = self.device.call(move |worker| worker.embed(&rows, tokens, all)).await?;
                spill.keep(&vectors)?;
                vectors
            };
            if vectors.iter().any(|value| !value.is_finite()) {
                return Err(PipelineError::Model(
                    "the vector of a caption is not a finite number: the text encoder's weights are unusable"
                        .to_owned(),
                ));
            }
            for (member, vector) in batch.members.iter().zip(vectors.chunks_exact(dim)) {
                values[member * dim..(member + 1) * dim].copy_from_slice(vector);
            }
            stage_progress.add(count as u64);
        }
        let vectors = Vectors { values, dim, precision: self.encoder.precision };
        let (directory, captions, set) = (self.directory.clone(), Arc::clone(&self.captions), self.set.to_owned());
        let generation = self.generation.to_owned();
        let sum = tokio::task::spawn_blocking(move || {
            let (name, texts) = (chunk_name(&set, chunk), part(&captions, chunk));
            let checksum = texts::write(&directory.temporary(&name)?, &texts, &vectors, &generation)?;
            directory.publish(&name)?;
            let entry = Entry { generation, checksum };
            let content = serde_json::to_vec(&entry).map_err(|error| PipelineError::Internal(error.to_string()))?;
            let entry_name = entry_name(&set, chunk);
            if !directory.create_new(&entry_name, &content)? {
                // Of a chunk that somebody removed: its entry is made anew.
                directory.write(&entry_name, &content)?;
            }
            Ok::<_, PipelineError>(checksum)
        })
        .await??;
        match std::fs::remove_file(&kept) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io(&kept, "removed", error).into())
            }
            _ => Ok(sum),
        }
    }
}

impl TextSet {
    /// Values of a vector.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Bytes of all vectors as they are stored.
    pub(super) fn bytes(&self) -> u64 {
        let width = if self.precision == Precision::Bf16 { 2 } else { 4 };
        (self.captions * self.dim * width) as u64
    }

    /// Hands the vectors to `take`, chunk by chunk in their order. Blocks.
    ///
    /// # Errors
    /// What `take` says, or when a chunk cannot be read, or is not what was written.
    pub(super) fn each(
        &self,
        mut take: impl FnMut(Vec<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        for chunks in self.chunks.chunks(FETCHED_AT_ONCE) {
            let names: Vec<String> = chunks.iter().map(|(name, _)| name.clone()).collect();
            for ((name, sum), copy) in chunks.iter().zip(self.directory.fetch_all(&names)?) {
                verify(&copy, &self.directory.display(name), Some(*sum))?;
                let vectors = texts::read(&copy).map_err(damaged)?;
                if vectors.dim != self.dim {
                    let name = self.directory.display(name);
                    return Err(PipelineError::Input(format!("`{name}` holds vectors of another size: remove it")));
                }
                take(vectors.values)?;
            }
        }
        Ok(())
    }

    /// The vectors of some captions by their numbers, ascending: `[numbers, dim]`. Blocks.
    ///
    /// # Errors
    /// As [`TextSet::each`], or when there is no such caption.
    pub(super) fn some(&self, numbers: &[u32]) -> Result<Vec<f32>, PipelineError> {
        let absent = || PipelineError::Internal("a caption has no vector".to_owned());
        let chunk_of = |number: u32| number as usize / CHUNK;
        let groups: Vec<&[u32]> = numbers.chunk_by(|one, other| chunk_of(*one) == chunk_of(*other)).collect();
        let chunks: Option<Vec<_>> = groups.iter().map(|own| self.chunks.get(chunk_of(own[0])).cloned()).collect();
        let Self { captions, dim, precision, .. } = *self;
        let wanted =
            Self { directory: self.directory.clone(), chunks: chunks.ok_or_else(absent)?, captions, dim, precision };
        let mut all = Vec::with_capacity(numbers.len() * dim);
        let mut groups = groups.into_iter();
        wanted.each(|values| {
            for number in groups.next().unwrap_or_default() {
                let place = *number as usize % CHUNK * dim;
                all.extend_from_slice(values.get(place..place + dim).ok_or_else(absent)?);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// All vectors, `[captions, dim]`. Blocks.
    ///
    /// # Errors
    /// As [`TextSet::each`].
    pub(super) fn all(&self) -> Result<Vec<f32>, PipelineError> {
        let mut all = Vec::with_capacity(self.captions * self.dim);
        self.each(|values| {
            all.extend_from_slice(&values);
            Ok(())
        })?;
        Ok(all)
    }
}

enum Held {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
    /// A file on scratch disk, row by row.
    Bf16File(File),
    F32File(File),
}

/// The vectors of captions by their numbers, in memory or on scratch disk.
pub(super) struct TextStore {
    held: Held,
    dim: usize,
    mean: Vec<f32>,
}

impl TextStore {
    /// Reads a set; its vectors stay in memory where they take no more than `memory_bytes`, else in a file in `scratch`. Blocks.
    ///
    /// # Errors
    /// As [`TextSet::each`], or when scratch disk refuses.
    pub(super) fn open(set: &TextSet, memory_bytes: u64, scratch: &Path) -> Result<Self, PipelineError> {
        let (dim, half) = (set.dim(), set.precision == Precision::Bf16);
        let mut running = RunningMoments::default();
        let resident = set.bytes() <= memory_bytes;
        let path = scratch.join("captions.vectors");
        let failed = |error| PipelineError::from(StoreError::io(&path, "written", error));
        let (mut halves, mut floats, mut file) = (Vec::new(), Vec::new(), None);
        if !resident {
            std::fs::create_dir_all(scratch).map_err(failed)?;
            file = Some(BufWriter::new(File::create(&path).map_err(failed)?));
        }
        set.each(|values| {
            values.chunks_exact(dim).for_each(|row| running.add(row));
            match &mut file {
                Some(file) => {
                    for value in values {
                        // Exact: it was bf16 in its chunk.
                        let written = if half {
                            file.write_all(&bf16::from_f32(value).to_le_bytes())
                        } else {
                            file.write_all(&value.to_le_bytes())
                        };
                        written.map_err(failed)?;
                    }
                }
                None if half => halves.extend(values.into_iter().map(bf16::from_f32)),
                None => floats.extend_from_slice(&values),
            }
            Ok(())
        })?;
        let held = match file {
            Some(mut file) => {
                file.flush().map_err(failed)?;
                let file = File::open(&path).map_err(failed)?;
                // It goes with the process.
                std::fs::remove_file(&path).map_err(failed)?;
                if half { Held::Bf16File(file) } else { Held::F32File(file) }
            }
            None if half => Held::Bf16(halves),
            None => Held::F32(floats),
        };
        Ok(Self { held, dim, mean: running.mean() })
    }

    /// The mean of all vectors.
    pub(super) fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// The vectors of some captions, without the mean of all and of length 1: `[numbers, dim]`. Blocks.
    ///
    /// # Errors
    /// When scratch disk fails, or there is no such caption.
    pub(super) fn centred(&self, numbers: &[u32]) -> Result<Vec<f32>, PipelineError> {
        let mut vectors = self.vectors(numbers)?;
        centre_and_normalise(&mut vectors, &self.mean);
        Ok(vectors)
    }

    /// The vectors of some captions as they are: `[numbers, dim]`. Blocks.
    ///
    /// # Errors
    /// As [`TextStore::centred`].
    pub(super) fn vectors(&self, numbers: &[u32]) -> Result<Vec<f32>, PipelineError> {
        let dim = self.dim;
        let mut out = Vec::with_capacity(numbers.len() * dim);
        let absent = || PipelineError::Internal("a caption has no vector".to_owned());
        let mut row = vec![0_u8; 4 * dim];
        for number in numbers {
            let span = *number as usize * dim..(*number as usize + 1) * dim;
            match &self.held {
                Held::Bf16(values) => {
                    out.extend(values.get(span).ok_or_else(absent)?.iter().map(|value| value.to_f32()));
                }
                Held::F32(values) => out.extend_from_slice(values.get(span).ok_or_else(absent)?),
                Held::Bf16File(file) => {
                    let row = &mut row[..2 * dim];
                    read_at(file, row, 2 * span.start)?;
                    out.extend(row.as_chunks().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()));
                }
                Held::F32File(file) => {
                    read_at(file, &mut row, 4 * span.start)?;
                    out.extend(row.as_chunks().0.iter().map(|quad| f32::from_le_bytes(*quad)));
                }
            }
        }
        Ok(out)
    }
}

fn read_at(file: &File, to: &mut [u8], at: usize) -> Result<(), PipelineError> {
    let failed = |error| StoreError::io(Path::new("captions.vectors"), "read", error).into();
    file.read_exact_at(to, at as u64).map_err(failed)
}
