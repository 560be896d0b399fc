//! The main job and the smaller commands, from corpus to submission.

use std::path::Path;

use crate::support::{corpus, pipeline, run, stderr_of, write};

fn json(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(path: &Path) -> usize {
    csv::Reader::from_path(path).unwrap().records().map(Result::unwrap).count()
}

#[test]
fn run_scores_near_the_ceiling() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 40")]));
    let out = run(&["run", "--config", &config, "--json"]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let report = json(&out);

    // Every row is accounted for.
    let tally = &report["images"]["tally"];
    let sum = |value: &serde_json::Value| value.as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum::<u64>();
    let rows = tally["rows"].as_u64().unwrap();
    assert!(rows > 600);
    assert_eq!(rows, tally["kept"].as_u64().unwrap() + sum(&tally["skipped"]) + sum(&tally["quarantined"]));
    for reason in ["duplicate_url", "no_label"] {
        assert!(tally["skipped"][reason].as_u64().unwrap() > 0, "{reason}: {tally}");
    }
    assert!(tally["quarantined"].as_object().unwrap().len() >= 4, "{tally}");

    // The submission ranks five distinct captions for every id, in the order of the ids file.
    let submission = run_dir.join("submission.csv");
    let ids: Vec<String> = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .from_path(corpus().join("data/test.tsv"))
        .unwrap()
        .records()
        .map(|row| row.unwrap()[0].to_owned())
        .collect();
    let rows: Vec<(String, String)> = csv::Reader::from_path(&submission)
        .unwrap()
        .records()
        .map(|row| row.map(|row| (row[0].to_owned(), row[1].to_owned())).unwrap())
        .collect();
    assert_eq!(rows.len(), 5 * ids.len());
    for (five, id) in rows.chunks(5).zip(&ids) {
        assert!(five.iter().all(|(of, _)| of == id));
        let distinct: std::collections::BTreeSet<&String> = five.iter().map(|(_, caption)| caption).collect();
        assert_eq!(distinct.len(), 5, "{id}");
    }

    // The score is close to its ceiling, and `evaluate` agrees with the report.
    let scores = &report["prediction"]["scores"];
    let (ndcg, ceiling) = (scores["ndcg5"].as_f64().unwrap(), scores["ndcg5_ceiling"].as_f64().unwrap());
    assert!(ndcg >= 0.85 * ceiling, "{ndcg} of {ceiling}");
    let truth = corpus().join("data/truth.csv");
    let ids = corpus().join("data/test.tsv");
    let out = run(&[
        "evaluate",
        "--json",
        "--submission",
        submission.to_str().unwrap(),
        "--truth",
        truth.to_str().unwrap(),
        "--ids",
        ids.to_str().unwrap(),
    ]);
    assert!((json(&out)["ndcg5"].as_f64().unwrap() - ndcg).abs() < 1e-12);
    assert!((json(&out)["ndcg5_ceiling"].as_f64().unwrap() - ceiling).abs() < 1e-12);

    // A second start finds everything complete and changes nothing.
    let before = crate::support::artefacts(&run_dir);
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(crate::support::differences(&before, &crate::support::artefacts(&run_dir)), Vec::<String>::new());

    // `inspect` describes every kind of artefact.
    let step = report["training"]["steps"].as_u64().unwrap();
    for (path, kind) in [
        (String::new(), "run directory"),
        (format!("checkpoints/step-{step}"), "checkpoint of a head"),
        ("features/00000-000000000000.parquet".to_owned(), "feature chunk"),
    ] {
        let out = run(&["inspect", run_dir.join(path).to_str().unwrap()]);
        assert!(String::from_utf8_lossy(&out.stdout).contains(kind), "{}", stderr_of(&out));
    }
    let quarantine = std::fs::read_dir(run_dir.join("quarantine")).unwrap().next().unwrap().unwrap().path();
    let out = run(&["inspect", quarantine.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("quarantine file"));
    assert!(run_dir.join("training.svg").is_file() && run_dir.join("report.json").is_file());
}

#[test]
fn artefacts_do_not_depend_on_worker_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for workers in [1, 5] {
        let run_dir = dir.path().join(format!("run-{workers}"));
        let machine = dir.path().join("machine.toml");
        std::fs::write(&machine, format!("[limits]\ncpu_workers = {workers}\nmemory = '512 MiB'\n")).unwrap();
        let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]));
        let out = run(&["run", "--config", &config, "--machine", machine.to_str().unwrap()]);
        assert!(out.status.success(), "{}", stderr_of(&out));
        found.push(crate::support::artefacts(&run_dir));
    }
    assert_eq!(crate::support::differences(&found[0], &found[1]), Vec::<String>::new());
}

#[test]
fn pixel_chunks_are_the_product_without_model() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/data/image_data_train/image_pixels/*.csv.gz']\n[preprocess]\nsize_px = 48\n[chunks]\nrows = 100\ncompression = 'lz4'\n",
        run_dir.display(),
        corpus().display()
    );
    let out = run(&["run", "--json", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let tally = &json(&out)["images"]["tally"];
    assert!(tally["kept"].as_u64().unwrap() > 600 && tally["skipped"].get("no_label").is_none(), "{tally}");
    let out = run(&["inspect", run_dir.join("chunks/00000-000000000000.parquet").to_str().unwrap()]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("pixel chunk") && text.contains("48 × 48 px"), "{text}");
}

#[test]
fn run_without_labels_succeeds_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let list = dir.path().join("list.csv");
    std::fs::write(&list, "caption\nnothing\nof\nthis\nis\nthere\n\"a, b\"\n").unwrap();
    let original = format!("{}/data/test_caption_list.csv", corpus().display());
    let config = write(dir.path(), &pipeline(&run_dir, &[(&original, list.to_str().unwrap())]));
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    // The note is broken into lines.
    let text = String::from_utf8_lossy(&out.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for word in ["no row of the pairs has a caption that is a class", "match = \"title\"", "classes = \"train\""] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    assert!(count(&run_dir.join("submission.csv")).is_multiple_of(5));
}

#[test]
fn predict_uses_newest_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let whole = pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]);
    let config = write(dir.path(), &whole);
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let first = std::fs::read(run_dir.join("submission.csv")).unwrap();
    std::fs::remove_file(run_dir.join("submission.csv")).unwrap();
    let out = run(&["predict", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(std::fs::read(run_dir.join("submission.csv")).unwrap(), first);

    // A pipeline with only [run], [model] and [predict] gives the same result under another name.
    let start = whole.find("[model]").unwrap();
    let (train, predict) = (whole.find("[train]").unwrap(), whole.find("[predict]").unwrap());
    let text = format!(
        "[run]\ndir = '{}'\n[chunks]\nrows = 50\n{}{}output = 'other.csv'\n",
        run_dir.display(),
        &whole[start..train],
        &whole[predict..]
    );
    let out = run(&["run", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(std::fs::read(run_dir.join("other.csv")).unwrap(), first);

    // The export is a complete model directory.
    let export = dir.path().join("export");
    let out = run(&["export", "--config", &write(dir.path(), &whole), "--out", export.to_str().unwrap()]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        assert!(export.join(name).is_file(), "{name}");
    }
}

#[test]
fn check_describes_run_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let out = run(&["check", "--config", &write(dir.path(), &pipeline(&run_dir, &[]))]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in ["train (new)", "images.shards", "rows have a label", "64 × 64 px", "No problem found"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    assert!(!run_dir.exists());
}
