//! Barriers in shared memory that count arrivals and bytes.

use super::bulk::arrive_bulk;
use crate::exec::{Lanes, SHARED_WINDOW, Space};
use crate::half::{Val, WARP};
use crate::isa::build::Build;
use crate::isa::lanewise::each;
use crate::isa::{Kind, Result};
use crate::ptx::{Class, Operand, Statement};
use crate::races::Access;

/// Layout of a barrier's word, from bit 0: 20 bits of pending arrivals, 20 of expected ones, 22 of pending bytes plus `MIDDLE`, the phase.
const FIELD: u64 = (1 << 20) - 1;
const MIDDLE: i64 = 1 << 21;

fn word(lanes: &mut Lanes, barrier: u64) -> *mut u64 {
    // SAFETY: looked up.
    unsafe {
        lanes
            .memory(
                Space::Generic,
                if barrier >> 40 == 0 { barrier | SHARED_WINDOW } else { barrier },
                8,
                0,
                Access::Sync,
            )
            .cast()
    }
}

/// Adds to pending arrivals and bytes, ends the phase at zero, and returns the word before.
pub fn change(lanes: &mut Lanes, barrier: u64, arrivals: i64, bytes: i64) -> u64 {
    let at = word(lanes, barrier);
    // SAFETY: eight bytes of shared memory.
    let old = unsafe { at.read_unaligned() };
    let (mut pending, expected) = ((old & FIELD) as i64, old >> 20 & FIELD);
    let mut to_come = (old >> 40 & ((1 << 22) - 1)) as i64 - MIDDLE;
    let mut phase = old >> 63;
    if expected == 0 {
        lanes.fail(format!("a barrier at {barrier:#x} was not initialised"));
        return old;
    }
    pending += arrivals;
    to_come += bytes;
    if pending < 0 {
        lanes.fail(format!("more arrivals at the barrier {barrier:#x} than it expects"));
    }
    if pending == 0 && to_come == 0 {
        phase ^= 1;
        pending = expected as i64;
    }
    if arrivals < 0 {
        lanes.races(|races, warp| {
            races.arrive(barrier & !SHARED_WINDOW, warp);
            None
        });
    }
    let new =
        pending as u64 & FIELD | expected << 20 | ((to_come + MIDDLE) as u64 & ((1 << 22) - 1)) << 40 | phase << 63;
    unsafe { at.write_unaligned(new) };
    old
}

pub fn mbarrier(build: &mut Build, inst: &Statement) -> Result<Kind> {
    let op: Vec<&str> = inst.op.iter().map(String::as_str).collect();
    let has = |word: &str| op.contains(&word);
    let args = &inst.operands;
    let what = op[1];
    match what {
        "init" => {
            let at = build.address(&args[0])?.at();
            let count = build.src(&args[1], Class::B32)?;
            Ok(Kind::Plain(Box::new(move |lanes, mask| unsafe {
                each!(mask, lane, {
                    let count = u64::from(u32::load(lanes.regs.add(count as usize), lane));
                    let barrier = at.get(lanes, lane);
                    word(lanes, barrier).write_unaligned(count | count << 20 | (MIDDLE as u64) << 40);
                });
            })))
        }
        "inval" => Ok(Kind::Plain(Box::new(|_, _| ()))),
        "arrive" | "arrive_drop" | "expect_tx" | "complete_tx" => {
            if what == "arrive_drop" {
                return Err("is not supported".to_owned());
            }
            let with_state = !matches!(args[0], Operand::Address(..));
            let state = match &args[0] {
                Operand::Address(..) | Operand::Sink => None,
                other => Some(build.reg(other)?.0),
            };
            let rest = if with_state { &args[1..] } else { &args[..] };
            let at = build.address(&rest[0])?.at();
            let number = rest.get(1).map(|count| build.src(count, Class::B32)).transpose()?;
            let expects = has("expect_tx");
            let arrives = what == "arrive";
            let completes = what == "complete_tx";
            Ok(Kind::Plain(Box::new(move |lanes, mask| unsafe {
                each!(mask, lane, {
                    let number = number.map_or(1, |reg| i64::from(u32::load(lanes.regs.add(reg as usize), lane)));
                    let barrier = at.get(lanes, lane);
                    let old = if expects || completes {
                        // The bytes count before the arrival.
                        let at = word(lanes, barrier);
                        let before = at.read_unaligned();
                        let bytes = if completes { -number } else { number };
                        let to_come = (before >> 40 & ((1 << 22) - 1)) as i64 - MIDDLE + bytes;
                        at.write_unaligned(
                            before & !(((1 << 22) - 1) << 40) | ((to_come + MIDDLE) as u64 & ((1 << 22) - 1)) << 40,
                        );
                        if arrives { change(lanes, barrier, -1, 0) } else { change(lanes, barrier, 0, 0) }
                    } else {
                        change(lanes, barrier, -number, 0)
                    };
                    if let Some(state) = state {
                        u64::store(lanes.regs.add(state as usize), lane, old);
                    }
                });
                lanes.progress = true;
            })))
        }
        "test_wait" | "try_wait" => {
            let pred = build.reg(&args[0])?.0;
            let at = build.address(&args[1])?.at();
            let by_parity = has("parity");
            let state = build.src(&args[2], if by_parity { Class::B32 } else { Class::B64 })?;
            Ok(Kind::Poll(Box::new(move |lanes, mask| unsafe {
                let mut done = 0u32;
                each!(mask, lane, {
                    let barrier = at.get(lanes, lane);
                    arrive_bulk(lanes, barrier & !SHARED_WINDOW);
                    let now = word(lanes, barrier).read_unaligned() >> 63;
                    let waited = if by_parity {
                        u64::from(u32::load(lanes.regs.add(state as usize), lane) & 1)
                    } else {
                        u64::load(lanes.regs.add(state as usize), lane) >> 63
                    };
                    if now != waited {
                        done |= 1 << lane;
                        lanes.races(|races, warp| {
                            races.pass(barrier & !SHARED_WINDOW, warp);
                            None
                        });
                    }
                });
                lanes.set_pred(pred, mask, done);
                lanes.failed_poll = done & mask != mask;
            })))
        }
        _ => Err("is not supported".to_owned()),
    }
}
