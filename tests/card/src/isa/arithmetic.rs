//! Arithmetic and mathematical functions.

use super::lanewise::{binary, each, float_bin, flush, half_bin, half_fma, half_un, saturate, ternary, unary};
use super::{Exec, Result};
use crate::half::{Bf16, F16, Val, WARP};
use crate::isa::build::{Build, class_of};
use crate::ptx::{Class, Statement};

/// Translates arithmetic of all number formats.
pub fn arithmetic(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let words: Vec<&str> = inst.op[1..].iter().map(String::as_str).collect();
    let has = |word: &str| words.contains(&word);
    let kind = *words.last().unwrap();
    let args = &inst.operands;
    let name = inst.op[0].as_str();
    let class = class_of(kind);
    if has("cc") || name == "addc" || name == "subc" || name == "madc" {
        return carry(build, inst, class);
    }
    let d = build.reg(&args[0])?.0;
    let a = build.src(&args[1], class)?;
    let b = args.get(2).map_or(Ok(a), |arg| build.src(arg, class))?;
    let wide_result = has("wide");
    let c_class = if wide_result {
        if class == Class::B16 { Class::B32 } else { Class::B64 }
    } else if name == "fma" && kind == "f32" || class == Class::B32 {
        Class::B32
    } else {
        class
    };
    let c = args.get(3).map_or(Ok(a), |arg| build.src(arg, c_class))?;
    let (two, three) = ([d, a, b], [d, a, b, c]);
    let not_known = || Err("is not supported".to_owned());
    let (half, pair) = match kind {
        "bf16" | "bf16x2" => (Some(true), kind == "bf16x2"),
        "f16" | "f16x2" => (Some(false), kind == "f16x2"),
        _ => (None, false),
    };
    if let Some(brain) = half {
        let nan_wins = has("NaN");
        macro_rules! half {
            ($type:ty) => {
                match name {
                    "add" => half_bin::<$type>(two, pair, |a, b| a + b),
                    "sub" => half_bin::<$type>(two, pair, |a, b| a - b),
                    "mul" => half_bin::<$type>(two, pair, |a, b| a * b),
                    "min" => half_bin::<$type>(two, pair, move |a, b| {
                        if nan_wins && (a.is_nan() || b.is_nan()) { f32::NAN } else { a.min(b) }
                    }),
                    "max" => half_bin::<$type>(two, pair, move |a, b| {
                        if nan_wins && (a.is_nan() || b.is_nan()) { f32::NAN } else { a.max(b) }
                    }),
                    "fma" => half_fma::<$type>(three, pair, has("relu")),
                    "neg" => half_un::<$type>(d, a, pair, |a| -a),
                    "abs" => half_un::<$type>(d, a, pair, f32::abs),
                    _ => return not_known(),
                }
            };
        }
        return Ok(if brain { half!(Bf16) } else { half!(F16) });
    }
    if kind == "f32x2" {
        return not_known();
    }
    if kind == "f32" {
        let nan_wins = has("NaN");
        return Ok(match name {
            "add" | "sub" | "mul" if has("rz") || has("rm") || has("rp") => return not_known(),
            "add" => float_bin!(two, has, |a: f32, b: f32| a + b),
            "sub" => float_bin!(two, has, |a: f32, b: f32| a - b),
            "mul" => float_bin!(two, has, |a: f32, b: f32| a * b),
            "div" => float_bin!(two, has, |a: f32, b: f32| a / b),
            "min" => {
                binary::<f32, f32, f32>(
                    two,
                    move |a, b| if nan_wins && (a.is_nan() || b.is_nan()) { f32::NAN } else { a.min(b) },
                )
            }
            "max" => {
                binary::<f32, f32, f32>(
                    two,
                    move |a, b| if nan_wins && (a.is_nan() || b.is_nan()) { f32::NAN } else { a.max(b) },
                )
            }
            "abs" => unary::<f32, f32>(d, a, f32::abs),
            "neg" => unary::<f32, f32>(d, a, |a| -a),
            "fma" | "mad" => {
                if has("rm") || has("rp") || has("rz") {
                    let (down, up) = (has("rm"), has("rp"));
                    // Sums of f64 round rarely; what is nearest in f32 is then moved by one where it lies on the wrong side.
                    return Ok(ternary::<f32, f32, f32, f32>(three, move |a, b, c| {
                        let exact = f64::from(a) * f64::from(b) + f64::from(c);
                        let near = exact as f32;
                        let wrong = f64::from(near) - exact;
                        if wrong > 0.0 && (down || (!up && near > 0.0)) {
                            near.next_down()
                        } else if wrong < 0.0 && (up || (!down && near < 0.0)) {
                            near.next_up()
                        } else {
                            near
                        }
                    }));
                }
                if has("sat") {
                    ternary::<f32, f32, f32, f32>(three, |a, b, c| saturate(a.mul_add(b, c)))
                } else if has("ftz") {
                    ternary::<f32, f32, f32, f32>(three, |a, b, c| flush(flush(a).mul_add(flush(b), flush(c))))
                } else {
                    ternary::<f32, f32, f32, f32>(three, f32::mul_add)
                }
            }
            _ => return not_known(),
        });
    }
    if kind == "f64" {
        return Ok(match name {
            "add" => binary::<f64, f64, f64>(two, |a, b| a + b),
            "sub" => binary::<f64, f64, f64>(two, |a, b| a - b),
            "mul" => binary::<f64, f64, f64>(two, |a, b| a * b),
            "div" => binary::<f64, f64, f64>(two, |a, b| a / b),
            "min" => binary::<f64, f64, f64>(two, f64::min),
            "max" => binary::<f64, f64, f64>(two, f64::max),
            "abs" => unary::<f64, f64>(d, a, f64::abs),
            "neg" => unary::<f64, f64>(d, a, |a| -a),
            "fma" | "mad" => ternary::<f64, f64, f64, f64>(three, f64::mul_add),
            _ => return not_known(),
        });
    }
    macro_rules! int {
        ($type:ty, $double:ty) => {
            match name {
                "add" if has("sat") => binary::<$type, $type, $type>(two, <$type>::saturating_add),
                "sub" if has("sat") => binary::<$type, $type, $type>(two, <$type>::saturating_sub),
                "add" => binary::<$type, $type, $type>(two, <$type>::wrapping_add),
                "sub" => binary::<$type, $type, $type>(two, <$type>::wrapping_sub),
                "mul" if has("hi") => {
                    binary::<$type, $type, $type>(two, |a, b| ((a as $double * b as $double) >> <$type>::BITS) as $type)
                }
                "mul" | "mul24" if !wide_result => binary::<$type, $type, $type>(two, <$type>::wrapping_mul),
                "mad" if has("hi") => ternary::<$type, $type, $type, $type>(three, |a, b, c| {
                    (((a as $double * b as $double) >> <$type>::BITS) as $type).wrapping_add(c)
                }),
                "mad" | "mad24" if !wide_result => {
                    ternary::<$type, $type, $type, $type>(three, |a, b, c| a.wrapping_mul(b).wrapping_add(c))
                }
                "div" => binary::<$type, $type, $type>(two, |a, b| a.checked_div(b).unwrap_or(<$type>::MAX)),
                "rem" => binary::<$type, $type, $type>(two, |a, b| a.checked_rem(b).unwrap_or(a)),
                "min" => binary::<$type, $type, $type>(two, |a, b| a.min(b)),
                "max" => binary::<$type, $type, $type>(two, |a, b| a.max(b)),
                "abs" => unary::<$type, $type>(d, a, |a| {
                    if (a as $double) < (0 as $double) { (0 as $type).wrapping_sub(a) } else { a }
                }),
                "neg" => unary::<$type, $type>(d, a, |a| (0 as $type).wrapping_sub(a)),
                "sad" => ternary::<$type, $type, $type, $type>(three, |a, b, c| {
                    c.wrapping_add(a.max(b).wrapping_sub(a.min(b)))
                }),
                _ => return not_known(),
            }
        };
    }
    if wide_result {
        return Ok(match (name, kind) {
            ("mul", "u16") => binary::<u32, u16, u16>(two, |a, b| u32::from(a) * u32::from(b)),
            ("mul", "s16") => binary::<i32, i16, i16>(two, |a, b| i32::from(a) * i32::from(b)),
            ("mul", "u32") => binary::<u64, u32, u32>(two, |a, b| u64::from(a) * u64::from(b)),
            ("mul", "s32") => binary::<i64, i32, i32>(two, |a, b| i64::from(a) * i64::from(b)),
            ("mad", "u16") => {
                ternary::<u32, u16, u16, u32>(three, |a, b, c| (u32::from(a) * u32::from(b)).wrapping_add(c))
            }
            ("mad", "s16") => {
                ternary::<i32, i16, i16, i32>(three, |a, b, c| (i32::from(a) * i32::from(b)).wrapping_add(c))
            }
            ("mad", "u32") => {
                ternary::<u64, u32, u32, u64>(three, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c))
            }
            ("mad", "s32") => {
                ternary::<i64, i32, i32, i64>(three, |a, b, c| (i64::from(a) * i64::from(b)).wrapping_add(c))
            }
            _ => return not_known(),
        });
    }
    Ok(match kind {
        "u16" | "b16" => int!(u16, u32),
        "s16" => int!(i16, i32),
        "u32" | "b32" => int!(u32, u64),
        "s32" => int!(i32, i64),
        "u64" | "b64" => int!(u64, u128),
        "s64" => int!(i64, i128),
        "u16x2" | "s16x2" => return not_known(),
        _ => return not_known(),
    })
}

/// Sums with carry, which lives beside the registers.
fn carry(build: &mut Build, inst: &Statement, class: Class) -> Result<Exec> {
    let name = inst.op[0].clone();
    let writes = inst.op.iter().any(|word| word == "cc");
    let high = inst.op.iter().any(|word| word == "hi");
    let d = build.reg(&inst.operands[0])?.0;
    let mut regs = Vec::new();
    for arg in &inst.operands[1..] {
        regs.push(build.src(arg, class)?);
    }
    let wide = class == Class::B64;
    let bits = if wide { 64 } else { 32 };
    let flag = match build.specials.get("%carry") {
        Some(at) => *at,
        None => {
            let at = build.slot(Class::B32);
            build.specials.insert("%carry".to_owned(), at);
            at
        }
    };
    Ok(Box::new(move |lanes, mask| unsafe {
        let read = |reg: u32, lane| {
            let from = lanes.regs.add(reg as usize);
            if wide { u128::from(u64::load(from, lane)) } else { u128::from(u32::load(from, lane)) }
        };
        let flags = lanes.regs.add(flag as usize);
        each!(mask, lane, {
            let (a, b) = (read(regs[0], lane), read(regs[1], lane));
            let taken = if name.ends_with("c") && name != "mad" { u128::from(u32::load(flags, lane)) } else { 0 };
            let product = if high { (a * b) >> bits } else { (a * b) & ((1 << bits) - 1) };
            let sum = match name.as_str() {
                "add" | "addc" => a + b + taken,
                "sub" | "subc" => a.wrapping_sub(b).wrapping_sub(taken),
                _ => product + read(regs[2], lane) + taken,
            };
            if writes {
                u32::store(flags, lane, (sum >> bits & 1) as u32);
            }
            let to = lanes.regs.add(d as usize);
            if wide { u64::store(to, lane, sum as u64) } else { u32::store(to, lane, sum as u32) }
        });
    }))
}

/// Translates approximations of functions, computed exactly.
pub fn function(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let kind = inst.op.last().unwrap().as_str();
    let ftz = inst.op.iter().any(|word| word == "ftz");
    let d = build.reg(&inst.operands[0])?.0;
    let a = build.src(&inst.operands[1], class_of(kind))?;
    let f: fn(f64) -> f64 = match inst.op[0].as_str() {
        "rcp" => |a| 1.0 / a,
        "sqrt" => f64::sqrt,
        "rsqrt" => |a| 1.0 / a.sqrt(),
        "sin" => f64::sin,
        "cos" => f64::cos,
        "lg2" => f64::log2,
        "ex2" => f64::exp2,
        _ => f64::tanh,
    };
    let single = match inst.op[0].as_str() {
        "rcp" => Some((|a| 1.0 / a) as fn(f32) -> f32),
        "sqrt" => Some(f32::sqrt as fn(f32) -> f32),
        "ex2" => Some(f32::exp2 as fn(f32) -> f32),
        "lg2" => Some(f32::log2 as fn(f32) -> f32),
        _ => None,
    };
    Ok(match kind {
        "f32" => match single {
            Some(f) if ftz => unary::<f32, f32>(d, a, move |a| flush(f(flush(a)))),
            Some(f) => unary::<f32, f32>(d, a, f),
            None => unary::<f32, f32>(d, a, move |a| f(f64::from(if ftz { flush(a) } else { a })) as f32),
        },
        "f64" => unary::<f64, f64>(d, a, f),
        "bf16" | "bf16x2" => half_un::<Bf16>(d, a, kind == "bf16x2", move |a| f(f64::from(a)) as f32),
        "f16" | "f16x2" => half_un::<F16>(d, a, kind == "f16x2", move |a| f(f64::from(a)) as f32),
        _ => return Err("is not supported".to_owned()),
    })
}
