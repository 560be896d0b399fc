//! Memory that this process may use on the host: the smallest of the installed memory, the limits of its control groups
//! (containers), and its limit of address space (`ulimit -v`).

use std::fmt;
use std::path::Path;

use super::resources::Resources;
use crate::types::AvailableMemory;

/// Upper bound on the memory of this process, and its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// Number of bytes.
    pub bytes: u64,
    /// Origin of the bound.
    pub origin: MemoryOrigin,
}

/// Origin of a bound on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryOrigin {
    /// Memory of the machine.
    Installed,
    /// Limit of a control group, which container runtimes and batch systems set.
    ControlGroup,
    /// Limit of address space, set by `ulimit -v`.
    AddressSpace,
}

impl fmt::Display for MemoryOrigin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Installed => "memory of this machine",
            Self::ControlGroup => "memory limit of this container",
            Self::AddressSpace => "limit of `ulimit -v`",
        })
    }
}

impl HostMemory {
    /// Reads the bounds of this process; `None` if the system states none.
    pub fn detect() -> Option<Self> {
        Self::detect_below(Path::new("/"))
    }

    fn detect_below(root: &Path) -> Option<Self> {
        let memory = Resources::read_below(root).memory.map(|AvailableMemory { bytes, in_container }| {
            let origin = if in_container { MemoryOrigin::ControlGroup } else { MemoryOrigin::Installed };
            Self { bytes, origin }
        });
        let limits = std::fs::read_to_string(root.join("proc/self/limits")).unwrap_or_default();
        let space = parse_address_space(&limits).map(|bytes| Self { bytes, origin: MemoryOrigin::AddressSpace });
        memory.into_iter().chain(space).min_by_key(|bound| bound.bytes)
    }
}

/// Parses the soft limit of address space from `/proc/self/limits`; `None` if it is unlimited.
fn parse_address_space(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("Max address space")?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn smallest_bound_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(HostMemory::detect_below(root), None);
        write(root, "proc/meminfo", "MemTotal:       24683652 kB\nMemFree:         8171672 kB\n");
        write(
            root,
            "proc/self/limits",
            "Max address space         unlimited            unlimited            bytes     \n",
        );
        let found = || HostMemory::detect_below(root).map(|bound| (bound.bytes, bound.origin));
        assert_eq!(found(), Some((24_683_652 << 10, MemoryOrigin::Installed)));
        write(root, "proc/self/cgroup", "4:cpu,memory:/a/b\n1:name=systemd:/\n0::/c\n");
        let mounts = "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 20 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        write(root, "proc/self/mountinfo", mounts);
        write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        write(root, "sys/fs/cgroup/c/memory.max", "max\n");
        assert_eq!(found(), Some((24_683_652 << 10, MemoryOrigin::Installed)));
        write(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "8000000\n");
        write(root, "sys/fs/cgroup/memory.max", "9000000\n");
        assert_eq!(found(), Some((8_000_000, MemoryOrigin::ControlGroup)));
        write(
            root,
            "proc/self/limits",
            "Max address space         4000000              unlimited            bytes     \n",
        );
        assert_eq!(found(), Some((4_000_000, MemoryOrigin::AddressSpace)));
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(HostMemory::detect().is_none_or(|memory| memory.bytes > 1 << 20));
    }
}
