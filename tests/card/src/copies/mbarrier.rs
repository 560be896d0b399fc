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

/// Largest number of bytes that a barrier may wait for.
const MAX_BYTES: i64 = (1 << 20) - 1;

/// Address in shared memory, and the place of a barrier's word.
fn place(lanes: &mut Lanes, barrier: u64) -> (u64, *mut u64) {
    let address = if barrier >> 40 == 0 { barrier | SHARED_WINDOW } else { barrier };
    // SAFETY: looked up.
    (address & !SHARED_WINDOW, unsafe { lanes.memory(Space::Generic, address, 8, 0, Access::Sync).cast() })
}

/// Returns the word of a barrier, which must be what the last instruction for barriers has left there.
fn read(lanes: &mut Lanes, barrier: u64) -> Option<u64> {
    let (key, at) = place(lanes, barrier);
    // SAFETY: eight bytes of shared memory.
    let word = unsafe { at.read_unaligned() };
    match lanes.block_state().barriers.get(&key) {
        None => lanes.fail(format!("a barrier at {key} was not initialised")),
        Some(known) if *known != word => lanes.fail(format!("the barrier at {key} was overwritten")),
        Some(_) => {
            lanes.races(|races, warp| races.use_barrier(key, warp, false));
            return Some(word);
        }
    }
    None
}

fn write(lanes: &mut Lanes, barrier: u64, word: u64) {
    let (key, at) = place(lanes, barrier);
    // SAFETY: eight bytes of shared memory.
    unsafe { at.write_unaligned(word) };
    lanes.block_state().barriers.insert(key, word);
}

/// Bytes that a barrier's word waits for.
fn bytes_of(word: u64) -> i64 {
    (word >> 40 & ((1 << 22) - 1)) as i64 - MIDDLE
}

fn with_bytes(word: u64, bytes: i64) -> u64 {
    word & !(((1 << 22) - 1) << 40) | ((bytes + MIDDLE) as u64 & ((1 << 22) - 1)) << 40
}

/// Adds to pending arrivals and bytes, ends the phase at zero, and returns whether it ended.
pub fn change(lanes: &mut Lanes, barrier: u64, arrivals: i64, bytes: i64) -> bool {
    let Some(old) = read(lanes, barrier) else { return false };
    let (mut pending, expected) = ((old & FIELD) as i64, old >> 20 & FIELD);
    let to_come = bytes_of(old) + bytes;
    let mut phase = old >> 63;
    pending += arrivals;
    if pending < 0 {
        lanes.fail(format!("more arrivals at the barrier {barrier:#x} than it expects"));
    }
    if to_come.abs() > MAX_BYTES {
        lanes.fail(format!("the barrier {barrier:#x} waits for {to_come} bytes, and {MAX_BYTES} are the most"));
    }
    let ends = pending == 0 && to_come == 0;
    if ends {
        phase ^= 1;
        pending = expected as i64;
    }
    if arrivals < 0 {
        lanes.races(|races, warp| {
            races.arrive(barrier & !SHARED_WINDOW, warp);
            None
        });
    }
    if ends {
        lanes.races(|races, _| {
            races.end_phase(barrier & !SHARED_WINDOW);
            None
        });
    }
    write(lanes, barrier, with_bytes(pending as u64 & FIELD | expected << 20 | phase << 63, to_come));
    ends
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
                    if count == 0 || count > FIELD {
                        lanes.fail(format!("a barrier for {count} arrivals"));
                    }
                    let key = barrier & !SHARED_WINDOW;
                    if lanes.block_state().barriers.contains_key(&key) {
                        lanes.note(format!(
                            "the barrier at {key} is initialised a second time without `mbarrier.inval`"
                        ));
                    }
                    write(lanes, barrier, with_bytes(count | count << 20, 0));
                    lanes.races(|races, warp| {
                        races.init(key, warp);
                        None
                    });
                });
            })))
        }
        "inval" => {
            let at = build.address(&args[0])?.at();
            Ok(Kind::Plain(Box::new(move |lanes, mask| {
                each!(mask, lane, {
                    let key = at.get(lanes, lane) & !SHARED_WINDOW;
                    if lanes.block_state().barriers.remove(&key).is_none() {
                        lanes.fail(format!("a barrier at {key} was not initialised"));
                    }
                });
            })))
        }
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
                    let Some(old) = read(lanes, barrier) else { return };
                    let bytes = match (expects, completes) {
                        (true, _) => number,
                        (_, true) => -number,
                        _ => 0,
                    };
                    let arrivals = match (arrives, expects) {
                        (true, false) => -number,
                        (true, true) => -1,
                        _ => 0,
                    };
                    change(lanes, barrier, arrivals, bytes);
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
                    let waited = if by_parity {
                        u64::from(u32::load(lanes.regs.add(state as usize), lane) & 1)
                    } else {
                        u64::load(lanes.regs.add(state as usize), lane) >> 63
                    };
                    let Some(mut word) = read(lanes, barrier) else { return };
                    if word >> 63 == waited {
                        // Copies are made when a wait needs them.
                        arrive_bulk(lanes, barrier & !SHARED_WINDOW);
                        word = read(lanes, barrier).unwrap_or(word);
                    }
                    if word >> 63 != waited {
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
