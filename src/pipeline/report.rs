//! `report.json`: what a run counted, measured and made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chunk::Tally;
use crate::config::raw::Trial;
use crate::objects::TrafficSnapshot;
use crate::telemetry::{Activity, StageSnapshot, TimerSnapshot};

/// The part of a stage that works on the device.
pub(super) const DEVICE: &str = "device";

/// The report of a run directory. Parts that did not run are absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run's directory.
    pub run_dir: String,
    /// What the model ran on, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Captions and labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog: Option<CatalogReport>,
    /// The training images' stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<StreamReport>,
    /// The head's training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingReport>,
    /// The submission.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<PredictionReport>,
    /// Time and rate of each stage, of the process that wrote the report.
    pub stages: Vec<StageReport>,
    /// Largest resident memory of that process, in bytes; absent where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// Most bytes in flight between stages.
    pub peak_in_flight_bytes: u64,
    /// What went over the wire.
    #[serde(default)]
    pub traffic: TrafficSnapshot,
    /// Remarks that a reader should not miss.
    pub notes: Vec<String>,
    /// What was written: name → path.
    pub outputs: BTreeMap<String, String>,
}

/// Counts of the catalog.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CatalogReport {
    /// Where the classes come from.
    pub source: String,
    /// Match rule.
    pub match_rule: String,
    /// Classes.
    pub classes: u64,
    /// Captions of the list that repeat an earlier one.
    pub duplicate_captions: u64,
    /// Rows of the pairs files.
    pub pair_rows: u64,
    /// Of these, rows that could not be used or were not wanted, by reason.
    pub pair_rows_skipped: BTreeMap<String, u64>,
    /// Rows whose caption is a class.
    pub labelled_rows: u64,
    /// Distinct image URLs among them.
    pub labelled_images: u64,
    /// Classes with at least one image URL.
    pub classes_with_images: u64,
    /// Number of image URLs → classes with so many, ascending.
    pub images_per_class: Vec<(String, u64)>,
    /// Distinct URLs that would be one after normalising scheme and percent-encoding; rows are joined on the raw URL.
    pub urls_merged_by_normalising: u64,
    /// Whether that is a count, and not an estimate from a sample.
    pub urls_merged_exact: bool,
}

/// Counts of a stream of images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Shards read.
    pub shards: u64,
    /// What became of the rows.
    pub tally: Tally,
    /// Per shard: name → tally.
    pub by_shard: BTreeMap<String, Tally>,
    /// (image, class) pairs in the chunks.
    pub labels: u64,
    /// Chunks that hold rows.
    pub chunks: u64,
    /// Side of the images in pixels.
    pub size_px: u32,
}

/// Training of the head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Steps taken.
    pub steps: u64,
    /// Samples of the training side.
    pub samples: u64,
    /// Images of the validation side.
    pub validation_images: u64,
    /// How well the first epoch's order is mixed.
    #[serde(default)]
    pub mixing: MixingReport,
    /// The last mean training loss.
    pub loss: Option<f64>,
    /// The last validation figures.
    pub validation: Option<ValidationPoint>,
    /// The best validation figures by NDCG@5.
    pub best: Option<ValidationPoint>,
    /// The curve.
    pub curve: Vec<LossPoint>,
    /// Validation at each epoch's end.
    pub validations: Vec<ValidationPoint>,
    /// The heads of a sweep, in the order of their numbers; none where there is one head. What stands above this is the
    /// winner's, but for the curve and the validations, which are all of theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<TrialReport>,
}

/// How well an order of training is mixed; `train.shuffle_rows` and `chunks.rows` decide it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MixingReport {
    /// Mean distance between a sample's places in corpus and order, as a share of all samples; 1/3 at best.
    pub moved: f64,
    /// How much more often than by chance neighbours have the same class, as a share of what is possible; 0 at best.
    pub correlation: f64,
}

/// A head of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrialReport {
    /// Its settings.
    #[serde(flatten)]
    pub settings: Trial,
    /// Its last mean training loss.
    pub loss: Option<f64>,
    /// Its last validation figures.
    pub validation: Option<ValidationPoint>,
    /// Its best validation figures by NDCG@5.
    pub best: Option<ValidationPoint>,
    /// Whether it is the one that predicts.
    pub wins: bool,
}

/// Mean training loss over the steps since the point before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Step.
    pub step: u64,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Which head of a sweep.
    #[serde(default)]
    pub trial: u32,
}

/// Figures on the validation side.
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
    /// Its ceiling: an image with several captions has one ranking.
    pub ndcg5_ceiling: f64,
    /// Recall@1 over pairs.
    pub recall1: f64,
    /// Recall@5 over pairs.
    pub recall5: f64,
    /// Which head of a sweep.
    #[serde(default)]
    pub trial: u32,
}

/// The submission.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PredictionReport {
    /// Ids asked for.
    pub ids: u64,
    /// Distinct images among them.
    pub images: u64,
    /// Ids that nothing ranks for, because their image is absent or unusable, and so is its file's name where that counts, or no
    /// head was trained: they got the most frequent captions, or the first of the list that a text head ranks.
    pub ids_without_image: u64,
    /// What became of the test images' rows.
    pub tally: Tally,
    /// Step of the checkpoint that predicted.
    pub checkpoint_step: Option<u64>,
    /// Which head of a sweep that was.
    #[serde(default)]
    pub trial: u32,
    /// Scores against `predict.truth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<ScoreReport>,
    /// With a text head: what was ranked, and by what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextReport>,
}

/// A prediction by a text head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TextReport {
    /// Where the captions came from: a file, or `the classes of the run`.
    pub source: String,
    /// Distinct captions that were ranked.
    pub captions: u64,
    /// What was taken off captions that are close to every image.
    pub correction: String,
    /// How much a file's name counted, where pixels count 1; none where names were no evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names_weight: Option<f32>,
    /// How much the logits of a head of classes counted; none where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes_weight: Option<f32>,
    /// Scores on images that were held out from training, among their own captions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<EvidenceReport>,
    /// Scores on the test images against `predict.truth`, among the captions ranked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<EvidenceReport>,
}

/// Scores by evidence.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvidenceReport {
    /// Images.
    pub images: u64,
    /// Captions that were ranked.
    pub captions: u64,
    /// All questions, those about captions seen in training, and the others.
    pub groups: Vec<EvidenceGroup>,
    /// By language of the right caption. Of held-out images each language's captions are ranked by themselves.
    pub by_language: Vec<EvidenceGroup>,
}

/// Scores of some questions, each an image and one of its right captions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvidenceGroup {
    /// Which.
    pub name: String,
    /// Questions.
    pub questions: u64,
    /// Captions that were ranked.
    pub captions: u64,
    /// By pixels alone.
    pub pixels: EvidenceScores,
    /// By file names alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<EvidenceScores>,
    /// By both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub both: Option<EvidenceScores>,
}

/// Scores by one evidence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EvidenceScores {
    /// NDCG@5.
    pub ndcg5: f64,
    /// Recall@1.
    pub recall1: f64,
    /// Recall@5.
    pub recall5: f64,
    /// Mean reciprocal rank within the captions looked at: 20 of each held-out image, `predict.top_k` of a test image.
    pub mrr: f64,
}

/// Scores of a submission.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreReport {
    /// NDCG@5, mean over ids.
    pub ndcg5: f64,
    /// The best that one ranking an image can reach.
    pub ndcg5_ceiling: f64,
    /// A random ranking's.
    pub ndcg5_chance: f64,
    /// Recall@1.
    pub recall1: f64,
    /// Recall@5.
    pub recall5: f64,
    /// Mean reciprocal rank within the rows given.
    pub mrr: f64,
    /// Ids scored.
    pub ids: u64,
}

/// Time and rate of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Stage.
    pub name: String,
    /// What it counts.
    pub unit: String,
    /// Units done by this process.
    pub done: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Units per second.
    pub per_second: f64,
    /// Who held it up most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bottleneck: Option<Bottleneck>,
    /// Share of the time, 0 to 1, for which the device had no data to work on; absent where the stage has no device.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub device_waited: Option<f64>,
    /// Where the time of its parts went.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parts: Vec<PartReport>,
}

/// The part of a stage that worked for the largest share of the time, or who outside was waited for longer than that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// A part's name, `the store` or `the run directory`.
    pub who: String,
    /// Share of the time, 0 to 1.
    pub share: f64,
}

/// Where the time of a part went, as shares of it, 0 to 1, which add up to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartReport {
    /// The part.
    pub name: String,
    /// Units of it that work side by side.
    pub lanes: u32,
    /// Its own work.
    pub busy: f64,
    /// Waiting for input.
    pub starved: f64,
    /// Waiting for room in its output.
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
            bottleneck: snapshot.bottleneck().map(|(who, share)| Bottleneck { who: who.to_owned(), share }),
            device_waited: snapshot.starved(DEVICE),
            parts: snapshot.parts.iter().map(part).collect(),
        }
    }
}

/// A number of this process's memory by its name in `/proc/self/status`, in bytes.
fn memory(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Resident memory of this process, in bytes.
pub fn memory_bytes() -> Option<u64> {
    memory("VmRSS")
}

/// Largest resident memory of this process so far, in bytes.
pub fn peak_memory_bytes() -> Option<u64> {
    memory("VmHWM")
}
