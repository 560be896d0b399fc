//! Input files by format: listing, recognition, and readers of images and captions.
//!
//! | part | does |
//! | --- | --- |
//! | `listing` | patterns → objects and their format |
//! | `images` | one object → rows of images |
//! | `pairs` | one object → rows of captions |
//! | `parquet` | row groups of a Parquet file, read by ranges |
//! | `folder` | image files one by one; captions of a folder |
//!
//! A reader has two functions: `fill` reads more bytes, and `next` returns the rows that they complete. The rows and their
//! numbers depend on the file alone.

mod folder;
mod images;
mod listing;
mod pairs;
mod parquet;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::config::{ImageColumnNames, PairsConfig, RunConfig, StageKeys};
use crate::corpus::{EncodedImage, ImageColumns, ImageRow, ImageRowProblem, PairColumns, check_row};
use crate::objects::{FileFormat, Object, ReadStats, Reader, Store};
use crate::pipeline::error::PipelineError;
use crate::types::{FolderCaptions, ImageFormat, PairsFormat};

pub(crate) use images::{ImageReader, NextRow, ReadLimits};
pub(crate) use listing::{list_images, list_pairs};
pub(crate) use pairs::PairReader;

/// Longest row of a file of captions. Context columns hold whole paragraphs.
pub(crate) const MAX_RECORD_BYTES: usize = 64 << 20;

/// Format and columns of the images of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageInput {
    /// Format, recognised if it is not configured.
    pub(crate) format: ImageFormat,
    /// Names of the columns.
    pub(crate) columns: ImageColumns,
}

impl ImageInput {
    /// Describes images in a format.
    pub(crate) fn new(format: ImageFormat, columns: &ImageColumnNames) -> Self {
        let ImageColumnNames { image, url } = columns.clone();
        Self { format, columns: ImageColumns { image, url } }
    }

    /// Refuses a format that cannot hold published features, if the configuration asks for them. `key` names the files.
    ///
    /// # Errors
    /// When the files are no rows of text.
    pub(crate) fn require_rows_of_numbers(&self, config: &RunConfig, key: &str) -> Result<(), PipelineError> {
        if config.published_dim().is_none() || self.format == ImageFormat::Tsv {
            return Ok(());
        }
        Err(PipelineError::Input(format!(
            "`{key}` is `{}`, but with `model.features = \"published\"` it must be rows of image URL and numbers (`tsv`)",
            self.format
        )))
    }

    /// Adds a key for the format to those that artefacts depend on. Without one the format is `tsv`.
    pub(crate) fn add_key(&self, keys: &mut StageKeys, key: &str) {
        if self.format != ImageFormat::Tsv {
            keys.insert(key.to_owned(), self.format.to_string());
        }
    }
}

/// Format and columns of captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PairInput {
    /// Format, recognised if it is not configured.
    pub(crate) format: PairsFormat,
    /// Names of the columns.
    pub(crate) columns: PairColumns,
    /// Captions of a folder.
    pub(crate) folder_captions: FolderCaptions,
    /// Languages to keep; all if empty.
    pub(crate) languages: Vec<String>,
}

impl PairInput {
    /// Describes captions in a format.
    pub(crate) fn new(format: PairsFormat, pairs: &PairsConfig) -> Self {
        let columns = PairColumns {
            url: pairs.url_column.clone(),
            caption: pairs.caption_column.clone(),
            language: pairs.language_column.clone(),
        };
        Self { format, columns, folder_captions: pairs.folder_captions, languages: pairs.languages.clone() }
    }

    /// Describes the captions in one column of Parquet, in all languages.
    pub(crate) fn parquet_captions(column: String) -> Self {
        let columns = PairColumns { caption: Some(column), ..PairColumns::default() };
        let (format, folder_captions) = (PairsFormat::Parquet, FolderCaptions::Auto);
        Self { format, columns, folder_captions, languages: Vec::new() }
    }
}

/// Passes the URL or name of each image of an object to `visit`, in order. Rows without a usable one are left out.
///
/// A folder is not read at all, and of Parquet one column is.
///
/// # Errors
/// Those of `visit`; or when the object cannot be read.
pub(crate) async fn visit_image_names(
    store: &Store,
    object: &Object,
    input: &ImageInput,
    max_encoded_bytes: u64,
    mut visit: impl FnMut(&str) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let mut visit_row = |row: ImageRow<'_>| match row {
        ImageRow::Ok { image_url, .. } => visit(image_url),
        // An image without data has an id all the same.
        ImageRow::Bad { reason: ImageRowProblem::MissingData, image_url: Some(url), .. } => visit(&url),
        ImageRow::Bad { .. } => Ok(()),
    };
    match input.format {
        ImageFormat::Folder => {
            let files = object.folder().map(|folder| folder.files.as_slice()).unwrap_or_default();
            files.iter().enumerate().try_for_each(|(row, file)| {
                visit_row(check_row(row as u64, file.name.as_bytes(), EncodedImage::File(b"unread")))
            })
        }
        ImageFormat::Parquet => {
            parquet::visit_names(object, &input.columns, |row, name| {
                visit_row(check_row(row, name, EncodedImage::File(b"unread")))
            })
            .await
        }
        ImageFormat::Auto | ImageFormat::Tsv | ImageFormat::Jsonl | ImageFormat::WebDataset => {
            let limits = ReadLimits::alone(max_encoded_bytes);
            let mut reader = ImageReader::open(store, object, input, limits, (0, None), &Arc::default()).await?;
            loop {
                let more = reader.fill().await?;
                while let Some(row) = reader.next()? {
                    visit_row(row)?;
                }
                if !more {
                    return Ok(());
                }
            }
        }
    }
}

/// Formats of tab- and comma-separated files.
const TEXT: &[FileFormat] = &[FileFormat::Text];
/// Formats of JSON lines.
const JSON_LINES: &[FileFormat] = &[FileFormat::JsonLines, FileFormat::Text];
/// Formats of tar archives. The parser explains what is none.
const TAR: &[FileFormat] = &[FileFormat::Tar, FileFormat::Text];

/// Opens the decompressed bytes of an object at an offset, if they have one of the formats.
async fn open_stream(
    store: &Store,
    formats: &[FileFormat],
    (object, offset): (&Object, u64),
    stats: &Arc<ReadStats>,
) -> Result<Reader, PipelineError> {
    Ok(store.open_as(formats, object, offset, Arc::clone(stats)).await?)
}
