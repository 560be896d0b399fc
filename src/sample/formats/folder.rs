//! A folder of picture files, with `metadata.csv` as Hugging Face's `imagefolder` has it: one row for each caption.

use super::Part;
use super::Row;
use super::render;
use crate::sample::SampleError;
use crate::sample::files::disk_error;
use crate::sample::files::write_file;
use crate::sample::files::write_table;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Writes the pictures of one sub-folder. A row without an image becomes an empty file.
pub(super) fn write(folder: &Path, rows: &[Row<'_>], seed: u64) -> Result<(), SampleError> {
    fs::create_dir(folder).map_err(disk_error(folder))?;
    for row in rows {
        let picture = render(row.source, seed)?;
        let path = folder.join(format!("{}.{}", row.name, picture.extension()));
        write_file(&path, picture.bytes.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

/// Returns the file of each row of a sub-folder that is written, relative to `root`: files are numbered in the order of rows.
fn file_names(root: &Path, part: &Part<'_>) -> Result<Vec<String>, SampleError> {
    let failed = disk_error(&part.path);
    let folder = part.path.strip_prefix(root).unwrap_or(&part.path).to_string_lossy();
    let mut names = Vec::new();
    for entry in fs::read_dir(&part.path).map_err(&failed)? {
        names.push(format!("{folder}/{}", entry.map_err(&failed)?.file_name().to_string_lossy()));
    }
    names.sort_unstable();
    Ok(names)
}

/// Writes the captions of all pictures.
pub(super) fn write_metadata(root: &Path, parts: &[&Part<'_>]) -> Result<(), SampleError> {
    let mut table: Vec<[String; 4]> = Vec::new();
    for part in parts {
        for (row, name) in part.rows.iter().zip(file_names(root, part)?) {
            table.extend(row.captions.iter().map(|caption| {
                [name.clone(), caption.target.clone(), caption.language.clone(), row.source.url.clone()]
            }));
        }
    }
    let header = ["file_name", "caption", "language", "original_url"].map(str::as_bytes);
    let rows = table.iter().map(|row| row.iter().map(String::as_bytes).collect());
    write_table(&root.join("metadata.csv"), b',', &header, rows)
}

/// Returns the file of each image by its URL; the first one of several.
pub(super) fn names_by_url<'a>(
    root: &Path,
    parts: impl Iterator<Item = &'a Part<'a>>,
) -> Result<HashMap<String, String>, SampleError> {
    let mut names = HashMap::new();
    for part in parts {
        for (row, name) in part.rows.iter().zip(file_names(root, part)?) {
            names.entry(row.source.url.clone()).or_insert(name);
        }
    }
    Ok(names)
}
