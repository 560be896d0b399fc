//! Detects data races on a block's shared memory.
//!
//! Each warp has a vector clock. Barriers join the clocks of those that meet there; an `mbarrier` carries the clock from those that
//! arrive to those that see its phase end. Two accesses by different warps to the same two bytes, at least one of them a write,
//! race if no such chain orders them. An access to bytes that an asynchronous copy still writes is a race too, whoever makes it.
//!
//! Not seen: races between the lanes of one warp, accesses of a single byte, and races on global memory. Atomic and `volatile`
//! accesses never race. An `mbarrier` also passes on the clock of early arrivals at its next phase, which may hide a race but never
//! invents one.

use std::collections::HashMap;

/// Bytes that are tracked together.
const GRANULE: usize = 2;

/// Most warps of a block.
const WARPS: usize = 32;

/// Index of the copy engine, which has a clock as a warp has.
const ENGINE: usize = WARPS;

type Clock = [u32; WARPS + 1];

/// How an instruction touches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// An atomic or `volatile` access, or one to a barrier's word.
    Sync,
}

impl Access {
    /// Word for messages.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Sync => "accesses",
        }
    }
}

/// A warp's clock when it made an access.
#[derive(Clone, Copy, Default)]
struct Stamp {
    warp: u8,
    clock: u32,
}

#[derive(Clone, Copy, Default)]
enum Reads {
    #[default]
    None,
    One(Stamp),
    /// Index into the clocks of granules that several warps read.
    Many(u32),
}

/// Accesses to a granule since the last barrier of the whole block.
#[derive(Clone, Copy, Default)]
struct Granule {
    epoch: u32,
    write: Option<Stamp>,
    reads: Reads,
}

/// Clocks of a block.
pub struct Races {
    epoch: u32,
    clocks: Vec<Clock>,
    granules: Vec<Granule>,
    in_flight: Vec<bool>,
    many: Vec<Clock>,
    barriers: HashMap<u64, Clock>,
}

impl Races {
    pub fn new(shared_bytes: usize) -> Self {
        let granules = shared_bytes.div_ceil(GRANULE);
        Self {
            epoch: 1,
            // Nobody has seen the first step of another.
            clocks: (0..=WARPS).map(first_clock).collect(),
            granules: vec![Granule::default(); granules],
            in_flight: vec![false; granules],
            many: Vec::new(),
            barriers: HashMap::new(),
        }
    }

    /// Forgets everything, for the next block.
    pub fn restart(&mut self) {
        self.next_epoch();
        self.in_flight.fill(false);
        self.barriers.clear();
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.many.clear();
    }

    /// Orders all earlier accesses of some warps before their later ones. `whole`: these are all live threads of the block.
    pub fn meet(&mut self, warps: u32, whole: bool) {
        let mut joined = [0; WARPS + 1];
        for warp in (0..WARPS).filter(|warp| warps >> warp & 1 == 1) {
            join(&mut joined, &self.clocks[warp]);
        }
        for warp in (0..WARPS).filter(|warp| warps >> warp & 1 == 1) {
            self.clocks[warp] = joined;
            self.clocks[warp][warp] += 1;
        }
        if whole {
            self.next_epoch();
        }
    }

    /// A warp arrives at an `mbarrier`.
    pub fn arrive(&mut self, barrier: u64, warp: usize) {
        join(self.barriers.entry(barrier).or_insert([0; WARPS + 1]), &self.clocks[warp]);
        self.clocks[warp][warp] += 1;
    }

    /// A warp sees that a phase of an `mbarrier` has ended.
    pub fn pass(&mut self, barrier: u64, warp: usize) {
        if let Some(clock) = self.barriers.get(&barrier) {
            join(&mut self.clocks[warp], clock);
        }
    }

    /// An asynchronous copy into shared memory is issued; `why` it races with another access.
    pub fn issue(&mut self, at: u64, bytes: usize, warp: usize) -> Option<String> {
        let why = self.access(at, bytes, warp, Access::Write);
        for granule in granules(at, bytes) {
            if let Some(flag) = self.in_flight.get_mut(granule) {
                *flag = true;
            }
        }
        why
    }

    /// An asynchronous copy is complete. Its bytes count as written by the warp that waited for it.
    pub fn complete(&mut self, at: u64, bytes: usize, warp: usize) {
        let stamp = Stamp { warp: warp as u8, clock: self.clocks[warp][warp] };
        for granule in granules(at, bytes) {
            if let Some(flag) = self.in_flight.get_mut(granule) {
                *flag = false;
                self.granules[granule] = Granule { epoch: self.epoch, write: Some(stamp), reads: Reads::None };
            }
        }
    }

    /// The copy engine has written bytes. Those that see the phase of its barrier end may read them.
    pub fn complete_by_engine(&mut self, at: u64, bytes: usize, barrier: u64) {
        self.complete(at, bytes, ENGINE);
        self.arrive(barrier, ENGINE);
    }

    /// A warp touches shared memory; `why` that races with an earlier access.
    pub fn access(&mut self, at: u64, bytes: usize, warp: usize, access: Access) -> Option<String> {
        if access == Access::Sync || bytes < GRANULE {
            return None;
        }
        let mut found = None;
        for granule in granules(at, bytes) {
            if granule < self.granules.len() {
                found = found.or(self.touch(granule, warp, access));
            }
        }
        found
    }

    fn touch(&mut self, index: usize, warp: usize, access: Access) -> Option<String> {
        let (at, verb) = (index * GRANULE, access.verb());
        if self.in_flight[index] {
            return Some(format!("race: warp {warp} {verb} shared memory at {at} before a copy to it was waited for"));
        }
        let clock = self.clocks[warp];
        let mut of = self.granules[index];
        if of.epoch != self.epoch {
            of = Granule { epoch: self.epoch, ..Granule::default() };
        }
        let mine = Stamp { warp: warp as u8, clock: clock[warp] };
        let ordered = |stamp: Stamp| usize::from(stamp.warp) == warp || stamp.clock <= clock[usize::from(stamp.warp)];
        let mut other = of.write.filter(|write| !ordered(*write)).map(|write| (write.warp, "write"));
        if access == Access::Write {
            other = other.or(match of.reads {
                Reads::None => None,
                Reads::One(read) => (!ordered(read)).then_some((read.warp, "read")),
                Reads::Many(many) => (0..WARPS)
                    .find(|reader| *reader != warp && self.many[many as usize][*reader] > clock[*reader])
                    .map(|reader| (reader as u8, "read")),
            });
            of.write = Some(mine);
            of.reads = Reads::None;
        } else {
            of.reads = match of.reads {
                Reads::None => Reads::One(mine),
                Reads::One(read) if read.warp == mine.warp => Reads::One(mine),
                Reads::One(read) => {
                    let mut readers = [0; WARPS + 1];
                    readers[usize::from(read.warp)] = read.clock;
                    readers[warp] = mine.clock;
                    self.many.push(readers);
                    Reads::Many(self.many.len() as u32 - 1)
                }
                Reads::Many(many) => {
                    self.many[many as usize][warp] = mine.clock;
                    Reads::Many(many)
                }
            };
        }
        self.granules[index] = of;
        other.map(|(who, what)| {
            let who = if usize::from(who) == ENGINE { "the copy engine".to_owned() } else { format!("warp {who}") };
            format!("race: warp {warp} {verb} shared memory at {at} without a barrier behind a {what} by {who}")
        })
    }
}

fn first_clock(warp: usize) -> Clock {
    let mut clock = [0; WARPS + 1];
    clock[warp] = 1;
    clock
}

fn granules(at: u64, bytes: usize) -> std::ops::Range<usize> {
    at as usize / GRANULE..(at as usize + bytes).div_ceil(GRANULE)
}

fn join(into: &mut Clock, other: &Clock) {
    for (mine, other) in into.iter_mut().zip(other) {
        *mine = (*mine).max(*other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barrier_orders_write_before_read() {
        let mut races = Races::new(64);
        assert_eq!(races.access(0, 4, 0, Access::Write), None);
        races.meet(0b11, true);
        assert_eq!(races.access(0, 4, 1, Access::Read), None);
    }

    #[test]
    fn read_without_barrier_is_a_race() {
        let mut races = Races::new(64);
        races.access(0, 4, 0, Access::Write);
        let why = races.access(2, 2, 1, Access::Read).unwrap();
        assert!(why.contains("behind a write by warp 0"), "{why}");
    }

    #[test]
    fn write_after_reads_of_several_warps_is_a_race() {
        let mut races = Races::new(64);
        races.access(8, 8, 0, Access::Read);
        races.access(8, 8, 1, Access::Read);
        assert!(races.access(8, 4, 1, Access::Write).unwrap().contains("behind a read by warp 0"));
    }

    #[test]
    fn barrier_of_other_warps_does_not_order() {
        let mut races = Races::new(64);
        races.access(0, 4, 0, Access::Write);
        races.meet(0b110, false);
        assert!(races.access(0, 4, 1, Access::Read).is_some());
    }

    #[test]
    fn mbarrier_carries_the_clock_of_those_that_arrive() {
        let mut races = Races::new(64);
        races.access(0, 4, 3, Access::Write);
        races.arrive(32, 3);
        assert!(races.access(0, 4, 1, Access::Read).is_some());
        races.pass(32, 2);
        assert_eq!(races.access(0, 4, 2, Access::Read), None);
    }

    #[test]
    fn access_during_a_copy_is_a_race_even_by_its_own_warp() {
        let mut races = Races::new(64);
        assert_eq!(races.issue(0, 16, 0), None);
        assert!(races.access(4, 4, 0, Access::Read).unwrap().contains("before a copy"));
        races.complete(0, 16, 0);
        assert_eq!(races.access(4, 4, 0, Access::Read), None);
        assert!(races.access(4, 4, 1, Access::Read).is_some());
    }

    #[test]
    fn tile_may_be_read_behind_its_barrier_only() {
        let mut races = Races::new(64);
        races.issue(0, 16, 0);
        races.complete_by_engine(0, 16, 32);
        assert!(races.access(0, 4, 1, Access::Read).unwrap().contains("copy engine"));
        races.pass(32, 2);
        assert_eq!(races.access(0, 4, 2, Access::Read), None);
    }

    #[test]
    fn atomic_accesses_do_not_race() {
        let mut races = Races::new(64);
        races.access(0, 4, 0, Access::Sync);
        assert_eq!(races.access(0, 4, 1, Access::Sync), None);
    }
}
