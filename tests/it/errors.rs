//! What goes wrong is said in one sentence, with the file, row or key, and an exit code.

use std::io::Write as _;
use std::path::Path;

use crate::support::{complaint, corpus, pipeline, run, write};

/// Runs a pipeline that must fail; returns its exit code and complaint.
fn fails(dir: &Path, text: &str) -> (i32, String) {
    let out = run(&["run", "--config", &write(dir, text)]);
    let text = complaint(&out);
    assert!(!text.contains("panicked"), "{text}");
    (out.status.code().unwrap(), text)
}

#[test]
fn a_wrong_configuration_lists_every_problem_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let (code, text) = fails(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 3\nmomentun = 1")]));
    assert_eq!(code, 2);
    assert!(text.contains("`train.momentun`: unknown key, did you mean `train.momentum`?"), "{text}");
    let (code, text) =
        fails(dir.path(), &pipeline(&run_dir, &[("epochs = 12", "epochs = 0"), ("rows = 50", "rows = 0")]));
    assert_eq!(code, 2);
    assert!(text.contains("`train.epochs`") && text.contains("`chunks.rows`"), "{text}");
    assert!(!run_dir.exists());
    assert_eq!(run(&["run", "--config", "no-such-file.toml"]).status.code(), Some(2));
    assert_eq!(run(&["evaluate"]).status.code(), Some(2));
}

#[test]
fn a_size_that_the_patch_does_not_divide_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = pipeline(&dir.path().join("run"), &[("[chunks]", "[preprocess]\nsize_px = 65\n[chunks]")]);
    let (code, text) = fails(dir.path(), &text);
    assert_eq!(code, 2);
    assert!(text.contains("`preprocess.size_px`: `65` is no multiple of the checkpoint's patch"), "{text}");
}

#[test]
fn inputs_that_are_not_there_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to, word) in [
        ("data/train-*-of-00005.tsv", "data/none-*.tsv", "none-*.tsv` matches no file"),
        ("data/test.tsv", "data/absent.tsv", "absent.tsv` does not exist"),
        ("data/test_caption_list.csv", "data/absent.csv", "absent.csv` does not exist"),
    ] {
        let (code, text) =
            fails(dir.path(), &pipeline(&dir.path().join(word.replace(['`', '*', ' '], "_")), &[(from, to)]));
        assert_eq!(code, 3, "{text}");
        assert!(text.contains(word), "{text}");
    }
    let (code, text) = fails(dir.path(), &pipeline(&dir.path().join("r"), &[("models/vit-tiny", "models/none")]));
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("models/none"), "{text}");
}

#[test]
fn a_truncated_shard_stops_the_run_and_a_whole_one_lets_it_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let shards = dir.path().join("shards");
    std::fs::create_dir(&shards).unwrap();
    let source = corpus().join("data/image_data_train/image_pixels");
    let whole = std::fs::read(source.join("train_image_pixels_part-00001.csv.gz")).unwrap();
    let shard = shards.join("part.csv.gz");
    std::fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/*.gz']\n[preprocess]\nsize_px = 32\n[chunks]\nrows = 20\n",
        dir.path().join("run").display(),
        shards.display()
    );
    let (code, complaint) = fails(dir.path(), &text);
    assert_eq!(code, 3);
    assert!(complaint.contains("part.csv.gz` ends in the middle of its compressed data"), "{complaint}");
    // Another file is another generation; the run says so instead of mixing them.
    std::fs::write(&shard, &whole).unwrap();
    let (code, complaint) = fails(dir.path(), &text);
    assert_eq!(code, 2);
    assert!(complaint.contains("images.shards (files)") && complaint.contains("--from stream"), "{complaint}");
    let out = run(&["run", "--from", "stream", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success());
}

#[test]
fn a_shard_of_rubbish_stops_the_run_with_the_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("rubbish.csv");
    let mut file = std::fs::File::create(&shard).unwrap();
    for row in 0..1500 {
        writeln!(file, "https://x/{row}.jpg\tPHN2Zz48L3N2Zz4=\t").unwrap();
    }
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}']\n[chunks]\nrows = 100\n",
        dir.path().join("run").display(),
        shard.display()
    );
    let (code, complaint) = fails(dir.path(), &text);
    assert_eq!(code, 3);
    assert!(complaint.contains("unsupported_svg") && complaint.contains("limits.max_bad_fraction"), "{complaint}");
}

#[test]
fn a_directory_that_is_no_run_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    std::fs::create_dir(&run_dir).unwrap();
    std::fs::write(run_dir.join("thesis.tex"), "years of work").unwrap();
    for extra in [&["--fresh"][..], &[]] {
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        let out = run(&[&["run", "--config", &config], extra].concat());
        assert_eq!(out.status.code(), Some(2));
        assert!(complaint(&out).contains("thesis.tex"), "{}", complaint(&out));
    }
    assert_eq!(std::fs::read_dir(&run_dir).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "lock").count(), 1);
}

#[test]
fn hostile_rows_are_quarantined_once_and_never_stop_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("hostile.csv");
    let good = {
        // One usable image of the drawn corpus.
        let text =
            std::fs::read(corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv")).unwrap();
        let end = text.iter().position(|byte| *byte == b'\n').unwrap();
        let fields: Vec<Vec<u8>> = text[..end].split(|byte| *byte == b'\t').map(<[u8]>::to_vec).collect();
        fields[1].clone()
    };
    let mut bytes: Vec<u8> = Vec::new();
    let mut row = |url: &[u8], data: &[u8], tail: &[u8]| {
        bytes.extend([url, b"\t", data, tail].concat());
    };
    row(b"https://x/good", &good, b"\tm\n");
    row(b"https://x/good", &good, b"\tm\r\n"); // a duplicate, and another line end
    row(b"\xff\xfe", &good, b"\tm\n");
    row(b"", &good, b"\tm\n");
    row(b"https://x/empty", b"", b"\tm\n");
    row(b"https://x/b64", b"@@@@", b"\tm\n");
    row(b"https://x/html", b"PCFET0NUWVBFIGh0bWw+", b"\tm\n");
    row(b"https://x/cut", &good[..good.len() / 2 / 4 * 4], b"\tm\n");
    row(b"https://x/wide", &good, b"\tm\tn\to\n");
    row(b"\"https://x/quo\"\"ted\n\"", &good, b"\t\"m\tm\"\n"); // quoted: a quote and a newline in the URL
    row(b"https://x/last", &good, b"\tm"); // no line end
    std::fs::write(&shard, bytes).unwrap();
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}']\n[preprocess]\nsize_px = 32\n",
        dir.path().join("run").display(),
        shard.display()
    );
    let out = run(&["run", "--json", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", complaint(&out));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let tally = &report["images"]["tally"];
    assert_eq!((tally["rows"].as_u64(), tally["kept"].as_u64()), (Some(11), Some(3)), "{tally}");
    assert_eq!(tally["skipped"]["duplicate_url"], 1);
    for reason in [
        "invalid_utf8",
        "missing_url",
        "missing_data",
        "invalid_base64",
        "unsupported_html",
        "truncated",
        "wrong_field_count",
    ] {
        assert_eq!(tally["quarantined"][reason], 1, "{reason}: {tally}");
    }
}

#[test]
fn a_refused_start_over_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let whole = pipeline(&run_dir, &[("epochs = 12", "epochs = 1")]);
    assert!(run(&["run", "--config", &write(dir.path(), &whole)]).status.success());
    let before = crate::support::artefacts(&run_dir);
    for (from, to, args, code) in [
        ("models/vit-tiny", "models/none", &["--from", "stream"][..], 5),
        ("part", "part", &["--from", "predict"], 2),
        ("data/train-*-of", "data/none-*-of", &["--fresh"], 3),
        ("data/test.tsv", "data/none.tsv", &["--from", "train"], 3),
        ("[predict]", "[predict]\ntop_k = 900", &["--from", "predict"], 2),
    ] {
        // A changed key of an earlier stage is refused however late the stage to recompute is.
        let edits = if from == "part" { [("learning_rate = 0.2", "learning_rate = 0.3")] } else { [(from, to)] };
        let text = pipeline(&run_dir, &[&[("epochs = 12", "epochs = 1")][..], &edits].concat());
        let out = run(&[&["run", "--config", &write(dir.path(), &text)], args].concat());
        assert_eq!(out.status.code(), Some(code), "{}", complaint(&out));
        assert_eq!(
            crate::support::differences(&before, &crate::support::artefacts(&run_dir)),
            Vec::<String>::new(),
            "{args:?}: {}",
            complaint(&out)
        );
    }
}

#[test]
fn what_prediction_needs_is_looked_at_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to, code) in [
        ("data/test.tsv", "data/none.tsv", 3),
        ("data/truth.csv", "models/vit-tiny/model.safetensors", 3),
        ("image_data_test/image_pixels/*", "image_data_test/none/*", 3),
        ("[predict]", "[predict]\ntop_k = 900", 2),
    ] {
        let run_dir = dir.path().join("run");
        let (found, complaint) = fails(dir.path(), &pipeline(&run_dir, &[(from, to)]));
        assert_eq!(found, code, "{complaint}");
        assert!(!run_dir.join("features").exists() && !run_dir.join("checkpoints").exists(), "{to}");
    }
}

#[test]
fn a_path_may_climb_and_a_directory_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let climbing = "data/../data/image_data_train/../image_data_train/image_pixels/*.csv.gz";
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/{climbing}']\n[preprocess]\nsize_px = 16\n",
        dir.path().join("run").display(),
        corpus().display()
    );
    let out = run(&["run", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", complaint(&out));
    let (code, complaint) = fails(dir.path(), &text.replace(climbing, "data"));
    assert_eq!(code, 2);
    assert!(complaint.contains("it is a directory"), "{complaint}");
}

#[test]
fn urls_that_differ_in_white_space_are_two() {
    let dir = tempfile::tempdir().unwrap();
    let source =
        std::fs::read(corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv")).unwrap();
    let data = source.split(|byte| *byte == b'\t').nth(1).unwrap();
    let shard = dir.path().join("shard.csv");
    std::fs::write(&shard, [b"http://w \t\tm\nhttp://w\t", data, b"\tm\n"].concat()).unwrap();
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}']\n[preprocess]\nsize_px = 16\n",
        dir.path().join("run").display(),
        shard.display()
    );
    let out = run(&["run", "--json", "--config", &write(dir.path(), &text)]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["images"]["tally"]["kept"], 1, "{}", report["images"]["tally"]);
}
