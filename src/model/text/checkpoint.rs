//! Opens the directory of a text encoder and checks tensor names and shapes before any tensor is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::layout;
use super::modules::{Modules, Pooling};
use super::paired::{self, PairedConfig};
use crate::model::config::{Activation, check_heads, check_norm_epsilon, check_range, parse_activation};
use crate::model::error::ModelError;
use crate::model::json::parse_json;
use crate::model::weights::{Format, StoredTensor, WeightReader};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Version of the tokens of encoders that set the case themselves. It changes when equal captions yield other tokens.
const TOKENS_WITH_CASE: &str = "case by the normalizer";
/// Upper bound on the width of a token.
const MAX_WIDTH: u64 = 1 << 16;
/// Upper bound on vocabulary and positions.
const MAX_VOCABULARY: u64 = 1 << 24;

/// Architecture of a text encoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TextConfig {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) inner: usize,
    pub(super) activation: Activation,
    pub(super) norm_epsilon: f64,
    pub(super) vocabulary: usize,
    pub(super) positions: usize,
    pub(super) types: usize,
    /// Position of the first token: 0 in BERT, `pad_token_id + 1` in `RoBERTa`.
    pub(super) first_position: usize,
}

/// Keys of `config.json` that define the architecture.
///
/// An absent key takes the default of `BertConfig` or `XLMRobertaConfig`; they differ in `pad_token_id`.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    intermediate_size: Option<u64>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    type_vocab_size: Option<u64>,
    pad_token_id: Option<u64>,
    position_embedding_type: Option<String>,
}

/// Part of `tokenizer.json` that decides about case.
#[derive(Deserialize, Default)]
struct RawTokenizerFile {
    normalizer: Option<RawNormalizer>,
}

#[derive(Deserialize)]
struct RawNormalizer {
    #[serde(rename = "type")]
    kind: String,
    lowercase: Option<bool>,
}

impl TextConfig {
    /// Parses and checks the text of a `config.json`.
    fn parse(text: &[u8], path: &Path) -> Result<Self, ModelError> {
        let raw: RawConfig = parse_json(text, path)?;
        let roberta = match raw.model_type.as_deref() {
            Some("bert") => false,
            Some("xlm-roberta" | "roberta") => true,
            other => {
                let found = other.unwrap_or("(none)");
                let problem = format!("is `{found}`; supported text encoders are `bert`, `xlm-roberta` and `roberta`");
                return Err(ModelError::value(path, "model_type", problem));
            }
        };
        if let Some(kind) = raw.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(ModelError::value(
                path,
                "position_embedding_type",
                format!("is `{kind}`; only `absolute` is supported"),
            ));
        }
        let count = |key, value: Option<u64>, default, limit| {
            check_range(path, key, value.unwrap_or(default), limit).map(|value| value as usize)
        };
        let hidden = count("hidden_size", raw.hidden_size, 768, MAX_WIDTH)?;
        let heads = count("num_attention_heads", raw.num_attention_heads, 12, MAX_WIDTH)?;
        check_heads(path, heads as u64, hidden as u64)?;
        let norm_epsilon = check_norm_epsilon(path, raw.layer_norm_eps.unwrap_or(1e-12))?;
        let pad = raw.pad_token_id.unwrap_or(u64::from(roberta));
        let positions = count("max_position_embeddings", raw.max_position_embeddings, 512, MAX_VOCABULARY)?;
        let first_position = if roberta { pad as usize + 1 } else { 0 };
        if first_position >= positions {
            let problem = format!("is `{positions}`, which leaves no position after that of the padding, `{pad}`");
            return Err(ModelError::value(path, "max_position_embeddings", problem));
        }
        Ok(Self {
            hidden,
            heads,
            norm_epsilon,
            positions,
            first_position,
            layers: count("num_hidden_layers", raw.num_hidden_layers, 12, 1000)?,
            inner: count("intermediate_size", raw.intermediate_size, 3072, 4 * MAX_WIDTH)?,
            activation: parse_activation(raw.hidden_act.as_deref(), path)?,
            vocabulary: count("vocab_size", raw.vocab_size, 30_522, MAX_VOCABULARY)?,
            types: count("type_vocab_size", raw.type_vocab_size, 2, MAX_WIDTH)?,
        })
    }
}

/// Checks that a checkpoint has a tokenizer, which is read later.
fn require_tokenizer(dir: &Path) -> Result<(), ModelError> {
    let tokenizer = dir.join(TOKENIZER);
    if tokenizer.is_file() { Ok(()) } else { Err(ModelError::read(&tokenizer)(std::io::ErrorKind::NotFound.into())) }
}

/// Text encoder in which every expected tensor exists with the expected shape.
#[derive(Debug, Clone)]
pub struct TextCheckpoint {
    dir: PathBuf,
    pub(super) config: TextConfig,
    pub(super) modules: Modules,
    pub(super) weights: WeightReader,
    names: BTreeMap<String, String>,
    /// Upper bound on the tokens of a caption.
    max_tokens: usize,
    /// Width of an embedding.
    dim: usize,
    /// Settings of the text tower of an image backbone; `None` for an encoder of its own.
    pub(super) paired: Option<PairedConfig>,
}

impl TextCheckpoint {
    /// Opens a directory in Hugging Face layout.
    ///
    /// # Errors
    /// When a file is unreadable or damaged, the family or a value is not supported, or tensor names or shapes differ
    /// from those that `config.json` implies.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        let text = std::fs::read(&path).map_err(ModelError::read(&path))?;
        let config = TextConfig::parse(&text, &path)?;
        require_tokenizer(dir)?;
        let modules = Modules::read(dir, config.hidden)?;
        let weights = WeightReader::open_dir(dir)?;
        let keys = weights.tensors().keys().filter_map(|name| Some((layout::published_name(name)?, name)));
        let names = weights.match_names(dir, layout::expected_shapes(&config), keys)?;
        let room = (config.positions - config.first_position) as u64;
        let max_tokens = modules.max_tokens.unwrap_or(room).min(room) as usize;
        let width = modules.output_width(config.hidden);
        let dim = modules.truncate_dim.map_or(width, |kept| width.min(kept as usize));
        Ok(Self { dir: dir.to_owned(), config, modules, weights, names, max_tokens, dim, paired: None })
    }

    /// Opens the text tower of a checkpoint that pairs it with an image backbone.
    ///
    /// # Errors
    /// As [`Self::open`]; and when the checkpoint has no text tower.
    pub fn open_paired(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        let text = std::fs::read(&path).map_err(ModelError::read(&path))?;
        let (config, mut paired) = paired::parse(&text, &path)?;
        require_tokenizer(dir)?;
        let settings = paired.read_tokenizer_config(dir)?;
        let weights = WeightReader::open_dir(dir)?;
        let keys = weights.tensors().keys().filter_map(|name| Some((paired::published_name(name, &paired)?, name)));
        let names = weights.match_names(dir, paired::expected_shapes(&config, &paired), keys)?;
        let room = (config.positions - config.first_position) as u64;
        let max_tokens = settings.max_tokens.unwrap_or(room).min(room) as usize;
        let modules = Modules {
            // For an encoder of BERT's form.
            pooling: Pooling::Cls,
            normalise: true,
            lower_case: settings.lower_case,
            include_prompt: true,
            files: settings.file.into_iter().collect(),
            ..Modules::default()
        };
        let dim = paired.dim;
        Ok(Self { dir: dir.to_owned(), config, modules, weights, names, max_tokens, dim, paired: Some(paired) })
    }

    /// Keeps the first `dim` values of each embedding, whatever the checkpoint says, or all if it has fewer.
    ///
    /// As in sentence-transformers, the rest of an embedding is not scaled to unit length again.
    #[must_use]
    pub fn truncated(self, dim: usize) -> Self {
        Self { dim: self.full_dim().min(dim), ..self }
    }

    /// Returns the width of an embedding.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns the width of an embedding before it is truncated.
    pub fn full_dim(&self) -> usize {
        self.paired.as_ref().map_or_else(|| self.modules.output_width(self.config.hidden), |paired| paired.dim)
    }

    /// Returns the prompts of the checkpoint by name.
    pub fn prompts(&self) -> &BTreeMap<String, String> {
        &self.modules.prompts
    }

    /// Returns the name and the text of the prompt that every caption gets by default.
    pub fn default_prompt(&self) -> Option<(&str, &str)> {
        let name = self.modules.default_prompt.as_ref()?;
        Some((name, self.modules.prompts.get(name)?))
    }

    /// Returns the upper bound on the tokens of a caption; longer captions are truncated.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Returns the number of parameters without the table of word embeddings, which takes no part in matrix products.
    pub fn parameters(&self) -> u64 {
        let all: u64 =
            self.names.values().filter_map(|name| self.weights.tensors().get(name)).map(|e| e.elements() as u64).sum();
        all - (self.config.vocabulary * self.config.hidden) as u64
    }

    pub(super) fn tokenizer_path(&self) -> PathBuf {
        self.dir.join(TOKENIZER)
    }

    /// Returns the BLAKE3 hash, in hex, of configuration, tokenizer, weights and the files of sentence-transformers.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, ModelError> {
        let mut hasher = blake3::Hasher::new();
        let own = [self.dir.join(CONFIG), self.tokenizer_path()];
        let dense = self.modules.dense.iter().map(|dense| dense.dir.join("model.safetensors"));
        let files = own.into_iter().chain(self.weights.files(&self.dir)).chain(self.modules.files.clone()).chain(dense);
        for path in files {
            let file = File::open(&path).map_err(ModelError::read(&path))?;
            let length = file.metadata().map_err(ModelError::read(&path))?.len();
            let name = path.strip_prefix(&self.dir).unwrap_or(&path).as_os_str().as_encoded_bytes();
            hasher.update(name).update(&[0]).update(&length.to_le_bytes());
            hasher.update_reader(file).map_err(ModelError::read(&path))?;
        }
        if self.modules.lower_case || self.changes_case_of_tokenizer()? {
            hasher.update(TOKENS_WITH_CASE.as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Returns the lower-casing of BERT's normalizer; `None` for other encoders and tokenizer classes.
    pub(super) fn bert_lower_case(&self) -> Option<bool> {
        self.modules.bert_lower_case.filter(|_| self.config.first_position == 0)
    }

    /// Returns whether the tokenizer class lower-cases and `tokenizer.json` does not, or the reverse.
    fn changes_case_of_tokenizer(&self) -> Result<bool, ModelError> {
        let Some(lower_case) = self.bert_lower_case() else { return Ok(false) };
        let path = self.tokenizer_path();
        let text = std::fs::read(&path).map_err(ModelError::read(&path))?;
        // A damaged file is reported when the tokenizer is loaded.
        let raw: RawTokenizerFile = parse_json(&text, &path).unwrap_or_default();
        Ok(raw.normalizer.is_some_and(|normalizer| {
            normalizer.kind == "BertNormalizer" && normalizer.lowercase.is_some_and(|stored| stored != lower_case)
        }))
    }

    fn tensor(&self, key: &str) -> Result<&StoredTensor, ModelError> {
        let found = self.names.get(key).and_then(|name| self.weights.tensors().get(name));
        found.ok_or_else(|| ModelError::Keys {
            dir: self.dir.clone(),
            missing: vec![key.to_owned()],
            unexpected: Vec::new(),
        })
    }

    /// Reads tensors by their published names, as f32, and concatenates them.
    pub(super) fn read(&self, keys: &[String]) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        for key in keys {
            self.weights.read_into(self.tensor(key)?, &mut values)?;
        }
        Ok(values)
    }

    /// Reads the bytes of a tensor without conversion.
    pub(super) fn read_raw(&self, key: &str) -> Result<(Vec<u8>, Format), ModelError> {
        let tensor = self.tensor(key)?;
        let mut bytes = Vec::with_capacity(tensor.bytes() as usize);
        self.weights.stream(tensor, |block| {
            bytes.extend_from_slice(block);
            Ok(())
        })?;
        Ok((bytes, tensor.format))
    }
}
