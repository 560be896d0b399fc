//! Checkpoints of the Hugging Face hub, against a local server of its protocol: equal features under network faults, and
//! a cache that other clients share.

mod datasets;
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::resource_limits::on_a_full_disk;
use crate::support::{artefacts, corpus, differences, pipeline, program, run, stderr_of, write};
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

#[test]
fn offline_mode_uses_the_cache() {
    let mut lab = Lab::new();
    let offline = |lab: &Lab, word: &str, arguments: &[&str]| {
        lab.program().args(arguments).env("HF_HUB_OFFLINE", word).output().unwrap()
    };
    let config = lab.config("offline", HUB);
    let out = offline(&lab, "True", &["run", "--config", &config]);
    assert_eq!(out.status.code(), Some(4));
    let text = stderr_of(&out);
    assert!(text.contains("nothing of this revision") && text.contains("HF_HUB_OFFLINE"), "{text}");
    assert_eq!(lab.server.seen(), []);

    lab.succeeds("online", HUB);
    lab.server.seen();
    assert!(offline(&lab, "yes", &["run", "--config", &config]).status.success());
    assert_eq!(lab.server.seen(), []);

    // The hub is unreachable and the cache is complete.
    lab.server.stop();
    let asked = Instant::now();
    let log = lab.succeeds("away", HUB);
    assert!(log.contains("WARN") && log.contains("using the cached commit"), "{log}");
    assert!(asked.elapsed() < Duration::from_secs(10));
    let (code, sentence) = lab.fails("v2", &format!("{HUB}@v2"));
    assert!(code == 4 && sentence.contains("no connection to http://127.0.0."), "{sentence}");

    // The absence of a preprocessor file changes the result, so it must be known.
    let snapshot = lab.repo().join("snapshots").join(&lab.commit);
    std::fs::remove_file(snapshot.join("preprocessor_config.json")).unwrap();
    for (name, words) in
        [("", "does not record that the repository has none"), ("model.safetensors", "`model.safetensors` is missing")]
    {
        std::fs::remove_file(snapshot.join(name)).ok();
        let out = offline(&lab, "1", &["inspect", HUB]);
        assert!(out.status.code() == Some(4) && stderr_of(&out).contains(words), "{}", stderr_of(&out));
    }
}

#[test]
fn absent_files_are_remembered_offline() {
    let lab = Lab::new();
    let files = ["config.json", "model.safetensors"].map(|name| (name, std::fs::read(model().join(name)).unwrap()));
    for (repo, revision) in [("vit", "main"), ("lab/v", "v1.0"), ("lab/v", "refs/pr/1")] {
        lab.server.publish(repo, revision, &files);
        let name = format!("hf:{repo}@{revision}");
        let run = name.replace([':', '/', '@'], "-");
        lab.succeeds(&run, &name);
        lab.server.seen();
        let out = lab.program().args(["inspect", &name]).env("HF_HUB_OFFLINE", "1").output().unwrap();
        assert!(out.status.success(), "{}", stderr_of(&out));
    }
    assert_eq!(lab.server.seen(), []);
    assert!(lab.home().join("hub/models--vit/refs/main").is_file());
    assert!(lab.home().join("hub/models--lab--v/refs/refs/pr/1").is_file());
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

#[test]
fn all_commands_use_the_cached_backbone() {
    let lab = Lab::new();
    let run_dir = lab.run_dir("whole");
    let place = format!("checkpoint = \"{}\"", model().display());
    let hub = format!("checkpoint = \"{HUB}\"");
    let config = write(lab.dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), (&place, &hub)]));
    let succeed = |arguments: &[&str]| {
        let out = lab.program().args(arguments).output().unwrap();
        assert!(out.status.success(), "{}", stderr_of(&out));
    };
    succeed(&["run", "--config", &config]);
    succeed(&["predict", "--config", &config]);
    lab.server.seen();
    let (from_hub, from_directory) = (lab.dir.path().join("from-hub"), lab.dir.path().join("from-directory"));
    succeed(&["export", "--config", &config, "--out", from_hub.to_str().unwrap()]);
    assert_eq!(lab.server.seen(), []);
    let by_path = write(lab.dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2")]));
    let out = run(&["export", "--config", &by_path, "--out", from_directory.to_str().unwrap()]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(&artefacts(&from_hub), &artefacts(&from_directory)), Vec::<String>::new());

    // The branch moves: the run names it, and so does the export once the cache has moved too.
    let moved = lab.dir.path().join("moved");
    std::fs::create_dir(&moved).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, moved.join(path.file_name().unwrap())).unwrap();
    }
    let config_json = std::fs::read_to_string(moved.join("config.json")).unwrap();
    std::fs::write(moved.join("config.json"), format!("{config_json}\n")).unwrap();
    lab.server.publish_dir(REPO, "main", &moved);
    let config = write(lab.dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), (&place, &hub)]));
    for arguments in
        [&["run", "--config", &config][..], &["export", "--config", &config, "--out", moved.to_str().unwrap()]]
    {
        let out = lab.program().args(arguments).output().unwrap();
        assert_eq!(out.status.code(), Some(2));
        assert!(stderr_of(&out).contains("model.checkpoint"), "{}", stderr_of(&out));
    }
    // Only changed files were fetched: the weights were cached.
    assert_eq!(bodies(&lab.server.seen()), 0);
    let pinned = format!("checkpoint = \"{HUB}@{}\"", lab.commit);
    let config = write(lab.dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 2"), (&place, &pinned)]));
    succeed(&["run", "--config", &config]);
}

/// Needs `HUB_PYTHON`, a Python with `huggingface_hub`; `.ci/run` provides it.
#[test]
#[ignore = "needs HUB_PYTHON, a Python with huggingface_hub"]
fn cache_is_shared_with_huggingface_hub() {
    let python = std::env::var("HUB_PYTHON").unwrap();
    let lab = Lab::new();
    let ask = |offline: &str, code: &str| {
        let out = Command::new(&python)
            .args(["-c", code])
            .env("HF_ENDPOINT", &lab.server.endpoint)
            .env("HF_HOME", lab.home())
            .env("HF_HUB_OFFLINE", offline)
            .env("HF_HUB_DISABLE_XET", "1")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", stderr_of(&out));
        PathBuf::from(String::from_utf8_lossy(&out.stdout).trim())
    };
    let snapshot = lab.repo().join("snapshots").join(&lab.commit);
    let whole = "from huggingface_hub import snapshot_download as f; print(f('lab/vit-tiny', allow_patterns=['*.json', '*.safetensors']))";
    let one = "from huggingface_hub import hf_hub_download as f; print(f('lab/vit-tiny', 'model.safetensors'))";

    // Python reads our download.
    lab.succeeds("ours", HUB);
    assert_eq!(ask("1", whole).canonicalize().unwrap(), snapshot.canonicalize().unwrap());
    assert_eq!(std::fs::read(ask("1", one)).unwrap(), weights());
    lab.server.seen();
    ask("0", whole);
    let seen = lab.server.seen();
    assert!(!seen.iter().any(|seen| seen.line.starts_with("GET") && seen.line.contains("resolve")), "{seen:#?}");

    // We read Python's download: online with one request, offline with none.
    std::fs::remove_dir_all(lab.home()).unwrap();
    ask("0", whole);
    lab.server.seen();
    lab.succeeds("theirs", HUB);
    assert_eq!(lab.server.seen().len(), 1);
    let out = lab
        .program()
        .args(["run", "--config", &lab.config("offline", HUB)])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(lab.server.seen(), []);
    assert_eq!(
        differences(&artefacts(&lab.run_dir("ours")), &artefacts(&lab.run_dir("offline"))),
        Vec::<String>::new()
    );

    // With one file cached by Python, the rest is fetched.
    std::fs::remove_dir_all(lab.home()).unwrap();
    ask("0", one);
    lab.server.seen();
    lab.succeeds("mixed", HUB);
    assert_eq!(bodies(&lab.server.seen()), 0);
}

#[test]
fn text_encoder_includes_tokenizer_and_modules() {
    let lab = Lab::new();
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/bert");
    lab.server.publish_dir("lab/text", "main", &encoder);
    let sections = |encoder: &str| format!("[text]\nencoder = '{encoder}'\n\n[head]\nkind = 'text'\n\n[train]");
    let config = |run: &str, encoder: &str| {
        let edits = [("[train]", sections(encoder)), ("epochs = 12", "epochs = 1".to_owned())];
        let edits: Vec<(&str, &str)> = edits.iter().map(|(from, to)| (*from, to.as_str())).collect();
        let text = pipeline(&lab.run_dir(run), &edits).replace("learning_rate = 0.2\n", "");
        let path = lab.dir.path().join(format!("{run}.toml"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let run = |name: &str, encoder: &str, offline: bool| {
        let mut command = lab.program();
        if offline {
            command.env("HF_HUB_OFFLINE", "1");
        }
        command.args(["run", "--config", &config(name, encoder)]).output().unwrap()
    };
    let out = run("early", "hf:lab/text", true);
    assert_eq!(out.status.code(), Some(4), "{}", stderr_of(&out));
    let check = lab.program().args(["check", "--config", &config("hub", "hf:lab/text")]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && said.contains("2_Dense/model.safetensors"), "{said}");
    for (name, encoder, offline) in [
        ("hub", "hf:lab/text", false),
        ("offline", "hf:lab/text", true),
        ("directory", encoder.to_str().unwrap(), false),
    ] {
        let out = run(name, encoder, offline);
        assert!(out.status.success(), "{name}: {}", stderr_of(&out));
    }
    let one = artefacts(&lab.run_dir("directory"));
    for other in ["hub", "offline"] {
        assert_eq!(differences(&one, &artefacts(&lab.run_dir(other))), Vec::<String>::new(), "{other}");
    }
    let seen: Vec<String> = lab.server.seen().into_iter().map(|seen| seen.line).collect();
    assert!(seen.iter().any(|line| line.ends_with("/1_Pooling/config.json")), "{seen:?}");
    assert!(!seen.iter().any(|line| line.contains("onnx") || line.contains("expected")), "{seen:?}");
}

#[test]
fn prompts_come_from_the_hub_and_check_shows_the_prefix() {
    let lab = Lab::new();
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/sentence");
    lab.server.publish_dir("lab/sentence", "main", &encoder);
    let config = |keys: &str| {
        let sections = format!("[text]\nencoder = 'hf:lab/sentence'\n{keys}\n[head]\nkind = 'text'\n\n[train]");
        let edits = [("[train]", sections.as_str()), ("epochs = 12", "epochs = 1"), ("learning_rate = 0.2\n", "")];
        write(lab.dir.path(), &pipeline(&lab.run_dir("run"), &edits))
    };
    let out = lab.program().args(["run", &config("")]).output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let seen: Vec<String> = lab.server.seen().into_iter().map(|seen| seen.line).collect();
    assert!(seen.iter().any(|line| line.ends_with("/config_sentence_transformers.json")), "{seen:?}");
    for (keys, shown) in [
        (
            "",
            "vectors of 16 values in bf16, captions of up to 32 tokens, prefix `Query: ` (the encoder's default prompt, `query`)",
        ),
        ("prefix = 'x: '", "prefix `x: ` (`text.prefix`)"),
        ("prefix = ''", "no prefix (`text.prefix`)"),
        ("truncate_dim = 12", "vectors of the first 12 of 16 values"),
    ] {
        let out = lab.program().args(["--json", "check", &config(keys)]).output().unwrap();
        let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let needs = found["needs"]["text encoder"].as_str().unwrap();
        assert!(needs.contains(shown), "{keys}: {needs}");
    }
    // The same prefix, spelled out, is no other setting; another one is.
    let out = lab.program().args(["run", &config("prefix = 'Query: '")]).output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let out = lab.program().args(["run", &config("prefix = ''")]).output().unwrap();
    assert!(out.status.code() == Some(2) && stderr_of(&out).contains("text.prefix"), "{}", stderr_of(&out));
}

#[test]
fn plain_encoder_cached_by_other_tools_works_offline() {
    let lab = Lab::new();
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/xlmr");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = lab.home().join("hub/models--lab--plain");
    let snapshot = repo.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(encoder.join(file), snapshot.join(file)).unwrap();
    }
    let sections = "[text]\nencoder = 'hf:lab/plain'\n\n[head]\nkind = 'text'\n\n[train]";
    let edits = [("[train]", sections), ("epochs = 12", "epochs = 1"), ("learning_rate = 0.2\n", "")];
    let config = write(lab.dir.path(), &pipeline(&lab.run_dir("run"), &edits));
    for command in ["check", "run"] {
        let out = lab.program().args([command, &config]).env("HF_HUB_OFFLINE", "1").output().unwrap();
        assert!(out.status.success(), "{command}: {}{}", String::from_utf8_lossy(&out.stdout), stderr_of(&out));
        assert!(stderr_of(&out).contains("used as a plain encoder, with mean pooling"), "{}", stderr_of(&out));
    }
}
