//! Parquet in the layout of `wikimedia/wit_base`: the image as a struct of bytes and path, its captions as a list of structs.

use super::Row;
use super::render;
use crate::sample::SampleError;
use crate::sample::files::disk_error;
use arrow::array::ArrayRef;
use arrow::array::BinaryBuilder;
use arrow::array::ListBuilder;
use arrow::array::StringBuilder;
use arrow::array::StructBuilder;
use arrow::datatypes::DataType;
use arrow::datatypes::Field;
use arrow::datatypes::Fields;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::basic::ZstdLevel;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Rows of a row group: small, so that a small corpus has several.
const GROUP_ROWS: usize = 100;
/// Names of the fields of a caption.
const CAPTION_FIELDS: [&str; 5] =
    ["language", "page_url", "page_title", "caption_reference_description", "caption_title_and_reference_description"];

/// Writes one file.
pub(super) fn write(path: &Path, rows: &[Row<'_>], seed: u64) -> Result<(), SampleError> {
    let failed = |error: parquet::errors::ParquetError| disk_error(path)(io::Error::other(error));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build();
    let mut file = Some(File::create_new(path).map_err(disk_error(path))?);
    let mut writer = None;
    for group in rows.chunks(GROUP_ROWS) {
        let batch = to_batch(group, seed, path)?;
        if let Some(file) = file.take() {
            writer = Some(ArrowWriter::try_new(file, batch.schema(), Some(properties.clone())).map_err(failed)?);
        }
        if let Some(writer) = &mut writer {
            writer.write(&batch).map_err(failed)?;
        }
    }
    writer.map_or(Ok(()), |writer| writer.close().map(drop).map_err(failed))
}

fn to_batch(rows: &[Row<'_>], seed: u64, path: &Path) -> Result<RecordBatch, SampleError> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let image_fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true), text("path")]);
    let caption_fields = Fields::from(CAPTION_FIELDS.map(text).to_vec());
    let mut images = StructBuilder::from_fields(image_fields, rows.len());
    let mut captions = ListBuilder::new(StructBuilder::from_fields(caption_fields, rows.len()));
    let mut urls = StringBuilder::new();
    let mismatch = || disk_error(path)(io::Error::other("a column has another type than its field"));
    for row in rows {
        let picture = render(row.source, seed)?;
        urls.append_option(picture.url());
        let name = format!("{}.{}", row.name, picture.extension());
        images.field_builder::<BinaryBuilder>(0).ok_or_else(mismatch)?.append_option(picture.bytes);
        images.field_builder::<StringBuilder>(1).ok_or_else(mismatch)?.append_value(name);
        images.append(true);
        let list = captions.values();
        for caption in &row.captions {
            let fields = [&caption.language, &caption.page_url, &caption.page_title, &caption.text, &caption.target];
            for (column, value) in fields.into_iter().enumerate() {
                list.field_builder::<StringBuilder>(column).ok_or_else(mismatch)?.append_value(value);
            }
            list.append(true);
        }
        captions.append(true);
    }
    let columns: [(&str, ArrayRef); 3] = [
        ("image", Arc::new(images.finish())),
        ("image_url", Arc::new(urls.finish())),
        ("wit_features", Arc::new(captions.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))
        .map_err(|error| disk_error(path)(io::Error::other(error)))
}
