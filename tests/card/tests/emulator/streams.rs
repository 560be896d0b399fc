//! The lazy order finds work that nobody waits for.

use crate::rig::{Rig, STREAM, module};
use cuda::log::take_problems;
use cuda::state::{ILLEGAL_ADDRESS, Op, SUCCESS};

const OTHER: u64 = 0x1010;
const EVENT: u64 = 0x1020;

/// One stream fills a buffer, another copies it to the host; `waits`: the second waits for the first.
fn hand_over(lazy: bool, waits: bool) -> u32 {
    let mut rig = Rig::new(lazy);
    rig.add_stream(OTHER);
    let buffer = rig.buffer(&[1; 4]);
    let mut host = [0u32; 4];
    rig.state.enqueue(STREAM, Op::Set { at: buffer, value: 0xAB, bytes: 16 });
    if waits {
        rig.add_event(EVENT, STREAM);
        rig.state.enqueue(STREAM, Op::Record(EVENT, 1));
        rig.state.enqueue(OTHER, Op::Wait(EVENT, 1));
    }
    rig.state.enqueue(OTHER, Rig::copy(buffer, host.as_mut_ptr() as u64, 16));
    assert_eq!(rig.state.run_stream(OTHER, None), SUCCESS);
    host[0]
}

#[test]
fn wait_hands_over_the_new_value() {
    assert_eq!(hand_over(true, true), 0xABAB_ABAB);
}

#[test]
fn dropped_wait_gives_the_old_value_in_lazy_order() {
    assert_eq!(hand_over(true, false), 1);
    // The eager order hides the fault.
    assert_eq!(hand_over(false, false), 0xABAB_ABAB);
}

#[test]
fn free_by_another_stream_without_a_wait_is_caught() {
    let mut rig = Rig::new(true);
    rig.add_stream(OTHER);
    let (from, to) = (rig.buffer(&[5; 32]), rig.buffer(&[0; 32]));
    let ptx = module("", "ld.global.u32 %r2, [%rd3];\nst.global.u32 [%rd4], %r2;");
    rig.state.enqueue(STREAM, Rig::kernel(&ptx, 1, 32, &[from, to]));
    rig.state.enqueue(OTHER, Op::Free(from));
    assert_eq!(rig.state.run_stream(OTHER, None), SUCCESS);
    assert_eq!(rig.state.run_stream(STREAM, None), ILLEGAL_ADDRESS);
    assert!(take_problems()[0].contains("reads 4 bytes of global memory"));
}

#[test]
fn failure_stays_for_all_later_work() {
    let mut rig = Rig::new(false);
    let ptx = module("", "ld.global.u32 %r2, [%rd3+4096];");
    let buffer = rig.buffer(&[0; 32]);
    let (code, _) = rig.run(&ptx, 1, 32, &[buffer, buffer]);
    assert_eq!((code, rig.state.broken), (ILLEGAL_ADDRESS, ILLEGAL_ADDRESS));
}

#[test]
fn memory_ends_where_the_card_ends() {
    let mut rig = Rig::new(false);
    assert!(rig.state.alloc(1 << 40, false).is_err());
    assert!(rig.state.alloc(1 << 20, false).is_ok());
}
