//! Logic, shifts and bit fields.

use super::lanewise::{binary, each, ternary, unary};
use super::{Exec, Kind, Result};
use crate::half::{Val, WARP};
use crate::isa::build::{Build, class_of};
use crate::ptx::{Class, Operand, Statement};

/// Translates logic and shifts.
pub fn logic(build: &mut Build, inst: &Statement) -> Result<Kind> {
    let (op, kind, args) = inst.parts();
    let has = |word: &str| op[1..].contains(&word);
    let plain = |exec: Exec| Ok(Kind::Plain(exec));
    let unsupported = || Err::<Kind, String>("is not supported".to_owned());
    match op[0] {
        "and" | "or" | "xor" | "not" if kind == "pred" => {
            let d = build.reg(&args[0])?.0;
            let (a, a_not) = build.pred(&args[1])?;
            let (b, b_not) = if op[0] == "not" { (a, a_not) } else { build.pred(&args[2])? };
            let which = op[0].to_owned();
            plain(Box::new(move |lanes, mask| {
                let (a, b) = (lanes.pred(a, a_not), lanes.pred(b, b_not));
                let value = match which.as_str() {
                    "and" => a & b,
                    "or" => a | b,
                    "xor" => a ^ b,
                    _ => !a,
                };
                lanes.set_pred(d, mask, value);
            }))
        }
        "and" | "or" | "xor" => {
            let [d, a, b, _] = build.regs(args, class_of(kind))?;
            let regs = [d, a, b];
            let wide = class_of(kind) == Class::B64;
            plain(match (op[0], wide) {
                ("and", true) => binary::<u64, u64, u64>(regs, |a, b| a & b),
                ("or", true) => binary::<u64, u64, u64>(regs, |a, b| a | b),
                ("xor", true) => binary::<u64, u64, u64>(regs, |a, b| a ^ b),
                ("and", _) => binary::<u32, u32, u32>(regs, |a, b| a & b),
                ("or", _) => binary::<u32, u32, u32>(regs, |a, b| a | b),
                _ => binary::<u32, u32, u32>(regs, |a, b| a ^ b),
            })
        }
        "not" => {
            let regs = build.regs(args, class_of(kind))?;
            plain(match kind {
                "b64" => unary::<u64, u64>(regs[0], regs[1], |a| !a),
                "b16" => unary::<u16, u16>(regs[0], regs[1], |a| !a),
                _ => unary::<u32, u32>(regs[0], regs[1], |a| !a),
            })
        }
        "lop3" => {
            let d = build.reg(&args[0])?.0;
            let (a, b, c) =
                (build.src(&args[1], Class::B32)?, build.src(&args[2], Class::B32)?, build.src(&args[3], Class::B32)?);
            let Operand::Int(table) = args[4] else { return unsupported() };
            plain(ternary::<u32, u32, u32, u32>([d, a, b, c], move |a, b, c| {
                let mut out = 0;
                for row in 0..8 {
                    if table >> row & 1 == 1 {
                        out |= (if row & 4 != 0 { a } else { !a })
                            & (if row & 2 != 0 { b } else { !b })
                            & (if row & 1 != 0 { c } else { !c });
                    }
                }
                out
            }))
        }
        "shl" | "shr" => {
            let d = build.reg(&args[0])?.0;
            let (a, b) = (build.src(&args[1], class_of(kind))?, build.src(&args[2], Class::B32)?);
            let regs = [d, a, b];
            plain(match (op[0], kind) {
                ("shl", "b64") => binary::<u64, u64, u32>(regs, |a, b| a.checked_shl(b).unwrap_or(0)),
                ("shl", "b16") => binary::<u16, u16, u32>(regs, |a, b| a.checked_shl(b).unwrap_or(0)),
                ("shl", _) => binary::<u32, u32, u32>(regs, |a, b| a.checked_shl(b).unwrap_or(0)),
                (_, "s64") => binary::<i64, i64, u32>(regs, |a, b| a >> b.min(63)),
                (_, "s32") => binary::<i32, i32, u32>(regs, |a, b| a >> b.min(31)),
                (_, "s16") => binary::<i16, i16, u32>(regs, |a, b| a >> b.min(15)),
                (_, "u64" | "b64") => binary::<u64, u64, u32>(regs, |a, b| a.checked_shr(b).unwrap_or(0)),
                (_, "u16" | "b16") => binary::<u16, u16, u32>(regs, |a, b| a.checked_shr(b).unwrap_or(0)),
                _ => binary::<u32, u32, u32>(regs, |a, b| a.checked_shr(b).unwrap_or(0)),
            })
        }
        "shf" => {
            let regs = build.regs(args, Class::B32)?;
            let clamp = has("clamp");
            let count = move |c: u32| if clamp { c.min(32) } else { c & 31 };
            plain(if has("l") {
                ternary::<u32, u32, u32, u32>(regs, move |a, b, c| {
                    ((u64::from(b) << 32 | u64::from(a)) << count(c) >> 32) as u32
                })
            } else {
                ternary::<u32, u32, u32, u32>(regs, move |a, b, c| {
                    ((u64::from(b) << 32 | u64::from(a)) >> count(c)) as u32
                })
            })
        }
        _ => unsupported(),
    }
}

/// Translates counts, bit fields and permutations of bytes.
pub fn fields(build: &mut Build, inst: &Statement) -> Result<Kind> {
    let (op, kind, args) = inst.parts();
    let has = |word: &str| op[1..].contains(&word);
    let plain = |exec: Exec| Ok(Kind::Plain(exec));
    let unsupported = || Err::<Kind, String>("is not supported".to_owned());
    match op[0] {
        "popc" => plain({
            let d = build.reg(&args[0])?.0;
            let a = build.src(&args[1], class_of(kind))?;
            if kind == "b64" {
                unary::<u32, u64>(d, a, u64::count_ones)
            } else {
                unary::<u32, u32>(d, a, u32::count_ones)
            }
        }),
        "clz" => plain({
            let d = build.reg(&args[0])?.0;
            let a = build.src(&args[1], class_of(kind))?;
            if kind == "b64" {
                unary::<u32, u64>(d, a, u64::leading_zeros)
            } else {
                unary::<u32, u32>(d, a, u32::leading_zeros)
            }
        }),
        "brev" => {
            let regs = build.regs(args, class_of(kind))?;
            plain(if kind == "b64" {
                unary::<u64, u64>(regs[0], regs[1], u64::reverse_bits)
            } else {
                unary::<u32, u32>(regs[0], regs[1], u32::reverse_bits)
            })
        }
        "bfind" => {
            let d = build.reg(&args[0])?.0;
            let a = build.src(&args[1], class_of(kind))?;
            let shift = has("shiftamt");
            let found = move |top: u32| {
                if top == u32::MAX {
                    top
                } else if shift {
                    31 - top
                } else {
                    top
                }
            };
            plain(match kind {
                "u32" => unary::<u32, u32>(d, a, move |a| found(a.checked_ilog2().unwrap_or(u32::MAX))),
                "s32" => unary::<u32, i32>(d, a, move |a| {
                    found((if a < 0 { !a } else { a } as u32).checked_ilog2().unwrap_or(u32::MAX))
                }),
                "u64" => unary::<u32, u64>(d, a, |a| a.checked_ilog2().unwrap_or(u32::MAX)),
                _ => return unsupported(),
            })
        }
        "bfe" => {
            let d = build.reg(&args[0])?.0;
            let (a, b, c) = (
                build.src(&args[1], class_of(kind))?,
                build.src(&args[2], Class::B32)?,
                build.src(&args[3], Class::B32)?,
            );
            let regs = [d, a, b, c];
            plain(match kind {
                "u32" => ternary::<u32, u32, u32, u32>(regs, |a, at, len| {
                    let (at, len) = (at & 255, len & 255);
                    if len == 0 || at > 31 { 0 } else { (u64::from(a) >> at & ((1u64 << len.min(32)) - 1)) as u32 }
                }),
                "s32" => ternary::<i32, i32, u32, u32>(regs, |a, at, len| {
                    let (at, len) = ((at & 255).min(31), len & 255);
                    if len == 0 {
                        0
                    } else {
                        let len = len.min(32 - at);
                        (a << (32 - at - len)) >> (32 - len)
                    }
                }),
                "u64" => ternary::<u64, u64, u32, u32>(regs, |a, at, len| {
                    let (at, len) = (at & 255, len & 255);
                    if len == 0 || at > 63 { 0 } else { (u128::from(a) >> at & ((1u128 << len.min(64)) - 1)) as u64 }
                }),
                _ => return unsupported(),
            })
        }
        "bfi" => {
            let class = class_of(kind);
            let d = build.reg(&args[0])?.0;
            let (a, b) = (build.src(&args[1], class)?, build.src(&args[2], class)?);
            let (at, len) = (build.src(&args[3], Class::B32)?, build.src(&args[4], Class::B32)?);
            let wide = class == Class::B64;
            plain(Box::new(move |lanes, mask| unsafe {
                let r = |at: u32| lanes.regs.add(at as usize);
                each!(mask, lane, {
                    let (at, len) = (u32::load(r(at), lane) & 255, u32::load(r(len), lane) & 255);
                    let width = if wide { 64 } else { 32 };
                    let (a, b) = if wide {
                        (u64::load(r(a), lane), u64::load(r(b), lane))
                    } else {
                        (u64::from(u32::load(r(a), lane)), u64::from(u32::load(r(b), lane)))
                    };
                    let bits = if at >= width || len == 0 { 0 } else { (((1u128 << len.min(width)) - 1) << at) as u64 };
                    let value = b & !bits | (a.checked_shl(at).unwrap_or(0)) & bits;
                    if wide { u64::store(r(d), lane, value) } else { u32::store(r(d), lane, value as u32) }
                });
            }))
        }
        "bmsk" => {
            let [d, a, b, _] = build.regs(args, Class::B32)?;
            let regs = [d, a, b];
            plain(binary::<u32, u32, u32>(
                regs,
                |at, len| if at > 31 { 0 } else { (((1u64 << len.min(32)) - 1) << at) as u32 },
            ))
        }
        "prmt" => {
            let regs = build.regs(args, Class::B32)?;
            if op.len() > 2 {
                return unsupported();
            }
            plain(ternary::<u32, u32, u32, u32>(regs, |a, b, pick| {
                let all = u64::from(b) << 32 | u64::from(a);
                let mut out = 0u32;
                for at in 0..4 {
                    let nibble = pick >> (4 * at) & 15;
                    let byte = (all >> (8 * (nibble & 7))) as u8;
                    let byte = if nibble & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
                    out |= u32::from(byte) << (8 * at);
                }
                out
            }))
        }
        _ => unsupported(),
    }
}
