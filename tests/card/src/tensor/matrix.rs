//! `ldmatrix` and `stmatrix`.

use super::{sources, targets};
use crate::half::{Val, WARP};
use crate::isa::build::{Build, space_of};
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Statement};
use crate::races::Access;

/// Translates `ldmatrix`.
pub fn ldmatrix(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let has = |word: &str| inst.op.iter().any(|part| part == word);
    if !has("m8n8") || !has("b16") {
        return Err("is not supported".to_owned());
    }
    let trans = has("trans");
    let d = targets(build, &inst.operands[0])?;
    let address = build.address(&inst.operands[1])?;
    let at = address.at();
    let space = space_of(&inst.op, &address);
    Ok(Box::new(move |lanes, _| unsafe {
        for (index, reg) in d.iter().enumerate() {
            let mut matrix = [[0u16; 8]; 8];
            for (row, line) in matrix.iter_mut().enumerate() {
                let lane = 8 * index + row;
                let from = lanes.memory(space, at.get(lanes, lane), 16, lane, Access::ReadTogether).cast::<u16>();
                for (column, value) in line.iter_mut().enumerate() {
                    *value = from.add(column).read_unaligned();
                }
            }
            let to = lanes.regs.add(*reg as usize);
            for lane in 0..WARP {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let (low, high) = if trans {
                    (matrix[column][row], matrix[column + 1][row])
                } else {
                    (matrix[row][column], matrix[row][column + 1])
                };
                u32::store(to, lane, u32::from(low) | u32::from(high) << 16);
            }
        }
    }))
}

/// Translates `stmatrix`.
pub fn stmatrix(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let has = |word: &str| inst.op.iter().any(|part| part == word);
    if !has("m8n8") || !has("b16") {
        return Err("is not supported".to_owned());
    }
    let trans = has("trans");
    let address = build.address(&inst.operands[0])?;
    let s = sources(build, &inst.operands[1], Class::B32)?;
    let at = address.at();
    let space = space_of(&inst.op, &address);
    Ok(Box::new(move |lanes, _| unsafe {
        for (index, reg) in s.iter().enumerate() {
            let mut matrix = [[0u16; 8]; 8];
            for lane in 0..WARP {
                let word = u32::load(lanes.regs.add(*reg as usize), lane);
                let (row, column) = (lane / 4, 2 * (lane % 4));
                for half in 0..2 {
                    let value = (word >> (16 * half)) as u16;
                    if trans { matrix[column + half][row] = value } else { matrix[row][column + half] = value }
                }
            }
            for (row, line) in matrix.iter().enumerate() {
                let lane = 8 * index + row;
                let to = lanes.memory(space, at.get(lanes, lane), 16, lane, Access::WriteTogether).cast::<u16>();
                for (column, value) in line.iter().enumerate() {
                    to.add(column).write_unaligned(*value);
                }
            }
        }
    }))
}
