//! Results that a run leaves behind: nothing overwrites them, a report covers all processes, and a score says what it means.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use serde_json::Value;

use crate::support::{artefacts, corpus, differences, pipeline, program, run, stderr_of, write};

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn report(run_dir: &Path) -> Value {
    read_json(&run_dir.join("report.json"))
}

/// Runs a command that must succeed, and returns its standard output.
fn succeed(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {}", stderr_of(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs a command that must fail with an exit code, and returns what it says.
fn fail(args: &[&str], code: i32) -> String {
    let out = run(args);
    let said = stderr_of(&out) + &String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    said
}

/// Returns every path below a directory with its content, folders included.
fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_dir() { Vec::new() } else { std::fs::read(&path).unwrap() };
            found.push((path.display().to_string(), content));
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Returns what both streams show as one line without line breaks.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn prediction_replaces_no_other_file_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 3")]));
    succeed(&["run", &config]);
    std::fs::write(run_dir.join("notes.csv"), "my own").unwrap();
    let before = artefacts(&run_dir);
    for (name, expected) in [
        ("training.csv", "training curve"),
        ("report.json", "ending in `.csv`"),
        ("run.toml", "ending in `.csv`"),
        ("checkpoints/x.csv", "plain file name"),
        ("notes.csv", "no prediction of this run wrote it"),
    ] {
        let said = fail(&["predict", &config, "--output", name], 2);
        assert!(said.contains(expected), "{name}: {said}");
    }
    assert_eq!(differences(&before, &artefacts(&run_dir)), Vec::<String>::new());
    // The same names in the pipeline file are refused, by `check` too.
    for (name, expected) in [("training.csv", "training curve"), ("notes.csv", "no prediction of this run wrote it")] {
        let output = format!("[predict]\noutput = '{name}'");
        let other = pipeline(&run_dir, &[("epochs = 12", "epochs = 3"), ("[predict]", &output)]);
        let other = write(dir.path(), &other);
        for command in ["check", "run", "predict"] {
            assert!(fail(&[command, &other], 2).contains(expected), "{command} {name}");
        }
    }
    assert_eq!(differences(&before, &artefacts(&run_dir)), Vec::<String>::new());
    // Neither does computing the prediction again remove it.
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 3")]));
    succeed(&["run", &config, "--from", "predict"]);
    assert_eq!(differences(&before, &artefacts(&run_dir)), Vec::<String>::new());
}

#[test]
fn unreadable_curve_costs_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[]));
    succeed(&["run", &config]);
    let whole = std::fs::read(run_dir.join("training.csv")).unwrap();
    let header_end = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let before = tree(&run_dir.join("checkpoints"));
    for (content, expected) in [
        (Some(b"id,caption_title_and_reference_description\n1,a\n".to_vec()), "is not a training curve"),
        (Some(whole[..whole.len() - 3].to_vec()), "is not a training curve"),
        (Some(whole[..header_end].to_vec()), "lacks the validation"),
        (None, "is missing"),
    ] {
        match &content {
            Some(content) => std::fs::write(run_dir.join("training.csv"), content).unwrap(),
            None => std::fs::remove_file(run_dir.join("training.csv")).unwrap(),
        }
        let said = fail(&["run", &config], 3);
        assert!(said.contains(expected) && said.contains("training.csv"), "{said}");
        assert_eq!(tree(&run_dir.join("checkpoints")), before, "{expected}");
    }
    std::fs::write(run_dir.join("training.csv"), whole).unwrap();
    succeed(&["run", &config]);
    assert_eq!(tree(&run_dir.join("checkpoints")), before);
}

#[test]
fn export_replaces_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]));
    succeed(&["run", &config]);
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(corpus().join("models/vit-tiny").join(name), model.join(name)).unwrap();
    }
    let before = (tree(&model), tree(&run_dir));
    for out in [&model, &run_dir, &run_dir.join("checkpoints")] {
        let said = fail(&["export", &config, "--out", out.to_str().unwrap()], 2);
        assert!(said.contains("`--out`"), "{said}");
    }
    assert_eq!((tree(&model), tree(&run_dir)), before);
    let out = dir.path().join("export");
    for _ in 0..2 {
        succeed(&["export", &config, "--out", out.to_str().unwrap()]);
    }
    assert_eq!(read_json(&out.join("export.json"))["step"], report(&run_dir)["training"]["steps"]);
    let names: Vec<String> = tree(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn report_covers_all_processes() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]));
    // One process is killed without a word, the next finishes, and a third finds nothing to do.
    // The kill comes at the second chunk of a shard in the spool, so that the first one is there in any case: the order of shards
    // depends on timing.
    let plan = "rename 00000-000000000050.json";
    let out = program().args(["run", &config]).env("WIKICAP_KILL_AT", plan).output().unwrap();
    assert_eq!(out.status.signal(), Some(9), "{}", stderr_of(&out));
    succeed(&["run", &config]);
    let finished = report(&run_dir);
    let text = succeed(&["run", &config]);
    assert!(words(&text).contains("in 3 processes"), "{text}");
    let last = report(&run_dir);

    let outcomes: Vec<&str> =
        last["processes"].as_array().unwrap().iter().map(|process| process["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["killed", "done", "done"]);
    for process in last["processes"].as_array().unwrap() {
        for key in ["started", "ended", "version", "host"] {
            assert!(process[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {process}");
        }
        assert!(process["peak_memory_bytes"].as_u64().unwrap() > 1 << 20, "{process}");
    }
    let stage = |report: &Value, name: &str| {
        let stages = report["stages"].as_array().unwrap();
        stages
            .iter()
            .find(|stage| stage["name"] == name)
            .unwrap_or_else(|| panic!("{name} is not in {stages:?}"))
            .clone()
    };
    // Reading a report and writing it again may change the last digit of a number.
    let assert_same = |one: &Value, other: &Value, name: &str| {
        let (one, other) = (stage(one, name), stage(other, name));
        assert_eq!(one["done"], other["done"], "{name}");
        for key in ["seconds", "per_second"] {
            let (one, other) = (one[key].as_f64().unwrap(), other[key].as_f64().unwrap());
            assert!(one > 0.0 && (one - other).abs() <= 1e-9 * one, "{name}, {key}: {one}, {other}");
        }
    };
    for name in ["images", "train", "test images"] {
        assert_same(&last, &finished, name);
    }
    // Rows that the killed process had not committed are done twice; its last second is not in its status.
    let (rows, done) = (&last["images"]["tally"]["rows"], stage(&last, "images")["done"].as_u64().unwrap());
    let second = finished["processes"][1]["stages"].as_array().unwrap();
    let second = second.iter().find(|stage| stage["name"] == "images").unwrap()["done"].as_u64().unwrap();
    assert!(second < rows.as_u64().unwrap() && done >= second, "{done} of {rows}, {second} in the second process");
    assert!(last["seconds"].as_f64().unwrap() > finished["seconds"].as_f64().unwrap());
    assert!(last["peak_memory_bytes"].as_u64() >= finished["peak_memory_bytes"].as_u64());

    // It says what made the results.
    assert_eq!(last["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(last["config"]["pipeline"]["train"]["epochs"], 2);
    assert_eq!(last["config"]["machine"]["limits"]["memory"], "auto");
    assert_eq!((&last["model"]["family"], &last["model"]["feature_dim"]), (&"vit".into(), &64.into()));
    assert!(last["device"].as_str().is_some());

    // Training again keeps the times of the images, and counts the new training alone.
    let changed = pipeline(&run_dir, &[("epochs = 12", "epochs = 1")]);
    succeed(&["run", &write(dir.path(), &changed), "--from", "train"]);
    let again = report(&run_dir);
    assert_same(&again, &last, "images");
    assert_eq!(stage(&again, "train")["done"].as_u64().unwrap() * 2, stage(&last, "train")["done"].as_u64().unwrap());
    assert_eq!(again["processes"].as_array().unwrap().len(), 4);
}

#[test]
fn report_that_cannot_be_read_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/data/image_data_test/image_pixels/*.csv']\n[preprocess]\nsize_px = 16\n",
        run_dir.display(),
        corpus().display()
    );
    let config = write(dir.path(), &text);
    succeed(&["run", &config]);
    std::fs::write(run_dir.join("report.json"), "{\"notes\": ").unwrap();
    let out = run(&["run", &config]);
    assert!(stderr_of(&out).contains("report.unreadable.json"), "{}", stderr_of(&out));
    assert_eq!(std::fs::read_to_string(run_dir.join("report.unreadable.json")).unwrap(), "{\"notes\": ");
}

#[test]
fn other_prediction_keeps_submission_and_report() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let whole = pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]);
    succeed(&["run", &write(dir.path(), &whole)]);
    let before = artefacts(&run_dir);
    let of_run = std::fs::read(run_dir.join("report.json")).unwrap();

    // Other images: the second shard alone.
    let other = whole
        .replace("image_data_test/image_pixels/*.csv", "image_data_test/image_pixels/*1.csv")
        .replace("[predict]", "[predict]\noutput = 'second.csv'");
    succeed(&["predict", &write(dir.path(), &other)]);
    // The same images under another name.
    let config = write(dir.path(), &whole);
    let text = succeed(&["predict", &config, "--output", "again.csv"]);
    assert!(text.contains("again.report.json"), "{text}");
    assert_eq!(std::fs::read(run_dir.join("report.json")).unwrap(), of_run);
    let now = artefacts(&run_dir);
    assert!(before.iter().all(|(name, content)| now.get(name) == Some(content)));
    assert_eq!(now["again.csv"], now["submission.csv"]);
    let (second, again) =
        (read_json(&run_dir.join("second.report.json")), read_json(&run_dir.join("again.report.json")));
    assert_ne!(second["prediction"]["scores"], again["prediction"]["scores"]);
    assert_eq!(again["prediction"]["scores"], report(&run_dir)["prediction"]["scores"]);
    assert_eq!(again["processes"][0]["outcome"], "done");
    assert!(again["outputs"]["submission"].as_str().unwrap().ends_with("again.csv"));

    // The submission's own images cannot be exchanged under its name.
    let exchanged = other.replace("second.csv", "submission.csv");
    let said = fail(&["predict", &write(dir.path(), &exchanged)], 2);
    assert!(said.contains("predict.images (files)") && said.contains("another `predict.output`"), "{said}");
    assert_eq!(artefacts(&run_dir), now);

    // Starting over removes all predictions, with their reports. That of a killed process does not come back.
    let config = write(dir.path(), &whole);
    let killed = program()
        .args(["predict", &config, "--output", "killed.csv"])
        .env("WIKICAP_KILL_AT", "rename killed.csv")
        .output()
        .unwrap();
    assert_eq!(killed.status.signal(), Some(9));
    assert!(!run_dir.join("killed.report.json").exists());
    succeed(&["run", &config, "--from", "predict"]);
    assert_eq!(artefacts(&run_dir), before);
    succeed(&["predict", &config, "--output", "killed.csv"]);
}

#[test]
fn only_resumed_stage_says_that_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let shards = corpus().join("data/image_data_test/image_pixels/*.csv");
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}']\n[preprocess]\nsize_px = 16\n[chunks]\nrows = 20\n",
        run_dir.display(),
        shards.display()
    );
    let config = write(dir.path(), &text);
    let killed = program().args(["run", &config]).env("WIKICAP_KILL_AT", "renamed journal/chunks 2").output().unwrap();
    assert_eq!(killed.status.signal(), Some(9));
    let resumed = run(&["run", &config]);
    assert!(resumed.status.success() && stderr_of(&resumed).contains("going on: "), "{}", stderr_of(&resumed));
    let finished = run(&["run", &config]);
    assert!(finished.status.success() && !stderr_of(&finished).contains("going on"), "{}", stderr_of(&finished));
}

#[test]
fn truth_without_ranked_captions_gives_no_score() {
    let dir = tempfile::tempdir().unwrap();
    let truth = dir.path().join("truth.csv");
    let original = format!("{}/data/truth.csv", corpus().display());
    for (row, expected) in [("0,something else", "hold none of the right captions"), ("x9,{}", "has no id of")] {
        let known =
            std::fs::read_to_string(&original).unwrap().lines().nth(1).unwrap().split_once(',').unwrap().1.to_owned();
        let rows = format!("id,caption_title_and_reference_description\n{}\n", row.replace("{}", &known));
        std::fs::write(&truth, rows).unwrap();
        let run_dir = dir.path().join("run");
        let text = pipeline(&run_dir, &[("epochs = 12", "epochs = 1"), (&original, truth.to_str().unwrap())]);
        let said = words(&succeed(&["run", &write(dir.path(), &text)]));
        assert!(said.contains("no score") && said.contains(expected) && !said.contains("NDCG@5 0 "), "{said}");
        assert!(report(&run_dir)["prediction"].get("scores").is_none());
    }
}

#[test]
fn swapped_files_are_not_scored() {
    let (truth, sample) = (corpus().join("data/truth.csv"), corpus().join("data/sample_submission.csv"));
    let (truth, sample) = (truth.to_str().unwrap(), sample.to_str().unwrap());
    succeed(&["evaluate", "--submission", sample, "--truth", truth]);
    let said = fail(&["evaluate", "--submission", truth, "--truth", sample], 3);
    assert!(said.contains("are the two files swapped?"), "{said}");
    assert!(
        fail(&["evaluate", "--submission", truth, "--truth", truth], 2).contains("both the submission and the truth")
    );
}

#[test]
fn failed_first_attempt_does_not_lock_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let list = dir.path().join("list.csv");
    std::fs::write(&list, "caption\n").unwrap();
    let original = format!("{}/data/test_caption_list.csv", corpus().display());
    let text = pipeline(&run_dir, &[("epochs = 12", "epochs = 1"), (&original, list.to_str().unwrap())]);
    assert!(fail(&["run", &write(dir.path(), &text)], 3).contains("holds no caption"));
    let changed = pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), ("rows = 50", "rows = 60")]);
    succeed(&["run", &write(dir.path(), &changed)]);
    assert_eq!(report(&run_dir)["processes"].as_array().unwrap().len(), 2);
    // Now there is something to mix.
    let again = pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), ("rows = 50", "rows = 70")]);
    assert!(fail(&["run", &write(dir.path(), &again)], 2).contains("chunks.rows"));
}

#[test]
fn refused_directory_is_left_as_it_was_found() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "years of work").unwrap();
    let before = tree(&foreign);
    for command in ["run", "check", "predict"] {
        let said = fail(&[command, &write(dir.path(), &pipeline(&foreign, &[]))], 2);
        assert!(said.contains("thesis.tex"), "{said}");
    }
    assert_eq!(tree(&foreign), before);
    // A new directory does not appear for a run that is refused.
    let missing = pipeline(&dir.path().join("a/b"), &[("data/test.tsv", "data/none.tsv")]);
    fail(&["run", &write(dir.path(), &missing)], 3);
    assert!(!dir.path().join("a").exists());
    // A run directory keeps everything, its lock file included.
    let run_dir = dir.path().join("run");
    succeed(&["run", &write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 1")]))]);
    let before = tree(&run_dir);
    fail(&["run", &write(dir.path(), &pipeline(&run_dir, &[]))], 2);
    assert_eq!(tree(&run_dir), before);
}

#[test]
fn caption_list_without_header_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.csv");
    let original = format!("{}/data/test_caption_list.csv", corpus().display());
    let captions = std::fs::read_to_string(&original).unwrap();
    let (header, rest) = captions.split_once('\n').unwrap();
    assert_eq!(header, "caption_title_and_reference_description");
    std::fs::write(&list, format!("A cat on a mat\n{rest}")).unwrap();
    let text = pipeline(&dir.path().join("run"), &[(&original, list.to_str().unwrap())]);
    for command in ["check", "run"] {
        let said = fail(&[command, &write(dir.path(), &text)], 3);
        assert!(said.contains("starts with `A cat on a mat`") && said.contains("add a first line `caption`"), "{said}");
    }
}

#[test]
fn stage_that_the_pipeline_lacks_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &[]));
    let said = fail(&["run", &config, "--from", "text"], 2);
    assert!(said.contains("has no stage `text`") && said.contains("catalog, stream, train, predict"), "{said}");
    assert!(!dir.path().join("run").exists());
}

#[test]
fn control_bytes_of_data_never_reach_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    // No `[`, which is part of a pattern.
    let hostile = "\u{1b}]0;red\u{9b}2J\r\u{7}";
    let data = dir.path().join(hostile);
    std::fs::create_dir(&data).unwrap();
    let source = corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv");
    let rows = std::fs::read_to_string(source).unwrap();
    let image = rows.lines().next().unwrap().split('\t').nth(1).unwrap();
    let shard = format!("http://x/{hostile}\t{image}\t\nhttp://y/{hostile}\t@@\t\n");
    std::fs::write(data.join("shard.csv"), shard.replace('\r', "")).unwrap();
    let text = format!(
        "[run]\ndir = {run:?}\n[images]\nshards = [{shard:?}]\n[preprocess]\nsize_px = 16\n",
        run = data.join("run").display().to_string(),
        shard = data.join("shard.csv").display().to_string()
    );
    // TOML has no `\u{…}`.
    let text = text.replace("\\u{1b}", "\\u001b").replace("\\u{9b}", "\\u009b").replace("\\u{7}", "\\u0007");
    let config = write(&data, &text);
    let run_dir = data.join("run").display().to_string();
    let chunk = format!("{run_dir}/chunks/00000-000000000000.parquet");
    let quarantine = format!("{run_dir}/quarantine/00000-000000000000.parquet");
    let unknown = format!("--{hostile}");
    let commands: [&[&str]; 11] = [
        &["check", &config],
        &["run", &config, "-v"],
        &["status", &run_dir, "--shards"],
        &["status", &run_dir, "--json"],
        &["inspect", &run_dir],
        &["inspect", &chunk],
        &["inspect", &quarantine],
        &["run", &config, "--from", hostile],
        &["status", &unknown],
        &["evaluate", "--submission", &chunk, "--truth", &quarantine],
        &["export", &config, "--out", &run_dir],
    ];
    for args in commands {
        let out = run(args);
        for stream in [&out.stdout, &out.stderr] {
            let text = String::from_utf8_lossy(stream);
            let raw = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
            assert_eq!(raw, None, "{args:?}: {text:?}");
        }
    }
}

#[test]
fn class_head_on_single_images_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let source = corpus().join("data/train-00000-of-00005.tsv");
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').flexible(true).from_path(source).unwrap();
    let header = reader.headers().unwrap().clone();
    let at = header.iter().position(|name| name == "image_url").unwrap();
    let mut urls: Vec<String> =
        reader.records().filter_map(Result::ok).filter_map(|row| row.get(at).map(ToOwned::to_owned)).collect();
    urls.sort();
    urls.dedup();
    // Each image has a caption of its own.
    let pairs = dir.path().join("pairs.tsv");
    let mut text = "language\timage_url\tcaption_title_and_reference_description\n".to_owned();
    for (number, url) in urls.iter().enumerate() {
        text.push_str(&format!("en\t{url}\tcaption number {number}\n"));
    }
    std::fs::write(&pairs, text).unwrap();
    let original = format!("{}/data/train-*-of-00005.tsv", corpus().display());
    let edits = [(original.as_str(), pairs.to_str().unwrap()), ("[pairs]", "classes = 'train'\n[pairs]")];
    let edits =
        [&edits[..], &[("validation_fraction = 0.1", "validation_fraction = 0.3"), ("epochs = 12", "epochs = 4")]];
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &edits.concat()));
    let said = words(&succeed(&["check", &config]));
    assert!(said.contains("have a single image") && said.contains("[head] kind = \"text\""), "{said}");
    assert!(said.contains("1 warning:") && !said.contains("No problem found"), "{said}");
    let said = words(&succeed(&["run", &config]));
    assert!(said.contains("the head learned nothing") && said.contains("[head] kind = \"text\""), "{said}");
}

#[test]
fn check_warns_about_labels_and_the_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.csv");
    std::fs::write(&list, "caption\nnothing\nof\nthis\nis\nthere\n").unwrap();
    let original = format!("{}/data/test_caption_list.csv", corpus().display());
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &[(&original, list.to_str().unwrap())]));
    let said = words(&succeed(&["check", &config]));
    assert!(said.contains("has a label") && said.contains("[head] kind = \"text\""), "{said}");
    assert!(!said.contains("No problem found"), "{said}");
    for (run_dir, expected) in [
        ("/", "root of the file system"),
        ("~/runs/x", "not expanded"),
        ("/proc/none", "cannot be written to"),
        (list.to_str().unwrap(), "is a file"),
    ] {
        let config = write(dir.path(), &pipeline(Path::new(run_dir), &[]));
        let said = fail(&["check", &config], 2);
        assert!(said.contains(expected) && said.contains("`run.dir`"), "{run_dir}: {said}");
    }
}
