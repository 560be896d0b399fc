//! What the machine has to run a model on: the CPU always, CUDA where a driver, the toolkit's headers and NVRTC are.
//!
//! burn's CUDA backend panics on a thread of its own where something is missing, and a broken driver may do worse. So everything
//! that it will need is tried first, in a process of its own ([`probe::here`] is what that process does): the driver is opened, the
//! headers are looked for, a kernel that includes them is compiled by NVRTC and loaded on each card. What comes back is either
//! a list of cards or one sentence about everything that is missing.
//!
//! [`choose`] takes a device by that; [`keep_kernels`] says where compiled kernels and what tuning found are kept.

mod headers;
pub mod probe;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};
use serde::Serialize;

use crate::types::DeviceKind;
pub use probe::{Card, Cuda};

/// The hidden command under which the program probes for CUDA.
pub const PROBE_COMMAND: &str = "probe-cuda";

/// Time that a driver has to answer. A first call may start a card that sleeps.
const PROBED_WITHIN: Duration = Duration::from_mins(1);

/// Folder of compiled kernels inside the scratch directory.
const KERNELS: &str = "kernels";

/// The device that a run uses, and why it is that one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    /// `cpu` or `cuda`.
    pub kind: &'static str,
    /// Which card; 0 for the CPU.
    pub index: u32,
    /// What it is called.
    pub name: String,
    /// Why it was chosen.
    pub why: String,
    /// The card, where it is one.
    #[serde(skip)]
    pub card: Option<Card>,
    /// The driver's version, where the system tells.
    #[serde(skip)]
    pub driver: Option<String>,
}

impl Chosen {
    fn cpu(why: String) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { kind: "cpu", index: 0, name: format!("CPU with {cores} cores"), why, card: None, driver: None }
    }

    /// The folder of its kernels: those of another card or driver do not run on it.
    fn kernels(&self) -> String {
        let card = self.card.as_ref().map_or("", |card| &card.name);
        let generation = self.card.as_ref().map_or("", |card| &card.compute_capability);
        let name = format!("{card} {generation} {}", self.driver.as_deref().unwrap_or_default());
        name.trim().replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")
    }

    /// Whether it is a CUDA card.
    pub fn is_cuda(&self) -> bool {
        self.card.is_some()
    }
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} ({})", self.name, self.why)
    }
}

/// Why no device can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// CUDA was asked for and is not there.
    #[error("`device.kind` is `cuda`, but CUDA cannot be used: {0}")]
    NoCuda(String),
    /// There are fewer cards.
    #[error("`device.index` is `{index}`, but there is no such card: the machine has {cards}")]
    NoSuchCard {
        /// The card asked for.
        index: u32,
        /// How many there are.
        cards: usize,
    },
}

/// Chooses the device that a configuration asks for; looks for CUDA unless the CPU is asked for.
///
/// # Errors
/// When CUDA is asked for and cannot be used, or there is no such card.
pub fn choose(kind: DeviceKind, index: u32) -> Result<Chosen, DeviceError> {
    let found = if kind == DeviceKind::Cpu { Cuda::unusable(String::new()) } else { cuda() };
    decide(kind, index, found)
}

/// As [`choose`], by what was found.
///
/// # Errors
/// As there.
pub fn decide(kind: DeviceKind, index: u32, found: Cuda) -> Result<Chosen, DeviceError> {
    if kind == DeviceKind::Cpu {
        return Ok(Chosen::cpu("`device.kind` is `cpu`".to_owned()));
    }
    let unusable = |problem: String| match kind {
        DeviceKind::Cuda => Err(DeviceError::NoCuda(problem)),
        // Whoever has no card wants no advice; what else is missing, `devices` tells.
        _ => Ok(Chosen::cpu(format!("no CUDA: {}", probe::first_cause(&problem)))),
    };
    if let Some(problem) = found.problem {
        return unusable(problem);
    }
    let cards = found.devices.len();
    let Some(card) = found.devices.into_iter().find(|card| card.index == index) else {
        return Err(DeviceError::NoSuchCard { index, cards });
    };
    if let Some(problem) = card.problem {
        return unusable(problem);
    }
    let driver = found.driver.as_ref().map_or_else(String::new, |version| format!(", driver {version}"));
    let why = match kind {
        DeviceKind::Cuda => "`device.kind` is `cuda`",
        _ => "driver, NVRTC and the toolkit's headers are there",
    };
    let (free, all) = (gib(card.free_bytes), gib(card.memory_bytes));
    let name = format!(
        "{}, card {index}, compute capability {}, {free:.1} of {all:.1} GiB free{driver}",
        card.name, card.compute_capability
    );
    Ok(Chosen { kind: "cuda", index, name, why: why.to_owned(), card: Some(card), driver: found.driver })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// What there is of CUDA, by a process of its own.
pub fn cuda() -> Cuda {
    ask().unwrap_or_else(Cuda::unusable)
}

fn ask() -> Result<Cuda, String> {
    let program = std::env::current_exe().map_err(|error| format!("the program does not find itself: {error}"))?;
    let mut child = Command::new(program)
        .arg(PROBE_COMMAND)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("the probe cannot be started: {error}"))?;
    // Its answer is a few hundred bytes, which the pipe takes whole.
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if started.elapsed() < PROBED_WITHIN => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                child.kill().ok();
                child.wait().ok();
                let seconds = PROBED_WITHIN.as_secs();
                return Err(format!("the driver did not answer within {seconds} seconds"));
            }
            Ok(Some(_)) => break,
            Err(error) => return Err(format!("the probe cannot be waited for: {error}")),
        }
    }
    let out = child.wait_with_output().map_err(|error| format!("the probe's answer cannot be read: {error}"))?;
    serde_json::from_slice(&out.stdout).map_err(|_| format!("the driver broke the probe ({})", out.status))
}

/// Keeps compiled kernels, and what tuning found, in the scratch directory, and makes sure that no `cubecl.toml` that happens to lie
/// near the working directory changes what runs. Once a process, before its first use of CUDA, and with the scratch directory
/// its own.
pub fn keep_kernels(scratch: &Path, chosen: &Chosen) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let folder = scratch.join(KERNELS).join(chosen.kernels());
        remove_locks(&folder);
        let folder = CacheConfig::File(folder);
        let mut config = CubeClRuntimeConfig::default();
        config.autotune.cache = folder.clone();
        config.compilation.cache = Some(folder);
        // Its documented variables (CUBECL_DEBUG_LOG and others) still hold, for profiles.
        CubeClRuntimeConfig::set(config.override_from_env());
    });
}

/// Removes what a process that was killed left locked: each would delay this one by half a minute.
fn remove_locks(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            remove_locks(&path);
        } else if path.extension().is_some_and(|extension| extension == "lock") {
            std::fs::remove_file(&path).ok();
        }
    }
}

/// Panics of threads that work for a device.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Takes note of a panic, from the process's hook; `thread` is the name of the one that panics.
///
/// `CubeCL` goes on after a panic of its threads, without the kernel that was to be launched: what is computed then is not
/// what it should be.
pub fn note_panic(thread: Option<&str>) {
    if thread.is_some_and(is_runner) {
        PANICS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether a thread of this name is one of the two that `CubeCL` has for each device.
fn is_runner(thread: &str) -> bool {
    thread.starts_with("DSU-") || thread.starts_with("DSD-")
}

/// Panics so far of threads that work for a device.
pub fn panics() -> u64 {
    PANICS.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_cards() -> Cuda {
        let card = |index| Card {
            index,
            name: "NVIDIA X".to_owned(),
            compute_capability: "9.0".to_owned(),
            memory_bytes: 80 << 30,
            free_bytes: 79 << 30,
            problem: None,
        };
        Cuda {
            usable: true,
            problem: None,
            driver: Some("580.1".to_owned()),
            include: None,
            devices: vec![card(0), card(1)],
        }
    }

    #[test]
    fn auto_takes_a_card_and_says_why() {
        let chosen = decide(DeviceKind::Auto, 1, two_cards()).unwrap();
        assert_eq!((chosen.kind, chosen.index), ("cuda", 1));
        let text = chosen.to_string();
        for part in ["NVIDIA X", "card 1", "9.0", "79.0 of 80.0 GiB", "driver 580.1", "are there"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(chosen.kernels(), "NVIDIA-X-9.0-580.1");
    }

    #[test]
    fn what_is_missing_is_why_the_cpu_was_taken_and_an_error_where_cuda_was_asked_for() {
        let found = Cuda::unusable("there is no driver: install it; headers are missing: install them".to_owned());
        let chosen = decide(DeviceKind::Auto, 0, found.clone()).unwrap();
        assert!(!chosen.is_cuda());
        assert!(chosen.to_string().ends_with("(no CUDA: there is no driver)"), "{chosen}");
        let refused = decide(DeviceKind::Cuda, 0, found).unwrap_err().to_string();
        let expected =
            "`device.kind` is `cuda`, but CUDA cannot be used: there is no driver: install it; headers are missing";
        assert!(refused.starts_with(expected), "{refused}");
    }

    #[test]
    fn one_card_that_does_not_open_leaves_the_others() {
        let mut found = two_cards();
        found.devices[0].problem = Some("card 0 does not open (X): look at nvidia-smi".to_owned());
        assert!(decide(DeviceKind::Auto, 1, found.clone()).unwrap().is_cuda());
        let chosen = decide(DeviceKind::Auto, 0, found.clone()).unwrap();
        assert!(chosen.to_string().ends_with("(no CUDA: card 0 does not open (X))"), "{chosen}");
        assert!(decide(DeviceKind::Cuda, 0, found).unwrap_err().to_string().contains("look at nvidia-smi"));
    }

    #[test]
    fn locks_that_a_killed_process_left_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        for name in ["kernel.json.log", "kernel.json.lock"] {
            std::fs::write(deep.join(name), "").unwrap();
        }
        remove_locks(dir.path());
        assert!(deep.join("kernel.json.log").exists() && !deep.join("kernel.json.lock").exists());
        remove_locks(&dir.path().join("nothing"));
    }

    #[test]
    fn panics_of_the_devices_threads_count_and_no_others() {
        // The count is the process's, and other tests rely on it.
        for thread in [None, Some("main"), Some("tokio-runtime-worker")] {
            note_panic(thread);
        }
        assert_eq!(panics(), 0);
        assert!(is_runner("DSU-0-1") && is_runner("DSD-0-0") && !is_runner("device"));
    }

    #[test]
    fn a_card_that_is_not_there_is_refused() {
        let refused = decide(DeviceKind::Auto, 2, two_cards()).unwrap_err();
        assert!(refused.to_string().contains("`2`") && refused.to_string().ends_with("has 2"), "{refused}");
    }
}
