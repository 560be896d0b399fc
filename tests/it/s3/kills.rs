//! Runs on S3 that are killed before and after each kind of write and at random instants: the bytes stay the same.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::faults::Faults;
use super::runs::{command, local, remote, with_corpus};
use crate::support::{artefacts, differences, stderr_of};

/// Failpoints in the order in which a run reaches them: (point, subject, occurrence).
const POINTS: &[(&str, &str, u32)] = &[
    ("put", "lock", 1),
    ("put-done", "lock", 1),
    ("put", "run.toml", 1),
    ("put-done", "run.toml", 1),
    ("put-done", "catalog/labels", 1),
    ("put", "journal/catalog", 1),
    ("put-done", "journal/catalog", 1),
    ("put", "features/", 1),
    ("put-done", "features/", 1),
    ("put", "journal/features", 1),
    ("put-done", "quarantine/", 1),
    ("put-done", "journal/features", 2),
    ("put", "features/", 3),
    ("put-done", "journal/features", 3),
    ("put-done", "training.csv", 1),
    ("put", "checkpoints/", 2),
    ("put", "checkpoints/", 3),
    ("put-done", "checkpoints/", 3),
    ("remove", "checkpoints/", 2),
    ("removed", "checkpoints/", 3),
    ("put-done", "checkpoints/", 4),
    ("put", "journal/predict-", 1),
    ("put-done", "predict/", 1),
    ("put", "submission.csv", 1),
    ("put-done", "submission.csv", 1),
    ("put", "report.json", 1),
];

#[test]
fn kill_at_each_s3_write_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let text = remote("s3://runs/run", &[]);
    for (number, (point, subject, times)) in POINTS.iter().enumerate() {
        let plan = format!("{point} {subject} {times}");
        let out = command(&server, dir.path(), &text, "").env("WIKICAP_KILL_AT", &plan).output().unwrap();
        assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", stderr_of(&out));
        // The lease of a dead process on this host is void at once.
        assert!(!stderr_of(&out).contains("waiting up to"), "{plan}: {}", stderr_of(&out));
        if number % 4 == 3 {
            // Another host, which has only the run directory.
            std::fs::remove_dir_all(dir.path().join("scratch")).ok();
        }
    }
    let out = command(&server, dir.path(), &text, "").output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(local(), &artefacts(&server.bucket("runs").join("run"))), Vec::<String>::new());
}

#[test]
fn random_kills_with_failing_requests_change_no_byte() {
    for seed in [1] {
        let dir = tempfile::tempdir().unwrap();
        let server = with_corpus(Faults::promised(seed));
        let text = remote("s3://runs/run", &[]);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut killed = 0;
        for round in 0..10 {
            let mut run = command(&server, dir.path(), &text, "");
            let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(100 + u64::from(random.next_u32() % 2500)));
            child.kill().unwrap();
            killed += u32::from(child.wait().unwrap().code().is_none());
            if round % 3 == 2 {
                std::fs::remove_dir_all(dir.path().join("scratch")).ok();
            }
        }
        let out = command(&server, dir.path(), &text, "").output().unwrap();
        assert!(out.status.success(), "seed {seed}: {}", stderr_of(&out));
        let made = artefacts(&server.bucket("runs").join("run"));
        assert_eq!(differences(local(), &made), Vec::<String>::new(), "seed {seed}");
        assert!(killed >= 5, "seed {seed}: only {killed} kills met a running process");
    }
}

#[test]
fn stop_is_prompt_even_when_s3_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let text = remote("s3://runs/run", &[]);
    for away in [false, true] {
        let mut run = command(&server, dir.path(), &text, "");
        let mut child = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let before = server.log().len();
        while !server.log()[before..].iter().any(|line| line.starts_with("PUT /runs/run/checkpoints/")) {
            assert!(child.try_wait().unwrap().is_none(), "it ended early");
            std::thread::sleep(Duration::from_millis(5));
        }
        server.set_away(away);
        let since = Instant::now();
        std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).output().unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(143), "{}", stderr_of(&out));
        assert!(since.elapsed() < Duration::from_secs(10), "it took {:?}", since.elapsed());
        server.set_away(false);
        assert_eq!(
            server.bucket("runs").join("run/lock").exists(),
            away,
            "the lease must be released where that is possible"
        );
    }
    let out = command(&server, dir.path(), &text, "").output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(local(), &artefacts(&server.bucket("runs").join("run"))), Vec::<String>::new());
}
