//! Launches and tensor maps beyond the card's limits, which the driver refuses.

use std::sync::Arc;

use crate::rig::module;
use cuda::module::{Function, Module};
use cuda::tensor_map::TensorMap;

/// A kernel with 1,024 bytes of shared memory of its own, in which each thread has that many registers.
fn function(registers: u32) -> Function {
    let ptx = module(".shared .align 16 .b8 tile[1024];", "");
    let mut module = Module::load(ptx.as_bytes()).expect("a module");
    module.entries[0].registers = registers;
    Function::find(&Arc::new(module), "kernel").expect("an entry")
}

#[test]
fn launch_within_the_limits_is_taken() {
    let function = function(64);
    for (grid, block, shared) in [([1, 1, 1], [1024, 1, 1], 47 << 10), ([1 << 20, 65_535, 1], [8, 8, 16], 0)] {
        assert_eq!(function.may_launch(grid, block, shared), Ok(()));
    }
}

#[test]
fn launch_beyond_a_limit_is_refused() {
    let refused = |registers, grid, block, shared| function(registers).may_launch(grid, block, shared).is_err();
    assert!(refused(64, [1, 1, 1], [32, 1, 1], (47 << 10) + 1), "shared memory that was not asked for");
    assert!(refused(64, [1, 1, 1], [1025, 1, 1], 0), "threads");
    assert!(refused(64, [1, 1, 1], [1, 1, 65], 0), "depth of a block");
    assert!(refused(64, [1, 65_536, 1], [32, 1, 1], 0), "height of a grid");
    assert!(refused(64, [0, 1, 1], [32, 1, 1], 0), "no blocks");
    assert!(refused(72, [1, 1, 1], [1024, 1, 1], 0), "registers");
}

/// Describes a bf16 matrix of 64 rows of 128 values with tiles of 64 × 64 values and a swizzle of 128 bytes.
struct Map {
    data_type: u32,
    address: u64,
    dims: Vec<u64>,
    stride: u64,
    tile: [u32; 2],
    swizzle: u32,
    fill: u32,
}

impl Map {
    fn new() -> Self {
        Self { data_type: 9, address: 1 << 20, dims: vec![128, 64], stride: 256, tile: [64, 64], swizzle: 3, fill: 0 }
    }

    fn refused(&self) -> bool {
        let strides = vec![self.stride; self.dims.len() - 1];
        let ones = vec![1; self.dims.len()];
        TensorMap::new(
            self.data_type,
            self.address,
            &self.dims,
            &strides,
            &self.tile[..self.dims.len().min(2)],
            &ones,
            0,
            self.swizzle,
            self.fill,
        )
        .is_err()
    }
}

#[test]
fn tensor_maps_keep_the_rules_of_the_copy_engine() {
    assert!(!Map::new().refused());
    assert!(!Map { fill: 1, ..Map::new() }.refused(), "NaN outside of a tensor of floats");
    assert!(Map { address: (1 << 20) + 8, ..Map::new() }.refused(), "address");
    assert!(Map { stride: 264, ..Map::new() }.refused(), "stride that is no multiple of 16");
    assert!(Map { stride: 1 << 40, ..Map::new() }.refused(), "stride that is too large");
    assert!(Map { dims: vec![128, 0], ..Map::new() }.refused(), "no rows");
    assert!(Map { tile: [64, 257], ..Map::new() }.refused(), "rows of a tile");
    assert!(Map { tile: [72, 64], ..Map::new() }.refused(), "rows longer than the swizzle");
    assert!(Map { tile: [4, 64], ..Map::new() }.refused(), "rows of 8 bytes");
    assert!(Map { swizzle: 4, ..Map::new() }.refused(), "unknown swizzle");
    assert!(
        Map { data_type: 2, tile: [32, 64], fill: 1, ..Map::new() }.refused(),
        "NaN outside of a tensor of integers"
    );
}
