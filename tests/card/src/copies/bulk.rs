//! The copy engine: tiles by tensor map, and plain bytes.

use super::mbarrier::change;
use crate::exec::{Lanes, SHARED_WINDOW, Space};
use crate::half::{Val, WARP};
use crate::isa::build::Build;
use crate::isa::lanewise::each;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Statement};
use crate::races::Access;
use crate::tensor_map::TensorMap;

/// A copy of a tile or of bytes that reports to a barrier.
pub enum Bulk {
    Tile { map: TensorMap, at: [i32; 5], shared: u64, barrier: u64 },
    Bytes { from: u64, shared: u64, bytes: u64, barrier: u64 },
}

impl Bulk {
    fn barrier(&self) -> u64 {
        match self {
            Self::Tile { barrier, .. } | Self::Bytes { barrier, .. } => *barrier,
        }
    }

    /// Address and bytes in shared memory.
    fn target(&self) -> (u64, usize) {
        match self {
            Self::Tile { map, shared, .. } => (*shared, map.tile_bytes() as usize),
            Self::Bytes { shared, bytes, .. } => (*shared, *bytes as usize),
        }
    }
}

/// Returns the swizzled address of a byte of a tile.
fn swizzle(mode: u32, at: u64) -> u64 {
    match mode {
        1 => at ^ (at >> 7 & 1) << 4,
        2 => at ^ (at >> 7 & 3) << 4,
        3 => at ^ (at >> 7 & 7) << 4,
        _ => at,
    }
}

fn tile(lanes: &mut Lanes, map: &TensorMap, at: [i32; 5], shared: u64, into_shared: bool) {
    let (rank, element) = (map.rank, map.element);
    let total = map.tile_bytes() / element as u64;
    let align = match map.swizzle {
        3 => 1024,
        2 => 512,
        1 => 256,
        _ => 128,
    };
    if shared % 128 != 0 {
        lanes.fail(format!("a tile's place in shared memory, {shared}, is no multiple of 128"));
    } else if shared % align != 0 {
        lanes.note(format!(
            "a tile's place in shared memory, {shared}, is no multiple of {align}, as its swizzle wants"
        ));
    }
    let mut index = [0u32; 5];
    for count in 0..total {
        let (mut address, mut inside) = (map.address, true);
        for dim in 0..rank {
            let position = i64::from(at[dim]) + i64::from(index[dim]);
            inside &= position >= 0 && (position as u64) < map.dims[dim];
            address = address.wrapping_add((position as u64).wrapping_mul(map.strides[dim]));
        }
        let place = swizzle(map.swizzle, shared + count * element as u64);
        // SAFETY: looked up.
        unsafe {
            let here =
                lanes.memory(Space::Shared, place, element, 0, if into_shared { Access::Sync } else { Access::Read });
            if into_shared {
                if inside {
                    let from = lanes.memory(Space::Global, address, element, 0, Access::Read);
                    std::ptr::copy_nonoverlapping(from, here, element);
                } else {
                    std::ptr::write_bytes(here, if map.fill_nan { 0xFF } else { 0 }, element);
                }
            } else if inside {
                let to = lanes.memory(Space::Global, address, element, 0, Access::Write);
                std::ptr::copy_nonoverlapping(here, to, element);
            }
        }
        for dim in 0..rank {
            index[dim] += 1;
            if index[dim] < map.tile[dim] {
                break;
            }
            index[dim] = 0;
        }
    }
}

/// Queues a copy until somebody waits for its barrier.
fn push(lanes: &mut Lanes, bulk: Bulk) {
    let (target, bytes) = bulk.target();
    lanes.races(|races, warp| races.issue(target, bytes, warp));
    lanes.block_state().bulk.push(bulk);
}

/// Makes the copies that a barrier waits for.
pub fn arrive_bulk(lanes: &mut Lanes, barrier: u64) {
    let block = lanes.block_state();
    let (now, later) =
        std::mem::take(&mut block.bulk).into_iter().partition::<Vec<_>, _>(|bulk| bulk.barrier() == barrier);
    block.bulk = later;
    for bulk in now {
        let (target, bytes) = bulk.target();
        match bulk {
            Bulk::Tile { map, at, shared, .. } => tile(lanes, &map, at, shared, true),
            // SAFETY: both ranges were looked up.
            Bulk::Bytes { from, shared, .. } => unsafe {
                let source = lanes.memory(Space::Global, from, bytes, 0, Access::Read);
                let to = lanes.memory(Space::Shared, shared, bytes, 0, Access::Sync);
                std::ptr::copy_nonoverlapping(source, to, bytes);
            },
        }
        lanes.races(|races, _| {
            races.complete_by_engine(target, bytes, barrier);
            None
        });
        change(lanes, barrier, 0, -(bytes as i64));
    }
}

/// Translates `cp.async.bulk`.
pub fn bulk(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let op: Vec<&str> = inst.op.iter().map(String::as_str).collect();
    let has = |word: &str| op.contains(&word);
    let args = &inst.operands;
    if has("commit_group") || has("prefetch") {
        return Ok(Box::new(|_, _| ()));
    }
    if has("wait_group") {
        // Stores complete when issued.
        return Ok(Box::new(|_, _| ()));
    }
    let spaces: Vec<&str> = op.iter().map(|word| word.split("::").next().unwrap_or("")).collect();
    let to_shared = spaces.iter().position(|word| *word == "shared") < spaces.iter().position(|word| *word == "global");
    if has("multicast::cluster") || has("im2col") {
        return Err("is not supported".to_owned());
    }
    if has("tensor") {
        let (map_arg, shared_arg) = if to_shared { (&args[1], &args[0]) } else { (&args[0], &args[1]) };
        let map = build.address(map_arg)?;
        let map_at = map.at();
        let map_space = map.space;
        let coordinates = map.more.iter().map(|part| build.src(part, Class::B32)).collect::<Result<Vec<_>>>()?;
        let shared = build.address(shared_arg)?.at();
        let barrier = if to_shared { Some(build.address(&args[2])?.at()) } else { None };
        return Ok(Box::new(move |lanes, mask| unsafe {
            each!(mask, lane, {
                let place = map_at.get(lanes, lane);
                let space = map_space.unwrap_or(Space::Generic);
                let words = lanes.memory(space, place, 128, lane, Access::Read).cast::<[u64; 16]>().read_unaligned();
                let Some(map) = TensorMap::decode(&words) else {
                    lanes.fail(format!("there is no tensor map at {place:#x}"));
                    return;
                };
                let mut at = [0i32; 5];
                for (index, reg) in coordinates.iter().enumerate() {
                    at[index] = i32::load(lanes.regs.add(*reg as usize), lane);
                }
                let shared = shared.get(lanes, lane) & !SHARED_WINDOW;
                match barrier {
                    Some(barrier) => {
                        let barrier = barrier.get(lanes, lane) & !SHARED_WINDOW;
                        push(lanes, Bulk::Tile { map, at, shared, barrier });
                    }
                    None => tile(lanes, &map, at, shared, false),
                }
            });
        }));
    }
    let (to, from) = (build.address(&args[0])?.at(), build.address(&args[1])?.at());
    let bytes = build.src(&args[2], Class::B32)?;
    let barrier = if to_shared { Some(build.address(&args[3])?.at()) } else { None };
    Ok(Box::new(move |lanes, mask| unsafe {
        each!(mask, lane, {
            let bytes = u64::from(u32::load(lanes.regs.add(bytes as usize), lane));
            let (to, from) = (to.get(lanes, lane), from.get(lanes, lane));
            match barrier {
                Some(barrier) => {
                    let (barrier, shared) = (barrier.get(lanes, lane) & !SHARED_WINDOW, to & !SHARED_WINDOW);
                    push(lanes, Bulk::Bytes { from, shared, bytes, barrier });
                }
                None => {
                    let source = lanes.memory(Space::Shared, from, bytes as usize, lane, Access::Read);
                    let target = lanes.memory(Space::Global, to, bytes as usize, lane, Access::Write);
                    std::ptr::copy_nonoverlapping(source, target, bytes as usize);
                }
            }
        });
    }))
}
