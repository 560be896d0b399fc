//! `run.toml`: the resolved configuration of a run directory and, for each stage, the keys that its artefacts were made
//! with, so that a changed key is refused instead of mixing two generations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PipelineError;
use crate::config::plan::Stage;
use crate::config::raw::RawPipeline;
use crate::config::{ConfigError, Plan, Problem, StageKeys};
use crate::store::{Directory, Object, Store, StoreError};

/// Name of the file inside the run directory.
const FILE: &str = "run.toml";
/// The key that says what a checkpoint's files hold, wherever they are.
pub(super) const CHECKPOINT_FILES: &str = "model.checkpoint (files)";
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
pub(super) struct Generations {
    directory: Directory,
    file: RunFile,
    /// The stage from which everything is recomputed, if any.
    from: Option<Stage>,
    proposed: Vec<(String, StageRecord)>,
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
    let show = |name: &mut String| *name = Store::shown(name).to_owned();
    config.captions.iter_mut().map(|captions| &mut captions.list).for_each(show);
    config.pairs.iter_mut().flat_map(|pairs| &mut pairs.shards).for_each(show);
    config.images.iter_mut().flat_map(|images| &mut images.shards).for_each(show);
    if let Some(predict) = &mut config.predict {
        predict.images.iter_mut().chain([&mut predict.ids, &mut predict.truth]).for_each(show);
    }
    config
}

impl Generations {
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
        Ok(Self { directory, file, from, proposed: Vec::new() })
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

    /// Says what a stage would be made with and returns its generation, or refuses where the directory holds another one.
    /// Nothing is changed before [`Self::accept`].
    ///
    /// # Errors
    /// A table of the keys that differ and what each invalidates.
    pub(super) fn propose(
        &mut self,
        name: &str,
        stage: Stage,
        keys: StageKeys,
        upstream: &[&str],
    ) -> Result<String, PipelineError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(FORMAT.as_bytes());
        for above in upstream {
            hasher.update(above.as_bytes());
        }
        for (key, value) in &keys {
            hasher.update(format!("{key}={value}\n").as_bytes());
        }
        let generation = hasher.finalize().to_hex()[..32].to_owned();
        if let Some(record) = self.recorded(name)
            && record.generation != generation
        {
            return Err(PipelineError::Generation(self.refusal(stage, &record.keys, &keys)));
        }
        self.proposed.push((name.to_owned(), StageRecord { generation: generation.clone(), keys }));
        Ok(generation)
    }

    fn refusal(&self, stage: Stage, old: &StageKeys, new: &StageKeys) -> String {
        let invalid: Vec<&str> =
            Stage::ALL.iter().filter(|later| **later >= stage).map(|later| later.artefacts()).collect();
        let mut text =
            format!("`{}` was made with other settings, and going on would mix the two:\n", self.directory.display(""));
        let mut differs = false;
        let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in names {
            let (before, now) = (old.get(key), new.get(key));
            if before != now {
                differs = true;
                let show = |value: Option<&String>| value.map_or("(absent)", String::as_str).to_owned();
                text.push_str(&format!(
                    "  `{key}`: {} then, {} now; invalidates {}\n",
                    show(before),
                    show(now),
                    invalid.join(", ")
                ));
            }
        }
        if !differs {
            text.push_str("  a stage before it, or this program's version, differs\n");
        }
        text.push_str(&format!(
            "set the keys back, choose another `run.dir`, or recompute with --from {} (or all with --fresh)",
            stage.as_str()
        ));
        text
    }

    /// Records what was proposed, once everything that could refuse the run has had its say; only now is anything removed.
    ///
    /// # Errors
    /// When the record cannot be written or an artefact cannot be removed.
    pub(super) fn accept(&mut self, plan: &Plan) -> Result<(), PipelineError> {
        let discarded: Vec<String> = self.file.stages.keys().filter(|name| self.discards(name)).cloned().collect();
        for name in discarded {
            self.file.stages.remove(&name);
        }
        self.file.config = without_secrets(plan.pipeline().clone());
        // The old records go first: a kill in between leaves artefacts that no record names, which the stages remove.
        self.save()?;
        if let Some(from) = self.from {
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
                remove(&["predict"])
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
