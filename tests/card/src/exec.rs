//! Runs kernels on the CPU: block after block on each thread, the warps of a block in turn, 32 lanes at once.
//!
//! Errors of a kernel that a card would punish or ignore are errors here: an access outside of every allocation or not aligned, a
//! barrier that never completes or gets more arrivals than it expects, and, if asked for, a race on shared memory.

mod block;
mod blocks;
mod lanes;
mod warp;

use std::time::{Duration, Instant};

pub use lanes::{Block, Lanes, Space};

use crate::settings::settings;
use crate::state::{ILLEGAL_ADDRESS, LAUNCH_FAILED, Launch, SUCCESS, State};
use crate::{call, problem};

/// Bits that mark a generic address as one of shared, local or parameter memory.
pub const SHARED_WINDOW: u64 = 1 << 60;
pub const LOCAL_WINDOW: u64 = 1 << 61;
pub const PARAM_WINDOW: u64 = 1 << 62;

/// First address of a block's own shared memory. The first KiB is the system's.
pub const SHARED_FIRST: u64 = 1024;

/// Smallest alignment of dynamic shared memory.
const LEAST_ALIGN: u64 = 16;

/// First address of dynamic shared memory: aligned as the module declares, and no better, so that a kernel which relies on more fails.
pub fn dynamic_first(static_bytes: usize, align: usize) -> u64 {
    let align = (align as u64).max(LEAST_ALIGN);
    let first = (SHARED_FIRST + static_bytes as u64).next_multiple_of(align);
    if first.is_multiple_of(2 * align) { first + align } else { first }
}

/// Runs a kernel to its end.
pub fn launch(state: &mut State, launch: &Launch) -> i32 {
    if !settings().execute {
        return SUCCESS;
    }
    let function = &launch.function;
    let module = &function.module;
    let Some(Ok(program)) = &module.program else { return LAUNCH_FAILED };
    let code = match program.code(function.name()) {
        Ok(code) => code,
        Err(why) => {
            problem!("{} {} cannot be executed: {why}", module.name, function.name());
            return LAUNCH_FAILED;
        }
    };
    let started = Instant::now();
    vary_time(&module.name);
    let mut ranges = state.ranges(&launch.params);
    let arguments = state.arguments(launch);
    let image = program.image.as_ptr() as u64;
    ranges.push((image, image + program.image.len() as u64));
    ranges.sort_unstable();
    let shared_bytes = dynamic_first(code.shared, program.dynamic_align) as usize + launch.shared as usize;
    let races = state.races;
    let (result, outcome) =
        blocks::run_all(code, launch, state.threads, || Block::new(launch, shared_bytes, &ranges, races));
    if let Err(why) = &result {
        problem!("{} {} {why}", module.name, function.name());
    }
    for note in outcome.notes {
        problem!("{} {}: {note}", module.name, function.name());
    }
    let Ok(steps) = result else { return ILLEGAL_ADDRESS };
    if let Some(candidates) = &mut state.candidates {
        let kernel = format!("{} {}", module.name, function.name());
        // SAFETY: the arguments were looked up, and the writes were checked.
        if let Some(why) = unsafe { candidates.add(&kernel, &arguments, outcome.written) } {
            problem!("{kernel} {why}");
        }
    }
    call!("ran {} {} in {:?}, {steps} instructions of warps", module.name, function.name(), started.elapsed());
    SUCCESS
}

/// Makes each kernel take a time drawn with the seed, so that tuning keeps other kernels for each seed.
fn vary_time(name: &str) {
    if let Some(seed) = settings().tuning_seed {
        let first = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        std::thread::sleep(Duration::from_millis(name.bytes().fold(first, mix) >> 40 & 15));
    }
}
