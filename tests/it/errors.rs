//! Errors: one sentence that names the file, row or key, and an exit code.

use std::io::Write as _;
use std::path::Path;

use crate::support::{corpus, pipeline, run, stderr_of, write};

/// Runs a pipeline that must fail; returns its exit code and standard error.
fn fails(dir: &Path, text: &str) -> (i32, String) {
    let out = run(&["run", "--config", &write(dir, text)]);
    let text = stderr_of(&out);
    assert!(!text.contains("panicked"), "{text}");
    (out.status.code().unwrap(), text)
}

#[test]
fn wrong_config_lists_every_problem_and_writes_nothing() {
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
fn size_not_divisible_by_patch_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = pipeline(&dir.path().join("run"), &[("[chunks]", "[preprocess]\nsize_px = 65\n[chunks]")]);
    let (code, text) = fails(dir.path(), &text);
    assert_eq!(code, 2);
    assert!(text.contains("`preprocess.size_px`: `65` is not a multiple of the checkpoint's patch"), "{text}");
}

#[test]
fn missing_inputs_are_named() {
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
fn truncated_shard_stops_run_until_replaced() {
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
    let (code, stderr_of) = fails(dir.path(), &text);
    assert_eq!(code, 3);
    assert!(stderr_of.contains("part.csv.gz` ends in the middle of its compressed data"), "{stderr_of}");
    // A replaced file changes the fingerprint: the run refuses to mix the two.
    std::fs::write(&shard, &whole).unwrap();
    let (code, stderr_of) = fails(dir.path(), &text);
    assert_eq!(code, 2);
    assert!(stderr_of.contains("images.shards (files)") && stderr_of.contains("--from stream"), "{stderr_of}");
    let out = run(&["run", "--from", "stream", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success());
}

/// Packs bytes with gzip.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn shard_in_another_format_is_named_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let row = &b"https://x/1.jpg\t/9j/4AAQ\t\n"[..];
    let pairs = format!("{}/data/train-*-of-00005.tsv", corpus().display());
    for (name, bytes, message) in [
        ("rows.zip", b"PK\x03\x04\x14\0\0\0".to_vec(), "is a ZIP archive, not text: unpack it with `unzip`"),
        ("rows.bz2", b"BZh91AY&SY".to_vec(), "is a bzip2 file, not text: decompress it with `bunzip2`"),
        ("rows.xz", b"\xfd7zXZ\0\0\x04".to_vec(), "is an xz file, not text: decompress it with `unxz`"),
        ("rows.tsv.gz", gzip(&gzip(row)), "is a gzip file inside a gzip file, not text: decompress it once"),
        ("rows.html", b"<!doctype html><html>".to_vec(), "is an HTML page, not text: download the file again"),
    ] {
        let shard = dir.path().join(name);
        std::fs::write(&shard, bytes).unwrap();
        let sections = [
            format!("[images]\nshards = ['{}']\n", shard.display()),
            pipeline(&dir.path().join("run"), &[(&pairs, &shard.display().to_string())]),
        ];
        for (section, command) in sections.iter().zip(["run", "check"]) {
            let run_dir = format!("[run]\ndir = '{}'\n", dir.path().join(format!("{name}.run")).display());
            let text = if command == "run" { run_dir + section } else { section.clone() };
            let out = run(&[command, &write(dir.path(), &text)]);
            let shown = format!("{}{}", String::from_utf8_lossy(&out.stdout), stderr_of(&out));
            assert_eq!(out.status.code(), Some(3), "{name}: {shown}");
            assert!(shown.contains(&format!("{name}` {message}")), "{name}: {shown}");
        }
    }
}

#[test]
fn unusable_shard_stops_run_with_reasons() {
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
    let (code, stderr_of) = fails(dir.path(), &text);
    assert_eq!(code, 3);
    assert!(stderr_of.contains("unsupported_svg") && stderr_of.contains("limits.max_bad_fraction"), "{stderr_of}");
}

#[test]
fn foreign_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    std::fs::create_dir(&run_dir).unwrap();
    std::fs::write(run_dir.join("thesis.tex"), "years of work").unwrap();
    for extra in [&["--fresh"][..], &[]] {
        let config = write(dir.path(), &pipeline(&run_dir, &[]));
        let out = run(&[&["run", "--config", &config], extra].concat());
        assert_eq!(out.status.code(), Some(2));
        assert!(stderr_of(&out).contains("thesis.tex"), "{}", stderr_of(&out));
    }
    assert_eq!(std::fs::read_dir(&run_dir).unwrap().count(), 1);
}

#[test]
fn malformed_rows_are_quarantined_once() {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("malformed.csv");
    let good = {
        // One usable image of the synthetic corpus.
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
    assert!(out.status.success(), "{}", stderr_of(&out));
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
fn refused_restart_removes_nothing() {
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
        // A changed key of an earlier stage is refused, however late the stage to recompute is.
        let edits = if from == "part" { [("learning_rate = 0.2", "learning_rate = 0.3")] } else { [(from, to)] };
        let text = pipeline(&run_dir, &[&[("epochs = 12", "epochs = 1")][..], &edits].concat());
        let out = run(&[&["run", "--config", &write(dir.path(), &text)], args].concat());
        assert_eq!(out.status.code(), Some(code), "{}", stderr_of(&out));
        assert_eq!(
            crate::support::differences(&before, &crate::support::artefacts(&run_dir)),
            Vec::<String>::new(),
            "{args:?}: {}",
            stderr_of(&out)
        );
    }
}

#[test]
fn prediction_inputs_are_checked_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    for (from, to, code) in [
        ("data/test.tsv", "data/none.tsv", 3),
        ("data/truth.csv", "models/vit-tiny/model.safetensors", 3),
        ("image_data_test/image_pixels/*", "image_data_test/none/*", 3),
        ("[predict]", "[predict]\ntop_k = 900", 2),
    ] {
        let run_dir = dir.path().join("run");
        let (found, stderr_of) = fails(dir.path(), &pipeline(&run_dir, &[(from, to)]));
        assert_eq!(found, code, "{stderr_of}");
        assert!(!run_dir.join("features").exists() && !run_dir.join("checkpoints").exists(), "{to}");
    }
}

#[test]
fn parent_paths_work_and_folders_without_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let climbing = "data/../data/image_data_train/../image_data_train/image_pixels/*.csv.gz";
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/{climbing}']\n[preprocess]\nsize_px = 16\n",
        dir.path().join("run").display(),
        corpus().display()
    );
    let out = run(&["run", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    // A folder is a folder of image files or of shards: another input than the files that the run was made from.
    let (code, stderr_of) = fails(dir.path(), &text.replace(climbing, "data/image_data_test"));
    assert_eq!(code, 2, "{stderr_of}");
    assert!(stderr_of.contains("images.shards (files)"), "{stderr_of}");
    let shards = corpus().join(climbing).display().to_string();
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let name = format!("`{}/`", folder.display());
    let text = text.replace(&shards, folder.to_str().unwrap()).replace("/run'", "/other'");
    let (code, stderr_of) = fails(dir.path(), &text);
    assert_eq!(code, 3, "{stderr_of}");
    assert!(stderr_of.contains(&format!("{name} matches no file")), "{stderr_of}");
    std::fs::write(folder.join("notes.txt"), "no image").unwrap();
    let (code, stderr_of) = fails(dir.path(), &text.replace("[images]", "[images]\nformat = 'folder'"));
    assert_eq!(code, 3, "{stderr_of}");
    assert!(stderr_of.contains(&format!("{name} holds no image file")), "{stderr_of}");
}

#[test]
fn urls_differing_in_white_space_are_distinct() {
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

#[test]
fn check_prints_problems_to_standard_output_only() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &[("data/test.tsv", "data/absent.tsv")]));
    let out = run(&["check", &config]);
    assert_eq!((out.status.code(), stderr_of(&out)), (Some(3), String::new()));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("1 problem:") && text.contains("absent.tsv` does not exist"), "{text}");
    // The estimates do not need a sound list of ids.
    assert!(text.contains("Estimates, from the first rows") && text.contains("disk for features"), "{text}");
    let config = write(dir.path(), "[run]\ndir = 'r'\n[images]\n");
    let out = run(&["check", &config]);
    assert_eq!((out.status.code(), stderr_of(&out)), (Some(2), String::new()));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("1 problem:") && text.contains("`images.shards`"), "{text}");
}

#[test]
fn name_of_a_hub_checkpoint_without_prefix_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = format!("{}/models/vit-tiny", corpus().display());
    let text = pipeline(&dir.path().join("run"), &[(&checkpoint, "google/vit-base-patch16-224-in21k")]);
    let (code, text) = fails(dir.path(), &text);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("write `hf:google/vit-base-patch16-224-in21k`"), "{text}");
}

#[test]
fn control_characters_of_data_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("\u{1b}[31mred");
    for args in [&["inspect"][..], &["--json", "inspect"], &["run"]] {
        let out = run(&[args, &[path.to_str().unwrap()]].concat());
        assert!(!out.status.success() && stderr_of(&out).contains("\\x1b[31mred"), "{}", stderr_of(&out));
        assert!(!stderr_of(&out).contains('\u{1b}'));
    }
}

#[test]
fn quiet_run_prints_its_summary_only() {
    let dir = tempfile::tempdir().unwrap();
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), &[("epochs = 12", "epochs = 1")]));
    let out = run(&["run", &config, "--quiet"]);
    assert_eq!((out.status.code(), stderr_of(&out)), (Some(0), String::new()));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.starts_with("NDCG@5") && text.lines().count() <= 24, "{text}");
}
