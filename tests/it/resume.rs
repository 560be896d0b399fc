//! Killed at any instant, stopped by signals, started twice: the end is the same bytes.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::support::{artefacts, complaint, differences, pipeline, program, run, write};

fn undisturbed(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let run_dir = dir.join("undisturbed");
    let config = write(dir, &pipeline(&run_dir, &[]));
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", complaint(&out));
    artefacts(&run_dir)
}

/// Starts a run, waits, and sends a signal; returns the exit code, or `None` where the signal killed it.
fn disturb(config: &str, after: Duration, signal: &str) -> Option<i32> {
    let mut child =
        program().args(["run", "--config", config]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    std::process::Command::new("kill").args([signal, &child.id().to_string()]).output().unwrap();
    child.wait().unwrap().code()
}

#[test]
fn a_run_killed_again_and_again_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut killed = 0;
    for round in 0..3 {
        let run_dir = dir.path().join(format!("killed-{round}"));
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        for _ in 0..8 {
            let wait = Duration::from_millis(20 + u64::from(random.next_u32() % 500));
            killed += u32::from(disturb(&config, wait, "-KILL").is_none());
        }
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{}", complaint(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
    }
    assert!(killed >= 8, "only {killed} kills met a running process");
}

/// Where a run is killed: (point, subject, how often it is passed before), in the order in which it gets there. Each group
/// starts with a run of its own.
const POINTS: [&[(&str, &str, u32)]; 4] = [
    &[
        ("rename", "run.toml", 1),
        ("renamed", "run.toml", 1),
        ("rename", "catalog/classes", 1),
        ("renamed", "catalog/labels", 1),
        ("link", "journal/catalog", 1),
        ("linked", "journal/catalog", 1),
        ("fill", "00000-", 1),
        ("filled", "00000-", 1),
        ("rename", "00000-", 1),
        ("renamed", "00000-", 1),
        ("linked", "journal/features", 3),
    ],
    &[
        ("fill", "features/", 1),
        ("filled", "features/", 1),
        ("rename", "features/", 1),
        ("renamed", "features/", 1),
        ("fill", "quarantine/", 1),
        ("renamed", "quarantine/", 1),
        ("fill", "journal/features", 1),
        ("link", "journal/features", 1),
        ("linked", "journal/features", 1),
    ],
    &[("remove", "00000-", 1), ("removed", "00000-", 1), ("removed", "0000", 2), ("renamed", "00001-", 2)],
    &[
        ("rename", "training.csv", 1),
        ("renamed", "training.csv", 1),
        ("fill", "checkpoints/", 1),
        ("filled", "checkpoints/", 1),
        ("rename", "checkpoints/", 1),
        ("renamed", "checkpoints/", 1),
        ("remove", "checkpoints/", 1),
        ("removed", "checkpoints/", 1),
        ("renamed", "checkpoints/", 2),
        ("linked", "journal/predict-", 1),
        ("rename", "submission.csv", 1),
        ("renamed", "submission.csv", 1),
        ("rename", "report.json", 1),
    ],
];

#[test]
fn killed_before_and_after_every_kind_of_step_it_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    for (group, points) in POINTS.iter().enumerate() {
        let run_dir = dir.path().join(format!("killed-{group}"));
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        for (point, subject, times) in *points {
            let plan = format!("{point} {subject} {times}");
            let out = program().args(["run", "--config", &config]).env("WIKICAP_KILL_AT", &plan).output().unwrap();
            assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", complaint(&out));
        }
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{}", complaint(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
    }
}

#[test]
fn killed_while_it_throws_away_what_was_made_it_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[]));
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", complaint(&out));
    let expected = artefacts(&run_dir);
    // The record without what is thrown away, each thing, and the record of what will be made.
    for plan in [
        "rename run.toml 1",
        "renamed run.toml 1",
        "removed journal/ 1",
        "removed features 1",
        "rename run.toml 2",
        "renamed run.toml 2",
    ] {
        let again = ["run", "--from", "stream", "--config", &config];
        let out = program().args(again).env("WIKICAP_KILL_AT", plan).output().unwrap();
        assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", complaint(&out));
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "`{plan}`: {}", complaint(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new(), "{plan}");
    }
}

#[test]
fn a_stopped_run_says_so_by_its_exit_code_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let run_dir = dir.path().join(format!("stopped{signal}"));
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        let stopped = disturb(&config, Duration::from_millis(250), signal);
        assert!(stopped == Some(code) || stopped == Some(0), "{stopped:?}");
        // A host that lost its scratch disk goes on from the run directory alone.
        std::fs::remove_dir_all(run_dir.join("scratch")).ok();
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{}", complaint(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
    }
}

#[test]
fn two_runs_on_one_directory_are_one_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2000")]));
    let mut first =
        program().args(["run", "--config", &config]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !run_dir.join("run.toml").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let out = run(&["run", "--config", &config]);
    let holder = first.id().to_string();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(out.status.code(), Some(4));
    assert!(complaint(&out).contains(&format!("in use by process {holder}")), "{}", complaint(&out));
}

#[test]
fn changed_settings_are_refused_by_name_and_from_recomputes() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]));
    assert!(run(&["run", "--config", &config]).status.success());
    let features = std::fs::read(run_dir.join("features/00000-000000000000.parquet")).unwrap();

    let changed = write(
        dir.path(),
        &pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), ("learning_rate = 0.2", "learning_rate = 0.1")]),
    );
    let out = run(&["run", "--config", &changed]);
    assert_eq!(out.status.code(), Some(2));
    let text = complaint(&out);
    let row = |text: &str, key: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key} is not in {text}"));
        line.trim_start_matches("error:").split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(row(&text, "train.learning_rate")[..4], ["train.learning_rate", "0.2", "0.1", "checkpoints,"]);
    assert!(text.contains("--from train"), "{text}");
    let both = [("epochs = 12", "epochs = 3"), ("[model]", "[preprocess]\nalpha = \"drop\"\n[model]")];
    let both = write(dir.path(), &pipeline(&run_dir, &both));
    let text = complaint(&run(&["run", "--config", &both]));
    assert_eq!(row(&text, "preprocess.alpha")[1..3], ["\"white\"", "\"drop\""]);
    assert_eq!(row(&text, "train.epochs")[1..3], ["2", "3"]);
    assert!(text.contains("--from stream"), "{text}");
    let changed = write(
        dir.path(),
        &pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), ("learning_rate = 0.2", "learning_rate = 0.1")]),
    );

    let out = run(&["run", "--config", &changed, "--from", "train"]);
    assert!(out.status.success(), "{}", complaint(&out));
    assert_eq!(std::fs::read(run_dir.join("features/00000-000000000000.parquet")).unwrap(), features);

    // Neither limits nor the pace of checkpoints matter to anything made.
    let paced = write(
        dir.path(),
        &pipeline(
            &run_dir,
            &[("epochs = 12", "epochs = 2"), ("learning_rate = 0.2", "learning_rate = 0.1"), ("\"50 ms\"", "\"9 s\"")],
        ),
    );
    let out = run(&["run", "--config", &paced]);
    assert!(out.status.success(), "{}", complaint(&out));
}
