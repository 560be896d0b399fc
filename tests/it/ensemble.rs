//! Heads that score together: one for each layer and seed, weighted, resumed after kills, and used by every ranking.

use std::path::Path;

use serde_json::Value;

use crate::support::{artefacts, differences, program, run, stderr_of, write};
use crate::text::text;

fn finish(args: &[&str]) -> Value {
    let out = run(&[args, &["--json"]].concat());
    assert!(out.status.success(), "{}", stderr_of(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Returns a pipeline with heads for two layers. `head` and `predict` hold more keys.
pub(crate) fn layers(run_dir: &Path, head: &str, predict: &str) -> String {
    let head = format!("kind = 'text'\nper_layer = true\n{head}");
    let model = ("[train]\nepochs = 12", "[train]\nepochs = 3");
    let text =
        text(run_dir, &[("kind = 'text'", head.as_str()), model, ("[predict]", &format!("[predict]\n{predict}"))]);
    text.replace("models/vit-tiny\"", "models/vit-tiny\"\nlayer = [0, 1]")
}

fn assert_ranks(found: &Value) {
    let scores = &found["prediction"]["scores"];
    let (ndcg5, chance) = (scores["ndcg5"].as_f64().unwrap(), scores["ndcg5_chance"].as_f64().unwrap());
    assert!(ndcg5 > 3.0 * chance, "NDCG@5 {ndcg5}, chance {chance}");
}

fn weights(ensemble: &Value) -> Vec<f64> {
    let members = ensemble["members"].as_array().unwrap();
    members.iter().map(|member| member["weight"].as_f64().unwrap()).collect()
}

#[test]
fn trained_heads_of_layers_and_seeds_rank_together_and_resume_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let keys = "seeds = 2\nweights = 'held-out'\ntemperature = 0.2\ndropout = 0.1";
    let pipeline = |run_dir: &Path| layers(run_dir, keys, "checkpoint = 'best'\ncorrection = 'auto'");
    let config = write(dir.path(), &pipeline(&whole));
    let found = finish(&["run", &config]);
    assert_ranks(&found);
    let training = &found["training"];
    let ensemble = &training["ensemble"];
    let members = ensemble["members"].as_array().unwrap();
    let named: Vec<(i64, u64)> =
        members.iter().map(|own| (own["layer"].as_i64().unwrap(), own["seed"].as_u64().unwrap())).collect();
    let seed = named[0].1;
    assert_eq!(named, [(0, seed), (0, seed + 1), (1, seed), (1, seed + 1)]);
    assert!((weights(ensemble).iter().sum::<f64>() - 1.0).abs() < 1e-9, "{ensemble}");
    // The choice starts from equal weights at the best step, whose score is that of the curve.
    let best = training["best"]["ndcg5_languages"].as_f64().unwrap();
    assert!(ensemble["ndcg5"].as_f64().unwrap() >= best - 1e-6, "{ensemble} for {best}");
    assert_eq!(training["best"]["step"], ensemble["step"]);
    assert_eq!(training["best"]["trial"], 4);
    let interval = &training["best"]["ndcg5_interval"];
    assert!(interval["low"].as_f64() < training["best"]["ndcg5"].as_f64(), "{interval}");
    let curve = std::fs::read_to_string(whole.join("training.csv")).unwrap();
    assert!(curve.starts_with("step,loss") && curve.contains("validation_ndcg5_low,validation_ndcg5_high"), "{curve}");
    // The correction is the best of those that were tried.
    let text = &found["prediction"]["text"];
    let tried = text["corrections"].as_array().unwrap();
    let score = |own: &Value| own["ndcg5"].as_f64().unwrap();
    let top = tried.iter().max_by(|one, other| score(one).total_cmp(&score(other))).map(score).unwrap();
    let chosen = text["correction"].as_str().unwrap().strip_suffix(", chosen on held-out images").unwrap();
    assert!(tried.iter().any(|own| own["correction"] == chosen && score(own) >= top), "{chosen}: {tried:?}");

    let killed = dir.path().join("killed");
    let config = write(dir.path(), &pipeline(&killed));
    for plan in [
        "rename checkpoints/ 2",
        "renamed checkpoints/ 4",
        "removed checkpoints/ 1",
        "rename checkpoints/ensemble.json 1",
        "renamed checkpoints/ensemble.json 1",
    ] {
        let out = program().args(["run", &config]).env("WIKICAP_KILL_AT", plan).output().unwrap();
        assert_eq!(out.status.code(), None, "`{plan}` was not reached: {}", stderr_of(&out));
    }
    finish(&["run", &config]);
    assert_eq!(differences(&artefacts(&whole), &artefacts(&killed)), Vec::<String>::new());

    let out = run(&["run", &config, "-v"]);
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(shown.contains("every stage was already complete"), "{shown}");
    assert!(shown.contains("4 heads at step") && shown.contains("layer 1, seed"), "{shown}");
}

#[test]
fn solved_heads_of_layers_rank_together_and_any_list() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let solved = |run_dir: &Path| {
        let text =
            layers(run_dir, "method = 'cca'", "file_names = true\ncorrection = 'softmax'\ncorrection_strength = 20");
        text.replace("learning_rate = 0.01\n", "").replace("batch_size = 64\n", "")
    };
    let config = write(dir.path(), &solved(&whole));
    let found = finish(&["run", &config]);
    assert_ranks(&found);
    let ensemble = &found["training"]["ensemble"];
    assert_eq!(weights(ensemble), [0.5, 0.5]);
    let members = ensemble["members"].as_array().unwrap();
    let score = |own: &Value| own["ndcg5"].as_f64().unwrap();
    for (member, layer) in members.iter().zip(0..) {
        assert_eq!((&member["closed_form"]["layer"], &member["layer"]), (&layer.into(), &layer.into()), "{member}");
        assert!((score(member) - score(&member["closed_form"])).abs() < 1e-6, "{member}");
    }
    let fit = &found["training"]["closed_form"];
    let best = members.iter().map(|own| score(&own["closed_form"])).fold(0.0, f64::max);
    assert!((score(&fit["chosen"]) - best).abs() < 1e-9, "{fit} for {best}");

    let killed = dir.path().join("killed");
    let config_killed = write(dir.path(), &solved(&killed));
    for plan in ["renamed checkpoints/ 1", "rename checkpoints/ensemble.json 1", "renamed checkpoints/ensemble.json 1"]
    {
        let out = program().args(["run", &config_killed]).env("WIKICAP_KILL_AT", plan).output().unwrap();
        assert_eq!(out.status.code(), None, "`{plan}` was not reached: {}", stderr_of(&out));
    }
    finish(&["run", &config_killed]);
    assert_eq!(differences(&artefacts(&whole), &artefacts(&killed)), Vec::<String>::new());

    // Another list is ranked by both heads, too.
    let list = dir.path().join("list.csv");
    std::fs::write(&list, "caption\nA red circle\nEin blaues Quadrat\nUn triangle vert\nEl gato\nA star\nEin Haus\n")
        .unwrap();
    let list = list.display().to_string();
    let config = write(dir.path(), &solved(&whole));
    let found = finish(&["predict", &config, "--captions", &list, "--output", "other.csv"]);
    assert_eq!(found["prediction"]["text"]["captions"], 6, "{found}");
}

#[test]
fn auto_solves_for_few_images() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &layers(&run_dir, "method = 'auto'\nseeds = 4", ""));
    let found = finish(&["run", &config]);
    assert_ranks(&found);
    assert_eq!(found["training"]["closed_form"]["method"], "cca");
    assert_eq!(found["training"]["ensemble"]["members"].as_array().unwrap().len(), 2);
    let again = finish(&["run", &config]);
    assert_eq!(again["training"], found["training"]);
    let stages = again["processes"].as_array().unwrap().last().unwrap()["stages"].as_array().unwrap().clone();
    assert!(stages.iter().all(|stage| stage["done"] == 0), "a finished run trained again: {stages:?}");
}
