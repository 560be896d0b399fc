//! Summary at the end of a run: one screen with score, counts, time, outputs and the next step.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::captions::append_captions;
use super::details::{append_details, describe_candidate, in_interval, signal_scores};
use super::{Table, describe_bottleneck};
use crate::cli::format::{bytes, count, duration, number, plural};
use crate::pipeline::Report;
use crate::pipeline::report::{CatalogReport, PredictionReport, StreamReport, TrainingReport};

/// Width of the names in the summary.
const NAMES: usize = 12;
/// Reasons for quarantined rows that the summary names; the details have all.
const REASONS: usize = 3;
/// Scores that are this much above chance, relative to it, are a result and not luck.
const NEAR_CHANCE: f64 = 3.0;

/// Renders the summary of a run that took `wall` in this process; `verbose` adds all tables.
pub(in crate::cli) fn run(report: &Report, wall: Duration, verbose: bool) -> String {
    let mut table = Table::new(NAMES);
    scores(&mut table, report);
    if let Some(catalog) = &report.catalog {
        table.row("Classes", classes(catalog));
    }
    if let Some(images) = &report.images {
        table.row("Images", rows(images));
        if images.tally.quarantined_rows() > 0 {
            table.row("Quarantined", most_frequent(&images.tally.quarantined));
        }
    }
    if let Some(training) = report.training.as_ref().filter(|training| training.closed_form.is_none()) {
        table.row("Shuffle", shuffle(training));
    }
    if let Some(prediction) = &report.prediction {
        table.row("Test ids", ids(prediction));
    }
    if let Some(captions) = &report.captions {
        append_captions(&mut table, captions);
    }
    time(&mut table, report, wall);
    let run_dir = report.run_dir.trim_end_matches('/');
    let names: Vec<&str> = report
        .outputs
        .iter()
        .filter(|(name, _)| name.as_str() != "report")
        .map(|(_, path)| path.strip_prefix(run_dir).map_or(path.as_str(), |name| name.trim_start_matches('/')))
        .collect();
    if !names.is_empty() {
        table.row("Outputs", format!("in {run_dir}: {}", names.join(", ")));
    }
    for note in &report.notes {
        table.row("Note", note);
    }
    table.row("Next", next_step(report, run_dir));
    if verbose {
        append_details(&mut table.text, report);
    }
    table.text
}

/// Adds the scores: on test ids with known captions, on held-out images, and of validation.
fn scores(table: &mut Table, report: &Report) {
    let prediction = report.prediction.as_ref();
    if let Some(scores) = prediction.and_then(|prediction| prediction.scores.as_ref()) {
        let (ceiling, chance) = (number(scores.ndcg5_ceiling), number(scores.ndcg5_chance));
        table.row(
            "NDCG@5",
            format!(
                "{}{} on {} (ceiling {ceiling}, chance {chance})",
                number(scores.ndcg5),
                in_interval(scores.intervals.map(|intervals| intervals.ndcg5)),
                plural(scores.ids, "test ids")
            ),
        );
        let (first, five, mrr) = (number(scores.recall1), number(scores.recall5), number(scores.mrr));
        let rank = scores.mean_rank.map_or_else(String::new, |rank| format!(", mean rank {}", number(rank)));
        table.row("Recall", format!("@1 {first}, @5 {five}; mean reciprocal rank {mrr}{rank}"));
    }
    let held_out = prediction.and_then(|prediction| prediction.text.as_ref()?.held_out.as_ref());
    if let Some((held_out, all)) = held_out.and_then(|found| Some((found, found.groups.first()?))) {
        let images = plural(held_out.images, "held-out images");
        table.row("Held out", format!("NDCG@5 on {images}: {}", signal_scores(all)));
    }
    let Some(training) = &report.training else { return };
    if let Some(point) = training.best.as_ref().or(training.validation.as_ref()) {
        let score = format!("NDCG@5 {} (ceiling {})", number(point.ndcg5), number(point.ndcg5_ceiling));
        let images = plural(training.validation_images, "images");
        table.row("Validation", format!("{score} on {images}, best epoch {}", point.epoch));
    }
    if let Some(own) = &training.closed_form {
        let samples = plural(training.samples, "samples");
        table.row("Head", format!("{} in closed form over {samples}: {}", own.method, describe_candidate(&own.chosen)));
    }
    if let (Some(first), Some(last)) = (training.curve.first(), training.loss) {
        let steps = plural(training.steps, "steps");
        let samples = plural(training.samples, "samples");
        table.row("Loss", format!("{} → {} in {steps} over {samples}", number(first.loss), number(last)));
    }
}

fn classes(catalog: &CatalogReport) -> String {
    format!(
        "{}, {} with images; {} of {} have one",
        plural(catalog.classes, "classes"),
        count(catalog.classes_with_images),
        count(catalog.labelled_rows),
        plural(catalog.pair_rows, "caption rows")
    )
}

fn rows(images: &StreamReport) -> String {
    let tally = &images.tally;
    format!(
        "{} in {}: {} used, {} skipped, {} quarantined",
        plural(tally.rows, "rows"),
        plural(images.shards, "shards"),
        count(tally.kept),
        count(tally.skipped_rows()),
        count(tally.quarantined_rows())
    )
}

/// Names the most frequent reasons, as `truncated 12, invalid_base64 3`.
fn most_frequent(reasons: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<(&String, &u64)> = reasons.iter().collect();
    sorted.sort_by_key(|(name, rows)| (std::cmp::Reverse(**rows), name.as_str()));
    let named: Vec<String> =
        sorted.iter().take(REASONS).map(|(name, rows)| format!("{name} {}", count(**rows))).collect();
    let rest: u64 = sorted.iter().skip(REASONS).map(|(_, rows)| **rows).sum();
    let rest = if rest == 0 { String::new() } else { format!(", other reasons {}", count(rest)) };
    format!("{}{rest}", named.join(", "))
}

fn shuffle(training: &TrainingReport) -> String {
    let (moved, correlation) = (training.mixing.moved, training.mixing.correlation);
    format!("mean displacement {moved:.3} (ideal 0.333), label autocorrelation {correlation:.3} (ideal 0)")
}

fn ids(prediction: &PredictionReport) -> String {
    let (ids, images) = (count(prediction.ids), plural(prediction.images, "images"));
    format!("{ids} for {images}; {} without a usable image", count(prediction.ids_without_image))
}

/// Adds time and memory of this process and of all, the slowest stage of all and what slowed that stage down.
fn time(table: &mut Table, report: &Report, wall: Duration) {
    let wall = duration(wall.as_secs_f64());
    let memory = report.peak_memory_bytes.map_or_else(String::new, |peak| format!(", peak memory {}", bytes(peak)));
    let complete = match report.processes.last() {
        Some(process) if !process.worked() => "; every stage was already complete",
        _ => "",
    };
    let all = match report.processes.len() {
        0 | 1 => String::new(),
        processes => format!("; {} in {processes} processes", duration(report.seconds)),
    };
    table.row("Time", format!("{wall}{complete}{all}{memory}"));
    // Stages may work side by side; a stage with a known bottleneck comes first.
    let worked = report.stages.iter().filter(|stage| stage.done > 0);
    let slowest = worked.max_by(|one, other| {
        one.bottleneck.is_some().cmp(&other.bottleneck.is_some()).then(one.seconds.total_cmp(&other.seconds))
    });
    let Some(stage) = slowest else { return };
    let (seconds, rate) = (duration(stage.seconds), number(stage.per_second));
    let cause =
        stage.bottleneck.as_ref().map_or_else(String::new, |who| format!(": {}", describe_bottleneck(who, None)));
    table.row("Bottleneck", format!("`{}`, {seconds}, {rate} {}/s{cause}", stage.name, stage.unit));
}

/// Suggests one command or file to look at next.
fn next_step(report: &Report, run_dir: &str) -> String {
    let near_chance = report
        .prediction
        .as_ref()
        .and_then(|prediction| prediction.scores.as_ref())
        .is_some_and(|scores| scores.ndcg5 < NEAR_CHANCE * scores.ndcg5_chance);
    let unlabelled = report.catalog.as_ref().is_some_and(|catalog| catalog.labelled_rows == 0);
    let output = |name: &str| report.outputs.get(name);
    let first = if unlabelled || near_chance {
        "see \"My score is 0\" in the README".to_owned()
    } else if let Some(page) = output("examples") {
        format!("open {page} in a browser")
    } else if let Some(captions) = output("captions") {
        match report.captions.as_ref().and_then(|captions| captions.scores.as_ref()) {
            // `evaluate` reads CSV alone.
            None if Path::new(captions).extension().is_some_and(|ending| ending == "csv") => {
                format!("wikicap-pipeline evaluate --captions {captions} --truth FILE")
            }
            _ => format!("read {captions}"),
        }
    } else if let Some(submission) = output("submission") {
        match report.prediction.as_ref().and_then(|prediction| prediction.scores.as_ref()) {
            Some(_) => format!("read {submission}"),
            None => format!("wikicap-pipeline evaluate --submission {submission} --truth FILE"),
        }
    } else {
        format!("read the Parquet files in {run_dir}")
    };
    let own = output("report").and_then(|path| path.rsplit('/').next()).unwrap_or("report.json");
    format!("{first}; more figures: -v or {own}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::WIDTH;
    use crate::pipeline::report::{
        MixingReport, ProcessReport, ScoreReport, SignalReport, SliceReport, StageReport, TextReport, ValidationPoint,
    };
    use crate::predict::metrics::MeanScores;

    fn full_report() -> Report {
        let mut images = StreamReport { shards: 200, ..StreamReport::default() };
        (images.tally.rows, images.tally.kept) = (6_477_255, 5_900_123);
        images.tally.quarantined =
            ["truncated", "invalid_base64", "unsupported_svg", "other"].map(|name| (name.to_owned(), 1234)).into();
        let point = ValidationPoint { epoch: 8, ndcg5: 0.847, ndcg5_ceiling: 0.896, ..ValidationPoint::default() };
        let scores = ScoreReport { ndcg5: 0.785, ndcg5_ceiling: 0.797, ids: 92_366, ..ScoreReport::default() };
        let group = SliceReport { names: Some(MeanScores::default()), ..SliceReport::default() };
        let held_out = SignalReport { images: 836, groups: vec![group], ..SignalReport::default() };
        let text = TextReport { held_out: Some(held_out), ..TextReport::default() };
        Report {
            run_dir: "s3://some-bucket/runs/train/".to_owned(),
            catalog: Some(CatalogReport { classes: 92_366, pair_rows: 37_046_386, ..CatalogReport::default() }),
            images: Some(images),
            training: Some(TrainingReport {
                mixing: MixingReport { moved: 0.3312, correlation: 0.012 },
                best: Some(point),
                loss: Some(1.0),
                curve: vec![crate::pipeline::report::LossPoint::default()],
                ..TrainingReport::default()
            }),
            prediction: Some(PredictionReport {
                ids: 92_366,
                ids_without_image: 12,
                scores: Some(scores),
                text: Some(text),
                ..PredictionReport::default()
            }),
            stages: vec![StageReport {
                name: "images".to_owned(),
                unit: "rows".to_owned(),
                done: 1,
                seconds: 3.0,
                bottleneck: serde_json::from_value(serde_json::json!({ "who": "the run directory", "share": 0.7 }))
                    .unwrap(),
                device_waited: Some(0.5),
                ..StageReport::default()
            }],
            peak_memory_bytes: Some(1 << 30),
            notes: vec!["a note of some length ".repeat(12).trim_end().to_owned()],
            outputs: ["checkpoints", "features", "report.json", "submission.csv", "training.svg", "examples.html"]
                .map(|name| (name.to_owned(), format!("s3://some-bucket/runs/train/{name}")))
                .into(),
            ..Report::default()
        }
    }

    #[test]
    fn summary_fits_one_screen_and_starts_with_the_score() {
        let text = run(&full_report(), Duration::from_secs(90), false);
        assert!(text.starts_with("NDCG@5       0.785 on 92,366 test ids (ceiling 0.797, chance 0)\n"), "{text}");
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "mean displacement 0.331 (ideal 0.333), label autocorrelation 0.012 (ideal 0)",
            "other reasons 1,234",
            "1 min 30 s, peak memory 1.00 GiB",
        ] {
            assert!(words.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn verbose_summary_adds_every_reason_and_stage() {
        let text = run(&full_report(), Duration::from_secs(90), true);
        let other = text.lines().any(|line| line.split_whitespace().eq(["other", "1,234"]));
        assert!(other && text.contains("\nStages\n"), "{text}");
    }

    #[test]
    fn finished_run_has_nothing_left_to_do() {
        let first = ProcessReport { stages: full_report().stages, ..ProcessReport::default() };
        let processes = vec![first, ProcessReport::default()];
        let report = Report { processes, seconds: 3.2, ..full_report() };
        let text = run(&report, Duration::from_millis(200), false);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = "0.200 s; every stage was already complete; 3.20 s in 2 processes, peak memory 1.00 GiB";
        assert!(words.contains(expected) && words.contains("Bottleneck `images`, 3.00 s"), "{text}");
    }
}
