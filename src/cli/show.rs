//! Results as text that a person can judge.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use crate::config::Trial;
use crate::pipeline::bench;
use crate::pipeline::ingest::{Demand, Forecast, IngestReport, StageRate, Whole};
use crate::pipeline::report::{
    Bottleneck, CatalogReport, EvidenceGroup, EvidenceReport, EvidenceScores, PredictionReport, StreamReport,
    TrainingReport,
};
use crate::pipeline::status::State;
use crate::pipeline::{Check, Inspection, Report, Status};
use crate::predict::evaluate::Scores;
use crate::sample::SampleReport;

/// Aligned lines of name and value under headings.
#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn heading(&mut self, title: &str) {
        let blank = if self.text.is_empty() { "" } else { "\n" };
        self.text.push_str(&format!("{blank}{title}\n"));
    }

    fn row(&mut self, name: &str, value: impl std::fmt::Display) {
        self.text.push_str(&format!("  {name:<28} {value}\n"));
    }

    fn counts(&mut self, counts: &BTreeMap<String, u64>) {
        for (name, count) in counts {
            self.row(&format!("  {name}"), count);
        }
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{part} of {whole} ({:.1} %)", 100.0 * part as f64 / whole.max(1) as f64)
}

/// The table at the end of a run.
pub(super) fn report(report: &Report) -> String {
    let mut table = Table::default();
    if let Some(part) = &report.catalog {
        catalog(&mut table, part);
    }
    if let Some(part) = &report.images {
        stream(&mut table, part, report.catalog.as_ref());
    }
    if let Some(part) = &report.training {
        training(&mut table, part);
    }
    if let Some(part) = &report.prediction {
        prediction(&mut table, part);
    }
    table.heading("Time");
    if let Some(device) = &report.device {
        table.row("device", device);
    }
    for stage in &report.stages {
        table.row(
            &stage.name,
            format!("{} {} in {:.1} s, {:.0}/s", stage.done, stage.unit, stage.seconds, stage.per_second),
        );
        if let Some(who) = &stage.bottleneck {
            table.row("  bottleneck", bottleneck(who, stage.device_waited));
        }
    }
    let traffic = &report.traffic;
    if traffic.requests > 0 {
        let (read, written) = (ByteSize(traffic.bytes_read), ByteSize(traffic.bytes_written));
        let (requests, retries) = (traffic.requests, traffic.retries);
        table.row("stores", format!("{requests} requests, {retries} of them repeated; {read} read, {written} written"));
    }
    if let Some(bytes) = report.peak_memory_bytes {
        table.row("peak memory", ByteSize(bytes));
    }
    table.row("reserved in flight, at most", ByteSize(report.peak_in_flight_bytes));
    table.heading("Outputs");
    for (name, path) in &report.outputs {
        table.row(name, path);
    }
    for note in &report.notes {
        table.text.push_str(&format!("\nNote: {note}\n"));
    }
    table.text
}

fn bottleneck(who: &Bottleneck, device_waited: Option<f64>) -> String {
    let outside = who.who.is_outside();
    let verb = if outside { "waited for" } else { "at work" };
    let waited =
        device_waited.map_or_else(String::new, |share| format!("; the device waited for data {:.1} %", 100.0 * share));
    format!("{}, {verb} {:.1} % of the time{waited}", who.who, 100.0 * who.share)
}

/// A status with what only its reader knows.
#[derive(Serialize)]
pub(super) struct LiveStatus<'a> {
    live: bool,
    age_s: u64,
    #[serde(flatten)]
    status: &'a Status,
}

impl<'a> LiveStatus<'a> {
    pub(super) fn new(status: &'a Status) -> Self {
        Self { live: status.is_live(), age_s: status.age().as_secs(), status }
    }
}

fn span(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// How far a run is.
pub(super) fn status(run_dir: &str, status: &Status, all_shards: bool) -> String {
    let mut table = Table::default();
    let who = &status.process;
    let (started, ago) = (&status.started, span(status.age().as_secs()));
    let detail = status.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    table.heading(&match status.state {
        State::Running if status.is_live() => {
            format!("{run_dir} is running: {who} since {started}, reported {ago} ago")
        }
        State::Running => format!(
            "{run_dir} is not running: {who} reported last {ago} ago and ended without a word; the same command resumes"
        ),
        State::Done => format!("{run_dir} is done, {ago} ago"),
        State::Stopped => format!("{run_dir} was stopped {ago} ago{detail}"),
        State::Failed => format!("{run_dir} failed {ago} ago{detail}"),
    });
    for stage in &status.stages {
        let of = match stage.total.filter(|_| !stage.finished) {
            Some(total) if total > 0 => format!(
                "{} of about {total} {} ({:.1} %)",
                stage.done,
                stage.unit,
                100.0 * stage.done as f64 / total as f64
            ),
            _ => format!("{} {}", stage.done, stage.unit),
        };
        let left = match stage.left_s {
            _ if stage.finished => ", done".to_owned(),
            Some(seconds) if status.is_live() => format!(", {} left", span(seconds)),
            _ => String::new(),
        };
        table.row(&stage.name, format!("{of}, {:.0}/s over {}{left}", stage.per_second, span(stage.seconds as u64)));
        if let Some(who) = &stage.bottleneck {
            let device = stage.parts.iter().find(|part| part.name == "device");
            table.row("  bottleneck", bottleneck(who, device.map(|part| part.starved)));
        }
        if stage.shards.is_empty() {
            continue;
        }
        let done = stage.shards.iter().filter(|shard| shard.done).count();
        table.row("  shards", format!("{done} of {} done", stage.shards.len()));
        for shard in &stage.shards {
            let in_hand = !shard.done && (shard.rows > 0 || shard.read > 0.0);
            if all_shards || in_hand {
                let state = if shard.done { "done".to_owned() } else { format!("{:.1} % read", 100.0 * shard.read) };
                let counts = format!(
                    "{} rows committed: {} kept, {} skipped, {} quarantined",
                    shard.rows, shard.kept, shard.skipped, shard.quarantined
                );
                table.row(
                    &format!("    {}", shard.name.rsplit('/').next().unwrap_or(&shard.name)),
                    format!("{state}; {counts}"),
                );
            }
        }
    }
    if let Some(bytes) = status.memory_bytes {
        table.row("resident memory", ByteSize(bytes));
    }
    for (name, reading) in &status.readings {
        let bytes = name.strip_suffix("_bytes");
        let show = |value| if bytes.is_some() { ByteSize(value).to_string() } else { value.to_string() };
        let limit = reading.limit.map_or_else(String::new, |limit| format!(" of {}", show(limit)));
        table.row(&bytes.unwrap_or(name).replace('_', " "), format!("{}{limit}", show(reading.value)));
    }
    table.text
}

fn catalog(table: &mut Table, part: &CatalogReport) {
    table.heading("Labels");
    table.row("classes", format!("{} (from `{}`, matched `{}`)", part.classes, part.source, part.match_rule));
    if part.duplicate_captions > 0 {
        table.row("repeated in the list", part.duplicate_captions);
    }
    table.row("rows with a label", percent(part.labelled_rows, part.pair_rows));
    table.counts(&part.pair_rows_skipped);
    table.row("image URLs with a label", part.labelled_images);
    table.row("classes with an image URL", percent(part.classes_with_images, part.classes));
    let histogram: Vec<String> =
        part.images_per_class.iter().map(|(images, classes)| format!("{images}: {classes}")).collect();
    table.row("classes by image URLs", histogram.join("   "));
    let about = if part.urls_merged_exact { "" } else { "about " };
    table.row("URLs that differ in form alone", format!("{about}{}", part.urls_merged_by_normalising));
}

fn stream(table: &mut Table, part: &StreamReport, catalog: Option<&CatalogReport>) {
    table.heading("Images");
    table.row("rows read", format!("{} in {} shards", part.tally.rows, part.shards));
    table.row("used", part.tally.kept);
    if let Some(catalog) = catalog {
        table.row("labelled URLs with pixels", percent(part.tally.kept, catalog.labelled_images));
        table.row("(image, class) pairs", part.labels);
    }
    table.row("skipped before decoding", part.tally.skipped_rows());
    table.counts(&part.tally.skipped);
    table.row("quarantined", part.tally.quarantined_rows());
    table.counts(&part.tally.quarantined);
}

fn training(table: &mut Table, part: &TrainingReport) {
    table.heading("Training");
    table.row("samples", format!("{}, and {} images held out", part.samples, part.validation_images));
    table.row("steps", part.steps);
    let mixing = part.mixing;
    table.row(
        "order",
        format!(
            "moved by {:.3} of the whole (1/3 at best), neighbours alike by {:.3}",
            mixing.moved, mixing.correlation
        ),
    );
    if let (Some(first), Some(last)) = (part.curve.first(), part.loss) {
        table.row("loss", format!("{:.4} → {last:.4}", first.loss));
    }
    if let Some(point) = &part.validation {
        table.row("validation loss", format!("{:.4}", point.loss));
        table.row("validation NDCG@5", format!("{:.4} (ceiling {:.4})", point.ndcg5, point.ndcg5_ceiling));
    }
    if let Some(best) = &part.best {
        table.row("best epoch", format!("{} with NDCG@5 {:.4}", best.epoch, best.ndcg5));
    }
    for (number, trial) in part.trials.iter().enumerate() {
        let Trial { learning_rate, momentum, weight_decay } = trial.settings;
        let best = trial.best.map_or_else(|| "no figures".to_owned(), |best| format!("NDCG@5 {:.4}", best.ndcg5));
        let settings = format!("learning rate {learning_rate}, momentum {momentum}, weight decay {weight_decay}");
        let wins = if trial.wins { " (predicts)" } else { "" };
        table.row(&format!("head {number}"), format!("{settings}: {best}{wins}"));
    }
}

fn prediction(table: &mut Table, part: &PredictionReport) {
    table.heading("Prediction");
    table.row("ids", format!("{} over {} images", part.ids, part.images));
    table.row("test images used", part.tally.kept);
    table.row("skipped before decoding", part.tally.skipped_rows());
    table.row("quarantined", part.tally.quarantined_rows());
    table.counts(&part.tally.quarantined);
    let instead = if part.text.is_some() { "the first captions of the list" } else { "the most frequent captions" };
    table.row("ids without a usable image", format!("{} (they get {instead})", part.ids_without_image));
    if let Some(scores) = &part.scores {
        table.row(
            "NDCG@5",
            format!(
                "{:.4}   ceiling {:.4} ({:.1} % of it)   chance {:.5}",
                scores.ndcg5,
                scores.ndcg5_ceiling,
                100.0 * scores.ndcg5 / scores.ndcg5_ceiling.max(f64::MIN_POSITIVE),
                scores.ndcg5_chance
            ),
        );
        table
            .row("recall@1, recall@5, MRR", format!("{:.4}, {:.4}, {:.4}", scores.recall1, scores.recall5, scores.mrr));
    }
    if let Some(text) = &part.text {
        table.row("captions ranked", format!("{} of {}", text.captions, text.source));
        if let Some(weight) = text.names_weight {
            table.row("file names count", format!("{weight}, where pixels count 1"));
        }
        if let Some(weight) = text.classes_weight {
            table.row("logits of the other run count", weight);
        }
        if let Some(found) = &text.held_out {
            evidence(table, "NDCG@5 of images held out", found);
        }
        if let Some(found) = &text.test {
            evidence(table, "NDCG@5 of test images", found);
        }
    }
}

/// Scores by evidence: all groups, and languages from the largest on.
fn evidence(table: &mut Table, title: &str, found: &EvidenceReport) {
    const LANGUAGES: usize = 12;
    let by_evidence = |group: &EvidenceGroup| {
        let other = |name: &str, scores: Option<EvidenceScores>| {
            scores.map_or_else(String::new, |scores| format!(", {name} {:.4}", scores.ndcg5))
        };
        let (names, both) = (other("names", group.names), other("both", group.both));
        format!(
            "pixels {:.4}{names}{both}  ({} questions, {} captions)",
            group.pixels.ndcg5, group.questions, group.captions
        )
    };
    table.row(title, format!("{} images", found.images));
    for group in &found.groups {
        table.row(&format!("  {}", group.name), by_evidence(group));
    }
    let mut languages: Vec<&EvidenceGroup> = found.by_language.iter().collect();
    languages.sort_by_key(|group| std::cmp::Reverse(group.questions));
    for group in languages.iter().take(LANGUAGES) {
        table.row(&format!("  {}", group.name), by_evidence(group));
    }
    if languages.len() > LANGUAGES {
        table.row("", format!("  and {} more languages, in the report", languages.len() - LANGUAGES));
    }
}

/// Stages of ingestion, and what machines and devices come to.
pub(super) fn ingest(report: &IngestReport) -> String {
    let mut table = Table::default();
    table.heading("Ingestion, stage by stage on one core");
    let unusable =
        if report.unusable == 0 { String::new() } else { format!(", {} rows cannot be used", report.unusable) };
    table.row("input", format!("{} images at the head of {}{unusable}", report.images, report.shard));
    let stored = report.stored_bytes / 1e3;
    let squares = match report.squares_per_image {
        1.0 => "a square".to_owned(),
        squares => format!("{squares:.2} squares"),
    };
    table.row("an image", format!("{stored:.1} kB as stored, {squares} of {0} × {0} px", report.size_px));
    for stage in &report.stages {
        let StageRate { name, images_per_s, mb_per_s, share } = stage;
        table.row(
            name,
            format!("{images_per_s:>9.0} images/s  {mb_per_s:>7.0} MB/s  {:>5.1} % of the time", 100.0 * share),
        );
    }
    if report.waited_s > 0.05 {
        table.row("waited for the store", format!("{:.1} s", report.waited_s));
    }
    if let Some((rows, mb)) = report.pairs {
        table.row("pairs", format!("{rows:.0} rows/s, {mb:.0} MB/s unpacked"));
    }
    let (threads, rate, scaling) = (report.threads, report.decoded_per_s, report.scaling);
    table.row("decoding together", format!("{rate:.0} images/s on {threads} threads, {scaling:.2} times one"));
    let Whole { written_per_s, counted_per_s } = report.whole;
    let pixels_mb = 3.0 * f64::from(report.size_px).powi(2) * report.squares_per_image / 1e6;
    let to_disk = written_per_s * pixels_mb;
    table.row(
        "the whole, chunks written",
        format!("{written_per_s:.0} images/s, {to_disk:.0} MB/s of pixels to the disk"),
    );
    let share = 100.0 * written_per_s / counted_per_s.max(f64::MIN_POSITIVE);
    table.row("the whole, chunks counted", format!("{counted_per_s:.0} images/s, so writing leaves {share:.0} %"));
    table.heading("What machines of such cores would do");
    for Forecast { cores, images_per_s, bottleneck } in &report.machines {
        table.row(&format!("{cores} cores"), format!("{images_per_s:>9.0} images/s, limited by {bottleneck}"));
    }
    table.heading("What a device needs around it");
    for Demand { images_per_s, cores, read_mb_per_s, scratch_mb_per_s } in &report.devices {
        table.row(
            &format!("{images_per_s:.0} images/s"),
            format!("{cores:.1} cores, {read_mb_per_s:.0} MB/s of shards, {scratch_mb_per_s:.0} MB/s of scratch disk each way"),
        );
    }
    table.text
}

/// A check's findings.
pub(super) fn check(check: &Check) -> String {
    let mut table = Table::default();
    table.heading("Would run");
    for stage in &check.stages {
        table.row("", stage);
    }
    for (title, map) in [("Inputs", &check.inputs), ("Needs", &check.needs), ("Sample", &check.sample)] {
        if !map.is_empty() {
            table.heading(title);
            for (name, value) in map {
                table.row(name, value);
            }
        }
    }
    let verdict = match check.problems.len() {
        0 => "No problem found.".to_owned(),
        1 => "One problem:".to_owned(),
        count => format!("{count} problems:"),
    };
    table.text.push_str(&format!("\n{verdict}\n"));
    table.text
}

/// What a model can run on.
pub(super) fn devices(found: &super::device::Devices) -> String {
    let mut table = Table::default();
    table.heading("A run would use");
    table.row(found.chosen.kind, &found.chosen);
    table.heading("CUDA");
    for card in &found.cuda.devices {
        let (free, all) = (ByteSize(card.free_bytes), ByteSize(card.memory_bytes));
        let about = match &card.problem {
            Some(problem) => problem.clone(),
            None => format!("{}, compute capability {}, {free} of {all} free", card.name, card.compute_capability),
        };
        table.row(&format!("card {}", card.index), about);
    }
    let unknown = || "unknown".to_owned();
    table.row("driver", found.cuda.driver.clone().unwrap_or_else(unknown));
    let include = found.cuda.include.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    table.row("headers", include);
    table.row("problem", found.cuda.problem.as_deref().unwrap_or("none"));
    table.text
}

/// Figures of a forward pass.
pub(super) fn forward(report: &bench::ForwardReport) -> String {
    let mut table = Table::default();
    table.heading(&format!("Forward pass on {}", report.device));
    table.row("images", format!("{} in batches of {}, {}", report.rows, report.batch_size, report.precision));
    table.row("feature", format!("{} values", report.feature_dim));
    table.row("attention", report.attention);
    table.row("first features", format!("after {:.2} s", report.first_features_s));
    table.row("rate", format!("{:.1} images/s, {:.2} TFLOP/s", report.images_per_s, report.tflop_per_s));
    table.text
}

/// Figures of a head's training.
pub(super) fn head(report: &bench::HeadReport) -> String {
    let mut table = Table::default();
    table.heading(&format!("Training on {}", report.device));
    table.row("steps", format!("{}, {}", report.steps, report.precision));
    table.row("first step", format!("{:.2} s", report.first_step_s));
    table.row("rate", format!("{:.0} rows/s", report.rows_per_s));
    if let Some(bytes) = report.peak_memory_bytes {
        table.row("peak memory", ByteSize(bytes));
    }
    if let Some((step, loss)) = report.losses.last() {
        table.row("loss", format!("{loss:.4} at step {step}"));
    }
    table.text
}

/// Figures of ranking.
pub(super) fn rank(report: &bench::RankReport) -> String {
    let mut table = Table::default();
    table.heading(&format!("Ranking on {}", report.device));
    table.row("rate", format!("{:.0} rows/s, {} in {:.2} s", report.rows_per_s, report.rows, report.seconds));
    table.text
}

/// What a path holds.
pub(super) fn inspection(path: &Path, found: &Inspection) -> String {
    let mut table = Table::default();
    table.heading(&format!("{}: {}", path.display(), found.kind));
    for (name, value) in &found.facts {
        table.row(name, value);
    }
    table.text
}

/// What was drawn.
pub(super) fn sample(out: &Path, report: &SampleReport) -> String {
    let mut table = Table::default();
    table.heading(&format!("Drawn into {}: {} files, {}", out.display(), report.files, ByteSize(report.bytes)));
    table.row("pairs", format!("{} rows", report.train_rows));
    table.row(
        "training images",
        format!(
            "{}, {} unusable rows and {} duplicates beside them",
            report.train_images, report.unusable_train_rows, report.duplicate_train_rows
        ),
    );
    table.row("test images", format!("{} for {} ids", report.test_images, report.ids));
    table.row("captions", format!("{}, {} of them distinct", report.captions, report.distinct_captions));
    table.text
}

/// A submission's scores.
pub(super) fn scores(scores: &Scores, ceiling: Option<f64>) -> String {
    let mut table = Table::default();
    table.heading(&format!("{} ids", scores.ids));
    let ceiling = ceiling.map_or_else(String::new, |ceiling| format!("   ceiling {ceiling:.5}"));
    table.row("NDCG@5", format!("{:.5}{ceiling}", scores.ndcg5));
    table.row("recall@1", format!("{:.5}", scores.recall1));
    table.row("recall@5", format!("{:.5}", scores.recall5));
    table.row("MRR", format!("{:.5}", scores.mrr));
    for (name, count) in [
        ("ids without a row", scores.missing_ids),
        ("ids that the truth has not", scores.unknown_ids),
        ("rows beyond the fifth", scores.rows_beyond_five),
        ("repeated captions of an id", scores.repeated_rows),
    ] {
        if count > 0 {
            table.row(name, count);
        }
    }
    table.text
}
