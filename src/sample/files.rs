//! The files of a drawn corpus: a plan in, bytes on disk out.
//!
//! Shards are drawn by as many threads as there are processors, each shard by one of them and each picture from its own
//! stream of dice, so that the bytes do not depend on the number of threads. Memory: one picture a thread.

use super::SampleError;
use super::concepts::Concept;
use super::encode::Unusable;
use super::encode::encode;
use super::plan::Payload;
use super::plan::Plan;
use super::plan::ShardRow;
use super::plan::TRAIN_FILES;
use super::render::Picture;
use super::rng::Purpose;
use super::rng::SampleRng;
use super::rows::COLUMNS;
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
/// The train shard that is several gzip members one after the other, and how many rows a member ends after.
const SPLIT_SHARD: usize = 1;
const SPLIT_ROWS: usize = 100;

/// Writes everything below `root`, which exists and is empty but for what the caller put there.
pub(super) fn write_all(root: &Path, plan: &Plan, seed: u64) -> Result<(), SampleError> {
    let data = root.join("data");
    let train = data.join("image_data_train/image_pixels");
    let test = data.join("image_data_test/image_pixels");
    let model = root.join("models/vit-tiny");
    for folder in [&train, &test, &model] {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    for (number, rows) in plan.train_rows.iter().enumerate() {
        let header = COLUMNS.map(str::as_bytes);
        let path = data.join(format!("train-{number:05}-of-{TRAIN_FILES:05}.tsv"));
        let rows = rows.iter().map(|row| row.iter().map(Vec::as_slice).collect());
        write_table(&path, b'\t', &header, rows)?;
    }
    write_tables(&data, plan)?;
    write_json(&model.join("config.json"), &super::checkpoint::config())?;
    write_json(&model.join("preprocessor_config.json"), &super::checkpoint::preprocessor())?;
    let weights = super::checkpoint::weights(seed).map_err(|source| SampleError::Weights { source })?;
    write_file(&model.join("model.safetensors"), &weights)?;

    let train_shards = plan.train_shards.iter().enumerate().map(|(number, rows)| Shard {
        path: train.join(format!("train_image_pixels_part-{number:05}.csv.gz")),
        rows,
        packing: if number == SPLIT_SHARD { Packing::Members } else { Packing::Gzip },
    });
    let test_shards = plan.test_shards.iter().enumerate().map(|(number, rows)| Shard {
        path: test.join(format!("test_image_pixels_part-{number:05}.csv")),
        rows,
        packing: Packing::Plain,
    });
    draw_shards(&train_shards.chain(test_shards).collect::<Vec<_>>(), seed)
}

fn write_tables(data: &Path, plan: &Plan) -> Result<(), SampleError> {
    let numbers: Vec<String> = (0..plan.ids.len()).map(|id| id.to_string()).collect();
    let paired = |texts: &'_ [String]| -> Vec<Vec<u8>> { texts.iter().map(|text| text.as_bytes().to_vec()).collect() };
    let (urls, truth) = (paired(&plan.ids), paired(&plan.truth));
    let with_ids = |fields: &[Vec<u8>]| -> Vec<Vec<Vec<u8>>> {
        numbers.iter().zip(fields).map(|(id, field)| vec![id.as_bytes().to_vec(), field.clone()]).collect()
    };
    let list: Vec<Vec<Vec<u8>>> = plan.list.iter().map(|caption| vec![caption.as_bytes().to_vec()]).collect();
    // The published example names five captions for each id without regard to the image.
    let example: Vec<Vec<Vec<u8>>> = (0..plan.ids.len() * 5)
        .map(|place| {
            let caption = &plan.list[place % plan.list.len()];
            vec![(place / 5).to_string().into_bytes(), caption.as_bytes().to_vec()]
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

fn write_table<'a>(
    path: &Path,
    delimiter: u8,
    header: &[&[u8]],
    rows: impl Iterator<Item = Vec<&'a [u8]>>,
) -> Result<(), SampleError> {
    let file = File::create_new(path).map_err(at(path))?;
    let mut writer = csv::WriterBuilder::new().delimiter(delimiter).flexible(true).from_writer(file);
    let failed = |error: csv::Error| at(path)(io::Error::other(error));
    writer.write_record(header).map_err(failed)?;
    for row in rows {
        writer.write_record(row).map_err(failed)?;
    }
    writer.flush().map_err(at(path))
}

pub(super) fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), SampleError> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), SampleError> {
    let mut file = File::create_new(path).map_err(at(path))?;
    file.write_all(bytes).map_err(at(path))
}

/// Turns the error of an operation on `path` into the module's.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> SampleError {
    let path = path.to_owned();
    move |source| SampleError::Disk { path: path.clone(), source }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Members,
}

struct Shard<'a> {
    path: PathBuf,
    rows: &'a [ShardRow],
    packing: Packing,
}

/// Draws all shards; the first error that a thread meets ends that thread and is returned.
fn draw_shards(shards: &[Shard<'_>], seed: u64) -> Result<(), SampleError> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
            draw_shard(shard, seed)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(shards.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        results.into_iter().try_for_each(|result| match result {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn draw_shard(shard: &Shard<'_>, seed: u64) -> Result<(), SampleError> {
    let failed = at(&shard.path);
    let mut file = BufWriter::new(File::create_new(&shard.path).map_err(&failed)?);
    match shard.packing {
        Packing::Plain => {
            for row in shard.rows {
                file.write_all(&line(row, seed)?).map_err(&failed)?;
            }
        }
        Packing::Gzip => {
            let mut member = gzip(&mut file);
            for row in shard.rows {
                member.write_all(&line(row, seed)?).map_err(&failed)?;
            }
            member.finish().map_err(&failed)?;
        }
        Packing::Members => {
            // A member ends in the middle of a row: joined members are one text, and rows know nothing of them.
            let mut member = gzip(&mut file);
            for (place, row) in shard.rows.iter().enumerate() {
                let line = line(row, seed)?;
                let (head, tail) = line.split_at(line.len() / 2);
                member.write_all(head).map_err(&failed)?;
                if place % SPLIT_ROWS == SPLIT_ROWS / 2 {
                    member.finish().map_err(&failed)?;
                    member = gzip(&mut file);
                }
                member.write_all(tail).map_err(&failed)?;
            }
            member.finish().map_err(&failed)?;
        }
    }
    file.flush().map_err(&failed)
}

/// No name, no time: the same rows give the same bytes. Base64 of compressed pictures has little left to find, so level 1.
fn gzip<W: Write>(writer: W) -> GzEncoder<W> {
    GzBuilder::new().write(writer, Compression::new(1))
}

/// `url TAB base64 TAB metadata_url`, and what an unusable row makes of it.
fn line(row: &ShardRow, seed: u64) -> Result<Vec<u8>, SampleError> {
    let encoded = |source| SampleError::Encode { source };
    let mut url = row.url.clone().into_bytes();
    let name = row.url.rsplit('/').next().unwrap_or_default();
    let mut fields = vec![format!("http://commons.wikimedia.org/wiki/File:{name}").into_bytes()];
    match row.payload {
        Payload::Good { purpose, concept } => {
            let mut rng = SampleRng::new(seed, purpose);
            let picture = Picture::draw(Concept::of(concept), &mut rng);
            let bytes = encode(&picture, &mut rng).map_err(encoded)?;
            fields.insert(0, base64_simd::STANDARD.encode_to_string(&bytes).into_bytes());
        }
        Payload::Bad { kind, number } => {
            let mut rng = SampleRng::new(seed, Purpose::Unusable(number));
            let picture = Picture::draw(Concept::of(rng.below(super::concepts::CONCEPTS)), &mut rng);
            // Every kind comes once a round.
            let odd = (number / super::encode::UNUSABLE.len() as u32) % 2 == 1;
            fields.insert(0, kind.field(&picture, odd).map_err(encoded)?.into_bytes());
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
