//! Writes the files of a synthetic corpus.
//!
//! Shards are written by as many threads as there are processors. Each shard is written by one thread and each image
//! uses its own random stream, so the bytes do not depend on the number of threads. Each thread holds one image in
//! memory.

use super::SampleError;
use super::SampleFormat;
use super::contents::CorpusContents;
use super::contents::Payload;
use super::contents::ShardRow;
use super::contents::TRAIN_FILES;
use super::embeddings::Embedder;
use super::encode::Unusable;
use super::encode::encode;
use super::render::RenderedImage;
use super::rng::SampleRng;
use super::rng::Stream;
use super::rows::COLUMNS;
use super::scenes::Scene;
use flate2::Compression;
use flate2::GzBuilder;
use flate2::write::GzEncoder;
use std::fs;
use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

const TARGET: &str = "caption_title_and_reference_description";
/// Index of the train shard that consists of several gzip members.
const MULTI_MEMBER_SHARD: usize = 1;
/// Number of rows in each of its members.
const MEMBER_ROWS: usize = 100;

/// Writes all files to `root`, which must be empty except for the caller's own files.
pub(super) fn write_all(
    root: &Path,
    contents: &CorpusContents,
    seed: u64,
    format: SampleFormat,
) -> Result<(), SampleError> {
    let (data, model) = (root.join("data"), root.join("models/vit-tiny"));
    for folder in [&data, &model] {
        fs::create_dir_all(folder).map_err(disk_error(folder))?;
    }
    write_json(&model.join("config.json"), &super::checkpoint::config())?;
    write_json(&model.join("preprocessor_config.json"), &super::checkpoint::preprocessor())?;
    let weights = super::checkpoint::weights(seed).map_err(|source| SampleError::Weights { source })?;
    write_file(&model.join("model.safetensors"), &weights)?;
    let names = match format {
        SampleFormat::Tsv => {
            write_published(&data, contents, "image_pixels", &|row| encode_row(row, seed)).map(|()| None)?
        }
        SampleFormat::Embeddings => {
            let embedder = Embedder::new();
            let encode = |row: &ShardRow| embedder.encode_row(row, seed);
            write_published(&data, contents, "resnet_embeddings", &encode).map(|()| None)?
        }
        other => super::formats::write(&data, contents, seed, other)?,
    };
    let names = names.unwrap_or_default();
    // The missing image of one id has no file either.
    let ids: Vec<String> = contents.ids.iter().map(|url| names.get(url).unwrap_or(url).clone()).collect();
    write_test_tables(&data, contents, &ids)
}

/// Returns the line of a row of a shard.
type EncodeRow<'a> = &'a (dyn Fn(&ShardRow) -> Result<Vec<u8>, SampleError> + Sync);

/// Writes shards of images, or of their features, and captions in the published layout. `kind` names folder and files.
fn write_published(
    data: &Path,
    contents: &CorpusContents,
    kind: &str,
    encode: EncodeRow<'_>,
) -> Result<(), SampleError> {
    let train = data.join("image_data_train").join(kind);
    let test = data.join("image_data_test").join(kind);
    for folder in [&train, &test] {
        fs::create_dir_all(folder).map_err(disk_error(folder))?;
    }
    for (number, rows) in contents.train_rows.iter().enumerate() {
        let header = COLUMNS.map(str::as_bytes);
        let path = data.join(format!("train-{number:05}-of-{TRAIN_FILES:05}.tsv"));
        let rows = rows.iter().map(|row| row.iter().map(Vec::as_slice).collect());
        write_table(&path, b'\t', &header, rows)?;
    }
    let train_shards = contents.train_shards.iter().enumerate().map(|(number, rows)| Shard {
        path: train.join(format!("train_{kind}_part-{number:05}.csv.gz")),
        rows,
        format: if number == MULTI_MEMBER_SHARD { ShardFormat::MultiMemberGzip } else { ShardFormat::Gzip },
    });
    let test_shards = contents.test_shards.iter().enumerate().map(|(number, rows)| Shard {
        path: test.join(format!("test_{kind}_part-{number:05}.csv")),
        rows,
        format: ShardFormat::Plain,
    });
    run_parallel(&train_shards.chain(test_shards).collect::<Vec<_>>(), |shard| write_shard(shard, encode))
}

/// Writes the tables of the test: `urls` names the image of each id.
fn write_test_tables(data: &Path, contents: &CorpusContents, urls: &[String]) -> Result<(), SampleError> {
    let numbers: Vec<String> = (0..contents.ids.len()).map(|id| id.to_string()).collect();
    let to_fields =
        |texts: &'_ [String]| -> Vec<Vec<u8>> { texts.iter().map(|text| text.as_bytes().to_vec()).collect() };
    let (urls, truth) = (to_fields(urls), to_fields(&contents.truth));
    let with_ids = |fields: &[Vec<u8>]| -> Vec<Vec<Vec<u8>>> {
        numbers.iter().zip(fields).map(|(id, field)| vec![id.as_bytes().to_vec(), field.clone()]).collect()
    };
    let list: Vec<Vec<Vec<u8>>> = contents.list.iter().map(|caption| vec![caption.as_bytes().to_vec()]).collect();
    // The published example lists five captions for each id, whatever the image.
    let example: Vec<Vec<Vec<u8>>> = (0..contents.ids.len() * 5)
        .map(|index| {
            let caption = &contents.list[index % contents.list.len()];
            vec![(index / 5).to_string().into_bytes(), caption.as_bytes().to_vec()]
        })
        .collect();
    for (name, delimiter, header, rows) in [
        ("test.tsv", b'\t', &["id", "image_url"][..], with_ids(&urls)),
        ("truth.csv", b',', &["id", TARGET][..], with_ids(&truth)),
        ("test_caption_list.csv", b',', &[TARGET][..], list),
        ("sample_submission.csv", b',', &["id", TARGET][..], example),
    ] {
        let header: Vec<&[u8]> = header.iter().map(|name| name.as_bytes()).collect();
        let rows = rows.iter().map(|row| row.iter().map(Vec::as_slice).collect());
        write_table(&data.join(name), delimiter, &header, rows)?;
    }
    Ok(())
}

pub(super) fn write_table<'a>(
    path: &Path,
    delimiter: u8,
    header: &[&[u8]],
    rows: impl Iterator<Item = Vec<&'a [u8]>>,
) -> Result<(), SampleError> {
    let file = File::create_new(path).map_err(disk_error(path))?;
    let mut writer = csv::WriterBuilder::new().delimiter(delimiter).flexible(true).from_writer(file);
    let failed = |error: csv::Error| disk_error(path)(io::Error::other(error));
    writer.write_record(header).map_err(failed)?;
    for row in rows {
        writer.write_record(row).map_err(failed)?;
    }
    writer.flush().map_err(disk_error(path))
}

pub(super) fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), SampleError> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), SampleError> {
    let mut file = File::create_new(path).map_err(disk_error(path))?;
    file.write_all(bytes).map_err(disk_error(path))
}

/// Converts an I/O error on `path` to a [`SampleError`].
pub(super) fn disk_error(path: &Path) -> impl Fn(io::Error) -> SampleError {
    let path = path.to_owned();
    move |source| SampleError::Disk { path: path.clone(), source }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShardFormat {
    Plain,
    Gzip,
    MultiMemberGzip,
}

struct Shard<'a> {
    path: PathBuf,
    rows: &'a [ShardRow],
    format: ShardFormat,
}

/// Writes all parts in parallel. A thread stops at its first error, which is returned.
pub(super) fn run_parallel<T: Sync>(
    parts: &[T],
    write: impl Fn(&T) -> Result<(), SampleError> + Sync,
) -> Result<(), SampleError> {
    let next = AtomicUsize::new(0);
    let run_worker = || {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            write(part)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(parts.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run_worker)).collect();
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        results.into_iter().try_for_each(|result| match result {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn write_shard(shard: &Shard<'_>, encode: EncodeRow<'_>) -> Result<(), SampleError> {
    let failed = disk_error(&shard.path);
    let mut file = BufWriter::new(File::create_new(&shard.path).map_err(&failed)?);
    match shard.format {
        ShardFormat::Plain => {
            for row in shard.rows {
                file.write_all(&encode(row)?).map_err(&failed)?;
            }
        }
        ShardFormat::Gzip => {
            let mut member = start_gzip(&mut file);
            for row in shard.rows {
                member.write_all(&encode(row)?).map_err(&failed)?;
            }
            member.finish().map_err(&failed)?;
        }
        ShardFormat::MultiMemberGzip => {
            // Members end in the middle of a row, because readers must treat the joined members as one text.
            let mut member = start_gzip(&mut file);
            for (index, row) in shard.rows.iter().enumerate() {
                let line = encode(row)?;
                let (head, tail) = line.split_at(line.len() / 2);
                member.write_all(head).map_err(&failed)?;
                if index % MEMBER_ROWS == MEMBER_ROWS / 2 {
                    member.finish().map_err(&failed)?;
                    member = start_gzip(&mut file);
                }
                member.write_all(tail).map_err(&failed)?;
            }
            member.finish().map_err(&failed)?;
        }
    }
    file.flush().map_err(&failed)
}

/// Starts a gzip member without name and time, so that equal rows give equal bytes. Level 1, because base64 of
/// compressed images hardly compresses.
pub(super) fn start_gzip<W: Write>(writer: W) -> GzEncoder<W> {
    GzBuilder::new().write(writer, Compression::new(1))
}

/// Returns the line `url TAB base64 TAB metadata_url` of a row, altered if the row is unusable.
fn encode_row(row: &ShardRow, seed: u64) -> Result<Vec<u8>, SampleError> {
    let encoded = |source| SampleError::Encode { source };
    let mut url = row.url.clone().into_bytes();
    let name = row.url.rsplit('/').next().unwrap_or_default();
    let mut fields = vec![format!("http://commons.wikimedia.org/wiki/File:{name}").into_bytes()];
    match row.payload {
        Payload::Image { stream, scene } => {
            let mut rng = SampleRng::new(seed, stream);
            let image = RenderedImage::render(Scene::from_number(scene), &mut rng);
            let bytes = encode(&image, &mut rng).map_err(encoded)?;
            fields.insert(0, base64_simd::STANDARD.encode_to_string(&bytes).into_bytes());
        }
        Payload::Unusable { kind, number } => {
            let mut rng = SampleRng::new(seed, Stream::Unusable(number));
            let image = RenderedImage::render(Scene::from_number(rng.below(super::scenes::SCENE_COUNT)), &mut rng);
            // Each round contains every kind once; odd rounds use the second variant.
            let odd = (number / super::encode::UNUSABLE_KINDS.len() as u32) % 2 == 1;
            fields.insert(0, kind.base64_field(&image, odd).map_err(encoded)?.into_bytes());
            match kind {
                Unusable::Fields if odd => fields.push(b"a fourth field".to_vec()),
                Unusable::Fields => fields.truncate(1),
                Unusable::UrlBytes => url.extend_from_slice(b"?\xff\xfe"),
                Unusable::Svg
                | Unusable::Html
                | Unusable::Truncated
                | Unusable::Base64
                | Unusable::Empty
                | Unusable::Bomb => {}
            }
        }
    }
    let mut line = url;
    for field in fields {
        line.push(b'\t');
        line.extend_from_slice(&field);
    }
    line.push(b'\n');
    Ok(line)
}
