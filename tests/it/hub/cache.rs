//! The cache of checkpoints: offline, and shared with other programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{HUB, Lab, REPO, bodies, model, weights};
use crate::support::{artefacts, differences, pipeline, run, stderr_of, write};

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
