//! Sections of a pipeline file that say what is read and how it is stored.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::super::value::Bytes;
use super::is_default;
use crate::types::{Alpha, ClassSource, Compression, FolderCaptions, ImageFormat, MatchRule, PairsFormat, Resample};

/// `[sample]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawSample {
    /// Directory for the corpus. Required.
    pub(in crate::config) out: String,
    /// Usable training images, from 40 to 1,000,000.
    pub(in crate::config) train_images: u32,
    /// Usable test images, from 1 to 1,000,000.
    pub(in crate::config) test_images: u32,
    /// Seed of the generator: the same seed gives the same bytes.
    pub(in crate::config) seed: u64,
}

impl Default for RawSample {
    fn default() -> Self {
        Self { out: String::new(), train_images: 2400, test_images: 300, seed: 42 }
    }
}

/// `[captions]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawCaptions {
    /// CSV file with a header such as `caption` and one column, one caption per row. Required with `classes = "list"`.
    pub(in crate::config) list: String,
    /// Origin of the classes: `list` for the distinct captions of `list`, `train` for the distinct captions of `[pairs]`. With
    /// millions of captions, `train` needs a text head: a head of kind `classes` takes 16 bytes for each feature value and class.
    pub(in crate::config) classes: ClassSource,
    /// Rule by which a caption of `[pairs]` is found among the classes:
    /// - `exact`: equal byte for byte;
    /// - `trimmed`: equal without white space at both ends;
    /// - `casefold`: trimmed, and equal without regard to upper and lower case and to Unicode composition;
    /// - `title`: equal page titles, the part before ` [SEP] `.
    #[serde(rename = "match")]
    pub(in crate::config) match_rule: MatchRule,
}

/// `[pairs]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawPairs {
    /// Globs of files, or folders. Required, unless the files of `images.shards` hold captions: then these are read where
    /// this list is empty.
    pub(in crate::config) shards: Vec<String>,
    /// Format of the files: `tsv` or `csv` (with a header), `parquet`, `jsonl` (one JSON object per line), `webdataset` (tar,
    /// captions in `KEY.txt` or `KEY.json`) or `folder`. `auto`: recognised by the name and the first bytes of the first file.
    /// Text may be plain, gzip or zstd.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) format: PairsFormat,
    /// Column with the URL or name of the image, as `[images]` has it. In Parquet and JSON, `a.b` is the field `b` of `a`.
    /// Empty: the first of `image_url`, `url`, `URL`, `file_name`, `key`, `id` that the file has; in CSV and TSV `image_url`,
    /// `url` or `file_name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) url_column: String,
    /// Column with the caption, or with a list of captions. For `webdataset`: the extension of the member with the caption, or a
    /// key of `KEY.json`. Empty: the first of `caption_title_and_reference_description`,
    /// `wit_features.caption_title_and_reference_description`, `caption`, `captions`, `text`, `TEXT`, `label` that the file has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) caption_column: String,
    /// Column with the language of the caption. Empty: `language`, or `wit_features.language` beside captions of
    /// `wit_features`, where the file has it. Captions without a language belong to none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) language_column: String,
    /// Captions of a folder: `metadata` for `metadata.csv`, `.tsv`, `.jsonl` or `.parquet` in the folder or below, with the columns
    /// `file_name` (relative to the metadata file) and a caption; `text` for a file `NAME.txt` beside the image; `folders` for the
    /// name of the folder that holds the image. `auto`: the first of these that the folder has.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) folder_captions: FolderCaptions,
    /// Languages to keep, as in the column `language`, for example `["en", "de"]`. Empty: all.
    pub(in crate::config) languages: Vec<String>,
}

/// `[images]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawImages {
    /// Globs of files with images, or folders of image files (a directory, or a URL that ends in `/`). `part-{000..199}.tar` stands
    /// for a range of files, `@files.txt` for the names in the lines of a file, and `hf://datasets/ORG/NAME/PATH` for files of the
    /// Hugging Face hub, which are streamed. Required.
    pub(in crate::config) shards: Vec<String>,
    /// Format of the files: `tsv` (image URL, base64, metadata URL; with or without a header; plain, gzip or zstd), `parquet`
    /// (image files in a column of bytes), `jsonl` (one JSON object per line, base64; plain, gzip or zstd), `webdataset` (tar with
    /// `KEY.jpg`, `KEY.txt`, `KEY.json`; plain, gzip or zstd) or `folder` (image files, named by their path below the folder).
    /// `auto`: recognised by the name and the first bytes of the first file.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) format: ImageFormat,
    /// Column with the image: bytes of the file in Parquet, base64 elsewhere. In Parquet and JSON, `a.b` is the field `b` of `a`.
    /// For `webdataset`: the extension of the member with the image. Empty: the first of `image.bytes`, `image`, `jpg`, `png`,
    /// `webp`, `bytes`, `b64_bytes`, `image_base64` that the file has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) image_column: String,
    /// Column with the URL or another unique name of the image. For `webdataset`: a key of `KEY.json`. Empty: the first of
    /// `image_url`, `url`, `URL`, `file_name`, `key`, `id` that the file has (in a tar, of the first three), and `FILE/KEY` in a tar
    /// or `FILE/ROW` where it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) url_column: String,
}

/// `[preprocess]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawPreprocess {
    /// Side of the square that the model sees, in pixels, from 8 to 4096. Default: that of the checkpoint's
    /// `preprocessor_config.json`, or 224. Another size keeps the proportions of the checkpoint's resizing and cropping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) size_px: Option<u32>,
    /// Resampling filter, as Pillow computes it: `nearest`, `bilinear`, `bicubic`, `lanczos`, `box` or `hamming`.
    /// Default: the checkpoint's, or `bilinear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) resample: Option<Resample>,
    /// Treatment of transparent pixels: `white` composites them on white, as a reader sees the image; `drop` ignores the alpha
    /// channel, as Pillow's `convert("RGB")` does, and shows the colours hidden below.
    pub(in crate::config) alpha: Alpha,
    /// Largest encoded image, from 1 KiB to 1 GiB. A larger one is quarantined.
    pub(in crate::config) max_encoded: Bytes,
    /// Largest image in pixels (width × height). The header is compared before any memory is allocated; a larger image is
    /// quarantined. `limits.memory` must have room for one image of this size.
    pub(in crate::config) max_pixels: u64,
}

impl Default for RawPreprocess {
    fn default() -> Self {
        Self { size_px: None, resample: None, alpha: Alpha::White, max_encoded: Bytes::mib(32), max_pixels: 40_000_000 }
    }
}

/// `[chunks]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawChunks {
    /// Source rows per chunk, from 1 to 1,000,000. A chunk is committed as a whole, so a kill loses at most the work on one
    /// chunk, or on two where pixel chunks are the product.
    pub(in crate::config) rows: u32,
    /// Compression of pixel chunks that are the product: `none`, `lz4` or `zstd`. With `[model]` it has no effect.
    pub(in crate::config) compression: Compression,
}

impl Default for RawChunks {
    fn default() -> Self {
        Self { rows: 2048, compression: Compression::None }
    }
}
