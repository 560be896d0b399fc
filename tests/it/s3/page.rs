//! The page about a run whose inputs and directory are on S3.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::faults::Faults;
use super::runs::{command, remote, with_corpus};
use crate::page::Page;
use crate::support::program;

#[test]
fn page_shows_a_run_on_s3_during_it_and_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = with_corpus(Faults::default());
    let text = remote("s3://runs/run", &[("epochs = 12", "epochs = 20000")]);
    let mut running =
        command(&server, dir.path(), &text, "").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let config = || server.bucket("runs").join("run/run.toml").is_file();
    let deadline = Instant::now() + Duration::from_mins(4);
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(Instant::now() < deadline, "{what} is never seen");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    wait("the configuration", &config);
    let mut serve = program();
    server.reached_by(serve.args(["serve", "s3://runs/run", "--address", "0"]));
    let page = Page::start_command(serve);
    // The status is written every ten seconds, the curve with each checkpoint.
    wait("the training", &|| {
        let overview = page.json("/api/runs/0");
        overview["live"] == true && overview["charts"].as_str().is_some_and(|charts| charts.contains("<svg"))
    });
    let checkpoint = "/api/runs/0/pictures?images=held-out";
    wait("a checkpoint", &|| !page.exchange("GET", checkpoint, &[]).0.starts_with("http/1.1 409"));
    let during = page.built_json(checkpoint);
    assert!(during["matching"].as_u64() > Some(20), "{during}");
    std::process::Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(143));

    wait("the end", &|| page.json("/api/runs/0")["status"]["state"] == "stopped");
    let pictures = page.built_json("/api/runs/0/pictures?images=held-out&order=worst");
    let row = &pictures["pictures"][0]["row"];
    for (kind, magic) in [("thumbnail", &b"\xff\xd8\xff"[..]), ("model", b"\x89PNG")] {
        let (head, bytes) =
            page.exchange("GET", &format!("/api/runs/0/picture?images=held-out&row={row}&kind={kind}"), &[]);
        assert!(head.starts_with("http/1.1 200") && bytes.starts_with(magic), "{kind}: {head}");
    }
    let found =
        page.built_json(&format!("/api/runs/0/search?of_images=held-out&row={row}&list=classes&images=held-out"));
    assert_eq!(found["images"][0]["row"], *row);
    assert_eq!(page.json("/api/compare")["runs"][0]["state"], "stopped");

    // A row that could not be used, from its shard on S3.
    let quarantine = page.json("/api/runs/0/quarantine?stream=train&reason=truncated");
    let first: &Value = &quarantine["rows"][0];
    let place = format!("stream=train&shard={}&row={}", first["shard"], first["row"]);
    let shown = page.json(&format!("/api/runs/0/quarantine/row?{place}"));
    assert!(shown["bytes"].as_u64() > Some(0) && shown["reason"] == "truncated", "{shown}");
    let (head, bytes) = page.exchange("GET", &format!("/api/runs/0/quarantine/picture?{place}"), &[]);
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: image/"), "{head}");
    assert_eq!(Some(bytes.len() as u64), shown["bytes"].as_u64());
}
