//! What a chunk, a checkpoint or a run directory holds, in words and numbers.

use std::path::Path;

use serde::Serialize;

use super::{PipelineError, generation, report::Report};
use crate::chunk::features;
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::pixels::PixelReader;
use crate::chunk::quarantine;
use crate::objects::Store;
use crate::run_dir::Directory;

/// Lines of (what, value).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// What the path is.
    pub kind: &'static str,
    /// Facts, in reading order.
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
/// When it is none of the things that a run writes.
pub fn inspect(path: &Path) -> Result<Inspection, PipelineError> {
    if let Some(url) = path.to_str().filter(|text| Store::is_remote(text)) {
        return run_directory(url);
    }
    if let Some(repo) =
        path.to_str().map(|path| super::hub::repo(path, super::hub::Which::Backbone)).transpose()?.flatten()
    {
        return backbone(&crate::hf_hub::Hub::new(&Store::default()).cached(&repo)?);
    }
    if path.is_dir() {
        if path.join("run.toml").is_file() {
            return run_directory(&path.display().to_string());
        }
        if path.join("state.json").is_file() {
            return checkpoint(path);
        }
        if path.join("config.json").is_file() {
            return backbone(path);
        }
        return Err(PipelineError::Input(format!(
            "`{}` is neither a run directory, a checkpoint nor a model in Hugging Face layout",
            path.display()
        )));
    }
    if !path.is_file() {
        return Err(crate::objects::StoreError::NotFound { url: path.display().to_string() }.into());
    }
    if let Ok(mut pixels) = PixelReader::open(path, 64) {
        let mut found = Inspection::new("pixel chunk");
        found.add("rows", pixels.rows());
        found.add("image", format!("{0} × {0} px, RGB, u8", pixels.size_px()));
        let (mut sums, mut values) = ([0u64; 3], 0u64);
        let (mut first, mut bytes) = (None, Vec::new());
        while let Some(rows) = pixels.next_batch(&mut bytes)? {
            first = first.or_else(|| (!rows.is_empty()).then(|| rows.url(0).to_owned()));
            for pixel in bytes.as_chunks::<3>().0 {
                sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u64::from(*value));
            }
            values += bytes.len() as u64 / 3;
        }
        found.add("mean of R, G, B", format!("{:.2?}", sums.map(|sum| sum as f64 / values.max(1) as f64)));
        found.add("first image", first.unwrap_or_default());
        return Ok(found);
    }
    if let Ok(chunk) = features::read(path) {
        let mut found = Inspection::new("feature chunk");
        found.add("rows", chunk.rows.len());
        found.add("labels", chunk.rows.label_count());
        found.add("feature", format!("{} values, {}", chunk.dim, chunk.precision));
        let count = chunk.values.len().max(1) as f64;
        let mean = chunk.values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let square = chunk.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / count;
        found.add("mean", format!("{mean:.5}"));
        found.add("standard deviation", format!("{:.5}", (square - mean * mean).max(0.0).sqrt()));
        if !chunk.rows.is_empty() {
            found.add("first image", chunk.rows.url(0));
        }
        return Ok(found);
    }
    if let Ok(vectors) = crate::chunk::texts::read(path) {
        let mut found = Inspection::new("chunk of captions' vectors");
        found.add("captions", vectors.values.len() / vectors.dim);
        found.add("vector", format!("{} values, {}", vectors.dim, vectors.precision));
        return Ok(found);
    }
    if let Ok(rows) = quarantine::read(path) {
        let mut found = Inspection::new("quarantine file");
        found.add("rows", rows.len());
        for row in rows.iter().take(10) {
            let url = row.image_url.as_deref().unwrap_or("(no URL)");
            found.add(format!("row {}", row.row), format!("{}: {} — {url}", row.reason, row.detail));
        }
        return Ok(found);
    }
    Err(PipelineError::Input(format!(
        "`{}` is no pixel, feature, caption or quarantine file of this tool",
        path.display()
    )))
}

fn run_directory(path: &str) -> Result<Inspection, PipelineError> {
    let directory = Directory::read_only(&Store::default(), path)?;
    let mut found = Inspection::new("run directory");
    if let Some(file) = generation::read(&directory)? {
        for (name, record) in &file.stages {
            found.add(format!("stage {name}"), format!("generation {}", record.generation));
        }
    }
    for kind in ["features", "chunks"] {
        let journal = Journal::read(directory.clone(), Layout::train(kind), None)?;
        if journal.entries().is_empty() {
            continue;
        }
        let (tally, shards) = (journal.tally(), journal.shard_tallies().len());
        let ended = journal.entries().values().filter(|entry| entry.last).count();
        found.add(
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
            found.add(format!("  {reason}"), count);
        }
    }
    for name in directory.list("checkpoints")? {
        found.add("checkpoint", name);
    }
    if let Some(report) = directory.read("report.json")?.and_then(|text| serde_json::from_slice::<Report>(&text).ok()) {
        if let Some(training) = &report.training {
            found.add("training steps", training.steps);
            if let Some(best) = &training.best {
                found.add("best validation NDCG@5", format!("{:.4} at step {}", best.ndcg5, best.step));
            }
        }
        for (name, output) in &report.outputs {
            found.add(format!("output: {name}"), output);
        }
    }
    Ok(found)
}

fn checkpoint(path: &Path) -> Result<Inspection, PipelineError> {
    use super::worker::model_error;
    let loaded = crate::train::checkpoint::load(path);
    let (mut found, progress, tensors) = match loaded {
        Ok((state, progress)) => {
            let mut found = Inspection::new("checkpoint of a head");
            found.add("classes", state.classes);
            found.add("dimensions", state.dim);
            (found, progress, vec![("weight", state.weight), ("bias", state.bias)])
        }
        Err(error) => {
            // Another kind of head, or a damaged one; then the first error says why.
            let Ok((state, progress)) = crate::train::checkpoint::load_text(path) else {
                return Err(model_error(error));
            };
            let head = state.head;
            let mut found = Inspection::new("checkpoint of a text head");
            found.add("map", format!("from {} values of a feature to {} of a caption", head.input, head.output));
            found.add(
                "hidden layer",
                if head.hidden == 0 { "none".to_owned() } else { format!("{} values", head.hidden) },
            );
            found.add("similarities are multiplied by", format!("{:.3}", head.scale()));
            (found, progress, head.parameters.into_iter().map(|part| (part.name, part.values)).collect())
        }
    };
    found.add("step", progress.step);
    found.add("epoch", format!("{} done, {} samples into the next", progress.epoch, progress.position));
    found.add("seed", progress.seed);
    if let Some(best) = progress.best {
        found.add("best validation NDCG@5", format!("{best:.4}"));
    }
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    for (name, values) in &tensors {
        found.add(format!("norm of the {name}"), format!("{:.5}", norm(values)));
    }
    Ok(found)
}

fn backbone(path: &Path) -> Result<Inspection, PipelineError> {
    let checkpoint = crate::model::Checkpoint::open(path).map_err(super::worker::model_error)?;
    let mut found = Inspection::new("backbone in Hugging Face layout");
    found.add("family", checkpoint.family().name());
    found.add("blocks", checkpoint.layers());
    found.add("hidden size", checkpoint.hidden_size());
    found.add("image", format!("{0} × {0} px, patch {1} px", checkpoint.image_size_px(), checkpoint.patch_size_px()));
    found.add("parameters", checkpoint.parameters());
    found.add("weights", bytesize::ByteSize(checkpoint.weight_bytes()));
    found.add("classifier", if checkpoint.has_classifier() { "in the file, not used" } else { "none" });
    Ok(found)
}
