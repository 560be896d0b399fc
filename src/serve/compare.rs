//! Several runs side by side: scores, and the settings in which they differ.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::ServeError;
use super::run::{Overview, Run};
use crate::config::StoreConfig;
use crate::pipeline;
use crate::run_dir::Directory;
use crate::view::{Chart, Line};

/// Colours of lines.
const COLOURS: usize = 6;

/// Runs side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// The runs in the order given.
    pub runs: Vec<RunSummary>,
    /// Settings that are not equal in all runs: key → value in each run, as JSON.
    pub differences: BTreeMap<String, Vec<Option<String>>>,
}

/// Result of a run on one line.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RunSummary {
    /// The run directory.
    pub name: String,
    /// `running`, `done`, `stopped`, `failed`, or `lost` for a process that ended without a word.
    pub state: String,
    /// NDCG@5 on the test images, if their captions are known.
    pub test_ndcg5: Option<f64>,
    /// Best NDCG@5 on the held-out images.
    pub validation_ndcg5: Option<f64>,
    /// Number of images that were used.
    pub images: Option<u64>,
    /// Working time in seconds: of all processes of a finished run, else of the stages so far.
    pub seconds: f64,
}

/// Compares runs. `names` are run directories, or directories that hold some.
///
/// # Errors
/// When a directory cannot be read or holds no run.
pub fn compare(names: &[String], settings: &StoreConfig) -> Result<Comparison, ServeError> {
    let store = pipeline::open_store(settings);
    let mut runs = Vec::new();
    for name in names {
        match Run::open(&store, name) {
            Ok(run) => runs.push(run),
            Err(ServeError::NoRun(_)) => {
                let inside = Directory::read_only(&store, name)?.list("")?;
                let found = inside.iter().filter_map(|entry| Run::open(&store, &format!("{name}/{entry}")).ok());
                let before = runs.len();
                runs.extend(found);
                if runs.len() == before {
                    return Err(ServeError::NoRun(name.clone()));
                }
            }
            Err(error) => return Err(error),
        }
    }
    let overviews = runs.iter().map(Run::overview).collect::<Result<Vec<_>, _>>()?;
    Ok(compare_overviews(&overviews))
}

/// Compares runs that were read.
pub(super) fn compare_overviews(overviews: &[Overview]) -> Comparison {
    let settings: Vec<BTreeMap<String, String>> = overviews.iter().map(flatten_settings).collect();
    let keys: BTreeSet<&String> = settings.iter().flat_map(BTreeMap::keys).collect();
    let values = |key: &String| -> Vec<Option<String>> { settings.iter().map(|map| map.get(key).cloned()).collect() };
    let differences = keys.into_iter().map(|key| (key.clone(), values(key)));
    Comparison {
        runs: overviews.iter().map(summarise).collect(),
        differences: differences.filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1])).collect(),
    }
}

/// Draws the validation of each run's best trial.
pub(super) fn draw(overviews: &[Overview]) -> String {
    let line = |(number, overview): (usize, &Overview)| Line {
        dashed: number >= COLOURS,
        ..overview.curve.best_trial(&overview.name, number % COLOURS + 1)
    };
    let lines = overviews.iter().enumerate().map(line).collect();
    let title = "Validation NDCG@5 of each run's best trial".to_owned();
    let mut chart = Chart::new(title, lines);
    chart.from_zero = true;
    chart.figure()
}

/// Returns the settings of a run as `section.key` → JSON.
fn flatten_settings(overview: &Overview) -> BTreeMap<String, String> {
    let sections = overview.config.as_ref().and_then(Value::as_object).into_iter().flatten();
    let keys = sections.flat_map(|(section, keys)| {
        keys.as_object().into_iter().flatten().map(move |(key, value)| (format!("{section}.{key}"), value.to_string()))
    });
    keys.collect()
}

fn summarise(overview: &Overview) -> RunSummary {
    let at = |value: &Option<Value>, path: &str| value.as_ref().and_then(|value| value.pointer(path).cloned());
    let state = match at(&overview.status, "/state").as_ref().and_then(Value::as_str) {
        Some("running") if !overview.live => "lost".to_owned(),
        Some(state) => state.to_owned(),
        None => "not started".to_owned(),
    };
    let stages = at(&overview.status, "/stages");
    let stages = stages.as_ref().and_then(Value::as_array).into_iter().flatten();
    let total = at(&overview.report, "/seconds").and_then(|seconds| seconds.as_f64()).filter(|_| state == "done");
    RunSummary {
        name: overview.name.clone(),
        state,
        test_ndcg5: at(&overview.report, "/prediction/scores/ndcg5").and_then(|score| score.as_f64()),
        validation_ndcg5: overview.best.as_ref().map(|best| best.ndcg5),
        images: at(&overview.report, "/images/tally/kept").and_then(|kept| kept.as_u64()),
        seconds: total.unwrap_or_else(|| stages.filter_map(|stage| stage.get("seconds")?.as_f64()).sum()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::BestValidation;

    #[test]
    fn settings_that_differ_are_listed() {
        let run = |name: &str, rate: f64, state: &str| Overview {
            name: name.to_owned(),
            status: Some(json!({ "state": state, "stages": [{ "seconds": 2.0 }, { "seconds": 0.5 }] })),
            report: Some(
                json!({ "prediction": { "scores": { "ndcg5": rate } }, "images": { "tally": { "kept": 7 } } }),
            ),
            config: Some(json!({ "run": { "seed": 1 }, "train": { "learning_rate": rate } })),
            best: Some(BestValidation { step: 1.0, trial: 0, ndcg5: 0.5, ceiling: None }),
            ..Overview::default()
        };
        let comparison = compare_overviews(&[run("a", 0.5, "done"), run("b", 0.75, "running"), Overview::default()]);
        let differs: Vec<&String> = comparison.differences.keys().collect();
        assert_eq!(differs, ["run.seed", "train.learning_rate"]);
        let rates = &comparison.differences["train.learning_rate"];
        assert_eq!(rates, &[Some("0.5".to_owned()), Some("0.75".to_owned()), None]);
        let first = RunSummary {
            name: "a".to_owned(),
            state: "done".to_owned(),
            test_ndcg5: Some(0.5),
            validation_ndcg5: Some(0.5),
            images: Some(7),
            seconds: 2.5,
        };
        assert_eq!(comparison.runs[0], first);
        assert_eq!((&*comparison.runs[1].state, &*comparison.runs[2].state), ("lost", "not started"));
    }
}
