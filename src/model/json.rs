//! Parses JSON files of a checkpoint and recognises files that are not what their names say.
//!
//! Python's `json` module, and so transformers, reads and writes the numbers `NaN`, `Infinity` and `-Infinity`, which
//! JSON does not have. They are accepted here: an ignored key may hold one, and a key that is read rejects it by name.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;

use crate::model::error::ModelError;

/// Parses JSON; an error about a wrong type names the key. A number that is not finite is read as a string.
pub(super) fn parse_json<T: for<'de> Deserialize<'de>>(text: &[u8], path: &Path) -> Result<T, ModelError> {
    parse(text, path, |number| format!("\"{number}\""))
}

/// Parses a JSON object that is written again. A number that is not finite is read as transformers 5 writes it,
/// `{"__float__": "NaN"}`.
pub(super) fn parse_json_object(text: &[u8], path: &Path) -> Result<Map<String, Value>, ModelError> {
    parse(text, path, |number| format!("{{\"__float__\": \"{number}\"}}"))
}

fn parse<T: for<'de> Deserialize<'de>>(
    text: &[u8],
    path: &Path,
    replacement: impl Fn(&str) -> String,
) -> Result<T, ModelError> {
    let json = replace_non_finite(text, replacement);
    let mut parser = serde_json::Deserializer::from_slice(&json);
    serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        if let Some((content, advice)) = recognise_wrong_content(text) {
            return ModelError::WrongContent { path: path.to_owned(), content, expected: "JSON", advice };
        }
        let key = error.path().to_string();
        let reason = if key == "." { error.inner().to_string() } else { format!("`{key}`: {}", error.inner()) };
        ModelError::Json { path: path.to_owned(), reason }
    })
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside of strings.
fn replace_non_finite(text: &[u8], replacement: impl Fn(&str) -> String) -> Cow<'_, [u8]> {
    const NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    let mut output: Vec<u8> = Vec::new();
    let (mut at, mut copied, mut in_string) = (0, 0, false);
    while at < text.len() {
        match text[at] {
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            b'N' | b'I' | b'-' if !in_string => {
                if let Some(number) = NUMBERS.iter().find(|number| text[at..].starts_with(number.as_bytes())) {
                    output.extend_from_slice(&text[copied..at]);
                    output.extend_from_slice(replacement(number).as_bytes());
                    at += number.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    output.extend_from_slice(&text[copied..]);
    Cow::Owned(output)
}

/// Recognises the start of a Git LFS pointer or an HTML page; returns its name and advice to the user.
pub(super) fn recognise_wrong_content(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins_with =
        |prefix: &str| start.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()));
    if begins_with("version https://git-lfs.github.com/spec/") {
        Some(("a Git LFS pointer", "run `git lfs pull`"))
    } else if begins_with("<!doctype html") || begins_with("<html") {
        Some(("an HTML page", "download the file again, and check its address and your access"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Config {
        width: Option<f64>,
    }

    fn parse_text(text: &str) -> Result<Config, ModelError> {
        parse_json(text.as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn ignored_key_may_be_nan() {
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "\"NaN", "width": 2}"#;
        assert_eq!(parse_text(text).unwrap().width, Some(2.0));
        let object = parse_json_object(text.as_bytes(), Path::new("config.json")).unwrap();
        assert_eq!(object["a"]["__float__"], "NaN");
        assert_eq!(object["b"][0]["__float__"], "-Infinity");
        assert_eq!(object["c"], "\"NaN");
    }

    #[test]
    fn nan_in_a_used_key_is_rejected_by_name() {
        let error = parse_text(r#"{"width": NaN}"#).unwrap_err().to_string();
        assert!(error.contains("`width`: invalid type: string \"NaN\""), "{error}");
    }

    #[test]
    fn pointer_and_page_are_named() {
        let error = parse_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").unwrap_err();
        assert_eq!(error.to_string(), "`config.json` is a Git LFS pointer, not JSON: run `git lfs pull`");
        let error = parse_text(" \n<!DOCTYPE HTML><html></html>").unwrap_err().to_string();
        assert!(error.starts_with("`config.json` is an HTML page, not JSON: download the file again"), "{error}");
    }
}
