//! The stages that need a model: features, training, prediction.

use super::{
    Arc, Backbone, ImageFilter, Journal, Layout, PipelineError, Ready, Run, Stage, StreamJob, add_inputs, catalog,
    checkpoints, enough_captions, features, prediction, scratch_path, stream, training, worker,
};
use crate::config::bytes::chunk_disk_bytes;
use crate::run_dir::LocalDirectory;

use super::forward::Thumbnails;
use super::report::PredictionReport;
use super::text_prediction::Listed;
use super::text_training::TextGoal;
use crate::config::{HeadConfig, PredictConfig};

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
        let (Some(chosen), Some(backbone)) = (&self.chosen, &self.backbone) else { return Ok(None) };
        let bytes = stream::stream_bytes(&self.spec, self.machine.pool.width(), u64::from(self.plan.chunks().rows));
        let load = worker::Load {
            parameters: backbone.checkpoint.parameters(),
            activation_bytes: backbone.checkpoint.activation_bytes(backbone.options.size_px),
            pixel_bytes: self.spec.pixel_bytes(),
            host_bytes: bytes.left_for_model(self.plan.machine().limits.memory.0),
            precision: backbone.shape.precision,
        };
        let batch_size = self.plan.machine().device.batch_size;
        let device = worker::open(chosen, load, batch_size, &scratch_path(&self.plan)).await?;
        tracing::info!(device = %chosen, batch = device.batch_rows, "the model runs");
        self.report.device = Some(chosen.to_string());
        Ok(Some(Arc::new(device)))
    }

    pub(super) fn backbone(&self) -> Result<&Backbone, PipelineError> {
        self.backbone
            .as_ref()
            .ok_or_else(|| PipelineError::Internal("a stage needs a model that the plan has not".to_owned()))
    }

    /// The ring's part of `limits.disk`: what is left beside the features of the chunk in hand, which are kept batch by batch
    /// where it takes long, and once more on their way to S3.
    fn ring_bytes(&self, shape: features::FeatureShape) -> Result<u64, PipelineError> {
        let rows = self.plan.chunk_images();
        let kept = u64::from(rows) * (4 * shape.dim as u64 + 24);
        let staged = u64::from(rows) * (4 * shape.dim as u64 + 1024) + (1 << 20);
        let beside = kept + if self.directory.is_remote() { staged } else { 0 };
        let least = 2 * chunk_disk_bytes(rows, self.spec.geometry.output_px()) + beside;
        self.enough_disk(least, "two chunks of pixels and the features of one")?;
        Ok(self.plan.machine().limits.disk.0 - beside)
    }

    async fn stream_features(
        &self,
        job: StreamJob,
        layout: Layout,
        name: &str,
        device: &Arc<worker::Device>,
        thumbnails: Option<Thumbnails>,
    ) -> Result<Journal, PipelineError> {
        let backbone = self.backbone()?;
        let (checkpoint, options) = (backbone.checkpoint.clone(), backbone.options);
        device.call(move |worker| worker.load_backbone(&checkpoint, &options)).await?;
        let rings = LocalDirectory::create(scratch_path(&self.plan))?;
        let scratch = LocalDirectory::create(rings.path(name))?;
        let places = features::Places {
            run: self.directory.clone(),
            layout,
            scratch,
            disk_bytes: self.ring_bytes(backbone.shape)?,
            thumbnails,
        };
        let rows = Arc::clone(&job.stage_progress);
        let stage_progress = self.machine.registry.stage(format!("features ({name})"), "images", 0);
        let journal =
            features::run(job, self.machine.clone(), places, backbone.shape, device, Arc::clone(&stage_progress))
                .await?;
        self.machine.events.finished(&rows);
        self.machine.events.finished(&stage_progress);
        // Empty now; another process of this run may have none to clean.
        rings.remove(name)?;
        Ok(journal)
    }

    /// Streams the training images to features.
    pub(super) async fn features(
        &mut self,
        catalog: Option<&catalog::Catalog>,
        ready: Ready,
        device: &Arc<worker::Device>,
    ) -> Result<Journal, PipelineError> {
        let Ready { shards, generation } = ready;
        let mut job = self.stream_job("images", shards, Self::train_wanted(catalog), &generation);
        job.views = stream::Views::of_plan(&self.plan);
        let (split, side_px) = (self.plan.validation_split(), self.spec.geometry.output_px());
        let thumbnails = (!split.is_empty()).then_some(Thumbnails { split, side_px });
        let shards = Arc::clone(&job.shards);
        let journal = self.stream_features(job, Layout::train("features"), "images", device, thumbnails).await?;
        self.report.images = Some(self.stream_report(&journal, &shards)?);
        self.output("features", "features");
        Ok(journal)
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
        let Some(settings) = self.plan.train().cloned() else { return Ok(()) };
        let seed = self.plan.seed();
        if self.directory.is_remote() {
            let dim = self.backbone()?.shape.dim as u64;
            let checkpoint = match &text {
                // Three times the map, of which no layer is larger than this.
                Some(goal) => 12 * (dim + 1 + goal.hidden as u64) * (goal.hidden as u64 + goal.dim as u64 + 1),
                None => 8 * classes as u64 * (dim + 1),
            };
            let window = 2 * settings.shuffle_rows * (4 * dim + 1024);
            self.enough_disk(checkpoint + window, "a checkpoint and the features on their way from the run directory")?;
        }
        let job = training::TrainJob {
            directory: self.directory.clone(),
            journal,
            settings,
            seed,
            classes,
            text,
            shape: self.backbone()?.shape,
            memory_bytes: self.plan.machine().limits.memory.0,
            generation,
            device: Arc::clone(device),
            stage_progress: self.machine.registry.stage("train", "samples", 0),
            stop: self.machine.stop.clone(),
            events: self.machine.events.clone(),
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
        let HeadConfig::Text { hidden, .. } = *self.plan.head() else { return Ok(None) };
        let dim = self.encoder()?.checkpoint.dim();
        // Before they are computed, which takes longest.
        self.enough_for_vectors(catalog.classes.len())?;
        let set = self.embed("captions", Arc::clone(&catalog.classes), device).await?;
        let store = Arc::new(self.text_store(set).await?);
        Ok(Some(TextGoal { store, dim, languages: Arc::clone(&catalog.languages), hidden: hidden as usize }))
    }

    /// Test images that make other features than the head was trained on are refused.
    async fn check_same_features(&self) -> Result<(), PipelineError> {
        let Some(record) = self.generations.recorded(Stage::Stream.as_str()) else { return Ok(()) };
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
            self.directory.display(""),
            list.join("\n")
        )))
    }

    /// Reads the ids and lists the test images, so that what is wrong with them shows before anything runs.
    pub(super) async fn prepare_prediction(&mut self, alone: bool) -> Result<Option<Asking>, PipelineError> {
        let Some(settings) = self.plan.predict().cloned() else { return Ok(None) };
        let store = &self.machine.store;
        let asked = prediction::read_ids(store, &settings.ids).await?;
        let shards = store.list(&settings.images).await?;
        let ids = store.find(&settings.ids).await?;
        if let Some(truth) = &settings.truth {
            prediction::check_truth(store, truth).await?;
        }
        let is_text = self.plan.head().is_text();
        let listed = if is_text { self.listed(&settings).await? } else { None };
        if is_text && (alone || !self.plan.runs(Stage::Train)) {
            self.check_same_encoder()?;
        }
        if is_text && settings.blend.is_some() {
            // Looked at now, and read again when it is needed, which may be days later.
            self.blended(&settings).await?;
        }
        if let Some(listed) = &listed {
            enough_captions(listed.captions.len(), settings.top_k)?;
        }
        if alone || !self.plan.runs(Stage::Stream) {
            self.check_same_features().await?;
            let own = catalog::load_captions(&self.directory)?;
            if listed.is_none() {
                enough_captions(own.len(), settings.top_k)?;
            }
        } else if listed.is_some() {
            // The classes are not what is ranked.
        } else if self.generations.recorded(Stage::Catalog.as_str()).is_some()
            && let Ok(captions) = catalog::load_captions(&self.directory)
        {
            // Without a complete catalog the number is known, and looked at, as soon as it is built.
            enough_captions(captions.len(), settings.top_k)?;
        }
        let mut keys = self.stream_keys(Stage::Predict, "predict.images", &shards).await?;
        add_inputs(&self.machine.store, &mut keys, "predict.ids", &[ids]).await?;
        let record = format!("{} {}", Stage::Predict.as_str(), Self::stem(&settings));
        let generation = self.generations.propose(&record, Stage::Predict, keys, &[]);
        Ok(Some(Asking { ready: Ready { shards, generation }, asked, listed }))
    }

    /// What the files of a prediction are named after.
    pub(super) fn stem(settings: &PredictConfig) -> String {
        settings.output.trim_end_matches(".csv").to_owned()
    }

    pub(super) async fn predict(&mut self, asking: Asking, device: &Arc<worker::Device>) -> Result<(), PipelineError> {
        let Some(settings) = self.plan.predict().cloned() else { return Ok(()) };
        let Asking { ready: Ready { shards, generation }, asked, listed } = asking;
        let (stem, top_k) = (Self::stem(&settings), settings.top_k as usize);
        let is_text = self.plan.head().is_text();
        // Millions of captions need not be held twice.
        let (own, captions) = if is_text {
            (catalog::load_own(&self.directory)?, Vec::new())
        } else {
            (catalog::Own::default(), catalog::load_captions(&self.directory)?)
        };
        let listed = match listed {
            None if is_text => Some(Self::own_listed(&own)),
            other => other,
        };
        if let Some(listed) = &listed {
            self.enough_memory(listed.captions.len())?;
        }
        let picked = checkpoints::pick(&self.directory, settings.checkpoint)?;
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
            let job = self.stream_job("test images", shards, wanted, &generation);
            let shards = Arc::clone(&job.shards);
            let journal = self.stream_features(job, Layout::predict(&stem), &stem, device, None).await?;
            tally = self.stream_report(&journal, &shards)?.tally;
            device.tell(worker::DeviceWorker::unload_backbone).await?;
            if let (None, Some(listed)) = (&head, &listed) {
                let ranked = self.rank_text(&settings, picked, &journal, &asked, listed, &own, device).await?;
                text = Some(ranked.1);
                ranked.0
            } else if let Some(head) = head {
                let stage_progress = self.machine.registry.stage("rank", "images", 0);
                let (stop, queries) = (&self.machine.stop, prediction::Queries::Features);
                let kept = scratch_path(&self.plan).join(format!("{stem}.ranks"));
                let ranking =
                    prediction::rank(&journal, head, &asked.urls, top_k, kept, device, &stage_progress, stop, &queries)
                        .await?;
                self.machine.events.finished(&stage_progress);
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
        let (store, directory) = (&self.machine.store, &self.directory);
        let output = self.plan.output().to_owned();
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
