//! `wgmma`: each warp computes its sixteen rows of the warpgroup's 64, when it waits for them.

use std::sync::Arc;

use super::fragments::{DEPTH, in_order, left_of_registers, left_of_rows, right_of_columns};
use super::products::Product;
use super::{sources, targets};
use crate::exec::Lanes;
use crate::half::{Bf16, F16, Half, Val, WARP};
use crate::isa::build::Build;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Operand, Statement};
use crate::races::Behind;

/// Format of the matrices.
#[derive(Clone, Copy)]
enum Kind {
    Bf16,
    F16,
}

/// A `wgmma` as it stands in the code.
pub struct Shape {
    pub columns: usize,
    kind: Kind,
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
    let kind = match kinds[1].as_str() {
        "bf16" => Kind::Bf16,
        "f16" => Kind::F16,
        _ => return Err("formats is not supported".to_owned()),
    };
    if kinds[0] != "f32" || kinds[1] != kinds[2] || depth != DEPTH {
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
    if in_registers && left.len() != 4 {
        return Err(format!("{} registers of a left matrix", left.len()));
    }
    if sums.len() != columns / 2 || !columns.is_multiple_of(8) {
        return Err(format!("{} registers of sums for {columns} columns", sums.len()));
    }
    let warp = build.special_register("%warpid");
    let (sums_watched, left_watched) = (build.watch(&sums), build.watch(&left));
    let shape = Arc::new(Shape { columns, kind, sums, left, warp, sums_watched, left_watched });
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
        match self.kind {
            Kind::Bf16 => self.multiply_as::<Bf16>(lanes, product),
            Kind::F16 => self.multiply_as::<F16>(lanes, product),
        }
    }

    fn multiply_as<H: Half>(&self, lanes: &mut Lanes, product: &Product) {
        let mut behind = None;
        if let Some(moment) = &product.moment {
            lanes.races(|races, warp| {
                behind = Some(races.behind(warp, moment, "wgmma"));
                None
            });
        }
        let left = if self.left.is_empty() {
            // SAFETY: a register of the function.
            let rank = unsafe { u32::load(lanes.regs.add(self.warp as usize), 0) % 4 } as usize;
            let matrix = Matrix::new(product.left);
            let low = matrix.rows(lanes, 2 * rank, behind.as_ref());
            left_of_rows::<H>(&[low, matrix.rows(lanes, 2 * rank + 1, behind.as_ref())])
        } else {
            let mut left = [[[0.0; WARP]; DEPTH]; 2];
            left_of_registers::<H>(&[0, 1, 2, 3].map(|at| lanes.words(self.left[at])), &mut left);
            left
        };
        let (right, mut sums) = (Matrix::new(product.right), [[0.0; WARP]; 4]);
        for (group, regs) in self.sums.chunks_exact(4).enumerate() {
            let columns = right.rows(lanes, group, behind.as_ref());
            in_order(&left, &right_of_columns::<H>(&columns), &mut sums);
            for (reg, sums) in regs.iter().zip(&sums) {
                // SAFETY: a register of the function.
                let to = unsafe { &mut *lanes.regs.add(*reg as usize).cast::<[f32; WARP]>() };
                let before = if product.adds { *to } else { [0.0; WARP] };
                for ((to, before), sum) in to.iter_mut().zip(before).zip(sums) {
                    *to = before + sum;
                }
            }
        }
    }
}

/// A matrix in shared memory, of rows of two chunks of 16 bytes.
struct Matrix {
    start: u64,
    /// Bytes from the first chunk of a row to the second one, without a swizzle.
    leading: u64,
    /// Bytes from eight rows to the next.
    stride: u64,
    /// Bytes from a row to the next.
    pitch: u64,
    /// Bits of the address that the swizzle changes.
    swizzle: u64,
}

impl Matrix {
    fn new(descriptor: u64) -> Self {
        let field = |at: u32| (descriptor >> at & 0x3FFF) << 4;
        let (pitch, swizzle) = match descriptor >> 62 {
            0 => (16, 0),
            1 => (128, 7),
            2 => (64, 3),
            _ => (32, 1),
        };
        let leading = if swizzle == 0 { field(16) } else { 16 };
        Self { start: field(0), leading, stride: field(32), pitch, swizzle }
    }

    /// Reads eight rows.
    #[inline(always)]
    fn rows(&self, lanes: &mut Lanes, group: usize, behind: Option<&Behind>) -> [[u16; DEPTH]; 8] {
        let mut rows = [[0; DEPTH]; 8];
        for (row, values) in rows.iter_mut().enumerate() {
            for (chunk, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let plain =
                    self.start + group as u64 * self.stride + row as u64 * self.pitch + chunk as u64 * self.leading;
                let address = plain ^ (plain >> 7 & self.swizzle) << 4;
                if let Some(behind) = behind {
                    lanes.races(|races, _| races.read_behind(address, 16, behind));
                }
                // SAFETY: looked up.
                *values = unsafe { lanes.shared(address, 16, 0).cast::<[u16; 8]>().read_unaligned() };
            }
        }
        rows
    }
}
