//! Probe of CUDA that runs in a separate process, and its result.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use cubecl::cuda::install::cuda_path;
use cudarc::driver::CudaContext;
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
use serde::{Deserialize, Serialize};

use super::headers;
use super::toolkit::{self, CudaVersion, Situation};

/// Kernel that includes every header of the generated ones.
const KERNEL: &str = "
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
#include <cuda/barrier>
#include <cooperative_groups.h>
extern \"C\" __global__ void probe(__nv_bfloat16* out) { out[threadIdx.x] = __float2bfloat16(1.0f); }
";

/// Upper bound on the characters shown of a compiler log.
const LOG_CHARS: usize = 200;

/// Result of the CUDA probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CudaStatus {
    /// Whether at least one GPU can run a model.
    pub usable: bool,
    /// Everything that is missing for all GPUs, with remedies; `None` if nothing is missing.
    pub problem: Option<String>,
    /// Driver version, if known.
    pub driver: Option<String>,
    /// Latest version of CUDA that the driver supports, if known.
    pub driver_cuda: Option<String>,
    /// Version of NVRTC, if known.
    pub toolkit: Option<String>,
    /// Folder in which the toolkit's headers are searched.
    pub include: Option<PathBuf>,
    /// GPUs of the machine.
    pub devices: Vec<GpuInfo>,
}

/// GPU of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuInfo {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Compute capability: `9.0` is Hopper.
    pub compute_capability: String,
    /// Total memory, in bytes.
    pub memory_bytes: u64,
    /// Free memory, in bytes.
    pub free_bytes: u64,
    /// Reason why the GPU is unusable; `None` if it is usable.
    pub problem: Option<String>,
}

impl CudaStatus {
    pub(super) fn unusable(problem: String) -> Self {
        Self {
            usable: false,
            problem: Some(problem),
            driver: None,
            driver_cuda: None,
            toolkit: None,
            include: None,
            devices: Vec::new(),
        }
    }
}

/// Returns the first cause without its remedy. Problems have the form `cause: remedy` and are separated by `; `.
pub(super) fn first_cause(problem: &str) -> &str {
    let first = problem.split("; ").next().unwrap_or(problem);
    first.split(": ").next().unwrap_or(first)
}

/// Probes in the current process, which may panic, crash or hang; run it only in a process started for this purpose.
pub fn probe_in_process() -> CudaStatus {
    std::panic::set_hook(Box::new(|_| {}));
    let cuda_folder = cuda_path();
    let from_env = std::env::var_os("CUDA_PATH").is_some();
    let include = cuda_folder.as_deref().map(|path| headers::include_folders(path)[0].clone());
    let image = std::env::var("WIKICAP_IMAGE").ok().filter(|image| !image.is_empty());
    let mut situation = Situation { toolkit: None, driver: driver_version(), image };
    // Even without headers or GPUs, this checks that NVRTC is available.
    let nvrtc = find_nvrtc(&situation);
    situation.toolkit = nvrtc.as_ref().ok().copied().flatten();
    let mut problems = Vec::new();
    let mut gpus = open_gpus(&situation).unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    let headers = headers::find_problem(cuda_folder.as_deref(), from_env);
    let includes = cuda_folder.as_deref().filter(|_| headers.is_none()).map(headers::include_folders);
    match nvrtc {
        // An image without NVRTC has no headers either, and the same image brings both.
        Err(problem) if situation.image.is_some() => problems.push(problem),
        nvrtc => problems.extend(headers.into_iter().chain(nvrtc.err())),
    }
    if let (Some(includes), true) = (&includes, problems.is_empty()) {
        check_kernel(includes, &mut gpus, &situation);
    }
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    let devices: Vec<GpuInfo> = gpus.into_iter().map(|(gpu, _)| gpu).collect();
    let usable = problem.is_none() && devices.iter().any(|gpu| gpu.problem.is_none());
    let driver_cuda = situation.driver.as_deref().and_then(toolkit::supported_by).map(|cuda| cuda.to_string());
    let toolkit = situation.toolkit.map(|version| version.to_string());
    CudaStatus { usable, problem, driver: situation.driver, driver_cuda, toolkit, include, devices }
}

/// GPU with its context, which is `None` if the GPU has a problem.
type OpenGpu = (GpuInfo, Option<Arc<CudaContext>>);

fn open_gpus(situation: &Situation) -> Result<Vec<OpenGpu>, String> {
    let count = catch_unwind(CudaContext::device_count)
        .map_err(|_| situation.no_library())?
        .map_err(|error| format!("the driver cannot be initialised ({error})"))?;
    if count == 0 {
        return Err("the driver shows no GPU: check CUDA_VISIBLE_DEVICES".to_owned());
    }
    let closed = |index: usize, error| {
        let problem = Some(format!("GPU {index} cannot be opened ({error}): check nvidia-smi, or select another GPU"));
        let (name, compute_capability) = ("unknown".to_owned(), "unknown".to_owned());
        let gpu = GpuInfo { index: index as u32, name, compute_capability, memory_bytes: 0, free_bytes: 0, problem };
        (gpu, None)
    };
    Ok((0..count as usize).map(|index| open_gpu(index).unwrap_or_else(|error| closed(index, error))).collect())
}

fn open_gpu(index: usize) -> Result<OpenGpu, cudarc::driver::DriverError> {
    let context = CudaContext::new(index)?;
    let (major, minor) = context.compute_capability()?;
    let (free, all) = context.mem_get_info()?;
    let gpu = GpuInfo {
        index: index as u32,
        name: context.name()?,
        compute_capability: format!("{major}.{minor}"),
        memory_bytes: all as u64,
        free_bytes: free as u64,
        problem: None,
    };
    Ok((gpu, Some(context)))
}

/// Compiles a trivial kernel and returns the version of NVRTC, if its output names one.
fn find_nvrtc(situation: &Situation) -> Result<Option<CudaVersion>, String> {
    match compile("extern \"C\" __global__ void probe() {}", Vec::new()) {
        Ok(ptx) => Ok(toolkit::version_in_ptx(&ptx.to_src())),
        Err(CompileFailure::NoNvrtc) => Err(situation.no_nvrtc()),
        Err(CompileFailure::Log(log)) => Err(format!("NVRTC cannot compile a kernel: {log}")),
    }
}

/// Compiles a kernel for each compute capability and loads it on each GPU. A kernel that NVRTC or the driver refuses is a
/// problem of that GPU.
fn check_kernel(includes: &[PathBuf; 2], gpus: &mut [OpenGpu], situation: &Situation) {
    let mut kernels: BTreeMap<String, Result<Ptx, String>> = BTreeMap::new();
    for (gpu, context) in gpus {
        let Some(context) = context else { continue };
        let generation = gpu.compute_capability.clone();
        let kernel = kernels.entry(generation).or_insert_with_key(|generation| {
            compile_for(generation, includes).map_err(|failure| {
                situation.unknown_generation(generation).unwrap_or_else(|| match failure {
                    CompileFailure::NoNvrtc => situation.no_nvrtc(),
                    CompileFailure::Log(log) => format!("NVRTC cannot compile a kernel: {log}"),
                })
            })
        });
        gpu.problem = match kernel {
            Ok(ptx) => context.load_module(ptx.clone()).err().map(|error| situation.refused_kernel(&error)),
            Err(problem) => Some(problem.clone()),
        };
    }
}

/// Reason why a kernel does not compile.
enum CompileFailure {
    /// The library is missing.
    NoNvrtc,
    /// The beginning of the compiler's log.
    Log(String),
}

fn compile_for(generation: &str, includes: &[PathBuf; 2]) -> Result<Ptx, CompileFailure> {
    let number = generation.replace('.', "");
    let suffix = if number.parse::<u32>().is_ok_and(|number| number >= 90) { "a" } else { "" };
    let mut options = vec![format!("--gpu-architecture=sm_{number}{suffix}")];
    options.extend(includes.iter().map(|folder| format!("--include-path={}", folder.display())));
    compile(KERNEL, options)
}

fn compile(source: &str, options: Vec<String>) -> Result<Ptx, CompileFailure> {
    let options = CompileOptions { options, ..CompileOptions::default() };
    let compiled = catch_unwind(AssertUnwindSafe(|| compile_ptx_with_opts(source, options)));
    compiled.map_err(|_| CompileFailure::NoNvrtc)?.map_err(|error| {
        let log = match &error {
            CompileError::CompileError { log, .. } => log.to_string_lossy().replace('\n', " "),
            other => format!("{other:?}"),
        };
        CompileFailure::Log(log.chars().take(LOG_CHARS).collect::<String>().trim().to_owned())
    })
}

/// Reads the driver version from `/proc/driver/nvidia/version`: the first word with a dot after `Module`.
fn driver_version() -> Option<String> {
    parse_version(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

fn parse_version(text: &str) -> Option<String> {
    let words = text.lines().next()?.split_whitespace().skip_while(|word| *word != "Module");
    let mut words = words.filter(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()));
    words.next().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_version_is_parsed_in_both_formats() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.2";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build";
        assert_eq!(parse_version(closed).as_deref(), Some("535.104.05"));
        assert_eq!(parse_version(open).as_deref(), Some("580.65.06"));
        assert_eq!(parse_version("nothing"), None);
    }
}
