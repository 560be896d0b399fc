//! Ranking of captions for the test images: `[predict]`.

use super::super::raw::RawPredict;
use super::{Problems, non_empty};
use crate::types::{Correction, Pick};

/// Checked `[predict]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PredictConfig {
    /// Globs of the test images' shards; at least one.
    pub images: Vec<String>,
    /// File with the columns `id` and `image_url`.
    pub ids: String,
    /// File name inside `run.dir`, ending in `.csv`. The test features are named after it.
    pub output: String,
    /// Captions for each id, from 1 to 1000.
    pub top_k: u32,
    /// Checkpoint that predicts.
    pub checkpoint: Pick,
    /// CSV file of captions to rank, for a text head.
    pub captions: Option<String>,
    /// Whether file names count, for a text head.
    pub file_names: bool,
    /// Hubness correction, for a text head.
    pub correction: Correction,
    /// Directory of a run whose classifier is blended in, for a text head.
    pub blend: Option<String>,
    /// CSV file with the right caption of each id.
    pub truth: Option<String>,
}

/// Checks `[predict]`.
pub(in super::super) fn check_predict(predict: &RawPredict, problems: &mut Problems) -> PredictConfig {
    problems.refuse_if(predict.images.is_empty(), "predict.images", "is required: name at least one file or glob");
    problems.refuse_if(
        predict.ids.is_empty(),
        "predict.ids",
        "is required: name the file with the columns `id` and `image_url`",
    );
    check_output(&predict.output, problems);
    problems.refuse_if(
        !(1..=1000).contains(&predict.top_k),
        "predict.top_k",
        format!("`{}` must be from 1 to 1000", predict.top_k),
    );
    PredictConfig {
        images: predict.images.clone(),
        ids: predict.ids.clone(),
        output: predict.output.clone(),
        top_k: predict.top_k,
        checkpoint: predict.checkpoint,
        captions: non_empty(&predict.captions),
        file_names: predict.file_names,
        correction: predict.correction,
        blend: non_empty(&predict.blend),
        truth: non_empty(&predict.truth),
    }
}

/// Checks that a file name cannot leave the run directory, and is that of a CSV file.
pub(in super::super) fn check_output(output: &str, problems: &mut Problems) {
    let plain = !output.is_empty()
        && !output.starts_with(['/', '.'])
        && !output.contains(['/', '\\'])
        && std::path::Path::new(output).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    problems.refuse_if(
        !plain,
        "predict.output",
        format!("`{output}` must be a plain file name ending in `.csv`: it is written inside `run.dir`"),
    );
}
