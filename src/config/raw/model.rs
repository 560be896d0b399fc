//! Sections of a pipeline file that say what is computed: features, training and ranking.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::super::value::{Count, EventFolder, Layers, Numbers, Span, Temperature};
use super::is_default;
use crate::types::{
    Balance, Correction, FeatureOrigin, HeadKind, HeadMethod, ImageFormat, MemberWeights, Optimizer, Pick, Pool,
    Precision, ScheduleKind, TargetKind,
};

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawModel {
    /// Origin of the features: `checkpoint`, which computes them, or `published` for files that hold them: then `images.shards` and
    /// `predict.images` are tab-separated rows of image URL and numbers between commas, as the corpus's `resnet_embeddings`
    /// (plain, gzip or zstd; with a header if `images.image_column` and `images.url_column` name its columns). No image is decoded,
    /// and `[preprocess]`, `layer` and `pool` have no meaning. A row with another number of values, or with one that is not
    /// finite, is quarantined.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) features: FeatureOrigin,
    /// With `features = "published"`: values of a feature, from 1 to 65,536. Default: 2048, as ResNet-50 has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) feature_dim: Option<u32>,
    /// Directory in Hugging Face layout: `config.json`, `model.safetensors` (or its sharded index) and
    /// `preprocessor_config.json`. Families: `vit` (also DINO v1), `deit`, `vit_mae`, `beit`, `dinov2`, `dinov2_with_registers`,
    /// `dinov3_vit`, `siglip` (also `siglip2-*` with a fixed size), `clip`, `metaclip_2`, `altclip`, `swin` and `swinv2`. Or `hf:ORG/NAME[@REVISION]`, a repository of the Hugging Face hub: its files are taken from
    /// the usual cache, or downloaded into it. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` have
    /// their usual meaning. A branch may move, so name a commit for results that are to be reproduced. Required, except with
    /// `features = "published"`.
    pub(in crate::config) checkpoint: String,
    /// Precision of the stored features: `bf16` or `f32`. A GPU also computes in it; the CPU always computes in f32.
    pub(in crate::config) precision: Precision,
    /// Transformer block whose output is the feature, with the model's final LayerNorm applied. Block 0 is the first and -1 the
    /// last. A list, such as `[7, 9, 11]`, concatenates the features of several blocks, all from one pass. In terms of
    /// transformers: -1 is `last_hidden_state`; block k is the final LayerNorm of `hidden_states[k + 1]`, since
    /// `hidden_states[0]` is the embedding; and -k is that of `hidden_states[-k]`. `clip` has no norm in its
    /// `last_hidden_state`, and gets its `post_layernorm`. `swin` and `swinv2` number the blocks through all stages; the norm is
    /// applied in the last stage alone, since the others have another width.
    pub(in crate::config) layer: Layers,
    /// Tokens that make the feature: `cls` for the CLS token; `mean` for the mean of the patch tokens, without CLS, distillation
    /// and register tokens; `cls+mean` for the CLS token followed by that mean, twice as many values; `head` (or `map`) for the
    /// checkpoint's mapping to the space of its text tower: the attention pooling of `siglip`, the projection of the CLS token
    /// of `clip`, `metaclip_2` and `altclip`. `default` is the input of the family's classifier in transformers: `cls` for `vit`, `deit`,
    /// `vit_mae` and `dinov3_vit`; `cls+mean` for `dinov2` and `dinov2_with_registers`; `mean` for `siglip`, `swin`, `swinv2` and
    /// a `beit` with mean pooling; `mean` without the norm for `clip`, `metaclip_2` and `altclip`. Where the paired text tower is used, `default` is `head`.
    pub(in crate::config) pool: Pool,
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
pub(in crate::config) struct RawHead {
    /// `classes`: a linear classifier, which ranks the captions it was trained on. `text`: a projection into the space of the
    /// text encoder of `[text]`, which ranks any captions. `paired`: no training; a checkpoint that pairs the backbone with a text
    /// tower (`siglip`, `clip`, `metaclip_2`, `altclip`) ranks any captions by its own similarity, logit scale and bias ("zero-shot").
    pub(in crate::config) kind: HeadKind,
    /// With `text`: width of the projection's hidden layer. 0: a linear projection.
    pub(in crate::config) hidden: u32,
    /// `sgd`: trained step by step, as `[train]` says. In closed form, from one pass over the features without a learning rate:
    /// - `cca` (with `text`): regularised canonical correlation of features and captions; the best choice for a few thousand
    ///   images or fewer, which `sgd` overfits;
    /// - `ridge`: ridge regression, with `text` to the captions' vectors, with `classes` to the class means or to one-hot targets.
    ///
    /// `auto` (with `text`): `cca` for fewer than 5,000 images, those held out included, else `sgd`; the log names the choice. With
    /// `cca` the settings of `sgd` have no effect.
    ///
    /// Shrinkage, and for `cca` that of the captions, the number of directions and the power of their correlations, are chosen on the
    /// images held out for validation, by NDCG@5 averaged over languages; the report names them. `cca` with fewer than 20 such images
    /// takes fixed settings, so hold out a tenth of a few thousand images. Of `[train]` only `views` and
    /// `validation_fraction` have an effect.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) method: HeadMethod,
    /// With `text` and `sgd`: temperature that divides the cosine similarities in the loss. `"learned"` starts at 0.07 and is limited
    /// to 0.01. A number from 0.01 to 10 is fixed; about 0.17 keeps a head from overfitting few images.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) temperature: Temperature,
    /// With `text` and `sgd`: share of the inputs of the projection that are set to 0 at random in each step, from 0 to below 1: of
    /// the standardised features, or of the hidden layer where there is one.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) dropout: f64,
    /// With `text` and a list in `model.layer`: `true` trains a head for each block, and an image and a caption score the mean of
    /// the cosines of all heads. `false`: one head reads all blocks side by side.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) per_layer: bool,
    /// With `text` and `sgd`: heads from as many random starts, which score together as with `per_layer`; 1 to 16. A head in closed
    /// form does not depend on a start.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) seeds: Count,
    /// Weights of the heads that score together: `equal`, or `held-out`, where they are chosen on the images held out for
    /// validation by NDCG@5 averaged over languages. The report has weight and score of each.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) weights: MemberWeights,
}

/// `[text]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawText {
    /// `paired`: the text tower of `model.checkpoint`, which must be a `siglip`, `clip`, `metaclip_2` or `altclip` with `tokenizer.json`; a
    /// text head without a hidden layer, `per_layer` and `seeds` then starts from the checkpoint's own projection. Otherwise the
    /// directory of a text encoder in Hugging Face layout, or `hf:ORG/NAME[@REVISION]`. BERT and XLM-RoBERTa are supported, with
    /// `config.json`, `model.safetensors` and `tokenizer.json`. The pooling and other modules that sentence-transformers
    /// configures are applied. Required, except with `head.kind = "paired"`, where it is `paired` by default; another encoder must
    /// then embed into the same space, as a multilingual student of the checkpoint's text tower does.
    pub(in crate::config) encoder: String,
    /// Text that is put before every caption, such as `"query: "` for multilingual-e5. Without this key it is the default
    /// prompt of the encoder's `config_sentence_transformers.json`, if it has one; `""` overrides that. `check` shows it.
    pub(in crate::config) prefix: Option<String>,
    /// Number of leading values of each vector that are kept, for encoders that were trained for it ("Matryoshka"). Without this key all are
    /// kept, or as many as a `truncate_dim` in `config_sentence_transformers.json` says.
    pub(in crate::config) truncate_dim: Option<u32>,
    /// Precision of the stored vectors: `bf16` or `f32`. A GPU also computes in it; the CPU always computes in f32.
    pub(in crate::config) precision: Precision,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawTrain {
    /// Passes over the training samples.
    pub(in crate::config) epochs: u32,
    /// Samples of an image with several captions: with `pairs` each of its captions is a sample; with `soft` the image is one
    /// sample, with equal shares of all its captions. A text head needs `pairs`.
    pub(in crate::config) targets: TargetKind,
    /// Share of each target that is spread over all classes, from 0 to below 1. Must be 0 for a text head.
    pub(in crate::config) label_smoothing: f64,
    /// Random crops of each training image, as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` with their defaults
    /// make them; at most 32. An image is decoded once, each crop has its own feature, and the epochs use one crop after the
    /// other. Images held out for validation stay whole. 0: all images stay whole.
    pub(in crate::config) views: u32,
    /// Samples in one forward pass of the head. A text head tells the captions of one batch apart, so a larger batch is a harder
    /// task; at most 16,384. Default: 128, or 1024 for a text head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) batch_size: Option<u32>,
    /// Batches whose gradients are averaged into one step.
    pub(in crate::config) accumulation: u32,
    /// Optimiser, with PyTorch's meaning of momentum and weight decay. It follows from the kind of head: `sgd` for classes,
    /// `adamw` for text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) optimizer: Option<Optimizer>,
    /// Peak learning rate. Default: 5e-5, or 1e-3 for a text head. This key, `momentum` and `weight_decay` may be lists, such as
    /// `[1e-3, 1e-2]`: one head is trained for each combination, at most 64, side by side in one pass over the features. The one
    /// with the best validation NDCG@5 predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) learning_rate: Option<Numbers>,
    /// Momentum, from 0 to below 1. With `adamw`: decay of the first moment (beta1).
    pub(in crate::config) momentum: Numbers,
    /// With `sgd`: L2 penalty, added to the gradient. With `adamw`: decoupled weight decay of the weight matrices.
    pub(in crate::config) weight_decay: Numbers,
    /// With `head.kind = "text"`: `none`, or `language` to give all languages about equal shares of an epoch. Pairs of rare
    /// languages are repeated, up to ten times, and pairs of frequent ones are left out at random.
    pub(in crate::config) balance: Balance,
    /// Global norm that larger gradients are scaled down to. 0: off.
    pub(in crate::config) clip_norm: f64,
    /// Share of all steps over which the learning rate rises from 0 to its peak, from 0 to 1.
    pub(in crate::config) warmup_ratio: f64,
    /// Learning rate after the warm-up: `linear` (down to 0), `cosine` (down to 0) or `constant`.
    pub(in crate::config) schedule: ScheduleKind,
    /// Share of the images held out for validation, from 0 to below 1. A hash of the URL and the seed decides, so the same images
    /// are held out in every run with this seed, and a larger share includes a smaller one.
    pub(in crate::config) validation_fraction: f64,
    /// Samples that are shuffled together. Chunks are read in random order, and samples are mixed within a window of this size.
    /// `limits.memory` must have room for the features of a window, unless half of it holds all features.
    pub(in crate::config) shuffle_rows: u64,
    /// Steps between two loss values in the report.
    pub(in crate::config) log_every: u32,
    /// Time between two checkpoints, and so the most training time that a kill can lose. A checkpoint is also written at the end
    /// of each epoch. A head that takes long to save is saved less often, so that saving takes at most 2 % of the time. The
    /// result does not depend on this key.
    pub(in crate::config) checkpoint_every: Span,
    /// Event files for TensorBoard: `true` writes them to `tensorboard/` of the run directory, and the name of a folder to a
    /// folder in it named by the path of the run, so that several runs are shown together. The result does not depend on this key.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) tensorboard: EventFolder,
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
pub(in crate::config) struct RawPredict {
    /// Globs of files with the test images, or folders, as in `images.shards`. The column names of `[images]` apply. Required.
    pub(in crate::config) images: Vec<String>,
    /// Format of the test images, as in `images.format`.
    #[serde(skip_serializing_if = "is_default")]
    pub(in crate::config) format: ImageFormat,
    /// Tab-separated file with the columns `id` and `image_url`. Empty: each test image is an id, named by its URL or file name.
    /// The names are then read before anything else: from the listing of a folder, from one column of Parquet, and from the whole
    /// of other files.
    pub(in crate::config) ids: String,
    /// File name of the ranked captions, ending in `.csv`. It is written inside `run.dir` and replaces only an earlier ranking;
    /// `training.csv` is reserved.
    pub(in crate::config) output: String,
    /// Captions for each id, best first, from 1 to 1000.
    pub(in crate::config) top_k: u32,
    /// Checkpoint that predicts: `last`, or `best` by validation NDCG@5.
    pub(in crate::config) checkpoint: Pick,
    /// With a text head: CSV file of captions to rank, with a header such as `caption` and one column. The run need not have been trained on them.
    /// Empty: `captions.list`, or the classes where there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) captions: String,
    /// With a text head: rank by the file name in the image's URL as well as by its pixels. The weight of the name is chosen on
    /// the images held out for validation.
    pub(in crate::config) file_names: bool,
    /// With a text head: hubness correction, which lowers captions that are close to every image.
    /// - `none`;
    /// - `softmax` scales the exponentials of the similarities so that those of a caption add up to one over all images;
    /// - `sinkhorn` scales them as `softmax` does, then so that those of an image add up to one over all captions, and repeats both
    ///   twice. It suits lists in which captions belong to about equally many images, and computes all similarities five times;
    /// - `csls` subtracts the caption's mean similarity to the ten closest images;
    /// - `auto` takes the best of these, and of several strengths, on the images held out for validation, by NDCG@5 averaged over
    ///   languages; without such images `softmax` of strength 20. Held-out lists have only right captions, which favours `sinkhorn`.
    ///
    /// Fewer than ten images are ranked without a correction.
    pub(in crate::config) correction: Correction,
    /// With `correction = "softmax"` or `"sinkhorn"`: factor of the cosine similarities in the correction, from
    /// 0.01 to 10,000. Default: that of the head, the
    /// inverse of its temperature. A head with a high temperature needs a factor of its own, such as 20,
    /// or 30 with `sinkhorn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) correction_strength: Option<f64>,
    /// With a text head: directory of another run, with a head of kind `classes` on the same features, whose logits are added.
    /// Their weight is chosen on the images held out for validation. Empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) blend: String,
    /// CSV file with the columns of the submission and the right caption of each id. The run then ends with scores; with a column
    /// `language`, with scores by language too. Empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::config) truth: String,
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
