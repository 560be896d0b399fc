//! Damaged artefacts of a run, and shards of unusable rows.

use std::path::{Path, PathBuf};

use crate::support::{artefacts, corpus, differences, pipeline, run, stderr_of, write};

/// Flips one bit in the middle of a file; its size stays.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Returns the last file of a folder by name.
fn last(folder: PathBuf) -> PathBuf {
    last_with(folder, "")
}

/// Returns the last file of a folder whose name has an ending.
fn last_with(folder: PathBuf, ending: &str) -> PathBuf {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_str().unwrap().ends_with(ending)).max().unwrap()
}

#[test]
fn damaged_artefact_is_named_and_recomputed_once_removed() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let shard = dir.path().join("bad.csv");
    std::fs::write(&shard, "https://x/bad\t@@@@\tm\n").unwrap();
    let images = format!("image_pixels/*.csv.gz\", \"{}\"]", shard.display());
    let edits = [("epochs = 12", "epochs = 1"), ("image_pixels/*.csv.gz\"]", images.as_str())];
    let config = write(dir.path(), &pipeline(&run_dir, &edits));
    let whole = run(&["run", "--config", &config]);
    assert!(whole.status.success(), "{}", stderr_of(&whole));
    let expected = artefacts(&run_dir);
    for (folder, from) in [
        ("features", Some("train")),
        ("journal/features", None),
        ("catalog", None),
        ("predict/submission/features", None),
        ("checkpoints", None),
    ] {
        // A shard without wanted images has an entry and no URL hashes.
        let ending = if folder == "journal/features" { ".urls" } else { "" };
        let mut file = last_with(run_dir.join(folder), ending);
        if file.is_dir() {
            file = file.join("head.safetensors");
        }
        flip(&file);
        if folder == "journal/features" {
            // A finished stream reads the URL hashes only to find the duplicates.
            std::fs::remove_file(run_dir.join("duplicates.parquet")).unwrap();
        }
        if folder == "checkpoints" || folder.starts_with("predict/") {
            // A finished prediction is made again only if its result is gone.
            std::fs::remove_file(run_dir.join("submission.csv")).unwrap();
        }
        if folder == "checkpoints" {
            let out = run(&["predict", "--config", &config]);
            assert_eq!(out.status.code(), Some(3), "{}", stderr_of(&out));
        }
        let args = [&["run", "--config", &config][..], &from.map_or(vec![], |stage| vec!["--from", stage])].concat();
        let out = run(&args);
        let text = stderr_of(&out);
        assert_eq!(out.status.code(), Some(3), "{folder}: {text}");
        assert_eq!(text.matches("error:").count(), 1, "{text}");
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(text.contains(name) && text.contains("checksum"), "{folder}: {text}");
        if folder == "checkpoints" {
            std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        let out = run(&["run", "--config", &config]);
        assert!(out.status.success(), "{folder}: {}", stderr_of(&out));
        assert_eq!(differences(&expected, &artefacts(&run_dir)), Vec::<String>::new(), "{folder}");
    }
}

#[test]
fn inspect_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/data/image_data_test/image_pixels/*.csv']\n[chunks]\ncompression = 'lz4'\n[preprocess]\nsize_px = 8\n",
        run_dir.display(),
        corpus().display()
    );
    let out = run(&["run", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let sound = std::fs::read(last(run_dir.join("chunks"))).unwrap();
    let path = dir.path().join("chunk.parquet");
    // Flip each byte of the footer, which holds the lengths.
    for at in (sound.len() - 700..sound.len()).step_by(7) {
        let mut bytes = sound.clone();
        bytes[at] = 0xff;
        std::fs::write(&path, &bytes).unwrap();
        let out = run(&["inspect", path.to_str().unwrap()]);
        let (code, text) = (out.status.code(), stderr_of(&out));
        assert!(matches!(code, Some(0 | 3)) && !text.contains("internal"), "byte {at}: {code:?} {text}");
    }
}

/// Writes a shard in which every second row is not an image.
fn half_bad(path: &Path, rows: usize) {
    let text =
        std::fs::read_to_string(corpus().join("data/image_data_test/image_pixels/test_image_pixels_part-00000.csv"))
            .unwrap();
    let good = text.split('\t').nth(1).unwrap();
    let mut shard = String::new();
    for row in 0..rows {
        let data = match row % 4 {
            3 if row % 8 == 7 => "bm90IGFuIGltYWdl",
            1 | 3 => "PHN2Zz4=",
            _ => good,
        };
        shard.push_str(&format!("https://x/{row}\t{data}\tm\n"));
    }
    std::fs::write(path, shard).unwrap();
}

#[test]
fn bad_shard_stops_run_until_limit_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    half_bad(&dir.path().join("shard.csv"), 3000);
    let text = |name: &str| {
        format!(
            "[run]\ndir = '{0}/{name}'\n[images]\nshards = ['{0}/shard.csv']\n[chunks]\nrows = 300\n[preprocess]\nsize_px = 8\n",
            dir.path().display()
        )
    };
    let machine = dir.path().join("machine.toml");
    std::fs::write(&machine, "[limits]\nmax_bad_fraction = 0.6\n").unwrap();
    let machine = machine.to_str().unwrap();
    let config = write(dir.path(), &text("run"));
    let out = run(&["run", "--config", &config]);
    let sentence = stderr_of(&out);
    assert_eq!(out.status.code(), Some(3), "{sentence}");
    // The shard is judged at the end of the chunk that reaches 1,000 rows; the error names the commonest reasons and an example.
    assert!(sentence.contains("600 of 1200 wanted rows of"), "{sentence}");
    assert!(sentence.contains("unsupported_svg 450, unsupported_format 150; row "), "{sentence}");
    assert!(sentence.contains("`limits.max_bad_fraction` = 0.05"), "{sentence}");
    let error_of = |text: &str| text.lines().find(|line| line.starts_with("error: ")).unwrap().to_owned();
    let again = run(&["run", "--config", &config]);
    assert_eq!(again.status.code(), Some(3));
    assert_eq!(error_of(&stderr_of(&again)), error_of(&sentence), "the same again, from what is committed");
    let out = run(&["run", "--config", &config, "--machine", machine]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let expected = write(dir.path(), &text("undisturbed"));
    assert!(run(&["run", "--config", &expected, "--machine", machine]).status.success());
    let both = [artefacts(&dir.path().join("run")), artefacts(&dir.path().join("undisturbed"))];
    assert_eq!(differences(&both[0], &both[1]), Vec::<String>::new());
}

#[test]
fn bad_fraction_ignores_small_shards() {
    let dir = tempfile::tempdir().unwrap();
    half_bad(&dir.path().join("shard.csv"), 990);
    let text = format!(
        "[run]\ndir = '{0}/run'\n[images]\nshards = ['{0}/shard.csv']\n[chunks]\nrows = 300\n[preprocess]\nsize_px = 8\n",
        dir.path().display()
    );
    let out = run(&["run", "--config", &write(dir.path(), &text)]);
    assert!(out.status.success(), "{}", stderr_of(&out));
}
