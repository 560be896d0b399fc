//! Identity of a process, valid across hosts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Process on some host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process ID.
    pub process: u32,
    /// Host name.
    pub host: String,
    /// Boot of the host and PID namespace.
    #[serde(rename = "space")]
    pid_namespace: String,
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "process {} on {}", self.process, self.host)
    }
}

/// Holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process, and since when it holds the lock.
    pub process: String,
    /// Work that the lock covers; empty for a whole run.
    pub work: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, work } = self;
        if work.is_empty() { out.write_str(process) } else { write!(out, "{process} ({work})") }
    }
}

impl Process {
    /// Returns a process of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self { host: "an unknown host".to_owned(), ..Self::default() }
    }

    /// Returns this process.
    pub fn current() -> Self {
        Self { process: std::process::id(), host: host_name(), pid_namespace: pid_namespace() }
    }

    /// Returns whether the process had the PID namespace of this one, so that both ran in the same container or outside of any.
    pub fn shares_pid_namespace(&self) -> bool {
        !self.pid_namespace.is_empty() && self.pid_namespace == pid_namespace()
    }

    /// Returns whether the process ran on this host and no longer does; false for processes of other hosts.
    pub fn is_gone(&self) -> bool {
        self.shares_pid_namespace() && !is_running(self.process)
    }
}

/// Returns the name of this machine.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "this host".to_owned(), |name| name.trim().to_owned())
}

/// Returns the boot ID and the PID namespace of this process; empty if unknown.
fn pid_namespace() -> String {
    let boot = boot_id();
    let processes = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    if boot.is_empty() || processes.is_empty() { String::new() } else { format!("{boot} {processes}") }
}

/// Returns the boot ID of this machine; empty if unknown. Unsynced files are complete within one boot.
pub fn boot_id() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().to_owned()
}

/// Returns whether the process exists and runs; a zombie does not.
fn is_running(process: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The state follows the program's name, which is in parentheses and may contain some.
    let state = text.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X' | 'x'))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn process_is_gone_after_it_ends() {
        let this = Process::current();
        assert!(!this.is_gone());
        assert!(Process { process: u32::MAX, ..this }.is_gone());
        assert!(!Process { process: u32::MAX, ..Process::default() }.is_gone());
    }

    #[test]
    fn zombie_does_not_run() {
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
