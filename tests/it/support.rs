//! The synthetic corpus that all tests share, and the executable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Returns the executable with default log settings.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wikicap-pipeline"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs the executable to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

/// Returns standard error as text.
pub(crate) fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the shared corpus, rendered once per test process.
pub(crate) fn corpus() -> &'static Path {
    static CORPUS: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = CORPUS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus");
        let out = run(&["sample", "--out", path.to_str().unwrap(), "--train-images", "600", "--test-images", "60"]);
        assert!(out.status.success(), "{}", stderr_of(&out));
        (dir, path)
    });
    path
}

/// Returns a pipeline file over the shared corpus; `edits` replaces text in it.
pub(crate) fn pipeline(run_dir: &Path, edits: &[(&str, &str)]) -> String {
    let corpus = corpus().display();
    let mut text = format!(
        r#"
[run]
dir = "{run}"

[captions]
list = "{corpus}/data/test_caption_list.csv"

[pairs]
shards = ["{corpus}/data/train-*-of-00005.tsv"]

[images]
shards = ["{corpus}/data/image_data_train/image_pixels/*.csv.gz"]

[chunks]
rows = 50

[model]
checkpoint = "{corpus}/models/vit-tiny"

[train]
epochs = 12
batch_size = 16
learning_rate = 0.2
clip_norm = 0.0
validation_fraction = 0.1
shuffle_rows = 200
log_every = 10
checkpoint_every = "50 ms"

[predict]
images = ["{corpus}/data/image_data_test/image_pixels/*.csv"]
ids = "{corpus}/data/test.tsv"
truth = "{corpus}/data/truth.csv"
"#,
        run = run_dir.display()
    );
    for (from, to) in edits {
        assert!(text.contains(from), "`{from}` is not in the pipeline");
        text = text.replace(from, to);
    }
    text
}

/// Writes a pipeline file beside its run directory and returns its path.
pub(crate) fn write(dir: &Path, text: &str) -> String {
    let path = dir.join("pipeline.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Files that describe a process and differ between runs.
const OF_PROCESSES: [&str; 6] = ["lock", "report.json", "run.toml", "status.json", "events", "parts"];

/// Returns name → content of every durable artefact that must be the same bytes after any interruption.
pub(crate) fn artefacts(run_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run_dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(run_dir).unwrap().display().to_string();
            if OF_PROCESSES.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Returns the names that differ between two sets of artefacts.
pub(crate) fn differences(one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}
