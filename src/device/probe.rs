//! What the probe's own process does, and its answer.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use cubecl::cuda::install::cuda_path;
use cudarc::driver::CudaContext;
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
use serde::{Deserialize, Serialize};

use super::headers;

/// A kernel that needs every header that the generated ones include.
const KERNEL: &str = "
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
#include <cuda/barrier>
#include <cooperative_groups.h>
extern \"C\" __global__ void probe(__nv_bfloat16* out) { out[threadIdx.x] = __float2bfloat16(1.0f); }
";

/// Longest part of a compiler's log that is shown.
const LOG_CHARS: usize = 200;

/// What there is of CUDA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cuda {
    /// Whether a model can run on one of the cards.
    pub usable: bool,
    /// What is missing for all cards, all of it, and what to do; absent where nothing is.
    pub problem: Option<String>,
    /// The driver's version, where the system tells.
    pub driver: Option<String>,
    /// Where the toolkit's headers are looked for.
    pub include: Option<PathBuf>,
    /// The cards.
    pub devices: Vec<Card>,
}

/// A card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its generation: `9.0` is Hopper.
    pub compute_capability: String,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// How much of that is free, in bytes.
    pub free_bytes: u64,
    /// Why it cannot be used; absent where it can.
    pub problem: Option<String>,
}

impl Cuda {
    pub(super) fn unusable(problem: String) -> Self {
        Self { usable: false, problem: Some(problem), driver: None, include: None, devices: Vec::new() }
    }
}

/// The first thing that is missing, without what to do: problems are `cause: remedy`, with `; ` between them.
pub(super) fn first_cause(problem: &str) -> &str {
    let first = problem.split("; ").next().unwrap_or(problem);
    first.split(": ").next().unwrap_or(first)
}

/// Probes in this process, which may panic, crash or hang: only for one that was started for this.
pub fn here() -> Cuda {
    std::panic::set_hook(Box::new(|_| {}));
    let toolkit = cuda_path();
    let asked = std::env::var_os("CUDA_PATH").is_some();
    let include = toolkit.as_deref().map(|path| headers::folders(path)[0].clone());
    let mut problems = Vec::new();
    let mut cards = match cards() {
        Ok(cards) => cards,
        Err(problem) => {
            problems.push(problem);
            Vec::new()
        }
    };
    let headers = headers::problem(toolkit.as_deref(), asked);
    let includes = toolkit.as_deref().filter(|_| headers.is_none()).map(headers::folders);
    problems.extend(headers);
    // Without headers or cards it still shows whether NVRTC is there.
    if let Err(problem) = try_kernel(includes.as_ref(), &mut cards) {
        problems.push(problem);
    }
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    let devices: Vec<Card> = cards.into_iter().map(|(card, _)| card).collect();
    let usable = problem.is_none() && devices.iter().any(|card| card.problem.is_none());
    Cuda { usable, problem, driver: driver(), include, devices }
}

/// A card, open unless it has a problem.
type Open = (Card, Option<Arc<CudaContext>>);

fn cards() -> Result<Vec<Open>, String> {
    let count = catch_unwind(CudaContext::device_count)
        .map_err(|_| {
            "there is no NVIDIA driver (libcuda.so.1 was not found): install it, or start the container with `--gpus all`".to_owned()
        })?
        .map_err(|error| format!("the driver does not start ({error})"))?;
    if count == 0 {
        return Err("the driver shows no card: look at CUDA_VISIBLE_DEVICES".to_owned());
    }
    let closed = |index: usize, error| {
        let problem = Some(format!("card {index} does not open ({error}): look at nvidia-smi, or take another"));
        let (name, compute_capability) = ("unknown".to_owned(), "unknown".to_owned());
        let card = Card { index: index as u32, name, compute_capability, memory_bytes: 0, free_bytes: 0, problem };
        (card, None)
    };
    Ok((0..count as usize).map(|index| card(index).unwrap_or_else(|error| closed(index, error))).collect())
}

fn card(index: usize) -> Result<Open, cudarc::driver::DriverError> {
    let context = CudaContext::new(index)?;
    let (major, minor) = context.compute_capability()?;
    let (free, all) = context.mem_get_info()?;
    let card = Card {
        index: index as u32,
        name: context.name()?,
        compute_capability: format!("{major}.{minor}"),
        memory_bytes: all as u64,
        free_bytes: free as u64,
        problem: None,
    };
    Ok((card, Some(context)))
}

/// Compiles a kernel for each generation of cards and loads it on each card. What the driver refuses is the card's problem.
fn try_kernel(includes: Option<&[PathBuf; 2]>, cards: &mut [Open]) -> Result<(), String> {
    let Some(includes) = includes.filter(|_| cards.iter().any(|(card, _)| card.problem.is_none())) else {
        return compile("extern \"C\" __global__ void probe() {}", Vec::new()).map(|_| ());
    };
    let mut kernels: BTreeMap<String, Ptx> = BTreeMap::new();
    for (card, context) in cards {
        let Some(context) = context else { continue };
        let generation = &card.compute_capability;
        if !kernels.contains_key(generation) {
            kernels.insert(generation.clone(), compile_for(generation, includes)?);
        }
        if let Err(error) = context.load_module(kernels[generation].clone()) {
            card.problem =
                Some(format!("the driver refuses what NVRTC makes ({error}): it may be older than the toolkit"));
        }
    }
    Ok(())
}

fn compile_for(generation: &str, includes: &[PathBuf; 2]) -> Result<Ptx, String> {
    let number = generation.replace('.', "");
    let of_its_own = if number.parse::<u32>().is_ok_and(|number| number >= 90) { "a" } else { "" };
    let mut options = vec![format!("--gpu-architecture=sm_{number}{of_its_own}")];
    options.extend(includes.iter().map(|folder| format!("--include-path={}", folder.display())));
    compile(KERNEL, options)
}

fn compile(source: &str, options: Vec<String>) -> Result<Ptx, String> {
    let options = CompileOptions { options, ..CompileOptions::default() };
    let compiled = catch_unwind(AssertUnwindSafe(|| compile_ptx_with_opts(source, options)));
    compiled
        .map_err(|_| {
            "NVRTC was not found (libnvrtc.so): install the toolkit's, and let LD_LIBRARY_PATH lead to it".to_owned()
        })?
        .map_err(|error| {
            let said = match &error {
                CompileError::CompileError { log, .. } => log.to_string_lossy().replace('\n', " "),
                other => format!("{other:?}"),
            };
            format!("NVRTC does not compile a kernel: {}", said.chars().take(LOG_CHARS).collect::<String>().trim())
        })
}

/// The version in `/proc/driver/nvidia/version`: the first word with a dot behind `Module`.
fn driver() -> Option<String> {
    version(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

fn version(text: &str) -> Option<String> {
    let words = text.lines().next()?.split_whitespace().skip_while(|word| *word != "Module");
    let mut words = words.filter(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()));
    words.next().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_version_is_read_in_both_forms() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.2";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build";
        assert_eq!(version(closed).as_deref(), Some("535.104.05"));
        assert_eq!(version(open).as_deref(), Some("580.65.06"));
        assert_eq!(version("nothing"), None);
    }
}
