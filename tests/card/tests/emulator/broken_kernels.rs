//! Kernels that are right run without a problem; each of them, broken on purpose, is caught.

use crate::rig::{Rig, module, numbers, run};
use cuda::module::Module;
use cuda::state::{ILLEGAL_ADDRESS, SUCCESS};

/// Each warp writes its words to shared memory and reads those of the other warp.
fn exchange(barrier: &str) -> String {
    module(
        ".shared .align 4 .b8 tile[256];",
        &format!(
            "ld.global.u32 %r2, [%rd3];\nmov.u32 %r3, tile;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r5, %r3, %r4;\n\
             st.shared.u32 [%r5], %r2;\n{barrier}\nxor.b32 %r6, %r1, 32;\nshl.b32 %r7, %r6, 2;\nadd.s32 %r8, %r3, %r7;\n\
             ld.shared.u32 %r9, [%r8];\nst.global.u32 [%rd4], %r9;"
        ),
    )
}

#[test]
fn barrier_between_write_and_read_is_right() {
    let (code, problems, values) = run(&exchange("bar.sync 0;"), 64);
    assert_eq!((code, problems), (SUCCESS, vec![]));
    assert_eq!(values[..3], [1032, 1033, 1034]);
}

#[test]
fn missing_barrier_is_a_race() {
    let (code, problems, _) = run(&exchange(""), 64);
    assert_eq!(code, SUCCESS);
    assert!(problems.iter().any(|problem| problem.contains("race: warp 1 writes shared memory")), "{problems:?}");
}

#[test]
fn barrier_of_one_warp_does_not_order_the_other() {
    let (_, problems, _) = run(&exchange("bar.warp.sync -1;"), 64);
    assert!(problems.iter().any(|problem| problem.contains("race")), "{problems:?}");
}

/// Each thread copies its word to shared memory asynchronously and reads it back.
fn asynchronous(wait: &str) -> String {
    module(
        ".shared .align 16 .b8 tile[256];",
        &format!(
            "mov.u32 %r3, tile;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r5, %r3, %r4;\n\
             cp.async.ca.shared.global [%r5], [%rd3], 4;\ncp.async.commit_group;\n{wait}\n\
             ld.shared.u32 %r9, [%r5];\nst.global.u32 [%rd4], %r9;"
        ),
    )
}

#[test]
fn waited_copy_gives_its_words() {
    let (code, problems, values) = run(&asynchronous("cp.async.wait_group 0;"), 32);
    assert_eq!((code, problems), (SUCCESS, vec![]));
    assert_eq!(values, numbers(32));
}

#[test]
fn dropped_wait_for_a_copy_gives_old_bytes_and_a_race() {
    for wait in ["", "cp.async.wait_group 1;"] {
        let (_, problems, values) = run(&asynchronous(wait), 32);
        assert_eq!(values[0], u32::MAX);
        assert!(problems.iter().any(|problem| problem.contains("before a copy to it was waited for")), "{problems:?}");
    }
}

/// Copies words; `offset` bytes are added to each address that is read.
fn copying(offset: i64) -> String {
    module("", &format!("ld.global.u32 %r2, [%rd3+{offset}];\nst.global.u32 [%rd4], %r2;"))
}

#[test]
fn access_behind_an_allocation_is_refused() {
    let (code, problems, _) = run(&copying(4), 64);
    assert_eq!(code, ILLEGAL_ADDRESS);
    assert!(problems[0].contains("lane 31 reads 4 bytes of global memory"), "{problems:?}");
}

#[test]
fn access_before_the_first_argument_of_a_page_is_refused() {
    let mut rig = Rig::new(false);
    let page = rig.buffer(&numbers(128));
    let (code, problems) = rig.run(&copying(-4), 1, 32, &[page + 256, page + 384]);
    assert_eq!(code, ILLEGAL_ADDRESS);
    assert!(problems[0].contains("which no argument points to"), "{problems:?}");
}

#[test]
fn access_to_a_buffer_that_is_no_argument_is_refused() {
    let mut rig = Rig::new(false);
    let (from, to, other) = (rig.buffer(&numbers(32)), rig.buffer(&[0; 32]), rig.buffer(&numbers(32)));
    let distance = i64::try_from(other).expect("an address") - i64::try_from(from).expect("an address");
    let (code, _) = rig.run(&copying(distance), 1, 32, &[from, to]);
    assert_eq!(code, ILLEGAL_ADDRESS);
}

#[test]
fn access_that_ends_behind_all_addresses_is_refused() {
    for (space, name) in [("global", "global memory"), ("shared", "Shared memory"), ("local", "Local memory")] {
        let (code, problems, _) = run(&module("", &format!("ld.{space}.u32 %r2, [0-4];")), 32);
        assert_eq!(code, ILLEGAL_ADDRESS, "{space}");
        assert!(problems[0].contains(&format!("reads 4 bytes of {name}")), "{problems:?}");
    }
}

#[test]
fn misaligned_access_is_refused() {
    let (code, problems, _) = run(&copying(2), 16);
    assert_eq!(code, ILLEGAL_ADDRESS);
    assert!(problems[0].contains("not aligned"), "{problems:?}");
}

#[test]
fn shared_memory_has_an_end() {
    let body = "mov.u32 %r3, tile;\nshl.b32 %r4, %r1, 2;\nadd.s32 %r5, %r3, %r4;\nst.shared.u32 [%r5+1024], %r1;";
    let (code, problems, _) = run(&module(".shared .align 4 .b8 tile[256];", body), 64);
    assert_eq!(code, ILLEGAL_ADDRESS);
    assert!(problems[0].contains("writes 4 bytes of Shared memory"), "{problems:?}");
}

#[test]
fn barrier_that_never_completes_ends_the_kernel() {
    let body = "setp.gt.u32 %p1, %r1, 31;\n@%p1 bra $other;\nbar.sync 1, 64;\n$other:\nbar.sync 0, 64;";
    let (code, problems, _) = run(&module("", body), 64);
    assert_eq!(code, ILLEGAL_ADDRESS);
    assert!(problems[0].contains("no warp can continue"), "{problems:?}");
}

#[test]
fn lanes_that_part_meet_again() {
    let body = "and.b32 %r2, %r1, 1;\nsetp.eq.u32 %p1, %r2, 1;\n@%p1 bra $odd;\nmov.u32 %r3, 10;\nbra $join;\n$odd:\n\
                mov.u32 %r3, 20;\n$join:\nshfl.sync.bfly.b32 %r4, %r3, 1, 31, -1;\nst.global.u32 [%rd4], %r4;";
    let (code, problems, values) = run(&module("", body), 32);
    assert_eq!((code, problems), (SUCCESS, vec![]));
    assert_eq!(values[..4], [20, 10, 20, 10]);
}

#[test]
fn tensor_cores_multiply_matrices() {
    // A is 16 × 16 of ones and B is 16 × 8 of twos, in bf16: each sum is 32.
    let body = "mov.b32 %r10, 0x3F803F80;\nmov.b32 %r11, 0x40004000;\nmov.f32 %f1, 0f00000000;\n\
                mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5}, {%r10, %r10, %r10, %r10}, {%r11, %r11}, \
                {%f1, %f1, %f1, %f1};\nst.global.f32 [%rd4], %f4;";
    let (code, problems, values) = run(&module("", body), 32);
    assert_eq!((code, problems), (SUCCESS, vec![]));
    assert!(values.iter().all(|value| f32::from_bits(*value) == 32.0), "{values:?}");
}

#[test]
fn unknown_instruction_refuses_the_launch() {
    let (code, problems, _) = run(&module("", "tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [tex, {%r1}];"), 32);
    assert_ne!(code, SUCCESS);
    assert!(problems[0].contains("is not supported"), "{problems:?}");
}

#[test]
fn code_for_another_generation_is_refused() {
    for target in ["sm_100", "sm_80a"] {
        let why = Module::load(copying(0).replace("sm_80", target).as_bytes()).err();
        assert!(why.is_some_and(|why| why.contains("and the card is sm_90")));
    }
}

/// A product's kernel in name: each word of the result is `factor` times that of the input, as f32.
fn product(factor: &str) -> String {
    // Three pointers, of which the last is CubeCL's for shapes.
    module(
        "",
        &format!(
            "ld.global.f32 %f1, [%rd3];\nmov.f32 %f2, {factor};\nmul.f32 %f3, %f1, %f2;\nst.global.f32 [%rd4], %f3;"
        ),
    )
    .replace(".param .u64 kernel_param_1\n", ".param .u64 kernel_param_1,\n.param .u64 kernel_param_2\n")
    .replace("kernel", "matmul_entry_lhs_f32_acc_f32")
}

#[test]
fn candidates_of_a_product_are_compared() {
    let floats: Vec<u32> = (1u16..=32).map(|index| f32::from(index).to_bits()).collect();
    let mut rig = Rig::new(false);
    let (from, one, other) = (rig.buffer(&floats), rig.buffer(&[0; 32]), rig.buffer(&[0; 32]));
    // The same product within rounding: 2 and the next number.
    for (factor, to) in [("0f40000000", one), ("0f40000001", other)] {
        assert_eq!(rig.run(&product(factor), 1, 32, &[from, to, from]), (SUCCESS, vec![]));
    }
    assert_eq!(rig.state.candidates.as_ref().map(|candidates| candidates.compared), Some(1));
    let (code, problems) = rig.run(&product("0f40400000"), 1, 32, &[from, other, from]);
    assert_eq!(code, SUCCESS);
    assert!(problems[0].contains("differs by 3.3e-1 from"), "{problems:?}");
}
