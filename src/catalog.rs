//! Captions as numbered classes, and the classes of each image URL.
//!
//! [`Classes`] maps captions to class ids, `u32` in order of first appearance. [`url_hash`] maps image URLs to 64-bit
//! hashes, and [`JoinIndex`] maps these hashes to class ids. Captions are compared as text, so distinct captions are
//! never merged by a hash collision. URLs are compared by hash; [`url_hash`] states the collision odds.
//!
//! Two captions are equal if the [`MatchRule`](crate::types::MatchRule) gives them the same key. Under a lenient rule,
//! distinct strings of a caption list can share a key. They form a [`Group`], and a row with that key gets all its
//! classes. The index stores the group, not its classes, so it takes 12 bytes per labelled row under any rule.
//!
//! Results are deterministic: the same captions and rows in the same order give the same classes, and the same rows in
//! any order give the same index. Files, pixels and tensors belong to other modules.

mod classes;
mod coverage;
mod dedup;
mod error;
mod file_name;
mod join;
mod languages;
mod matching;
mod table;
mod texts;
mod url_variants;

pub use classes::{ClassSource, Classes, Group, Groups};
pub use coverage::{Coverage, HISTOGRAM_LABELS};
pub use dedup::{ImageFilter, UrlDedup, UrlSet};
pub use error::CatalogError;
pub use file_name::file_name_words;
pub use join::{JoinIndex, JoinIndexBuilder, Labels, RowTally, url_hash};
pub use languages::Languages;
pub use texts::Texts;
pub use url_variants::{UrlMerges, UrlVariants};
