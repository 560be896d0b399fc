//! Results as text for people, at most 80 columns wide.
//!
//! Measurements have three significant digits, counts are exact. Scripts read `--json` instead; its fields are stable, this
//! text is not.

mod bench;
mod captions;
mod check;
mod compare;
mod details;
mod run;
mod small;
mod status;

pub(super) use bench::{embed, fit, forward, head, ingest, rank};
pub(super) use captions::caption_scores;
pub(super) use check::check;
pub(super) use compare::comparison;
pub(super) use run::run;
pub(super) use small::{devices, init, inspection, sample, scores};
pub(super) use status::{LiveStatus, status};

use std::borrow::Cow;

use super::format::percent;
use crate::pipeline::report::Bottleneck;

/// Longest line, in characters.
const WIDTH: usize = 80;

/// Lines of an aligned name and a value, under optional headings. Long values continue below themselves.
struct Table {
    text: String,
    name_width: usize,
    indent: usize,
}

impl Table {
    /// Starts a table without headings.
    fn new(name_width: usize) -> Self {
        Self { text: String::new(), name_width, indent: 0 }
    }

    /// Starts a table whose rows are indented below headings.
    fn with_headings() -> Self {
        Self { text: String::new(), name_width: 26, indent: 2 }
    }

    fn heading(&mut self, title: &str) {
        let blank = if self.text.is_empty() { "" } else { "\n" };
        self.text.push_str(&format!("{blank}{}\n", wrap(&one_line(title), WIDTH).join("\n")));
    }

    fn row(&mut self, name: &str, value: impl std::fmt::Display) {
        let start = self.indent + self.name_width + 1;
        let name = one_line(name);
        let mut name = format!("{:1$}{name:<2$} ", "", self.indent, self.name_width);
        for line in wrap(&one_line(&value.to_string()), WIDTH.saturating_sub(start)) {
            self.text.push_str(format!("{name}{line}").trim_end());
            self.text.push('\n');
            name = " ".repeat(start);
        }
    }
}

/// Escapes line ends and tabs, so that a name from data cannot look like a row of its own.
fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(['\n', '\t']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\n', "\\n").replace('\t', "\\t"))
}

/// Breaks text between words into lines of at most `width` characters. Longer words get a line of their own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Says what slowed a stage down, and how long its device had no input.
fn describe_bottleneck(bottleneck: &Bottleneck, device_waited: Option<f64>) -> String {
    let share = percent(bottleneck.share);
    let mut text = if bottleneck.who.is_outside() {
        format!("waiting for {} {share} of the time", bottleneck.who)
    } else {
        format!("`{}` busy {share} of the time", bottleneck.who)
    };
    if let Some(waited) = device_waited {
        text.push_str(&format!("; the device waited for data {}", percent(waited)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_continue_below_themselves() {
        let mut table = Table::new(8);
        table.row("name", "word ".repeat(30).trim_end());
        assert!(table.text.lines().all(|line| line.chars().count() <= WIDTH), "{}", table.text);
        assert!(table.text.lines().skip(1).all(|line| line.starts_with("         word")), "{}", table.text);
    }

    #[test]
    fn line_end_of_a_value_makes_no_row() {
        let mut table = Table::new(8);
        table.row("a\nb", "one\n\ttwo");
        assert_eq!(table.text, "a\\nb     one\\n\\ttwo\n");
    }

    #[test]
    fn bottleneck_inside_is_busy_and_outside_is_waited_for() {
        let text = |who: &str| {
            let bottleneck = serde_json::from_value(serde_json::json!({ "who": who, "share": 0.5 })).unwrap();
            describe_bottleneck(&bottleneck, None)
        };
        assert_eq!(text("decode"), "`decode` busy 50.0 % of the time");
        assert_eq!(text("the store"), "waiting for the store 50.0 % of the time");
    }
}
