//! The machine file: `[limits]`, `[scratch]`, `[device]` and `[store]`.

use std::path::PathBuf;
use std::time::Duration;

use super::super::ConfigError;
use super::super::parse::MachineFile;
use super::super::raw::{RawDevice, RawLimits, RawMachine, RawStore};
use super::super::value::Bytes;
use super::{Problems, non_empty, refuse_unexpanded};
use crate::types::DeviceKind;

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
        let machine = check_machine(&file.0, &mut problems);
        problems.into_result(machine)
    }
}

impl Default for MachineConfig {
    fn default() -> Self {
        check_machine(&RawMachine::default(), &mut Problems::default())
    }
}

/// Checked `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitsConfig {
    /// Bytes in flight between stages.
    pub memory: Bytes,
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
pub(in super::super) fn check_machine(machine: &RawMachine, problems: &mut Problems) -> MachineConfig {
    let RawLimits { memory, disk, cpu_workers, max_bad_fraction } = machine.limits;
    problems.refuse_if(cpu_workers > 1024, "limits.cpu_workers", format!("`{cpu_workers}` must be at most 1024"));
    problems.refuse_if(
        !(max_bad_fraction > 0.0 && max_bad_fraction <= 1.0),
        "limits.max_bad_fraction",
        format!("`{max_bad_fraction}` must be over 0 and at most 1"),
    );
    let RawDevice { kind, index, batch_size } = machine.device;
    problems.refuse_if(batch_size > 65_536, "device.batch_size", format!("`{batch_size}` must be at most 65536"));
    let scratch = &machine.scratch.dir;
    let store = check_store(&machine.store, problems);
    problems.refuse_if(scratch.contains("://"), "scratch.dir", format!("`{scratch}` must be a path on a local disk"));
    refuse_unexpanded(scratch, "scratch.dir", problems);
    MachineConfig {
        limits: LimitsConfig { memory, disk, cpu_workers, max_bad_fraction },
        scratch_dir: non_empty(scratch).map(PathBuf::from),
        device: DeviceConfig { kind, index, batch_size },
        store,
    }
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
