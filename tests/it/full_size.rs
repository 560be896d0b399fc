//! Behaviour at the size of the real corpus: impossible needs are refused first, and finished work is not repeated.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::resource_limits::{machine, watched};
use crate::support::{artefacts, corpus, differences, pipeline, run, stderr_of, write};

/// Runs the program with a limit of address space, in KiB.
fn run_within(kib: u64, args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -v {kib} && exec \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_wikicap-pipeline"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap()
}

/// Writes the caption list of the shared corpus with `more` captions that nothing uses.
fn longer_list(dir: &Path, more: usize) -> PathBuf {
    let mut list = std::fs::read_to_string(corpus().join("data/test_caption_list.csv")).unwrap();
    (0..more).for_each(|number| list.push_str(&format!("Unused caption {number}\n")));
    let path = dir.join("captions.csv");
    std::fs::write(&path, list).unwrap();
    path
}

#[test]
fn heads_that_exceed_memory_are_refused_before_any_image() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let list = longer_list(dir.path(), 150_000);
    let rates: Vec<String> = (1..=64).map(|rate| format!("0.{rate:03}")).collect();
    let rates = format!("learning_rate = [{}]\n", rates.join(", "));
    let old_list = format!("{}/data/test_caption_list.csv", corpus().display());
    let edits = [("learning_rate = 0.2\n", rates.as_str()), (old_list.as_str(), list.to_str().unwrap())];
    let config = write(dir.path(), &pipeline(&run_dir, &edits));
    for command in ["check", "run"] {
        let out = run_within(4_000_000, &[command, "--config", &config]);
        let text = stderr_of(&out) + &String::from_utf8_lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(2), "{command}: {text}");
        for part in [
            "head.kind",
            "64 heads of kind `classes` over 150,",
            "more than the 3.8 GiB of limit of `ulimit -v`",
            "text head",
        ] {
            assert!(text.contains(part), "`{part}` is not in the output of {command}: {text}");
        }
    }
    assert!(run_dir.join("catalog/classes.parquet").exists(), "the catalog is kept");
    assert!(!run_dir.join("features").exists() && !run_dir.join("journal/features").exists());
}

#[test]
fn check_estimates_training_captions_from_their_first_rows() {
    let dir = tempfile::tempdir().unwrap();
    // 40 MB of pairs, of which 8 MiB are read. Each row has its own caption.
    let mut rows = String::from("language\timage_url\tcaption_title_and_reference_description\n");
    for row in 0..400_000 {
        rows.push_str(&format!(
            "en\thttps://x/{row}.jpg\tA caption of its own, number {row}, with more words that make the row longer\n"
        ));
    }
    let pairs = dir.path().join("pairs.tsv");
    std::fs::write(&pairs, rows).unwrap();
    let list = format!("list = \"{}/data/test_caption_list.csv\"", corpus().display());
    let shards = format!("{}/data/train-*-of-00005.tsv", corpus().display());
    let rates: Vec<String> = (1..=64).map(|rate| format!("0.{rate:03}")).collect();
    let rates = format!("learning_rate = [{}]\n", rates.join(", "));
    let edits = |rates| {
        [
            (list.as_str(), "classes = \"train\""),
            (shards.as_str(), pairs.to_str().unwrap()),
            ("learning_rate = 0.2\n", rates),
        ]
    };
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &edits(&rates)));
    let out = run_within(4_000_000, &["check", "--config", &config]);
    let text = stderr_of(&out) + &String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert!(text.contains("about 4") && text.contains("estimated from their first rows"), "{text}");
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &edits("learning_rate = 0.2\n")));
    let out = run_within(4_000_000, &["check", "--config", &config]);
    assert_eq!(out.status.code(), Some(0), "one head fits: {}", stderr_of(&out));
}

#[test]
fn class_texts_leave_memory_once_the_catalog_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let word = "a caption of many words ".repeat(40);
    let mut rows = String::from("language\timage_url\tcaption_title_and_reference_description\n");
    for row in 0..60_000 {
        rows.push_str(&format!("en\thttps://x/{row}.jpg\t{row} {word}\n"));
    }
    let text_bytes = (60_000 * word.len()) as u64;
    std::fs::write(dir.path().join("pairs.tsv"), rows).unwrap();
    let text = format!(
        "[run]\ndir = '{0}/run'\n[captions]\nclasses = 'train'\n[pairs]\nshards = ['{0}/pairs.tsv']\n",
        dir.path().display()
    );
    let (config, machine) = (write(dir.path(), &text), machine(dir.path(), "memory = '640 MiB'"));
    let args = ["run", "--config", &config, "--machine", &machine];
    let (built, loaded) = (watched(&args, dir.path()).resident_bytes, watched(&args, dir.path()).resident_bytes);
    assert!(built > text_bytes, "{built} bytes with {text_bytes} bytes of text");
    assert!(loaded + text_bytes * 8 / 10 < built, "{loaded} bytes instead of {built}, with {text_bytes} bytes of text");
}

/// Returns the events of the newest process that mention a stage.
fn newest_stages(run_dir: &Path) -> Vec<String> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(run_dir.join("events")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    let text = std::fs::read_to_string(files.last().unwrap()).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter_map(|event| event["stage"].as_str().map(ToOwned::to_owned)).collect()
}

fn report(run_dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap()
}

fn succeeds(args: &[&str]) {
    let out = run(args);
    assert!(out.status.success(), "{}", stderr_of(&out));
}

#[test]
fn finished_run_trains_and_ranks_no_second_time() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let truth = dir.path().join("truth.csv");
    let old_truth = format!("{}/data/truth.csv", corpus().display());
    std::fs::copy(&old_truth, &truth).unwrap();
    let config = write(dir.path(), &pipeline(&run_dir, &[(old_truth.as_str(), truth.to_str().unwrap())]));
    succeeds(&["run", "--config", &config]);
    let (first, made) = (report(&run_dir), artefacts(&run_dir));
    assert!(newest_stages(&run_dir).iter().any(|stage| stage == "rank"));

    succeeds(&["run", "--config", &config]);
    let stages = newest_stages(&run_dir);
    assert!(!stages.iter().any(|stage| stage == "rank" || stage == "train" || stage == "test images"), "{stages:?}");
    let again = report(&run_dir);
    assert_eq!(
        (&again["prediction"], &again["training"]["steps"]),
        (&first["prediction"], &first["training"]["steps"])
    );
    assert_eq!(differences(&made, &artefacts(&run_dir)), Vec::<String>::new());

    // Fewer right captions: the features stay, but the scores are others.
    let rows = std::fs::read_to_string(&truth).unwrap();
    let half: Vec<&str> = rows.lines().take(rows.lines().count() / 2).collect();
    std::fs::write(&truth, half.join("\n")).unwrap();
    succeeds(&["run", "--config", &config]);
    let stages = newest_stages(&run_dir);
    assert!(stages.iter().any(|stage| stage == "rank") && !stages.iter().any(|stage| stage == "train"), "{stages:?}");
    assert_ne!(report(&run_dir)["prediction"]["scores"]["ids"], first["prediction"]["scores"]["ids"]);

    std::fs::write(&truth, &rows).unwrap();
    std::fs::remove_file(run_dir.join("submission.csv")).unwrap();
    succeeds(&["run", "--config", &config]);
    assert!(newest_stages(&run_dir).iter().any(|stage| stage == "rank"), "the submission is gone");
    succeeds(&["run", "--config", &config, "--from", "train"]);
    let stages = newest_stages(&run_dir);
    assert!(stages.iter().any(|stage| stage == "rank") && stages.iter().any(|stage| stage == "train"), "{stages:?}");
    assert_eq!(differences(&made, &artefacts(&run_dir)), Vec::<String>::new());
}
