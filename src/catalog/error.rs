//! What the catalog refuses.

/// A class table or join index that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// More classes than a class id can number.
    #[error(
        "there are more than {limit} distinct captions: filter the rows by `pairs.languages`, or set `captions.classes` to `list`"
    )]
    TooManyClasses {
        /// The largest number of classes.
        limit: u32,
    },
    /// More entries than the index can number.
    #[error("there are more than {limit} labelled rows: filter the rows by `pairs.languages`")]
    TooManyEntries {
        /// The largest number of entries.
        limit: u32,
    },
    /// Stored entries are not in strictly ascending order.
    #[error(
        "entry {position} of the stored join index is not above the one before it: remove the stored index, so that it is built again"
    )]
    Unsorted {
        /// Position of the later entry.
        position: usize,
    },
    /// An entry names a class that does not exist.
    #[error(
        "entry {position} of the join index names class {class}, there are {classes} classes: remove the stored index, so that it is built again from the same captions"
    )]
    UnknownClass {
        /// Position of the entry.
        position: usize,
        /// The class that it names.
        class: u32,
        /// How many classes there are.
        classes: usize,
    },
}
