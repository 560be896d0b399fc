//! Loads a `VisionEncoderDecoder` checkpoint and generates captions of images, token for token as transformers does.
//!
//! [`CaptionCheckpoint::open`] reads `config.json`, `generation_config.json`, the preprocessor, the tokenizer and the headers
//! of the weights. [`Captioner`] maps u8 pixels to token ids by greedy or beam search, [`CaptionDecoder`] maps token ids to
//! text. The encoder is a ViT, `DeiT`, `DINOv2` or Swin; the decoder is GPT-2, BERT, `RoBERTa` or `XLM-RoBERTa` with cross attention.
//!
//! An option of `generation_config.json` that would change the tokens and is not supported is refused by name.
//!
//! Sampling, several captions for an image, prompts and assisted generation are absent.

mod beam;
mod captioner;
mod checkpoint;
mod config;
mod generation;
mod greedy;
mod layout;
mod network;
mod options;
mod processors;
#[cfg(test)]
mod reference;
mod search;
mod tokens;

pub use captioner::Captioner;
pub use checkpoint::CaptionCheckpoint;
pub use generation::{Generation, Stopping};
pub use tokens::CaptionDecoder;
