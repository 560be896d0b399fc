//! `mma.sync`.

use super::fragments::{DEPTH, Sums, in_parts, right_of_registers};
use super::{element, place_a, place_b, place_c, sources, targets};
use crate::exec::Lanes;
use crate::half::{Bf16, F16, Half, Val, WARP};
use crate::isa::build::Build;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Statement};

/// Computes a product.
type Multiply = Box<dyn Fn(&mut Lanes) -> Sums + Send + Sync>;

/// Translates `mma.sync` of 16 rows and 8 columns.
pub fn mma(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let shape = inst.op.iter().find(|word| word.starts_with("m16n8")).ok_or("shape is not supported")?.clone();
    if inst.op.iter().any(|word| word.starts_with("sp") || word.contains("block_scale") || word == "kind::mxf8f6f4") {
        return Err("is not supported".to_owned());
    }
    let k: usize = shape.trim_start_matches("m16n8k").parse().map_err(|_| "shape")?;
    let kinds = &inst.op[inst.op.len() - 4..];
    let (d_kind, a_kind, b_kind, c_kind) = (kinds[0].clone(), kinds[1].clone(), kinds[2].clone(), kinds[3].clone());
    if a_kind != b_kind || !["bf16", "f16", "tf32", "s8", "u8", "e4m3"].contains(&a_kind.as_str()) {
        return Err("formats is not supported".to_owned());
    }
    let d = targets(build, &inst.operands[0])?;
    let (a, b) = (sources(build, &inst.operands[1], Class::B32)?, sources(build, &inst.operands[2], Class::B32)?);
    let c = sources(build, &inst.operands[3], Class::B32)?;
    let multiply: Multiply = match (a_kind.as_str(), k) {
        ("bf16", DEPTH) => Box::new(move |lanes| of_halves::<Bf16>(lanes, &a, &b, 1)),
        ("f16", DEPTH) => Box::new(move |lanes| of_halves::<F16>(lanes, &a, &b, 2)),
        _ => any_format(a_kind, k, a, b),
    };
    Ok(Box::new(move |lanes, _| unsafe {
        let product = multiply(lanes);
        if d_kind == "s32" {
            let mut sums = [[0i32; WARP]; 4];
            for (index, sums) in sums.iter_mut().enumerate() {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let before = i32::load(lanes.regs.add(c[index] as usize), lane);
                    *sum = before.wrapping_add(product[index][lane] as i32);
                }
            }
            for (index, sums) in sums.iter().enumerate() {
                lanes.regs.add(d[index] as usize).cast::<[i32; WARP]>().write_unaligned(*sums);
            }
            return;
        }
        let mut sums = [[0f32; WARP]; 4];
        for (index, (sums, product)) in sums.iter_mut().zip(&product).enumerate() {
            if c_kind == "f32" {
                for ((sum, before), product) in sums.iter_mut().zip(lanes.words(c[index])).zip(product) {
                    *sum = f32::from_bits(before) + product;
                }
                continue;
            }
            for (lane, (sum, product)) in sums.iter_mut().zip(product).enumerate() {
                *sum = element(lanes, &c, &c_kind, lane, index) + product;
            }
        }
        if d_kind == "f32" {
            for (reg, sums) in d.iter().zip(&sums) {
                lanes.regs.add(*reg as usize).cast::<[f32; WARP]>().write_unaligned(*sums);
            }
        } else {
            for (reg, [even, odd]) in d.iter().zip(sums.as_chunks::<2>().0) {
                for (lane, (even, odd)) in even.iter().zip(odd).enumerate() {
                    let word = u32::from(F16::from_f32(*even).0) | u32::from(F16::from_f32(*odd).0) << 16;
                    u32::store(lanes.regs.add(*reg as usize), lane, word);
                }
            }
        }
    }))
}

/// Multiplies 16-bit values with 16 values of k.
fn of_halves<H: Half>(lanes: &mut Lanes, a: &[u32], b: &[u32], format: u8) -> Sums {
    let (a, b) = ([0, 1, 2, 3].map(|at| lanes.words(a[at])), [0, 1].map(|at| lanes.words(b[at])));
    let mut sums = [[0.0; WARP]; 4];
    in_parts(lanes.spread.left::<H>(&a, format), &right_of_registers::<H>(&b), &mut sums);
    sums
}

/// Multiplies values of any format.
fn any_format(kind: String, k: usize, a: Vec<u32>, b: Vec<u32>) -> Multiply {
    // Where each value goes: found once.
    let (a_count, b_count) = (16 * k / WARP, 8 * k / WARP);
    let a_places: Vec<usize> = (0..WARP)
        .flat_map(|lane| (0..a_count).map(move |index| (lane, index)))
        .map(|(lane, index)| {
            let (row, column) = place_a(&kind, lane, index);
            row * k + column
        })
        .collect();
    let b_places: Vec<usize> = (0..WARP)
        .flat_map(|lane| (0..b_count).map(move |index| (lane, index)))
        .map(|(lane, index)| {
            let (row, column) = place_b(&kind, lane, index);
            column * k + row
        })
        .collect();
    Box::new(move |lanes| {
        // A by rows, B by columns.
        let mut left = [0f32; 16 * 32];
        let mut right = [0f32; 8 * 32];
        for lane in 0..WARP {
            // SAFETY: registers of the function.
            unsafe {
                for index in 0..a_count {
                    left[a_places[lane * a_count + index]] = element(lanes, &a, &kind, lane, index);
                }
                for index in 0..b_count {
                    right[b_places[lane * b_count + index]] = element(lanes, &b, &kind, lane, index);
                }
            }
        }
        std::array::from_fn(|index| {
            std::array::from_fn(|lane| {
                let (row, column) = place_c(lane, index);
                let (left, right) = (&left[row * k..row * k + k], &right[column * k..column * k + k]);
                if k < 8 {
                    return left.iter().zip(right).map(|(l, r)| l * r).sum();
                }
                // Eight sums side by side.
                let mut parts = [0f32; 8];
                for (l, r) in left.chunks_exact(8).zip(right.chunks_exact(8)) {
                    for at in 0..8 {
                        parts[at] += l[at] * r[at];
                    }
                }
                parts.iter().sum()
            })
        })
    })
}
