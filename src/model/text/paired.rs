//! Text towers of image backbones: CLIP, Meta CLIP 2, `AltCLIP`, `SigLIP` and `SigLIP` 2 with a fixed size.
//!
//! The tower of `AltCLIP` is an `XLM-R` encoder with a projection of its first token, which runs like any text encoder. The
//! others are pre-norm transformers like the image towers, and their embedding is the projected state of one token. In
//! CLIP attention is causal, and the embedding is that of the first end-of-text token. In `SigLIP` every token attends
//! to all tokens, padding included, and the embedding is that of the last token, even where it is padding: the towers
//! were trained on captions padded to 64 tokens.

#[cfg(test)]
mod reference;
mod tower;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::{PaddingDirection, PaddingParams, PaddingStrategy, Tokenizer};

use super::checkpoint::TextConfig;
use super::layout as bert;
use crate::model::config::{check_heads, check_norm_epsilon, check_range, parse_activation};
use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::model::json::parse_json;
use crate::model::layout;

pub(super) use tower::PairedTower;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Prefix of the tower's tensors.
const PREFIX: &str = "text_model.";
/// Projection of CLIP; outside of the tower.
pub(super) const PROJECTION: &str = "text_projection";
/// First projection of `AltCLIP`, and the norm before it.
pub(super) const TRANSFORMATION: &str = "transformation";
pub(super) const POOLED_NORM: &str = "pre_LN";
/// Projection of `SigLIP`.
const HEAD: &str = "head";
pub(super) const WORDS: &str = "embeddings.token_embedding.weight";
pub(super) const POSITIONS: &str = "embeddings.position_embedding.weight";
const FINAL_NORM: &str = "final_layer_norm";
/// Upper bound on the width of a token.
const MAX_WIDTH: u64 = 1 << 16;
/// Upper bound on vocabulary and positions.
const MAX_VOCABULARY: u64 = 1 << 24;
/// Values of `model_max_length` from here on mean "no limit": transformers writes 1e30.
const NO_LIMIT: f64 = 1e6;
/// End of the text in configurations of CLIP before it was corrected; its models take the highest token instead.
const WRONG_END: u32 = 2;

/// Token whose state becomes the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PooledToken {
    /// The last one.
    Last,
    /// The first that ends the text.
    FirstEnd(u32),
    /// The first with the highest number.
    Highest,
}

impl PooledToken {
    /// Returns the position of the token in a caption.
    pub(super) fn position(self, caption: &[u32]) -> usize {
        match self {
            Self::Last => caption.len().saturating_sub(1),
            Self::FirstEnd(end) => caption.iter().position(|token| *token == end).unwrap_or(0),
            Self::Highest => {
                let highest = caption.iter().max();
                caption.iter().position(|token| Some(token) == highest).unwrap_or(0)
            }
        }
    }
}

/// Settings of a text tower beyond [`TextConfig`].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PairedConfig {
    pub(super) family: Family,
    /// Width of an embedding.
    pub(super) dim: usize,
    pub(super) pooled: PooledToken,
    /// True if tokens attend to earlier tokens alone.
    pub(super) causal: bool,
    /// Width of the first of two projections of an encoder of BERT's form (`AltCLIP`); `None` for a tower of CLIP's form.
    pub(super) transformed: Option<usize>,
    /// Token that pads captions to the maximum length; `None` where captions are not padded.
    padding: Option<PaddingToken>,
}

#[derive(Debug, Clone, PartialEq)]
struct PaddingToken {
    /// Text of the token.
    token: Option<String>,
    /// Number of the token if the tokenizer does not know the text.
    fallback: u32,
    left: bool,
}

/// Settings of `tokenizer_config.json`.
#[derive(Debug, Default)]
pub(super) struct TokenizerSettings {
    pub(super) max_tokens: Option<u64>,
    pub(super) lower_case: bool,
    /// The file, if there is one.
    pub(super) file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct RawPair {
    model_type: Option<String>,
    #[serde(default)]
    text_config: RawText,
    projection_dim: Option<u64>,
}

#[derive(Default, Deserialize)]
struct RawText {
    hidden_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    intermediate_size: Option<u64>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    projection_size: Option<u64>,
    project_dim: Option<u64>,
    type_vocab_size: Option<u64>,
    eos_token_id: Option<RawEnd>,
    pad_token_id: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawEnd {
    One(u32),
    Several(Vec<u32>),
}

#[derive(Default, Deserialize)]
struct RawTokenizer {
    model_max_length: Option<f64>,
    #[serde(default)]
    do_lower_case: bool,
    tokenizer_class: Option<String>,
    pad_token: Option<RawToken>,
    padding_side: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawToken {
    Text(String),
    Added { content: String },
}

/// Parses and checks the text of a `config.json`; absent keys take the defaults of transformers.
pub(super) fn parse(text: &[u8], path: &Path) -> Result<(TextConfig, PairedConfig), ModelError> {
    let raw: RawPair = parse_json(text, path)?;
    let found = raw.model_type.as_deref().unwrap_or("(none)");
    let Some((family, false)) = Family::find(found).filter(|(family, _)| family.is_paired()) else {
        let problem = format!(
            "is `{found}`, which has no text tower; checkpoints with one are of the families `siglip`, `clip`, `metaclip_2` and `altclip`"
        );
        return Err(ModelError::value(path, "model_type", problem));
    };
    let (siglip, altclip) = (family == Family::Siglip, family == Family::AltClip);
    let (pair, raw) = (raw.projection_dim, raw.text_config);
    let count = |key, value: Option<u64>, default, limit| {
        check_range(path, key, value.unwrap_or(default), limit).map(|value| value as usize)
    };
    let default = |siglip_value: u64, clip_value: u64, altclip_value: u64| match family {
        Family::Siglip => siglip_value,
        Family::AltClip => altclip_value,
        _ => clip_value,
    };
    let hidden = count("hidden_size", raw.hidden_size, default(768, 512, 1024), MAX_WIDTH)?;
    let heads = count("num_attention_heads", raw.num_attention_heads, default(12, 8, 16), MAX_WIDTH)?;
    check_heads(path, heads as u64, hidden as u64)?;
    let own_activation = match family {
        Family::Siglip => "gelu_pytorch_tanh",
        Family::AltClip => "gelu",
        _ => "quick_gelu",
    };
    let activation = raw.hidden_act.as_deref().unwrap_or(own_activation);
    let positions =
        count("max_position_embeddings", raw.max_position_embeddings, default(64, 77, 514), MAX_VOCABULARY)?;
    // As in `XLM-R`, the first position follows that of the padding.
    let first_position = if altclip { raw.pad_token_id.unwrap_or(1) as usize + 1 } else { 0 };
    if first_position >= positions {
        let problem = format!("is `{positions}`, which leaves no position after that of the padding");
        return Err(ModelError::value(path, "max_position_embeddings", problem));
    }
    let config = TextConfig {
        hidden,
        heads,
        layers: count("num_hidden_layers", raw.num_hidden_layers, default(12, 12, 24), 1000)?,
        inner: count("intermediate_size", raw.intermediate_size, default(3072, 2048, 4096), 4 * MAX_WIDTH)?,
        activation: parse_activation(Some(activation), path)?,
        norm_epsilon: check_norm_epsilon(path, raw.layer_norm_eps.unwrap_or(if siglip { 1e-6 } else { 1e-5 }))?,
        vocabulary: count("vocab_size", raw.vocab_size, default(32_000, 49_408, 250_002), MAX_VOCABULARY)?,
        positions,
        types: if altclip { count("type_vocab_size", raw.type_vocab_size, 1, MAX_WIDTH)? } else { 0 },
        first_position,
    };
    let end = match raw.eos_token_id {
        Some(RawEnd::One(end)) => end,
        Some(RawEnd::Several(ends)) => ends.first().copied().unwrap_or(49_407),
        None => 49_407,
    };
    let paired = PairedConfig {
        family,
        dim: if siglip {
            count("projection_size", raw.projection_size, hidden as u64, MAX_WIDTH)?
        } else {
            count("projection_dim", pair, default(0, 512, 768), MAX_WIDTH)?
        },
        transformed: if altclip { Some(count("project_dim", raw.project_dim, 768, MAX_WIDTH)?) } else { None },
        pooled: match family {
            Family::Siglip => PooledToken::Last,
            Family::Clip if end == WRONG_END => PooledToken::Highest,
            _ => PooledToken::FirstEnd(end),
        },
        causal: !(siglip || altclip),
        padding: siglip.then(|| PaddingToken { token: None, fallback: raw.pad_token_id.unwrap_or(1), left: false }),
    };
    Ok((config, paired))
}

impl PairedConfig {
    /// Reads `tokenizer_config.json`, which may be absent.
    pub(super) fn read_tokenizer_config(&mut self, dir: &Path) -> Result<TokenizerSettings, ModelError> {
        let path = dir.join(TOKENIZER_CONFIG);
        let raw: RawTokenizer = match std::fs::read(&path) {
            Ok(text) => parse_json(&text, &path)?,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(TokenizerSettings::default()),
            Err(cause) => return Err(ModelError::read(&path)(cause)),
        };
        let class = raw.tokenizer_class.as_deref().unwrap_or_default();
        let gemma = class.starts_with("Gemma") || class.starts_with("Siglip2");
        if let Some(padding) = &mut self.padding {
            padding.token = match raw.pad_token {
                Some(RawToken::Text(content) | RawToken::Added { content }) => Some(content),
                // The default of the tokenizer's class.
                None if gemma => Some("<pad>".to_owned()),
                None if class.starts_with("Siglip") => Some("</s>".to_owned()),
                None => None,
            };
            padding.left = raw.padding_side.map_or(gemma, |side| side == "left");
        }
        let max_tokens = raw.model_max_length.filter(|most| (1.0..NO_LIMIT).contains(most)).map(|most| most as u64);
        // The tokenizer of SigLIP 2 is Gemma's, whose file does not lower the case.
        let lower_case = raw.do_lower_case || class.starts_with("Siglip2");
        Ok(TokenizerSettings { max_tokens, lower_case, file: Some(path) })
    }

    /// Returns the padding to `length` tokens; `None` where captions are not padded.
    pub(super) fn padding(&self, length: usize, tokenizer: &Tokenizer) -> Option<PaddingParams> {
        let padding = self.padding.as_ref()?;
        let known = padding.token.as_deref().and_then(|token| tokenizer.token_to_id(token));
        let own = tokenizer.get_padding().map(|own| own.pad_id);
        Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(length),
            direction: if padding.left { PaddingDirection::Left } else { PaddingDirection::Right },
            pad_id: known.or(own).unwrap_or(padding.fallback),
            pad_token: padding.token.clone().unwrap_or_default(),
            ..PaddingParams::default()
        })
    }

    /// Returns the name of the projection.
    fn projection(&self) -> &'static str {
        if self.family == Family::Siglip { HEAD } else { PROJECTION }
    }
}

/// Returns the name of a tensor of the tower without its prefix; `None` for any other tensor.
pub(super) fn published_name(name: &str, paired: &PairedConfig) -> Option<String> {
    match name.strip_prefix(PREFIX) {
        Some(own) if paired.transformed.is_some() => bert::published_name(own),
        Some(own) => Some(own.to_owned()),
        None => name.starts_with(PROJECTION).then(|| name.to_owned()),
    }
}

/// Returns name and shape of every tensor that the configuration implies.
pub(super) fn expected_shapes(config: &TextConfig, paired: &PairedConfig) -> BTreeMap<String, Vec<usize>> {
    if let Some(width) = paired.transformed {
        let mut shapes = bert::expected_shapes(config);
        shapes.insert(format!("{TRANSFORMATION}.weight"), vec![width, config.hidden]);
        shapes.insert(format!("{TRANSFORMATION}.bias"), vec![width]);
        shapes.insert(format!("{POOLED_NORM}.weight"), vec![config.hidden]);
        shapes.insert(format!("{POOLED_NORM}.bias"), vec![config.hidden]);
        shapes.insert(format!("{PROJECTION}.weight"), vec![paired.dim, width]);
        return shapes;
    }
    let (hidden, inner, names) = (config.hidden, config.inner, layout::names(Family::Clip));
    let mut shapes: BTreeMap<String, Vec<usize>> = [
        (WORDS.to_owned(), vec![config.vocabulary, hidden]),
        (POSITIONS.to_owned(), vec![config.positions, hidden]),
        (format!("{}.weight", paired.projection()), vec![paired.dim, hidden]),
    ]
    .into();
    if paired.family == Family::Siglip {
        shapes.insert(format!("{HEAD}.bias"), vec![paired.dim]);
    }
    let mut add_layer = |name: &str, weight: Vec<usize>, bias: usize| {
        shapes.insert(format!("{name}.weight"), weight);
        shapes.insert(format!("{name}.bias"), vec![bias]);
    };
    add_layer(FINAL_NORM, vec![hidden], hidden);
    for index in 0..config.layers as u32 {
        let key = |part: &str| names.block(index, part);
        for part in names.query_key_value.into_iter().chain([names.attention_output]) {
            add_layer(&key(part), vec![hidden, hidden], hidden);
        }
        add_layer(&key(names.inner), vec![inner, hidden], inner);
        add_layer(&key(names.outer), vec![hidden, inner], hidden);
        for norm in [names.attention_norm, names.mlp_norm] {
            add_layer(&key(norm), vec![hidden], hidden);
        }
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooled_token_is_that_of_the_family() {
        assert_eq!(PooledToken::Last.position(&[5, 1, 1]), 2);
        assert_eq!(PooledToken::FirstEnd(9).position(&[3, 9, 9]), 1);
        assert_eq!(PooledToken::FirstEnd(9).position(&[3, 4]), 0, "as argmax over zeros");
        assert_eq!(PooledToken::Highest.position(&[3, 8, 2, 8]), 1);
        assert_eq!(PooledToken::Last.position(&[]), 0);
        let pooled = |text: &str| parse(text.as_bytes(), Path::new("config.json")).unwrap().1.pooled;
        assert_eq!(pooled(r#"{"model_type": "siglip"}"#), PooledToken::Last);
        assert_eq!(pooled(r#"{"model_type": "clip"}"#), PooledToken::FirstEnd(49_407));
        assert_eq!(pooled(r#"{"model_type": "clip", "text_config": {"eos_token_id": 2}}"#), PooledToken::Highest);
        assert_eq!(
            pooled(r#"{"model_type": "metaclip_2", "text_config": {"eos_token_id": [2]}}"#),
            PooledToken::FirstEnd(2)
        );
    }

    #[test]
    fn checkpoint_without_text_tower_is_rejected() {
        for kind in ["vit", "clip_vision_model"] {
            let text = format!(r#"{{"model_type": "{kind}"}}"#);
            let error = parse(text.as_bytes(), Path::new("config.json")).unwrap_err().to_string();
            assert!(error.contains(&format!("`model_type` is `{kind}`, which has no text tower")), "{error}");
        }
    }
}
