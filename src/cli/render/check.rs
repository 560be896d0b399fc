//! `check`: what a run would do, and every problem.

use super::Table;
use crate::pipeline::Check;

/// Renders the findings of a check. Problems come last, one line each.
pub(in crate::cli) fn check(check: &Check) -> String {
    let mut table = Table::with_headings();
    table.heading("Stages");
    for stage in &check.stages {
        table.row(stage, "");
    }
    for (title, map) in [("Inputs", &check.inputs), ("Needs", &check.needs), ("First rows", &check.sample)] {
        if !map.is_empty() {
            table.heading(title);
            for (name, value) in map {
                table.row(name, value);
            }
        }
    }
    let verdict = match check.problems.len() {
        0 => "No problem found.".to_owned(),
        1 => "1 problem:".to_owned(),
        problems => format!("{problems} problems:"),
    };
    table.text.push_str(&format!("\n{verdict}\n"));
    for problem in &check.problems {
        table.text.push_str(&format!("  {}\n", problem.replace('\n', "\n    ")));
    }
    table.text
}
