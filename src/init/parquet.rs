//! Columns and first captions of a Parquet file, by a few ranges of it.

use std::panic::catch_unwind;
use std::sync::Arc;

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::content::{Content, Format, MAX_ROWS};
use crate::corpus::PairRow;
use crate::objects::read::read_range;
use crate::objects::{Object, Store};
use crate::pipeline::PipelineError;
use crate::pipeline::inputs::{PairInput, PairReader};

/// Upper bound on the description at the end of a file, as for a run.
const MAX_FOOTER_BYTES: u64 = 16 << 20;
/// Bytes of the end of a file with the length of its description.
const TAIL_BYTES: u64 = 8;

/// Reads the columns and the first captions.
pub(super) async fn read(store: &Store, object: &Object) -> Result<Content, String> {
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
    if let Some(caption) = content.caption.clone() {
        // Captions that cannot be read leave the columns known.
        Box::pin(read_captions(store, object, caption, &mut content.captions)).await.ok();
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
    let start = tail.checked_sub(length).ok_or_else(broken)?;
    if length > MAX_FOOTER_BYTES {
        return Err(format!("its description has {length} bytes, over the limit of {MAX_FOOTER_BYTES}"));
    }
    let footer = read_range(object, start..tail).await.map_err(|error| error.to_string())?;
    // The decoder may panic on damaged bytes.
    match catch_unwind(|| ParquetMetaDataReader::decode_metadata(&footer)) {
        Ok(Ok(metadata)) => Ok(metadata),
        Ok(Err(error)) => Err(format!("its description is damaged: {error}")),
        Err(_) => Err("its description is damaged".to_owned()),
    }
}

/// Reads the first captions with the reader of a run, which refuses pages that are too large for it.
async fn read_captions(
    store: &Store,
    object: &Object,
    column: String,
    captions: &mut Vec<String>,
) -> Result<(), PipelineError> {
    let input = PairInput::parquet_captions(column);
    let mut rows = PairReader::open(store, object, &input, None, &Arc::default()).await?;
    loop {
        let more = rows.fill().await?;
        while let Some(row) = rows.next()? {
            if let PairRow::Pair(pair) = row {
                captions.push(pair.target.to_owned());
            }
            if captions.len() == MAX_ROWS {
                return Ok(());
            }
        }
        if !more {
            return Ok(());
        }
    }
}
