//! Opens a checkpoint directory and checks tensor names and shapes before any tensor is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use crate::model::config::BackboneConfig;
use crate::model::config::Family;
use crate::model::config::FeedForward;
use crate::model::error::ModelError;
use crate::model::layout;
use crate::model::layout::TensorRole;
use crate::model::preprocessor::Preprocessor;
use crate::model::weights::StoredTensor;
use crate::model::weights::WeightReader;
pub use crate::types::Pool;

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

impl Pool {
    /// Whether the feature includes the mean of the patch tokens.
    pub(super) fn has_mean(self, family: Family) -> bool {
        match self {
            Self::Default => family == Family::Dinov2,
            Self::Cls => false,
            Self::ClsMean => true,
        }
    }
}

/// Checkpoint in which every expected tensor exists with the expected shape.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: PathBuf,
    config: BackboneConfig,
    preprocessor: Preprocessor,
    weights: WeightReader,
    /// Maps the published name of each backbone tensor to its name in the file.
    names: BTreeMap<String, String>,
    /// Name of the mask token in the file.
    mask: Option<String>,
    classifier: bool,
    split_swiglu: bool,
}

impl Checkpoint {
    /// Opens a directory in Hugging Face layout: reads its JSON files and the headers of its weight files.
    ///
    /// Tensor names may carry the family's prefix. `pooler.*`, `classifier.*` and `embeddings.mask_token` are optional
    /// and do not belong to the backbone. Any other unexpected tensor is an error, as is a missing one.
    ///
    /// # Errors
    /// When a file is unreadable or damaged, the family or a value is not supported, or tensor names or shapes differ
    /// from those that `config.json` implies.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let config_path = dir.join(CONFIG);
        let text = std::fs::read(&config_path).map_err(ModelError::read(&config_path))?;
        let config = BackboneConfig::parse(&text, &config_path)?;
        let preprocessor_path = dir.join(PREPROCESSOR);
        let preprocessor = match std::fs::read(&preprocessor_path) {
            Ok(text) => Preprocessor::parse(&text, &preprocessor_path, config.family)?,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Preprocessor::family_default(config.family),
            Err(cause) => return Err(ModelError::read(&preprocessor_path)(cause)),
        };
        let weights = WeightReader::open_dir(dir)?;

        let split_swiglu = weights.tensors().keys().any(|name| name.contains(layout::SWIGLU_SPLIT[0]));
        let (mut keys, mut mask, mut classifier) = (Vec::new(), None, false);
        for name in weights.tensors().keys() {
            match layout::classify_name(config.family, name) {
                TensorRole::Classifier => classifier = true,
                TensorRole::Pooler => {}
                TensorRole::Mask => mask = Some(name.clone()),
                TensorRole::Backbone(key) => keys.push((key, name)),
            }
        }
        let names = weights.match_names(dir, layout::expected_shapes(&config, split_swiglu), keys)?;
        Ok(Self { dir: dir.to_owned(), config, preprocessor, weights, names, mask, classifier, split_swiglu })
    }

    /// Returns the model family.
    pub fn family(&self) -> Family {
        self.config.family
    }

    /// Returns the width of a token.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden
    }

    /// Returns the number of transformer blocks.
    pub fn layers(&self) -> u32 {
        self.config.layers
    }

    /// Returns the side of the training images, in pixels.
    pub fn image_size_px(&self) -> u32 {
        self.config.image_px
    }

    /// Returns the side of a patch, in pixels; the side of an input must be a multiple of it.
    pub fn patch_size_px(&self) -> u32 {
        self.config.patch_px
    }

    /// Returns the number of backbone parameters, without pooler, classifier and mask token.
    pub fn parameters(&self) -> u64 {
        self.entries().map(|entry| entry.elements() as u64).sum()
    }

    /// Returns the size of the backbone's weights in their files, in bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.entries().map(StoredTensor::bytes).sum()
    }

    /// Returns an upper bound on the activation memory of one image in f32, in bytes. All blocks share this memory.
    pub fn activation_bytes(&self, size_px: u32) -> u64 {
        let (tokens, hidden, inner) = (self.tokens(size_px), self.config.hidden as u64, self.inner());
        // Twelve buffers of `[tokens, hidden]`: residual and sum, both norms in f32, query, key and value with copies
        // by head, attention output. Then either the MLP before and after its activation, or the attention scores
        // before and after the softmax, each in two formats. Before the first block: pixels as bytes and in two float
        // formats. Scores are padded like queries.
        let scores = 4 * self.config.heads as u64 * tokens * tokens.next_multiple_of(64);
        let block = tokens * 12 * hidden + (tokens * 4 * inner).max(scores);
        4 * block + 9 * 3 * u64::from(size_px) * u64::from(size_px)
    }

    /// Returns the floating-point operations of one image's forward pass up to block `layer`.
    ///
    /// Counts two operations for each multiplication of the matrix products and of attention.
    ///
    /// # Errors
    /// When the layer does not exist.
    pub fn flop_per_image(&self, size_px: u32, layer: i32) -> Result<u64, ModelError> {
        let (tokens, hidden, inner) = (self.tokens(size_px), self.config.hidden as u64, self.inner());
        let blocks = u64::from(self.config.resolve_layer(layer)?) + 1;
        let block = tokens * (8 * hidden * hidden + 4 * hidden * inner + 4 * tokens * hidden);
        let patches = (tokens - 1) * 2 * hidden * 3 * u64::from(self.config.patch_px).pow(2);
        Ok(blocks * block + patches)
    }

    /// Returns the number of tokens: the patches and the CLS token.
    fn tokens(&self, size_px: u32) -> u64 {
        1 + u64::from(size_px / self.config.patch_px.max(1)).pow(2)
    }

    /// Returns the inner width of the MLP; one and a half times the width of a `SwiGLU`, which has a third projection.
    fn inner(&self) -> u64 {
        match self.config.feed_forward {
            FeedForward::Mlp { inner } => inner as u64,
            FeedForward::SwiGlu { inner } => 3 * inner as u64 / 2,
        }
    }

    /// Returns the preprocessing that the checkpoint was trained with.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Whether the files also hold a classifier; it is not loaded.
    pub fn has_classifier(&self) -> bool {
        self.classifier
    }

    /// Returns the width of a feature under `pool`.
    pub fn feature_dim(&self, pool: Pool) -> usize {
        if pool.has_mean(self.config.family) { 2 * self.config.hidden } else { self.config.hidden }
    }

    /// Returns the BLAKE3 hash, in hex, of `config.json`, the weight files with their index, and
    /// `preprocessor_config.json`.
    ///
    /// Each file contributes its role, its length and its bytes, so names of directories and shards do not matter.
    /// Streams every file once.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, ModelError> {
        let mut hasher = blake3::Hasher::new();
        let mut add = |role: &str, path: &Path| -> Result<(), ModelError> {
            let file = File::open(path).map_err(ModelError::read(path))?;
            let length = file.metadata().map_err(ModelError::read(path))?.len();
            hasher.update(role.as_bytes()).update(&[0]).update(&length.to_le_bytes());
            hasher.update_reader(file).map_err(ModelError::read(path))?;
            Ok(())
        };
        add(CONFIG, &self.dir.join(CONFIG))?;
        for path in self.weights.files(&self.dir) {
            add("weights", &path)?;
        }
        if let Some(path) = self.preprocessor_path() {
            add(PREPROCESSOR, &path)?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    pub(super) fn config(&self) -> &BackboneConfig {
        &self.config
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// Returns the path of `preprocessor_config.json` if the file exists.
    pub(super) fn preprocessor_path(&self) -> Option<PathBuf> {
        Some(self.dir.join(PREPROCESSOR)).filter(|path| path.is_file())
    }

    pub(super) fn weights(&self) -> &WeightReader {
        &self.weights
    }

    /// Iterates over the backbone's tensors in the order of their published names.
    pub(super) fn backbone_tensors(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.names.iter().filter_map(|(key, name)| Some((key.as_str(), self.weights.tensors().get(name)?)))
    }

    /// Returns the mask token if the files have one.
    pub(super) fn mask_token(&self) -> Option<&StoredTensor> {
        self.mask.as_ref().and_then(|name| self.weights.tensors().get(name))
    }

    /// Whether the gate and up projections of a `SwiGLU` are two tensors.
    pub(super) fn split_swiglu(&self) -> bool {
        self.split_swiglu
    }

    /// Reads tensors by their published names, as f32, and concatenates them.
    pub(super) fn read(&self, keys: &[String]) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        for key in keys {
            let entry = self.names.get(key).and_then(|name| self.weights.tensors().get(name));
            let Some(entry) = entry else {
                return Err(ModelError::Keys {
                    dir: self.dir.clone(),
                    missing: vec![key.clone()],
                    unexpected: Vec::new(),
                });
            };
            self.weights.read_into(entry, &mut values)?;
        }
        Ok(values)
    }

    fn entries(&self) -> impl Iterator<Item = &StoredTensor> {
        self.backbone_tensors().map(|(_, entry)| entry)
    }
}
