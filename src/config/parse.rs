//! TOML text → raw structs, with every unknown key named beside the nearest valid one.

use documented::DocumentedFields;
use serde::de::DeserializeOwned;
use toml::Value;

use super::raw::{RawMachine, RawPipeline};
use super::reference::{Key, keys_of_machine, keys_of_pipeline};
use super::{ConfigError, Problem};

/// Reads a pipeline file's text.
///
/// # Errors
/// Lists the syntax error, or every unknown key and the first value of a wrong type.
pub fn pipeline(text: &str) -> Result<RawPipeline, ConfigError> {
    read(text, &keys_of_pipeline(), RawPipeline::FIELD_NAMES)
}

/// Reads a machine file's text.
///
/// # Errors
/// As [`pipeline`].
pub fn machine(text: &str) -> Result<RawMachine, ConfigError> {
    read(text, &keys_of_machine(), RawMachine::FIELD_NAMES)
}

fn read<T: DeserializeOwned>(text: &str, keys: &[Key], sections: &[&str]) -> Result<T, ConfigError> {
    let parsed: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        ConfigError(vec![Problem::new("", format!("line {line} is not TOML: {}", one_line(error.message())))])
    })?;
    let mut problems = unknown(&parsed, keys, sections);
    let mut value = parsed;
    loop {
        // A value of a wrong type ends the parser's work, so it is noted and taken out, and the rest is tried again.
        let error = match serde_path_to_error::deserialize(Value::Table(value.clone())) {
            Ok(raw) if problems.is_empty() => return Ok(raw),
            Ok(_) => return Err(ConfigError(problems)),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let reason = one_line(error.into_inner().message());
        // An unknown key is listed already, with the nearest valid name, and taken out below like any other.
        if !reason.starts_with("unknown field") {
            problems.push(Problem::new(path.trim_start_matches('.'), reason));
        }
        if !take_out(&mut value, &path) {
            return Err(ConfigError(problems));
        }
    }
}

/// Removes the key at a path such as `train.epochs` or `images.shards[0]`, or its section; false when nothing is there.
fn take_out(value: &mut toml::Table, path: &str) -> bool {
    let mut names = path.split(['.', '[']);
    let section = names.next().unwrap_or_default();
    match (value.get_mut(section), names.next()) {
        (Some(Value::Table(table)), Some(name)) if table.contains_key(name) => table.remove(name).is_some(),
        _ => value.remove(section).is_some(),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn unknown(file: &toml::Table, keys: &[Key], sections: &[&str]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (section, value) in file {
        if !sections.contains(&section.as_str()) {
            problems.push(Problem::new(section, suggestion("section", section, sections.iter().copied(), "")));
            continue;
        }
        let Some(table) = value.as_table() else { continue };
        let valid: Vec<&str> = keys.iter().filter(|key| key.section == *section).map(|key| key.name).collect();
        for name in table.keys() {
            if !valid.contains(&name.as_str()) {
                let path = format!("{section}.{name}");
                problems.push(Problem::new(path, suggestion("key", name, valid.iter().copied(), section)));
            }
        }
    }
    problems
}

/// `unknown key, did you mean …?`, or the valid names where none is near.
fn suggestion<'a>(kind: &str, name: &str, valid: impl Iterator<Item = &'a str> + Clone, section: &str) -> String {
    let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
    let nearest = valid
        .clone()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance * 2 <= candidate.len().max(name.len()));
    match nearest {
        Some((_, candidate)) => format!("unknown {kind}, did you mean `{prefix}{candidate}`?"),
        None => format!("unknown {kind}; valid here: {}", valid.collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unknown_key_is_named_with_the_nearest_valid_one() {
        let error = pipeline("[run]\ndir = 'x'\nsede = 1\n[trian]\n[train]\nepohcs = 3\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`run.sede`: unknown key, did you mean `run.seed`?"), "{text}");
        assert!(text.contains("`trian`: unknown section, did you mean `train`?"), "{text}");
        assert!(text.contains("`train.epohcs`: unknown key, did you mean `train.epochs`?"), "{text}");
    }

    #[test]
    fn a_wrong_type_names_its_key() {
        let error = pipeline("[train]\nepochs = 'three'\n").unwrap_err();
        assert_eq!(error.0[0].key, "train.epochs");
        assert!(error.to_string().contains("invalid type"), "{error}");
    }

    #[test]
    fn every_wrong_type_is_named_at_once() {
        let text = "[run]\ndir = 3\nseed = 'x'\n[images]\nshards = ['a', 1]\n[preprocess]\nsize_px = '224'\nsise = 1\n";
        let error = pipeline(text).unwrap_err();
        let keys: Vec<&str> = error.0.iter().map(|problem| problem.key.as_str()).collect();
        for key in ["run.dir", "run.seed", "images.shards", "preprocess.size_px", "preprocess.sise"] {
            assert!(keys.iter().any(|found| found.starts_with(key)), "{key} is not in {error}");
        }
    }

    #[test]
    fn a_wrong_word_lists_the_valid_ones() {
        let error = pipeline("[captions]\nmatch = 'fuzzy'\n").unwrap_err();
        assert!(error.to_string().contains("`captions.match`: unknown variant `fuzzy`, expected one of"), "{error}");
    }

    #[test]
    fn broken_toml_names_the_line() {
        let error = pipeline("[run]\ndir = \n").unwrap_err();
        assert!(error.to_string().starts_with("line 2 is not TOML"), "{error}");
    }

    #[test]
    fn an_empty_file_is_a_file_of_defaults() {
        assert_eq!(pipeline("").unwrap(), RawPipeline::default());
        assert_eq!(machine("").unwrap(), RawMachine::default());
    }
}
