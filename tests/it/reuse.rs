//! A change recomputes what depends on it and nothing else: another list, another head, other test images.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{artefacts, corpus, differences, pipeline, program, run, stderr_of, write};
use crate::text::text;

fn finish(args: &[&str]) -> Value {
    let out = run(&[args, &["--json"]].concat());
    assert!(out.status.success(), "{}", stderr_of(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Returns the units that the last process did of a stage.
fn done(report: &Value, stage: &str) -> Option<u64> {
    let process = report["processes"].as_array().unwrap().last().unwrap();
    process["stages"].as_array().unwrap().iter().find(|own| own["name"] == stage).and_then(|own| own["done"].as_u64())
}

fn write_list(path: &Path, captions: &[String]) {
    let mut writer = csv::Writer::from_path(path).unwrap();
    writer.write_record(["caption"]).unwrap();
    for caption in captions {
        writer.write_record([caption]).unwrap();
    }
    writer.flush().unwrap();
}

/// Returns the changed artefacts other than rankings and sets of caption vectors.
fn changed(before: &BTreeMap<String, Vec<u8>>, run_dir: &Path) -> Vec<String> {
    let mut names = differences(before, &artefacts(run_dir));
    let of_ranking = ["submission.csv", "examples.html", "journal/finished/predict-submission.json"];
    names.retain(|name| {
        !name.starts_with("texts/") && !name.starts_with("journal/texts/") && !of_ranking.contains(&name.as_str())
    });
    names
}

#[test]
fn ranked_list_changes_nothing_but_the_ranking_and_embeds_new_captions_only() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let list = dir.path().join("list.csv");
    let captions: Vec<String> = (0..30).map(|number| format!("a photo with the number {number}")).collect();
    write_list(&list, &captions);
    let own_list = format!("list = \"{}/data/test_caption_list.csv\"", corpus().display());
    let new_list = format!("list = '{}'\nclasses = 'train'", list.display());
    let config = write(dir.path(), &text(&run_dir, &[(&own_list, &new_list), ("epochs = 12", "epochs = 2")]));
    let first = finish(&["run", &config]);
    assert_eq!(done(&first, "captions to rank"), Some(30));
    let before = artefacts(&run_dir);

    // Another order, fewer of the captions, and two new ones.
    let mut other: Vec<String> = captions.iter().rev().take(20).cloned().collect();
    other.insert(7, "something new".to_owned());
    other.push("one more".to_owned());
    write_list(&list, &other);
    let second = finish(&["run", &config]);
    assert_eq!(done(&second, "captions to rank"), Some(2));
    assert_eq!(changed(&before, &run_dir), Vec::<String>::new());
    assert_eq!(second["prediction"]["text"]["captions"], 22);
    let stages = std::fs::read_to_string(run_dir.join("run.toml")).unwrap();
    assert!(!stages.contains("captions.list (files)"), "{stages}");

    // A list with an order of its own ranks as if it had been embedded alone.
    let alone_dir = dir.path().join("alone");
    let alone = write(dir.path(), &text(&alone_dir, &[(&own_list, &new_list), ("epochs = 12", "epochs = 2")]));
    finish(&["run", &alone]);
    let read = |run: &Path| std::fs::read(run.join("submission.csv")).unwrap();
    assert_eq!(read(&run_dir), read(&alone_dir));
}

#[test]
fn another_head_keeps_the_features_of_the_test_images() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let text = pipeline(&run_dir, &[("epochs = 12", "epochs = 1")]);
    let config = write(dir.path(), &text);
    finish(&["run", &config]);
    let before = artefacts(&run_dir);
    let config = write(dir.path(), &text.replace("learning_rate = 0.2\n", "learning_rate = 0.1\n"));
    let out = run(&["run", &config]);
    let refusal = stderr_of(&out);
    assert!(refusal.contains("checkpoints, submission") && !refusal.contains("test features"), "{refusal}");
    let report = finish(&["run", &config, "--from", "train"]);
    assert_eq!(done(&report, "features (submission)"), Some(0), "{report}");
    assert!(done(&report, "train").unwrap() > 0);
    let after = artefacts(&run_dir);
    let features = |name: &&String| name.starts_with("predict/") || name.starts_with("journal/predict-");
    assert!(before.keys().filter(features).count() >= 4);
    assert!(before.iter().filter(|(name, _)| features(name)).all(|(name, bytes)| after.get(name) == Some(bytes)));
    // Other images in the same start have features of their own, and `--from predict` discards all.
    let other = text.replace("learning_rate = 0.2\n", "learning_rate = 0.3\n").replace("rows = 50", "rows = 40");
    let report = finish(&["run", &write(dir.path(), &other), "--from", "stream"]);
    assert!(done(&report, "features (submission)").unwrap() > 0);
    let report = finish(&["run", &write(dir.path(), &other), "--from", "predict"]);
    assert!(done(&report, "features (submission)").unwrap() > 0);
}

#[test]
fn predict_takes_images_ids_truth_and_several_lists() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &text(&run_dir, &[("epochs = 12", "epochs = 2"), ("truth = ", "# ")]));
    finish(&["run", &config]);
    let before = artefacts(&run_dir);
    let data = corpus().join("data");
    let truth = data.join("truth.csv").display().to_string();

    // The truth alone scores the submission, from the features that are there.
    let report = finish(&["predict", &config, "--truth", &truth]);
    assert!(report["prediction"]["scores"]["ndcg5"].as_f64().is_some(), "{report}");
    assert_eq!(done(&report, "features (submission)"), Some(0));

    // Half of the ids, with two lists in one start.
    let ids = std::fs::read_to_string(data.join("test.tsv")).unwrap();
    let half: Vec<&str> = ids.lines().take(1 + ids.lines().count() / 2).collect();
    let half_path = dir.path().join("half.tsv");
    std::fs::write(&half_path, half.join("\n") + "\n").unwrap();
    let lists: Vec<String> =
        (0..2).map(|number| dir.path().join(format!("list{number}.csv")).display().to_string()).collect();
    for (number, list) in lists.iter().enumerate() {
        let captions: Vec<String> = (0..8).map(|caption| format!("caption {caption} of {number}")).collect();
        write_list(Path::new(list), &captions);
    }
    let half_path = half_path.display().to_string();
    let common = ["predict", &config, "--ids", &half_path, "--captions", &lists[0], "--output", "a.csv"];
    let reports = finish(&[&common[..], &["--captions", &lists[1], "--output", "b.csv"]].concat());
    for (number, name) in ["a.csv", "b.csv"].iter().enumerate() {
        let ranked = std::fs::read_to_string(run_dir.join(name)).unwrap();
        assert_eq!(ranked.lines().count(), 1 + 5 * (half.len() - 1), "{name}");
        assert!(ranked.lines().skip(1).all(|line| line.ends_with(&format!("of {number}"))), "{ranked}");
        assert_eq!(reports[number]["prediction"]["ids"].as_u64(), Some(half.len() as u64 - 1));
    }
    // Both lists share the features of these ids.
    let computed = |report: &Value| {
        let stages = report["stages"].as_array().unwrap();
        let own = |stage: &&Value| stage["name"].as_str().unwrap().starts_with("features (images-");
        stages.iter().find(own).unwrap()["done"].as_u64().unwrap()
    };
    assert!(computed(&reports[0]) > 0);
    assert_eq!(computed(&reports[1]), 0, "{}", reports[1]);

    // Other images: each is an id, and there is no score without their truth.
    let training = data.join("image_data_train/image_pixels");
    let shard = std::fs::read_dir(&training).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    let shard = shard.display().to_string();
    let report = finish(&["predict", &config, "--images", &shard, "--output", "c.csv"]);
    assert!(
        report["prediction"].get("scores").is_none() && report["prediction"]["ids"].as_u64().unwrap() > 10,
        "{report}"
    );
    let kept = ["features/", "checkpoints/", "predict/submission/", "submission.csv"];
    let touched = differences(&before, &artefacts(&run_dir));
    assert!(touched.iter().all(|name| kept.iter().all(|own| !name.starts_with(own))), "{touched:?}");

    for (args, expected) in [
        (&["--images", &shard][..], "--output"),
        (&["--ids", &half_path, "--output", "submission.csv"], "is the submission of the run"),
        (&["--captions", &lists[0], "--captions", &lists[1], "--output", "x.csv"], "give each list an output"),
        (&["--images", "/nowhere/*.csv", "--output", "x.csv"], "/nowhere"),
    ] {
        let out = run(&[&["predict", &config], args].concat());
        assert!([2, 3].contains(&out.status.code().unwrap()), "{args:?}: {}", stderr_of(&out));
        assert!(stderr_of(&out).contains(expected), "{args:?}: {}", stderr_of(&out));
    }

    // A list that fails takes no finished report away.
    let gone = dir.path().join("gone.csv").display().to_string();
    let args = [&common[..], &["--captions", &gone, "--output", "d.csv", "--json"]].concat();
    let out = run(&args);
    assert_eq!(out.status.code(), Some(3), "{}", stderr_of(&out));
    let reports: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(reports.as_array().unwrap().len(), 1, "{reports}");
}

#[test]
fn predict_waits_for_a_held_directory() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 1")]));
    finish(&["run", &config]);
    let lock = std::fs::File::open(run_dir.join("lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(run(&["predict", &config]).status.code(), Some(4));
    let mut waiting = program()
        .args(["predict", &config, "--wait", "--json"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(waiting.stderr.take().unwrap()).lines();
    assert!(said.by_ref().any(|line| line.unwrap().contains("waiting for")), "it does not wait");
    assert!(waiting.try_wait().unwrap().is_none());
    drop(lock);
    assert!(said.all(|line| line.is_ok()));
    assert!(waiting.wait().unwrap().success());
}
