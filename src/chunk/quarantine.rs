//! Quarantine files, which list each unusable row once. Columns: `shard` Utf8, `row` UInt64 (from 0), `image_url` Utf8
//! or null, `reason` Utf8 (a stable identifier), `detail` Utf8 (a description for people).

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, UInt64Type};
use serde::{Deserialize, Serialize};

use super::table::{TableReader, TableWriter};
use super::{Checksum, ChunkError};
use crate::types::Compression;

/// An unusable row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Row number in the shard, from 0.
    pub row: u64,
    /// Image URL, if it could be parsed.
    pub image_url: Option<String>,
    /// Stable identifier of the reason.
    pub reason: String,
    /// Description of the problem.
    pub detail: String,
}

/// Writes the quarantined rows of one chunk.
///
/// # Errors
/// Fails if the disk is full or cannot be written.
pub fn write(path: &Path, shard: &str, rows: &[Quarantined]) -> Result<Checksum, ChunkError> {
    let fields = vec![
        Field::new("shard", DataType::Utf8, false),
        Field::new("row", DataType::UInt64, false),
        Field::new("image_url", DataType::Utf8, true),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
    ];
    let metadata = [("kind", "quarantine".to_owned())];
    let mut table = TableWriter::create(path, fields, Compression::None, 65_536, &metadata)?;
    table.write(vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| shard))),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.row))),
        Arc::new(rows.iter().map(|row| row.image_url.as_deref()).collect::<StringArray>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.reason))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.detail))),
    ])?;
    table.finish()
}

/// Reads a quarantine file.
///
/// # Errors
/// Fails if it is not a quarantine file.
pub fn read(path: &Path) -> Result<Vec<Quarantined>, ChunkError> {
    let mut table = TableReader::open(path, 65_536, &[])?;
    let mut rows = Vec::new();
    while let Some(batch) = table.next()? {
        let text = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let numbers = batch.column_by_name("row").and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let (Some(numbers), Some(urls), Some(reasons), Some(details)) =
            (numbers, text("image_url"), text("reason"), text("detail"))
        else {
            return Err(ChunkError::damaged(path, "quarantine file", "a column is missing"));
        };
        for index in 0..batch.num_rows() {
            rows.push(Quarantined {
                row: numbers.value(index),
                image_url: urls.is_valid(index).then(|| urls.value(index).to_owned()),
                reason: reasons.value(index).to_owned(),
                detail: details.value(index).to_owned(),
            });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.parquet");
        let rows = [Some("https://x/ü"), None].map(|url| Quarantined {
            row: 7,
            image_url: url.map(str::to_owned),
            reason: "truncated".to_owned(),
            detail: "the data ends early".to_owned(),
        });
        write(&path, "part-0.csv.gz", &rows).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
    }
}
