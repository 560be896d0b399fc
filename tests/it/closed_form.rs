//! Heads in closed form: they rank, the report names their settings, and a killed fit ends with the same bytes.

use std::path::Path;

use serde_json::Value;

use crate::support::{artefacts, differences, pipeline, program, run, stderr_of, write};
use crate::text::text;

fn finish(args: &[&str]) -> Value {
    let out = run(&[args, &["--json"]].concat());
    assert!(out.status.success(), "{}", stderr_of(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Returns a pipeline with a text head by canonical correlation.
fn cca(run_dir: &Path) -> String {
    let edits = [
        ("kind = 'text'", "kind = 'text'\nmethod = 'cca'"),
        ("learning_rate = 0.01\n", ""),
        ("batch_size = 64\n", "views = 2\n"),
        ("[predict]", "[predict]\nfile_names = true\ncorrection = 'softmax'"),
    ];
    text(run_dir, &edits)
}

#[test]
fn text_head_by_canonical_correlation_ranks_and_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let found = finish(&["run", &write(dir.path(), &cca(&whole))]);
    let scores = &found["prediction"]["scores"];
    let (ndcg5, chance) = (scores["ndcg5"].as_f64().unwrap(), scores["ndcg5_chance"].as_f64().unwrap());
    assert!(ndcg5 > 5.0 * chance, "NDCG@5 {ndcg5}, chance {chance}");
    let fit = &found["training"]["closed_form"];
    assert_eq!(fit["method"], "cca");
    let chosen = &fit["chosen"];
    for key in ["shrinkage", "caption_shrinkage", "rank", "power", "ndcg5"] {
        assert!(chosen[key].as_f64().is_some(), "{key}: {chosen}");
    }
    let candidates = fit["candidates"].as_array().unwrap();
    assert!(candidates.len() > 20 && candidates.contains(chosen), "{chosen} of {candidates:?}");
    assert!(found["training"]["validation"]["loss"].as_f64().is_some());

    let killed = dir.path().join("killed");
    let config = write(dir.path(), &cca(&killed));
    for plan in ["rename checkpoints/ 1", "renamed checkpoints/ 1"] {
        let out = program().args(["run", &config]).env("WIKICAP_KILL_AT", plan).output().unwrap();
        assert_eq!(out.status.code(), None, "`{plan}` was not reached: {}", stderr_of(&out));
    }
    finish(&["run", &config]);
    assert_eq!(differences(&artefacts(&whole), &artefacts(&killed)), Vec::<String>::new());

    let checkpoint = whole.join("checkpoints/step-1").display().to_string();
    let out = run(&["inspect", &checkpoint]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("map of captions"), "{}", stderr_of(&out));
    let out = run(&["run", &write(dir.path(), &cca(&whole)), "-v"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("cca in closed form") && text.contains("directions, power"), "{text}");
}

#[test]
fn classifier_by_ridge_ranks_without_a_learning_rate() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let edits =
        [("[train]", "[head]\nmethod = 'ridge'\n[train]"), ("learning_rate = 0.2\n", ""), ("batch_size = 16\n", "")];
    let config = write(dir.path(), &pipeline(&run_dir, &edits));
    let found = finish(&["run", &config]);
    let scores = &found["prediction"]["scores"];
    let (ndcg5, chance) = (scores["ndcg5"].as_f64().unwrap(), scores["ndcg5_chance"].as_f64().unwrap());
    assert!(ndcg5 > 5.0 * chance, "NDCG@5 {ndcg5}, chance {chance}");
    let fit = &found["training"]["closed_form"];
    assert!(fit["chosen"]["targets"].as_str().is_some() && fit["candidates"].as_array().unwrap().len() == 12, "{fit}");
    // A finished run does nothing again, and a ridge head of a text encoder works too.
    let again = finish(&["run", &config]);
    assert_eq!(again["training"], found["training"]);
    let edits = [
        ("kind = 'text'", "kind = 'text'\nmethod = 'ridge'"),
        ("learning_rate = 0.01\n", ""),
        ("batch_size = 64\n", ""),
    ];
    let found = finish(&["run", &write(dir.path(), &text(&dir.path().join("text"), &edits))]);
    let scores = &found["prediction"]["scores"];
    assert!(scores["ndcg5"].as_f64() > scores["ndcg5_chance"].as_f64().map(|chance| 5.0 * chance), "{scores}");
}

#[test]
fn fixed_temperature_and_dropout_train_and_correction_has_its_own_strength() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let edits = [
        ("kind = 'text'", "kind = 'text'\ntemperature = 0.2\ndropout = 0.1"),
        ("epochs = 12", "epochs = 4"),
        ("[predict]", "[predict]\ncorrection = 'softmax'\ncorrection_strength = 20"),
    ];
    let text = text(&run_dir, &edits);
    let found = finish(&["run", &write(dir.path(), &text)]);
    let prediction = &found["prediction"];
    assert_eq!(prediction["text"]["correction"], "softmax of strength 20");
    let (ndcg5, chance) = (&prediction["scores"]["ndcg5"], &prediction["scores"]["ndcg5_chance"]);
    assert!(ndcg5.as_f64() > chance.as_f64().map(|chance| 3.0 * chance), "{prediction}");
    let step = found["training"]["steps"].as_u64().unwrap();
    let checkpoint = run_dir.join(format!("checkpoints/step-{step}")).display().to_string();
    let out = run(&["inspect", &checkpoint]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("5.000"), "the scale is the inverse of the temperature");
    // Another strength ranks again, with the same features and the same head.
    for correction in ["softmax", "sinkhorn"] {
        let text = text.replace("strength = 20", "strength = 2").replace("softmax", correction);
        let again = finish(&["run", &write(dir.path(), &text)]);
        assert_eq!(again["training"], found["training"]);
        assert_eq!(again["prediction"]["text"]["correction"], format!("{correction} of strength 2"));
        let ndcg5 = again["prediction"]["scores"]["ndcg5"].as_f64();
        assert!(ndcg5 > chance.as_f64().map(|chance| 3.0 * chance), "{correction}: {ndcg5:?}");
    }
}
