//! `mma.sync`.

use super::{element, place_a, place_b, place_c, sources, targets};
use crate::half::{F16, Val, WARP};
use crate::isa::build::Build;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Statement};

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
    // Where each value goes: found once.
    let (a_count, b_count) = (16 * k / WARP, 8 * k / WARP);
    let a_places: Vec<usize> = (0..WARP)
        .flat_map(|lane| (0..a_count).map(move |index| (lane, index)))
        .map(|(lane, index)| {
            let (row, column) = place_a(&a_kind, lane, index);
            row * k + column
        })
        .collect();
    let b_places: Vec<usize> = (0..WARP)
        .flat_map(|lane| (0..b_count).map(move |index| (lane, index)))
        .map(|(lane, index)| {
            let (row, column) = place_b(&b_kind, lane, index);
            column * k + row
        })
        .collect();
    Ok(Box::new(move |lanes, _| unsafe {
        // A by rows, B by columns.
        let mut left = [0f32; 16 * 32];
        let mut right = [0f32; 8 * 32];
        if a_kind == "bf16" {
            for (at, reg) in a.iter().enumerate() {
                let words = lanes.regs.add(*reg as usize).cast::<u32>();
                for lane in 0..WARP {
                    let word = *words.add(lane);
                    left[a_places[lane * a_count + 2 * at]] = f32::from_bits(word << 16);
                    left[a_places[lane * a_count + 2 * at + 1]] = f32::from_bits(word & 0xFFFF_0000);
                }
            }
            for (at, reg) in b.iter().enumerate() {
                let words = lanes.regs.add(*reg as usize).cast::<u32>();
                for lane in 0..WARP {
                    let word = *words.add(lane);
                    right[b_places[lane * b_count + 2 * at]] = f32::from_bits(word << 16);
                    right[b_places[lane * b_count + 2 * at + 1]] = f32::from_bits(word & 0xFFFF_0000);
                }
            }
        } else {
            for lane in 0..WARP {
                for index in 0..a_count {
                    left[a_places[lane * a_count + index]] = element(lanes, &a, &a_kind, lane, index);
                }
                for index in 0..b_count {
                    right[b_places[lane * b_count + index]] = element(lanes, &b, &b_kind, lane, index);
                }
            }
        }
        let mut product = [[0f32; 8]; 16];
        for (row, line) in product.iter_mut().enumerate() {
            for (column, sum) in line.iter_mut().enumerate() {
                let (left, right) = (&left[row * k..row * k + k], &right[column * k..column * k + k]);
                // Eight sums side by side.
                let mut parts = [0f32; 8];
                if k >= 8 {
                    for (l, r) in left.chunks_exact(8).zip(right.chunks_exact(8)) {
                        for at in 0..8 {
                            parts[at] += l[at] * r[at];
                        }
                    }
                    *sum = parts.iter().sum();
                } else {
                    *sum = left.iter().zip(right).map(|(l, r)| l * r).sum();
                }
            }
        }
        if d_kind == "s32" {
            for lane in 0..WARP {
                for index in 0..4 {
                    let (row, column) = place_c(lane, index);
                    let before = i32::load(lanes.regs.add(c[index] as usize), lane);
                    i32::store(
                        lanes.regs.add(d[index] as usize),
                        lane,
                        before.wrapping_add(product[row][column] as i32),
                    );
                }
            }
        } else if d_kind == "f32" {
            let mut sums = [[0f32; 4]; WARP];
            for (lane, sums) in sums.iter_mut().enumerate() {
                for (index, sum) in sums.iter_mut().enumerate() {
                    let (row, column) = place_c(lane, index);
                    *sum = element(lanes, &c, &c_kind, lane, index) + product[row][column];
                }
            }
            for (lane, sums) in sums.iter().enumerate() {
                for (index, sum) in sums.iter().enumerate() {
                    f32::store(lanes.regs.add(d[index] as usize), lane, *sum);
                }
            }
        } else {
            for lane in 0..WARP {
                let mut halves = [0u16; 4];
                for (index, half) in halves.iter_mut().enumerate() {
                    let (row, column) = place_c(lane, index);
                    *half = F16::from_f32(element(lanes, &c, &c_kind, lane, index) + product[row][column]).0;
                }
                for at in 0..2 {
                    let word = u32::from(halves[2 * at]) | u32::from(halves[2 * at + 1]) << 16;
                    u32::store(lanes.regs.add(d[at] as usize), lane, word);
                }
            }
        }
    }))
}
