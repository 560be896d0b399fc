//! Stored vectors of one set of captions: chunk files, journal entries and readers.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Encoder;
use crate::catalog::Texts;
use crate::chunk::Checksum;
use crate::chunk::texts::{self, Vectors};
use crate::pipeline::chunk_files::{ChunkFile, fetch_files};
use crate::pipeline::context::RunContext;
use crate::pipeline::device::damaged;
use crate::pipeline::error::PipelineError;
use crate::run_dir::Directory;
use crate::types::{Part, Precision};

/// Folder of all sets.
const FOLDER: &str = "texts";
/// Folder of the journal entries.
const JOURNAL: &str = "journal/texts";
/// Captions in a chunk.
pub(super) const CHUNK_CAPTIONS: usize = 2048;
/// Version of the vectors. It changes when equal inputs yield different vectors.
const FORMAT: &str = "1";
/// Digits of a generation.
const GENERATION_DIGITS: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    generation: String,
    checksum: Checksum,
    /// Hash of the encoder and its settings; empty in entries of earlier versions.
    #[serde(default)]
    encoder: String,
}

/// Returns the hash of everything that the vectors of a set depend on.
fn generation(encoder: &Encoder, captions: &Texts) -> String {
    let mut hasher = blake3::Hasher::new();
    hash_encoder(&mut hasher, encoder);
    for text in captions.iter() {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..GENERATION_DIGITS].to_owned()
}

/// Record of the set of some stored captions, so that a later start finds the set without hashing the captions.
pub(super) struct StoredSet {
    dir: Directory,
    name: String,
}

impl StoredSet {
    /// Names the record of the captions with this identity.
    pub(super) fn new(dir: Directory, encoder: &Encoder, identity: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hash_encoder(&mut hasher, encoder);
        hasher.update(identity.as_bytes());
        Self { dir, name: format!("{JOURNAL}/of-{}.txt", &hasher.finalize().to_hex()[..16]) }
    }

    /// Returns the generation of the set, if it was recorded.
    ///
    /// # Errors
    /// When the record exists and cannot be read.
    pub(super) fn generation(&self) -> Result<Option<String>, PipelineError> {
        let text = self.dir.read(&self.name)?.and_then(|content| String::from_utf8(content).ok());
        Ok(text.filter(|text| text.len() == GENERATION_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())))
    }

    /// Records the generation of a complete set.
    ///
    /// # Errors
    /// When the run directory cannot be written.
    pub(super) fn record(&self, generation: &str) -> Result<(), PipelineError> {
        Ok(self.dir.write(&self.name, generation.as_bytes())?)
    }
}

/// Returns a hash of the encoder and its settings.
fn encoder_hash(encoder: &Encoder) -> String {
    let mut hasher = blake3::Hasher::new();
    hash_encoder(&mut hasher, encoder);
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Hashes the encoder and its settings.
fn hash_encoder(hasher: &mut blake3::Hasher, encoder: &Encoder) {
    for part in [FORMAT, &encoder.fingerprint, &encoder.prefix, encoder.precision.as_str()] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    if encoder.checkpoint.dim() < encoder.checkpoint.full_dim() {
        hasher.update(b"truncated").update(&(encoder.checkpoint.dim() as u64).to_le_bytes());
    }
}

/// Returns the captions of a chunk.
pub(super) fn chunk_captions(captions: &Texts, chunk: usize) -> Vec<&str> {
    let span = chunk * CHUNK_CAPTIONS..((chunk + 1) * CHUNK_CAPTIONS).min(captions.len());
    span.map(|number| captions.get(number as u32).unwrap_or_default()).collect()
}

/// Writes the chunks of a set.
#[derive(Clone)]
pub(super) struct SetWriter {
    pub(super) dir: Directory,
    pub(super) generation: String,
    /// Number of captions.
    pub(super) captions: usize,
    /// Hash of the encoder and its settings.
    encoder: String,
}

impl SetWriter {
    /// Opens the set of this generation, of `captions` captions.
    pub(super) fn new(dir: Directory, generation: String, captions: usize, encoder: &Encoder) -> Self {
        Self { dir, generation, captions, encoder: encoder_hash(encoder) }
    }

    /// Opens the set of some captions. Hashes them on a thread of its own.
    pub(super) async fn open(
        ctx: &RunContext,
        encoder: &Encoder,
        captions: &Arc<Texts>,
    ) -> Result<Self, PipelineError> {
        let (own, hashed) = (encoder.clone(), Arc::clone(captions));
        let generation = tokio::task::spawn_blocking(move || generation(&own, &hashed)).await?;
        Ok(Self::new(ctx.dir.clone(), generation, captions.len(), encoder))
    }

    /// Returns the name of the set's folders.
    pub(super) fn set(&self) -> &str {
        &self.generation[..16]
    }

    fn chunk_name(&self, chunk: usize) -> String {
        format!("{FOLDER}/{}/{chunk:06}.parquet", self.set())
    }

    fn entry_name(&self, chunk: usize) -> String {
        format!("{JOURNAL}/{}/{chunk:06}.json", self.set())
    }

    /// Returns the checksum of each chunk of the set; `None` for a chunk that is not committed.
    ///
    /// # Errors
    /// When a folder or an entry cannot be read.
    pub(super) fn committed_chunks(&self) -> Result<Vec<Option<Checksum>>, PipelineError> {
        let list = |folder: &str| self.dir.list(&format!("{folder}/{}", self.set()));
        let entries: BTreeSet<String> = list(JOURNAL)?.into_iter().collect();
        let files: BTreeSet<String> = list(FOLDER)?.into_iter().collect();
        let count = self.captions.div_ceil(CHUNK_CAPTIONS);
        let is_complete = |chunk: &usize| {
            entries.contains(&format!("{chunk:06}.json")) && files.contains(&format!("{chunk:06}.parquet"))
        };
        let complete: Vec<usize> = (0..count).filter(is_complete).collect();
        let names: Vec<String> = complete.iter().map(|chunk| self.entry_name(*chunk)).collect();
        let mut chunks: Vec<Option<Checksum>> = (0..count).map(|_| None).collect();
        for (chunk, text) in complete.into_iter().zip(self.dir.read_all(&names)?) {
            let entry = text.and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
            let own = entry.filter(|entry| entry.generation == self.generation);
            chunks[chunk] = own.map(|entry| entry.checksum);
        }
        Ok(chunks)
    }

    /// Returns the committed chunks of all other sets of the same encoder, by set and chunk.
    ///
    /// # Errors
    /// When a folder or an entry cannot be read.
    pub(super) fn other_chunks(&self) -> Result<Vec<ChunkFile>, PipelineError> {
        let mut sets = self.dir.list(FOLDER)?;
        sets.sort_unstable();
        let mut chunks = Vec::new();
        for set in sets.iter().filter(|set| *set != self.set()) {
            let files: BTreeSet<String> = self.dir.list(&format!("{FOLDER}/{set}"))?.into_iter().collect();
            let stems = files.iter().filter_map(|file| file.strip_suffix(".parquet"));
            let names: Vec<String> = stems.clone().map(|stem| format!("{JOURNAL}/{set}/{stem}.json")).collect();
            // All entries of a set name one encoder, so the first decides.
            let first = names.first().map(|name| self.dir.read(name)).transpose()?.flatten();
            let is_own =
                |text: Vec<u8>| serde_json::from_slice::<Entry>(&text).is_ok_and(|entry| entry.encoder == self.encoder);
            if !first.is_some_and(is_own) {
                continue;
            }
            for (stem, text) in stems.zip(self.dir.read_all(&names)?) {
                let entry = text.and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
                let name = format!("{FOLDER}/{set}/{stem}.parquet");
                chunks.extend(entry.map(|entry| ChunkFile { name, sum: Some(entry.checksum), ..ChunkFile::default() }));
            }
        }
        Ok(chunks)
    }

    /// Removes the files of a part's chunks that are not committed.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(super) fn sweep(&self, chunks: &[Option<Checksum>], part: Part) -> Result<(), PipelineError> {
        let number = |file: &str| file.split('.').next().and_then(|stem| stem.parse::<u32>().ok());
        let is_own = |file: &str| number(file).map_or(part == Part::WHOLE, |number| part.contains(number));
        self.dir.sweep_own(&format!("{FOLDER}/{}", self.set()), is_own, |file| {
            number(file).is_some_and(|number| chunks.get(number as usize).is_some_and(Option::is_some))
        })?;
        Ok(())
    }

    /// Writes the file of a chunk, then its entry. Blocks the thread.
    ///
    /// # Errors
    /// When the run directory cannot be written.
    pub(super) fn commit(&self, chunk: usize, captions: &[&str], vectors: &Vectors) -> Result<Checksum, PipelineError> {
        let name = self.chunk_name(chunk);
        let checksum = texts::write(&self.dir.temporary(&name)?, captions, vectors, &self.generation)?;
        self.dir.publish(&name)?;
        let entry = Entry { generation: self.generation.clone(), checksum, encoder: self.encoder.clone() };
        let content = serde_json::to_vec(&entry).map_err(|error| PipelineError::Internal(error.to_string()))?;
        let entry_name = self.entry_name(chunk);
        if !self.dir.create_new(&entry_name, &content)? {
            // A user removed the chunk's file but left its entry.
            self.dir.write(&entry_name, &content)?;
        }
        Ok(entry.checksum)
    }

    /// Returns the set. All of its chunks must be committed.
    pub(super) fn finish(self, chunks: Vec<Option<Checksum>>, encoder: &Encoder) -> VectorSet {
        let file = |(chunk, sum): (usize, Option<Checksum>)| ChunkFile {
            name: self.chunk_name(chunk),
            sum,
            ..ChunkFile::default()
        };
        let files = chunks.into_iter().enumerate().map(file).collect();
        let (captions, dim, precision) = (self.captions, encoder.checkpoint.dim(), encoder.precision);
        VectorSet { files, dir: self.dir, generation: self.generation, captions, dim, precision }
    }
}

/// The stored vectors of a set of captions.
pub(crate) struct VectorSet {
    dir: Directory,
    files: Vec<ChunkFile>,
    generation: String,
    captions: usize,
    dim: usize,
    precision: Precision,
}

impl VectorSet {
    /// Returns the hash of everything that the vectors depend on.
    pub(super) fn generation(&self) -> &str {
        &self.generation
    }

    /// Returns the dimension of a vector.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Whether the vectors are stored as bf16.
    pub(super) fn is_bf16(&self) -> bool {
        self.precision == Precision::Bf16
    }

    /// Returns the stored size of all vectors, in bytes.
    pub(super) fn stored_bytes(&self) -> u64 {
        let width = if self.is_bf16() { 2 } else { 4 };
        (self.captions * self.dim * width) as u64
    }

    /// Passes the vectors to `visit`, chunk by chunk in the order of the captions. Blocks the thread.
    ///
    /// # Errors
    /// Those of `visit`; or when a chunk cannot be read or is damaged.
    pub(super) fn visit_chunks(
        &self,
        visit: impl FnMut(Vec<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        self.visit_files(&self.files, visit)
    }

    fn visit_files(
        &self,
        files: &[ChunkFile],
        mut visit: impl FnMut(Vec<f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        for fetched in fetch_files(&self.dir, files) {
            let (file, copy) = fetched?;
            let vectors = texts::read(&copy).map_err(damaged)?;
            if vectors.dim != self.dim {
                let name = self.dir.display(&file.name);
                return Err(PipelineError::Input(format!(
                    "`{name}` holds vectors of {} values, not {}: remove the file",
                    vectors.dim, self.dim
                )));
            }
            visit(vectors.values)?;
        }
        Ok(())
    }

    /// Reads the vectors of captions by ascending numbers, as `[numbers, dim]`. Blocks the thread.
    ///
    /// # Errors
    /// When a chunk cannot be read or is damaged, or a number is out of range.
    pub(crate) fn read(&self, numbers: &[u32]) -> Result<Vec<f32>, PipelineError> {
        let absent = || PipelineError::Internal("a caption has no vector".to_owned());
        let chunk_of = |number: u32| number as usize / CHUNK_CAPTIONS;
        let groups: Vec<&[u32]> = numbers.chunk_by(|one, other| chunk_of(*one) == chunk_of(*other)).collect();
        let files: Option<Vec<ChunkFile>> =
            groups.iter().map(|group| self.files.get(chunk_of(group[0])).cloned()).collect();
        let mut all = Vec::with_capacity(numbers.len() * self.dim);
        let mut groups = groups.into_iter();
        self.visit_files(&files.ok_or_else(absent)?, |values| {
            for number in groups.next().unwrap_or_default() {
                let first = *number as usize % CHUNK_CAPTIONS * self.dim;
                all.extend_from_slice(values.get(first..first + self.dim).ok_or_else(absent)?);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Reads all vectors, `[captions, dim]`. Blocks the thread.
    ///
    /// # Errors
    /// When a chunk cannot be read or is damaged.
    pub(crate) fn read_all(&self) -> Result<Vec<f32>, PipelineError> {
        let mut all = Vec::with_capacity(self.captions * self.dim);
        self.visit_chunks(|values| {
            all.extend_from_slice(&values);
            Ok(())
        })?;
        Ok(all)
    }
}
