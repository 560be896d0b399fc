//! Results of the smaller commands: `devices`, `inspect`, `sample`, `evaluate`.

use std::path::Path;

use super::Table;
use crate::cli::device::Devices;
use crate::cli::format::{bytes, count, plural};
use crate::init::{Head, Init};
use crate::pipeline::Inspection;
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
    table.row("NDCG@5", format!("{:.5}{ceiling}, mean over {}", scores.ndcg5, plural(scores.ids, "ids")));
    table.row("recall@1", format!("{:.5}", scores.recall1));
    table.row("recall@5", format!("{:.5}", scores.recall5));
    table.row("mean reciprocal rank", format!("{:.5}", scores.mrr));
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
