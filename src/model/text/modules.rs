//! Reads the files of sentence-transformers, which define how hidden states become one embedding.
//!
//! `modules.json` lists the modules in order; the first is the encoder. Each other module has a directory with a
//! `config.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::config::check_range;
use crate::model::error::ModelError;
use crate::model::json::parse_json;

const MODULES: &str = "modules.json";
const SENTENCE: &str = "sentence_bert_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const PROMPTS: &str = "config_sentence_transformers.json";
/// Values of `model_max_length` from here on mean "no limit": transformers writes 1e30.
const NO_LIMIT: f64 = 1e6;

/// Pooling of the last hidden states to one embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pooling {
    /// Mean over the tokens.
    #[default]
    Mean,
    /// Sum over the tokens, divided by the square root of their number.
    MeanSqrt,
    /// First token.
    Cls,
    /// Maximum over the tokens, for each component.
    Max,
}

/// Linear layer after the pooling.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dense {
    pub(super) dir: PathBuf,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) bias: bool,
    pub(super) tanh: bool,
}

/// Settings of sentence-transformers: preprocessing of captions and layers after the encoder's last block.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Modules {
    pub(super) pooling: Pooling,
    pub(super) dense: Vec<Dense>,
    pub(super) normalise: bool,
    pub(super) lower_case: bool,
    /// Lower-casing by the tokenizer class of BERT, which replaces that of `tokenizer.json`; `None` for other classes.
    pub(super) bert_lower_case: Option<bool>,
    /// True if the pooling includes the tokens of the prefix.
    pub(super) include_prompt: bool,
    /// Prompts by name.
    pub(super) prompts: BTreeMap<String, String>,
    /// Name of the prompt that captions get where nothing else is configured.
    pub(super) default_prompt: Option<String>,
    /// Number of leading values of an embedding that are kept; `None` for all.
    pub(super) truncate_dim: Option<u64>,
    /// Upper bound on the tokens of a caption, if a file sets one.
    pub(super) max_tokens: Option<u64>,
    /// Files that were read; the fingerprint of the encoder includes them.
    pub(super) files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct RawModule {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize, Default)]
#[expect(clippy::struct_excessive_bools, reason = "keys of the file")]
struct RawPooling {
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    include_prompt: Option<bool>,
}

#[derive(Deserialize)]
struct RawDense {
    in_features: u64,
    out_features: u64,
    bias: Option<bool>,
    activation_function: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawSentence {
    max_seq_length: Option<u64>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize, Default)]
struct RawTokenizer {
    model_max_length: Option<f64>,
    tokenizer_class: Option<String>,
    do_lower_case: Option<bool>,
}

#[derive(Deserialize, Default)]
struct RawPrompts {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
    truncate_dim: Option<u64>,
}

impl Modules {
    /// Reads the files that exist in `dir`; `hidden` is the width of a token.
    pub(super) fn read(dir: &Path, hidden: usize) -> Result<Self, ModelError> {
        let mut settings = Self { normalise: true, include_prompt: true, ..Self::default() };
        if let Some(raw) = settings.read_optional::<RawSentence>(&dir.join(SENTENCE))? {
            settings.lower_case = raw.do_lower_case;
            settings.max_tokens = raw.max_seq_length;
        }
        settings.read_tokenizer_config(&dir.join(TOKENIZER_CONFIG))?;
        let path = dir.join(MODULES);
        let Some(modules) = settings.read_optional::<Vec<RawModule>>(&path)? else { return Ok(settings) };
        settings.read_prompts(&dir.join(PROMPTS))?;
        settings.normalise = false;
        let mut width = hidden;
        for (number, module) in modules.iter().enumerate() {
            let kind = module.kind.rsplit('.').next().unwrap_or_default();
            let inside =
                !module.path.starts_with(['/', '\\']) && !module.path.split(['/', '\\']).any(|part| part == "..");
            if !inside {
                return Err(ModelError::value(
                    &path,
                    "path",
                    format!("is `{}`, which is outside the checkpoint", module.path),
                ));
            }
            let folder = dir.join(&module.path);
            match kind {
                "Transformer" if number == 0 && module.path.is_empty() => {}
                "Pooling" if number == 1 => settings.pooling = settings.read_pooling(&folder.join("config.json"))?,
                "Dense" if number > 1 && !settings.normalise => {
                    let dense = settings.read_dense(&folder, width)?;
                    width = dense.output;
                    settings.dense.push(dense);
                }
                "Normalize" if number > 1 => settings.normalise = true,
                other => {
                    let problem = format!(
                        "is `{other}` at position {number}; supported are a `Transformer` in the directory itself, then `Pooling`, \
                         then `Dense` and at last `Normalize`"
                    );
                    return Err(ModelError::value(&path, "type", problem));
                }
            }
        }
        if modules.len() < 2 {
            return Err(ModelError::value(&path, "type", "names no `Pooling`"));
        }
        Ok(settings)
    }

    /// Reads what `tokenizer_config.json` says about length and case. It counts as a file of the fingerprint only if it
    /// changes a setting.
    fn read_tokenizer_config(&mut self, path: &Path) -> Result<(), ModelError> {
        let found = parse_optional::<RawTokenizer>(path)?;
        let exists = found.is_some();
        let raw = found.unwrap_or_default();
        let is_bert = raw.tokenizer_class.is_none_or(|class| class.starts_with("BertTokenizer"));
        self.bert_lower_case = is_bert.then(|| raw.do_lower_case.unwrap_or(true));
        if self.max_tokens.is_none() && exists {
            self.files.push(path.to_owned());
            self.max_tokens =
                raw.model_max_length.filter(|most| (1.0..NO_LIMIT).contains(most)).map(|most| most as u64);
        }
        Ok(())
    }

    /// Reads the prompts. They are not part of the fingerprint: the prefix that captions get is a key of its own.
    fn read_prompts(&mut self, path: &Path) -> Result<(), ModelError> {
        let Some(raw) = parse_optional::<RawPrompts>(path)? else { return Ok(()) };
        self.prompts = raw.prompts.into_iter().map(|(name, prompt)| (name, prompt.unwrap_or_default())).collect();
        if let Some(name) = raw.default_prompt_name.as_ref().filter(|name| !self.prompts.contains_key(*name)) {
            let names: Vec<String> = self.prompts.keys().map(|name| format!("`{name}`")).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let problem = format!("is `{name}`, which is not among its prompts ({names})");
            return Err(ModelError::value(path, "default_prompt_name", problem));
        }
        self.default_prompt = raw.default_prompt_name;
        self.truncate_dim =
            raw.truncate_dim.map(|width| check_range(path, "truncate_dim", width, 1 << 20)).transpose()?;
        Ok(())
    }

    /// Parses a file of the fingerprint; returns `None` if it does not exist.
    fn read_optional<T: for<'de> Deserialize<'de>>(&mut self, path: &Path) -> Result<Option<T>, ModelError> {
        let parsed = parse_optional(path)?;
        if parsed.is_some() {
            self.files.push(path.to_owned());
        }
        Ok(parsed)
    }

    /// Parses a file that must exist.
    fn read_required<T: for<'de> Deserialize<'de>>(&mut self, path: &Path) -> Result<T, ModelError> {
        let absent = || ModelError::read(path)(std::io::ErrorKind::NotFound.into());
        self.read_optional(path)?.ok_or_else(absent)
    }

    /// Parses the configuration of a `Pooling` module.
    fn read_pooling(&mut self, path: &Path) -> Result<Pooling, ModelError> {
        let raw: RawPooling = self.read_required(path)?;
        let reject = |problem: &str| Err(ModelError::value(path, "pooling_mode", problem));
        self.include_prompt = raw.include_prompt.unwrap_or(true);
        if raw.pooling_mode_weightedmean_tokens || raw.pooling_mode_lasttoken {
            return reject(
                "is a weighted mean or the last token; supported are `cls`, `mean`, `max` and `mean_sqrt_len_tokens`",
            );
        }
        let named = raw.pooling_mode.as_deref();
        let modes = [
            (Pooling::Cls, raw.pooling_mode_cls_token, "cls"),
            (Pooling::Mean, raw.pooling_mode_mean_tokens, "mean"),
            (Pooling::Max, raw.pooling_mode_max_tokens, "max"),
            (Pooling::MeanSqrt, raw.pooling_mode_mean_sqrt_len_tokens, "mean_sqrt_len_tokens"),
        ];
        let chosen: Vec<Pooling> =
            modes.into_iter().filter(|(_, on, name)| *on || named == Some(name)).map(|(mode, ..)| mode).collect();
        match chosen.as_slice() {
            [one] => Ok(*one),
            _ => reject("must be one of `cls`, `mean`, `max` and `mean_sqrt_len_tokens`"),
        }
    }

    /// Parses the configuration of a `Dense` module whose input has `width` values.
    fn read_dense(&mut self, folder: &Path, width: usize) -> Result<Dense, ModelError> {
        let path = folder.join("config.json");
        let raw: RawDense = self.read_required(&path)?;
        let side = |key, value| check_range(&path, key, value, 1 << 20);
        let (input, output) = (side("in_features", raw.in_features)?, side("out_features", raw.out_features)?);
        if input as usize != width {
            return Err(ModelError::value(
                &path,
                "in_features",
                format!("is `{input}`; its input has `{width}` values"),
            ));
        }
        let activation = raw.activation_function.as_deref().unwrap_or("torch.nn.modules.activation.Tanh");
        let tanh = match activation.rsplit('.').next() {
            Some("Tanh") => true,
            Some("Identity") => false,
            _ => {
                let problem = format!("is `{activation}`; supported are `Tanh` and `Identity`");
                return Err(ModelError::value(&path, "activation_function", problem));
            }
        };
        let (input, output) = (input as usize, output as usize);
        Ok(Dense { dir: folder.to_owned(), input, output, bias: raw.bias.unwrap_or(true), tanh })
    }

    /// Returns the width of an embedding before it is truncated; `hidden` is the width of a token.
    pub(super) fn output_width(&self, hidden: usize) -> usize {
        self.dense.last().map_or(hidden, |dense| dense.output)
    }
}

/// Parses a file; returns `None` if it does not exist.
fn parse_optional<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, ModelError> {
    match std::fs::read(path) {
        Ok(text) => parse_json(&text, path).map(Some),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(ModelError::read(path)(cause)),
    }
}
