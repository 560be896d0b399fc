//! One row of the run's inputs, by its shard and number: the image's bytes as far as they can be had.
//!
//! Only the shards that the run's own configuration lists are read. A row that yields no image is shown as it is stored.
//! Memory is bounded by `preprocess.max_encoded`, as in the run itself.

use std::fmt::Write as _;
use std::sync::Arc;

use super::source::{READ_TIMEOUT, Shards, content_type, decode_text, list_shards};
use crate::config::{MachineFile, PipelineFile, RunConfig, output_stem};
use crate::corpus::{Delimiter, ImageRow, ImageRows, Line, Lines, RecordContent, ResumePoint, RowSplitter};
use crate::objects::{FileFormat, Object, ReadStats, Store};
use crate::pipeline::PipelineError;
use crate::pipeline::feed::feed_parser;
use crate::pipeline::inputs::{ImageReader, NextRow as _, ReadLimits};
use crate::pipeline::manifest::RunFile;
use crate::run_dir::Directory;
use crate::types::ImageFormat;

/// Name of the stream of training images.
pub const TRAIN_STREAM: &str = "train";
/// Bytes of a row that [`InputRow::dump`] shows.
const DUMPED_BYTES: usize = 512;

/// Place of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlace {
    /// [`TRAIN_STREAM`], or the stem of the run's submission for its test images.
    pub stream: String,
    /// Number of the shard in the order of the run.
    pub shard: u32,
    /// Number of the row in the shard, from 0.
    pub row: u64,
}

/// Meaning of the bytes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowPart {
    /// Encoded image.
    Image,
    /// Text of the image's field, which is no base64.
    Text,
    /// The whole row as it is stored, since no image can be taken from it.
    Row,
}

/// A row of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRow {
    /// Name of the shard.
    pub shard: String,
    /// URL of the image, if it can be read.
    pub url: Option<String>,
    /// Problem of the row itself, if no image can be taken from it.
    pub problem: Option<String>,
    /// Meaning of `bytes`.
    pub part: RowPart,
    /// The bytes; empty if the format of the shard does not keep them apart.
    pub bytes: Vec<u8>,
}

impl InputRow {
    /// Returns the content type, if the bytes start as a picture that browsers show.
    pub fn content_type(&self) -> Option<&'static str> {
        if self.part == RowPart::Image { content_type(&self.bytes).ok() } else { None }
    }

    /// Describes the bytes in a few words.
    pub fn description(&self) -> &'static str {
        match self.part {
            RowPart::Image => self.content_type().unwrap_or("bytes of no picture that browsers show"),
            RowPart::Text => "text that is no base64",
            RowPart::Row => "the row as it is stored",
        }
    }

    /// Returns the first bytes, sixteen a line, in hexadecimal and as ASCII.
    pub fn dump(&self) -> String {
        let shown = &self.bytes[..self.bytes.len().min(DUMPED_BYTES)];
        let mut text = String::new();
        for (number, line) in shown.chunks(16).enumerate() {
            let mut hex = String::new();
            for (place, byte) in line.iter().enumerate() {
                let space = if place > 0 && place % 2 == 0 { " " } else { "" };
                write!(hex, "{space}{byte:02x}").ok();
            }
            let ascii: String =
                line.iter().map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' }).collect();
            writeln!(text, "{:08x}: {hex:<39}  {ascii}", 16 * number).ok();
        }
        text
    }
}

/// Reads a row of a run's inputs.
///
/// # Errors
/// When the run has no such row, or its inputs cannot be read or have changed.
pub async fn read_row(dir: &Directory, store: &Store, place: &RowPlace) -> Result<InputRow, PipelineError> {
    let directory = dir.clone();
    let config = tokio::task::spawn_blocking(move || read_config(&directory)).await??;
    let is_test = place.stream != TRAIN_STREAM;
    if is_test && config.predict().is_none_or(|predict| output_stem(&predict.output) != place.stream) {
        return Err(PipelineError::Input(format!(
            "the configuration of the run does not name the images of `{}`: they belong to another pipeline file",
            place.stream
        )));
    }
    let read = async {
        let shards = list_shards(&config, store, is_test).await?;
        read_from(store, &shards, place, config.preprocess().max_encoded.0).await
    };
    tokio::time::timeout(READ_TIMEOUT, read).await.map_err(|_| {
        PipelineError::Input(format!(
            "reading the shard up to this row takes over {} s, since a compressed shard is read from its start",
            READ_TIMEOUT.as_secs()
        ))
    })?
}

fn read_config(dir: &Directory) -> Result<RunConfig, PipelineError> {
    let absent = || PipelineError::Input(format!("`{}` holds no run: `run.toml` is missing", dir.display("")));
    let file = RunFile::read(dir)?.ok_or_else(absent)?;
    Ok(RunConfig::check(PipelineFile::from(file.config), &MachineFile::default())?)
}

async fn read_from(
    store: &Store,
    (input, objects): &Shards,
    place: &RowPlace,
    max_encoded_bytes: u64,
) -> Result<InputRow, PipelineError> {
    let missing = || {
        PipelineError::Input(format!(
            "the inputs of the run have {} shards, and no shard {}",
            objects.len(),
            place.shard
        ))
    };
    let object = objects.get(place.shard as usize).ok_or_else(missing)?;
    let limits = ReadLimits::alone(max_encoded_bytes);
    let stats = Arc::<ReadStats>::default();
    let mut reader = ImageReader::open(store, object, input, limits, (place.row, None), &stats).await?;
    let mut bad = None;
    'rows: loop {
        let more = reader.fill().await?;
        while let Some(row) = reader.next()? {
            match row {
                ImageRow::Ok { row, image_url, image } if row == place.row => {
                    let url = Some(image_url.to_owned());
                    let (part, bytes) = match decode_text(&image) {
                        Ok(bytes) => (RowPart::Image, bytes),
                        Err(_) => (RowPart::Text, image.bytes().to_vec()),
                    };
                    return Ok(InputRow { shard: object.name.clone(), url, problem: None, part, bytes });
                }
                ImageRow::Bad { row, detail, image_url, reason } if row == place.row => {
                    bad = Some((image_url, format!("{reason}: {detail}")));
                    break 'rows;
                }
                ImageRow::Ok { row, .. } | ImageRow::Bad { row, .. } if row > place.row => break 'rows,
                ImageRow::Ok { .. } | ImageRow::Bad { .. } => {}
            }
        }
        if !more {
            break;
        }
        // Decompression never yields by itself.
        tokio::task::yield_now().await;
    }
    let Some((url, problem)) = bad else {
        return Err(PipelineError::Input(format!(
            "`{}` has no row {}: it has changed since the run read it",
            object.name, place.row
        )));
    };
    let bytes = match input.format {
        ImageFormat::Auto | ImageFormat::Tsv => {
            let header = ImageRows::new(&object.url, input.columns.clone(), limits.max_record_bytes);
            read_record(store, object, header, (place.row, limits.max_record_bytes)).await?
        }
        ImageFormat::Jsonl => {
            let most = limits.max_record_bytes.saturating_add(limits.max_json_bytes);
            read_line(store, object, (place.row, most)).await?
        }
        ImageFormat::WebDataset | ImageFormat::Parquet | ImageFormat::Folder => Vec::new(),
    };
    Ok(InputRow { shard: object.name.clone(), url, problem: Some(problem), part: RowPart::Row, bytes })
}

/// Reads the fields of a row of a text shard, with a tab between them; of a row over the limit its start.
async fn read_record(
    store: &Store,
    object: &Object,
    mut header: ImageRows,
    (row, max_bytes): (u64, usize),
) -> Result<Vec<u8>, PipelineError> {
    let mut reader = store.open_as(&[FileFormat::Text], object, 0, Arc::default()).await?;
    while header.next()?.is_none() {
        if !feed_parser(&mut reader, &mut header, &object.url).await? && header.next()?.is_none() {
            return Ok(Vec::new());
        }
    }
    let number = row + u64::from(header.has_header());
    drop(header);
    let mut reader = store.open_as(&[FileFormat::Text], object, 0, Arc::default()).await?;
    let mut rows = RowSplitter::new(Delimiter::Tab, max_bytes);
    loop {
        let more = feed_parser(&mut reader, &mut rows, &object.url).await?;
        while let Some(record) = rows.next() {
            if record.number == number {
                return Ok(match record.content {
                    RecordContent::Fields(fields) => fields.iter().collect::<Vec<_>>().join(&b'\t'),
                    RecordContent::Oversized { prefix } => prefix.to_vec(),
                });
            }
        }
        if !more {
            return Ok(Vec::new());
        }
        tokio::task::yield_now().await;
    }
}

/// Reads a line of JSON lines; nothing of a line over the limit.
async fn read_line(store: &Store, object: &Object, (row, max_bytes): (u64, usize)) -> Result<Vec<u8>, PipelineError> {
    let formats = [FileFormat::JsonLines, FileFormat::Text];
    let mut reader = store.open_as(&formats, object, 0, Arc::default()).await?;
    let mut lines = Lines::new(max_bytes, ResumePoint { byte_offset: 0, number: 0 });
    loop {
        let more = feed_parser(&mut reader, &mut lines, &object.url).await?;
        while let Some(line) = lines.next() {
            match line {
                Line::Text { number, text } if number == row => return Ok(text.to_vec()),
                Line::Oversized { number, .. } if number == row => return Ok(Vec::new()),
                Line::Text { .. } | Line::Oversized { .. } => {}
            }
        }
        if !more {
            return Ok(Vec::new());
        }
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(part: RowPart, bytes: &[u8]) -> InputRow {
        InputRow { shard: String::new(), url: None, problem: None, part, bytes: bytes.to_vec() }
    }

    #[test]
    fn dump_is_that_of_xxd() {
        let shown = row(RowPart::Image, b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\x01\0H\0").dump();
        assert_eq!(
            shown,
            "00000000: ffd8 ffe0 0010 4a46 4946 0001 0101 0048  ......JFIF.....H\n00000010: 00                                       .\n"
        );
        assert_eq!(row(RowPart::Row, &[b'a'; 9999]).dump().lines().count(), DUMPED_BYTES / 16);
    }

    #[test]
    fn markup_has_no_content_type() {
        for bytes in
            [&b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"[..], b"<html><script>", b"%PDF-1.7", b""]
        {
            assert_eq!(row(RowPart::Image, bytes).content_type(), None);
        }
        assert_eq!(row(RowPart::Image, b"GIF89a").content_type(), Some("image/gif"));
        assert_eq!(row(RowPart::Text, b"GIF89a").content_type(), None);
    }

    #[tokio::test]
    async fn rows_without_an_image_are_read_as_stored() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::default();
        let columns = crate::config::ImageColumnNames::default;
        for (name, content, format, expected) in [
            (
                "a.tsv",
                &b"u0\tAAAA\n\nonly one field\nu2\t\xff\xfe!\t\t\t\n"[..],
                ImageFormat::Tsv,
                ["u0\tAAAA", "only one field"],
            ),
            ("b.tsv", b"image_url\tb64_bytes\nu0\tAAAA\nx\ty\tz\tw\n", ImageFormat::Tsv, ["u0\tAAAA", "x\ty\tz\tw"]),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let shards =
                crate::pipeline::inputs::list_images(&store, &[path.display().to_string()], format, &columns())
                    .await
                    .unwrap();
            let read = |row| {
                let (store, shards) = (&store, &shards);
                async move {
                    read_from(store, shards, &RowPlace { stream: TRAIN_STREAM.to_owned(), shard: 0, row }, 1 << 20)
                        .await
                }
            };
            let good = read(0).await.unwrap();
            assert_eq!((good.url.as_deref(), good.part, &*good.bytes), (Some("u0"), RowPart::Image, &[0, 0, 0][..]));
            let bad = read(1).await.unwrap();
            assert_eq!((bad.part, &*bad.bytes), (RowPart::Row, expected[1].as_bytes()));
            assert!(bad.problem.unwrap().starts_with("wrong_field_count: "));
            assert!(read(9).await.unwrap_err().to_string().contains("has no row 9"));
        }
        let path = dir.path().join("c.jsonl");
        std::fs::write(&path, "{\"url\":\"u\",\"image\":\"AAAA\"}\n\nno json\n").unwrap();
        let shards =
            crate::pipeline::inputs::list_images(&store, &[path.display().to_string()], ImageFormat::Jsonl, &columns())
                .await
                .unwrap();
        let place = RowPlace { stream: TRAIN_STREAM.to_owned(), shard: 0, row: 1 };
        let bad = read_from(&store, &shards, &place, 1 << 20).await.unwrap();
        assert_eq!((bad.part, &*bad.bytes), (RowPart::Row, &b"no json"[..]));
    }
}
