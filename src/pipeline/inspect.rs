//! Command `inspect`: the contents of a chunk, a checkpoint or a run directory.

use std::path::Path;

use serde::Serialize;

use crate::chunk::journal::{Journal, Layout};
use crate::chunk::pixels::PixelReader;
use crate::chunk::{features, quarantine, texts};
use crate::hf_hub::Hub;
use crate::model;
use crate::objects::{Store, StoreError};
use crate::pipeline::device::model_error;
use crate::pipeline::error::PipelineError;
use crate::pipeline::hub::{HubModel, parse_repo};
use crate::pipeline::manifest::RunFile;
use crate::pipeline::observe::report::Report;
use crate::run_dir::Directory;
use crate::train;
use crate::types::Pool;

/// Description of a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Kind of the path.
    pub kind: &'static str,
    /// Facts as (name, value), in reading order.
    pub facts: Vec<(String, String)>,
}

impl Inspection {
    fn new(kind: &'static str) -> Self {
        Self { kind, facts: Vec::new() }
    }

    fn add(&mut self, name: impl Into<String>, value: impl std::fmt::Display) {
        self.facts.push((name.into(), value.to_string()));
    }
}

/// Inspects a path.
///
/// # Errors
/// When the path is not an artefact of a run, or cannot be read.
pub fn inspect(path: &Path) -> Result<Inspection, PipelineError> {
    if let Some(url) = path.to_str().filter(|text| Store::is_remote(text)) {
        return inspect_run(url);
    }
    let repo = path.to_str().map(|path| parse_repo(path, HubModel::Backbone)).transpose()?.flatten();
    if let Some(repo) = repo {
        return inspect_backbone(&Hub::new(&Store::default()).cached(&repo)?);
    }
    if path.is_dir() {
        if path.join("run.toml").is_file() {
            return inspect_run(&path.display().to_string());
        }
        if path.join("state.json").is_file() {
            return inspect_checkpoint(path);
        }
        if path.join("config.json").is_file() {
            return inspect_backbone(path);
        }
        return Err(PipelineError::Input(format!(
            "`{}` is neither a run directory, a checkpoint nor a model in Hugging Face layout",
            path.display()
        )));
    }
    if !path.is_file() {
        return Err(StoreError::NotFound { url: path.display().to_string(), answer: String::new() }.into());
    }
    inspect_file(path)
}

/// Inspects a file of a run. Its content determines its format.
fn inspect_file(path: &Path) -> Result<Inspection, PipelineError> {
    if let Ok(mut pixels) = PixelReader::open(path, 64) {
        let mut inspection = Inspection::new("pixel chunk");
        inspection.add("rows", pixels.rows());
        inspection.add("image", format!("{0} × {0} px, RGB, u8", pixels.size_px()));
        let (mut sums, mut values) = ([0u64; 3], 0u64);
        let (mut first, mut bytes) = (None, Vec::new());
        while let Some(rows) = pixels.next_batch(&mut bytes)? {
            first = first.or_else(|| (!rows.is_empty()).then(|| rows.url(0).to_owned()));
            for pixel in bytes.as_chunks::<3>().0 {
                sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u64::from(*value));
            }
            values += bytes.len() as u64 / 3;
        }
        inspection.add("mean of R, G, B", format!("{:.2?}", sums.map(|sum| sum as f64 / values.max(1) as f64)));
        inspection.add("first image", first.unwrap_or_default());
        return Ok(inspection);
    }
    if let Ok(chunk) = features::read(path) {
        let mut inspection = Inspection::new("feature chunk");
        inspection.add("rows", chunk.rows.len());
        inspection.add("labels", chunk.rows.label_count());
        inspection.add("feature", format!("{} values, {}", chunk.dim, chunk.precision));
        let count = chunk.values.len().max(1) as f64;
        let mean = chunk.values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let square = chunk.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / count;
        inspection.add("mean", format!("{mean:.5}"));
        inspection.add("standard deviation", format!("{:.5}", (square - mean * mean).max(0.0).sqrt()));
        if !chunk.rows.is_empty() {
            inspection.add("first image", chunk.rows.url(0));
        }
        return Ok(inspection);
    }
    if let Ok(vectors) = texts::read(path) {
        let mut inspection = Inspection::new("caption vector chunk");
        inspection.add("captions", vectors.values.len() / vectors.dim);
        inspection.add("vector", format!("{} values, {}", vectors.dim, vectors.precision));
        return Ok(inspection);
    }
    if let Ok(rows) = quarantine::read(path) {
        let mut inspection = Inspection::new("quarantine file");
        inspection.add("rows", rows.len());
        for row in rows.iter().take(10) {
            let url = row.image_url.as_deref().unwrap_or("(no URL)");
            inspection.add(format!("row {}", row.row), format!("{}: {} — {url}", row.reason, row.detail));
        }
        return Ok(inspection);
    }
    Err(PipelineError::Input(format!(
        "`{}` is not a pixel, feature, caption or quarantine file of this program",
        path.display()
    )))
}

fn inspect_run(path: &str) -> Result<Inspection, PipelineError> {
    let directory = Directory::read_only(&Store::default(), path)?;
    let mut inspection = Inspection::new("run directory");
    if let Some(file) = RunFile::read(&directory)? {
        for (name, record) in &file.stages {
            inspection.add(format!("stage {name}"), format!("generation {}", record.generation));
        }
    }
    for kind in ["features", "chunks"] {
        let journal = Journal::read(directory.clone(), Layout::train(kind), None)?;
        if journal.entries().is_empty() {
            continue;
        }
        let (tally, shards) = (journal.tally(), journal.shard_tallies().len());
        let ended = journal.entries().values().filter(|entry| entry.last).count();
        inspection.add(
            kind,
            format!(
                "{} chunks; rows {}: kept {}, skipped {}, quarantined {}; {ended} shards are done{}",
                journal.entries().len(),
                tally.rows,
                tally.kept,
                tally.skipped_rows(),
                tally.quarantined_rows(),
                if ended < shards { format!(", {} begun", shards - ended) } else { String::new() }
            ),
        );
        for (reason, count) in tally.skipped.iter().chain(&tally.quarantined) {
            inspection.add(format!("  {reason}"), count);
        }
    }
    for name in directory.list("checkpoints")?.into_iter().filter(|name| name.starts_with("step-")) {
        inspection.add("checkpoint", name);
    }
    if let Some(report) = directory.read("report.json")?.and_then(|text| serde_json::from_slice::<Report>(&text).ok()) {
        if let Some(training) = &report.training {
            inspection.add("training steps", training.steps);
            if let Some(best) = &training.best {
                inspection.add("best validation NDCG@5", format!("{:.4} at step {}", best.ndcg5, best.step));
            }
        }
        for (name, output) in &report.outputs {
            inspection.add(format!("output: {name}"), output);
        }
    }
    Ok(inspection)
}

fn inspect_checkpoint(path: &Path) -> Result<Inspection, PipelineError> {
    let progress = train::checkpoint::load_progress(path).map_err(model_error)?;
    let loaded = train::checkpoint::load_head(path);
    let (mut inspection, tensors) = match loaded {
        Ok(state) => {
            let mut inspection = Inspection::new("checkpoint of a head");
            inspection.add("classes", state.classes);
            inspection.add("dimensions", state.dim);
            (inspection, vec![("weight", state.weight), ("bias", state.bias)])
        }
        Err(error) => {
            // The file is a text head, or it is damaged and the first error describes it.
            let Ok(head) = train::checkpoint::load_text_head(path) else {
                return Err(model_error(error));
            };
            let mut inspection = Inspection::new("checkpoint of a text head");
            inspection.add("projection", format!("{} → {} values", head.input, head.output));
            inspection.add(
                "hidden layer",
                if head.hidden == 0 { "none".to_owned() } else { format!("{} values", head.hidden) },
            );
            inspection.add("logit scale", format!("{:.3}", head.scale()));
            if head.text_map.is_some() {
                inspection.add("map of captions", format!("{} → {} values", head.text_mean.len(), head.output));
            }
            (inspection, head.parameters.into_iter().map(|part| (part.name, part.values)).collect())
        }
    };
    inspection.add("step", progress.step);
    inspection.add("epoch", format!("{} done, {} samples into the next", progress.epoch, progress.position));
    inspection.add("seed", progress.seed);
    if let Some(best) = progress.best {
        inspection.add("best validation NDCG@5", format!("{best:.4}"));
    }
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    for (name, values) in &tensors {
        inspection.add(format!("norm of the {name}"), format!("{:.5}", norm(values)));
    }
    Ok(inspection)
}

fn inspect_backbone(path: &Path) -> Result<Inspection, PipelineError> {
    let checkpoint = model::Checkpoint::open(path).map_err(model_error)?;
    let mut inspection = Inspection::new("backbone in Hugging Face layout");
    inspection.add("family", checkpoint.family().name());
    inspection.add("blocks", checkpoint.layers());
    inspection.add("hidden size", checkpoint.hidden_size());
    inspection
        .add("image", format!("{0} × {0} px, patch {1} px", checkpoint.image_size_px(), checkpoint.patch_size_px()));
    let pools: Vec<&str> = checkpoint.pools().into_iter().map(Pool::as_str).collect();
    inspection.add("pools", pools.join(", "));
    inspection.add("parameters", checkpoint.parameters());
    inspection.add("weights", bytesize::ByteSize(checkpoint.weight_bytes()));
    inspection.add("classifier", if checkpoint.has_classifier() { "in the file, not used" } else { "none" });
    Ok(inspection)
}
