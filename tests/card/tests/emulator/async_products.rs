//! `wgmma`: its waits, groups and fences.

use crate::rig::{module, reported, right};

/// Threads fill two matrices of ones, 64 × 16 and 8 × 16; a warpgroup multiplies them. Each thread writes the sum of two results, 32.
const PRODUCT: &str = "mov.u32 %r3, tile;\nshl.b32 %r4, %r1, 4;\nadd.s32 %r5, %r3, %r4;\nmov.b32 %r2, 0x3F803F80;\n\
    st.shared.v4.b32 [%r5], {%r2, %r2, %r2, %r2};\nsetp.gt.u32 %p1, %r1, 15;\n@%p1 bra $filled;\n\
    st.shared.v4.b32 [%r5+2048], {%r2, %r2, %r2, %r2};\n$filled:\n\
    fence.proxy.async.shared::cta;\nbar.sync 0;\n\
    cvt.u64.u32 %rd6, %r3;\nshr.u64 %rd6, %rd6, 4;\nor.b64 %rd6, %rd6, 0x1000080000;\nadd.s64 %rd7, %rd6, 128;\n\
    setp.ne.b32 %p2, 1, 0;\nmov.f32 %f1, 0f00000000;\nmov.f32 %f2, %f1;\nmov.f32 %f3, %f1;\nmov.f32 %f4, %f1;\n\
    wgmma.fence.sync.aligned;\n\
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd6, %rd7, %p2, 1, 1, 0, 0;\n\
    wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
    add.f32 %f5, %f1, %f4;\nst.global.f32 [%rd4], %f5;";

const THREADS: u32 = 128;
const FENCE: &str = "wgmma.fence.sync.aligned;\n";
const PROXY_FENCE: &str = "fence.proxy.async.shared::cta;\n";
const WAIT: &str = "wgmma.wait_group.sync.aligned 0;\n";
const MULTIPLY: &str =
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd6, %rd7, %p2, 1, 1, 0, 0;\n";

fn product(changes: &[(&str, &str)]) -> String {
    let mut body = PRODUCT.to_owned();
    for (old, new) in changes {
        assert!(body.contains(old), "{old}");
        body = body.replace(old, new);
    }
    // The second matrix ends where a product of 16 columns ends.
    module(".shared .align 1024 .b8 tile[4096];", &body).replace("sm_80", "sm_90a")
}

fn sum(values: &[u32]) -> f32 {
    f32::from_bits(values[77])
}

#[test]
fn product_is_right() {
    assert_eq!(sum(&right("as it is", &product(&[]), THREADS)), 32.0);
    // Sums of one shape need no fence between them.
    assert_eq!(sum(&right("twice", &product(&[(MULTIPLY, &MULTIPLY.repeat(2))]), THREADS)), 64.0);
    let later = [(PROXY_FENCE, ""), ("bar.sync 0;\n", "bar.sync 0;\nfence.proxy.async.shared::cta;\n")];
    right("fence of those that multiply", &product(&later), THREADS);
}

#[test]
fn dropped_wait_is_caught() {
    let values = reported("no wait", &product(&[(WAIT, "")]), THREADS, "that was not waited for");
    assert_eq!(sum(&values), 0.0);
    let one = product(&[(WAIT, "wgmma.wait_group.sync.aligned 1;\n")]);
    reported("a wait for the group before", &one, THREADS, "that was not waited for");
    let unused = product(&[(WAIT, ""), ("add.f32 %f5, %f1, %f4;\nst.global.f32 [%rd4], %f5;", "")]);
    reported("a result that nobody reads", &unused, THREADS, "a wgmma that nobody waited for");
}

#[test]
fn dropped_group_is_caught() {
    let values =
        reported("no group", &product(&[("wgmma.commit_group.sync.aligned;\n", "")]), THREADS, "not waited for");
    assert_eq!(sum(&values), 0.0);
}

#[test]
fn dropped_fence_of_registers_is_caught() {
    reported("no fence", &product(&[(FENCE, "")]), THREADS, "before the first wgmma.fence");
    let early = product(&[(FENCE, ""), ("mov.f32 %f1,", "wgmma.fence.sync.aligned;\nmov.f32 %f1,")]);
    reported("fence before the sums are cleared", &early, THREADS, "used before, without wgmma.fence");
    let read = format!("{WAIT}add.f32 %f6, %f1, %f2;\n{MULTIPLY}wgmma.commit_group.sync.aligned;\n{WAIT}");
    reported("sums are read in between", &product(&[(WAIT, &read)]), THREADS, "used before, without wgmma.fence");
    let fenced = read.replace("%f2;\n", &format!("%f2;\n{FENCE}"));
    assert_eq!(sum(&right("with a fence", &product(&[(WAIT, &fenced)]), THREADS)), 64.0);
}

#[test]
fn sums_of_another_shape_need_a_fence() {
    let wide = "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4, %f7, %f8, %f9, %f10}, %rd6, %rd6, \
                %p2, 1, 1, 0, 0;\n";
    let both = format!("{MULTIPLY}{wide}");
    reported("no fence", &product(&[(MULTIPLY, &both)]), THREADS, "used before, without wgmma.fence");
    right("a fence", &product(&[(MULTIPLY, &format!("{MULTIPLY}{FENCE}{wide}"))]), THREADS);
}

#[test]
fn left_matrix_in_registers_stays_until_the_wait() {
    let from_registers = MULTIPLY.replace("%rd6, %rd7", "{%r2, %r2, %r2, %r2}, %rd7");
    let values = right("as it is", &product(&[(MULTIPLY, &from_registers)]), THREADS);
    assert_eq!(sum(&values), 32.0);
    let overwritten = product(&[(MULTIPLY, &from_registers), (WAIT, &format!("mov.b32 %r2, 0;\n{WAIT}"))]);
    assert_ne!(sum(&reported("overwritten", &overwritten, THREADS, "that was not waited for")), 32.0);
}

#[test]
fn dropped_proxy_fence_is_caught() {
    reported("no fence", &product(&[(PROXY_FENCE, "")]), THREADS, "without `fence.proxy.async`");
    let global = product(&[(PROXY_FENCE, "fence.proxy.async.global;\n")]);
    reported("fence for global memory", &global, THREADS, "without `fence.proxy.async`");
    // The fence stands in one thread's way, and the others' stores are not behind it.
    let early =
        product(&[(PROXY_FENCE, ""), ("mov.u32 %r3, tile;\n", "fence.proxy.async.shared::cta;\nmov.u32 %r3, tile;\n")]);
    reported("fence before the stores", &early, THREADS, "without `fence.proxy.async`");
    let copied = "cp.async.cg.shared.global [%r5], [%rd1], 16;\ncp.async.wait_all;\nsetp.gt.u32 %p1, %r1, 15;\n";
    let kernel = [("setp.gt.u32 %p1, %r1, 15;\n", copied)];
    right("copies before the fence", &product(&kernel), THREADS);
    let kernel = product(&[kernel[0], (PROXY_FENCE, "")]);
    reported("copies without a fence", &kernel, THREADS, "without `fence.proxy.async`");
}

#[test]
fn dropped_barrier_before_a_product_is_caught() {
    reported("no barrier", &product(&[("bar.sync 0;\n", "")]), THREADS, "without a barrier behind a write by warp");
}

#[test]
fn operands_stay_until_the_wait() {
    let own = format!("st.shared.b32 [%r5], %r1;\n{WAIT}");
    let values = reported("by the same warp", &product(&[(WAIT, &own)]), THREADS, "overwrites before it waits");
    assert_ne!(sum(&values), 32.0);
    // Warp 3 overwrites the right matrix when it has its own results.
    let other = format!("{WAIT}setp.lt.u32 %p3, %r1, 112;\n@%p3 bra $kept;\nst.shared.b32 [%r5+256], %r1;\n$kept:\n");
    reported("by another warp", &product(&[(WAIT, &other)]), THREADS, "without a barrier behind a read by");
    let barrier = other.replace("setp.lt", "bar.sync 0;\nsetp.lt");
    right("behind a barrier", &product(&[(WAIT, &barrier)]), THREADS);
}

#[test]
fn warpgroups_multiply_as_a_whole() {
    let skip = format!("setp.gt.u32 %p3, %r1, 95;\n@%p3 bra $skip;\n{MULTIPLY}$skip:\n");
    reported("three warps of four", &product(&[(MULTIPLY, &skip)]), THREADS, "different numbers of wgmma");
}

#[test]
fn descriptor_of_a_swizzle_starts_with_its_pattern() {
    let swizzled = |offset: &str| {
        product(&[(
            "add.s64 %rd7, %rd6, 128;",
            &format!("add.s64 %rd7, %rd6, {offset};\nor.b64 %rd7, %rd7, 0x4000000000000000;"),
        )])
    };
    right("within a row of the pattern", &swizzled("66"), THREADS);
    reported("in the middle of the pattern", &swizzled("72"), THREADS, "base offset 0");
}
