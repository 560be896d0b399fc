//! Inputs of every kind: equal pixels and labels, kills in the middle of each, ids from the images, damaged files.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray as _, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::UInt32Type;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;

use crate::s3::faults::Faults;
use crate::s3::server::Server;
use crate::support::{artefacts, corpus, differences, program, run, stderr_of, write};

/// Labels and feature of each image.
type ImagesByUrl = BTreeMap<String, (Vec<u32>, Vec<u8>)>;

/// Image file, its URL and its captions.
struct Photo {
    url: String,
    image: Vec<u8>,
    captions: [String; 2],
}

/// The first images of the shared corpus that have base64, each once.
fn photos() -> &'static [Photo] {
    static PHOTOS: OnceLock<Vec<Photo>> = OnceLock::new();
    PHOTOS.get_or_init(|| {
        let folder = corpus().join("data/image_data_train/image_pixels");
        let mut shards: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        shards.sort();
        let mut photos: BTreeMap<String, Photo> = BTreeMap::new();
        for shard in shards {
            let mut text = Vec::new();
            flate2::read::MultiGzDecoder::new(std::fs::File::open(shard).unwrap()).read_to_end(&mut text).unwrap();
            for line in text.split(|byte| *byte == b'\n') {
                let fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
                let [url, base64, _] = fields[..] else { continue };
                let (Ok(url), Ok(image)) = (std::str::from_utf8(url), base64_simd::STANDARD.decode_to_vec(base64))
                else {
                    continue;
                };
                if url.is_empty() || image.is_empty() || url.contains('"') {
                    continue;
                }
                let number = photos.len();
                let captions =
                    [format!("Title {number} [SEP] a caption"), format!("Titel {} [SEP] geteilt", number % 7)];
                photos.entry(url.to_owned()).or_insert(Photo { url: url.to_owned(), image, captions });
            }
        }
        photos.into_values().take(150).collect()
    })
}

/// Languages of the two captions.
const LANGUAGES: [&str; 2] = ["en", "de"];

fn json(photo: &Photo, with_image: bool) -> String {
    let captions = photo.captions.iter().zip(LANGUAGES).map(|(caption, language)| {
        serde_json::json!({"language": language, "caption_title_and_reference_description": caption})
    });
    let mut object = serde_json::json!({"image_url": photo.url, "wit_features": captions.collect::<Vec<_>>()});
    if with_image {
        object["b64_bytes"] = base64_simd::STANDARD.encode_to_string(&photo.image).into();
    }
    object.to_string()
}

fn parquet_file(photos: &[Photo]) -> Vec<u8> {
    use arrow::array::{ListBuilder, StringBuilder, StructBuilder};
    use arrow::datatypes::{DataType, Field};

    let names = ["language", "caption_title_and_reference_description"];
    let fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    let mut features = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for photo in photos {
        for (caption, language) in photo.captions.iter().zip(LANGUAGES) {
            let row = features.values();
            row.field_builder::<StringBuilder>(0).unwrap().append_value(language);
            row.field_builder::<StringBuilder>(1).unwrap().append_value(caption);
            row.append(true);
        }
        features.append(true);
    }
    let images: BinaryArray = photos.iter().map(|photo| Some(&photo.image[..])).collect();
    let urls: StringArray = photos.iter().map(|photo| Some(&photo.url[..])).collect();
    let image = arrow::array::StructArray::try_from(vec![("bytes", Arc::new(images) as ArrayRef)]).unwrap();
    let columns = [
        ("image", Arc::new(image) as ArrayRef),
        ("image_url", Arc::new(urls) as ArrayRef),
        ("wit_features", Arc::new(features.finish()) as ArrayRef),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(40)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn tar_file(photos: &[Photo]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (number, photo) in photos.iter().enumerate() {
        for (extension, content) in [("jpg", photo.image.as_slice()), ("json", json(photo, false).as_bytes())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, format!("{number:06}.{extension}"), content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(data).unwrap();
    packer.finish().unwrap()
}

/// Writes the photos in each kind that holds URLs, as two files. Returns the globs.
fn write_kinds(dir: &Path) -> Vec<(&'static str, String)> {
    let halves = [&photos()[..90], &photos()[90..]];
    let kinds = ["tsv", "jsonl.gz", "parquet", "tar", "tar.gz"];
    for kind in kinds {
        let folder = dir.join(kind);
        std::fs::create_dir(&folder).unwrap();
        for (number, half) in halves.iter().enumerate() {
            let lines = |line: &dyn Fn(&Photo) -> String| half.iter().map(line).collect::<String>().into_bytes();
            let content = match kind {
                "tsv" => lines(&|photo| {
                    format!("{}\t{}\tm\n", photo.url, base64_simd::STANDARD.encode_to_string(&photo.image))
                }),
                "jsonl.gz" => gzip(&lines(&|photo| json(photo, true) + "\n")),
                "parquet" => parquet_file(half),
                "tar" => tar_file(half),
                _ => gzip(&tar_file(half)),
            };
            std::fs::write(folder.join(format!("part-{number}.{kind}")), content).unwrap();
        }
    }
    kinds.into_iter().map(|kind| (kind, format!("{}/*.{kind}", dir.join(kind).display()))).collect()
}

/// A pipeline whose product is pixels, with labels from `pairs` in TOML.
fn pipeline(run_dir: &Path, images: &str, pairs: &str) -> String {
    format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{images}']\n[preprocess]\nsize_px = 16\n[chunks]\nrows = 25\n{pairs}",
        run_dir.display()
    )
}

const TRAIN_CLASSES: &str = "[captions]\nclasses = 'train'\n[pairs]\n";

/// Returns URL → labels and pixels of all chunks.
fn pixels(run_dir: &Path) -> BTreeMap<String, (Vec<u32>, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(run_dir.join("chunks")).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let column = |name: &str| batch.column_by_name(name).unwrap();
            let (urls, labels) = (column("image_url").as_string::<i32>(), column("labels").as_list::<i32>());
            for row in 0..batch.num_rows() {
                let labels = labels.value(row).as_primitive::<UInt32Type>().values().to_vec();
                let pixels = column("pixels").as_fixed_size_binary().value(row).to_vec();
                found.insert(urls.value(row).to_owned(), (labels, pixels));
            }
        }
    }
    found
}

fn succeed(config: &str) {
    let out = run(&["run", "--config", config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
}

#[test]
fn all_kinds_give_the_same_pixels_and_labels() {
    let dir = tempfile::tempdir().unwrap();
    let mut pairs = "image_url\tlanguage\tcaption\n".to_owned();
    for photo in photos() {
        for (caption, language) in photo.captions.iter().zip(LANGUAGES) {
            pairs.push_str(&format!("{}\t{language}\t{caption}\n", photo.url));
        }
    }
    std::fs::write(dir.path().join("pairs.tsv"), pairs).unwrap();
    let mut expected: Option<ImagesByUrl> = None;
    for (kind, images) in write_kinds(dir.path()) {
        let run_dir = dir.path().join(format!("run-{kind}"));
        let own = format!("{TRAIN_CLASSES}shards = ['{}/pairs.tsv']\n", dir.path().display());
        let pairs = if kind == "tsv" { own.as_str() } else { TRAIN_CLASSES };
        let config = write(dir.path(), &pipeline(&run_dir, &images, pairs));
        let check = run(&["check", "--config", &config]);
        assert!(check.status.success(), "{kind}: {}", stderr_of(&check));
        succeed(&config);
        let found = pixels(&run_dir);
        assert!(found.len() > 100 && found.values().all(|(labels, _)| labels.len() == 2), "{kind}: {}", found.len());
        let expected = expected.get_or_insert_with(|| found.clone());
        assert!(found == *expected, "{kind} differs from tsv");
    }
}

#[test]
fn kills_in_the_middle_of_each_kind_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, images) in write_kinds(dir.path()) {
        let whole = dir.path().join(format!("whole-{kind}"));
        succeed(&write(dir.path(), &pipeline(&whole, &images, "")));
        let run_dir = dir.path().join(format!("killed-{kind}"));
        let config = write(dir.path(), &pipeline(&run_dir, &images, ""));
        for round in 0..3 {
            let mut child = program()
                .args(["run", "--config", &config])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // The first kill comes after the first chunk, the others wherever they come.
            let journal = run_dir.join("journal/chunks");
            while round == 0
                && child.try_wait().unwrap().is_none()
                && !std::fs::read_dir(&journal).is_ok_and(|mut entries| entries.next().is_some())
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(15 * round));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        succeed(&config);
        assert_eq!(differences(&artefacts(&whole), &artefacts(&run_dir)), Vec::<String>::new(), "{kind}");
    }
}

/// Runs a pipeline against a server, after a kill in its middle.
fn succeed_after_kill(server: &Server, config: &str, about: &str) {
    let start = |plan: &str| {
        let mut command = program();
        command.args(["run", config]).env("WIKICAP_KILL_AT", plan);
        server.reached_by(&mut command);
        command.output().unwrap()
    };
    let killed = start("linked journal/chunks 2");
    assert_eq!(killed.status.signal(), Some(9), "{about}: {}", stderr_of(&killed));
    let out = start("");
    assert!(out.status.success(), "{about}: {}", stderr_of(&out));
}

#[test]
fn kinds_on_stores_and_web_servers_give_the_same_pixels() {
    let dir = tempfile::tempdir().unwrap();
    write_kinds(dir.path());
    let folder = dir.path().join("folder");
    for (number, photo) in photos().iter().enumerate() {
        let class = folder.join(["red", "blue"][number % 2]);
        std::fs::create_dir_all(&class).unwrap();
        std::fs::write(class.join(format!("{number:03}.jpg")), &photo.image).unwrap();
    }
    let (store, web) = (Server::start(Faults::default()), Server::open_to_all(Faults::default()));
    store.serve("kinds", dir.path());
    web.serve("kinds", dir.path());
    web.set_headless(true);
    let at = |base: &str, rest: &str| format!("{base}/{rest}");
    for (kind, local, range) in [
        ("parquet", "parquet/*.parquet", "parquet/part-{0..1}.parquet"),
        ("tar", "tar/*.tar", "tar/part-{0..1}.tar"),
        ("jsonl.gz", "jsonl.gz/*.gz", "jsonl.gz/part-{0..1}.jsonl.gz"),
        ("folder", "folder/", ""),
    ] {
        let run_dir = |place: &str| dir.path().join(format!("run-{kind}-{place}"));
        succeed(&write(
            dir.path(),
            &pipeline(&run_dir("disk"), &at(&dir.path().display().to_string(), local), TRAIN_CLASSES),
        ));
        let expected = pixels(&run_dir("disk"));
        assert!(expected.len() > 100, "{kind}");
        let text = pipeline(&run_dir("s3"), &at("s3://kinds", local), TRAIN_CLASSES);
        succeed_after_kill(&store, &write(dir.path(), &text), kind);
        assert!(pixels(&run_dir("s3")) == expected, "{kind} on S3");
        if !range.is_empty() {
            let text = pipeline(&run_dir("web"), &at(&web.endpoint(), &format!("kinds/{range}")), TRAIN_CLASSES);
            succeed_after_kill(&web, &write(dir.path(), &text), kind);
            assert!(pixels(&run_dir("web")) == expected, "{kind} on a web server");
        }
    }

    // Without ranges a tar is read from its start, and Parquet cannot be read.
    web.set_whole(true);
    let text = pipeline(&dir.path().join("whole"), &at(&web.endpoint(), "kinds/tar/part-{0..1}.tar"), TRAIN_CLASSES);
    succeed_after_kill(&web, &write(dir.path(), &text), "tar without ranges");
    for (name, why) in [("parquet/part-{0..1}.parquet", "range"), ("folder/", "has no listing")] {
        let name = at(&web.endpoint(), &format!("kinds/{name}"));
        let config = write(dir.path(), &pipeline(&dir.path().join("refused"), &name, TRAIN_CLASSES));
        let out = run(&["run", &config]);
        let said = stderr_of(&out).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!out.status.success() && said.contains(why) && said.contains(&web.endpoint()), "{name}: {said}");
    }
}

#[test]
fn folder_is_trained_on_and_ranked_without_an_ids_file() {
    let dir = tempfile::tempdir().unwrap();
    for (number, photo) in photos().iter().enumerate() {
        let folder = dir.path().join(if number < 120 {
            format!("photos/{}", ["red", "green", "blue"][number % 3])
        } else {
            "new".to_owned()
        });
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{number:03}.jpg")), &photo.image).unwrap();
    }
    let text = format!(
        "[run]\ndir = '{dir}/run'\n[images]\nshards = ['{dir}/photos']\n[captions]\nclasses = 'train'\n[pairs]\n\
         [model]\ncheckpoint = '{corpus}/models/vit-tiny'\n[train]\nepochs = 1\nvalidation_fraction = 0.1\n\
         [predict]\nimages = ['{dir}/new/']\ntop_k = 2\n",
        dir = dir.path().display(),
        corpus = corpus().display()
    );
    let config = write(dir.path(), &text);
    let check = run(&["check", "--config", &config]);
    let shown = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && shown.contains("120 images"), "{shown}{}", stderr_of(&check));
    succeed(&config);
    let submission = std::fs::read_to_string(dir.path().join("run/submission.csv")).unwrap();
    let lines: Vec<&str> = submission.lines().skip(1).collect();
    assert_eq!(lines.len(), 60);
    let is_class = |line: &&str| ["red", "green", "blue"].contains(&line.split(',').nth(1).unwrap_or_default());
    assert!(
        lines[0].starts_with("120.jpg,") && lines[59].starts_with("149.jpg,") && lines.iter().all(is_class),
        "{submission}"
    );
}

#[test]
fn ready_pipeline_for_photos_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("photos/trip"), dir.path().join("new-photos"));
    for folder in [&old, &new] {
        std::fs::create_dir_all(folder).unwrap();
    }
    for (number, photo) in photos()[..60].iter().enumerate() {
        let folder = if number < 50 { &old } else { &new };
        std::fs::write(folder.join(format!("{number:03}.jpg")), &photo.image).unwrap();
        std::fs::write(folder.join(format!("{number:03}.txt")), &photo.captions[0]).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = std::fs::read_to_string(root.join("pipelines/photos.toml")).unwrap();
    for (from, to) in [
        ("hf:facebook/dinov2-small", corpus().join("models/vit-tiny").display().to_string()),
        ("pool = \"cls+mean\"", "pool = \"cls\"".to_owned()),
        ("hf:intfloat/multilingual-e5-small", root.join("tests/reference/text/mini").display().to_string()),
    ] {
        assert!(text.contains(from), "`{from}` is not in the pipeline");
        text = text.replace(from, &to);
    }
    std::fs::write(dir.path().join("mine.toml"), text).unwrap();
    for command in ["check", "run"] {
        let out = program().current_dir(dir.path()).args([command, "mine.toml"]).output().unwrap();
        assert!(out.status.success(), "{command}: {}{}", String::from_utf8_lossy(&out.stdout), stderr_of(&out));
    }
    let submission = std::fs::read_to_string(dir.path().join("runs/photos/submission.csv")).unwrap();
    assert_eq!(submission.lines().count(), 1 + 10 * 5, "{submission}");
}

#[test]
fn damaged_and_unsuitable_files_get_one_clear_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let tar = tar_file(&photos()[..3]);
    let parquet = parquet_file(&photos()[..3]);
    let mut bomb = tar::Header::new_gnu();
    bomb.set_size(u64::MAX / 4);
    bomb.set_path("a.jpg").unwrap();
    bomb.set_cksum();
    let deep = format!("{{\"image_url\": \"u\", \"b64_bytes\": {}1{}}}\n", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("cut.tar", tar[..tar.len() / 2].to_vec(), "it is truncated, fetch it again"),
        ("huge.tar", bomb.as_bytes().to_vec(), "it ends in the middle of `a.jpg`"),
        ("noise.tar", vec![7; 5000], "the bytes at 0 are not a header"),
        ("cut.parquet", parquet[..parquet.len() / 2].to_vec(), "does not end with the mark of a Parquet file"),
        ("deep.jsonl", deep.repeat(3).into_bytes(), "invalid_json"),
        ("array.json", b"[{\"image_url\": 1}]".to_vec(), "write one object per line"),
        (
            "keys.jsonl",
            b"{\"url\": \"u\", \"picture\": \"QQ==\"}\n".to_vec(),
            "name the column in `images.image_column`",
        ),
        ("empty.parquet", Vec::new(), "it is empty"),
    ];
    for (name, content, message) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let config = write(dir.path(), &pipeline(&dir.path().join(format!("run-{name}")), path.to_str().unwrap(), ""));
        let out = run(&["run", "--config", &config]);
        let text = stderr_of(&out);
        assert!(!out.status.success() && text.contains(message) && !text.contains("panicked"), "{name}: {text}");
        let lines = text.lines().filter(|line| line.contains(message)).count();
        assert_eq!(lines, 1, "{name}: {text}");
    }
}

#[test]
fn page_over_the_memory_limit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let image: BinaryArray = (0..40).map(|row| Some(vec![row as u8; 1 << 20])).collect();
    let batch = RecordBatch::try_from_iter([("image", Arc::new(image) as ArrayRef)]).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_write_batch_size(100)
        .set_data_page_size_limit(1 << 30)
        .build();
    let path = dir.path().join("large.parquet");
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let config = write(dir.path(), &pipeline(&dir.path().join("run"), path.to_str().unwrap(), ""));
    let machine = dir.path().join("machine.toml");
    std::fs::write(&machine, "[limits]\nmemory = '640 MiB'\n").unwrap();
    let out = run(&["run", "--config", &config, "--machine", machine.to_str().unwrap()]);
    let text = stderr_of(&out);
    assert!(text.contains("large.parquet") && text.contains("column `image` of row group 0"), "{text}");
    assert!(text.contains("a page takes") && text.contains("raise `limits.memory`"), "{text}");
}
