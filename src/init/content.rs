//! Recognises a file by its start: format, columns and first captions.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::parquet;
use crate::corpus::{ColumnKind, looks_like_numbers};
use crate::objects::{FileFormat, Object, Store, StoreError, explain_read};

/// Formats whose start is looked at. Others are named in the reason why a file is left out.
const READ: &[FileFormat] =
    &[FileFormat::Text, FileFormat::JsonLines, FileFormat::JsonArray, FileFormat::Tar, FileFormat::Parquet];
/// Upper bound on the decompressed bytes that are read from a file.
const MAX_BYTES: u64 = 16 << 20;
/// Rows that are looked at for published features. Single ones may be damaged.
const FEATURE_ROWS: usize = 32;
/// Rows that are looked at.
pub(super) const MAX_ROWS: usize = 2000;
/// Extensions of pictures in tar archives.
const MEMBERS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// Format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    Tsv,
    Csv,
    Parquet,
    Jsonl,
    Webdataset,
}

impl Format {
    /// Returns the word of `images.format` and `pairs.format`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tsv => "tsv",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Jsonl => "jsonl",
            Self::Webdataset => "webdataset",
        }
    }
}

/// Start of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) format: Format,
    /// Names of the columns; of members, for tar archives.
    pub(super) columns: Vec<String>,
    /// First rows of a table, by column.
    pub(super) rows: Vec<Vec<String>>,
    pub(super) image: Option<String>,
    /// Values of a published feature, if rows hold these in place of images.
    pub(super) feature_dim: Option<u32>,
    pub(super) url: Option<String>,
    pub(super) caption: Option<String>,
    /// First captions.
    pub(super) captions: Vec<String>,
    /// Number of rows, where the file states it.
    pub(super) row_count: Option<u64>,
}

impl Content {
    pub(super) fn new(format: Format, columns: Vec<String>) -> Self {
        let find = |usual: &[&str]| {
            usual.iter().find(|name| columns.iter().any(|column| column == *name)).map(|name| (*name).to_owned())
        };
        let [image, url, caption] =
            [ColumnKind::Image, ColumnKind::PairUrl, ColumnKind::Caption].map(|kind| find(kind.usual()));
        let (rows, captions) = (Vec::new(), Vec::new());
        Self { format, columns, rows, image, feature_dim: None, url, caption, captions, row_count: None }
    }

    pub(super) fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }

    /// Returns the values of a column of a table.
    pub(super) fn values(&self, column: &str) -> Vec<String> {
        let Some(index) = self.columns.iter().position(|name| name == column) else { return Vec::new() };
        self.rows.iter().filter_map(|row| row.get(index)).cloned().collect()
    }
}

/// Reads the start of a file. The error is a clause that says why it is unusable.
pub(super) async fn read(store: &Store, name: &str) -> Result<Content, String> {
    let object = Box::pin(store.find(name)).await.map_err(|error| error.to_string())?;
    if object.size == 0 {
        return Err("it is empty".to_owned());
    }
    let lower = name.split('?').next().unwrap_or(name).to_lowercase();
    let is = |endings: &[&str]| {
        endings.iter().any(|ending| lower.trim_end_matches(".gz").trim_end_matches(".zst").ends_with(ending))
    };
    if is(&[".parquet"]) {
        return Box::pin(parquet::read(store, &object)).await;
    }
    let start = Box::pin(read_start(store, &object)).await.map_err(|error| error.to_string())?;
    if start.starts_with(b"PAR1") {
        return Box::pin(parquet::read(store, &object)).await;
    }
    if is(&[".tar", ".tgz"]) || start.get(257..262) == Some(b"ustar") {
        return read_tar(&start);
    }
    if is(&[".json", ".jsonl", ".ndjson"]) || start.trim_ascii_start().starts_with(b"{") {
        return read_json_lines(&start);
    }
    read_table(&start, is(&[".csv"]))
}

async fn read_start(store: &Store, object: &Object) -> Result<Vec<u8>, StoreError> {
    let mut start = Vec::new();
    let mut reader = store.open_as(READ, object, 0, std::sync::Arc::default()).await?.take(MAX_BYTES);
    reader.read_to_end(&mut start).await.map_err(|error| explain_read(&object.url, error))?;
    Ok(start)
}

/// Returns the complete lines of a text.
fn complete_lines(start: &[u8]) -> &[u8] {
    if (start.len() as u64) < MAX_BYTES {
        return start;
    }
    start.iter().rposition(|byte| *byte == b'\n').map_or(start, |end| &start[..=end])
}

fn read_table(start: &[u8], named_csv: bool) -> Result<Content, String> {
    let text = complete_lines(start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start));
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let tabs = line.contains(&b'\t');
    if std::str::from_utf8(line).is_err() || line.contains(&0) {
        return Err("it is not UTF-8 text".to_owned());
    }
    let is_tsv = tabs && !(named_csv && line.contains(&b','));
    let (format, delimiter) = if is_tsv { (Format::Tsv, b'\t') } else { (Format::Csv, b',') };
    if tabs && let Some(content) = read_image_rows(text) {
        return Ok(content);
    }
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text);
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let mut content = Content::new(format, header.iter().map(ToOwned::to_owned).collect());
    for row in reader.byte_records().take(MAX_ROWS).flatten() {
        content.rows.push(row.iter().map(|field| String::from_utf8_lossy(field).into_owned()).collect());
    }
    if let Some(caption) = &content.caption {
        content.captions = content.values(caption);
    }
    Ok(content)
}

/// Recognises rows of URL, base64 and metadata URL, or of URL and numbers, which have no header.
fn read_image_rows(text: &[u8]) -> Option<Content> {
    let mut lines = text.split(|byte| *byte == b'\n');
    if let Some(dim) = find_feature_dim(lines.clone()) {
        let mut content = Content::new(Format::Tsv, Vec::new());
        (content.image, content.url) = (Some(String::new()), Some(String::new()));
        content.feature_dim = Some(dim);
        return Some(content);
    }
    let line = lines.next().unwrap_or_default();
    let fields: Vec<&[u8]> = line.trim_ascii_end().split(|byte| *byte == b'\t').collect();
    let base64 = fields.get(1)?.trim_ascii();
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    if !(2..=3).contains(&fields.len()) || base64.len() < 64 || !base64.iter().all(is_base64) {
        return None;
    }
    let mut content = Content::new(Format::Tsv, Vec::new());
    (content.image, content.url) = (Some(String::new()), Some(String::new()));
    Some(content)
}

/// Returns the most frequent number of values in the first rows of URL and numbers; `None` if most rows are no such rows.
fn find_feature_dim<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<u32> {
    let (mut counts, mut rows) = (BTreeMap::<usize, usize>::new(), 0);
    for line in lines.filter(|line| !line.trim_ascii().is_empty()).take(FEATURE_ROWS) {
        rows += 1;
        let fields: Vec<&[u8]> = line.trim_ascii_end().split(|byte| *byte == b'\t').collect();
        if let [_, numbers] = fields.as_slice()
            && looks_like_numbers(numbers)
        {
            *counts.entry(numbers.split(|byte| *byte == b',').count()).or_default() += 1;
        }
    }
    let (dim, found) = counts.into_iter().max_by_key(|(_, found)| *found)?;
    u32::try_from(dim).ok().filter(|_| 2 * found > rows)
}

fn read_json_lines(start: &[u8]) -> Result<Content, String> {
    let lines = complete_lines(start).split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let values: Vec<Value> = lines.take(MAX_ROWS).filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let Some(first) = values.iter().find(|value| value.is_object()) else {
        return Err("it does not hold one JSON object per line".to_owned());
    };
    let mut columns = Vec::new();
    collect_keys(first, "", &mut columns);
    let mut content = Content::new(Format::Jsonl, columns);
    if let Some(caption) = &content.caption {
        content.captions = values.iter().flat_map(|value| texts_at(value, caption)).collect();
    }
    content.rows = values
        .iter()
        .map(|value| {
            content
                .columns
                .iter()
                .map(|column| texts_at(value, column).into_iter().next().unwrap_or_default())
                .collect()
        })
        .collect();
    Ok(content)
}

/// Collects the dotted names of all values in an object.
fn collect_keys(value: &Value, prefix: &str, keys: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                collect_keys(value, &name, keys);
            }
        }
        Value::Array(list) if list.first().is_some_and(Value::is_object) => collect_keys(&list[0], prefix, keys),
        _ => keys.push(prefix.to_owned()),
    }
}

/// Returns the texts at a dotted name; lists on the way are entered.
fn texts_at(value: &Value, name: &str) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(|value| texts_at(value, name)).collect(),
        Value::Object(map) if !name.is_empty() => {
            let (key, rest) = name.split_once('.').unwrap_or((name, ""));
            map.get(key).map(|value| texts_at(value, rest)).unwrap_or_default()
        }
        Value::String(text) if name.is_empty() => vec![text.clone()],
        Value::Number(number) if name.is_empty() => vec![number.to_string()],
        _ => Vec::new(),
    }
}

fn read_tar(start: &[u8]) -> Result<Content, String> {
    let mut archive = tar::Archive::new(start);
    let mut content = Content::new(Format::Webdataset, Vec::new());
    let entries = archive.entries().map_err(|error| error.to_string())?;
    let (mut texts, mut described) = (Vec::new(), Vec::new());
    // The start may end inside a member.
    for mut entry in entries.map_while(Result::ok).filter(|entry| entry.header().entry_type().is_file()) {
        let Ok(path) = entry.path() else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((_, extension)) = name.split_once('.').filter(|(key, _)| !key.is_empty()) else { continue };
        let extension = extension.to_lowercase();
        if MEMBERS.contains(&extension.as_str()) {
            content.image = Some(extension.clone());
        }
        if ["txt", "text", "caption", "cls", "json"].contains(&extension.as_str()) {
            let mut text = String::new();
            if entry.by_ref().take(1 << 20).read_to_string(&mut text).is_ok() {
                match extension.as_str() {
                    "json" => described.push(text),
                    _ => texts.push((extension.clone(), text.trim().to_owned())),
                }
            }
        }
        if !content.has(&extension) {
            content.columns.push(extension);
        }
    }
    if content.columns.is_empty() {
        return Err("it holds no files with an extension".to_owned());
    }
    // A caption in `KEY.json` comes before `KEY.txt`, as for the reader.
    let described = read_json_lines(described.join("\n").as_bytes()).ok();
    if let Some(described) = described.filter(|described| described.caption.is_some()) {
        (content.caption, content.captions) = (described.caption, described.captions);
    } else {
        content.caption = texts.first().map(|(extension, _)| extension.clone());
        content.captions = texts.into_iter().map(|(_, text)| text).collect();
    }
    content.url = Some(String::new());
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_base64_are_images_without_a_header() {
        let line = format!("file:a.jpg\t{}\t\n", "QUJD".repeat(30));
        let content = read_table(line.as_bytes(), false).unwrap();
        assert!(content.image.is_some() && content.columns.is_empty(), "{content:?}");
        let content = read_table(b"language\timage_url\tcaption\nen\ta\tA cat\n", false).unwrap();
        assert_eq!((content.format, content.image, content.captions), (Format::Tsv, None, vec!["A cat".to_owned()]));
        let content = read_table(b"file,text\na.jpg,\"A cat, black\"\n", true).unwrap();
        assert_eq!((content.format, content.captions), (Format::Csv, vec!["A cat, black".to_owned()]));
    }

    #[test]
    fn rows_of_numbers_are_published_features() {
        let line = format!("http://a\t0.5{}\n", ",1.25".repeat(2047));
        let content = read_table(line.as_bytes(), true).unwrap();
        assert_eq!((content.feature_dim, content.columns), (Some(2048), Vec::new()));
        // The first row may be damaged.
        let text = format!("http://b\t0.5{}\n{}", ",1.25".repeat(2046), line.repeat(2));
        assert_eq!(read_table(text.as_bytes(), false).unwrap().feature_dim, Some(2048));
        assert_eq!(read_table(b"name\tscores\nx\t1,2\n", false).unwrap().feature_dim, None);
    }

    #[test]
    fn json_keys_are_dotted_and_lists_are_entered() {
        let line = br#"{"image_url": "u", "b64_bytes": "x", "wit_features": [{"language": "en", "caption_title_and_reference_description": "A"}, {"caption_title_and_reference_description": "B"}]}"#;
        let content = read_json_lines(line).unwrap();
        assert_eq!(content.image.as_deref(), Some("b64_bytes"));
        assert_eq!(content.captions, ["A", "B"]);
        assert!(read_json_lines(b"[1, 2]\nnot json\n").is_err());
    }

    #[test]
    fn tar_shows_its_members() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in [("a/1.jpg", &b"x"[..]), ("a/1.txt", b"A cat\n"), ("a/2.png", b"y"), (".hidden", b"z")] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, bytes).unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let content = read_tar(&bytes).unwrap();
        assert_eq!(content.columns, ["jpg", "txt", "png"]);
        assert_eq!((content.caption.as_deref(), content.captions), (Some("txt"), vec!["A cat".to_owned()]));
        // A start that ends inside a member.
        assert_eq!(read_tar(&bytes[..1300]).unwrap().columns, ["jpg"]);
        assert!(read_tar(&[7; 600]).is_err());
    }
}
