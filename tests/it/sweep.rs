//! Sweeps of several heads, and training targets.

use std::path::Path;

use serde_json::Value;

use crate::support::{artefacts, differences, pipeline, program, run, stderr_of, write};

/// Returns a pipeline that sweeps two learning rates and two momenta.
fn sweep(run_dir: &Path) -> String {
    let lists = "learning_rate = [0.02, 0.2]\nmomentum = [0.9, 0.5]\n";
    pipeline(
        run_dir,
        &[("learning_rate = 0.2\n", lists), ("epochs = 12", "epochs = 4"), ("clip_norm = 0.0", "clip_norm = 0.8")],
    )
}

fn report(run_dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap()
}

fn finish(dir: &Path, text: &str) {
    let out = run(&["run", "--config", &write(dir, text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
}

#[test]
fn sweep_heads_equal_separate_runs() {
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("all");
    finish(dir.path(), &sweep(&all));
    let found = report(&all);
    let trials = found["training"]["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 4);
    let step = found["training"]["steps"].as_u64().unwrap();

    let score = |trial: &Value| trial["best"]["ndcg5"].as_f64().unwrap();
    let best = trials.iter().map(score).fold(0.0, f64::max);
    let winner = trials.iter().position(|trial| trial["wins"].as_bool().unwrap()).unwrap();
    assert!(score(&trials[winner]) >= best);
    assert!(trials.iter().any(|trial| score(trial) < best), "the settings make no difference: {trials:?}");
    assert_eq!(found["prediction"]["trial"].as_u64(), Some(winner as u64));
    let picture = std::fs::read_to_string(all.join("training.svg")).unwrap();
    assert!(picture.contains("lr 0.02, m 0.9") && picture.contains("lr 0.2, m 0.5"));

    for (number, trial) in trials.iter().enumerate() {
        let alone = dir.path().join(format!("alone-{number}"));
        let settings = &trial["learning_rate"];
        let one = format!("learning_rate = {settings}\nmomentum = {}\n", trial["momentum"]);
        let lists = "learning_rate = [0.02, 0.2]\nmomentum = [0.9, 0.5]\n";
        finish(dir.path(), &sweep(&alone).replace(lists, &one));
        let folder = match number {
            0 => format!("checkpoints/step-{step}"),
            _ => format!("checkpoints/step-{step}-trial-{number}"),
        };
        for file in ["head.safetensors", "optimizer.safetensors"] {
            let of = |run_dir: &Path, folder: &str| std::fs::read(run_dir.join(folder).join(file)).unwrap();
            assert!(of(&all, &folder) == of(&alone, &format!("checkpoints/step-{step}")), "{file} of head {number}");
        }
        let own = report(&alone);
        assert_eq!(own["training"]["best"]["ndcg5"], trial["best"]["ndcg5"]);
        assert!(own["training"].get("trials").is_none());
        if number == winner {
            let submission = |run_dir: &Path| std::fs::read(run_dir.join("submission.csv")).unwrap();
            assert!(submission(&all) == submission(&alone), "another head predicted");
        }
    }
}

#[test]
fn kill_while_sweep_saves_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    finish(dir.path(), &sweep(&undisturbed));
    let run_dir = dir.path().join("killed");
    let config = write(dir.path(), &sweep(&run_dir));
    // Heads are saved one after the other, from the last to the first.
    for (point, times) in
        [("rename", 2), ("renamed", 1), ("renamed", 2), ("renamed", 3), ("removed", 1), ("renamed", 6), ("remove", 3)]
    {
        let plan = format!("{point} checkpoints/ {times}");
        let out = program().args(["run", "--config", &config]).env("WIKICAP_KILL_AT", &plan).output().unwrap();
        assert_eq!(out.status.code(), None, "`{plan}` was not reached: {}", stderr_of(&out));
    }
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(&artefacts(&undisturbed), &artefacts(&run_dir)), Vec::<String>::new());
}

#[test]
fn image_targets_make_one_sample_per_image() {
    let dir = tempfile::tempdir().unwrap();
    let mut samples = Vec::new();
    for targets in ["pairs", "soft"] {
        let run_dir = dir.path().join(targets);
        let keys = format!("[train]\ntargets = '{targets}'\nlabel_smoothing = 0.1");
        finish(dir.path(), &pipeline(&run_dir, &[("[train]", &keys), ("epochs = 12", "epochs = 20")]));
        let found = report(&run_dir);
        samples.push(found["training"]["samples"].as_u64().unwrap());
        let training = &found["training"];
        let (first, last) = (&training["validations"][0], &training["validation"]);
        assert!(last["ndcg5"].as_f64() > first["ndcg5"].as_f64(), "{targets}: {training}");
    }
    assert!(samples[1] < samples[0], "{samples:?}");
}

#[test]
fn impossible_sweeps_are_refused_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    for (edits, expected) in [
        (vec![("learning_rate = 0.2", "learning_rate = [0.1, -1.0]")], "train.learning_rate"),
        (vec![("learning_rate = 0.2", "learning_rate = []")], "empty list"),
        (vec![("learning_rate = 0.2", "learning_rate = 'fast'")], "a number or a list of numbers"),
        (vec![("learning_rate = 0.2", "learning_rate = 0.2\nmomentum = [0.5, 1.0]")], "train.momentum"),
        (vec![("learning_rate = 0.2", "learning_rate = 0.2\nlabel_smoothing = 1.0")], "train.label_smoothing"),
        (vec![("learning_rate = 0.2", "learning_rate = 0.2\ntargets = 'hard'")], "train.targets"),
        (
            vec![
                ("learning_rate = 0.2", "learning_rate = [0.1, 0.2]"),
                ("validation_fraction = 0.1", "validation_fraction = 0.0"),
            ],
            "train.validation_fraction",
        ),
    ] {
        let out = run(&["run", "--config", &write(dir.path(), &pipeline(&run_dir, &edits))]);
        assert_eq!(out.status.code(), Some(2), "{edits:?}");
        assert!(stderr_of(&out).contains(expected), "{edits:?}: {}", stderr_of(&out));
    }
}
