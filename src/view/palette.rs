//! Colours on light and on dark.

use std::fmt::Write as _;

/// Name of a CSS variable, its value on light, and its value on dark.
const COLOURS: &[(&str, &str, &str)] = &[
    ("page", "#fdfdfc", "#161615"),
    ("panel", "#fff", "#1f1f1d"),
    ("line", "#dddcd8", "#3a3936"),
    ("text", "#1d1d1b", "#ecebe7"),
    ("quiet", "#5c5b56", "#a9a79f"),
    ("accent", "#1a5fa8", "#82b7f0"),
    ("good", "#1d6b34", "#7fce96"),
    ("bad", "#a3261b", "#f29b90"),
    ("fill", "#d7e5f4", "#24405e"),
    ("series-1", "#1a5fa8", "#82b7f0"),
    ("series-2", "#b4500e", "#f0a875"),
    ("series-3", "#1d6b34", "#7fce96"),
    ("series-4", "#7a3e9d", "#cfa3ea"),
    ("series-5", "#8a6a00", "#dcc063"),
    ("series-6", "#0d7377", "#6fcfd3"),
];

/// Media query of a reader who prefers dark.
const DARK: &str = "@media (prefers-color-scheme: dark)";

/// Returns the colours as CSS variables.
pub(super) fn variables() -> String {
    let mut css = String::from(":root { color-scheme: light dark;");
    for (name, light, _) in COLOURS {
        write!(css, " --{name}: {light};").ok();
    }
    write!(css, " }}\n{DARK} {{ :root {{").ok();
    for (name, _, dark) in COLOURS {
        write!(css, " --{name}: {dark};").ok();
    }
    css.push_str(" } }\n");
    css
}

/// Replaces the variables of a style sheet by the colours, for viewers of SVG that know no variables.
pub(super) fn resolve(css: &str) -> String {
    let with = |value: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        COLOURS.iter().fold(css.to_owned(), |css, colour| css.replace(&format!("var(--{})", colour.0), value(colour)))
    };
    format!("{}{DARK} {{\n{}}}\n", with(|colour| colour.1), with(|colour| colour.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_style_has_both_colours_and_no_variables() {
        let css = resolve(".a { stroke: var(--series-2); }\n");
        assert_eq!(css, ".a { stroke: #b4500e; }\n@media (prefers-color-scheme: dark) {\n.a { stroke: #f0a875; }\n}\n");
    }
}
