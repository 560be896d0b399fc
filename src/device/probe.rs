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
        Self { usable: false, problem: Some(problem), driver: None, include: None, devices: Vec::new() }
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
    let toolkit = cuda_path();
    let from_env = std::env::var_os("CUDA_PATH").is_some();
    let include = toolkit.as_deref().map(|path| headers::include_folders(path)[0].clone());
    let mut problems = Vec::new();
    let mut gpus = match open_gpus() {
        Ok(gpus) => gpus,
        Err(problem) => {
            problems.push(problem);
            Vec::new()
        }
    };
    let headers = headers::find_problem(toolkit.as_deref(), from_env);
    let includes = toolkit.as_deref().filter(|_| headers.is_none()).map(headers::include_folders);
    problems.extend(headers);
    // Even without headers or GPUs, this checks that NVRTC is available.
    if let Err(problem) = check_kernel(includes.as_ref(), &mut gpus) {
        problems.push(problem);
    }
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    let devices: Vec<GpuInfo> = gpus.into_iter().map(|(gpu, _)| gpu).collect();
    let usable = problem.is_none() && devices.iter().any(|gpu| gpu.problem.is_none());
    CudaStatus { usable, problem, driver: driver_version(), include, devices }
}

/// GPU with its context, which is `None` if the GPU has a problem.
type OpenGpu = (GpuInfo, Option<Arc<CudaContext>>);

fn open_gpus() -> Result<Vec<OpenGpu>, String> {
    let count = catch_unwind(CudaContext::device_count)
        .map_err(|_| {
            "there is no NVIDIA driver (libcuda.so.1 was not found): install it, or start the container with `--gpus all`".to_owned()
        })?
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

/// Compiles a kernel for each compute capability and loads it on each GPU. A kernel that the driver refuses is a
/// problem of that GPU.
fn check_kernel(includes: Option<&[PathBuf; 2]>, gpus: &mut [OpenGpu]) -> Result<(), String> {
    let Some(includes) = includes.filter(|_| gpus.iter().any(|(gpu, _)| gpu.problem.is_none())) else {
        return compile("extern \"C\" __global__ void probe() {}", Vec::new()).map(|_| ());
    };
    let mut kernels: BTreeMap<String, Ptx> = BTreeMap::new();
    for (gpu, context) in gpus {
        let Some(context) = context else { continue };
        let generation = &gpu.compute_capability;
        if !kernels.contains_key(generation) {
            kernels.insert(generation.clone(), compile_for(generation, includes)?);
        }
        if let Err(error) = context.load_module(kernels[generation].clone()) {
            gpu.problem =
                Some(format!("the driver refuses kernels of NVRTC ({error}): it may be older than the toolkit"));
        }
    }
    Ok(())
}

fn compile_for(generation: &str, includes: &[PathBuf; 2]) -> Result<Ptx, String> {
    let number = generation.replace('.', "");
    let suffix = if number.parse::<u32>().is_ok_and(|number| number >= 90) { "a" } else { "" };
    let mut options = vec![format!("--gpu-architecture=sm_{number}{suffix}")];
    options.extend(includes.iter().map(|folder| format!("--include-path={}", folder.display())));
    compile(KERNEL, options)
}

fn compile(source: &str, options: Vec<String>) -> Result<Ptx, String> {
    let options = CompileOptions { options, ..CompileOptions::default() };
    let compiled = catch_unwind(AssertUnwindSafe(|| compile_ptx_with_opts(source, options)));
    compiled
        .map_err(|_| {
            "NVRTC (libnvrtc.so) was not found: install the CUDA toolkit and add its library folder to LD_LIBRARY_PATH"
                .to_owned()
        })?
        .map_err(|error| {
            let log = match &error {
                CompileError::CompileError { log, .. } => log.to_string_lossy().replace('\n', " "),
                other => format!("{other:?}"),
            };
            format!("NVRTC cannot compile a kernel: {}", log.chars().take(LOG_CHARS).collect::<String>().trim())
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
