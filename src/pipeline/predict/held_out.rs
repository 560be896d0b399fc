//! Images held out from training, read from the run directory.

use crate::chunk::journal::{Journal, Layout};
use crate::config::Stage;
use crate::pipeline::chunk_files::{ChunkFile, FeatureSet, fetch_files};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::manifest::{Manifest, StageRecord};
use crate::pipeline::train::held_out::{HeldOut, HeldOutSample, read_chunk_rows};
use crate::run_dir::Directory;
use crate::types::ValidationSplit;

/// Key of the run's seed in the record of training.
const SEED_KEY: &str = "run.seed";
/// Key of the held-out fraction in the record of training.
const FRACTION_KEY: &str = "train.validation_fraction";

/// Images that the run's head was not trained on.
pub(super) struct HeldOutImages {
    pub(super) images: HeldOut,
    /// Feature chunks that they were read from.
    pub(super) files: Vec<ChunkFile>,
    /// Classes of training images.
    pub(super) seen_classes: ClassSet,
}

/// Set of classes, one bit for each.
#[derive(Debug, Default)]
pub(super) struct ClassSet(Vec<u64>);

impl ClassSet {
    fn insert(&mut self, class: u32) {
        let (word, bit) = (class as usize / 64, class % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << bit;
    }

    /// Returns whether a class is in the set.
    pub(super) fn contains(&self, class: u32) -> bool {
        self.0.get(class as usize / 64).is_some_and(|word| word >> (class % 64) & 1 == 1)
    }
}

impl HeldOutImages {
    /// Reads the images from at most `chunks` of the run's feature chunks, evenly spaced; `None` if training held out no image
    /// of them. `read_vectors` returns the vectors of classes. Blocks the thread.
    ///
    /// # Errors
    /// Those of `read_vectors`; or when the record of training or a chunk cannot be read.
    pub(super) fn read(
        ctx: &RunContext,
        manifest: &Manifest,
        dim: usize,
        chunks: usize,
        read_vectors: impl FnOnce(&[u32]) -> Result<Vec<f32>, PipelineError>,
    ) -> Result<Option<Self>, PipelineError> {
        let Some(record) = manifest.recorded(Stage::Train.as_str()) else { return Ok(None) };
        let split = recorded_split(&ctx.dir, record)?;
        let Some(split) = split.filter(|split| !split.is_empty()) else { return Ok(None) };
        let journal = Journal::read(ctx.dir.clone(), Layout::train("features"), None)?;
        let features = FeatureSet::open(journal)?;
        let step = features.files().len().div_ceil(chunks).max(1);
        let files: Vec<ChunkFile> = features.files().iter().step_by(step).cloned().collect();
        let (mut sample, mut seen_classes) = (HeldOutSample::new(split.seed, dim), ClassSet::default());
        for (chunk, fetched) in fetch_files(&ctx.dir, &files).enumerate() {
            let (file, copy) = fetched?;
            let rows = read_chunk_rows((file, &copy, &ctx.dir.display(&file.name)), chunk, split, dim, &mut sample)?;
            for row in (0..rows.len()).filter(|row| rows.view(*row) <= 1 && !split.contains(rows.url(*row))) {
                rows.labels(row).iter().for_each(|class| seen_classes.insert(*class));
            }
        }
        let images = sample.finish(read_vectors)?;
        Ok((images.images() > 0).then_some(Self { images, files, seen_classes }))
    }
}

/// Reads the validation split of a recorded training; `None` if the record has no seed or no fraction.
///
/// # Errors
/// When a recorded value is not a number.
pub(super) fn recorded_split(dir: &Directory, record: &StageRecord) -> Result<Option<ValidationSplit>, PipelineError> {
    let (Some(seed), Some(fraction)) = (record.keys.get(SEED_KEY), record.keys.get(FRACTION_KEY)) else {
        return Ok(None);
    };
    let malformed = |key: &str, value: &str| {
        PipelineError::Generation(format!(
            "`{}` records `{value}` for `{key}`, which is not a number; recompute with --from train",
            dir.display("run.toml")
        ))
    };
    let seed = seed.parse().map_err(|_| malformed(SEED_KEY, seed))?;
    let fraction = fraction.parse().map_err(|_| malformed(FRACTION_KEY, fraction))?;
    Ok(Some(ValidationSplit { seed, fraction }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Store;

    fn parse(keys: &[(&str, &str)]) -> Result<Option<ValidationSplit>, PipelineError> {
        let dir = Directory::read_only(&Store::default(), "run").unwrap();
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        recorded_split(&dir, &StageRecord { keys, ..StageRecord::default() })
    }

    #[test]
    fn class_set_holds_what_was_inserted() {
        let mut set = ClassSet::default();
        for class in [0, 63, 64, 1000] {
            set.insert(class);
        }
        let found: Vec<u32> = (0..2000).filter(|class| set.contains(*class)).collect();
        assert_eq!(found, [0, 63, 64, 1000]);
    }

    #[test]
    fn recorded_split_is_parsed() {
        let split = parse(&[(SEED_KEY, "7"), (FRACTION_KEY, "0.02")]).unwrap();
        assert_eq!(split, Some(ValidationSplit { seed: 7, fraction: 0.02 }));
        assert_eq!(parse(&[(SEED_KEY, "7")]).unwrap(), None);
    }

    #[test]
    fn malformed_fraction_is_named() {
        let error = parse(&[(SEED_KEY, "7"), (FRACTION_KEY, "much")]).unwrap_err();
        assert!(error.to_string().contains("records `much` for `train.validation_fraction`"), "{error}");
    }
}
