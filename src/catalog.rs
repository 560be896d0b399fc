//! What the captions are as classes, and which classes each image URL has.
//!
//! Captions come in as text and leave as class ids, `u32` in order of first appearance ([`Classes`]); image
//! URLs come in and leave as 64-bit hashes ([`url_hash`]), which the [`JoinIndex`] maps to class ids. Captions
//! are compared as text, never by hash alone, so distinct captions are never merged; URLs are compared by
//! hash, with odds that [`url_hash`] states.
//!
//! Equal captions are those whose keys are equal under a [`Match`] rule. Under a lenient rule several distinct
//! strings of a caption list can share a key; they form a [`Group`], and a row with that key gets all of them.
//! The index stores the group and not its classes, so that it takes 12 bytes a labelled row whatever the rule.
//!
//! Nothing depends on the order of a hash table or on the clock: the same captions and rows in the same order
//! give the same classes, and the same rows in any order give the same index. What is deliberately absent:
//! files, pixels, tensors.

mod classes;
mod coverage;
mod dedup;
mod error;
mod file_name;
mod join;
mod languages;
mod matching;
mod table;
mod url_variants;

pub use classes::{ClassSource, Classes, Group, Groups};
pub use coverage::{Coverage, HISTOGRAM_LABELS};
pub use dedup::{ImageFilter, UrlDedup, UrlSet};
pub use error::CatalogError;
pub use file_name::file_name;
pub use join::{JoinIndex, JoinIndexBuilder, Labels, RowTally, url_hash};
pub use languages::Languages;
pub use matching::Match;
pub use url_variants::{Merges, UrlVariants};
