//! One run directory: progress, report, configuration and training curve.

use serde::Serialize;
use serde_json::Value;

use super::ServeError;
use crate::explore::Explorer;
use crate::objects::{Store, StoreError};
use crate::pipeline::Status;
use crate::run_dir::Directory;
use crate::view::{BestValidation, TrainingCurve};

/// A run directory, opened for reading.
#[derive(Clone, Debug)]
pub(super) struct Run {
    name: String,
    pub(super) directory: Directory,
    /// Pictures, captions and search of the run.
    pub(super) explorer: Explorer,
}

/// Everything about a run that fits on one screen.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Overview {
    /// The run directory, as given.
    pub(super) name: String,
    /// True if a process works on the run.
    pub(super) live: bool,
    /// Seconds since the last report of that process, rounded down to ten if it is not live.
    pub(super) age_s: u64,
    /// Progress, as the last process reported it, or all processes that work on parts.
    pub(super) status: Option<Value>,
    /// Result of the last process that ended without an error.
    pub(super) report: Option<Value>,
    /// Configuration of the run.
    pub(super) config: Option<Value>,
    /// Losses and validations.
    #[serde(skip)]
    pub(super) curve: TrainingCurve,
    /// The training curve as HTML; empty if training has not started.
    pub(super) charts: String,
    /// The best validation.
    pub(super) best: Option<BestValidation>,
}

impl Run {
    /// Opens a run directory, which is a path or a URL. It may be absent.
    ///
    /// # Errors
    /// When the name is invalid.
    pub(super) fn new(store: &Store, name: &str) -> Result<Self, StoreError> {
        let directory = Directory::read_only(store, name)?;
        let explorer = Explorer::new(directory.clone(), store.clone());
        Ok(Self { name: name.to_owned(), directory, explorer })
    }

    /// Opens a run directory that has been written to.
    ///
    /// # Errors
    /// When it cannot be read, or is not a run directory.
    pub(super) fn open(store: &Store, name: &str) -> Result<Self, ServeError> {
        let run = Self::new(store, name)?;
        // A run that is being started has a status before it has a configuration.
        if run.directory.read("run.toml")?.is_none() && run.directory.read("status.json")?.is_none() {
            return Err(ServeError::NoRun(name.to_owned()));
        }
        Ok(run)
    }

    /// Returns the run directory, as given.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the directory is on a remote store.
    pub(super) fn is_remote(&self) -> bool {
        self.directory.is_remote()
    }

    /// Reads the overview. A file that is absent or of another version is left out.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn overview(&self) -> Result<Overview, StoreError> {
        let names = ["report.json", "run.toml", "training.csv"].map(str::to_owned);
        let mut files = self.directory.read_all(&names)?.into_iter();
        let mut next = || files.next().flatten();
        let mut status = Status::read_known(&self.directory)?;
        let live = status.as_ref().is_some_and(Status::is_live);
        // A dead run does not change from second to second, so that nothing is sent for it.
        let shown = |age_s: u64| if live { age_s } else { age_s / 10 * 10 };
        let age_s = shown(status.as_ref().map_or(0, |status| status.age().as_secs()));
        for part in status.iter_mut().flat_map(|status| &mut status.parts) {
            part.age_s = part.age_s.map(shown);
        }
        let report: Option<Value> = next().and_then(|text| serde_json::from_slice(&text).ok());
        let config = next().and_then(|text| read_config(&text));
        let curve = next().map(|text| TrainingCurve::from_csv(&text)).unwrap_or_default();
        let chance = report.as_ref().and_then(|report| report.pointer("/prediction/scores/ndcg5_chance")?.as_f64());
        Ok(Overview {
            name: self.name.clone(),
            live,
            age_s,
            status: status.and_then(|status| serde_json::to_value(status).ok()),
            charts: curve.figures(&report.as_ref().map(describe_trials).unwrap_or_default(), chance),
            best: curve.best(),
            curve,
            report,
            config,
        })
    }
}

/// Returns the configuration that `run.toml` records.
fn read_config(text: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(text).ok()?;
    let mut file: Value = toml::from_str(text).ok()?;
    file.as_object_mut()?.remove("config")
}

/// Describes the settings of each trial of a sweep by the report.
fn describe_trials(report: &Value) -> Vec<String> {
    if let Some(members) = report.pointer("/training/ensemble/members").and_then(Value::as_array) {
        let describe = |member: &Value| {
            let parts = ["layer", "seed"].iter().filter_map(|key| Some(format!("{key} {}", member.get(*key)?)));
            parts.collect::<Vec<_>>().join(", ")
        };
        return members.iter().map(describe).chain(["all together".to_owned()]).collect();
    }
    let trials = report.pointer("/training/trials").and_then(Value::as_array).into_iter().flatten();
    let describe = |trial: &Value| {
        let names = [("learning_rate", "lr"), ("momentum", "m"), ("weight_decay", "wd")];
        let settings = names.iter().filter_map(|(key, name)| Some(format!("{name} {}", trial.get(*key)?)));
        settings.collect::<Vec<_>>().join(", ")
    };
    trials.map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::LocalDirectory;

    #[test]
    fn overview_leaves_out_absent_and_damaged_files() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().display().to_string();
        let error = Run::open(&Store::default(), &name).unwrap_err().to_string();
        assert!(error.contains("`run.toml` is missing"), "{error}");
        let local = LocalDirectory::create(dir.path()).unwrap();
        local.write("run.toml", b"[stages]\n[config.run]\nseed = 7\n").unwrap();
        local.write("report.json", b"{\"cut").unwrap();
        local.write("training.csv", b"step,loss,trial\n1,0.5,0\n2,,0\n3,x,0\n4,1,0\n").unwrap();
        let overview = Run::open(&Store::default(), &name).unwrap().overview().unwrap();
        assert_eq!(overview.config, Some(serde_json::json!({ "run": { "seed": 7 } })));
        assert_eq!((overview.report, overview.status, overview.live), (None, None, false));
        assert_eq!(overview.curve.last_step(), Some(2.0));
        assert!(overview.charts.starts_with("<div class=\"columns\"><figure>") && overview.best.is_none());
    }

    #[test]
    fn overview_lists_the_parts_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let local = LocalDirectory::create(dir.path()).unwrap();
        local.write("run.toml", b"").unwrap();
        local.write("parts/1-of-3/status.json", &serde_json::to_vec(&Status::default()).unwrap()).unwrap();
        local.write("parts/2-of-3/status.json", b"of another version").unwrap();
        let run = Run::open(&Store::default(), &dir.path().display().to_string()).unwrap();
        let status = run.overview().unwrap().status.unwrap();
        let parts = status["parts"].as_array().unwrap();
        let found: Vec<_> =
            parts.iter().map(|part| (part["part"].as_str().unwrap(), part["state"].as_str().unwrap())).collect();
        assert_eq!(found[0], ("0/3", "not_started"));
        assert_eq!(found[2], ("2/3", "not_started"));
        assert_eq!(found[1].0, "1/3");
    }
}
