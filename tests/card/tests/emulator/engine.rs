//! The copy engine and `mbarrier`s.

use crate::rig::{module, reported, right};

/// Thread 0 lets the copy engine bring 128 bytes; all threads wait for its barrier and read.
const ENGINE: &str = "mov.u32 %r3, tile;\nmov.u32 %r10, full;\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 bra $after;\n\
    mbarrier.init.shared.b64 [%r10], 1;\nfence.proxy.async.shared::cta;\n\
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], 128;\n\
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1], 128, [%r10];\n\
    $after:\nbar.sync 0;\n\
    $again:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r10], 0;\n@!%p2 bra $again;\n\
    and.b32 %r4, %r1, 31;\nshl.b32 %r4, %r4, 2;\nadd.s32 %r5, %r3, %r4;\n\
    ld.shared.u32 %r9, [%r5];\nst.global.u32 [%rd4], %r9;";

const WAIT: &str = "$again:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r10], 0;\n@!%p2 bra $again;";
const COPY: &str = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1], 128, [%r10];";
const FENCE: &str = "fence.proxy.async.shared::cta;\n";

/// The kernel with a part of it changed.
fn engine(old: &str, new: &str) -> String {
    assert!(ENGINE.contains(old), "{old}");
    let declarations = ".shared .align 128 .b8 tile[256];\n.shared .align 8 .b8 full[8];";
    module(declarations, &ENGINE.replace(old, new)).replace("sm_80", "sm_90")
}

#[test]
fn engine_copy_is_read_behind_its_barrier() {
    let values = right("as it is", &engine("", ""), 64);
    assert_eq!((values[0], values[31], values[32]), (1000, 1031, 1000));
    right("fence of the initialisation", &engine(FENCE, "fence.mbarrier_init.release.cluster;\n"), 64);
    right("several arrivals", &engine("[%r10], 1;\n", "[%r10], 2;\nmbarrier.arrive.shared.b64 _, [%r10];\n"), 64);
    right(
        "bytes in two steps",
        &engine(
            "arrive.expect_tx.shared::cta.b64 _, [%r10], 128;",
            "expect_tx.relaxed.cta.shared::cta.b64 [%r10], 64;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], 64;",
        ),
        64,
    );
}

#[test]
fn dropped_wait_for_the_engine_is_caught() {
    assert_eq!(reported("no wait", &engine(WAIT, ""), 64, "before a copy")[0], u32::MAX);
}

#[test]
fn wait_for_the_wrong_parity_is_caught() {
    reported("parity", &engine("%p2, [%r10], 0;", "%p2, [%r10], 1;"), 64, "before a copy");
}

#[test]
fn wait_by_one_warp_alone_is_caught() {
    // Warp 1 skips the wait: warp 0 has seen the phase end, warp 1 has not.
    let wait = format!("setp.gt.u32 %p3, %r1, 31;\n@%p3 bra $skip;\n{WAIT}\n$skip:");
    reported("one warp", &engine(WAIT, &wait), 64, "behind a write by the copy engine");
}

#[test]
fn wrong_number_of_bytes_is_caught() {
    reported("too many", &engine("[%r10], 128;\n", "[%r10], 256;\n"), 64, "no warp can continue");
    reported("too few", &engine("[%r10], 128;\n", "[%r10], 64;\n"), 64, "no warp can continue");
    let twice = format!("{COPY}\n{}", COPY.replace("[%r3]", "[%r3+128]").replace("[%rd1]", "[%rd1+128]"));
    reported("those of one copy of two", &engine(COPY, &twice), 64, "ends before all copies");
}

#[test]
fn missing_arrival_is_caught() {
    let only = engine("arrive.expect_tx.shared::cta.b64 _,", "expect_tx.relaxed.cta.shared::cta.b64");
    reported("no arrival", &only, 64, "no warp can continue");
    reported("one of two", &engine("[%r10], 1;\n", "[%r10], 2;\n"), 64, "no warp can continue");
    let more = engine(COPY, &format!("{COPY}\nmbarrier.arrive.shared.b64 _, [%r10];"));
    reported("one too many", &more, 64, "more arrivals");
}

#[test]
fn unfenced_initialisation_is_caught() {
    reported("no fence", &engine(FENCE, ""), 64, "no proxy fence follows its initialisation");
    let global = engine(FENCE, "fence.proxy.async.global;\n");
    reported("fence for global memory", &global, 64, "no proxy fence follows its initialisation");
}

#[test]
fn barrier_in_use_must_be_initialised() {
    reported("no initialisation", &engine("mbarrier.init.shared.b64 [%r10], 1;\n", ""), 64, "was not initialised");
    // Warp 1 does not wait until warp 0 has initialised it.
    reported("no barrier", &engine("bar.sync 0;\n", ""), 64, "without a barrier behind its initialisation");
    reported("a store", &engine("bar.sync 0;\n", "st.shared.u32 [full], %r1;\nbar.sync 0;\n"), 64, "was overwritten");
    let twice = engine(FENCE, "mbarrier.init.shared.b64 [%r10], 1;\nfence.proxy.async.shared::cta;\n");
    reported("twice", &twice, 64, "a second time");
    let again =
        "mbarrier.inval.shared.b64 [%r10];\nmbarrier.init.shared.b64 [%r10], 1;\nfence.proxy.async.shared::cta;\n";
    right("again", &engine(FENCE, again), 64);
}

#[test]
fn engine_takes_multiples_of_16_bytes() {
    reported("place", &engine("[%r3], [%rd1], 128", "[%r3+8], [%rd1], 128"), 64, "no multiples of 16");
    reported("source", &engine("[%r3], [%rd1], 128", "[%r3], [%rd1+4], 128"), 64, "no multiples of 16");
    reported("bytes", &engine("[%r3], [%rd1], 128", "[%r3], [%rd1], 100"), 64, "no multiples of 16");
}

#[test]
fn engine_writes_behind_ordinary_stores_need_a_fence() {
    // Thread 0 clears a word before the copy comes.
    let store = engine(FENCE, "fence.proxy.async.shared::cta;\nst.shared.u32 [%r3], %r1;\n");
    reported("store behind the fence", &store, 64, "the copy engine writes");
    right("store before the fence", &engine(FENCE, &format!("st.shared.u32 [%r3], %r1;\n{FENCE}")), 64);
}

#[test]
fn copy_that_nobody_waits_for_is_caught() {
    let body = ENGINE.find("$again").expect("the wait");
    let kernel = module(".shared .align 128 .b8 tile[256];\n.shared .align 8 .b8 full[8];", &ENGINE[..body]);
    reported("no wait", &kernel.replace("sm_80", "sm_90"), 64, "copies that nobody waited for");
}

/// Each of 32 threads writes its word to shared memory, and thread 0 lets the copy engine store all of them.
const STORE: &str = "mov.u32 %r3, tile;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r5, %r3, %r4;\nld.global.u32 %r2, [%rd3];\n\
    st.shared.u32 [%r5], %r2;\nfence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 bra $end;\n\
    cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r3], 128;\ncp.async.bulk.commit_group;\n\
    cp.async.bulk.wait_group 0;\n$end:";

fn store(old: &str, new: &str) -> String {
    assert!(STORE.contains(old), "{old}");
    module(".shared .align 128 .b8 tile[256];", &STORE.replace(old, new)).replace("sm_80", "sm_90")
}

#[test]
fn engine_stores_what_was_fenced() {
    assert_eq!(right("as it is", &store("", ""), 32)[..2], [1000, 1001]);
    right("fence of the thread that stores", &store(FENCE, "").replace("$end;\n", &format!("$end;\n{FENCE}")), 32);
    reported("no fence", &store(FENCE, ""), 32, "without `fence.proxy.async`");
    let late = store("bar.sync 0;\n", "bar.sync 0;\nst.shared.u32 [%r5], %r1;\n");
    reported("store behind the fence", &late, 32, "without `fence.proxy.async`");
}

#[test]
fn engine_store_must_be_waited_for() {
    let dropped = reported("no wait", &store("cp.async.bulk.wait_group 0;\n", ""), 32, "nobody waited for");
    assert_eq!(dropped[0], 7);
    reported("no group", &store("cp.async.bulk.commit_group;\n", ""), 32, "nobody waited for");
    let early = "st.shared.u32 [%r3], %r1;\ncp.async.bulk.wait_group.read 0;\n";
    reported("reuse before the wait", &store("cp.async.bulk.wait_group 0;\n", early), 32, "overwrites before it waits");
}
