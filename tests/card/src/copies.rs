//! Asynchronous copies into shared memory.
//!
//! A copy happens as late as it may: when a thread waits for it. A kernel that reads before it waits finds old bytes.

mod bulk;
mod mbarrier;

use std::collections::VecDeque;

pub use bulk::{Bulk, Store};
pub use mbarrier::mbarrier;

use crate::exec::{Lanes, SHARED_WINDOW, Space};
use crate::half::{Val, WARP};
use crate::isa::build::Build;
use crate::isa::lanewise::each;
use crate::isa::{Exec, Result};
use crate::ptx::{Class, Operand, Statement};
use crate::races::Access;

/// A `cp.async` that has not happened.
#[derive(Clone, Copy)]
pub struct Copy {
    to: u64,
    from: u64,
    bytes: usize,
    /// Bytes that are read. The rest is filled with zeros.
    given: usize,
}

/// Work that somebody must wait for: what is in no group yet, and the groups, oldest first.
pub struct Pending<T> {
    pub open: Vec<T>,
    groups: VecDeque<Vec<T>>,
    /// Memory of a group that is done.
    spare: Vec<T>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { open: Vec::new(), groups: VecDeque::new(), spare: Vec::new() }
    }
}

impl<T> Pending<T> {
    /// Makes a group of all work that is in none.
    pub fn commit(&mut self) {
        let group = std::mem::replace(&mut self.open, std::mem::take(&mut self.spare));
        self.groups.push_back(group);
    }

    /// Takes the oldest group if there are more than `leave`.
    pub fn next_group(&mut self, leave: usize) -> Option<Vec<T>> {
        if self.groups.len() > leave { self.groups.pop_front() } else { None }
    }

    /// Takes back the memory of a group.
    fn put_back(&mut self, mut group: Vec<T>) {
        group.clear();
        self.spare = group;
    }

    /// Returns whether no copy remains to be made.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.groups.iter().all(Vec::is_empty)
    }
}

/// Copies bytes, mostly sixteen.
///
/// # Safety
/// As for `copy_nonoverlapping`.
unsafe fn copy_bytes(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            16 => to.cast::<[u8; 16]>().write_unaligned(from.cast::<[u8; 16]>().read_unaligned()),
            _ => std::ptr::copy_nonoverlapping(from, to, bytes),
        }
    }
}

fn run(lanes: &mut Lanes, copy: Copy, lane: usize) {
    // SAFETY: looked up.
    unsafe {
        let to = lanes.shared(copy.to, copy.bytes, lane);
        if copy.given > 0 {
            let from = lanes.memory(Space::Global, copy.from, copy.given, lane, Access::Read);
            copy_bytes(from, to, copy.given);
        }
        std::ptr::write_bytes(to.add(copy.given), 0, copy.bytes - copy.given);
    }
    lanes.races(|races, warp| {
        races.complete(copy.to & !SHARED_WINDOW, copy.bytes, warp, lane);
        None
    });
}

fn wait(lanes: &mut Lanes, lane: usize, leave: usize) {
    while let Some(group) = lanes.pending[lane].next_group(leave) {
        for copy in &group {
            run(lanes, *copy, lane);
        }
        lanes.pending[lane].put_back(group);
    }
}

fn wait_all(lanes: &mut Lanes, lane: usize) {
    wait(lanes, lane, 0);
    for copy in std::mem::take(&mut lanes.pending[lane].open) {
        run(lanes, copy, lane);
    }
}

/// Translates `cp.async` and its groups.
pub fn cp(build: &mut Build, inst: &Statement) -> Result<Exec> {
    let op: Vec<&str> = inst.op.iter().map(String::as_str).collect();
    let has = |word: &str| op.contains(&word);
    let args = &inst.operands;
    if op.get(1) == Some(&"async") && has("bulk") {
        return bulk::bulk(build, inst);
    }
    if has("commit_group") {
        return Ok(Box::new(|lanes, mask| {
            each!(mask, lane, { lanes.pending[lane].commit() });
        }));
    }
    if has("wait_group") {
        let Operand::Int(leave) = args[0] else { return Err("groups".to_owned()) };
        return Ok(Box::new(move |lanes, mask| {
            each!(mask, lane, { wait(lanes, lane, leave as usize) });
        }));
    }
    if has("wait_all") {
        return Ok(Box::new(|lanes, mask| {
            each!(mask, lane, { wait_all(lanes, lane) });
        }));
    }
    if has("mbarrier") {
        let at = build.address(&args[0])?.at();
        let counted = !has("noinc");
        return Ok(Box::new(move |lanes, mask| {
            each!(mask, lane, {
                let barrier = at.get(lanes, lane);
                if counted {
                    mbarrier::change(lanes, barrier, 1, 0);
                }
                // The copies complete now, and the barrier is told.
                wait_all(lanes, lane);
                mbarrier::change(lanes, barrier, -1, 0);
            });
        }));
    }
    let (to, from) = (build.address(&args[0])?.at(), build.address(&args[1])?.at());
    let Operand::Int(bytes) = args[2] else { return Err("bytes".to_owned()) };
    let given = match args.get(3) {
        Some(given) if !has("L2::cache_hint") || args.len() > 4 => Some(build.src(given, Class::B32)?),
        _ => None,
    };
    Ok(Box::new(move |lanes, mask| {
        each!(mask, lane, {
            let given =
                given.map_or(bytes as usize, |reg| unsafe { u32::load(lanes.regs.add(reg as usize), lane) as usize });
            let (to, from) = (to.get(lanes, lane), from.get(lanes, lane));
            if to % bytes as u64 != 0 || (given > 0 && from % bytes as u64 != 0) {
                lanes.fail(format!("cp.async of {bytes} bytes from {from:#x} to {to:#x}: not aligned"));
            }
            lanes.races(|races, warp| races.issue(to & !SHARED_WINDOW, bytes as usize, warp, Some(lane)));
            lanes.pending[lane].open.push(Copy { to, from, bytes: bytes as usize, given });
        });
    }))
}
