//! Where training takes its features from: the device or memory, where all of them fit, or the chunks, again for each epoch.
//!
//! All give the same samples in the same order. In memory they keep the precision of their files, and the URLs of the
//! training side go once it is known on which side an image is.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use half::bf16;
use twox_hash::XxHash3_64;

use super::PipelineError;
use crate::catalog::Languages;
use crate::chunk::features::{self, Features};
use crate::config::value::{Precision, Targets as Kind};
use crate::run_dir::Directory;
use crate::train::Targets;
use crate::train::order::{self, Window};
use crate::train::validation::is_validation;

/// Chunks brought to local disk together, where the run is kept elsewhere.
const FETCHED_AT_ONCE: usize = 32;

/// What a row takes in memory beside its feature and its classes.
const ROW_BYTES: u64 = 32;

/// How often each pair comes in an epoch, by the language of its caption.
#[derive(Debug, Clone)]
pub(super) struct Copies {
    seed: u64,
    languages: Arc<Languages>,
    /// Of each language, and last of captions without one.
    expected: Vec<f64>,
}

/// Most that a pair is repeated.
const MOST_COPIES: f64 = 10.0;

impl Copies {
    /// For equal shares of all languages, of which so many pairs there are; `pairs`: by language, last those without one.
    pub(super) fn balanced(seed: u64, languages: Arc<Languages>, pairs: &[u64]) -> Self {
        let present = pairs.iter().filter(|count| **count > 0).count().max(1);
        let share = pairs.iter().sum::<u64>() as f64 / present as f64;
        let expected = pairs.iter().map(|count| (share / (*count).max(1) as f64).min(MOST_COPIES)).collect();
        Self { seed, languages, expected }
    }

    /// The language's place among the counts of a caption.
    pub(super) fn language(languages: &Languages, class: u32) -> usize {
        languages.code(class).unwrap_or(languages.names().len())
    }

    /// Times that a sample comes in an epoch: its expectation, rounded up or down by chance. A pure function of its arguments.
    fn of(&self, chunk: usize, sample: usize, class: u32, epoch: u32) -> usize {
        self.of_language(chunk, sample, Self::language(&self.languages, class), epoch)
    }

    /// As [`Copies::of`], by the language's place.
    pub(super) fn of_language(&self, chunk: usize, sample: usize, language: usize, epoch: u32) -> usize {
        let expected = self.expected.get(language).copied().unwrap_or(1.0);
        let chance = unit(&[self.seed, chunk as u64, sample as u64, u64::from(epoch)]);
        expected.floor() as usize + usize::from(chance < expected.fract())
    }
}

/// A number in [0, 1) that follows from others.
pub(super) fn unit(parts: &[u64]) -> f64 {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
    (XxHash3_64::oneshot(&bytes) >> 11) as f64 / (1_u64 << 53) as f64
}

/// What of a chunk is a sample.
#[derive(Debug, Clone)]
pub(super) struct SampleSpec {
    /// Whether a pair comes with all captions of its image behind its own, for what is told apart by contrast.
    pub(super) contrast: bool,
    /// How often each pair comes; once, where that is not said.
    pub(super) copies: Option<Copies>,
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
    /// Their URLs.
    pub(super) validation_urls: Vec<Box<str>>,
}

impl Chunk {
    fn new(chunk: Features, wanted: &SampleSpec) -> Self {
        let SampleSpec { seed, fraction, dim, targets, .. } = *wanted;
        let (mut classes, mut samples, mut validation) = (Targets::default(), Vec::new(), Vec::new());
        let (mut views, mut validation_urls) = (1, Vec::new());
        for row in 0..chunk.rows.len() {
            let of_row = chunk.rows.labels(row);
            classes.push(of_row);
            views = views.max(u32::from(chunk.rows.view(row)));
            if chunk.rows.view(row) > 1 {
                continue;
            }
            if is_validation(chunk.rows.url(row), seed, fraction) {
                validation.push(row as u32);
                validation_urls.push(chunk.rows.url(row).into());
            } else {
                samples.extend((0..samples_of(targets, of_row)).map(|nth| (row as u32, nth as u32)));
            }
        }
        let values = match chunk.precision {
            // Exact: they were bf16 in the file.
            Precision::Bf16 => Values::Bf16(chunk.values.into_iter().map(bf16::from_f32).collect()),
            Precision::F32 => Values::F32(chunk.values),
        };
        Self { values, dim, classes, views, samples, validation, validation_urls }
    }

    /// The classes of a row.
    pub(super) fn classes(&self, row: u32) -> &[u32] {
        self.classes.row(row as usize)
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

    /// Rows of the training side, all views of an image among them.
    pub(super) fn training_rows(&self) -> impl Iterator<Item = u32> {
        let mut held_out = self.validation.iter().copied().peekable();
        (0..self.classes.rows() as u32).filter(move |row| held_out.next_if_eq(row).is_none())
    }

    /// All features, `[rows, dim]`.
    pub(super) fn features(&self) -> Vec<f32> {
        let mut all = Vec::with_capacity(self.classes.rows() * self.dim);
        (0..self.classes.rows() as u32).for_each(|row| self.feature(row, &mut all));
        all
    }

    fn without_values(&self) -> Self {
        let (classes, samples, validation) = (self.classes.clone(), self.samples.clone(), self.validation.clone());
        let (dim, views, validation_urls) = (self.dim, self.views, self.validation_urls.clone());
        Self { values: Values::Away, dim, classes, views, samples, validation, validation_urls }
    }
}

/// Samples of one window in the order of training.
pub(super) struct Loaded {
    pub(super) rows: Rows,
    pub(super) targets: Targets,
}

/// Where features stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeaturePlacement {
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
    wanted: SampleSpec,
    stay: FeaturePlacement,
    /// What was read so far and stays in memory: whole chunks, or all but the values of those on the device.
    resident: Vec<OnceLock<Arc<Chunk>>>,
    /// Where on the device the rows of a chunk start.
    first_rows: Vec<OnceLock<u32>>,
}

impl FeatureStore {
    pub(super) fn new(directory: Directory, names: Vec<String>, wanted: SampleSpec, stay: FeaturePlacement) -> Self {
        let resident = names.iter().map(|_| OnceLock::new()).collect();
        let first_rows = names.iter().map(|_| OnceLock::new()).collect();
        Self { directory, names, wanted, stay, resident, first_rows }
    }

    /// Where the features stay.
    pub(super) fn stay(&self) -> FeaturePlacement {
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
        let stays = self.stay == FeaturePlacement::Memory;
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
                let chunk = Arc::new(Chunk::new(chunk, &self.wanted));
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
        let repeated: Vec<Option<Vec<u32>>> =
            window.chunks.iter().zip(&chunks).map(|(index, chunk)| self.repeated(*index, chunk, epoch)).collect();
        let rows = match &first {
            Some(_) => Rows::Kept(Vec::with_capacity(order.len())),
            None => Rows::Host { values: Vec::with_capacity(order.len() * dim), dim },
        };
        let mut loaded = Loaded { rows, targets: Targets::default() };
        for place in order {
            let chunk = &chunks[place.slot];
            let sample = match &repeated[place.slot] {
                Some(samples) => samples[place.sample as usize] as usize,
                None => place.sample as usize,
            };
            let (row, nth) = chunk.samples[sample];
            let of_view = row + epoch % chunk.views;
            match (&mut loaded.rows, &first) {
                (Rows::Kept(rows), Some(first)) => rows.push(first[place.slot] + of_view),
                (Rows::Host { values, .. }, _) => chunk.feature(of_view, values),
                (Rows::Kept(_), None) => {}
            }
            let classes = chunk.classes(row);
            match self.wanted.targets {
                Kind::Pairs if self.wanted.contrast => {
                    loaded.targets.push(&[&classes[nth as usize..=nth as usize], classes].concat());
                }
                Kind::Pairs => loaded.targets.push(&classes[nth as usize..=nth as usize]),
                Kind::Soft => loaded.targets.push(classes),
            }
        }
        Ok(loaded)
    }

    /// The samples of a chunk in an epoch, where some come several times or not at all.
    fn repeated(&self, index: usize, chunk: &Chunk, epoch: u32) -> Option<Vec<u32>> {
        let copies = self.wanted.copies.as_ref()?;
        let times = |(sample, (row, nth)): (usize, &(u32, u32))| {
            let class = chunk.classes(*row)[*nth as usize];
            std::iter::repeat_n(sample as u32, copies.of(index, sample, class, epoch))
        };
        Some(chunk.samples.iter().enumerate().flat_map(times).collect())
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
    pub(super) fn mixing(
        &self,
        windows: &[Window],
        chunk_samples: &[u64],
    ) -> Result<order::ShuffleQuality, PipelineError> {
        let starts: Vec<u64> = chunk_samples
            .iter()
            .scan(0, |before, samples| {
                *before += samples;
                Some(*before - samples)
            })
            .collect();
        let mut mixing = order::ShuffleQuality::new(chunk_samples.iter().sum());
        for window in windows {
            let chunks = self.chunks(&window.chunks)?;
            let repeated: Vec<Option<Vec<u32>>> =
                window.chunks.iter().zip(&chunks).map(|(index, chunk)| self.repeated(*index, chunk, 0)).collect();
            for place in window.order() {
                let chunk = &chunks[place.slot];
                let sample =
                    repeated[place.slot].as_ref().map_or(place.sample, |all| all[place.sample as usize].into());
                let (row, nth) = chunk.samples[sample as usize];
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

    #[test]
    fn memory_and_files_give_the_same_samples_in_the_same_order() {
        for (targets, precision) in [(Kind::Pairs, Precision::Bf16), (Kind::Soft, Precision::F32)] {
            let dir = tempfile::tempdir().unwrap();
            let names: Vec<String> = (0..5).map(|chunk| format!("{chunk}.parquet")).collect();
            for (chunk, name) in names.iter().enumerate() {
                write(&dir.path().join(name), 30 * chunk as u32, 30, precision);
            }
            let directory = Directory::from(LocalDirectory::create(dir.path().to_owned()).unwrap());
            let wanted = SampleSpec { seed: 1, fraction: 0.2, dim: 3, targets, contrast: false, copies: None };
            let store = |stay| FeatureStore::new(directory.clone(), names.clone(), wanted.clone(), stay);
            let (kept, read, away) =
                (store(FeaturePlacement::Memory), store(FeaturePlacement::Files), store(FeaturePlacement::Device));
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
            let windows: Vec<Window> = (0..2).flat_map(|epoch| order::plan_epoch(&samples, 1, epoch, 70)).collect();
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
            assert!(
                one.mean_displacement() > 0.1 && (one.mean_displacement() - other.mean_displacement()).abs() < 1e-12
            );
            for name in &names {
                std::fs::remove_file(dir.path().join(name)).unwrap();
            }
            kept.window(&windows[0], 0).unwrap();
            away.window(&windows[0], 0).unwrap();
            assert!(read.window(&windows[0], 0).is_err());
        }
    }
}
