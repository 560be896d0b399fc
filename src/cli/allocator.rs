//! The system's allocator, told to keep few arenas.
//!
//! glibc gives each thread an arena of its own, up to eight a core, and each keeps what its threads once had in hand. Blocks of
//! megabytes that pass from thread to thread leave holes in all of them: at 224 px the same run took three times the memory
//! with the default than with one arena, and more the longer it ran, at the same rate. The number is read from the
//! environment when a process starts, so this one starts itself again with it set, once, in place.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// glibc's variable; see mallopt(3).
const ARENAS: &str = "MALLOC_ARENA_MAX";

/// Starts the program again with few arenas, where that is needed; returns where it is not, or cannot be done.
pub(super) fn settle() {
    let chosen = [ARENAS, "GLIBC_TUNABLES"].iter().any(|name| std::env::var_os(name).is_some());
    if !cfg!(target_env = "gnu") || chosen {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let Some(name) = args.next() else { return };
    // It returns where it fails: the program then goes on as it is, with more memory.
    let _failed = Command::new(program).arg0(name).args(args).env(ARENAS, "1").exec();
}
