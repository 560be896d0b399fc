//! The state of a run between its stages. It shrinks as stages become functions over [`RunContext`].

use std::sync::Arc;

use crate::catalog::ImageFilter;
use crate::chunk::Tally;
use crate::chunk::journal::{Journal, Layout};
use crate::config::RunConfig;
use crate::config::bytes::product_disk_bytes;
use crate::config::plan::Stage;
use crate::objects::{Object, Store};
use crate::pipeline::catalog;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{self, DeviceWorker, LoadedBackbone, MemoryNeeds};
use crate::pipeline::error::PipelineError;
use crate::pipeline::events::Events;
use crate::pipeline::features::{FeatureTarget, Thumbnails, extract};
use crate::pipeline::manifest::{Manifest, add_inputs};
use crate::pipeline::partial::Partial;
use crate::pipeline::predict::{self, PredictInput, PreparedPrediction, TestFeatures, file_stem};
use crate::pipeline::report::{Report, StageRemarks, StreamReport, peak_memory_bytes};
use crate::pipeline::resolve::{ResolvedModel, enough_captions, workers};
use crate::pipeline::stream::{self, Sink, Start, StreamJob, seen_so_far};
use crate::pipeline::train::{self, TrainInput};
use crate::pipeline::{Prepared, Ready, Request};
use crate::run_dir::Directory;
use crate::runtime::{ByteBudget, CpuPool, Shutdown};
use crate::telemetry::ProgressRegistry;

/// A run under way.
pub(crate) struct Run {
    pub(crate) ctx: RunContext,
    pub(crate) manifest: Manifest,
    pub(crate) model: ResolvedModel,
    pub(crate) report: Report,
}

impl Run {
    pub(crate) async fn open(
        config: Arc<RunConfig>,
        store: Store,
        dir: Directory,
        manifest: Manifest,
        progress: ProgressRegistry,
        shutdown: Shutdown,
    ) -> Result<Self, PipelineError> {
        let budget = ByteBudget::new(config.machine().limits.memory.0);
        let pool = CpuPool::new(workers(&config))?;
        let report = Report { run_dir: dir.display(""), ..Report::default() };
        let ctx = RunContext { config, dir, store, budget, pool, shutdown, progress, events: Events::default() };
        let model = ResolvedModel::open(&ctx).await?;
        ctx.register_metrics();
        Ok(Self { ctx, manifest, model, report })
    }

    /// Looks at every input and generation that the stages of this start need.
    pub(crate) async fn prepare(&mut self, request: Request) -> Result<Prepared, PipelineError> {
        let mut prepared = Prepared::default();
        let pipeline = self.ctx.config.pipeline().clone();
        if !request.predict_only {
            if let (Some(captions), Some(pairs)) = (&pipeline.captions, &pipeline.pairs) {
                let shards = self.ctx.store.list(&pairs.shards).await?;
                let mut keys = self.ctx.config.keys(Stage::Catalog);
                add_inputs(&self.ctx.store, &mut keys, "pairs.shards", &shards).await?;
                if !captions.list.is_empty() {
                    let list = self.ctx.store.find(&captions.list).await?;
                    add_inputs(&self.ctx.store, &mut keys, "captions.list", &[list]).await?;
                }
                let generation = self.propose(Stage::Catalog, keys, &[]);
                prepared.catalog = Some(Ready { shards, generation });
            }
            if let Some(images) = &pipeline.images {
                let shards = self.ctx.store.list(&images.shards).await?;
                let keys = self.stream_keys(Stage::Stream, "images.shards", &shards).await?;
                let upstream = prepared.catalog.as_ref().map(|ready| ready.generation.as_str());
                let upstream: Vec<&str> = upstream.into_iter().collect();
                let generation = self.propose(Stage::Stream, keys, upstream.as_slice());
                prepared.stream = Some(Ready { shards, generation });
            }
            if let (true, Some(stream)) = (self.ctx.config.runs(Stage::Train), &prepared.stream) {
                let text = if self.ctx.config.runs(Stage::Text) {
                    let keys = self.model.text_encoder()?.stage_keys(&self.ctx.config);
                    let catalog = prepared.catalog.as_ref();
                    let upstream: Vec<&str> = catalog.map(|ready| ready.generation.as_str()).into_iter().collect();
                    Some(self.propose(Stage::Text, keys, &upstream))
                } else {
                    None
                };
                let upstream: Vec<&str> = std::iter::once(stream.generation.as_str()).chain(text.as_deref()).collect();
                let keys = self.ctx.config.keys(Stage::Train);
                prepared.train = Some(self.propose(Stage::Train, keys, &upstream));
            }
        }
        if self.ctx.config.runs(Stage::Predict) {
            let (ctx, model) = (&self.ctx, &self.model);
            prepared.predict = predict::prepare(ctx, model, &mut self.manifest, request.predict_only).await?;
        }
        Ok(prepared)
    }

    fn propose(&mut self, stage: Stage, keys: crate::config::StageKeys, upstream: &[&str]) -> String {
        self.manifest.propose(stage.as_str(), stage, keys, upstream)
    }

    pub(crate) async fn stages(mut self, prepared: Prepared) -> Result<Report, PipelineError> {
        // What an earlier process reported of stages that this one does not run stays.
        if let Some(earlier) =
            self.ctx.dir.read("report.json")?.and_then(|text| serde_json::from_slice::<Report>(&text).ok())
        {
            self.report = Report { stages: Vec::new(), notes: Vec::new(), ..earlier };
        }
        let outcome = self.each_stage(prepared).await;
        // A store that was waited for in vain is not waited for once more.
        let out_of_reach = self.ctx.dir.is_remote() && outcome.as_ref().is_err_and(PipelineError::is_out_of_reach);
        let reported = if out_of_reach { Ok(()) } else { self.write_report() };
        // Why a stage failed matters more than that its report could not be written either.
        outcome?;
        reported?;
        Ok(self.report)
    }

    fn write_report(&mut self) -> Result<(), PipelineError> {
        self.report.stages = self.ctx.progress.snapshots().iter().map(Into::into).collect();
        self.report.peak_memory_bytes = peak_memory_bytes();
        self.report.peak_in_flight_bytes = self.ctx.budget.peak_bytes();
        self.report.traffic = self.ctx.store.traffic().snapshot();
        let path = self.ctx.dir.display("report.json");
        self.report.outputs.insert("report".to_owned(), path);
        let text =
            serde_json::to_vec_pretty(&self.report).map_err(|error| PipelineError::Internal(error.to_string()))?;
        Ok(self.ctx.dir.write("report.json", &text)?)
    }

    async fn each_stage(&mut self, prepared: Prepared) -> Result<(), PipelineError> {
        let device = self.open_device().await?;
        let catalog = self.catalog(prepared.catalog).await?;
        let ranks_classes = prepared.predict.as_ref().is_some_and(PreparedPrediction::ranks_classes);
        if let (Some(catalog), Some(predict), true) = (&catalog, &self.ctx.config.pipeline().predict, ranks_classes) {
            // As soon as it is known, rather than after days of training.
            enough_captions(catalog.classes.len(), predict.top_k)?;
        }
        let mut backbone = None;
        if let Some(stream) = prepared.stream {
            if let Some(device) = &device {
                let loaded = self.load_backbone(device).await?;
                let journal = self.features(catalog.as_ref(), stream, &loaded).await?;
                if let (Some(generation), Some(catalog)) = (prepared.train, &catalog) {
                    loaded.unload().await?;
                    let input = TrainInput { journal, generation, catalog, model: &self.model, device };
                    let output = train::run(&self.ctx, input).await?;
                    self.report.training = output.report;
                    self.report.add_remarks(&self.ctx.dir, output.remarks);
                } else {
                    backbone = Some(loaded);
                }
            } else {
                self.pixels(catalog.as_ref(), stream).await?;
            }
        }
        drop(catalog);
        if let (Some(prepared), Some(device)) = (prepared.predict, &device) {
            self.predict(prepared, device, backbone).await?;
        }
        Ok(())
    }

    /// Opens the device, if a stage needs one.
    async fn open_device(&mut self) -> Result<Option<Arc<DeviceWorker>>, PipelineError> {
        let (Some(chosen), Some(backbone)) = (&self.model.device, &self.model.backbone) else { return Ok(None) };
        let (spec, machine) = (&self.model.spec, self.ctx.config.machine());
        let chunk_rows = u64::from(self.ctx.config.pipeline().chunks.rows);
        let bytes = stream::stream_bytes(spec, self.ctx.pool.width(), chunk_rows);
        let needs = MemoryNeeds {
            parameters: backbone.checkpoint.parameters(),
            activation_bytes: backbone.checkpoint.activation_bytes(backbone.options.size_px),
            pixel_bytes: spec.pixel_bytes(),
            host_bytes: bytes.left_for_model(machine.limits.memory.0),
            precision: backbone.shape.precision,
        };
        let device = device::open(chosen, needs, machine.device.batch_size, &self.ctx.scratch_path()).await?;
        tracing::info!(device = %chosen, batch = device.batch_rows, "the model runs");
        self.report.device = Some(chosen.to_string());
        Ok(Some(device))
    }

    async fn load_backbone(&self, device: &Arc<DeviceWorker>) -> Result<LoadedBackbone, PipelineError> {
        let backbone = self.model.backbone()?;
        device.load_backbone(backbone.checkpoint.clone(), backbone.options).await
    }

    /// Streams the training images to features.
    async fn features(
        &mut self,
        catalog: Option<&catalog::Catalog>,
        ready: Ready,
        backbone: &LoadedBackbone,
    ) -> Result<Journal, PipelineError> {
        let Ready { shards, generation } = ready;
        let mut job = self.stream_job("images", shards, Self::train_wanted(catalog), &generation);
        job.views = stream::Views::of_plan(&self.ctx.config);
        let pipeline = self.ctx.config.pipeline();
        let (seed, side_px) = (pipeline.run.seed, self.model.spec.geometry.output_px());
        let fraction = pipeline.train.as_ref().map_or(0.0, |train| train.validation_fraction);
        let target = FeatureTarget {
            name: "images",
            layout: Layout::train("features"),
            shape: self.model.backbone()?.shape,
            thumbnails: (fraction > 0.0).then_some(Thumbnails { seed, fraction, side_px }),
        };
        let shards = Arc::clone(&job.shards);
        let journal = extract(&self.ctx, job, backbone, target).await?;
        self.report.images = Some(self.stream_report(&journal, &shards)?);
        self.output("features", "features");
        Ok(journal)
    }

    /// Ranks captions for the test images; `backbone` is the one that is still loaded, if any.
    async fn predict(
        &mut self,
        prepared: PreparedPrediction,
        device: &Arc<DeviceWorker>,
        backbone: Option<LoadedBackbone>,
    ) -> Result<(), PipelineError> {
        let this = &*self;
        let (shards, generation) = (prepared.shards.clone(), prepared.generation.clone());
        let wanted = ImageFilter::Urls(Arc::clone(prepared.test_set.urls()));
        let stem = this.ctx.config.pipeline().predict.as_ref().map_or("", |predict| file_stem(&predict.output));
        let extract_tests = async || {
            let job = this.stream_job("test images", shards, wanted, &generation);
            let shards = Arc::clone(&job.shards);
            let backbone = match backbone {
                Some(backbone) => backbone,
                None => this.load_backbone(device).await?,
            };
            let shape = this.model.backbone()?.shape;
            let target = FeatureTarget { name: stem, layout: Layout::predict(stem), shape, thumbnails: None };
            let journal = extract(&this.ctx, job, &backbone, target).await?;
            let tally = this.stream_report(&journal, &shards)?.tally;
            backbone.unload().await?;
            Ok(TestFeatures { journal, tally })
        };
        let input = PredictInput { model: &this.model, manifest: &this.manifest, prepared, device };
        let Some(output) = predict::run(&this.ctx, input, extract_tests).await? else { return Ok(()) };
        self.report.prediction = Some(output.report);
        self.report.add_remarks(&self.ctx.dir, output.remarks);
        Ok(())
    }

    /// Builds or loads classes and join index; `None` without `[captions]`.
    async fn catalog(&mut self, ready: Option<Ready>) -> Result<Option<catalog::Catalog>, PipelineError> {
        let pipeline = self.ctx.config.pipeline();
        let (Some(captions), Some(pairs), Some(ready)) = (&pipeline.captions, &pipeline.pairs, ready) else {
            return Ok(None);
        };
        let found = if let Some(found) = catalog::load(&self.ctx.dir, captions, &ready.generation)? {
            found
        } else {
            let stage_progress = self.ctx.progress.stage("pairs", "rows", 0);
            let (partial, gathered) = Partial::open(self.ctx.dir.clone(), &ready.generation)?;
            let built =
                catalog::build(&self.ctx, captions, pairs, &ready.shards, &stage_progress, partial, gathered).await?;
            let Some(built) = built else { return Err(self.ctx.stopped()) };
            catalog::save(&self.ctx.dir, &built, &ready.generation)?;
            Partial::clear(&self.ctx.dir)?;
            self.ctx.events.finished(&stage_progress);
            built
        };
        let mut remarks = StageRemarks::default();
        if found.report.labelled_rows == 0 {
            remarks.add_note(
                "no row of the pairs has a caption that is a class, so no image has a label: the published test captions \
                 hardly occur in the training rows; ways out: `captions.match = \"title\"` (compare page titles alone) or \
                 `captions.classes = \"train\"` (the training captions are the classes)",
            );
        }
        self.report.add_remarks(&self.ctx.dir, remarks);
        self.report.catalog = Some(found.report.clone());
        Ok(Some(found))
    }

    /// The stream's keys, with what they resolve to.
    pub(crate) async fn stream_keys(
        &self,
        stage: Stage,
        key: &str,
        shards: &[Object],
    ) -> Result<crate::config::StageKeys, PipelineError> {
        let mut keys = self.model.stream_keys(&self.ctx.config, stage);
        add_inputs(&self.ctx.store, &mut keys, key, shards).await?;
        Ok(keys)
    }

    pub(crate) fn stream_job(
        &self,
        name: &str,
        shards: Vec<Object>,
        wanted: ImageFilter,
        generation: &str,
    ) -> StreamJob {
        StreamJob {
            shards: Arc::new(shards),
            wanted,
            spec: self.model.spec.clone(),
            views: None,
            chunk_rows: u64::from(self.ctx.config.pipeline().chunks.rows),
            generation: generation.to_owned(),
            max_bad_fraction: self.ctx.config.machine().limits.max_bad_fraction,
            stage_progress: self.ctx.progress.stage(name, "rows", 0),
        }
    }

    pub(crate) fn train_wanted(catalog: Option<&catalog::Catalog>) -> ImageFilter {
        catalog.map_or(ImageFilter::Everything, |catalog| ImageFilter::Index(Arc::clone(&catalog.index)))
    }

    /// Streams images to pixel chunks, which are the product.
    async fn pixels(&mut self, catalog: Option<&catalog::Catalog>, ready: Ready) -> Result<(), PipelineError> {
        let Ready { shards, generation } = ready;
        let job = self.stream_job("images", shards, Self::train_wanted(catalog), &generation);
        let (stage_progress, shards) = (Arc::clone(&job.stage_progress), Arc::clone(&job.shards));
        let layout = Layout::train("chunks");
        let count = shards.len() as u32;
        let journal = Journal::open(self.ctx.dir.clone(), layout.clone(), &generation, count)?;
        stage_progress.add_resumed(journal.tally().rows);
        stream::show_shards(&job, &journal);
        self.ctx.events.started(&stage_progress);
        let seen = seen_so_far(&journal, &[], &job.wanted)?;
        let start = Start { schedule: journal.schedule(count), counted: journal.shard_tallies(), seen };
        if self.ctx.dir.is_remote() {
            let chunk =
                product_disk_bytes(self.ctx.config.pipeline().chunks.rows, self.model.spec.geometry.output_px());
            self.ctx.require_disk(chunk, "the chunk on its way to the run directory")?;
        }
        let sink = Sink::Durable(journal, self.ctx.config.pipeline().chunks.compression);
        stream::run(job, self.ctx.clone(), start, sink).await?;
        self.ctx.events.finished(&stage_progress);
        let journal = Journal::read(self.ctx.dir.clone(), layout, Some(&generation))?;
        let report = self.stream_report(&journal, &shards)?;
        self.report.images = Some(report);
        self.output("pixel chunks", "chunks");
        Ok(())
    }

    pub(crate) fn output(&mut self, name: &'static str, path: &str) {
        let mut remarks = StageRemarks::default();
        remarks.add_output(name, path);
        self.report.add_remarks(&self.ctx.dir, remarks);
    }

    /// Counts of a finished stream, which must add up.
    pub(crate) fn stream_report(&self, journal: &Journal, shards: &[Object]) -> Result<StreamReport, PipelineError> {
        let name = |shard: u32| shards.get(shard as usize).map_or_else(String::new, |object| object.url.clone());
        let by_shard: std::collections::BTreeMap<String, Tally> =
            journal.shard_tallies().into_iter().map(|(shard, tally)| (name(shard), tally)).collect();
        if let Some((shard, tally)) = by_shard.iter().find(|(_, tally)| !tally.adds_up()) {
            return Err(PipelineError::Internal(format!(
                "the rows of `{shard}` do not add up: {} read, {} kept, {} skipped, {} quarantined",
                tally.rows,
                tally.kept,
                tally.skipped_rows(),
                tally.quarantined_rows()
            )));
        }
        if journal.schedule(shards.len() as u32).next().is_some() {
            return Err(PipelineError::Internal("the stream ended before its last shard".to_owned()));
        }
        let tally = journal.tally();
        if tally.rows > 0 && tally.quarantined_rows() == tally.rows {
            let reasons: Vec<String> =
                tally.quarantined.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            return Err(PipelineError::Input(format!(
                "none of the {} rows of {} shards can be used ({}): check the files",
                tally.quarantined_rows(),
                shards.len(),
                reasons.join(", ")
            )));
        }
        Ok(StreamReport {
            shards: shards.len() as u64,
            tally,
            by_shard,
            labels: journal.entries().values().map(|entry| entry.labels).sum(),
            chunks: journal.entries().values().filter(|entry| entry.tally.kept > 0).count() as u64,
            size_px: self.model.spec.geometry.output_px(),
        })
    }
}
