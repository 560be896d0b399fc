//! State of each two bytes of shared memory: numbers of the last write and of the reads since, which stand for their clocks.
//!
//! Neighbours mostly have the same numbers, and an access changes the same numbers in the same way: the change is found once, kept,
//! and made for whole rows of granules.

use std::ops::Range;

use super::Fault;
use super::clocks::{SEVERAL_LANES, Stamp, WARPS};

/// Granules of the largest access of one lane.
const ROW: usize = 8;

/// Changes that are kept, and values of a table that are found again.
const KEPT_BITS: u32 = 8;

/// Odd number whose products spread over all bits.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Place of a hash in a table of what is kept.
fn place(hash: u64) -> usize {
    (hash.wrapping_mul(SPREAD) >> (64 - KEPT_BITS)) as usize
}

/// Last write to a granule. The default is none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Write {
    pub stamp: Stamp,
    /// True if it came from an ordinary instruction: `wgmma` and the copy engine see it behind a proxy fence.
    pub generic: bool,
    /// True if anything has written the granule.
    pub written: bool,
    /// True if an asynchronous copy still writes it.
    pub in_flight: bool,
}

/// Reads of a granule since its last write and the last barrier of the whole block.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it must be `Copy`, and a table holds few of them")]
pub enum Reads {
    #[default]
    None,
    One(Stamp),
    /// Last read of each warp.
    Many([Stamp; WARPS]),
}

impl Reads {
    /// Adds a read.
    fn with(self, mine: Stamp) -> Self {
        match self {
            Self::None => Self::One(mine),
            Self::One(read) if read.warp == mine.warp => Self::One(later(read, mine)),
            Self::One(read) => {
                let mut reads = [Stamp::default(); WARPS];
                reads[usize::from(read.warp)] = read;
                reads[usize::from(mine.warp)] = mine;
                Self::Many(reads)
            }
            Self::Many(mut reads) => {
                let read = &mut reads[usize::from(mine.warp)];
                *read = later(*read, mine);
                Self::Many(reads)
            }
        }
    }
}

/// Joins a read with a later one of the same warp.
fn later(read: Stamp, mine: Stamp) -> Stamp {
    let lane = if read.parallel(mine) { SEVERAL_LANES } else { mine.lane };
    Stamp { lane, ..mine }
}

/// Values by number. Value 0 is the default.
struct Table<T> {
    values: Vec<T>,
    /// Numbers of recent values by their hashes.
    recent: [u32; 1 << KEPT_BITS],
    /// Number of value 1. Smaller ones, from before the last `clear`, stand for the default.
    first: u32,
}

impl<T: Copy + Default + PartialEq> Table<T> {
    fn new() -> Self {
        Self { values: Vec::new(), recent: [0; 1 << KEPT_BITS], first: 1 }
    }

    fn get(&self, number: u32) -> T {
        number.checked_sub(self.first).map(|at| self.values[at as usize]).unwrap_or_default()
    }

    /// Returns the number of a value; the same one as the last time, mostly.
    fn number(&mut self, value: T, hash: u64) -> u32 {
        if value == T::default() {
            return 0;
        }
        let recent = self.recent[place(hash)];
        if recent >= self.first && self.get(recent) == value {
            return recent;
        }
        let number = self.first + self.values.len() as u32;
        self.values.push(value);
        self.recent[place(hash)] = number;
        number
    }

    /// Makes the default of all values, whose numbers stay in use.
    fn clear(&mut self) {
        self.first += self.values.len() as u32;
        self.values.clear();
    }

    /// Forgets values and numbers.
    fn restart(&mut self) {
        self.values.clear();
        self.recent.fill(0);
        self.first = 1;
    }
}

/// Numbers of the last write (low half) and of the reads of a granule. Two equal ones mean the same.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Granule(u64);

impl Granule {
    fn new(write: u32, reads: u32) -> Self {
        Self(u64::from(write) | u64::from(reads) << 32)
    }

    fn write(self) -> u32 {
        self.0 as u32
    }

    fn reads(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A change that was found to be in order.
#[derive(Clone, Copy, Default)]
struct Change {
    key: u64,
    before: Granule,
    after: Granule,
}

impl Change {
    /// Place where a change is kept.
    #[inline(always)]
    fn place(key: u64, before: Granule) -> usize {
        place(before.0 ^ key.rotate_left(24))
    }
}

/// Granules of a block's shared memory.
pub struct Granules {
    granules: Vec<Granule>,
    writes: Table<Write>,
    reads: Table<Reads>,
    kept: [Change; 1 << KEPT_BITS],
}

impl Granules {
    pub fn new(count: usize) -> Self {
        Self {
            granules: vec![Granule::default(); count],
            writes: Table::new(),
            reads: Table::new(),
            kept: [Change::default(); 1 << KEPT_BITS],
        }
    }

    pub fn len(&self) -> usize {
        self.granules.len()
    }

    /// Forgets everything. Keys must not be used again.
    pub fn restart(&mut self) {
        self.granules.fill(Granule::default());
        self.writes.restart();
        self.reads.restart();
    }

    /// Forgets the reads. Keys must not be used again.
    pub fn forget_reads(&mut self) {
        self.reads.clear();
    }

    pub fn write_of(&self, of: Granule) -> Write {
        self.writes.get(of.write())
    }

    pub fn reads_of(&self, of: Granule) -> Reads {
        self.reads.get(of.reads())
    }

    /// A granule with another last write.
    pub fn with_write(&mut self, of: Granule, write: Write) -> Granule {
        let Stamp { warp, lane, clock, syncs } = write.stamp;
        let flags = u64::from(write.generic) | u64::from(write.written) << 1 | u64::from(write.in_flight) << 2;
        let hash =
            u64::from(clock) << 24 ^ u64::from(syncs) << 40 ^ u64::from(warp) << 16 ^ u64::from(lane) << 8 ^ flags;
        Granule::new(self.writes.number(write, hash), of.reads())
    }

    /// A granule with a last write and no reads since.
    pub fn written(&mut self, write: Write) -> Granule {
        self.with_write(Granule::default(), write)
    }

    /// A granule with another read.
    pub fn with_read(&mut self, of: Granule, mine: Stamp) -> Granule {
        let reads = self.reads_of(of).with(mine);
        let hash = u64::from(of.reads()) << 40
            ^ u64::from(mine.clock) << 16
            ^ u64::from(mine.warp) << 8
            ^ u64::from(mine.lane);
        Granule::new(of.write(), self.reads.number(reads, hash))
    }

    pub fn fill(&mut self, range: Range<usize>, with: Granule) {
        self.granules[range].fill(with);
    }

    /// Makes a change of a range of granules if they are equal and the change is kept; returns whether it did.
    #[inline(always)]
    pub fn change_kept(&mut self, range: Range<usize>, key: u64) -> bool {
        let Some(granules) = self.granules.get_mut(range) else { return false };
        let Some(before) = granules.first().copied() else { return true };
        let known = &self.kept[Change::place(key, before)];
        if known.key != key || known.before != before {
            return false;
        }
        if let Ok(row) = <&mut [Granule; ROW]>::try_from(&mut *granules) {
            let equal = differences(row, before) == 0;
            if equal && known.after != before {
                row.fill(known.after);
            }
            return equal;
        }
        let equal = granules.iter().all(|of| *of == before);
        if equal {
            granules.fill(known.after);
        }
        equal
    }

    /// Makes a change of a range of granules, and returns the first fault and its granule.
    ///
    /// `key`: those with the same one make the same change of equal granules. Faults are found each time.
    pub fn change(
        &mut self,
        range: Range<usize>,
        key: u64,
        change: impl Fn(&mut Self, Granule) -> (Granule, Option<Fault>),
    ) -> Option<(Fault, usize)> {
        let mut found = None;
        let mut index = range.start;
        while index < range.end {
            let before = self.granules[index];
            let kept = Change::place(key, before);
            let known = self.kept[kept];
            let after = if known.key == key && known.before == before {
                known.after
            } else {
                let (after, fault) = change(self, before);
                match fault {
                    Some(fault) => found = found.or(Some((fault, index))),
                    None => self.kept[kept] = Change { key, before, after },
                }
                after
            };
            index += replace(&mut self.granules[index..range.end], before, after);
        }
        found
    }
}

/// Returns zero if all granules of a row are like another one.
#[inline(always)]
fn differences(row: &[Granule; ROW], like: Granule) -> u64 {
    row.iter().fold(0, |differ, of| differ | (of.0 ^ like.0))
}

/// Replaces the first granules as long as they are equal, at least the first one, and returns their number.
fn replace(granules: &mut [Granule], before: Granule, after: Granule) -> usize {
    if let Some(row) = granules.first_chunk_mut::<ROW>()
        && differences(row, before) == 0
    {
        row.fill(after);
        return ROW;
    }
    let equal = granules.iter().take_while(|of| **of == before).count();
    granules[..equal].fill(after);
    equal
}
