//! Benchmarks of the device on random or given input: results and rates.
//!
//! They use the same worker and handles as a run. The clock starts after a first pass or first steps, which include
//! compilation and auto-tuning and are reported separately.

mod forward;
mod head;
pub mod ingest;
mod rank;

use std::path::Path;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::MachineConfig;
use crate::device::SelectedDevice;
use crate::objects::StoreError;
use crate::pipeline::device::{self, DeviceWorker, MemoryNeeds};
use crate::pipeline::error::PipelineError;

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
    let batch_size = if batch_size == 0 { machine.device.batch_size } else { batch_size };
    Ok((device::open(&chosen, needs, batch_size, &scratch).await?, chosen))
}

fn read_file(path: &Path) -> Result<Vec<u8>, PipelineError> {
    std::fs::read(path).map_err(|error| PipelineError::Input(format!("`{}` cannot be read: {error}", path.display())))
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
