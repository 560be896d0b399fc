//! `report.json`: counts, measurements and artefacts of a run, over all its processes.
//!
//! A prediction that is not the submission of the run has a report of its own, `NAME.report.json` beside `NAME.csv`.

mod captions;
mod prediction;
pub(crate) mod process;
mod stage;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chunk::Tally;
use crate::config::{Stage, Trial};
use crate::objects::TrafficSnapshot;
use crate::pipeline::error::PipelineError;
use crate::predict::bootstrap::Interval;
use crate::run_dir::Directory;
use crate::types::MemberWeights;

pub use crate::predict::slices::SliceReport;
pub use crate::train::closed_form::Candidate;
pub use captions::{CaptionRankingReport, CaptionReport};
pub use prediction::{CorrectionScore, PredictionReport, ScoreReport, SignalReport, TextReport};
pub use process::{Outcome, ProcessReport};
pub use stage::{Bottleneck, PartReport, StageReport};

/// Name of the file in the run directory.
pub(crate) const FILE: &str = "report.json";
/// Copy of a report that cannot be read.
const UNREADABLE_FILE: &str = "report.unreadable.json";

/// Report of a run directory. A stage that never ran is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run directory.
    pub run_dir: String,
    /// Version of the program, of the last process.
    #[serde(default)]
    pub version: String,
    /// Start of the first process, as RFC 3339.
    #[serde(default)]
    pub started: String,
    /// End of the last process, as RFC 3339.
    #[serde(default)]
    pub ended: String,
    /// Seconds of all processes together.
    #[serde(default)]
    pub seconds: f64,
    /// Device of the model, and why it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelReport>,
    /// Both configuration files with all defaults filled in, as `pipeline` and `machine`.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub config: serde_json::Value,
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
    /// Captions that the command `caption` wrote, in their own report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<CaptionReport>,
    /// Work, time and rate of each stage, over all processes that did something of it.
    pub stages: Vec<StageReport>,
    /// Largest peak resident memory of a process in bytes; absent if the system does not report it.
    pub peak_memory_bytes: Option<u64>,
    /// Largest peak number of bytes in flight between stages.
    pub peak_in_flight_bytes: u64,
    /// Requests and bytes to and from remote stores, of all processes.
    #[serde(default)]
    pub traffic: TrafficSnapshot,
    /// The processes, in the order of their starts.
    #[serde(default)]
    pub processes: Vec<ProcessReport>,
    /// Remarks that a reader should not miss.
    pub notes: Vec<String>,
    /// Artefacts: name → path.
    pub outputs: BTreeMap<String, String>,
}

/// Remarks and artefacts of one stage. Stages return them; the orchestrator adds them to the report.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StageRemarks {
    notes: Vec<String>,
    outputs: Vec<(String, String)>,
}

impl StageRemarks {
    /// Adds a remark that a reader of the report should not miss.
    pub(crate) fn add_note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Returns the paths of the artefacts, relative to the run directory.
    pub(crate) fn output_paths(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|(_, path)| path.as_str())
    }

    /// Adds an artefact by its path relative to the run directory.
    pub(crate) fn add_output(&mut self, name: &str, path: impl Into<String>) {
        self.outputs.push((name.to_owned(), path.into()));
    }
}

impl Report {
    /// Loads the report `name` of earlier processes, or starts a new one. One that cannot be read is kept under another
    /// name.
    ///
    /// # Errors
    /// When the run directory cannot be read or written.
    pub(crate) fn load(dir: &Directory, name: &str) -> Result<Self, PipelineError> {
        let new = || Self { run_dir: dir.display(""), ..Self::default() };
        let Some(text) = dir.read(name)? else { return Ok(new()) };
        match serde_json::from_slice::<Self>(&text) {
            // The directory may have moved.
            Ok(mut earlier) => {
                earlier.infer_process();
                Ok(Self { run_dir: dir.display(""), ..earlier })
            }
            Err(error) => {
                dir.write(UNREADABLE_FILE, &text)?;
                let (path, copy) = (dir.display(name), dir.display(UNREADABLE_FILE));
                tracing::warn!(
                    "`{path}` is not a report ({error}): a new one is started, and the old one kept as `{copy}`"
                );
                Ok(new())
            }
        }
    }

    /// Writes the report `name` to the run directory.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(crate) fn save(&mut self, dir: &Directory, name: &str) -> Result<(), PipelineError> {
        self.add_output(dir, "report", name);
        let text = serde_json::to_vec_pretty(self).map_err(|error| PipelineError::Internal(error.to_string()))?;
        Ok(dir.write(name, &text)?)
    }

    /// Adds an artefact by its path relative to `dir`.
    pub(crate) fn add_output(&mut self, dir: &Directory, name: &str, path: &str) {
        self.outputs.insert(name.to_owned(), dir.display(path));
    }

    /// Adds the remarks of a stage that worked in `dir`.
    pub(crate) fn add_remarks(&mut self, dir: &Directory, remarks: StageRemarks) {
        self.notes.extend(remarks.notes);
        self.outputs.extend(remarks.outputs.into_iter().map(|(name, path)| (name, dir.display(&path))));
    }
}

/// Removes the results of `from` and of later stages from the report of a run, and marks the work on them as discarded. With
/// the first stage the report is removed.
///
/// # Errors
/// When the run directory cannot be read or written.
pub(crate) fn discard(dir: &Directory, from: Stage) -> Result<(), PipelineError> {
    if from == Stage::Catalog {
        return Ok(dir.remove(FILE)?);
    }
    if dir.read(FILE)?.is_none() {
        return Ok(());
    }
    let mut report = Report::load(dir, FILE)?;
    if from <= Stage::Stream {
        report.images = None;
    }
    if from <= Stage::Train {
        report.training = None;
    }
    report.prediction = None;
    report.discard_work(from);
    // Those that are still there are added again.
    report.outputs.clear();
    report.notes.clear();
    report.save(dir, FILE)
}

/// The models of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Checkpoint of the backbone, as configured.
    pub checkpoint: String,
    /// Hash of its files.
    pub files: String,
    /// Architecture.
    pub family: String,
    /// Parameters.
    pub parameters: u64,
    /// Side of its input in pixels.
    pub image_px: u32,
    /// Values of a feature.
    pub feature_dim: u64,
    /// Number format of stored features.
    pub precision: String,
    /// Text encoder of a text head, as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<String>,
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
    /// A head that was solved for in closed form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_form: Option<ClosedFormReport>,
    /// Heads that rank together. `best` and `validation` are then scores of all together, and points of the curve whose `trial`
    /// is the number of heads are theirs, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ensemble: Option<EnsembleReport>,
}

/// Heads that rank together, at one step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EnsembleReport {
    /// Step.
    pub step: u64,
    /// How the weights were found.
    pub weights: MemberWeights,
    /// NDCG@5 on held-out images, averaged over languages; absent if none is held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg5: Option<f64>,
    /// The heads, by the number of their checkpoint.
    pub members: Vec<MemberReport>,
}

/// A head of an ensemble.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberReport {
    /// Block of the backbone whose feature it reads; absent if it reads all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<i32>,
    /// Seed of its initial weights.
    pub seed: u64,
    /// Share in the score; all shares add up to 1.
    pub weight: f64,
    /// NDCG@5 of this head alone, as that of the ensemble.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg5: Option<f64>,
    /// Settings of a head in closed form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_form: Option<Candidate>,
}

/// A head in closed form.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClosedFormReport {
    /// Method, as `head.method` spells it.
    pub method: String,
    /// Settings that were chosen on the held-out images, or the defaults without any.
    pub chosen: Candidate,
    /// All settings that were tried, in this order.
    pub candidates: Vec<Candidate>,
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
    /// Interval of 95 % confidence of `ndcg5`, by the bootstrap over images; absent with fewer than two images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg5_interval: Option<Interval>,
    /// NDCG@5 among the captions of one language, averaged over languages; only for ensembles and their members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg5_languages: Option<f64>,
    /// Number of the head in a sweep.
    #[serde(default)]
    pub trial: u32,
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
