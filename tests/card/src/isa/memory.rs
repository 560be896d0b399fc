//! Moves, loads and stores.

use super::lanewise::{each, unary};
use super::{Exec, Result, unordered};
use crate::half::{Val, WARP};
use crate::isa::build::{Build, class_of, space_of};
use crate::ptx::{Class, Operand, Statement, size};
use crate::races::Access;

/// Translates `mov`.
pub fn mov(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let (_, kind, args) = inst.parts();
    let class = if kind == "pred" { Class::Pred } else { class_of(kind) };
    match (&args[0], &args[1]) {
        (Operand::Vector(parts), from) => {
            // Apart.
            let from = build.src(from, class)?;
            let width = 8 * size(kind) / parts.len();
            let total = size(kind);
            let parts = parts.iter().map(|part| build.reg(part)).collect::<Result<Vec<_>>>()?;
            Ok(Box::new(move |lanes, mask| unsafe {
                let from = lanes.regs.add(from as usize);
                each!(mask, lane, {
                    let whole = match total {
                        16 => {
                            u128::from(*from.cast::<u64>().add(2 * lane))
                                | u128::from(*from.cast::<u64>().add(2 * lane + 1)) << 64
                        }
                        8 => u128::from(u64::load(from, lane)),
                        _ => u128::from(u32::load(from, lane)),
                    };
                    for (at, (part, class)) in parts.iter().enumerate() {
                        let value = (whole >> (at * width)) as u64 & (u64::MAX >> (64 - width));
                        let to = lanes.regs.add(*part as usize);
                        if *class == Class::B64 {
                            u64::store(to, lane, value)
                        } else {
                            u32::store(to, lane, value as u32)
                        }
                    }
                });
            }))
        }
        (to, Operand::Vector(parts)) => {
            // Together.
            let (to, _) = build.reg(to)?;
            let width = 8 * size(kind) / parts.len();
            let total = size(kind);
            let part_class = match width {
                64 => Class::B64,
                32 => Class::B32,
                _ => Class::B16,
            };
            let parts = parts.iter().map(|part| build.src(part, part_class)).collect::<Result<Vec<_>>>()?;
            Ok(Box::new(move |lanes, mask| unsafe {
                let to = lanes.regs.add(to as usize);
                each!(mask, lane, {
                    let mut whole = 0u128;
                    for (at, part) in parts.iter().enumerate() {
                        let from = lanes.regs.add(*part as usize);
                        let value = if width == 64 {
                            u64::load(from, lane)
                        } else {
                            u64::from(u32::load(from, lane)) & (u64::MAX >> (64 - width))
                        };
                        whole |= u128::from(value) << (at * width);
                    }
                    match total {
                        16 => {
                            *to.cast::<u64>().add(2 * lane) = whole as u64;
                            *to.cast::<u64>().add(2 * lane + 1) = (whole >> 64) as u64;
                        }
                        8 => u64::store(to, lane, whole as u64),
                        _ => u32::store(to, lane, whole as u32),
                    }
                });
            }))
        }
        (to, from) => {
            let (to, to_class) = build.reg(to)?;
            if class == Class::Pred {
                let (from, negated) = build.pred(from)?;
                return Ok(Box::new(move |lanes, mask| {
                    let value = lanes.pred(from, negated);
                    lanes.set_pred(to, mask, value);
                }));
            }
            let from = build.src(from, class)?;
            Ok(match to_class {
                Class::B64 if class == Class::B64 => unary::<u64, u64>(to, from, |a| a),
                Class::B128 => Box::new(move |lanes, mask| unsafe {
                    let (to, from) =
                        (lanes.regs.add(to as usize).cast::<u128>(), lanes.regs.add(from as usize).cast::<u128>());
                    each!(mask, lane, { to.add(lane).write_unaligned(from.add(lane).read_unaligned()) });
                }),
                _ => unary::<u32, u32>(to, from, |a| a),
            })
        }
    }
}

/// Translates a load.
pub fn load(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let kind = inst.op.last().unwrap().as_str();
    let address = build.address(&inst.operands[1])?;
    let space = space_of(&inst.op, &address);
    let parts: Vec<Operand> = match &inst.operands[0] {
        Operand::Vector(parts) => parts.clone(),
        one => vec![one.clone()],
    };
    let regs = parts.iter().map(|part| build.reg(part)).collect::<Result<Vec<_>>>()?;
    let access = if unordered(inst) { Access::SyncRead } else { Access::Read };
    let (width, count, at) = (size(kind), regs.len(), address.at());
    let signed = kind.starts_with('s');
    let all = width * count;
    if width == 16 {
        let regs: Vec<u32> = regs.iter().map(|(at, _)| *at).collect();
        return Ok(Box::new(move |lanes, mask| unsafe {
            each!(mask, lane, {
                let from = lanes.memory(space, at.get(lanes, lane), all, lane, access);
                for (index, reg) in regs.iter().enumerate() {
                    let value = from.add(16 * index).cast::<u128>().read_unaligned();
                    lanes.regs.add(*reg as usize).cast::<u128>().add(lane).write_unaligned(value);
                }
            });
        }));
    }
    // The common ones by themselves.
    if width == 4 && regs.iter().all(|(_, class)| *class == Class::B32) {
        let regs: Vec<u32> = regs.iter().map(|(at, _)| *at).collect();
        return Ok(Box::new(move |lanes, mask| unsafe {
            each!(mask, lane, {
                let from = lanes.memory(space, at.get(lanes, lane), all, lane, access).cast::<u32>();
                for (index, reg) in regs.iter().enumerate() {
                    u32::store(lanes.regs.add(*reg as usize), lane, from.add(index).read_unaligned());
                }
            });
        }));
    }
    Ok(Box::new(move |lanes, mask| unsafe {
        each!(mask, lane, {
            let from = lanes.memory(space, at.get(lanes, lane), all, lane, access);
            for (index, (reg, class)) in regs.iter().enumerate() {
                let value = match (width, signed) {
                    (1, true) => i64::from(*from.add(index).cast::<i8>()) as u64,
                    (1, false) => u64::from(*from.add(index)),
                    (2, true) => i64::from(from.cast::<i16>().add(index).read_unaligned()) as u64,
                    (2, false) => u64::from(from.cast::<u16>().add(index).read_unaligned()),
                    (4, true) => i64::from(from.cast::<i32>().add(index).read_unaligned()) as u64,
                    (4, false) => u64::from(from.cast::<u32>().add(index).read_unaligned()),
                    _ => from.cast::<u64>().add(index).read_unaligned(),
                };
                let to = lanes.regs.add(*reg as usize);
                match class {
                    Class::B64 => u64::store(to, lane, value),
                    Class::B16 => u32::store(to, lane, value as u32 & 0xFFFF),
                    _ => u32::store(to, lane, value as u32),
                }
            }
        });
    }))
}

/// Translates a store.
pub fn store(build: &mut Build, inst: &Statement) -> Result<Exec> {
    if inst.op.iter().any(|word| word == "async" || word == "bulk") {
        return Err("is not supported".to_owned());
    }
    let kind = inst.op.last().unwrap().as_str();
    let address = build.address(&inst.operands[0])?;
    let space = space_of(&inst.op, &address);
    let parts: Vec<Operand> = match &inst.operands[1] {
        Operand::Vector(parts) => parts.clone(),
        one => vec![one.clone()],
    };
    let class = class_of(kind);
    let mut regs = Vec::new();
    for part in &parts {
        let wide =
            matches!(part, Operand::Name(name) if build.find(name).is_some_and(|(_, class)| class == Class::B64));
        regs.push((build.src(part, class)?, wide));
    }
    let access = if unordered(inst) { Access::Sync } else { Access::Write };
    let (width, count, at) = (size(kind), regs.len(), address.at());
    let all = width * count;
    Ok(Box::new(move |lanes, mask| unsafe {
        each!(mask, lane, {
            let to = lanes.memory(space, at.get(lanes, lane), all, lane, access);
            for (index, (reg, wide)) in regs.iter().enumerate() {
                let from = lanes.regs.add(*reg as usize);
                if width == 16 {
                    let value = from.cast::<u128>().add(lane).read_unaligned();
                    to.cast::<u128>().add(index).write_unaligned(value);
                    continue;
                }
                let value = if *wide || width == 8 { u64::load(from, lane) } else { u64::from(u32::load(from, lane)) };
                match width {
                    1 => *to.add(index) = value as u8,
                    2 => to.cast::<u16>().add(index).write_unaligned(value as u16),
                    4 => to.cast::<u32>().add(index).write_unaligned(value as u32),
                    _ => to.cast::<u64>().add(index).write_unaligned(value),
                }
            }
        });
    }))
}
