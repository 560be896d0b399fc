//! The page of `serve` and `run --serve`, over HTTP, and `runs`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{artefacts, pipeline, program, run, stderr_of, write};

/// A process that serves a page; it is killed at the end of the test.
pub(crate) struct Page {
    child: Child,
    address: String,
}

impl Page {
    fn start(args: &[&str]) -> Self {
        let mut command = program();
        command.args(args);
        Self::start_command(command)
    }

    /// Starts a command that serves a page.
    pub(crate) fn start_command(mut command: std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
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

    pub(crate) fn json(&self, path: &str) -> Value {
        let (head, body) = self.get(path);
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        serde_json::from_str(&body).unwrap()
    }

    /// Returns an answer, once everything that it needs is built.
    fn built(request: impl Fn() -> (String, Vec<u8>)) -> Value {
        let deadline = Instant::now() + Duration::from_mins(2);
        loop {
            let (head, body) = request();
            assert!(Instant::now() < deadline, "it is never built");
            if !head.starts_with("http/1.1 202") {
                let text = String::from_utf8(body).unwrap();
                assert!(head.starts_with("http/1.1 200"), "{head}: {text}");
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    pub(crate) fn built_json(&self, path: &str) -> Value {
        Self::built(|| self.exchange("GET", path, &[]))
    }

    /// Sends a request with a body, and returns the head and the body of the answer.
    pub(crate) fn exchange(&self, method: &str, path: &str, body: &[u8]) -> (String, Vec<u8>) {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let (host, bytes) = (&self.address, body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n");
        connection.write_all(head.as_bytes()).unwrap();
        // A server may answer a request whose body it refuses before it has read all of it.
        connection.write_all(body).ok();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
        let chunked = head.contains("transfer-encoding: chunked");
        assert!(!chunked, "{head}");
        (head, answer[end + 4..].to_vec())
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
    let deadline = Instant::now() + Duration::from_mins(4);
    let overviews = events.lines().map_while(Result::ok).filter_map(|line| {
        assert!(Instant::now() < deadline, "the training was never seen");
        serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok()
    });
    let trains = |overview: &Value| overview["charts"].as_str().is_some_and(|charts| charts.contains("<svg"));
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

/// A shard whose rows hold a picture, half a picture, markup, text, and fewer fields than a row has.
fn write_hostile_shard(path: &Path) -> Vec<u8> {
    let mut png = Vec::new();
    let pixels = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 9]));
    pixels.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let half = png[..png.len() / 2].to_vec();
    let svg =
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.attacked=1'><script>window.attacked=1</script></svg>";
    let html = b"<!DOCTYPE html><script>window.attacked=1</script>";
    let mut shard = String::new();
    for (url, bytes) in [("good", &png[..]), ("half", &half), ("svg", svg), ("html", html)] {
        shard.push_str(&format!("https://x/{url}\t{}\tmeta\n", base64_simd::STANDARD.encode_to_string(bytes)));
    }
    shard.push_str("https://x/text\t<b>no base64</b>\tmeta\nhttps://x/alone\n");
    std::fs::write(path, shard).unwrap();
    half
}

#[test]
fn quarantined_bytes_are_shown_and_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, shard) = (dir.path().join("run"), dir.path().join("a.tsv"));
    let half = write_hostile_shard(&shard);
    let config = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}']\nformat = 'tsv'\n[chunks]\nrows = 50\n[preprocess]\nsize_px = 32\n",
        run_dir.display(),
        shard.display()
    );
    let machine = dir.path().join("machine.toml");
    std::fs::write(&machine, "[limits]\nmax_bad_fraction = 1.0\n").unwrap();
    let out = run(&["run", "--config", &write(dir.path(), &config), "--machine", text(&machine)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let page = Page::start(&["serve", text(&run_dir), "--address", "0"]);
    let rows = page.json("/api/runs/0/quarantine?stream=train")["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 5, "{rows:?}");
    let place = |row: u64| format!("stream=train&shard=0&row={row}");
    let shown = |row: u64| page.json(&format!("/api/runs/0/quarantine/row?{}", place(row)));

    let picture = shown(1);
    assert_eq!((&picture["is_picture"], &picture["bytes"]), (&true.into(), &half.len().into()), "{picture}");
    assert!(picture["dump"].as_str().unwrap().starts_with("00000000: 8950 4e47"), "{picture}");
    let (head, bytes) = page.exchange("GET", &format!("/api/runs/0/quarantine/picture?{}", place(1)), &[]);
    assert_eq!(bytes, half);
    for header in [
        "content-type: image/png",
        "x-content-type-options: nosniff",
        "content-security-policy: default-src 'none'; sandbox",
        "content-disposition: attachment",
        "cross-origin-resource-policy: same-origin",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    // The command of the page writes these bytes.
    let command = picture["command"].as_str().unwrap();
    assert_eq!(command, format!("wikicap-pipeline inspect '{}' --row '0/1' --output row.bin", run_dir.display()));
    let target = dir.path().join("row.bin");
    let out = run(&["inspect", text(&run_dir), "--row", "0/1", "--output", text(&target)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(std::fs::read(&target).unwrap(), half);

    for (row, description, start) in [
        (2, "bytes of no picture that browsers show", "3c73 7667"),
        (3, "bytes of no picture that browsers show", "3c21 444f"),
        (4, "text that is no base64", "3c62 3e6e"),
        (5, "the row as it is stored", "6874 7470"),
    ] {
        let found = shown(row);
        assert_eq!((&found["is_picture"], &found["description"]), (&false.into(), &description.into()), "{found}");
        assert!(found["dump"].as_str().unwrap()[10..].starts_with(start), "{found}");
        let (head, body) = page.get(&format!("/api/runs/0/quarantine/picture?{}", place(row)));
        assert!(head.starts_with("http/1.1 409") && head.contains("content-type: application/json"), "{head}: {body}");
    }
    for query in ["stream=train&shard=0&row=0", "stream=train&shard=7&row=1", "stream=..%2F..%2Fx&shard=0&row=1"] {
        let (head, _) = page.get(&format!("/api/runs/0/quarantine/row?{query}"));
        assert!(head.starts_with("http/1.1 404"), "{query}: {head}");
    }
    // Inputs that have changed since are not shown as if they were those of the run.
    std::fs::write(&shard, "https://x/other\tAAAA\n".repeat(9)).unwrap();
    let (head, body) = page.get(&format!("/api/runs/0/quarantine/row?{}", place(2)));
    assert!(head.starts_with("http/1.1 409") && body.contains("changed"), "{head}: {body}");
    let out = run(&["inspect", text(&run_dir), "--row", "nonsense"]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr_of(&out));
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

/// Returns the address of a picture of a set.
fn picture_path(images: &str, row: &Value, kind: &str) -> String {
    format!("/api/runs/0/picture?images={images}&row={row}&kind={kind}")
}

/// Checks the pictures of a set: ranked captions, filters, and all three renditions of one.
fn check_pictures(page: &Page, images: &str, report_ndcg5: &Value) {
    let all = page.built_json(&format!("/api/runs/0/pictures?images={images}"));
    let pictures = all["pictures"].as_array().unwrap();
    assert!(!pictures.is_empty() && all["matching"] == all["total"], "{all}");
    let (mean, reported) = (all["mean_ndcg5"].as_f64().unwrap(), report_ndcg5.as_f64().unwrap());
    assert!((mean - reported).abs() < 1e-6, "{images}: {mean} on the page, {reported} in the report");
    let best = &pictures[0];
    assert_eq!(best["ndcg5"], 1.0, "{best}");
    assert!(best["ranked"].as_array().unwrap().len() >= 5 && best["ranked"][0]["is_right"] == true, "{best}");
    let scores: Vec<f64> =
        best["ranked"].as_array().unwrap().iter().map(|one| one["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|one, other| one >= other), "{scores:?}");
    let worst = page.built_json(&format!("/api/runs/0/pictures?images={images}&order=worst"));
    assert!(worst["pictures"][0]["ndcg5"].as_f64() < best["ndcg5"].as_f64(), "{worst}");
    let language = best["right"][0]["language"].as_str().unwrap();
    let some = page.built_json(&format!("/api/runs/0/pictures?images={images}&language={language}&from=1&to=1"));
    assert!(some["matching"].as_u64() < all["matching"].as_u64(), "{some}");
    for picture in some["pictures"].as_array().unwrap() {
        assert!(picture["right"].as_array().unwrap().iter().any(|one| one["language"] == language), "{picture}");
    }
    for (kind, magic) in [("thumbnail", &b"\xff\xd8\xff"[..]), ("model", b"\x89PNG")] {
        let (head, bytes) = page.exchange("GET", &picture_path(images, &best["row"], kind), &[]);
        assert!(head.starts_with("http/1.1 200") && bytes.starts_with(magic), "{kind}: {head}");
    }
    // Of the first pictures, some are in a format that browsers show.
    let original = |picture: &Value| page.exchange("GET", &picture_path(images, &picture["row"], "original"), &[]);
    let shown = pictures.iter().map(original).find(|(head, _)| head.starts_with("http/1.1 200")).unwrap();
    assert!(shown.0.contains("content-type: image/"), "{}", shown.0);
}

#[test]
fn page_shows_pictures_of_a_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    assert!(run(&["run", "--config", &write(dir.path(), &pipeline(&run_dir, &[]))]).status.success());
    let before = artefacts(&run_dir);
    let page = Page::start(&["serve", text(&run_dir), "--address", "0"]);
    let contents = page.json("/api/runs/0/contents");
    assert_eq!((&contents["head"], &contents["texts"]), (&"classes".into(), &false.into()));
    let report: Value = serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap();
    check_pictures(&page, "test:submission", &report["prediction"]["scores"]["ndcg5"]);
    let step = &contents["step"];
    let mut validations = report["training"]["validations"].as_array().unwrap().iter();
    let at_step = validations.rfind(|point| &point["step"] == step).unwrap();
    check_pictures(&page, "held-out", &at_step["ndcg5"]);

    // A held-out picture finds itself, and the classes that it was ranked for.
    let item = &page.built_json("/api/runs/0/pictures?images=held-out")["pictures"][0];
    let found = page
        .built_json(&format!("/api/runs/0/search?of_images=held-out&row={}&list=classes&images=held-out", item["row"]));
    assert_eq!(found["captions"][0]["text"], item["ranked"][0]["text"]);
    assert_eq!(found["images"][0]["row"], item["row"]);
    let (head, body) = page.get("/api/runs/0/search?text=a&images=held-out");
    assert!(head.starts_with("http/1.1 409") && body.contains("only a text head"), "{head}: {body}");
    for path in [
        "pictures?images=test:..%2F..%2Fx",
        "picture?images=held-out&row=99999",
        "search?row=1&of_list=../x&list=classes",
    ] {
        let (head, _) = page.get(&format!("/api/runs/0/{path}"));
        assert!(head.starts_with("http/1.1 409"), "{path}: {head}");
    }
    assert!(artefacts(&run_dir) == before, "the page wrote to the run");
}

#[test]
fn page_searches_by_picture_text_and_row() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = crate::text::text(&run_dir, &[("[predict]", "[preprocess]\nmax_encoded = '64 KiB'\n\n[predict]")]);
    let out = run(&["run", "--config", &write(dir.path(), &config)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let before = artefacts(&run_dir);
    let page = Page::start(&["serve", text(&run_dir), "--address", "0"]);
    let contents = page.json("/api/runs/0/contents");
    assert_eq!((&contents["head"], &contents["texts"]), (&"text".into(), &true.into()));
    let classes = contents["lists"].as_array().unwrap().last().unwrap();
    let list = classes["name"].as_str().unwrap();
    let pictures = page.built_json("/api/runs/0/pictures?images=held-out");
    let report: Value = serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap();
    let (mean, reported) = (pictures["mean_ndcg5"].as_f64().unwrap(), &report["prediction"]["text"]["held_out"]);
    let reported = reported["groups"][0]["pixels"]["ndcg5"].as_f64().unwrap();
    assert!((mean - reported).abs() < 1e-6, "{mean} on the page, {reported} in the report");

    // The bytes of a held-out picture find that picture, and its best caption where only held-out captions are ranked.
    let item = &pictures["pictures"][0];
    let row = &item["row"];
    let (_, bytes) = page.exchange("GET", &picture_path("held-out", row, "model"), &[]);
    let by_picture = || page.exchange("POST", &format!("/api/runs/0/search?list={list}&images=held-out"), &bytes);
    let found = Page::built(by_picture);
    assert_eq!(found["images"][0]["row"], *row, "{found}");
    let by_row =
        page.built_json(&format!("/api/runs/0/search?of_images=held-out&row={row}&list={list}&images=held-out"));
    assert_eq!(by_row["captions"][0]["text"], found["captions"][0]["text"]);
    assert!(by_row["images"][0]["score"].as_f64().unwrap() > 0.99, "{by_row}");

    // A caption of the run, as a text, finds itself.
    let caption = &found["captions"][3];
    let (text, number) = (caption["text"].as_str().unwrap(), &caption["row"]);
    let encoded = percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
    let by_text = page.built_json(&format!("/api/runs/0/search?text={encoded}&list={list}&images=held-out"));
    assert_eq!(by_text["captions"][0]["text"], text, "{by_text}");
    let by_caption =
        page.built_json(&format!("/api/runs/0/search?of_list={list}&row={number}&list={list}&images=held-out"));
    assert_eq!(by_caption["captions"][0]["row"], *number);
    assert_eq!(by_caption["images"][0]["row"], by_text["images"][0]["row"]);
    let side_by_side = page.built_json(&format!("/api/runs/0/search?text=a&by_language=true&list={list}"));
    let languages = side_by_side["languages"].as_object().unwrap();
    assert!(languages.len() >= 8, "{languages:?}");
    for (language, captions) in languages {
        assert!(captions.as_array().unwrap().iter().all(|caption| caption["language"] == language.as_str()));
    }

    for (body, status, word) in [
        (vec![0_u8; 70_000], "413", "preprocess.max_encoded"),
        (vec![0_u8; 300], "409", "cannot be used"),
        (bytes[..bytes.len() / 2].to_vec(), "409", "cannot be used"),
        (Vec::new(), "400", "no picture"),
    ] {
        let (head, answer) = page.exchange("POST", &format!("/api/runs/0/search?list={list}"), &body);
        let answer = String::from_utf8(answer).unwrap();
        assert!(head.starts_with(&format!("http/1.1 {status}")) && answer.contains(word), "{head}: {answer}");
    }
    assert!(artefacts(&run_dir) == before, "the page wrote to the run");
}

#[test]
fn page_ranks_and_searches_by_all_heads_of_an_ensemble() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = crate::ensemble::layers(&run_dir, "method = 'auto'", "");
    let out = run(&["run", "--config", &write(dir.path(), &config)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let page = Page::start(&["serve", text(&run_dir), "--address", "0"]);
    let contents = page.json("/api/runs/0/contents");
    let list = contents["lists"].as_array().unwrap().last().unwrap()["name"].as_str().unwrap().to_owned();
    let pictures = page.built_json("/api/runs/0/pictures?images=held-out");
    let report: Value = serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap();
    let reported = &report["prediction"]["text"]["held_out"]["groups"][0]["pixels"]["ndcg5"];
    let (mean, reported) = (pictures["mean_ndcg5"].as_f64().unwrap(), reported.as_f64().unwrap());
    assert!((mean - reported).abs() < 1e-6, "{mean} on the page, {reported} in the report");
    let row = &pictures["pictures"][0]["row"];
    let found =
        page.built_json(&format!("/api/runs/0/search?of_images=held-out&row={row}&list={list}&images=held-out"));
    let caption = found["captions"][0]["text"].as_str().unwrap();
    let encoded = percent_encoding::utf8_percent_encode(caption, percent_encoding::NON_ALPHANUMERIC);
    let by_text = page.built_json(&format!("/api/runs/0/search?text={encoded}&list={list}&images=held-out"));
    assert_eq!(by_text["captions"][0]["text"], caption, "{by_text}");
    assert!(by_text["captions"][0]["score"].as_f64().unwrap() > 0.9, "{by_text}");
}
