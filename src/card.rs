//! Memory, launches and matrix products of this crate's own CUDA kernels, in CUDA C++ (`*.cu`).
//!
//! NVRTC compiles them through `CubeCL`, which also owns memory and streams. [`crate::model`] has the kernels of a backbone, and
//! [`crate::train`] those of a classifier's training. [`Program`] puts a kernel together from files; `common.cu` comes first in
//! each.
//!
//! Products run on `wgmma` and the copy engine on compute capability 9.0 (`product_wgmma.cu`), on `mma.sync` elsewhere from 8.0 on
//! (`product.cu`). What happens to their sums is an *epilogue*, a file of its own. Inputs are bf16 and sums f32.

mod memory;
mod product;
mod program;

pub(crate) use memory::{Arguments, Card, Matrix};
pub(crate) use product::Tile;
pub(crate) use program::Program;

/// Smallest compute capability with bf16 in `mma.sync`.
pub(crate) const LEAST_CAPABILITY: u32 = 80;

/// Values that a load of 16 bytes brings. All widths are multiples of it.
pub(crate) const VECTOR: usize = 8;
