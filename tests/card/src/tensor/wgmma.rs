//! `wgmma`: each warp computes its sixteen rows of the warpgroup's 64, when the instruction is issued.

use super::{element, place_a, sources, targets};
use crate::exec::{Lanes, Space};
use crate::half::{Bf16, F16, Val, WARP};
use crate::isa::build::Build;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Operand, Statement};
use crate::races::Access;

/// Translates `wgmma`.
pub fn wgmma(build: &mut Build, inst: &Statement) -> Result<Exec> {
    if inst.op[1] != "mma_async" {
        return Ok(Box::new(|_, _| ()));
    }
    let shape = inst.op.iter().find(|word| word.starts_with("m64n")).ok_or("shape is not supported")?;
    let numbers: Vec<usize> = shape.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
    let [_, n, k] = numbers[..] else { return Err("shape".to_owned()) };
    let kinds = &inst.op[inst.op.len() - 3..];
    if kinds[0] != "f32" || !["bf16", "f16"].contains(&kinds[1].as_str()) || kinds[1] != kinds[2] || k != 16 {
        return Err("formats is not supported".to_owned());
    }
    let kind = kinds[1].clone();
    let d = targets(build, &inst.operands[0])?;
    let in_registers = matches!(inst.operands[1], Operand::Vector(_));
    let a = if in_registers {
        sources(build, &inst.operands[1], Class::B32)?
    } else {
        vec![build.src(&inst.operands[1], Class::B64)?]
    };
    let b = build.src(&inst.operands[2], Class::B64)?;
    let adds = build.src(&inst.operands[3], Class::Pred)?;
    let flags: Vec<i64> =
        inst.operands[4..].iter().map(|flag| if let Operand::Int(flag) = flag { *flag } else { -9 }).collect();
    // Scales of 1 and no transposition: both matrices by k.
    if flags.iter().take(2).any(|scale| *scale != 1) || flags.iter().skip(2).any(|trans| *trans != 0) {
        return Err("scales and transpositions are is not supported".to_owned());
    }
    let warp = build.special_register("%warpid");
    Ok(Box::new(move |lanes, _| unsafe {
        let read = |lanes: &mut Lanes, descriptor: u64, row: usize, inner: usize| -> f32 {
            let field = |at: u32| (descriptor >> at & 0x3FFF) << 4;
            let (start, leading, stride) = (field(0), field(16), field(32));
            let (row8, in8) = ((row / 8) as u64 * stride, (row % 8) as u64);
            let address = match descriptor >> 62 {
                0 => start + row8 + (inner / 8) as u64 * leading + in8 * 16 + (inner % 8) as u64 * 2,
                mode => {
                    let (pitch, mask) = match mode {
                        1 => (128, 7),
                        2 => (64, 3),
                        _ => (32, 1),
                    };
                    let plain = start + row8 + in8 * pitch + inner as u64 * 2;
                    plain ^ (plain >> 7 & mask) << 4
                }
            };
            let bits = lanes.memory(Space::Shared, address, 2, 0, Access::Read).cast::<u16>().read_unaligned();
            if kind == "bf16" { Bf16(bits).to_f32() } else { F16(bits).to_f32() }
        };
        let rank = (u32::load(lanes.regs.add(warp as usize), 0) % 4) as usize;
        let mut left = [[0f32; 16]; 16];
        if in_registers {
            for lane in 0..WARP {
                for index in 0..8 {
                    let (row, column) = place_a(&kind, lane, index);
                    left[row][column] = element(lanes, &a, &kind, lane, index);
                }
            }
        } else {
            let descriptor = u64::load(lanes.regs.add(a[0] as usize), 0);
            for (row, line) in left.iter_mut().enumerate() {
                for (inner, value) in line.iter_mut().enumerate() {
                    *value = read(lanes, descriptor, 16 * rank + row, inner);
                }
            }
        }
        let descriptor = u64::load(lanes.regs.add(b as usize), 0);
        let mut right = vec![[0f32; 16]; n];
        for (column, line) in right.iter_mut().enumerate() {
            for (inner, value) in line.iter_mut().enumerate() {
                *value = read(lanes, descriptor, column, inner);
            }
        }
        let adds = lanes.pred(adds, false) & 1 == 1;
        for (index, reg) in d.iter().enumerate() {
            let to = lanes.regs.add(*reg as usize);
            for lane in 0..WARP {
                let (row, column) = (lane / 4 + 8 * (index / 2 % 2), 2 * (lane % 4) + index % 2 + 8 * (index / 4));
                let product: f32 = left[row].iter().zip(&right[column]).map(|(l, r)| l * r).sum();
                let before = if adds { f32::load(to, lane) } else { 0.0 };
                f32::store(to, lane, before + product);
            }
        }
    }))
}
