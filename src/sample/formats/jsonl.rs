//! JSON lines in the layout of Wikimedia's joined files: one object per image, with its captions.

use super::Row;
use super::render;
use crate::sample::SampleError;
use crate::sample::files::disk_error;
use crate::sample::files::start_gzip;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use std::fs::File;
use std::io::BufWriter;
use std::io::Write as _;
use std::path::Path;

/// Writes one gzipped file.
pub(super) fn write(path: &Path, rows: &[Row<'_>], seed: u64) -> Result<(), SampleError> {
    let failed = disk_error(path);
    let mut file = BufWriter::new(File::create_new(path).map_err(&failed)?);
    let mut member = start_gzip(&mut file);
    for row in rows {
        let picture = render(row.source, seed)?;
        let mut line = Map::new();
        line.insert("image_url".to_owned(), String::from_utf8_lossy(&picture.url).into());
        if let Some(base64) = picture.base64 {
            line.insert("b64_bytes".to_owned(), base64.into());
        }
        let features: Vec<Value> = row
            .captions
            .iter()
            .map(|caption| {
                json!({
                    "language": caption.language,
                    "page_url": caption.page_url,
                    "page_title": caption.page_title,
                    "caption_reference_description": caption.text,
                    "caption_title_and_reference_description": caption.target,
                })
            })
            .collect();
        line.insert("wit_features".to_owned(), features.into());
        let mut line = Value::from(line).to_string().into_bytes();
        if std::str::from_utf8(&picture.url).is_err() {
            // The replacement characters become the bytes that they stand for.
            let text = String::from_utf8_lossy(&line).into_owned();
            line = text.split('\u{fffd}').map(str::as_bytes).collect::<Vec<_>>().join(&b"\xff"[..]);
        }
        line.push(b'\n');
        member.write_all(&line).map_err(&failed)?;
    }
    member.finish().map_err(&failed)?;
    file.flush().map_err(&failed)
}
