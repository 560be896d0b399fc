//! Event files for TensorBoard hold the training curve.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{pipeline, run, stderr_of, write};

/// Trains a sweep of two heads with event files in `folder`, and returns its run directory.
fn train(dir: &Path, folder: &str) -> PathBuf {
    let run_dir = dir.join("sweep");
    let train = format!("[train]\ntensorboard = {folder}");
    let edits = [
        ("[train]", train.as_str()),
        ("learning_rate = 0.2", "learning_rate = [0.2, 0.02]"),
        ("epochs = 12", "epochs = 3"),
    ];
    let out = run(&["run", "--config", &write(dir, &pipeline(&run_dir, &edits))]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    run_dir
}

/// Event files of a folder.
fn event_files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Returns the number of records of an event file.
fn count_records(bytes: &[u8]) -> usize {
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        (at, count) = (at + 16 + length, count + 1);
    }
    assert_eq!(at, bytes.len(), "a record is cut");
    count
}

/// Rows of `training.csv` of a trial, with the columns by name.
fn curve(run_dir: &Path, trial: &str) -> Vec<Vec<(String, f64)>> {
    let mut reader = csv::Reader::from_path(run_dir.join("training.csv")).unwrap();
    let names = reader.headers().unwrap().clone();
    let rows = reader.records().map(|row| {
        let row = row.unwrap();
        names.iter().zip(row.iter()).filter_map(|(name, text)| Some((name.to_owned(), text.parse().ok()?))).collect()
    });
    let of_trial =
        |row: &Vec<(String, f64)>| row.iter().any(|(name, value)| name == "trial" && value.to_string() == trial);
    rows.filter(of_trial).collect()
}

#[test]
fn event_files_hold_the_curve_of_each_head() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = train(dir.path(), "true");
    for trial in ["0", "1"] {
        let files = event_files(&run_dir.join(format!("tensorboard/trial-{trial}")));
        assert_eq!(files.len(), 1, "{files:?}");
        let curve = curve(&run_dir, trial);
        let scalars = [
            "loss",
            "learning_rate",
            "validation_loss",
            "validation_ndcg5",
            "validation_ndcg5_ceiling",
            "validation_recall1",
            "validation_recall5",
        ];
        let values = curve.iter().flatten().filter(|(name, _)| scalars.contains(&name.as_str())).count();
        assert_eq!(count_records(&std::fs::read(&files[0]).unwrap()), 1 + values);
    }
    assert_eq!(
        std::fs::read_dir(&run_dir)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() == "tensorboard")
            .count(),
        1
    );
}

#[test]
fn no_event_files_without_the_key() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!train(dir.path(), "false").join("tensorboard").exists());
    let text = std::fs::read_to_string(dir.path().join("sweep/run.toml")).unwrap();
    assert!(!text.contains("tensorboard"), "{text}");
}

/// Reads the files by TensorBoard itself: `TENSORBOARD_PYTHON` names an interpreter with the package.
#[test]
#[ignore = "needs the Python package `tensorboard`; `.ci/run` runs it"]
fn tensorboard_opens_event_files() {
    let python = std::env::var("TENSORBOARD_PYTHON").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("all");
    let run_dir = train(dir.path(), &format!("'{}'", folder.display()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard/read.py");
    let out = Command::new(python).arg(script).arg(&folder).output().unwrap();
    let runs: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr_of(&out)));
    // The folder of a run is the path of its directory.
    let name = run_dir.display().to_string().trim_start_matches('/').to_owned();
    for trial in ["0", "1"] {
        let tags = &runs[format!("{name}/trial-{trial}")];
        for (tag, column) in
            [("loss/train", "loss"), ("learning_rate", "learning_rate"), ("validation/ndcg5", "validation_ndcg5")]
        {
            let number = |row: &[(String, f64)], wanted: &str| {
                row.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value)
            };
            let expected: Vec<(f64, f64)> = curve(&run_dir, trial)
                .iter()
                .filter_map(|row| Some((number(row, "step")?, number(row, column)?)))
                .collect();
            let shown: Vec<(f64, f64)> = tags[tag]
                .as_array()
                .unwrap_or_else(|| panic!("`{tag}` is not in {runs}"))
                .iter()
                .map(|point| (point[0].as_f64().unwrap(), point[1].as_f64().unwrap()))
                .collect();
            assert_eq!(shown.len(), expected.len(), "{tag}");
            for (one, other) in shown.iter().zip(&expected) {
                assert!(
                    (one.0 - other.0).abs() < 1e-9 && (one.1 - other.1).abs() <= 1e-6 * other.1.abs().max(1e-3),
                    "{tag}: {one:?}, {other:?}"
                );
            }
        }
    }
}
