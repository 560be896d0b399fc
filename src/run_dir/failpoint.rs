//! Failpoints: named places at which a test kills the process.
//!
//! `WIKICAP_KILL_AT="rename journal/features 3"` sends SIGKILL to this process when it reaches the failpoint `rename` for the
//! third time with a subject that starts with `journal/features`. The failpoints surround every change of a name:
//!
//! | failpoint | place |
//! | --- | --- |
//! | `fill`, `filled` | before a temporary file is created; after it is filled and before it is synced |
//! | `rename`, `renamed` | before and after a rename to the final name |
//! | `link`, `linked` | before and after a link to a name that must be free |
//! | `remove`, `removed` | before and after a file or folder is removed |
//! | `put`, `put-done` | before and after an object is written to a remote run directory |
//!
//! Without the variable a failpoint costs one read of a static.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Failpoint {
    point: String,
    subject: String,
    remaining: AtomicU64,
}

fn requested() -> Option<&'static Failpoint> {
    static REQUESTED: OnceLock<Option<Failpoint>> = OnceLock::new();
    REQUESTED
        .get_or_init(|| {
            let text = std::env::var("WIKICAP_KILL_AT").ok()?;
            let mut words = text.split_whitespace();
            let point = words.next()?.to_owned();
            let subject = words.next().unwrap_or_default().to_owned();
            let remaining = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
            Some(Failpoint { point, subject, remaining: AtomicU64::new(remaining) })
        })
        .as_ref()
}

/// Kills the process if the environment requests it for this failpoint and subject.
pub fn point(name: &str, subject: &str) {
    let Some(failpoint) = requested() else { return };
    let subject = subject.trim_start_matches("./");
    if failpoint.point == name
        && subject.starts_with(&failpoint.subject)
        && failpoint.remaining.fetch_sub(1, Ordering::SeqCst) == 1
    {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
        // Nothing may happen before the signal arrives.
        loop {
            std::thread::park();
        }
    }
}
