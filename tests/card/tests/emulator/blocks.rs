//! Blocks of a launch on several threads.

use cuda::module::Module;
use cuda::state::SUCCESS;

use crate::rig::{Rig, module};

const BLOCKS: u32 = 40;
const THREADS: u64 = 3;

/// A kernel that writes a word for each block.
fn kernel(body: &str) -> String {
    module(".shared .align 4 .b8 place[64];", &format!("{LONG}{body}"))
}

/// `%r2` is the block, and `%rd7` its word of `out`. A loop makes blocks long enough for threads; `%r4` is what it computed.
const LONG: &str = "mov.u32 %r2, %ctaid.x;\nmul.wide.u32 %rd6, %r2, 4;\nadd.s64 %rd7, %rd2, %rd6;\nmov.u32 %r3, 0;\nmov.u32 %r4, %r2;\n\
    LOOP:\nmad.lo.u32 %r4, %r4, 1664525, 1013904223;\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %p1, %r3, 2000;\n@%p1 bra LOOP;\n";

/// Runs all blocks of a kernel: the code, the problems and the words.
fn run(threads: u64, body: &str) -> (i32, Vec<String>, Vec<u32>) {
    let mut rig = Rig::new(false);
    rig.state.threads = threads;
    let (from, to) = (rig.buffer(&[0]), rig.buffer(&[0; BLOCKS as usize]));
    let (code, problems) = rig.run(&kernel(body), BLOCKS, 32, &[from, to]);
    (code, problems, rig.values(to, BLOCKS as usize))
}

#[test]
fn all_blocks_run_once_on_any_number_of_threads() {
    let words: Vec<u32> = (0..BLOCKS)
        .map(|block| (0..2000).fold(block, |word, _| word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
        .collect();
    for threads in [1, 2, THREADS, 100] {
        assert_eq!(run(threads, "st.global.u32 [%rd7], %r4;"), (SUCCESS, vec![], words.clone()), "{threads}");
    }
}

#[test]
fn the_first_wrong_block_is_reported() {
    // Blocks from 5 on write outside of all buffers.
    let body = "setp.ge.u32 %p2, %r2, 5;\n@%p2 mov.u64 %rd7, 64;\nst.global.u32 [%rd7], %r4;";
    let one = run(1, body);
    assert!(one.1.iter().any(|problem| problem.contains("block [5, 0, 0]")), "{:?}", one.1);
    let several = run(THREADS, body);
    assert_eq!((several.0, &several.1), (one.0, &one.1));
}

#[test]
fn blocks_of_several_threads_report_the_problems_of_one() {
    // The last blocks read shared memory that nothing wrote.
    let body = "setp.ge.u32 %p2, %r2, 30;\n@%p2 ld.shared.u32 %r4, [1024];\nst.global.u32 [%rd7], %r4;";
    let one = run(1, body).1;
    assert!(one.iter().any(|problem| problem.contains("to which nothing was written")), "{one:?}");
    assert_eq!(run(THREADS, body).1, one);
}

#[test]
fn blocks_with_atomics_run_in_order() {
    let each = "add.u32 %r5, %r2, 1;\nsetp.eq.u32 %p2, %r1, 0;\n";
    for atomic in ["atom.global.exch.b32 %r6, [%rd1], %r5;", "atom.relaxed.gpu.global.add.u32 %r6, [%rd1], 1;"] {
        let body = format!("{each}@%p2 {atomic}\n@%p2 st.global.u32 [%rd7], %r6;");
        assert_eq!(run(THREADS, &body), (SUCCESS, vec![], (0..BLOCKS).collect()), "{atomic}");
    }
    let body = format!(
        "{each}@%p2 red.global.add.u32 [%rd1], 1;\n@%p2 ld.global.u32 %r6, [%rd1];\n@%p2 st.global.u32 [%rd7], %r6;"
    );
    assert_eq!(run(THREADS, &body), (SUCCESS, vec![], (1..=BLOCKS).collect()));
}

#[test]
fn blocks_that_look_for_words_of_others_run_in_order() {
    for (load, store) in [
        ("ld.volatile.global", "st.global"),
        ("ld.global", "st.volatile.global"),
        ("ld.global.cv", "st.global"),
        ("ld.global", "st.global.wt"),
        ("ld.mmio.relaxed.sys.global", "st.global"),
        ("ld.acquire.gpu.global", "st.global"),
        ("ld.global", "st.release.gpu.global"),
        ("ld.volatile", "st"),
    ] {
        let body = format!(
            "add.u32 %r5, %r2, 1;\n{load}.u32 %r6, [%rd1];\n{store}.u32 [%rd1], %r5;\nst.global.u32 [%rd7], %r6;"
        );
        assert_eq!(run(THREADS, &body), (SUCCESS, vec![], (0..BLOCKS).collect()), "{load}, {store}");
    }
}

#[test]
fn accesses_of_shared_memory_leave_blocks_in_parallel() {
    let ordered = |body: &str| {
        let module = Module::load(kernel(body).as_bytes()).expect("a module");
        let program = module.program.as_ref().expect("PTX").as_ref().expect("a program");
        program.code(&module.entries[0].name).expect("code").ordered
    };
    for body in [
        "atom.shared.add.u32 %r6, [place], 1;",
        "atom.relaxed.cta.shared::cta.add.u32 %r6, [place], 1;",
        "red.shared.add.u32 [place], 1;",
        "st.volatile.shared.u32 [place], %r2;",
        "st.global.u32 [%rd7], %r4;",
    ] {
        assert!(!ordered(body), "{body}");
    }
    assert!(ordered("atom.global.add.u32 %r6, [%rd1], 1;"));
}
