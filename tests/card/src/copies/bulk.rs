//! The copy engine: tiles by tensor map, and plain bytes.

use std::ops::Range;

use super::copy_bytes;
use super::mbarrier::change;
use crate::exec::{LOCAL_WINDOW, Lanes, SHARED_WINDOW, Space};
use crate::half::{Val, WARP};
use crate::isa::build::Build;
use crate::isa::lanewise::each;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Operand, Statement};
use crate::races::{Access, Moment};
use crate::tensor_map::TensorMap;

/// Bytes that a swizzle leaves together.
const CHUNK: u64 = 16;

/// Data that the engine copies between global memory and a place in shared memory.
enum What {
    Tile { map: TensorMap, at: [i32; 5], shared: u64 },
    Bytes { global: u64, shared: u64, bytes: u64 },
}

impl What {
    /// Address and bytes in shared memory.
    fn place(&self) -> (u64, usize) {
        match self {
            Self::Tile { map, shared, .. } => (*shared, map.tile_bytes() as usize),
            Self::Bytes { shared, bytes, .. } => (*shared, *bytes as usize),
        }
    }

    /// Notes what the hardware refuses.
    fn check(&self, lanes: &mut Lanes) {
        match self {
            Self::Tile { map, shared, .. } => {
                let align = [128, 256, 512, 1024][map.swizzle.min(3) as usize];
                if shared % 128 != 0 {
                    lanes.fail(format!("a tile's place in shared memory, {shared}, is no multiple of 128"));
                } else if shared % align != 0 {
                    lanes.note(format!(
                        "a tile's place in shared memory, {shared}, is no multiple of {align}, as its swizzle wants"
                    ));
                }
            }
            Self::Bytes { global, shared, bytes } => {
                if (global | shared | bytes) % 16 != 0 {
                    lanes.fail(format!(
                        "a bulk copy of {bytes} bytes between {global:#x} and {shared} in shared memory: no multiples of 16"
                    ));
                }
            }
        }
    }

    fn run(&self, lanes: &mut Lanes, into_shared: bool) {
        match self {
            Self::Tile { map, at, shared } => tile(lanes, map, *at, *shared, into_shared),
            // SAFETY: both ranges are looked up.
            Self::Bytes { global, shared, bytes } => unsafe {
                let (bytes, access) = (*bytes as usize, if into_shared { Access::Read } else { Access::Write });
                let outside = lanes.memory(Space::Global, *global, bytes, 0, access);
                let inside = lanes.shared(*shared, bytes, 0);
                // After a failure, both may be the same scratch area, which is shorter.
                if lanes.error.is_none() {
                    let (from, to) = if into_shared { (outside, inside) } else { (inside, outside) };
                    std::ptr::copy_nonoverlapping(from, to, bytes);
                }
            },
        }
    }
}

/// A copy into shared memory that reports to a barrier.
pub struct Bulk {
    what: What,
    barrier: u64,
}

/// A copy out of shared memory, which a thread waits for by groups.
pub struct Store {
    what: What,
    /// Clocks of the warp when it issued the copy; none without a search for races.
    moment: Option<Box<Moment>>,
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

/// Copies a tile, row after row of its innermost dimension.
fn tile(lanes: &mut Lanes, map: &TensorMap, at: [i32; 5], shared: u64, into_shared: bool) {
    let row_bytes = u64::from(map.tile[0]) * map.element as u64;
    // Elements of a row that the tensor has, relative to the tile.
    let (first, end) = (i64::from(at[0]), i64::from(at[0]) + i64::from(map.tile[0]));
    let have = |to: i64| (to.clamp(0, map.dims[0] as i64).clamp(first, end) - first) as u64;
    let (skip, end) = (have(first), have(end));
    let mut index = [0u32; 5];
    for row in 0..map.tile_bytes() / row_bytes {
        let (mut address, mut inside) = (map.address, true);
        for dim in 0..map.rank {
            let position = i64::from(at[dim]) + i64::from(index[dim]);
            inside &= dim == 0 || (position >= 0 && (position as u64) < map.dims[dim]);
            address = address.wrapping_add((position as u64).wrapping_mul(map.strides[dim]));
        }
        let line = Line { map, shared: shared + row * row_bytes, address, into_shared };
        if inside {
            line.fill(lanes, 0..skip);
            line.copy(lanes, skip..end);
            line.fill(lanes, end..u64::from(map.tile[0]));
        } else {
            line.fill(lanes, 0..u64::from(map.tile[0]));
        }
        for (index, side) in index.iter_mut().zip(map.tile).take(map.rank).skip(1) {
            *index += 1;
            if *index < side {
                break;
            }
            *index = 0;
        }
    }
}

/// A row of a tile.
struct Line<'a> {
    map: &'a TensorMap,
    /// Place in shared memory, before the swizzle.
    shared: u64,
    address: u64,
    into_shared: bool,
}

impl Line<'_> {
    /// Calls for each run of bytes that the swizzle leaves together: where it is, its offset behind the first element, and its length.
    fn pieces(&self, lanes: &mut Lanes, elements: &Range<u64>, mut each: impl FnMut(*mut u8, usize, usize)) {
        let element = self.map.element as u64;
        let (first, end) = (self.shared + elements.start * element, self.shared + elements.end * element);
        let mut at = first;
        while at < end {
            let bytes = (CHUNK - at % CHUNK).min(end - at);
            // SAFETY: looked up, and the run ends where the chunk does, at the latest.
            let here = unsafe {
                let chunk = lanes.shared(swizzle(self.map.swizzle, at - at % CHUNK), CHUNK as usize, 0);
                chunk.add((at % CHUNK) as usize)
            };
            each(here, (at - first) as usize, bytes as usize);
            at += bytes;
        }
    }

    /// Fills elements that the tensor does not have.
    fn fill(&self, lanes: &mut Lanes, elements: Range<u64>) {
        let value = if self.map.fill_nan { 0xFF } else { 0 };
        self.pieces(lanes, &elements, |here, _, bytes| {
            if self.into_shared {
                // SAFETY: a run of the tile.
                unsafe { std::ptr::write_bytes(here, value, bytes) };
            }
        });
    }

    /// Copies elements that the tensor has.
    fn copy(&self, lanes: &mut Lanes, elements: Range<u64>) {
        let element = self.map.element;
        let bytes = (elements.end - elements.start) as usize * element;
        let address = self.address.wrapping_add(elements.start * element as u64);
        let access = if self.into_shared { Access::Read } else { Access::Write };
        // SAFETY: looked up.
        unsafe {
            let run = if bytes > 0 { lanes.run_of(address, element, bytes, access) } else { None };
            let Some(outside) = run else {
                // Some elements do not exist or are not aligned, which the lookup of each tells.
                for at in (0..bytes).step_by(element) {
                    lanes.memory(Space::Global, address.wrapping_add(at as u64), element, 0, access);
                }
                return;
            };
            self.pieces(lanes, &elements, |inside, offset, bytes| {
                let outside = outside.add(offset);
                let (from, to) = if self.into_shared { (outside, inside) } else { (inside, outside) };
                copy_bytes(from, to, bytes);
            });
        }
    }
}

/// Queues a copy until somebody waits for its barrier.
fn push(lanes: &mut Lanes, bulk: Bulk) {
    bulk.what.check(lanes);
    let ((place, bytes), barrier) = (bulk.what.place(), bulk.barrier);
    lanes.races(|races, warp| races.use_barrier(barrier, warp, true));
    lanes.races(|races, warp| races.issue(place, bytes, warp, None));
    lanes.block_state().bulk.push(bulk);
}

/// Queues a copy out of shared memory until its thread waits for it.
fn push_store(lanes: &mut Lanes, lane: usize, what: What) {
    what.check(lanes);
    let mut moment = None;
    lanes.races(|races, warp| {
        moment = Some(Box::new(races.moment(warp)));
        None
    });
    lanes.stores[lane].open.push(Store { what, moment });
}

/// Makes the copies that a barrier waits for.
pub fn arrive_bulk(lanes: &mut Lanes, barrier: u64) {
    let block = lanes.block_state();
    let (now, later) =
        std::mem::take(&mut block.bulk).into_iter().partition::<Vec<_>, _>(|bulk| bulk.barrier == barrier);
    block.bulk = later;
    let count = now.len();
    for (number, bulk) in now.into_iter().enumerate() {
        let (place, bytes) = bulk.what.place();
        bulk.what.run(lanes, true);
        lanes.races(|races, _| {
            races.complete_by_engine(place, bytes, barrier);
            None
        });
        let ended = change(lanes, barrier, 0, -(bytes as i64));
        if ended && number + 1 < count {
            lanes.note(format!(
                "the phase of the mbarrier at {barrier} ends before all copies that report to it: more bytes come than it expects"
            ));
        }
    }
}

/// Makes a lane's copies out of shared memory until at most `leave` groups are under way.
fn wait_for_stores(lanes: &mut Lanes, lane: usize, leave: usize) {
    while let Some(group) = lanes.stores[lane].next_group(leave) {
        for Store { what, moment } in group {
            let (place, bytes) = what.place();
            if let Some(moment) = moment {
                lanes.races(|races, warp| {
                    let behind = races.behind(warp, &moment, "a bulk copy");
                    races.read_behind(place, bytes, &behind)
                });
            }
            what.run(lanes, false);
        }
    }
}

/// Translates `cp.async.bulk`.
pub fn bulk(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let op: Vec<&str> = inst.op.iter().map(String::as_str).collect();
    let has = |word: &str| op.contains(&word);
    let args = &inst.operands;
    if has("prefetch") {
        return Ok(Box::new(|_, _| ()));
    }
    if has("commit_group") {
        return Ok(Box::new(|lanes, mask| {
            each!(mask, lane, { lanes.stores[lane].commit() });
        }));
    }
    if has("wait_group") {
        let Operand::Int(leave) = args[0] else { return Err("groups".to_owned()) };
        return Ok(Box::new(move |lanes, mask| {
            each!(mask, lane, { wait_for_stores(lanes, lane, leave as usize) });
        }));
    }
    if has("reduce") {
        return Err("is not supported".to_owned());
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
                if place % 64 != 0 || place & (SHARED_WINDOW | LOCAL_WINDOW) != 0 {
                    lanes.fail(format!(
                        "a tensor map at {place:#x}: not aligned to 64 bytes, or in shared or local memory"
                    ));
                    return;
                }
                let words = lanes.memory(space, place, 128, lane, Access::Read).cast::<[u64; 16]>().read_unaligned();
                let Some(map) = TensorMap::decode(&words) else {
                    lanes.fail(format!("there is no tensor map at {place:#x}"));
                    return;
                };
                if map.rank != coordinates.len() {
                    lanes.fail(format!("{} coordinates for a tensor map of rank {}", coordinates.len(), map.rank));
                    return;
                }
                let mut at = [0i32; 5];
                for (index, reg) in coordinates.iter().enumerate() {
                    at[index] = i32::load(lanes.regs.add(*reg as usize), lane);
                }
                let shared = shared.get(lanes, lane) & !SHARED_WINDOW;
                let what = What::Tile { map, at, shared };
                match barrier {
                    Some(barrier) => {
                        let barrier = barrier.get(lanes, lane) & !SHARED_WINDOW;
                        push(lanes, Bulk { what, barrier });
                    }
                    None => push_store(lanes, lane, what),
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
                    push(lanes, Bulk { what: What::Bytes { global: from, shared, bytes }, barrier });
                }
                None => push_store(lanes, lane, What::Bytes { global: to, shared: from & !SHARED_WINDOW, bytes }),
            }
        });
    }))
}
