//! URLs and labels of consecutive rows, in two buffers each instead of two allocations a row.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, ListArray, RecordBatch, StringArray, UInt32Array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, UInt32Type};

/// What a chunk says of its rows beside pixels or features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowHeads {
    urls: String,
    url_ends: Vec<i32>,
    labels: Vec<u32>,
    label_ends: Vec<i32>,
}

impl Default for RowHeads {
    fn default() -> Self {
        Self { urls: String::new(), url_ends: vec![0], labels: Vec::new(), label_ends: vec![0] }
    }
}

impl RowHeads {
    /// Appends a row.
    pub fn push(&mut self, image_url: &str, labels: impl IntoIterator<Item = u32>) {
        self.urls.push_str(image_url);
        self.url_ends.push(self.urls.len() as i32);
        self.labels.extend(labels);
        self.label_ends.push(self.labels.len() as i32);
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.url_ends.len() - 1
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Labels of all rows together.
    pub fn label_count(&self) -> usize {
        self.labels.len()
    }

    /// Bytes that the rows take in a file, at most.
    pub fn stored_bytes(&self) -> u64 {
        (self.urls.len() + 4 * self.labels.len() + 64 * self.len()) as u64
    }

    /// The image URL of a row.
    pub fn url(&self, row: usize) -> &str {
        &self.urls[self.url_ends[row] as usize..self.url_ends[row + 1] as usize]
    }

    /// The class ids of a row, ascending.
    pub fn labels(&self, row: usize) -> &[u32] {
        &self.labels[self.label_ends[row] as usize..self.label_ends[row + 1] as usize]
    }

    /// Appends all rows of another.
    pub fn append(&mut self, other: &Self) {
        for row in 0..other.len() {
            self.push(other.url(row), other.labels(row).iter().copied());
        }
    }

    /// The schema's fields of the two columns.
    pub(super) fn fields() -> [Field; 2] {
        [Field::new("image_url", DataType::Utf8, false), Field::new("labels", Self::list_type(), false)]
    }

    fn list_type() -> DataType {
        DataType::List(Arc::new(Field::new("item", DataType::UInt32, false)))
    }

    /// The two columns.
    pub(super) fn columns(&self) -> [ArrayRef; 2] {
        let urls = StringArray::new(
            OffsetBuffer::new(ScalarBuffer::from(self.url_ends.clone())),
            self.urls.as_bytes().into(),
            None,
        );
        let labels = ListArray::new(
            Arc::new(Field::new("item", DataType::UInt32, false)),
            OffsetBuffer::new(ScalarBuffer::from(self.label_ends.clone())),
            Arc::new(UInt32Array::from(self.labels.clone())),
            None,
        );
        [Arc::new(urls), Arc::new(labels)]
    }

    /// Reads the columns of a batch back; a batch without a `labels` column has rows without labels.
    pub(super) fn append_batch(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let urls = batch
            .column_by_name("image_url")
            .and_then(|column| column.as_string_opt::<i32>())
            .ok_or("the column `image_url` is missing or not Utf8")?;
        let labels = match batch.column_by_name("labels") {
            None => None,
            Some(column) => {
                let list = column.as_list_opt::<i32>().ok_or("the column `labels` is not a list")?;
                let values =
                    list.values().as_primitive_opt::<UInt32Type>().ok_or("the column `labels` does not hold UInt32")?;
                Some((list.value_offsets(), values))
            }
        };
        for row in 0..batch.num_rows() {
            let span = labels.map_or(0..0, |(ends, _)| ends[row] as usize..ends[row + 1] as usize);
            let values = labels.map_or(&[][..], |(_, values)| &values.values()[span]);
            self.push(urls.value(row), values.iter().copied());
        }
        if urls.null_count() > 0 {
            return Err("the column `image_url` has nulls".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_went_in() {
        let mut rows = RowHeads::default();
        rows.push("https://a/é.jpg", [3, 7]);
        rows.push("", []);
        assert_eq!((rows.len(), rows.label_count()), (2, 2));
        assert_eq!((rows.url(0), rows.labels(0)), ("https://a/é.jpg", &[3, 7][..]));
        assert_eq!((rows.url(1), rows.labels(1)), ("", &[][..]));
        let mut twice = rows.clone();
        twice.append(&rows);
        assert_eq!(twice.url(2), rows.url(0));
    }
}
