//! Detects data races on a block's shared memory, and accesses of the copy engine and of `wgmma` without a proxy fence.
//!
//! Each warp has a vector clock. Barriers join the clocks of those that meet there; an `mbarrier` carries the clock from those that
//! arrive to those that see its phase end. Two accesses by different warps to the same two bytes, at least one of them a write,
//! race if no such chain orders them. Lanes of one warp race if no `bar.warp.sync` comes between a write and a
//! read by ordinary instructions: of the instructions with a mask of lanes, PTX lets it alone order memory. `ldmatrix`, `stmatrix` and
//! `wmma` are in order with those of all lanes. An access to bytes that an asynchronous copy still writes is a race too, whoever makes it.
//!
//! A second clock of each warp tells which writes `fence.proxy.async` has passed on: it must stand on the way from an ordinary
//! write to a read by `wgmma` or the copy engine, in the thread that writes or in one that a barrier orders behind it. A copy of the
//! engine over bytes that were written by ordinary stores needs the fence as well. One over bytes that were only read does not.
//!
//! Not seen: accesses of a single byte, two writes by lanes of one warp, and races on global memory. Atomic and `volatile` accesses
//! never race, and they may read bytes that nothing wrote. A fence counts for its whole warp.

mod clocks;
mod granules;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use clocks::{ALL_LANES, Clock, ENGINE, Fault, Init, NONE, Phases, Stamp, WARPS, first_clock, join};
pub use clocks::{Access, Between, Moment};
use granules::{Granule, Granules, Reads, Write};

/// Bytes that are tracked together.
const GRANULE: usize = 2;

/// Accesses of the others that a warp, or the copy engine, has seen.
#[derive(Clone, Copy)]
struct Seen {
    clock: Clock,
    /// Writes of each warp that a proxy fence passed on, as far as this one may rely on it.
    fenced: Clock,
    /// Instructions that order the lanes of the warp.
    syncs: u32,
    /// Another number whenever any of this changes, and for each warp.
    version: u64,
}

impl Seen {
    /// Returns the time of an access now.
    fn stamp(&self, warp: usize, lane: u8) -> Stamp {
        Stamp { warp: warp as u8, lane, syncs: self.syncs, clock: self.clock[warp] }
    }
}

/// Kind of change of granules, as a part of a key.
#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
    Issue,
    IssueToEngine,
    /// Counts as written, without a time.
    Mark,
    ReadBehind,
}

/// Returns a key for changes of granules: those with the same one change equal granules in the same way.
fn key(version: u64, operation: Operation, lane: u8) -> u64 {
    version << 16 | (operation as u64) << 8 | u64::from(lane)
}

/// Reads by `wgmma` or the copy engine for a warp.
#[derive(Clone, Copy)]
pub struct Behind<'a> {
    warp: usize,
    /// When the warp issued them.
    moment: &'a Moment,
    /// Name of the reader, for messages.
    what: &'a str,
    stamp: Stamp,
    key: u64,
}

/// Clocks of a block.
pub struct Races {
    between: Between,
    /// Warps and the copy engine.
    seen: Vec<Seen>,
    /// The last version.
    version: u64,
    granules: Granules,
    /// The last write that an asynchronous copy has completed, and a granule of it.
    finished: (Write, Granule),
    barriers: HashMap<u64, Phases>,
    inits: HashMap<u64, Init>,
}

impl Races {
    pub fn new(shared_bytes: usize, between: Between) -> Self {
        // Nobody has seen the first step of another.
        let first =
            |warp| Seen { clock: first_clock(warp), fenced: [0; WARPS + 1], syncs: 1, version: warp as u64 + 1 };
        Self {
            between,
            seen: (0..=WARPS).map(first).collect(),
            version: WARPS as u64 + 1,
            granules: Granules::new(shared_bytes.div_ceil(GRANULE)),
            finished: Default::default(),
            barriers: HashMap::new(),
            inits: HashMap::new(),
        }
    }

    /// Forgets everything, for the next block.
    pub fn restart(&mut self) {
        self.granules.restart();
        self.finished = Default::default();
        self.barriers.clear();
        self.inits.clear();
        // A barrier joins the clocks of ended warps, which make no step then. Without one, others would count as having seen their accesses
        // in the next block.
        for warp in 0..=WARPS {
            self.change(warp).clock[warp] += 1;
        }
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn next_versions(&mut self) {
        for warp in 0..=WARPS {
            self.change(warp);
        }
    }

    /// Returns what a warp has seen, to change it.
    fn change(&mut self, warp: usize) -> &mut Seen {
        let version = self.next_version();
        let seen = &mut self.seen[warp];
        seen.version = version;
        seen
    }

    /// Orders all earlier accesses of some warps before their later ones. `whole`: these are all live threads of the block.
    pub fn meet(&mut self, warps: u32, whole: bool) {
        let (mut joined, mut fenced) = NONE;
        // Warps that have ended count as met.
        for warp in (0..WARPS).filter(|warp| whole || warps >> warp & 1 == 1) {
            join(&mut joined, &self.seen[warp].clock);
            join(&mut fenced, &self.seen[warp].fenced);
        }
        for warp in (0..WARPS).filter(|warp| warps >> warp & 1 == 1) {
            let seen = self.change(warp);
            (seen.clock, seen.fenced) = (joined, fenced);
            seen.clock[warp] += 1;
            seen.syncs += 1;
        }
        if whole {
            self.granules.forget_reads();
            self.next_versions();
        }
    }

    /// Orders the lanes of a warp.
    pub fn sync_lanes(&mut self, warp: usize) {
        self.change(warp).syncs += 1;
    }

    /// A warp executes `fence.proxy.async` for shared memory.
    pub fn fence(&mut self, warp: usize) {
        let Seen { clock, fenced, .. } = self.change(warp);
        join(fenced, clock);
        clock[warp] += 1;
    }

    /// A warp executes `fence.mbarrier_init`.
    pub fn fence_inits(&mut self, warp: usize) {
        self.inits.values_mut().filter(|init| usize::from(init.stamp.warp) == warp).for_each(|init| init.fenced = true);
    }

    /// A warp initialises an `mbarrier`.
    pub fn init(&mut self, barrier: u64, warp: usize) {
        let stamp = Stamp { syncs: 0, ..self.seen[warp].stamp(warp, ALL_LANES) };
        self.inits.insert(barrier, Init { stamp, fenced: false });
        self.barriers.remove(&barrier);
    }

    /// A warp uses an `mbarrier`; `by_engine`: it lets the copy engine report there.
    pub fn use_barrier(&mut self, barrier: u64, warp: usize, by_engine: bool) -> Option<String> {
        let Init { stamp, fenced } = self.inits.get(&barrier)?;
        let by = usize::from(stamp.warp);
        if by != warp && stamp.clock > self.seen[warp].clock[by] {
            return Some(format!(
                "race: warp {warp} uses the mbarrier at {barrier} without a barrier behind its initialisation by warp {by}"
            ));
        }
        (by_engine && !fenced && stamp.clock > self.seen[warp].fenced[by]).then(|| {
            format!("a copy of warp {warp} reports to the mbarrier at {barrier}, and no proxy fence follows its initialisation")
        })
    }

    /// A warp arrives at an `mbarrier`.
    pub fn arrive(&mut self, barrier: u64, warp: usize) {
        let (clock, fenced) = &mut self.barriers.entry(barrier).or_default().open;
        join(clock, &self.seen[warp].clock);
        join(fenced, &self.seen[warp].fenced);
        self.change(warp).clock[warp] += 1;
    }

    /// The phase of an `mbarrier` ends.
    pub fn end_phase(&mut self, barrier: u64) {
        let Phases { open, ended } = self.barriers.entry(barrier).or_default();
        let open = std::mem::replace(open, NONE);
        join(&mut ended.0, &open.0);
        join(&mut ended.1, &open.1);
    }

    /// A warp sees that a phase of an `mbarrier` has ended.
    pub fn pass(&mut self, barrier: u64, warp: usize) {
        let ended = self.barriers.get(&barrier).map_or(NONE, |phases| phases.ended);
        let seen = self.change(warp);
        join(&mut seen.clock, &ended.0);
        join(&mut seen.fenced, &ended.1);
        seen.syncs += 1;
    }

    /// Returns what a warp has seen by now, for an access that happens later; what the warp does from now on comes behind it.
    pub fn moment(&mut self, warp: usize) -> Moment {
        let seen = self.change(warp);
        let moment = Moment { clock: seen.clock, fenced: seen.fenced };
        seen.clock[warp] += 1;
        moment
    }

    /// An asynchronous copy into shared memory is issued by a lane, or for the engine; `why` it races with another access.
    pub fn issue(&mut self, at: u64, bytes: usize, warp: usize, lane: Option<usize>) -> Option<String> {
        let operation = if lane.is_none() { Operation::IssueToEngine } else { Operation::Issue };
        let lane = lane.filter(|_| self.between == Between::Lanes).map_or(ALL_LANES, |lane| lane as u8);
        let (range, seen) = (self.range(at, bytes), &self.seen[warp]);
        let key = key(seen.version, operation, lane);
        if self.granules.change_kept(range.clone(), key) {
            return None;
        }
        let found = self.granules.change(range, key, |granules, of| {
            let last = granules.write_of(of);
            let by = last.stamp.warp;
            let unfenced = matches!(operation, Operation::IssueToEngine)
                && last.generic
                && last.stamp.clock > seen.fenced[usize::from(by)];
            let (of, fault) = touch(granules, of, seen, seen.stamp(warp, lane), true);
            let write = Write { in_flight: true, ..granules.write_of(of) };
            (granules.with_write(of, write), unfenced.then_some(Fault::Fence(by)).or(fault))
        });
        found.map(|(fault, index)| match fault {
            Fault::Fence(_) => fault.message("the copy engine writes", warp, index),
            _ => fault.message(&format!("warp {warp} writes"), warp, index),
        })
    }

    /// An asynchronous copy is complete. Its bytes count as written by the lane that waited for it.
    pub fn complete(&mut self, at: u64, bytes: usize, warp: usize, lane: usize) {
        let lane = if self.between == Between::Warps { ALL_LANES } else { lane as u8 };
        self.finish(at, bytes, self.seen[warp].stamp(warp, lane), true);
    }

    /// The copy engine has written bytes. Those that see the phase of its barrier end may read them.
    pub fn complete_by_engine(&mut self, at: u64, bytes: usize, barrier: u64) {
        self.finish(at, bytes, Stamp { syncs: 0, ..self.seen[ENGINE].stamp(ENGINE, ALL_LANES) }, false);
        self.arrive(barrier, ENGINE);
    }

    fn finish(&mut self, at: u64, bytes: usize, stamp: Stamp, generic: bool) {
        let range = self.range(at, bytes);
        let write = Write { stamp, generic, written: true, in_flight: false };
        if self.finished.0 != write {
            self.finished = (write, self.granules.written(write));
        }
        self.granules.fill(range, self.finished.1);
    }

    /// A lane touches shared memory; `why` that is a race with an earlier access, or a read of nothing.
    #[inline(always)]
    pub fn access(&mut self, at: u64, bytes: usize, warp: usize, lane: usize, access: Access) -> Option<String> {
        let together = self.between == Between::Warps || matches!(access, Access::ReadTogether | Access::WriteTogether);
        let lane = if together { ALL_LANES } else { lane as u8 };
        let unchecked = matches!(access, Access::Sync | Access::SyncRead) || bytes < GRANULE;
        let operation = match (unchecked, access.writes()) {
            (true, true) => Operation::Mark,
            (true, false) => return None,
            (false, true) => Operation::Write,
            (false, false) => Operation::Read,
        };
        if self.granules.change_kept(self.range(at, bytes), key(self.seen[warp].version, operation, lane)) {
            return None;
        }
        self.first_access(at, bytes, warp, lane, access, operation)
    }

    /// An access that is not known yet.
    fn first_access(
        &mut self,
        at: u64,
        bytes: usize,
        warp: usize,
        lane: u8,
        access: Access,
        operation: Operation,
    ) -> Option<String> {
        let (range, seen) = (self.range(at, bytes), &self.seen[warp]);
        let found = self.granules.change(range, key(seen.version, operation, lane), |granules, of| match operation {
            Operation::Mark => {
                let write = Write { written: true, ..granules.write_of(of) };
                (granules.with_write(of, write), None)
            }
            _ => touch(granules, of, seen, seen.stamp(warp, lane), access.writes()),
        });
        found.map(|(fault, index)| fault.message(&format!("warp {warp} {}", access.verb()), warp, index))
    }

    /// Prepares reads that `wgmma` or the copy engine, as `what` tells, makes now for a warp that issued them at `moment`.
    pub fn behind<'a>(&mut self, warp: usize, moment: &'a Moment, what: &'a str) -> Behind<'a> {
        let stamp = Stamp { syncs: 0, ..self.seen[warp].stamp(warp, ALL_LANES) };
        Behind { warp, moment, what, stamp, key: key(self.next_version(), Operation::ReadBehind, ALL_LANES) }
    }

    /// `wgmma` or the copy engine has read shared memory.
    #[inline(always)]
    pub fn read_behind(&mut self, at: u64, bytes: usize, behind: &Behind) -> Option<String> {
        if self.granules.change_kept(self.range(at, bytes), behind.key) {
            return None;
        }
        self.first_read_behind(at, bytes, behind)
    }

    /// A read that is not known yet.
    fn first_read_behind(&mut self, at: u64, bytes: usize, behind: &Behind) -> Option<String> {
        let Behind { warp, moment, what, stamp, key } = *behind;
        let range = self.range(at, bytes);
        let found = self.granules.change(range, key, |granules, of| {
            let Write { stamp: write, generic, written, in_flight } = granules.write_of(of);
            let by = usize::from(write.warp);
            let fault = if in_flight {
                Some(Fault::InFlight)
            } else if !written {
                Some(Fault::Unwritten)
            } else if write.clock > moment.clock[by] {
                Some(if by == warp { Fault::Overwritten } else { Fault::Write(write.warp) })
            } else if generic && write.clock > moment.fenced[by] {
                Some(Fault::Fence(write.warp))
            } else {
                None
            };
            (granules.with_read(of, stamp), fault)
        });
        found.map(|(fault, index)| fault.message(&format!("{what} of warp {warp} reads"), warp, index))
    }

    /// Granules of a range, as far as they exist.
    #[inline(always)]
    fn range(&self, at: u64, bytes: usize) -> std::ops::Range<usize> {
        let end = (at as usize).saturating_add(bytes).div_ceil(GRANULE).min(self.granules.len());
        (at as usize / GRANULE).min(end)..end
    }
}

/// A lane accesses a granule at the time `mine`, with what its warp has seen.
fn touch(granules: &mut Granules, of: Granule, seen: &Seen, mine: Stamp, writes: bool) -> (Granule, Option<Fault>) {
    let (last, clock, warp) = (granules.write_of(of), &seen.clock, usize::from(mine.warp));
    if last.in_flight {
        return (of, Some(Fault::InFlight));
    }
    let fault = last.stamp.unordered(clock, warp).then_some(Fault::Write(last.stamp.warp));
    if writes {
        let fault = fault.or_else(|| match granules.reads_of(of) {
            Reads::None => None,
            Reads::One(read) => read.before_write(clock, mine),
            Reads::Many(reads) => reads.iter().find_map(|read| read.before_write(clock, mine)),
        });
        let write = Write { stamp: mine, generic: true, written: true, in_flight: false };
        return (granules.written(write), fault);
    }
    let unwritten = || (!last.written).then_some(Fault::Unwritten);
    let fault = fault.or_else(unwritten).or_else(|| last.stamp.parallel(mine).then_some(Fault::LaneWrite));
    (granules.with_read(of, mine), fault)
}
