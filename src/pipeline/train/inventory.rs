//! Samples and held-out images of each feature chunk, counted in one pass before training starts. The pass also hands the
//! held-out images to their collector, so that they are read only once.

use std::sync::Arc;

use crate::catalog::Languages;
use crate::pipeline::chunk_files::{ChunkFile, FeatureSet, fetch_files};
use crate::pipeline::error::PipelineError;
use crate::pipeline::train::balance::LanguageBalance;
use crate::pipeline::train::chunk::count_samples;
use crate::pipeline::train::held_out::{HeldOutRows, read_chunk_rows};
use crate::types::{TargetKind, ValidationSplit};

/// Sizes of the feature chunks with rows, in the order of the corpus.
pub(super) struct Inventory {
    /// Files of the chunks.
    pub(super) files: Vec<ChunkFile>,
    /// Rows and labels of each chunk, all views included.
    pub(super) sizes: Vec<(u64, u64)>,
    /// Number of held-out images.
    pub(super) validation_images: u64,
    /// Repetitions of the pairs; `None` if each pair occurs once an epoch.
    pub(super) balance: Option<LanguageBalance>,
    /// Training samples of each chunk in each epoch; a single list if all epochs have the same.
    samples: Vec<Vec<u64>>,
}

/// Samples to count.
pub(super) struct InventorySpec {
    /// Images held out from training.
    pub(super) split: ValidationSplit,
    /// Meaning of a sample for an image with several classes.
    pub(super) targets: TargetKind,
    /// Dimension of a feature.
    pub(super) dim: usize,
    /// Number of epochs.
    pub(super) epochs: u32,
    /// Languages to balance, if any.
    pub(super) balanced: Option<Arc<Languages>>,
}

impl Inventory {
    /// Reads all chunks, verifies the files, and adds the held-out images to `held_out`. Blocks the thread.
    ///
    /// # Errors
    /// When a chunk cannot be read, is damaged, or holds features of another size.
    pub(super) fn read(
        features: &FeatureSet,
        spec: &InventorySpec,
        held_out: &mut impl HeldOutRows,
    ) -> Result<Self, PipelineError> {
        let verified = features.files();
        let (mut counts, mut sizes, mut chunk_languages, mut validation_images) =
            (Vec::new(), Vec::new(), Vec::new(), 0);
        for (chunk, fetched) in fetch_files(features.directory(), verified).enumerate() {
            let (file, copy) = fetched?;
            let name = features.directory().display(&file.name);
            let rows = read_chunk_rows((file, &copy, &name), chunk, spec.split, spec.dim, held_out)?;
            let (mut samples, mut labels, mut languages) = (0, 0, Vec::new());
            for row in 0..rows.len() {
                labels += rows.labels(row).len() as u64;
                // All views of an image count as one image.
                if rows.view(row) > 1 {
                    continue;
                }
                if spec.split.contains(rows.url(row)) {
                    validation_images += 1;
                    continue;
                }
                samples += count_samples(spec.targets, rows.labels(row)) as u64;
                if let Some(balanced) = &spec.balanced {
                    let index = |class: &u32| LanguageBalance::language_index(balanced, *class) as u16;
                    languages.extend(rows.labels(row).iter().map(index));
                }
            }
            counts.push(samples);
            sizes.push((rows.len() as u64, labels));
            chunk_languages.push(languages);
        }
        // Training reads the files again in each epoch. Verifying them once is enough.
        let files = verified.iter().map(|file| ChunkFile { sum: None, ..file.clone() }).collect();
        let Some(balanced) = &spec.balanced else {
            return Ok(Self { files, sizes, validation_images, balance: None, samples: vec![counts] });
        };
        let mut pairs = vec![0; balanced.names().len() + 1];
        chunk_languages.iter().flatten().for_each(|language| pairs[usize::from(*language)] += 1);
        let balance = LanguageBalance::new(spec.split.seed, Arc::clone(balanced), &pairs);
        let count_chunk = |epoch: u32, (chunk, languages): (usize, &Vec<u16>)| -> u64 {
            let repeats = |(sample, language): (usize, &u16)| {
                balance.repeats_by_language(chunk, sample, usize::from(*language), epoch) as u64
            };
            languages.iter().enumerate().map(repeats).sum()
        };
        let count_epoch =
            |epoch: u32| chunk_languages.iter().enumerate().map(|chunk| count_chunk(epoch, chunk)).collect();
        let samples = (0..spec.epochs).map(count_epoch).collect();
        Ok(Self { files, sizes, validation_images, balance: Some(balance), samples })
    }

    /// Returns the number of samples of each chunk in an epoch.
    pub(super) fn chunk_samples(&self, epoch: u32) -> &[u64] {
        self.samples.get(epoch as usize).or(self.samples.first()).map_or(&[], Vec::as_slice)
    }

    /// Returns the number of samples of an epoch.
    pub(super) fn epoch_samples(&self, epoch: u32) -> u64 {
        self.chunk_samples(epoch).iter().sum()
    }
}
