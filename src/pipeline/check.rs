//! Command `check`: stages and needs of a run, from its configuration and the first megabytes of its inputs. Changes
//! nothing.

mod caption;
mod class_count;
mod estimate;
mod machine;
mod run_dir;
mod sample;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::catalog::{ClassSource, Classes};
use crate::config::bytes::chunk_disk_bytes;
use crate::config::{RunConfig, Stage};
use crate::device::SelectedDevice;
use crate::objects::{Object, Store};
use crate::pipeline::captions::{Encoder, require_vector_memory};
use crate::pipeline::catalog::read_captions;
use crate::pipeline::device;
use crate::pipeline::error::{PipelineError, chain};
use crate::pipeline::hub::{self, HubModel};
use crate::pipeline::images::RowContent;
use crate::pipeline::images::preprocess::{CheckpointPreprocessing, resolve_spec};
use crate::pipeline::inputs::{ImageInput, PairInput, list_images, list_pairs};
use crate::pipeline::manifest::RunFile;
use crate::pipeline::predict::check_truth;
use crate::pipeline::resolve::{Backbone, FeatureShape, needs_device_alone, paired_encoder_dir, resolve_backbone};
use crate::pipeline::store::open_store;
use crate::types::MatchRule;

/// Outcome of a check.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Check {
    /// Stages that would run, and whether the run directory holds artefacts of each.
    pub stages: Vec<String>,
    /// Inputs: key → number of files and bytes.
    pub inputs: BTreeMap<String, String>,
    /// Machine or container: memory, cores, disks and credentials.
    pub machine: BTreeMap<String, String>,
    /// Needs of the run.
    pub needs: BTreeMap<String, String>,
    /// Time and disk, estimated from the sample.
    pub estimates: BTreeMap<String, String>,
    /// Findings in a sample of each input.
    pub sample: BTreeMap<String, String>,
    /// All problems.
    pub problems: Vec<String>,
    /// Warnings: facts that do not stop the run, but may make it useless or fail late.
    pub warnings: Vec<String>,
    /// Exit code of the most severe problem; 0 without problems.
    pub exit_code: u8,
}

impl Check {
    /// Returns the outcome for a configuration that was refused before its inputs were looked at.
    pub fn refused<'a>(problems: impl IntoIterator<Item = &'a str>, exit_code: u8) -> Self {
        let problems = problems.into_iter().map(ToOwned::to_owned).collect();
        Self { problems, exit_code, ..Self::default() }
    }

    fn add_problem(&mut self, error: &PipelineError) {
        self.problems.push(chain(error));
        self.exit_code = self.exit_code.max(error.exit_code());
    }

    /// Returns the value of a result, or adds its error to the problems.
    fn ok<T>(&mut self, result: Result<T, PipelineError>) -> Option<T> {
        result.map_err(|error| self.add_problem(&error)).ok()
    }
}

/// Lists the stages that would run, and whether the run directory holds artefacts of each.
fn list_stages(config: &RunConfig, recorded: Option<&RunFile>) -> Vec<String> {
    let state = |stage: Stage| {
        let is_record = |name: &String| name.split(' ').next() == Some(stage.as_str());
        let known = recorded.is_some_and(|file| file.stages.keys().any(is_record));
        if known { "resumes from what the run directory holds" } else { "new" }
    };
    let runs = Stage::ALL.into_iter().filter(|stage| config.runs(*stage));
    let own = config.caption().map(|_| "captions (by the command `caption`)".to_owned());
    runs.map(|stage| format!("{} ({})", stage.as_str(), state(stage))).chain(own).collect()
}

/// Checks a configuration against the first megabytes of its inputs.
pub async fn check(config: &RunConfig) -> Check {
    let mut check = Check::default();
    let store = open_store(config.store());
    let recorded = check.ok(run_dir::check_run_dir(config, &store)).flatten();
    check.ok(run_dir::check_scratch(config));
    check.stages = list_stages(config, recorded.as_ref());
    let inputs = list_inputs(config, &store, &mut check).await;
    machine::check_machine(config, &mut check);
    let models = resolve_models(config, &store, &mut check).await;
    if let Some(models) = &models {
        for (key, input, shards) in &inputs.images {
            sample_shards(config, &store, (key, input, shards), models, &mut check).await;
        }
    }
    if let Some((input, shards)) = &inputs.pairs
        && let Some(shard) = shards.first()
    {
        let pairs_bytes = shards.iter().map(|shard| shard.size).sum();
        let sampled = sample::sample_labels(&store, config, (input, shard), pairs_bytes).await;
        if let Some(labels) = check.ok(sampled) {
            check.warnings.extend(labels.warning(config));
            check.sample.insert("pairs.shards".to_owned(), labels.describe());
            if let Some(Models { shape: Some(shape), device: Some(device), encoder, .. }) = &models {
                let trained = class_count::TrainedModels { shape: *shape, device, encoder: encoder.as_ref() };
                class_count::check_needs(config, labels.count(), trained, &mut check);
            }
        }
    }
    if let Some(predict) = config.predict() {
        if !predict.ids.is_empty()
            && let Some(text) = check.ok(sample::sample_ids(&store, &predict.ids).await)
        {
            check.sample.insert("predict.ids".to_owned(), text);
        }
        if let Some(truth) = &predict.truth {
            check.ok(check_truth(&store, truth).await);
        }
    }
    caption::check_caption(config, &store, &mut check).await;
    check
}

/// Inputs of a configuration.
#[derive(Default)]
struct Inputs {
    pairs: Option<(PairInput, Vec<Object>)>,
    /// Images by their key.
    images: Vec<(&'static str, ImageInput, Vec<Object>)>,
}

/// Lists the shards of each input and recognises their formats.
async fn list_inputs(config: &RunConfig, store: &Store, check: &mut Check) -> Inputs {
    let mut inputs = Inputs::default();
    let describe = |check: &mut Check, key: &str, format: &str, objects: &[Object]| {
        let bytes = bytesize::ByteSize(objects.iter().map(|object| object.size).sum());
        let folders: usize = objects.iter().filter_map(Object::folder).map(|folder| folder.files.len()).sum();
        let what = match folders {
            0 => format!("{} files, {bytes}, {format}", objects.len()),
            images => format!("{images} images, {bytes}, {format}"),
        };
        check.inputs.insert(key.to_owned(), what);
    };
    if let Some(catalog) = config.catalog()
        && let Some((input, objects)) = check.ok(list_pairs(store, &catalog.pairs).await)
    {
        describe(check, "pairs.shards", input.format.as_str(), &objects);
        inputs.pairs = Some((input, objects));
    }
    let columns = config.images().map(|images| images.columns.clone()).unwrap_or_default();
    let images = config.images().map(|images| ("images.shards", &images.shards, images.format));
    let predict = config.predict().map(|predict| ("predict.images", &predict.images, predict.format));
    for (key, patterns, format) in images.into_iter().chain(predict) {
        if let Some((input, objects)) = check.ok(list_images(store, patterns, format, &columns).await) {
            describe(check, key, input.format.as_str(), &objects);
            if check.ok(input.require_rows_of_numbers(config, key)).is_some() {
                inputs.images.push((key, input, objects));
            }
        }
    }
    inputs
}

/// Properties of the models that the estimates need.
struct Models {
    content: RowContent,
    /// Shape of a feature; `None` without features, or before the backbone is downloaded.
    shape: Option<FeatureShape>,
    /// Device of the models, if there are any.
    device: Option<SelectedDevice>,
    /// The text encoder, if it is on this machine and can be used.
    encoder: Option<Encoder>,
}

/// Opens the models that are on this machine, and adds the needs of the run. Returns the preprocessing; `None` if a
/// model cannot be used.
async fn resolve_models(config: &RunConfig, store: &Store, check: &mut Check) -> Option<Models> {
    let location = locate_backbone(config, store, check).await;
    let paired_dir = location.as_ref().and_then(|snapshot| paired_encoder_dir(config, snapshot.as_deref()));
    let to_download = location.is_none();
    let mut needs_device = to_download || needs_device_alone(config);
    let resolved = location.and_then(|snapshot| check.ok(resolve_backbone(config, snapshot)));
    if let Some((_, Some(backbone))) = &resolved {
        check.needs.insert("model".to_owned(), describe_backbone(backbone));
        needs_device = true;
    }
    let encoder = check_encoder(config, store, paired_dir, check).await;
    let chosen = if needs_device { check.ok(device::choose(config.device()).await) } else { None };
    if let Some(chosen) = &chosen {
        if let (false, Some((_, Some(backbone)))) = (chosen.is_cuda(), &resolved) {
            machine::check_weights(config, backbone, check);
        }
        check.needs.insert("device".to_owned(), chosen.to_string());
    }
    let limits = config.limits();
    check.needs.insert("memory in flight".to_owned(), format!("up to {}", limits.memory));
    let Some((content, backbone)) = resolved else {
        // Images can be sampled before the checkpoint is known.
        let content = || RowContent::Images(resolve_spec(config, CheckpointPreprocessing::default()));
        return to_download.then(|| Models { content: content(), shape: None, device: None, encoder });
    };
    let shape = match (&backbone, &content) {
        (Some(backbone), _) => Some(backbone.shape),
        (None, RowContent::Numbers(spec)) => Some((*spec).into()),
        (None, RowContent::Images(_)) => None,
    };
    let (size_px, rows) = (content.size_px(), config.chunk_images());
    match &content {
        RowContent::Images(_) => check.needs.insert("input square".to_owned(), format!("{size_px} × {size_px} px")),
        RowContent::Numbers(spec) => {
            check.needs.insert("model".to_owned(), format!("none: features of {} values are published", spec.dim))
        }
    };
    let chunk = bytesize::ByteSize(chunk_disk_bytes(rows, size_px));
    let scratch = if backbone.is_some() {
        format!("up to {} for the spool; a chunk of {rows} images takes up to {chunk}", limits.disk)
    } else {
        "none: the chunks are the product".to_owned()
    };
    check.needs.insert("scratch disk".to_owned(), scratch);
    Some(Models { content, shape, device: chosen, encoder })
}

/// Decodes a sample of the first shard.
async fn sample_shards(
    config: &RunConfig,
    store: &Store,
    (key, input, shards): (&str, &ImageInput, &[Object]),
    models: &Models,
    check: &mut Check,
) {
    let Some(shard) = shards.first() else { return };
    let sampled = sample::sample_images(store, shard, input, &models.content).await;
    let Some(sample) = check.ok(sampled) else { return };
    check.sample.insert(key.to_owned(), sample.text.clone());
    estimate::add_image_estimates(check, config, (key, shards), &sample, &models.content, models.shape);
    if key != "images.shards" {
        return;
    }
    let bytes: u64 = shards.iter().map(|object| object.size).sum();
    let images = bytes as f64 / sample.bytes_per_row.max(1.0);
    let pixels = (images * models.content.decoded_bytes() as f64) as u64;
    if config.published_dim().is_some() {
        return;
    }
    if config.model().is_some() {
        check.warnings.extend(run_dir::check_scratch_space(config, pixels));
    } else {
        check.warnings.extend(run_dir::check_product_space(config, pixels));
    }
}

fn describe_backbone(backbone: &Backbone) -> String {
    let checkpoint = &backbone.checkpoint;
    format!(
        "`{}`, {} parameters, {} of weights, feature of {} values",
        checkpoint.family().name(),
        checkpoint.parameters(),
        bytesize::ByteSize(checkpoint.weight_bytes()),
        backbone.shape.dim
    )
}

/// Locates the backbone. Returns `Some(None)` if the configuration names a directory, `Some(Some(…))` if the hub's
/// cache has it, and `None` if it is not downloaded or cannot be found.
async fn locate_backbone(config: &RunConfig, store: &Store, check: &mut Check) -> Option<Option<PathBuf>> {
    match check.ok(hub::look_up(config, HubModel::Backbone, store).await)? {
        None => Some(None),
        Some(Ok(snapshot)) => Some(Some(snapshot)),
        Some(Err(missing)) => {
            let files = missing.files.join(", ");
            let (bytes, cache) = (bytesize::ByteSize(missing.bytes), missing.cache.display());
            check.needs.insert("download".to_owned(), format!("{bytes} of the checkpoint into `{cache}`: {files}"));
            None
        }
    }
}

/// Checks the text encoder and the captions to embed. Returns the encoder if it is on this machine and can be used.
async fn check_encoder(
    config: &RunConfig,
    store: &Store,
    paired_dir: Option<PathBuf>,
    check: &mut Check,
) -> Option<Encoder> {
    let text = config.text()?;
    if text.is_paired() && paired_dir.is_none() {
        // It comes with the backbone, which is to be downloaded or has been refused.
        return None;
    }
    let snapshot = match check.ok(hub::look_up(config, HubModel::TextEncoder, store).await) {
        None => return None,
        Some(None) => None,
        Some(Some(Ok(snapshot))) => Some(snapshot),
        Some(Some(Err(missing))) => {
            let (files, bytes) = (missing.files.join(", "), bytesize::ByteSize(missing.bytes));
            let what = format!("{bytes} to download into `{}`: {files}", missing.cache.display());
            check.needs.insert("text encoder".to_owned(), what);
            return None;
        }
    };
    let encoder = check.ok(Encoder::open(text, snapshot.or(paired_dir)));
    if let Some(encoder) = &encoder {
        check.needs.insert("text encoder".to_owned(), encoder.describe());
    }
    let Some(predict) = config.predict() else { return encoder };
    let run_list = || config.catalog().and_then(|catalog| catalog.captions.list.as_ref());
    let Some(name) = predict.captions.as_ref().or_else(run_list) else { return encoder };
    let mut captions = Classes::new(ClassSource::List, MatchRule::Exact);
    if check.ok(read_captions(store, name, &mut captions).await).is_some() {
        check.sample.insert("captions to rank".to_owned(), format!("{} distinct captions", captions.len()));
        if let Some(encoder) = &encoder {
            check.ok(require_vector_memory(config, encoder, captions.len()));
            let vectors = (encoder.checkpoint.dim(), encoder.precision);
            estimate::add_vector_estimate(check, "captions to rank", captions.len(), vectors);
        }
    }
    encoder
}
