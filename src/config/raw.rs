//! The two files as they are written: every key with its meaning and default.
//!
//! `wikicap-pipeline config reference` prints the doc comments of sections and keys, so they are written for the person
//! who fills in a file. Here values are checked for their type alone; `validate` checks the rest.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::value::{Bytes, EventFolder, Layers, MemoryLimit, Numbers, Span, Temperature};
use crate::types::{
    Alpha, Balance, ClassSource, Compression, Correction, DeviceKind, FeatureOrigin, FolderCaptions, HeadKind,
    HeadMethod, ImageFormat, MatchRule, Optimizer, PairsFormat, Pick, Pool, Precision, Resample, ScheduleKind,
    TargetKind,
};

/// Returns whether a value is the default. Such keys are left out of files, so that new keys do not change old fingerprints.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A pipeline file: what to run. An absent section means a stage that does not run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPipeline {
    /// Synthetic corpus that is rendered first, if it is absent: for demonstrations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<RawSample>,
    /// Directory of the run, and its seed.
    pub(super) run: RawRun,
    /// Captions that become classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) captions: Option<RawCaptions>,
    /// Captions of the images: rows that say which image has which caption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pairs: Option<RawPairs>,
    /// Images to stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) images: Option<RawImages>,
    /// Decoding and resizing, from the encoded image to the model's input square.
    ///
    /// Pixels are those of Pillow's `Image.open(…).convert("RGB")`, so some images look different than in a browser:
    /// - The format is found by content: JPEG, PNG, GIF, WebP, BMP or TIFF. SVG, AVIF, HEIF and others are quarantined.
    /// - EXIF orientation is ignored, so a photo that is stored sideways stays sideways. Only a TIFF is turned upright.
    /// - Colour profiles (ICC) and PNG gamma are ignored: all samples count as sRGB.
    /// - 16-bit grey is clipped at 255, not scaled, so most such images turn white. Other 16-bit samples keep their high byte.
    /// - CMYK becomes RGB without a profile, as white minus ink. A CMYK JPEG is taken for inverted, as Adobe writes it.
    /// - Of an animated GIF or WebP the first frame is used; of a TIFF the first page.
    /// - A file that ends early is quarantined. Damage inside a JPEG is tolerated; what cannot be decoded is grey.
    pub(super) preprocess: RawPreprocess,
    /// Size and compression of chunks, the files in which results are stored.
    pub(super) chunks: RawChunks,
    /// The frozen backbone, or published features in its place. Without this section the pixel chunks are the product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<RawModel>,
    /// Kind of head that is trained on the features.
    pub(super) head: RawHead,
    /// The frozen text encoder, for `head.kind = "text"` or `"paired"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<RawText>,
    /// Training of the head. Without this section the run ends with the feature chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) train: Option<RawTrain>,
    /// Ranking of captions for the test images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predict: Option<RawPredict>,
}

/// `[sample]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSample {
    /// Directory for the corpus. Required.
    pub(super) out: String,
    /// Usable training images, from 40 to 1,000,000.
    pub(super) train_images: u32,
    /// Usable test images, from 1 to 1,000,000.
    pub(super) test_images: u32,
    /// Seed of the generator: the same seed gives the same bytes.
    pub(super) seed: u64,
}

impl Default for RawSample {
    fn default() -> Self {
        Self { out: String::new(), train_images: 2400, test_images: 300, seed: 42 }
    }
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRun {
    /// Directory for everything durable that the run writes: a path or an `s3://` URL. New, empty, or that of an earlier start.
    /// `~` and variables are not expanded. Required.
    pub(super) dir: String,
    /// Seed of the head's initial weights, the training order and the validation split.
    pub(super) seed: u64,
}

impl Default for RawRun {
    fn default() -> Self {
        Self { dir: String::new(), seed: 42 }
    }
}

/// `[captions]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCaptions {
    /// CSV file with a header such as `caption` and one column, one caption per row. Required with `classes = "list"`.
    pub(super) list: String,
    /// Origin of the classes: `list` for the distinct captions of `list`, `train` for the distinct captions of `[pairs]`. With
    /// millions of captions, `train` needs a text head: a head of kind `classes` takes 16 bytes for each feature value and class.
    pub(super) classes: ClassSource,
    /// Rule by which a caption of `[pairs]` is found among the classes:
    /// - `exact`: equal byte for byte;
    /// - `trimmed`: equal without white space at both ends;
    /// - `casefold`: trimmed, and equal without regard to upper and lower case and to Unicode composition;
    /// - `title`: equal page titles, the part before ` [SEP] `.
    #[serde(rename = "match")]
    pub(super) match_rule: MatchRule,
}

/// `[pairs]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPairs {
    /// Globs of files, or folders. Required, unless the files of `images.shards` hold captions: then these are read where
    /// this list is empty.
    pub(super) shards: Vec<String>,
    /// Format of the files: `tsv` or `csv` (with a header), `parquet`, `jsonl` (one JSON object per line), `webdataset` (tar,
    /// captions in `KEY.txt` or `KEY.json`) or `folder`. `auto`: recognised by the name and the first bytes of the first file.
    /// Text may be plain, gzip or zstd.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) format: PairsFormat,
    /// Column with the URL or name of the image, as `[images]` has it. In Parquet and JSON, `a.b` is the field `b` of `a`.
    /// Empty: the first of `image_url`, `url`, `URL`, `file_name`, `key`, `id` that the file has; in CSV and TSV `image_url`,
    /// `url` or `file_name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) url_column: String,
    /// Column with the caption, or with a list of captions. For `webdataset`: the extension of the member with the caption, or a
    /// key of `KEY.json`. Empty: the first of `caption_title_and_reference_description`,
    /// `wit_features.caption_title_and_reference_description`, `caption`, `captions`, `text`, `TEXT`, `label` that the file has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) caption_column: String,
    /// Column with the language of the caption. Empty: `language`, or `wit_features.language` beside captions of
    /// `wit_features`, where the file has it. Captions without a language belong to none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) language_column: String,
    /// Captions of a folder: `metadata` for `metadata.csv`, `.tsv`, `.jsonl` or `.parquet` in the folder or below, with the columns
    /// `file_name` (relative to the metadata file) and a caption; `text` for a file `NAME.txt` beside the image; `folders` for the
    /// name of the folder that holds the image. `auto`: the first of these that the folder has.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) folder_captions: FolderCaptions,
    /// Languages to keep, as in the column `language`, for example `["en", "de"]`. Empty: all.
    pub(super) languages: Vec<String>,
}

/// `[images]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawImages {
    /// Globs of files with images, or folders of image files (a directory, or a URL that ends in `/`). `part-{000..199}.tar` stands
    /// for a range of files, `@files.txt` for the names in the lines of a file, and `hf://datasets/ORG/NAME/PATH` for files of the
    /// Hugging Face hub, which are streamed. Required.
    pub(super) shards: Vec<String>,
    /// Format of the files: `tsv` (image URL, base64, metadata URL; with or without a header; plain, gzip or zstd), `parquet`
    /// (image files in a column of bytes), `jsonl` (one JSON object per line, base64; plain, gzip or zstd), `webdataset` (tar with
    /// `KEY.jpg`, `KEY.txt`, `KEY.json`; plain, gzip or zstd) or `folder` (image files, named by their path below the folder).
    /// `auto`: recognised by the name and the first bytes of the first file.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) format: ImageFormat,
    /// Column with the image: bytes of the file in Parquet, base64 elsewhere. In Parquet and JSON, `a.b` is the field `b` of `a`.
    /// For `webdataset`: the extension of the member with the image. Empty: the first of `image.bytes`, `image`, `jpg`, `png`,
    /// `webp`, `bytes`, `b64_bytes`, `image_base64` that the file has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) image_column: String,
    /// Column with the URL or another unique name of the image. For `webdataset`: a key of `KEY.json`. Empty: the first of
    /// `image_url`, `url`, `URL`, `file_name`, `key`, `id` that the file has (in a tar, of the first three), and `FILE/KEY` in a tar
    /// or `FILE/ROW` where it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) url_column: String,
}

/// `[preprocess]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPreprocess {
    /// Side of the square that the model sees, in pixels, from 8 to 4096. Default: that of the checkpoint's
    /// `preprocessor_config.json`, or 224. Another size keeps the proportions of the checkpoint's resizing and cropping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size_px: Option<u32>,
    /// Resampling filter, as Pillow computes it: `nearest`, `bilinear`, `bicubic`, `lanczos`, `box` or `hamming`.
    /// Default: the checkpoint's, or `bilinear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resample: Option<Resample>,
    /// Treatment of transparent pixels: `white` composites them on white, as a reader sees the image; `drop` ignores the alpha
    /// channel, as Pillow's `convert("RGB")` does, and shows the colours hidden below.
    pub(super) alpha: Alpha,
    /// Largest encoded image, from 1 KiB to 1 GiB. A larger one is quarantined.
    pub(super) max_encoded: Bytes,
    /// Largest image in pixels (width × height). The header is compared before any memory is allocated; a larger image is
    /// quarantined. `limits.memory` must have room for one image of this size.
    pub(super) max_pixels: u64,
}

impl Default for RawPreprocess {
    fn default() -> Self {
        Self { size_px: None, resample: None, alpha: Alpha::White, max_encoded: Bytes::mib(32), max_pixels: 40_000_000 }
    }
}

/// `[chunks]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawChunks {
    /// Source rows per chunk, from 1 to 1,000,000. A chunk is committed as a whole, so a kill loses at most the work on one
    /// chunk, or on two where pixel chunks are the product.
    pub(super) rows: u32,
    /// Compression of pixel chunks that are the product: `none`, `lz4` or `zstd`. With `[model]` it has no effect.
    pub(super) compression: Compression,
}

impl Default for RawChunks {
    fn default() -> Self {
        Self { rows: 2048, compression: Compression::None }
    }
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawModel {
    /// Origin of the features: `checkpoint`, which computes them, or `published` for files that hold them: then `images.shards` and
    /// `predict.images` are tab-separated rows of image URL and numbers between commas, as the corpus's `resnet_embeddings`
    /// (plain, gzip or zstd; with a header if `images.image_column` and `images.url_column` name its columns). No image is decoded,
    /// and `[preprocess]`, `layer` and `pool` have no meaning. A row with another number of values, or with one that is not
    /// finite, is quarantined.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) features: FeatureOrigin,
    /// With `features = "published"`: values of a feature, from 1 to 65,536. Default: 2048, as ResNet-50 has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) feature_dim: Option<u32>,
    /// Directory in Hugging Face layout: `config.json`, `model.safetensors` (or its sharded index) and
    /// `preprocessor_config.json`. Families: `vit` (also DINO v1), `deit`, `vit_mae`, `beit`, `dinov2`, `dinov2_with_registers`,
    /// `dinov3_vit`, `siglip` (also `siglip2-*` with a fixed size), `clip`, `metaclip_2`, `altclip`, `swin` and `swinv2`. Or `hf:ORG/NAME[@REVISION]`, a repository of the Hugging Face hub: its files are taken from
    /// the usual cache, or downloaded into it. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` have
    /// their usual meaning. A branch may move, so name a commit for results that are to be reproduced. Required, except with
    /// `features = "published"`.
    pub(super) checkpoint: String,
    /// Precision of the stored features: `bf16` or `f32`. A GPU also computes in it; the CPU always computes in f32.
    pub(super) precision: Precision,
    /// Transformer block whose output is the feature, with the model's final LayerNorm applied. Block 0 is the first and -1 the
    /// last. A list, such as `[7, 9, 11]`, concatenates the features of several blocks, all from one pass. In terms of
    /// transformers: -1 is `last_hidden_state`; block k is the final LayerNorm of `hidden_states[k + 1]`, since
    /// `hidden_states[0]` is the embedding; and -k is that of `hidden_states[-k]`. `clip` has no norm in its
    /// `last_hidden_state`, and gets its `post_layernorm`. `swin` and `swinv2` number the blocks through all stages; the norm is
    /// applied in the last stage alone, since the others have another width.
    pub(super) layer: Layers,
    /// Tokens that make the feature: `cls` for the CLS token; `mean` for the mean of the patch tokens, without CLS, distillation
    /// and register tokens; `cls+mean` for the CLS token followed by that mean, twice as many values; `head` (or `map`) for the
    /// checkpoint's mapping to the space of its text tower: the attention pooling of `siglip`, the projection of the CLS token
    /// of `clip`, `metaclip_2` and `altclip`. `default` is the input of the family's classifier in transformers: `cls` for `vit`, `deit`,
    /// `vit_mae` and `dinov3_vit`; `cls+mean` for `dinov2` and `dinov2_with_registers`; `mean` for `siglip`, `swin`, `swinv2` and
    /// a `beit` with mean pooling; `mean` without the norm for `clip`, `metaclip_2` and `altclip`. Where the paired text tower is used, `default` is `head`.
    pub(super) pool: Pool,
}

impl Default for RawModel {
    fn default() -> Self {
        Self {
            features: FeatureOrigin::default(),
            feature_dim: None,
            checkpoint: String::new(),
            precision: Precision::default(),
            layer: Layers(vec![-1]),
            pool: Pool::default(),
        }
    }
}

/// `[head]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHead {
    /// `classes`: a linear classifier, which ranks the captions it was trained on. `text`: a projection into the space of the
    /// text encoder of `[text]`, which ranks any captions. `paired`: no training; a checkpoint that pairs the backbone with a text
    /// tower (`siglip`, `clip`, `metaclip_2`, `altclip`) ranks any captions by its own similarity, logit scale and bias ("zero-shot").
    pub(super) kind: HeadKind,
    /// With `text`: width of the projection's hidden layer. 0: a linear projection.
    pub(super) hidden: u32,
    /// `sgd`: trained step by step, as `[train]` says. In closed form, from one pass over the features without a learning rate:
    /// - `cca` (with `text`): regularised canonical correlation of features and captions; the best choice for a few thousand
    ///   images or fewer, which `sgd` overfits;
    /// - `ridge`: ridge regression, with `text` to the captions' vectors, with `classes` to the class means or to one-hot targets.
    ///
    /// Shrinkage, and for `cca` the number of directions and the power of their correlations, are chosen on the images held out
    /// for validation, by NDCG@5 averaged over languages; the report names them. Of `[train]` only `views` and
    /// `validation_fraction` have an effect.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) method: HeadMethod,
    /// With `text` and `sgd`: temperature that divides the cosine similarities in the loss. `"learned"` starts at 0.07 and is limited
    /// to 0.01. A number from 0.01 to 10 is fixed; about 0.17 keeps a head from overfitting few images.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) temperature: Temperature,
    /// With `text` and `sgd`: share of the inputs of the projection that are set to 0 at random in each step, from 0 to below 1: of
    /// the standardised features, or of the hidden layer where there is one.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) dropout: f64,
}

/// `[text]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawText {
    /// `paired`: the text tower of `model.checkpoint`, which must be a `siglip`, `clip`, `metaclip_2` or `altclip` with `tokenizer.json`; a
    /// text head without a hidden layer then starts from the checkpoint's own projection. Otherwise the
    /// directory of a text encoder in Hugging Face layout, or `hf:ORG/NAME[@REVISION]`. BERT and XLM-RoBERTa are supported, with
    /// `config.json`, `model.safetensors` and `tokenizer.json`. The pooling and other modules that sentence-transformers
    /// configures are applied. Required, except with `head.kind = "paired"`, where it is `paired` by default; another encoder must
    /// then embed into the same space, as a multilingual student of the checkpoint's text tower does.
    pub(super) encoder: String,
    /// Text that is put before every caption, such as `"query: "` for multilingual-e5. Without this key it is the default
    /// prompt of the encoder's `config_sentence_transformers.json`, if it has one; `""` overrides that. `check` shows it.
    pub(super) prefix: Option<String>,
    /// Number of leading values of each vector that are kept, for encoders that were trained for it ("Matryoshka"). Without this key all are
    /// kept, or as many as a `truncate_dim` in `config_sentence_transformers.json` says.
    pub(super) truncate_dim: Option<u32>,
    /// Precision of the stored vectors: `bf16` or `f32`. A GPU also computes in it; the CPU always computes in f32.
    pub(super) precision: Precision,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTrain {
    /// Passes over the training samples.
    pub(super) epochs: u32,
    /// Samples of an image with several captions: with `pairs` each of its captions is a sample; with `soft` the image is one
    /// sample, with equal shares of all its captions. A text head needs `pairs`.
    pub(super) targets: TargetKind,
    /// Share of each target that is spread over all classes, from 0 to below 1. Must be 0 for a text head.
    pub(super) label_smoothing: f64,
    /// Random crops of each training image, as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` with their defaults
    /// make them; at most 32. An image is decoded once, each crop has its own feature, and the epochs use one crop after the
    /// other. Images held out for validation stay whole. 0: all images stay whole.
    pub(super) views: u32,
    /// Samples in one forward pass of the head. A text head tells the captions of one batch apart, so a larger batch is a harder
    /// task; at most 16,384. Default: 128, or 1024 for a text head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch_size: Option<u32>,
    /// Batches whose gradients are averaged into one step.
    pub(super) accumulation: u32,
    /// Optimiser, with PyTorch's meaning of momentum and weight decay. It follows from the kind of head: `sgd` for classes,
    /// `adamw` for text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) optimizer: Option<Optimizer>,
    /// Peak learning rate. Default: 5e-5, or 1e-3 for a text head. This key, `momentum` and `weight_decay` may be lists, such as
    /// `[1e-3, 1e-2]`: one head is trained for each combination, at most 64, side by side in one pass over the features. The one
    /// with the best validation NDCG@5 predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) learning_rate: Option<Numbers>,
    /// Momentum, from 0 to below 1. With `adamw`: decay of the first moment (beta1).
    pub(super) momentum: Numbers,
    /// With `sgd`: L2 penalty, added to the gradient. With `adamw`: decoupled weight decay of the weight matrices.
    pub(super) weight_decay: Numbers,
    /// With `head.kind = "text"`: `none`, or `language` to give all languages about equal shares of an epoch. Pairs of rare
    /// languages are repeated, up to ten times, and pairs of frequent ones are left out at random.
    pub(super) balance: Balance,
    /// Global norm that larger gradients are scaled down to. 0: off.
    pub(super) clip_norm: f64,
    /// Share of all steps over which the learning rate rises from 0 to its peak, from 0 to 1.
    pub(super) warmup_ratio: f64,
    /// Learning rate after the warm-up: `linear` (down to 0), `cosine` (down to 0) or `constant`.
    pub(super) schedule: ScheduleKind,
    /// Share of the images held out for validation, from 0 to below 1. A hash of the URL and the seed decides, so the same images
    /// are held out in every run with this seed, and a larger share includes a smaller one.
    pub(super) validation_fraction: f64,
    /// Samples that are shuffled together. Chunks are read in random order, and samples are mixed within a window of this size.
    /// `limits.memory` must have room for the features of a window, unless half of it holds all features.
    pub(super) shuffle_rows: u64,
    /// Steps between two loss values in the report.
    pub(super) log_every: u32,
    /// Time between two checkpoints, and so the most training time that a kill can lose. A checkpoint is also written at the end
    /// of each epoch. A head that takes long to save is saved less often, so that saving takes at most 2 % of the time. The
    /// result does not depend on this key.
    pub(super) checkpoint_every: Span,
    /// Event files for TensorBoard: `true` writes them to `tensorboard/` of the run directory, and the name of a folder to a
    /// folder in it named by the path of the run, so that several runs are shown together. The result does not depend on this key.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) tensorboard: EventFolder,
}

impl Default for RawTrain {
    fn default() -> Self {
        Self {
            epochs: 3,
            batch_size: None,
            accumulation: 1,
            optimizer: None,
            targets: TargetKind::default(),
            views: 0,
            label_smoothing: 0.0,
            learning_rate: None,
            momentum: 0.9.into(),
            weight_decay: 0.0.into(),
            balance: Balance::default(),
            clip_norm: 1.0,
            warmup_ratio: 0.1,
            schedule: ScheduleKind::Linear,
            validation_fraction: 0.02,
            shuffle_rows: 65_536,
            log_every: 50,
            checkpoint_every: Span::seconds(5),
            tensorboard: EventFolder::default(),
        }
    }
}

/// `[predict]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPredict {
    /// Globs of files with the test images, or folders, as in `images.shards`. The column names of `[images]` apply. Required.
    pub(super) images: Vec<String>,
    /// Format of the test images, as in `images.format`.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) format: ImageFormat,
    /// Tab-separated file with the columns `id` and `image_url`. Empty: each test image is an id, named by its URL or file name.
    /// The names are then read before anything else: from the listing of a folder, from one column of Parquet, and from the whole
    /// of other files.
    pub(super) ids: String,
    /// File name of the ranked captions, ending in `.csv`. It is written inside `run.dir` and replaces only an earlier ranking;
    /// `training.csv` is reserved.
    pub(super) output: String,
    /// Captions for each id, best first, from 1 to 1000.
    pub(super) top_k: u32,
    /// Checkpoint that predicts: `last`, or `best` by validation NDCG@5.
    pub(super) checkpoint: Pick,
    /// With a text head: CSV file of captions to rank, with a header such as `caption` and one column. The run need not have been trained on them.
    /// Empty: `captions.list`, or the classes where there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) captions: String,
    /// With a text head: rank by the file name in the image's URL as well as by its pixels. The weight of the name is chosen on
    /// the images held out for validation.
    pub(super) file_names: bool,
    /// With a text head: hubness correction, which lowers captions that are close to every image. `none`, `softmax` (over the
    /// images, for each caption) or `csls`.
    pub(super) correction: Correction,
    /// With `correction = "softmax"`: factor of the cosine similarities in the correction, over 0. Default: that of the head, the
    /// inverse of its temperature. A head with a high temperature needs a factor of its own, such as 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correction_strength: Option<f64>,
    /// With a text head: directory of another run, with a head of kind `classes` on the same features, whose logits are added.
    /// Their weight is chosen on the images held out for validation. Empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) blend: String,
    /// CSV file with the columns of the submission and the right caption of each id. The run then ends with scores; with a column
    /// `language`, with scores by language too. Empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) truth: String,
}

impl Default for RawPredict {
    fn default() -> Self {
        Self {
            images: Vec::new(),
            format: ImageFormat::default(),
            ids: String::new(),
            output: "submission.csv".to_owned(),
            top_k: 5,
            checkpoint: Pick::Last,
            captions: String::new(),
            file_names: false,
            correction: Correction::default(),
            correction_strength: None,
            blend: String::new(),
            truth: String::new(),
        }
    }
}

/// A machine file: where to run it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMachine {
    /// Memory, disk and threads that the run may use.
    pub(super) limits: RawLimits,
    /// Scratch disk, whose content may be lost with the machine.
    pub(super) scratch: RawScratch,
    /// Device of the model.
    pub(super) device: RawDevice,
    /// Access to object stores.
    pub(super) store: RawStore,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    /// Bytes in flight between stages, all together: images, features in memory, held-out images, caption vectors. The join index
    /// (12 bytes per labelled row), the head and the model come on top.
    /// "auto": half of what the container or the machine has, but at least 640 MiB (or all but 48 MiB, if that is less) and at
    /// most 2 GiB. A value over what the container or the machine has is refused.
    pub(super) memory: MemoryLimit,
    /// Scratch disk for decoded pixel chunks, which lets decoding run ahead of the model. At least two chunks.
    pub(super) disk: Bytes,
    /// Threads that decode images, at most 1024. 0: one per core, or per whole core of the container's CPU quota.
    pub(super) cpu_workers: u32,
    /// Share of a shard's wanted rows that may be unusable before the run stops. It is judged after 1,000 rows.
    pub(super) max_bad_fraction: f64,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { memory: MemoryLimit::Auto, disk: Bytes::mib(20 * 1024), cpu_workers: 0, max_bad_fraction: 0.05 }
    }
}

/// `[scratch]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawScratch {
    /// Directory for pixel chunks and compiled GPU kernels, on a local disk. Each run has its own folder in it. Empty:
    /// `scratch` inside `run.dir`, or the system's temporary directory where `run.dir` is on S3. The environment variable
    /// `WIKICAP_CACHE` names another directory for the kernels, which several runs may share.
    pub(super) dir: String,
}

/// `[device]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDevice {
    /// `auto`, `cpu` or `cuda`. `auto` uses CUDA where a driver, NVRTC and the toolkit's headers are found, else the CPU.
    pub(super) kind: DeviceKind,
    /// Index of the GPU, where there are several.
    pub(super) index: u32,
    /// Images in one forward pass, at most 65,536. 0: chosen, on a GPU by its free memory. Another batch size may change the last
    /// bits of features.
    pub(super) batch_size: u32,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStore {
    /// URL of an S3-compatible endpoint, for example `http://minio:9000`. Empty: `AWS_ENDPOINT_URL`, or AWS itself. Credentials
    /// come from the environment, the AWS profile or the machine's metadata, never from this file.
    pub(super) endpoint: String,
    /// Time for which a failing request is retried before the run stops. Finished work is kept. Earlier name: `patience`.
    #[serde(alias = "patience")]
    pub(super) retry_budget: Span,
    /// Time without a byte after which a request is given up and made again. An upload has one more second for each 64 KiB.
    /// Earlier name: `silence`.
    #[serde(alias = "silence")]
    pub(super) read_timeout: Span,
}

impl Default for RawStore {
    fn default() -> Self {
        Self { endpoint: String::new(), retry_budget: Span::seconds(300), read_timeout: Span::seconds(20) }
    }
}
