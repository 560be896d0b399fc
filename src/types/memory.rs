//! Memory that a process may use.

use std::fmt;

/// Memory that this process may use, and who sets the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvailableMemory {
    /// Number of bytes.
    pub bytes: u64,
    /// True if a control group (a container, a Slurm job) sets the limit; otherwise it is the memory of the machine.
    pub in_container: bool,
}

impl fmt::Display for AvailableMemory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.in_container { "this container may use " } else { "this machine has " })?;
        let mib = self.bytes >> 20;
        if mib < 10 * 1024 { write!(out, "{mib} MiB") } else { write!(out, "{:.1} GiB", mib as f64 / 1024.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_who_limits_the_memory() {
        let text = |bytes, in_container| AvailableMemory { bytes, in_container }.to_string();
        assert_eq!(text(512 << 20, true), "this container may use 512 MiB");
        assert_eq!(text((24 << 30) - 4096, false), "this machine has 24.0 GiB");
    }
}
