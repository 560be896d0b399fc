//! File names of images as a signal: each name is embedded like a caption.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::{ClassSource, Classes, Texts, file_name_words, url_hash};
use crate::pipeline::captions::VectorStore;
use crate::pipeline::error::PipelineError;
use crate::train::text::Ensemble;
use crate::types::MatchRule;

/// Number of names from which on they are centred by their own mean. Names are mostly in one language, so their mean
/// differs from that of captions.
const MIN_NAMES_FOR_MEAN: usize = 100;

/// The distinct file names of images.
pub(super) struct FileNames {
    names: Classes,
    /// Name of each image, by the hash of its URL.
    name_of: HashMap<u64, u32>,
}

impl FileNames {
    /// Creates an empty collection.
    pub(super) fn new() -> Self {
        Self { names: Classes::new(ClassSource::List, MatchRule::Exact), name_of: HashMap::new() }
    }

    /// Adds the name of an image, unless the name is uninformative.
    ///
    /// # Errors
    /// When there are too many names.
    pub(super) fn add(&mut self, url: &str) -> Result<(), PipelineError> {
        if let Some(group) = self.names.add(&file_name_words(url))? {
            self.name_of.insert(url_hash(url), group.first_class());
        }
        Ok(())
    }

    /// Returns the distinct names, and the name of each image by the hash of its URL.
    pub(super) fn finish(self) -> (Arc<Texts>, HashMap<u64, u32>) {
        (Arc::new(self.names.into_texts()), self.name_of)
    }
}

/// Centred vectors of file names, by image.
pub(super) struct NameVectors {
    names: Arc<Texts>,
    name_of: HashMap<u64, u32>,
    vectors: VectorStore,
    mean: Vec<f32>,
    /// Head whose space the vectors are mapped to.
    head: Arc<Ensemble>,
}

impl NameVectors {
    /// Centres the vectors of names, by their own mean if there are many, else by that of captions, and maps them like captions.
    pub(super) fn new(
        names: Arc<Texts>,
        name_of: HashMap<u64, u32>,
        vectors: VectorStore,
        head: Arc<Ensemble>,
    ) -> Self {
        let own = names.len() >= MIN_NAMES_FOR_MEAN;
        let mean = if own { vectors.mean().to_vec() } else { head.text_mean().to_vec() };
        Self { names, name_of, vectors, mean, head }
    }

    /// Reads the vectors of images by the hashes of their URLs, `[images, dim]`. An uninformative name yields zeros.
    /// Blocks the thread.
    ///
    /// # Errors
    /// When scratch disk fails.
    pub(super) fn read(&self, urls: &[u64]) -> Result<Vec<f32>, PipelineError> {
        let dim = self.head.output();
        let known: Vec<u32> = urls.iter().filter_map(|url| self.name_of.get(url).copied()).collect();
        let vectors = self.head.map_centred(self.vectors.read(&known)?, &self.mean);
        let mut all = vec![0.0; urls.len() * dim];
        let places = urls.iter().enumerate().filter(|(_, url)| self.contains(**url)).map(|(place, _)| place);
        for (place, vector) in places.zip(vectors.chunks_exact(dim.max(1))) {
            all[place * dim..(place + 1) * dim].copy_from_slice(vector);
        }
        Ok(all)
    }

    /// Whether an image has an informative name.
    pub(super) fn contains(&self, url: u64) -> bool {
        self.name_of.contains_key(&url)
    }

    /// Adds everything that the vectors depend on to a hash.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        for value in &self.mean {
            hasher.update(&value.to_le_bytes());
        }
        for name in self.names.iter() {
            hasher.update(name.as_bytes()).update(&[0]);
        }
    }
}
