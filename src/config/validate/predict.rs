//! Ranking of captions for the test images: `[predict]`.

use std::path::Path;

use super::super::raw::RawPredict;
use super::{Problems, non_empty};
use crate::types::{Correction, ImageFormat, Pick};

/// Checked `[predict]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictConfig {
    /// Globs of the test images' shards; at least one.
    pub images: Vec<String>,
    /// Format of the files.
    pub format: ImageFormat,
    /// File with the columns `id` and `image_url`; empty if each image is an id.
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
    /// Factor of the similarities in the correction, over 0; `None` for that of the head.
    pub correction_strength: Option<f64>,
    /// Directory of a run whose classifier is blended in, for a text head.
    pub blend: Option<String>,
    /// CSV file with the right caption of each id.
    pub truth: Option<String>,
}

/// Checks `[predict]`.
pub(in super::super) fn check_predict(predict: &RawPredict, problems: &mut Problems) -> PredictConfig {
    problems.refuse_if(predict.images.is_empty(), "predict.images", "is required: name at least one file or glob");
    check_output(&predict.output, problems);
    problems.refuse_if(
        !(1..=1000).contains(&predict.top_k),
        "predict.top_k",
        format!("`{}` must be from 1 to 1000", predict.top_k),
    );
    if let Some(strength) = predict.correction_strength {
        let key = "predict.correction_strength";
        problems.refuse_if(
            !(0.01..=10_000.0).contains(&strength),
            key,
            format!("`{strength}` must be from 0.01 to 10000"),
        );
        let has_strength = matches!(predict.correction, Correction::Softmax | Correction::Sinkhorn);
        let need =
            "works only with `predict.correction = \"softmax\"` or `\"sinkhorn\"`: remove it, or set one of these";
        problems.refuse_if(!has_strength, key, need);
    }
    PredictConfig {
        images: predict.images.clone(),
        format: predict.format,
        ids: predict.ids.clone(),
        output: predict.output.clone(),
        top_k: predict.top_k,
        checkpoint: predict.checkpoint,
        captions: non_empty(&predict.captions),
        file_names: predict.file_names,
        correction: predict.correction,
        correction_strength: predict.correction_strength,
        blend: non_empty(&predict.blend),
        truth: non_empty(&predict.truth),
    }
}

/// CSV files that a run writes beside the ranked captions.
const RESERVED: [&str; 1] = ["training.csv"];

/// Returns the name without its ending `.csv`, which prediction's other files and folders are named after.
pub fn output_stem(output: &str) -> &str {
    output.strip_suffix(".csv").unwrap_or(output)
}

/// Checks that a file name cannot leave the run directory, is that of a CSV file, and belongs to no other part of a run.
pub(in super::super) fn check_output(output: &str, problems: &mut Problems) {
    let is_csv = |name: &str| Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    let plain = !output.is_empty()
        && !output.starts_with(['/', '.', '-'])
        && !output.contains(['/', '\\'])
        && !output.contains(char::is_control)
        && is_csv(output);
    problems.refuse_if(
        !plain,
        "predict.output",
        format!("`{output}` must be a plain file name ending in `.csv`: it is written inside `run.dir`"),
    );
    // Two endings would give two predictions the same stem.
    let twice = plain && output.strip_suffix(".csv").is_some_and(is_csv);
    problems.refuse_if(twice, "predict.output", format!("`{output}` must end in one `.csv`"));
    let reserved = RESERVED.iter().any(|name| name.eq_ignore_ascii_case(output));
    problems.refuse_if(
        reserved,
        "predict.output",
        format!("`{output}` is the training curve of the run: choose another name, such as `submission.csv`"),
    );
    // Its chunks would have the names of those of the command `caption`.
    problems.refuse_if(
        output.starts_with("caption-"),
        "predict.output",
        format!("`{output}` begins with `caption-`, as files of the command `caption`: choose another name, such as `submission.csv`"),
    );
}
