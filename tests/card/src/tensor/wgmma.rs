//! `wgmma`: each warp computes its sixteen rows of the warpgroup's 64, when it waits for them.

use std::sync::Arc;

use super::products::Product;
use super::{element, place_a, sources, targets};
use crate::exec::{Lanes, Space};
use crate::half::{Bf16, F16, Val, WARP};
use crate::isa::build::Build;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Operand, Statement};
use crate::races::{Access, Moment};

/// Values of depth of a product of 16-bit values.
const DEPTH: usize = 16;

/// A `wgmma` as it stands in the code.
pub struct Shape {
    pub columns: usize,
    kind: String,
    sums: Vec<u32>,
    /// Registers of the left matrix; none if a descriptor tells its place.
    left: Vec<u32>,
    warp: u32,
    pub sums_watched: Vec<u32>,
    pub left_watched: Vec<u32>,
}

/// Translates `wgmma`.
pub fn wgmma(build: &mut Build, inst: &Statement) -> Result<Exec> {
    match inst.op[1].as_str() {
        "fence" => Ok(Box::new(|lanes, _| lanes.products.fence())),
        "commit_group" => Ok(Box::new(|lanes, _| lanes.products.pending.commit())),
        "wait_group" => {
            let Operand::Int(leave) = inst.operands[0] else { return Err("groups".to_owned()) };
            Ok(Box::new(move |lanes, _| lanes.wait_for_products(leave as usize)))
        }
        "mma_async" => product(build, inst),
        _ => Err("is not supported".to_owned()),
    }
}

fn product(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let shape = inst.op.iter().find(|word| word.starts_with("m64n")).ok_or("shape is not supported")?;
    let numbers: Vec<usize> = shape.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
    let [_, columns, depth] = numbers[..] else { return Err("shape".to_owned()) };
    let kinds = &inst.op[inst.op.len() - 3..];
    if kinds[0] != "f32" || !["bf16", "f16"].contains(&kinds[1].as_str()) || kinds[1] != kinds[2] || depth != DEPTH {
        return Err("formats is not supported".to_owned());
    }
    let sums = targets(build, &inst.operands[0])?;
    let in_registers = matches!(inst.operands[1], Operand::Vector(_));
    let (left, left_descriptor) = if in_registers {
        (sources(build, &inst.operands[1], Class::B32)?, None)
    } else {
        (Vec::new(), Some(build.src(&inst.operands[1], Class::B64)?))
    };
    let right = build.src(&inst.operands[2], Class::B64)?;
    let adds = build.src(&inst.operands[3], Class::Pred)?;
    let flags: Vec<i64> =
        inst.operands[4..].iter().map(|flag| if let Operand::Int(flag) = flag { *flag } else { -9 }).collect();
    // Scales of 1 and no transposition: both matrices by k.
    if flags.iter().take(2).any(|scale| *scale != 1) || flags.iter().skip(2).any(|trans| *trans != 0) {
        return Err("scales and transpositions are is not supported".to_owned());
    }
    if sums.len() != columns / 2 {
        return Err(format!("{} registers of sums for {columns} columns", sums.len()));
    }
    let warp = build.special_register("%warpid");
    let (sums_watched, left_watched) = (build.watch(&sums), build.watch(&left));
    let shape = Arc::new(Shape { columns, kind: kinds[1].clone(), sums, left, warp, sums_watched, left_watched });
    let line = inst.line;
    Ok(Box::new(move |lanes, mask| unsafe {
        if mask != u32::MAX {
            lanes.fail(format!("wgmma by lanes {mask:#x} alone"));
            return;
        }
        let left = left_descriptor.map_or(0, |at| u64::load(lanes.regs.add(at as usize), 0));
        let right = u64::load(lanes.regs.add(right as usize), 0);
        for descriptor in left_descriptor.map(|_| left).into_iter().chain([right]) {
            if let Err(why) = check_descriptor(descriptor) {
                lanes.note(format!("line {line}: wgmma with the descriptor {descriptor:#x}: {why}"));
            }
        }
        let adds = lanes.pred(adds, false) & 1 == 1;
        let mut moment = None;
        lanes.races(|races, warp| {
            moment = Some(Box::new(races.moment(warp)));
            None
        });
        let product = Product { shape: Arc::clone(&shape), left, right, adds, moment };
        if let Some(why) = lanes.products.issue(product) {
            lanes.note(format!("line {line}: wgmma {why}"));
        }
    }))
}

/// Checks a matrix descriptor for what the tensor cores take.
fn check_descriptor(descriptor: u64) -> std::result::Result<(), String> {
    const RESERVED: u64 = 3 << 14 | 3 << 30 | 7 << 46 | 0x3FF << 52;
    if descriptor & RESERVED != 0 {
        return Err("reserved bits are set".to_owned());
    }
    // A swizzle's pattern repeats after eight rows, and starts at a multiple of that unless the base offset says otherwise.
    let pattern = match descriptor >> 62 {
        1 => 1024,
        2 => 512,
        3 => 256,
        _ => return Ok(()),
    };
    let (start, offset) = ((descriptor & 0x3FFF) << 4, descriptor >> 49 & 7);
    let wanted = (start % pattern) >> 7;
    if offset != wanted {
        return Err(format!(
            "base offset {offset}, and {wanted} for a swizzle's pattern at {start} that repeats every {pattern} bytes"
        ));
    }
    if offset != 0 {
        return Err("base offsets are not supported".to_owned());
    }
    Ok(())
}

impl Shape {
    /// Computes a product.
    pub fn multiply(&self, lanes: &mut Lanes, product: &Product) {
        // SAFETY: registers of the function; shared memory is looked up.
        unsafe {
            let rank = (u32::load(lanes.regs.add(self.warp as usize), 0) % 4) as usize;
            let moment = product.moment.as_deref();
            let mut left = [[0f32; DEPTH]; 16];
            if self.left.is_empty() {
                for (row, line) in left.iter_mut().enumerate() {
                    *line = self.row(lanes, product.left, 16 * rank + row, moment);
                }
            } else {
                for lane in 0..WARP {
                    for index in 0..8 {
                        let (row, column) = place_a(&self.kind, lane, index);
                        left[row][column] = element(lanes, &self.left, &self.kind, lane, index);
                    }
                }
            }
            let right: Vec<_> =
                (0..self.columns).map(|column| self.row(lanes, product.right, column, moment)).collect();
            for (index, reg) in self.sums.iter().enumerate() {
                let to = lanes.regs.add(*reg as usize);
                for lane in 0..WARP {
                    let (row, column) = (lane / 4 + 8 * (index / 2 % 2), 2 * (lane % 4) + index % 2 + 8 * (index / 4));
                    let sum: f32 = left[row].iter().zip(&right[column]).map(|(l, r)| l * r).sum();
                    let before = if product.adds { f32::load(to, lane) } else { 0.0 };
                    f32::store(to, lane, before + sum);
                }
            }
        }
    }

    /// Reads a row of a matrix in shared memory, as two chunks of 16 bytes.
    fn row(&self, lanes: &mut Lanes, descriptor: u64, row: usize, moment: Option<&Moment>) -> [f32; DEPTH] {
        let field = |at: u32| (descriptor >> at & 0x3FFF) << 4;
        let (start, leading, stride) = (field(0), field(16), field(32));
        let (group, inside) = ((row / 8) as u64 * stride, (row % 8) as u64);
        let mut values = [0f32; DEPTH];
        for (chunk, values) in values.chunks_exact_mut(8).enumerate() {
            let address = match descriptor >> 62 {
                0 => start + group + chunk as u64 * leading + inside * 16,
                mode => {
                    let (pitch, mask) = match mode {
                        1 => (128, 7),
                        2 => (64, 3),
                        _ => (32, 1),
                    };
                    let plain = start + group + inside * pitch + chunk as u64 * 16;
                    plain ^ (plain >> 7 & mask) << 4
                }
            };
            if let Some(moment) = moment {
                lanes.races(|races, warp| races.read_behind(address, 16, warp, moment, "wgmma"));
            }
            // SAFETY: looked up.
            let from = unsafe { lanes.memory(Space::Shared, address, 16, 0, Access::Sync) }.cast::<u16>();
            for (at, value) in values.iter_mut().enumerate() {
                let bits = unsafe { from.add(at).read_unaligned() };
                *value = if self.kind == "bf16" { Bf16(bits).to_f32() } else { F16(bits).to_f32() };
            }
        }
        values
    }
}
