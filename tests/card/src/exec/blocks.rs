//! Runs all blocks of a launch.
//!
//! Threads share the blocks of a long launch if no instruction lets blocks see each other: without races on global memory, results then do
//! not depend on the order. Each thread takes a range of blocks, and their reports are put together in the order of blocks.

use std::ops::Range;
use std::thread;

use super::block;
use super::lanes::Block;
use crate::candidates::Written;
use crate::isa::Code;
use crate::state::Launch;

/// Fewest instructions of warps that are worth a thread.
const LEAST_STEPS: u64 = 20_000;

/// Problems and writes of blocks.
#[derive(Default)]
pub struct Outcome {
    /// Problems that did not stop them.
    pub notes: Vec<String>,
    /// Global memory that they have written.
    pub written: Written,
}

/// Runs the blocks of a launch, on so many threads at most, and returns the number of their warps' instructions. `new_block` gives memory
/// for the blocks of a thread.
pub fn run_all(
    code: &Code,
    launch: &Launch,
    threads: u64,
    new_block: impl Fn() -> Block + Sync,
) -> (Result<u64, String>, Outcome) {
    let count = launch.grid.iter().map(|side| u64::from(*side)).product::<u64>();
    let mut first = new_block();
    let mut result = run(code, launch, &mut first, 0..count.min(1));
    let threads = match result {
        // The first block tells how long the others take.
        Ok(steps) if !code.ordered => threads.min(steps * count / LEAST_STEPS).min(count).max(1),
        _ => 1,
    };
    let part = (count - count.min(1)).div_ceil(threads);
    let range = |number: u64| (1 + number * part).min(count)..(1 + (number + 1) * part).min(count);
    let others: Vec<_> = thread::scope(|scope| {
        let new_block = &new_block;
        let start = |number| {
            scope.spawn(move || {
                let mut block = new_block();
                (run(code, launch, &mut block, range(number)), block)
            })
        };
        let others: Vec<_> = (1..threads).map(start).collect();
        if let Ok(steps) = result {
            result = run(code, launch, &mut first, range(0)).map(|more| steps + more);
        }
        others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    // As if one block had run after the other: nothing behind an error.
    for (other, block) in others {
        let Ok(steps) = result else { break };
        result = other.map(|more| steps + more);
        block.notes.into_iter().for_each(|note| first.note(note));
        first.written.join(block.written);
    }
    (result, Outcome { notes: first.notes, written: first.written })
}

/// Runs some blocks one after the other.
fn run(code: &Code, launch: &Launch, block: &mut Block, numbers: Range<u64>) -> Result<u64, String> {
    let [width, height, _] = launch.grid;
    let mut steps = 0;
    for number in numbers {
        let (row, x) = ((number / u64::from(width)) as u32, (number % u64::from(width)) as u32);
        let place = [x, row % height, row / height];
        block.restart();
        steps += block::run(code, launch, block, place)
            .map_err(|why| format!("block {place:?} of {:?}: {why}", launch.grid))?;
    }
    Ok(steps)
}
