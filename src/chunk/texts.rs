//! Chunks of caption vectors. Columns: `caption` Utf8, `vector` FixedSizeBinary(dim × 2 or 4), bf16 or f32
//! little-endian. Dtype, dimension and generation are in the metadata.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray as _, FixedSizeBinaryArray, StringArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field};

use super::features::{decode_values, encode_values, parse_format, value_bytes};
use super::table::{TableReader, TableWriter};
use super::{Checksum, ChunkError};
use crate::types::{Compression, Precision};

/// Rows of one row group.
const GROUP_ROWS: usize = 8192;

/// Vectors of captions, in the order of the captions.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Values, `[captions, dim]`.
    pub values: Vec<f32>,
    /// Number of values of a caption.
    pub dim: usize,
    /// Format of the values in the file.
    pub precision: Precision,
}

/// Writes a chunk.
///
/// # Errors
/// Fails if the disk is full or cannot be written.
pub fn write(path: &Path, captions: &[&str], vectors: &Vectors, generation: &str) -> Result<Checksum, ChunkError> {
    let Vectors { values, dim, precision } = vectors;
    let width = (dim * value_bytes(*precision)) as i32;
    let fields = vec![
        Field::new("caption", DataType::Utf8, false),
        Field::new("vector", DataType::FixedSizeBinary(width), false),
    ];
    let metadata = [
        ("kind", "vectors of captions".to_owned()),
        ("dtype", precision.to_string()),
        ("dim", dim.to_string()),
        ("generation", generation.to_owned()),
    ];
    let mut table = TableWriter::create(path, fields, Compression::None, GROUP_ROWS, &metadata)?;
    if !captions.is_empty() {
        let bytes = Buffer::from_vec(encode_values(values, *precision));
        table.write(vec![
            Arc::new(StringArray::from_iter_values(captions)),
            Arc::new(FixedSizeBinaryArray::new(width, bytes, None)),
        ])?;
    }
    table.finish()
}

/// Reads the vectors of a chunk.
///
/// # Errors
/// Fails if the file is not such a chunk.
pub fn read(path: &Path) -> Result<Vectors, ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["vector"])?;
    let damaged = |reason: &str| ChunkError::damaged(path, "chunk of caption vectors", reason);
    let (precision, dim) = parse_format(&table).map_err(damaged)?;
    let mut values = Vec::new();
    while let Some(batch) = table.next()? {
        let column = batch
            .column_by_name("vector")
            .and_then(|column| column.as_fixed_size_binary_opt())
            .filter(|column| column.value_length() as usize == dim * value_bytes(precision))
            .ok_or_else(|| damaged("the column `vector` is missing or its size differs from `dim`"))?;
        decode_values(column.value_data(), precision, &mut values);
    }
    Ok(Vectors { values, dim, precision })
}

/// Passes the captions of a chunk to `visit`, in order. The vectors are not read.
///
/// # Errors
/// Fails if the file is not such a chunk.
pub fn visit_captions(path: &Path, mut visit: impl FnMut(&str)) -> Result<(), ChunkError> {
    let mut table = TableReader::open(path, GROUP_ROWS, &["caption"])?;
    while let Some(batch) = table.next()? {
        let column = batch.column_by_name("caption").and_then(|column| column.as_string_opt::<i32>());
        let damaged = || ChunkError::damaged(path, "chunk of caption vectors", "the column `caption` is missing");
        column.ok_or_else(damaged)?.iter().for_each(|caption| visit(caption.unwrap_or_default()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn vectors_round_trip_at_the_file_precision() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vectors.parquet");
        let values: Vec<f32> = (0..20).map(|at| (at as f32 * 0.37).sin()).collect();
        for precision in [Precision::Bf16, Precision::F32] {
            let vectors = Vectors { values: values.clone(), dim: 5, precision };
            write(&path, &["a", "", "ü\n\"", "d"], &vectors, "g").unwrap();
            let restored = read(&path).unwrap();
            assert_eq!((restored.dim, restored.precision), (5, precision));
            let mut captions = Vec::new();
            visit_captions(&path, |caption| captions.push(caption.to_owned())).unwrap();
            assert_eq!(captions, ["a", "", "ü\n\"", "d"]);
            let rounded =
                |value: &f32| if precision == Precision::F32 { *value } else { bf16::from_f32(*value).to_f32() };
            assert_eq!(restored.values, values.iter().map(rounded).collect::<Vec<_>>());
            let mut captions = Vec::new();
            visit_captions(&path, |caption| captions.push(caption.to_owned())).unwrap();
            assert_eq!(captions, ["a", "", "ü\n\"", "d"]);
        }
        write(&path, &[], &Vectors { values: Vec::new(), dim: 5, precision: Precision::F32 }, "g").unwrap();
        assert!(read(&path).unwrap().values.is_empty());
    }
}
