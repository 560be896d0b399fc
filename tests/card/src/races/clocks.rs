//! Clocks, and the faults that they show.

use super::GRANULE;

/// Most warps of a block.
pub const WARPS: usize = 32;

/// Index of the copy engine, which has a clock as a warp has.
pub const ENGINE: usize = WARPS;

/// Lane of an access that belongs to all lanes.
pub const ALL_LANES: u8 = 255;

/// Lane of several reads by different lanes.
pub const SEVERAL_LANES: u8 = 254;

pub type Clock = [u32; WARPS + 1];

/// Accesses between which races are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    Warps,
    /// Also lanes of one warp.
    Lanes,
}

/// Kind of access to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// One of `ldmatrix` or `wmma`, in which all lanes of a warp take part together.
    ReadTogether,
    WriteTogether,
    /// An atomic access, a `volatile` store, or an access to a barrier's word.
    Sync,
    /// A `volatile` load, or one with an order.
    SyncRead,
}

impl Access {
    /// Returns whether the access may change the memory.
    #[inline(always)]
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::ReadTogether | Self::SyncRead)
    }

    /// Word for messages.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Read | Self::ReadTogether | Self::SyncRead => "reads",
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

/// Initialisation of an `mbarrier`.
pub struct Init {
    pub stamp: Stamp,
    /// `true` once `fence.mbarrier_init` followed the initialisation.
    pub fenced: bool,
}

/// Clock and fenced writes of those that arrived at an `mbarrier`.
pub struct Phases {
    /// In the phase that has not ended.
    pub open: (Clock, Clock),
    /// In all phases before.
    pub ended: (Clock, Clock),
}

/// Clocks of nobody.
pub const NONE: (Clock, Clock) = ([0; WARPS + 1], [0; WARPS + 1]);

impl Default for Phases {
    fn default() -> Self {
        Self { open: NONE, ended: NONE }
    }
}

/// A warp's clock when it made an access. The default is an access that everything comes behind.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
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

    /// Returns whether another lane of the same warp made the access, and nothing orders the two lanes.
    #[inline(always)]
    pub fn parallel(self, mine: Self) -> bool {
        self.warp == mine.warp
            && self.syncs == mine.syncs
            && self.lane != mine.lane
            && self.lane != ALL_LANES
            && mine.lane != ALL_LANES
    }

    /// Returns the fault of a write at the time `mine`, by a warp with this clock, behind a read at this time.
    #[inline(always)]
    pub fn before_write(self, clock: &Clock, mine: Self) -> Option<Fault> {
        if self.unordered(clock, usize::from(mine.warp)) {
            return Some(Fault::Read(self.warp));
        }
        self.parallel(mine).then_some(Fault::LaneRead)
    }
}

/// Fault of an access.
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
