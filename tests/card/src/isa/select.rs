//! Selections, tests of values and addresses, and what fits nowhere else.

use super::lanewise::{binary, compare, each, ternary, unary};
use super::{Exec, Kind, Result};
use crate::exec::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::half::{Val, WARP};
use crate::isa::build::{Build, class_of};
use crate::ptx::{Class, Statement};

/// Translates the instruction.
pub fn select(build: &mut Build, inst: &Statement) -> Result<Kind> {
    let (op, kind, args) = inst.parts();
    let has = |word: &str| op[1..].contains(&word);
    let plain = |exec: Exec| Ok(Kind::Plain(exec));
    let unsupported = || Err::<Kind, String>("is not supported".to_owned());
    match op[0] {
        "cvta" => {
            let (d, class) = build.reg(&args[0])?;
            let a = build.src(&args[1], class)?;
            let window = if has("shared") {
                SHARED_WINDOW
            } else if has("local") {
                LOCAL_WINDOW
            } else if has("param") {
                PARAM_WINDOW
            } else {
                0
            };
            let to = has("to");
            plain(if window == 0 {
                unary::<u64, u64>(d, a, |a| a)
            } else if to {
                unary::<u64, u64>(d, a, move |a| a & !window)
            } else {
                unary::<u64, u64>(d, a, move |a| a | window)
            })
        }
        "selp" => {
            let class = class_of(kind);
            let d = build.reg(&args[0])?.0;
            let (a, b) = (build.src(&args[1], class)?, build.src(&args[2], class)?);
            let (p, negated) = build.pred(&args[3])?;
            fn select<T: Val + 'static>(d: u32, a: u32, b: u32, p: u32, negated: bool) -> Exec {
                Box::new(move |lanes, mask| unsafe {
                    let p = lanes.pred(p, negated);
                    let (d, a, b) =
                        (lanes.regs.add(d as usize), lanes.regs.add(a as usize), lanes.regs.add(b as usize));
                    each!(mask, lane, {
                        let value = if p >> lane & 1 == 1 { T::load(a, lane) } else { T::load(b, lane) };
                        T::store(d, lane, value);
                    });
                })
            }
            plain(if class == Class::B64 {
                select::<u64>(d, a, b, p, negated)
            } else {
                select::<u32>(d, a, b, p, negated)
            })
        }
        "slct" => {
            let class = class_of(op[op.len() - 2]);
            let d = build.reg(&args[0])?.0;
            let (a, b, c) =
                (build.src(&args[1], class)?, build.src(&args[2], class)?, build.src(&args[3], Class::B32)?);
            plain(match (class, kind) {
                (Class::B64, "s32") => {
                    ternary::<u64, u64, u64, i32>([d, a, b, c], |a, b, c| if c >= 0 { a } else { b })
                }
                (_, "s32") => ternary::<u32, u32, u32, i32>([d, a, b, c], |a, b, c| if c >= 0 { a } else { b }),
                _ => ternary::<u32, u32, u32, f32>([d, a, b, c], |a, b, c| if c >= 0.0 { a } else { b }),
            })
        }
        "copysign" => {
            let [d, a, b, _] = build.regs(args, class_of(kind))?;
            let regs = [d, a, b];
            plain(if kind == "f64" {
                binary::<f64, f64, f64>(regs, |a, b| b.copysign(a))
            } else {
                binary::<f32, f32, f32>(regs, |a, b| b.copysign(a))
            })
        }
        "testp" => {
            let d = build.reg(&args[0])?.0;
            let a = build.src(&args[1], class_of(kind))?;
            let test = op[1].to_owned();
            plain(compare::<f32>([Some(d), None], [a, a], None, move |a, _| match test.as_str() {
                "finite" => a.is_finite(),
                "infinite" => a.is_infinite(),
                "number" => !a.is_nan(),
                "notanumber" => a.is_nan(),
                "normal" => a.is_normal(),
                _ => a.is_subnormal(),
            }))
        }
        "isspacep" => {
            let d = build.reg(&args[0])?.0;
            let a = build.src(&args[1], Class::B64)?;
            let space = op[1].to_owned();
            plain(compare::<u64>([Some(d), None], [a, a], None, move |a, _| match space.as_str() {
                "shared" => a & SHARED_WINDOW != 0,
                "local" => a & LOCAL_WINDOW != 0,
                "param" => a & PARAM_WINDOW != 0,
                _ => a >> 58 == 0,
            }))
        }
        "mapa" => {
            let regs = build.regs(args, class_of(kind))?;
            plain(if kind == "u64" {
                unary::<u64, u64>(regs[0], regs[1], |a| a)
            } else {
                unary::<u32, u32>(regs[0], regs[1], |a| a)
            })
        }
        "dp4a" => {
            let regs = build.regs(args, Class::B32)?;
            plain(ternary::<i32, i32, i32, i32>(regs, |a, b, c| {
                let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
                (0..4).fold(c, |sum, at| sum.wrapping_add(i32::from(a[at] as i8) * i32::from(b[at] as i8)))
            }))
        }
        _ => unsupported(),
    }
}
