//! The binary: everything is in [`wikicap_pipeline::cli`].

fn main() -> std::process::ExitCode {
    wikicap_pipeline::cli::main()
}
