//! Races between lanes of one warp, and reads of shared memory that nothing wrote.

use crate::rig::{module, reported, right};

/// Each lane writes its word to shared memory and reads its neighbour's.
const EXCHANGE: &str = "mov.u32 %r3, tile;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r5, %r3, %r4;\nxor.b32 %r6, %r4, 4;\n\
    add.s32 %r7, %r3, %r6;\nld.global.u32 %r2, [%rd3];\nst.shared.u32 [%r5], %r2;\nbar.warp.sync -1;\n\
    ld.shared.u32 %r9, [%r7];\nbar.warp.sync -1;\nst.shared.u32 [%r5], %r9;\nst.global.u32 [%rd4], %r9;";

fn exchange(old: &str, new: &str) -> String {
    assert!(EXCHANGE.contains(old), "{old}");
    module(".shared .align 16 .b8 tile[128];", &EXCHANGE.replace(old, new))
}

#[test]
fn lanes_exchange_words_behind_a_barrier() {
    assert_eq!(right("as it is", &exchange("", ""), 32)[..2], [1001, 1000]);
    right("barrier of the block", &exchange("bar.warp.sync -1;", "bar.sync 0;"), 32);
}

#[test]
fn vote_does_not_order_memory() {
    let vote = exchange("bar.warp.sync -1;", "vote.sync.any.pred %p1, %p1, -1;");
    reported("vote", &vote, 32, "behind a write by another lane of warp 0");
}

#[test]
fn dropped_barrier_of_a_warp_is_a_race() {
    let read = exchange("bar.warp.sync -1;\nld", "ld");
    reported("before the read", &read, 32, "behind a write by another lane of warp 0");
    let write = exchange("bar.warp.sync -1;\nst", "st");
    reported("before the next write", &write, 32, "behind a read by another lane of warp 0");
    let copied = "cp.async.ca.shared.global [%r5], [%rd3], 4;\ncp.async.wait_all;\n";
    let copy = exchange("st.shared.u32 [%r5], %r2;\nbar.warp.sync -1;\n", copied);
    reported("behind a copy", &copy, 32, "behind a write by another lane of warp 0");
}

#[test]
fn copy_without_a_group_is_not_waited_for() {
    let copied = "cp.async.ca.shared.global [%r5], [%rd3], 4;\ncp.async.commit_group;\ncp.async.wait_group 0;\n";
    let body = |old: &str| exchange("st.shared.u32 [%r5], %r2;\n", &copied.replace(old, ""));
    right("with a group", &body("no such line"), 32);
    reported("without a group", &body("cp.async.commit_group;\n"), 32, "before a copy to it was waited for");
    reported("without a wait", &body("cp.async.wait_group 0;\n"), 32, "before a copy to it was waited for");
}

#[test]
fn read_of_nothing_is_caught() {
    reported("no write", &exchange("st.shared.u32 [%r5], %r2;\n", ""), 32, "to which nothing was written");
    let half = exchange("st.shared.u32 [%r5], %r2;\n", "st.shared.u16 [%r5], %r2;\n");
    reported("half a write", &half, 32, "to which nothing was written");
}

#[test]
fn volatile_load_is_no_write() {
    let load = exchange("st.shared.u32 [%r5], %r2;\n", "ld.volatile.shared.u32 %r2, [%r5];\n");
    reported("no write", &load, 32, "to which nothing was written");
    right("a store", &exchange("st.shared.u32 [%r5]", "st.volatile.shared.u32 [%r5]"), 32);
}

#[test]
fn matrix_loads_take_rows_of_16_bytes() {
    let load = |offset: u32| {
        let body = format!(
            "mov.u32 %r3, tile;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r5, %r3, %r4;\nst.shared.u32 [%r5], %r1;\n\
             st.shared.u32 [%r5+128], %r1;\nbar.warp.sync -1;\nand.b32 %r6, %r1, 7;\nshl.b32 %r6, %r6, 4;\nadd.s32 %r7, %r3, %r6;\n\
             ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r9}}, [%r7+{offset}];\nst.global.u32 [%rd4], %r9;"
        );
        module(".shared .align 16 .b8 tile[256];", &body)
    };
    right("aligned", &load(16), 32);
    reported("not aligned", &load(8), 32, "not aligned");
}
