//! Instructions that exchange values between the lanes of a warp.

use super::lanewise::each;
use super::{Exec, Kind, Result};
use crate::half::{Val, WARP};
use crate::isa::build::{Build, class_of};
use crate::ptx::{Class, Operand, Statement};

/// Translates votes, matches, reductions and elections.
pub fn collective(build: &mut Build, inst: &Statement) -> Result<Kind> {
    let (op, kind, args) = inst.parts();
    let has = |word: &str| op[1..].contains(&word);
    let plain = |exec: Exec| Ok(Kind::Plain(exec));
    let unsupported = || Err::<Kind, String>("is not supported".to_owned());
    match op[0] {
        "vote" => {
            let d = build.reg(&args[0])?.0;
            let (p, negated) = build.pred(&args[1])?;
            let members = build.src(&args[2], Class::B32)?;
            let mode =
                op.iter().find(|word| ["all", "any", "uni", "ballot"].contains(word)).copied().unwrap_or("").to_owned();
            Ok(Kind::Converged(
                Box::new(move |lanes, mask| {
                    let found = lanes.pred(p, negated) & mask;
                    let verdict = match mode.as_str() {
                        "all" => found == mask,
                        "any" => found != 0,
                        "uni" => found == 0 || found == mask,
                        _ => {
                            let d = unsafe { lanes.regs.add(d as usize) };
                            each!(mask, lane, { unsafe { u32::store(d, lane, found) } });
                            return;
                        }
                    };
                    lanes.set_pred(d, mask, if verdict { u32::MAX } else { 0 });
                }),
                Some(members),
            ))
        }
        "activemask" => {
            let d = build.reg(&args[0])?.0;
            plain(Box::new(move |lanes, mask| unsafe {
                let d = lanes.regs.add(d as usize);
                each!(mask, lane, { u32::store(d, lane, mask) });
            }))
        }
        "match" => {
            let (dst, pred) = match &args[0] {
                Operand::Pair(one, two) => (build.reg(one)?.0, Some(build.reg(two)?.0)),
                one => (build.reg(one)?.0, None),
            };
            let a = build.src(&args[1], class_of(kind))?;
            let members = build.src(&args[2], Class::B32)?;
            let (all, wide) = (has("all"), kind == "b64");
            Ok(Kind::Converged(
                Box::new(move |lanes, mask| unsafe {
                    let value = |lane| {
                        let a = lanes.regs.add(a as usize);
                        if wide { u64::load(a, lane) } else { u64::from(u32::load(a, lane)) }
                    };
                    let values: Vec<u64> = (0..WARP).map(value).collect();
                    let members = || values.iter().enumerate().filter(|(lane, _)| mask >> lane & 1 == 1);
                    let same = |of: u64| {
                        members().filter(|(_, value)| **value == of).fold(0u32, |found, (lane, _)| found | 1 << lane)
                    };
                    let d = lanes.regs.add(dst as usize);
                    let mut agreed = 0;
                    for (lane, value) in members() {
                        let found = same(*value);
                        if all {
                            u32::store(d, lane, if found == mask { mask } else { 0 });
                            agreed |= u32::from(found == mask) << lane;
                        } else {
                            u32::store(d, lane, found);
                        }
                    }
                    if let Some(pred) = pred {
                        lanes.set_pred(pred, mask, agreed);
                    }
                }),
                Some(members),
            ))
        }
        "redux" => {
            let d = build.reg(&args[0])?.0;
            let a = build.src(&args[1], Class::B32)?;
            let members = build.src(&args[2], Class::B32)?;
            let what = op
                .iter()
                .find(|word| ["add", "min", "max", "and", "or", "xor"].contains(word))
                .copied()
                .unwrap_or("")
                .to_owned();
            let kind = kind.to_owned();
            Ok(Kind::Converged(
                Box::new(move |lanes, mask| unsafe {
                    let from = lanes.regs.add(a as usize);
                    let live = (0..WARP).filter(|lane| mask >> lane & 1 == 1).map(|lane| u32::load(from, lane));
                    let join = |one: u32, two: u32| match (what.as_str(), kind.as_str()) {
                        ("add", _) => one.wrapping_add(two),
                        ("min", "s32") => (one as i32).min(two as i32) as u32,
                        ("max", "s32") => (one as i32).max(two as i32) as u32,
                        ("min", "f32") => f32::from_bits(one).min(f32::from_bits(two)).to_bits(),
                        ("max", "f32") => f32::from_bits(one).max(f32::from_bits(two)).to_bits(),
                        ("min", _) => one.min(two),
                        ("max", _) => one.max(two),
                        ("and", _) => one & two,
                        ("or", _) => one | two,
                        _ => one ^ two,
                    };
                    let value = live.reduce(join).unwrap_or(0);
                    let d = lanes.regs.add(d as usize);
                    each!(mask, lane, { u32::store(d, lane, value) });
                }),
                Some(members),
            ))
        }
        "elect" => {
            let Operand::Pair(dst, pred) = &args[0] else { return unsupported() };
            let (dst, pred) = (build.reg(dst)?.0, build.reg(pred)?.0);
            let members = build.src(&args[1], Class::B32)?;
            Ok(Kind::Converged(
                Box::new(move |lanes, mask| unsafe {
                    let leader = mask.trailing_zeros();
                    let d = lanes.regs.add(dst as usize);
                    each!(mask, lane, { u32::store(d, lane, leader) });
                    lanes.set_pred(pred, mask, 1 << leader);
                }),
                Some(members),
            ))
        }
        _ => unsupported(),
    }
}

/// Translates `shfl.sync`.
pub fn shuffle(build: &mut Build, inst: &Statement) -> Result<Kind> {
    let mode = inst.op[2].clone();
    let (dst, pred) = match &inst.operands[0] {
        Operand::Pair(one, two) => (
            build.reg(one)?.0,
            match &**two {
                Operand::Sink => None,
                other => Some(build.reg(other)?.0),
            },
        ),
        one => (build.reg(one)?.0, None),
    };
    let a = build.src(&inst.operands[1], Class::B32)?;
    let (b, c) = (build.src(&inst.operands[2], Class::B32)?, build.src(&inst.operands[3], Class::B32)?);
    let members = build.src(&inst.operands[4], Class::B32)?;
    Ok(Kind::Converged(
        Box::new(move |lanes, mask| unsafe {
            let regs = lanes.regs;
            let r = |at: u32| regs.add(at as usize);
            let values: [u32; WARP] = std::array::from_fn(|lane| u32::load(r(a), lane));
            let mut inside = 0u32;
            let mut out = [0u32; WARP];
            for (lane, out) in out.iter_mut().enumerate().filter(|(lane, _)| mask >> lane & 1 == 1) {
                let (b, c) = (u32::load(r(b), lane) & 31, u32::load(r(c), lane));
                let (clamp, segment) = (c & 31, c >> 8 & 31);
                let at = lane as u32;
                let most = at & segment | clamp & !segment;
                let least = at & segment;
                let (from, good) = match mode.as_str() {
                    "up" => {
                        let from = at as i32 - b as i32;
                        (from, from >= most as i32)
                    }
                    "down" => {
                        let from = (at + b) as i32;
                        (from, from <= most as i32)
                    }
                    "bfly" => {
                        let from = (at ^ b) as i32;
                        (from, from <= most as i32)
                    }
                    _ => {
                        let from = (least | b & !segment) as i32;
                        (from, from <= most as i32)
                    }
                };
                let from = if good { from as usize & 31 } else { lane };
                *out = values[from];
                inside |= u32::from(good) << lane;
                if good && mask >> from & 1 == 0 {
                    lanes.note(format!("a shuffle reads lane {from}, which does not take part ({mask:#x})"));
                }
            }
            for (lane, out) in out.iter().enumerate().filter(|(lane, _)| mask >> lane & 1 == 1) {
                u32::store(r(dst), lane, *out);
            }
            if let Some(pred) = pred {
                lanes.set_pred(pred, mask, inside);
            }
        }),
        Some(members),
    ))
}
