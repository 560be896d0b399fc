//! Loads a Hugging Face checkpoint as a frozen backbone that maps images to feature vectors.
//!
//! [`Checkpoint::open`] reads `config.json`, `preprocessor_config.json` and the headers of the safetensors files. It
//! compares every tensor name and shape with the configuration, so a partly loaded backbone cannot exist.
//! [`Extractor::load`] reads the tensors one at a time and casts them. It maps u8 pixels to f32 features; on the CPU
//! the same batch gives the same bits. [`export_hf`] writes backbone and trained head as a directory that transformers
//! opens.
//!
//! [`caption`] runs captioning checkpoints, which join such a backbone and a text decoder.
//!
//! Slices and vectors cross the boundary, tensors do not. Pixels are `[rows, size_px, size_px, 3]`, RGB, row-major;
//! features are `[rows, feature_dim]`, row-major.
//!
//! Supported are the families of [`Family`], square images and patches, three channels, and safetensors weights in f32,
//! f16 or bf16. `plain` runs all families with global attention; `config` and `layout` describe how they differ.
//! `windowed` runs Swin and Swin v2. `block` and `attention` hold the layers that both share. `kernels` runs most plain
//! backbones on CUDA without burn; `cpu` runs the blocks of plain backbones and text encoders on a CPU. [`Preprocessor`] describes
//! the preprocessing of the training; this module only rescales and normalises, on the device. Image decoding, resizing,
//! threads and network access are absent.

mod attention;
mod block;
pub mod caption;
mod checkpoint;
mod classifier;
mod config;
mod cost;
mod cpu;
mod error;
mod export;
mod extractor;
mod family;
mod json;
mod kernels;
mod layout;
mod load;
mod pending;
mod plain;
mod pooling;
mod position;
mod preprocessor;
mod relative;
pub mod text;
mod weights;
mod windowed;

#[cfg(test)]
mod reference;

pub use attention::Attention;
pub use checkpoint::Checkpoint;
pub use checkpoint::Pairing;
pub use checkpoint::Pool;
pub use classifier::Classifier;
pub use classifier::load_classifier;
pub use classifier::save_classifier;
pub use config::Activation;
pub use config::BackboneConfig;
pub use error::ModelError;
pub use export::export_hf;
pub use extractor::ExtractOptions;
pub use extractor::Extractor;
pub use extractor::Numerics;
pub use family::Family;
pub use kernels::Kernels;
pub use pending::Pending;
pub use preprocessor::Preprocessor;
pub use preprocessor::Resize;

/// Backend that runs on every supported device: burn's `Flex` on a CPU, fused CUDA kernels on a GPU.
///
/// burn compiles the operations of this type once, in its own crate. With a concrete backend as a type parameter, every
/// build of this crate would compile all kernels again.
pub type Any = burn::Dispatch;

/// Device of the [`Any`] backend.
pub type AnyDevice = burn::DispatchDevice;
