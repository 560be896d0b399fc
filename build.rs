//! Links the program at a fixed address where the target is Linux on x86-64.
//!
//! A program that can lie anywhere carries a table of every pointer in it, 2.6 MB with all kernels. What an attacker gains by knowing
//! addresses he could only use through a defect of memory, and there is no unsafe code here.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    let fixed = ["CARGO_CFG_TARGET_OS", "CARGO_CFG_TARGET_ENV", "CARGO_CFG_TARGET_ARCH"].map(of);
    if fixed == ["linux", "gnu", "x86_64"] {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
