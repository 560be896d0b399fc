//! Feature chunks → the best captions of each test image.

use std::hash::Hasher as _;
use std::path::PathBuf;
use std::sync::Arc;

use twox_hash::XxHash3_64;

use crate::catalog::{UrlSet, url_hash};
use crate::chunk::batch_log::BatchLog;
use crate::chunk::features::Features;
use crate::chunk::verify;
use crate::pipeline::chunk_files::{ChunkFile, FeatureSet};
use crate::pipeline::context::RunContext;
use crate::pipeline::device::DeviceWorker;
use crate::pipeline::error::PipelineError;
use crate::pipeline::predict::questions::Questions;
use crate::predict::scorer::Place;
use crate::telemetry::{Activity, Party, StageTimer};
use crate::train::HeadState;

/// Marker of a rank without a caption.
const NONE: u32 = u32::MAX;

/// Best captions of each image, indexed by the image's position in the set of URLs.
#[derive(Debug)]
pub(super) struct Ranking {
    captions: Vec<u32>,
    top_k: usize,
    /// Rank of each query's right caption; `None` where it has none. Empty without a truth.
    pub(super) places: Vec<Option<Place>>,
}

impl Ranking {
    /// Creates a ranking in which no image has captions.
    pub(super) fn empty(images: usize, top_k: usize) -> Self {
        Self { captions: vec![NONE; images * top_k], top_k, places: Vec::new() }
    }

    /// Returns the best captions of an image; `None` if it has no ranking.
    pub(super) fn captions(&self, image: usize) -> Option<&[u32]> {
        let ranked = &self.captions[image * self.top_k..(image + 1) * self.top_k];
        (ranked.first() != Some(&NONE)).then_some(ranked)
    }

    /// Returns all ranked captions, repeated ones included.
    pub(super) fn all_captions(&self) -> impl Iterator<Item = u32> {
        self.captions.iter().copied().filter(|caption| *caption != NONE)
    }

    /// Sets the ranks of the right captions of some queries.
    pub(super) fn set_places(&mut self, queries: &[usize], places: &[Option<Place>]) {
        queries.iter().zip(places).for_each(|(query, place)| self.places[*query] = *place);
    }

    /// Sets the best captions of an image, unless there are too few.
    pub(super) fn set(&mut self, image: usize, captions: &[u32]) {
        if captions.len() == self.top_k {
            self.captions[image * self.top_k..(image + 1) * self.top_k].copy_from_slice(captions);
        }
    }
}

/// Turns the features of a chunk into the rows that a linear layer ranks captions for.
pub(super) trait QueryEncoder {
    /// Returns a key of everything that the queries depend on besides features and layer. It is part of the inputs of a
    /// batch log.
    fn log_key(&self) -> String;

    /// Encodes a chunk: one row for each image.
    ///
    /// # Errors
    /// When the features have another size, or the device fails.
    async fn encode(&self, chunk: Features) -> Result<Vec<f32>, PipelineError>;
}

/// Job that ranks captions for all images of a set of features.
pub(super) struct RankJob<'a> {
    pub(super) features: &'a FeatureSet,
    /// Linear layer that ranks the captions.
    pub(super) layer: Arc<HeadState>,
    pub(super) urls: &'a UrlSet,
    pub(super) top_k: usize,
    /// Name of the stage in progress and report.
    pub(super) stage: String,
    /// Path of the batch log.
    pub(super) log: PathBuf,
    pub(super) device: &'a Arc<DeviceWorker>,
    /// Queries whose right caption is looked for among all captions.
    pub(super) questions: Option<&'a Questions>,
}

impl RankJob<'_> {
    /// Ranks captions for every image with features, chunk by chunk.
    ///
    /// # Errors
    /// When a chunk or the device fails; [`PipelineError::Stopped`] if the run has to stop.
    pub(super) async fn run(self, ctx: &RunContext, encoder: &impl QueryEncoder) -> Result<Ranking, PipelineError> {
        let Self { features, layer, urls, top_k, stage, log, device, questions } = self;
        let mut ranking = Ranking::empty(urls.len(), top_k);
        let asked_key = questions.map_or_else(String::new, |questions| format!(" {}", questions.fingerprint()));
        ranking.places = vec![None; questions.map_or(0, |questions| questions.queries.len())];
        let generation = features.entries().values().next().map_or("", |entry| entry.generation.as_str());
        let (hash, classes, dim, key) = (hash_layer(&layer), layer.classes, layer.dim, encoder.log_key());
        let inputs = format!("{generation} {hash:016x} {classes} {dim} {top_k} {key}{asked_key}");
        let (mut logged, mut log) = BatchLog::open(log, &inputs)?;
        let stage_progress = ctx.progress.stage(stage, "images", 0);
        let scorer = device.load_scorer(layer).await?;
        stage_progress.set_total(features.images());
        let timer = stage_progress.part(StageTimer::device().starved_by(Party::Features));
        for file in features.files() {
            if let Some(signal) = ctx.shutdown.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            let chunk = timer.wait(Activity::Starved, read_chunk(features, file)).await?;
            let count = chunk.rows.len();
            let images: Vec<Option<usize>> =
                (0..count).map(|row| urls.position(url_hash(chunk.rows.url(row)))).collect();
            let (queried, asked) = questions.map(|questions| questions.of_images(&images)).unwrap_or_default();
            let ranked: Vec<u32> = if let Some(earlier) = logged.next_batch(count * top_k + 2 * asked.len()) {
                stage_progress.add_resumed(count as u64);
                earlier.into_iter().map(f32::to_bits).collect()
            } else {
                let queries = encoder.encode(chunk).await?;
                let groups = questions.and_then(|questions| questions.groups.clone());
                let own_queries = if asked.is_empty() { Vec::new() } else { queries.clone() };
                let places = scorer.places(own_queries, count, asked, groups).await?;
                let tops = scorer.top_k(queries, count, top_k).await?;
                let mut ranked = vec![NONE; count * top_k];
                for (row, top) in ranked.chunks_mut(top_k).zip(&tops) {
                    // A row with values that are not numbers has no ranking. Its image counts as unusable.
                    if top.classes.len() == top_k {
                        row.copy_from_slice(&top.classes);
                    }
                }
                ranked.extend(
                    places.into_iter().flat_map(|place| place.map_or([0; 2], |place| [place.all, place.within])),
                );
                stage_progress.add(count as u64);
                // The log stores f32, so store the bits of the caption numbers.
                log.append(&ranked.iter().copied().map(f32::from_bits).collect::<Vec<f32>>())?;
                ranked
            };
            let places = ranked[count * top_k..].as_chunks().0.iter();
            let places = places.map(|&[all, within]| (all > 0).then_some(Place { all, within }));
            ranking.set_places(&queried, &places.collect::<Vec<_>>());
            for (image, captions) in images.into_iter().zip(ranked.chunks(top_k)) {
                if let Some(image) = image {
                    ranking.set(image, captions);
                }
            }
        }
        scorer.unload().await?;
        log.remove()?;
        ctx.events.stage_finished(&stage_progress);
        Ok(ranking)
    }
}

/// Reads a chunk of features and verifies it.
///
/// # Errors
/// When the chunk cannot be fetched or is damaged.
pub(crate) async fn read_chunk(features: &FeatureSet, file: &ChunkFile) -> Result<Features, PipelineError> {
    let (directory, file) = (features.directory().clone(), file.clone());
    tokio::task::spawn_blocking(move || {
        let copy = directory.fetch(&file.name)?;
        verify(&copy, &directory.display(&file.name), file.sum)?;
        file.read_features(&copy)
    })
    .await?
}

/// Hashes the weights of a layer.
fn hash_layer(layer: &HeadState) -> u64 {
    let mut hasher = XxHash3_64::new();
    for values in layer.weight.chunks(4096).chain(layer.bias.chunks(4096)) {
        hasher.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    hasher.finish()
}
