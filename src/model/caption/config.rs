//! Parses and checks the part of `config.json` that describes the decoder.

use std::path::Path;

use serde::Deserialize;

use crate::model::config::{Activation, check_heads, check_norm_epsilon, check_range, parse_activation};
use crate::model::error::ModelError;
use crate::model::json::parse_json;

/// Upper bound on the width of a token.
const MAX_WIDTH: u64 = 1 << 16;
/// Upper bound on vocabulary and positions. Token ids below it are exact in f32.
const MAX_VOCABULARY: u64 = 1 << 24;
/// Upper bound on the number of blocks.
const MAX_LAYERS: u64 = 1000;

/// `model_type` of the checkpoints.
const MODEL_TYPE: &str = "vision-encoder-decoder";

/// Names and layout of a decoder's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecoderFamily {
    /// GPT-2 (Radford et al. 2019): norms before the layers, weights stored `[in, out]`.
    Gpt2,
    /// BERT (Devlin et al. 2018): norms after the residual connections.
    Bert,
    /// `RoBERTa` and `XLM-RoBERTa` (Liu et al. 2019): BERT with positions that start after that of the padding.
    Roberta,
}

/// Architecture of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DecoderConfig {
    pub(super) family: DecoderFamily,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) inner: usize,
    pub(super) activation: Activation,
    pub(super) norm_epsilon: f64,
    pub(super) vocabulary: usize,
    pub(super) positions: usize,
    pub(super) types: usize,
    /// Token of padding, whose position is its own id; `None` in families without such a rule.
    pub(super) padding: Option<u32>,
    /// True if the output layer shares the table of word embeddings.
    pub(super) tied: bool,
    /// True if attention scores are divided by the root of a head's width.
    pub(super) scaled: bool,
    /// True if the scores of block k are divided by k + 1 too.
    pub(super) scaled_by_layer: bool,
}

/// Keys of `config.json` that say what the file describes.
#[derive(Deserialize)]
struct RawFile {
    model_type: Option<String>,
    encoder: Option<serde_json::Value>,
    decoder: Option<RawDecoder>,
}

/// Keys of the decoder. GPT-2 has names of its own, and transformers accepts both.
#[derive(Deserialize)]
struct RawDecoder {
    model_type: Option<String>,
    #[serde(alias = "n_embd")]
    hidden_size: Option<u64>,
    #[serde(alias = "n_layer")]
    num_hidden_layers: Option<u64>,
    #[serde(alias = "n_head")]
    num_attention_heads: Option<u64>,
    #[serde(alias = "n_inner")]
    intermediate_size: Option<u64>,
    #[serde(alias = "activation_function")]
    hidden_act: Option<String>,
    #[serde(alias = "layer_norm_epsilon")]
    layer_norm_eps: Option<f64>,
    vocab_size: Option<u64>,
    #[serde(alias = "n_positions")]
    max_position_embeddings: Option<u64>,
    type_vocab_size: Option<u64>,
    pad_token_id: Option<u64>,
    position_embedding_type: Option<String>,
    add_cross_attention: Option<bool>,
    cross_attention_hidden_size: Option<u64>,
    tie_word_embeddings: Option<bool>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
}

/// Parses `config.json`; returns the text of its encoder part, and the decoder.
pub(super) fn parse(text: &[u8], path: &Path) -> Result<(Vec<u8>, DecoderConfig), ModelError> {
    let raw: RawFile = parse_json(text, path)?;
    let found = raw.model_type.as_deref().unwrap_or("(none)");
    if found != MODEL_TYPE {
        let problem = format!("is `{found}`; a captioning checkpoint has `{MODEL_TYPE}`");
        return Err(ModelError::value(path, "model_type", problem));
    }
    let absent = |key| ModelError::value(path, key, "is absent; a captioning checkpoint has `encoder` and `decoder`");
    let encoder = raw.encoder.ok_or_else(|| absent("encoder"))?;
    let decoder = check(&raw.decoder.ok_or_else(|| absent("decoder"))?, path)?;
    Ok((encoder.to_string().into_bytes(), decoder))
}

fn check(raw: &RawDecoder, path: &Path) -> Result<DecoderConfig, ModelError> {
    let family = match raw.model_type.as_deref() {
        Some("gpt2") => DecoderFamily::Gpt2,
        Some("bert") => DecoderFamily::Bert,
        Some("roberta" | "xlm-roberta") => DecoderFamily::Roberta,
        other => {
            let found = other.unwrap_or("(none)");
            let problem = format!("is `{found}`; supported are `gpt2`, `bert`, `roberta` and `xlm-roberta`");
            return Err(ModelError::value(path, "decoder.model_type", problem));
        }
    };
    let gpt2 = family == DecoderFamily::Gpt2;
    if let Some(kind) = raw.position_embedding_type.as_ref().filter(|kind| *kind != "absolute") {
        let problem = format!("is `{kind}`; only `absolute` is supported");
        return Err(ModelError::value(path, "decoder.position_embedding_type", problem));
    }
    if raw.add_cross_attention != Some(true) {
        let problem = "is not `true`: this decoder does not look at the image";
        return Err(ModelError::value(path, "decoder.add_cross_attention", problem));
    }
    let count = |key, value: Option<u64>, default, limit| {
        check_range(path, key, value.unwrap_or(default), limit).map(|value| value as usize)
    };
    let hidden = count("decoder.hidden_size", raw.hidden_size, 768, MAX_WIDTH)?;
    if let Some(width) = raw.cross_attention_hidden_size.filter(|width| *width as usize != hidden) {
        let problem = format!("is `{width}`; only the decoder's own width, `{hidden}`, is supported");
        return Err(ModelError::value(path, "decoder.cross_attention_hidden_size", problem));
    }
    let heads = count("decoder.num_attention_heads", raw.num_attention_heads, 12, MAX_WIDTH)?;
    check_heads(path, heads as u64, hidden as u64)?;
    let (act, epsilon, vocabulary, positions, inner) = match family {
        DecoderFamily::Gpt2 => ("gelu_new", 1e-5, 50_257, 1024, 4 * hidden as u64),
        DecoderFamily::Bert => ("gelu", 1e-12, 30_522, 512, 3072),
        DecoderFamily::Roberta => ("gelu", 1e-12, 50_265, 512, 3072),
    };
    let positions = count("decoder.max_position_embeddings", raw.max_position_embeddings, positions, MAX_VOCABULARY)?;
    let padding = (family == DecoderFamily::Roberta).then_some(raw.pad_token_id.unwrap_or(1));
    if let Some(padding) = padding.filter(|padding| *padding + 1 >= positions as u64) {
        let problem = format!("is `{positions}`, which leaves no position after that of the padding, `{padding}`");
        return Err(ModelError::value(path, "decoder.max_position_embeddings", problem));
    }
    Ok(DecoderConfig {
        family,
        hidden,
        heads,
        positions,
        layers: count("decoder.num_hidden_layers", raw.num_hidden_layers, 12, MAX_LAYERS)?,
        inner: count("decoder.intermediate_size", raw.intermediate_size, inner, 64 * MAX_WIDTH)?,
        activation: parse_activation(Some(raw.hidden_act.as_deref().unwrap_or(act)), path)?,
        norm_epsilon: check_norm_epsilon(path, raw.layer_norm_eps.unwrap_or(epsilon))?,
        vocabulary: count("decoder.vocab_size", raw.vocab_size, vocabulary, MAX_VOCABULARY)?,
        types: count("decoder.type_vocab_size", raw.type_vocab_size, 2, MAX_WIDTH)?,
        padding: padding.map(|padding| padding as u32),
        tied: raw.tie_word_embeddings.unwrap_or(true),
        scaled: !gpt2 || raw.scale_attn_weights.unwrap_or(true),
        scaled_by_layer: gpt2 && raw.scale_attn_by_inverse_layer_idx.unwrap_or(false),
    })
}

impl DecoderConfig {
    /// Returns the number of tokens that have a position.
    pub(super) fn room(&self) -> usize {
        self.positions - self.padding.map_or(0, |padding| padding as usize + 1)
    }

    /// Returns the position of the token `id` that follows `before` tokens.
    pub(super) fn position(&self, before: usize, id: u32) -> usize {
        match self.padding {
            // Padding keeps its own position.
            Some(padding) if id == padding => padding as usize,
            Some(padding) => padding as usize + 1 + before,
            None => before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(text: &str) -> String {
        parse(text.as_bytes(), Path::new("config.json")).unwrap_err().to_string()
    }

    #[test]
    fn other_checkpoints_are_refused_by_key() {
        for (text, expected) in [
            ("{}", "`model_type` is `(none)`; a captioning checkpoint has `vision-encoder-decoder`"),
            (r#"{"model_type": "vit"}"#, "`model_type` is `vit`"),
            (r#"{"model_type": "vision-encoder-decoder"}"#, "`encoder` is absent"),
            (r#"{"model_type": "vision-encoder-decoder", "encoder": {}}"#, "`decoder` is absent"),
            (
                r#"{"model_type": "vision-encoder-decoder", "encoder": {}, "decoder": {"model_type": "trocr"}}"#,
                "`decoder.model_type` is `trocr`; supported are `gpt2`",
            ),
            (
                r#"{"model_type": "vision-encoder-decoder", "encoder": {}, "decoder": {"model_type": "gpt2"}}"#,
                "`decoder.add_cross_attention` is not `true`",
            ),
        ] {
            assert!(refuse(text).contains(expected), "{text}: {}", refuse(text));
        }
    }

    #[test]
    fn defaults_are_those_of_the_family() {
        let text = |model: &str| {
            format!(
                r#"{{"model_type": "vision-encoder-decoder", "encoder": {{"model_type": "vit"}},
                "decoder": {{"model_type": "{model}", "add_cross_attention": true, "n_inner": null}}}}"#
            )
        };
        let config = |model: &str| parse(text(model).as_bytes(), Path::new("config.json")).unwrap().1;
        let gpt2 = config("gpt2");
        assert_eq!((gpt2.inner, gpt2.vocabulary, gpt2.room()), (3072, 50_257, 1024));
        let roberta = config("roberta");
        assert_eq!((roberta.vocabulary, roberta.room()), (50_265, 510));
        assert_eq!((roberta.position(0, 0), roberta.position(3, 9), roberta.position(3, 1)), (2, 5, 1));
        assert_eq!(config("bert").position(3, 0), 3);
    }
}
