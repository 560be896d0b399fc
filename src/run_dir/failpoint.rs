//! Failpoints: named places at which a test kills or stops the process.
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
//! `WIKICAP_STOP_AT` has the same form and sends SIGSTOP, so that a test can act while the process is at that place.
//!
//! Without the variables a failpoint costs one read of a static.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Variables of the environment and the signals that they request.
const VARIABLES: [(&str, Signal); 2] = [("WIKICAP_KILL_AT", Signal::KILL), ("WIKICAP_STOP_AT", Signal::STOP)];

struct Failpoint {
    signal: Signal,
    point: String,
    subject: String,
    remaining: AtomicU64,
}

impl Failpoint {
    fn parse(signal: Signal, text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let point = words.next()?.to_owned();
        let subject = words.next().unwrap_or_default().to_owned();
        let remaining = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
        Some(Self { signal, point, subject, remaining: AtomicU64::new(remaining) })
    }
}

fn requested() -> &'static [Failpoint] {
    static REQUESTED: OnceLock<Vec<Failpoint>> = OnceLock::new();
    REQUESTED.get_or_init(|| {
        let parse = |(variable, signal)| Failpoint::parse(signal, &std::env::var(variable).ok()?);
        VARIABLES.into_iter().filter_map(parse).collect()
    })
}

/// Kills or stops the process if the environment requests it for this failpoint and subject.
pub fn point(name: &str, subject: &str) {
    for failpoint in requested() {
        if failpoint.point == name
            && subject.trim_start_matches("./").starts_with(&failpoint.subject)
            && failpoint.remaining.fetch_sub(1, Ordering::SeqCst) == 1
        {
            kill_process(getpid(), failpoint.signal).ok();
            // Nothing may happen before a fatal signal arrives.
            if failpoint.signal == Signal::KILL {
                loop {
                    std::thread::park();
                }
            }
        }
    }
}
