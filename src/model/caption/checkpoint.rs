//! Opens a captioning checkpoint and checks tensor names and shapes before any tensor is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::config::{self, DecoderConfig};
use super::generation::Generation;
use super::layout::{self, BRIDGE, DECODER, ENCODER};
use crate::model::checkpoint::Checkpoint;
use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::model::preprocessor::Preprocessor;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Captioning checkpoint in which every expected tensor exists with the expected shape.
#[derive(Debug, Clone)]
pub struct CaptionCheckpoint {
    dir: PathBuf,
    pub(super) encoder: Checkpoint,
    pub(super) decoder: DecoderConfig,
    generation: Generation,
    /// Maps the published name of each tensor of the decoder to its name in the file.
    names: BTreeMap<String, String>,
    /// Name of the output layer's bias.
    pub(super) output_bias: Option<&'static str>,
    /// True if a projection maps the encoder's states to the decoder's width.
    pub(super) bridged: bool,
}

/// Families whose last hidden states are the tokens after the final norm, as decoders expect them.
const ENCODERS: [Family; 6] =
    [Family::Vit, Family::Deit, Family::Dinov2, Family::Dinov2WithRegisters, Family::Swin, Family::Swinv2];

impl CaptionCheckpoint {
    /// Opens a directory in Hugging Face layout.
    ///
    /// # Errors
    /// When a file is unreadable or damaged, the checkpoint is no `VisionEncoderDecoder`, a family or a value is not supported,
    /// or tensor names or shapes differ from those that `config.json` implies.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::open_with(dir, None, None)
    }

    /// Opens a directory as [`Self::open`] does, and generates with another number of beams or of new tokens.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: &Path, beams: Option<u32>, new_tokens: Option<u32>) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        let text = std::fs::read(&path).map_err(ModelError::read(&path))?;
        let (encoder_text, decoder) = config::parse(&text, &path)?;
        let tokenizer = dir.join(TOKENIZER);
        if !tokenizer.is_file() {
            return Err(ModelError::read(&tokenizer)(std::io::ErrorKind::NotFound.into()));
        }
        let encoder = Checkpoint::open_part(dir, &encoder_text, ENCODER)?;
        if !ENCODERS.contains(&encoder.family()) {
            let known: Vec<String> = ENCODERS.iter().map(|family| format!("`{}`", family.name())).collect();
            let problem = format!("is `{}`; supported are {}", encoder.family().name(), known.join(", "));
            return Err(ModelError::value(&path, "encoder.model_type", problem));
        }
        let generation_path = dir.join(GENERATION);
        let generation = match std::fs::read(&generation_path) {
            Ok(own) => Generation::parse(&own, &generation_path)?,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Generation::from_model_config(&text, &path)?,
            Err(cause) => return Err(ModelError::read(&generation_path)(cause)),
        };
        let generation = beams.into_iter().fold(generation, Generation::with_beams);
        let generation = new_tokens.into_iter().fold(generation, Generation::with_max_new_tokens);
        let generation = generation.checked(decoder.vocabulary, decoder.room())?;

        let names = layout::names(decoder.family);
        let tensors = encoder.weights().tensors();
        let has = |name: &&&str| tensors.contains_key(&format!("{DECODER}{name}"));
        let mut biases = names.output_bias;
        if !decoder.tied {
            biases.reverse();
        }
        let output_bias =
            if biases[0].is_empty() { None } else { Some(*biases.iter().find(has).unwrap_or(&biases[0])) };
        let bridged = encoder.hidden_size() != decoder.hidden;
        let mut expected = layout::expected_shapes(&decoder, output_bias);
        if bridged {
            expected.insert(format!("{BRIDGE}.weight"), vec![decoder.hidden, encoder.hidden_size()]);
            expected.insert(format!("{BRIDGE}.bias"), vec![decoder.hidden]);
        }
        let is_copy = |bare: &str| {
            (decoder.tied && bare == names.output)
                || names.output_bias.contains(&bare) && Some(bare) != output_bias
                || layout::is_unused(bare)
        };
        let key = |name: &String| match name.strip_prefix(DECODER) {
            Some(bare) => (!is_copy(bare)).then(|| bare.to_owned()),
            None => (!name.starts_with(ENCODER)).then(|| name.clone()),
        };
        let keys: Vec<(String, &String)> = tensors.keys().filter_map(|name| Some((key(name)?, name))).collect();
        let names = encoder.weights().match_names(dir, expected, keys)?;
        Ok(Self { dir: dir.to_owned(), encoder, decoder, generation, names, output_bias, bridged })
    }

    /// Returns the settings with which the checkpoint generates.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Generates with other settings, which are checked.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the longest caption exceeds the decoder's positions.
    pub fn with_generation(self, generation: Generation) -> Result<Self, ModelError> {
        let generation = generation.checked(self.decoder.vocabulary, self.decoder.room())?;
        Ok(Self { generation, ..self })
    }

    /// Returns the preprocessing that the checkpoint was trained with.
    pub fn preprocessor(&self) -> &Preprocessor {
        self.encoder.preprocessor()
    }

    /// Returns the encoder.
    pub fn encoder(&self) -> &Checkpoint {
        &self.encoder
    }

    /// Returns the number of parameters of encoder and decoder.
    pub fn parameters(&self) -> u64 {
        let tensors = self.encoder.weights().tensors();
        let own = self.names.values().filter_map(|name| tensors.get(name)).map(|tensor| tensor.elements() as u64);
        self.encoder.parameters() + own.sum::<u64>()
    }

    /// Returns an upper bound on the memory that one image takes while it is captioned, in bytes, beside the encoder's
    /// activations: keys and values of its tokens and of its captions, and the logits.
    pub fn decoding_bytes(&self, size_px: u32) -> u64 {
        let (beams, length) = (self.generation.num_beams as u64, self.generation.max_length as u64);
        let side = u64::from(size_px / self.encoder.patch_size_px().max(1));
        let (tokens, hidden) = (side * side + 8, self.decoder.hidden as u64);
        // Keys and values twice, because a step makes new ones before the old ones go.
        let kept = 4 * self.decoder.layers as u64 * hidden * (tokens + beams * length);
        4 * (kept + 4 * beams * self.decoder.vocabulary as u64)
    }

    /// Returns the BLAKE3 hash, in hex, of all files that decide about the captions.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, ModelError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.encoder.fingerprint()?.as_bytes());
        for name in [GENERATION, TOKENIZER, TOKENIZER_CONFIG] {
            let path = self.dir.join(name);
            if !path.is_file() {
                continue;
            }
            let file = File::open(&path).map_err(ModelError::read(&path))?;
            let length = file.metadata().map_err(ModelError::read(&path))?.len();
            hasher.update(name.as_bytes()).update(&[0]).update(&length.to_le_bytes());
            hasher.update_reader(file).map_err(ModelError::read(&path))?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    pub(super) fn tokenizer_path(&self) -> PathBuf {
        self.dir.join(TOKENIZER)
    }

    pub(super) fn tokenizer_config_path(&self) -> PathBuf {
        self.dir.join(TOKENIZER_CONFIG)
    }

    /// Reads tensors of the decoder by their published names, as f32, and concatenates them.
    pub(super) fn read(&self, keys: &[String]) -> Result<Vec<f32>, ModelError> {
        let (weights, mut values) = (self.encoder.weights(), Vec::new());
        for key in keys {
            let tensor = self.names.get(key).and_then(|name| weights.tensors().get(name));
            let Some(tensor) = tensor else {
                let (dir, missing) = (self.dir.clone(), vec![key.clone()]);
                return Err(ModelError::Keys { dir, missing, unexpected: Vec::new() });
            };
            weights.read_into(tensor, &mut values)?;
        }
        Ok(values)
    }
}
