//! Tests with files that this crate's writer makes. Those of other writers are in `tests/it`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};

use super::*;

/// A file in memory.
#[derive(Clone)]
pub(in crate::corpus) struct Memory(pub(in crate::corpus) Bytes);

impl RangeReader for Memory {
    fn read(&self, start: u64, bytes: usize) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        let (start, end) = (start as usize, start as usize + bytes);
        if end > self.0.len() { Err("out of range".into()) } else { Ok(self.0.slice(start..end)) }
    }

    fn at_hand(&self, _: u64, bytes: usize) -> usize {
        bytes
    }
}

/// Opens a file in memory.
pub(in crate::corpus) fn open(bytes: &[u8]) -> Result<ParquetFile, CorpusError> {
    let size = bytes.len() as u64;
    let tail = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
    let metadata = metadata_bytes("f.parquet", size, tail)?;
    let end = bytes.len() - TAIL_BYTES;
    ParquetFile::new("f.parquet", size, &bytes[end - metadata..end])
}

/// Reads the columns of all rows from `first` on.
pub(in crate::corpus) fn read_rows(
    file: &ParquetFile,
    bytes: &[u8],
    columns: &Columns,
    first: u64,
    max_page_bytes: u64,
) -> Result<Vec<Vec<Vec<Value>>>, CorpusError> {
    let memory = Memory(Bytes::copy_from_slice(bytes));
    let mut seen = Vec::new();
    let (group, first_of_group) = file.find_row(first);
    let mut skipped = first - first_of_group;
    for group in group..file.row_groups() {
        let sources =
            file.ranges(group, columns).iter().map(|_| Box::new(memory.clone()) as Box<dyn RangeReader>).collect();
        let mut rows = file.open_group(group, columns, sources, max_page_bytes)?;
        rows.skip(std::mem::take(&mut skipped))?;
        while let Some(row) = rows.next_row()? {
            seen.push(row);
        }
    }
    Ok(seen)
}

/// Writes 100 rows as Hugging Face's `datasets` lays them out, with captions in a list of objects.
pub(in crate::corpus) fn sample(properties: WriterProperties) -> Vec<u8> {
    let rows = 100;
    let images: BinaryArray = (0..rows).map(|row| (row % 7 != 3).then(|| vec![row as u8; 50 + row])).collect();
    let paths: StringArray = (0..rows).map(|row| Some(format!("{row}.jpg"))).collect();
    let image =
        StructArray::try_from(vec![("bytes", Arc::new(images) as ArrayRef), ("path", Arc::new(paths) as ArrayRef)])
            .unwrap();
    let urls: StringArray = (0..rows).map(|row| Some(format!("https://example.org/{row}"))).collect();
    let ids = Int64Array::from_iter_values(0..rows as i64);
    let mut captions = ListBuilder::new(StringBuilder::new());
    for row in 0..rows {
        (0..row % 3).for_each(|caption| captions.values().append_value(format!("caption {caption} of {row}")));
        captions.append(row % 5 != 4);
    }
    let batch = RecordBatch::try_from_iter([
        ("image", Arc::new(image) as ArrayRef),
        ("image_url", Arc::new(urls) as ArrayRef),
        ("id", Arc::new(ids) as ArrayRef),
        ("captions", Arc::new(captions.finish()) as ArrayRef),
    ])
    .unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

pub(in crate::corpus) fn properties() -> Vec<WriterProperties> {
    let builder = || WriterProperties::builder().set_max_row_group_row_count(Some(40)).set_data_page_size_limit(700);
    let mut all = Vec::new();
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4_RAW,
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let properties = builder().set_write_batch_size(8).set_compression(codec).set_writer_version(version);
            all.push(properties.clone().set_dictionary_enabled(false).build());
            all.push(properties.set_dictionary_enabled(true).build());
        }
    }
    all
}

#[test]
fn rows_are_the_same_from_any_row_in_all_layouts() {
    let reference = sample(properties().remove(0));
    let file = open(&reference).unwrap();
    assert_eq!((file.rows(), file.row_groups(), file.find_row(85)), (100, 3, (2, 80)));
    let ImageLeaves { columns, has_url, is_base64 } = file.image_columns(&ImageColumns::default()).unwrap();
    assert_eq!((has_url, is_base64), (true, false));
    let whole = read_rows(&file, &reference, &columns, 0, 1 << 20).unwrap();
    assert_eq!(whole.len(), 100);
    assert_eq!((whole[9][0][0].bytes(), whole[9][1][0].bytes()), (&b"https://example.org/9"[..], &[9; 59][..]));
    assert_eq!(whole[3][1], [Value::Null]);
    for properties in properties() {
        let bytes = sample(properties);
        let file = open(&bytes).unwrap();
        for first in [0, 1, 39, 40, 57, 99, 100] {
            let rows = read_rows(&file, &bytes, &columns, first, 1 << 20).unwrap();
            assert_eq!(rows, whole[first as usize..]);
        }
    }
}

#[test]
fn lists_are_read_with_their_nulls() {
    for properties in properties() {
        let bytes = sample(properties);
        let file = open(&bytes).unwrap();
        let PairLeaves { columns, has_url } = file.pair_columns(&PairColumns::default()).unwrap();
        let rows = read_rows(&file, &bytes, &columns, 0, 1 << 20).unwrap();
        let row = |number: usize| captioned_row(number as u64, rows[number].clone(), has_url, "f.parquet");
        assert_eq!(row(2).image_url, b"https://example.org/2");
        let captions: Vec<Vec<u8>> = row(2).captions.into_iter().map(|(_, caption)| caption).collect();
        assert_eq!(captions, [b"caption 0 of 2", b"caption 1 of 2"]);
        assert_eq!((row(3).captions.len(), row(14).captions.len()), (0, 0));
        assert_eq!(read_rows(&file, &bytes, &columns, 33, 1 << 20).unwrap(), rows[33..]);
    }
}

#[test]
fn columns_are_found_or_named_in_the_error() {
    let bytes = sample(properties().remove(0));
    let file = open(&bytes).unwrap();
    let set = |image: &str, url: &str| ImageColumns { image: Some(image.to_owned()), url: Some(url.to_owned()) };
    let columns = file.image_columns(&set("image", "id")).unwrap().columns;
    let rows = read_rows(&file, &bytes, &columns, 0, 1 << 20).unwrap();
    assert_eq!(rows[7][0].clone().remove(0).into_text(), b"7");
    let error = file.image_columns(&set("picture", "id")).unwrap_err().to_string();
    assert_eq!(
        error,
        "`f.parquet` has no column `picture`, which `images.image_column` names; it has `image.bytes`, `image.path`, `image_url`, \
         `id`, `captions`: correct the name"
    );
    assert!(file.image_columns(&set("id", "id")).unwrap_err().to_string().contains("holds values of type INT64"));
}

#[test]
fn page_over_the_limit_is_refused_by_name() {
    for properties in properties() {
        let bytes = sample(properties);
        let file = open(&bytes).unwrap();
        let columns = file.image_columns(&ImageColumns::default()).unwrap().columns;
        let error = read_rows(&file, &bytes, &columns, 0, 200).unwrap_err().to_string();
        assert!(error.contains("of row group 0, near row 0: a page takes") && error.contains("200 B"), "{error}");
    }
}

#[test]
fn files_that_are_no_parquet_are_refused() {
    let bytes = sample(properties().remove(0));
    for (damaged, message) in [
        (b"PAR1".to_vec(), "does not end with the mark"),
        (bytes[..bytes.len() - 1].to_vec(), "does not end with the mark"),
        ([&bytes[..bytes.len() - 8], &[255, 255, 255, 0], b"PAR1"].concat(), "are longer than the file"),
        ([&bytes[..bytes.len() - 8], &[9, 0, 0, 0], b"PAR1"].concat(), "its metadata are damaged"),
        ([&bytes[..bytes.len() - 4], b"PARE"].concat(), "it is encrypted"),
    ] {
        let error = open(&damaged).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
