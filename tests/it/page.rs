//! The page of `serve` and `run --serve`, over HTTP, and `runs`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{artefacts, pipeline, program, run, stderr_of, write};

/// A process that serves a page; it is killed at the end of the test.
struct Page {
    child: Child,
    address: String,
}

impl Page {
    fn start(args: &[&str]) -> Self {
        let mut child = program().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the address is not in the log");
            if let Some((_, rest)) = line.split_once("page at http://") {
                break rest.split('/').next().unwrap().to_owned();
            }
        };
        // A process that writes to a pipe which nobody reads blocks.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address }
    }

    fn connect(&self, path: &str, headers: &str) -> TcpStream {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
        connection
    }

    /// Returns the head and the body of an answer.
    fn get_with(&self, path: &str, headers: &str) -> (String, String) {
        let mut answer = String::new();
        self.connect(path, headers).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    fn get(&self, path: &str) -> (String, String) {
        self.get_with(path, &format!("Host: {}\r\n", self.address))
    }

    fn json(&self, path: &str) -> Value {
        let (head, body) = self.get(path);
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn page_beside_a_run_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 20000")]));
    let page = Page::start(&["run", "--config", &config, "--serve", "0"]);
    assert!(page.address.starts_with("127.0.0.1:"), "{}", page.address);
    let events = BufReader::new(page.connect("/api/runs/0/live", &format!("Host: {}\r\n", page.address)));
    let deadline = Instant::now() + Duration::from_mins(1);
    let overviews = events.lines().map_while(Result::ok).filter_map(|line| {
        assert!(Instant::now() < deadline, "the training was never seen");
        serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok()
    });
    let trains = |overview: &Value| overview["curve"].as_array().is_some_and(|curve| !curve.is_empty());
    let seen = overviews.into_iter().find(trains).unwrap();
    assert_eq!((&seen["live"], &seen["status"]["state"]), (&true.into(), &"running".into()));
    assert_eq!(seen["config"]["train"]["epochs"], 20000);

    // Another process reads the same run, also after the first one was killed.
    let other = Page::start(&["serve", text(&run_dir), "--address", "0"]);
    assert_eq!(other.json("/api/runs/0")["live"], true);
    drop(page);
    assert_eq!(other.json("/api/compare")["runs"][0]["state"], "lost");
}

#[test]
fn page_shows_quarantine_and_compares_runs() {
    let dir = tempfile::tempdir().unwrap();
    let runs: Vec<_> = ["one", "two"].iter().map(|name| dir.path().join(name)).collect();
    for (run_dir, epochs) in runs.iter().zip(["epochs = 1", "epochs = 2"]) {
        let config = write(dir.path(), &pipeline(run_dir, &[("epochs = 12", epochs)]));
        assert!(run(&["run", "--config", &config]).status.success());
    }
    let before: Vec<_> = runs.iter().map(|run_dir| artefacts(run_dir)).collect();
    let page = Page::start(&["serve", text(&runs[0]), text(&runs[1]), "--address", "0"]);
    let overview = page.json("/api/runs/0");
    let quarantined = &overview["report"]["images"]["tally"]["quarantined"];
    let answer = page.json("/api/runs/0/quarantine?stream=train");
    assert_eq!(&answer["reasons"], quarantined);
    let rows = answer["rows"].as_array().unwrap();
    let count: u64 = quarantined.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(rows.len() as u64, count);
    let one = page.json("/api/runs/0/quarantine?reason=truncated");
    assert_eq!(quarantined["truncated"], one["rows"].as_array().unwrap().len());
    assert_eq!(
        page.json("/api/compare")["differences"],
        serde_json::json!({
            "run.dir": [format!("\"{}\"", text(&runs[0])), format!("\"{}\"", text(&runs[1]))],
            "train.epochs": ["1", "2"],
        })
    );
    let before_and_after = runs.iter().zip(before).all(|(run_dir, before)| artefacts(run_dir) == before);
    assert!(before_and_after, "the page wrote to a run");

    let out = run(&["--json", "runs", text(dir.path())]);
    let comparison: Value = serde_json::from_slice(&out.stdout).unwrap();
    let states: Vec<&Value> = comparison["runs"].as_array().unwrap().iter().map(|run| &run["state"]).collect();
    assert_eq!(states, ["done", "done"]);
}

#[test]
fn page_refuses_foreign_requests() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("run.toml"), "[stages]\n").unwrap();
    let page = Page::start(&["serve", text(dir.path()), "--address", "0"]);
    let (head, body) = page.get("/");
    assert!(head.contains("content-security-policy: default-src 'none'") && !body.contains("<script>"), "{head}");
    for (path, headers, status) in [
        ("/api/runs", "Host: evil.example\r\n".to_owned(), "403"),
        ("/api/runs", format!("Host: {0}\r\nOrigin: http://evil.example\r\n", page.address), "403"),
        ("/api/runs/7", format!("Host: {}\r\n", page.address), "404"),
        ("/../run.toml", format!("Host: {}\r\n", page.address), "404"),
        ("/api/runs/0/quarantine?from=../../x", format!("Host: {}\r\n", page.address), "400"),
    ] {
        let (head, _) = page.get_with(path, &headers);
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
    }
    let out = run(&["serve", text(&dir.path().join("absent")), "--address", "0"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(stderr_of(&out).contains("holds no run"), "{}", stderr_of(&out));
    let out = run(&["serve", text(dir.path()), "--address", &page.address]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr_of(&out).contains("in use"), "{}", stderr_of(&out));
}
