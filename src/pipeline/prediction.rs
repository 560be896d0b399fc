//! Feature chunks of the test images → ranked captions → submission.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::BufWriter;
use std::path::PathBuf;
use std::sync::Arc;

use twox_hash::XxHash3_64;

use super::PipelineError;
use super::catalog::Caption;
use super::evidence::{Closeness, Kind, Mix, queries};
use super::features::read_features;
use super::report::{DEVICE, ScoreReport};
use super::spill::Spill;
use super::stream::RunContext;
use super::stream::fill;
use super::text_prediction::NameVectors;
use super::worker::{Device, DeviceWorker};
use crate::catalog::{UrlSet, url_hash};
use crate::chunk::RowMeta;
use crate::chunk::journal::Journal;
use crate::config::raw::RawPredict;
use crate::config::value::Correction;
use crate::corpus::{TestId, TestIds};
use crate::objects::{Store, StoreError};
use crate::predict::evaluate::evaluate;
use crate::predict::metrics;
use crate::predict::submission::{SubmissionError, SubmissionWriter};
use crate::run_dir::Directory;
use crate::runtime::Shutdown;
use crate::telemetry::{Activity, StageProgress, StageTimer};
use crate::train::HeadState;

/// Longest row of the ids file.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Largest truth file; the published list of captions is a few megabytes.
pub(super) const MAX_TRUTH_BYTES: u64 = 1 << 30;
/// Stands for a rank that no caption has.
const NONE: u32 = u32::MAX;

/// The images that the ids ask for.
pub(super) struct Asked {
    pub(super) urls: Arc<UrlSet>,
    pub(super) ids: u64,
    /// Ids of each distinct image, in no particular order.
    pub(super) ids_per_image: Vec<u64>,
}

/// Reads the ids file once, for the images.
///
/// # Errors
/// When a row is not sound.
pub(super) async fn read_ids(store: &Store, name: &str) -> Result<Asked, PipelineError> {
    let mut hashes = Vec::new();
    each_id(store, name, |id| {
        hashes.push(url_hash(id.image_url));
        Ok(())
    })
    .await?;
    if hashes.is_empty() {
        let name = Store::redact(name);
        return Err(PipelineError::Input(format!("`{name}` (`predict.ids`) holds no id: check the file")));
    }
    hashes.sort_unstable();
    let ids_per_image = hashes.chunk_by(|one, other| one == other).map(|ids| ids.len() as u64).collect();
    Ok(Asked { ids: hashes.len() as u64, ids_per_image, urls: Arc::new(hashes.into_iter().collect()) })
}

pub(super) async fn each_id(
    store: &Store,
    name: &str,
    mut take: impl FnMut(TestId<'_>) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let object = store.find(name).await?;
    let mut reader = store.open(&object, Arc::default()).await?;
    let mut ids = TestIds::new(&object.url, MAX_RECORD_BYTES);
    loop {
        let more = fill(&mut reader, &mut ids, &object.url).await?;
        while let Some(id) = ids.next()? {
            take(id)?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// The best classes of each image, by position in the set of URLs; images without features have none.
#[derive(Debug)]
pub(super) struct Ranking {
    classes: Vec<u32>,
    k: usize,
}

impl Ranking {
    /// A ranking in which no image has features.
    pub(super) fn empty(images: usize, k: usize) -> Self {
        Self { classes: vec![NONE; images * k], k }
    }

    /// The best classes of an image; `None` where it has no features.
    pub(super) fn of(&self, image: usize) -> Option<&[u32]> {
        let ranked = &self.classes[image * self.k..(image + 1) * self.k];
        (ranked.first() != Some(&NONE)).then_some(ranked)
    }

    /// Sets the best classes of an image, where there are as many as are asked for.
    pub(super) fn set(&mut self, image: usize, classes: &[u32]) {
        if classes.len() == self.k {
            self.classes[image * self.k..(image + 1) * self.k].copy_from_slice(classes);
        }
    }
}

/// What of an image is held against a head's rows.
pub(super) enum Queries {
    /// Its feature.
    Features,
    /// Its projected feature and its name's vector; the map is on the device.
    Text {
        names: Arc<Option<NameVectors>>,
        kind: Kind,
        mix: Mix,
        dim: usize,
        /// A hash of the map, and of what the vectors of names are.
        key: Arc<str>,
    },
}

impl Queries {
    /// A word for everything that they depend on beside features and head.
    fn made_from(&self) -> String {
        match self {
            Self::Features => String::new(),
            Self::Text { kind, mix, key, .. } => {
                format!("{} {} {} {key}", kind.fingerprint_name(), mix.names.to_bits(), mix.classes.to_bits())
            }
        }
    }

    async fn of(&self, rows: &RowMeta, values: Vec<f32>, device: &Device) -> Result<Vec<f32>, PipelineError> {
        let Self::Text { names, kind, mix, dim, .. } = self else { return Ok(values) };
        let count = rows.len();
        let features = (mix.classes != 0.0).then(|| values.clone());
        let pixels = device.call(move |worker| worker.project(&values, count)).await?;
        let names = match names.as_ref() {
            Some(names) => {
                let urls: Vec<u64> = (0..count).map(|row| url_hash(rows.url(row))).collect();
                Some(tokio::task::block_in_place(|| names.of(&urls))?)
            }
            None => None,
        };
        Ok(queries(*kind, *mix, *dim, &pixels, names.as_deref(), features.as_deref()))
    }
}

/// What is added to each caption's logits against its closeness to every image, beside the head itself; `None` where nothing is.
///
/// # Errors
/// As [`rank`].
pub(super) async fn correction(
    journal: &Journal,
    head: HeadState,
    correction: Correction,
    queries: &Queries,
    device: &Device,
    machine: &RunContext,
) -> Result<(HeadState, Option<Vec<f32>>), PipelineError> {
    if correction == Correction::None {
        return Ok((head, None));
    }
    let stage_progress = machine.registry.stage("closeness of captions", "images", journal.tally().kept);
    let mut closeness = Closeness::new(correction, head.classes);
    let head = Arc::new(head);
    let plain = Arc::clone(&head);
    device.call(move |worker| worker.load_scorer(&plain)).await?;
    for (id, entry) in journal.entries().iter().filter(|(_, entry)| entry.tally.kept > 0) {
        if let Some(signal) = machine.stop.signal() {
            return Err(PipelineError::Stopped(signal));
        }
        let name = journal.layout().chunk(*id);
        let chunk = read_features(journal.directory(), &name, entry.checksums.get(&name).copied()).await?;
        let count = chunk.rows.len();
        let rows = queries.of(&chunk.rows, chunk.values, device).await?;
        closeness.add(device, rows, count).await?;
        stage_progress.add(count as u64);
    }
    device.tell(DeviceWorker::unload_scorer).await?;
    machine.events.finished(&stage_progress);
    Ok((Arc::unwrap_or_clone(head), closeness.bias()))
}

/// A word for a head's weights.
fn fingerprint(head: &HeadState) -> u64 {
    let mut hasher = XxHash3_64::new();
    for values in head.weight.chunks(4096).chain(head.bias.chunks(4096)) {
        hasher.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    hasher.finish()
}

/// Ranks the classes for every image that has features, chunk by chunk; what takes long is kept at `kept` meanwhile.
///
/// # Errors
/// When a chunk or the device fails; [`PipelineError::Stopped`] when asked to.
#[expect(clippy::too_many_arguments, reason = "each is one thing that the ranking needs, from another owner")]
pub(super) async fn rank(
    journal: &Journal,
    head: HeadState,
    urls: &UrlSet,
    top_k: usize,
    kept: PathBuf,
    device: &Device,
    stage_progress: &StageProgress,
    stop: &Shutdown,
    queries: &Queries,
) -> Result<Ranking, PipelineError> {
    let mut ranking = Ranking::empty(urls.len(), top_k);
    let dim = head.dim;
    let generation = journal.entries().values().next().map_or("", |entry| entry.generation.as_str());
    let beside = queries.made_from();
    let made_from = format!("{generation} {:016x} {} {dim} {top_k} {beside}", fingerprint(&head), head.classes);
    let (mut known, mut spill) = Spill::open(kept.clone(), &made_from)?;
    device.call(move |worker| worker.load_scorer(&head)).await?;
    stage_progress.set_total(journal.tally().kept);
    let clock = stage_progress.part(StageTimer::serial(DEVICE).starved_by("the features"));
    for (id, entry) in journal.entries() {
        if entry.tally.kept == 0 {
            continue;
        }
        if let Some(signal) = stop.signal() {
            return Err(PipelineError::Stopped(signal));
        }
        let name = journal.layout().chunk(*id);
        let reading = read_features(journal.directory(), &name, entry.checksums.get(&name).copied());
        let chunk = clock.wait(Activity::Starved, reading).await?;
        if matches!(queries, Queries::Features) && chunk.dim != dim {
            return Err(PipelineError::Generation(
                "the test features do not fit the head; recompute with --from predict".to_owned(),
            ));
        }
        let (rows, values) = (chunk.rows, chunk.values);
        let count = rows.len();
        let ranked = if let Some(earlier) = known.take(count * top_k) {
            stage_progress.add_resumed(count as u64);
            earlier.into_iter().map(f32::to_bits).collect()
        } else {
            let values = queries.of(&rows, values, device).await?;
            let tops = device.call(move |worker| worker.top_k(&values, count, top_k)).await?;
            let mut ranked = vec![NONE; count * top_k];
            for (own, top) in ranked.chunks_mut(top_k).zip(&tops) {
                // A head with values that are not numbers ranks nothing; the image then counts as unusable.
                if top.classes.len() == top_k {
                    own.copy_from_slice(&top.classes);
                }
            }
            stage_progress.add(count as u64);
            // The bits of class numbers, in the format of features.
            spill.keep(&ranked.iter().copied().map(f32::from_bits).collect::<Vec<f32>>())?;
            ranked
        };
        for (row, own) in ranked.chunks(top_k).enumerate() {
            if let Some(image) = urls.position(url_hash(rows.url(row))) {
                ranking.classes[image * top_k..(image + 1) * top_k].copy_from_slice(own);
            }
        }
    }
    device.tell(DeviceWorker::unload_scorer).await?;
    drop(spill);
    match std::fs::remove_file(&kept) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io(&kept, "removed", error).into())
        }
        _ => Ok(ranking),
    }
}

/// The classes with the most images, for ids whose image is absent: ties go to the lower class.
pub(super) fn most_frequent(captions: &[Caption], k: usize) -> Vec<u32> {
    let mut classes: Vec<u32> = (0..captions.len() as u32).collect();
    classes.sort_by_key(|class| (std::cmp::Reverse(captions[*class as usize].images), *class));
    classes.truncate(k);
    classes
}

/// Writes the submission in the order of the ids file; returns how many ids got `fallback`.
///
/// # Errors
/// When the ids cannot be read again or the disk refuses.
#[expect(clippy::too_many_arguments, reason = "each is one thing that a submission needs, from another owner")]
pub(super) async fn write<'a>(
    store: &Store,
    directory: &Directory,
    settings: &RawPredict,
    urls: &UrlSet,
    ranking: &Ranking,
    output: &str,
    text: impl Fn(u32) -> &'a str,
    fallback: &[u32],
) -> Result<u64, PipelineError> {
    let path = directory.temporary(output)?;
    let file = File::create(&path).map_err(|error| StoreError::io(&path, "created", error))?;
    let failed = |error: SubmissionError| match error {
        SubmissionError::Write { source, .. } => PipelineError::from(StoreError::io(&path, "written", source)),
    };
    let mut writer = SubmissionWriter::new(BufWriter::new(file)).map_err(failed)?;
    let mut without = 0;
    each_id(store, &settings.ids, |id| {
        let ranked = urls.position(url_hash(id.image_url)).and_then(|image| ranking.of(image));
        without += u64::from(ranked.is_none());
        let texts = ranked.unwrap_or(fallback).iter().map(|class| text(*class));
        writer.write(id.id, texts).map_err(failed)
    })
    .await?;
    writer.finish().map_err(failed)?;
    directory.publish(output)?;
    Ok(without)
}

/// Reads the truth once, so that an unusable one shows before anything runs.
///
/// # Errors
/// When it cannot be read or has no row.
pub(super) async fn check_truth(store: &Store, path: &str) -> Result<(), PipelineError> {
    let truth = store.read(path, MAX_TRUTH_BYTES).await?;
    let nothing = format!("{},{}\n", crate::predict::submission::ID_COLUMN, crate::predict::submission::CAPTION_COLUMN);
    let path = Store::redact(path);
    evaluate(nothing.as_bytes(), &*truth)
        .map(|_| ())
        .map_err(|error| PipelineError::Input(format!("`{path}` (`predict.truth`): {}", super::chain(&error))))
}

/// Scores the submission that was just written.
///
/// # Errors
/// When the truth cannot be read.
pub(super) async fn score(
    store: &Store,
    directory: &Directory,
    settings: &RawPredict,
    output: &str,
    asked: &Asked,
    classes: u64,
) -> Result<ScoreReport, PipelineError> {
    let submission = directory.fetch(output)?;
    let submission = File::open(&submission).map_err(|error| StoreError::io(&submission, "opened", error))?;
    let truth = store.read(&settings.truth, MAX_TRUTH_BYTES).await?;
    let scores = evaluate(submission, &*truth).map_err(|error| {
        PipelineError::Input(format!("`{}`: {}", Store::redact(&settings.truth), super::chain(&error)))
    })?;
    Ok(ScoreReport {
        ndcg5: scores.ndcg5,
        ndcg5_ceiling: metrics::ceiling(asked.ids_per_image.iter().copied()),
        ndcg5_chance: metrics::chance(classes),
        recall1: scores.recall1,
        recall5: scores.recall5,
        mrr: scores.mrr,
        ids: scores.ids,
    })
}

/// The ceiling of NDCG@5 by the ids file alone, for `evaluate --ids`.
///
/// # Errors
/// When a row is not sound.
pub async fn ceiling_of(ids: &str) -> Result<f64, PipelineError> {
    let mut images: HashMap<u64, u64> = HashMap::new();
    each_id(&Store::default(), ids, |id| {
        *images.entry(url_hash(id.image_url)).or_default() += 1;
        Ok(())
    })
    .await?;
    // A sum of integers over small classes: the order of the map does not show.
    let mut counts: Vec<u64> = images.into_values().collect();
    counts.sort_unstable();
    Ok(metrics::ceiling(counts))
}
