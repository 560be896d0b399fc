//! Tensor cores: `mma.sync`, `wmma`, `wgmma`, and the loads and stores of their matrices.
//!
//! Products are f32 and are added in the order of k. A card adds in another order, with fewer bits: results agree to rounding only.

mod fragments;
mod matrix;
mod mma;
mod products;
mod wgmma;
mod wmma;

pub use fragments::Spread;
pub use matrix::{ldmatrix, stmatrix};
pub use mma::mma;
pub use products::Products;
pub use wgmma::wgmma;
pub use wmma::wmma;

use crate::exec::Lanes;
use crate::half::{Bf16, F16, Val, e4m3_to_f32};
use crate::isa::Result;
use crate::isa::build::Build;
use crate::ptx::{Class, Operand};

fn vector(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(parts) => parts,
        one => std::slice::from_ref(one),
    }
}

fn sources(build: &mut Build, operand: &Operand, class: Class) -> Result<Vec<u32>> {
    vector(operand).iter().map(|part| build.src(part, class)).collect()
}

fn targets(build: &mut Build, operand: &Operand) -> Result<Vec<u32>> {
    vector(operand).iter().map(|part| Ok(build.reg(part)?.0)).collect()
}

/// Value `index` of a lane's fragment, as the format packs it in registers.
unsafe fn element(lanes: &Lanes, regs: &[u32], kind: &str, lane: usize, index: usize) -> f32 {
    let word = |at: usize| unsafe { u32::load(lanes.regs.add(regs[at] as usize), lane) };
    match kind {
        "bf16" => Bf16((word(index / 2) >> (16 * (index & 1))) as u16).to_f32(),
        "f16" => F16((word(index / 2) >> (16 * (index & 1))) as u16).to_f32(),
        "tf32" => f32::from_bits(word(index) & !0x1FFF),
        "e4m3" => e4m3_to_f32((word(index / 4) >> (8 * (index & 3))) as u8),
        "s8" => f32::from((word(index / 4) >> (8 * (index & 3))) as u8 as i8),
        "u8" => f32::from((word(index / 4) >> (8 * (index & 3))) as u8),
        _ => f32::from_bits(word(index)),
    }
}

/// Row and column of value `index` of a lane.
fn place_a(kind: &str, lane: usize, index: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane & 3);
    match kind {
        "bf16" | "f16" => {
            let row = group + if index & 2 != 0 { 8 } else { 0 };
            (row, thread * 2 + (index & 1) + if index >= 4 { 8 } else { 0 })
        }
        "tf32" => (group + if index & 1 != 0 { 8 } else { 0 }, thread + if index >= 2 { 4 } else { 0 }),
        _ => {
            let row = group + if index & 4 != 0 { 8 } else { 0 };
            (row, thread * 4 + (index & 3) + if index >= 8 { 16 } else { 0 })
        }
    }
}

fn place_b(kind: &str, lane: usize, index: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane & 3);
    match kind {
        "bf16" | "f16" => (thread * 2 + (index & 1) + if index >= 2 { 8 } else { 0 }, group),
        "tf32" => (thread + 4 * index, group),
        _ => (thread * 4 + (index & 3) + if index >= 4 { 16 } else { 0 }, group),
    }
}

fn place_c(lane: usize, index: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane & 3);
    (group + if index >= 2 { 8 } else { 0 }, thread * 2 + (index & 1))
}
