//! Columns and first captions of a Parquet file, by a few ranges of it.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray as _, StructArray};
use arrow::datatypes::DataType;
use bytes::{Buf as _, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};

use super::content::{Content, Format, MAX_ROWS};
use crate::objects::Object;
use crate::objects::read::read_range;

/// Upper bound on the description at the end of a file.
const MAX_FOOTER_BYTES: u64 = 64 << 20;
/// Upper bound on the captions of a row group that are read.
const MAX_COLUMN_BYTES: u64 = 32 << 20;
/// Bytes of the end of a file with the length of its description.
const TAIL_BYTES: u64 = 8;

/// Reads the columns and the first captions.
pub(super) async fn read(object: &Object) -> Result<Content, String> {
    let metadata = Box::pin(read_metadata(object)).await?;
    let schema = metadata.file_metadata().schema_descr();
    let columns: Vec<String> = schema
        .columns()
        .iter()
        .map(|column| {
            let steps = ["list", "element", "item", "array", "bag", "array_element"];
            let parts = column.path().parts().iter().filter(|part| !steps.contains(&part.as_str()));
            parts.map(String::as_str).collect::<Vec<_>>().join(".")
        })
        .collect();
    let mut content = Content::new(Format::Parquet, columns);
    content.row_count = u64::try_from(metadata.file_metadata().num_rows()).ok();
    if let Some(caption) = &content.caption
        && let Some(leaf) = content.columns.iter().position(|column| column == caption)
    {
        // Captions that cannot be read leave the columns known.
        content.captions = Box::pin(read_captions(object, metadata, leaf)).await.unwrap_or_default();
    }
    Ok(content)
}

async fn read_metadata(object: &Object) -> Result<ParquetMetaData, String> {
    let broken = || "it is not a complete Parquet file".to_owned();
    let size = object.size;
    let tail = size.checked_sub(TAIL_BYTES).ok_or_else(broken)?;
    let end = read_range(object, tail..size).await.map_err(|error| error.to_string())?;
    let (length, magic) = end.split_at(4);
    if magic != b"PAR1" {
        return Err(broken());
    }
    let length = u64::from(u32::from_le_bytes(length.try_into().map_err(|_| broken())?));
    let start = tail.checked_sub(length).filter(|_| length <= MAX_FOOTER_BYTES).ok_or_else(broken)?;
    let footer = read_range(object, start..tail).await.map_err(|error| error.to_string())?;
    ParquetMetaDataReader::decode_metadata(&footer).map_err(|error| format!("its description is damaged: {error}"))
}

/// Reads the captions of the first row group.
async fn read_captions(object: &Object, metadata: ParquetMetaData, leaf: usize) -> Result<Vec<String>, String> {
    let failed = |error: ParquetError| error.to_string();
    let Some(group) = metadata.row_groups().first() else { return Ok(Vec::new()) };
    let (start, length) = group.column(leaf).byte_range();
    if length > MAX_COLUMN_BYTES || start.saturating_add(length) > object.size {
        return Ok(Vec::new());
    }
    let bytes = read_range(object, start..start + length).await.map_err(|error| error.to_string())?;
    let mask = ProjectionMask::leaves(metadata.file_metadata().schema_descr(), [leaf]);
    let source = Part { size: object.size, range: start..start + length, bytes };
    let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new()).map_err(failed)?;
    // The reader may panic on damaged pages.
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(source, metadata);
        let builder = builder.with_row_groups(vec![0]).with_projection(mask).with_limit(MAX_ROWS);
        let mut captions = Vec::new();
        for batch in builder.build()?.map_while(Result::ok) {
            collect_texts(&StructArray::from(batch), &mut captions);
        }
        Ok::<_, ParquetError>(captions)
    }));
    decoded.unwrap_or_else(|_| Ok(Vec::new())).map_err(failed)
}

/// Collects the texts in a column at any depth.
fn collect_texts(array: &dyn Array, texts: &mut Vec<String>) {
    match array.data_type() {
        DataType::Utf8 => texts.extend(array.as_string::<i32>().iter().flatten().map(ToOwned::to_owned)),
        DataType::LargeUtf8 => texts.extend(array.as_string::<i64>().iter().flatten().map(ToOwned::to_owned)),
        DataType::Utf8View => texts.extend(array.as_string_view().iter().flatten().map(ToOwned::to_owned)),
        DataType::List(_) => collect_texts(array.as_list::<i32>().values().as_ref(), texts),
        DataType::LargeList(_) => collect_texts(array.as_list::<i64>().values().as_ref(), texts),
        DataType::Struct(_) => {
            array.as_struct().columns().iter().for_each(|column| collect_texts(column.as_ref(), texts));
        }
        _ => {}
    }
}

/// One range of a file, as the Parquet reader takes it.
struct Part {
    size: u64,
    range: Range<u64>,
    bytes: Bytes,
}

impl Length for Part {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Part {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let length = self.range.end.saturating_sub(start);
        Ok(self.get_bytes(start, length as usize)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        if start < self.range.start || start.saturating_add(length as u64) > self.range.end {
            return Err(ParquetError::General("the range was not read".to_owned()));
        }
        let from = (start - self.range.start) as usize;
        Ok(self.bytes.slice(from..from + length))
    }
}
