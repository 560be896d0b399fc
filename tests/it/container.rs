//! Limits of the machine or container, and what the next start says after a lack of memory, through the real program.

use std::path::Path;

use crate::resource_limits::on_a_full_disk;
use crate::support::{corpus, program, run, stderr_of, write};

/// Writes a pipeline file that turns the test images of the shared corpus into pixels.
fn pixels_only(dir: &Path, run_dir: &Path) -> String {
    let shards = corpus().join("data/image_data_test/image_pixels/*.csv");
    let (run_dir, shards) = (run_dir.display(), shards.display());
    write(dir, &format!("[run]\ndir = '{run_dir}'\n[images]\nshards = ['{shards}']\n[preprocess]\nsize_px = 32\n"))
}

/// Joins the lines of a table, whose values continue below themselves.
fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn start_after_lack_of_memory_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = pixels_only(dir.path(), &run_dir);
    assert!(run(&["run", "--config", &config]).status.success());
    let path = run_dir.join("status.json");
    let mut status: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(status["container"]["memory_limit_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 26), "{status}");
    // What a process leaves that was killed at 450 of 512 MiB.
    status["state"] = "running".into();
    status["process"] = u32::MAX.into();
    status["container"] =
        serde_json::json!({ "memory_limit_bytes": 512 << 20, "used_bytes": 450 << 20, "group": "/x" });
    std::fs::write(&path, status.to_string()).unwrap();
    let out = run(&["status", run_dir.to_str().unwrap()]);
    let text = one_line(&out.stdout);
    assert!(text.contains("without a final report, probably for lack of memory"), "{text}");
    let out = run(&["run", "--config", &config]);
    let text = stderr_of(&out);
    assert!(
        out.status.success() && text.contains("ended it for lack of memory (it used 450 MiB of 512 MiB)"),
        "{text}"
    );
    let events = std::fs::read_dir(run_dir.join("events")).unwrap().map(|entry| entry.unwrap().path());
    let events: String = events.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert!(events.contains("\"event\":\"previous_killed\""), "{events}");
    // A reported end needs no explanation.
    assert!(!stderr_of(&run(&["run", "--config", &config])).contains("memory"));
}

#[test]
fn memory_limit_over_the_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = pixels_only(dir.path(), &dir.path().join("run"));
    let machine = dir.path().join("machine.toml");
    std::fs::write(&machine, "[limits]\nmemory = '1000 TiB'\n").unwrap();
    for command in ["run", "check", "bench"] {
        let out = program().args([command, "--config", &config, "--machine"]).arg(&machine).output().unwrap();
        // `check` lists its problems on standard output.
        let text = one_line(if command == "check" { &out.stdout } else { &out.stderr });
        assert_eq!(out.status.code(), Some(2), "{text}");
        assert!(text.contains("`limits.memory`: `1024000 GiB` is too much, because this "), "{text}");
    }
    assert!(!dir.path().join("run").exists());
}

#[test]
fn check_describes_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let config = pixels_only(dir.path(), &dir.path().join("run"));
    let out = run(&["--json", "check", "--config", &config]);
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(out.status.success(), "{found}");
    let machine = |name: &str| found["machine"][name].as_str().unwrap_or_default().to_owned();
    assert!(machine("memory").contains("in flight, chosen by `auto`"), "{found}");
    assert!(machine("disk for the run directory").contains(" free for `"), "{found}");
    assert!(machine("cores").ends_with("decoding threads"), "{found}");
}

#[test]
fn check_finds_a_read_only_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let config = pixels_only(dir.path(), &volume.join("run"));
    let script = r#"mount -o remount,ro "$0" && "$1" check --config "$2""#;
    let program = env!("CARGO_BIN_EXE_wikicap-pipeline");
    // Without user namespaces, the container test covers this.
    let Some(out) = on_a_full_disk("4m", script, &[volume.to_str().unwrap(), program, &config]) else { return };
    let text = one_line(&out.stdout);
    assert_eq!(out.status.code(), Some(2), "{text}{}", stderr_of(&out));
    assert!(text.contains("`run.dir`: `") && text.contains("cannot be written to by this user"), "{text}");
}
