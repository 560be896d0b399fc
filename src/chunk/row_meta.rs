//! URLs, labels and views of consecutive rows, in a buffer or two each instead of two allocations a row.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, ListArray, RecordBatch, StringArray, UInt8Array, UInt32Array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, UInt8Type, UInt32Type};

/// What a chunk says of its rows beside pixels or features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMeta {
    urls: String,
    url_ends: Vec<i32>,
    labels: Vec<u32>,
    label_ends: Vec<i32>,
    views: Vec<u8>,
}

/// Bytes of a URL, about.
const URL_BYTES: usize = 128;

impl Default for RowMeta {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl RowMeta {
    /// Without rows, and with room for so many of a label each.
    pub fn with_capacity(rows: usize) -> Self {
        let ends = || {
            let mut ends = Vec::with_capacity(rows + 1);
            ends.push(0);
            ends
        };
        Self {
            urls: String::with_capacity(rows * URL_BYTES),
            url_ends: ends(),
            labels: Vec::with_capacity(rows),
            label_ends: ends(),
            views: Vec::with_capacity(rows),
        }
    }

    /// Appends a row that is a whole image.
    pub fn push(&mut self, image_url: &str, labels: impl IntoIterator<Item = u32>) {
        self.push_view(image_url, labels, 0);
    }

    /// Appends a row that is a view of an image: 0 the whole of it, from 1 on a random part. The views of an image follow each other.
    pub fn push_view(&mut self, image_url: &str, labels: impl IntoIterator<Item = u32>, view: u8) {
        self.views.push(view);
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

    /// Which view of its image a row is.
    pub fn view(&self, row: usize) -> u8 {
        self.views[row]
    }

    /// Images held: rows, but for all views after an image's first.
    pub fn image_count(&self) -> usize {
        self.views.iter().filter(|view| **view <= 1).count()
    }

    /// Labels of all images together.
    pub fn label_count(&self) -> usize {
        (0..self.len()).filter(|row| self.view(*row) <= 1).map(|row| self.labels(row).len()).sum()
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
            self.push_view(other.url(row), other.labels(row).iter().copied(), other.view(row));
        }
    }

    /// The schema's fields of the columns.
    pub(super) fn fields() -> [Field; 3] {
        [
            Field::new("image_url", DataType::Utf8, false),
            Field::new("labels", Self::list_type(), false),
            Field::new("view", DataType::UInt8, false),
        ]
    }

    fn list_type() -> DataType {
        DataType::List(Arc::new(Field::new("item", DataType::UInt32, false)))
    }

    /// The columns.
    pub(super) fn columns(&self) -> [ArrayRef; 3] {
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
        [Arc::new(urls), Arc::new(labels), Arc::new(UInt8Array::from(self.views.clone()))]
    }

    /// Reads the columns of a batch back; without a column `labels` rows have none, without `view` they are whole images.
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
        let views = match batch.column_by_name("view") {
            None => None,
            Some(column) => {
                Some(column.as_primitive_opt::<UInt8Type>().ok_or("the column `view` does not hold UInt8")?.values())
            }
        };
        for row in 0..batch.num_rows() {
            let span = labels.map_or(0..0, |(ends, _)| ends[row] as usize..ends[row + 1] as usize);
            let values = labels.map_or(&[][..], |(_, values)| &values.values()[span]);
            self.push_view(urls.value(row), values.iter().copied(), views.map_or(0, |views| views[row]));
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
        let mut rows = RowMeta::default();
        rows.push("https://a/é.jpg", [3, 7]);
        rows.push("", []);
        rows.push_view("v", [5, 6], 1);
        rows.push_view("v", [5, 6], 2);
        assert_eq!((rows.len(), rows.image_count(), rows.label_count(), rows.view(3)), (4, 3, 4, 2));
        assert_eq!((rows.url(0), rows.labels(0)), ("https://a/é.jpg", &[3, 7][..]));
        assert_eq!((rows.url(1), rows.labels(1)), ("", &[][..]));
        let mut twice = rows.clone();
        twice.append(&rows);
        assert_eq!((twice.url(4), twice.view(7)), (rows.url(0), 2));
    }
}
