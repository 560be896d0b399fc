//! Published features in place of a backbone: the whole job on rows of numbers, after kills, and in parts.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use wikicap_pipeline::chunk::features;

use crate::support::{artefacts, differences, program, run, stderr_of, write};

/// Returns a corpus with features in place of images.
fn corpus() -> &'static Path {
    static CORPUS: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, corpus) = CORPUS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("corpus");
        let size = ["--train-images", "100", "--test-images", "20"];
        let made = program().args(["sample", "--format", "embeddings", "--out"]).arg(&out).args(size).output().unwrap();
        assert!(made.status.success(), "{}", stderr_of(&made));
        (dir, out)
    });
    corpus
}

fn pipeline(run_dir: &Path, edits: &[(&str, &str)]) -> String {
    let mut text = format!(
        r#"
[run]
dir = "{run}"
[captions]
list = "{data}/test_caption_list.csv"
[pairs]
shards = ["{data}/train-*-of-00005.tsv"]
[images]
shards = ["{data}/image_data_train/resnet_embeddings/*.csv.gz"]
[chunks]
rows = 20
[model]
features = "published"
precision = "f32"
[train]
epochs = 4
batch_size = 16
learning_rate = 0.02
validation_fraction = 0.1
[predict]
images = ["{data}/image_data_test/resnet_embeddings/*.csv"]
ids = "{data}/test.tsv"
truth = "{data}/truth.csv"
"#,
        run = run_dir.display(),
        data = corpus().join("data").display()
    );
    for (from, to) in edits {
        assert!(text.contains(from), "`{from}` is not in the pipeline");
        text = text.replace(from, to);
    }
    text
}

fn finish(config: &str) {
    let out = run(&["run", config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
}

fn report(run_dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap()
}

/// Returns the text of the numbers of each row of the training files, by URL. The first row of a URL counts.
fn published() -> BTreeMap<String, String> {
    let folder = corpus().join("data/image_data_train/resnet_embeddings");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut rows = BTreeMap::new();
    for file in files {
        let mut bytes = Vec::new();
        flate2::read::MultiGzDecoder::new(std::fs::File::open(file).unwrap()).read_to_end(&mut bytes).unwrap();
        for line in bytes.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            if let Some((url, numbers)) = line.split_once('\t') {
                rows.entry(url.to_owned()).or_insert_with(|| numbers.to_owned());
            }
        }
    }
    rows
}

#[test]
fn published_features_are_stored_exactly_trained_on_and_ranked() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[]));
    let check = run(&["check", &config]);
    let shown = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && shown.contains("features of 2048 values are published"), "{shown}");
    finish(&config);

    let published = published();
    let mut stored = 0;
    for file in std::fs::read_dir(run_dir.join("features")).unwrap() {
        let chunk = features::read(&file.unwrap().path()).unwrap();
        assert_eq!(chunk.dim, 2048);
        for row in 0..chunk.rows.len() {
            let values = &chunk.values[row * chunk.dim..(row + 1) * chunk.dim];
            let text = &published[chunk.rows.url(row)];
            assert!(text.split(',').map(|value| value.parse::<f32>().unwrap()).eq(values.iter().copied()));
            stored += 1;
        }
    }
    assert!(stored > 60, "{stored}");

    let found = report(&run_dir);
    let tally = &found["images"]["tally"];
    for reason in ["wrong_value_count", "not_finite", "invalid_number", "missing_data", "wrong_field_count"] {
        assert!(tally["quarantined"][reason].as_u64() > Some(0), "{reason}: {tally}");
    }
    assert_eq!(found["model"]["feature_dim"], 2048);
    let scores = &found["prediction"]["scores"];
    let (ndcg5, chance) = (scores["ndcg5"].as_f64().unwrap(), scores["ndcg5_chance"].as_f64().unwrap());
    assert!(ndcg5 > 5.0 * chance, "NDCG@5 {ndcg5}, chance {chance}");

    // Neither preprocessing nor a checkpoint counts, and nothing is done again.
    let before = artefacts(&run_dir);
    finish(&write(dir.path(), &pipeline(&run_dir, &[("[chunks]", "[preprocess]\nsize_px = 32\n[chunks]")])));
    assert_eq!(differences(&before, &artefacts(&run_dir)), Vec::<String>::new());
    // The shape of the features does.
    let other = write(dir.path(), &pipeline(&run_dir, &[("\"published\"", "\"published\"\nfeature_dim = 2047")]));
    let out = run(&["run", &other]);
    assert!(out.status.code() == Some(2) && stderr_of(&out).contains("model.feature_dim"), "{}", stderr_of(&out));
    let folder = dir.path().join("pictures");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.jpg"), "x").unwrap();
    let images = format!("{}/data/image_data_train/resnet_embeddings/*.csv.gz", corpus().display());
    let pictures = write(dir.path(), &pipeline(&dir.path().join("other"), &[(&images, folder.to_str().unwrap())]));
    for command in ["check", "run"] {
        let out = run(&[command, &pictures]);
        let said = stderr_of(&out) + &String::from_utf8_lossy(&out.stdout);
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(out.status.code() == Some(3) && said.contains("`images.shards` is `folder`, but with"), "{said}");
    }
    let out = run(&["export", &write(dir.path(), &pipeline(&run_dir, &[])), "--out", "x"]);
    assert!(out.status.code() == Some(3) && stderr_of(&out).contains("no backbone"), "{}", stderr_of(&out));
}

#[test]
fn kills_and_parts_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    // Neither training nor prediction: no device is opened.
    let features = |run_dir: &Path| {
        let text = pipeline(run_dir, &[]);
        text.split("[train]").next().unwrap().to_owned()
    };
    finish(&write(dir.path(), &features(&whole)));
    let expected = artefacts(&whole);

    let killed = dir.path().join("killed");
    let config = write(dir.path(), &features(&killed));
    for plan in ["rename features 1", "link journal/features 2", "linked journal/features 1", "filled quarantine 1"] {
        let out = program().args(["run", &config]).env("WIKICAP_KILL_AT", plan).output().unwrap();
        assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", stderr_of(&out));
    }
    finish(&config);
    assert_eq!(differences(&expected, &artefacts(&killed)), Vec::<String>::new());

    let parts = dir.path().join("in-parts");
    let config = write(dir.path(), &features(&parts));
    for part in ["0/2", "1/2"] {
        let out = run(&["run", &config, "--part", part]);
        assert!(out.status.success(), "{}", stderr_of(&out));
    }
    assert_eq!(differences(&expected, &artefacts(&parts)), Vec::<String>::new());
}

#[test]
fn text_head_on_published_features_writes_examples() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/mini");
    let head = format!("[text]\nencoder = '{}'\n[head]\nkind = 'text'\n[train]", encoder.display());
    let edits = [("[train]", head.as_str()), ("batch_size = 16", "batch_size = 64"), ("0.02", "0.01")];
    finish(&write(dir.path(), &pipeline(&run_dir, &edits)));
    let page = std::fs::read_to_string(run_dir.join("examples.html")).unwrap();
    assert!(page.contains("no thumbnail") && page.contains("class=\"right\""), "{page}");
    assert!(report(&run_dir)["prediction"]["scores"]["ndcg5"].as_f64() > Some(0.0));
}

#[test]
fn init_recognises_rows_of_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let data = corpus().join("data");
    let out = program().current_dir(dir.path()).arg("init").arg(&data).output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let file = std::fs::read_to_string(dir.path().join("pipeline.toml")).unwrap();
    assert!(file.contains("features = \"published\"") && file.contains("feature_dim = 2048"), "{file}");
    assert!(file.contains("test_resnet_embeddings_part-*.csv") && !file.contains("checkpoint = \"hf:"), "{file}");
}

#[test]
fn ready_pipeline_runs_on_a_sample() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = std::fs::read_to_string(root.join("pipelines/resnet.toml")).unwrap();
    for (from, to) in [
        ("\"data/", format!("\"{}/data/", corpus().display()).as_str()),
        ("\"runs/resnet\"", &format!("\"{}\"", dir.path().join("run").display())),
        ("hf:intfloat/multilingual-e5-small", &root.join("tests/reference/text/mini").display().to_string()),
        ("batch_size = 4096", "batch_size = 64"),
        ("validation_fraction = 0.005", "validation_fraction = 0.1"),
    ] {
        assert!(text.contains(from), "`{from}` is not in the pipeline");
        text = text.replace(from, to);
    }
    finish(&write(dir.path(), &text));
    assert!(std::fs::read_to_string(dir.path().join("run/submission.csv")).unwrap().lines().count() > 100);
}
