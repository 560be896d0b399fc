//! Comparisons.

use super::lanewise::{Join, compare, each};
use super::{Exec, Result};
use crate::half::{Bf16, F16, Val, WARP};
use crate::isa::build::{Build, class_of};
use crate::ptx::{Class, Operand, Statement};

/// Translates `setp` and `set`.
pub fn setp(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let words: Vec<&str> = inst.op[1..].iter().map(String::as_str).collect();
    let set = inst.op[0] == "set";
    let kind = *words.last().unwrap();
    let args = &inst.operands;
    let class = class_of(kind);
    let d = match &args[0] {
        _ if set => [None, None],
        Operand::Pair(one, two) => {
            let reg = |build: &mut Build, part: &Operand| match part {
                Operand::Sink => Ok::<_, String>(None),
                other => Ok(Some(build.reg(other)?.0)),
            };
            [reg(build, one)?, reg(build, two)?]
        }
        one => [Some(build.reg(one)?.0), None],
    };
    let (a, b) = (build.src(&args[1], class)?, build.src(&args[2], class)?);
    let join = match args.get(3) {
        Some(third) => {
            let join = match words[1] {
                "and" => Join::And,
                "or" => Join::Or,
                _ => Join::Xor,
            };
            let (c, negated) = build.pred(third)?;
            Some((join, c, negated))
        }
        None => None,
    };
    let compare_op = words[0];
    macro_rules! by_order {
        ($type:ty) => {
            match compare_op {
                "eq" => compare::<$type>(d, [a, b], join, |a, b| a == b),
                "ne" => compare::<$type>(d, [a, b], join, |a, b| a != b),
                "lt" | "lo" => compare::<$type>(d, [a, b], join, |a, b| a < b),
                "le" | "ls" => compare::<$type>(d, [a, b], join, |a, b| a <= b),
                "gt" | "hi" => compare::<$type>(d, [a, b], join, |a, b| a > b),
                "ge" | "hs" => compare::<$type>(d, [a, b], join, |a, b| a >= b),
                _ => return Err("comparison is not supported".to_owned()),
            }
        };
    }
    // Ordered comparisons are false where one is no number, but for those that end in `u`.
    fn by_float<T: Val + 'static>(
        compare_op: &str,
        d: [Option<u32>; 2],
        regs: [u32; 2],
        join: Option<(Join, u32, bool)>,
        wide: fn(T) -> f64,
    ) -> Result<Exec> {
        fn unordered(a: f64, b: f64) -> bool {
            a.is_nan() || b.is_nan()
        }
        let f: fn(f64, f64) -> bool = match compare_op {
            "eq" => |a, b| a == b,
            "ne" => |a, b| !unordered(a, b) && a != b,
            "lt" => |a, b| a < b,
            "le" => |a, b| a <= b,
            "gt" => |a, b| a > b,
            "ge" => |a, b| a >= b,
            "equ" => |a, b| unordered(a, b) || a == b,
            "neu" => |a, b| !(a == b),
            "ltu" => |a, b| unordered(a, b) || a < b,
            "leu" => |a, b| unordered(a, b) || a <= b,
            "gtu" => |a, b| unordered(a, b) || a > b,
            "geu" => |a, b| unordered(a, b) || a >= b,
            "num" => |a, b| !unordered(a, b),
            "nan" => unordered,
            _ => return Err("comparison is not supported".to_owned()),
        };
        Ok(compare::<T>(d, regs, join, move |a, b| f(wide(a), wide(b))))
    }
    if set {
        // To a number for each lane: through a predicate of its own.
        let p = build.slot(Class::Pred);
        let to_kind = words[words.len() - 2].to_owned();
        let to = build.reg(&args[0])?.0;
        let inner = match kind {
            "f32" => by_float::<f32>(compare_op, [Some(p), None], [a, b], join, f64::from)?,
            "bf16" => by_float::<Bf16>(compare_op, [Some(p), None], [a, b], join, |a| f64::from(a.to_f32()))?,
            "f16" => by_float::<F16>(compare_op, [Some(p), None], [a, b], join, |a| f64::from(a.to_f32()))?,
            _ => return Err("is not supported".to_owned()),
        };
        let one = match to_kind.as_str() {
            "f32" => 1f32.to_bits(),
            "bf16" => 0x3F80,
            "f16" => 0x3C00,
            _ => u32::MAX,
        };
        return Ok(Box::new(move |lanes, mask| {
            inner(lanes, mask);
            let found = lanes.pred(p, false);
            let to = unsafe { lanes.regs.add(to as usize) };
            each!(mask, lane, { unsafe { u32::store(to, lane, if found >> lane & 1 == 1 { one } else { 0 }) } });
        }));
    }
    Ok(match kind {
        "f32" => match compare_op {
            "eq" | "lt" | "le" | "gt" | "ge" => by_order!(f32),
            _ => by_float::<f32>(compare_op, d, [a, b], join, f64::from)?,
        },
        "f64" => by_float::<f64>(compare_op, d, [a, b], join, |a| a)?,
        "bf16" => by_float::<Bf16>(compare_op, d, [a, b], join, |a| f64::from(a.to_f32()))?,
        "f16" => by_float::<F16>(compare_op, d, [a, b], join, |a| f64::from(a.to_f32()))?,
        "s16" => by_order!(i16),
        "u16" | "b16" => by_order!(u16),
        "s32" => by_order!(i32),
        "u32" | "b32" => by_order!(u32),
        "s64" => by_order!(i64),
        "u64" | "b64" => by_order!(u64),
        _ => return Err("type is not supported".to_owned()),
    })
}
