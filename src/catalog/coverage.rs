//! Label coverage of images and classes, for the report before a run.

use crate::catalog::join::JoinIndex;

/// Ranges of images per class, one for each bucket of [`Coverage::histogram`].
pub const HISTOGRAM_LABELS: [&str; 6] = ["0", "1", "2-5", "6-20", "21-100", ">100"];

/// Counts of labelled rows, images and classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    /// Rows with a URL and a caption.
    pub rows: u64,
    /// Rows whose caption is a class.
    pub labelled_rows: u64,
    /// Distinct URLs among the labelled rows.
    pub labelled_images: u64,
    /// All classes.
    pub classes: u64,
    /// Classes with at least one image.
    pub classes_with_images: u64,
    /// Number of classes with 0, 1, 2 to 5, 6 to 20, 21 to 100, and more images.
    pub histogram: [u64; 6],
}

impl Coverage {
    /// Computes the coverage from the [`JoinIndex::frequencies`] of the same index.
    pub fn measure(index: &JoinIndex, frequencies: &[u32]) -> Self {
        let mut histogram = [0; 6];
        for &images in frequencies {
            let bucket = match images {
                0 => 0,
                1 => 1,
                2..=5 => 2,
                6..=20 => 3,
                21..=100 => 4,
                101.. => 5,
            };
            if let Some(count) = histogram.get_mut(bucket) {
                *count += 1;
            }
        }
        let [without, ..] = histogram;
        let classes = frequencies.len() as u64;
        Self {
            rows: index.tally().rows,
            labelled_rows: index.tally().labelled_rows,
            labelled_images: index.images() as u64,
            classes,
            classes_with_images: classes - without,
            histogram,
        }
    }
}

impl JoinIndex {
    /// Returns the number of distinct images per class, by class id, in one pass over the entries.
    pub fn frequencies(&self) -> Vec<u32> {
        let mut frequencies = vec![0_u32; self.classes()];
        for &[_, _, first] in self.entries() {
            // Each entry is a distinct pair of image and group, so no image is counted twice for a class.
            if let Some(count) = frequencies.get_mut(first as usize) {
                *count += 1;
            }
        }
        self.groups().copy_from_first(&mut frequencies);
        frequencies
    }

    /// Returns the label coverage.
    pub fn coverage(&self) -> Coverage {
        Coverage::measure(self, &self.frequencies())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::catalog::classes::ClassSource;
    use crate::catalog::classes::Classes;
    use crate::catalog::join::JoinIndexBuilder;
    use crate::types::MatchRule;

    #[test]
    fn each_image_counts_once_per_class() {
        let mut classes = Classes::new(ClassSource::List, MatchRule::Trimmed);
        for caption in ["a", "b", "a ", "c", "d"] {
            classes.add(caption).unwrap();
        }
        let mut builder = JoinIndexBuilder::new();
        for image in 0..3 {
            builder.add(image, classes.group_of("a")).unwrap();
            builder.add(image, classes.group_of(" a")).unwrap();
        }
        for image in 0..150 {
            builder.add(image, classes.group_of("b")).unwrap();
        }
        builder.add(7, classes.group_of("c")).unwrap();
        builder.add(8, classes.group_of("not a class")).unwrap();
        let index = builder.build(&classes).unwrap();
        assert_eq!(index.frequencies(), [3, 150, 3, 1, 0]);
        assert_eq!(
            index.coverage(),
            Coverage {
                rows: 158,
                labelled_rows: 157,
                labelled_images: 150,
                classes: 5,
                classes_with_images: 4,
                histogram: [1, 1, 2, 0, 0, 1],
            }
        );
    }
}
