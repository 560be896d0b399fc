//! The checked configuration, which the rest of the program relies on.

use super::raw::{RawMachine, RawPipeline};
use super::stage::{caption_keys, stage_keys};
use super::validate::caption::check_caption;
use super::validate::head::{check_head, set_paired_defaults};
use super::validate::images::check_images;
use super::validate::machine::check_machine;
use super::validate::predict::{check_output, check_predict};
use super::validate::train::check_train;
use super::validate::{Problems, check_paths, check_stages};
use super::{
    CaptionConfig, CatalogConfig, ChunksConfig, ConfigError, DeviceConfig, HeadConfig, ImagesConfig, LimitsConfig,
    MachineConfig, MachineFile, ModelConfig, PipelineFile, PredictConfig, PreprocessConfig, Problem, SampleConfig,
    Stage, StageKeys, StoreConfig, StoredPipeline, TextConfig, TrainConfig,
};
use crate::types::ValidationSplit;

/// Differences of a ranking on the command line from the pipeline file; absent or empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdHocRanking {
    /// File of captions to rank.
    pub captions: Option<String>,
    /// File of the ranked captions, inside `run.dir`.
    pub output: Option<String>,
    /// Globs of the images.
    pub images: Vec<String>,
    /// File of the ids.
    pub ids: Option<String>,
    /// File of the right captions.
    pub truth: Option<String>,
}

/// Differences of the captions on the command line from `[caption]`; absent or empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdHocCaptions {
    /// Globs of the images.
    pub images: Vec<String>,
    /// File of the ids.
    pub ids: Option<String>,
    /// File of the captions, inside `run.dir`.
    pub output: Option<String>,
    /// File of the right captions.
    pub references: Option<String>,
}

/// Hashes names with FNV-1a, so that the same names always give the same number.
fn hash_names<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    let bytes = names.flat_map(|name| name.bytes().chain([0]));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A configuration in which every value can work and every default is filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    sample: Option<SampleConfig>,
    catalog: Option<CatalogConfig>,
    images: Option<ImagesConfig>,
    preprocess: PreprocessConfig,
    chunks: ChunksConfig,
    model: Option<ModelConfig>,
    head: HeadConfig,
    train: Option<TrainConfig>,
    predict: Option<PredictConfig>,
    caption: Option<CaptionConfig>,
    machine: MachineConfig,
    /// The pipeline file that the sections were made from, with defaults filled in. Fingerprints and `run.toml` come
    /// from it.
    source: RawPipeline,
    /// The machine file, with defaults filled in.
    machine_source: RawMachine,
    /// File of the ranked captions, where it is not `predict.output`.
    output: Option<String>,
    /// True if the command line asks for another ranking than the file does.
    ad_hoc: bool,
}

impl RunConfig {
    /// Checks both files together.
    ///
    /// # Errors
    /// Lists every value that cannot work; nothing is clamped.
    pub fn check(pipeline: PipelineFile, machine: &MachineFile) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let checked = Self::check_pipeline(pipeline.0, &mut problems);
        let machine_source = machine.raw.clone();
        let machine = check_machine(machine, &mut problems);
        problems.into_result(Self { machine, machine_source, ..checked })
    }

    /// Checks a pipeline file. The result counts only if no problem was added; its machine is a placeholder.
    fn check_pipeline(mut source: RawPipeline, problems: &mut Problems) -> Self {
        set_paired_defaults(&mut source);
        check_stages(&source, problems);
        check_paths(&source, problems);
        let images = check_images(&source, problems);
        let head = check_head(&source, problems);
        let layers = source.model.as_ref().map_or(1, |model| model.layer.0.len());
        let train = source.train.as_mut().map(|train| check_train(train, &source.head, layers, problems));
        let predict = source.predict.as_ref().map(|predict| check_predict(predict, problems));
        Self {
            sample: images.sample,
            catalog: images.catalog,
            images: images.images,
            preprocess: images.preprocess,
            chunks: images.chunks,
            model: images.model,
            head,
            train,
            predict,
            caption: check_caption(&source, problems),
            machine: MachineConfig::default(),
            source,
            machine_source: RawMachine::default(),
            output: None,
            ad_hoc: false,
        }
    }

    /// Ranks other captions, or for other images, or writes the ranking to another file of the run directory. The features
    /// of the same images and ids are shared by all rankings.
    ///
    /// # Errors
    /// When the pipeline has no `[predict]`, or a value cannot work.
    pub fn rank(self, ranking: AdHocRanking) -> Result<Self, ConfigError> {
        let Self { mut source, machine, machine_source, .. } = self;
        let AdHocRanking { captions, output, images, ids, truth } = ranking;
        let Some(predict) = &mut source.predict else {
            return Err(ConfigError(vec![Problem::new("predict", "is required to rank captions")]));
        };
        let mut problems = Problems::default();
        let other_output = output.as_ref().is_some_and(|output| *output != predict.output);
        let (other_list, other_images) = (captions.is_some(), !images.is_empty() || ids.is_some());
        if (other_list || other_images) && !other_output {
            // Otherwise another ranking would replace the submission.
            let what = format!(
                "`{}` is the submission of the run: name another file for the ranking of {}, with `--output NAME.csv`",
                predict.output,
                if other_list { "another list" } else { "other images" }
            );
            return Err(ConfigError(vec![Problem::new("predict.output", what)]));
        }
        if let Some(captions) = captions {
            predict.captions = captions;
        }
        if !images.is_empty() {
            predict.images = images;
            // Ids and truth of the pipeline file belong to its own images.
            predict.ids.clear();
            predict.truth.clear();
        }
        if let Some(ids) = ids {
            predict.ids = ids;
        }
        if let Some(truth) = truth {
            predict.truth = truth;
        }
        if other_images {
            // Features are named after `predict.output`. Those of other images have a name of their own.
            let names = predict.images.iter().chain([&predict.ids]);
            predict.output = format!("images-{:08x}.csv", hash_names(names.map(String::as_str)));
        }
        if let Some(output) = &output {
            check_output(output, &mut problems);
        }
        let checked = Self::check_pipeline(source, &mut problems);
        problems.into_result(Self { machine, machine_source, output, ad_hoc: other_output, ..checked })
    }

    /// Captions other images, or writes the captions to another file of the run directory.
    ///
    /// # Errors
    /// When the pipeline has no `[caption]`, or a value cannot work.
    pub fn caption_with(self, captions: AdHocCaptions) -> Result<Self, ConfigError> {
        let Self { mut source, machine, machine_source, .. } = self;
        let Some(caption) = &mut source.caption else {
            return Err(ConfigError(vec![Problem::new("caption", "is required to write captions: name a checkpoint")]));
        };
        if !captions.images.is_empty() {
            // Chunks, report and ranking are named after the stem.
            let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned();
            let is_named = captions.output.as_ref().is_some_and(|output| stem(output) != stem(&caption.output));
            if !is_named {
                let what = format!(
                    "`{}` holds the captions of the pipeline's images: name another file for those of other images, with \
                     `--output NAME.csv`",
                    caption.output
                );
                return Err(ConfigError(vec![Problem::new("caption.output", what)]));
            }
            caption.images = captions.images;
            // Ids and references of the pipeline file belong to its own images.
            caption.ids.clear();
            caption.references.clear();
            if let Some(predict) = &mut source.predict {
                predict.truth.clear();
            }
        }
        let replace = |to: &mut String, value: Option<String>| value.into_iter().for_each(|value| *to = value);
        replace(&mut caption.ids, captions.ids);
        replace(&mut caption.output, captions.output);
        replace(&mut caption.references, captions.references);
        let mut problems = Problems::default();
        let checked = Self::check_pipeline(source, &mut problems);
        problems.into_result(Self { machine, machine_source, ..checked })
    }

    /// Tells whether the configuration includes the stage.
    pub fn runs(&self, stage: Stage) -> bool {
        match stage {
            Stage::Catalog => self.catalog.is_some(),
            Stage::Stream => self.images.is_some(),
            Stage::Text => self.train.is_some() && self.head.is_text(),
            Stage::Train => self.train.is_some(),
            Stage::Predict => self.predict.is_some(),
        }
    }

    /// Directory for everything durable that the run writes: a path or an `s3://` URL (`run.dir`).
    pub fn run_dir(&self) -> &str {
        &self.source.run.dir
    }

    /// Seed of initial weights, training order and validation split (`run.seed`).
    pub fn seed(&self) -> u64 {
        self.source.run.seed
    }

    /// Synthetic corpus to render first (`[sample]`).
    pub fn sample(&self) -> Option<&SampleConfig> {
        self.sample.as_ref()
    }

    /// Classes and labels (`[captions]` and `[pairs]`, which come together).
    pub fn catalog(&self) -> Option<&CatalogConfig> {
        self.catalog.as_ref()
    }

    /// Image shards to stream (`[images]`).
    pub fn images(&self) -> Option<&ImagesConfig> {
        self.images.as_ref()
    }

    /// Decoding of images (`[preprocess]`).
    pub fn preprocess(&self) -> &PreprocessConfig {
        &self.preprocess
    }

    /// Size and format of chunks (`[chunks]`).
    pub fn chunks(&self) -> &ChunksConfig {
        &self.chunks
    }

    /// The frozen backbone (`[model]`); without it the pixel chunks are the product.
    pub fn model(&self) -> Option<&ModelConfig> {
        self.model.as_ref()
    }

    /// Values of a published feature; `None` if a checkpoint computes the features, or there are none.
    pub fn published_dim(&self) -> Option<u32> {
        self.model.as_ref()?.published_dim
    }

    /// Kind of head that is trained on the features, or predicts (`[head]` and `[text]`).
    pub fn head(&self) -> &HeadConfig {
        &self.head
    }

    /// Text encoder of a text head or of a paired head (`[text]`).
    pub fn text(&self) -> Option<&TextConfig> {
        match &self.head {
            HeadConfig::Classes => None,
            HeadConfig::Text { encoder, .. } | HeadConfig::Paired { encoder } => Some(encoder),
        }
    }

    /// Training of the head (`[train]`). It comes with a model, images and a catalog.
    pub fn train(&self) -> Option<&TrainConfig> {
        self.train.as_ref()
    }

    /// Ranking of captions for the test images (`[predict]`). It comes with a model.
    pub fn predict(&self) -> Option<&PredictConfig> {
        self.predict.as_ref()
    }

    /// Captions that a captioning model writes (`[caption]`).
    pub fn caption(&self) -> Option<&CaptionConfig> {
        self.caption.as_ref()
    }

    /// The machine file.
    pub fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    /// Memory, disk and threads that the run may use (`[limits]`).
    pub fn limits(&self) -> &LimitsConfig {
        &self.machine.limits
    }

    /// Device of the model (`[device]`).
    pub fn device(&self) -> &DeviceConfig {
        &self.machine.device
    }

    /// Access to object stores (`[store]`).
    pub fn store(&self) -> &StoreConfig {
        &self.machine.store
    }

    /// File of the ranked captions, inside `run.dir`; empty without `[predict]`.
    pub fn output(&self) -> &str {
        let predict = self.predict.as_ref();
        self.output.as_deref().or(predict.map(|predict| predict.output.as_str())).unwrap_or_default()
    }

    /// Tells whether the command line asks for another ranking than the pipeline file does.
    pub fn is_ad_hoc(&self) -> bool {
        self.ad_hoc
    }

    /// Returns the machine file with all defaults filled in, for a report.
    pub fn stored_machine(&self) -> serde_json::Value {
        // Numbers and strings serialise without error.
        serde_json::to_value(&self.machine_source).unwrap_or_default()
    }

    /// Random crops of each training image; 0 where images stay whole.
    pub fn views(&self) -> u32 {
        let train = self.train.as_ref().filter(|_| self.model.is_some());
        train.map_or(0, |train| train.views)
    }

    /// Images held out from training; none without `[train]`.
    pub fn validation_split(&self) -> ValidationSplit {
        let fraction = self.train.as_ref().map_or(0.0, |train| train.validation_fraction);
        ValidationSplit { seed: self.seed(), fraction }
    }

    /// Upper bound on the images of a chunk, all views counted.
    pub fn chunk_images(&self) -> u32 {
        self.chunks.rows.saturating_mul(self.views().max(1))
    }

    /// Returns the keys that the artefacts of `stage` itself depend on. Those of the stages upstream come on top.
    ///
    /// Names of inputs are left out: artefacts depend on the content of a file, which the caller adds, and not on its
    /// path.
    pub fn keys(&self, stage: Stage) -> StageKeys {
        stage_keys(&self.source, stage)
    }

    /// Returns the keys that generated captions depend on, beside the checkpoint and its settings of generation.
    pub fn caption_keys(&self) -> StageKeys {
        caption_keys(&self.source)
    }

    /// Returns the pipeline with all defaults filled in, as `run.toml` stores it.
    pub fn stored(&self) -> StoredPipeline {
        StoredPipeline(self.source.clone())
    }
}
