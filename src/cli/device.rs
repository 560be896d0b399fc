//! Commands that need a model: `devices`, `bench` with a part of the model, `export`.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::args::BenchCommand;
use super::output::{emit, print, print_json, print_raw};
use super::{Failure, render, start_runtime};
use crate::bench::{self, EmbedBench, ForwardBench, HeadBench};
use crate::config::{DeviceConfig, MachineConfig, RunConfig};
use crate::device::{self, CudaStatus, SelectedDevice};
use crate::pipeline::{self, TestImages};

/// Devices of this machine that can run a model.
#[derive(Debug, Serialize)]
pub(super) struct Devices {
    /// Device that a run would use.
    pub(super) chosen: SelectedDevice,
    /// CUDA driver, headers and GPUs.
    pub(super) cuda: CudaStatus,
}

/// Probes for CUDA if this process was started for that; returns its exit code in that case.
pub(super) fn run_probe() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != device::PROBE_COMMAND || args.next().is_some() {
        return None;
    }
    let answer = serde_json::to_string(&device::probe::probe_in_process()).ok()?;
    print_raw(&answer);
    Some(ExitCode::SUCCESS)
}

/// Lists the devices, and the one that `settings` chooses.
pub(super) fn list(settings: &DeviceConfig, json: bool) -> Result<(), Failure> {
    let cuda = device::probe_cuda();
    let chosen = device::select_from(settings.kind, settings.index, cuda.clone());
    let chosen = chosen.map_err(|error| Failure::new(5, error.to_string()))?;
    let devices = Devices { chosen, cuda };
    emit(json, &devices, || render::devices(&devices))
}

/// Measures one part of the model.
pub(super) fn bench(command: BenchCommand, machine: &MachineConfig, json: bool) -> Result<(), Failure> {
    let runtime = start_runtime(0)?;
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
            let settings = ForwardBench {
                checkpoint,
                precision,
                pool,
                layers: layer,
                size_px,
                batch_size,
                rows,
                pixels,
                features,
                passes,
            };
            let report = runtime.block_on(bench::forward(settings, machine))?;
            emit(json, &report, || render::forward(&report))
        }
        BenchCommand::Embed { checkpoint, captions, prefix, precision, vectors, passes } => {
            let settings = EmbedBench { checkpoint, captions, prefix, precision, vectors, passes };
            let report = runtime.block_on(bench::embed(settings, machine))?;
            emit(json, &report, || render::embed(&report))
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
            clip_norm,
            label_smoothing,
            micro_batch,
            seed,
            features,
            labels,
            resume,
            save,
            log_every,
        } => {
            let settings = HeadBench {
                classes,
                dim,
                batch_size,
                steps,
                precision,
                learning_rate,
                momentum,
                weight_decay,
                clip_norm,
                label_smoothing,
                micro_batch: micro_batch.unwrap_or(batch_size),
                seed,
                data: features.zip(labels),
                resume,
                save,
                log_every,
            };
            let report = runtime.block_on(bench::head(settings, machine))?;
            emit(json, &report, || render::head(&report))
        }
        BenchCommand::Fit { method, rows, dim, text_dim } => {
            let report = bench::fit(bench::FitBench { method, rows, dim, text_dim })?;
            emit(json, &report, || render::fit(&report))
        }
        BenchCommand::Rank { classes, dim, rows, top_k } => {
            let report = runtime.block_on(bench::rank(classes, dim, rows, top_k, machine))?;
            emit(json, &report, || render::rank(&report))
        }
    }
}

/// Reads the images of a file of test ids, and the highest NDCG@5 that one ranking per image can reach for it.
pub(super) fn read_test_images(ids: &Path) -> Result<TestImages, Failure> {
    Ok(start_runtime(0)?.block_on(pipeline::read_test_images(&ids.display().to_string()))?)
}

/// Writes backbone and head as a model directory.
pub(super) fn export(config: &RunConfig, out: &Path, json: bool) -> Result<(), Failure> {
    let step = pipeline::export(config, out)?;
    if json {
        return print_json(&serde_json::json!({ "step": step, "out": out }));
    }
    print(&format!("exported the backbone and the head of step {step} to `{}`", out.display()));
    Ok(())
}
