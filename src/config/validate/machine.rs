//! The machine file: `[limits]`, `[scratch]`, `[device]` and `[store]`.

use std::path::PathBuf;
use std::time::Duration;

use super::super::ConfigError;
use super::super::parse::MachineFile;
use super::super::raw::{RawDevice, RawLimits, RawStore};
use super::super::value::{Bytes, MemoryLimit};
use super::{Problems, non_empty, refuse_unexpanded};
use crate::types::{AvailableMemory, DeviceKind, KernelChoice};

/// Upper bound on an automatic `limits.memory`. More does not make a run faster.
const MOST_AUTO_BYTES: u64 = 2 << 30;

/// Automatic `limits.memory` where the memory is scarce. The default limits of `[preprocess]` need 460 MiB with two decoding
/// threads, and a few MiB more for each further one.
const SCARCE_AUTO_BYTES: u64 = 640 << 20;

/// Memory that an automatic `limits.memory` leaves to the program itself: code, threads and a small model.
const PROGRAM_BYTES: u64 = 48 << 20;

/// A checked machine file.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineConfig {
    /// Memory, disk and threads.
    pub limits: LimitsConfig,
    /// Directory on a local disk for files that may be lost with the machine; `None` for the default place
    /// (`scratch.dir`).
    pub scratch_dir: Option<PathBuf>,
    /// Device of the model.
    pub device: DeviceConfig,
    /// Access to object stores.
    pub store: StoreConfig,
}

impl MachineConfig {
    /// Checks a machine file alone, for commands without a pipeline.
    ///
    /// # Errors
    /// Lists every value that cannot work.
    pub fn check(file: &MachineFile) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let machine = check_machine(file, &mut problems);
        problems.into_result(machine)
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        check_machine(&MachineFile::default(), &mut Problems::default())
    }
}

/// Checked `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitsConfig {
    /// Bytes in flight between stages.
    pub memory: Bytes,
    /// True if `memory` was derived (`"auto"`).
    pub memory_is_auto: bool,
    /// Memory that the process may use, if known.
    pub available: Option<AvailableMemory>,
    /// Scratch disk for pixel chunks.
    pub disk: Bytes,
    /// Threads that decode images, at most 1024; 0 for one per core.
    pub cpu_workers: u32,
    /// Share of a shard's rows that may be unusable, over 0 and at most 1.
    pub max_bad_fraction: f64,
}

/// Checked `[device]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Kind of device.
    pub kind: DeviceKind,
    /// Index of the GPU.
    pub index: u32,
    /// Images in one forward pass, at most 65,536; 0 for automatic.
    pub batch_size: u32,
    /// Kernels that compute features on a GPU.
    pub kernels: KernelChoice,
}

/// Checked `[store]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// URL of an S3-compatible endpoint; empty for the environment's.
    pub endpoint: String,
    /// Time for which a request is retried; longer than zero.
    pub retry_budget: Duration,
    /// Time without a byte after which a request is made again; longer than zero.
    pub read_timeout: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        MachineConfig::default().store
    }
}

/// Checks all sections of a machine file.
pub(in super::super) fn check_machine(file: &MachineFile, problems: &mut Problems) -> MachineConfig {
    let MachineFile { raw: machine, available } = file;
    let RawLimits { memory: memory_limit, disk, cpu_workers, max_bad_fraction } = machine.limits;
    let memory = check_memory(memory_limit, *available, problems);
    problems.refuse_if(cpu_workers > 1024, "limits.cpu_workers", format!("`{cpu_workers}` must be at most 1024"));
    problems.refuse_if(
        !(max_bad_fraction > 0.0 && max_bad_fraction <= 1.0),
        "limits.max_bad_fraction",
        format!("`{max_bad_fraction}` must be over 0 and at most 1"),
    );
    let RawDevice { kind, index, batch_size, kernels } = machine.device;
    problems.refuse_if(batch_size > 65_536, "device.batch_size", format!("`{batch_size}` must be at most 65536"));
    let scratch = &machine.scratch.dir;
    let store = check_store(&machine.store, problems);
    problems.refuse_if(scratch.contains("://"), "scratch.dir", format!("`{scratch}` must be a path on a local disk"));
    refuse_unexpanded(scratch, "scratch.dir", problems);
    MachineConfig {
        limits: LimitsConfig {
            memory,
            memory_is_auto: memory_limit == MemoryLimit::Auto,
            available: *available,
            disk,
            cpu_workers,
            max_bad_fraction,
        },
        scratch_dir: non_empty(scratch).map(PathBuf::from),
        device: DeviceConfig { kind, index, batch_size, kernels },
        store,
    }
}

/// Returns the memory in flight. Refuses more than the process may use.
fn check_memory(limit: MemoryLimit, available: Option<AvailableMemory>, problems: &mut Problems) -> Bytes {
    let bytes = match limit {
        MemoryLimit::Auto => {
            return Bytes(available.map_or(MOST_AUTO_BYTES, |available| automatic_memory(available.bytes)));
        }
        MemoryLimit::Bytes(bytes) => bytes,
    };
    if let Some(available) = available.filter(|available| available.bytes < bytes.0) {
        let what = format!("`{bytes}` is too much, because {available}: lower it, or set it to \"auto\"");
        problems.refuse_if(true, "limits.memory", what);
    }
    bytes
}

/// Returns `limits.memory = "auto"` for the memory that the process may use, rounded down to whole MiB.
fn automatic_memory(available: u64) -> u64 {
    let scarce = available.saturating_sub(PROGRAM_BYTES).min(SCARCE_AUTO_BYTES);
    (available / 2).max(scarce).min(MOST_AUTO_BYTES) >> 20 << 20
}

fn check_store(store: &RawStore, problems: &mut Problems) -> StoreConfig {
    let RawStore { endpoint, retry_budget, read_timeout } = store.clone();
    problems.refuse_if(
        !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://"),
        "store.endpoint",
        format!("`{endpoint}` must be a URL that starts with `https://` or `http://`"),
    );
    problems.refuse_if(retry_budget.0.is_zero(), "store.retry_budget", "`0s` must be longer than zero");
    problems.refuse_if(read_timeout.0.is_zero(), "store.read_timeout", "`0s` must be longer than zero");
    StoreConfig { endpoint, retry_budget: retry_budget.0, read_timeout: read_timeout.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str, mib: u64) -> Result<LimitsConfig, ConfigError> {
        let available = AvailableMemory { bytes: mib << 20, in_container: true };
        let file = MachineFile::parse(text).unwrap().with_available_memory(Some(available));
        MachineConfig::check(&file).map(|machine| machine.limits)
    }

    #[test]
    fn automatic_memory_follows_the_container() {
        for (available, expected) in [(512, 464), (700, 640), (1024, 640), (3072, 1536), (4096, 2048), (65_536, 2048)] {
            let limits = limits("", available).unwrap();
            assert_eq!((limits.memory, limits.memory_is_auto), (Bytes::mib(expected), true), "{available} MiB");
        }
        assert_eq!(MachineConfig::default().limits.memory, Bytes::mib(2048));
    }

    #[test]
    fn memory_beyond_the_container_is_refused() {
        let text = "[limits]\nmemory = '1 GiB'\n";
        let refused = limits(text, 512).unwrap_err().to_string();
        assert_eq!(
            refused,
            "`limits.memory`: `1 GiB` is too much, because this container may use 512 MiB: lower it, or set it to \"auto\""
        );
        let limits = limits(text, 1024).unwrap();
        assert_eq!((limits.memory, limits.memory_is_auto), (Bytes::mib(1024), false));
    }

    #[test]
    fn memory_is_auto_or_a_size() {
        assert!(limits("[limits]\nmemory = 'auto'\n", 4096).unwrap().memory_is_auto);
        assert_eq!(limits("[limits]\nmemory = 1048576\n", 4096).unwrap().memory, Bytes::mib(1));
        for (value, expected) in
            [("'lots'", "`lots` is neither \"auto\" nor a size"), ("-1", "negative"), ("true", "\"auto\" or a size")]
        {
            let error = MachineFile::parse(&format!("[limits]\nmemory = {value}\n")).unwrap_err().to_string();
            assert!(error.starts_with("`limits.memory`: ") && error.contains(expected), "{error}");
        }
    }
}
