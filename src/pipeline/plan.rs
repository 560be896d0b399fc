//! [`Plan`]: the stages of one start, with their inputs and fingerprints.

use crate::config::Stage;
use crate::objects::Object;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::inputs::{ImageInput, PairInput, list_images, list_pairs};
use crate::pipeline::manifest::{Manifest, add_inputs};
use crate::pipeline::predict::{self, PreparedPrediction};
use crate::pipeline::resolve::ResolvedModel;
use crate::telemetry::ExpectedStage;
use crate::types::{PairsFormat, Part};

/// Stages that a command runs, and artefacts that it discards first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// Part of the shards to work on; `None` for the whole run.
    pub part: Option<Part>,
    /// End after the part, even if it was the last one.
    pub part_only: bool,
    /// Run only prediction, from the run's newest checkpoint.
    pub predict_only: bool,
    /// Discard the artefacts of this stage and of all later stages.
    pub from: Option<Stage>,
    /// Wait while another process works on the run directory.
    pub wait: bool,
}

/// Input of a stage that reads shards of some format.
#[derive(Clone)]
pub(crate) struct StageInput<F> {
    /// Format and columns.
    pub(crate) input: F,
    /// Shards in order.
    pub(crate) shards: Vec<Object>,
    /// Hash of everything that the artefacts of the stage depend on.
    pub(crate) generation: String,
}

/// Stages to run; `None` for each stage that does not run.
#[derive(Default)]
pub(crate) struct Plan {
    /// Classes and join index.
    pub(crate) catalog: Option<StageInput<PairInput>>,
    /// Pixel or feature chunks of the training images.
    pub(crate) images: Option<StageInput<ImageInput>>,
    /// Fingerprint of the heads to train.
    pub(crate) train: Option<String>,
    /// Ranking for the test images.
    pub(crate) predict: Option<PreparedPrediction>,
}

impl Plan {
    /// Lists all inputs and proposes the fingerprint of each stage to the manifest. Changes nothing on disk.
    ///
    /// # Errors
    /// When an input is missing or does not fit the configuration.
    pub(crate) async fn new(
        ctx: &RunContext,
        model: &ResolvedModel,
        manifest: &mut Manifest,
        request: Request,
    ) -> Result<Self, PipelineError> {
        let mut plan = Self::default();
        if !request.predict_only {
            plan.plan_training(ctx, model, manifest).await?;
        }
        plan.predict = predict::prepare(ctx, model, manifest, request.predict_only).await?;
        Ok(plan)
    }

    /// Returns the stages that show their progress, in order, for an estimate of the run's end.
    pub(crate) fn expected_stages(&self, ranks_captions: bool) -> Vec<ExpectedStage> {
        let bytes = |shards: &[Object]| shards.iter().map(|shard| shard.size).sum::<u64>();
        let stage = |name, image_bytes| ExpectedStage { name, image_bytes };
        let mut stages = Vec::new();
        stages.extend(self.catalog.as_ref().map(|_| stage("pairs", 0)));
        stages.extend(self.images.as_ref().map(|images| stage("images", bytes(&images.shards))));
        if self.train.is_some() {
            stages.extend(ranks_captions.then(|| stage("captions", 0)));
            stages.push(stage("train", 0));
        }
        stages.extend(self.predict.as_ref().map(|predict| stage("test images", bytes(&predict.shards))));
        stages
    }

    /// Plans all stages up to training.
    async fn plan_training(
        &mut self,
        ctx: &RunContext,
        model: &ResolvedModel,
        manifest: &mut Manifest,
    ) -> Result<(), PipelineError> {
        let RunContext { config, store, .. } = ctx;
        if let Some(catalog) = config.catalog() {
            let (input, shards) = list_pairs(store, &catalog.pairs).await?;
            let mut keys = config.keys(Stage::Catalog);
            if input.format != PairsFormat::Tsv {
                keys.insert("pairs.format".to_owned(), input.format.to_string());
            }
            add_inputs(store, &mut keys, "pairs.shards", &shards).await?;
            if let Some(list) = catalog.captions.class_list() {
                let list = store.find(list).await?;
                add_inputs(store, &mut keys, "captions.list", &[list]).await?;
            } else if let Some(then) = manifest.recorded_value(Stage::Catalog.as_str(), "captions.list (files)") {
                // A list that is only ranked decides nothing here. Earlier versions recorded it all the same, and their
                // artefacts stay valid under the fingerprint that they have.
                keys.insert("captions.list (files)".to_owned(), then);
            }
            let generation = manifest.propose(Stage::Catalog.as_str(), Stage::Catalog, keys, &[])?;
            self.catalog = Some(StageInput { input, shards, generation });
        }
        let catalog = self.catalog.as_ref().map(|catalog| catalog.generation.as_str());
        if let Some(images) = config.images() {
            let (input, shards) = list_images(store, &images.shards, images.format, &images.columns).await?;
            input.require_rows_of_numbers(config, "images.shards")?;
            let mut keys = model.stream_keys(config, Stage::Stream);
            input.add_key(&mut keys, "images.format");
            add_inputs(store, &mut keys, "images.shards", &shards).await?;
            let generation = manifest.propose(Stage::Stream.as_str(), Stage::Stream, keys, catalog.as_slice())?;
            self.images = Some(StageInput { input, shards, generation });
        }
        if let (true, Some(images)) = (config.runs(Stage::Train), &self.images) {
            let text = if config.runs(Stage::Text) {
                let keys = model.text_encoder()?.stage_keys(config);
                Some(manifest.propose(Stage::Text.as_str(), Stage::Text, keys, catalog.as_slice())?)
            } else {
                None
            };
            let upstream: Vec<&str> = std::iter::once(images.generation.as_str()).chain(text.as_deref()).collect();
            let keys = config.keys(Stage::Train);
            self.train = Some(manifest.propose(Stage::Train.as_str(), Stage::Train, keys, &upstream)?);
        }
        Ok(())
    }
}
