//! Features of the training images as samples in the order of training.
//!
//! [`FeaturePlacement`] decides whether features are read from their chunk files in each epoch, kept in memory, or
//! resident on the device. All placements yield the same samples in the same order. In memory, features keep the
//! precision of their files. Features in memory count towards `limits.memory`: all chunks, or those of the current window
//! and of the next one.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::chunk::features::READ_BYTES;
use crate::pipeline::chunk_files::{ChunkFile, fetch_files};
use crate::pipeline::device::{FeatureRows, FeaturesOnDevice};
use crate::pipeline::error::PipelineError;
use crate::pipeline::train::chunk::{Chunk, ChunkRows, Sample, SampleSpec};
use crate::pipeline::train::held_out::require_dim;
use crate::run_dir::Directory;
use crate::runtime::{ByteBudget, BytePermit};
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

/// Samples of a step, in the order of training.
pub(crate) struct StepSamples {
    pub(crate) features: FeatureRows,
    pub(crate) targets: Targets,
}

/// Samples of one window, in the order of training. Its features are copied step by step.
pub(super) struct WindowSamples {
    features: WindowFeatures,
    targets: Targets,
    dim: usize,
    _permit: Option<BytePermit>,
}

enum WindowFeatures {
    /// Chunks in memory, and the samples as (chunk, row).
    Host { chunks: Vec<Arc<Chunk>>, rows: Vec<(usize, u32)> },
    /// Features on the device, and the rows of the samples.
    Device { features: FeaturesOnDevice, rows: Vec<u32> },
}

impl WindowSamples {
    /// Returns the number of samples.
    pub(super) fn rows(&self) -> usize {
        self.targets.rows()
    }

    /// Appends some samples to those of a step.
    pub(super) fn append_to(&self, step: &mut StepSamples, span: Range<usize>) {
        let features = match &self.features {
            WindowFeatures::Host { chunks, rows } => {
                let mut values = Vec::with_capacity(span.len() * self.dim);
                rows[span.clone()].iter().for_each(|(slot, row)| chunks[*slot].copy_feature(*row, &mut values));
                FeatureRows::Host { values, dim: self.dim }
            }
            WindowFeatures::Device { features, rows } => {
                FeatureRows::Device { features: features.clone(), rows: rows[span.clone()].to_vec() }
            }
        };
        if step.targets.rows() == 0 {
            step.features = features;
        } else {
            step.features.append_from(&features, 0);
        }
        span.for_each(|row| step.targets.push(self.targets.row(row)));
    }
}

impl StepSamples {
    /// Creates a step without samples.
    pub(super) fn empty() -> Self {
        Self { features: FeatureRows::Host { values: Vec::new(), dim: 0 }, targets: Targets::default() }
    }
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

/// Bytes of chunks that are read together.
const GROUP_BYTES: u64 = 32 << 20;

/// The feature chunks of a run.
pub(super) struct ChunkSet {
    pub(super) dir: Directory,
    /// Files in the order of the corpus.
    pub(super) files: Vec<ChunkFile>,
    /// Memory of each chunk in bytes.
    pub(super) bytes: Vec<u64>,
}

/// The feature chunks of a run, in the order of the corpus.
pub(crate) struct FeatureStore {
    chunks: ChunkSet,
    spec: SampleSpec,
    budget: ByteBudget,
    /// Bytes of the budget that are not taken for the whole training.
    room: u64,
    /// Memory of all chunks, if they stay there.
    _permit: Option<BytePermit>,
    /// Chunks read so far; `None` if chunks do not stay in memory.
    cache: Option<Vec<OnceLock<Arc<Chunk>>>>,
    resident: OnceLock<Resident>,
}

impl FeatureStore {
    /// Opens a store over chunk files. Nothing is read yet. If the chunks stay in memory, `budget` is charged for them;
    /// this blocks the thread until it has room.
    pub(super) fn new(chunks: ChunkSet, spec: SampleSpec, placement: FeaturePlacement, budget: ByteBudget) -> Self {
        let in_memory = placement == FeaturePlacement::Memory;
        let cache = in_memory.then(|| chunks.files.iter().map(|_| OnceLock::new()).collect());
        let permit = in_memory.then(|| budget.acquire_blocking(chunks.bytes.iter().sum()));
        let room = budget.limit_bytes().saturating_sub(budget.in_flight_bytes());
        Self { chunks, spec, budget, room, _permit: permit, cache, resident: OnceLock::new() }
    }

    /// Takes bytes from the budget until the permit is dropped; none if the chunks stay in memory. A request for more than
    /// there can ever be would wait forever, so it takes all there is. Blocks the thread.
    fn acquire(&self, bytes: u64) -> Option<BytePermit> {
        self.cache.is_none().then(|| self.budget.acquire_blocking(bytes.min(self.room)))
    }

    /// Returns the number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.chunks.files.len()
    }

    /// Returns the memory that a window takes beside chunks that stay in memory or on the device.
    pub(super) fn window_bytes(&self, window: &Window) -> u64 {
        if self.cache.is_some() || self.resident.get().is_some() {
            return 0;
        }
        READ_BYTES + window.chunks.iter().map(|chunk| self.chunks.bytes[*chunk]).sum::<u64>()
    }

    /// Splits all chunks into groups that are read together.
    fn groups(&self) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut bytes = 0;
        for (index, chunk) in self.chunks.bytes.iter().enumerate() {
            bytes += chunk;
            if let Some(group) = groups.last_mut().filter(|_| bytes <= GROUP_BYTES) {
                group.end = index + 1;
            } else {
                groups.push(index..index + 1);
                bytes = *chunk;
            }
        }
        groups
    }

    /// Passes all chunks to `visit` in order. Chunks are read in groups, which count towards `limits.memory`. Blocks the
    /// thread.
    ///
    /// # Errors
    /// As [`FeatureStore::load_chunks`].
    pub(super) fn visit_chunks(&self, mut visit: impl FnMut(&Chunk)) -> Result<(), PipelineError> {
        self.try_visit_chunks(|chunk| {
            visit(chunk);
            Ok(())
        })
    }

    /// As [`FeatureStore::visit_chunks`], until `visit` fails.
    ///
    /// # Errors
    /// Those of `visit`, and those of [`FeatureStore::visit_chunks`].
    pub(super) fn try_visit_chunks(
        &self,
        mut visit: impl FnMut(&Chunk) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        for group in self.groups() {
            let (chunks, _permit) = self.load_group(group)?;
            chunks.iter().try_for_each(|chunk| visit(chunk))?;
        }
        Ok(())
    }

    fn load_group(&self, group: Range<usize>) -> Result<(Vec<Arc<Chunk>>, Option<BytePermit>), PipelineError> {
        let bytes = READ_BYTES + self.chunks.bytes[group.clone()].iter().sum::<u64>();
        let permit = self.acquire(bytes);
        Ok((self.load_chunks(&group.collect::<Vec<_>>())?, permit))
    }

    /// Copies all features to the device. From then on, [`FeatureStore::window`] refers to rows there.
    ///
    /// # Errors
    /// As [`FeatureStore::load_chunks`]; or when the device fails.
    pub(super) async fn upload(self: &Arc<Self>, features: FeaturesOnDevice) -> Result<(), PipelineError> {
        let (mut chunks, mut first) = (Vec::with_capacity(self.len()), 0);
        for group in self.groups() {
            let store = Arc::clone(self);
            let (group, _permit) = tokio::task::spawn_blocking(move || store.load_group(group)).await??;
            for chunk in group {
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
        let files: Vec<ChunkFile> = missing.map(|(index, _)| self.chunks.files[*index].clone()).collect();
        let mut fetched = fetch_files(&self.chunks.dir, &files);
        let mut chunks = Vec::with_capacity(indices.len());
        for (index, cached) in indices.iter().zip(cached) {
            if let Some(chunk) = cached {
                chunks.push(chunk);
                continue;
            }
            let Some((file, copy)) = fetched.next().transpose()? else { break };
            let chunk = file.read_selected(&copy, |_, _| true)?;
            require_dim(&self.chunks.dir.display(&file.name), chunk.dim, self.spec.dim)?;
            let chunk = Arc::new(Chunk::new(chunk, &self.spec));
            if let Some(cache) = &self.cache {
                cache[*index].set(Arc::clone(&chunk)).ok();
            }
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    /// Returns the samples of a window, in its order. The epoch selects one view of an image with several views. Waits
    /// until `limits.memory` has room for its chunks. Blocks the thread.
    ///
    /// # Errors
    /// As [`FeatureStore::load_chunks`].
    pub(super) fn window(&self, window: &Window, epoch: u32) -> Result<WindowSamples, PipelineError> {
        if let Some(Resident { features, chunks }) = self.resident.get() {
            let chunks: Vec<&ResidentChunk> = window.chunks.iter().map(|index| &chunks[*index]).collect();
            let rows: Vec<&ChunkRows> = chunks.iter().map(|chunk| &chunk.rows).collect();
            let (selected, targets) = self.select(window, &rows, epoch);
            let rows = selected.into_iter().map(|(slot, row)| chunks[slot].first_row + row).collect();
            let features = WindowFeatures::Device { features: features.clone(), rows };
            return Ok(WindowSamples { features, targets, dim: self.spec.dim, _permit: None });
        }
        let permit = self.acquire(self.window_bytes(window));
        let chunks = self.load_chunks(&window.chunks)?;
        let rows: Vec<&ChunkRows> = chunks.iter().map(|chunk| &chunk.rows).collect();
        let (rows, targets) = self.select(window, &rows, epoch);
        let features = WindowFeatures::Host { chunks, rows };
        Ok(WindowSamples { features, targets, dim: self.spec.dim, _permit: permit })
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
            let _permit = self.acquire(self.window_bytes(window));
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

    /// Returns the features and targets of a window, read in steps of 7.
    fn read_window(samples: &WindowSamples) -> (Vec<f32>, Targets) {
        let mut step = StepSamples::empty();
        for first in (0..samples.rows()).step_by(7) {
            samples.append_to(&mut step, first..(first + 7).min(samples.rows()));
        }
        match step.features {
            FeatureRows::Host { values, .. } => (values, step.targets),
            FeatureRows::Device { .. } => panic!("no feature is on a device"),
        }
    }

    #[test]
    fn every_placement_yields_equal_samples() {
        for (kind, precision) in [(TargetKind::Pairs, Precision::Bf16), (TargetKind::Soft, Precision::F32)] {
            let dir = tempfile::tempdir().unwrap();
            let file = |chunk: u32| ChunkFile { name: format!("{chunk}.parquet"), ..ChunkFile::default() };
            let files: Vec<ChunkFile> = (0..5).map(file).collect();
            for (chunk, file) in files.iter().enumerate() {
                write(&dir.path().join(&file.name), 30 * chunk as u32, 30, precision);
            }
            let directory = Directory::from(LocalDirectory::create(dir.path().to_owned()).unwrap());
            let split = ValidationSplit { seed: 1, fraction: 0.2 };
            let spec = SampleSpec { split, dim: 3, targets: kind, contrastive: false, balance: None };
            let budget = ByteBudget::new(1 << 30);
            let store = |placement| {
                let chunks = ChunkSet { dir: directory.clone(), files: files.clone(), bytes: vec![9000; 5] };
                FeatureStore::new(chunks, spec.clone(), placement, budget.clone())
            };
            let (memory, disk) = (store(FeaturePlacement::Memory), store(FeaturePlacement::Files));
            let chunks = memory.load_chunks(&[0, 1, 2, 3, 4]).unwrap();
            assert!(chunks.iter().any(|chunk| !chunk.rows.validation.is_empty()));
            let device: Vec<f32> = chunks.iter().flat_map(|chunk| chunk.all_features()).collect();
            let samples: Vec<u64> = chunks.iter().map(|chunk| chunk.rows.samples.len() as u64).collect();
            let windows: Vec<Window> = (0..2).flat_map(|epoch| order::plan_epoch(&samples, 1, epoch, 70)).collect();
            assert!(windows.len() >= 4);
            for window in &windows {
                let before = budget.in_flight_bytes();
                let (one, other) = (memory.window(window, 1).unwrap(), disk.window(window, 1).unwrap());
                assert_eq!(budget.in_flight_bytes() - before, READ_BYTES + 9000 * window.chunks.len() as u64);
                let (values, targets) = read_window(&one);
                assert_eq!((&values, &targets), (&read_window(&other).0, &other.targets));
                assert_eq!(values.len(), 3 * targets.rows());
                // Chunks of 30 rows lie on the device one after the other.
                let rows: Vec<&ChunkRows> = window.chunks.iter().map(|index| &chunks[*index].rows).collect();
                let (selected, selected_targets) = memory.select(window, &rows, 1);
                let feature = |(slot, row): &(usize, u32)| {
                    let row = 30 * window.chunks[*slot] + *row as usize;
                    device[3 * row..3 * (row + 1)].to_vec()
                };
                assert_eq!(selected.iter().flat_map(feature).collect::<Vec<f32>>(), values);
                assert_eq!(selected_targets, targets);
                let several = targets.iter().any(|(_, classes)| classes.len() > 1);
                assert_eq!(several, kind == TargetKind::Soft);
            }
            assert_eq!(budget.in_flight_bytes(), 5 * 9000, "windows return their memory");
            let (mut visited, mut all) = (Vec::new(), Vec::new());
            disk.visit_chunks(|chunk| visited.extend(chunk.all_features())).unwrap();
            for chunk in &chunks {
                all.extend(chunk.all_features());
            }
            assert_eq!(visited, all);
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
