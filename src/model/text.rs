//! Loads a Hugging Face text encoder that maps captions to embeddings.
//!
//! [`TextCheckpoint::open`] reads `config.json`, `tokenizer.json` and the files of sentence-transformers, and checks
//! tensor names and shapes. [`CaptionTokenizer`] maps captions to token ids, [`TextEncoder`] maps token ids to
//! embeddings, on any device. Supported families are `bert`, `xlm-roberta` and `roberta`. Without the files of
//! sentence-transformers an embedding is the mean of the last hidden states over the caption's tokens, scaled to unit
//! length, as multilingual-e5 expects.
//!
//! [`TextCheckpoint::open_paired`] reads the text tower of an image backbone instead (CLIP, Meta CLIP 2, `SigLIP`), whose
//! embeddings live in one space with the images'.
//!
//! The table of word embeddings stays on the host in the format of its file; each batch uploads only the rows it needs.
//! The table is by far the largest tensor of a multilingual encoder.

mod checkpoint;
mod direct;
mod encoder;
mod layout;
mod modules;
mod paired;
#[cfg(test)]
mod reference;
mod tokens;

pub use checkpoint::TextCheckpoint;
pub use encoder::{TextEncoder, TextNumerics};
pub use tokens::{CaptionTokenizer, TextBatch, batch_by_length};
