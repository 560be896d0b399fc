//! Validation images of a projection head, with the captions that are ranked for them.

use crate::pipeline::error::PipelineError;
use crate::pipeline::train::balance::hash_to_unit;
use crate::pipeline::train::feature_store::FeatureStore;
use crate::train::Targets;

/// Upper bound on the expected number of images. If more are held out, a hash selects some of them.
const MAX_IMAGES: u64 = 4096;
/// Separates the hash of this selection from other uses of the seed.
const SELECTION_SEED: u64 = 0x7661_6c69_6461_7465;

/// Images held out from training. Only their own captions are ranked for them.
pub(crate) struct HeldOut {
    /// `[images, dim]`.
    pub(crate) features: Vec<f32>,
    /// Right captions of each image, as positions in `captions`.
    pub(crate) captions_of: Targets,
    /// Class of each caption, ascending.
    pub(crate) captions: Vec<u32>,
    /// Vectors of the captions, `[captions, dim]`.
    pub(crate) vectors: Vec<f32>,
    /// URL of each image.
    pub(crate) urls: Vec<Box<str>>,
}

impl HeldOut {
    /// Reads the images. `read_vectors` returns the vectors of classes; `validation_images` counts the images of each
    /// chunk. Blocks the thread.
    ///
    /// # Errors
    /// When a chunk cannot be read, or `read_vectors` fails.
    pub(crate) fn read(
        store: &FeatureStore,
        read_vectors: impl FnOnce(&[u32]) -> Result<Vec<f32>, PipelineError>,
        validation_images: &[u64],
        seed: u64,
    ) -> Result<Self, PipelineError> {
        let share = MAX_IMAGES as f64 / validation_images.iter().sum::<u64>().max(1) as f64;
        let (mut features, mut labels, mut urls) = (Vec::new(), Targets::default(), Vec::new());
        for (index, _) in validation_images.iter().enumerate().filter(|(_, images)| **images > 0) {
            for chunk in store.load_chunks(&[index])? {
                let selected = |row: u32| hash_to_unit(&[seed ^ SELECTION_SEED, index as u64, u64::from(row)]) < share;
                for (row, url) in chunk.rows.validation.iter().copied().zip(&chunk.rows.validation_urls) {
                    if selected(row) {
                        chunk.copy_feature(row, &mut features);
                        labels.push(chunk.rows.classes(row));
                        urls.push(url.clone());
                    }
                }
            }
        }
        let mut captions = labels.classes().to_vec();
        captions.sort_unstable();
        captions.dedup();
        let mut captions_of = Targets::default();
        for (_, classes) in labels.iter() {
            let places = classes.iter().filter_map(|class| captions.binary_search(class).ok());
            captions_of.push(&places.map(|place| place as u32).collect::<Vec<_>>());
        }
        let vectors = read_vectors(&captions)?;
        Ok(Self { features, captions_of, captions, vectors, urls })
    }

    /// Returns the number of images.
    pub(crate) fn images(&self) -> usize {
        self.captions_of.rows()
    }
}
