//! `init` on folders of many kinds: what it finds, and that `check` passes on the file it writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::{corpus, program, stderr_of};

const PNG: &[u8] = include_bytes!("../reference/decode/rgb8.png");

fn encoder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/mini")
}

/// Runs `init` in a folder, with local models.
fn init(dir: &Path, paths: &[&str]) -> Output {
    let mut command = program();
    command.current_dir(dir).arg("init").args(paths);
    command.arg("--model").arg(corpus().join("models/vit-tiny")).arg("--encoder").arg(encoder());
    command.output().unwrap()
}

/// Runs `init` and then `check` on its file; returns what `init` printed, and the file.
fn writes_checked_file(dir: &Path, paths: &[&str]) -> (String, String) {
    let out = init(dir, paths);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let file = fs::read_to_string(dir.join("pipeline.toml")).unwrap();
    let check = program().current_dir(dir).args(["check", "pipeline.toml"]).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "{file}\n{text}\n{}", stderr_of(&check));
    // Lines may be broken anywhere between words.
    let printed = String::from_utf8_lossy(&out.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    (printed, file)
}

/// Runs `init` that must fail without writing; returns exit code and standard error.
fn refuses(dir: &Path, paths: &[&str]) -> (i32, String) {
    let out = init(dir, paths);
    assert!(!out.status.success() && !dir.join("pipeline.toml").exists());
    assert!(!stderr_of(&out).contains("internal error"), "{}", stderr_of(&out));
    (out.status.code().unwrap(), stderr_of(&out))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Writes pictures with these names.
fn pictures(dir: &Path, names: &[&str]) {
    for name in names {
        write(dir, name, PNG);
    }
}

#[test]
fn folders_without_images_are_refused_with_what_they_hold() {
    let dir = folder();
    let (code, text) = refuses(dir.path(), &[]);
    assert!(code == 3 && text.contains("no files"), "{text}");
    write(dir.path(), "captions/captions.csv", b"file,caption\na.jpg,A cat\n");
    write(dir.path(), "captions/notes.docx", b"x");
    let (code, text) = refuses(dir.path(), &["captions"]);
    assert!(code == 3 && text.contains("captions.csv") && text.contains("*.docx"), "{text}");
    write(dir.path(), "broken/part-0.parquet", b"PAR1 and then nothing");
    write(dir.path(), "broken/part-1.tar", &[7; 2000]);
    write(dir.path(), "broken/empty.jsonl", b"");
    let (code, text) = refuses(dir.path(), &["broken"]);
    assert!(code == 3 && text.contains("not a complete Parquet file") && text.contains("empty.jsonl"), "{text}");
    let (code, text) = refuses(dir.path(), &["nowhere/photos"]);
    assert!(
        code == 3 && text.contains("`nowhere/photos` does not exist; for a data set of the Hugging Face hub"),
        "{text}"
    );
}

#[test]
fn pictures_without_captions_give_features() {
    let dir = folder();
    pictures(dir.path(), &["my photos [2024]/a.png", "my photos [2024]/b {1}.PNG", "my photos [2024]/.hidden.png"]);
    write(dir.path(), "my photos [2024]/notes.md", b"x");
    let (printed, file) = writes_checked_file(dir.path(), &["my photos [2024]"]);
    assert!(printed.contains("2 picture files") && printed.contains("head none"), "{printed}");
    assert!(!file.contains("\n[train]") && file.contains("format = \"folder\""), "{file}");
    // The file is never overwritten.
    let out = init(dir.path(), &["my photos [2024]"]);
    assert!(out.status.code() == Some(2) && stderr_of(&out).contains("exists already"), "{}", stderr_of(&out));
    assert_eq!(fs::read_to_string(dir.path().join("pipeline.toml")).unwrap(), file);
}

#[test]
fn names_of_folders_become_classes() {
    let dir = folder();
    for class in ["cat", "dog"] {
        for number in 0..4 {
            pictures(dir.path(), &[&format!("train/{class}/{number}.png"), &format!("test/{class}/{number}.png")]);
        }
    }
    let (printed, file) = writes_checked_file(dir.path(), &[]);
    assert!(printed.contains("head classes") && printed.contains("the names of 2 folders"), "{printed}");
    for part in ["folder_captions = \"folders\"", "kind = \"classes\"", "shards = [\"train/\"]", "images = [\"test/\"]"]
    {
        assert!(file.contains(part), "{part}: {file}");
    }
}

#[test]
fn metadata_or_texts_beside_pictures_give_a_text_head() {
    let dir = folder();
    let mut table = "file_name,text\n".to_owned();
    for number in 0..8 {
        let name = format!("images/{number}.png");
        pictures(dir.path(), &[&format!("m/{name}"), &format!("t/{name}")]);
        write(dir.path(), &format!("t/images/{number}.txt"), format!("caption {number}").as_bytes());
        table.push_str(&format!("{name},\"caption, {number}\"\n"));
    }
    write(dir.path(), "m/metadata.csv", table.as_bytes());
    let (printed, file) = writes_checked_file(dir.path(), &["m"]);
    assert!(printed.contains("head text") && file.contains("folder_captions = \"metadata\""), "{printed} {file}");
    assert!(file.contains("shards = [\"m/\"]"), "{file}");
    fs::remove_file(dir.path().join("pipeline.toml")).unwrap();
    let (printed, file) = writes_checked_file(dir.path(), &["t"]);
    assert!(printed.contains("head text") && file.contains("folder_captions = \"text\""), "{printed} {file}");
}

#[test]
fn table_that_names_the_pictures_holds_the_captions() {
    let dir = folder();
    let mut table = "number,picture,what it shows\n".to_owned();
    for number in 0..8 {
        pictures(dir.path(), &[&format!("photos/{number}.png")]);
        table.push_str(&format!("{number},{number}.png,A long caption of picture {number}\n"));
    }
    write(dir.path(), "list.csv", table.as_bytes());
    let (printed, file) = writes_checked_file(dir.path(), &["photos", "list.csv"]);
    assert!(printed.contains("head text"), "{printed}");
    for part in ["shards = [\"list.csv\"]", "url_column = \"picture\"", "caption_column = \"what it shows\""] {
        assert!(file.contains(part), "{part}: {file}");
    }
}

#[test]
fn strange_names_and_broken_files_are_left_out_by_name() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = folder();
    pictures(dir.path(), &["d/a.png", "d/__MACOSX/a.png", "d/sub/b.png"]);
    fs::write(dir.path().join("d").join(std::ffi::OsStr::from_bytes(b"caf\xe9.doc")), PNG).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("d/dangling.png")).unwrap();
    std::os::unix::fs::symlink("..", dir.path().join("d/loop")).unwrap();
    write(dir.path(), "d/broken.parquet", b"PAR1");
    let (printed, _) = writes_checked_file(dir.path(), &["d"]);
    for part in ["2 picture files", "broken.parquet", "dangling.png", "loop", "its name is not UTF-8"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    fs::rename(dir.path().join("d"), dir.path().join(name)).unwrap();
    let out = program().current_dir(dir.path()).arg("init").arg(name).args(["--output", "x.toml"]).output().unwrap();
    assert!(out.status.code() == Some(2) && stderr_of(&out).contains("not UTF-8"), "{}", stderr_of(&out));
}

#[test]
fn archives_and_json_lines_hold_images_and_captions() {
    for (format, word, caption) in
        [("webdataset", "webdataset", "caption_title_and_reference_description"), ("jsonl", "jsonl", "wit_features")]
    {
        let dir = folder();
        let made = program()
            .current_dir(dir.path())
            .args(["sample", "--format", format, "--out", "corpus", "--train-images", "40", "--test-images", "4"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", stderr_of(&made));
        let (printed, file) = writes_checked_file(dir.path(), &["corpus/data"]);
        assert!(file.contains(&format!("format = \"{word}\"")), "{file}");
        assert!(printed.contains("beside the images") && printed.contains(caption), "{printed}");
    }
}

#[test]
fn table_that_is_not_used_is_named() {
    let dir = folder();
    pictures(dir.path(), &["photos/a.png", "photos/b.png"]);
    write(dir.path(), "photos/results.csv", b"image_name| comment\na.png| A cat\n");
    let (printed, _) = writes_checked_file(dir.path(), &["photos"]);
    assert!(printed.contains("results.csv`, 33 B: no captions of these images are recognised in it"), "{printed}");
}

#[test]
fn published_layout_gets_all_its_files() {
    let dir = folder();
    let corpus = corpus().join("data").display().to_string();
    let (printed, file) = writes_checked_file(dir.path(), &[&corpus]);
    for part in [
        "train-*-of-*.tsv",
        "train_image_pixels_part-*.csv.gz",
        "test_image_pixels_part-*.csv",
        "test.tsv",
        "truth.csv",
        "test_caption_list.csv",
    ] {
        assert!(file.contains(part), "{part}: {file}");
    }
    assert!(printed.contains("head text") || printed.contains("head classes"), "{printed}");
}

#[test]
fn output_can_be_printed_and_json_describes_it() {
    let dir = folder();
    pictures(dir.path(), &["a.png"]);
    let out = init(dir.path(), &[".", "--output", "-"]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let printed: toml::Table = String::from_utf8(out.stdout).unwrap().parse().unwrap();
    assert_eq!(printed["images"]["shards"][0].as_str(), Some("./"));
    let out = init(dir.path(), &["--json", "--output", "mine.toml"]);
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((value["head"].as_str(), value["file"].as_str()), (Some("none"), Some("mine.toml")));
    let file = fs::read_to_string(dir.path().join("mine.toml")).unwrap();
    assert!(file.contains("runs/mine") && file == value["pipeline"].as_str().unwrap());
}
