//! Paired towers: zero-shot ranking as transformers ranks, text heads on top of them, and several layers in one feature.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{pipeline, run, stderr_of, write};

/// Returns a path among the checkpoints of `tests/reference/paired.py`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/paired").join(name)
}

/// Returns a pipeline that ranks without training.
fn zero_shot(run_dir: &Path, checkpoint: &str, more: &str) -> String {
    format!(
        "[run]\ndir = '{}'\n[model]\ncheckpoint = '{}'\nprecision = 'f32'\n[head]\nkind = 'paired'\n[text]\nprecision = 'f32'\n\
         [predict]\nimages = ['{}']\nids = '{}'\ncaptions = '{}'\n{more}",
        run_dir.display(),
        fixture(checkpoint).display(),
        fixture("images.tsv").display(),
        fixture("ids.tsv").display(),
        fixture("captions.csv").display(),
    )
}

fn report(run_dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap()
}

fn rows(path: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.records().map(|row| row.unwrap().iter().map(ToOwned::to_owned).collect()).collect()
}

#[test]
fn zero_shot_ranking_equals_that_of_transformers() {
    for name in ["altclip", "clip", "metaclip_2", "siglip", "siglip2"] {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let config = write(dir.path(), &zero_shot(&run_dir, name, ""));
        let out = run(&["check", "--config", &config]);
        assert!(out.status.success(), "{name}: {}", stderr_of(&out));
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{name}: {}", stderr_of(&out));
        let (found, expected) = (rows(&run_dir.join("submission.csv")), rows(&fixture(name).join("ranked.csv")));
        assert_eq!(found.len(), 60);
        assert_eq!(found, expected, "{name}");
        // Another list is ranked with the same features.
        let list = dir.path().join("few.csv");
        std::fs::write(&list, "caption\nA dog\nphoto of a red square\ntwo dogs on a beach\nx\ny\nz\n").unwrap();
        let out = run(&["predict", &config, "--captions", list.to_str().unwrap(), "--output", "few.csv"]);
        assert!(out.status.success(), "{name}: {}", stderr_of(&out));
        assert_eq!(rows(&run_dir.join("few.csv")).len(), 60);
        assert_eq!(report(&run_dir)["prediction"]["checkpoint_step"], Value::Null);
    }
}

#[test]
fn file_names_correction_and_truth_work_without_training() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let truth = fixture("siglip/ranked.csv");
    let more = format!("file_names = true\ncorrection = 'softmax'\ntruth = '{}'\n", truth.display());
    let out = run(&["run", "--config", &write(dir.path(), &zero_shot(&run_dir, "siglip", &more))]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let prediction = &report(&run_dir)["prediction"];
    assert!(prediction["scores"]["ndcg5"].as_f64().is_some(), "{prediction}");
    assert_eq!(prediction["text"]["captions"], 20);
}

#[test]
fn truth_gives_ranks_among_all_captions_and_within_each_language() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = zero_shot(&run_dir, "siglip", "top_k = 20\n");
    let path = write(dir.path(), &config);
    let out = run(&["run", "--config", &path]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let ranked = rows(&run_dir.join("submission.csv"));
    // The eighth caption of each id is right. The language of a caption follows from its length.
    let language = |caption: &str| if caption.len().is_multiple_of(2) { "de" } else { "en" };
    let mut truth = "id,caption_title_and_reference_description,language\n".to_owned();
    let (mut within, mut answers) = (Vec::new(), std::collections::BTreeSet::new());
    for id in ranked.chunks(20) {
        let right = &id[7][1];
        answers.insert(right.clone());
        truth.push_str(&format!("{},\"{right}\",{}\n", id[7][0], language(right)));
    }
    for id in ranked.chunks(20) {
        let own = language(&id[7][1]);
        let rank = id[..8].iter().filter(|row| answers.contains(&row[1]) && language(&row[1]) == own).count();
        within.push((own, rank as f64));
    }
    let truth_path = dir.path().join("truth.csv");
    std::fs::write(&truth_path, truth).unwrap();
    let path = write(dir.path(), &format!("{config}truth = '{}'\n", truth_path.display()));
    let out = run(&["run", "--config", &path]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let prediction = &report(&run_dir)["prediction"];
    assert_eq!(prediction["scores"]["mean_rank"], 8.0, "{prediction}");
    assert_eq!(prediction["scores"]["intervals"]["mean_rank"]["low"], 8.0, "{prediction}");
    let tables = prediction["text"]["test"]["within_language"].as_array().unwrap();
    let mut seen = 0;
    for table in tables {
        let own: Vec<f64> = within.iter().filter(|(name, _)| table["name"] == *name).map(|(_, rank)| *rank).collect();
        let expected = own.iter().sum::<f64>() / own.len() as f64;
        assert!((table["pixels"]["mean_rank"].as_f64().unwrap() - expected).abs() < 1e-9, "{table}");
        seen += own.len();
    }
    assert_eq!(seen, ranked.len() / 20);
    // `evaluate` finds the same in the file.
    let ids = fixture("ids.tsv").display().to_string();
    let (submission, truth) = (run_dir.join("submission.csv"), truth_path.display().to_string());
    let submission = submission.display().to_string();
    let out = run(&["evaluate", "--submission", &submission, "--truth", &truth, "--ids", &ids, "--json"]);
    let scores: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&scores["mean_rank"], scores["ids"].as_u64()), (&Value::from(8.0), Some(seen as u64)), "{scores}");
    assert_eq!(scores["by_language"].as_array().unwrap().len(), tables.len());
    let out = run(&["evaluate", "--submission", &submission, "--truth", &truth]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("mean rank") && text.contains("language ") && text.contains("[95 % confidence"), "{text}");
}

#[test]
fn impossible_pairs_are_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &str| {
        let out = run(&["run", "--config", &write(dir.path(), text)]);
        (out.status.code(), stderr_of(&out))
    };
    let plain = zero_shot(&dir.path().join("run"), "clip", "");
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/families");
    let other =
        |name: &str| plain.replace(&fixture("clip").display().to_string(), &families.join(name).display().to_string());
    let (code, text) = refused(&other("dinov2_registers"));
    assert!(code == Some(2) && text.contains("`model.pool`: pool `head` does not exist"), "{code:?} {text}");
    let (code, text) = refused(&other("siglip"));
    assert!(
        code == Some(2) && text.contains("has no `logit_scale`: name a checkpoint with both towers"),
        "{code:?} {text}"
    );
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/xlmr");
    let mixed = plain.replace("[text]\n", &format!("[text]\nencoder = '{}'\n", encoder.display()));
    let (code, text) = refused(&mixed);
    let expected = "features of 20 values and vectors of captions of 32 values are not in one space";
    assert!(code == Some(5) && text.contains(expected), "{code:?} {text}");
}

#[test]
fn text_head_starts_from_the_paired_projection() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let text = "[text]\nencoder = 'paired'\n\n[head]\nkind = 'text'\n\n[train]";
    let edits = [
        ("[train]", text),
        ("learning_rate = 0.2\n", "learning_rate = 0.003\n"),
        ("batch_size = 16", "batch_size = 64"),
        ("epochs = 12", "epochs = 3"),
    ];
    let config = pipeline(&run_dir, &edits);
    let tiny = config.lines().find(|line| line.starts_with("checkpoint = ")).unwrap();
    let config = config.replace(tiny, &format!("checkpoint = '{}'\nlayer = -1", fixture("siglip").display()));
    let path = write(dir.path(), &config);
    let out = run(&["run", "--config", &path]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let found = report(&run_dir);
    assert!(found["training"]["validation"]["loss"].as_f64().is_some(), "{}", found["training"]);
    // The features are those of the attention pooling: 32 values, not the 2 × 32 of two pools.
    let stored = std::fs::read_to_string(run_dir.join("run.toml")).unwrap();
    assert!(stored.contains("pool = \"head\""), "{stored}");
}

#[test]
fn unusable_scale_is_refused_before_features_are_computed() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, copy) = (dir.path().join("run"), dir.path().join("copy"));
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(fixture("siglip")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let weights = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = header + tensors["logit_scale"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::to_le_bytes(-1000.0));
    std::fs::write(&weights, bytes).unwrap();
    let config = pipeline(&run_dir, &[("[train]", "[text]\nencoder = 'paired'\n\n[head]\nkind = 'text'\n\n[train]")]);
    let tiny = config.lines().find(|line| line.starts_with("checkpoint = ")).unwrap();
    let trained = config.replace(tiny, &format!("checkpoint = '{}'\nlayer = -1", copy.display()));
    let original = fixture("siglip").display().to_string();
    let ranked = zero_shot(&run_dir, "siglip", "").replace(&original, &copy.display().to_string());
    for text in [trained, ranked] {
        let out = run(&["run", "--config", &write(dir.path(), &text)]);
        let expected = format!("`{}`: `logit_scale` is `-1000`", weights.display());
        assert!(out.status.code() == Some(5) && stderr_of(&out).contains(&expected), "{}", stderr_of(&out));
        assert!(!run_dir.join("features").exists());
    }
}

#[test]
fn features_of_several_layers_train_one_head() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let edits = [("vit-tiny\"", "vit-tiny\"\nlayer = [0, -1]\npool = 'cls+mean'"), ("epochs = 12", "epochs = 2")];
    let text = pipeline(&run_dir, &edits);
    let out = run(&["run", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let out = run(&["check", "--config", &write(dir.path(), &text)]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("feature of 256 values"), "two blocks of 2 × 64 values");
    for (layers, expected) in
        [("[0, 9]", "`9` names no block"), ("[]", "has 0 numbers"), ("[1, 1]", "names block `1` twice")]
    {
        let wrong = text.replace("[0, -1]", layers);
        let out = run(&["check", "--config", &write(dir.path(), &wrong)]);
        let all = format!("{}{}", String::from_utf8_lossy(&out.stdout), stderr_of(&out));
        assert!(out.status.code() == Some(2) && all.contains("`model.layer`") && all.contains(expected), "{all}");
    }
}
