//! [`RunFile`]: content of `run.toml`, as it is stored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Problem, StageKeys, StoredPipeline};
use crate::objects::Store;
use crate::pipeline::error::PipelineError;
use crate::run_dir::Directory;

/// Name of the file of the manifest in the run directory.
pub(super) const FILE: &str = "run.toml";
/// Version of the artefacts. It changes when equal keys yield different bytes.
pub(super) const FORMAT: u32 = 2;

/// Begin of the name of a prediction's record; its stem follows.
pub(super) const PREDICTION_PREFIX: &str = "predict ";

/// Names in a run directory that may exist before the manifest does.
const OWN_NAMES: [&str; 4] = ["lock", "scratch", "parts", "events"];

/// Content of `run.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// Version of the artefacts.
    #[serde(default = "first_format")]
    pub(super) format: u32,
    /// Records by stage. The stage of a submission is named `predict NAME`.
    pub(crate) stages: BTreeMap<String, StageRecord>,
    /// Files of ranked captions that predictions wrote, by name.
    #[serde(default)]
    pub(crate) predictions: BTreeMap<String, PredictionRecord>,
    /// Files that the command `caption` wrote.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) generated: BTreeSet<String>,
    /// Configuration of the last start that was no ad-hoc prediction.
    pub(crate) config: StoredPipeline,
}

/// A file of ranked captions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PredictionRecord {
    /// True if it is the submission of the run, whose scores are in `report.json`.
    pub(crate) own: bool,
    /// List of captions that were ranked, as its size and a hash; absent if the classes of the run were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) captions: Option<String>,
}

impl Default for RunFile {
    fn default() -> Self {
        Self {
            format: FORMAT,
            stages: BTreeMap::new(),
            predictions: BTreeMap::new(),
            generated: BTreeSet::new(),
            config: StoredPipeline::default(),
        }
    }
}

/// Returns the format of a file that does not name it.
fn first_format() -> u32 {
    1
}

/// Dependencies of the artefacts of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageRecord {
    /// Hash of the keys and of the generations upstream.
    pub(crate) generation: String,
    /// Key → value as TOML.
    pub(crate) keys: StageKeys,
}

/// Returns the stem of a prediction from the name of its record.
pub(super) fn prediction_stem(name: &str) -> &str {
    name.strip_prefix(PREDICTION_PREFIX).unwrap_or(name)
}

/// Begin of the stem of generated captions.
pub(crate) const CAPTIONS_PREFIX: &str = "caption-";

/// Returns whether a stem is that of generated captions.
pub(super) fn is_captions_stem(stem: &str) -> bool {
    stem.starts_with(CAPTIONS_PREFIX)
}

/// Returns whether a record is one that nothing else depends on: of images named on the command line, as `predict images-` and
/// 8 hexadecimal digits, or of generated captions.
pub(super) fn is_made_again(name: &str) -> bool {
    let Some(stem) = name.strip_prefix(PREDICTION_PREFIX) else { return false };
    let is_hash = |hash: &str| hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_captions_stem(stem) || stem.strip_prefix("images-").is_some_and(is_hash)
}

impl RunFile {
    /// Reads `run.toml`; `None` in a new directory.
    ///
    /// # Errors
    /// When another version of the program wrote the file.
    pub(crate) fn read(directory: &Directory) -> Result<Option<Self>, PipelineError> {
        let Some(content) = directory.read(FILE)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&content);
        toml::from_str(&text).map(Some).map_err(|error| {
            let path = directory.display(FILE);
            PipelineError::Generation(format!(
                "`{path}` is not a run file of this version ({}); choose another `run.dir`, or start over with --fresh",
                error.message()
            ))
        })
    }
}

/// Refuses a directory that holds files of others. Changes nothing.
///
/// # Errors
/// As [`RunFile::read`]; and when the directory holds files but no manifest.
pub(crate) fn require_run_directory(directory: &Directory) -> Result<(), PipelineError> {
    read_run_file(directory).map(|_| ())
}

/// Reads `run.toml`; the default in a new or empty directory.
pub(super) fn read_run_file(directory: &Directory) -> Result<RunFile, PipelineError> {
    let read = || {
        let file = RunFile::read(directory)?;
        Ok::<_, PipelineError>(file.map(|mut file| {
            file.infer_predictions();
            file
        }))
    };
    if let Some(file) = read()? {
        return Ok(file);
    }
    let foreign = directory.list("")?.into_iter().find(|name| !OWN_NAMES.contains(&name.as_str()));
    let Some(foreign) = foreign else { return Ok(RunFile::default()) };
    // Another part may have set the run up between the two looks.
    if let Some(file) = read()? {
        return Ok(file);
    }
    let dir = directory.display("");
    Err(refuse_key("run.dir", format!("`{dir}` holds `{foreign}` and is not a run directory; name a new or empty one")))
}

/// Removes credentials from the names of inputs.
pub(crate) fn without_secrets(mut config: StoredPipeline) -> StoredPipeline {
    config.edit_inputs(|name| *name = Store::redact(name).to_owned());
    config
}

impl RunFile {
    /// Fills in the predictions of a file that an earlier version wrote: one for each of their stages.
    fn infer_predictions(&mut self) {
        if !self.predictions.is_empty() {
            return;
        }
        let own = self.config.output().unwrap_or_default();
        let stems = self.stages.keys().filter_map(|name| name.strip_prefix(PREDICTION_PREFIX));
        for stem in stems.filter(|stem| !is_captions_stem(stem)) {
            // A name with an ending in other letters is its own stem.
            let is_whole = std::path::Path::new(stem).extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"));
            let output = if is_whole { stem.to_owned() } else { format!("{stem}.csv") };
            let record = PredictionRecord { own: output == own, captions: None };
            self.predictions.insert(output, record);
        }
    }
}

/// Returns the configuration error of a key.
pub(super) fn refuse_key(key: &str, what: String) -> PipelineError {
    ConfigError(vec![Problem::new(key, what)]).into()
}
