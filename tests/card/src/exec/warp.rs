//! Runs a warp until its lanes wait or have ended.
//!
//! Lanes that diverge run as groups. Of the groups that can run, the one furthest behind does, so that they reconverge.

use super::Lanes;
use crate::half::Val;
use crate::isa::{Code, Inst, Kind};

/// Most instructions of one turn of a warp. A kernel that needs more does not end.
const MAX_STEPS: u64 = 400_000_000;

/// Reason why a group of lanes does not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    Ready,
    /// Found a barrier incomplete.
    Polling,
    /// For other lanes of its warp.
    Converging,
    /// Number of the barrier and of its threads; 0 threads for the whole block.
    Barrier(u32, u32),
}

/// Lanes of a warp at the same instruction.
#[derive(Clone, Copy)]
pub struct Group {
    pub pc: usize,
    pub mask: u32,
    pub wait: Wait,
}

/// Runs a warp until all of its lanes wait or have ended, and returns the number of instructions.
pub fn run_warp(code: &Code, lanes: &mut Lanes) -> u64 {
    let mut steps = 0;
    let insts: &[Inst] = &code.insts;
    'groups: loop {
        // The group furthest behind.
        let mut best: Option<usize> = None;
        for (index, group) in lanes.groups.iter().enumerate() {
            if group.wait == Wait::Ready && best.is_none_or(|best| group.pc < lanes.groups[best].pc) {
                best = Some(index);
            }
        }
        let Some(current) = best else { return steps };
        let Group { mut pc, mut mask, .. } = lanes.groups.swap_remove(current);
        loop {
            let inst = &insts[pc];
            steps += 1;
            let active = match inst.guard {
                Some((at, negated)) => mask & lanes.pred(at, negated),
                None => mask,
            };
            match &inst.kind {
                Kind::Plain(exec) => {
                    if active != 0 {
                        if !inst.watched.is_empty() {
                            lanes.touch_registers(inst);
                        }
                        exec(lanes, active);
                    }
                    pc += 1;
                }
                Kind::Converged(exec, members) => {
                    if active != 0 {
                        // All live lanes of the mask must arrive first.
                        let members = members.map_or(lanes.live, |at| {
                            let lane = active.trailing_zeros() as usize;
                            // SAFETY: a register.
                            unsafe { u32::load(lanes.regs.add(at as usize), lane) }
                        }) & lanes.live;
                        if active & members != members && mask == active {
                            lanes.groups.push(Group { pc, mask, wait: Wait::Converging });
                            continue 'groups;
                        }
                        if active & members != members {
                            lanes.note(format!(
                                "line {}: {} with lanes {active:#x} of {members:#x}",
                                inst.line, inst.text
                            ));
                        }
                        if !inst.watched.is_empty() {
                            lanes.touch_registers(inst);
                        }
                        exec(lanes, active);
                    }
                    pc += 1;
                }
                Kind::Poll(exec) => {
                    pc += 1;
                    if active != 0 {
                        exec(lanes, active);
                        if lanes.failed_poll {
                            lanes.failed_poll = false;
                            lanes.groups.push(Group { pc, mask, wait: Wait::Polling });
                            meet(lanes);
                            if lanes.error.is_some() {
                                return steps;
                            }
                            continue 'groups;
                        }
                        lanes.progress = true;
                    }
                }
                Kind::Branch(target) => {
                    if active == mask {
                        pc = *target;
                    } else if active == 0 {
                        pc += 1;
                    } else {
                        lanes.groups.push(Group { pc: *target, mask: active, wait: Wait::Ready });
                        lanes.groups.push(Group { pc: pc + 1, mask: mask & !active, wait: Wait::Ready });
                        meet(lanes);
                        continue 'groups;
                    }
                }
                Kind::Exit => {
                    lanes.live &= !active;
                    lanes.progress = true;
                    mask &= !active;
                    pc += 1;
                    // Groups that waited for lanes that have exited.
                    for group in &mut lanes.groups {
                        if group.wait == Wait::Converging {
                            group.wait = Wait::Ready;
                        }
                    }
                    if mask == 0 {
                        continue 'groups;
                    }
                }
                Kind::Barrier(id, count) => {
                    let lane = active.trailing_zeros() as usize & 31;
                    // SAFETY: registers.
                    let (id, count) = unsafe {
                        let id = u32::load(lanes.regs.add(*id as usize), lane);
                        (id, count.map_or(0, |at| u32::load(lanes.regs.add(at as usize), lane)))
                    };
                    if active != mask {
                        lanes.groups.push(Group { pc: pc + 1, mask: mask & !active, wait: Wait::Ready });
                    }
                    if active != 0 {
                        lanes.groups.push(Group { pc: pc + 1, mask: active, wait: Wait::Barrier(id, count) });
                    }
                    continue 'groups;
                }
            }
            if lanes.error.is_some() {
                let text = format!("line {}: {}: {}", inst.line, inst.text, lanes.error.take().unwrap_or_default());
                lanes.error = Some(text);
                return steps;
            }
            if !lanes.groups.is_empty() {
                // Merge groups at the same instruction; yield to one further behind.
                let mut changed = false;
                let mut index = 0;
                while index < lanes.groups.len() {
                    let group = lanes.groups[index];
                    if group.pc == pc && matches!(group.wait, Wait::Ready | Wait::Converging) {
                        mask |= group.mask;
                        lanes.groups.swap_remove(index);
                        continue;
                    }
                    changed |= group.wait == Wait::Ready && group.pc < pc;
                    index += 1;
                }
                if changed {
                    lanes.groups.push(Group { pc, mask, wait: Wait::Ready });
                    continue 'groups;
                }
            }
            if steps > MAX_STEPS {
                lanes.fail("does not end".to_owned());
                return steps;
            }
        }
    }
}

/// Joins groups that stand at the same place.
pub fn meet(lanes: &mut Lanes) {
    let mut one = 0;
    while one < lanes.groups.len() {
        let mut two = one + 1;
        while two < lanes.groups.len() {
            let (first, second) = (lanes.groups[one], lanes.groups[two]);
            let alike = first.wait == second.wait
                || matches!(
                    (first.wait, second.wait),
                    (Wait::Ready, Wait::Converging) | (Wait::Converging, Wait::Ready)
                );
            if first.pc == second.pc && alike && !matches!(first.wait, Wait::Barrier(..)) {
                lanes.groups[one].mask |= second.mask;
                lanes.groups[one].wait = if first.wait == Wait::Polling { Wait::Polling } else { Wait::Ready };
                lanes.groups.swap_remove(two);
            } else {
                two += 1;
            }
        }
        one += 1;
    }
}
