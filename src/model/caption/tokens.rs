//! Maps token ids to the text of a caption.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use tokenizers::Tokenizer;

use super::checkpoint::CaptionCheckpoint;
use crate::model::error::ModelError;
use crate::model::json::parse_json;

/// Decoder of a captioning checkpoint's tokens, from `tokenizer.json` and `tokenizer_config.json`.
pub struct CaptionDecoder {
    tokenizer: Tokenizer,
    /// True if spaces before punctuation and in English contractions are removed.
    clean_up: bool,
}

#[derive(Deserialize, Default)]
struct RawTokenizerConfig {
    clean_up_tokenization_spaces: Option<bool>,
}

/// Texts that the clean-up replaces, in the order of transformers.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

impl CaptionDecoder {
    /// Reads the files of the tokenizer.
    ///
    /// # Errors
    /// When a file is damaged or its tokenizer is not supported.
    pub fn load(checkpoint: &CaptionCheckpoint) -> Result<Self, ModelError> {
        let path = checkpoint.tokenizer_path();
        let damaged = |reason: String| ModelError::Json { path: path.clone(), reason };
        // The `tokenizers` crate may panic on an inconsistent file.
        let loaded = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_file(&path)))
            .map_err(|_| damaged("the tokenizers library panicked".to_owned()))?;
        let config_path = checkpoint.tokenizer_config_path();
        let config: RawTokenizerConfig = match std::fs::read(&config_path) {
            Ok(text) => parse_json(&text, &config_path)?,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => RawTokenizerConfig::default(),
            Err(cause) => return Err(ModelError::read(&config_path)(cause)),
        };
        Ok(Self {
            tokenizer: loaded.map_err(|cause| damaged(cause.to_string()))?,
            clean_up: config.clean_up_tokenization_spaces.unwrap_or(false),
        })
    }

    /// Returns the text of a caption without special tokens and without white space at its ends.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        let failed = |reason: String| ModelError::Tokenizer { reason };
        let decoded = catch_unwind(AssertUnwindSafe(|| self.tokenizer.decode(tokens, true)));
        let text = decoded.map_err(|_| failed("it panicked".to_owned()))?.map_err(|cause| failed(cause.to_string()))?;
        let text = if self.clean_up { clean_up(&text) } else { text };
        Ok(text.trim().to_owned())
    }
}

/// Removes spaces before punctuation and in English contractions.
fn clean_up(text: &str) -> String {
    CLEAN_UP.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_up_joins_punctuation_and_contractions() {
        assert_eq!(clean_up("a dog , it 's big . is n't it ?"), "a dog, it's big. isn't it?");
    }
}
