//! Benchmarks of the device on random or given input: results and rates.
//!
//! They use the same worker and handles as a run. The clock starts after a first pass or first steps, which include
//! compilation and auto-tuning and are reported separately.

mod embed;
mod fit;
mod forward;
mod head;
pub mod ingest;
mod rank;

use std::path::Path;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::{ConfigError, MachineConfig, Problem};
use crate::device::SelectedDevice;
use crate::objects::StoreError;
use crate::pipeline::device::{self, DeviceWorker, MemoryNeeds};
use crate::pipeline::error::PipelineError;
use crate::train::checkpoint;

pub use embed::{EmbedBench, EmbedReport, embed};
pub use fit::{FitBench, FitReport, fit};
pub use forward::{ForwardBench, ForwardReport, forward};
pub use head::{HeadBench, HeadReport, head};
pub use rank::{RankReport, rank};

/// Seed of random input.
const SEED: u64 = 7;

/// Opens the device of a machine file. A `batch_size` of 0 keeps the batch size of the file.
async fn open(
    machine: &MachineConfig,
    needs: MemoryNeeds,
    batch_size: u32,
) -> Result<(Arc<DeviceWorker>, SelectedDevice), PipelineError> {
    let chosen = device::choose(&machine.device).await?;
    let scratch = machine.scratch_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("wikicap-bench"));
    let mut settings = machine.device;
    if batch_size != 0 {
        settings.batch_size = batch_size;
    }
    Ok((device::open(&chosen, needs, settings, &scratch).await?, chosen))
}

fn read_file(path: &Path) -> Result<Vec<u8>, PipelineError> {
    std::fs::read(path).map_err(|error| PipelineError::Input(format!("`{}` cannot be read: {error}", path.display())))
}

/// Returns the configuration error of an argument.
fn refuse(argument: &str, what: String) -> PipelineError {
    ConfigError(vec![Problem::new(argument, what)]).into()
}

/// Refuses to write raw rows of `row_bytes` over a file that does not consist of such rows.
fn require_replaceable_file(argument: &str, path: &Path, row_bytes: u64) -> Result<(), PipelineError> {
    match path.metadata() {
        Ok(found) if !found.is_file() || !found.len().is_multiple_of(row_bytes) => {
            let what = format!("`{}` exists and is not such a file: name a new one", path.display());
            Err(refuse(argument, what))
        }
        _ => Ok(()),
    }
}

/// Refuses to save a checkpoint to a directory that holds other files, or that belongs to a run.
fn require_replaceable_checkpoint(argument: &str, dir: &Path) -> Result<(), PipelineError> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let in_run = absolute.ancestors().skip(1).take(2).any(|parent| parent.join("run.toml").exists());
    let names = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let foreign = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let foreign = foreign.into_iter().find(|name| !checkpoint::FILES.contains(&name.as_str()));
    let shown = dir.display();
    match foreign {
        _ if in_run || dir.join("run.toml").exists() => {
            Err(refuse(argument, format!("`{shown}` belongs to a run: name a directory outside it")))
        }
        _ if dir.is_file() => Err(refuse(argument, format!("`{shown}` is a file: name a directory"))),
        Some(name) => Err(refuse(
            argument,
            format!("`{shown}` holds `{name}`, which is not part of a checkpoint: name a new directory"),
        )),
        None => Ok(()),
    }
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), PipelineError> {
    Ok(std::fs::write(path, content).map_err(|error| StoreError::io(path, "written", error))?)
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    ChaCha8Rng::seed_from_u64(SEED).fill_bytes(&mut bytes);
    bytes
}

/// Returns random values in [-1, 1).
fn random_values(count: usize) -> Vec<f32> {
    let words = random_bytes(4 * count);
    words.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word) as f32 / 2.0f32.powi(31)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_replace_only_their_own_kind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.f32");
        assert!(require_replaceable_file("--features", &file, 8).is_ok());
        std::fs::write(&file, [0; 8]).unwrap();
        assert!(require_replaceable_file("--features", &file, 8).is_ok());
        assert!(require_replaceable_file("--features", &file, 12).is_err());
        assert!(require_replaceable_file("--features", dir.path(), 12).is_err());

        let saved = dir.path().join("run/checkpoints/step-1");
        std::fs::create_dir_all(&saved).unwrap();
        std::fs::write(saved.join(checkpoint::STATE_FILE), "{}").unwrap();
        assert!(require_replaceable_checkpoint("--save", &saved).is_ok());
        std::fs::write(dir.path().join("run/run.toml"), "").unwrap();
        let error = require_replaceable_checkpoint("--save", &saved).unwrap_err().to_string();
        assert!(error.contains("belongs to a run"), "{error}");
        let error = require_replaceable_checkpoint("--save", dir.path()).unwrap_err().to_string();
        assert!(error.contains("not part of a checkpoint"), "{error}");
    }
}
