//! Feature chunks. Columns: `image_url` Utf8, `labels` `List<UInt32>`, `view` `UInt8`, `feature` FixedSizeBinary(dim ×
//! 2 or 4), bf16 or f32 little-endian. Dtype, dimension and generation are in the metadata. The optional column
//! `thumbnail` Binary holds a small JPEG of each image that is held out from training.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, BinaryArray, FixedSizeBinaryArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field};
use half::bf16;

use super::range_file::RANGE_BYTES;
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

/// Values in the format of their file.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Values of 2 bytes.
    Bf16(Vec<bf16>),
    /// Values of 4 bytes.
    F32(Vec<f32>),
}

impl Values {
    /// Creates an empty list.
    pub fn new(precision: Precision) -> Self {
        match precision {
            Precision::Bf16 => Self::Bf16(Vec::new()),
            Precision::F32 => Self::F32(Vec::new()),
        }
    }

    /// Appends values as they are stored, little-endian.
    pub fn extend_from_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Bf16(values) => values.extend(bytes.as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair))),
            Self::F32(values) => values.extend(bytes.as_chunks::<4>().0.iter().map(|quad| f32::from_le_bytes(*quad))),
        }
    }

    /// Appends a range of these values to `out` as f32.
    pub fn copy_to(&self, span: Range<usize>, out: &mut Vec<f32>) {
        match self {
            Self::Bf16(values) => out.extend(values[span].iter().map(|value| value.to_f32())),
            Self::F32(values) => out.extend_from_slice(&values[span]),
        }
    }

    /// Appends a range of other values in the same format. Values of another format are rounded to this one.
    pub fn append(&mut self, other: &Self, span: Range<usize>) {
        match (self, other) {
            (Self::Bf16(values), Self::Bf16(more)) => values.extend_from_slice(&more[span]),
            (Self::F32(values), more) => more.copy_to(span, values),
            (Self::Bf16(values), Self::F32(more)) => {
                values.extend(more[span].iter().map(|value| bf16::from_f32(*value)));
            }
        }
    }

    /// Returns an empty list of values in the same format.
    #[must_use]
    pub fn empty_like(&self) -> Self {
        match self {
            Self::Bf16(_) => Self::Bf16(Vec::new()),
            Self::F32(_) => Self::F32(Vec::new()),
        }
    }

    /// Returns the values as they are stored, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Bf16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    /// Frees memory reserved for more values.
    pub fn shrink(&mut self) {
        match self {
            Self::Bf16(values) => values.shrink_to_fit(),
            Self::F32(values) => values.shrink_to_fit(),
        }
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Bf16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

/// Rows of a feature chunk, with the features of some of them as they are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredFeatures {
    /// Metadata of all rows.
    pub rows: RowMeta,
    /// Values of the selected rows.
    pub values: Values,
    /// Number of values in a row.
    pub dim: usize,
}

/// Upper bound on the memory that reading a chunk takes beside its result, in bytes: the ranges of its columns and of its
/// footer, and one row group.
pub const READ_BYTES: u64 = 6 * RANGE_BYTES;

/// Reads a feature chunk, and keeps the features of the rows that `select` chooses, in the format of the file. `select` gets
/// the rows so far and the number of a row among them.
///
/// # Errors
/// Fails if the file is not a feature chunk.
pub fn read_selected(
    path: &Path,
    mut select: impl FnMut(&RowMeta, usize) -> bool,
) -> Result<StoredFeatures, ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["image_url", "labels", "view", "feature"])?;
    let damaged = |reason: &str| ChunkError::damaged(path, "feature chunk", reason);
    let (precision, dim) = parse_format(&table).map_err(damaged)?;
    let row_bytes = dim * value_bytes(precision);
    let (mut rows, mut values) = (RowMeta::default(), Values::new(precision));
    while let Some(batch) = table.next()? {
        let first = rows.len();
        rows.append_batch(&batch).map_err(|reason| damaged(&reason))?;
        let column = batch
            .column_by_name("feature")
            .and_then(|column| column.as_fixed_size_binary_opt())
            .filter(|column| column.value_length() as usize == row_bytes)
            .ok_or_else(|| damaged("the column `feature` is missing or its size differs from `dim`"))?;
        for (bytes, row) in column.value_data().chunks_exact(row_bytes).zip(first..rows.len()) {
            if select(&rows, row) {
                values.extend_from_bytes(bytes);
            }
        }
    }
    Ok(StoredFeatures { rows, values, dim })
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
            let odd = read_selected(&path, |_, row| row % 2 == 1).unwrap();
            assert_eq!((&odd.rows, odd.dim, odd.values.len()), (&rows, 3, 15));
            let (mut third, mut row_3) = (Vec::new(), Vec::new());
            odd.values.copy_to(3..6, &mut third);
            row_3.extend_from_slice(&restored.values[9..12]);
            assert_eq!(third, row_3);
        }
    }

    #[test]
    fn chunk_of_default_size_is_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk.parquet");
        let mut rows = RowMeta::default();
        for row in 0..2048u32 {
            rows.push(&format!("https://upload.wikimedia.org/wikipedia/commons/{row}.jpg"), 0..3);
        }
        let mut writer = FeatureWriter::create(&path, 768, Precision::Bf16, "g").unwrap();
        writer.write(&rows, &vec![0.5; 2048 * 768], &[]).unwrap();
        writer.finish().unwrap();
        let mut table = TableReader::open(&path, GROUP_ROWS, &["image_url", "labels", "view", "feature"]).unwrap();
        while table.next().unwrap().is_some() {}
        assert_eq!((path.metadata().unwrap().len() >> 20, table.reads()), (3, 1));
    }

    #[test]
    fn large_chunk_is_read_in_ranges() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk.parquet");
        let mut writer = FeatureWriter::create(&path, 1024, Precision::F32, "g").unwrap();
        for part in 0..8u32 {
            let mut rows = RowMeta::default();
            for row in 0..1024u32 {
                rows.push(&format!("https://x/{part}/{row}.jpg"), 0..3);
            }
            writer.write(&rows, &vec![part as f32; 1024 * 1024], &[]).unwrap();
        }
        writer.finish().unwrap();
        let mut table = TableReader::open(&path, GROUP_ROWS, &["image_url", "labels", "view", "feature"]).unwrap();
        while table.next().unwrap().is_some() {}
        // 32 MiB of features in pages of 1 MiB.
        let mib = path.metadata().unwrap().len() >> 20;
        assert!(mib >= 32 && table.reads() <= mib / 4 + 10, "{} reads of {mib} MiB", table.reads());
        let values = read(&path).unwrap().values;
        let parts: Vec<u32> = values.iter().step_by(1 << 20).map(|value| *value as u32).collect();
        assert_eq!(parts, (0..8).collect::<Vec<_>>());
    }
}
