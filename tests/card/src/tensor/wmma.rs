//! `wmma`. The layout of a fragment in registers is unspecified; here value `lane · count + index` in row-major order.

use super::{element, sources, targets};
use crate::half::{F16, Val, WARP};
use crate::isa::build::{Build, space_of};
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Statement};
use crate::races::Access;

/// Translates `wmma`.
pub fn wmma(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let what = inst.op[1].as_str();
    let shape =
        inst.op.iter().find(|word| word.starts_with('m') && word.contains('n') && word.contains('k')).ok_or("shape")?;
    let numbers: Vec<usize> = shape.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
    let [m, n, k] = numbers[..] else { return Err("shape".to_owned()) };
    let kind = inst.op.last().unwrap().clone();
    let layouts: Vec<bool> =
        inst.op.iter().filter(|word| *word == "row" || *word == "col").map(|word| word == "row").collect();
    let width = move |kind: &str| match kind {
        "bf16" | "f16" => 2,
        "s8" | "u8" => 1,
        _ => 4,
    };
    // Values of a format in a register.
    let packed = move |kind: &str| 4 / width(kind);
    match what {
        "load" => {
            let (rows, columns) = match inst.op[2].as_str() {
                "a" => (m, k),
                "b" => (k, n),
                _ => (m, n),
            };
            let d = targets(build, &inst.operands[0])?;
            let address = build.address(&inst.operands[1])?;
            let space = space_of(&inst.op, &address);
            let at = address.at();
            let row_major = layouts[0];
            let stride = match inst.operands.get(2) {
                Some(stride) => build.src(stride, Class::B32)?,
                None => build.constant(Class::B32, if row_major { columns } else { rows } as u64),
            };
            Ok(Box::new(move |lanes, _| unsafe {
                let (bytes, pack) = (width(&kind), packed(&kind));
                let stride = u32::load(lanes.regs.add(stride as usize), 0) as usize;
                let base = at.get(lanes, 0);
                for lane in 0..WARP {
                    if at.get(lanes, lane) != base {
                        lanes.fail("wmma.load of different addresses".to_owned());
                        return;
                    }
                }
                let count = d.len() * pack;
                for lane in 0..WARP {
                    for (reg_at, reg) in d.iter().enumerate() {
                        let mut word = 0u32;
                        for part in 0..pack {
                            let value = (lane * count + reg_at * pack + part) % (rows * columns);
                            let (row, column) = (value / columns, value % columns);
                            let place = if row_major { row * stride + column } else { column * stride + row };
                            let from =
                                lanes.memory(space, base + (place * bytes) as u64, bytes, lane, Access::ReadTogether);
                            let bits = match bytes {
                                1 => u32::from(*from),
                                2 => u32::from(from.cast::<u16>().read_unaligned()),
                                _ => from.cast::<u32>().read_unaligned(),
                            };
                            word |= bits << (8 * bytes * part);
                        }
                        u32::store(lanes.regs.add(*reg as usize), lane, word);
                    }
                }
            }))
        }
        "store" => {
            let address = build.address(&inst.operands[0])?;
            let space = space_of(&inst.op, &address);
            let at = address.at();
            let s = sources(build, &inst.operands[1], Class::B32)?;
            let row_major = layouts[0];
            let stride = match inst.operands.get(2) {
                Some(stride) => build.src(stride, Class::B32)?,
                None => build.constant(Class::B32, if row_major { n } else { m } as u64),
            };
            Ok(Box::new(move |lanes, _| unsafe {
                let (bytes, pack) = (width(&kind), packed(&kind));
                let stride = u32::load(lanes.regs.add(stride as usize), 0) as usize;
                let base = at.get(lanes, 0);
                let count = s.len() * pack;
                for lane in 0..WARP {
                    for (reg_at, reg) in s.iter().enumerate() {
                        let word = u32::load(lanes.regs.add(*reg as usize), lane);
                        for part in 0..pack {
                            let value = (lane * count + reg_at * pack + part) % (m * n);
                            let (row, column) = (value / n, value % n);
                            let place = if row_major { row * stride + column } else { column * stride + row };
                            let to =
                                lanes.memory(space, base + (place * bytes) as u64, bytes, lane, Access::WriteTogether);
                            match bytes {
                                2 => to.cast::<u16>().write_unaligned((word >> (16 * part)) as u16),
                                _ => to.cast::<u32>().write_unaligned(word),
                            }
                        }
                    }
                }
            }))
        }
        "mma" => {
            let d = targets(build, &inst.operands[0])?;
            let (a, b) =
                (sources(build, &inst.operands[1], Class::B32)?, sources(build, &inst.operands[2], Class::B32)?);
            let c = sources(build, &inst.operands[3], Class::B32)?;
            // `.d.a.b.c`, or for f16 `.d.c` alone.
            let kinds: Vec<&str> = inst
                .op
                .iter()
                .map(String::as_str)
                .filter(|word| ["f16", "f32", "bf16", "tf32", "s8", "u8", "s32"].contains(word))
                .collect();
            let (d_kind, a_kind, c_kind) =
                if kinds.len() == 4 { (kinds[0], kinds[1], kinds[3]) } else { (kinds[0], "f16", kinds[1]) };
            let (d_kind, a_kind, c_kind) = (d_kind.to_owned(), a_kind.to_owned(), c_kind.to_owned());
            Ok(Box::new(move |lanes, _| unsafe {
                let gather = |regs: &[u32], kind: &str, total: usize| {
                    let count = regs.len() * packed(kind);
                    (0..total)
                        .map(|value| element(lanes, regs, kind, value / count, value % count))
                        .collect::<Vec<f32>>()
                };
                let (left, right) = (gather(&a, &a_kind, m * k), gather(&b, &a_kind, k * n));
                let mut sums = if c_kind == "s32" {
                    (0..m * n)
                        .map(|value| i32::load(lanes.regs.add(c[value % c.len()] as usize), value / c.len()) as f32)
                        .collect()
                } else {
                    gather(&c, &c_kind, m * n)
                };
                for row in 0..m {
                    for inner in 0..k {
                        let l = left[row * k + inner];
                        let line = &right[inner * n..inner * n + n];
                        for (sum, r) in sums[row * n..row * n + n].iter_mut().zip(line) {
                            *sum += l * r;
                        }
                    }
                }
                let pack = packed(&d_kind);
                let count = d.len() * pack;
                for lane in 0..WARP {
                    for (reg_at, reg) in d.iter().enumerate() {
                        let of = |part: usize| sums[(lane * count + reg_at * pack + part) % (m * n)];
                        let word = match d_kind.as_str() {
                            "f16" => u32::from(F16::from_f32(of(0)).0) | u32::from(F16::from_f32(of(1)).0) << 16,
                            "s32" => of(0) as i32 as u32,
                            _ => of(0).to_bits(),
                        };
                        u32::store(lanes.regs.add(*reg as usize), lane, word);
                    }
                }
            }))
        }
        _ => Err("is not supported".to_owned()),
    }
}
