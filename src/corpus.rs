//! The published files as typed rows: image shards, caption pairs, the caption list and the test ids.
//!
//! Bytes come in (decompressed, in blocks of any size), rows go out; nothing here opens, reads or waits for
//! anything, so that the same parsers serve blocking and async readers. Quoting follows Python's `csv.reader`
//! with its default dialect, which is what the files were written for: quoted fields hold delimiters, quotes
//! and newlines. Bytes are checked as UTF-8 only in the columns that are needed.
//!
//! Rows are numbered from 0, header and blank lines not counted, so that a row has the same number however
//! the file was cut into blocks. A row of an image shard or of a pairs file that cannot be used becomes a
//! value with a reason; in the caption list and the test ids, on which every later number rests, it is a
//! [`CorpusError`].
//!
//! Memory: at most `max_record_bytes` plus one block for each parser (and the ids themselves for
//! [`TestIds`], which refuses duplicates). What is deliberately absent: HTTP, decompression, base64, pixels.

mod captions;
mod error;
#[cfg(test)]
mod fuzz;
mod header;
mod ids;
mod images;
mod pairs;
mod rows;

pub use captions::{CaptionCounts, CaptionList, CaptionRow};
pub use error::CorpusError;
pub use ids::{TestId, TestIds};
pub use images::{ImageRow, ImageRowProblem, ImageRows, MAX_URL_BYTES};
pub use pairs::{Pair, PairCounts, PairProblem, PairRow, Pairs};
pub use rows::{Delimiter, Fields, Kind, Mark, PushParser, Record, RowSplitter, fill_from};
