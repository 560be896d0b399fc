//! Charts and pages as text in one design: the files that a run leaves for people, and the parts that the page of
//! `serve` shows. Pure: callers read and write the files.
//!
//! | part | does |
//! | --- | --- |
//! | `palette` | colours on light and on dark |
//! | `scale` | ticks of an axis, numbers for people |
//! | `chart` | a line chart as SVG, for a page and for a file |
//! | `curve` | the charts of `training.csv` |
//! | `examples` | the page of the best and worst held-out images |
//!
//! Every text is escaped. A file needs nothing else: its styles are in it, and it has no script.

mod chart;
mod curve;
mod examples;
mod palette;
mod scale;

pub use chart::{Chart, Limit, Line};
pub use curve::{BestValidation, TrainingCurve};
pub use examples::{Example, ExampleCaption, examples_page};

/// Rules of charts and their legends.
const CHART_STYLE: &str = include_str!("view/chart.css");

/// Returns the style sheet of a page.
pub fn style() -> String {
    format!("{}{}{CHART_STYLE}", palette::variables(), include_str!("view/style.css"))
}

/// Escapes text for HTML and XML, in an element or in a quoted attribute. Control characters that XML forbids become
/// the replacement character.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\t' | '\n' | '\r' => safe.push(letter),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_control_characters_are_escaped() {
        assert_eq!(
            escape("<b a=\"x\" b='y'>&\0\u{8}\t"),
            "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;\u{fffd}\u{fffd}\t"
        );
    }

    #[test]
    fn style_knows_every_colour_that_it_uses() {
        let style = style();
        for part in style.split("var(--").skip(1) {
            let name = part.split(')').next().unwrap();
            assert_eq!(style.matches(&format!("--{name}: ")).count(), 2, "{name}");
        }
    }
}
