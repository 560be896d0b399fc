//! Features of the training images as samples in the order of training.
//!
//! [`FeaturePlacement`] decides whether features are read from their chunk files in each epoch, kept in memory, or
//! resident on the device. All placements yield the same samples in the same order. In memory, features keep the
//! precision of their files.

use std::sync::{Arc, OnceLock};

use crate::pipeline::chunk_files::{ChunkFile, fetch_files};
use crate::pipeline::device::{FeatureRows, FeaturesOnDevice};
use crate::pipeline::error::PipelineError;
use crate::pipeline::train::chunk::{Chunk, ChunkRows, Sample, SampleSpec};
use crate::run_dir::Directory;
use crate::train::Targets;
use crate::train::order::{self, Window};
use crate::types::{Precision, TargetKind};

/// Memory that a row takes in addition to its feature and its classes, in bytes.
const ROW_BYTES: u64 = 32;

/// Returns the memory that features take, in bytes.
pub(super) fn resident_bytes(rows: u64, labels: u64, dim: usize, precision: Precision) -> u64 {
    let width = match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    };
    rows * (dim as u64 * width + ROW_BYTES) + labels * 16
}

/// Storage of the features during training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FeaturePlacement {
    /// Memory of the device.
    Device,
    /// Memory of the host.
    Memory,
    /// Chunk files, read again in each epoch.
    Files,
}

/// Samples of one window, in the order of training.
pub(crate) struct WindowSamples {
    pub(crate) features: FeatureRows,
    pub(crate) targets: Targets,
}

/// A chunk whose features are on the device.
struct ResidentChunk {
    rows: ChunkRows,
    /// Row of the device's features at which the chunk starts.
    first_row: u32,
}

/// Features that were uploaded to the device.
struct Resident {
    features: FeaturesOnDevice,
    chunks: Vec<ResidentChunk>,
}

/// The feature chunks of a run, in the order of the corpus.
pub(crate) struct FeatureStore {
    dir: Directory,
    files: Vec<ChunkFile>,
    spec: SampleSpec,
    /// Chunks read so far; `None` if chunks do not stay in memory.
    cache: Option<Vec<OnceLock<Arc<Chunk>>>>,
    resident: OnceLock<Resident>,
}

impl FeatureStore {
    /// Opens a store over chunk files. Nothing is read yet.
    pub(crate) fn new(dir: Directory, files: Vec<ChunkFile>, spec: SampleSpec, placement: FeaturePlacement) -> Self {
        let in_memory = placement == FeaturePlacement::Memory;
        let cache = in_memory.then(|| files.iter().map(|_| OnceLock::new()).collect());
        Self { dir, files, spec, cache, resident: OnceLock::new() }
    }

    /// Returns the number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// Copies all features to the device. From then on, [`FeatureStore::window`] refers to rows there.
    ///
    /// # Errors
    /// As [`FeatureStore::load_chunks`]; or when the device fails.
    pub(super) async fn upload(self: &Arc<Self>, features: FeaturesOnDevice) -> Result<(), PipelineError> {
        let (mut chunks, mut first) = (Vec::with_capacity(self.len()), 0);
        for index in 0..self.len() {
            let store = Arc::clone(self);
            for chunk in tokio::task::spawn_blocking(move || store.load_chunks(&[index])).await?? {
                features.write(first, chunk.all_features()).await?;
                chunks.push(ResidentChunk { rows: chunk.rows.clone(), first_row: first as u32 });
                first += chunk.rows.len();
            }
        }
        self.resident.set(Resident { features, chunks }).ok();
        Ok(())
    }

    /// Frees the memory of the device's features, if there are any.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub(super) async fn unload(self) -> Result<(), PipelineError> {
        match self.resident.into_inner() {
            Some(resident) => resident.features.unload().await,
            None => Ok(()),
        }
    }

    fn cached(&self, index: usize) -> Option<Arc<Chunk>> {
        self.cache.as_ref().and_then(|cache| cache[index].get().cloned())
    }

    /// Returns chunks with their features, from memory if they are kept there. Blocks the thread.
    ///
    /// # Errors
    /// When a chunk cannot be read, or does not belong to this run.
    pub(crate) fn load_chunks(&self, indices: &[usize]) -> Result<Vec<Arc<Chunk>>, PipelineError> {
        let cached: Vec<Option<Arc<Chunk>>> = indices.iter().map(|index| self.cached(*index)).collect();
        let missing = indices.iter().zip(&cached).filter(|(_, chunk)| chunk.is_none());
        let files: Vec<ChunkFile> = missing.map(|(index, _)| self.files[*index].clone()).collect();
        let mut fetched = fetch_files(&self.dir, &files);
        let mut chunks = Vec::with_capacity(indices.len());
        for (index, cached) in indices.iter().zip(cached) {
            if let Some(chunk) = cached {
                chunks.push(chunk);
                continue;
            }
            let Some((file, copy)) = fetched.next().transpose()? else { break };
            let chunk = file.read_features(&copy)?;
            if chunk.dim != self.spec.dim {
                let name = self.dir.display(&file.name);
                return Err(PipelineError::Input(format!(
                    "`{name}` holds features of {} values, not {}: remove the file",
                    chunk.dim, self.spec.dim
                )));
            }
            let chunk = Arc::new(Chunk::new(chunk, &self.spec));
            if let Some(cache) = &self.cache {
                cache[*index].set(Arc::clone(&chunk)).ok();
            }
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    /// Returns the samples of a window, in its order. The epoch selects one view of an image with several views. Blocks
    /// the thread.
    ///
    /// # Errors
    /// As [`FeatureStore::load_chunks`].
    pub(super) fn window(&self, window: &Window, epoch: u32) -> Result<WindowSamples, PipelineError> {
        if let Some(Resident { features, chunks }) = self.resident.get() {
            let chunks: Vec<&ResidentChunk> = window.chunks.iter().map(|index| &chunks[*index]).collect();
            let rows: Vec<&ChunkRows> = chunks.iter().map(|chunk| &chunk.rows).collect();
            let (selected, targets) = self.select(window, &rows, epoch);
            let rows = selected.into_iter().map(|(slot, row)| chunks[slot].first_row + row).collect();
            return Ok(WindowSamples { features: FeatureRows::Device { features: features.clone(), rows }, targets });
        }
        let chunks = self.load_chunks(&window.chunks)?;
        let rows: Vec<&ChunkRows> = chunks.iter().map(|chunk| &chunk.rows).collect();
        let (selected, targets) = self.select(window, &rows, epoch);
        let mut values = Vec::with_capacity(selected.len() * self.spec.dim);
        for (slot, row) in selected {
            chunks[slot].copy_feature(row, &mut values);
        }
        Ok(WindowSamples { features: FeatureRows::Host { values, dim: self.spec.dim }, targets })
    }

    /// Returns the rows of a window's samples as (chunk of the window, row), and their targets.
    fn select(&self, window: &Window, chunks: &[&ChunkRows], epoch: u32) -> (Vec<(usize, u32)>, Targets) {
        let order = window.order();
        let repeated = self.repeat_samples(window, chunks, epoch);
        let (mut rows, mut targets) = (Vec::with_capacity(order.len()), Targets::default());
        for place in order {
            let (chunk, nth) = (chunks[place.slot], place.sample as usize);
            let Sample { row, nth } = chunk.samples[repeated[place.slot].as_ref().map_or(nth, |all| all[nth] as usize)];
            rows.push((place.slot, row + epoch % chunk.views));
            let (classes, own) = (chunk.classes(row), nth as usize..=nth as usize);
            match self.spec.targets {
                TargetKind::Pairs if self.spec.contrastive => targets.push(&[&classes[own], classes].concat()),
                TargetKind::Pairs => targets.push(&classes[own]),
                TargetKind::Soft => targets.push(classes),
            }
        }
        (rows, targets)
    }

    /// Lists the samples of each chunk of a window in an epoch; `None` if each occurs once.
    fn repeat_samples(&self, window: &Window, chunks: &[&ChunkRows], epoch: u32) -> Vec<Option<Vec<u32>>> {
        let repeat = |(index, chunk): (&usize, &&ChunkRows)| {
            let balance = self.spec.balance.as_ref()?;
            let repeats = |(number, sample): (usize, &Sample)| {
                let class = chunk.classes(sample.row)[sample.nth as usize];
                std::iter::repeat_n(number as u32, balance.repeats(*index, number, class, epoch))
            };
            Some(chunk.samples.iter().enumerate().flat_map(repeats).collect())
        };
        window.chunks.iter().zip(chunks).map(repeat).collect()
    }

    /// Measures how well the first windows of the first epoch are mixed. Blocks the thread.
    ///
    /// # Errors
    /// As [`FeatureStore::load_chunks`].
    pub(super) fn measure_mixing(
        &self,
        windows: &[Window],
        chunk_samples: &[u64],
    ) -> Result<order::ShuffleQuality, PipelineError> {
        let add = |before: &mut u64, samples: &u64| {
            *before += samples;
            Some(*before - samples)
        };
        let starts: Vec<u64> = chunk_samples.iter().scan(0, add).collect();
        let mut mixing = order::ShuffleQuality::new(chunk_samples.iter().sum());
        for window in windows {
            let chunks = self.load_chunks(&window.chunks)?;
            let chunks: Vec<&ChunkRows> = chunks.iter().map(|chunk| &chunk.rows).collect();
            let repeated = self.repeat_samples(window, &chunks, 0);
            for place in window.order() {
                let chunk = chunks[place.slot];
                let sample =
                    repeated[place.slot].as_ref().map_or(place.sample, |all| all[place.sample as usize].into());
                let Sample { row, nth } = chunk.samples[sample as usize];
                let class = chunk.classes(row)[nth as usize];
                mixing.add(starts[window.chunks[place.slot]] + place.sample, class);
            }
            if mixing.is_complete() {
                break;
            }
        }
        Ok(mixing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::RowMeta;
    use crate::chunk::features::FeatureWriter;
    use crate::run_dir::LocalDirectory;
    use crate::types::ValidationSplit;

    fn write(path: &std::path::Path, first: u32, rows: u32, precision: Precision) {
        let mut heads = RowMeta::default();
        let mut values = Vec::new();
        for row in first..first + rows {
            heads.push(&format!("https://x/{row}"), (0..row % 4).map(|nth| row + nth));
            values.extend([row as f32 * 0.37, -(row as f32), 0.1]);
        }
        let mut writer = FeatureWriter::create(path, 3, precision, "g").unwrap();
        writer.write(&heads, &values, &[]).unwrap();
        writer.finish().unwrap();
    }

    fn host_values(samples: &WindowSamples) -> &[f32] {
        match &samples.features {
            FeatureRows::Host { values, .. } => values,
            FeatureRows::Device { .. } => panic!("no feature is on a device"),
        }
    }

    #[test]
    fn every_placement_yields_equal_samples() {
        for (targets, precision) in [(TargetKind::Pairs, Precision::Bf16), (TargetKind::Soft, Precision::F32)] {
            let dir = tempfile::tempdir().unwrap();
            let file = |chunk: u32| ChunkFile { name: format!("{chunk}.parquet"), ..ChunkFile::default() };
            let files: Vec<ChunkFile> = (0..5).map(file).collect();
            for (chunk, file) in files.iter().enumerate() {
                write(&dir.path().join(&file.name), 30 * chunk as u32, 30, precision);
            }
            let directory = Directory::from(LocalDirectory::create(dir.path().to_owned()).unwrap());
            let split = ValidationSplit { seed: 1, fraction: 0.2 };
            let spec = SampleSpec { split, dim: 3, targets, contrastive: false, balance: None };
            let store = |placement| FeatureStore::new(directory.clone(), files.clone(), spec.clone(), placement);
            let (memory, disk) = (store(FeaturePlacement::Memory), store(FeaturePlacement::Files));
            let chunks = memory.load_chunks(&[0, 1, 2, 3, 4]).unwrap();
            assert!(chunks.iter().any(|chunk| !chunk.rows.validation.is_empty()));
            let device: Vec<f32> = chunks.iter().flat_map(|chunk| chunk.all_features()).collect();
            let samples: Vec<u64> = chunks.iter().map(|chunk| chunk.rows.samples.len() as u64).collect();
            let windows: Vec<Window> = (0..2).flat_map(|epoch| order::plan_epoch(&samples, 1, epoch, 70)).collect();
            assert!(windows.len() >= 4);
            for window in &windows {
                let (one, other) = (memory.window(window, 1).unwrap(), disk.window(window, 1).unwrap());
                let values = host_values(&one);
                assert_eq!((values, &one.targets), (host_values(&other), &other.targets));
                assert_eq!(values.len(), 3 * one.targets.rows());
                // Chunks of 30 rows lie on the device one after the other.
                let rows: Vec<&ChunkRows> = window.chunks.iter().map(|index| &chunks[*index].rows).collect();
                let (selected, selected_targets) = memory.select(window, &rows, 1);
                let feature = |(slot, row): &(usize, u32)| {
                    let row = 30 * window.chunks[*slot] + *row as usize;
                    device[3 * row..3 * (row + 1)].to_vec()
                };
                assert_eq!(selected.iter().flat_map(feature).collect::<Vec<f32>>(), values);
                assert_eq!(selected_targets, one.targets);
                let several = one.targets.iter().any(|(_, classes)| classes.len() > 1);
                assert_eq!(several, targets == TargetKind::Soft);
            }
            let mixing = |store: &FeatureStore| store.measure_mixing(&windows, &samples).unwrap().mean_displacement();
            assert!(mixing(&memory) > 0.1 && (mixing(&memory) - mixing(&disk)).abs() < 1e-12);
            for file in &files {
                std::fs::remove_file(dir.path().join(&file.name)).unwrap();
            }
            memory.window(&windows[0], 0).unwrap();
            assert!(disk.window(&windows[0], 0).is_err());
        }
    }
}
