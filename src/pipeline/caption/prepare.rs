//! Checks before captions are generated: inputs, models, limits and the files of the run directory.

use std::path::PathBuf;
use std::sync::Arc;

use crate::caption::References;
use crate::catalog::url_hash;
use crate::config::{CaptionConfig, ConfigError, Problem, Stage};
use crate::device::SelectedDevice;
use crate::model::ModelError;
use crate::model::caption::{CaptionCheckpoint, CaptionDecoder};
use crate::objects::{Object, Store};
use crate::pipeline::context::{RunContext, workers};
use crate::pipeline::device::{self, DeviceWorker, MemoryNeeds, model_error};
use crate::pipeline::error::{PipelineError, chain};
use crate::pipeline::hub::{self, HubModel, require_checkpoint};
use crate::pipeline::images::RowContent;
use crate::pipeline::images::preprocess::{CheckpointPreprocessing, resolve_spec};
use crate::pipeline::inputs::{ImageInput, list_images};
use crate::pipeline::manifest::{CAPTIONS_PREFIX, Manifest, add_inputs};
use crate::pipeline::predict::{IdSource, TestSet, visit_ids};
use crate::pipeline::resolve::check_bounds;
use crate::types::Precision;

use super::rank::CaptionRanking;

/// Upper bound on a file of references.
const MAX_REFERENCES_BYTES: u64 = 1 << 30;

/// Captions whose inputs and models were checked.
pub(super) struct PreparedCaptions {
    pub(super) settings: CaptionConfig,
    pub(super) model: CaptionModel,
    /// Format and columns of the shards.
    pub(super) input: ImageInput,
    pub(super) shards: Vec<Object>,
    pub(super) ids: IdSource,
    /// Hash of everything that the captions depend on.
    pub(super) generation: String,
    pub(super) test_set: TestSet,
    pub(super) references: Option<References>,
    pub(super) ranking: Option<CaptionRanking>,
}

/// The captioning model and the device chosen for it.
pub(super) struct CaptionModel {
    pub(super) checkpoint: CaptionCheckpoint,
    pub(super) decoder: Arc<CaptionDecoder>,
    /// Images with their preprocessing.
    pub(super) content: RowContent,
    /// Hash of the model's files.
    pub(super) fingerprint: String,
    pub(super) device: SelectedDevice,
}

/// Returns the name of the report of the captions.
pub(super) fn report_name(stem: &str) -> String {
    format!("{stem}.report.json")
}

/// Returns the stem of the chunks of captions in the run directory.
pub(super) fn chunk_stem(stem: &str) -> String {
    format!("{CAPTIONS_PREFIX}{stem}")
}

/// Reads the ids, lists the images and opens the models. Nothing but the record of the captions is written, once everything is
/// accepted.
///
/// # Errors
/// When an input or a model cannot be used, or a file of the run directory would be replaced that `caption` did not write.
pub(super) async fn prepare(ctx: &RunContext) -> Result<PreparedCaptions, PipelineError> {
    let Some(settings) = ctx.config.caption().cloned() else {
        return Err(ConfigError(vec![Problem::new("caption", "is required to write captions")]).into());
    };
    let mut manifest = Manifest::open(ctx.dir.clone(), None, false)?;
    let model = CaptionModel::open(ctx, &settings).await?;
    ctx.register_metrics();
    let store = &ctx.store;
    let columns = ctx.config.images().map(|images| images.columns.clone()).unwrap_or_default();
    let (input, shards) = list_images(store, &settings.images, settings.format, &columns).await?;
    let ids = IdSource::new(&settings.ids, (&input, &shards), ctx.config.preprocess().max_encoded.0);
    let test_set = TestSet::read(store, &ids).await?;
    let references = match &settings.references {
        Some(name) => {
            let references = read_references(store, name).await?;
            check_references(store, &settings, &references, (&ids, &test_set)).await?;
            Some(references)
        }
        None => None,
    };
    let ranking = match settings.rank {
        Some(top_k) => Some(CaptionRanking::open(ctx, top_k).await?),
        None => None,
    };
    let mut keys = ctx.config.caption_keys();
    if let RowContent::Images(spec) = &model.content {
        let geometry = serde_json::to_string(&spec.geometry).unwrap_or_default();
        let resolved = format!("{geometry} {}", spec.resample.fingerprint_name());
        keys.insert("preprocess (resolved)".to_owned(), resolved);
    }
    keys.insert("caption.checkpoint (files)".to_owned(), model.fingerprint.clone());
    keys.insert("caption (settings of generation)".to_owned(), model.checkpoint.generation().fingerprint());
    add_inputs(store, &mut keys, "caption.images", &shards).await?;
    input.add_key(&mut keys, "caption.format");
    if let IdSource::File(ids) = &ids {
        let file = store.find(ids).await?;
        add_inputs(store, &mut keys, "caption.ids", &[file]).await?;
    }
    let record = format!("{} {}", Stage::Predict.as_str(), chunk_stem(settings.stem()));
    let generation = manifest.propose(&record, Stage::Predict, keys, &[])?;
    let mut files = vec![settings.output.clone(), report_name(settings.stem())];
    files.extend(ranking.is_some().then(|| settings.ranked_output()));
    manifest.propose_generated(files)?;
    manifest.accept(&ctx.config, true)?;
    Ok(PreparedCaptions { settings, model, input, shards, ids, generation, test_set, references, ranking })
}

/// Reads the file of right captions.
async fn read_references(store: &Store, name: &str) -> Result<References, PipelineError> {
    let content = store.read(name, MAX_REFERENCES_BYTES).await?;
    References::read(&*content, Store::redact(name)).map_err(|error| PipelineError::Input(chain(&error)))
}

/// Checks that an id has references. No id comes twice: a file that repeats one was refused when it was read.
async fn check_references(
    store: &Store,
    settings: &CaptionConfig,
    references: &References,
    (ids, test_set): (&IdSource, &TestSet),
) -> Result<(), PipelineError> {
    let source = match ids {
        IdSource::File(name) => format!("`{}` (`caption.ids`)", Store::redact(name)),
        IdSource::Images { .. } => {
            let names: Vec<&str> = settings.images.iter().map(|name| Store::redact(name)).collect();
            format!("`{}` (`caption.images`)", names.join("`, `"))
        }
    };
    let is_common = match ids {
        IdSource::File(_) => {
            let mut is_common = false;
            visit_ids(store, ids, |id| {
                is_common |= references.contains(id.id);
                Ok(())
            })
            .await?;
            is_common
        }
        // Each image is one id, and its name was hashed when the images were listed: they need not be read again.
        IdSource::Images { .. } => references.ids().any(|id| test_set.urls().position(url_hash(id)).is_some()),
    };
    if is_common {
        return Ok(());
    }
    let name = settings.references.as_deref().map(Store::redact).unwrap_or_default();
    let what = format!("no id of {source} is in `{name}` (`caption.references`): do they belong together?");
    Err(PipelineError::Input(what))
}

impl CaptionModel {
    /// Downloads the files that the hub's cache lacks, opens the model, checks the limits and chooses a device.
    async fn open(ctx: &RunContext, settings: &CaptionConfig) -> Result<Self, PipelineError> {
        let RunContext { config, store, progress, shutdown, .. } = ctx;
        let snapshot = hub::download(config, HubModel::Captioner, store, progress, shutdown).await?;
        let dir = snapshot.unwrap_or_else(|| PathBuf::from(&settings.checkpoint));
        require_checkpoint("caption.checkpoint", &settings.checkpoint, &dir)?;
        let (beams, tokens) = (settings.num_beams, settings.max_new_tokens);
        let open = move || -> Result<_, ModelError> {
            let checkpoint = CaptionCheckpoint::open_with(&dir, beams, tokens)?;
            let (decoder, fingerprint) = (CaptionDecoder::load(&checkpoint)?, checkpoint.fingerprint()?);
            Ok((checkpoint, Arc::new(decoder), fingerprint))
        };
        let (checkpoint, decoder, fingerprint) = tokio::task::spawn_blocking(open).await?.map_err(model_error)?;
        let encoder = checkpoint.encoder();
        let preprocessing = CheckpointPreprocessing::read(checkpoint.preprocessor(), encoder.image_size_px())?;
        let spec = resolve_spec(config, preprocessing);
        encoder.check_size(spec.geometry.output_px()).map_err(|error| {
            PipelineError::from(ConfigError(vec![Problem::new("preprocess.size_px", error.to_string())]))
        })?;
        let content = RowContent::Images(spec);
        check_bounds(config, &content)?;
        let device = device::choose(config.device()).await?;
        Ok(Self { checkpoint, decoder, content, fingerprint, device })
    }

    /// Opens the device.
    ///
    /// # Errors
    /// When host or GPU have too little memory.
    pub(super) async fn open_device(&self, ctx: &RunContext) -> Result<Arc<DeviceWorker>, PipelineError> {
        let (size_px, config) = (self.content.size_px(), &ctx.config);
        let bytes = self.content.stream_bytes(workers(config), u64::from(config.chunks().rows));
        let needs = MemoryNeeds {
            parameters: self.checkpoint.parameters(),
            activation_bytes: self.checkpoint.encoder().activation_bytes(size_px)
                + self.checkpoint.decoding_bytes(size_px),
            pixel_bytes: self.content.decoded_bytes(),
            host_bytes: bytes.left_for_model(config.limits().memory.0),
            // A rounding could change a token, and all after it.
            precision: Precision::F32,
            own_kernel_bytes: None,
        };
        let device = device::open(&self.device, needs, *config.device(), &ctx.scratch_path()).await?;
        tracing::info!(device = %self.device, batch = device.batch_rows, "the captioning model runs");
        Ok(device)
    }
}
