//! Samples and validation images of each feature chunk, counted before training starts.

use std::sync::Arc;

use crate::catalog::Languages;
use crate::pipeline::chunk_files::{ChunkFile, FeatureSet, fetch_files};
use crate::pipeline::error::PipelineError;
use crate::pipeline::train::balance::LanguageBalance;
use crate::pipeline::train::chunk::count_samples;
use crate::types::{TargetKind, ValidationSplit};

/// Sizes of the feature chunks with rows, in the order of the corpus.
pub(super) struct Inventory {
    /// Files of the chunks.
    pub(super) files: Vec<ChunkFile>,
    /// Validation images of each chunk.
    pub(super) validation_images: Vec<u64>,
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
    /// Number of epochs.
    pub(super) epochs: u32,
    /// Languages to balance, if any.
    pub(super) balanced: Option<Arc<Languages>>,
}

impl Inventory {
    /// Reads the row heads of all chunks and verifies the files. Blocks the thread.
    ///
    /// # Errors
    /// When a chunk cannot be read or is damaged.
    pub(super) fn read(features: &FeatureSet, spec: &InventorySpec) -> Result<Self, PipelineError> {
        let verified = features.files();
        let (mut counts, mut validation_images, mut chunk_languages) = (Vec::new(), Vec::new(), Vec::new());
        for fetched in fetch_files(features.directory(), verified) {
            let (file, copy) = fetched?;
            let rows = file.read_row_meta(&copy)?;
            let (mut samples, mut validation, mut languages) = (0, 0, Vec::new());
            // All views of an image count as one image.
            for row in (0..rows.len()).filter(|row| rows.view(*row) <= 1) {
                if spec.split.contains(rows.url(row)) {
                    validation += 1;
                    continue;
                }
                samples += count_samples(spec.targets, rows.labels(row)) as u64;
                if let Some(balanced) = &spec.balanced {
                    let index = |class: &u32| LanguageBalance::language_index(balanced, *class) as u16;
                    languages.extend(rows.labels(row).iter().map(index));
                }
            }
            counts.push(samples);
            validation_images.push(validation);
            chunk_languages.push(languages);
        }
        // Training reads the files again in each epoch. Verifying them once is enough.
        let files = verified.iter().map(|file| ChunkFile { sum: None, ..file.clone() }).collect();
        let Some(balanced) = &spec.balanced else {
            return Ok(Self { files, validation_images, balance: None, samples: vec![counts] });
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
        Ok(Self { files, validation_images, balance: Some(balance), samples })
    }

    /// Returns the number of samples of each chunk in an epoch.
    pub(super) fn chunk_samples(&self, epoch: u32) -> &[u64] {
        self.samples.get(epoch as usize).or(self.samples.first()).map_or(&[], Vec::as_slice)
    }

    /// Returns the number of samples of an epoch.
    pub(super) fn epoch_samples(&self, epoch: u32) -> u64 {
        self.chunk_samples(epoch).iter().sum()
    }

    /// Returns the number of validation images of all chunks.
    pub(super) fn all_validation_images(&self) -> u64 {
        self.validation_images.iter().sum()
    }
}
