//! Feature chunks: `image_url` Utf8, `labels` `List<UInt32>`, `view` `UInt8`, `feature` FixedSizeBinary(dim × 2 or 4), bf16 or f32
//! little-endian; dtype, dimension and generation are in the metadata. Where they are asked for, `thumbnail` Binary: a small JPEG of
//! an image that is held out from training.

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
/// More values than any feature has.
const MAX_DIM: usize = 1 << 20;

/// Writes one feature chunk.
pub struct FeatureWriter {
    table: TableWriter,
    dim: usize,
    precision: Precision,
    thumbnails: bool,
}

/// Bytes of one value.
pub(super) fn value_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    }
}

/// Values as a file has them, little-endian, rounded to its format (to nearest, ties to even).
pub(super) fn to_bytes(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Precision::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// Appends the values of a file.
pub(super) fn from_bytes(bytes: &[u8], precision: Precision, values: &mut Vec<f32>) {
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
    /// When the system refuses.
    pub fn create(path: &Path, dim: usize, precision: Precision, generation: &str) -> Result<Self, ChunkError> {
        Self::open(path, dim, precision, generation, false)
    }

    /// As [`FeatureWriter::create`], with a column of thumbnails.
    ///
    /// # Errors
    /// When the system refuses.
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

    /// Appends rows; `features` is `[rows, dim]`, rounded to the file's dtype (to nearest, ties to even); `thumbnails`: of the first
    /// rows, where there are any.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub fn write(
        &mut self,
        rows: &RowMeta,
        features: &[f32],
        thumbnails: &[Option<Vec<u8>>],
    ) -> Result<(), ChunkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes = to_bytes(features, self.precision);
        let [urls, labels, views] = rows.columns();
        let width = (self.dim * value_bytes(self.precision)) as i32;
        let array = FixedSizeBinaryArray::new(width, Buffer::from_vec(bytes), None);
        let mut columns: Vec<ArrayRef> = vec![urls, labels, views, Arc::new(array)];
        if self.thumbnails {
            let of_row = |row: usize| thumbnails.get(row).and_then(Option::as_deref);
            columns.push(Arc::new((0..rows.len()).map(of_row).collect::<BinaryArray>()));
        }
        self.table.write(columns)
    }

    /// Completes the file.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub fn finish(self) -> Result<Checksum, ChunkError> {
        self.table.finish()
    }
}

/// What a file's metadata says of its values: their format, and how many a row has.
pub(super) fn format_of(table: &TableReader) -> Result<(Precision, usize), &'static str> {
    let precision = match table.metadata("dtype") {
        Some("bf16") => Precision::Bf16,
        Some("f32") => Precision::F32,
        _ => return Err("its metadata does not give `dtype`"),
    };
    let dim = table.metadata("dim").and_then(|text| text.parse().ok()).filter(|dim| (1..=MAX_DIM).contains(dim));
    Ok((precision, dim.ok_or("its metadata does not give `dim`")?))
}

/// A feature chunk in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// URLs and labels.
    pub rows: RowMeta,
    /// `[rows, dim]`.
    pub values: Vec<f32>,
    /// Values of one row.
    pub dim: usize,
    /// Format in the file.
    pub precision: Precision,
}

/// Reads a whole feature chunk.
///
/// # Errors
/// When it is not a feature chunk.
pub fn read(path: &Path) -> Result<Features, ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["image_url", "labels", "view", "feature"])?;
    let damaged = |reason: &str| ChunkError::damaged(path, "feature chunk", reason);
    let (precision, dim) = format_of(&table).map_err(damaged)?;
    let mut features = Features { rows: RowMeta::default(), values: Vec::new(), dim, precision };
    while let Some(batch) = table.next()? {
        features.rows.append_batch(&batch).map_err(|reason| damaged(&reason))?;
        let column = batch
            .column_by_name("feature")
            .and_then(|column| column.as_fixed_size_binary_opt())
            .filter(|column| column.value_length() as usize == dim * value_bytes(precision))
            .ok_or_else(|| damaged("the column `feature` is missing or of another size than `dim` says"))?;
        from_bytes(column.value_data(), precision, &mut features.values);
    }
    Ok(features)
}

/// Hands URL and thumbnail of each row that has one to `take`.
///
/// # Errors
/// When it is not a feature chunk.
pub fn read_thumbnails(path: &Path, mut take: impl FnMut(&str, &[u8])) -> Result<(), ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["image_url", "thumbnail"])?;
    while let Some(batch) = table.next()? {
        let urls = batch.column_by_name("image_url").and_then(|column| column.as_string_opt::<i32>());
        let Some(urls) = urls else {
            return Err(ChunkError::damaged(path, "feature chunk", "the column `image_url` is missing or not Utf8"));
        };
        let Some(pictures) = batch.column_by_name("thumbnail").and_then(|column| column.as_binary_opt::<i32>()) else {
            return Ok(());
        };
        for row in (0..batch.num_rows()).filter(|row| pictures.is_valid(*row)) {
            take(urls.value(row), pictures.value(row));
        }
    }
    Ok(())
}

/// Reads URLs and labels alone, of a feature or pixel chunk.
///
/// # Errors
/// When it is not a chunk.
pub fn read_heads(path: &Path) -> Result<RowMeta, ChunkError> {
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
    fn features_come_back_to_the_precision_of_the_file() {
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
            let mut pictures = Vec::new();
            read_thumbnails(&path, |url, bytes| pictures.push((url.to_owned(), bytes.to_vec()))).unwrap();
            assert_eq!(pictures, [("https://x/1".to_owned(), vec![1, 2])]);
            let back = read(&path).unwrap();
            assert_eq!((back.dim, back.precision, &back.rows), (3, precision, &rows));
            for (one, other) in back.values.iter().zip(&values) {
                let expected = if precision == Precision::F32 { *other } else { bf16::from_f32(*other).to_f32() };
                assert_eq!(one.to_bits(), expected.to_bits());
            }
            assert_eq!(read_heads(&path).unwrap(), rows);
        }
    }
}
