//! Errors of the catalog.

/// Error of building or loading a class table or join index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// There are more classes than `u32` can number.
    #[error(
        "there are more than {limit} distinct captions: filter the rows by `pairs.languages`, or set `captions.classes` to `list`"
    )]
    TooManyClasses {
        /// Upper bound on the number of classes.
        limit: u32,
    },
    /// There are more entries than the index can number.
    #[error("there are more than {limit} labelled rows: filter the rows by `pairs.languages`")]
    TooManyEntries {
        /// Upper bound on the number of entries.
        limit: u32,
    },
    /// Stored entries are not in strictly ascending order.
    #[error(
        "entry {position} of the stored join index is not greater than its predecessor: remove the stored index so that it is rebuilt"
    )]
    Unsorted {
        /// Position of the later entry.
        position: usize,
    },
    /// An entry refers to a class that does not exist.
    #[error(
        "entry {position} of the join index refers to class {class}, but there are {classes} classes: remove the stored index so that it is rebuilt from the same captions"
    )]
    UnknownClass {
        /// Position of the entry.
        position: usize,
        /// Class id of the entry.
        class: u32,
        /// Number of classes.
        classes: usize,
    },
}
