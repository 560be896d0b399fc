//! Views of a run from other processes: `status`, Prometheus, events and the report.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{pipeline, program, run, stderr_of, write};

fn status(run_dir: &Path) -> Option<Value> {
    let out = run(&["--json", "status", "--run-dir", run_dir.to_str().unwrap()]);
    out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
}

fn get(address: &str, path: &str) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn events(run_dir: &Path) -> Vec<Value> {
    let mut files: Vec<_> =
        std::fs::read_dir(run_dir.join("events")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let lines = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    lines.flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()).collect()
}

#[test]
fn status_describes_running_and_killed_runs() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 20000")]));
    let out = run(&["status", "--run-dir", run_dir.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(3));
    assert!(stderr_of(&out).contains("holds no run: `run.toml` is missing"), "{}", stderr_of(&out));

    let mut child = program()
        .args(["run", "--config", &config, "--metrics", "0"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the address is not in the log");
        if let Some((_, rest)) = line.split_once("metrics at http://") {
            break rest.split('/').next().unwrap().to_owned();
        }
    };
    // Whoever writes to a pipe that nobody reads blocks.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(get(&address, "/healthz").starts_with("HTTP/1.1 200"));

    let deadline = Instant::now() + Duration::from_mins(1);
    let seen = loop {
        assert!(Instant::now() < deadline, "the training was never seen");
        let now = status(&run_dir);
        let training = |now: &Value| now["stages"].as_array().unwrap().iter().any(|stage| stage["name"] == "train");
        if let Some(now) = now.filter(training) {
            break now;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!((&seen["live"], &seen["state"]), (&true.into(), &"running".into()));
    assert_eq!(seen["process"], child.id());
    let stages = seen["stages"].as_array().unwrap();
    let images = stages.iter().find(|stage| stage["name"] == "images").unwrap();
    let shards = images["shards"].as_array().unwrap();
    assert!(shards.iter().all(|shard| shard["done"] == true && shard["read"] == 1.0), "{shards:?}");
    let rows: u64 = shards.iter().map(|shard| shard["rows"].as_u64().unwrap()).sum();
    assert_eq!(images["done"], rows);
    for part in images["parts"].as_array().unwrap() {
        let sum: f64 = ["busy", "starved", "blocked"].iter().map(|state| part[*state].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 0.01, "{part}");
    }
    let train = stages.iter().find(|stage| stage["name"] == "train").unwrap();
    assert!(train["total"].as_u64() > train["done"].as_u64() && train["finished"] == false, "{train}");

    let scrape = get(&address, "/metrics");
    for line in [
        format!("wikicap_stage_done_total{{stage=\"images\",unit=\"rows\"}} {rows}\n"),
        "wikicap_part_seconds_total{stage=\"images\",part=\"decode\",state=\"busy\"}".to_owned(),
        "wikicap_in_flight_bytes_limit".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(scrape.contains(&line), "{line} is not in {scrape}");
    }

    child.kill().unwrap();
    child.wait().unwrap();
    let out = run(&["status", "--run-dir", run_dir.to_str().unwrap()]);
    let text = String::from_utf8(out.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("is not running") && text.contains("without a final report"), "{text}");
    assert_eq!(status(&run_dir).unwrap()["live"], false);
    assert_eq!(run(&["status", "--check", run_dir.to_str().unwrap()]).status.code(), Some(1));
    let kinds: Vec<String> = events(&run_dir).iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds[0], "run_started");
    let committed = events(&run_dir).into_iter().filter(|event| event["event"] == "chunk_committed");
    let in_events: u64 =
        committed.filter(|event| event["stage"] == "images").map(|event| event["rows"].as_u64().unwrap()).sum();
    assert_eq!(in_events, rows);
}

#[test]
fn finished_run_names_its_bottleneck() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]));
    let out = run(&["run", "--config", &config]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("Bottleneck") && text.contains("NDCG@5"), "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap();
    let images = report["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == "images").unwrap();
    let waited = images["device_waited"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&waited) && images["bottleneck"]["share"].as_f64().unwrap() > 0.0);
    let now = status(&run_dir).unwrap();
    assert_eq!((&now["state"], &now["live"]), (&"done".into(), &false.into()));
    assert_eq!(run(&["status", "--check", run_dir.to_str().unwrap()]).status.code(), Some(0));
    assert_eq!(events(&run_dir).last().unwrap()["state"], "done");
}
