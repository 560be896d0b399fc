//! Which process this is, in words that another machine can read.

use serde::{Deserialize, Serialize};

use super::lease::{host, is_running, space};

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

impl Process {
    /// This process.
    pub fn this() -> Self {
        Self { process: std::process::id(), host: host(), space: space() }
    }

    /// Whether it ran on this host and is gone; one of another host is never known to be.
    pub fn is_gone(&self) -> bool {
        !self.space.is_empty() && self.space == space() && !is_running(self.process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_there_until_it_ends() {
        let this = Process::this();
        assert!(!this.is_gone());
        assert!(Process { process: u32::MAX, ..this }.is_gone());
        assert!(!Process { process: u32::MAX, ..Process::default() }.is_gone());
    }
}
