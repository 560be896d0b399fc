//! Which process this is, in words that another machine can read.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process of some host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub process: u32,
    /// Its host's name.
    pub host: String,
    /// Which boot of the host, and which space of process numbers in it.
    space: String,
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "process {} on {}", self.process, self.host)
    }
}

impl Process {
    /// One of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self { host: "an unknown host".to_owned(), ..Self::default() }
    }

    /// This process.
    pub fn this() -> Self {
        Self { process: std::process::id(), host: host(), space: space() }
    }

    /// Whether it ran on this host and is gone; one of another host is never known to be.
    pub fn is_gone(&self) -> bool {
        !self.space.is_empty() && self.space == space() && !is_running(self.process)
    }
}

/// This machine's name.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "this host".to_owned(), |name| name.trim().to_owned())
}

/// Which boot of this machine, and which space of process numbers in it; empty where that is not told.
fn space() -> String {
    let boot = boot();
    let processes = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    if boot.is_empty() || processes.is_empty() { String::new() } else { format!("{boot} {processes}") }
}

/// Which boot of this machine; empty where that is not told. What was written and not made durable is whole within one.
pub fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Whether there is such a process that still runs; one that ended and was not yet waited for does not.
fn is_running(process: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The state follows the program's name, which stands in parentheses and may hold some.
    let state = text.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X' | 'x'))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_is_there_until_it_ends() {
        let this = Process::this();
        assert!(!this.is_gone());
        assert!(Process { process: u32::MAX, ..this }.is_gone());
        assert!(!Process { process: u32::MAX, ..Process::default() }.is_gone());
    }

    #[test]
    fn a_process_that_ended_does_not_run_even_before_it_is_waited_for() {
        assert!(is_running(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let since = Instant::now();
        while is_running(child.id()) && since.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_running(child.id()));
        child.wait().unwrap();
        assert!(!is_running(child.id()));
    }
}
