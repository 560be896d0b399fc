//! A checkpoint directory whose configuration, keys and shapes have been compared, before any tensor is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use crate::model::config::BackboneConfig;
use crate::model::config::Family;
use crate::model::config::FeedForward;
use crate::model::error::ModelError;
use crate::model::layout;
use crate::model::layout::Role;
use crate::model::preprocessor::Preprocessor;
use crate::model::weights::Entry;
use crate::model::weights::Store;
pub use crate::types::Pool;

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

impl Pool {
    /// Whether the mean of the patch tokens is a part.
    pub(super) fn has_mean(self, family: Family) -> bool {
        match self {
            Self::Default => family == Family::Dinov2,
            Self::Cls => false,
            Self::ClsMean => true,
        }
    }
}

/// A checkpoint that can be loaded: every tensor is there, in the expected shape.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: PathBuf,
    config: BackboneConfig,
    preprocessor: Preprocessor,
    store: Store,
    /// Published name to the name in the file, for the backbone's tensors.
    names: BTreeMap<String, String>,
    mask: Option<String>,
    classifier: bool,
    split_swiglu: bool,
}

impl Checkpoint {
    /// Opens a directory in Hugging Face layout; reads its JSON files and the headers of its weights.
    ///
    /// The backbone's keys may carry the family's prefix. `pooler.*`, `classifier.*` and `embeddings.mask_token` are
    /// not part of it; any other key that the configuration has no place for is an error, as is a missing one.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged, the family or a value is not supported, or keys or shapes
    /// are not those that `config.json` asks for.
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
        let store = Store::open_dir(dir)?;

        let split_swiglu = store.entries().keys().any(|name| name.contains(layout::SWIGLU_SPLIT[0]));
        let (mut keys, mut mask, mut classifier) = (Vec::new(), None, false);
        for name in store.entries().keys() {
            match layout::role(config.family, name) {
                Role::Classifier => classifier = true,
                Role::Pooler => {}
                Role::Mask => mask = Some(name.clone()),
                Role::Backbone(key) => keys.push((key, name)),
            }
        }
        let names = store.matched(dir, layout::expected(&config, split_swiglu), keys)?;
        Ok(Self { dir: dir.to_owned(), config, preprocessor, store, names, mask, classifier, split_swiglu })
    }

    /// The model's family.
    pub fn family(&self) -> Family {
        self.config.family
    }

    /// Values a token.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden
    }

    /// The number of blocks.
    pub fn layers(&self) -> u32 {
        self.config.layers
    }

    /// The side of the images it was trained with, in pixels.
    pub fn image_size_px(&self) -> u32 {
        self.config.image_px
    }

    /// The side of a patch, in pixels; an input's side must be a multiple of it.
    pub fn patch_size_px(&self) -> u32 {
        self.config.patch_px
    }

    /// The number of values in the backbone, without pooler, classifier and mask token.
    pub fn parameters(&self) -> u64 {
        self.entries().map(|entry| entry.elements() as u64).sum()
    }

    /// The bytes of the backbone in the formats of the files.
    pub fn weight_bytes(&self) -> u64 {
        self.entries().map(Entry::bytes).sum()
    }

    /// Bytes of the intermediate values of one image in f32, at most: those of a block, which the next uses again.
    pub fn activation_bytes(&self, size_px: u32) -> u64 {
        let (tokens, hidden, inner) = (self.tokens(size_px), self.config.hidden as u64, self.inner());
        // Residual and its sum, both norms in f32, query, key and value with their copies by head, and what attention gives; the
        // feed-forward part before and after its activation, or the scores of attention before and after the softmax, in two formats.
        // At the start, pixels as bytes and as two kinds of float. Rows of scores are padded, as queries are.
        let scores = 4 * self.config.heads as u64 * tokens * tokens.next_multiple_of(64);
        let block = tokens * 12 * hidden + (tokens * 4 * inner).max(scores);
        4 * block + 9 * 3 * u64::from(size_px) * u64::from(size_px)
    }

    /// Floating-point operations of one image's forward pass through the blocks up to `layer`: two for each multiplication of the
    /// matrix products and of attention.
    ///
    /// # Errors
    /// When there is no such layer.
    pub fn flop_per_image(&self, size_px: u32, layer: i32) -> Result<u64, ModelError> {
        let (tokens, hidden, inner) = (self.tokens(size_px), self.config.hidden as u64, self.inner());
        let blocks = u64::from(self.config.block(layer)?) + 1;
        let block = tokens * (8 * hidden * hidden + 4 * hidden * inner + 4 * tokens * hidden);
        let patches = (tokens - 1) * 2 * hidden * 3 * u64::from(self.config.patch_px).pow(2);
        Ok(blocks * block + patches)
    }

    fn tokens(&self, size_px: u32) -> u64 {
        1 + u64::from(size_px / self.config.patch_px.max(1)).pow(2)
    }

    /// Values of a token between the two halves of the feed-forward part; one and a half times as many with a gate.
    fn inner(&self) -> u64 {
        match self.config.feed_forward {
            FeedForward::Mlp { inner } => inner as u64,
            FeedForward::SwiGlu { inner } => 3 * inner as u64 / 2,
        }
    }

    /// What was done to images before the backbone saw them in training.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Whether the files also hold a classifier, which is not used.
    pub fn has_classifier(&self) -> bool {
        self.classifier
    }

    /// Values in a feature under `pool`.
    pub fn feature_dim(&self, pool: Pool) -> usize {
        if pool.has_mean(self.config.family) { 2 * self.config.hidden } else { self.config.hidden }
    }

    /// BLAKE3, in hex, over the content of `config.json`, the weight files and their index, and `preprocessor_config.json`.
    ///
    /// Each file enters as its role, its length and its bytes, so that neither the directory's name nor the
    /// shards' names matter. Reads every file once, as a stream.
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
        for path in self.store.files(&self.dir) {
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

    /// The preprocessor file, where there is one.
    pub(super) fn preprocessor_path(&self) -> Option<PathBuf> {
        Some(self.dir.join(PREPROCESSOR)).filter(|path| path.is_file())
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Published name and entry of each of the backbone's tensors, by name.
    pub(super) fn backbone(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.names.iter().filter_map(|(key, name)| Some((key.as_str(), self.store.entries().get(name)?)))
    }

    /// The mask token, where the files have one.
    pub(super) fn mask(&self) -> Option<&Entry> {
        self.mask.as_ref().and_then(|name| self.store.entries().get(name))
    }

    pub(super) fn split_swiglu(&self) -> bool {
        self.split_swiglu
    }

    /// The tensors of these published names one after the other, as f32.
    pub(super) fn read(&self, keys: &[String]) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        for key in keys {
            let entry = self.names.get(key).and_then(|name| self.store.entries().get(name));
            let Some(entry) = entry else {
                return Err(ModelError::Keys {
                    dir: self.dir.clone(),
                    missing: vec![key.clone()],
                    unexpected: Vec::new(),
                });
            };
            self.store.read_into(entry, &mut values)?;
        }
        Ok(values)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.backbone().map(|(_, entry)| entry)
    }
}
