//! [`Manifest`] of a run directory: `run.toml` holds its configuration and, for each stage, the keys that the artefacts
//! depend on.
//!
//! A *generation* is the hash of a stage's keys and of the generations upstream. Every artefact carries it, and a start
//! with a changed key is refused by name, so that a directory never mixes two generations.

mod run_file;

use std::collections::BTreeSet;

use crate::config::{RunConfig, Stage, StageKeys, output_stem};
use crate::objects::{Object, Store, StoreError};
use crate::pipeline::error::PipelineError;
use crate::pipeline::finished;
use crate::pipeline::observe::{report, status};
use crate::run_dir::Directory;

pub(crate) use run_file::{
    CAPTIONS_PREFIX, PredictionRecord, RunFile, StageRecord, require_run_directory, without_secrets,
};
use run_file::{
    FILE, FORMAT, PREDICTION_PREFIX, is_captions_stem, is_made_again, prediction_stem, read_run_file, refuse_key,
};

/// Key for the hash of the backbone's files. It replaces `model.checkpoint`.
pub(crate) const CHECKPOINT_FILES: &str = "model.checkpoint (files)";
/// Key for the hash of the text encoder's files. It replaces `text.encoder`.
pub(crate) const ENCODER_FILES: &str = "text.encoder (files)";
/// The stages of this start with their keys, compared with those of the run directory.
#[derive(Debug)]
pub(crate) struct Manifest {
    directory: Directory,
    file: RunFile,
    /// First stage whose artefacts are discarded, if any.
    from: Option<Stage>,
    /// True if other processes may work on parts of this run with the recorded settings.
    shared: bool,
    /// Stages of this start with their names and new records, upstream first.
    proposed: Vec<(Stage, String, StageRecord)>,
    /// Stages whose keys differ from those of the directory: (stage, old keys, new keys), upstream first.
    refused: Vec<(Stage, StageKeys, StageKeys)>,
    /// Stages whose keys differ, but which have made nothing yet. Their leftovers are removed.
    unmade: Vec<(String, Stage)>,
    /// File that the prediction of this start writes.
    prediction: Option<(String, PredictionRecord)>,
    /// Files that the captions of this start are written to.
    generated: Vec<String>,
}

/// Adds a key for input files: their number, size, and a hash of their names and contents.
///
/// # Errors
/// When a file cannot be read.
pub(crate) async fn add_inputs(
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

/// Returns the name of the report of an ad-hoc prediction, beside its output.
pub(crate) fn report_name(output: &str) -> String {
    format!("{}.report.json", output_stem(output))
}

impl Manifest {
    /// Reads the manifest of a run directory. The artefacts of stage `from` and of later stages will be discarded. If the
    /// run is `shared` with other processes, recorded settings count even before anything is made with them.
    ///
    /// # Errors
    /// As [`require_run_directory`].
    pub(crate) fn open(directory: Directory, from: Option<Stage>, shared: bool) -> Result<Self, PipelineError> {
        let file = read_run_file(&directory)?;
        if file.format != FORMAT && from != Some(Stage::ALL[0]) {
            return Err(PipelineError::Generation(format!(
                "`{}` holds artefacts of format {}, made by another version of this program, and this version writes \
                 format {FORMAT}; choose another `run.dir`, go on with the other version, or start over with --fresh",
                directory.display(""),
                file.format
            )));
        }
        let file = RunFile { format: FORMAT, ..file };
        Ok(Self {
            directory,
            file,
            from,
            shared,
            proposed: Vec::new(),
            refused: Vec::new(),
            unmade: Vec::new(),
            prediction: None,
            generated: Vec::new(),
        })
    }

    /// Returns the submission of the run, unless this start discards it.
    pub(crate) fn own_submission(&self) -> Option<(&str, &PredictionRecord)> {
        let own = self.file.predictions.iter().find(|(_, record)| record.own).filter(|_| self.from.is_none())?;
        Some((own.0, own.1))
    }

    /// Proposes the file that the prediction of this start writes.
    ///
    /// # Errors
    /// When the file, or the report beside it, exists and no prediction wrote it.
    pub(crate) fn propose_prediction(&mut self, output: &str, record: PredictionRecord) -> Result<(), PipelineError> {
        if !self.file.predictions.contains_key(output) {
            let names = self.directory.list("")?;
            if let Some(taken) =
                [output, &report_name(output)].iter().find(|name| names.iter().any(|file| file == *name))
            {
                let path = self.directory.display(taken);
                return Err(refuse_key(
                    "predict.output",
                    format!(
                        "`{path}` exists, and no prediction of this run wrote it: choose another name, or move it away"
                    ),
                ));
            }
        }
        self.prediction = Some((output.to_owned(), record));
        Ok(())
    }

    /// Proposes the files that the captions of this start are written to.
    ///
    /// # Errors
    /// When a file exists and no earlier captions are in it.
    pub(crate) fn propose_generated(&mut self, files: Vec<String>) -> Result<(), PipelineError> {
        let names = self.directory.list("")?;
        let is_foreign = |file: &&String| names.contains(file) && !self.file.generated.contains(*file);
        if let Some(taken) = files.iter().find(is_foreign) {
            let path = self.directory.display(taken);
            return Err(refuse_key(
                "caption.output",
                format!("`{path}` exists, and `caption` did not write it: choose another name, or move it away"),
            ));
        }
        self.generated = files;
        Ok(())
    }

    /// Returns the record that an earlier start made of a stage, unless this start discards it.
    pub(crate) fn recorded(&self, name: &str) -> Option<&StageRecord> {
        self.file.stages.get(name).filter(|_| !self.discards(name))
    }

    /// Returns the value of a key in the record of a stage, as [`Manifest::recorded`] returns it.
    pub(crate) fn recorded_value(&self, name: &str, key: &str) -> Option<String> {
        self.recorded(name)?.keys.get(key).cloned()
    }

    /// Returns the recorded predictions whose test features stay although this start discards the stage: they depend neither
    /// on captions nor on a head. Those of a prediction that this start makes from other images do not stay.
    fn kept_test_features(&self) -> BTreeSet<String> {
        if !matches!(self.from, Some(Stage::Text | Stage::Train)) {
            return BTreeSet::new();
        }
        let is_proposed_otherwise = |name: &str, record: &StageRecord| {
            self.proposed.iter().any(|(_, own, new)| own == name && new.generation != record.generation)
        };
        let kept = self
            .file
            .stages
            .iter()
            .filter(|(name, record)| name.starts_with(PREDICTION_PREFIX) && !is_proposed_otherwise(name, record));
        kept.map(|(name, _)| name.clone()).collect()
    }

    /// Returns whether this start discards everything.
    fn is_fresh(&self) -> bool {
        self.from == Some(Stage::ALL[0])
    }

    /// Returns whether this start discards the artefacts of a stage. Generated captions depend on no stage.
    fn discards(&self, name: &str) -> bool {
        if is_captions_stem(prediction_stem(name)) && !self.is_fresh() {
            return false;
        }
        let first = name.split(' ').next();
        self.from.is_some_and(|from| Stage::ALL.iter().any(|stage| *stage >= from && first == Some(stage.as_str())))
    }

    /// Proposes the keys of a stage and returns its generation. [`Self::accept`] compares and records them.
    ///
    /// # Errors
    /// When the run directory cannot be listed.
    pub(crate) fn propose(
        &mut self,
        name: &str,
        stage: Stage,
        keys: StageKeys,
        upstream: &[&str],
    ) -> Result<String, PipelineError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(FORMAT.to_string().as_bytes());
        for above in upstream {
            hasher.update(above.as_bytes());
        }
        for (key, value) in &keys {
            hasher.update(format!("{key}={value}\n").as_bytes());
        }
        let generation = hasher.finalize().to_hex()[..32].to_owned();
        self.proposed.push((stage, name.to_owned(), StageRecord { generation: generation.clone(), keys }));
        self.compare_proposed()?;
        Ok(generation)
    }

    /// Compares the proposed stages with those that the directory records.
    fn compare_proposed(&mut self) -> Result<(), PipelineError> {
        let (mut refused, mut unmade) = (Vec::new(), Vec::new());
        for (stage, name, new) in &self.proposed {
            let Some(old) = self.recorded(name).filter(|old| old.generation != new.generation) else { continue };
            // Such artefacts are made again.
            if !is_made_again(name) && (self.shared || self.has_made(name, *stage)?) {
                refused.push((*stage, old.keys.clone(), new.keys.clone()));
            } else {
                unmade.push((name.clone(), *stage));
            }
        }
        (self.refused, self.unmade) = (refused, unmade);
        Ok(())
    }

    /// Returns whether the directory records all proposed stages, and the proposed prediction, as they are.
    fn is_recorded(&self) -> bool {
        let predictions = &self.file.predictions;
        self.proposed
            .iter()
            .all(|(_, name, new)| self.recorded(name).is_some_and(|old| old.generation == new.generation))
            && self.prediction.as_ref().is_none_or(|(output, record)| predictions.get(output) == Some(record))
    }

    /// Compares this start with what the directory records by now. Returns whether everything is recorded.
    ///
    /// # Errors
    /// A table of the changed keys; or when the manifest cannot be read.
    pub(crate) fn compare(&mut self) -> Result<bool, PipelineError> {
        self.file = RunFile { format: FORMAT, ..read_run_file(&self.directory)? };
        self.compare_proposed()?;
        match self.refusal() {
            Some(refusal) => Err(PipelineError::Generation(refusal)),
            None => Ok(self.is_recorded()),
        }
    }

    /// Returns whether a recorded stage has made anything that another configuration could be mixed with.
    fn has_made(&self, name: &str, stage: Stage) -> Result<bool, PipelineError> {
        let holds = |folder: &str| self.directory.list(folder).map(|names| !names.is_empty());
        Ok(match stage {
            Stage::Catalog => self.directory.list("journal")?.iter().any(|name| name == "catalog.json"),
            Stage::Stream => holds("journal/features")? || holds("journal/chunks")?,
            Stage::Text => holds("journal/texts")? || holds("texts")?,
            Stage::Train => holds("checkpoints")?,
            Stage::Predict => holds(&format!("journal/predict-{}", prediction_stem(name)))?,
        })
    }

    /// Formats a table of changed keys with the artefacts that each invalidates; `None` if no key changed.
    fn refusal(&self) -> Option<String> {
        let (first, ..) = self.refused.first()?;
        let mut rows = vec![["key", "then", "now", "invalidates"].map(str::to_owned)];
        for (stage, old, new) in &self.refused {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            let later = Stage::ALL.iter().filter(|later| *later >= stage).map(|later| later.artefacts_after(*stage));
            let invalid = later.collect::<Vec<_>>().join(", ");
            for name in names.into_iter().filter(|name| old.get(*name) != new.get(*name)) {
                let show = |value: Option<&String>| value.map_or("(absent)", String::as_str).to_owned();
                // Prediction shares keys with training.
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
        let way_out = if *first == Stage::Predict {
            "set the keys back, choose another `predict.output`, or recompute with `run --from predict`".to_owned()
        } else {
            format!(
                "set the keys back, choose another `run.dir`, or recompute with --from {stage} (or all with --fresh)"
            )
        };
        Some(format!("`{dir}` was made with other settings, and going on would mix the two:\n{table}{way_out}"))
    }

    /// Records the proposed stages and removes discarded artefacts. Call it when nothing else can refuse the run.
    ///
    /// # Errors
    /// A table of the changed keys; or when the manifest cannot be written, or an artefact cannot be removed.
    pub(crate) fn accept(&mut self, config: &RunConfig, predict_only: bool) -> Result<(), PipelineError> {
        if let Some(refusal) = self.refusal() {
            return Err(PipelineError::Generation(refusal));
        }
        let kept = self.kept_test_features();
        let is_discarded = |name: &&String| self.discards(name) && !kept.contains(*name);
        let discarded: Vec<String> = self.file.stages.keys().filter(is_discarded).cloned().collect();
        for name in discarded {
            self.file.stages.remove(&name);
        }
        if !predict_only || self.file.stages.is_empty() {
            self.file.config = without_secrets(config.stored());
        }
        for (name, stage) in std::mem::take(&mut self.unmade) {
            match stage {
                Stage::Predict => {
                    let stem = prediction_stem(&name);
                    self.directory.remove(&format!("journal/predict-{stem}"))?;
                    self.directory.remove(&format!("predict/{stem}"))?;
                }
                _ => self.remove_artefacts(stage, &BTreeSet::new())?,
            }
        }
        if let Some(from) = self.from {
            // The report of a process that was killed is written now, or it would come back after its removal.
            status::report_killed_process(&self.directory)?;
            // Save the records first. A kill in between leaves artefacts without a record, and the stages remove those.
            self.save()?;
            report::discard(&self.directory, from)?;
            for later in Stage::ALL.into_iter().filter(|later| *later >= from) {
                self.remove_artefacts(later, &kept)?;
            }
            status::forget(&self.directory)?;
            // Forgotten last: a file that is not among the predictions counts as another's.
            self.file.predictions.clear();
            if self.is_fresh() {
                self.file.generated.clear();
            }
        }
        self.file.generated.extend(std::mem::take(&mut self.generated));
        if let Some((output, record)) = self.prediction.take() {
            if record.own {
                self.file.predictions.values_mut().for_each(|other| other.own = false);
            }
            self.file.predictions.insert(output, record);
        }
        self.file.stages.extend(self.proposed.drain(..).map(|(_, name, record)| (name, record)));
        // What is recorded now is of this start, and nothing of it will be discarded.
        self.from = None;
        self.save()
    }

    /// Removes the artefacts of a stage, but for the test features of the predictions `kept`.
    fn remove_artefacts(&self, stage: Stage, kept: &BTreeSet<String>) -> Result<(), StoreError> {
        let remove = |names: &[&str]| names.iter().try_for_each(|name| self.directory.remove(name));
        match stage {
            Stage::Catalog => remove(&["parts", "journal/catalog.json", "catalog"]),
            Stage::Stream => {
                remove(&["duplicates.parquet", "journal/features", "journal/chunks"])?;
                remove(&["features", "chunks", "quarantine", "scratch"])
            }
            Stage::Text => remove(&["journal/texts", "texts"]),
            Stage::Train => remove(&["checkpoints", "training.svg", "training.csv", "tensorboard", finished::FOLDER]),
            Stage::Predict => {
                let is_kept = |stem: &str| {
                    kept.contains(&format!("{PREDICTION_PREFIX}{stem}")) || is_captions_stem(stem) && !self.is_fresh()
                };
                for name in self.directory.list("journal")? {
                    if name.strip_prefix("predict-").is_some_and(|stem| !is_kept(stem)) {
                        self.directory.remove(&format!("journal/{name}"))?;
                    }
                }
                for stem in self.directory.list("predict")? {
                    if !is_kept(&stem) {
                        self.directory.remove(&format!("predict/{stem}"))?;
                    }
                }
                for output in self.file.predictions.keys() {
                    self.directory.remove(output)?;
                    self.directory.remove(&report_name(output))?;
                }
                if self.is_fresh() {
                    self.file.generated.iter().try_for_each(|name| self.directory.remove(name))?;
                }
                for name in self.directory.list(finished::FOLDER)? {
                    if name.starts_with("predict-") {
                        self.directory.remove(&format!("{}/{name}", finished::FOLDER))?;
                    }
                }
                if self.directory.list("predict")?.is_empty() {
                    remove(&["predict"])?;
                }
                remove(&["examples.html"])
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
