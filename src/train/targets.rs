//! What the rows of a batch should be classified as.

use std::ops::Range;

/// The classes of each row; where a row has several, each has the same share of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    classes: Vec<u32>,
    /// Where the classes of each row end.
    ends: Vec<usize>,
}

impl Targets {
    /// One class for each row.
    pub fn single(labels: &[u32]) -> Self {
        Self { classes: labels.to_vec(), ends: (1..=labels.len()).collect() }
    }

    /// Adds a row.
    pub fn push(&mut self, classes: &[u32]) {
        self.classes.extend_from_slice(classes);
        self.ends.push(self.classes.len());
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// The classes of a row.
    pub fn of(&self, row: usize) -> &[u32] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.classes[start..self.ends[row]]
    }

    /// Each row's number and its classes.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[u32])> {
        (0..self.rows()).map(|row| (row, self.of(row)))
    }

    /// The classes of all rows, one after the other.
    pub fn classes(&self) -> &[u32] {
        &self.classes
    }

    /// Some of the rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let mut part = Self::default();
        rows.for_each(|row| part.push(self.of(row)));
        part
    }

    /// Removes the first rows.
    pub fn drop_first(&mut self, rows: usize) {
        *self = self.part(rows..self.rows());
    }

    /// Adds the rows of another batch, from one of them on.
    pub fn append_from(&mut self, other: &Self, first: usize) {
        (first..other.rows()).for_each(|row| self.push(other.of(row)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_classes_in_parts() {
        let mut targets = Targets::default();
        for row in [&[3][..], &[], &[1, 2], &[7]] {
            targets.push(row);
        }
        let part = targets.part(1..4);
        assert_eq!(part.iter().map(|(_, classes)| classes.len()).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!((part.rows(), part.of(1), part.classes()), (3, &[1, 2][..], &[1, 2, 7][..]));
        let mut all = targets.part(0..1);
        all.append_from(&targets, 1);
        assert_eq!(all, targets);
        all.drop_first(3);
        assert_eq!(all, Targets::single(&[7]));
    }
}
