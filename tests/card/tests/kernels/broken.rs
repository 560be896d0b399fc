//! Kernels that were broken on purpose are reported, or give other values.

use crate::attention::Attention;
use crate::card::card_sm;
use crate::product::{BIAS, Kernel, Product};

/// Asserts that the card reports a problem that names `word`.
fn reported(what: &str, problems: &[String], word: &str) {
    assert!(problems.iter().any(|problem| problem.contains(word)), "{what}: {problems:#?}");
}

#[test]
fn dropped_barriers_are_races() {
    // The last of five tiles lies where the first warps store their sums.
    let product = Product::new(130, 136, 160);
    for kernel in [Kernel::Large, Kernel::Small] {
        let loop_barrier = "wait_copies<STAGES - 2>();\n        __syncthreads();";
        let source = kernel.source(BIAS, 0).replace(loop_barrier, "wait_copies<STAGES - 2>();");
        reported("barrier of the loop", &product.try_run(kernel, &source).0, "race");
        let source = kernel.source(BIAS, 0).replace("wait_copies<0>();\n    __syncthreads();", "wait_copies<0>();");
        reported("barrier before the stores", &product.try_run(kernel, &source).0, "race");
    }
    let attention = Attention::new(1, 1, 200, 64);
    let source = Attention::source(64).replace("wait_copies<1>();\n        __syncthreads();", "wait_copies<1>();");
    reported("barrier after the copies", &attention.try_run(&source).0, "race");
}

#[test]
fn dropped_wait_for_copies_is_a_race() {
    let product = Product::new(130, 136, 200);
    let source = Kernel::Large.source(BIAS, 0).replace("wait_copies<STAGES - 2>();", "");
    reported("wait of the loop", &product.try_run(Kernel::Large, &source).0, "race");
    if card_sm() == 90 {
        let source = Kernel::Wgmma.source(BIAS, 0).replace("wait(full + 8 * stage, parity);", "");
        let (problems, _) = product.try_run(Kernel::Wgmma, &source);
        assert!(!problems.is_empty(), "wait for the copy engine");
        let source =
            Kernel::Wgmma.source(BIAS, 0).replace("if (round > 0) wait(empty + 8 * stage, (round - 1) & 1);", "");
        let (problems, _) = Product::new(130, 136, 520).try_run(Kernel::Wgmma, &source);
        assert!(!problems.is_empty(), "wait for the products");
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
