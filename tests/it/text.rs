//! Text heads: any caption list, by pixels and file names, and the same bytes after any interruption.

use std::path::Path;

use serde_json::Value;

use crate::support::{artefacts, corpus, differences, pipeline, program, run, stderr_of, write};

/// Writes a tiny text encoder with random weights.
fn encoder() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/xlmr").display().to_string()
}

/// Returns a pipeline over the shared corpus with a text head.
pub(crate) fn text(run_dir: &Path, edits: &[(&str, &str)]) -> String {
    let sections = format!("[text]\nencoder = '{}'\nprefix = 'query: '\n\n[head]\nkind = 'text'\n\n[train]", encoder());
    let mut all = vec![
        ("[train]", sections.as_str()),
        ("learning_rate = 0.2\n", "learning_rate = 0.01\n"),
        ("batch_size = 16", "batch_size = 64"),
        ("validation_fraction = 0.1", "validation_fraction = 0.2"),
    ];
    all.extend_from_slice(edits);
    pipeline(run_dir, &all)
}

fn report(run_dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap()
}

fn finish(dir: &Path, text: &str) {
    let out = run(&["run", "--config", &write(dir, text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
}

fn rows(path: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.records().map(|row| row.unwrap().iter().map(ToOwned::to_owned).collect()).collect()
}

#[test]
fn text_head_ranks_any_caption_list() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = text(
        &run_dir,
        &[("[predict]", "[predict]\nfile_names = true\ncorrection = 'softmax'"), ("[head]", "[head]\nhidden = 24")],
    );
    finish(dir.path(), &config);
    let found = report(&run_dir);
    let scores = &found["prediction"]["scores"];
    let (ndcg5, chance) = (scores["ndcg5"].as_f64().unwrap(), scores["ndcg5_chance"].as_f64().unwrap());
    assert!(ndcg5 > 5.0 * chance, "NDCG@5 {ndcg5}, chance {chance}");
    let training = &found["training"];
    assert!(training["validation"]["loss"].as_f64() < training["validations"][0]["loss"].as_f64(), "{training}");
    let text_report = &found["prediction"]["text"];
    for side in ["held_out", "test"] {
        let groups = text_report[side]["groups"].as_array().unwrap();
        let all = &groups[0];
        assert_eq!(all["name"], "all captions");
        for signal in ["pixels", "names", "both"] {
            assert!(all[signal]["ndcg5"].as_f64().is_some(), "{side}: {all}");
        }
        let questions = |group: &Value| group["questions"].as_u64().unwrap();
        assert_eq!(questions(all), groups[1..].iter().map(questions).sum::<u64>(), "{side}: {groups:?}");
        assert!(!text_report[side]["by_language"].as_array().unwrap().is_empty(), "{side}");
    }
    // The printed score equals that of the submission.
    let both = text_report["test"]["groups"][0]["both"]["ndcg5"].as_f64().unwrap();
    assert!((both - ndcg5).abs() < 1e-9, "{both} for {ndcg5}");
    let page = std::fs::read_to_string(run_dir.join("examples.html")).unwrap();
    assert!(page.matches("data:image/jpeg;base64,").count() >= 20 && !page.contains("no thumbnail"));

    // Captions that the run has never seen, some of them hard to tokenise; features are reused.
    let list = dir.path().join("list.csv");
    let hard = [
        "ภาพถ่ายของวัด",
        "富士山の写真",
        "برج إيفل ليلاً",
        "mixed עברית and English",
        "🐶🐕‍🦺",
        "\"quoted\", yes\nand a line",
    ];
    let mut writer = csv::Writer::from_path(&list).unwrap();
    writer.write_record(["caption"]).unwrap();
    for caption in hard.iter().copied().chain(["x", "x", ""]).map(ToOwned::to_owned).chain([("長い ".repeat(3000))]) {
        writer.write_record([caption]).unwrap();
    }
    writer.flush().unwrap();
    let before = artefacts(&run_dir);
    let path = dir.path().join("pipeline.toml");
    let (path, list) = (path.to_str().unwrap(), list.to_str().unwrap());
    let out = run(&["predict", "--config", path, "--captions", list, "--output", "hard.csv"]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let ranked = rows(&run_dir.join("hard.csv"));
    assert_eq!(ranked.len() % 5, 0);
    assert!(ranked.iter().any(|row| hard.contains(&row[1].as_str())));
    let of_run = report(&run_dir);
    assert_eq!(of_run["prediction"]["text"]["captions"], found["prediction"]["text"]["captions"]);
    let found: Value = serde_json::from_slice(&std::fs::read(run_dir.join("hard.report.json")).unwrap()).unwrap();
    assert_eq!(found["prediction"]["text"]["captions"], 8, "distinct ones that say something");
    // None of them is right, so there is no score.
    assert!(
        found["prediction"].get("scores").is_none() && found["prediction"]["text"].get("test").is_none(),
        "{found}"
    );
    assert!(found["notes"].to_string().contains("no score"), "{found}");
    let stages: Vec<&str> =
        found["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    let done = |name: &str| {
        found["stages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|stage| stage["name"] == name)
            .map(|stage| stage["done"].as_u64())
    };
    assert_eq!(done("features (submission)"), Some(Some(0)), "{stages:?}");
    let changed = differences(&before, &artefacts(&run_dir));
    let own_files = ["hard.csv", "hard.report.json", "journal/finished/predict-hard.json"];
    let own =
        |name: &str| name.starts_with("texts/") || name.starts_with("journal/texts/") || own_files.contains(&name);
    assert!(changed.iter().all(|name| own(name)), "{changed:?}");
    assert!(own_files.iter().all(|name| changed.iter().any(|file| file == name)), "{changed:?}");
    for args in [
        &["--output", "../x.csv"][..],
        &["--captions", "/nowhere.csv", "--output", "x.csv"],
        &["--captions", list],
        &["--captions", list, "--output", "submission.csv"],
    ] {
        let out = run(&[&["predict", "--config", path], args].concat());
        assert!([2, 3].contains(&out.status.code().unwrap()), "{args:?}: {}", stderr_of(&out));
    }
    // Neither does another list in the pipeline file replace the submission, unless the whole pipeline runs.
    let other = write(dir.path(), &config.replace("[predict]", &format!("[predict]\ncaptions = '{list}'")));
    let out = run(&["predict", "--config", &other]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr_of(&out));
    assert!(stderr_of(&out).contains("is the submission of the run"), "{}", stderr_of(&out));
}

#[test]
fn kills_change_no_byte_of_text_run() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    let edits = [
        ("[predict]", "[predict]\nfile_names = true\ncorrection = 'csls'"),
        ("log_every", "balance = 'language'\nlog_every"),
        ("learning_rate = 0.01\n", "learning_rate = [0.01, 0.003]\n"),
        ("epochs = 12", "epochs = 4"),
    ];
    finish(dir.path(), &text(&undisturbed, &edits));
    let run_dir = dir.path().join("killed");
    let config = write(dir.path(), &text(&run_dir, &edits));
    for (point, times) in [
        ("rename texts/", 1),
        ("renamed texts/", 1),
        ("renamed checkpoints/", 1),
        ("renamed checkpoints/", 3),
        ("removed checkpoints/", 1),
        ("renamed texts/", 1),
    ] {
        let plan = format!("{point} {times}");
        let out = program().args(["run", "--config", &config]).env("WIKICAP_KILL_AT", &plan).output().unwrap();
        assert_eq!(out.status.code(), None, "`{plan}` was not reached: {}", stderr_of(&out));
    }
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(&artefacts(&undisturbed), &artefacts(&run_dir)), Vec::<String>::new());

    // A finished run needs no vectors. A prediction does, and recomputes lost ones.
    let mut lost = Vec::new();
    for name in artefacts(&run_dir).into_keys().filter(|name| name.starts_with("texts/")) {
        std::fs::remove_file(run_dir.join(&name)).unwrap();
        lost.push(name);
    }
    assert!(lost.len() >= 2, "the classes and the file names: {lost:?}");
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(&artefacts(&undisturbed), &artefacts(&run_dir)), lost);
    std::fs::remove_file(run_dir.join("submission.csv")).unwrap();
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(&artefacts(&undisturbed), &artefacts(&run_dir)), Vec::<String>::new());
    // A changed encoder is refused.
    let other = encoder().replace("xlmr", "mini");
    for command in ["run", "predict"] {
        let config = write(dir.path(), &text(&run_dir, &edits).replace(&encoder(), &other));
        let out = run(&[command, "--config", &config]);
        assert_eq!(out.status.code(), Some(2), "{}", stderr_of(&out));
        assert!(stderr_of(&out).contains("text.encoder (files)"), "{}", stderr_of(&out));
    }
    let config = write(dir.path(), &text(&run_dir, &edits).replace("'query: '", "''"));
    let out = run(&["run", "--config", &config]);
    assert!(stderr_of(&out).contains("text.prefix") && stderr_of(&out).contains("--from text"), "{}", stderr_of(&out));
}

#[test]
fn captions_embedded_in_parts_give_the_bytes_of_a_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    // More captions than a chunk of vectors holds.
    let list = corpus().join("data/test_caption_list.csv");
    let mut captions = std::fs::read_to_string(&list).unwrap();
    (0..2100).for_each(|number| captions.push_str(&format!("caption {number}\n")));
    let long = dir.path().join("captions.csv");
    std::fs::write(&long, captions).unwrap();
    let edits = [(list.to_str().unwrap(), long.to_str().unwrap()), ("epochs = 12", "epochs = 1")];
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    finish(dir.path(), &text(&whole, &edits));
    let config = write(dir.path(), &text(&parts, &edits));
    let part = |name: &str| {
        let out = run(&["run", "--config", &config, "--part", name]);
        assert!(out.status.success(), "{}", stderr_of(&out));
    };
    let chunks = |run_dir: &Path| -> Vec<String> {
        let names = artefacts(run_dir).into_keys();
        let files = names.filter_map(|name| Some(name.strip_prefix("texts/")?.rsplit('/').next()?.to_owned()));
        files.filter(|name| name.ends_with(".parquet")).collect()
    };
    part("1/2");
    assert_eq!(chunks(&parts), ["000001.parquet"]);
    assert!(!parts.join("checkpoints").exists());
    part("0/2");
    assert_eq!(differences(&artefacts(&whole), &artefacts(&parts)), Vec::<String>::new());
    assert!(chunks(&whole).contains(&"000001.parquet".to_owned()));
}

#[test]
fn classifier_of_another_run_is_blended_in() {
    let dir = tempfile::tempdir().unwrap();
    let (classes, both) = (dir.path().join("classes"), dir.path().join("both"));
    finish(dir.path(), &pipeline(&classes, &[("validation_fraction = 0.1", "validation_fraction = 0.2")]));
    let blend = format!("[predict]\nblend = '{}'", classes.display());
    let config = text(&both, &[("[predict]", &blend), ("epochs = 12", "epochs = 2")]);
    finish(dir.path(), &config);
    let found = report(&both);
    let part = &found["prediction"];
    assert!(part["text"]["classes_weight"].as_f64().unwrap() > 0.0, "{part}");
    // After two epochs the text head is weak; the classifier is fully trained.
    let alone = report(&classes)["prediction"]["scores"]["ndcg5"].as_f64().unwrap();
    assert!(part["scores"]["ndcg5"].as_f64().unwrap() > 0.7 * alone, "{part}");
    let nowhere = config.replace(&classes.display().to_string(), &corpus().display().to_string());
    let out = run(&["predict", "--config", &write(dir.path(), &nowhere)]);
    assert_eq!(out.status.code(), Some(3));
    assert!(stderr_of(&out).contains("`predict.blend`"), "{}", stderr_of(&out));
}

#[test]
fn incompatible_keys_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    for (edits, expected) in [
        (vec![("kind = 'text'", "kind = 'classes'")], "`text`: works only"),
        (vec![("[head]", "[head]\nhidden = 100000")], "head.hidden"),
        (vec![("learning_rate = 0.01\n", "optimizer = 'sgd'\n")], "train.optimizer"),
        (vec![("learning_rate = 0.01\n", "targets = 'soft'\n")], "train.targets"),
        (vec![("[head]", "[head]\ntemperature = 0.001")], "head.temperature"),
        (vec![("[head]", "[head]\ndropout = 1")], "head.dropout"),
        (vec![("[predict]", "[predict]\ncorrection_strength = 20")], "predict.correction_strength"),
        (vec![("[predict]", "[predict]\ncorrection = 'sinkhorn'\ncorrection_strength = 1e-40")], "must be from 0.01"),
        (vec![("learning_rate = 0.01\n", "label_smoothing = 0.1\n")], "train.label_smoothing"),
        (vec![("learning_rate = 0.01\n", "balance = 'length'\n")], "train.balance"),
        (vec![("prefix = 'query: '", "precision = 'f16'")], "text.precision"),
        (vec![("[predict]", "[predict]\ncorrection = 'hubs'")], "predict.correction"),
    ] {
        let out = run(&["run", "--config", &write(dir.path(), &text(&run_dir, &edits))]);
        assert_eq!(out.status.code(), Some(2), "{edits:?}: {}", stderr_of(&out));
        assert!(stderr_of(&out).contains(expected), "{edits:?}: {}", stderr_of(&out));
    }
    let no_encoder = text(&run_dir, &[]).replace(&encoder(), "/nowhere/encoder");
    let config = write(dir.path(), &no_encoder);
    for command in ["run", "check"] {
        let out = run(&[command, "--config", &config]);
        assert_eq!(out.status.code(), Some(5), "{}", stderr_of(&out));
        let said = stderr_of(&out) + &String::from_utf8_lossy(&out.stdout);
        assert!(said.contains("/nowhere/encoder/config.json"), "{said}");
    }
    // The classifier head has none of these keys.
    let keys = "[predict]\nfile_names = true\ncorrection = 'csls'\ncaptions = 'x.csv'\nblend = 'y'";
    let out = run(&["run", "--config", &write(dir.path(), &pipeline(&run_dir, &[("[predict]", keys)]))]);
    for key in ["predict.file_names", "predict.correction", "predict.captions", "predict.blend"] {
        assert!(stderr_of(&out).contains(key), "{}", stderr_of(&out));
    }
}
