//! Results of the smaller commands: `devices`, `inspect`, `sample`, `evaluate`.

use std::path::Path;

use super::Table;
use crate::cli::device::Devices;
use crate::cli::format::{bytes, count, plural};
use crate::init::{Head, Init};
use crate::pipeline::Inspection;
use crate::predict::bootstrap::Interval;
use crate::predict::evaluate::Scores;
use crate::sample::SampleReport;

/// Renders the devices of this machine.
pub(in crate::cli) fn devices(devices: &Devices) -> String {
    let mut table = Table::with_headings();
    table.heading("A run would use");
    table.row(devices.chosen.kind, &devices.chosen);
    table.heading("CUDA");
    for card in &devices.cuda.devices {
        let (free, total) = (bytes(card.free_bytes), bytes(card.memory_bytes));
        let text = match &card.problem {
            Some(problem) => problem.clone(),
            None => format!("{}, compute capability {}, {free} of {total} free", card.name, card.compute_capability),
        };
        table.row(&format!("GPU {}", card.index), text);
    }
    let driver = devices.cuda.driver.as_deref().unwrap_or("not found");
    let cuda =
        devices.cuda.driver_cuda.as_ref().map_or_else(String::new, |cuda| format!(", supports CUDA up to {cuda}"));
    table.row("driver", format!("{driver}{cuda}"));
    table.row("NVRTC", devices.cuda.toolkit.as_deref().unwrap_or("not found"));
    let headers =
        devices.cuda.include.as_ref().map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    table.row("toolkit headers", headers);
    for problem in devices.cuda.problem.as_deref().unwrap_or("none").split("; ") {
        table.row("problem", problem);
    }
    table.text
}

/// Renders the content of a file or directory.
pub(in crate::cli) fn inspection(path: &Path, inspection: &Inspection) -> String {
    let mut table = Table::with_headings();
    table.heading(&format!("{}: {}", path.display(), inspection.kind));
    for (name, value) in &inspection.facts {
        table.row(name, value);
    }
    table.text
}

/// Files that are not used and are listed.
const MAX_LEFT_OUT: usize = 10;

/// Renders what `init` found and wrote.
pub(in crate::cli) fn init(file: &Path, init: &Init) -> String {
    let mut table = Table::with_headings();
    table.heading("Found");
    for (name, value) in &init.found {
        table.row(name, value);
    }
    for (index, what) in init.left_out.iter().take(MAX_LEFT_OUT).enumerate() {
        table.row(if index == 0 { "left out" } else { "" }, what);
    }
    if init.left_out.len() > MAX_LEFT_OUT {
        table.row("", format!("and {} more", init.left_out.len() - MAX_LEFT_OUT));
    }
    table.heading("Chosen");
    let head = match init.head {
        Head::Text => "text",
        Head::Classes => "classes",
        Head::None => "none",
    };
    table.row("head", format!("{head}: {}", init.reason));
    table.heading(&format!("Wrote `{}`", file.display()));
    table.row("next", format!("wikicap-pipeline check {}", file.display()));
    table.text
}

/// Renders the counts of a synthetic corpus.
pub(in crate::cli) fn sample(out: &Path, report: &SampleReport) -> String {
    let mut table = Table::with_headings();
    let files = plural(u64::from(report.files), "files");
    table.heading(&format!("{}: {files}, {}", out.display(), bytes(report.bytes)));
    table.row("caption rows", count(report.train_rows));
    let (unusable, duplicates) = (report.unusable_train_rows, report.duplicate_train_rows);
    let images = count(u64::from(report.train_images));
    table.row("training images", format!("{images}, plus {unusable} unusable rows and {duplicates} duplicates"));
    table.row("test images", format!("{} for {}", report.test_images, plural(u64::from(report.ids), "ids")));
    let (captions, distinct) = (u64::from(report.captions), u64::from(report.distinct_captions));
    table.row("captions", format!("{}, of which {} are distinct", count(captions), count(distinct)));
    table.text
}

/// Renders the scores of a submission with five decimals, by which submissions are compared, and what is odd about it.
pub(in crate::cli) fn scores(scores: &Scores, ceiling: Option<f64>) -> String {
    let mut table = Table::new(26);
    let ceiling = ceiling.map_or_else(String::new, |ceiling| format!(" (ceiling {ceiling:.5})"));
    let (means, intervals) = (&scores.means, scores.means.intervals.as_ref());
    let score = |value: f64, interval: Option<Interval>| {
        format!("{value:.5}{}", interval.map_or_else(String::new, |own| format!(" [{:.5}, {:.5}]", own.low, own.high)))
    };
    let ndcg5 = score(means.ndcg5, intervals.map(|own| own.ndcg5));
    table.row("NDCG@5", format!("{ndcg5}{ceiling}, mean over {}", plural(scores.ids, "ids")));
    table.row("recall@1", score(means.recall1, intervals.map(|own| own.recall1)));
    table.row("recall@5", score(means.recall5, intervals.map(|own| own.recall5)));
    table.row("mean reciprocal rank", score(means.mrr, intervals.map(|own| own.mrr)));
    if let Some(rank) = means.mean_rank {
        let interval = intervals.and_then(|own| own.mean_rank);
        let interval = interval.map_or_else(String::new, |own| format!(" [{:.3}, {:.3}]", own.low, own.high));
        let ids = plural(scores.ranked_ids, "ids");
        table.row("mean rank", format!("{rank:.3}{interval}, of the {ids} whose caption has a row"));
    }
    if intervals.is_some() {
        table.row("", "[95 % confidence, by the bootstrap over images]");
    }
    for own in &scores.by_language {
        let ndcg5 = score(own.means.ndcg5, own.means.intervals.map(|intervals| intervals.ndcg5));
        let recall1 = score(own.means.recall1, own.means.intervals.map(|intervals| intervals.recall1));
        let ids = plural(own.ids, "ids");
        table.row(&format!("language {}", own.language), format!("NDCG@5 {ndcg5}, recall@1 {recall1}, {ids}"));
    }
    for (name, value) in [
        ("ids without a row", scores.missing_ids),
        ("ids unknown to the truth", scores.unknown_ids),
        ("rows after the fifth", scores.rows_beyond_five),
        ("repeated captions", scores.repeated_rows),
    ] {
        if value > 0 {
            table.row(name, count(value));
        }
    }
    table.text
}
