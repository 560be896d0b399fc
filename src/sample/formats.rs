//! The synthetic corpus in other formats than the published one: the same pictures, in the same order, with the same
//! captions.
//!
//! Each row of an image shard becomes one row, sample or file, so that the order of images and the boundaries of chunks are
//! those of the published layout. An unusable row becomes the nearest thing that the format can hold. Captions whose image
//! has no pixels, and malformed caption rows, are left out.

mod folder;
mod jsonl;
mod parquet;
mod webdataset;

use super::SampleError;
use super::SampleFormat;
use super::contents::CorpusContents;
use super::contents::Payload;
use super::contents::ShardRow;
use super::contents::TrainRow;
use super::encode::UNUSABLE_KINDS;
use super::encode::Unusable;
use super::encode::encode;
use super::files::disk_error;
use super::files::run_parallel;
use super::render::RenderedImage;
use super::rng::SampleRng;
use super::rng::Stream;
use super::rows::COLUMNS;
use super::scenes::Scene;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Caption of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Caption {
    language: String,
    page_url: String,
    page_title: String,
    /// Value of `caption_reference_description`.
    text: String,
    /// Value of `caption_title_and_reference_description`.
    target: String,
}

/// Row of a shard with its captions.
struct Row<'a> {
    source: &'a ShardRow,
    captions: Vec<Caption>,
    /// Name of the picture's file without its extension, unique in the corpus.
    name: String,
}

/// Content of a row.
struct Picture {
    /// URL; one row has bytes that are not UTF-8.
    url: Vec<u8>,
    /// Bytes of the image file; `None` if the row lacks the field.
    bytes: Option<Vec<u8>>,
    /// The same as base64, damaged if the row is.
    base64: Option<String>,
}

impl Picture {
    /// Returns the URL; `None` if it is not UTF-8.
    fn url(&self) -> Option<&str> {
        std::str::from_utf8(&self.url).ok()
    }

    /// Returns the extension of the image file's format.
    fn extension(&self) -> &'static str {
        match self.bytes.as_deref().unwrap_or_default() {
            [0x89, b'P', ..] => "png",
            [b'G', b'I', b'F', ..] => "gif",
            [b'R', b'I', b'F', b'F', ..] => "webp",
            [b'I', b'I', ..] | [b'M', b'M', ..] => "tif",
            [b'B', b'M', ..] => "bmp",
            _ => "jpg",
        }
    }
}

/// One file, or one sub-folder of files, to write.
struct Part<'a> {
    path: PathBuf,
    rows: Vec<Row<'a>>,
}

/// Writes images and captions in a format other than the published one. Returns the names of the test images by URL where
/// they are not named by their URL.
pub(super) fn write(
    data: &Path,
    contents: &CorpusContents,
    seed: u64,
    format: SampleFormat,
) -> Result<Option<HashMap<String, String>>, SampleError> {
    let mut captions = captions_by_url(contents);
    let (train, test) = match format {
        SampleFormat::Folder => ("train", "test"),
        _ => ("image_data_train", "image_data_test"),
    };
    let (train, test) = (data.join(train), data.join(test));
    for folder in [&train, &test] {
        fs::create_dir_all(folder).map_err(disk_error(folder))?;
    }
    let (mut number, mut parts) = (0, Vec::new());
    for (folder, shards) in [(&train, &contents.train_shards), (&test, &contents.test_shards)] {
        for (part, rows) in shards.iter().enumerate() {
            let rows = rows.iter().map(|source| {
                number += 1;
                // An image that occurs twice has its captions once; one whose URL is not UTF-8 has none.
                let captions = match source.payload {
                    Payload::Unusable { kind: Unusable::UrlBytes, .. } => Vec::new(),
                    _ => captions.remove(source.url.as_str()).unwrap_or_default(),
                };
                Row { source, captions, name: format!("{number:07}") }
            });
            parts.push(Part { path: folder.join(part_name(part, format)), rows: rows.collect() });
        }
    }
    run_parallel(&parts, |part| match format {
        SampleFormat::Tsv | SampleFormat::Embeddings | SampleFormat::Parquet => {
            parquet::write(&part.path, &part.rows, seed)
        }
        SampleFormat::Jsonl => jsonl::write(&part.path, &part.rows, seed),
        SampleFormat::Webdataset => webdataset::write(&part.path, &part.rows, seed),
        SampleFormat::Folder => folder::write(&part.path, &part.rows, seed),
    })?;
    if format != SampleFormat::Folder {
        return Ok(None);
    }
    let train_parts: Vec<&Part<'_>> = parts.iter().filter(|part| part.path.starts_with(&train)).collect();
    folder::write_metadata(&train, &train_parts)?;
    let test_parts = parts.iter().filter(|part| part.path.starts_with(&test));
    folder::names_by_url(&test, test_parts).map(Some)
}

fn part_name(part: usize, format: SampleFormat) -> String {
    match format {
        SampleFormat::Tsv | SampleFormat::Embeddings | SampleFormat::Parquet => format!("part-{part:05}.parquet"),
        SampleFormat::Jsonl => format!("part-{part:05}.json.gz"),
        SampleFormat::Webdataset => format!("part-{part:05}.tar"),
        SampleFormat::Folder => format!("part-{part:05}"),
    }
}

/// Returns the captions of the well-formed train rows, by URL and in order.
fn captions_by_url(contents: &CorpusContents) -> HashMap<String, Vec<Caption>> {
    let mut captions: HashMap<String, Vec<Caption>> = HashMap::new();
    for row in contents.train_rows.iter().flatten() {
        let Some((url, caption)) = parse_row(row) else { continue };
        captions.entry(url).or_default().push(caption);
    }
    captions
}

/// Returns URL and caption of a row; `None` if it is malformed or lacks one of them.
fn parse_row(row: &TrainRow) -> Option<(String, Caption)> {
    if row.len() != COLUMNS.len() {
        return None;
    }
    let field = |name: &str| {
        let column = COLUMNS.iter().position(|column| *column == name)?;
        String::from_utf8(row[column].clone()).ok()
    };
    let caption = Caption {
        language: field("language")?,
        page_url: field("page_url")?,
        page_title: field("page_title")?,
        text: field("caption_reference_description")?,
        target: field("caption_title_and_reference_description")?,
    };
    let url = field("image_url").filter(|url| !url.is_empty())?;
    (!caption.target.is_empty()).then_some((url, caption))
}

/// Renders the picture of a row, altered if the row is unusable.
fn render(row: &ShardRow, seed: u64) -> Result<Picture, SampleError> {
    let encoded = |source| SampleError::Encode { source };
    let url = row.url.clone().into_bytes();
    match row.payload {
        Payload::Image { stream, scene } => {
            let mut rng = SampleRng::new(seed, stream);
            let image = RenderedImage::render(Scene::from_number(scene), &mut rng);
            let bytes = encode(&image, &mut rng).map_err(encoded)?;
            let base64 = Some(base64_simd::STANDARD.encode_to_string(&bytes));
            Ok(Picture { url, bytes: Some(bytes), base64 })
        }
        Payload::Unusable { kind, number } => {
            let mut rng = SampleRng::new(seed, Stream::Unusable(number));
            let image = RenderedImage::render(Scene::from_number(rng.below(super::scenes::SCENE_COUNT)), &mut rng);
            let odd = (number / UNUSABLE_KINDS.len() as u32) % 2 == 1;
            let field = kind.base64_field(&image, odd).map_err(encoded)?;
            let mut picture = Picture { url, bytes: None, base64: None };
            match kind {
                Unusable::Fields if odd => return Ok(picture),
                Unusable::UrlBytes => picture.url.extend_from_slice(b"?\xff\xfe"),
                _ => {}
            }
            // Damaged base64 stands for bytes that are not an image.
            let decoded = base64_simd::STANDARD.decode_to_vec(&field);
            picture.bytes = Some(decoded.unwrap_or_else(|_| field.clone().into_bytes()[..64].to_vec()));
            picture.base64 = Some(field);
            Ok(picture)
        }
    }
}
