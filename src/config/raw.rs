//! The two files as they are written: every key, its meaning and its default.
//!
//! The doc comment of a field is what `wikicap-pipeline config reference` prints, so it is written for the
//! person who fills the file in. Nothing here is checked beyond its type; [`super::plan`] does that.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::value::{Bytes, Numbers, Span};
use crate::types::{
    Alpha, Balance, ClassSource, Compression, Correction, DeviceKind, HeadKind, MatchRule, Optimizer, Pick, Pool,
    Precision, Resample, ScheduleKind, TargetKind,
};

/// A pipeline file: what to run. A section that is absent is a stage that does not run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPipeline {
    /// A corpus to draw first, where it is absent: for demonstrations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<RawSample>,
    /// Where the run keeps what it makes, and its seed.
    pub(super) run: RawRun,
    /// The captions that become classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) captions: Option<RawCaptions>,
    /// The rows that say which image has which caption (`train-*.tsv`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pairs: Option<RawPairs>,
    /// The image shards to stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) images: Option<RawImages>,
    /// From encoded image to the model's input square.
    pub(super) preprocess: RawPreprocess,
    /// How the stream is cut into artefacts.
    pub(super) chunks: RawChunks,
    /// The frozen backbone. Absent: the pixel chunks are the product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<RawModel>,
    /// What is trained on the features.
    pub(super) head: RawHead,
    /// The frozen text encoder, for `head.kind = "text"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<RawText>,
    /// Training of the head. Absent: the run ends with the feature chunks.
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
    /// Directory that the corpus is drawn into. Required.
    pub(super) out: String,
    /// Usable training images.
    pub(super) train_images: u32,
    /// Usable test images.
    pub(super) test_images: u32,
    /// Seed: the same seed draws the same bytes.
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
    /// Directory for everything durable that the run writes: a path, or an `s3://` URL. Required.
    pub(super) dir: String,
    /// Seed of the head's initial weights, the order of training and the validation split.
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
    /// CSV file with a header and one column, one caption a row. Required with `classes = "list"`.
    pub(super) list: String,
    /// `list`: the distinct strings of the list are the classes. `train`: the distinct captions of `[pairs]` are.
    pub(super) classes: ClassSource,
    /// When a caption of `[pairs]` means a class: `exact`; `trimmed` (white space at both ends aside);
    /// `casefold` (NFC, trimmed, case folded); `title` (the part before ` [SEP] `).
    #[serde(rename = "match")]
    pub(super) match_rule: MatchRule,
}

/// `[pairs]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPairs {
    /// Globs of tab-separated files with a header (plain, gzip or zstd); columns are found by name. Required.
    pub(super) shards: Vec<String>,
    /// Languages to keep, as the `language` column writes them. Empty: all.
    pub(super) languages: Vec<String>,
}

/// `[images]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawImages {
    /// Globs of files with rows `image_url TAB base64 TAB metadata_url` and no header (plain, gzip or zstd). Required.
    pub(super) shards: Vec<String>,
}

/// `[preprocess]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPreprocess {
    /// Side of the square handed to the model, in pixels. Default: what the checkpoint's `preprocessor_config.json` says, or 224.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size_px: Option<u32>,
    /// `nearest`, `bilinear`, `bicubic` or `lanczos`, as Pillow computes them. Default: the checkpoint's, or `bilinear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resample: Option<Resample>,
    /// Transparent pixels: `white` composites on white, as a reader sees the image; `drop` ignores alpha, as PIL's `convert("RGB")` does.
    pub(super) alpha: Alpha,
    /// Largest encoded image that is decoded; a larger one is quarantined.
    pub(super) max_encoded: Bytes,
    /// Largest image that is decoded, width × height, by its header; a larger one is quarantined before a buffer is allocated.
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
    /// Source rows that one chunk covers: the unit that is committed, and the most that a kill can lose, or twice that where the chunks
    /// are the product: one is made durable while the next is decoded.
    pub(super) rows: u32,
    /// Compression of pixel chunks: `none`, `lz4` or `zstd`.
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
    /// Directory in Hugging Face layout: `config.json`, `model.safetensors` (or its sharded index), `preprocessor_config.json`.
    /// Or `hf:ORG/NAME[@REVISION]`: a repository of the Hugging Face hub, of which these files are downloaded into the usual
    /// cache, or used from there. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean
    /// everywhere. A branch may move: name the commit for a run that is to last. Required.
    pub(super) checkpoint: String,
    /// `bf16` or `f32`: the precision of the stored features, and of the forward pass where the device computes in it (the CPU computes in f32).
    pub(super) precision: Precision,
    /// Block whose output is the feature, counted from 0, or from the end when negative; the final `LayerNorm` follows. -1: the last.
    pub(super) layer: i32,
    /// `default` (what the family's classifier sees), `cls`, or `cls+mean` (CLS ‖ mean of the patch tokens).
    pub(super) pool: Pool,
}

impl Default for RawModel {
    fn default() -> Self {
        Self { checkpoint: String::new(), precision: Precision::default(), layer: -1, pool: Pool::default() }
    }
}

/// `[head]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHead {
    /// `classes`: one output for each caption class, which ranks those alone. `text`: a map into the space of the text encoder of
    /// `[text]`, which ranks any captions.
    pub(super) kind: HeadKind,
    /// With `text`: values of a hidden layer in the map. 0: none, the map is linear.
    pub(super) hidden: u32,
}

/// `[text]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawText {
    /// Directory of a text encoder in Hugging Face layout (BERT or XLM-RoBERTa: `config.json`, `model.safetensors`,
    /// `tokenizer.json`, and the files of sentence-transformers, which are obeyed), or `hf:ORG/NAME[@REVISION]`. Required.
    pub(super) encoder: String,
    /// What is put before every caption; what the encoder was trained with, such as `"query: "` for multilingual-e5.
    pub(super) prefix: String,
    /// `bf16` or `f32`: the precision of the stored vectors, and of the encoder where the device computes in it.
    pub(super) precision: Precision,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTrain {
    /// Passes over the training samples.
    pub(super) epochs: u32,
    /// What a sample is where an image has several captions: `pairs` (each image and caption), or `soft` (the image, with equal
    /// shares of all its captions).
    pub(super) targets: TargetKind,
    /// Share of each target that is spread over all classes.
    pub(super) label_smoothing: f64,
    /// Random parts of each training image, as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` make them: each image is
    /// decoded once, each part has a feature of its own, and the epochs take them in turn. Images that are held out stay
    /// whole. 0: all images stay whole.
    pub(super) views: u32,
    /// Samples in one forward pass of the head; with `head.kind = "text"` the captions that are told apart. Default: 128, or 1024
    /// for a text head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch_size: Option<u32>,
    /// Batches whose gradients are averaged into one step.
    pub(super) accumulation: u32,
    /// `sgd` for a head of classes, `adamw` for a text head, which are the defaults; with PyTorch's meaning of momentum and weight decay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) optimizer: Option<Optimizer>,
    /// Peak learning rate. Default: 5e-5, or 1e-3 for a text head. This key, `momentum` and `weight_decay` may be lists: a head is
    /// trained for each combination, all of them side by side from one pass over the features, and the best by validation NDCG@5
    /// predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) learning_rate: Option<Numbers>,
    /// Momentum, 0 to 1; with `adamw` the decay of the first moment.
    pub(super) momentum: Numbers,
    /// L2 penalty added to the gradient; with `adamw` the share of the matrices that a step at rate 1 would take off them.
    pub(super) weight_decay: Numbers,
    /// With `head.kind = "text"`: `none`, or `language`: pairs are repeated or left out, so that all languages have about equal
    /// shares of an epoch; none is repeated more than ten times.
    pub(super) balance: Balance,
    /// Gradients are scaled down to this global norm. 0: off.
    pub(super) clip_norm: f64,
    /// Share of all steps over which the rate rises from 0 to its peak.
    pub(super) warmup_ratio: f64,
    /// After the warm-up: `linear` (down to 0), `cosine` (down to 0) or `constant`.
    pub(super) schedule: ScheduleKind,
    /// Share of the images, by hash of their URL, held out for validation.
    pub(super) validation_fraction: f64,
    /// Samples that are shuffled together: chunks are read in random order and mixed within a window of this many.
    pub(super) shuffle_rows: u64,
    /// Steps between two loss values in the report.
    pub(super) log_every: u32,
    /// Time between two checkpoints, the most that a kill can lose; a head that takes long to save is saved less often, so
    /// that training has at least 50 times the time of saving. One is written at the end of each epoch too. It never changes the result.
    pub(super) checkpoint_every: Span,
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
        }
    }
}

/// `[predict]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPredict {
    /// Globs of image shards of the test images, in the format of `[images]`. Required.
    pub(super) images: Vec<String>,
    /// Tab-separated file with the columns `id` and `image_url`. Required.
    pub(super) ids: String,
    /// File that the ranked captions are written to, inside `run.dir`.
    pub(super) output: String,
    /// Captions for each id, best first.
    pub(super) top_k: u32,
    /// Checkpoint that predicts: `last`, or `best` by validation NDCG@5.
    pub(super) checkpoint: Pick,
    /// With a text head: CSV file with a header and one column of captions to rank, which may be any. Empty: `captions.list`, or the
    /// classes where there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) captions: String,
    /// With a text head: the name of an image's file, as its URL has it, is evidence beside its pixels; how much it counts is
    /// chosen on the images held out.
    pub(super) file_names: bool,
    /// With a text head: what is taken off captions that are close to every image: `none`, `softmax` (over the images, for each
    /// caption) or `csls`.
    pub(super) correction: Correction,
    /// With a text head: directory of another run with a head of classes on the same features, whose logits are added; how much
    /// they count is chosen on the images held out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) blend: String,
    /// Optional CSV with the columns of the submission and the right caption of each id; the run then ends with the scores. With a
    /// column `language` there are scores by language too.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) truth: String,
}

impl Default for RawPredict {
    fn default() -> Self {
        Self {
            images: Vec::new(),
            ids: String::new(),
            output: "submission.csv".to_owned(),
            top_k: 5,
            checkpoint: Pick::Last,
            captions: String::new(),
            file_names: false,
            correction: Correction::default(),
            blend: String::new(),
            truth: String::new(),
        }
    }
}

/// A machine file: where to run it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMachine {
    /// What the run may use.
    pub(super) limits: RawLimits,
    /// Disk space that may be lost with the machine.
    pub(super) scratch: RawScratch,
    /// Where the model runs.
    pub(super) device: RawDevice,
    /// How object stores are reached.
    pub(super) store: RawStore,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    /// Bytes in flight between stages, all together; the join index and the model come on top.
    pub(super) memory: Bytes,
    /// Scratch disk that the ring of pixel chunks may take.
    pub(super) disk: Bytes,
    /// Threads that decode images. 0: one for each core.
    pub(super) cpu_workers: u32,
    /// Share of a shard's wanted rows that may be unusable before the run stops, judged after 1,000 rows.
    pub(super) max_bad_fraction: f64,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { memory: Bytes::mib(2048), disk: Bytes::mib(20 * 1024), cpu_workers: 0, max_bad_fraction: 0.05 }
    }
}

/// `[scratch]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawScratch {
    /// Directory of the ring of pixel chunks, on a local disk; each run has a folder of its own in it. Empty: `scratch` inside
    /// `run.dir`, or the system's temporary directory where `run.dir` is on S3.
    pub(super) dir: String,
}

/// `[device]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDevice {
    /// `auto` (CUDA where a driver, NVRTC and the toolkit's headers are, else the CPU), `cpu` or `cuda`.
    pub(super) kind: DeviceKind,
    /// Which card, where there are several.
    pub(super) index: u32,
    /// Images in one forward pass. 0: chosen, on a card by its free memory. Features may differ in their last bits with it.
    pub(super) batch_size: u32,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStore {
    /// S3-compatible endpoint, for example `http://minio:9000`. Empty: `AWS_ENDPOINT_URL`, or AWS itself. Credentials come from
    /// the environment, the AWS profile or the machine's metadata, never from a file here.
    pub(super) endpoint: String,
    /// For how long a request may fail again and again before the run stops; what was done is kept.
    #[serde(alias = "patience")]
    pub(super) retry_budget: Span,
    /// Time without a byte after which a request is given up and made again. An upload has a second more for each 64 KiB.
    #[serde(alias = "silence")]
    pub(super) read_timeout: Span,
}

impl Default for RawStore {
    fn default() -> Self {
        Self { endpoint: String::new(), retry_budget: Span::seconds(300), read_timeout: Span::seconds(20) }
    }
}
