//! State of the driver: memory, streams, events and modules, and the order in which streams run their work.
//!
//! In the eager order, work runs when it is queued. In the lazy order it runs as late as a card may: a stream runs only when somebody
//! waits for it. A missing wait then gives a wrong value or touches freed memory, every time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use crate::candidates::Candidates;
use crate::module::{Function, Module};
use crate::races::Between;
use crate::settings::settings;
use crate::{call, card, problem};

pub const SUCCESS: i32 = 0;
pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
pub const INVALID_DEVICE: i32 = 101;
pub const INVALID_CONTEXT: i32 = 201;
pub const INVALID_PTX: i32 = 218;
pub const INVALID_HANDLE: i32 = 400;
pub const NOT_FOUND: i32 = 500;
pub const NOT_READY: i32 = 600;
pub const ILLEGAL_ADDRESS: i32 = 700;
pub const OUT_OF_RESOURCES: i32 = 701;
pub const LAUNCH_FAILED: i32 = 719;
pub const NOT_SUPPORTED: i32 = 801;

/// Device or pinned memory, which is memory of this process.
pub struct Allocation {
    pub size: u64,
    pub host: bool,
    /// True if a free is queued.
    pub freeing: bool,
}

pub enum Op {
    Kernel(Box<Launch>),
    Copy(Box<CopyJob>),
    Set { at: u64, value: u8, bytes: u64 },
    Record(u64, u64),
    Wait(u64, u64),
    Free(u64),
}

pub struct Launch {
    pub function: Arc<Function>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub params: Vec<u8>,
}

pub struct CopyJob {
    pub src: u64,
    pub dst: u64,
    pub src_pitch: u64,
    pub dst_pitch: u64,
    pub width: u64,
    pub height: u64,
    /// Pageable memory is read when the call is made.
    pub staged: Option<Vec<u8>>,
}

#[derive(Default)]
pub struct Stream {
    pub queue: VecDeque<Op>,
    pub done: u64,
}

#[derive(Default)]
pub struct Event {
    pub recorded: u64,
    pub reached: u64,
    pub stream: u64,
}

/// First handle of a stream, event, module or function: no address of memory, and no stream of the driver's own.
const FIRST_HANDLE: u64 = 0x5A00_0000_0000;

#[derive(Default)]
pub struct State {
    lazy: bool,
    /// Races that kernels are searched for.
    pub races: Option<Between>,
    /// Most threads that run the blocks of a kernel.
    pub threads: u64,
    /// Results of products, if they are to be compared.
    pub candidates: Option<Candidates>,
    pub allocations: BTreeMap<u64, Allocation>,
    pub used: u64,
    pub peak: u64,
    pub pinned: u64,
    pub pinned_peak: u64,
    pub streams: HashMap<u64, Stream>,
    pub events: HashMap<u64, Event>,
    pub modules: HashMap<u64, Arc<Module>>,
    pub functions: HashMap<u64, Arc<Function>>,
    pub next: u64,
    pub retained: i64,
    /// Error that stays: every later call fails with it. 0 without one.
    pub broken: i32,
    pub counts: BTreeMap<&'static str, u64>,
    /// Freed ranges, newest last, for messages about stale addresses.
    pub freed: VecDeque<(u64, u64)>,
}

/// Returns the state of this process.
pub fn state() -> &'static Mutex<State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(|| Mutex::new(State::new(settings().lazy, settings().races, settings().compare)))
}

unsafe extern "C" {
    fn mmap(at: *mut u8, length: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
    fn munmap(at: *mut u8, length: usize) -> i32;
}

fn map(bytes: u64) -> Option<u64> {
    // Private, anonymous, not reserved: pages appear when touched. One unused page follows.
    let size = (bytes.max(1).next_multiple_of(4096) + 4096) as usize;
    // SAFETY: fresh memory of the kernel's choice.
    let at = unsafe { mmap(std::ptr::null_mut(), size, 3, 0x4022, -1, 0) };
    if at as isize == -1 { None } else { Some(at as u64) }
}

fn unmap(at: u64, bytes: u64) {
    let size = (bytes.max(1).next_multiple_of(4096) + 4096) as usize;
    // SAFETY: it came from `map`.
    unsafe { munmap(at as *mut u8, size) };
}

impl State {
    /// A card without any memory in use. `lazy`: see the module. `races`: those that kernels are searched for. `compare`: whether
    /// products are compared.
    pub fn new(lazy: bool, races: Option<Between>, compare: bool) -> Self {
        let candidates = compare.then(Candidates::default);
        Self { lazy, races, threads: settings().threads, candidates, next: FIRST_HANDLE, ..Self::default() }
    }

    /// Returns an unused handle.
    pub fn handle(&mut self) -> u64 {
        self.next += 16;
        self.next
    }

    pub fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    pub fn alloc(&mut self, bytes: u64, host: bool) -> Result<u64, i32> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if !host && self.used + bytes > card::memory() - (512 << 20).min(card::memory() / 8) {
            return Err(OUT_OF_MEMORY);
        }
        let at = map(bytes).ok_or(OUT_OF_MEMORY)?;
        if let Some(byte) = settings().fill {
            // SAFETY: just mapped.
            unsafe { std::ptr::write_bytes(at as *mut u8, byte, bytes as usize) };
        }
        if host {
            self.pinned += bytes;
            self.pinned_peak = self.pinned_peak.max(self.pinned);
        } else {
            self.used += bytes;
            self.peak = self.peak.max(self.used);
        }
        self.allocations.insert(at, Allocation { size: bytes, host, freeing: false });
        Ok(at)
    }

    pub fn free(&mut self, at: u64, host: bool) -> i32 {
        match self.allocations.get(&at) {
            Some(block) if block.host == host => {
                let size = block.size;
                self.allocations.remove(&at);
                if host {
                    self.pinned -= size;
                } else {
                    self.used -= size;
                }
                self.freed.push_back((at, size));
                if self.freed.len() > 4096 {
                    self.freed.pop_front();
                }
                unmap(at, size);
                SUCCESS
            }
            _ => {
                problem!("free of {at:#x}, which is no allocation (host {host})");
                INVALID_VALUE
            }
        }
    }

    /// Returns the allocation that contains a whole range.
    pub fn allocation_of(&self, at: u64, bytes: u64) -> Option<(u64, &Allocation)> {
        let (base, block) = self.allocations.range(..=at).next_back()?;
        (at + bytes <= base + block.size).then_some((*base, block))
    }

    /// Returns the ranges that a kernel with these parameters may touch: in each allocation that a parameter points into, from the first
    /// such parameter to the end. Allocations are pages of many tensors for `CubeCL`, and the ends of tensors are unknown here.
    pub fn ranges(&self, params: &[u8]) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for word in params.chunks_exact(8) {
            let at = u64::from_le_bytes(word.try_into().unwrap_or_default());
            if let Some((base, allocation)) = self.allocation_of(at, 0) {
                let end = base + allocation.size;
                match ranges.iter_mut().find(|range| range.1 == end) {
                    Some(range) => range.0 = range.0.min(at),
                    None => ranges.push((at, end)),
                }
            }
        }
        ranges
    }

    /// Returns the addresses of a kernel's tensors, each with the end of its allocation: pointers, and the starts of tensor maps.
    /// Leaves out the last pointer, with which `CubeCL` passes shapes and strides.
    pub fn arguments(&self, launch: &Launch) -> Vec<(u64, u64)> {
        let last = launch.function.params().filter(|(_, size)| *size == 8).last();
        let tensors = launch.function.params().filter(|param| Some(*param) != last && matches!(param.1, 8 | 128));
        let word = |(offset, _): (usize, usize)| {
            let bytes = launch.params.get(offset..offset + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let end = |at: u64| self.allocation_of(at, 0).map(|(base, allocation)| (at, base + allocation.size));
        tensors.filter_map(word).filter_map(end).collect()
    }

    pub fn stream(&mut self, stream: u64) -> Result<&mut Stream, i32> {
        if stream <= 2 {
            return Ok(self.streams.entry(stream).or_default());
        }
        match self.streams.get_mut(&stream) {
            Some(stream) => Ok(stream),
            None => {
                problem!("stream {stream:#x} does not exist");
                Err(INVALID_HANDLE)
            }
        }
    }

    pub fn enqueue(&mut self, stream: u64, op: Op) -> i32 {
        if let Err(code) = self.stream(stream) {
            return code;
        }
        self.streams.entry(stream).or_default().queue.push_back(op);
        if !self.lazy {
            return self.run_stream(stream, None);
        }
        SUCCESS
    }

    /// Runs the queued work of a stream: all of it, or until an event is reached.
    pub fn run_stream(&mut self, stream: u64, until: Option<(u64, u64)>) -> i32 {
        loop {
            if let Some((event, generation)) = until
                && self.events.get(&event).is_none_or(|event| event.reached >= generation)
            {
                return self.broken;
            }
            let Some(op) = self.streams.get_mut(&stream).and_then(|stream| stream.queue.pop_front()) else {
                return self.broken;
            };
            match op {
                Op::Wait(event, generation) => {
                    let other =
                        self.events.get(&event).filter(|event| event.reached < generation).map(|event| event.stream);
                    if let Some(other) = other {
                        if other == stream {
                            problem!("stream {stream:#x} waits for an event that comes behind the wait");
                        } else {
                            self.run_stream(other, Some((event, generation)));
                        }
                    }
                }
                op => {
                    let code = self.run(op);
                    if code != SUCCESS && self.broken == SUCCESS {
                        self.broken = code;
                    }
                }
            }
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.done += 1;
            }
        }
    }

    pub fn run_all(&mut self) -> i32 {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for stream in streams {
            self.run_stream(stream, None);
        }
        self.broken
    }

    fn run(&mut self, op: Op) -> i32 {
        match op {
            Op::Kernel(launch) => crate::exec::launch(self, &launch),
            Op::Copy(copy) => self.copy(&copy),
            Op::Set { at, value, bytes } => {
                if self.allocation_of(at, bytes).is_none() {
                    problem!("memset of {bytes} bytes at {at:#x}, which is no allocation");
                    return ILLEGAL_ADDRESS;
                }
                // SAFETY: inside an allocation.
                unsafe { std::ptr::write_bytes(at as *mut u8, value, bytes as usize) };
                SUCCESS
            }
            Op::Record(event, generation) => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.reached = event.reached.max(generation);
                }
                SUCCESS
            }
            Op::Wait(..) => SUCCESS,
            Op::Free(at) => self.free(at, false),
        }
    }

    fn copy(&mut self, copy: &CopyJob) -> i32 {
        let CopyJob { src, dst, src_pitch, dst_pitch, width, height, staged } = copy;
        for row in 0..*height {
            let from = staged.as_ref().map_or(src + row * src_pitch, |bytes| bytes.as_ptr() as u64 + row * width);
            let to = dst + row * dst_pitch;
            // SAFETY: the caller vouches for host memory, and device memory was looked up.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, *width as usize) };
        }
        SUCCESS
    }

    pub fn describe(&self, at: u64) -> String {
        if let Some((base, block)) = self.allocations.range(..=at).next_back()
            && at < base + block.size + 65536
        {
            let kind = if block.host { "pinned" } else { "device" };
            let (behind, size) = (at - base, block.size);
            return format!("{at:#x}, byte {behind} of the {kind} allocation {base:#x} of {size} bytes");
        }
        if let Some((base, size)) = self.freed.iter().rev().find(|(base, size)| (*base..base + size).contains(&at)) {
            return format!("{at:#x}, in the freed allocation {base:#x} of {size} bytes");
        }
        format!("{at:#x}, which is nothing")
    }

    pub fn summary(&self) {
        call!(
            "summary: device memory at most {} MiB, pinned {} MiB; at the end {} MiB and {} MiB, {} streams, {} events, {} modules, context retained {} times, {} candidates of products compared; calls {:?}",
            self.peak >> 20,
            self.pinned_peak >> 20,
            self.used >> 20,
            self.pinned >> 20,
            self.streams.len(),
            self.events.len(),
            self.modules.len(),
            self.retained,
            self.candidates.as_ref().map_or(0, |candidates| candidates.compared),
            self.counts
        );
    }
}
