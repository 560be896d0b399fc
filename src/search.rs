//! Exact nearest-neighbour search over vectors on disk, in bounded memory.
//!
//! A [`VectorFile`] holds vectors, a group and a text for each row. A search reads all vectors in blocks, on all cores, and
//! compares each with the query, so its result is exact. Memory holds one block a thread and the best rows; the file system
//! caches the file as far as memory is free.
//!
//! The files have no name: the system frees them when the value is dropped, or when the process ends in any way.
//! `forbid(unsafe_code)` rules out a memory map, so blocks are copied by positional reads.

mod file;
mod scan;
mod top;

pub use file::{VectorFile, VectorWriter};
pub use top::{Hit, Top};
