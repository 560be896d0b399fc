//! Clocks, and what is known of two bytes of shared memory.

use super::{ALL_LANES, GRANULE, SEVERAL_LANES};

/// Most warps of a block.
pub const WARPS: usize = 32;

/// Index of the copy engine, which has a clock as a warp has.
pub const ENGINE: usize = WARPS;

pub type Clock = [u32; WARPS + 1];

/// Accesses between which races are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    Warps,
    /// Also lanes of one warp.
    Lanes,
}

/// How an instruction touches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// One of `ldmatrix` or `wmma`, in which all lanes of a warp take part together.
    ReadTogether,
    WriteTogether,
    /// An atomic or `volatile` access, one to a barrier's word, or one that is checked by itself.
    Sync,
}

impl Access {
    /// Returns whether the access may change the memory.
    #[inline(always)]
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::ReadTogether)
    }

    /// Word for messages.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Read | Self::ReadTogether => "reads",
            Self::Write | Self::WriteTogether => "writes",
            Self::Sync => "accesses",
        }
    }
}

/// Clocks of a warp when it issued an asynchronous access.
pub struct Moment {
    pub clock: Clock,
    pub fenced: Clock,
}

/// A warp's clock when it made an access. The default is an access that everything comes behind.
#[derive(Clone, Copy, Default)]
pub struct Stamp {
    pub warp: u8,
    pub lane: u8,
    /// Number of instructions that ordered the warp's lanes before it.
    pub syncs: u32,
    pub clock: u32,
}

impl Stamp {
    /// Returns whether another warp made the access and nothing orders it before this warp.
    #[inline(always)]
    pub fn unordered(self, clock: &Clock, warp: usize) -> bool {
        usize::from(self.warp) != warp && self.clock > clock[usize::from(self.warp)]
    }

    /// Whether another lane of the same warp made the access, and nothing orders the two lanes.
    #[inline(always)]
    pub fn parallel(self, mine: Self) -> bool {
        self.warp == mine.warp
            && self.syncs == mine.syncs
            && self.lane != mine.lane
            && self.lane != ALL_LANES
            && mine.lane != ALL_LANES
    }
}

#[derive(Clone, Copy, Default)]
pub enum Reads {
    #[default]
    None,
    One(Stamp),
    /// Index into the clocks of granules that several warps read.
    Many(u32),
}

/// Accesses to a granule.
#[derive(Clone, Copy, Default)]
pub struct Granule {
    /// Interval between two barriers of the whole block in which `reads` were made.
    pub epoch: u32,
    pub write: Stamp,
    /// Whether the last write came from an ordinary instruction: `wgmma` and the copy engine see it behind a proxy fence.
    pub generic: bool,
    /// Whether anything has written it.
    pub written: bool,
    /// Whether an asynchronous copy still writes it.
    pub in_flight: bool,
    pub reads: Reads,
}

impl Granule {
    #[inline(always)]
    pub fn note_read(&mut self, mine: Stamp, epoch: u32, many: &mut Vec<Clock>) {
        if self.epoch != epoch {
            (self.epoch, self.reads) = (epoch, Reads::None);
        }
        match &mut self.reads {
            Reads::None => self.reads = Reads::One(mine),
            Reads::One(read) if read.warp == mine.warp => {
                let lane = if read.parallel(mine) { SEVERAL_LANES } else { mine.lane };
                *read = Stamp { lane, ..mine };
            }
            Reads::One(read) => {
                let mut readers = [0; WARPS + 1];
                readers[usize::from(read.warp)] = read.clock;
                readers[usize::from(mine.warp)] = mine.clock;
                many.push(readers);
                self.reads = Reads::Many(many.len() as u32 - 1);
            }
            Reads::Many(index) => many[*index as usize][usize::from(mine.warp)] = mine.clock,
        }
    }
}

/// What is wrong with an access.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A copy to these bytes was not waited for.
    InFlight,
    /// Nothing wrote these bytes.
    Unwritten,
    /// The warp that lets them be read wrote them before it waited for the read.
    Overwritten,
    Write(u8),
    Read(u8),
    LaneWrite,
    LaneRead,
    /// A warp wrote them, and no proxy fence followed.
    Fence(u8),
}

impl Fault {
    /// `who` says who does what, as in "warp 1 reads".
    #[cold]
    pub fn message(self, who: &str, warp: usize, granule: usize) -> String {
        let at = granule * GRANULE;
        let name = |other: u8| {
            if usize::from(other) == ENGINE { "the copy engine".to_owned() } else { format!("warp {other}") }
        };
        let what = format!("{who} shared memory at {at}");
        match self {
            Self::InFlight => format!("race: {what} before a copy to it was waited for"),
            Self::Unwritten => format!("{what}, to which nothing was written"),
            Self::Overwritten => format!("race: {what}, which the warp overwrites before it waits"),
            Self::Write(other) => format!("race: {what} without a barrier behind a write by {}", name(other)),
            Self::Read(other) => format!("race: {what} without a barrier behind a read by {}", name(other)),
            Self::LaneWrite => {
                format!("race: {what} without `bar.warp.sync` behind a write by another lane of warp {warp}")
            }
            Self::LaneRead => {
                format!("race: {what} without `bar.warp.sync` behind a read by another lane of warp {warp}")
            }
            Self::Fence(other) => format!("{what} without `fence.proxy.async` behind a write by {}", name(other)),
        }
    }
}

/// Clock of a warp that has seen nothing of the others.
pub fn first_clock(warp: usize) -> Clock {
    let mut clock = [0; WARPS + 1];
    clock[warp] = 1;
    clock
}

pub fn join(into: &mut Clock, other: &Clock) {
    for (mine, other) in into.iter_mut().zip(other) {
        *mine = (*mine).max(*other);
    }
}
