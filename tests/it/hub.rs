//! Checkpoints of the Hugging Face hub, against a local server of its protocol: equal features under network faults, and
//! a cache that other clients share.

mod cache;
mod datasets;
mod download;
mod server;
mod text;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{artefacts, corpus, differences, program, stderr_of};
use server::{Faults, Seen, Server, etag};

const REPO: &str = "lab/vit-tiny";
const HUB: &str = "hf:lab/vit-tiny";
const FOLDER: &str = "models--lab--vit-tiny";

fn model() -> PathBuf {
    corpus().join("models/vit-tiny")
}

/// A hub server with the tiny model, and a cache and configuration that use it.
struct Lab {
    dir: tempfile::TempDir,
    server: Server,
    commit: String,
}

impl Lab {
    fn new() -> Self {
        let (dir, server) = (tempfile::tempdir().unwrap(), Server::start());
        let commit = server.publish_dir(REPO, "main", &model());
        Self { dir, server, commit }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn repo(&self) -> PathBuf {
        self.home().join("hub").join(FOLDER)
    }

    /// Returns the program with this hub, without hub settings of the environment.
    fn program(&self) -> Command {
        let mut command = program();
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("HF_") || name.to_lowercase().ends_with("_proxy"))
        {
            command.env_remove(name);
        }
        command
            .env_remove("TRANSFORMERS_OFFLINE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env_remove("HUGGING_FACE_HUB_TOKEN");
        command.env("HF_ENDPOINT", &self.server.endpoint).env("HF_HOME", self.home());
        command
    }

    /// Config that computes only the features of the test images, which is quick.
    fn config(&self, run: &str, checkpoint: &str) -> String {
        let text = format!(
            "[run]\ndir = '{}'\n[images]\nshards = ['{}/data/image_data_test/image_pixels/*.csv']\n[chunks]\nrows = 50\n[model]\ncheckpoint = '{checkpoint}'\n",
            self.run_dir(run).display(),
            corpus().display()
        );
        let path = self.dir.path().join(format!("{run}.toml"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn run_dir(&self, run: &str) -> PathBuf {
        self.dir.path().join(run)
    }

    fn run(&self, run: &str, checkpoint: &str) -> Output {
        self.program().args(["run", "--config", &self.config(run, checkpoint)]).output().unwrap()
    }

    fn succeeds(&self, run: &str, checkpoint: &str) -> String {
        let out = self.run(run, checkpoint);
        assert!(out.status.success(), "{}", stderr_of(&out));
        stderr_of(&out)
    }

    /// Runs a command that must fail; returns exit code and standard error.
    fn fails(&self, run: &str, checkpoint: &str) -> (i32, String) {
        let out = self.run(run, checkpoint);
        let text = stderr_of(&out);
        assert!(!out.status.success() && !text.contains("panicked"), "{text}");
        let sentence: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(sentence.len(), 1, "{text}");
        (out.status.code().unwrap(), sentence[0].to_owned())
    }

    /// Names of all files in the repository's cache folder.
    fn cached(&self) -> Vec<String> {
        let mut names: Vec<String> =
            if self.repo().is_dir() { artefacts(&self.repo()).into_keys().collect() } else { Vec::new() };
        names.retain(|name| !name.starts_with("snapshots"));
        names
    }

    /// Starts a run on a slow network and waits until part of the weights is on disk.
    fn start_slowly(&self, run: &str) -> std::process::Child {
        self.server.fail(Faults { throttle: Some(2 << 10), ..Faults::default() });
        let config = self.config(run, HUB);
        let child = self
            .program()
            .args(["run", "--config", &config])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while self.part() < 10_000 {
            assert!(start.elapsed() < Duration::from_secs(20), "nothing comes");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    fn part(&self) -> u64 {
        std::fs::metadata(self.repo().join(format!("blobs/{}.incomplete", weights_etag()))).map_or(0, |part| part.len())
    }
}

fn weights() -> Vec<u8> {
    std::fs::read(model().join("model.safetensors")).unwrap()
}

fn weights_etag() -> String {
    etag("model.safetensors", &weights())
}

fn bodies(seen: &[Seen]) -> usize {
    seen.iter().map(|seen| seen.body_bytes).sum()
}

#[test]
fn hub_checkpoint_equals_local_directory() {
    let lab = Lab::new();
    lab.succeeds("directory", model().to_str().unwrap());
    lab.succeeds("hub", HUB);
    assert_eq!(
        differences(&artefacts(&lab.run_dir("directory")), &artefacts(&lab.run_dir("hub"))),
        Vec::<String>::new()
    );

    let seen = lab.server.seen();
    let lines: Vec<String> = seen.iter().map(|seen| format!("{} {}", seen.port, seen.line)).collect();
    let file = |method: &str, name: &str| format!("hub {method} /{REPO}/resolve/{}/{name}", lab.commit);
    assert_eq!(
        lines,
        [
            format!("hub GET /api/models/{REPO}/revision/main"),
            file("HEAD", "config.json"),
            file("HEAD", "preprocessor_config.json"),
            file("HEAD", "model.safetensors"),
            file("GET", "config.json"),
            file("GET", "preprocessor_config.json"),
            file("GET", "model.safetensors"),
            format!("cdn GET /{}/model.safetensors", lab.commit),
        ]
    );

    // The cache has the layout of huggingface_hub.
    let snapshot = lab.repo().join("snapshots").join(&lab.commit);
    for name in ["config.json", "preprocessor_config.json", "model.safetensors"] {
        let content = std::fs::read(model().join(name)).unwrap();
        let etag = etag(name, &content);
        assert_eq!(std::fs::read_link(snapshot.join(name)).unwrap(), Path::new("../../blobs").join(&etag));
        assert_eq!(std::fs::read(lab.repo().join("blobs").join(&etag)).unwrap(), content);
        assert!(lab.home().join("hub/.locks").join(FOLDER).join(format!("{etag}.lock")).is_file());
    }
    assert_eq!(std::fs::read_to_string(lab.repo().join("refs/main")).unwrap(), lab.commit);
    assert_eq!(lab.cached().len(), 4, "{:?}", lab.cached());

    // The report lists the download with its bytes.
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(lab.run_dir("hub").join("report.json")).unwrap()).unwrap();
    let sizes: u64 = ["config.json", "preprocessor_config.json", "model.safetensors"]
        .iter()
        .map(|name| std::fs::metadata(model().join(name)).unwrap().len())
        .sum();
    let text = report["stages"].to_string();
    assert!(text.contains("\"download\"") && text.contains(&sizes.to_string()), "{text}");

    // The same files have the same fingerprint wherever they are, and cached files are requested once.
    lab.succeeds("hub", model().to_str().unwrap());
    assert_eq!(lab.server.seen(), []);
    lab.succeeds("directory", HUB);
    assert_eq!(lab.server.seen().len(), 1);
    // A commit is immutable.
    lab.succeeds("directory", &format!("{HUB}@{}", lab.commit));
    assert_eq!(lab.server.seen(), []);
}

#[test]
fn token_goes_only_to_the_hub() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.home()).unwrap();
    std::fs::write(lab.home().join("token"), "hf_stored\n").unwrap();
    let config = lab.config("run", HUB);
    let out = lab.program().args(["-vv", "run", "--config", &config]).env("HF_TOKEN", "hf_secret").output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let shown = format!("{}{}", stderr_of(&out), String::from_utf8_lossy(&out.stdout));
    let seen = lab.server.seen();
    assert!(seen.iter().any(|seen| seen.port == "cdn"));
    for seen in seen {
        assert_eq!(seen.authorization.as_deref(), (seen.port == "hub").then_some("Bearer hf_secret"), "{seen:?}");
    }
    assert!(!shown.contains("hf_secret") && !shown.contains("of-a-moment"), "{shown}");
    for (name, content) in artefacts(&lab.dir.path().join("run")) {
        assert!(!String::from_utf8_lossy(&content).contains("hf_secret"), "{name}");
    }
    for name in ["report.json", "run.toml"] {
        assert!(!std::fs::read_to_string(lab.run_dir("run").join(name)).unwrap().contains("hf_secret"), "{name}");
    }

    // Without the variable the stored token is used; when refused, it is not shown either.
    lab.server.fail(Faults { refuses: Some((401, "")), ..Faults::default() });
    std::fs::remove_dir_all(lab.home().join("hub")).unwrap();
    let (code, sentence) = lab.fails("run", HUB);
    assert_eq!(code, 4);
    assert!(sentence.contains("HF_TOKEN") && !sentence.contains("hf_stored"), "{sentence}");
    assert_eq!(lab.server.seen()[0].authorization.as_deref(), Some("Bearer hf_stored"));
}

#[test]
fn hub_refusals_are_one_sentence() {
    let lab = Lab::new();
    for (faults, checkpoint, code, words) in [
        (None, "hf:lab/none", 3, &["`hf:lab/none`", "is not at http://"][..]),
        (None, "hf:lab/vit-tiny@v9", 3, &["`hf:lab/vit-tiny@v9`", "no such revision"]),
        (Some((401, "GatedRepo")), HUB, 4, &["`hf:lab/vit-tiny`", "gated", "HF_TOKEN"]),
        (Some((403, "GatedRepo")), HUB, 4, &["gated", "HF_TOKEN"]),
        (Some((401, "RepoNotFound")), HUB, 4, &["private or does not exist", "HF_TOKEN"]),
        (Some((403, "")), HUB, 4, &["refused", "HF_TOKEN"]),
        (Some((418, "")), HUB, 4, &["answers 418", "HF_ENDPOINT"]),
    ] {
        lab.server.fail(Faults { refuses: faults, ..Faults::default() });
        let (found, sentence) = lab.fails("run", checkpoint);
        assert_eq!(found, code, "{sentence}");
        assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
    }
    lab.server.fail(Faults::default());
    lab.server.publish("lab/pickled", "main", &[("config.json", b"{}".to_vec()), ("pytorch_model.bin", b"x".to_vec())]);
    let (code, sentence) = lab.fails("run", "hf:lab/pickled");
    assert_eq!(code, 3);
    assert!(sentence.contains("has no `model.safetensors`") && sentence.contains("converted"), "{sentence}");
    lab.server.publish("lab/words", "main", &[("README.md", b"#".to_vec())]);
    let (code, sentence) = lab.fails("run", "hf:lab/words");
    assert!(code == 3 && sentence.contains("config.json"), "{sentence}");
    let index = br#"{"weight_map": {"a": "../../../x"}}"#.to_vec();
    lab.server.publish("lab/odd", "main", &[("config.json", b"{}".to_vec()), ("model.safetensors.index.json", index)]);
    let (code, sentence) = lab.fails("run", "hf:lab/odd");
    assert!(code == 3 && sentence.contains("`../../../x` is not a plain file name"), "{sentence}");
}

#[test]
fn malformed_hub_name_is_a_config_error() {
    let lab = Lab::new();
    for name in ["hf:", "hf:a/b/c", "hf:../x", "hf:lab/vit@../x", "hf://lab/vit-tiny"] {
        let (code, sentence) = lab.fails("run", name);
        assert_eq!(code, 2, "{sentence}");
        assert!(sentence.contains("`model.checkpoint`") && sentence.contains(name), "{sentence}");
    }
    let out = lab.program().args(["inspect", "hf:a/b/c"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", stderr_of(&out));
    assert_eq!(lab.server.seen(), []);
    assert!(!lab.home().exists());
}

#[test]
fn renamed_repository_is_followed() {
    let lab = Lab::new();
    lab.server.rename("old/name", REPO);
    let config = lab.config("run", "hf:old/name");
    let out = lab.program().args(["run", "--config", &config]).env("HF_TOKEN", "hf_secret").output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    // A redirect within the hub keeps the token.
    assert!(lab.server.seen().iter().all(|seen| seen.port == "cdn" || seen.authorization.is_some()));
    assert!(lab.home().join("hub/models--old--name/refs/main").is_file());
}

#[test]
fn check_lists_downloads_and_changes_nothing() {
    let lab = Lab::new();
    let check = |checkpoint: &str| {
        let out = lab.program().args(["--json", "check", "--config", &lab.config("run", checkpoint)]).output().unwrap();
        (serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap(), out.status.code().unwrap())
    };
    let (found, code) = check(HUB);
    assert_eq!(code, 0, "{found}");
    let download = found["needs"]["download"].as_str().unwrap();
    assert!(download.contains("config.json, preprocessor_config.json, model.safetensors"), "{download}");
    assert!(download.contains("KiB of the checkpoint into"), "{download}");
    assert!(found["sample"]["images.shards"].as_str().unwrap().contains("usable"), "{found}");
    assert!(!lab.home().exists() && !lab.run_dir("run").exists());
    let (found, code) = check("hf:lab/none");
    assert_eq!(code, 3);
    assert!(found["problems"].to_string().contains("`hf:lab/none` is not at"), "{found}");
    assert!(!lab.home().exists());

    lab.succeeds("run", HUB);
    let (found, code) = check(HUB);
    assert_eq!((code, &found["needs"]["download"]), (0, &serde_json::Value::Null));
    assert!(found["needs"]["model"].as_str().unwrap().contains("parameters"), "{found}");
}

#[test]
fn sharded_weights_are_found_by_index() {
    let lab = Lab::new();
    let content = weights();
    let whole = safetensors::SafeTensors::deserialize(&content).unwrap();
    let mut map = serde_json::Map::new();
    let mut files = vec![("config.json", std::fs::read(model().join("config.json")).unwrap())];
    for (shard, name) in
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].into_iter().enumerate()
    {
        let mut names = whole.names();
        names.sort_unstable();
        let mine: Vec<&str> =
            names.into_iter().enumerate().filter(|(at, _)| at % 2 == shard).map(|(_, name)| name).collect();
        map.extend(mine.iter().map(|tensor| ((*tensor).to_owned(), name.into())));
        let views = mine.iter().map(|tensor| (*tensor, whole.tensor(tensor).unwrap()));
        files.push((name, safetensors::serialize(views, None).unwrap()));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    files.push(("model.safetensors.index.json", index.into_bytes()));
    lab.server.publish("lab/sharded", "main", &files);
    let out =
        lab.program().args(["--json", "check", "--config", &lab.config("run", "hf:lab/sharded")]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("model-00002-of-00002.safetensors"), "{text}");
    lab.succeeds("run", "hf:lab/sharded");
    let inspect = |name: &str| {
        let out = lab.program().args(["--json", "inspect", name]).output().unwrap();
        assert!(out.status.success(), "{}", stderr_of(&out));
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()
    };
    let parameters = |value: &serde_json::Value| {
        let facts = value["facts"].as_array().unwrap();
        facts.iter().find(|fact| fact[0] == "parameters").unwrap()[1].clone()
    };
    assert_eq!(parameters(&inspect("hf:lab/sharded")), parameters(&inspect(model().to_str().unwrap())));
    // The index was fetched once.
    let gets =
        lab.server.seen().into_iter().filter(|seen| seen.line.starts_with("GET") && seen.line.ends_with("index.json"));
    // Once by `check`, which keeps nothing, and once by `run`.
    assert_eq!(gets.count(), 2);
}
