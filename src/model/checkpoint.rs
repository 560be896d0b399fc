//! Opens a checkpoint directory and checks tensor names and shapes before any tensor is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use crate::model::config::{BackboneConfig, Body, ProjectionHead, WindowedConfig};
use crate::model::cost;
use crate::model::error::ModelError;
use crate::model::family::Family;
use crate::model::layout;
use crate::model::layout::TensorRole;
use crate::model::pooling::{Pooling, supported_pools};
use crate::model::preprocessor::Preprocessor;
use crate::model::weights::StoredTensor;
use crate::model::weights::WeightReader;
pub use crate::types::Pool;

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

/// Scale and bias that turn the cosine of an image and a caption into a logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pairing {
    /// Logarithm of the scale.
    pub log_scale: f32,
    /// Summand of every logit.
    pub bias: f32,
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
    split_gate: bool,
}

impl Checkpoint {
    /// Opens a directory in Hugging Face layout: reads its JSON files and the headers of its weight files.
    ///
    /// Tensor names may carry the family's prefix. A tanh pooler, a classifier, a decoder, a text tower and the mask
    /// token are optional and do not belong to the backbone. Any other unexpected tensor is an error, as is a missing
    /// one.
    ///
    /// # Errors
    /// When a file is unreadable or damaged, the family or a value is not supported, or tensor names or shapes differ
    /// from those that `config.json` implies.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let config_path = dir.join(CONFIG);
        let text = std::fs::read(&config_path).map_err(ModelError::read(&config_path))?;
        Self::open_part(dir, &text, "")
    }

    /// Opens a backbone that is part of a larger model: `text` is its part of `config.json`, and its tensors are those whose
    /// names begin with `prefix`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn open_part(dir: &Path, text: &[u8], prefix: &str) -> Result<Self, ModelError> {
        let mut config = BackboneConfig::parse(text, &dir.join(CONFIG))?;
        let preprocessor_path = dir.join(PREPROCESSOR);
        let preprocessor = match std::fs::read(&preprocessor_path) {
            Ok(text) => Preprocessor::parse(&text, &preprocessor_path, config.family)?,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Preprocessor::family_default(config.family),
            Err(cause) => return Err(ModelError::read(&preprocessor_path)(cause)),
        };
        let weights = WeightReader::open_dir(dir)?;

        let split_gate = weights.tensors().keys().any(|name| name.contains(layout::GATED_SPLIT[0]));
        if let Body::Plain(plain) = &mut config.body
            && matches!(plain.head, Some(ProjectionHead::Linear { .. }))
            && !weights.tensors().contains_key(layout::PROJECTION)
        {
            // A vision tower may come without the projection.
            plain.head = None;
        }
        let (mut keys, mut mask, mut classifier) = (Vec::new(), None, false);
        for name in weights.tensors().keys() {
            let Some(bare) = name.strip_prefix(prefix) else { continue };
            match layout::classify_name(config.family, bare) {
                TensorRole::Classifier => classifier = true,
                TensorRole::Unused => {}
                TensorRole::Mask => mask = Some(name.clone()),
                TensorRole::Backbone(key) => keys.push((key, name)),
            }
        }
        let names = weights.match_names(dir, layout::expected_shapes(&config, split_gate), keys)?;
        Ok(Self { dir: dir.to_owned(), config, preprocessor, weights, names, mask, classifier, split_gate })
    }

    /// Returns the model family.
    pub fn family(&self) -> Family {
        self.config.family
    }

    /// Returns the width of a token after the last block.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden()
    }

    /// Returns the number of transformer blocks.
    pub fn layers(&self) -> u32 {
        self.config.layers()
    }

    /// Returns the side of the training images, in pixels.
    pub fn image_size_px(&self) -> u32 {
        self.config.image_px
    }

    /// Returns the side of a patch, in pixels; the side of an input must be a multiple of it, or that of the training images.
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
        cost::activation_bytes(&self.config, size_px)
    }

    /// Returns the floating-point operations of one image's forward pass up to the last of `layers`, under `pool`, without a head.
    ///
    /// Counts two operations for each multiplication of the matrix products and of attention. The last block computes one
    /// token alone if the feature needs no other.
    ///
    /// # Errors
    /// When a layer or the pooling does not exist.
    pub fn flop_per_image(&self, size_px: u32, layers: &[i32], pool: Pool) -> Result<u64, ModelError> {
        let pooling = Pooling::resolve(pool, &self.config)?;
        let blocks: Vec<u32> =
            layers.iter().map(|layer| self.config.resolve_layer(*layer)).collect::<Result<_, _>>()?;
        Ok(cost::flop_per_image(&self.config, size_px, blocks.into_iter().max().unwrap_or(0), pooling))
    }

    /// Checks that the backbone can work on images of `size_px` pixels.
    ///
    /// # Errors
    /// When the size is neither a multiple of the patch nor the checkpoint's own, or too small for the windows of a windowed
    /// backbone.
    pub fn check_size(&self, size_px: u32) -> Result<(), ModelError> {
        let patch_px = self.config.patch_px;
        // Some checkpoints were trained on images whose border the convolution ignores, such as 384 pixels in patches of 14.
        let is_own = size_px == self.config.image_px && matches!(self.config.body, Body::Plain(_));
        if size_px == 0 || !(size_px.is_multiple_of(patch_px) || is_own) {
            return Err(ModelError::PatchSize { size_px, patch_px });
        }
        let Body::Windowed(windowed) = &self.config.body else { return Ok(()) };
        let patches = (size_px / patch_px) as usize;
        let smallest = WindowedConfig::grid(patches, windowed.depths.len() - 1);
        // The table of Swin has entries for its own window alone; Swin v2 computes them for any.
        if windowed.v2 || smallest >= windowed.window {
            return Ok(());
        }
        let least_px = (windowed.window as u32 - 1) * (patch_px << (windowed.depths.len() - 1)) + patch_px;
        Err(ModelError::WindowSize { size_px, window: windowed.window, least_px })
    }

    /// Returns the scale and bias of the similarities between the two towers; `None` if the files hold one tower.
    ///
    /// # Errors
    /// When a file cannot be read, the scale is 0 or infinite in an f32, or the bias is not finite.
    pub fn pairing(&self) -> Result<Option<Pairing>, ModelError> {
        let read = |name: &'static str, fits: fn(f32) -> bool, must: &str| -> Result<Option<f32>, ModelError> {
            let Some(tensor) = self.weights.tensors().get(name).filter(|tensor| tensor.elements() == 1) else {
                return Ok(None);
            };
            match self.weights.read(tensor)?.first().copied() {
                Some(value) if !fits(value) => {
                    Err(ModelError::value(self.weights.file(tensor), name, format!("is `{value}`; {must}")))
                }
                value => Ok(value),
            }
        };
        if !self.config.family.is_paired() {
            return Ok(None);
        }
        // With a scale of 0, all captions would have one score.
        let must = "its exponential, the scale of all logits, must lie between 1.2e-38 and 3.4e38";
        let Some(log_scale) = read("logit_scale", |value| value.exp().is_normal(), must)? else { return Ok(None) };
        let bias = read("logit_bias", f32::is_finite, "it must be finite")?.unwrap_or(0.0);
        Ok(Some(Pairing { log_scale, bias }))
    }

    /// Returns the preprocessing that the checkpoint was trained with.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Whether the files also hold a classifier; it is not loaded.
    pub fn has_classifier(&self) -> bool {
        self.classifier
    }

    /// Returns the widths of the parts of a feature, one for each of `layers`, under `pool`.
    ///
    /// # Errors
    /// When a layer or the pooling does not exist.
    pub fn feature_parts(&self, layers: &[i32], pool: Pool) -> Result<Vec<usize>, ModelError> {
        let pooling = Pooling::resolve(pool, &self.config)?;
        let width = |layer: &i32| Ok(pooling.width(&self.config, self.config.resolve_layer(*layer)?));
        layers.iter().map(width).collect()
    }

    /// Returns the pools that the checkpoint has.
    pub fn pools(&self) -> Vec<Pool> {
        supported_pools(&self.config)
    }

    /// Returns the width of the default feature of the last block: the input of the family's classifier.
    pub fn default_dim(&self) -> usize {
        let last = self.config.layers() - 1;
        Pooling::resolve(Pool::Default, &self.config).map_or(0, |pooling| pooling.width(&self.config, last))
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

    /// Returns whether the gate and up projections of a gated MLP are two tensors.
    pub(super) fn split_gate(&self) -> bool {
        self.split_gate
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
