//! The whole job on the same pictures in every format: the same features in the same order, and the same submission.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use wikicap_pipeline::chunk::features;

use crate::support::{program, stderr_of};

/// Options of all corpora.
const SIZE: [&str; 4] = ["--train-images", "200", "--test-images", "40"];

fn sample(dir: &Path, format: &str) -> PathBuf {
    let out = dir.join(format);
    let made = program().args(["sample", "--format", format, "--out"]).arg(&out).args(SIZE).output().unwrap();
    assert!(made.status.success(), "{}", stderr_of(&made));
    out
}

/// Runs a pipeline over a corpus. Without images held out, the result does not depend on the names of images.
fn run(dir: &Path, corpus: &Path, pairs: &str, images: &str, predict: &str) -> PathBuf {
    let run = dir.join("run");
    let data = format!("{}/data", corpus.display());
    let text = format!(
        r#"
[run]
dir = "{run}"
[captions]
list = "{data}/test_caption_list.csv"
[pairs]
{pairs}
[images]
{images}
[chunks]
rows = 32
[model]
checkpoint = "{data}/../models/vit-tiny"
precision = "f32"
[train]
epochs = 4
batch_size = 16
learning_rate = 0.2
clip_norm = 0.0
validation_fraction = 0.0
[predict]
{predict}
ids = "{data}/test.tsv"
truth = "{data}/truth.csv"
"#,
        run = run.display()
    );
    let text = text.replace("DATA", &data);
    let path = dir.join("pipeline.toml");
    std::fs::write(&path, text).unwrap();
    let out = program().arg("run").arg(&path).output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    run
}

/// Labels and values of all features of a run, in order. Of an image that several shards hold, the first one counts.
fn features_of(run: &Path) -> Vec<(Vec<u32>, Vec<f32>)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(run.join("features")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut rows, mut urls) = (Vec::new(), BTreeSet::new());
    for file in files {
        let chunk = features::read(&file).unwrap();
        for row in (0..chunk.rows.len()).filter(|row| urls.insert(chunk.rows.url(*row).to_owned())) {
            let values = &chunk.values[row * chunk.dim..(row + 1) * chunk.dim];
            rows.push((chunk.rows.labels(row).to_vec(), values.to_vec()));
        }
    }
    rows
}

/// Ranked captions by id.
fn submission_of(run: &Path) -> BTreeMap<String, Vec<String>> {
    let mut captions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in csv::Reader::from_path(run.join("submission.csv")).unwrap().records() {
        let row = row.unwrap();
        captions.entry(row[0].to_owned()).or_default().push(row[1].to_owned());
    }
    captions
}

/// Ids of a corpus whose images have no features in a run.
fn ids_without_image(corpus: &Path, run: &Path) -> BTreeSet<String> {
    let folder = std::fs::read_dir(run.join("predict/submission/features")).unwrap();
    let chunks = folder.map(|entry| features::read(&entry.unwrap().path()).unwrap());
    let urls: BTreeSet<String> =
        chunks.flat_map(|chunk| (0..chunk.rows.len()).map(move |row| chunk.rows.url(row).to_owned())).collect();
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_path(corpus.join("data/test.tsv")).unwrap();
    let records = reader.records().map(Result::unwrap);
    records.filter(|record| !urls.contains(&record[1])).map(|record| record[0].to_owned()).collect()
}

struct Reference {
    _dir: tempfile::TempDir,
    features: Vec<(Vec<u32>, Vec<f32>)>,
    submission: BTreeMap<String, Vec<String>>,
}

/// Returns the results of the published layout.
fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let corpus = sample(dir.path(), "tsv");
        let run = run(
            dir.path(),
            &corpus,
            "shards = ['DATA/train-*-of-00005.tsv']",
            "shards = ['DATA/image_data_train/image_pixels/*.csv.gz']",
            "images = ['DATA/image_data_test/image_pixels/*.csv']",
        );
        Reference { features: features_of(&run), submission: submission_of(&run), _dir: dir }
    })
}

/// Compares a run in another format with the reference.
fn assert_same_results(format: &str, pairs: &str, images: &str, predict: &str) {
    let dir = tempfile::tempdir().unwrap();
    let corpus = sample(dir.path(), format);
    let run = run(dir.path(), &corpus, pairs, images, predict);
    let (found, expected) = (features_of(&run), reference());
    assert!(expected.features.len() > 150);
    assert_eq!(found.len(), expected.features.len());
    for (row, (found, expected)) in found.iter().zip(&expected.features).enumerate() {
        assert_eq!(found, expected, "row {row}");
    }
    let submission = submission_of(&run);
    assert!(submission.keys().eq(expected.submission.keys()));
    // Ids without a usable image get the most frequent captions. Only the published layout has captions of images without pixels,
    // so it counts others.
    let without = ids_without_image(&corpus, &run);
    assert_eq!(without.len(), 2, "{without:?}");
    for (id, captions) in submission.iter().filter(|(id, _)| !without.contains(*id)) {
        assert_eq!(captions, &expected.submission[id], "{id}");
    }
}

#[test]
fn parquet_gives_the_same_features_and_submission() {
    assert_same_results(
        "parquet",
        "",
        "shards = ['DATA/image_data_train/*.parquet']",
        "images = ['DATA/image_data_test/*.parquet']",
    );
}

#[test]
fn json_lines_give_the_same_features_and_submission() {
    assert_same_results(
        "jsonl",
        "",
        "shards = ['DATA/image_data_train/*.json.gz']",
        "images = ['DATA/image_data_test/*.json.gz']",
    );
}

#[test]
fn webdataset_gives_the_same_features_and_submission() {
    assert_same_results(
        "webdataset",
        "",
        "shards = ['DATA/image_data_train/*.tar']",
        "images = ['DATA/image_data_test/*.tar']",
    );
}

#[test]
fn folder_gives_the_same_features_and_submission() {
    let parts = |root: &str, count: u32| {
        let parts: Vec<String> = (0..count).map(|part| format!("'DATA/{root}/part-{part:05}/'")).collect();
        format!("[{}]", parts.join(", "))
    };
    // Each sub-folder stands for a shard of the other formats, so that the order is the same.
    assert_same_results(
        "folder",
        "shards = ['DATA/train/metadata.csv']",
        &format!("shards = {}", parts("train", 4)),
        &format!("images = {}", parts("test", 2)),
    );
}
