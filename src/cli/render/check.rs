//! `check`: what a run would do, and every problem.

use super::Table;
use crate::pipeline::Check;

/// Renders the findings of a check. Problems come last, one line each.
pub(in crate::cli) fn check(check: &Check) -> String {
    let mut table = Table::with_headings();
    if !check.stages.is_empty() {
        table.heading("Stages");
        for stage in &check.stages {
            table.row(stage, "");
        }
    }
    for (title, map) in [
        ("Inputs", &check.inputs),
        ("Machine", &check.machine),
        ("Needs", &check.needs),
        ("Estimates, from the first rows", &check.estimates),
        ("First rows", &check.sample),
    ] {
        if !map.is_empty() {
            table.heading(title);
            for (name, value) in map {
                table.row(name, value);
            }
        }
    }
    if check.problems.is_empty() && check.warnings.is_empty() {
        table.text.push_str("\nNo problem found.\n");
    }
    for (list, kind) in [(&check.problems, "problem"), (&check.warnings, "warning")] {
        match list.len() {
            0 => continue,
            1 => table.text.push_str(&format!("\n1 {kind}:\n")),
            several => table.text.push_str(&format!("\n{several} {kind}s:\n")),
        }
        for problem in list {
            table.text.push_str(&format!("  {}\n", problem.replace('\n', "\n    ")));
        }
    }
    table.text
}
