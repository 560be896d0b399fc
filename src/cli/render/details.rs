//! Tables that `-v` adds to the summary of a run.

use std::collections::BTreeMap;

use super::{Table, describe_bottleneck};
use crate::cli::format::{bytes, count, duration, number, part_of, percent, plural};
use crate::config::Trial;
use crate::pipeline::Report;
use crate::pipeline::report::{
    Candidate, CatalogReport, MemberReport, Outcome, PredictionReport, ProcessReport, SignalReport, SliceReport,
    StageReport, StreamReport, TrainingReport,
};
use crate::predict::bootstrap::Interval;
use crate::predict::evaluate::LanguageScores;
use crate::predict::metrics::MeanScores;

/// Languages with a line of their own; the report has all.
const LANGUAGES: usize = 12;

/// Appends the tables of all stages to `text`.
pub(super) fn append_details(text: &mut String, report: &Report) {
    let mut table = Table::with_headings();
    table.text = std::mem::take(text);
    if let Some(part) = &report.catalog {
        catalog(&mut table, part);
    }
    if let Some(part) = &report.images {
        images(&mut table, part, report.catalog.as_ref());
    }
    if let Some(part) = &report.training {
        training(&mut table, part);
    }
    if let Some(part) = &report.prediction {
        prediction(&mut table, part);
    }
    table.heading("Stages");
    for stage in &report.stages {
        stage_rows(&mut table, stage);
    }
    if report.processes.len() > 1 {
        table.heading("Processes");
        for process in &report.processes {
            table.row(&process.started, describe_process(process));
        }
    }
    table.heading("Resources");
    if let Some(device) = &report.device {
        table.row("device", device);
    }
    if let Some(peak) = report.peak_memory_bytes {
        table.row("peak memory", bytes(peak));
    }
    table.row("peak bytes in flight", bytes(report.peak_in_flight_bytes));
    let traffic = &report.traffic;
    if traffic.requests > 0 {
        let (requests, retries) = (count(traffic.requests), count(traffic.retries));
        table.row("storage requests", format!("{requests}, of which {retries} were retries"));
        let (read, written) = (bytes(traffic.bytes_read), bytes(traffic.bytes_written));
        table.row("storage traffic", format!("{read} read, {written} written"));
    }
    table.heading("Outputs");
    for (name, path) in &report.outputs {
        table.row(name, path);
    }
    *text = table.text;
}

/// Describes the end of a process, its duration and its work.
fn describe_process(process: &ProcessReport) -> String {
    let outcome = match process.outcome {
        Outcome::Done => "done",
        Outcome::Stopped => "stopped",
        Outcome::Failed => "failed",
        Outcome::Killed => "killed",
    };
    let worked = process.stages.iter().filter(|stage| stage.done > 0);
    let work: Vec<String> = worked.map(|stage| format!("{} {}", stage.name, plural(stage.done, &stage.unit))).collect();
    let work = if work.is_empty() { "nothing left to do".to_owned() } else { work.join(", ") };
    format!("{outcome} after {}: {work}", duration(process.seconds))
}

fn add_counts(table: &mut Table, counts: &BTreeMap<String, u64>) {
    for (name, rows) in counts {
        table.row(&format!("  {name}"), count(*rows));
    }
}

fn catalog(table: &mut Table, part: &CatalogReport) {
    table.heading("Caption classes");
    table.row(
        "classes",
        format!(
            "{} (`captions.classes` = `{}`, `captions.match` = `{}`)",
            count(part.classes),
            part.source,
            part.match_rule
        ),
    );
    if part.duplicate_captions > 0 {
        table.row("repeated captions", count(part.duplicate_captions));
    }
    table.row("rows with a label", part_of(part.labelled_rows, part.pair_rows));
    if !part.pair_rows_skipped.is_empty() {
        table.row("rows skipped", "");
        add_counts(table, &part.pair_rows_skipped);
    }
    table.row("image URLs with a label", count(part.labelled_images));
    table.row("classes with an image", part_of(part.classes_with_images, part.classes));
    let histogram: Vec<String> = part
        .images_per_class
        .iter()
        .map(|(images, classes)| format!("{images}: {}", plural(*classes, "classes")))
        .collect();
    table.row("images per class", histogram.join(", "));
    let about = if part.urls_merged_exact { "" } else { "about " };
    table.row("URLs equal but for form", format!("{about}{}", count(part.urls_merged_by_normalising)));
}

fn images(table: &mut Table, part: &StreamReport, catalog: Option<&CatalogReport>) {
    table.heading("Training images");
    table.row("rows read", format!("{} in {}", count(part.tally.rows), plural(part.shards, "shards")));
    table.row("used", count(part.tally.kept));
    if let Some(catalog) = catalog {
        table.row("labelled URLs with pixels", part_of(part.tally.kept, catalog.labelled_images));
        table.row("(image, class) pairs", count(part.labels));
    }
    table.row("skipped, not decoded", count(part.tally.skipped_rows()));
    add_counts(table, &part.tally.skipped);
    table.row("quarantined", count(part.tally.quarantined_rows()));
    add_counts(table, &part.tally.quarantined);
}

fn training(table: &mut Table, part: &TrainingReport) {
    table.heading("Training");
    table.row("samples", format!("{}; {} held out", count(part.samples), plural(part.validation_images, "images")));
    table.row("steps", count(part.steps));
    if let Some(point) = &part.validation {
        table.row("last validation loss", number(point.loss));
        table.row(
            "last validation NDCG@5",
            format!("{} (ceiling {})", number(point.ndcg5), number(point.ndcg5_ceiling)),
        );
    }
    if let Some(best) = &part.best {
        table.row("best epoch", format!("{}, NDCG@5 {}", best.epoch, number(best.ndcg5)));
    }
    if let Some(own) = &part.closed_form {
        table.row("closed form", format!("{}, {}", own.method, describe_candidate(&own.chosen)));
        table.row("candidates", format!("{} on held-out images", count(own.candidates.len() as u64)));
    }
    if let Some(ensemble) = &part.ensemble {
        let score = ensemble.ndcg5.map_or_else(String::new, |ndcg5| format!(", NDCG@5 by language {}", number(ndcg5)));
        let heads = plural(ensemble.members.len() as u64, "heads");
        table.row(
            "ensemble",
            format!("{heads} at step {}, weights `{}`{score}", count(ensemble.step), ensemble.weights),
        );
        for (index, member) in ensemble.members.iter().enumerate() {
            table.row(&format!("  head {index}"), describe_member(member));
        }
    }
    for (index, trial) in part.trials.iter().enumerate() {
        let Trial { learning_rate, momentum, weight_decay } = trial.settings;
        let best = trial.best.map_or_else(|| "no score".to_owned(), |best| format!("NDCG@5 {}", number(best.ndcg5)));
        let settings = format!("learning rate {learning_rate}, momentum {momentum}, weight decay {weight_decay}");
        let chosen = if trial.wins { ", used for prediction" } else { "" };
        table.row(&format!("head {index} of the sweep"), format!("{settings}: {best}{chosen}"));
    }
}

/// Describes a head of an ensemble: `layer 9, seed 7: weight 0.333, NDCG@5 by language 0.412`.
fn describe_member(member: &MemberReport) -> String {
    let layer = member.layer.map_or_else(String::new, |layer| format!("layer {layer}, "));
    let mut text = format!("{layer}seed {}: weight {}", member.seed, number(member.weight));
    if let Some(ndcg5) = member.ndcg5 {
        text.push_str(&format!(", NDCG@5 by language {}", number(ndcg5)));
    }
    if let Some(own) = &member.closed_form {
        text.push_str(&format!("; {}", describe_candidate(own)));
    }
    text
}

/// Describes the settings of a head in closed form: `shrinkage 0.1 (captions 0.3), 96 directions, power 0.5`.
pub(super) fn describe_candidate(candidate: &Candidate) -> String {
    let mut text = format!("shrinkage {}", candidate.shrinkage);
    if let Some(captions) = candidate.caption_shrinkage {
        text.push_str(&format!(" (captions {captions})"));
    }
    if let Some(rank) = candidate.rank {
        text.push_str(&format!(", {}", plural(rank, "directions")));
    }
    if let Some(power) = candidate.power {
        text.push_str(&format!(", power {power}"));
    }
    if let Some(targets) = &candidate.targets {
        text.push_str(&format!(", targets {targets}"));
    }
    text
}

fn prediction(table: &mut Table, part: &PredictionReport) {
    table.heading("Prediction");
    table.row("ids", format!("{} over {}", count(part.ids), plural(part.images, "images")));
    if let Some(step) = part.checkpoint_step {
        table.row("checkpoint", format!("step {}", count(step)));
    }
    table.row("test images used", count(part.tally.kept));
    table.row("skipped, not decoded", count(part.tally.skipped_rows()));
    table.row("quarantined", count(part.tally.quarantined_rows()));
    add_counts(table, &part.tally.quarantined);
    table.row("ids without usable image", count(part.ids_without_image));
    if let Some(scores) = part.scores.as_ref().filter(|scores| part.text.is_none() && !scores.by_language.is_empty()) {
        table.heading("NDCG@5 by language of the right caption");
        let mut languages: Vec<&LanguageScores> = scores.by_language.iter().collect();
        languages.sort_by_key(|own| std::cmp::Reverse(own.ids));
        for own in languages.iter().take(LANGUAGES) {
            let interval = in_interval(own.means.intervals.map(|intervals| intervals.ndcg5));
            let score = format!("{}{interval} ({})", number(own.means.ndcg5), plural(own.ids, "ids"));
            table.row(&format!("language {}", own.language), score);
        }
    }
    let Some(text) = &part.text else { return };
    table.row("captions ranked", format!("{} of {}", count(text.captions), text.source));
    table.row("hubness correction", &text.correction);
    if let Some(weight) = text.names_weight {
        table.row("weight of file names", format!("{}, pixels have 1", number(f64::from(weight))));
    }
    if let Some(weight) = text.classes_weight {
        table.row("weight of `predict.blend`", number(f64::from(weight)));
    }
    if let Some(scores) = &text.held_out {
        add_signal_scores(table, "NDCG@5 on held-out images", scores);
    }
    if let Some(scores) = &text.test {
        add_signal_scores(table, "NDCG@5 on test images", scores);
    }
}

/// Adds the scores of all groups, then of the languages with the most queries.
fn add_signal_scores(table: &mut Table, title: &str, part: &SignalReport) {
    let line = |group: &SliceReport| {
        let (queries, captions) = (count(group.questions), count(group.captions));
        format!("{} ({queries} queries, {captions} captions)", signal_scores(group))
    };
    table.heading(&format!("{title} ({} images)", count(part.images)));
    for group in &part.groups {
        table.row(&group.name, line(group));
    }
    let mut languages: Vec<&SliceReport> = part.by_language.iter().collect();
    languages.sort_by_key(|group| std::cmp::Reverse(group.questions));
    for group in languages.iter().take(LANGUAGES) {
        table.row(&format!("language {}", group.name), line(group));
    }
    if languages.len() > LANGUAGES {
        table.row("other languages", format!("{} in report.json", languages.len() - LANGUAGES));
    }
    let mut within: Vec<&SliceReport> = part.within_language.iter().collect();
    within.sort_by_key(|group| std::cmp::Reverse(group.questions));
    if !within.is_empty() {
        table.heading(&format!("{title}, each language by itself"));
    }
    for group in within.iter().take(LANGUAGES) {
        let best = group.both.as_ref().unwrap_or(&group.pixels);
        let interval = best.intervals.map(|own| own.recall1);
        let recall = format!("recall@1 {}{}", number(best.recall1), in_interval(interval));
        table.row(&format!("language {}", group.name), format!("{}; {recall}; {}", line(group), mean_rank(best)));
    }
}

/// Formats an interval of confidence behind its score.
pub(super) fn in_interval(interval: Option<Interval>) -> String {
    interval.map_or_else(String::new, |own| format!(" [{}, {}]", number(own.low), number(own.high)))
}

/// Formats a mean rank with its interval.
pub(super) fn mean_rank(scores: &MeanScores) -> String {
    let interval = scores.intervals.and_then(|intervals| intervals.mean_rank);
    scores.mean_rank.map_or_else(String::new, |rank| format!("mean rank {}{}", number(rank), in_interval(interval)))
}

/// Formats the NDCG@5 of each signal with its interval: `pixels 0.210 [0.190, 0.231], file names 0.330 [0.301, 0.360]`.
pub(super) fn signal_scores(group: &SliceReport) -> String {
    let score = |scores: &MeanScores| {
        format!("{}{}", number(scores.ndcg5), in_interval(scores.intervals.map(|intervals| intervals.ndcg5)))
    };
    let mut text = format!("pixels {}", score(&group.pixels));
    let mut add = |name: &str, scores: Option<MeanScores>| {
        if let Some(scores) = scores {
            text.push_str(&format!(", {name} {}", score(&scores)));
        }
    };
    add("file names", group.names);
    add("both", group.both);
    text
}

fn stage_rows(table: &mut Table, stage: &StageReport) {
    let StageReport { name, unit, done, seconds, per_second, .. } = stage;
    let rate = number(*per_second);
    table.row(name, format!("{} in {}, {rate} {unit}/s", plural(*done, unit), duration(*seconds)));
    if let Some(bottleneck) = &stage.bottleneck {
        table.row("  bottleneck", describe_bottleneck(bottleneck, stage.device_waited));
    }
    for part in &stage.parts {
        let (busy, starved, blocked) = (percent(part.busy), percent(part.starved), percent(part.blocked));
        let workers = if part.lanes > 1 { format!(" ({} threads)", part.lanes) } else { String::new() };
        let shares = format!("busy {busy}, waiting for input {starved}, waiting to output {blocked}");
        table.row(&format!("  {}{workers}", part.name), shares);
    }
}
