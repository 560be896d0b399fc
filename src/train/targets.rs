//! Target classes of the rows of a batch.

use std::ops::Range;

/// Target classes of each row; the classes of a row share its target equally.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    classes: Vec<u32>,
    /// End of each row's classes.
    ends: Vec<usize>,
}

impl Targets {
    /// Creates targets with one class for each row.
    pub fn single(labels: &[u32]) -> Self {
        Self { classes: labels.to_vec(), ends: (1..=labels.len()).collect() }
    }

    /// Appends a row.
    pub fn push(&mut self, classes: &[u32]) {
        self.classes.extend_from_slice(classes);
        self.ends.push(self.classes.len());
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Returns the classes of a row.
    pub fn row(&self, row: usize) -> &[u32] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.classes[start..self.ends[row]]
    }

    /// Iterates over the rows with their classes.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[u32])> {
        (0..self.rows()).map(|row| (row, self.row(row)))
    }

    /// Returns the concatenated classes of all rows.
    pub fn classes(&self) -> &[u32] {
        &self.classes
    }

    /// Returns a copy of some rows.
    #[must_use]
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let mut slice = Self::default();
        rows.for_each(|row| slice.push(self.row(row)));
        slice
    }

    /// Removes the first rows.
    pub fn drop_first(&mut self, rows: usize) {
        *self = self.slice(rows..self.rows());
    }

    /// Appends the rows of another batch, starting with `first`.
    pub fn append_from(&mut self, other: &Self, first: usize) {
        (first..other.rows()).for_each(|row| self.push(other.row(row)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_preserve_rows() {
        let mut targets = Targets::default();
        for row in [&[3][..], &[], &[1, 2], &[7]] {
            targets.push(row);
        }
        let part = targets.slice(1..4);
        assert_eq!(part.iter().map(|(_, classes)| classes.len()).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!((part.rows(), part.row(1), part.classes()), (3, &[1, 2][..], &[1, 2, 7][..]));
        let mut all = targets.slice(0..1);
        all.append_from(&targets, 1);
        assert_eq!(all, targets);
        all.drop_first(3);
        assert_eq!(all, Targets::single(&[7]));
    }
}
