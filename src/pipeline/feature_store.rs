//! Where training takes its features from: the chunks, again for each epoch, or memory, where all of them fit.
//!
//! Both give the same samples in the same order. In memory they keep the precision of their files, and URLs go once it is
//! known on which side an image is.

use std::sync::{Arc, OnceLock};

use half::bf16;

use super::PipelineError;
use crate::chunk::features::{self, Features};
use crate::config::value::{Precision, Targets as Kind};
use crate::store::Directory;
use crate::train::Targets;
use crate::train::order::{self, Window};
use crate::train::validation::is_validation;

/// Chunks brought to local disk together, where the run is kept elsewhere.
const FETCHED_AT_ONCE: usize = 32;

/// What a row takes in memory beside its feature and its classes.
const ROW_BYTES: u64 = 32;

/// What of a chunk is a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) seed: u64,
    /// Share of the images that is held out.
    pub(super) fraction: f64,
    /// Values of a feature.
    pub(super) dim: usize,
    pub(super) targets: Kind,
}

/// Samples that an image of these classes makes.
pub(super) fn samples_of(targets: Kind, classes: &[u32]) -> usize {
    match targets {
        Kind::Pairs => classes.len(),
        Kind::Soft => usize::from(!classes.is_empty()),
    }
}

/// Bytes that rows of features take in memory.
pub(super) fn resident_bytes(rows: u64, labels: u64, dim: usize, precision: Precision) -> u64 {
    let width = match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    };
    rows * (dim as u64 * width + ROW_BYTES) + labels * 16
}

enum Values {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

/// A chunk as training needs it.
pub(super) struct Chunk {
    values: Values,
    dim: usize,
    /// The classes of each row.
    classes: Targets,
    /// Random parts of each image of the training side; 1 where it is whole.
    views: u32,
    /// Row of the first view and, where it is one of several, the class within it, of each training sample.
    samples: Vec<(u32, u32)>,
    /// Rows of the validation side.
    pub(super) validation: Vec<u32>,
}

impl Chunk {
    fn new(chunk: Features, wanted: Wanted) -> Self {
        let Wanted { seed, fraction, dim, targets } = wanted;
        let (mut classes, mut samples, mut validation) = (Targets::default(), Vec::new(), Vec::new());
        let mut views = 1;
        for row in 0..chunk.rows.len() {
            let of_row = chunk.rows.labels(row);
            classes.push(of_row);
            views = views.max(u32::from(chunk.rows.view(row)));
            if chunk.rows.view(row) > 1 {
                continue;
            }
            if is_validation(chunk.rows.url(row), seed, fraction) {
                validation.push(row as u32);
            } else {
                samples.extend((0..samples_of(targets, of_row)).map(|nth| (row as u32, nth as u32)));
            }
        }
        let values = match chunk.precision {
            // Exact: they were bf16 in the file.
            Precision::Bf16 => Values::Bf16(chunk.values.into_iter().map(bf16::from_f32).collect()),
            Precision::F32 => Values::F32(chunk.values),
        };
        Self { values, dim, classes, views, samples, validation }
    }

    /// The classes of a row.
    pub(super) fn classes(&self, row: u32) -> &[u32] {
        self.classes.of(row as usize)
    }

    /// Appends the feature of a row.
    pub(super) fn feature(&self, row: u32, out: &mut Vec<f32>) {
        let span = row as usize * self.dim..(row as usize + 1) * self.dim;
        match &self.values {
            Values::Bf16(values) => out.extend(values[span].iter().map(|value| value.to_f32())),
            Values::F32(values) => out.extend_from_slice(&values[span]),
        }
    }
}

/// Samples of one window in the order of training.
pub(super) struct Loaded {
    pub(super) features: Vec<f32>,
    pub(super) targets: Targets,
}

/// The chunks with features of a run, in the order of the corpus.
pub(super) struct FeatureStore {
    directory: Directory,
    names: Vec<String>,
    wanted: Wanted,
    /// What was read so far, where it stays.
    resident: Option<Vec<OnceLock<Arc<Chunk>>>>,
}

impl FeatureStore {
    pub(super) fn new(directory: Directory, names: Vec<String>, wanted: Wanted, stays: bool) -> Self {
        let resident = stays.then(|| names.iter().map(|_| OnceLock::new()).collect());
        Self { directory, names, wanted, resident }
    }

    /// Reads chunks, or gives what is in memory. Blocks.
    ///
    /// # Errors
    /// When a chunk cannot be read, or is none of this run's.
    pub(super) fn chunks(&self, indices: &[usize]) -> Result<Vec<Arc<Chunk>>, PipelineError> {
        let kept = |index: usize| self.resident.as_ref().and_then(|resident| resident[index].get().cloned());
        let missing: Vec<usize> = indices.iter().copied().filter(|index| kept(*index).is_none()).collect();
        let mut read = std::collections::BTreeMap::new();
        for indices in missing.chunks(FETCHED_AT_ONCE) {
            let names: Vec<String> = indices.iter().map(|index| self.names[*index].clone()).collect();
            for (index, copy) in indices.iter().zip(self.directory.fetch_all(&names)?) {
                let chunk = features::read(&copy)?;
                if chunk.dim != self.wanted.dim {
                    let name = self.directory.display(&self.names[*index]);
                    return Err(PipelineError::Input(format!("`{name}` holds features of another size: remove it")));
                }
                let chunk = Arc::new(Chunk::new(chunk, self.wanted));
                if let Some(resident) = &self.resident {
                    resident[*index].set(Arc::clone(&chunk)).ok();
                }
                read.insert(*index, chunk);
            }
        }
        let found = |index: &usize| kept(*index).or_else(|| read.get(index).cloned());
        let found: Option<Vec<_>> = indices.iter().map(found).collect();
        found.ok_or_else(|| PipelineError::Internal("a chunk that was read is not there".to_owned()))
    }

    /// The samples of a window, in its order, by the views whose turn it is in an epoch. Blocks.
    ///
    /// # Errors
    /// As [`FeatureStore::chunks`].
    pub(super) fn window(&self, window: &Window, epoch: u32) -> Result<Loaded, PipelineError> {
        let chunks = self.chunks(&window.chunks)?;
        let order = window.order();
        let features = Vec::with_capacity(order.len() * self.wanted.dim);
        let mut loaded = Loaded { features, targets: Targets::default() };
        for place in order {
            let chunk = &chunks[place.slot];
            let (row, nth) = chunk.samples[place.sample as usize];
            chunk.feature(row + epoch % chunk.views, &mut loaded.features);
            let classes = chunk.classes(row);
            loaded.targets.push(match self.wanted.targets {
                Kind::Pairs => &classes[nth as usize..=nth as usize],
                Kind::Soft => classes,
            });
        }
        Ok(loaded)
    }

    /// How well the first windows of an epoch are mixed.
    ///
    /// # Errors
    /// As [`FeatureStore::chunks`].
    pub(super) fn mixing(&self, windows: &[Window], chunk_samples: &[u64]) -> Result<order::Mixing, PipelineError> {
        let starts: Vec<u64> = chunk_samples
            .iter()
            .scan(0, |before, samples| {
                *before += samples;
                Some(*before - samples)
            })
            .collect();
        let mut mixing = order::Mixing::of(chunk_samples.iter().sum());
        for window in windows {
            let chunks = self.chunks(&window.chunks)?;
            for place in window.order() {
                let chunk = &chunks[place.slot];
                let (row, nth) = chunk.samples[place.sample as usize];
                let class = chunk.classes(row)[nth as usize];
                mixing.add(starts[window.chunks[place.slot]] + place.sample, class);
            }
            if mixing.is_enough() {
                break;
            }
        }
        Ok(mixing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::RowHeads;
    use crate::chunk::features::FeatureWriter;
    use crate::store::LocalDirectory;

    fn write(path: &std::path::Path, first: u32, rows: u32, precision: Precision) {
        let mut heads = RowHeads::default();
        let mut values = Vec::new();
        for row in first..first + rows {
            heads.push(&format!("https://x/{row}"), (0..row % 4).map(|nth| row + nth));
            values.extend([row as f32 * 0.37, -(row as f32), 0.1]);
        }
        let mut writer = FeatureWriter::create(path, 3, precision, "g").unwrap();
        writer.write(&heads, &values).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn memory_and_files_give_the_same_samples_in_the_same_order() {
        for (targets, precision) in [(Kind::Pairs, Precision::Bf16), (Kind::Soft, Precision::F32)] {
            let dir = tempfile::tempdir().unwrap();
            let names: Vec<String> = (0..5).map(|chunk| format!("{chunk}.parquet")).collect();
            for (chunk, name) in names.iter().enumerate() {
                write(&dir.path().join(name), 30 * chunk as u32, 30, precision);
            }
            let directory = Directory::from(LocalDirectory::create(dir.path().to_owned()).unwrap());
            let wanted = Wanted { seed: 1, fraction: 0.2, dim: 3, targets };
            let [kept, read] =
                [true, false].map(|stays| FeatureStore::new(directory.clone(), names.clone(), wanted, stays));
            let chunks = kept.chunks(&[0, 1, 2, 3, 4]).unwrap();
            assert!(chunks.iter().any(|chunk| !chunk.validation.is_empty()));
            let samples: Vec<u64> = chunks.iter().map(|chunk| chunk.samples.len() as u64).collect();
            let windows: Vec<Window> = (0..2).flat_map(|epoch| order::plan(&samples, 1, epoch, 70)).collect();
            assert!(windows.len() >= 4);
            for window in &windows {
                let (one, other) = (kept.window(window, 1).unwrap(), read.window(window, 1).unwrap());
                assert_eq!((&one.features, &one.targets), (&other.features, &other.targets));
                assert_eq!(one.features.len(), 3 * one.targets.rows());
                let several = one.targets.iter().any(|(_, classes)| classes.len() > 1);
                assert_eq!(several, targets == Kind::Soft);
            }
            let (one, other) = (kept.mixing(&windows, &samples).unwrap(), read.mixing(&windows, &samples).unwrap());
            assert!(one.moved() > 0.1 && (one.moved() - other.moved()).abs() < 1e-12);
            for name in &names {
                std::fs::remove_file(dir.path().join(name)).unwrap();
            }
            kept.window(&windows[0], 0).unwrap();
            assert!(read.window(&windows[0], 0).is_err());
        }
    }
}
