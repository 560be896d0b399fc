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
//! never race. A fence counts for its whole warp.

mod clocks;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use clocks::{Access, Between, Moment};
use clocks::{Clock, ENGINE, Fault, Granule, Reads, Stamp, WARPS, first_clock, join};

/// Bytes that are tracked together.
const GRANULE: usize = 2;

/// Lane of an access that belongs to all lanes.
const ALL_LANES: u8 = 255;

/// Lane of several reads by different lanes.
const SEVERAL_LANES: u8 = 254;

/// Initialisation of an `mbarrier`.
struct Init {
    stamp: Stamp,
    /// `true` once `fence.mbarrier_init` followed the initialisation.
    fenced: bool,
}

/// Clock and fenced writes of those that arrived at an `mbarrier`.
struct Phases {
    /// In the phase that has not ended.
    open: (Clock, Clock),
    /// In all phases before.
    ended: (Clock, Clock),
}

/// Clocks of nobody.
const NONE: (Clock, Clock) = ([0; WARPS + 1], [0; WARPS + 1]);

impl Default for Phases {
    fn default() -> Self {
        Self { open: NONE, ended: NONE }
    }
}

/// Clocks of a block.
pub struct Races {
    between: Between,
    epoch: u32,
    clocks: Vec<Clock>,
    /// Writes of each warp that a proxy fence passed on, as far as each warp may rely on it.
    fenced: Vec<Clock>,
    /// Instructions of each warp that order its lanes.
    syncs: [u32; WARPS + 1],
    granules: Vec<Granule>,
    many: Vec<Clock>,
    barriers: HashMap<u64, Phases>,
    inits: HashMap<u64, Init>,
}

impl Races {
    pub fn new(shared_bytes: usize, between: Between) -> Self {
        Self {
            between,
            epoch: 1,
            // Nobody has seen the first step of another.
            clocks: (0..=WARPS).map(first_clock).collect(),
            fenced: vec![[0; WARPS + 1]; WARPS + 1],
            syncs: [1; WARPS + 1],
            granules: vec![Granule::default(); shared_bytes.div_ceil(GRANULE)],
            many: Vec::new(),
            barriers: HashMap::new(),
            inits: HashMap::new(),
        }
    }

    /// Forgets everything, for the next block.
    pub fn restart(&mut self) {
        self.next_epoch();
        self.granules.fill(Granule::default());
        self.barriers.clear();
        self.inits.clear();
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.many.clear();
    }

    /// Orders all earlier accesses of some warps before their later ones. `whole`: these are all live threads of the block.
    pub fn meet(&mut self, warps: u32, whole: bool) {
        let (mut joined, mut fenced) = ([0; WARPS + 1], [0; WARPS + 1]);
        // Warps that have ended count as met.
        for warp in (0..WARPS).filter(|warp| whole || warps >> warp & 1 == 1) {
            join(&mut joined, &self.clocks[warp]);
            join(&mut fenced, &self.fenced[warp]);
        }
        for warp in (0..WARPS).filter(|warp| warps >> warp & 1 == 1) {
            self.clocks[warp] = joined;
            self.clocks[warp][warp] += 1;
            self.fenced[warp] = fenced;
            self.syncs[warp] += 1;
        }
        if whole {
            self.next_epoch();
        }
    }

    /// Orders the lanes of a warp.
    pub fn sync_lanes(&mut self, warp: usize) {
        self.syncs[warp] += 1;
    }

    /// A warp executes `fence.proxy.async` for shared memory.
    pub fn fence(&mut self, warp: usize) {
        join(&mut self.fenced[warp], &self.clocks[warp]);
        self.clocks[warp][warp] += 1;
    }

    /// A warp executes `fence.mbarrier_init`.
    pub fn fence_inits(&mut self, warp: usize) {
        self.inits.values_mut().filter(|init| usize::from(init.stamp.warp) == warp).for_each(|init| init.fenced = true);
    }

    /// A warp initialises an `mbarrier`.
    pub fn init(&mut self, barrier: u64, warp: usize) {
        let stamp = Stamp { warp: warp as u8, lane: ALL_LANES, syncs: 0, clock: self.clocks[warp][warp] };
        self.inits.insert(barrier, Init { stamp, fenced: false });
        self.barriers.remove(&barrier);
    }

    /// A warp uses an `mbarrier`; `by_engine`: it lets the copy engine report there.
    pub fn use_barrier(&mut self, barrier: u64, warp: usize, by_engine: bool) -> Option<String> {
        let Init { stamp, fenced } = self.inits.get(&barrier)?;
        let by = usize::from(stamp.warp);
        if by != warp && stamp.clock > self.clocks[warp][by] {
            return Some(format!(
                "race: warp {warp} uses the mbarrier at {barrier} without a barrier behind its initialisation by warp {by}"
            ));
        }
        (by_engine && !fenced && stamp.clock > self.fenced[warp][by]).then(|| {
            format!("a copy of warp {warp} reports to the mbarrier at {barrier}, and no proxy fence follows its initialisation")
        })
    }

    /// A warp arrives at an `mbarrier`.
    pub fn arrive(&mut self, barrier: u64, warp: usize) {
        let (clock, fenced) = &mut self.barriers.entry(barrier).or_default().open;
        join(clock, &self.clocks[warp]);
        join(fenced, &self.fenced[warp]);
        self.clocks[warp][warp] += 1;
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
        if let Some(Phases { ended, .. }) = self.barriers.get(&barrier) {
            join(&mut self.clocks[warp], &ended.0);
            join(&mut self.fenced[warp], &ended.1);
        }
        self.syncs[warp] += 1;
    }

    /// Returns what a warp has seen by now, for an access that happens later; what the warp does from now on comes behind it.
    pub fn moment(&mut self, warp: usize) -> Moment {
        let moment = Moment { clock: self.clocks[warp], fenced: self.fenced[warp] };
        self.clocks[warp][warp] += 1;
        moment
    }

    /// An asynchronous copy into shared memory is issued by a lane, or for the engine; `why` it races with another access.
    pub fn issue(&mut self, at: u64, bytes: usize, warp: usize, lane: Option<usize>) -> Option<String> {
        let mut found = None;
        for index in self.range(at, bytes) {
            if lane.is_none() {
                let of = &self.granules[index];
                let by = usize::from(of.write.warp);
                if of.generic && of.write.clock > self.fenced[warp][by] {
                    found = found
                        .or_else(|| Some(Fault::Fence(of.write.warp).message("the copy engine writes", warp, index)));
                }
            }
            let fault = self.touch(index, warp, lane.map_or(ALL_LANES, |lane| lane as u8), Access::Write);
            found = found.or_else(|| Some(fault?.message(&format!("warp {warp} writes"), warp, index)));
            self.granules[index].in_flight = true;
        }
        found
    }

    /// An asynchronous copy is complete. Its bytes count as written by the lane that waited for it.
    pub fn complete(&mut self, at: u64, bytes: usize, warp: usize, lane: usize) {
        let clock = self.clocks[warp][warp];
        let lane = if self.between == Between::Warps { ALL_LANES } else { lane as u8 };
        self.finish(at, bytes, Stamp { warp: warp as u8, lane, syncs: self.syncs[warp], clock }, true);
    }

    /// The copy engine has written bytes. Those that see the phase of its barrier end may read them.
    pub fn complete_by_engine(&mut self, at: u64, bytes: usize, barrier: u64) {
        let clock = self.clocks[ENGINE][ENGINE];
        self.finish(at, bytes, Stamp { warp: ENGINE as u8, lane: ALL_LANES, syncs: 0, clock }, false);
        self.arrive(barrier, ENGINE);
    }

    fn finish(&mut self, at: u64, bytes: usize, write: Stamp, generic: bool) {
        for index in self.range(at, bytes) {
            let epoch = self.epoch;
            self.granules[index] =
                Granule { epoch, write, generic, written: true, in_flight: false, reads: Reads::None };
        }
    }

    /// A lane touches shared memory; `why` that is a race with an earlier access, or a read of nothing.
    pub fn access(&mut self, at: u64, bytes: usize, warp: usize, lane: usize, access: Access) -> Option<String> {
        let range = self.range(at, bytes);
        if access == Access::Sync || bytes < GRANULE {
            if access.writes() {
                self.granules[range].iter_mut().for_each(|granule| granule.written = true);
            }
            return None;
        }
        let together = self.between == Between::Warps || matches!(access, Access::ReadTogether | Access::WriteTogether);
        let lane = if together { ALL_LANES } else { lane as u8 };
        let mut found = None;
        for index in range {
            if let Some(fault) = self.touch(index, warp, lane, access)
                && found.is_none()
            {
                found = Some(fault.message(&format!("warp {warp} {}", access.verb()), warp, index));
            }
        }
        found
    }

    /// `wgmma` or the copy engine has read shared memory for a warp that issued this at `moment`.
    pub fn read_behind(&mut self, at: u64, bytes: usize, warp: usize, moment: &Moment, what: &str) -> Option<String> {
        let mut found = None;
        for index in self.range(at, bytes) {
            let of = &mut self.granules[index];
            let by = usize::from(of.write.warp);
            let fault = if of.in_flight {
                Some(Fault::InFlight)
            } else if !of.written {
                Some(Fault::Unwritten)
            } else if of.write.clock > moment.clock[by] {
                Some(if by == warp { Fault::Overwritten } else { Fault::Write(of.write.warp) })
            } else if of.generic && of.write.clock > moment.fenced[by] {
                Some(Fault::Fence(of.write.warp))
            } else {
                None
            };
            if let Some(fault) = fault
                && found.is_none()
            {
                found = Some(fault.message(&format!("{what} of warp {warp} reads"), warp, index));
            }
            let mine = Stamp { warp: warp as u8, lane: ALL_LANES, syncs: 0, clock: self.clocks[warp][warp] };
            of.note_read(mine, self.epoch, &mut self.many);
        }
        found
    }

    fn touch(&mut self, index: usize, warp: usize, lane: u8, access: Access) -> Option<Fault> {
        let clock = &self.clocks[warp];
        let of = &mut self.granules[index];
        if of.in_flight {
            return Some(Fault::InFlight);
        }
        let mine = Stamp { warp: warp as u8, lane, syncs: self.syncs[warp], clock: clock[warp] };
        let mut fault = of.write.unordered(clock, warp).then_some(Fault::Write(of.write.warp));
        if access.writes() {
            if of.epoch == self.epoch {
                fault = fault.or(match of.reads {
                    Reads::None => None,
                    Reads::One(read) if read.unordered(clock, warp) => Some(Fault::Read(read.warp)),
                    Reads::One(read) => read.parallel(mine).then_some(Fault::LaneRead),
                    Reads::Many(many) => (0..WARPS)
                        .find(|reader| *reader != warp && self.many[many as usize][*reader] > clock[*reader])
                        .map(|reader| Fault::Read(reader as u8)),
                });
            }
            of.epoch = self.epoch;
            (of.write, of.generic, of.written, of.reads) = (mine, true, true, Reads::None);
        } else {
            if !of.written {
                fault = fault.or(Some(Fault::Unwritten));
            }
            if of.write.parallel(mine) {
                fault = fault.or(Some(Fault::LaneWrite));
            }
            of.note_read(mine, self.epoch, &mut self.many);
        }
        fault
    }

    /// Granules of a range, as far as they exist.
    fn range(&self, at: u64, bytes: usize) -> std::ops::Range<usize> {
        let end = (at as usize + bytes).div_ceil(GRANULE).min(self.granules.len());
        (at as usize / GRANULE).min(end)..end
    }
}
