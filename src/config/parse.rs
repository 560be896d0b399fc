//! TOML text → raw structs. An unknown key is reported with the nearest valid one.

use documented::DocumentedFields;
use serde::de::DeserializeOwned;
use toml::Value;

use super::raw::{RawMachine, RawPipeline};
use super::reference::{Key, keys_of_machine, keys_of_pipeline};
use super::value::MemoryLimit;
use super::{ConfigError, Problem};
use crate::types::AvailableMemory;

/// Earlier names of keys, still accepted: section, earlier name, name. The raw structs have them as aliases.
const EARLIER_NAMES: [(&str, &str, &str); 2] =
    [("store", "patience", "retry_budget"), ("store", "silence", "read_timeout")];

/// A pipeline file with known keys and values of the right types, which [`super::RunConfig::check`] checks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PipelineFile(pub(super) RawPipeline);

impl PipelineFile {
    /// Reads the text of a pipeline file.
    ///
    /// # Errors
    /// Lists the syntax error, or every unknown key and every value of a wrong type.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        read(text, &keys_of_pipeline(), RawPipeline::FIELD_NAMES).map(Self)
    }
}

/// A machine file with known keys and values of the right types, which [`super::RunConfig::check`] or
/// [`super::MachineConfig::check`] checks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MachineFile {
    pub(super) raw: RawMachine,
    pub(super) available: Option<AvailableMemory>,
}

impl MachineFile {
    /// Reads the text of a machine file.
    ///
    /// # Errors
    /// Lists the syntax error, or every unknown key and every value of a wrong type.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw = read(text, &keys_of_machine(), RawMachine::FIELD_NAMES)?;
        Ok(Self { raw, available: None })
    }

    /// Adds the memory that the process may use: the base of `limits.memory = "auto"`, and the upper bound of any other
    /// value. Without it, the memory counts as plentiful.
    #[must_use]
    pub fn with_available_memory(self, available: Option<AvailableMemory>) -> Self {
        Self { available, ..self }
    }

    /// Returns the settings of a process that takes one of `count` equal shares of the limits of a machine with `cores`
    /// cores.
    #[must_use]
    pub fn share(mut self, count: u32, cores: u32) -> Self {
        let limits = &mut self.raw.limits;
        limits.disk.0 /= u64::from(count);
        if let MemoryLimit::Bytes(memory) = &mut limits.memory {
            memory.0 /= u64::from(count);
        }
        if let Some(available) = &mut self.available {
            available.bytes /= u64::from(count);
        }
        let workers = if limits.cpu_workers == 0 { cores } else { limits.cpu_workers };
        limits.cpu_workers = (workers / count).max(1);
        self
    }
}

fn read<T: DeserializeOwned>(text: &str, keys: &[Key], sections: &[&str]) -> Result<T, ConfigError> {
    let parsed: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        ConfigError(vec![Problem::new("", format!("line {line} is not TOML: {}", one_line(error.message())))])
    })?;
    let mut problems = find_unknown(&parsed, keys, sections);
    let mut value = parsed;
    loop {
        // The parser stops at a value of a wrong type. It is reported and removed, and the rest is parsed again.
        let error = match serde_path_to_error::deserialize(Value::Table(value.clone())) {
            Ok(raw) if problems.is_empty() => return Ok(raw),
            Ok(_) => return Err(ConfigError(problems)),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let reason = one_line(error.into_inner().message());
        // `find_unknown` has reported an unknown key, with the nearest valid name. It is removed below like any other.
        if !reason.starts_with("unknown field") {
            problems.push(Problem::new(path.trim_start_matches('.'), reason));
        }
        if !remove_key(&mut value, &path) {
            return Err(ConfigError(problems));
        }
    }
}

/// Removes the key at a path such as `train.epochs` or `images.shards[0]`, or its section. Returns false if it is absent.
fn remove_key(value: &mut toml::Table, path: &str) -> bool {
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

/// Reports unknown sections and keys.
fn find_unknown(file: &toml::Table, keys: &[Key], sections: &[&str]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (section, value) in file {
        if !sections.contains(&section.as_str()) {
            problems.push(Problem::new(section, suggestion("section", section, sections.iter().copied(), "")));
            continue;
        }
        let Some(table) = value.as_table() else { continue };
        let valid: Vec<&str> = keys.iter().filter(|key| key.section == *section).map(|key| key.name).collect();
        for name in table.keys() {
            if !valid.contains(&name.as_str()) && !is_earlier_name(section, name) {
                let path = format!("{section}.{name}");
                problems.push(Problem::new(path, suggestion("key", name, valid.iter().copied(), section)));
            }
        }
    }
    problems
}

fn is_earlier_name(section: &str, name: &str) -> bool {
    EARLIER_NAMES.iter().any(|(of_section, earlier, _)| (*of_section, *earlier) == (section, name))
}

/// Returns `unknown key, did you mean …?`, or the valid names where none is near.
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
    fn unknown_key_gets_the_nearest_valid_name() {
        let error = PipelineFile::parse("[run]\ndir = 'x'\nsede = 1\n[trian]\n[train]\nepohcs = 3\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`run.sede`: unknown key, did you mean `run.seed`?"), "{text}");
        assert!(text.contains("`trian`: unknown section, did you mean `train`?"), "{text}");
        assert!(text.contains("`train.epohcs`: unknown key, did you mean `train.epochs`?"), "{text}");
    }

    #[test]
    fn wrong_type_names_its_key() {
        let error = PipelineFile::parse("[train]\nepochs = 'three'\n").unwrap_err();
        assert_eq!(error.0[0].key, "train.epochs");
        assert!(error.to_string().contains("invalid type"), "{error}");
    }

    #[test]
    fn all_wrong_types_are_reported_at_once() {
        let text = "[run]\ndir = 3\nseed = 'x'\n[images]\nshards = ['a', 1]\n[preprocess]\nsize_px = '224'\nsise = 1\n";
        let error = PipelineFile::parse(text).unwrap_err();
        let keys: Vec<&str> = error.0.iter().map(|problem| problem.key.as_str()).collect();
        for key in ["run.dir", "run.seed", "images.shards", "preprocess.size_px", "preprocess.sise"] {
            assert!(keys.iter().any(|found| found.starts_with(key)), "{key} is not in {error}");
        }
    }

    #[test]
    fn wrong_word_lists_the_valid_ones() {
        let error = PipelineFile::parse("[captions]\nmatch = 'fuzzy'\n").unwrap_err();
        assert!(error.to_string().contains("`captions.match`: unknown variant `fuzzy`, expected one of"), "{error}");
    }

    #[test]
    fn broken_toml_names_the_line() {
        let error = PipelineFile::parse("[run]\ndir = \n").unwrap_err();
        assert!(error.to_string().starts_with("line 2 is not TOML"), "{error}");
    }

    #[test]
    fn empty_file_gives_defaults() {
        assert_eq!(PipelineFile::parse("").unwrap(), PipelineFile::default());
        assert_eq!(MachineFile::parse("").unwrap(), MachineFile::default());
    }

    #[test]
    fn earlier_names_are_accepted() {
        for (section, earlier, name) in EARLIER_NAMES {
            let parse = |key: &str| MachineFile::parse(&format!("[{section}]\n{key} = '7 s'\n")).unwrap();
            assert_eq!(parse(earlier), parse(name), "{section}.{earlier}");
            assert_ne!(parse(earlier), MachineFile::default());
        }
    }

    #[test]
    fn both_names_of_a_key_are_refused() {
        let error = MachineFile::parse("[store]\npatience = '7 s'\nretry_budget = '8 s'\n").unwrap_err();
        assert!(error.to_string().contains("retry_budget"), "{error}");
    }
}
