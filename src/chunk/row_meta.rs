//! Metadata of consecutive rows: URLs, labels and views, each in one or two buffers instead of two allocations per row.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, ListArray, RecordBatch, StringArray, UInt8Array, UInt32Array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, UInt8Type, UInt32Type};

/// Metadata that a chunk stores for its rows beside pixels or features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMeta {
    urls: String,
    url_ends: Vec<i32>,
    labels: Vec<u32>,
    label_ends: Vec<i32>,
    views: Vec<u8>,
}

/// Typical length of a URL, in bytes; sizes the initial buffer.
const URL_BYTES: usize = 128;

impl Default for RowMeta {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl RowMeta {
    /// Creates empty metadata with room for `rows` rows of one label each.
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

    /// Appends a row for a whole image.
    pub fn push(&mut self, image_url: &str, labels: impl IntoIterator<Item = u32>) {
        self.push_view(image_url, labels, 0);
    }

    /// Appends a row for a view of an image: 0 is the whole image, 1 and up are random crops. The views of an image are
    /// consecutive.
    pub fn push_view(&mut self, image_url: &str, labels: impl IntoIterator<Item = u32>, view: u8) {
        self.views.push(view);
        self.urls.push_str(image_url);
        self.url_ends.push(self.urls.len() as i32);
        self.labels.extend(labels);
        self.label_ends.push(self.labels.len() as i32);
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.url_ends.len() - 1
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the view number of a row.
    pub fn view(&self, row: usize) -> u8 {
        self.views[row]
    }

    /// Returns the number of images, that is, of rows that are the first view of an image.
    pub fn image_count(&self) -> usize {
        self.views.iter().filter(|view| **view <= 1).count()
    }

    /// Returns the number of labels of all images, each image counted once.
    pub fn label_count(&self) -> usize {
        (0..self.len()).filter(|row| self.view(*row) <= 1).map(|row| self.labels(row).len()).sum()
    }

    /// Returns an upper bound on the bytes of the rows in a file.
    pub fn stored_bytes(&self) -> u64 {
        (self.urls.len() + 4 * self.labels.len() + 64 * self.len()) as u64
    }

    /// Returns the image URL of a row.
    pub fn url(&self, row: usize) -> &str {
        &self.urls[self.url_ends[row] as usize..self.url_ends[row + 1] as usize]
    }

    /// Returns the class ids of a row in ascending order.
    pub fn labels(&self, row: usize) -> &[u32] {
        &self.labels[self.label_ends[row] as usize..self.label_ends[row + 1] as usize]
    }

    /// Appends all rows of `other`.
    pub fn append(&mut self, other: &Self) {
        for row in 0..other.len() {
            self.push_view(other.url(row), other.labels(row).iter().copied(), other.view(row));
        }
    }

    /// Returns the schema fields of the metadata columns.
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

    /// Returns the metadata columns.
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

    /// Appends the rows of a batch. Without a column `labels` the rows have no labels; without `view` they are whole
    /// images.
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
    fn rows_round_trip() {
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
