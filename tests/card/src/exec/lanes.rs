//! Registers and memory of a warp.

use std::collections::HashMap;

use super::warp::{Group, Wait};
use super::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_FIRST, SHARED_WINDOW};
use crate::candidates::Written;
use crate::copies::{Bulk, Copy, Pending, Store};
use crate::half::{Val, WARP};
use crate::isa::Code;
use crate::ptx::Class;
use crate::races::{Access, Between, Races};
use crate::state::Launch;
use crate::tensor::{Products, Spread};

/// State space of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

/// Most notes that one launch reports.
const MAX_NOTES: usize = 5;

/// Returns whether bytes from an address on lie between two others.
#[inline(always)]
fn within(address: u64, bytes: usize, from: u64, end: u64) -> bool {
    address >= from && address.checked_add(bytes as u64).is_some_and(|last| last <= end)
}

/// Memory of the block that runs, and what its launch has left behind so far.
pub struct Block {
    pub shared: Vec<u8>,
    pub params: Vec<u8>,
    /// Copies of the engine that nobody has waited for.
    pub bulk: Vec<Bulk>,
    /// Words of the `mbarrier`s, as the last instruction for barriers left them.
    pub barriers: HashMap<u64, u64>,
    /// Allocations, sorted: first byte, and the one behind the last.
    pub ranges: Vec<(u64, u64)>,
    pub races: Option<Races>,
    /// Global memory that the launch has written.
    pub written: Written,
    /// Problems that do not stop the kernel.
    pub notes: Vec<String>,
    /// Memory of registers that no warp uses.
    pub(super) spare: Vec<Vec<u64>>,
}

impl Block {
    /// Memory for the blocks of a launch, which run one after the other.
    pub fn new(launch: &Launch, shared_bytes: usize, ranges: &[(u64, u64)], races: Option<Between>) -> Self {
        Self {
            shared: vec![0; shared_bytes],
            params: launch.params.clone(),
            bulk: Vec::new(),
            barriers: HashMap::new(),
            ranges: ranges.to_vec(),
            races: races.map(|between| Races::new(shared_bytes, between)),
            written: Written::default(),
            notes: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Notes a problem, unless one that differs in numbers alone is known.
    pub fn note(&mut self, what: String) {
        let words =
            |text: &str| text.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<String>();
        if self.notes.len() < MAX_NOTES && !self.notes.iter().any(|note| words(note) == words(&what)) {
            self.notes.push(what);
        }
    }

    /// Prepares for the next block. Shared memory starts with bytes that no kernel can mistake for its own.
    pub fn restart(&mut self) {
        self.shared.fill(0xFF);
        self.bulk.clear();
        self.barriers.clear();
        if let Some(races) = &mut self.races {
            races.restart();
        }
    }
}

/// A warp that runs.
pub struct Lanes {
    /// Registers: for each, one value a lane.
    pub regs: *mut u8,
    pub(super) store: Vec<u64>,
    block_state: *mut Block,
    number: usize,
    local: Vec<u8>,
    local_each: usize,
    /// Copies with `cp.async` of each lane.
    pub pending: Vec<Pending<Copy>>,
    /// Copies from shared memory by the engine, of each lane.
    pub stores: Vec<Pending<Store>>,
    /// Products by `wgmma`.
    pub products: Products,
    /// The last left matrix of `mma.sync`.
    pub spread: Box<Spread>,
    pub error: Option<String>,
    pub failed_poll: bool,
    pub progress: bool,
    /// The allocation of the last access.
    range: (u64, u64),
    pub(super) groups: Vec<Group>,
    pub(super) live: u32,
    /// Target of accesses that failed.
    scratch: [u8; 256],
}

impl Lanes {
    #[inline(always)]
    pub fn pred(&self, at: u32, negated: bool) -> u32 {
        // SAFETY: a predicate's register.
        let value = unsafe { *self.regs.add(at as usize).cast::<u64>() } as u32;
        if negated { !value } else { value }
    }

    #[inline(always)]
    pub fn set_pred(&mut self, at: u32, mask: u32, value: u32) {
        // SAFETY: a predicate's register.
        let place = unsafe { &mut *self.regs.add(at as usize).cast::<u64>() };
        *place = u64::from(*place as u32 & !mask | value & mask);
    }

    /// Returns a register of 32 bits.
    #[inline(always)]
    pub fn words(&self, at: u32) -> [u32; WARP] {
        // SAFETY: a register of that width.
        unsafe { self.regs.add(at as usize).cast::<[u32; WARP]>().read_unaligned() }
    }

    #[allow(clippy::mut_from_ref)]
    pub fn block_state(&self) -> &'static mut Block {
        // SAFETY: the block outlives its warps, which run one after the other.
        unsafe { &mut *self.block_state }
    }

    pub fn fail(&mut self, why: String) {
        if self.error.is_none() {
            self.error = Some(why);
        }
    }

    /// Notes a problem that does not stop the kernel.
    pub fn note(&mut self, what: String) {
        self.block_state().note(what);
    }

    /// Returns where `bytes` at an address are in this process. After a failure it is a scratch area.
    ///
    /// # Safety
    /// The pointer is valid until something is allocated or freed.
    #[inline(always)]
    pub unsafe fn memory(&mut self, space: Space, address: u64, bytes: usize, lane: usize, access: Access) -> *mut u8 {
        if space == Space::Global || (space == Space::Generic && address >> 60 == 0) {
            if within(address, bytes, self.range.0, self.range.1)
                && address & (bytes as u64).min(16).wrapping_sub(1) == 0
            {
                if access.writes() {
                    self.block_state().written.add(address, bytes);
                }
                return address as *mut u8;
            }
            return self.global(address, bytes, lane, access);
        }
        self.elsewhere(space, address, bytes, lane, access)
    }

    fn global(&mut self, address: u64, bytes: usize, lane: usize, access: Access) -> *mut u8 {
        let ranges = &self.block_state().ranges;
        let at = ranges.partition_point(|range| range.0 <= address);
        let what = access.verb();
        if at == 0 || !within(address, bytes, ranges[at - 1].0, ranges[at - 1].1) {
            self.fail(format!(
                "lane {lane} {what} {bytes} bytes of global memory at {address:#x}, which no argument points to"
            ));
            return self.scratch.as_mut_ptr();
        }
        self.range = ranges[at - 1];
        if access.writes() {
            self.block_state().written.add(address, bytes);
        }
        if bytes.is_power_of_two() && !address.is_multiple_of((bytes as u64).min(16)) {
            self.fail(format!("lane {lane} {what} {bytes} bytes at {address:#x}: not aligned"));
        }
        address as *mut u8
    }

    /// Returns where a run of elements of global memory is, if all of it is in one allocation and the elements are aligned. Then it counts
    /// as accessed.
    ///
    /// # Safety
    /// As for `memory`.
    pub unsafe fn run_of(&mut self, address: u64, element: usize, bytes: usize, access: Access) -> Option<*mut u8> {
        let inside = |range: (u64, u64)| within(address, bytes, range.0, range.1);
        let ranges = &self.block_state().ranges;
        if !inside(self.range) {
            let at = ranges.partition_point(|range| range.0 <= address);
            self.range = *ranges[..at].last().filter(|range| inside(**range))?;
        }
        if !address.is_multiple_of(element as u64) {
            return None;
        }
        if access.writes() {
            self.block_state().written.add(address, bytes);
        }
        Some(address as *mut u8)
    }

    fn elsewhere(&mut self, space: Space, address: u64, bytes: usize, lane: usize, access: Access) -> *mut u8 {
        let (space, address) = match space {
            Space::Generic if address & SHARED_WINDOW != 0 => (Space::Shared, address & !SHARED_WINDOW),
            Space::Generic if address & LOCAL_WINDOW != 0 => (Space::Local, address & !LOCAL_WINDOW),
            Space::Generic if address & PARAM_WINDOW != 0 => (Space::Param, address & !PARAM_WINDOW),
            Space::Param => (Space::Param, address & !PARAM_WINDOW),
            other => (other, address),
        };
        if space != Space::Shared {
            return self.place(space, address, bytes, lane, access).unwrap_or(self.scratch.as_mut_ptr());
        }
        let found = match self.inside_shared(address, bytes) {
            Some(found) => found,
            None => match self.place(space, address, bytes, lane, access) {
                Some(found) => found,
                None => return self.scratch.as_mut_ptr(),
            },
        };
        let warp = self.number;
        let races = self.block_state().races.as_mut();
        if let Some(why) = races.and_then(|races| races.access(address, bytes, warp, lane, access)) {
            self.note(why);
        }
        found
    }

    /// Returns where bytes of shared memory are if they are inside and well aligned.
    #[inline(always)]
    fn inside_shared(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        let shared = &mut self.block_state().shared;
        let inside = within(address, bytes, SHARED_FIRST, shared.len() as u64);
        // SAFETY: inside.
        (inside && address & (bytes as u64).min(16).wrapping_sub(1) == 0)
            .then(|| unsafe { shared.as_mut_ptr().add(address as usize) })
    }

    /// Returns where bytes of shared memory are, for an access that is checked for races by itself. After a failure it is a scratch area.
    ///
    /// # Safety
    /// The pointer is valid until something is allocated or freed.
    #[inline(always)]
    pub unsafe fn shared(&mut self, address: u64, bytes: usize, lane: usize) -> *mut u8 {
        if let Some(found) = self.inside_shared(address, bytes) {
            return found;
        }
        self.place(Space::Shared, address, bytes, lane, Access::Sync).unwrap_or(self.scratch.as_mut_ptr())
    }

    /// Returns where bytes of shared, parameter or local memory are, if they exist. A wrong alignment fails, too.
    #[cold]
    fn place(&mut self, space: Space, address: u64, bytes: usize, lane: usize, access: Access) -> Option<*mut u8> {
        let block = self.block_state();
        let (base, from, end) = match space {
            Space::Shared => (block.shared.as_mut_ptr(), SHARED_FIRST, block.shared.len() as u64),
            Space::Param => (block.params.as_mut_ptr(), 0, block.params.len() as u64),
            _ => {
                let base = self.local.as_mut_ptr().wrapping_add(lane * self.local_each);
                (base, 0, self.local_each as u64)
            }
        };
        let outside = !within(address, bytes, from, end);
        if outside || (bytes.is_power_of_two() && address & ((bytes as u64).min(16) - 1) != 0) {
            let what = format!("lane {lane} {} {bytes} bytes of {space:?} memory at {address}", access.verb());
            self.fail(if outside { format!("{what}, of {from} to {end}") } else { format!("{what}: not aligned") });
        }
        // SAFETY: inside.
        (!outside).then(|| unsafe { base.add(address as usize) })
    }

    /// Reports to the race detector, if there is one.
    #[inline(always)]
    pub fn races(&mut self, report: impl FnOnce(&mut Races, usize) -> Option<String>) {
        let warp = self.number;
        if let Some(why) = self.block_state().races.as_mut().and_then(|races| report(races, warp)) {
            self.note(why);
        }
    }
}

/// Prepares a warp: constants and special registers.
pub fn warp(code: &Code, launch: &Launch, block_state: *mut Block, number: u32, block: [u32; 3]) -> Lanes {
    // SAFETY: the block outlives its warps.
    let mut store = unsafe { &mut *block_state }.spare.pop().unwrap_or_default();
    store.clear();
    store.resize(code.register_bytes.div_ceil(8) + 16, 0);
    let regs = store.as_mut_ptr().cast::<u8>();
    let threads: u32 = launch.block.iter().product();
    let live = (threads - number * 32).min(32);
    let live = if live == 32 { u32::MAX } else { (1 << live) - 1 };
    for (at, class, value) in &code.consts {
        // SAFETY: inside the registers.
        unsafe {
            let at = regs.add(*at as usize);
            match class {
                Class::Pred => *at.cast::<u64>() = *value,
                Class::B64 => (0..WARP).for_each(|lane| u64::store(at, lane, *value)),
                Class::B128 => {
                    (0..WARP).for_each(|lane| at.cast::<u128>().add(lane).write_unaligned(u128::from(*value)))
                }
                _ => (0..WARP).for_each(|lane| u32::store(at, lane, *value as u32)),
            }
        }
    }
    for (at, name) in &code.specials {
        for lane in 0..WARP {
            let thread = number * 32 + lane as u32;
            let place = [
                thread % launch.block[0],
                thread / launch.block[0] % launch.block[1],
                thread / launch.block[0] / launch.block[1],
            ];
            let of = |three: [u32; 3]| match name.rsplit('.').next() {
                Some("y") => three[1],
                Some("z") => three[2],
                _ => three[0],
            };
            let value = match name.split('.').next().unwrap_or("") {
                "%tid" => of(place),
                "%ntid" => of(launch.block),
                "%ctaid" => of(block),
                "%nctaid" => of(launch.grid),
                "%laneid" => lane as u32,
                "%warpid" => number,
                "%nwarpid" => threads.div_ceil(32),
                "%lanemask_eq" => 1 << lane,
                "%lanemask_lt" => (1u32 << lane) - 1,
                "%lanemask_le" => ((1u64 << (lane + 1)) - 1) as u32,
                "%lanemask_gt" => !(((1u64 << (lane + 1)) - 1) as u32),
                "%lanemask_ge" => !((1u32 << lane) - 1),
                "%nsmid" => crate::card::card().sms as u32,
                "%dynamic_smem_size" | "%total_smem_size" => launch.shared,
                "%cluster_nctaid" | "%cluster_nctarank" | "%nclusterid" => 1,
                "%clusterid" => of(block),
                _ => 0,
            };
            // SAFETY: inside the registers.
            unsafe {
                let at = regs.add(*at as usize);
                if matches!(name.as_str(), "%clock64" | "%globaltimer" | "%gridid") {
                    u64::store(at, lane, u64::from(value));
                } else {
                    u32::store(at, lane, value);
                }
            }
        }
    }
    Lanes {
        regs,
        store,
        block_state,
        number: number as usize,
        local: vec![0; code.local * WARP],
        local_each: code.local,
        pending: (0..WARP).map(|_| Pending::default()).collect(),
        stores: (0..WARP).map(|_| Pending::default()).collect(),
        products: Products::new(code.watched),
        spread: Box::default(),
        error: None,
        failed_poll: false,
        progress: false,
        range: (0, 0),
        groups: vec![Group { pc: 0, mask: live, wait: Wait::Ready }],
        live,
        scratch: [0; 256],
    }
}
