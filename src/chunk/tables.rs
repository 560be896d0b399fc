//! Catalog tables on disk: `classes.parquet` (`class` UInt32, `caption` Utf8, `images` UInt32, `language` Utf8) and
//! `labels.parquet` (`url_hash` UInt64, `class` UInt32). A resumed run and a separate prediction read these tables
//! instead of the pairs.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray as _, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, UInt32Type, UInt64Type};

use super::table::{TableReader, TableWriter};
use super::{Checksum, ChunkError};
use crate::types::Compression;

/// Number of rows written or read at a time.
const BLOCK_ROWS: usize = 65_536;

/// Writes the class table in order of class ids: caption, number of images and language.
///
/// # Errors
/// Fails if the disk is full or cannot be written.
pub fn write_classes<'a>(
    path: &Path,
    captions: impl Iterator<Item = &'a str>,
    images: &[u32],
    language: impl Fn(u32) -> &'a str,
) -> Result<Checksum, ChunkError> {
    let fields = vec![
        Field::new("class", DataType::UInt32, false),
        Field::new("caption", DataType::Utf8, false),
        Field::new("images", DataType::UInt32, false),
        Field::new("language", DataType::Utf8, false),
    ];
    let metadata = [("kind", "classes".to_owned())];
    let mut table = TableWriter::create(path, fields, Compression::Zstd, BLOCK_ROWS, &metadata)?;
    let mut captions = captions.peekable();
    let mut class = 0u32;
    while captions.peek().is_some() {
        let block = StringArray::from_iter_values(captions.by_ref().take(BLOCK_ROWS));
        let end = class + arrow::array::Array::len(&block) as u32;
        let images = (class..end).map(|class| images.get(class as usize).copied().unwrap_or(0));
        table.write(vec![
            Arc::new(UInt32Array::from_iter_values(class..end)),
            Arc::new(block),
            Arc::new(UInt32Array::from_iter_values(images)),
            Arc::new(StringArray::from_iter_values((class..end).map(&language))),
        ])?;
        class = end;
    }
    table.finish()
}

/// Row of the class table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassRow<'a> {
    /// Caption.
    pub caption: &'a str,
    /// Number of image URLs with this class.
    pub images: u32,
    /// Language of the first row with this caption; empty if unknown.
    pub language: &'a str,
}

/// Calls `visit` with each class in order of class ids.
///
/// # Errors
/// Fails if the file is not such a table.
pub fn read_classes(path: &Path, mut visit: impl FnMut(ClassRow<'_>)) -> Result<(), ChunkError> {
    let mut table = TableReader::open(path, BLOCK_ROWS, &["caption", "images", "language"])?;
    while let Some(batch) = table.next()? {
        let captions = batch.column_by_name("caption").and_then(|column| column.as_string_opt::<i32>());
        let images = batch.column_by_name("images").and_then(|column| column.as_primitive_opt::<UInt32Type>());
        let languages = batch.column_by_name("language").and_then(|column| column.as_string_opt::<i32>());
        let (Some(captions), Some(images), Some(languages)) = (captions, images, languages) else {
            return Err(ChunkError::damaged(path, "class table", "a column is missing"));
        };
        for ((caption, images), language) in captions.iter().zip(images.values()).zip(languages) {
            let (caption, language) = (caption.unwrap_or_default(), language.unwrap_or_default());
            visit(ClassRow { caption, images: *images, language });
        }
    }
    Ok(())
}

/// Calls `visit` with the language of each class in order of class ids. Captions are not read.
///
/// # Errors
/// Fails if the file is not such a table.
pub fn read_class_languages(path: &Path, mut visit: impl FnMut(&str)) -> Result<(), ChunkError> {
    let mut table = TableReader::open(path, BLOCK_ROWS, &["language"])?;
    while let Some(batch) = table.next()? {
        let languages = batch.column_by_name("language").and_then(|column| column.as_string_opt::<i32>());
        let languages = languages.ok_or_else(|| ChunkError::damaged(path, "class table", "a column is missing"))?;
        languages.iter().for_each(|language| visit(language.unwrap_or_default()));
    }
    Ok(())
}

/// Returns the number of images of each class. Captions are not read.
///
/// # Errors
/// Fails if the file is not such a table.
pub fn read_class_images(path: &Path) -> Result<Vec<u32>, ChunkError> {
    let mut table = TableReader::open(path, BLOCK_ROWS, &["images"])?;
    let mut images = Vec::new();
    while let Some(batch) = table.next()? {
        let column = batch.column_by_name("images").and_then(|column| column.as_primitive_opt::<UInt32Type>());
        let column = column.ok_or_else(|| ChunkError::damaged(path, "class table", "a column is missing"))?;
        images.extend_from_slice(column.values());
    }
    Ok(images)
}

/// Writes the join index, whose entries are upper half of the hash, lower half of the hash, class.
///
/// # Errors
/// Fails if the disk is full or cannot be written.
pub fn write_labels(path: &Path, entries: &[[u32; 3]]) -> Result<Checksum, ChunkError> {
    let fields = vec![Field::new("url_hash", DataType::UInt64, false), Field::new("class", DataType::UInt32, false)];
    let metadata = [("kind", "labels".to_owned()), ("url_hash", "xxh3_64 of image_url".to_owned())];
    let mut table = TableWriter::create(path, fields, Compression::None, BLOCK_ROWS, &metadata)?;
    for block in entries.chunks(BLOCK_ROWS) {
        let hashes = block.iter().map(|[high, low, _]| u64::from(*high) << 32 | u64::from(*low));
        let classes = block.iter().map(|[_, _, class]| *class);
        table.write(vec![
            Arc::new(UInt64Array::from_iter_values(hashes)),
            Arc::new(UInt32Array::from_iter_values(classes)),
        ])?;
    }
    table.finish()
}

/// Reads the join index.
///
/// # Errors
/// Fails if the file is not such a table.
pub fn read_labels(path: &Path) -> Result<Vec<[u32; 3]>, ChunkError> {
    let mut table = TableReader::open(path, BLOCK_ROWS, &[])?;
    // The file size bounds the capacity, whatever the footer claims.
    let file_bytes = path.metadata().map_or(0, |metadata| metadata.len());
    let mut entries = Vec::with_capacity(table.rows().min(file_bytes / 12) as usize);
    while let Some(batch) = table.next()? {
        let hashes = batch.column_by_name("url_hash").and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let classes = batch.column_by_name("class").and_then(|column| column.as_primitive_opt::<UInt32Type>());
        let (Some(hashes), Some(classes)) = (hashes, classes) else {
            return Err(ChunkError::damaged(path, "label table", "a column is missing"));
        };
        entries.extend(
            hashes
                .values()
                .iter()
                .zip(classes.values())
                .map(|(hash, class)| [(hash >> 32) as u32, *hash as u32, *class]),
        );
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_labels_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("classes.parquet");
        let captions: Vec<String> = (0..70_000).map(|i| format!("Überschrift {i} [SEP] \n\"{i}\"")).collect();
        let language = |class| if class == 1 { "de" } else { "" };
        write_classes(&path, captions.iter().map(String::as_str), &[3, 1], language).unwrap();
        let (mut captions_read, mut rest) = (Vec::new(), Vec::new());
        read_classes(&path, |row| {
            captions_read.push(row.caption.to_owned());
            rest.push((row.images, row.language.to_owned()));
        })
        .unwrap();
        assert_eq!(rest[..3], [(3, String::new()), (1, "de".to_owned()), (0, String::new())]);
        assert_eq!(captions_read, captions);
        assert_eq!(read_class_images(&path).unwrap(), rest.iter().map(|(images, _)| *images).collect::<Vec<_>>());
        let mut languages = rest.iter().map(|(_, language)| language.as_str());
        read_class_languages(&path, |language| assert_eq!(Some(language), languages.next())).unwrap();
        assert_eq!(languages.next(), None);
        let path = dir.path().join("labels.parquet");
        let entries: Vec<[u32; 3]> = (0..70_000).map(|i| [i, u32::MAX - i, i / 3]).collect();
        write_labels(&path, &entries).unwrap();
        assert_eq!(read_labels(&path).unwrap(), entries);
        write_labels(&path, &[]).unwrap();
        assert!(read_labels(&path).unwrap().is_empty());
    }
}
