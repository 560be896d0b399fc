//! Feature chunks. Columns: `image_url` Utf8, `labels` `List<UInt32>`, `view` `UInt8`, `feature` FixedSizeBinary(dim ×
//! 2 or 4), bf16 or f32 little-endian. Dtype, dimension and generation are in the metadata. The optional column
//! `thumbnail` Binary holds a small JPEG of each image that is held out from training.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, BinaryArray, FixedSizeBinaryArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field};
use half::bf16;

use super::table::{TableReader, TableWriter};
use super::{Checksum, ChunkError, RowMeta};
use crate::types::{Compression, Precision};

/// Rows of one row group.
const GROUP_ROWS: usize = 8192;
/// Upper bound on the dimension, to reject damaged metadata.
const MAX_DIM: usize = 1 << 20;

/// Writer of one feature chunk.
pub struct FeatureWriter {
    table: TableWriter,
    dim: usize,
    precision: Precision,
    thumbnails: bool,
}

/// Returns the bytes of one value.
pub(super) fn value_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    }
}

/// Encodes values little-endian, rounded to the file's format (to nearest, ties to even).
pub(super) fn encode_values(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Precision::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// Decodes the values of a file and appends them to `values`.
pub(super) fn decode_values(bytes: &[u8], precision: Precision, values: &mut Vec<f32>) {
    match precision {
        Precision::Bf16 => {
            values.extend(bytes.as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()));
        }
        Precision::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|quad| f32::from_le_bytes(*quad))),
    }
}

impl FeatureWriter {
    /// Creates the file at `path`.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn create(path: &Path, dim: usize, precision: Precision, generation: &str) -> Result<Self, ChunkError> {
        Self::open(path, dim, precision, generation, false)
    }

    /// Creates the file at `path`, with a column of thumbnails.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn with_thumbnails(
        path: &Path,
        dim: usize,
        precision: Precision,
        generation: &str,
    ) -> Result<Self, ChunkError> {
        Self::open(path, dim, precision, generation, true)
    }

    fn open(
        path: &Path,
        dim: usize,
        precision: Precision,
        generation: &str,
        thumbnails: bool,
    ) -> Result<Self, ChunkError> {
        let mut fields = RowMeta::fields().to_vec();
        let bytes = (dim * value_bytes(precision)) as i32;
        fields.push(Field::new("feature", DataType::FixedSizeBinary(bytes), false));
        if thumbnails {
            fields.push(Field::new("thumbnail", DataType::Binary, true));
        }
        let metadata = [
            ("kind", "features".to_owned()),
            ("dtype", precision.to_string()),
            ("dim", dim.to_string()),
            ("generation", generation.to_owned()),
        ];
        let table = TableWriter::create(path, fields, Compression::None, GROUP_ROWS, &metadata)?;
        Ok(Self { table, dim, precision, thumbnails })
    }

    /// Appends rows. `features` is `[rows, dim]` and is rounded to the file's dtype (to nearest, ties to even).
    /// `thumbnails` has those of the first rows; missing ones are null.
    ///
    /// # Errors
    /// Fails if the disk is full or cannot be written.
    pub fn write(
        &mut self,
        rows: &RowMeta,
        features: &[f32],
        thumbnails: &[Option<Vec<u8>>],
    ) -> Result<(), ChunkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes = encode_values(features, self.precision);
        let [urls, labels, views] = rows.columns();
        let width = (self.dim * value_bytes(self.precision)) as i32;
        let array = FixedSizeBinaryArray::new(width, Buffer::from_vec(bytes), None);
        let mut columns: Vec<ArrayRef> = vec![urls, labels, views, Arc::new(array)];
        if self.thumbnails {
            let thumbnail_of_row = |row: usize| thumbnails.get(row).and_then(Option::as_deref);
            columns.push(Arc::new((0..rows.len()).map(thumbnail_of_row).collect::<BinaryArray>()));
        }
        self.table.write(columns)
    }

    /// Completes the file.
    ///
    /// # Errors
    /// Fails if the disk is full or cannot be written.
    pub fn finish(self) -> Result<Checksum, ChunkError> {
        self.table.finish()
    }
}

/// Parses the metadata of a file: the format of its values, and the number of values in a row.
pub(super) fn parse_format(table: &TableReader) -> Result<(Precision, usize), &'static str> {
    let precision = match table.metadata("dtype") {
        Some("bf16") => Precision::Bf16,
        Some("f32") => Precision::F32,
        _ => return Err("its metadata lacks a valid `dtype`"),
    };
    let dim = table.metadata("dim").and_then(|text| text.parse().ok()).filter(|dim| (1..=MAX_DIM).contains(dim));
    Ok((precision, dim.ok_or("its metadata lacks a valid `dim`")?))
}

/// Feature chunk in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Metadata of the rows.
    pub rows: RowMeta,
    /// Values, `[rows, dim]`.
    pub values: Vec<f32>,
    /// Number of values in a row.
    pub dim: usize,
    /// Format of the values in the file.
    pub precision: Precision,
}

/// Reads a whole feature chunk.
///
/// # Errors
/// Fails if the file is not a feature chunk.
pub fn read(path: &Path) -> Result<Features, ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["image_url", "labels", "view", "feature"])?;
    let damaged = |reason: &str| ChunkError::damaged(path, "feature chunk", reason);
    let (precision, dim) = parse_format(&table).map_err(damaged)?;
    let mut features = Features { rows: RowMeta::default(), values: Vec::new(), dim, precision };
    while let Some(batch) = table.next()? {
        features.rows.append_batch(&batch).map_err(|reason| damaged(&reason))?;
        let column = batch
            .column_by_name("feature")
            .and_then(|column| column.as_fixed_size_binary_opt())
            .filter(|column| column.value_length() as usize == dim * value_bytes(precision))
            .ok_or_else(|| damaged("the column `feature` is missing or its size differs from `dim`"))?;
        decode_values(column.value_data(), precision, &mut features.values);
    }
    Ok(features)
}

/// Calls `visit` with the URL and thumbnail of each row that has one.
///
/// # Errors
/// Fails if the file is not a feature chunk.
pub fn read_thumbnails(path: &Path, mut visit: impl FnMut(&str, &[u8])) -> Result<(), ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["image_url", "thumbnail"])?;
    while let Some(batch) = table.next()? {
        let urls = batch.column_by_name("image_url").and_then(|column| column.as_string_opt::<i32>());
        let Some(urls) = urls else {
            return Err(ChunkError::damaged(path, "feature chunk", "the column `image_url` is missing or not Utf8"));
        };
        let Some(thumbnails) = batch.column_by_name("thumbnail").and_then(|column| column.as_binary_opt::<i32>())
        else {
            return Ok(());
        };
        for row in (0..batch.num_rows()).filter(|row| thumbnails.is_valid(*row)) {
            visit(urls.value(row), thumbnails.value(row));
        }
    }
    Ok(())
}

/// Reads only the row metadata of a feature or pixel chunk.
///
/// # Errors
/// Fails if the file is not a chunk.
pub fn read_row_meta(path: &Path) -> Result<RowMeta, ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["image_url", "labels", "view"])?;
    let mut rows = RowMeta::default();
    while let Some(batch) = table.next()? {
        rows.append_batch(&batch).map_err(|reason| ChunkError::damaged(path, "chunk", reason))?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_round_trip_at_the_file_precision() {
        let dir = tempfile::tempdir().unwrap();
        let values: Vec<f32> = (0..30).map(|i| (i as f32 - 14.5) * 0.37).collect();
        let mut rows = RowMeta::default();
        for row in 0..10u32 {
            rows.push(&format!("https://x/{row}"), 0..row);
        }
        for precision in [Precision::Bf16, Precision::F32] {
            let path = dir.path().join(format!("{precision}.parquet"));
            let mut writer = FeatureWriter::create(&path, 3, precision, "g").unwrap();
            writer.write(&rows, &values, &[]).unwrap();
            writer.finish().unwrap();
            read_thumbnails(&path, |_, _| panic!("there is none")).unwrap();
            let mut writer = FeatureWriter::with_thumbnails(&path, 3, precision, "g").unwrap();
            writer.write(&rows, &values, &[None, Some(vec![1, 2])]).unwrap();
            writer.finish().unwrap();
            let mut thumbnails = Vec::new();
            read_thumbnails(&path, |url, bytes| thumbnails.push((url.to_owned(), bytes.to_vec()))).unwrap();
            assert_eq!(thumbnails, [("https://x/1".to_owned(), vec![1, 2])]);
            let restored = read(&path).unwrap();
            assert_eq!((restored.dim, restored.precision, &restored.rows), (3, precision, &rows));
            for (one, other) in restored.values.iter().zip(&values) {
                let expected = if precision == Precision::F32 { *other } else { bf16::from_f32(*other).to_f32() };
                assert_eq!(one.to_bits(), expected.to_bits());
            }
            assert_eq!(read_row_meta(&path).unwrap(), rows);
        }
    }
}
