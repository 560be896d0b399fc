//! `runs`: several runs side by side.

use super::Table;
use crate::cli::format::{count, duration, number};
use crate::serve::Comparison;

/// Renders the scores of runs, and the settings in which they differ.
pub(in crate::cli) fn comparison(comparison: &Comparison) -> String {
    let mut table = Table::with_headings();
    for run in &comparison.runs {
        table.heading(&format!("{}: {}", run.name, run.state));
        let score = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), number);
        table.row("test NDCG@5", score(run.test_ndcg5));
        table.row("validation NDCG@5, best", score(run.validation_ndcg5));
        table.row("images used", run.images.map_or_else(|| "–".to_owned(), count));
        table.row("time", duration(run.seconds));
    }
    if comparison.runs.len() > 1 {
        table.heading("Settings that differ");
        for (key, values) in &comparison.differences {
            let values: Vec<&str> = values.iter().map(|value| value.as_deref().unwrap_or("–")).collect();
            table.row(key, values.join(" | "));
        }
    }
    table.text
}
