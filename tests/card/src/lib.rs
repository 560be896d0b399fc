//! A `libcuda.so.1` for machines without a card: it plays a card, checks the driver's calls, and executes PTX on the CPU.
//!
//! `driver` holds the exported functions. They queue work in `state`, which runs it in the order that streams and events demand.
//! `module` loads PTX, `ptx` parses it, `isa`, `tensor` and `copies` translate its instructions, and `exec` runs kernels.
//! README.md lists the settings, what is checked and what is not.

mod candidates;
mod card;
mod copies;
pub mod driver;
mod exec;
mod half;
mod isa;
pub mod log;
pub mod module;
mod ptx;
pub mod races;
mod settings;
pub mod state;
mod tensor;
pub mod tensor_map;
