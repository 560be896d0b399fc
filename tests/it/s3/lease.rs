//! One process per run directory on S3: the holder is named, a dead holder loses its lease, and a process without the lease does not write.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::faults::Faults;
use super::runs::{command, local, remote, with_corpus};
use super::server::Server;
use crate::support::{artefacts, corpus, differences, run, stderr_of, write};

/// Returns a pipeline that finishes in a moment.
fn small(run_dir: &str, shards: &str) -> String {
    format!(
        "[run]\ndir = '{run_dir}'\n[images]\nshards = ['{shards}/data/image_data_test/image_pixels/*.csv']\n\
         [chunks]\nrows = 20\n[preprocess]\nsize_px = 16\n"
    )
}

fn start(server: &Server, dir: &Path, text: &str) -> Child {
    std::fs::create_dir_all(dir).unwrap();
    command(server, dir, text, "").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    std::process::Command::new("kill").args([name, &child.id().to_string()]).output().unwrap();
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_mins(1), "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the staging directory of the only run below a scratch directory.
fn staging(scratch: &Path) -> PathBuf {
    std::fs::read_dir(scratch).unwrap().next().unwrap().unwrap().path().join("staging")
}

#[test]
fn second_process_is_refused_by_the_lease() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let text = remote("s3://runs/run", &[("epochs = 12", "epochs = 4000")]);
    let mut first = start(&server, dir.path(), &text);
    let lock = server.bucket("runs").join("run/lock");
    until("a checkpoint", || server.log().iter().any(|line| line.starts_with("PUT /runs/run/checkpoints/")));
    // A file in the staging directory of the first process: the second one, on the same host, would use the same folder.
    let mine = staging(&dir.path().join("scratch")).join("on-its-way");
    std::fs::write(&mine, "some bytes").unwrap();
    let since = Instant::now();
    let out = command(&server, dir.path(), &text, "").output().unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", stderr_of(&out));
    let claim: serde_json::Value = serde_json::from_slice(&std::fs::read(&lock).unwrap()).unwrap();
    let (host, since_when) = (claim["host"].as_str().unwrap(), claim["since"].as_str().unwrap());
    let holder = format!("`s3://runs/run` is in use by process {} on {host} since {since_when}", first.id());
    assert!(stderr_of(&out).contains(&holder), "{holder}: {}", stderr_of(&out));
    assert!(since.elapsed() < Duration::from_secs(10), "it took {:?}", since.elapsed());
    assert_eq!(std::fs::read(&mine).unwrap(), b"some bytes");
    assert!(first.try_wait().unwrap().is_none(), "the first ended");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn concurrent_starts_yield_one_holder() {
    let one = |plain: bool| {
        let dir = tempfile::tempdir().unwrap();
        let server = with_corpus(Faults { conflict: 0.3, lose: 0.3, seed: 4, ..Faults::default() });
        server.set_plain(plain);
        let text = remote("s3://runs/run", &[("epochs = 12", "epochs = 4000")]);
        let mut all: Vec<Child> =
            (0..3).map(|number| start(&server, &dir.path().join(number.to_string()), &text)).collect();
        let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        let since = Instant::now();
        while all.iter_mut().filter_map(|child| child.try_wait().unwrap()).count() < 2 {
            assert!(since.elapsed() < Duration::from_mins(1), "nobody is refused");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
        let at = all.iter_mut().position(|child| !ended(child)).expect("one goes on");
        let mut holder = all.remove(at);
        for refused in all {
            let out = refused.wait_with_output().unwrap();
            assert_eq!(out.status.code(), Some(4), "{}", stderr_of(&out));
            assert!(stderr_of(&out).contains("in use by process"), "{}", stderr_of(&out));
        }
        holder.kill().unwrap();
        holder.wait().unwrap();
    };
    std::thread::scope(|scope| [false, true].into_iter().for_each(|plain| drop(scope.spawn(move || one(plain)))));
}

#[test]
fn expired_leases_can_be_taken_over() {
    // These run side by side, because each waits 15 s.
    std::thread::scope(|scope| {
        scope.spawn(expired_lease_of_another_host_can_be_taken_over);
        scope.spawn(process_paused_past_its_lease_writes_nothing);
    });
}

fn expired_lease_of_another_host_can_be_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let run_dir = server.bucket("runs").join("run");
    std::fs::create_dir_all(&run_dir).unwrap();
    let claim = r#"{"claim": "c", "process": 1, "host": "another", "space": "another", "since": "2026-01-01T00:00:00Z", "renewed": 7}"#;
    std::fs::write(run_dir.join("lock"), claim).unwrap();
    let since = Instant::now();
    let out = start(&server, dir.path(), &small("s3://runs/run", "s3://corpus")).wait_with_output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let took = since.elapsed();
    assert!((Duration::from_secs(15)..Duration::from_secs(25)).contains(&took), "{took:?}");
    assert!(stderr_of(&out).contains("process 1 on another since 2026-01-01T00:00:00Z"), "{}", stderr_of(&out));
    let local = dir.path().join("local");
    let text = small(local.to_str().unwrap(), corpus().to_str().unwrap());
    assert!(run(&["run", "--config", &write(dir.path(), &text)]).status.success());
    assert_eq!(differences(&artefacts(&local), &artefacts(&run_dir)), Vec::<String>::new());
}

fn process_paused_past_its_lease_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let text = remote("s3://runs/run", &[]);
    let first = start(&server, &dir.path().join("first"), &text);
    until("a chunk", || server.log().iter().any(|line| line.starts_with("PUT /runs/run/journal/features/")));
    signal(&first, "-STOP");
    let second = start(&server, &dir.path().join("second"), &text).wait_with_output().unwrap();
    assert!(second.status.success(), "{}", stderr_of(&second));
    let made = artefacts(&server.bucket("runs").join("run"));
    assert_eq!(differences(local(), &made), Vec::<String>::new());
    let before = server.log().len();
    signal(&first, "-CONT");
    let out = first.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", stderr_of(&out));
    assert!(stderr_of(&out).contains("was taken over by"), "{}", stderr_of(&out));
    let written: Vec<String> =
        server.log().split_off(before).into_iter().filter(|line| !line.starts_with("GET")).collect();
    assert_eq!(written, Vec::<String>::new());
}
