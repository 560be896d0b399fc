//! `caption`, and `evaluate --captions`: generated captions and their scores.

use std::path::Path;
use std::time::Instant;

use super::args::Files;
use super::output::emit;
use super::progress::Screen;
use super::{Failure, RunOutput, config_failure, load_config, render, render_sample, run_to_end};
use crate::caption::{CaptionEvaluateError, evaluate_caption_files};
use crate::config::AdHocCaptions;
use crate::pipeline;

/// Writes captions with the model of `[caption]` and prints a summary.
pub(super) fn run(
    files: &Files,
    captions: AdHocCaptions,
    wait: bool,
    screen: &Screen,
    output: RunOutput,
) -> Result<(), Failure> {
    let started = Instant::now();
    let config = load_config(files)?.caption_with(captions).map_err(|error| config_failure(files.config(), &error))?;
    render_sample(&config)?;
    let report = run_to_end(pipeline::workers(&config), screen, |registry, shutdown| {
        Box::pin(pipeline::write_captions(config, wait, registry, shutdown))
    })?;
    emit(output.json, &report, || render::run(&report, started.elapsed(), output.verbose))
}

/// Scores a file of captions against references and prints the scores.
pub(super) fn evaluate(captions: &Path, references: &Path, json: bool) -> Result<(), Failure> {
    if let (Ok(one), Ok(other)) = (captions.canonicalize(), references.canonicalize())
        && one == other
    {
        let what = format!("`{}` is both the captions and the references: name two files", captions.display());
        return Err(Failure::new(2, what));
    }
    let failed = |error: CaptionEvaluateError| Failure::new(3, pipeline::chain(&error));
    let scores = evaluate_caption_files(captions, references).map_err(failed)?;
    emit(json, &scores, || render::caption_scores(&scores))
}
