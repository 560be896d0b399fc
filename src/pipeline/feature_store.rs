//! Where training takes its features from: the device or memory, where all of them fit, or the chunks, again for each epoch.
//!
//! All give the same samples in the same order. In memory they keep the precision of their files, and URLs go once it is
//! known on which side an image is.

use std::ops::Range;
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

#[derive(Clone)]
enum Values {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
    /// On the device alone.
    Away,
}

/// Features of rows in an order, or where on the device they are.
pub(super) enum Rows {
    Host { values: Vec<f32>, dim: usize },
    Kept(Vec<u32>),
}

impl Rows {
    /// None, of the same kind.
    pub(super) fn none(&self) -> Self {
        match self {
            Self::Host { dim, .. } => Self::Host { values: Vec::new(), dim: *dim },
            Self::Kept(_) => Self::Kept(Vec::new()),
        }
    }

    /// Appends the rows of another, from one of them on; a store gives one kind alone, which an empty one takes over.
    pub(super) fn append_from(&mut self, other: &Self, first: usize) {
        match (self, other) {
            (Self::Host { values, dim }, Self::Host { values: more, .. }) => {
                values.extend_from_slice(&more[first * *dim..]);
            }
            (Self::Kept(rows), Self::Kept(more)) => rows.extend_from_slice(&more[first..]),
            (this, other) => {
                *this = other.none();
                this.append_from(other, first);
            }
        }
    }

    /// Some of the rows.
    pub(super) fn part(&self, span: Range<usize>) -> Self {
        match self {
            Self::Host { values, dim } => {
                Self::Host { values: values[span.start * dim..span.end * dim].to_vec(), dim: *dim }
            }
            Self::Kept(rows) => Self::Kept(rows[span].to_vec()),
        }
    }

    /// Removes the first rows.
    pub(super) fn drop_first(&mut self, count: usize) {
        match self {
            Self::Host { values, dim } => drop(values.drain(..count * *dim)),
            Self::Kept(rows) => drop(rows.drain(..count)),
        }
    }
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
            Values::Away => {}
        }
    }

    /// All features, `[rows, dim]`.
    pub(super) fn features(&self) -> Vec<f32> {
        let mut all = Vec::with_capacity(self.classes.rows() * self.dim);
        (0..self.classes.rows() as u32).for_each(|row| self.feature(row, &mut all));
        all
    }

    fn without_values(&self) -> Self {
        let (classes, samples, validation) = (self.classes.clone(), self.samples.clone(), self.validation.clone());
        Self { values: Values::Away, dim: self.dim, classes, views: self.views, samples, validation }
    }
}

/// Samples of one window in the order of training.
pub(super) struct Loaded {
    pub(super) rows: Rows,
    pub(super) targets: Targets,
}

/// Where features stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// On the device.
    Device,
    /// In memory.
    Memory,
    /// In their chunks.
    Files,
}

/// The chunks with features of a run, in the order of the corpus.
pub(super) struct FeatureStore {
    directory: Directory,
    names: Vec<String>,
    wanted: Wanted,
    stay: Stay,
    /// What was read so far and stays in memory: whole chunks, or all but the values of those on the device.
    resident: Vec<OnceLock<Arc<Chunk>>>,
    /// Where on the device the rows of a chunk start.
    first_rows: Vec<OnceLock<u32>>,
}

impl FeatureStore {
    pub(super) fn new(directory: Directory, names: Vec<String>, wanted: Wanted, stay: Stay) -> Self {
        let resident = names.iter().map(|_| OnceLock::new()).collect();
        let first_rows = names.iter().map(|_| OnceLock::new()).collect();
        Self { directory, names, wanted, stay, resident, first_rows }
    }

    /// Where the features stay.
    pub(super) fn stay(&self) -> Stay {
        self.stay
    }

    /// Chunks.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Notes that a chunk's features are on the device, from a row on.
    pub(super) fn sent(&self, index: usize, chunk: &Chunk, first_row: u32) {
        self.resident[index].set(Arc::new(chunk.without_values())).ok();
        self.first_rows[index].set(first_row).ok();
    }

    /// Reads chunks, or gives what is in memory; they have their features. Blocks.
    ///
    /// # Errors
    /// When a chunk cannot be read, or is none of this run's.
    pub(super) fn chunks(&self, indices: &[usize]) -> Result<Vec<Arc<Chunk>>, PipelineError> {
        let stays = self.stay == Stay::Memory;
        let kept = |index: usize| self.resident[index].get().filter(|_| stays).cloned();
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
                if stays {
                    self.resident[*index].set(Arc::clone(&chunk)).ok();
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
        let first: Option<Vec<u32>> =
            window.chunks.iter().map(|index| self.first_rows[*index].get().copied()).collect();
        let chunks = match &first {
            Some(_) => self.away(&window.chunks)?,
            None => self.chunks(&window.chunks)?,
        };
        let order = window.order();
        let dim = self.wanted.dim;
        let rows = match &first {
            Some(_) => Rows::Kept(Vec::with_capacity(order.len())),
            None => Rows::Host { values: Vec::with_capacity(order.len() * dim), dim },
        };
        let mut loaded = Loaded { rows, targets: Targets::default() };
        for place in order {
            let chunk = &chunks[place.slot];
            let (row, nth) = chunk.samples[place.sample as usize];
            let of_view = row + epoch % chunk.views;
            match (&mut loaded.rows, &first) {
                (Rows::Kept(rows), Some(first)) => rows.push(first[place.slot] + of_view),
                (Rows::Host { values, .. }, _) => chunk.feature(of_view, values),
                (Rows::Kept(_), None) => {}
            }
            let classes = chunk.classes(row);
            loaded.targets.push(match self.wanted.targets {
                Kind::Pairs => &classes[nth as usize..=nth as usize],
                Kind::Soft => classes,
            });
        }
        Ok(loaded)
    }

    /// Chunks whose features are on the device.
    fn away(&self, indices: &[usize]) -> Result<Vec<Arc<Chunk>>, PipelineError> {
        let found = |index: &usize| self.resident[*index].get().cloned();
        let found: Option<Vec<_>> = indices.iter().map(found).collect();
        found.ok_or_else(|| PipelineError::Internal("a chunk that went to the device is not there".to_owned()))
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
            let store = |stay| FeatureStore::new(directory.clone(), names.clone(), wanted, stay);
            let (kept, read, away) = (store(Stay::Memory), store(Stay::Files), store(Stay::Device));
            let chunks = kept.chunks(&[0, 1, 2, 3, 4]).unwrap();
            assert!(chunks.iter().any(|chunk| !chunk.validation.is_empty()));
            // What a device has, in the order in which the chunks went there.
            let mut device: Vec<f32> = Vec::new();
            for index in [3, 0, 4, 1, 2] {
                let chunk = &away.chunks(&[index]).unwrap()[0];
                away.sent(index, chunk, device.len() as u32 / 3);
                device.extend(chunk.features());
            }
            let samples: Vec<u64> = chunks.iter().map(|chunk| chunk.samples.len() as u64).collect();
            let windows: Vec<Window> = (0..2).flat_map(|epoch| order::plan(&samples, 1, epoch, 70)).collect();
            assert!(windows.len() >= 4);
            for window in &windows {
                let (one, other) = (kept.window(window, 1).unwrap(), read.window(window, 1).unwrap());
                let (Rows::Host { values, .. }, Rows::Host { values: others, .. }) = (&one.rows, &other.rows) else {
                    panic!("rows of another kind");
                };
                assert_eq!((values, &one.targets), (others, &other.targets));
                assert_eq!(values.len(), 3 * one.targets.rows());
                let there = away.window(window, 1).unwrap();
                let Rows::Kept(rows) = &there.rows else { panic!("rows of another kind") };
                let of_row = |row: &u32| device[3 * *row as usize..3 * (*row as usize + 1)].to_vec();
                assert_eq!(rows.iter().flat_map(of_row).collect::<Vec<f32>>(), *values);
                assert_eq!(there.targets, one.targets);
                let several = one.targets.iter().any(|(_, classes)| classes.len() > 1);
                assert_eq!(several, targets == Kind::Soft);
            }
            let (one, other) = (kept.mixing(&windows, &samples).unwrap(), read.mixing(&windows, &samples).unwrap());
            assert!(one.moved() > 0.1 && (one.moved() - other.moved()).abs() < 1e-12);
            for name in &names {
                std::fs::remove_file(dir.path().join(name)).unwrap();
            }
            kept.window(&windows[0], 0).unwrap();
            away.window(&windows[0], 0).unwrap();
            assert!(read.window(&windows[0], 0).is_err());
        }
    }
}
