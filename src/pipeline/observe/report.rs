//! `report.json`: counts, measurements and artefacts of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chunk::Tally;
use crate::config::Trial;
use crate::objects::{Store, TrafficSnapshot};
use crate::pipeline::error::PipelineError;
use crate::run_dir::Directory;
use crate::runtime::ByteBudget;
use crate::telemetry::{Activity, Party, ProgressRegistry, StageSnapshot, TimerSnapshot};

/// Name of the file in the run directory.
const FILE: &str = "report.json";

/// Report of a run directory. A stage that never ran is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run directory.
    pub run_dir: String,
    /// Device of the model, and why it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Counts of captions and labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog: Option<CatalogReport>,
    /// Counts of the training images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<StreamReport>,
    /// Training of the heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingReport>,
    /// Prediction for the test images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<PredictionReport>,
    /// Time and rate of each stage, in the process that wrote the report.
    pub stages: Vec<StageReport>,
    /// Peak resident memory of that process in bytes; absent if the system does not report it.
    pub peak_memory_bytes: Option<u64>,
    /// Peak number of bytes in flight between stages.
    pub peak_in_flight_bytes: u64,
    /// Requests and bytes to and from remote stores.
    #[serde(default)]
    pub traffic: TrafficSnapshot,
    /// Remarks that a reader should not miss.
    pub notes: Vec<String>,
    /// Artefacts: name → path.
    pub outputs: BTreeMap<String, String>,
}

/// Remarks and artefacts of one stage. Stages return them; the orchestrator adds them to the report.
#[derive(Debug, Default)]
pub(crate) struct StageRemarks {
    notes: Vec<String>,
    outputs: Vec<(&'static str, String)>,
}

impl StageRemarks {
    /// Adds a remark that a reader of the report should not miss.
    pub(crate) fn add_note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds an artefact by its path relative to the run directory.
    pub(crate) fn add_output(&mut self, name: &'static str, path: impl Into<String>) {
        self.outputs.push((name, path.into()));
    }
}

impl Report {
    /// Loads the report of an earlier process without its times and notes, or starts a new one.
    ///
    /// # Errors
    /// When the run directory cannot be read.
    pub(crate) fn load(dir: &Directory) -> Result<Self, PipelineError> {
        let earlier = dir.read(FILE)?.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        Ok(match earlier {
            Some(earlier) => Self { stages: Vec::new(), notes: Vec::new(), ..earlier },
            None => Self { run_dir: dir.display(""), ..Self::default() },
        })
    }

    /// Adds the figures of this process.
    pub(crate) fn add_measurements(&mut self, progress: &ProgressRegistry, budget: &ByteBudget, store: &Store) {
        self.stages = progress.snapshots().iter().map(Into::into).collect();
        self.peak_memory_bytes = peak_memory_bytes();
        self.peak_in_flight_bytes = budget.peak_bytes();
        self.traffic = store.traffic().snapshot();
    }

    /// Writes the report to the run directory.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(crate) fn save(&mut self, dir: &Directory) -> Result<(), PipelineError> {
        self.add_output(dir, "report", FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|error| PipelineError::Internal(error.to_string()))?;
        Ok(dir.write(FILE, &text)?)
    }

    /// Adds an artefact by its path relative to `dir`.
    pub(crate) fn add_output(&mut self, dir: &Directory, name: &str, path: &str) {
        self.outputs.insert(name.to_owned(), dir.display(path));
    }

    /// Adds the remarks of a stage that worked in `dir`.
    pub(crate) fn add_remarks(&mut self, dir: &Directory, remarks: StageRemarks) {
        self.notes.extend(remarks.notes);
        self.outputs.extend(remarks.outputs.into_iter().map(|(name, path)| (name.to_owned(), dir.display(&path))));
    }
}

/// Counts of the catalog.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CatalogReport {
    /// Origin of the classes.
    pub source: String,
    /// Rule that matches a caption to a class.
    pub match_rule: String,
    /// Number of classes.
    pub classes: u64,
    /// Captions of the list that repeat an earlier caption.
    pub duplicate_captions: u64,
    /// Rows of the pairs files.
    pub pair_rows: u64,
    /// Number of unusable or unwanted rows of the pairs files, by reason.
    pub pair_rows_skipped: BTreeMap<String, u64>,
    /// Rows whose caption is a class.
    pub labelled_rows: u64,
    /// Distinct image URLs of the labelled rows.
    pub labelled_images: u64,
    /// Classes with at least one image URL.
    pub classes_with_images: u64,
    /// Histogram: range of image URLs → number of classes, ascending.
    pub images_per_class: Vec<(String, u64)>,
    /// Distinct URLs that normalising scheme and percent-encoding would merge. Rows are joined on the raw URL.
    pub urls_merged_by_normalising: u64,
    /// Whether `urls_merged_by_normalising` is exact, rather than estimated from a sample.
    pub urls_merged_exact: bool,
}

/// Counts of a stream of images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Shards read.
    pub shards: u64,
    /// Counts of all rows.
    pub tally: Tally,
    /// Counts by shard: URL → tally.
    pub by_shard: BTreeMap<String, Tally>,
    /// Pairs of an image and a class in the chunks.
    pub labels: u64,
    /// Chunks with at least one row.
    pub chunks: u64,
    /// Side of the images in pixels.
    pub size_px: u32,
    /// Kept images whose URL an earlier shard has. Training and prediction leave them out.
    #[serde(default)]
    pub duplicates: u64,
}

/// Training of the heads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Steps done.
    pub steps: u64,
    /// Training samples.
    pub samples: u64,
    /// Validation images.
    pub validation_images: u64,
    /// Quality of the first epoch's shuffle.
    #[serde(default)]
    pub mixing: MixingReport,
    /// Last mean training loss.
    pub loss: Option<f64>,
    /// Last validation.
    pub validation: Option<ValidationPoint>,
    /// Best validation by NDCG@5.
    pub best: Option<ValidationPoint>,
    /// Training losses.
    pub curve: Vec<LossPoint>,
    /// Validation at the end of each epoch.
    pub validations: Vec<ValidationPoint>,
    /// Heads of a sweep by number; empty for a single head. The other fields describe the winner, except that `curve`
    /// and `validations` hold all heads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<TrialReport>,
}

/// Quality of a shuffle. `train.shuffle_rows` and `chunks.rows` decide it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MixingReport {
    /// Mean distance between the positions of a sample in the corpus and in the shuffle, as a share of all samples;
    /// ideally 1/3.
    pub moved: f64,
    /// Excess frequency of neighbours with the same class, as a share of the possible excess; ideally 0.
    pub correlation: f64,
}

/// One head of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrialReport {
    /// Settings of the head.
    #[serde(flatten)]
    pub settings: Trial,
    /// Last mean training loss.
    pub loss: Option<f64>,
    /// Last validation.
    pub validation: Option<ValidationPoint>,
    /// Best validation by NDCG@5.
    pub best: Option<ValidationPoint>,
    /// Whether this head won the sweep.
    pub wins: bool,
}

/// Mean training loss over the steps since the previous point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Step.
    pub step: u64,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Learning rate at the step.
    pub learning_rate: f64,
    /// Number of the head in a sweep.
    #[serde(default)]
    pub trial: u32,
}

/// Validation of a head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationPoint {
    /// Step.
    pub step: u64,
    /// Epoch, from 1.
    pub epoch: u32,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// NDCG@5 over (image, caption) pairs.
    pub ndcg5: f64,
    /// Highest possible NDCG@5: an image with several captions has one ranking.
    pub ndcg5_ceiling: f64,
    /// Recall@1 over pairs.
    pub recall1: f64,
    /// Recall@5 over pairs.
    pub recall5: f64,
    /// Number of the head in a sweep.
    #[serde(default)]
    pub trial: u32,
}

/// Prediction for the test images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PredictionReport {
    /// Number of ids in the ids file.
    pub ids: u64,
    /// Number of distinct images of the ids.
    pub images: u64,
    /// Number of ids without a ranking. Either no head was trained, or the image and (for a text head) its file name
    /// are unusable. Such ids get the most frequent captions, or with a text head the first captions of the list.
    pub ids_without_image: u64,
    /// Counts of the rows of the test images.
    pub tally: Tally,
    /// Step of the checkpoint used.
    pub checkpoint_step: Option<u64>,
    /// Number of the checkpoint's head in a sweep.
    #[serde(default)]
    pub trial: u32,
    /// Scores against `predict.truth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<ScoreReport>,
    /// Details of a text head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextReport>,
}

/// Prediction by a text head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TextReport {
    /// Origin of the captions: a file, or `the classes of the run`.
    pub source: String,
    /// Number of distinct ranked captions.
    pub captions: u64,
    /// Hubness correction: the treatment of captions that are close to every image.
    pub correction: String,
    /// Weight of file names, relative to weight 1 of pixels; absent if names were not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names_weight: Option<f32>,
    /// Weight of a class head's logits; absent if none was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes_weight: Option<f32>,
    /// Scores on held-out images, ranked among their own captions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<SignalReport>,
    /// Scores on the test images against `predict.truth`, among all ranked captions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<SignalReport>,
}

/// Scores by signal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SignalReport {
    /// Number of images.
    pub images: u64,
    /// Number of ranked captions.
    pub captions: u64,
    /// Scores of all queries, of those whose caption was seen in training, and of the others.
    pub groups: Vec<SliceReport>,
    /// Scores by language of the right caption. For held-out images each language is ranked by itself.
    pub by_language: Vec<SliceReport>,
}

/// Scores of a slice of the queries. A query is an image and one of its right captions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceReport {
    /// Name of the slice.
    pub name: String,
    /// Number of queries.
    pub questions: u64,
    /// Number of ranked captions.
    pub captions: u64,
    /// Scores by pixels alone.
    pub pixels: SignalScores,
    /// Scores by file names alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<SignalScores>,
    /// Scores by pixels and file names together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub both: Option<SignalScores>,
}

/// Scores by one signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SignalScores {
    /// NDCG@5.
    pub ndcg5: f64,
    /// Recall@1.
    pub recall1: f64,
    /// Recall@5.
    pub recall5: f64,
    /// Mean reciprocal rank within the top 20 of a held-out image, or the `predict.top_k` of a test image.
    pub mrr: f64,
}

/// Scores of a submission.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreReport {
    /// NDCG@5, mean over ids.
    pub ndcg5: f64,
    /// Highest possible NDCG@5 with one ranking per image.
    pub ndcg5_ceiling: f64,
    /// NDCG@5 of a random ranking.
    pub ndcg5_chance: f64,
    /// Recall@1.
    pub recall1: f64,
    /// Recall@5.
    pub recall5: f64,
    /// Mean reciprocal rank within the submitted captions.
    pub mrr: f64,
    /// Number of scored ids.
    pub ids: u64,
}

/// Time and rate of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Name of the stage.
    pub name: String,
    /// Unit of the counts.
    pub unit: String,
    /// Units done by this process.
    pub done: u64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Units per second.
    pub per_second: f64,
    /// Party that limited the rate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bottleneck: Option<Bottleneck>,
    /// Share of the time, from 0 to 1, for which the device had no input; absent if the stage uses no device.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device_waited: Option<f64>,
    /// Times of the stage's parts.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parts: Vec<PartReport>,
}

/// Party that limited the rate of a stage: its busiest part, or an outside party that a part waited for even longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// Limiting party.
    pub who: Party,
    /// Share of the time, from 0 to 1.
    pub share: f64,
}

/// Time of one part of a stage. The shares, from 0 to 1, add up to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartReport {
    /// Name of the part.
    pub name: String,
    /// Number of workers of the part.
    pub lanes: u32,
    /// Share of time spent working.
    pub busy: f64,
    /// Share of time spent waiting for input.
    pub starved: f64,
    /// Share of time spent waiting for room in the output.
    pub blocked: f64,
}

impl From<&StageSnapshot> for StageReport {
    fn from(snapshot: &StageSnapshot) -> Self {
        let part = |part: &TimerSnapshot| PartReport {
            name: part.name.to_owned(),
            lanes: part.workers,
            busy: part.share(Activity::Busy),
            starved: part.share(Activity::Starved),
            blocked: part.share(Activity::Blocked),
        };
        Self {
            name: snapshot.name.clone(),
            unit: snapshot.unit.to_owned(),
            done: snapshot.done - snapshot.resumed.min(snapshot.done),
            seconds: snapshot.elapsed.as_secs_f64(),
            per_second: snapshot.rate(),
            bottleneck: snapshot.bottleneck().map(|(who, share)| Bottleneck { who, share }),
            device_waited: snapshot.device_starved(),
            parts: snapshot.parts.iter().map(part).collect(),
        }
    }
}

/// Reads a memory figure of this process from `/proc/self/status`, in bytes.
fn read_memory(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Returns the resident memory of this process in bytes.
pub fn memory_bytes() -> Option<u64> {
    read_memory("VmRSS")
}

/// Returns the largest resident memory of this process so far, in bytes.
pub fn peak_memory_bytes() -> Option<u64> {
    read_memory("VmHWM")
}
