//! Section `[caption]`.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::is_default;
use crate::types::ImageFormat;

/// `[caption]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawCaption {
    /// Directory of a `VisionEncoderDecoder` checkpoint in Hugging Face layout: `config.json` with `encoder` (`vit`, `deit`,
    /// `dinov2`, `dinov2_with_registers`, `swin` or `swinv2`) and `decoder` (`gpt2`, `bert`, `roberta` or `xlm-roberta`, with cross
    /// attention), `model.safetensors`, `tokenizer.json`, and usually `generation_config.json`. Or `hf:ORG/NAME[@REVISION]`.
    /// Required.
    pub(in crate::config) checkpoint: String,
    /// Globs of files with images, or folders, as in `images.shards`. The column names of `[images]` apply. Empty: those of
    /// `[predict]`, with their format and ids.
    pub(in crate::config) images: Vec<String>,
    /// Format of the images, as in `images.format`.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) format: ImageFormat,
    /// Tab-separated file with the columns `id` and `image_url`. Empty: each image is an id, as in `predict.ids`.
    pub(in crate::config) ids: String,
    /// File name of the captions, ending in `.csv` (columns `id` and `caption`) or `.jsonl`. It is written inside `run.dir`. Every id
    /// has a row; the caption of an image that cannot be used is empty.
    pub(in crate::config) output: String,
    /// Beams of the search, from 1 (greedy) to 64. Default: that of the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) num_beams: Option<u32>,
    /// Tokens of a caption at most. Default: that of the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) max_new_tokens: Option<u32>,
    /// CSV file of right captions, with the columns `id` and `caption`, `reference` or `caption_title_and_reference_description`;
    /// an id may have several rows. The report then has BLEU, METEOR (exact + stem) and `CIDEr`. Empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) references: String,
    /// Rank a list of captions by the similarity of their vectors to that of the generated caption, by the encoder of `[text]`. The
    /// list is `predict.captions` or `captions.list`, the number `predict.top_k`, and the truth `predict.truth`. The ranking is
    /// written beside the captions, as `NAME-ranked.csv`.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) rank: bool,
}

impl Default for RawCaption {
    fn default() -> Self {
        Self {
            checkpoint: String::new(),
            images: Vec::new(),
            format: ImageFormat::default(),
            ids: String::new(),
            output: "captions.csv".to_owned(),
            num_beams: None,
            max_new_tokens: None,
            references: String::new(),
            rank: false,
        }
    }
}
