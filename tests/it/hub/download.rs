//! Downloads from the hub under network faults, full disks, signals and kills.

use std::process::Command;
use std::time::{Duration, Instant};

use super::server::{Faults, Seen};
use super::{HUB, Lab, bodies, weights, weights_etag};
use crate::resource_limits::on_a_full_disk;
use crate::support::{artefacts, differences, stderr_of};

#[test]
fn transient_hub_failures_are_retried() {
    let lab = Lab::new();
    lab.server.fail(Faults { unavailable: 3, resets: 3, signature_expired: 1, ..Faults::default() });
    lab.succeeds("run", HUB);
    let seen = lab.server.seen();
    // Each attempt resumes where the previous one broke off.
    let ranges: Vec<&Seen> = seen.iter().filter(|seen| seen.port == "cdn" && seen.range.is_some()).collect();
    assert_eq!(ranges.len(), 3, "{seen:#?}");
    assert_eq!(bodies(&seen), weights().len());
    assert_eq!(lab.cached().len(), 4);
}

#[test]
fn download_restarts_without_range_support() {
    let lab = Lab::new();
    lab.server.fail(Faults { resets: 1, no_ranges: true, ..Faults::default() });
    lab.succeeds("run", HUB);
    assert_eq!(bodies(&lab.server.seen()), weights().len() / 2 + weights().len());
}

#[test]
fn blob_with_wrong_hash_is_refetched_and_never_kept() {
    let lab = Lab::new();
    for (run, faults, words) in [
        ("corrupt", Faults { corrupt: 9, ..Faults::default() }, "the hash `"),
        ("longer", Faults { longer_by: 1, ..Faults::default() }, "more than the"),
        ("shorter", Faults { longer_by: -1000, ..Faults::default() }, "bytes instead of"),
    ] {
        lab.server.fail(faults);
        let (code, sentence) = lab.fails(run, HUB);
        assert_eq!(code, 3, "{sentence}");
        assert!(sentence.contains("`hf:lab/vit-tiny/model.safetensors`") && sentence.contains(words), "{sentence}");
        let left = lab.cached();
        assert!(!left.iter().any(|name| name.contains(&weights_etag())), "{left:?}");
        assert!(!lab.repo().join("refs").exists());
    }
    lab.server.fail(Faults { corrupt: 1, ..Faults::default() });
    let log = lab.succeeds("once", HUB);
    assert!(log.contains("downloading it again"), "{log}");
}

#[test]
fn killed_download_resumes() {
    let lab = Lab::new();
    let mut child = lab.start_slowly("run");
    child.kill().unwrap();
    child.wait().unwrap();
    let have = lab.part() as usize;
    lab.server.fail(Faults::default());
    lab.server.seen();
    lab.succeeds("run", HUB);
    let seen = lab.server.seen();
    assert_eq!(seen.last().unwrap().range, Some(format!("bytes={have}-")));
    assert_eq!(bodies(&seen), weights().len() - have);
    assert_eq!(lab.cached().len(), 4, "{:?}", lab.cached());
}

#[test]
fn foreign_partial_download_is_discarded() {
    let lab = Lab::new();
    let mut child = lab.start_slowly("run");
    child.kill().unwrap();
    child.wait().unwrap();
    let part = lab.repo().join(format!("blobs/{}.incomplete", weights_etag()));
    let mut content = std::fs::read(&part).unwrap();
    content[100] ^= 1;
    std::fs::write(&part, content).unwrap();
    lab.server.fail(Faults::default());
    lab.succeeds("run", HUB);
    assert_eq!(std::fs::read(lab.repo().join("blobs").join(weights_etag())).unwrap(), weights());
}

#[test]
fn download_resumes_after_full_disk() {
    let lab = Lab::new();
    let (volume, config) = (lab.dir.path().join("volume"), lab.config("run", HUB));
    std::fs::create_dir(&volume).unwrap();
    let script = r#"export HF_ENDPOINT="$3" HF_HOME="$0"; "$1" run --config "$2"; echo "first $?" >&2
        mount -o remount,size=10m "$0" && "$1" run --config "$2"; echo "second $?" >&2"#;
    let program = env!("CARGO_BIN_EXE_wikicap-pipeline");
    let out = on_a_full_disk("256k", script, &[volume.to_str().unwrap(), program, &config, &lab.server.endpoint]);
    // Without user namespaces, the test of the run's own disk stands in for this one.
    let Some(out) = out else { return };
    let text = stderr_of(&out);
    assert!(text.contains("first 4") && text.contains("second 0"), "{text}");
    assert!(text.contains(&format!("no space is left on the disk of `{}", volume.display())), "{text}");
    let ranges: Vec<Seen> = lab.server.seen().into_iter().filter(|seen| seen.range.is_some()).collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
}

#[test]
fn download_resumes_after_signal() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let lab = Lab::new();
        let child = lab.start_slowly("run");
        let asked = Instant::now();
        Command::new("kill").args([signal, &child.id().to_string()]).output().unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert_eq!(out.status.code(), Some(code), "{}", stderr_of(&out));
        let have = lab.part() as usize;
        assert!(have >= 10_000);
        lab.server.fail(Faults::default());
        lab.server.seen();
        lab.succeeds("run", HUB);
        assert_eq!(bodies(&lab.server.seen()), weights().len() - have);
    }
}

#[test]
fn concurrent_processes_download_once() {
    let lab = Lab::new();
    let mut first = lab.start_slowly("first");
    let log = lab.succeeds("second", HUB);
    assert!(log.contains("another process that downloads it"), "{log}");
    assert!(first.wait().unwrap().success());
    assert_eq!(bodies(&lab.server.seen()), weights().len());
    assert_eq!(
        differences(&artefacts(&lab.run_dir("first")), &artefacts(&lab.run_dir("second"))),
        Vec::<String>::new()
    );
}
