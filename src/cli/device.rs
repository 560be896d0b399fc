//! The commands that need a model: devices, benchmarks, export.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::args::BenchCommand;
use super::{Failure, give, print, print_json, runtime, show};
use crate::config::{DeviceConfig, MachineConfig, RunConfig};
use crate::device::{self, Chosen, Cuda};
use crate::pipeline;
use crate::pipeline::bench::{self, ForwardBench, HeadBench};

/// What a model can run on here.
#[derive(Debug, Serialize)]
pub(super) struct Devices {
    /// What a run would use.
    pub(super) chosen: Chosen,
    pub(super) cuda: Cuda,
}

/// Probes for CUDA, where this process was started for that, and gives its exit code then.
pub(super) fn probe() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != device::PROBE_COMMAND || args.next().is_some() {
        return None;
    }
    let found = serde_json::to_string(&device::probe::here()).ok()?;
    print(&found);
    Some(ExitCode::SUCCESS)
}

pub(super) fn list(asked: &DeviceConfig, json: bool) -> Result<(), Failure> {
    let cuda = device::cuda();
    let chosen = device::decide(asked.kind, asked.index, cuda.clone());
    let chosen = chosen.map_err(|error| Failure::new(5, error.to_string()))?;
    let found = Devices { chosen, cuda };
    give(json, &found, || show::devices(&found))
}

pub(super) fn bench(command: BenchCommand, machine: &MachineConfig, json: bool) -> Result<(), Failure> {
    let runtime = runtime(0)?;
    match command {
        BenchCommand::Forward {
            checkpoint,
            precision,
            pool,
            layer,
            size_px,
            batch_size,
            rows,
            pixels,
            features,
            passes,
        } => {
            let wanted = ForwardBench {
                checkpoint,
                precision,
                pool,
                layer,
                size_px,
                batch_size,
                rows,
                pixels,
                features,
                passes,
            };
            let report = runtime.block_on(bench::forward(wanted, machine))?;
            give(json, &report, || show::forward(&report))
        }
        BenchCommand::Head {
            classes,
            dim,
            batch_size,
            steps,
            precision,
            learning_rate,
            momentum,
            weight_decay,
            seed,
            features,
            labels,
            resume,
            save,
            log_every,
        } => {
            let wanted = HeadBench {
                classes,
                dim,
                batch_size,
                steps,
                precision,
                learning_rate,
                momentum,
                weight_decay,
                seed,
                data: features.zip(labels),
                resume,
                save,
                log_every,
            };
            let report = runtime.block_on(bench::head(wanted, machine))?;
            give(json, &report, || show::head(&report))
        }
        BenchCommand::Rank { classes, dim, rows, top_k } => {
            let report = runtime.block_on(bench::rank(classes, dim, rows, top_k, machine))?;
            give(json, &report, || show::rank(&report))
        }
    }
}

pub(super) fn ceiling_of(ids: &Path) -> Result<f64, Failure> {
    Ok(runtime(0)?.block_on(pipeline::ceiling_of(&ids.display().to_string()))?)
}

pub(super) fn export(plan: &RunConfig, out: &Path, json: bool) -> Result<(), Failure> {
    let step = pipeline::export(plan, out)?;
    if json {
        return print_json(&serde_json::json!({ "step": step, "out": out }));
    }
    print(&format!("the head of step {step} with its backbone is in `{}`", out.display()));
    Ok(())
}
