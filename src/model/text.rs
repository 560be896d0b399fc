//! A Hugging Face text encoder: captions in, one vector a caption out.
//!
//! [`TextCheckpoint::open`] reads `config.json`, `tokenizer.json` and what sentence-transformers leaves beside them, and
//! compares every key and shape. [`Tokens`] turns text into numbers, [`TextEncoder`] those into vectors, on any device.
//! Families: `bert` and `xlm-roberta` (`roberta` alike). Without the files of sentence-transformers a vector is the mean of the
//! last hidden states over the caption's tokens, scaled to length 1, which is what multilingual-e5 is made for.
//!
//! The table of word vectors stays on the host, in the format of its file, and the rows that a batch needs go up with it: it is
//! by far the largest tensor of a multilingual encoder, and a batch needs little of it.

mod checkpoint;
mod encoder;
mod layout;
mod modules;
#[cfg(test)]
mod reference;
mod tokens;

pub use checkpoint::TextCheckpoint;
pub use encoder::{TextEncoder, TextNumerics};
pub use tokens::{Batch, Tokens, batches};
