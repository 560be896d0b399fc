//! Detects the devices that can run a model: always the CPU, and CUDA if driver, toolkit headers and NVRTC are
//! available.
//!
//! burn's CUDA backend panics on its own thread if something is missing, and a broken driver can do worse. Therefore a
//! separate process first tries everything that the backend needs ([`probe::probe_in_process`]). It opens the driver,
//! searches the headers, compiles a kernel that includes them with NVRTC and loads it on each GPU. It returns a list of
//! GPUs, or one message that names everything that is missing.
//!
//! [`select_device`] selects a device from that result. [`configure_kernel_cache`] sets where compiled kernels and
//! autotuning results are stored.

mod headers;
mod kernel_cache;
pub mod probe;
mod toolkit;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};
use serde::Serialize;

use crate::types::DeviceKind;
pub use probe::{CudaStatus, GpuInfo};

/// Hidden command that runs the CUDA probe.
pub const PROBE_COMMAND: &str = "probe-cuda";

/// Timeout of the probe. The first call may have to wake a GPU.
const PROBE_TIMEOUT: Duration = Duration::from_mins(1);

/// Folder of the kernel cache inside the cache or scratch directory.
const KERNEL_FOLDER: &str = "kernels";

/// Environment variable that names a directory for compiled kernels, which outlives runs and may be shared by them.
const CACHE_VARIABLE: &str = "WIKICAP_CACHE";

/// Device of a run, and the reason for its selection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SelectedDevice {
    /// `cpu` or `cuda`.
    pub kind: &'static str,
    /// Index of the GPU; 0 for the CPU.
    pub index: u32,
    /// Description for people.
    pub name: String,
    /// Reason for the selection.
    pub why: String,
    /// GPU, unless the device is the CPU.
    #[serde(skip)]
    pub gpu: Option<GpuInfo>,
    /// Driver version, if known.
    #[serde(skip)]
    pub driver: Option<String>,
    /// Version of NVRTC, if known.
    #[serde(skip)]
    pub toolkit: Option<String>,
}

impl SelectedDevice {
    fn cpu(why: String) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            kind: "cpu",
            index: 0,
            name: format!("CPU with {cores} cores"),
            why,
            gpu: None,
            driver: None,
            toolkit: None,
        }
    }

    /// Returns the folder name of the kernel cache. Kernels of another GPU, driver, toolkit or program version cannot be reused.
    fn kernel_folder(&self) -> String {
        let gpu_name = self.gpu.as_ref().map_or("", |gpu| &gpu.name);
        let generation = self.gpu.as_ref().map_or("", |gpu| &gpu.compute_capability);
        let known = |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".to_owned());
        let (driver, toolkit) = (known(&self.driver), known(&self.toolkit));
        let name =
            format!("{gpu_name} {generation} driver {driver} cuda {toolkit} program {}", env!("CARGO_PKG_VERSION"));
        name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")
    }

    /// Returns whether the device is a CUDA GPU.
    pub fn is_cuda(&self) -> bool {
        self.gpu.is_some()
    }
}

impl std::fmt::Display for SelectedDevice {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} ({})", self.name, self.why)
    }
}

/// Error of selecting a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// CUDA was requested but is unavailable.
    #[error("`device.kind` is `cuda`, but CUDA cannot be used: {0}")]
    NoCuda(String),
    /// No GPU has the requested index.
    #[error("`device.index` is `{index}`, but no GPU has this index: the machine has {gpus}")]
    NoSuchGpu {
        /// Requested index.
        index: u32,
        /// Number of GPUs.
        gpus: usize,
    },
}

/// Selects the device that a configuration requests. Probes for CUDA unless the CPU is requested.
///
/// # Errors
/// Fails if CUDA is requested and unavailable, or no GPU has the index.
pub fn select_device(kind: DeviceKind, index: u32) -> Result<SelectedDevice, DeviceError> {
    let found = if kind == DeviceKind::Cpu { CudaStatus::unusable(String::new()) } else { probe_cuda() };
    select_from(kind, index, found)
}

/// Selects a device from the result of a probe.
///
/// # Errors
/// Same as [`select_device`].
pub fn select_from(kind: DeviceKind, index: u32, found: CudaStatus) -> Result<SelectedDevice, DeviceError> {
    if kind == DeviceKind::Cpu {
        return Ok(SelectedDevice::cpu("`device.kind` is `cpu`".to_owned()));
    }
    let unusable = |problem: String| match kind {
        DeviceKind::Cuda => Err(DeviceError::NoCuda(problem)),
        // A user without a GPU needs no advice; `devices` lists what else is missing.
        _ => Ok(SelectedDevice::cpu(format!("no CUDA: {}", probe::first_cause(&problem)))),
    };
    if let Some(problem) = found.problem {
        return unusable(problem);
    }
    let gpus = found.devices.len();
    let Some(gpu) = found.devices.into_iter().find(|gpu| gpu.index == index) else {
        return Err(DeviceError::NoSuchGpu { index, gpus });
    };
    if let Some(problem) = gpu.problem {
        return unusable(problem);
    }
    let driver = found.driver.as_ref().map_or_else(String::new, |version| format!(", driver {version}"));
    let toolkit = found.toolkit.as_ref().map_or_else(String::new, |version| format!(", NVRTC {version}"));
    let why = match kind {
        DeviceKind::Cuda => "`device.kind` is `cuda`",
        _ => "driver, NVRTC and the toolkit's headers are available",
    };
    let (free, all) = (gib(gpu.free_bytes), gib(gpu.memory_bytes));
    let name = format!(
        "{}, GPU {index}, compute capability {}, {free:.1} of {all:.1} GiB free{driver}{toolkit}",
        gpu.name, gpu.compute_capability
    );
    Ok(SelectedDevice {
        kind: "cuda",
        index,
        name,
        why: why.to_owned(),
        gpu: Some(gpu),
        driver: found.driver,
        toolkit: found.toolkit,
    })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Probes for CUDA in a separate process.
pub fn probe_cuda() -> CudaStatus {
    run_probe().unwrap_or_else(CudaStatus::unusable)
}

fn run_probe() -> Result<CudaStatus, String> {
    let program = std::env::current_exe().map_err(|error| format!("the program's own path is unknown: {error}"))?;
    let mut child = Command::new(program)
        .arg(PROBE_COMMAND)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("the probe cannot be started: {error}"))?;
    // The result is a few hundred bytes, which fit the pipe's buffer.
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if started.elapsed() < PROBE_TIMEOUT => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                child.kill().ok();
                child.wait().ok();
                let seconds = PROBE_TIMEOUT.as_secs();
                return Err(format!("the driver did not answer within {seconds} seconds"));
            }
            Ok(Some(_)) => break,
            Err(error) => return Err(format!("the state of the probe is unknown: {error}")),
        }
    }
    let out = child.wait_with_output().map_err(|error| format!("the result of the probe cannot be read: {error}"))?;
    serde_json::from_slice(&out.stdout).map_err(|_| format!("the driver crashed the probe ({})", out.status))
}

/// Stores compiled kernels and autotuning results in the folder that `WIKICAP_CACHE` names, else in the scratch directory.
/// Ignores any `cubecl.toml` near the working directory. Takes effect once per process; call it before the first use of CUDA.
pub fn configure_kernel_cache(scratch: &Path, selected: &SelectedDevice) {
    static SLOT: OnceLock<Option<kernel_cache::Slot>> = OnceLock::new();
    SLOT.get_or_init(|| {
        let root = std::env::var_os(CACHE_VARIABLE).filter(|folder| !folder.is_empty());
        let folder =
            root.map_or_else(|| scratch.to_owned(), PathBuf::from).join(KERNEL_FOLDER).join(selected.kernel_folder());
        let slot = kernel_cache::Slot::acquire(&folder)
            .inspect_err(|error| tracing::warn!("compiled kernels are not kept: `{}`: {error}", folder.display()))
            .ok();
        let cache = slot.as_ref().map(|slot| CacheConfig::File(slot.folder.clone()));
        let mut config = CubeClRuntimeConfig::default();
        // CubeCL always keeps tuning results; where they cannot be written, it goes on without.
        config.autotune.cache = cache.clone().unwrap_or(CacheConfig::File(folder));
        config.compilation.cache = cache;
        // CubeCL's documented variables (`CUBECL_DEBUG_LOG` and others) still apply, for profiling.
        CubeClRuntimeConfig::set(config.override_from_env());
        slot
    });
}

/// Number of panics of device threads.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts a panic if it happened in a thread of `CubeCL`; `file` is the source file of the panic. The process's panic hook calls
/// this.
///
/// After a panic of its threads, `CubeCL` continues without the kernel that was being launched or with memory that is never
/// freed, so later results are wrong.
pub fn record_panic(thread: Option<&str>, file: Option<&str>) {
    if is_device_thread(thread, file) {
        PANICS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Returns whether this is one of the threads that `CubeCL` starts for each device. Two have names; the one that frees memory
/// after the device has used it has none, so its source file tells.
fn is_device_thread(thread: Option<&str>, file: Option<&str>) -> bool {
    match thread {
        Some(name) => name.starts_with("DSU-") || name.starts_with("DSD-"),
        None => file.is_some_and(|file| file.contains("cubecl-") || file.contains("cudarc-")),
    }
}

/// Returns the number of panics of device threads so far.
pub fn panic_count() -> u64 {
    PANICS.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_gpus() -> CudaStatus {
        let gpu = |index| GpuInfo {
            index,
            name: "NVIDIA X".to_owned(),
            compute_capability: "9.0".to_owned(),
            memory_bytes: 80 << 30,
            free_bytes: 79 << 30,
            problem: None,
        };
        CudaStatus {
            usable: true,
            problem: None,
            driver: Some("580.1".to_owned()),
            driver_cuda: Some("13.0".to_owned()),
            toolkit: Some("12.4".to_owned()),
            include: None,
            devices: vec![gpu(0), gpu(1)],
        }
    }

    #[test]
    fn auto_selects_gpu_with_reason() {
        let selected = select_from(DeviceKind::Auto, 1, two_gpus()).unwrap();
        assert_eq!((selected.kind, selected.index), ("cuda", 1));
        let text = selected.to_string();
        for part in ["NVIDIA X", "GPU 1", "9.0", "79.0 of 80.0 GiB", "driver 580.1", "are available"] {
            assert!(text.contains(part), "{text}");
        }
        let program = env!("CARGO_PKG_VERSION");
        assert_eq!(selected.kernel_folder(), format!("NVIDIA-X-9.0-driver-580.1-cuda-12.4-program-{program}"));
    }

    #[test]
    fn missing_cuda_selects_cpu_or_fails_if_requested() {
        let found =
            CudaStatus::unusable("there is no driver: install it; headers are missing: install them".to_owned());
        let selected = select_from(DeviceKind::Auto, 0, found.clone()).unwrap();
        assert!(!selected.is_cuda());
        assert!(selected.to_string().ends_with("(no CUDA: there is no driver)"), "{selected}");
        let refused = select_from(DeviceKind::Cuda, 0, found).unwrap_err().to_string();
        let expected =
            "`device.kind` is `cuda`, but CUDA cannot be used: there is no driver: install it; headers are missing";
        assert!(refused.starts_with(expected), "{refused}");
    }

    #[test]
    fn unusable_gpu_does_not_affect_the_others() {
        let mut found = two_gpus();
        found.devices[0].problem = Some("GPU 0 cannot be opened (X): check nvidia-smi".to_owned());
        assert!(select_from(DeviceKind::Auto, 1, found.clone()).unwrap().is_cuda());
        let selected = select_from(DeviceKind::Auto, 0, found.clone()).unwrap();
        assert!(selected.to_string().ends_with("(no CUDA: GPU 0 cannot be opened (X))"), "{selected}");
        assert!(select_from(DeviceKind::Cuda, 0, found).unwrap_err().to_string().contains("check nvidia-smi"));
    }

    #[test]
    fn only_panics_of_device_threads_count() {
        // The counter is global to the process, and other tests rely on it.
        for thread in [None, Some("main"), Some("tokio-runtime-worker")] {
            record_panic(thread, Some("src/decode.rs"));
        }
        assert_eq!(panic_count(), 0);
        let collector = Some("/registry/cubecl-runtime-0.10.0/src/stream/event.rs");
        assert!(is_device_thread(None, collector) && !is_device_thread(Some("device"), collector));
        assert!(!is_device_thread(None, None) && !is_device_thread(None, Some("library/core/src/option.rs")));
        assert!(is_device_thread(Some("DSU-0-1"), None) && is_device_thread(Some("DSD-0-0"), None));
    }

    #[test]
    fn missing_gpu_index_is_refused() {
        let refused = select_from(DeviceKind::Auto, 2, two_gpus()).unwrap_err();
        assert!(refused.to_string().contains("`2`") && refused.to_string().ends_with("has 2"), "{refused}");
    }
}
