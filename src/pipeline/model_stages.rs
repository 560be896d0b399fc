//! The stages that need a model: features, training, prediction.

use super::{
    Arc, Journal, Layout, PipelineError, Run, Stage, catalog, checkpoints, features, prediction, training, worker,
};
use crate::catalog::ImageFilter;

use super::features::Thumbnails;
use super::images::{self, StreamJob, Views};
use super::manifest::add_inputs;
use super::observe::report::PredictionReport;
use super::plan::StageInput as Ready;
use super::resolve::{Backbone, require_captions};
use super::text_prediction::Listed;
use super::text_training::TextGoal;
use crate::config::{HeadConfig, PredictConfig};
use crate::objects::Object;

/// What a prediction reads.
pub(super) struct Asking {
    pub(super) ready: Ready,
    pub(super) asked: prediction::Asked,
    /// With a text head, the list that is to be ranked.
    pub(super) listed: Option<Listed>,
}

impl Run {
    /// Opens the device, where a stage needs one, and says which it is.
    pub(super) async fn open_device(&mut self) -> Result<Option<Arc<worker::Device>>, PipelineError> {
        let (Some(chosen), Some(backbone)) = (&self.model.device, &self.model.backbone) else { return Ok(None) };
        let bytes =
            images::stream_bytes(&self.model.spec, self.ctx.pool.width(), u64::from(self.ctx.config.chunks().rows));
        let load = worker::Load {
            parameters: backbone.checkpoint.parameters(),
            activation_bytes: backbone.checkpoint.activation_bytes(backbone.options.size_px),
            pixel_bytes: self.model.spec.pixel_bytes(),
            host_bytes: bytes.left_for_model(self.ctx.config.machine().limits.memory.0),
            precision: backbone.shape.precision,
        };
        let batch_size = self.ctx.config.machine().device.batch_size;
        let device = worker::open(chosen, load, batch_size, &self.ctx.scratch_path()).await?;
        tracing::info!(device = %chosen, batch = device.batch_rows, "the model runs");
        self.report.device = Some(chosen.to_string());
        Ok(Some(Arc::new(device)))
    }

    pub(super) fn backbone(&self) -> Result<&Backbone, PipelineError> {
        self.model.backbone()
    }

    async fn stream_features(
        &self,
        job: StreamJob,
        layout: Layout,
        name: &str,
        device: &Arc<worker::Device>,
        thumbnails: Option<Thumbnails>,
    ) -> Result<features::FeaturesOutput, PipelineError> {
        let backbone = self.backbone()?;
        features::run(&self.ctx, features::FeaturesInput { job, layout, name, backbone, device, thumbnails }).await
    }

    /// Streams the training images to features.
    pub(super) async fn features(
        &mut self,
        shards: Vec<Object>,
        filter: ImageFilter,
        generation: &str,
        device: &Arc<worker::Device>,
    ) -> Result<Journal, PipelineError> {
        let mut job = StreamJob::new(&self.ctx, "images", &self.model.spec, shards, filter, generation);
        job.views = Views::from_config(&self.ctx.config);
        let (split, side_px) = (self.ctx.config.validation_split(), self.model.spec.geometry.output_px());
        let thumbnails = (!split.is_empty()).then_some(Thumbnails { split, side_px });
        let output = self.stream_features(job, Layout::train("features"), "images", device, thumbnails).await?;
        self.report.images = Some(output.report);
        self.output("features", "features");
        Ok(output.journal)
    }

    pub(super) async fn train(
        &mut self,
        journal: Journal,
        generation: String,
        catalog: &catalog::Catalog,
        device: &Arc<worker::Device>,
    ) -> Result<(), PipelineError> {
        let classes = catalog.classes.len();
        let text = self.text_goal(catalog, device).await?;
        let Some(settings) = self.ctx.config.train().cloned() else { return Ok(()) };
        let seed = self.ctx.config.seed();
        if self.ctx.dir.is_remote() {
            let dim = self.backbone()?.shape.dim as u64;
            let checkpoint = match &text {
                // Three times the map, of which no layer is larger than this.
                Some(goal) => 12 * (dim + 1 + goal.hidden as u64) * (goal.hidden as u64 + goal.dim as u64 + 1),
                None => 8 * classes as u64 * (dim + 1),
            };
            let window = 2 * settings.shuffle_rows * (4 * dim + 1024);
            self.ctx.require_disk(
                checkpoint + window,
                "a checkpoint and the features on their way from the run directory",
            )?;
        }
        let job = training::TrainJob {
            directory: self.ctx.dir.clone(),
            journal,
            settings,
            seed,
            classes,
            text,
            shape: self.backbone()?.shape,
            memory_bytes: self.ctx.config.machine().limits.memory.0,
            generation,
            device: Arc::clone(device),
            stage_progress: self.ctx.progress.stage("train", "samples", 0),
            stop: self.ctx.shutdown.clone(),
            events: self.ctx.events.clone(),
        };
        self.report.training = training::run(job).await?;
        if self.report.training.is_some() {
            self.output("checkpoints", "checkpoints");
            self.output("training curve", training::PICTURE);
        } else {
            self.report.notes.push("no head was trained: no image has a label on the training side".to_owned());
        }
        Ok(())
    }

    /// What a text head is trained towards, once every caption of the training rows has its vector.
    async fn text_goal(
        &self,
        catalog: &catalog::Catalog,
        device: &Arc<worker::Device>,
    ) -> Result<Option<TextGoal>, PipelineError> {
        let HeadConfig::Text { hidden, .. } = *self.ctx.config.head() else { return Ok(None) };
        let dim = self.encoder()?.checkpoint.dim();
        // Before they are computed, which takes longest.
        self.enough_for_vectors(catalog.classes.len())?;
        let set = self.embed("captions", Arc::clone(&catalog.classes), device).await?;
        let store = Arc::new(self.text_store(set).await?);
        Ok(Some(TextGoal { store, dim, languages: Arc::clone(&catalog.languages), hidden: hidden as usize }))
    }

    /// Test images that make other features than the head was trained on are refused.
    async fn check_same_features(&self) -> Result<(), PipelineError> {
        let Some(record) = self.manifest.recorded(Stage::Stream.as_str()) else { return Ok(()) };
        let now = self.stream_keys(Stage::Predict, "predict.images", &[]).await?;
        let differs: Vec<&String> = record
            .keys
            .iter()
            .filter(|(key, _)| key.starts_with("model.") || key.starts_with("preprocess"))
            .filter(|(key, value)| now.get(*key) != Some(value))
            .map(|(key, _)| key)
            .collect();
        if differs.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = differs
            .iter()
            .map(|key| {
                let show = |value: Option<&String>| value.map_or("(absent)", String::as_str).to_owned();
                format!("  `{key}`: {} then, {} now", show(record.keys.get(*key)), show(now.get(*key)))
            })
            .collect();
        Err(PipelineError::Generation(format!(
            "the head in `{}` was trained on other features than these test images would get:\n{}\nset the keys back",
            self.ctx.dir.display(""),
            list.join("\n")
        )))
    }

    /// Reads the ids and lists the test images, so that what is wrong with them shows before anything runs.
    pub(super) async fn prepare_prediction(&mut self, alone: bool) -> Result<Option<Asking>, PipelineError> {
        let Some(settings) = self.ctx.config.predict().cloned() else { return Ok(None) };
        let store = &self.ctx.store;
        let asked = prediction::read_ids(store, &settings.ids).await?;
        let shards = store.list(&settings.images).await?;
        let ids = store.find(&settings.ids).await?;
        if let Some(truth) = &settings.truth {
            prediction::check_truth(store, truth).await?;
        }
        let is_text = self.ctx.config.head().is_text();
        let listed = if is_text { self.listed(&settings).await? } else { None };
        if is_text && (alone || !self.ctx.config.runs(Stage::Train)) {
            self.check_same_encoder()?;
        }
        if is_text && settings.blend.is_some() {
            // Looked at now, and read again when it is needed, which may be days later.
            self.blended(&settings).await?;
        }
        if let Some(listed) = &listed {
            require_captions(listed.captions.len(), settings.top_k)?;
        }
        if alone || !self.ctx.config.runs(Stage::Stream) {
            self.check_same_features().await?;
            let own = catalog::load_captions(&self.ctx.dir)?;
            if listed.is_none() {
                require_captions(own.len(), settings.top_k)?;
            }
        } else if listed.is_some() {
            // The classes are not what is ranked.
        } else if self.manifest.recorded(Stage::Catalog.as_str()).is_some()
            && let Ok(captions) = catalog::load_captions(&self.ctx.dir)
        {
            // Without a complete catalog the number is known, and looked at, as soon as it is built.
            require_captions(captions.len(), settings.top_k)?;
        }
        let mut keys = self.stream_keys(Stage::Predict, "predict.images", &shards).await?;
        add_inputs(&self.ctx.store, &mut keys, "predict.ids", &[ids]).await?;
        let record = format!("{} {}", Stage::Predict.as_str(), Self::stem(&settings));
        let generation = self.manifest.propose(&record, Stage::Predict, keys, &[]);
        Ok(Some(Asking { ready: Ready { shards, generation }, asked, listed }))
    }

    /// What the files of a prediction are named after.
    pub(super) fn stem(settings: &PredictConfig) -> String {
        settings.output.trim_end_matches(".csv").to_owned()
    }

    pub(super) async fn predict(&mut self, asking: Asking, device: &Arc<worker::Device>) -> Result<(), PipelineError> {
        let Some(settings) = self.ctx.config.predict().cloned() else { return Ok(()) };
        let Asking { ready: Ready { shards, generation }, asked, listed } = asking;
        let (stem, top_k) = (Self::stem(&settings), settings.top_k as usize);
        let is_text = self.ctx.config.head().is_text();
        // Millions of captions need not be held twice.
        let (own, captions) = if is_text {
            (catalog::RunCatalog::load(&self.ctx.dir)?, Vec::new())
        } else {
            (catalog::RunCatalog::default(), catalog::load_captions(&self.ctx.dir)?)
        };
        let listed = match listed {
            None if is_text => Some(Self::own_listed(&own)),
            other => other,
        };
        if let Some(listed) = &listed {
            self.enough_memory(listed.captions.len())?;
        }
        let picked = checkpoints::pick(&self.ctx.dir, settings.checkpoint)?;
        let (mut tally, mut text) = (crate::chunk::Tally::default(), None);
        let ranking = if let Some(picked) = &picked {
            // Another kind of head is refused before hours of features.
            let head = if is_text {
                self.fitting(&picked.text_head()?)?;
                None
            } else {
                Some(picked.head()?)
            };
            let wanted = ImageFilter::Urls(Arc::clone(&asked.urls));
            let job = StreamJob::new(&self.ctx, "test images", &self.model.spec, shards, wanted, &generation);
            let output = self.stream_features(job, Layout::predict(&stem), &stem, device, None).await?;
            let journal = output.journal;
            tally = output.report.tally;
            if let (None, Some(listed)) = (&head, &listed) {
                let ranked = self.rank_text(&settings, picked, &journal, &asked, listed, &own, device).await?;
                text = Some(ranked.1);
                ranked.0
            } else if let Some(head) = head {
                let stage_progress = self.ctx.progress.stage("rank", "images", 0);
                let (stop, queries) = (&self.ctx.shutdown, prediction::Queries::Features);
                let kept = self.ctx.scratch_path().join(format!("{stem}.ranks"));
                let ranking =
                    prediction::rank(&journal, head, &asked.urls, top_k, kept, device, &stage_progress, stop, &queries)
                        .await?;
                self.ctx.events.stage_finished(&stage_progress);
                ranking
            } else {
                return Err(PipelineError::Internal("there are no captions to rank".to_owned()));
            }
        } else {
            let instead = if is_text {
                "the first captions of the list"
            } else {
                "the most frequent captions (the first of the list where no image has a label)"
            };
            self.report.notes.push(format!("the run has no trained head, so every id gets {instead}"));
            prediction::Ranking::empty(asked.urls.len(), top_k)
        };
        let (store, directory) = (&self.ctx.store, &self.ctx.dir);
        let output = self.ctx.config.output().to_owned();
        let (without, ranked) = if let Some(listed) = &listed {
            let text = |class| listed.captions.text(class).unwrap_or_default();
            let fallback: Vec<u32> = (0..top_k as u32).collect();
            let write = prediction::write(store, directory, &settings, &asked.urls, &ranking, &output, text, &fallback);
            (write.await?, listed.captions.len())
        } else {
            let text = |class: u32| &*captions[class as usize].text;
            let fallback = prediction::most_frequent(&captions, top_k);
            let write = prediction::write(store, directory, &settings, &asked.urls, &ranking, &output, text, &fallback);
            (write.await?, captions.len())
        };
        let scores = match &settings.truth {
            None => None,
            Some(truth) => Some(prediction::score(store, directory, truth, &output, &asked, ranked as u64).await?),
        };
        self.report.prediction = Some(PredictionReport {
            ids: asked.ids,
            images: asked.urls.len() as u64,
            ids_without_image: without,
            tally,
            checkpoint_step: picked.as_ref().map(|picked| picked.step),
            trial: picked.map_or(0, |picked| picked.trial),
            scores,
            text,
        });
        self.output("submission", &output);
        Ok(())
    }
}
