//! Tests of whole folders: their content as another reader sees it, and which folders are replaced.

use super::*;
use std::collections::BTreeMap;
use std::io::Read;
use tempfile::TempDir;

const TARGET: &str = "caption_title_and_reference_description";

fn small() -> SampleOptions {
    SampleOptions { train_images: 90, test_images: 45, seed: 7, ..SampleOptions::default() }
}

fn write_small() -> (TempDir, PathBuf, SampleReport) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sample");
    let report = write(&out, &small()).unwrap();
    (folder, out, report)
}

fn hashes(out: &Path) -> Vec<(String, String)> {
    hash_files(out).unwrap().into_iter().map(|file| (file.path, file.blake3)).collect()
}

fn records(path: &Path, delimiter: u8) -> (csv::ByteRecord, Vec<csv::ByteRecord>) {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_path(path).unwrap();
    let header = reader.byte_headers().unwrap().clone();
    (header, reader.byte_records().map(Result::unwrap).collect())
}

/// Returns the fields of each row of an image shard.
fn shard(path: &Path) -> Vec<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut file = fs::File::open(path).unwrap();
    if path.extension().is_some_and(|ending| ending == "gz") {
        flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    } else {
        file.read_to_end(&mut bytes).unwrap();
    }
    assert_eq!(bytes.pop(), Some(b'\n'));
    bytes
        .split(|&byte| byte == b'\n')
        .map(|row| row.split(|&byte| byte == b'\t').map(<[u8]>::to_vec).collect())
        .collect()
}

fn train_shards(out: &Path) -> Vec<Vec<Vec<u8>>> {
    let folder = out.join("data/image_data_train/image_pixels");
    (0..4).flat_map(|part| shard(&folder.join(format!("train_image_pixels_part-{part:05}.csv.gz")))).collect()
}

fn test_shards(out: &Path) -> Vec<Vec<Vec<u8>>> {
    let folder = out.join("data/image_data_test/image_pixels");
    (0..2).flat_map(|part| shard(&folder.join(format!("test_image_pixels_part-{part:05}.csv")))).collect()
}

#[test]
fn bytes_depend_only_on_the_options() {
    let (_first, one, report) = write_small();
    let (_second, two, repeated) = write_small();
    assert_eq!(report, repeated);
    assert_eq!(hashes(&one), hashes(&two));
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("sample");
    write(&other, &SampleOptions { seed: 8, ..small() }).unwrap();
    let same = hashes(&one).into_iter().filter(|file| hashes(&other).contains(file)).map(|(path, _)| path);
    assert_eq!(same.collect::<Vec<_>>(), ["models/vit-tiny/config.json", "models/vit-tiny/preprocessor_config.json"]);
}

#[test]
fn manifest_and_report_match_the_files() {
    let (_folder, out, report) = write_small();
    let manifest: Manifest = serde_json::from_slice(&fs::read(out.join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(manifest.options, small());
    let mut found = BTreeSet::new();
    collect_files(&out, &out, &mut found).unwrap();
    assert_eq!(found.len(), report.files as usize);
    assert_eq!(found.len(), manifest.files.len() + 1);
    assert!(!found.contains(INCOMPLETE_MARKER));
    let rows = train_shards(&out).len() as u32;
    assert_eq!(rows, report.train_images + report.unusable_train_rows + report.duplicate_train_rows);
    assert_eq!(test_shards(&out).len() as u32, report.test_images + 1);
    assert_eq!(fs::read_dir(out.parent().unwrap()).unwrap().count(), 1, "nothing is left beside the folder");
}

#[test]
fn ids_truth_and_list_are_consistent() {
    let (_folder, out, report) = write_small();
    let data = out.join("data");
    let (header, ids) = records(&data.join("test.tsv"), b'\t');
    assert_eq!(header, vec!["id", "image_url"]);
    let (header, truth) = records(&data.join("truth.csv"), b',');
    assert_eq!(header, vec!["id", TARGET]);
    let (header, list) = records(&data.join("test_caption_list.csv"), b',');
    assert_eq!(header, vec![TARGET]);
    let (header, example) = records(&data.join("sample_submission.csv"), b',');
    assert_eq!(header, vec!["id", TARGET]);
    assert_eq!(example.len(), 5 * ids.len());
    assert_eq!(ids.len() as u32, report.ids);
    assert_eq!(list.len() as u32, report.captions);
    assert!(report.distinct_captions < report.captions);
    let distinct: BTreeSet<&[u8]> = list.iter().map(|row| &row[0]).collect();
    let pixels: BTreeSet<Vec<u8>> = test_shards(&out).into_iter().map(|row| row[0].clone()).collect();
    let mut captions_of: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (id, relevant) in ids.iter().zip(&truth) {
        assert_eq!(id[0], relevant[0]);
        assert!(distinct.contains(&relevant[1]));
        assert!(captions_of.entry(id[1].to_vec()).or_default().insert(relevant[1].to_vec()), "an id twice");
    }
    assert_eq!(captions_of.keys().filter(|url| !pixels.contains(*url)).count(), 1);
    assert!(captions_of.values().any(|captions| captions.len() == 3));
}

#[test]
fn train_files_have_the_quirks_of_published_ones() {
    let (_folder, out, report) = write_small();
    let mut rows = Vec::new();
    for part in 0..5 {
        let (header, records) = records(&out.join(format!("data/train-{part:05}-of-00005.tsv")), b'\t');
        assert_eq!(header, rows::COLUMNS.to_vec());
        rows.extend(records);
    }
    assert_eq!(rows.len() as u64, report.train_rows);
    let any = |what: &str, holds: &dyn Fn(&csv::ByteRecord) -> bool| {
        assert!(rows.iter().any(holds), "{what}");
    };
    any("too few fields", &|row| row.len() == 3);
    any("too many fields", &|row| row.len() == 25);
    any("not UTF-8", &|row| std::str::from_utf8(row.as_slice()).is_err());
    any("no URL", &|row| row.len() == 18 && row[2].is_empty());
    any("empty caption", &|row| row.len() == 18 && row[17].ends_with(b" [SEP] "));
    any("empty target", &|row| row.len() == 18 && row[17].is_empty());
    any("line end in the target", &|row| row.len() == 18 && row[17].contains(&b'\n'));
    any("tab in the target", &|row| row.len() == 18 && row[17].contains(&b'\t'));
    any("quote in the target", &|row| row.len() == 18 && row[17].contains(&b'"'));
    any("long field", &|row| row.iter().any(|field| field.len() > 128 * 1024));
    any("malformed number", &|row| row.len() == 18 && row[11].parse_number().is_none());
    any("http", &|row| row.len() == 18 && row[2].starts_with(b"http://"));
    any("percent", &|row| row.len() == 18 && row[2].contains(&b'%'));
    for title in ["NA", "null", "nan"] {
        any(title, &|row| row.len() == 18 && &row[3] == title.as_bytes());
    }
    assert!(rows.iter().filter(|row| row.len() == 18).all(|row| [&b"true"[..], b"false"].contains(&&row[12])));
    let mut languages: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.len() == 18) {
        languages.entry(row[2].to_vec()).or_default().insert(row[0].to_vec());
    }
    assert!(languages.values().any(|languages| languages.len() >= 3));
}

trait ParseNumber {
    fn parse_number(&self) -> Option<u32>;
}
impl ParseNumber for [u8] {
    fn parse_number(&self) -> Option<u32> {
        std::str::from_utf8(self).ok()?.parse().ok()
    }
}

/// Returns whether a thumbnail decodes and is not truncated in a way that the decoder tolerates.
fn is_whole_image(bytes: &[u8]) -> bool {
    let reader = || image::ImageReader::new(io::Cursor::new(bytes)).with_guessed_format().unwrap();
    let ends_early = bytes.starts_with(&[0xff, 0xd8]) && !bytes.ends_with(&[0xff, 0xd9]);
    !ends_early
        && reader().into_dimensions().is_ok_and(|(width, height)| width == 300 && height < 1000)
        && reader().decode().is_ok()
}

#[test]
fn shards_contain_unusable_and_duplicate_rows() {
    let (_folder, out, report) = write_small();
    let rows = train_shards(&out);
    let decodes = |row: &Vec<Vec<u8>>| {
        row.len() == 3
            && std::str::from_utf8(&row[0]).is_ok()
            && base64_simd::STANDARD.decode_to_vec(&row[1]).is_ok_and(|bytes| is_whole_image(&bytes))
    };
    assert_eq!(rows.iter().filter(|row| !decodes(row)).count() as u32, report.unusable_train_rows);
    assert!(rows.iter().any(|row| row.len() == 2));
    assert!(rows.iter().any(|row| std::str::from_utf8(&row[0]).is_err()));
    assert!(rows.iter().any(|row| row.len() == 3 && row[1].is_empty()));
    let mut bytes_of: BTreeMap<&[u8], BTreeSet<&[u8]>> = BTreeMap::new();
    for row in &rows {
        bytes_of.entry(&row[0]).or_default().insert(&row[1]);
    }
    assert_eq!(bytes_of.values().filter(|bytes| bytes.len() == 2).count() as u32, report.duplicate_train_rows);
}

#[test]
fn one_shard_has_several_gzip_members() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sample");
    write(&out, &SampleOptions { train_images: 260, test_images: 1, seed: 1, ..SampleOptions::default() }).unwrap();
    let first_member = |part: u32| {
        let path = out.join(format!("data/image_data_train/image_pixels/train_image_pixels_part-{part:05}.csv.gz"));
        let mut bytes = Vec::new();
        flate2::bufread::GzDecoder::new(io::BufReader::new(fs::File::open(&path).unwrap()))
            .read_to_end(&mut bytes)
            .unwrap();
        bytes.ends_with(b"\n")
    };
    assert!(first_member(0));
    assert!(!first_member(1), "the member ends inside a row");
}

#[test]
fn own_folder_is_replaced_and_foreign_one_refused() {
    let (_folder, out, _) = write_small();
    let before = hashes(&out);
    write(&out, &SampleOptions { seed: 8, ..small() }).unwrap();
    assert_ne!(before, hashes(&out));
    let truth = out.join("data/truth.csv");
    let rendered = fs::read(&truth).unwrap();
    fs::write(&truth, "edited").unwrap();
    assert!(matches!(write(&out, &small()), Err(SampleError::Changed { found, .. }) if found == "data/truth.csv"));
    fs::write(&truth, rendered).unwrap();
    fs::write(out.join("data/notes.txt"), "mine").unwrap();
    let error = write(&out, &small()).unwrap_err();
    assert!(matches!(&error, SampleError::Occupied { found, .. } if found == "data/notes.txt"), "{error}");
    assert!(error.to_string().contains("data/notes.txt"));
    assert_eq!(fs::read(out.join("data/notes.txt")).unwrap(), b"mine");

    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("a.txt"), "mine").unwrap();
    assert!(matches!(write(foreign.path(), &small()), Err(SampleError::Occupied { .. })));
    fs::remove_file(foreign.path().join("a.txt")).unwrap();
    fs::write(foreign.path().join(MANIFEST), "{").unwrap();
    assert!(matches!(write(foreign.path(), &small()), Err(SampleError::Occupied { .. })));
}

#[test]
fn leftovers_of_a_killed_call_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sample");
    let partial = folder.path().join(".sample.partial");
    fs::create_dir_all(partial.join("data")).unwrap();
    fs::write(partial.join(INCOMPLETE_MARKER), "").unwrap();
    fs::write(partial.join("data/test.tsv"), "half").unwrap();
    let replaced = folder.path().join(".sample.replaced");
    fs::create_dir_all(replaced.join("models")).unwrap();
    fs::write(replaced.join(INCOMPLETE_MARKER), "").unwrap();
    write(&out, &small()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let foreign = folder.path().join(".sample.partial");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("a.txt"), "mine").unwrap();
    assert!(matches!(write(&out, &small()), Err(SampleError::Occupied { .. })));
}

#[test]
fn invalid_options_are_refused_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sample");
    for (train_images, test_images, message) in [
        (39, 1, "cannot generate `39` train images: choose a number from 40 to 1000000"),
        (40, 0, "cannot generate `0` test images: choose a number from 1 to 1000000"),
        (2_000_000, 1, "cannot generate `2000000` train images: choose a number from 40 to 1000000"),
    ] {
        let error =
            write(&out, &SampleOptions { train_images, test_images, seed: 1, ..SampleOptions::default() }).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let error = write(Path::new("/"), &small()).unwrap_err();
    assert!(matches!(error, SampleError::Nameless { .. }));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn every_format_has_one_entry_for_each_row() {
    let (_folder, tsv, _) = write_small();
    let (train, test) = (train_shards(&tsv).len(), test_shards(&tsv).len());
    for format in [SampleFormat::Parquet, SampleFormat::Jsonl, SampleFormat::Webdataset, SampleFormat::Folder] {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        for out in [&one, &two] {
            write(out, &SampleOptions { format, ..small() }).unwrap();
        }
        assert_eq!(hashes(&one), hashes(&two), "{format:?}");
        let counts = ["train", "test"].map(|part| count_entries(&one.join("data"), part, format));
        assert_eq!(counts, [train, test], "{format:?}");
        for name in ["test_caption_list.csv", "truth.csv"] {
            let file = |out: &Path| fs::read(out.join("data").join(name)).unwrap();
            assert_eq!(file(&one), file(&tsv), "{name}");
        }
    }
}

#[test]
fn embeddings_have_one_row_for_each_image() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let options = SampleOptions { train_images: 40, test_images: 5, format: SampleFormat::Embeddings, ..small() };
    for out in [&one, &two] {
        write(out, &options).unwrap();
    }
    assert_eq!(hashes(&one), hashes(&two));
    let images = folder.path().join("images");
    write(&images, &SampleOptions { format: SampleFormat::Tsv, ..options }).unwrap();
    let urls = |rows: Vec<Vec<Vec<u8>>>| rows.into_iter().map(|row| row[0].clone()).collect::<Vec<_>>();
    let folder = one.join("data/image_data_train/resnet_embeddings");
    let rows: Vec<_> =
        (0..4).flat_map(|part| shard(&folder.join(format!("train_resnet_embeddings_part-{part:05}.csv.gz")))).collect();
    assert!(
        rows.iter().filter(|row| row.len() == 2 && row[1].split(|byte| *byte == b',').count() == 2048).count() >= 40
    );
    assert_eq!(urls(rows), urls(train_shards(&images)));
    let file = |out: &Path, name: &str| fs::read(out.join("data").join(name)).unwrap();
    for name in ["test.tsv", "truth.csv", "train-00000-of-00005.tsv"] {
        assert_eq!(file(&one, name), file(&images, name), "{name}");
    }
}

/// Returns the number of rows, samples or files of a part.
fn count_entries(data: &Path, part: &str, format: SampleFormat) -> usize {
    let folder = data.join(if format == SampleFormat::Folder { part.to_owned() } else { format!("image_data_{part}") });
    let mut count = 0;
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        count += match format {
            SampleFormat::Folder if path.is_dir() => fs::read_dir(path).unwrap().count(),
            SampleFormat::Folder | SampleFormat::Tsv | SampleFormat::Embeddings => 0,
            SampleFormat::Parquet => {
                let file = fs::File::open(path).unwrap();
                let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
                assert!(reader.schema().field_with_name("wit_features").is_ok());
                usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap()
            }
            SampleFormat::Jsonl => {
                let mut text = Vec::new();
                flate2::read::MultiGzDecoder::new(fs::File::open(path).unwrap()).read_to_end(&mut text).unwrap();
                text.split(|&byte| byte == b'\n').count() - 1
            }
            SampleFormat::Webdataset => {
                let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
                let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
                names.filter(|name| name.extension().is_some_and(|ending| ending == "json")).count()
            }
        };
    }
    count
}
