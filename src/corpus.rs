//! Parsers of the input files: images, captions, the caption list and the test ids.
//!
//! Input is decompressed bytes in blocks of any size; output is typed rows. The parsers do no I/O, so blocking and
//! async readers share them. [`parquet`] alone asks for the bytes that it needs. In text, quoting follows the default
//! dialect of Python's `csv.reader`, for which the files were written: a quoted field may contain delimiters, quotes and
//! newlines. UTF-8 is checked only in the columns that are used.
//!
//! Rows are numbered from 0, without header and blank lines. The numbers do not depend on where the blocks were cut. In
//! an image shard or a pairs file, an unusable row becomes a value with a reason. In the caption list and the test ids
//! it is a [`CorpusError`], because every later number depends on them.
//!
//! Memory is at most `max_record_bytes` plus one block for each parser. [`TestIds`] also holds all ids, to refuse
//! duplicates. HTTP, decompression, base64 and pixels belong to other modules.

mod caption_queue;
mod captions;
mod columns;
mod error;
pub mod folder;
#[cfg(test)]
mod fuzz;
mod header;
mod ids;
mod images;
mod json;
mod json_lines;
mod lines;
mod numbers;
mod pairs;
pub mod parquet;
mod rows;
mod tar;
mod webdataset;

pub use caption_queue::{CaptionQueue, CaptionedRow};
pub use captions::{CaptionCounts, CaptionList, CaptionRow};
pub use columns::{ColumnKind, ImageColumns, PairColumns};
pub use error::CorpusError;
pub use ids::{TestId, TestIds};
pub use images::{EncodedImage, ImageRow, ImageRowProblem, ImageRows, MAX_URL_BYTES, check_row};
pub use json_lines::{JsonImageRows, JsonPairs};
pub use lines::{Line, Lines};
pub use numbers::{MAX_NUMBER_BYTES, NumbersProblem, looks_like_numbers, parse_numbers};
pub use pairs::{Pair, PairCounts, PairProblem, PairRow, Pairs};
pub use rows::{Delimiter, Fields, PushParser, Record, RecordContent, ResumePoint, RowSplitter, fill_from};
pub use webdataset::{WebDatasetImages, WebDatasetPairs};
