//! Atomic operations.

use super::lanewise::each;
use super::{Exec, Result};
use crate::half::{Bf16, F16, Val, WARP};
use crate::isa::build::{Build, class_of, space_of};
use crate::ptx::{Operand, Statement, size};
use crate::races::Access;

/// Translates `atom`, or `red` if `silent`.
pub fn atomic(build: &mut Build, inst: &Statement, silent: bool) -> Result<Exec> {
    let kind = inst.op.last().unwrap().clone();
    let (dst, rest) = if silent { (None, &inst.operands[..]) } else { (Some(&inst.operands[0]), &inst.operands[1..]) };
    let address = build.address(&rest[0])?;
    let space = space_of(&inst.op, &address);
    let what = inst
        .op
        .iter()
        .find(|word| ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"].contains(&word.as_str()))
        .cloned()
        .ok_or("which?")?;
    let vector = |operand: &Operand| match operand {
        Operand::Vector(parts) => parts.clone(),
        one => vec![one.clone()],
    };
    let class = class_of(&kind);
    let mut values = Vec::new();
    for part in vector(&rest[1]) {
        values.push(build.src(&part, class)?);
    }
    let other = rest.get(2).map(|operand| build.src(operand, class)).transpose()?;
    let mut olds = Vec::new();
    if let Some(dst) = dst {
        for part in vector(dst) {
            olds.push(build.reg(&part)?.0);
        }
    }
    let (width, at) = (size(&kind), address.at());
    let all = width * values.len();
    let join = move |old: u64, value: u64, other: u64| -> u64 {
        let (old32, value32) = (old as u32, value as u32);
        let f = |f: fn(f32, f32) -> f32| u64::from(f(f32::from_bits(old32), f32::from_bits(value32)).to_bits());
        let bf = |shift: u32, f: fn(f32, f32) -> f32| {
            let part = |word: u64| Bf16((word >> shift) as u16).to_f32();
            u64::from(Bf16::from_f32(f(part(old), part(value))).0) << shift
        };
        let hf = |shift: u32, f: fn(f32, f32) -> f32| {
            let part = |word: u64| F16((word >> shift) as u16).to_f32();
            u64::from(F16::from_f32(f(part(old), part(value))).0) << shift
        };
        match (what.as_str(), kind.as_str()) {
            ("add", "f32") => f(|a, b| a + b),
            ("add", "f64") => (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
            ("add", "bf16") => bf(0, |a, b| a + b),
            ("add", "bf16x2") => bf(0, |a, b| a + b) | bf(16, |a, b| a + b),
            ("add", "f16") => hf(0, |a, b| a + b),
            ("add", "f16x2") => hf(0, |a, b| a + b) | hf(16, |a, b| a + b),
            ("add", _) => old.wrapping_add(value),
            ("min", "s32") => (old as i32).min(value as i32) as u32 as u64,
            ("max", "s32") => (old as i32).max(value as i32) as u32 as u64,
            ("min", "s64") => (old as i64).min(value as i64) as u64,
            ("max", "s64") => (old as i64).max(value as i64) as u64,
            ("min", "f32") => f(f32::min),
            ("max", "f32") => f(f32::max),
            ("min", _) => old.min(value),
            ("max", _) => old.max(value),
            ("and", _) => old & value,
            ("or", _) => old | value,
            ("xor", _) => old ^ value,
            ("exch", _) => value,
            ("cas", _) => {
                if old == value {
                    other
                } else {
                    old
                }
            }
            ("inc", _) => {
                if old >= value {
                    0
                } else {
                    old + 1
                }
            }
            _ => {
                if old == 0 || old > value {
                    value
                } else {
                    old - 1
                }
            }
        }
    };
    Ok(Box::new(move |lanes, mask| unsafe {
        // One lane after the other, as each sees what the one before it did.
        each!(mask, lane, {
            let place = lanes.memory(space, at.get(lanes, lane), all, lane, Access::Sync);
            for (index, value) in values.iter().enumerate() {
                let read = |reg: u32| {
                    let from = lanes.regs.add(reg as usize);
                    if width == 8 { u64::load(from, lane) } else { u64::from(u32::load(from, lane)) }
                };
                let (value, other) = (read(*value), other.map_or(0, read));
                let old = match width {
                    2 => u64::from(place.cast::<u16>().add(index).read_unaligned()),
                    4 => u64::from(place.cast::<u32>().add(index).read_unaligned()),
                    _ => place.cast::<u64>().add(index).read_unaligned(),
                };
                let new = join(old, value, other);
                match width {
                    2 => place.cast::<u16>().add(index).write_unaligned(new as u16),
                    4 => place.cast::<u32>().add(index).write_unaligned(new as u32),
                    _ => place.cast::<u64>().add(index).write_unaligned(new),
                }
                if let Some(to) = olds.get(index) {
                    let to = lanes.regs.add(*to as usize);
                    if width == 8 { u64::store(to, lane, old) } else { u32::store(to, lane, old as u32) }
                }
            }
        });
    }))
}
