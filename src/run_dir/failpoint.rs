//! Named instants at which the process dies, for the tests that prove that it may die at any.
//!
//! `WIKICAP_KILL_AT="rename journal/features 3"` sends SIGKILL to this process when it reaches the point `rename` for the
//! third time with a subject that starts with `journal/features`. The points are where a name comes or goes:
//!
//! | point | just |
//! | --- | --- |
//! | `fill`, `filled` | before a temporary file is made, and once it is filled and not yet synced |
//! | `rename`, `renamed` | before and after it gets its name |
//! | `link`, `linked` | before and after a name that must be new is taken |
//! | `remove`, `removed` | before and after a file or folder goes |
//! | `put`, `put-done` | before and after an object is written to a remote run directory |
//!
//! Unset, which is always but in those tests, a point costs the look at one static.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Failpoint {
    point: String,
    subject: String,
    left: AtomicU64,
}

fn requested() -> Option<&'static Failpoint> {
    static REQUESTED: OnceLock<Option<Failpoint>> = OnceLock::new();
    REQUESTED
        .get_or_init(|| {
            let text = std::env::var("WIKICAP_KILL_AT").ok()?;
            let mut words = text.split_whitespace();
            let point = words.next()?.to_owned();
            let subject = words.next().unwrap_or_default().to_owned();
            let left = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
            Some(Failpoint { point, subject, left: AtomicU64::new(left) })
        })
        .as_ref()
}

/// Dies here if a test asked for it.
pub fn point(name: &str, subject: &str) {
    let Some(failpoint) = requested() else { return };
    let subject = subject.trim_start_matches("./");
    if failpoint.point == name
        && subject.starts_with(&failpoint.subject)
        && failpoint.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
        // The signal is on its way; nothing more may happen here.
        loop {
            std::thread::park();
        }
    }
}
