//! The part of a report on a prediction: counts and scores.

use serde::{Deserialize, Serialize};

use crate::chunk::Tally;
use crate::predict::bootstrap::ScoreIntervals;
use crate::predict::evaluate::LanguageScores;
use crate::predict::slices::SliceReport;

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
    /// Scores against `predict.truth`; absent if none of its captions is ranked.
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
    /// Corrections that `predict.correction = "auto"` chose from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<CorrectionScore>,
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

/// A hubness correction with its score on held-out images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CorrectionScore {
    /// The correction and its strength.
    pub correction: String,
    /// NDCG@5, averaged over languages.
    pub ndcg5: f64,
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
    /// Scores of the test images by language, each ranked among the right captions in that language alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within_language: Vec<SliceReport>,
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
    /// Mean rank of the right caption among all ranked captions. An id without a ranking counts as the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_rank: Option<f64>,
    /// Intervals of 95 % confidence, by the bootstrap over images; absent with fewer than two images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<ScoreIntervals>,
    /// Number of scored ids.
    pub ids: u64,
    /// Scores by the language of the right caption; empty if the truth has no column `language`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_language: Vec<LanguageScores>,
}
