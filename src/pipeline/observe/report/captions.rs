//! The part of a report on generated captions: counts and scores.

use serde::{Deserialize, Serialize};

use super::ScoreReport;
use crate::caption::CaptionScores;
use crate::chunk::Tally;

/// Captions that a captioning model wrote.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CaptionReport {
    /// Checkpoint of the model, as configured.
    pub checkpoint: String,
    /// Hash of its files.
    pub files: String,
    /// Parameters of encoder and decoder.
    pub parameters: u64,
    /// Search that chose the tokens.
    pub search: String,
    /// Number of ids.
    pub ids: u64,
    /// Number of distinct images of the ids.
    pub images: u64,
    /// Number of ids whose caption is empty: their image is missing or unusable, or the model wrote nothing.
    pub ids_without_caption: u64,
    /// Number of distinct captions.
    pub distinct: u64,
    /// Counts of the rows of the images.
    pub tally: Tally,
    /// Scores against `caption.references`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<CaptionScores>,
    /// Ranking of a list of captions by the generated ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranking: Option<CaptionRankingReport>,
}

/// Ranking of a list of captions by generated ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CaptionRankingReport {
    /// File of the list.
    pub source: String,
    /// Number of distinct captions in the list.
    pub captions: u64,
    /// Text encoder that compares captions, as configured.
    pub encoder: String,
    /// Scores against `predict.truth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<ScoreReport>,
    /// NDCG@5 of the run's submission, for comparison; absent if the run has no score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_ndcg5: Option<f64>,
}
