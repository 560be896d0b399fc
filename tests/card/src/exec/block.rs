//! Runs the warps of a block.

use std::fmt::Write as _;

use super::lanes::{Block, Lanes, warp};
use super::warp::{Wait, meet, run_warp};
use crate::isa::Code;
use crate::state::Launch;

/// Rounds without any progress after which a block counts as stuck.
const MAX_IDLE: u32 = 2000;

/// Longest description of a stuck block, in characters.
const MAX_DESCRIPTION: usize = 600;

/// Runs a block to its end, and returns the number of its warps' instructions.
///
/// # Errors
/// An error of the kernel, or a block in which no warp can continue.
pub fn run(code: &Code, launch: &Launch, block: &mut Block, place: [u32; 3]) -> Result<u64, String> {
    let threads: u32 = launch.block.iter().product();
    let block_at: *mut Block = block;
    let mut warps: Vec<Lanes> =
        (0..threads.div_ceil(32)).map(|number| warp(code, launch, block_at, number, place)).collect();
    let (mut steps, mut idle) = (0, 0u32);
    loop {
        let mut alive = 0u32;
        let mut moved = false;
        for lanes in &mut warps {
            for group in &mut lanes.groups {
                if group.wait == Wait::Polling {
                    group.wait = Wait::Ready;
                }
            }
            if lanes.groups.iter().any(|group| group.wait == Wait::Ready) {
                lanes.progress = false;
                steps += run_warp(code, lanes);
                if let Some(error) = lanes.error.take() {
                    return Err(error);
                }
                moved |= lanes.progress || !lanes.groups.iter().any(|group| group.wait == Wait::Polling);
            }
            alive += lanes.live.count_ones();
        }
        if alive == 0 {
            finish(&mut warps, block_at);
            block.spare.extend(warps.into_iter().map(|lanes| lanes.store));
            return Ok(steps);
        }
        moved |= release_barriers(&mut warps, alive);
        idle = if moved { 0 } else { idle + 1 };
        if idle > MAX_IDLE {
            return Err(describe(code, &warps));
        }
    }
}

/// Notes work that a block leaves behind.
fn finish(warps: &mut [Lanes], block: *mut Block) {
    // SAFETY: the block outlives its warps.
    let copies = unsafe { !(*block).bulk.is_empty() };
    let own = |lanes: &Lanes| {
        lanes.pending.iter().any(|copies| !copies.is_empty()) || lanes.stores.iter().any(|stores| !stores.is_empty())
    };
    if copies || warps.iter().any(own) {
        warps[0].note("it ends with copies that nobody waited for".to_owned());
    }
    if warps.iter().any(|lanes| !lanes.products.is_empty()) {
        warps[0].note("it ends with a wgmma that nobody waited for".to_owned());
    }
    let uneven = |group: &[Lanes]| group.iter().any(|lanes| lanes.products.issued != group[0].products.issued);
    let partial = |group: &[Lanes]| group.len() < 4 && group.iter().any(|lanes| lanes.products.issued > 0);
    if warps.chunks(4).any(|group| uneven(group) || partial(group)) {
        warps[0].note("the warps of a warpgroup issue different numbers of wgmma".to_owned());
    }
}

/// Lets the lanes continue that wait at complete barriers; returns whether there were any.
fn release_barriers(warps: &mut [Lanes], alive: u32) -> bool {
    let mut arrived: Vec<(u32, u32, u32)> = Vec::new();
    for lanes in warps.iter() {
        for group in &lanes.groups {
            if let Wait::Barrier(id, count) = group.wait {
                match arrived.iter_mut().find(|found| found.0 == id) {
                    Some(found) => found.2 += group.mask.count_ones(),
                    None => arrived.push((id, count, group.mask.count_ones())),
                }
            }
        }
    }
    let mut released = false;
    for (id, count, here) in arrived {
        if here < if count == 0 { alive } else { count } {
            continue;
        }
        released = true;
        let mut members = 0u32;
        for (number, lanes) in warps.iter_mut().enumerate() {
            for group in &mut lanes.groups {
                if matches!(group.wait, Wait::Barrier(other, _) if other == id) {
                    group.wait = Wait::Ready;
                    members |= 1 << number;
                }
            }
            meet(lanes);
        }
        warps[0].races(|races, _| {
            races.meet(members, here >= alive);
            None
        });
    }
    released
}

/// Says where each group of lanes waits.
fn describe(code: &Code, warps: &[Lanes]) -> String {
    let mut text = "no warp can continue:".to_owned();
    for (number, lanes) in warps.iter().enumerate() {
        for group in &lanes.groups {
            let line = code.insts[group.pc.saturating_sub(1)].line;
            let _ = write!(text, " warp {number} lanes {:#x} line {line} {:?};", group.mask, group.wait);
        }
    }
    text.chars().take(MAX_DESCRIPTION).collect()
}
