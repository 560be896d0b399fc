//! From the corpus to chunks: `[sample]`, `[captions]`, `[pairs]`, `[images]`, `[preprocess]`, `[chunks]` and `[model]`.

use super::super::raw::{RawCaptions, RawImages, RawModel, RawPairs, RawPipeline, RawPreprocess, RawSample};
use super::super::value::Bytes;
use super::head::PAIRED_ENCODER;
use super::{Problems, check_checkpoint, non_empty};
use crate::types::{
    Alpha, ClassSource, Compression, FeatureOrigin, FolderCaptions, HeadKind, ImageFormat, MatchRule, PairsFormat,
    Pool, Precision, Resample,
};

/// Checked `[sample]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleConfig {
    /// Directory of the corpus.
    pub out: String,
    /// Usable training images.
    pub train_images: u32,
    /// Usable test images.
    pub test_images: u32,
    /// Seed of the generator.
    pub seed: u64,
}

/// Checked `[captions]` and `[pairs]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogConfig {
    /// Captions that become classes.
    pub captions: CaptionsConfig,
    /// Rows that label images.
    pub pairs: PairsConfig,
}

/// Checked `[captions]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptionsConfig {
    /// CSV file of captions. Always present with [`ClassSource::List`]; otherwise it only lists captions to rank.
    pub list: Option<String>,
    /// Origin of the classes.
    pub classes: ClassSource,
    /// Rule by which a caption is found among the classes.
    pub match_rule: MatchRule,
}

impl CaptionsConfig {
    /// Returns the file whose captions are the classes; `None` where the training captions are.
    pub fn class_list(&self) -> Option<&str> {
        self.list.as_deref().filter(|_| self.classes == ClassSource::List)
    }
}

/// Checked `[pairs]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PairsConfig {
    /// Globs of the files; at least one.
    pub shards: Vec<String>,
    /// Format of the files.
    pub format: PairsFormat,
    /// Column of the image's URL; `None` for the first usual one.
    pub url_column: Option<String>,
    /// Column of the caption; `None` for the first usual one.
    pub caption_column: Option<String>,
    /// Column of the language; `None` for the usual one, if the file has it.
    pub language_column: Option<String>,
    /// Captions of a folder.
    pub folder_captions: FolderCaptions,
    /// Languages to keep; all if empty.
    pub languages: Vec<String>,
}

/// Checked `[images]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesConfig {
    /// Globs of the files; at least one.
    pub shards: Vec<String>,
    /// Format of the files.
    pub format: ImageFormat,
    /// Names of the columns.
    pub columns: ImageColumnNames,
}

/// Names of the columns of image files; `None` for the first usual one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageColumnNames {
    /// Column of the image.
    pub image: Option<String>,
    /// Column of the image's URL.
    pub url: Option<String>,
}

/// Checked `[preprocess]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreprocessConfig {
    /// Side of the input square, from 8 to 4096; `None` for the checkpoint's.
    pub size_px: Option<u32>,
    /// Resampling filter; `None` for the checkpoint's.
    pub resample: Option<Resample>,
    /// Treatment of transparent pixels.
    pub alpha: Alpha,
    /// Upper bound on the encoded image, from 1 KiB to 1 GiB.
    pub max_encoded: Bytes,
    /// Upper bound on width × height, from 1 to 4,000,000,000.
    pub max_pixels: u64,
}

/// Checked `[chunks]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunksConfig {
    /// Source rows of a chunk, from 1 to 1,000,000.
    pub rows: u32,
    /// Compression of pixel chunks that are the product.
    pub compression: Compression,
}

/// Upper bound on the blocks whose outputs make a feature.
const MAX_LAYERS: usize = 64;

/// Values of a published feature without a setting: those of ResNet-50.
pub(in crate::config) const PUBLISHED_DIM: u32 = 2048;

/// Checked `[model]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelConfig {
    /// Directory in Hugging Face layout, or a valid `hf:ORG/NAME[@REVISION]`; empty with published features.
    pub checkpoint: String,
    /// Values of a published feature, from 1 to 65,536; `None` if the checkpoint computes the features.
    pub published_dim: Option<u32>,
    /// Precision of the stored features.
    pub precision: Precision,
    /// Blocks whose outputs make the feature, each from 0, or from -1 backwards; at least one.
    pub layers: Vec<i32>,
    /// Tokens that make the feature.
    pub pool: Pool,
}

/// The sections that [`check_images`] checks.
pub(in super::super) struct ImageSections {
    pub(in super::super) sample: Option<SampleConfig>,
    pub(in super::super) catalog: Option<CatalogConfig>,
    pub(in super::super) images: Option<ImagesConfig>,
    pub(in super::super) preprocess: PreprocessConfig,
    pub(in super::super) chunks: ChunksConfig,
    pub(in super::super) model: Option<ModelConfig>,
}

/// Checks the sections from the corpus to the chunks.
pub(in super::super) fn check_images(pipeline: &RawPipeline, problems: &mut Problems) -> ImageSections {
    let captions = pipeline.captions.as_ref().map(|captions| check_captions(captions, problems));
    let pairs = pipeline.pairs.as_ref().map(|pairs| check_pairs(pairs, pipeline.images.as_ref(), problems));
    let images = pipeline.images.as_ref().map(|images| {
        problems.refuse_if(images.shards.is_empty(), "images.shards", "is required: name at least one file or glob");
        let RawImages { shards, format, image_column, url_column } = images;
        let columns = ImageColumnNames { image: non_empty(image_column), url: non_empty(url_column) };
        ImagesConfig { shards: shards.clone(), format: *format, columns }
    });
    let rows = pipeline.chunks.rows;
    problems.refuse_if(!(1..=1_000_000).contains(&rows), "chunks.rows", format!("`{rows}` must be from 1 to 1000000"));
    ImageSections {
        sample: pipeline.sample.as_ref().map(|sample| check_sample(sample, problems)),
        catalog: captions.zip(pairs).map(|(captions, pairs)| CatalogConfig { captions, pairs }),
        images,
        preprocess: check_preprocess(&pipeline.preprocess, problems),
        chunks: ChunksConfig { rows, compression: pipeline.chunks.compression },
        model: pipeline.model.as_ref().map(|model| {
            if model.features == FeatureOrigin::Published {
                check_published(pipeline, model, problems)
            } else {
                check_model(model, problems)
            }
        }),
    }
}

fn check_sample(sample: &RawSample, problems: &mut Problems) -> SampleConfig {
    let RawSample { out, train_images, test_images, seed } = sample.clone();
    problems.refuse_if(out.is_empty(), "sample.out", "is required: name the directory for the corpus");
    problems.refuse_if(
        !(40..=1_000_000).contains(&train_images),
        "sample.train_images",
        format!("`{train_images}` must be from 40 to 1000000"),
    );
    problems.refuse_if(
        !(1..=1_000_000).contains(&test_images),
        "sample.test_images",
        format!("`{test_images}` must be from 1 to 1000000"),
    );
    SampleConfig { out, train_images, test_images, seed }
}

fn check_captions(captions: &RawCaptions, problems: &mut Problems) -> CaptionsConfig {
    let RawCaptions { list, classes, match_rule } = captions;
    problems.refuse_if(
        *classes == ClassSource::List && list.is_empty(),
        "captions.list",
        "is required with `classes = \"list\"`: name the CSV file of captions",
    );
    CaptionsConfig { list: non_empty(list), classes: *classes, match_rule: *match_rule }
}

fn check_pairs(pairs: &RawPairs, images: Option<&RawImages>, problems: &mut Problems) -> PairsConfig {
    let RawPairs { shards, format, url_column, caption_column, language_column, folder_captions, languages } =
        pairs.clone();
    let (shards, format) = match images {
        // The files of images hold the captions too.
        Some(images) if shards.is_empty() && format == PairsFormat::Auto => {
            (images.shards.clone(), pairs_format(images.format))
        }
        Some(images) if shards.is_empty() => (images.shards.clone(), format),
        _ => (shards, format),
    };
    problems.refuse_if(
        shards.is_empty(),
        "pairs.shards",
        "is required: name at least one file or glob, or images that hold captions in `images.shards`",
    );
    PairsConfig {
        shards,
        format,
        url_column: non_empty(&url_column),
        caption_column: non_empty(&caption_column),
        language_column: non_empty(&language_column),
        folder_captions,
        languages,
    }
}

/// Returns the format of captions in files of images.
fn pairs_format(images: ImageFormat) -> PairsFormat {
    match images {
        ImageFormat::Auto => PairsFormat::Auto,
        ImageFormat::Tsv => PairsFormat::Tsv,
        ImageFormat::Parquet => PairsFormat::Parquet,
        ImageFormat::Jsonl => PairsFormat::Jsonl,
        ImageFormat::WebDataset => PairsFormat::WebDataset,
        ImageFormat::Folder => PairsFormat::Folder,
    }
}

fn check_preprocess(preprocess: &RawPreprocess, problems: &mut Problems) -> PreprocessConfig {
    let RawPreprocess { size_px, resample, alpha, max_encoded, max_pixels } = *preprocess;
    if let Some(size) = size_px {
        problems.refuse_if(
            !(8..=4096).contains(&size),
            "preprocess.size_px",
            format!("`{size}` must be from 8 to 4096"),
        );
    }
    problems.refuse_if(
        !(1 << 10..=1 << 30).contains(&max_encoded.0),
        "preprocess.max_encoded",
        format!("`{max_encoded}` must be from 1 KiB to 1 GiB"),
    );
    problems.refuse_if(
        !(1..=4_000_000_000).contains(&max_pixels),
        "preprocess.max_pixels",
        format!("`{max_pixels}` must be from 1 to 4000000000"),
    );
    PreprocessConfig { size_px, resample, alpha, max_encoded, max_pixels }
}

fn check_model(model: &RawModel, problems: &mut Problems) -> ModelConfig {
    let RawModel { checkpoint, precision, layer, pool, feature_dim, features: _ } = model.clone();
    check_checkpoint("model.checkpoint", &checkpoint, problems);
    problems.refuse_if(
        feature_dim.is_some(),
        "model.feature_dim",
        "goes with `features = \"published\"` alone; a checkpoint has its own: remove it",
    );
    let layers = layer.0;
    problems.refuse_if(
        layers.is_empty() || layers.len() > MAX_LAYERS,
        "model.layer",
        format!("has {} numbers; it must have from 1 to {MAX_LAYERS}", layers.len()),
    );
    if let Some(layer) = layers.iter().enumerate().find(|(at, layer)| layers[..*at].contains(layer)) {
        problems.refuse_if(true, "model.layer", format!("names block `{}` twice", layer.1));
    }
    ModelConfig { checkpoint, published_dim: None, precision, layers, pool }
}

/// Checks a model whose features are published, and all that it cannot go with.
fn check_published(pipeline: &RawPipeline, model: &RawModel, problems: &mut Problems) -> ModelConfig {
    const PUBLISHED: &str = "`model.features = \"published\"`";
    let default = RawModel::default();
    let mut refuse = |bad: bool, key: &str, why: &str| {
        problems.refuse_if(bad, key, format!("does not go with {PUBLISHED}, {why}: remove it"));
    };
    refuse(!model.checkpoint.is_empty(), "model.checkpoint", "which takes its place");
    refuse(model.layer != default.layer, "model.layer", "which has no blocks");
    let paired_head = pipeline.head.kind == HeadKind::Paired;
    let paired_text = pipeline.text.as_ref().is_some_and(|text| text.encoder == PAIRED_ENCODER);
    // A paired text tower sets the pooling.
    refuse(model.pool != default.pool && !paired_head && !paired_text, "model.pool", "which has no tokens");
    refuse(pipeline.train.as_ref().is_some_and(|train| train.views > 0), "train.views", "since no image is decoded");
    let formats = [
        ("images.format", pipeline.images.as_ref().map(|images| images.format)),
        ("predict.format", pipeline.predict.as_ref().map(|predict| predict.format)),
    ];
    for (key, format) in formats {
        let other = format.is_some_and(|format| !matches!(format, ImageFormat::Auto | ImageFormat::Tsv));
        refuse(other, key, "whose files are rows of text (`tsv`)");
    }
    let no_tower = format!("`paired` does not go with {PUBLISHED}, which has no text tower: name a text encoder");
    problems.refuse_if(paired_head, "head.kind", no_tower.clone());
    problems.refuse_if(paired_text && !paired_head, "text.encoder", no_tower);
    let dim = model.feature_dim.unwrap_or(PUBLISHED_DIM);
    problems.refuse_if(!(1..=65_536).contains(&dim), "model.feature_dim", format!("`{dim}` must be from 1 to 65536"));
    let RawModel { precision, layer, pool, .. } = model.clone();
    ModelConfig { checkpoint: String::new(), published_dim: Some(dim), precision, layers: layer.0, pool }
}
