//! Data sets of the hub as inputs, and web servers that redirect: streamed without stored files, and without credentials
//! on other hosts.

use std::path::PathBuf;
use std::process::{Command, Output};

use super::server::{Faults, Seen};
use super::{Lab, model};
use crate::support::{artefacts, corpus, differences, stderr_of};

const REPO: &str = "datasets/lab/shapes";
const FOLDER: &str = "data/image_pixels";
const TOKEN: &str = "hf_of_the_test";

fn shards() -> PathBuf {
    corpus().join("data/image_data_train/image_pixels")
}

/// Publishes two train shards as large files, a test shard as a small one, and others that no run needs.
fn publish(lab: &Lab) -> String {
    let mut files: Vec<(String, Vec<u8>)> = (0..2)
        .map(|part| {
            let name = format!("train_image_pixels_part-{part:05}.csv.gz");
            (format!("{FOLDER}/{name}"), std::fs::read(shards().join(name)).unwrap())
        })
        .collect();
    let test = corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv");
    files.push((format!("{FOLDER}/test-0.csv"), std::fs::read(test).unwrap()));
    for name in ["README.md", "data/a.txt", "data/image_pixels/b.txt", "data/image_pixels/sub/c.txt"] {
        files.push((name.to_owned(), b"words".to_vec()));
    }
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    lab.server.publish(REPO, "main", &files)
}

/// Writes a pipeline that computes the features of some shards.
fn config(lab: &Lab, run: &str, shards: &str) -> String {
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = [{shards}]\n[chunks]\nrows = 50\n[model]\ncheckpoint = '{}'\n",
        lab.run_dir(run).display(),
        model().display()
    );
    let path = lab.dir.path().join(format!("{run}.toml"));
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn program(lab: &Lab) -> Command {
    let mut command = lab.program();
    command.env("HF_TOKEN", TOKEN);
    command
}

fn run(lab: &Lab, name: &str, shards: &str) -> Output {
    program(lab).args(["run", &config(lab, name, shards)]).output().unwrap()
}

fn succeeds(lab: &Lab, name: &str, shards: &str) {
    let out = run(lab, name, shards);
    assert!(out.status.success(), "{}", stderr_of(&out));
}

/// Runs a command that must fail; returns exit code and standard error.
fn fails(lab: &Lab, name: &str, shards: &str) -> (i32, String) {
    let out = run(lab, name, shards);
    assert!(!out.status.success() && !stderr_of(&out).contains("panicked"), "{}", stderr_of(&out));
    (out.status.code().unwrap(), stderr_of(&out))
}

/// Runs over the local files, with or without the small one, and returns what the run leaves behind.
fn local(lab: &Lab, with_small: bool) -> std::collections::BTreeMap<String, Vec<u8>> {
    let folder = lab.dir.path().join("files");
    std::fs::create_dir(&folder).unwrap();
    for part in 0..2 {
        let name = format!("train_image_pixels_part-{part:05}.csv.gz");
        std::fs::copy(shards().join(&name), folder.join(&name)).unwrap();
    }
    let test = corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv");
    std::fs::copy(test, folder.join("test-0.csv")).unwrap();
    let folder = folder.display();
    let small = if with_small { format!(", '{folder}/test-0.csv'") } else { String::new() };
    succeeds(lab, "local", &format!("'{folder}/train_image_pixels_part-{{00000..00001}}.csv.gz'{small}"));
    artefacts(&lab.run_dir("local"))
}

/// Checks that the hub gets the token and no other host gets any secret.
fn assert_no_secret_elsewhere(seen: &[Seen], authorization: &str) {
    assert!(seen.iter().any(|seen| seen.port == "cdn"), "nothing was redirected");
    for request in seen {
        match request.port {
            "hub" => assert_eq!(request.authorization.as_deref(), Some(authorization), "{request:?}"),
            _ => assert!(request.authorization.is_none() && request.referer.is_none(), "{request:?}"),
        }
    }
}

#[test]
fn dataset_streams_to_the_same_features_and_nothing_is_stored() {
    let lab = Lab::new();
    let commit = publish(&lab);
    let expected = local(&lab, true);
    let names = |revision: &str| {
        let root = format!("hf://{REPO}{revision}/{FOLDER}");
        format!("'{root}/train_*_part-*.csv.gz', '{root}/test-0.csv'")
    };
    lab.server.seen();
    succeeds(&lab, "streamed", &names(""));
    let seen = lab.server.seen();
    let features = |artefacts: &std::collections::BTreeMap<String, Vec<u8>>| {
        let mut artefacts = artefacts.clone();
        artefacts.retain(|name, _| name.starts_with("features"));
        assert!(!artefacts.is_empty());
        artefacts
    };
    assert_eq!(differences(&features(&expected), &features(&artefacts(&lab.run_dir("streamed")))), [""; 0]);
    assert_no_secret_elsewhere(&seen, &format!("Bearer {TOKEN}"));
    let count = |port: &str| seen.iter().filter(|seen| seen.port == port && seen.line.contains("train_")).count();
    assert!(count("hub") < count("cdn"), "a signed URL is used once: {seen:?}");
    assert!(!lab.home().join("hub").exists(), "files were stored");

    // The same commit by name, on a bad network.
    lab.server.fail(Faults { unavailable: 1, resets: 2, signature_expired: 2, ..Faults::default() });
    succeeds(&lab, "faulty", &names(&format!("@{commit}")));
    assert_eq!(differences(&features(&expected), &features(&artefacts(&lab.run_dir("faulty")))), [""; 0]);
    assert_no_secret_elsewhere(&lab.server.seen(), &format!("Bearer {TOKEN}"));
}

#[test]
fn moved_branch_is_refused_on_resume() {
    let lab = Lab::new();
    publish(&lab);
    let names = format!("'hf://{REPO}/{FOLDER}/test-*.csv'");
    succeeds(&lab, "run", &names);
    let other = corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00001.csv");
    let name = format!("{FOLDER}/test-0.csv");
    lab.server.publish(REPO, "main", &[(name.as_str(), std::fs::read(other).unwrap())]);
    let (code, text) = fails(&lab, "run", &names);
    assert!(code != 0 && text.contains("images.shards"), "{text}");
}

#[test]
fn failures_name_the_dataset_and_the_remedy() {
    let lab = Lab::new();
    publish(&lab);
    let file = format!("{FOLDER}/train_image_pixels_part-00000.csv.gz");
    for (name, code, parts) in [
        ("hf://datasets/lab/nothing/*.csv".to_owned(), 3, &["hf://datasets/lab/nothing", "HF_TOKEN"][..]),
        (format!("hf://{REPO}@v9/{FOLDER}/*.csv"), 3, &["no such revision"]),
        (format!("hf://{REPO}/nowhere/*.csv"), 3, &["nowhere", "does not exist"]),
        (format!("hf://{REPO}/{FOLDER}/none-*.csv"), 3, &["none-*.csv", "matches no file"]),
        (format!("hf://{REPO}/{FOLDER}/part-{{0..2}}.gz"), 3, &["part-0.gz", "does not exist"]),
        ("hf://lab/shapes/x.csv".to_owned(), 4, &["hf://datasets/ORG/NAME/PATH"]),
    ] {
        let (found, text) = fails(&lab, "wrong", &format!("'{name}'"));
        assert_eq!(found, code, "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    lab.server.fail(Faults { refuses: Some((403, "GatedRepo")), ..Faults::default() });
    let (code, text) = fails(&lab, "wrong", &format!("'hf://{REPO}/{file}'"));
    assert!(code == 4 && text.contains("accept its terms"), "{text}");
    lab.server.fail(Faults { longer_by: -10, ..Faults::default() });
    let (code, text) = fails(&lab, "wrong", &format!("'hf://{REPO}/{file}'"));
    assert!(code == 3 && text.contains(&file), "{text}");
}

#[test]
fn init_finds_the_files_of_a_dataset() {
    let lab = Lab::new();
    publish(&lab);
    let root = format!("hf://{REPO}");
    let init =
        program(&lab).current_dir(lab.dir.path()).args(["init", &root, "--model"]).arg(model()).output().unwrap();
    assert!(init.status.success(), "{}", stderr_of(&init));
    let file = std::fs::read_to_string(lab.dir.path().join("pipeline.toml")).unwrap();
    assert!(file.contains(&format!("{root}/{FOLDER}/train_image_pixels_part-*.csv.gz")), "{file}");
    let check = program(&lab).current_dir(lab.dir.path()).args(["check", "pipeline.toml"]).output().unwrap();
    assert!(check.status.success(), "{file}\n{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn offline_mode_reads_the_cache_and_sends_no_request() {
    let lab = Lab::new();
    let commit = publish(&lab);
    let names = format!("'hf://{REPO}/{FOLDER}/test-*.csv'");
    let offline = || {
        lab.server.seen();
        let out =
            program(&lab).env("HF_HUB_OFFLINE", "1").args(["run", &config(&lab, "run", &names)]).output().unwrap();
        assert_eq!(lab.server.seen(), []);
        out
    };
    let out = offline();
    let text = stderr_of(&out);
    assert!(!out.status.success() && text.contains("HF_HUB_OFFLINE") && text.contains("lab/shapes"), "{text}");
    // The layout that `huggingface_hub` makes.
    let repo = lab.home().join("hub/datasets--lab--shapes");
    let folder = repo.join("snapshots").join(&commit).join(FOLDER);
    for folder in [&folder, &repo.join("blobs"), &repo.join("refs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(repo.join("refs/main"), &commit).unwrap();
    let test = corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv");
    std::fs::copy(test, repo.join("blobs/e1")).unwrap();
    std::os::unix::fs::symlink("../../../../blobs/e1", folder.join("test-0.csv")).unwrap();
    let out = offline();
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert!(
        stderr_of(&out).contains("only the files of the data set that are in the cache are read"),
        "{}",
        stderr_of(&out)
    );
}

#[test]
fn web_files_are_named_by_ranges_or_lists_and_redirects_get_no_credentials() {
    let lab = Lab::new();
    publish(&lab);
    // The fingerprint of a file on a server without ranges is another one, so the small file is left out.
    let expected = local(&lab, false);
    let host = lab.server.endpoint.strip_prefix("http://").unwrap();
    let root = format!("http://{host}/{REPO}/resolve/main/{FOLDER}");
    lab.server.seen();
    let range = format!("'{root}/train_image_pixels_part-{{00000..00001}}.csv.gz?key=secret'");
    succeeds(&lab, "range", &range);
    for request in lab.server.seen() {
        assert!(request.authorization.is_none() && request.referer.is_none(), "{request:?}");
    }
    let list = lab.dir.path().join("files.txt");
    let lines = format!("# train\n{root}/train_image_pixels_part-{{00000..00001}}.csv.gz\n\n");
    std::fs::write(&list, lines).unwrap();
    succeeds(&lab, "list", &format!("'@{}'", list.display()));
    for run in ["range", "list"] {
        let mut found = artefacts(&lab.run_dir(run));
        let mut expected = expected.clone();
        for artefacts in [&mut found, &mut expected] {
            artefacts.retain(|name, _| name.starts_with("features"));
        }
        assert_eq!(differences(&expected, &found), [""; 0], "{run}");
    }
    let (code, text) = fails(&lab, "password", &format!("'http://me:secret@{host}/a.csv'"));
    assert!(code == 4 && text.contains("password in a URL") && !text.contains("secret"), "{text}");
    let (code, text) = fails(&lab, "star", &format!("'{root}/train_*.csv.gz'"));
    assert!(code == 2 && text.contains("{00..99}") && text.contains("@files.txt"), "{text}");
}

#[test]
fn ready_pipeline_for_the_corpus_runs() {
    let lab = Lab::new();
    let out = lab.dir.path().join("corpus");
    let size = ["--train-images", "60", "--test-images", "1"];
    let made = lab.program().args(["sample", "--format", "parquet", "--out"]).arg(&out).args(size).output().unwrap();
    assert!(made.status.success(), "{}", stderr_of(&made));
    let mut parts: Vec<PathBuf> =
        std::fs::read_dir(out.join("data/image_data_train")).unwrap().map(|entry| entry.unwrap().path()).collect();
    parts.sort();
    let files: Vec<(String, Vec<u8>)> = parts
        .iter()
        .enumerate()
        .map(|(part, path)| (format!("data/train-{part:05}-of-00330.parquet"), std::fs::read(path).unwrap()))
        .collect();
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    let commit = lab.server.publish("datasets/wikimedia/wit_base", "main", &files);

    let ready = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/wit_base.toml");
    let mut text = std::fs::read_to_string(ready).unwrap();
    let encoder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/mini");
    for (from, to) in [
        ("c73b61df5d052752895099695914a7e2ac16b6c2", commit.as_str()),
        ("\"runs/wit_base\"", &format!("\"{}\"", lab.run_dir("ready").display())),
        ("hf:facebook/dinov2-small", &model().display().to_string()),
        ("pool = \"cls+mean\"", "pool = \"cls\""),
        ("hf:intfloat/multilingual-e5-small", &encoder.display().to_string()),
        ("batch_size = 4096", "batch_size = 32"),
        ("validation_fraction = 0.005", "validation_fraction = 0.1"),
    ] {
        assert!(text.contains(from), "`{from}` is not in the pipeline");
        text = text.replace(from, to);
    }
    let config = lab.dir.path().join("ready.toml");
    std::fs::write(&config, text).unwrap();
    for command in ["check", "run"] {
        let out = program(&lab).arg(command).arg(&config).output().unwrap();
        assert!(out.status.success(), "{command}: {}{}", String::from_utf8_lossy(&out.stdout), stderr_of(&out));
    }
    let report = std::fs::read(lab.run_dir("ready").join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert!(report["images"]["tally"]["kept"].as_u64() > Some(50), "{report}");
    assert!(report["training"]["validation"]["ndcg5"].as_f64() > Some(0.0), "{report}");
    assert!(!lab.home().join("hub/datasets--wikimedia--wit_base").exists(), "files were stored");
}
