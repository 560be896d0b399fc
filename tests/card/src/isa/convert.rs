//! Conversions between number formats.

use super::lanewise::{binary, flush, saturate, unary};
use super::{Exec, Result};
use crate::half::{Bf16, F16, Pair};
use crate::isa::build::{Build, class_of};
use crate::ptx::{Class, Statement};

/// Translates `cvt`.
pub fn cvt(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let words: Vec<&str> = inst.op[1..].iter().map(String::as_str).collect();
    let has = |word: &str| words.contains(&word);
    let (to, from) = (words[words.len() - 2], words[words.len() - 1]);
    let args = &inst.operands;
    let (d, _) = build.reg(&args[0])?;
    let a = build.src(&args[1], class_of(from))?;
    // Two f32 into one register; the first operand is the upper half.
    if (to == "bf16x2" || to == "f16x2") && from == "f32" {
        let b = build.src(&args[2], Class::B32)?;
        let relu = has("relu");
        let zero = move |value: f32| if relu && value < 0.0 { 0.0 } else { value };
        return Ok(if to == "bf16x2" {
            if has("rz") {
                binary::<Pair<Bf16>, f32, f32>([d, a, b], move |a, b| {
                    Pair(Bf16::from_f32_rz(zero(b)), Bf16::from_f32_rz(zero(a)))
                })
            } else {
                binary::<Pair<Bf16>, f32, f32>([d, a, b], move |a, b| {
                    Pair(Bf16::from_f32(zero(b)), Bf16::from_f32(zero(a)))
                })
            }
        } else {
            binary::<Pair<F16>, f32, f32>([d, a, b], move |a, b| Pair(F16::from_f32(zero(b)), F16::from_f32(zero(a))))
        });
    }
    let sat = has("sat");
    let mode = words.iter().find(|word| ["rni", "rzi", "rmi", "rpi"].contains(word)).copied().unwrap_or("").to_owned();
    let round64 = move |value: f64| match mode.as_str() {
        "rni" => value.round_ties_even(),
        "rmi" => value.floor(),
        "rpi" => value.ceil(),
        "rzi" => value.trunc(),
        _ => value,
    };
    let ftz = has("ftz");
    // From floats.
    macro_rules! from_float {
        ($source:ty, $wide:expr) => {{
            let wide = $wide;
            match to {
                "f32" => {
                    let integral = words.iter().any(|word| word.ends_with('i') && word.len() == 3);
                    Some(unary::<f32, $source>(d, a, move |a| {
                        let value: f64 = wide(a);
                        let value = if integral { round64(value) } else { value };
                        let value = value as f32;
                        let value = if sat { saturate(value) } else { value };
                        if ftz { flush(value) } else { value }
                    }))
                }
                "f64" => Some(unary::<f64, $source>(d, a, move |a| round64(wide(a)))),
                "bf16" => {
                    let rz = has("rz");
                    Some(unary::<Bf16, $source>(d, a, move |a| {
                        if rz { Bf16::from_f32_rz(wide(a) as f32) } else { Bf16::from_f32(wide(a) as f32) }
                    }))
                }
                "f16" => {
                    let integral = words.iter().any(|word| word.ends_with('i') && word.len() == 3);
                    Some(unary::<F16, $source>(d, a, move |a| {
                        let value: f64 = wide(a);
                        F16::from_f32((if integral { round64(value) } else { value }) as f32)
                    }))
                }
                "tf32" => Some(unary::<u32, $source>(d, a, move |a| {
                    // To 10 bits of mantissa, ties away from zero.
                    (wide(a) as f32).to_bits().wrapping_add(0x1000) & !0x1FFF
                })),
                "s32" => Some(unary::<i32, $source>(d, a, move |a| round64(wide(a)) as i32)),
                "u32" => Some(unary::<u32, $source>(d, a, move |a| round64(wide(a)) as u32)),
                "s64" => Some(unary::<i64, $source>(d, a, move |a| round64(wide(a)) as i64)),
                "u64" => Some(unary::<u64, $source>(d, a, move |a| round64(wide(a)) as u64)),
                "s16" => Some(unary::<i16, $source>(d, a, move |a| round64(wide(a)) as i16)),
                "u16" => Some(unary::<u16, $source>(d, a, move |a| round64(wide(a)) as u16)),
                "s8" => Some(unary::<i32, $source>(d, a, move |a| i32::from(round64(wide(a)) as i8) & 0xFFFF)),
                "u8" => Some(unary::<u32, $source>(d, a, move |a| u32::from(round64(wide(a)) as u8))),
                _ => None,
            }
        }};
    }
    macro_rules! from_int {
        ($source:ty) => {
            match to {
                "f32" => Some(unary::<f32, $source>(d, a, |a| a as f32)),
                "f64" => Some(unary::<f64, $source>(d, a, |a| a as f64)),
                "bf16" => Some(unary::<Bf16, $source>(d, a, |a| Bf16::from_f32(a as f32))),
                "f16" => Some(unary::<F16, $source>(d, a, |a| F16::from_f32(a as f32))),
                "s64" | "u64" if sat && to == "u64" => {
                    Some(unary::<u64, $source>(d, a, |a| (a as i128).clamp(0, u64::MAX as i128) as u64))
                }
                "s64" | "u64" => Some(unary::<u64, $source>(d, a, |a| a as i64 as u64)),
                "s32" if sat => {
                    Some(unary::<i32, $source>(d, a, |a| (a as i128).clamp(i32::MIN as i128, i32::MAX as i128) as i32))
                }
                "u32" if sat => Some(unary::<u32, $source>(d, a, |a| (a as i128).clamp(0, u32::MAX as i128) as u32)),
                "s32" | "u32" => Some(unary::<u32, $source>(d, a, |a| a as u32)),
                "s16" if sat => {
                    Some(unary::<i16, $source>(d, a, |a| (a as i128).clamp(i16::MIN as i128, i16::MAX as i128) as i16))
                }
                "u16" if sat => Some(unary::<u16, $source>(d, a, |a| (a as i128).clamp(0, u16::MAX as i128) as u16)),
                "s16" | "u16" => Some(unary::<u16, $source>(d, a, |a| a as u16)),
                // Extended to the register.
                "s8" if sat => Some(unary::<u16, $source>(d, a, |a| (a as i128).clamp(-128, 127) as i8 as i16 as u16)),
                "u8" if sat => Some(unary::<u16, $source>(d, a, |a| (a as i128).clamp(0, 255) as u16)),
                "s8" => Some(unary::<u16, $source>(d, a, |a| a as i8 as i16 as u16)),
                "u8" => Some(unary::<u16, $source>(d, a, |a| a as u8 as u16)),
                _ => None,
            }
        };
    }
    let found = match from {
        "f32" => match to {
            "bf16" if !has("rz") && !sat && !has("relu") => Some(unary::<Bf16, f32>(d, a, Bf16::from_f32)),
            "f32" if !sat && !ftz && !words.iter().any(|word| word.ends_with('i') && word.len() == 3) => {
                Some(unary::<f32, f32>(d, a, |a| a))
            }
            _ => from_float!(f32, move |a: f32| f64::from(if ftz { flush(a) } else { a })),
        },
        "f64" => from_float!(f64, |a: f64| a),
        "bf16" => match to {
            "f32" => Some(unary::<f32, Bf16>(d, a, Bf16::to_f32)),
            _ => from_float!(Bf16, |a: Bf16| f64::from(a.to_f32())),
        },
        "f16" => match to {
            "f32" => Some(unary::<f32, F16>(d, a, F16::to_f32)),
            _ => from_float!(F16, |a: F16| f64::from(a.to_f32())),
        },
        "u8" => from_int!(u8),
        "s8" => from_int!(i8),
        "u16" => from_int!(u16),
        "s16" => from_int!(i16),
        "u32" | "b32" => from_int!(u32),
        "s32" => from_int!(i32),
        "u64" => from_int!(u64),
        "s64" => from_int!(i64),
        _ => None,
    };
    found.ok_or_else(|| "is not supported".to_owned())
}
