//! Parts of a run on S3: they share one run directory, and resuming reads nothing that is committed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::faults::Faults;
use super::runs::{command, with_corpus};
use super::server::Server;
use crate::support::{artefacts, corpus, differences, run, stderr_of, write};

/// Returns a pipeline whose product is pixels.
fn pixels(run_dir: &str, shards: &str) -> String {
    format!(
        "[run]\ndir = '{run_dir}'\n[images]\nshards = ['{shards}/data/image_data_train/image_pixels/*.csv.gz']\n\
         [chunks]\nrows = 40\n[preprocess]\nsize_px = 16\n"
    )
}

/// Returns the command of a part, with a scratch directory below `dir`.
fn part(server: &Server, dir: &Path, name: &str) -> Command {
    let folder = dir.join(name.replace('/', "-of-"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut command = command(server, &folder, &pixels("s3://runs/run", "s3://corpus"), "");
    command.args(["--part", name]).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn succeeds(child: Child) {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
}

fn signal(child: &Child, name: &str) {
    Command::new("kill").args([name, &child.id().to_string()]).output().unwrap();
}

/// Returns the differences between the run on S3 and a whole run on local disk.
fn differences_from_whole_run(server: &Server, dir: &Path) -> Vec<String> {
    let local = dir.join("local");
    let text = pixels(local.to_str().unwrap(), corpus().to_str().unwrap());
    let out = run(&["run", "--config", &write(dir, &text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    differences(&artefacts(&local), &artefacts(&server.bucket("runs").join("run")))
}

#[test]
fn parts_share_a_directory_on_s3() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let children: Vec<Child> =
        ["0/3", "1/3", "2/3"].map(|name| part(&server, dir.path(), name).spawn().unwrap()).into();
    children.into_iter().for_each(succeeds);
    assert_eq!(differences_from_whole_run(&server, dir.path()), Vec::<String>::new());
}

#[test]
fn resuming_reads_no_committed_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let killed = part(&server, dir.path(), "0/1").env("WIKICAP_KILL_AT", "put-done journal/chunks/00001 4").output();
    assert_eq!(killed.unwrap().status.code(), None);
    let before = server.log().len();
    succeeds(part(&server, dir.path(), "0/1").spawn().unwrap());
    let read: Vec<String> = server.log().split_off(before);
    assert!(read.iter().any(|line| line.starts_with("GET /runs/run/journal/chunks/")));
    let of_chunks =
        |line: &&String| line.starts_with("GET /runs/run/chunks/") || line.starts_with("GET /runs/run/quarantine/");
    assert_eq!(read.iter().find(of_chunks), None);
    // A finished run reads nothing but its journal, and no URL hashes.
    let before = server.log().len();
    succeeds(part(&server, dir.path(), "0/1").spawn().unwrap());
    let read: Vec<String> = server.log().split_off(before);
    assert_eq!(read.iter().find(of_chunks), None);
    assert_eq!(read.iter().find(|line| line.contains(".urls")), None);
    assert_eq!(differences_from_whole_run(&server, dir.path()), Vec::<String>::new());
}

#[test]
fn resuming_reads_less_than_a_hundredth_of_what_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    // Chunks of 100 images with 96 pixels a side, 2.8 MB; those of real runs are larger still.
    let large = |run_dir: &str| {
        pixels(run_dir, "s3://corpus").replace("size_px = 16", "size_px = 96\n").replace("rows = 40", "rows = 100")
    };
    let start = |kill: Option<&str>| {
        let mut command = command(&server, dir.path(), &large("s3://runs/run"), "");
        command.args(["--part", "0/1"]).envs(kill.map(|plan| ("WIKICAP_KILL_AT", plan))).output().unwrap()
    };
    assert_eq!(start(Some("put-done journal/chunks/00003 1")).status.code(), None);
    let run_dir = server.bucket("runs").join("run");
    let bytes = |name: &str| std::fs::metadata(run_dir.join(name)).map_or(0, |found| found.len());
    let committed: u64 = artefacts(&run_dir).values().map(|content| content.len() as u64).sum();
    for interrupted in [true, false] {
        let before = server.log().len();
        let out = start(None);
        assert!(out.status.success(), "{}", stderr_of(&out));
        let log = server.log().split_off(before);
        let objects: Vec<&str> = log.iter().filter_map(|line| line.strip_prefix("GET /runs/run/")).collect();
        assert!(objects.iter().any(|name| name.starts_with("journal/chunks/")), "{objects:?}");
        // What this start wrote itself is not read either, so that the sizes at its end are those of what was there.
        let read: u64 = objects.iter().map(|name| bytes(name)).sum();
        assert!(100 * read < committed, "interrupted: {interrupted}; {read} of {committed} bytes: {objects:?}");
    }
}

#[test]
fn part_paused_past_its_lease_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let first = part(&server, &dir.path().join("first"), "0/2").spawn().unwrap();
    let until = Instant::now() + Duration::from_mins(1);
    while !server.log().iter().any(|line| line.starts_with("PUT /runs/run/journal/chunks/")) {
        assert!(Instant::now() < until, "no chunk is committed");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&first, "-STOP");
    let second = part(&server, &dir.path().join("second"), "0/2").spawn().unwrap();
    succeeds(part(&server, dir.path(), "1/2").spawn().unwrap());
    succeeds(second);
    let before = server.log().len();
    signal(&first, "-CONT");
    let out = first.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", stderr_of(&out));
    assert!(stderr_of(&out).contains("was taken over by"), "{}", stderr_of(&out));
    let is_write = |line: &String| !line.starts_with("GET") && !line.starts_with("HEAD");
    let written: Vec<String> = server.log().split_off(before).into_iter().filter(is_write).collect();
    assert_eq!(written, Vec::<String>::new());
    assert_eq!(differences_from_whole_run(&server, dir.path()), Vec::<String>::new());
}
