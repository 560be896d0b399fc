//! Compares the module with features that transformers computed (`tests/reference/model.py`).

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use burn::backend::flex::FlexDevice;
use burn::tensor::DType;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::model::Any;
use crate::model::AnyDevice;
use crate::model::Checkpoint;
use crate::model::Classifier;
use crate::model::ExtractOptions;
use crate::model::Extractor;
use crate::model::Family;
use crate::model::Kernels;
use crate::model::ModelError;
use crate::model::Numerics;
use crate::model::Pool;
use crate::model::export_hf;
use crate::model::load_classifier;
use crate::reference::{self, distance};

mod families;

/// Name and shape of a tensor in an altered copy; `None` omits it.
type Altered = Option<(String, Vec<usize>)>;

const TOLERANCE: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    reference::fixture("model").join(name)
}

/// Outputs of the script for one checkpoint, as tensors named `SIZE.NAME`.
struct Expected(Vec<u8>);

impl Expected {
    fn read(dir: &Path) -> Self {
        Self(std::fs::read(dir.join("expected.safetensors")).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn sizes(&self) -> Vec<u32> {
        let tensors = self.tensors();
        let mut sizes: Vec<u32> =
            tensors.names().iter().map(|name| name.split_once('.').unwrap().0.parse().unwrap()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn pixels(&self, size: u32) -> Vec<u8> {
        self.tensors().tensor(&format!("{size}.pixels")).unwrap().data().to_vec()
    }

    fn values(&self, size: u32, name: &str) -> Option<Vec<f32>> {
        reference::read_f32(&self.0, &format!("{size}.{name}"))
    }
}

fn load(checkpoint: &Checkpoint, size_px: u32, layer: i32, pool: Pool) -> Extractor<Any> {
    load_with(checkpoint, size_px, layer, pool, true)
}

/// Loads a backbone on the CPU. `direct` says whether its blocks run on the direct path.
fn load_with(checkpoint: &Checkpoint, size_px: u32, layer: i32, pool: Pool, direct: bool) -> Extractor<Any> {
    Extractor::load(
        checkpoint,
        &ExtractOptions { size_px, layers: vec![layer], pool },
        Numerics { direct, ..Numerics::default() },
        &AnyDevice::Flex(FlexDevice),
    )
    .unwrap()
}

/// Returns the largest distance over sizes, layers and pools; `inner` is the block of the script's inner features.
#[expect(clippy::print_stdout, reason = "output of a test")]
fn check(dir: &Path, inner: i32) -> f32 {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let expected = Expected::read(dir);
    let hidden = checkpoint.hidden_size();
    let mut worst = 0.0_f32;
    for size in expected.sizes() {
        let pixels = expected.pixels(size);
        let rows = pixels.len() / (size * size * 3) as usize;
        for (layer, name) in [(-1, "cls_mean"), (inner, "inner")] {
            let both = expected.values(size, name).unwrap();
            let cls: Vec<f32> = both.chunks(2 * hidden).flat_map(|row| &row[..hidden]).copied().collect();
            for (pool, expected) in [(Pool::ClsMean, &both), (Pool::Cls, &cls)] {
                for direct in [true, false] {
                    let extractor = load_with(&checkpoint, size, layer, pool, direct);
                    assert_eq!(extractor.feature_dim(), expected.len() / rows);
                    let distance = distance(&extractor.features(&pixels, rows).unwrap(), expected);
                    let path = extractor.kernels();
                    println!("{} {size} px, layer {layer}, {pool:?}, {path}: {distance:.2e}", dir.display());
                    worst = worst.max(distance);
                }
            }
        }
    }
    worst
}

#[test]
fn features_match_transformers() {
    for name in ["vit", "vit_prefix", "vit_f16", "vit_bf16", "vit_sharded", "dinov2", "dinov2_swiglu"] {
        let worst = check(&fixture(name), 0);
        assert!(worst <= TOLERANCE, "{name}: {worst}");
    }
}

/// `MODEL_CHECKPOINT=DIR cargo test --release --lib -- --ignored --nocapture real_checkpoint`, after the script wrote
/// `DIR/expected.safetensors`.
#[test]
#[ignore = "needs a checkpoint named by MODEL_CHECKPOINT"]
fn real_checkpoint_matches_transformers() {
    let dir = PathBuf::from(std::env::var_os("MODEL_CHECKPOINT").unwrap());
    let worst = check(&dir, -2);
    assert!(worst <= TOLERANCE, "{worst}");
}

/// `MODEL_CHECKPOINT=DIR cargo test --release --lib -- --ignored --nocapture images_per_second`; with `MODEL_BURN=1` by
/// burn's modules instead of the direct path.
#[test]
#[ignore = "a measurement, of a checkpoint named by MODEL_CHECKPOINT"]
#[expect(clippy::print_stdout, reason = "the measurement")]
fn images_per_second() {
    let dir = PathBuf::from(std::env::var_os("MODEL_CHECKPOINT").unwrap());
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let (size, rows) = (224, 8);
    let direct = std::env::var_os("MODEL_BURN").is_none();
    let extractor = load_with(&checkpoint, size, -1, Pool::Default, direct);
    let pixels: Vec<u8> = (0..rows * (size * size * 3) as usize).map(|i| (i * 7 % 251) as u8).collect();
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = std::time::Instant::now();
        let features = extractor.features(&pixels, rows).unwrap();
        best = best.min(start.elapsed().as_secs_f64());
        let bits: Vec<u8> = features.iter().flat_map(|value| value.to_le_bytes()).collect();
        println!("{:.2} images/s, {}", rows as f64 / start.elapsed().as_secs_f64(), blake3::hash(&bits));
    }
    println!("best: {:.2} images/s", rows as f64 / best);
}

#[test]
fn default_pool_matches_family_classifier() {
    for (name, family, dim) in [("vit_prefix", Family::Vit, 16), ("dinov2_swiglu", Family::Dinov2, 32)] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        assert!(checkpoint.has_classifier());
        assert_eq!((checkpoint.family(), checkpoint.default_dim()), (family, dim));
        let head = load_classifier(&fixture(name).join("model.safetensors")).unwrap();
        let expected = Expected::read(&fixture(name));
        for size in expected.sizes() {
            let extractor = load(&checkpoint, size, -1, Pool::Default);
            let features = extractor.features(&expected.pixels(size), 2).unwrap();
            let distance = distance(&logits(&features, &head), &expected.values(size, "logits").unwrap());
            assert!(distance <= TOLERANCE, "{name} at {size}: {distance}");
        }
    }
}

fn logits(features: &[f32], head: &Classifier) -> Vec<f32> {
    let row = |feature: &[f32]| -> Vec<f32> {
        let product = |weight: &[f32]| weight.iter().zip(feature).map(|(w, x)| w * x).sum::<f32>();
        head.weight.chunks(head.dim).zip(&head.bias).map(|(weight, bias)| product(weight) + bias).collect()
    };
    features.chunks(head.dim).flat_map(row).collect()
}

#[test]
fn features_are_deterministic_and_rows_independent() {
    let checkpoint = Checkpoint::open(&fixture("vit")).unwrap();
    let pixels = Expected::read(&fixture("vit")).pixels(32);
    let extractor = load(&checkpoint, 32, -1, Pool::ClsMean);
    let both = extractor.features(&pixels, 2).unwrap();
    assert_eq!(both, extractor.features(&pixels, 2).unwrap());
    let second = extractor.features(&pixels[pixels.len() / 2..], 1).unwrap();
    assert!(distance(&second, &both[both.len() / 2..]) <= TOLERANCE);
    assert_eq!(extractor.features(&[], 0).unwrap(), Vec::<f32>::new());
}

#[test]
fn fixed_batches_match_variable_batches() {
    for name in ["vit", "dinov2"] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let size_px = 4 * checkpoint.patch_size_px();
        let image = 3 * (size_px * size_px) as usize;
        let pixels: Vec<u8> = (0..9 * image).map(|at| (at * 31 % 251) as u8).collect();
        let expected = load(&checkpoint, size_px, -1, Pool::Default).features(&pixels, 9).unwrap();
        let options = ExtractOptions { size_px, layers: vec![-1], pool: Pool::Default };
        let numerics = Numerics { batch_rows: Some(4), ..Numerics::default() };
        let extractor = Extractor::<Any>::load(&checkpoint, &options, numerics, &AnyDevice::Flex(FlexDevice)).unwrap();
        let dim = extractor.feature_dim();
        for rows in [1, 3, 4, 5, 9] {
            let found = extractor.features(&pixels[..rows * image], rows).unwrap();
            assert!(distance(&found, &expected[..rows * dim]) <= 1e-5, "{name}, {rows} rows");
        }
        let many = extractor.submit(pixels[..5 * image].to_vec(), 5).err();
        assert!(matches!(many, Some(ModelError::Batch { rows: 5, batch_rows: 4 })), "{many:?}");
    }
}

/// Runs the configuration of a GPU, bf16 with fixed batches, on the CPU.
#[test]
fn bf16_features_match_f32_within_precision() {
    for (name, fused) in [("vit", true), ("vit", false), ("dinov2", true), ("dinov2_swiglu", true)] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let size_px = 4 * checkpoint.patch_size_px();
        let pixels: Vec<u8> = (0..12 * size_px * size_px).map(|at| (at * 31 % 251) as u8).collect();
        let expected = load(&checkpoint, size_px, -1, Pool::ClsMean).features(&pixels, 4).unwrap();
        let options = ExtractOptions { size_px, layers: vec![-1], pool: Pool::ClsMean };
        let numerics =
            Numerics { format: DType::BF16, batch_rows: Some(4), fused, kernels: Kernels::Burn, direct: false };
        let extractor = Extractor::<Any>::load(&checkpoint, &options, numerics, &AnyDevice::Flex(FlexDevice)).unwrap();
        let found = extractor.features(&pixels, 4).unwrap();
        assert!(found.iter().all(|value| value.to_bits().trailing_zeros() >= 16), "{name}: more than bf16");
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
        let difference = norm(&mut found.iter().zip(&expected).map(|(found, expected)| found - expected));
        let relative = difference / norm(&mut expected.iter().copied());
        assert!((1e-5..0.02).contains(&relative), "{name}: {relative}");
    }
}

#[test]
fn invalid_options_and_pixels_are_rejected() {
    let checkpoint = Checkpoint::open(&fixture("vit")).unwrap();
    let reject = |size_px, layer| {
        let options = ExtractOptions { size_px, layers: vec![layer], pool: Pool::Default };
        let (numerics, device) = (Numerics::default(), AnyDevice::Flex(FlexDevice));
        Extractor::<Any>::load(&checkpoint, &options, numerics, &device).unwrap_err().to_string()
    };
    assert_eq!(reject(30, -1), "size_px `30` is not a positive multiple of the model's patch, `8` pixels");
    assert!(reject(0, -1).contains("`0`"));
    assert!(reject(32, 2).contains("layer `2` does not exist: the model has `2` blocks"));
    let extractor = load(&checkpoint, 32, 0, Pool::Cls);
    for (length, rows) in [(3071, 1), (3072, 2), (0, usize::MAX), (5, 0)] {
        assert!(matches!(extractor.features(&vec![0; length], rows), Err(ModelError::Pixels { .. })));
    }
}

/// Copies a checkpoint with its tensors renamed, omitted (`None`) or reshaped.
fn write_altered(name: &str, dir: &Path, alter: impl Fn(&str, &[usize]) -> Altered) {
    write_altered_from(&fixture(name), dir, alter);
}

fn write_altered_from(from: &Path, dir: &Path, alter: impl Fn(&str, &[usize]) -> Altered) {
    for file in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors: BTreeMap<String, TensorView<'_>> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .filter_map(|(key, view)| {
            let (key, shape) = alter(key, view.shape())?;
            Some((key, TensorView::new(view.dtype(), shape, view.data()).unwrap()))
        })
        .collect();
    safetensors::serialize_to_file(&tensors, None, &dir.join("model.safetensors")).unwrap();
}

#[test]
fn wrong_tensors_are_rejected_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let reject = |alter: &dyn Fn(&str, &[usize]) -> Altered| {
        write_altered("vit", dir.path(), alter);
        Checkpoint::open(dir.path()).unwrap_err().to_string()
    };
    let error = reject(&|key, shape| {
        let key = key.replace("encoder.layer.1.output.dense.bias", "encoder.layer.2.output.dense.bias");
        (key != "layernorm.weight").then(|| (key, shape.to_vec()))
    });
    assert!(
        error.ends_with(
            "missing [`encoder.layer.1.output.dense.bias`, `layernorm.weight`], unexpected [`encoder.layer.2.output.dense.bias`]"
        ),
        "{error}"
    );
    let error = reject(&|key, shape| {
        let turned = key == "encoder.layer.0.intermediate.dense.weight";
        Some((key.to_owned(), if turned { shape.iter().rev().copied().collect() } else { shape.to_vec() }))
    });
    assert!(
        error.ends_with("`encoder.layer.0.intermediate.dense.weight` is `[32, 48]`, expected `[48, 32]`"),
        "{error}"
    );
}

#[test]
fn transformers_5_names_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    write_altered("vit", dir.path(), |key, shape| {
        let key = key
            .replace("encoder.layer.", "layers.")
            .replace("attention.attention.query", "attention.q_proj")
            .replace("attention.attention.key", "attention.k_proj")
            .replace("attention.attention.value", "attention.v_proj")
            .replace("attention.output.dense", "attention.o_proj")
            .replace("intermediate.dense", "mlp.fc1")
            .replace("output.dense", "mlp.fc2");
        Some((format!("vit.{key}"), shape.to_vec()))
    });
    std::fs::copy(fixture("vit").join("expected.safetensors"), dir.path().join("expected.safetensors")).unwrap();
    assert!(check(dir.path(), 0) <= TOLERANCE);
}

#[test]
fn fingerprint_depends_on_contents_only() {
    let dir = tempfile::tempdir().unwrap();
    let same = |key: &str, shape: &[usize]| Some((key.to_owned(), shape.to_vec()));
    write_altered("vit", dir.path(), same);
    let fingerprint = |dir: &Path| Checkpoint::open(dir).unwrap().fingerprint().unwrap();
    let first = fingerprint(dir.path());
    assert_eq!(first.len(), 64);
    let other = tempfile::tempdir().unwrap();
    write_altered("vit", other.path(), same);
    assert_eq!(first, fingerprint(other.path()));
    let weights = other.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let second = fingerprint(other.path());
    assert_ne!(first, second);
    std::fs::remove_file(other.path().join("preprocessor_config.json")).unwrap();
    assert_ne!(second, fingerprint(other.path()));
    assert_ne!(fingerprint(&fixture("vit_sharded")), fingerprint(&fixture("vit_f16")));
}

#[test]
fn sizes_exclude_everything_but_the_backbone() {
    let checkpoint = Checkpoint::open(&fixture("vit_f16")).unwrap();
    let block = 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16 + 4 * 16;
    let parameters = 2 * block + 16 * 48 + 16 + 17 * 16 + 16 + 2 * 16;
    assert_eq!(checkpoint.parameters(), parameters);
    assert_eq!(checkpoint.weight_bytes(), 2 * parameters);
    assert_eq!((checkpoint.layers(), checkpoint.image_size_px(), checkpoint.patch_size_px()), (2, 16, 4));
    assert!(!checkpoint.has_classifier());
}

fn head(dim: usize) -> (Classifier, Vec<String>) {
    let weight = (0..5 * dim).map(|i| (i as f32 * 0.7).sin()).collect();
    let head = Classifier::new(weight, vec![0.5, -0.25, 0.0, 1.0, 2.0]).unwrap();
    (head, ["plain", "with \"quotes\"", "zwei\nZeilen", "日本", ""].map(String::from).to_vec())
}

#[test]
fn exported_checkpoint_reopens_unchanged() {
    for name in ["vit", "vit_bf16", "vit_sharded", "vit_prefix", "dinov2", "dinov2_swiglu"] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let (head, labels) = head(checkpoint.default_dim());
        let out = tempfile::tempdir().unwrap();
        let dir = out.path().join("exported");
        export_hf(&checkpoint, &head, &labels, &dir).unwrap();
        let again = Checkpoint::open(&dir).unwrap();
        assert!(again.has_classifier());
        assert_eq!(load_classifier(&dir.join("model.safetensors")).unwrap(), head);
        assert_eq!((again.preprocessor(), again.parameters()), (checkpoint.preprocessor(), checkpoint.parameters()));
        let expected = Expected::read(&fixture(name));
        let size = expected.sizes()[0];
        let features =
            |checkpoint| load(checkpoint, size, -1, Pool::Default).features(&expected.pixels(size), 2).unwrap();
        assert_eq!(features(&again), features(&checkpoint));
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"][0], checkpoint.family().classifier_class().unwrap().0);
        assert_eq!(config["id2label"]["3"], "日本");
        assert_eq!(config["label2id"]["with \"quotes\""], 1);
    }
}

/// `MODEL_EXPORT=DIR cargo test --release --lib -- --ignored export_for_transformers`, then
/// `python tests/reference/open_in_transformers.py DIR/NAME DIR/NAME/logits.json` for each.
#[test]
#[ignore = "writes to MODEL_EXPORT, for a script to read"]
fn export_for_transformers() {
    let out = PathBuf::from(std::env::var_os("MODEL_EXPORT").unwrap());
    for name in ["vit", "vit_f16", "vit_bf16", "vit_sharded", "vit_prefix", "dinov2", "dinov2_swiglu"] {
        export_with_logits(&Checkpoint::open(&fixture(name)).unwrap(), &out.join(name));
    }
}

/// Exports a checkpoint with a head, and writes the logits of the image of `open_in_transformers.py`.
fn export_with_logits(checkpoint: &Checkpoint, out: &Path) {
    let (head, labels) = head(checkpoint.default_dim());
    export_hf(checkpoint, &head, &labels, out).unwrap();
    let patch = checkpoint.patch_size_px();
    // The script's image at the native size. The convolution ignores pixels beyond the last complete patch.
    let side = checkpoint.image_size_px() / patch * patch;
    let cell = |index: u32| {
        let (row, column, channel) = (index / 3 / side, index / 3 % side, index % 3);
        ((31 * row + 17 * column + 101 * channel + row * column) % 256) as u8
    };
    let pixels: Vec<u8> = (0..side * side * 3).map(cell).collect();
    let features = load(checkpoint, side, -1, Pool::Default).features(&pixels, 1).unwrap();
    let text = serde_json::to_string(&logits(&features, &head)).unwrap();
    std::fs::write(out.join("logits.json"), text).unwrap();
}

#[test]
fn mismatched_head_is_not_exported() {
    let checkpoint = Checkpoint::open(&fixture("dinov2")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let (narrow, labels) = head(32);
    let (right, _) = head(64);
    for (head, labels) in [(&narrow, &labels[..]), (&right, &labels[1..])] {
        let error = export_hf(&checkpoint, head, labels, out.path()).unwrap_err();
        assert!(matches!(error, ModelError::Classifier { .. }), "{error}");
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}
