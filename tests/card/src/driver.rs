//! The functions of the driver that cudarc and `CubeCL` call.
//!
//! Each takes the lock of the one `State`, checks its context, and then either answers or queues work.

pub mod device;
pub mod memory;
pub mod modules;
pub mod streams;

use std::cell::Cell;
use std::sync::{Mutex, OnceLock};

use crate::problem;
use crate::settings::settings;
use crate::state::{INVALID_CONTEXT, SUCCESS, State, state};

/// Smallest error code that leaves the context unusable, as on a card.
const FIRST_STICKY: i32 = 700;

thread_local! {
    static CURRENT_CONTEXT: Cell<u64> = const { Cell::new(0) };
}

/// Injected failure: the function, the number of calls until it fails, whether later calls fail too, and the error.
struct Failure {
    function: String,
    calls: u64,
    stays: bool,
    code: i32,
}

/// Returns the error that `EMUCUDA_FAIL` asks for at this call. `cuMemAllocAsync:100:2` lets the hundredth call give error 2, and
/// `cuMemAllocAsync:100+:2` that call and all later ones.
fn injected(name: &'static str) -> Option<i32> {
    static FAILURES: OnceLock<Mutex<Vec<Failure>>> = OnceLock::new();
    let failures = FAILURES.get_or_init(|| {
        let parse = |part: &str| {
            let mut words = part.split(':');
            let (function, calls) = (words.next()?.to_owned(), words.next()?);
            let stays = calls.ends_with('+');
            let calls = calls.trim_end_matches('+').parse().ok()?;
            Some(Failure { function, calls, stays, code: words.next()?.parse().ok()? })
        };
        Mutex::new(settings().fail.split(',').filter_map(parse).collect())
    });
    let mut failures = failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for failure in failures.iter_mut().filter(|failure| failure.function == name && failure.calls > 0) {
        failure.calls -= 1;
        if failure.calls == 0 {
            failure.calls = u64::from(failure.stays);
            return Some(failure.code);
        }
    }
    None
}

/// Counts a call and runs it, unless it is to fail, its context is missing, or an earlier failure stays.
fn with(name: &'static str, needs_context: bool, job: impl FnOnce(&mut State) -> i32) -> i32 {
    let mut state = state().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    state.count(name);
    if let Some(code) = injected(name) {
        crate::call!("{name} fails with {code}, as asked for");
        if code >= FIRST_STICKY {
            state.broken = code;
        }
        return code;
    }
    if settings().ignore.iter().any(|ignored| ignored == name) {
        crate::call!("{name} is ignored, as asked for");
        return SUCCESS;
    }
    if needs_context && CURRENT_CONTEXT.get() == 0 {
        problem!("{name} without a current context");
        return INVALID_CONTEXT;
    }
    if needs_context && state.broken != SUCCESS {
        return state.broken;
    }
    job(&mut state)
}
