//! Tar archives in the layout of the `webdataset` library: `KEY.jpg` and `KEY.json`.

use super::Row;
use super::render;
use crate::sample::SampleError;
use crate::sample::files::disk_error;
use serde_json::json;
use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Write as _;
use std::path::Path;

/// Writes one archive.
pub(super) fn write(path: &Path, rows: &[Row<'_>], seed: u64) -> Result<(), SampleError> {
    let failed = disk_error(path);
    let mut archive = tar::Builder::new(BufWriter::new(File::create_new(path).map_err(&failed)?));
    for row in rows {
        let picture = render(row.source, seed)?;
        // A sample without a URL is named by its archive and key.
        let url = picture.url().map_or_else(|| json!({}), |url| json!({ "image_url": url }));
        let mut description = url;
        let features: Vec<_> = row
            .captions
            .iter()
            .map(|caption| {
                json!({
                    "language": caption.language,
                    "page_title": caption.page_title,
                    "caption_title_and_reference_description": caption.target,
                })
            })
            .collect();
        description["wit_features"] = features.into();
        let extension = picture.extension();
        if let Some(bytes) = &picture.bytes {
            append(&mut archive, &format!("{}.{extension}", row.name), bytes).map_err(&failed)?;
        }
        append(&mut archive, &format!("{}.json", row.name), description.to_string().as_bytes()).map_err(&failed)?;
    }
    archive.into_inner().map_err(&failed)?.flush().map_err(&failed)
}

/// Appends a member whose header depends on its name and content alone.
fn append(archive: &mut tar::Builder<impl io::Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    archive.append_data(&mut header, name, bytes)
}
