//! A Hugging Face checkpoint directory as a frozen backbone: pixels in, one feature vector an image out.
//!
//! [`Checkpoint::open`] reads `config.json`, `preprocessor_config.json` and the headers of the
//! safetensors files, and compares every key and shape with what the configuration asks for, so a
//! partly loaded backbone cannot exist. [`Extractor::load`] then reads the tensors one at a time,
//! casts them, and answers u8 pixels with f32 features, the same bits for the same batch on the CPU.
//! [`export_hf`] goes the other way: backbone and trained head as a directory that transformers opens.
//!
//! Boundary: plain slices and vectors. Pixels are `[rows, size_px, size_px, 3]`, RGB, row-major;
//! features are `[rows, feature_dim]`, row-major. No tensor leaves this module.
//!
//! Limits: the families `vit` and `dinov2`, square images and patches, three channels, safetensors
//! weights in f32, f16 or bf16. Decoding, resizing, files other than a checkpoint's, threads and
//! networks are deliberately absent; [`Preprocessor`] says what the checkpoint was trained with and
//! leaves the doing to others, except for rescaling and normalising, which happen on the device.

mod attention;
mod block;
mod checkpoint;
mod classifier;
mod config;
mod error;
mod export;
mod extractor;
mod layout;
mod pending;
mod position;
mod preprocessor;
pub mod text;
mod weights;

#[cfg(test)]
mod reference;

pub use attention::Attention;
pub use checkpoint::Checkpoint;
pub use checkpoint::Pool;
pub use classifier::Classifier;
pub use classifier::load_classifier;
pub use classifier::save_classifier;
pub use config::Activation;
pub use config::BackboneConfig;
pub use config::Family;
pub use error::ModelError;
pub use export::export_hf;
pub use extractor::ExtractOptions;
pub use extractor::Extractor;
pub use extractor::Numerics;
pub use pending::Pending;
pub use preprocessor::Preprocessor;
pub use preprocessor::Resize;

/// The backend that runs on any device: burn's flex on a CPU, its fused CUDA kernels on a card. burn compiles its operations once, in
/// a crate of its own; with a backend as a type parameter each build of this one would compile all kernels again.
pub type Any = burn::Dispatch;

/// A device of [`Any`].
pub type AnyDevice = burn::DispatchDevice;
