//! Tests with files of other writers. `tests/reference/inputs.py` makes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha1::Digest as _;

use super::*;
use crate::corpus::{PairCounts, PairRow, ResumePoint};

/// Content of a file.
#[derive(Debug, Deserialize)]
struct Expected {
    /// Name and digest of each image; no digest for a missing one.
    images: Vec<(String, Option<String>)>,
    /// Name, language and caption.
    captions: Vec<(String, String, String)>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/inputs")
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn pairs_config(path: &str) -> PairsConfig {
    PairsConfig { shards: vec![path.to_owned()], ..PairsConfig::default() }
}

/// Returns the first half of the SHA-1 digest, as the script writes it.
fn digest(image: EncodedImage<'_>) -> String {
    let decoded;
    let bytes = match image {
        EncodedImage::File(bytes) => bytes,
        EncodedImage::Base64(text) => {
            decoded = base64_simd::STANDARD.decode_to_vec(text).unwrap();
            &decoded
        }
    };
    let digits = sha1::Sha1::digest(bytes);
    digits.iter().take(10).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Reads the images of an object from a row on: their numbers, names and digests.
async fn read_images(
    (object, input): (&Object, &ImageInput),
    start: (u64, Option<u64>),
) -> Result<Vec<(u64, String, Option<String>)>, PipelineError> {
    let store = Store::default();
    let limits = ReadLimits::alone(1 << 20);
    let mut reader = ImageReader::open(&store, object, input, limits, start, &Arc::default()).await?;
    let mut seen = Vec::new();
    loop {
        let more = reader.fill().await?;
        while let Some(row) = reader.next()? {
            let row = match row {
                ImageRow::Ok { row, image_url, image } => (row, image_url.to_owned(), Some(digest(image))),
                ImageRow::Bad { row, image_url, reason, detail } => {
                    assert_eq!(reason, ImageRowProblem::MissingData, "{detail}");
                    (row, image_url.unwrap_or_default(), None)
                }
            };
            if row.0 >= start.0 {
                seen.push(row);
            }
        }
        if !more {
            return Ok(seen);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_all_writers_are_read_from_any_row() {
    for (name, expected) in expected() {
        let path = folder().join(&name).display().to_string();
        let columns = ImageColumnNames::default();
        let (input, objects) = list_images(&Store::default(), &[path], ImageFormat::Auto, &columns).await.unwrap();
        let expected: Vec<(u64, String, Option<String>)> =
            (0..).zip(expected.images).map(|(row, (url, digest))| (row, url, digest)).collect();
        for first in [0, 1, 5, 7, 11, 12] {
            let seen = read_images((&objects[0], &input), (first, None)).await.unwrap();
            assert_eq!(seen, expected[first as usize..], "{name} from {first}");
        }
        let mut names = Vec::new();
        visit_image_names(&Store::default(), &objects[0], &input, 1 << 20, |name| {
            names.push(name.to_owned());
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(names, expected.iter().map(|(_, url, _)| url.clone()).collect::<Vec<_>>(), "{name}");
    }
}

/// Reads the pairs of an object from a point on. Returns them with the counts, and where reading can go on after how many of them.
async fn read_pairs(
    (object, input): (&Object, &PairInput),
    start: Option<(ResumePoint, PairCounts)>,
) -> (Vec<(String, String, String)>, PairCounts, Vec<(usize, ResumePoint, PairCounts)>) {
    let mut reader = PairReader::open(&Store::default(), object, input, start, &Arc::default()).await.unwrap();
    let (mut seen, mut points) = (Vec::new(), Vec::new());
    loop {
        let more = reader.fill().await.unwrap();
        while let Some(row) = reader.next().unwrap() {
            if let PairRow::Pair(pair) = row {
                seen.push((pair.image_url.to_owned(), pair.language.to_owned(), pair.target.to_owned()));
            }
        }
        points.extend(reader.resume_point().map(|point| (seen.len(), point, reader.counts())));
        if !more {
            return (seen, reader.counts(), points);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_of_all_writers_are_read() {
    for (name, expected) in expected() {
        let config = pairs_config(&folder().join(&name).display().to_string());
        let (input, objects) = list_pairs(&Store::default(), &config).await.unwrap();
        let (seen, counts, points) = read_pairs((&objects[0], &input), None).await;
        assert_eq!(seen, expected.captions, "{name}");
        assert_eq!(counts.pairs as usize, seen.len(), "{name}");
        for (before, point, counts_before) in points {
            let (rest, counts_after, _) = read_pairs((&objects[0], &input), Some((point, counts_before))).await;
            assert_eq!((rest.as_slice(), counts_after), (&seen[before..], counts), "{name} from {point:?}");
        }
    }
}

#[tokio::test]
async fn sparse_files_in_tars_are_refused() {
    for name in ["sparse-gnu.tar", "sparse-pax.tar"] {
        let path = folder().join(name).display().to_string();
        let columns = ImageColumnNames::default();
        let (input, objects) = list_images(&Store::default(), &[path], ImageFormat::Auto, &columns).await.unwrap();
        let error = read_images((&objects[0], &input), (0, None)).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("sparse.png` is a sparse file"), "{error}");
    }
}

/// Makes a folder with three images.
fn photos(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("a.jpg", "A"), ("cats/b.png", "B"), ("cats/c.PNG", "C")].iter().chain(files) {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    dir
}

async fn captions_of(dir: &Path, config: PairsConfig) -> Result<Vec<String>, PipelineError> {
    let config = PairsConfig { shards: vec![dir.display().to_string()], ..config };
    let (input, objects) = list_pairs(&Store::default(), &config).await?;
    let store = Store::default();
    let mut reader = PairReader::open(&store, &objects[0], &input, None, &Arc::default()).await?;
    let mut seen = Vec::new();
    loop {
        let more = reader.fill().await?;
        while let Some(row) = reader.next()? {
            if let PairRow::Pair(pair) = row {
                seen.push(format!("{} {}", pair.image_url, pair.target));
            }
        }
        if !more {
            assert_eq!(reader.counts().pairs as usize, seen.len());
            return Ok(seen);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_of_folders_come_from_metadata_text_or_folders() {
    let auto = PairsConfig::default;
    let csv = "text,file_name\none,a.jpg\ntwo,./cats/b.png\n";
    let dir = photos(&[
        ("metadata.csv", csv),
        ("cats/metadata.jsonl", "{\"file_name\": \"c.PNG\", \"text\": [\"three\", \"four\"]}\n"),
        ("a.txt", "unused"),
    ]);
    let found = captions_of(dir.path(), auto()).await.unwrap();
    assert_eq!(found, ["cats/c.PNG three", "cats/c.PNG four", "a.jpg one", "cats/b.png two"]);
    let set = PairsConfig { folder_captions: FolderCaptions::Folders, ..auto() };
    assert_eq!(captions_of(dir.path(), set).await.unwrap(), ["cats/b.png cats", "cats/c.PNG cats"]);
    let dir = photos(&[("a.txt", "one\n"), ("cats/c.txt", "three")]);
    assert_eq!(captions_of(dir.path(), auto()).await.unwrap(), ["a.jpg one", "cats/c.PNG three"]);
    let set = PairsConfig { folder_captions: FolderCaptions::Metadata, ..auto() };
    let error = captions_of(dir.path(), set).await.unwrap_err().to_string();
    assert!(error.contains("holds no file `metadata.csv` or"), "{error}");
    let dir = photos(&[]);
    assert_eq!(captions_of(dir.path(), auto()).await.unwrap(), ["cats/b.png cats", "cats/c.PNG cats"]);
    std::fs::remove_dir_all(dir.path().join("cats")).unwrap();
    let error = captions_of(dir.path(), auto()).await.unwrap_err().to_string();
    assert!(error.contains("holds no captions: add a file `metadata.csv`"), "{error}");
    let dir = photos(&[("metadata.tsv", "name\ttext\nx\ty\n")]);
    let error = captions_of(dir.path(), auto()).await.unwrap_err().to_string();
    assert!(error.contains("has no column `file_name`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_folder_are_named_by_their_path() {
    let dir = photos(&[("cats/large.jpg", &"x".repeat(2 << 20)), ("empty.gif", ""), ("notes.md", "")]);
    let columns = ImageColumnNames::default();
    let path = dir.path().display().to_string();
    let (input, objects) = list_images(&Store::default(), &[path], ImageFormat::Auto, &columns).await.unwrap();
    let store = Store::default();
    for first in 0..6 {
        let limits = ReadLimits::alone(1 << 20);
        let start = (first, None);
        let mut reader = ImageReader::open(&store, &objects[0], &input, limits, start, &Arc::default()).await.unwrap();
        let mut seen = Vec::new();
        loop {
            let more = reader.fill().await.unwrap();
            while let Some(row) = reader.next().unwrap() {
                seen.push(match row {
                    ImageRow::Ok { row, image_url, image } => {
                        format!("{row} {image_url} {}", String::from_utf8_lossy(image.bytes()))
                    }
                    ImageRow::Bad { row, reason, image_url, .. } => {
                        format!("{row} {} {reason}", image_url.unwrap_or_default())
                    }
                });
            }
            if !more {
                break;
            }
        }
        let expected = [
            "0 a.jpg A",
            "1 cats/b.png B",
            "2 cats/c.PNG C",
            "3 cats/large.jpg row_too_long",
            "4 empty.gif missing_data",
        ];
        assert_eq!(seen, expected[(first as usize).min(5)..]);
    }
}
