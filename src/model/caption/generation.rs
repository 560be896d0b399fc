//! Settings of generation: `generation_config.json`, or the keys that older checkpoints keep in `config.json`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::options;
use crate::model::error::ModelError;
use crate::model::json::parse_json_object;

/// New tokens if no key says how many; the default of transformers.
const DEFAULT_NEW_TOKENS: u64 = 20;
/// Upper bound on the beams. Far above useful values; keeps the logits of one image in memory.
const MAX_BEAMS: u64 = 64;

/// Rule that ends a beam search (`early_stopping`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stopping {
    /// `false`: when a running caption of the present length cannot become better than the worst finished one.
    #[default]
    Heuristic,
    /// `true`: as soon as there are as many finished captions as beams.
    Early,
    /// `"never"`: when no running caption can become better, whatever its length.
    Never,
}

/// Checked settings of generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// File that the settings come from.
    path: PathBuf,
    /// First token of every caption, which is not part of it.
    pub(super) start: u32,
    /// Tokens that end a caption; empty if none does.
    pub(super) ends: Vec<u32>,
    /// Upper bound on the tokens of a caption with its first one.
    pub(super) max_length: usize,
    /// Lower bound on the tokens of a caption with its first one, before a token may end it.
    pub(super) min_length: usize,
    pub(super) num_beams: usize,
    pub(super) length_penalty: f64,
    pub(super) stopping: Stopping,
    /// Length of the sequences of tokens that must not occur twice; 0 allows all.
    pub(super) no_repeat: usize,
    /// Factor that makes the tokens so far less likely; `None` for no change.
    pub(super) repetition_penalty: Option<f32>,
    pub(super) forced_first: Option<u32>,
    pub(super) forced_last: Vec<u32>,
    pub(super) suppressed: Vec<u32>,
    pub(super) suppressed_first: Vec<u32>,
}

/// Keys as they are written.
#[derive(Deserialize, Default)]
#[serde(default)]
struct RawGeneration {
    max_length: Option<u64>,
    max_new_tokens: Option<u64>,
    min_length: Option<u64>,
    min_new_tokens: Option<u64>,
    num_beams: Option<u64>,
    length_penalty: Option<f64>,
    early_stopping: Option<RawStopping>,
    no_repeat_ngram_size: Option<u64>,
    repetition_penalty: Option<f64>,
    forced_bos_token_id: Option<u32>,
    forced_eos_token_id: Option<RawTokens>,
    suppress_tokens: Option<Vec<u32>>,
    begin_suppress_tokens: Option<Vec<u32>>,
    decoder_start_token_id: Option<u32>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<RawTokens>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawStopping {
    Flag(bool),
    Word(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTokens {
    One(u32),
    Several(Vec<u32>),
}

impl RawTokens {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(token) => vec![token],
            Self::Several(tokens) => tokens,
        }
    }
}

impl Generation {
    /// Parses a `generation_config.json`; `path` appears in errors.
    ///
    /// # Errors
    /// When it is damaged, or an option would change the captions and is not supported.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, ModelError> {
        let options = parse_json_object(text, path)?;
        options::check(&options, path)?;
        Self::from_options(options, path)
    }

    /// Reads the settings from a checkpoint's `config.json`: keys of the file itself, then those of its decoder.
    pub(super) fn from_model_config(text: &[u8], path: &Path) -> Result<Self, ModelError> {
        let config = parse_json_object(text, path)?;
        let mut kept = options::keep(&config);
        if let Some(Value::Object(decoder)) = config.get("decoder") {
            for (name, value) in options::keep(decoder) {
                kept.entry(name).or_insert(value);
            }
        }
        options::check(&kept, path)?;
        Self::from_options(kept, path)
    }

    fn from_options(options: Map<String, Value>, path: &Path) -> Result<Self, ModelError> {
        let kept = options.into_iter().filter(|(name, _)| options::SUPPORTED.contains(&name.as_str())).collect();
        let raw: RawGeneration = serde_path_to_error::deserialize(Value::Object(kept)).map_err(|error| {
            let reason = format!("`{}`: {}", error.path(), error.inner());
            ModelError::Json { path: path.to_owned(), reason }
        })?;
        Self::from_raw(raw, path)
    }

    fn from_raw(raw: RawGeneration, path: &Path) -> Result<Self, ModelError> {
        let refuse = |key: &'static str, problem: String| Err(ModelError::value(path, key, problem));
        let Some(start) = raw.decoder_start_token_id.or(raw.bos_token_id) else {
            let problem = "is absent, and so is `bos_token_id`: no token can begin a caption".to_owned();
            return refuse("decoder_start_token_id", problem);
        };
        let num_beams = raw.num_beams.unwrap_or(1);
        if !(1..=MAX_BEAMS).contains(&num_beams) {
            return refuse("num_beams", format!("is `{num_beams}`; it must lie between 1 and {MAX_BEAMS}"));
        }
        let stopping = match raw.early_stopping {
            None | Some(RawStopping::Flag(false)) => Stopping::Heuristic,
            Some(RawStopping::Flag(true)) => Stopping::Early,
            Some(RawStopping::Word(word)) if word == "never" => Stopping::Never,
            Some(RawStopping::Word(word)) => {
                return refuse("early_stopping", format!("is `{word}`; it must be `true`, `false` or `\"never\"`"));
            }
        };
        let length_penalty = raw.length_penalty.unwrap_or(1.0);
        if !length_penalty.is_finite() {
            return refuse("length_penalty", format!("is `{length_penalty}`; it must be a number"));
        }
        let repetition_penalty = raw.repetition_penalty.unwrap_or(1.0);
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return refuse("repetition_penalty", format!("is `{repetition_penalty}`; it must be over 0"));
        }
        let new_tokens = raw.max_new_tokens.or(if raw.max_length.is_none() { Some(DEFAULT_NEW_TOKENS) } else { None });
        // The first token counts for `max_length`, but is no new one.
        let max_length = new_tokens.map_or(raw.max_length, |new| Some(new.saturating_add(1))).unwrap_or_default();
        let min_length = raw.min_new_tokens.map_or(raw.min_length.unwrap_or(0), |new| new.saturating_add(1));
        let length = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Self {
            path: path.to_owned(),
            start,
            ends: raw.eos_token_id.map(RawTokens::into_vec).unwrap_or_default(),
            max_length: length(max_length),
            min_length: length(min_length),
            num_beams: num_beams as usize,
            length_penalty,
            stopping,
            no_repeat: length(raw.no_repeat_ngram_size.unwrap_or(0)),
            repetition_penalty: Some(repetition_penalty as f32).filter(|own| own.to_bits() != 1.0_f32.to_bits()),
            forced_first: raw.forced_bos_token_id,
            forced_last: raw.forced_eos_token_id.map(RawTokens::into_vec).unwrap_or_default(),
            suppressed: raw.suppress_tokens.unwrap_or_default(),
            suppressed_first: raw.begin_suppress_tokens.unwrap_or_default(),
        })
    }

    /// Searches with `beams` beams; 1 is greedy search.
    #[must_use]
    pub fn with_beams(self, beams: u32) -> Self {
        Self { num_beams: beams.max(1) as usize, ..self }
    }

    /// Generates at most `tokens` new tokens.
    #[must_use]
    pub fn with_max_new_tokens(self, tokens: u32) -> Self {
        Self { max_length: tokens as usize + 1, ..self }
    }

    /// Returns the upper bound on the tokens of a caption, the end included.
    pub fn max_new_tokens(&self) -> usize {
        self.max_length.saturating_sub(1)
    }

    /// Returns the number of beams; 1 is greedy search.
    pub fn num_beams(&self) -> usize {
        self.num_beams
    }

    /// Describes the search for a report.
    pub fn describe(&self) -> String {
        let search = match self.num_beams {
            1 => "greedy".to_owned(),
            beams => format!("{beams} beams, length penalty {}", self.length_penalty),
        };
        format!("{search}, at most {} tokens", self.max_new_tokens())
    }

    /// Returns everything that the tokens depend on, for a fingerprint.
    pub fn fingerprint(&self) -> String {
        format!("{:?}", Self { path: PathBuf::new(), ..self.clone() })
    }

    /// Checks the settings against the decoder: `vocabulary` tokens, of which a caption can have `room`.
    pub(super) fn checked(self, vocabulary: usize, room: usize) -> Result<Self, ModelError> {
        let tokens = [
            ("decoder_start_token_id", std::slice::from_ref(&self.start)),
            ("eos_token_id", &self.ends),
            ("forced_bos_token_id", self.forced_first.as_slice()),
            ("forced_eos_token_id", &self.forced_last),
        ];
        for (key, tokens) in tokens {
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
                let problem = format!("is `{token}`, and the decoder has {vocabulary} tokens");
                return Err(ModelError::value(&self.path, key, problem));
            }
        }
        let forced =
            [("forced_bos_token_id", self.forced_first.as_slice()), ("forced_eos_token_id", &self.forced_last)];
        for (key, tokens) in forced {
            if !tokens.is_empty() && tokens.iter().all(|token| self.suppressed.contains(token)) {
                let problem = format!("is `{}`, which `suppress_tokens` forbids", tokens[0]);
                return Err(ModelError::value(&self.path, key, problem));
            }
        }
        if self.max_length < 2 {
            let problem = format!("is `{}`, which leaves no token after the first", self.max_length);
            return Err(ModelError::value(&self.path, "max_length", problem));
        }
        // The last token is not fed back.
        if self.max_length - 1 > room {
            let problem = format!(
                "allows captions of {} tokens, and the decoder has {room} positions: set `max_new_tokens` to at most {room}",
                self.max_length - 1
            );
            return Err(ModelError::value(&self.path, "max_length", problem));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Generation, String> {
        Generation::parse(text.as_bytes(), Path::new("generation_config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn unsupported_options_are_refused_by_name() {
        for option in [
            r#""do_sample": true"#,
            r#""num_return_sequences": 2"#,
            r#""num_beam_groups": 2"#,
            r#""diversity_penalty": 0.5"#,
            r#""bad_words_ids": [[3]]"#,
            r#""penalty_alpha": 0.6"#,
            r#""sequence_bias": [[[1], 2.0]]"#,
            r#""renormalize_logits": true"#,
            r#""option_of_the_future": 3"#,
        ] {
            let error = parse(&format!(r#"{{"bos_token_id": 0, {option}}}"#)).unwrap_err();
            let name = option.split(':').next().unwrap().trim_matches('"');
            assert!(error.contains(&format!("`{name}` is")) && error.contains("not supported"), "{error}");
        }
    }

    #[test]
    fn options_without_effect_are_accepted() {
        let generation = parse(
            r#"{"bos_token_id": 0, "do_sample": false, "num_return_sequences": 1, "bad_words_ids": null, "top_k": 50,
            "temperature": 0.7, "transformers_version": "5.24.0", "use_cache": true, "diversity_penalty": 0.0}"#,
        )
        .unwrap();
        assert_eq!((generation.max_new_tokens(), generation.num_beams()), (20, 1));
        assert_eq!(generation.describe(), "greedy, at most 20 tokens");
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        for (text, expected) in [
            ("{}", "`decoder_start_token_id` is absent"),
            (r#"{"bos_token_id": 0, "num_beams": 0}"#, "`num_beams` is `0`"),
            (r#"{"bos_token_id": 0, "num_beams": "many"}"#, "`num_beams`: invalid type"),
            (r#"{"bos_token_id": 0, "early_stopping": "soon"}"#, "`early_stopping` is `soon`"),
            (r#"{"bos_token_id": 0, "repetition_penalty": 0}"#, "`repetition_penalty` is `0`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let checked = |text: &str| parse(text).unwrap().checked(10, 8).unwrap_err().to_string();
        assert!(checked(r#"{"bos_token_id": 10}"#).contains("is `10`, and the decoder has 10 tokens"));
        assert!(checked(r#"{"bos_token_id": 0}"#).contains("captions of 20 tokens, and the decoder has 8 positions"));
        assert!(checked(r#"{"bos_token_id": 0, "max_length": 1}"#).contains("leaves no token"));
        let forbidden =
            checked(r#"{"bos_token_id": 0, "max_length": 9, "suppress_tokens": [4], "forced_eos_token_id": 4}"#);
        assert!(forbidden.contains("`forced_eos_token_id` is `4`, which `suppress_tokens` forbids"), "{forbidden}");
        assert!(parse(r#"{"bos_token_id": 0, "max_length": 9}"#).unwrap().checked(10, 8).is_ok());
    }
}
