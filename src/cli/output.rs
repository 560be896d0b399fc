//! Printing. Results go to standard output, errors to standard error.
//!
//! Names and captions come from data, so control characters are escaped before anything reaches a terminal.

use std::borrow::Cow;
use std::io::Write as _;

use super::Failure;

/// Replaces control and text-direction characters by escapes such as `\x1b`; line ends and tabs stay.
pub(super) fn escape_controls(text: &str) -> Cow<'_, str> {
    let unsafe_char = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(unsafe_char) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\r' => safe.push_str("\\r"),
            c if c.is_ascii() && unsafe_char(c) => safe.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if unsafe_char(c) => safe.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Prints what clap says about the command line, whose arguments may be names with control characters.
pub(super) fn print_usage_error(error: &clap::Error) {
    let text = error.render().to_string();
    match escape_controls(&text) {
        // clap colours its text on a terminal.
        Cow::Borrowed(_) => error.print().unwrap_or_default(),
        Cow::Owned(safe) => write!(std::io::stderr().lock(), "{safe}").unwrap_or_default(),
    }
}

/// Writes to standard output as it is. A closed pipe is not an error.
pub(super) fn print_raw(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).ok();
    if !text.ends_with('\n') {
        out.write_all(b"\n").ok();
    }
    out.flush().ok();
}

/// Writes text for people to standard output.
pub(super) fn print(text: &str) {
    print_raw(&escape_controls(text));
}

/// Writes a value to standard output as indented JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(5, error.to_string()))?;
    // serde_json escapes only the first 32 control characters. The others, and those of text direction, occur in strings
    // alone, where `\u009b` means the same.
    let escaped = text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => escaped.push(c),
        }
        escaped
    });
    print_raw(&escaped);
    Ok(())
}

/// Prints a result as JSON or as text.
pub(super) fn emit(json: bool, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if json {
        return print_json(value);
    }
    print(&text());
    Ok(())
}

/// Prints a failure to standard error. A run that was asked to stop is not reported as an error.
pub(super) fn print_failure(failure: &Failure) {
    if failure.message.is_empty() {
        return;
    }
    let message = escape_controls(&failure.message);
    let label = if failure.is_stop() { "" } else { "error: " };
    let mut lines = message.lines();
    let mut out = std::io::stderr().lock();
    if let Some(first) = lines.next() {
        writeln!(out, "{label}{first}").ok();
    }
    for line in lines {
        writeln!(out, "{:1$}{line}", "", label.len()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape_controls("a\tb\nc"), "a\tb\nc");
        assert_eq!(escape_controls("\u{1b}[31mred\u{7}\r"), "\\x1b[31mred\\x07\\r");
        assert_eq!(escape_controls("\u{9b}2J é \u{202e}x"), "\\u{9b}2J é \\u{202e}x");
    }
}
