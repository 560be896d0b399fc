//! The binary: everything is in [`wikicap_pipeline::cli`].

/// jemalloc with one arena; its options are compiled in by `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    wikicap_pipeline::cli::main()
}
