//! Kernels that were broken on purpose are reported, or give other values.
//!
//! Each wait, fence, barrier and group of the products and of attention is dropped in turn. `docs/card.md` lists what cannot be
//! noticed.

use crate::attention::Attention;
use crate::card::{Arg, Card, card_sm};
use crate::nvrtc::Source;
use crate::product::{BIAS, Kernel, Product};
use crate::step::{Products, Step};
use crate::values::noise;

/// Old text, new text, and words of the report that must follow.
type Fault<'a> = (&'a str, &'a str, &'a str);

/// Asserts that the card reports each fault with its words.
fn reported(source: &Source, faults: &[Fault], run: impl Fn(&Source) -> Vec<String>) {
    let mut missed = Vec::new();
    for (old, new, words) in faults {
        let problems = run(&source.replace(old, new));
        if !problems.iter().any(|problem| problem.contains(words)) {
            missed.push(format!("`{old}`, `{new}`: {problems:#?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Faults of `product_wgmma.cu`: waits, arrivals and counts of its barriers.
const BARRIERS: &[Fault] = &[
    (
        r#"asm volatile("fence.proxy.async.shared::cta;" ::: "memory");"#,
        "",
        "no proxy fence follows its initialisation",
    ),
    (
        "__syncthreads();\n\n    if (warp == WORKERS)",
        "if (warp == WORKERS)",
        "without a barrier behind its initialisation",
    ),
    ("if (round > 0) wait(empty + 8 * stage, (round - 1) & 1);", "", "more arrivals at the barrier"),
    ("(round - 1) & 1", "round & 1", "more arrivals at the barrier"),
    (r#""r"(STAGE_BYTES) : "memory""#, r#""r"(TILE_BYTES) : "memory""#, "ends before all copies"),
    (r#""r"(STAGE_BYTES) : "memory""#, r#""r"(STAGE_BYTES + TILE_BYTES) : "memory""#, "no warp can continue"),
    (
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;",
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;",
        "no warp can continue",
    ),
    (
        "copy_tile(to + (1 + part) * TILE_BYTES, &right_map, step * DEPTH, column + part * STRIP, barrier);",
        ";",
        "no warp can continue",
    ),
    ("wait(full + 8 * stage, parity);", "", "race"),
    ("wait(full + 8 * stage, parity);", "wait(full + 8 * stage, parity ^ 1);", "race"),
    ("if (step > 0 && lane == 0) arrive(empty + 8 * ((stage + STAGES - 1) % STAGES));", "", "no warp can continue"),
    ("(stage + STAGES - 1) % STAGES", "stage", "no warp can continue"),
    (r#""r"(WORKERS) : "memory""#, r#""r"(WORKERS - 1) : "memory""#, "race"),
    (r#""r"(WORKERS) : "memory""#, r#""r"(WORKERS + 1) : "memory""#, "no warp can continue"),
    (r#""r"(full + 8 * stage), "r"(1)"#, r#""r"(full + 8 * stage), "r"(2)"#, "no warp can continue"),
];

/// Faults of `product_wgmma.cu`: order of `wgmma`, and of the stores behind it.
const PRODUCTS: &[Fault] = &[
    (r#"asm volatile("wgmma.fence.sync.aligned;" ::: "memory");"#, "", "before the first wgmma.fence"),
    (r#"asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");"#, "", "that was not waited for"),
    ("wait_products<1>();", "", "race"),
    ("wait_products<1>();", "wait_products<2>();", "race"),
    ("wait_products<0>();", "", "that was not waited for"),
    ("wait_products<0>();", "wait_products<1>();", "that was not waited for"),
    (r#"asm volatile("bar.sync 1, %0;" ::"n"(32 * WORKERS) : "memory");"#, "", "race"),
    ("        __syncwarp();\n        end_tile", "        end_tile", "another lane"),
    ("__align__(1024) u8", "__align__(128) u8", "as its swizzle wants"),
    ("descriptor(base + half)", "descriptor(base + half + 128)", "base offset"),
];

#[test]
fn faults_of_the_wgmma_product_are_reported() {
    if card_sm() == 90 {
        // Nine steps, the last of which lies in a stage where warps store their sums.
        let product = Product::new(130, 264, 520);
        for kernel in [Kernel::Wgmma, Kernel::Wide] {
            for faults in [BARRIERS, PRODUCTS] {
                reported(&kernel.source(BIAS, 0), faults, |source| product.try_run(kernel, source).0);
            }
        }
        let faults = [("if (part > 0) __syncwarp();", "", "another lane")];
        reported(&Kernel::Wide.source(BIAS, 0), &faults, |source| product.try_run(Kernel::Wide, source).0);
    }
}

#[test]
fn faults_of_the_mma_product_are_reported() {
    // The last of thirteen tiles lies where the first warps store their sums, with three stages and with four.
    let product = Product::new(130, 136, 416);
    let faults = [
        ("missing -= DEPTH;\n        commit_copies();", "missing -= DEPTH;", "race"),
        ("wait_copies<STAGES - 2>();", "", "race"),
        ("wait_copies<STAGES - 2>();", "wait_copies<STAGES - 1>();", "race"),
        ("wait_copies<STAGES - 2>();\n        __syncthreads();", "wait_copies<STAGES - 2>();", "race"),
        ("wait_copies<0>();\n    __syncthreads();", "wait_copies<0>();", "race"),
        ("__syncwarp();\n            end_tile", "end_tile", "another lane"),
        ("info);\n            __syncwarp();", "info);", "another lane"),
    ];
    for kernel in [Kernel::Large, Kernel::Small] {
        reported(&kernel.source(BIAS, 0), &faults, |source| product.try_run(kernel, source).0);
    }
}

#[test]
fn faults_of_attention_are_reported() {
    let attention = Attention::new(1, 1, 200, 64);
    let faults = [
        ("value, 0);\n    commit_copies();", "value, 0);", "race"),
        ("        commit_copies();\n        wait_copies<1>();", "        wait_copies<1>();", "race"),
        ("wait_copies<1>();", "", "race"),
        ("wait_copies<1>();", "wait_copies<2>();", "race"),
        ("wait_copies<1>();\n        __syncthreads();", "wait_copies<1>();", "race"),
        ("The next round's copies overwrite this tile.\n        __syncthreads();", "\n", "race"),
        ("    __syncwarp();\n    bf16* to", "    bf16* to", "another lane"),
    ];
    reported(&Attention::source(64), &faults, |source| attention.try_run(source).0);
}

#[test]
fn dropped_barrier_of_pooling_is_a_race() {
    let (hidden, tokens) = (64, 17);
    let source = Source::new(
        &["card/common.cu", "model/kernels/row.cu", "model/kernels/pool.cu"],
        &[("HIDDEN", hidden), ("POOLING", 1)],
    );
    reported(&source, &[("    __syncthreads();", "", "race")], |source| {
        let mut card = Card::new();
        let states = card.bf16(&noise(1, (tokens * hidden) as usize));
        let (weight, bias) = (card.f32(&noise(2, hidden as usize)), card.f32(&noise(3, hidden as usize)));
        let out = card.results(hidden as usize);
        let mut args: Vec<Arg> = [states, weight, bias, out].map(Arg::Pointer).into();
        args.push(Arg::Info(vec![tokens, 1, hidden, 0, 1e-6_f32.to_bits(), 0]));
        card.try_run(source, 1, 128, 0, &args)
    });
}

#[test]
fn harmless_changes_are_not_reported() {
    let product = Product::new(130, 136, 160);
    // Only groups without a copy are under way.
    let source = Kernel::Large.source(BIAS, 0).replace("wait_copies<0>();\n", "\n");
    assert_eq!(product.try_run(Kernel::Large, &source).0, [""; 0]);
    if card_sm() == 90 {
        // It makes no instruction.
        let pinned = r#"for (int at = 0; at < 64; at++) asm volatile("" : "+f"(sums[part][at])::"memory");"#;
        let source = Kernel::Wgmma.source(BIAS, 0).replace(pinned, ";");
        assert_eq!(product.try_run(Kernel::Wgmma, &source).0, [""; 0]);
    }
}

#[test]
fn read_beyond_a_matrix_is_reported() {
    let product = Product::new(130, 136, 200);
    let source = Kernel::Large.source(BIAS, 0).replace("first + row + i * STEP < rows ? 1u : 0u", "1u");
    assert!(!product.try_run(Kernel::Large, &source).0.is_empty());
}

#[test]
fn wrong_descriptor_gives_other_values() {
    if card_sm() == 90 {
        let product = Product::new(130, 136, 200);
        let source = Kernel::Wgmma.source(BIAS, 0);
        let right = product.try_run(Kernel::Wgmma, &source).1;
        let wrong = product.try_run(Kernel::Wgmma, &source.replace("64ull << 32", "32ull << 32")).1;
        assert_ne!(right, wrong);
    }
}

#[test]
fn faults_of_a_training_step_are_reported() {
    // Seven tiles of depth in each product, the last of which lies where the first warps store their sums; and rows and classes beyond a
    // tile.
    let step = Step::new(210, 136, 200);
    let of_mma = [
        ("wait_copies<0>();\n    __syncthreads();", "wait_copies<0>();", "race"),
        ("__syncwarp();\n            end_tile", "end_tile", "another lane"),
        ("info);\n            __syncwarp();", "info);", "another lane"),
    ];
    let of_wgmma = [
        (r#"asm volatile("bar.sync 1, %0;" ::"n"(32 * WORKERS) : "memory");"#, "", "race"),
        ("        __syncwarp();\n        end_tile", "        end_tile", "another lane"),
    ];
    for kernel in Kernel::of_training() {
        let faults: &[Fault] = if kernel == Kernel::Wgmma { &of_wgmma } else { &of_mma };
        let right = Products::new(kernel, true);
        let run = |change: &dyn Fn(&mut Products)| {
            let mut products = right.clone();
            change(&mut products);
            step.run(&products, true).problems
        };
        reported(&right.statistics, faults, |source| run(&|products| products.statistics = source.clone()));
        reported(&right.difference, faults, |source| run(&|products| products.difference = source.clone()));
        reported(&right.gradient, faults, |source| run(&|products| products.gradient = source.clone()));
    }
}

#[test]
fn classes_beyond_the_head_would_count() {
    let step = Step::new(3, 131, 16);
    for kernel in Kernel::of_training() {
        let right = Products::new(kernel, true);
        let mut products = right.clone();
        products.statistics = right.statistics.replace("present = WHOLE || at + part < info.columns", "present = true");
        let (found, wrong) = (step.run(&right, true), step.run(&products, true));
        assert!(!wrong.problems.is_empty() || found.losses != wrong.losses, "{kernel:?}");
    }
}
