//! Memory, cores and out-of-memory kills of this process, as its control groups (version 1, 2 or both) define them.
//!
//! A container limits a process by control groups, while `/proc/meminfo` shows the whole host. `/proc/self/cgroup` names
//! the group of each controller, and `/proc/self/mountinfo` says where its files are. A limit of any ancestor applies, as
//! far as the mount shows them.

use std::path::{Path, PathBuf};

use crate::types::AvailableMemory;

/// Limits from this value on mean "no limit" in version 1, which stores the largest multiple of a page.
const UNLIMITED: u64 = 1 << 60;

/// Resources that this process may use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// Memory: the lowest limit of the control groups, or what the machine has if that is less.
    pub memory: Option<AvailableMemory>,
    /// Cores by the quota of the control groups; may be fractional. `None` without a quota.
    pub cpu_quota: Option<f64>,
    /// Processes of the control group that the kernel has ended for lack of memory.
    pub oom_kills: Option<u64>,
    /// Memory that the control group uses, without file pages that the kernel can drop.
    pub used_bytes: Option<u64>,
    /// Path of the memory controller's group, as this process sees it.
    pub group: String,
}

impl Resources {
    /// Reads the resources of this process. Anything that cannot be read counts as unlimited or unknown.
    pub fn read() -> Self {
        Self::read_below(Path::new("/"))
    }

    /// Reads the resources from the file tree below `root`.
    pub(super) fn read_below(root: &Path) -> Self {
        let machine = read(&root.join("proc/meminfo")).and_then(|text| meminfo_total(&text));
        let Groups { memory, cpu } = Groups::find(root);
        let limit = memory.as_ref().and_then(Group::memory_limit);
        let memory_bytes = match (limit, machine) {
            (Some(limit), Some(machine)) if limit >= machine => Some((machine, false)),
            (Some(limit), _) => Some((limit, true)),
            (None, machine) => machine.map(|bytes| (bytes, false)),
        };
        Self {
            memory: memory_bytes.map(|(bytes, in_container)| AvailableMemory { bytes, in_container }),
            cpu_quota: cpu.as_ref().and_then(Group::cpu_quota),
            oom_kills: memory.as_ref().and_then(Group::oom_kills),
            used_bytes: memory.as_ref().and_then(Group::used_bytes),
            group: memory.map_or_else(String::new, |group| group.name),
        }
    }

    /// Returns the number of threads that can run at once: at least 1, at most `cores`. A fractional quota counts in full
    /// cores only.
    pub fn usable_cores(&self, cores: usize) -> usize {
        self.cpu_quota.map_or(cores, |quota| (quota as usize).clamp(1, cores))
    }
}

/// Returns the number of cores that this process may keep busy, by its affinity and its control groups.
pub fn usable_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Resources::read().usable_cores(cores)
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Version of the control group interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A control group of this process.
#[derive(Debug, Clone)]
struct Group {
    version: Version,
    /// Path in `/proc/self/cgroup`.
    name: String,
    /// Folders of the group and of its ancestors, innermost first.
    folders: Vec<PathBuf>,
}

/// Groups of this process by controller.
#[derive(Debug, Default)]
struct Groups {
    memory: Option<Group>,
    cpu: Option<Group>,
}

impl Groups {
    fn find(root: &Path) -> Self {
        let (Some(own), Some(mounts)) = (read(&root.join("proc/self/cgroup")), read(&root.join("proc/self/mountinfo")))
        else {
            return Self::default();
        };
        let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
        let group = |controller: &str, file_one: &str, file_two: &str| {
            // A host may have both versions, and only one of them has the controller.
            let candidates = [Version::One, Version::Two].map(|version| {
                let group = find_group(root, &own, &mounts, version, controller)?;
                let file = if version == Version::One { file_one } else { file_two };
                group.folders.iter().any(|folder| folder.join(file).is_file()).then_some(group)
            });
            candidates.into_iter().flatten().next()
        };
        Self {
            memory: group("memory", "memory.limit_in_bytes", "memory.max"),
            cpu: group("cpu", "cpu.cfs_quota_us", "cpu.max"),
        }
    }
}

/// A mounted hierarchy of control groups.
#[derive(Debug)]
struct Mount<'a> {
    version: Version,
    /// Group that the mount shows at its top.
    top: &'a str,
    place: &'a str,
    controllers: &'a str,
}

impl<'a> Mount<'a> {
    /// Parses a line of `mountinfo`: `ID PARENT DEVICE ROOT PLACE OPTIONS [FIELD…] - TYPE SOURCE OPTIONS`.
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let version = match right.next()? {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let mut left = left.split(' ').skip(3);
        Some(Self { version, top: left.next()?, place: left.next()?, controllers: right.nth(1)? })
    }

    fn has(&self, version: Version, controller: &str) -> bool {
        self.version == version
            && (version == Version::Two || self.controllers.split(',').any(|name| name == controller))
    }
}

/// Finds the group of a controller. Lines of `own` have the form `ID:CONTROLLERS:PATH`, without controllers in version 2.
fn find_group(root: &Path, own: &str, mounts: &[Mount<'_>], version: Version, controller: &str) -> Option<Group> {
    let name = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let listed = match version {
            Version::One => controllers.split(',').any(|name| name == controller),
            Version::Two => controllers.is_empty(),
        };
        listed.then_some(path)
    })?;
    let mount = mounts.iter().find(|mount| mount.has(version, controller))?;
    let place = root.join(mount.place.trim_start_matches('/'));
    // In a container without a namespace for groups, the mount shows the container's own group at its top.
    let below = Path::new(name).strip_prefix(mount.top).unwrap_or(Path::new(""));
    let below =
        if below.components().any(|part| part == std::path::Component::ParentDir) { Path::new("") } else { below };
    let innermost = place.join(below);
    let folders = innermost.ancestors().take_while(|folder| folder.starts_with(&place)).map(Path::to_owned).collect();
    Some(Group { version, name: name.to_owned(), folders })
}

impl Group {
    /// Returns the lowest value that `parse` finds in the files of the group and its ancestors.
    fn lowest<T: PartialOrd>(&self, parse: impl Fn(&Path) -> Option<T>) -> Option<T> {
        self.folders.iter().filter_map(|folder| parse(folder)).reduce(|low, next| if next < low { next } else { low })
    }

    fn memory_limit(&self) -> Option<u64> {
        let file = if self.version == Version::One { "memory.limit_in_bytes" } else { "memory.max" };
        // Version 2 writes `max` where there is no limit.
        let parse = |folder: &Path| read(&folder.join(file))?.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED);
        self.lowest(parse)
    }

    fn cpu_quota(&self) -> Option<f64> {
        let quota = |quota: &str, period: &str| {
            let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        };
        match self.version {
            Version::One => self.lowest(|folder| {
                quota(&read(&folder.join("cpu.cfs_quota_us"))?, &read(&folder.join("cpu.cfs_period_us"))?)
            }),
            Version::Two => self.lowest(|folder| {
                let text = read(&folder.join("cpu.max"))?;
                let (limit, period) = text.trim().split_once(' ')?;
                quota(limit, period)
            }),
        }
    }

    /// Returns the value of a line `KEY VALUE` in a file of the innermost group.
    fn value(&self, file: &str, key: &str) -> Option<u64> {
        let text = read(&self.folders.first()?.join(file))?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }

    fn oom_kills(&self) -> Option<u64> {
        self.value(if self.version == Version::One { "memory.oom_control" } else { "memory.events" }, "oom_kill")
    }

    fn used_bytes(&self) -> Option<u64> {
        let (file, inactive) = match self.version {
            Version::One => ("memory.usage_in_bytes", "total_inactive_file"),
            Version::Two => ("memory.current", "inactive_file"),
        };
        let used: u64 = read(&self.folders.first()?.join(file))?.trim().parse().ok()?;
        Some(used.saturating_sub(self.value("memory.stat", inactive).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a file tree.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       65536000 kB\nMemFree:  1 kB\n");

    #[test]
    fn docker_on_version_2_with_a_namespace() {
        let dir = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/\n"),
            (
                "proc/self/mountinfo",
                "1 0 0:1 / / rw - overlay overlay rw\n30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
            ),
            ("sys/fs/cgroup/memory.max", "536870912\n"),
            ("sys/fs/cgroup/memory.current", "400000000\n"),
            ("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 100000000\n"),
            ("sys/fs/cgroup/memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n"),
            ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
        ]);
        let found = Resources::read_below(dir.path());
        assert_eq!(found.memory, Some(AvailableMemory { bytes: 512 << 20, in_container: true }));
        assert_eq!((found.cpu_quota, found.oom_kills, found.used_bytes), (Some(1.5), Some(3), Some(300_000_000)));
        assert_eq!((found.usable_cores(8), found.group.as_str()), (1, "/"));
    }

    #[test]
    fn limits_of_ancestors_apply_on_version_2() {
        let dir = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/slurm/job_7/step_0\n"),
            ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/slurm/memory.max", "max\n"),
            ("sys/fs/cgroup/slurm/job_7/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/slurm/job_7/cpu.max", "400000 100000\n"),
            ("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n"),
            ("sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/slurm/job_7/step_0/memory.events", "oom 0\noom_kill 0\n"),
        ]);
        let found = Resources::read_below(dir.path());
        assert_eq!(found.memory, Some(AvailableMemory { bytes: 8 << 30, in_container: true }));
        assert_eq!((found.usable_cores(16), found.usable_cores(2), found.oom_kills), (4, 2, Some(0)));
    }

    #[test]
    fn docker_on_version_1_without_a_namespace() {
        let mounts = "40 30 0:35 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      41 30 0:36 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let dir = tree(&[
            MEMINFO,
            (
                "proc/self/cgroup",
                "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/x\n",
            ),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 5\ntotal_inactive_file 4857600\n"),
            ("sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        let found = Resources::read_below(dir.path());
        assert_eq!(found.memory, Some(AvailableMemory { bytes: 1 << 30, in_container: true }));
        assert_eq!((found.cpu_quota, found.oom_kills, found.used_bytes), (Some(0.5), Some(2), Some(100_000_000)));
        assert_eq!((found.usable_cores(8), found.group.as_str()), (1, "/docker/abc"));
    }

    #[test]
    fn hybrid_host_without_limits_has_the_memory_of_the_machine() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let dir = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/session\n1:cpu:/\n0::/\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/memory/session/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let found = Resources::read_below(dir.path());
        assert_eq!(found.memory, Some(AvailableMemory { bytes: 65_536_000 * 1024, in_container: false }));
        assert_eq!((found.cpu_quota, found.usable_cores(6)), (None, 6));
    }

    #[test]
    fn version_2_serves_where_version_1_lacks_the_controller() {
        let mounts = "40 30 0:35 / /sys/fs/cgroup/systemd ro - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let dir = tree(&[
            ("proc/self/cgroup", "1:name=systemd:/a\n0::/../../b\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/unified/memory.max", "1048576\n"),
        ]);
        let found = Resources::read_below(dir.path());
        assert_eq!(found.memory, Some(AvailableMemory { bytes: 1 << 20, in_container: true }));
    }

    #[test]
    fn nothing_is_known_without_proc() {
        let found = Resources::read_below(Path::new("/nonexistent"));
        assert_eq!(found, Resources::default());
        assert_eq!(found.usable_cores(3), 3);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(Resources::read().memory.is_some_and(|memory| memory.bytes > 1 << 26));
        assert!(usable_cores() >= 1);
    }
}
