//! Values of one column of a row group, row by row.

use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::pages::{ColumnBytes, RangeReader};

/// Upper bound on the values of one column in a row. A published image has at most a few hundred captions.
const MAX_VALUES: usize = 1 << 16;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// Text or bytes, as a slice of its page.
    Bytes(ByteArray),
    /// A whole number.
    Int(i64),
}

impl Value {
    /// Returns the bytes of text; empty for other values.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.data(),
            Self::Null | Self::Int(_) => &[],
        }
    }

    /// Returns text as it is, and numbers in decimal.
    pub fn into_text(self) -> Vec<u8> {
        match self {
            Self::Null => Vec::new(),
            Self::Bytes(bytes) => bytes.data().to_vec(),
            Self::Int(number) => number.to_string().into_bytes(),
        }
    }
}

/// Values of a column.
pub(super) struct ColumnValues {
    reader: ColumnReader,
    /// Definition level of a value that is not null.
    max_level: i16,
    /// Definition level from which on an element of the list exists; `None` outside of lists.
    element_level: Option<i16>,
}

impl ColumnValues {
    pub(super) fn open(
        chunk: &ColumnChunkMetaData,
        rows: usize,
        source: Box<dyn RangeReader>,
        max_page_bytes: u64,
    ) -> Result<Self, String> {
        let (start, bytes) = chunk.byte_range();
        let column = ColumnBytes::new(source, start + bytes, chunk.compression(), max_page_bytes);
        let pages = SerializedPageReader::new(column, chunk, rows, None).map_err(|error| explain(&error))?;
        let descriptor = chunk.column_descr_ptr();
        let element_level = (descriptor.max_rep_level() > 0).then(|| descriptor.repeated_ancestor_def_level());
        let max_level = descriptor.max_def_level();
        Ok(Self { reader: get_column_reader(descriptor, Box::new(pages)), max_level, element_level })
    }

    /// Returns the values of the next row: one, or those of the list.
    pub(super) fn next_row(&mut self) -> Result<Vec<Value>, String> {
        let Self { reader, max_level, element_level } = self;
        let levels = (*max_level, *element_level);
        match reader {
            ColumnReader::ByteArrayColumnReader(reader) => read_row(reader, levels, Value::Bytes),
            ColumnReader::Int32ColumnReader(reader) => read_row(reader, levels, |value| Value::Int(value.into())),
            ColumnReader::Int64ColumnReader(reader) => read_row(reader, levels, Value::Int),
            _ => Err("it has a type that is not read".to_owned()),
        }
    }

    /// Skips rows.
    pub(super) fn skip(&mut self, rows: usize) -> Result<(), String> {
        let skipped = match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::Int32ColumnReader(reader) => reader.skip_records(rows),
            ColumnReader::Int64ColumnReader(reader) => reader.skip_records(rows),
            _ => Ok(0),
        };
        match skipped {
            Ok(skipped) if skipped == rows => Ok(()),
            Ok(_) => Err(ends_early()),
            Err(error) => Err(explain(&error)),
        }
    }
}

fn ends_early() -> String {
    "it has fewer values than its row group has rows: the file is damaged, fetch it again".to_owned()
}

fn explain(error: &ParquetError) -> String {
    let mut text = match error {
        ParquetError::General(text) | ParquetError::EOF(text) | ParquetError::NYI(text) => text.clone(),
        ParquetError::External(error) => {
            let mut source = error.source();
            let mut text = error.to_string();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        }
        other => other.to_string(),
    };
    // Messages of the crate are made of its own data; those of a damaged file can be long.
    if let Some((end, _)) = text.char_indices().nth(400) {
        text.truncate(end);
    }
    text
}

fn read_row<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    (max_level, element_level): (i16, Option<i16>),
    convert: impl Fn(T::T) -> Value,
) -> Result<Vec<Value>, String> {
    let (mut levels, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let read = reader.read_records(1, Some(&mut levels), Some(&mut repetitions), &mut values);
    let (rows, _, _) = read.map_err(|error| explain(&error))?;
    if rows == 0 {
        return Err(ends_early());
    }
    if levels.len() > MAX_VALUES || values.len() > MAX_VALUES {
        return Err(format!("a row has more than {MAX_VALUES} values"));
    }
    let mut values = values.into_iter();
    if max_level == 0 {
        return Ok(values.map(convert).collect());
    }
    let element = element_level.unwrap_or(0);
    let present = levels.into_iter().filter(|level| element_level.is_none() || *level >= element);
    let value = |level: i16| if level == max_level { values.next().map_or(Value::Null, &convert) } else { Value::Null };
    Ok(present.map(value).collect())
}
