//! Kills at any instant, signals and second starts: the artefacts stay the same bytes.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::support::{artefacts, differences, pipeline, program, run, stderr_of, write};

fn undisturbed(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let run_dir = dir.join("undisturbed");
    let config = write(dir, &pipeline(&run_dir, &[]));
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    artefacts(&run_dir)
}

/// Starts a run, waits, and sends a signal; returns the exit code, or `None` if the signal killed it.
fn disturb(config: &str, after: Duration, signal: &str) -> Option<i32> {
    let mut child =
        program().args(["run", "--config", config]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    std::process::Command::new("kill").args([signal, &child.id().to_string()]).output().unwrap();
    child.wait().unwrap().code()
}

#[test]
fn repeated_kills_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let expected = undisturbed(dir.path());
    // The instants lie in the first third of a run, however fast the machine is.
    let longest = (started.elapsed().as_millis() as u32 / 3).max(20);
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut killed = 0;
    for round in 0..3 {
        let run_dir = dir.path().join(format!("killed-{round}"));
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        for _ in 0..8 {
            let wait = Duration::from_millis(20 + u64::from(random.next_u32() % longest));
            killed += u32::from(disturb(&config, wait, "-KILL").is_none());
        }
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{}", stderr_of(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
    }
    assert!(killed >= 8, "only {killed} kills met a running process");
}

#[test]
fn kill_before_duplicates_are_listed_leaves_no_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    let run_dir = dir.path().join("killed");
    let config = write(dir.path(), &pipeline(&run_dir, &[]));
    let plan = "rename predict/submission/duplicates 1";
    let out = program().args(["run", "--config", &config]).env("WIKICAP_KILL_AT", plan).output().unwrap();
    assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", stderr_of(&out));
    assert!(run(&["run", "--config", &config]).status.success());
    assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
}

#[test]
fn kill_after_the_last_chunk_leaves_no_spool() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    let is_entry = |name: &&String| name.starts_with("journal/features/") && name.strip_suffix(".json").is_some();
    let plan = format!("linked journal/features {}", expected.keys().filter(is_entry).count());
    let run_dir = dir.path().join("killed");
    let config = write(dir.path(), &pipeline(&run_dir, &[]));
    let out = program().args(["run", "--config", &config]).env("WIKICAP_KILL_AT", &plan).output().unwrap();
    assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", stderr_of(&out));
    assert!(run_dir.join("scratch/images").exists());
    assert!(run(&["run", "--config", &config]).status.success());
    assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
}

/// Failpoints in the order in which a run reaches them: (point, subject, occurrence). Each group starts with its own run
/// directory.
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
fn kill_at_each_step_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    for (group, points) in POINTS.iter().enumerate() {
        let run_dir = dir.path().join(format!("killed-{group}"));
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        for (point, subject, times) in *points {
            let plan = format!("{point} {subject} {times}");
            let out = program().args(["run", "--config", &config]).env("WIKICAP_KILL_AT", &plan).output().unwrap();
            assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", stderr_of(&out));
        }
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{}", stderr_of(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
    }
}

#[test]
fn kill_during_removal_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[]));
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let expected = artefacts(&run_dir);
    // The record before the removal, each removed artefact, and the record of the new stage.
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
        assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", stderr_of(&out));
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "`{plan}`: {}", stderr_of(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new(), "{plan}");
    }
}

#[test]
fn stopped_run_exits_with_signal_code_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let run_dir = dir.path().join(format!("stopped{signal}"));
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        let stopped = disturb(&config, Duration::from_millis(250), signal);
        assert!(stopped == Some(code) || stopped == Some(0), "{stopped:?}");
        // A host that lost its scratch disk resumes from the run directory alone.
        std::fs::remove_dir_all(run_dir.join("scratch")).ok();
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{}", stderr_of(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new());
    }
}

#[test]
fn second_run_on_one_directory_is_refused() {
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
    assert!(stderr_of(&out).contains(&format!("in use by process {holder}")), "{}", stderr_of(&out));
}

#[test]
fn changed_keys_are_refused_and_from_recomputes() {
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
    let text = stderr_of(&out);
    let row = |text: &str, key: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key} is not in {text}"));
        line.trim_start_matches("error:").split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(row(&text, "train.learning_rate")[..4], ["train.learning_rate", "0.2", "0.1", "checkpoints,"]);
    assert!(text.contains("--from train"), "{text}");
    let both = [("epochs = 12", "epochs = 3"), ("[model]", "[preprocess]\nalpha = \"drop\"\n[model]")];
    let both = write(dir.path(), &pipeline(&run_dir, &both));
    let text = stderr_of(&run(&["run", "--config", &both]));
    assert_eq!(row(&text, "preprocess.alpha")[1..3], ["\"white\"", "\"drop\""]);
    assert_eq!(row(&text, "train.epochs")[1..3], ["2", "3"]);
    assert!(text.contains("--from stream"), "{text}");
    let changed = write(
        dir.path(),
        &pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), ("learning_rate = 0.2", "learning_rate = 0.1")]),
    );

    let out = run(&["run", "--config", &changed, "--from", "train"]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(std::fs::read(run_dir.join("features/00000-000000000000.parquet")).unwrap(), features);

    // Neither limits nor the checkpoint interval affect any artefact.
    let paced = write(
        dir.path(),
        &pipeline(
            &run_dir,
            &[("epochs = 12", "epochs = 2"), ("learning_rate = 0.2", "learning_rate = 0.1"), ("\"50 ms\"", "\"9 s\"")],
        ),
    );
    let out = run(&["run", "--config", &paced]);
    assert!(out.status.success(), "{}", stderr_of(&out));
}
