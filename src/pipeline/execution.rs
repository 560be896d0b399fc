//! [`Execution`]: the stages of a plan, one after the other.

use std::sync::Arc;

use crate::catalog::ImageFilter;
use crate::chunk::journal::Layout;
use crate::config::{ConfigError, HeadConfig};
use crate::pipeline::captions;
use crate::pipeline::catalog::{self, Catalog, CatalogInput, StoredClasses};
use crate::pipeline::context::RunContext;
use crate::pipeline::device::DeviceWorker;
use crate::pipeline::error::PipelineError;
use crate::pipeline::features::{self, FeatureSource, FeaturesInput, Thumbnails};
use crate::pipeline::images::{self, ImagesInput, StreamJob, Views};
use crate::pipeline::inputs::{ImageInput, PairInput};
use crate::pipeline::manifest::{Manifest, report_name};
use crate::pipeline::needs::ClassNeeds;
use crate::pipeline::observe::report::{self, Report};
use crate::pipeline::plan::{Plan, StageInput};
use crate::pipeline::predict::{self, PredictInput, PreparedPrediction};
use crate::pipeline::records::Records;
use crate::pipeline::resolve::{ResolvedModel, require_captions};
use crate::pipeline::train::{self, TrainInput};
use crate::runtime::HostMemory;
use crate::types::Part;

/// Context shared by the stages of one execution.
#[derive(Clone, Copy)]
pub(crate) struct Execution<'a> {
    pub(crate) ctx: &'a RunContext,
    pub(crate) model: &'a ResolvedModel,
    pub(crate) manifest: &'a Manifest,
}

/// A run whose inputs, models and settings were checked.
pub(crate) struct Prepared {
    pub(crate) model: ResolvedModel,
    pub(crate) plan: Plan,
    pub(crate) manifest: Manifest,
}

impl Prepared {
    /// Runs all stages of the plan, with records of the process.
    ///
    /// # Errors
    /// Those of the stages; or when the report cannot be written.
    pub(crate) async fn run(self, ctx: &RunContext, started: &str) -> Result<Report, PipelineError> {
        let Self { model, plan, manifest } = self;
        let own = plan.predict.as_ref().is_none_or(|predict| predict.own);
        let name = if own { report::FILE.to_owned() } else { report_name(ctx.config.output()) };
        let mut records = Records::start(ctx, model.report(&ctx.config), started, &name)?;
        let execution = Execution { ctx: &records.ctx, model: &model, manifest: &manifest };
        let outcome = execution.run(plan, &mut records.report).await;
        records.finish(outcome).await
    }
}

impl Execution<'_> {
    /// Runs the stages of the plan in their order. Each adds its part to the report once it is complete.
    ///
    /// # Errors
    /// Those of the stages.
    pub(crate) async fn run(self, plan: Plan, report: &mut Report) -> Result<(), PipelineError> {
        let Plan { catalog, images, train, predict } = plan;
        let device = self.open_device(report).await?;
        let catalog = self.run_catalog(catalog, report).await?;
        let ranks_classes = predict.as_ref().is_some_and(PreparedPrediction::ranks_classes);
        if let (Some(catalog), Some(predict), true) = (&catalog, self.ctx.config.predict(), ranks_classes) {
            // Check as soon as the number of classes is known, rather than after days of training.
            require_captions(catalog.classes, predict.top_k)?;
        }
        if let Some(catalog) = &catalog {
            self.require_class_needs(catalog, ranks_classes)?;
        }
        match (images, self.model.feature_shape()) {
            (Some(images), Some(_)) => {
                self.run_features_and_training(images, train, catalog.as_ref(), device.as_ref(), report).await?;
            }
            (Some(images), None) => self.run_pixels(images, Part::WHOLE, catalog.as_ref(), report).await?,
            (None, _) => {}
        }
        drop(catalog);
        if let (Some(prepared), Some(device)) = (predict, &device) {
            let input = PredictInput { model: self.model, manifest: self.manifest, prepared, device };
            if let Some(output) = predict::run(self.ctx, input).await? {
                report.prediction = Some(output.report);
                report.add_remarks(&self.ctx.dir, output.remarks);
            }
        }
        Ok(())
    }

    /// Streams the shards of a part and embeds its share of the captions. The catalog is complete. Returns whether the
    /// captions of all parts are embedded, as far as training needs them.
    ///
    /// # Errors
    /// Those of the stages.
    pub(crate) async fn run_part(self, plan: &Plan, part: Part, report: &mut Report) -> Result<bool, PipelineError> {
        let device = self.open_device(report).await?;
        let catalog = self.run_catalog(plan.catalog.clone(), report).await?;
        if let Some(catalog) = &catalog {
            let ranks_classes = plan.predict.as_ref().is_some_and(PreparedPrediction::ranks_classes);
            self.require_class_needs(catalog, ranks_classes)?;
        }
        let Some(images) = plan.images.clone() else { return Ok(true) };
        if self.model.feature_shape().is_none() {
            self.run_pixels(images, part, catalog.as_ref(), report).await?;
            return Ok(true);
        }
        let input = self.features_input(images, part, catalog.as_ref(), device.as_ref())?;
        report.images = Some(features::run_part(self.ctx, input).await?);
        report.add_output(&self.ctx.dir, "features", "features");
        match (&plan.train, catalog, self.ctx.config.head(), device) {
            (Some(_), Some(catalog), HeadConfig::Text { .. }, Some(device)) => {
                drop(catalog);
                let classes = StoredClasses::open(&self.ctx.dir)?;
                captions::embed_part(self.ctx, self.model.text_encoder()?, &device, classes, part).await
            }
            _ => Ok(true),
        }
    }

    /// Refuses a number of classes that exceeds memory or disk, before any image is read.
    fn require_class_needs(self, catalog: &Catalog, ranks_classes: bool) -> Result<(), PipelineError> {
        let (Some(shape), Some(device)) = (self.model.feature_shape(), &self.model.device) else { return Ok(()) };
        let needs = ClassNeeds {
            config: &self.ctx.config,
            classes: catalog.classes as u64,
            held_bytes: catalog.index.bytes() as u64,
            labelled: Some((catalog.index.images() as u64, catalog.index.len() as u64)),
            shape,
            device,
            host: HostMemory::detect(),
            encoder: self.model.text_encoder.as_ref(),
            ranks_classes,
        };
        let problems = needs.problems();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems).into()) }
    }

    async fn open_device(self, report: &mut Report) -> Result<Option<Arc<DeviceWorker>>, PipelineError> {
        let device = self.model.open_device(self.ctx).await?;
        if device.is_some() {
            report.device = self.model.device.as_ref().map(ToString::to_string);
        }
        Ok(device)
    }

    /// Builds or loads the catalog, if the plan has one.
    ///
    /// # Errors
    /// Those of the stage.
    pub(crate) async fn run_catalog(
        self,
        input: Option<StageInput<PairInput>>,
        report: &mut Report,
    ) -> Result<Option<Catalog>, PipelineError> {
        let (Some(config), Some(StageInput { input, shards, generation })) = (self.ctx.config.catalog(), input) else {
            return Ok(None);
        };
        let output = catalog::run(self.ctx, CatalogInput { config, input, shards, generation }).await?;
        report.add_remarks(&self.ctx.dir, output.remarks);
        report.catalog = Some(output.catalog.report.clone());
        Ok(Some(output.catalog))
    }

    /// Runs the image stream whose product is pixel chunks.
    async fn run_pixels(
        self,
        images: StageInput<ImageInput>,
        part: Part,
        catalog: Option<&Catalog>,
        report: &mut Report,
    ) -> Result<(), PipelineError> {
        let StageInput { input, shards, generation } = images;
        let (filter, content) = (image_filter(catalog), &self.model.content);
        let input = ImagesInput { input, shards, part, filter, content, generation };
        report.images = Some(images::run(self.ctx, input).await?);
        report.add_output(&self.ctx.dir, "pixel chunks", "chunks");
        Ok(())
    }

    /// Computes or stores the features of the training images and, if the plan says so, trains heads on them.
    async fn run_features_and_training(
        self,
        images: StageInput<ImageInput>,
        train: Option<String>,
        catalog: Option<&Catalog>,
        device: Option<&Arc<DeviceWorker>>,
        report: &mut Report,
    ) -> Result<(), PipelineError> {
        let Self { ctx, model, .. } = self;
        let input = self.features_input(images, Part::WHOLE, catalog, device)?;
        let output = features::run(ctx, input).await?;
        report.images = Some(output.report);
        report.add_output(&ctx.dir, "features", "features");
        if let (Some(generation), Some(catalog), Some(device)) = (train, catalog, device) {
            let input = TrainInput { features: output.features, generation, catalog, model, device };
            let output = train::run(ctx, input).await?;
            report.training = output.report;
            report.add_remarks(&ctx.dir, output.remarks);
        }
        Ok(())
    }

    /// Describes the features of the training images of a part.
    fn features_input<'a>(
        &'a self,
        images: StageInput<ImageInput>,
        part: Part,
        catalog: Option<&Catalog>,
        device: Option<&'a Arc<DeviceWorker>>,
    ) -> Result<FeaturesInput<'a>, PipelineError> {
        let Self { ctx, model, .. } = self;
        let StageInput { input, shards, generation } = images;
        let shards = (input, shards);
        let mut job = StreamJob::new(ctx, "images", &model.content, shards, image_filter(catalog), &generation);
        (job.part, job.views) = (part, Views::from_config(&ctx.config));
        let (split, side_px) = (ctx.config.validation_split(), model.content.size_px());
        let thumbnails = (!split.is_empty()).then_some(Thumbnails { split, side_px });
        let source = FeatureSource::of(model, device, thumbnails)?;
        Ok(FeaturesInput { job, layout: Layout::train("features"), name: "images", source })
    }
}

/// Returns the filter of the training images: those with a label, or all if there is no catalog.
fn image_filter(catalog: Option<&Catalog>) -> ImageFilter {
    catalog.map_or(ImageFilter::Everything, |catalog| ImageFilter::Index(Arc::clone(&catalog.index)))
}
