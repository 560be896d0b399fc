//! `run.toml`: the resolved configuration of a run directory and, for each stage, the keys that its artefacts were made
//! with, so that a changed key is refused instead of mixing two generations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PipelineError;
use crate::config::plan::Stage;
use crate::config::raw::{RawPipeline, RawPredict};
use crate::config::{ConfigError, Problem, RunConfig, StageKeys};
use crate::objects::{Object, Store, StoreError};
use crate::run_dir::Directory;

/// Name of the file inside the run directory.
const FILE: &str = "run.toml";
/// The key that says what a checkpoint's files hold, wherever they are.
pub(super) const CHECKPOINT_FILES: &str = "model.checkpoint (files)";
/// The same of a text encoder's.
pub(super) const ENCODER_FILES: &str = "text.encoder (files)";
/// Changes when the bytes of an artefact change for equal keys.
const FORMAT: &str = "1";

/// What `run.toml` holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RunFile {
    /// Each stage's keys; a submission's stage is named `predict NAME`.
    pub(super) stages: BTreeMap<String, StageRecord>,
    /// The whole configuration of the last start.
    pub(super) config: RawPipeline,
}

/// What the artefacts of one stage depend on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct StageRecord {
    /// Hash of the keys, and of those of the stages before it.
    pub(super) generation: String,
    /// Key → value, as TOML.
    pub(super) keys: StageKeys,
}

/// The stages of this start with their keys, compared with what the directory holds.
#[derive(Debug)]
pub(super) struct Manifest {
    directory: Directory,
    file: RunFile,
    /// The stage from which everything is recomputed, if any.
    from: Option<Stage>,
    proposed: Vec<(String, StageRecord)>,
    /// Stages that were made with other keys, in the order of the flow.
    refused: Vec<(Stage, StageKeys, StageKeys)>,
}

/// Adds what a listing resolved to: the names of the files and the fingerprints of what they hold.
///
/// # Errors
/// When a file cannot be read.
pub(super) async fn add_inputs(
    store: &Store,
    keys: &mut StageKeys,
    key: &str,
    objects: &[Object],
) -> Result<(), StoreError> {
    let mut hasher = blake3::Hasher::new();
    for (object, fingerprint) in objects.iter().zip(store.fingerprints(objects).await?) {
        hasher.update(format!("{}\t{fingerprint}\n", object.name).as_bytes());
    }
    let bytes: u64 = objects.iter().map(|object| object.size).sum();
    let digest = &hasher.finalize().to_hex()[..16];
    keys.insert(format!("{key} (files)"), format!("{} files, {bytes} bytes, {digest}", objects.len()));
    Ok(())
}

/// Reads `run.toml`; a directory without one is new.
///
/// # Errors
/// When it is there and is not ours.
pub(super) fn read(directory: &Directory) -> Result<Option<RunFile>, PipelineError> {
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

/// The configuration with its inputs' names as they may be kept.
fn without_secrets(mut config: RawPipeline) -> RawPipeline {
    let show = |name: &mut String| *name = Store::redact(name).to_owned();
    config.captions.iter_mut().map(|captions| &mut captions.list).for_each(show);
    config.pairs.iter_mut().flat_map(|pairs| &mut pairs.shards).for_each(show);
    config.images.iter_mut().flat_map(|images| &mut images.shards).for_each(show);
    if let Some(predict) = &mut config.predict {
        let RawPredict { images, ids, truth, captions, blend, .. } = predict;
        images.iter_mut().chain([ids, truth, captions, blend]).for_each(show);
    }
    config
}

impl Manifest {
    /// Reads the directory's record.
    ///
    /// # Errors
    /// As [`read`]; and when the directory holds files that no run wrote.
    pub(super) fn open(directory: Directory, from: Option<Stage>) -> Result<Self, PipelineError> {
        let file = if let Some(file) = read(&directory)? {
            file
        } else {
            let strangers: Vec<String> =
                directory.list("")?.into_iter().filter(|name| name != "lock" && name != "scratch").collect();
            if let Some(stranger) = strangers.first() {
                return Err(ConfigError(vec![Problem::new(
                    "run.dir",
                    format!(
                        "`{}` holds `{stranger}` and is no run directory; name a new or empty one",
                        directory.display("")
                    ),
                )])
                .into());
            }
            RunFile::default()
        };
        Ok(Self { directory, file, from, proposed: Vec::new(), refused: Vec::new() })
    }

    /// What an earlier start recorded of a stage, and this one keeps.
    pub(super) fn recorded(&self, name: &str) -> Option<&StageRecord> {
        self.file.stages.get(name).filter(|_| !self.discards(name))
    }

    /// Whether this start throws away what the stage made. A submission's stage is named `predict NAME`.
    fn discards(&self, name: &str) -> bool {
        let first = name.split(' ').next();
        self.from.is_some_and(|from| Stage::ALL.iter().any(|stage| *stage >= from && first == Some(stage.as_str())))
    }

    /// Says what a stage would be made with and returns its generation. Nothing is changed, and nothing refused, before
    /// [`Self::accept`].
    pub(super) fn propose(&mut self, name: &str, stage: Stage, keys: StageKeys, upstream: &[&str]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(FORMAT.as_bytes());
        for above in upstream {
            hasher.update(above.as_bytes());
        }
        for (key, value) in &keys {
            hasher.update(format!("{key}={value}\n").as_bytes());
        }
        let generation = hasher.finalize().to_hex()[..32].to_owned();
        let recorded = self.recorded(name).filter(|record| record.generation != generation);
        if let Some(old) = recorded.map(|record| record.keys.clone()) {
            self.refused.push((stage, old, keys.clone()));
        }
        self.proposed.push((name.to_owned(), StageRecord { generation: generation.clone(), keys }));
        generation
    }

    /// A table of the keys that differ, with what each invalidates; `None` where nothing is refused.
    fn refusal(&self) -> Option<String> {
        let (first, ..) = self.refused.first()?;
        let mut rows = vec![["key", "then", "now", "invalidates"].map(str::to_owned)];
        for (stage, old, new) in &self.refused {
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            let later = Stage::ALL.iter().filter(|later| *later >= stage).map(|later| later.artefacts());
            let invalid = later.collect::<Vec<_>>().join(", ");
            for name in names.into_iter().filter(|name| old.get(*name) != new.get(*name)) {
                let show = |value: Option<&String>| value.map_or("(absent)", String::as_str).to_owned();
                // The stages of prediction share keys with those of training.
                if rows.iter().all(|row| row[0] != *name) {
                    rows.push([name.clone(), show(old.get(name)), show(new.get(name)), invalid.clone()]);
                }
            }
        }
        let widths: Vec<usize> =
            (0..3).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        let line = |[key, then, now, invalid]: &[String; 4]| {
            format!("  {key:<0$}  {then:<1$}  {now:<2$}  {invalid}\n", widths[0], widths[1], widths[2])
        };
        let table: String = if rows.len() > 1 {
            rows.iter().map(line).collect()
        } else {
            "  no key differs, but this program's version does\n".to_owned()
        };
        let (dir, stage) = (self.directory.display(""), first.as_str());
        Some(format!(
            "`{dir}` was made with other settings, and going on would mix the two:\n{table}set the keys back, choose another \
             `run.dir`, or recompute with --from {stage} (or all with --fresh)"
        ))
    }

    /// Records what was proposed, once everything that could refuse the run has had its say; only now is anything removed.
    ///
    /// # Errors
    /// A table of the keys that differ from what the directory was made with; or the record cannot be written, or an artefact
    /// not be removed.
    pub(super) fn accept(&mut self, plan: &RunConfig) -> Result<(), PipelineError> {
        if let Some(refusal) = self.refusal() {
            return Err(PipelineError::Generation(refusal));
        }
        let discarded: Vec<String> = self.file.stages.keys().filter(|name| self.discards(name)).cloned().collect();
        for name in discarded {
            self.file.stages.remove(&name);
        }
        self.file.config = without_secrets(plan.pipeline().clone());
        if let Some(from) = self.from {
            // The old records go first: a kill in between leaves artefacts that no record names, which the stages remove.
            self.save()?;
            for later in Stage::ALL.into_iter().filter(|later| *later >= from) {
                self.remove_artefacts(later)?;
            }
        }
        self.file.stages.extend(self.proposed.drain(..));
        self.save()
    }

    fn remove_artefacts(&self, stage: Stage) -> Result<(), StoreError> {
        let remove = |names: &[&str]| names.iter().try_for_each(|name| self.directory.remove(name));
        match stage {
            Stage::Catalog => remove(&["journal/catalog.json", "catalog"]),
            Stage::Stream => {
                remove(&["journal/features", "journal/chunks", "features", "chunks", "quarantine", "scratch"])
            }
            Stage::Text => remove(&["journal/texts", "texts"]),
            Stage::Train => remove(&["checkpoints", "training.svg", "training.csv", "report.json"]),
            Stage::Predict => {
                for name in self.directory.list("journal")? {
                    if name.starts_with("predict-") {
                        self.directory.remove(&format!("journal/{name}"))?;
                    }
                }
                for name in self.directory.list("")? {
                    let csv = std::path::Path::new(&name).extension().is_some_and(|ending| ending == "csv");
                    if csv && name != "training.csv" {
                        self.directory.remove(&name)?;
                    }
                }
                remove(&["predict", "examples.html"])
            }
        }
    }

    fn save(&self) -> Result<(), PipelineError> {
        let text =
            toml::to_string(&self.file).map_err(|error| PipelineError::Internal(format!("run.toml: {error}")))?;
        let head =
            "# Written by wikicap-pipeline: what the artefacts in this directory were made with. Do not edit.\n\n";
        Ok(self.directory.write(FILE, format!("{head}{text}").as_bytes())?)
    }
}
