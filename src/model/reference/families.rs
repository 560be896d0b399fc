//! Compares every family with features that transformers computed (`tests/reference/families.py`).

use std::path::PathBuf;

use burn::backend::flex::FlexDevice;
use burn::tensor::DType;

use super::{Expected, TOLERANCE, head, load, load_with, logits, write_altered_from};
use crate::model::export_hf;
use crate::model::load_classifier;
use crate::model::{
    Any, AnyDevice, Checkpoint, ExtractOptions, Extractor, Family, Kernels, ModelError, Numerics, Pool,
};
use crate::reference::{self, distance};

fn fixture(name: &str) -> PathBuf {
    reference::fixture("families").join(name)
}

fn fixtures() -> Vec<String> {
    let dir = std::fs::read_dir(fixture("")).unwrap();
    let mut names: Vec<String> = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() > 20, "{names:?}");
    names
}

/// Size, block and pool of each feature of a checkpoint.
fn features(expected: &Expected) -> Vec<(u32, i32, Pool, String)> {
    let tensors = expected.tensors();
    let mut found = Vec::new();
    for name in tensors.names() {
        let mut parts = name.splitn(3, '.');
        let (Some(size), Some(block), Some(pool)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let pool = Pool::ALL.into_iter().find(|known| known.as_str() == pool).unwrap();
        found.push((size.parse().unwrap(), block.parse().unwrap(), pool, format!("{block}.{pool}")));
    }
    found.sort_by_key(|(size, block, pool, _)| (*size, *block, pool.as_str()));
    found
}

#[test]
#[expect(clippy::print_stdout, reason = "output of a test")]
fn features_of_every_family_match_transformers() {
    let mut families = Vec::new();
    for name in fixtures() {
        let dir = fixture(&name);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        families.push(checkpoint.family().name());
        let expected = Expected::read(&dir);
        let mut worst = 0.0_f32;
        for (size, block, pool, tensor) in features(&expected) {
            let wanted = expected.values(size, &tensor).unwrap();
            for direct in [true, false] {
                let extractor = load_with(&checkpoint, size, block, pool, direct);
                let found = extractor.features(&expected.pixels(size), 2).unwrap();
                let (distance, path) = (distance(&found, &wanted), extractor.kernels());
                assert!(distance <= TOLERANCE, "{name} at {size} px, block {block}, {pool}, {path}: {distance}");
                worst = worst.max(distance);
            }
        }
        println!("{name}: {worst:.1e}");
    }
    families.dedup();
    // `dinov2` itself is among the checkpoints of `tests/reference/model.py`.
    for family in Family::ALL {
        assert!(family == Family::Dinov2 || families.contains(&family.name()), "{family:?} has no checkpoint");
    }
}

/// Runs the configuration of a GPU, bf16 with fixed batches, on the CPU.
#[test]
fn bf16_features_match_f32_within_precision() {
    for name in ["siglip", "clip", "beit", "swin", "swinv2", "dinov3", "dinov3_gated", "dinov2_registers"] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let expected = Expected::read(&fixture(name));
        let size_px = expected.sizes()[0];
        let pixels = expected.pixels(size_px);
        for pool in [Pool::Default, Pool::Head] {
            let options = ExtractOptions { size_px, layers: vec![-1], pool };
            if pool == Pool::Head && name != "siglip" {
                continue;
            }
            let exact = load(&checkpoint, size_px, -1, pool).features(&pixels, 2).unwrap();
            let numerics = Numerics {
                format: DType::BF16,
                batch_rows: Some(3),
                fused: true,
                kernels: Kernels::Burn,
                direct: false,
            };
            let extractor =
                Extractor::<Any>::load(&checkpoint, &options, numerics, &AnyDevice::Flex(FlexDevice)).unwrap();
            let found = extractor.features(&pixels, 2).unwrap();
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
            let difference = norm(&mut found.iter().zip(&exact).map(|(found, exact)| found - exact));
            let relative = difference / norm(&mut exact.iter().copied());
            assert!((1e-5..0.03).contains(&relative), "{name}, {pool}: {relative}");
        }
    }
}

#[test]
fn several_blocks_come_from_one_pass() {
    for (name, layers) in [("dinov2_registers", vec![-1, 0]), ("swin", vec![3, 0, -1]), ("siglip", vec![0, -1])] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let expected = Expected::read(&fixture(name));
        let size_px = expected.sizes()[0];
        let pixels = expected.pixels(size_px);
        let options = ExtractOptions { size_px, layers: layers.clone(), pool: Pool::Mean };
        let extractor =
            Extractor::<Any>::load(&checkpoint, &options, Numerics::default(), &AnyDevice::Flex(FlexDevice)).unwrap();
        let parts = checkpoint.feature_parts(&layers, Pool::Mean).unwrap();
        assert_eq!(extractor.feature_dim(), parts.iter().sum::<usize>());
        let found = extractor.features(&pixels, 2).unwrap();
        let mut begin = 0;
        for (layer, width) in layers.iter().zip(parts) {
            let wanted = load(&checkpoint, size_px, *layer, Pool::Mean).features(&pixels, 2).unwrap();
            let rows = found.chunks(extractor.feature_dim());
            let part: Vec<f32> = rows.flat_map(|row| &row[begin..begin + width]).copied().collect();
            assert_eq!(part, wanted, "{name}, block {layer}");
            begin += width;
        }
    }
}

#[test]
fn cls_token_does_not_depend_on_other_outputs_of_the_last_block() {
    for name in fixtures() {
        let checkpoint = Checkpoint::open(&fixture(&name)).unwrap();
        if !checkpoint.pools().contains(&Pool::ClsMean) {
            continue;
        }
        let expected = Expected::read(&fixture(&name));
        let size_px = expected.sizes()[0];
        let pixels = expected.pixels(size_px);
        let hidden = checkpoint.hidden_size();
        for direct in [true, false] {
            let features = |pool| {
                let options = ExtractOptions { size_px, layers: vec![-1, 0], pool };
                let (numerics, device) = (Numerics { direct, ..Numerics::default() }, AnyDevice::Flex(FlexDevice));
                Extractor::<Any>::load(&checkpoint, &options, numerics, &device).unwrap().features(&pixels, 2).unwrap()
            };
            let (alone, both) = (features(Pool::Cls), features(Pool::ClsMean));
            let whole: Vec<f32> = both.chunks(2 * hidden).flat_map(|part| &part[..hidden]).copied().collect();
            if direct {
                assert_eq!(alone, whole, "{name}");
            } else {
                assert!(distance(&alone, &whole) <= 1e-5, "{name}");
            }
        }
    }
}

#[test]
fn projection_of_the_last_block_is_the_same_beside_another() {
    let checkpoint = Checkpoint::open(&fixture("clip_projection")).unwrap();
    let expected = Expected::read(&fixture("clip_projection"));
    let size_px = expected.sizes()[0];
    let pixels = expected.pixels(size_px);
    for direct in [true, false] {
        let features = |layers: &[i32]| {
            let options = ExtractOptions { size_px, layers: layers.to_vec(), pool: Pool::Head };
            let (numerics, device) = (Numerics { direct, ..Numerics::default() }, AnyDevice::Flex(FlexDevice));
            Extractor::<Any>::load(&checkpoint, &options, numerics, &device).unwrap().features(&pixels, 2).unwrap()
        };
        let (first, last, both) = (features(&[0]), features(&[-1]), features(&[0, -1]));
        let dim = first.len() / 2;
        let joined: Vec<f32> =
            first.chunks(dim).zip(last.chunks(dim)).flat_map(|(one, other)| [one, other].concat()).collect();
        assert!(distance(&both, &joined) <= 1e-5, "direct: {direct}");
    }
}

#[test]
fn impossible_pools_and_sizes_are_rejected() {
    let reject = |name: &str, size_px, pool| {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let options = ExtractOptions { size_px, layers: vec![-1], pool };
        let device = AnyDevice::Flex(FlexDevice);
        Extractor::<Any>::load(&checkpoint, &options, Numerics::default(), &device).unwrap_err().to_string()
    };
    let no_cls =
        "pool `cls` does not exist for this checkpoint of the family `siglip`; it has `default`, `mean`, `head`";
    assert_eq!(reject("siglip", 32, Pool::Cls), no_cls);
    assert!(reject("siglip_bf16", 18, Pool::Head).ends_with("it has `default`, `mean`"));
    assert!(reject("clip", 32, Pool::Head).ends_with("it has `default`, `cls`, `cls+mean`, `mean`"));
    assert!(reject("swin", 32, Pool::ClsMean).ends_with("it has `default`, `mean`"));
    assert!(reject("swin", 24, Pool::Mean).ends_with("windows of `4` tokens need at least `26` pixels"));
    assert_eq!(Checkpoint::open(&fixture("swin")).unwrap().check_size(26).ok(), Some(()));
    assert!(reject("deit", 20, Pool::Cls).contains("is not a positive multiple of the model's patch"));
}

#[test]
fn default_pool_matches_family_classifier() {
    let mut checked = 0;
    for name in fixtures() {
        let dir = fixture(&name);
        let (checkpoint, expected) = (Checkpoint::open(&dir).unwrap(), Expected::read(&dir));
        // The two heads of a DeiT with a teacher are none of ours.
        if !checkpoint.has_classifier() || name == "deit_teacher" {
            continue;
        }
        let head = load_classifier(&dir.join("model.safetensors")).unwrap();
        for size in expected.sizes() {
            let features = load(&checkpoint, size, -1, Pool::Default).features(&expected.pixels(size), 2).unwrap();
            let distance = distance(&logits(&features, &head), &expected.values(size, "logits").unwrap());
            assert!(distance <= TOLERANCE, "{name} at {size}: {distance}");
        }
        checked += 1;
    }
    assert_eq!(checked, 7);
}

#[test]
fn names_of_transformers_5_are_accepted() {
    let renamed: [(&str, &[(&str, &str)]); 4] = [
        (
            "beit",
            &[
                ("encoder.layer.", "layers."),
                ("attention.attention.relative_position_bias", "relative_position_bias"),
                ("attention.attention.query", "attention.q_proj"),
                ("attention.attention.key", "attention.k_proj"),
                ("attention.attention.value", "attention.v_proj"),
                ("attention.output.dense", "attention.o_proj"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
            ],
        ),
        ("beit_shared", &[("encoder.relative_position_bias", "shared_position_bias")]),
        (
            "swin",
            &[
                ("attention.self.query", "attention.q_proj"),
                (
                    "attention.self.relative_position_bias_table",
                    "attention.relative_position_bias.relative_position_bias_table",
                ),
                ("attention.output.dense", "attention.o_proj"),
                ("output.dense", "mlp.fc2"),
            ],
        ),
        ("dinov3", &[("layer.", "model.layer.")]),
    ];
    for (name, pairs) in renamed {
        let dir = tempfile::tempdir().unwrap();
        write_altered_from(&fixture(name), dir.path(), |key, shape| {
            let mut key = key.to_owned();
            for (from, to) in pairs {
                key = key.replace(from, to);
            }
            Some((key, shape.to_vec()))
        });
        let (one, other) = (Checkpoint::open(&fixture(name)).unwrap(), Checkpoint::open(dir.path()).unwrap());
        let size = one.image_size_px();
        let pixels = vec![7_u8; 3 * (size * size) as usize];
        let features = |checkpoint| load(checkpoint, size, -1, Pool::Default).features(&pixels, 1).unwrap();
        assert_eq!(features(&one), features(&other), "{name}");
    }
}

#[test]
fn exported_checkpoint_reopens_unchanged() {
    for name in fixtures() {
        let checkpoint = Checkpoint::open(&fixture(&name)).unwrap();
        let (head, labels) = head(checkpoint.default_dim());
        let out = tempfile::tempdir().unwrap();
        let exported = export_hf(&checkpoint, &head, &labels, out.path());
        if checkpoint.family().classifier_class().is_none() {
            assert!(matches!(exported, Err(ModelError::NoClassifierClass { .. })), "{name}");
            continue;
        }
        exported.unwrap();
        let again = Checkpoint::open(out.path()).unwrap();
        assert_eq!(load_classifier(&out.path().join("model.safetensors")).unwrap(), head);
        assert_eq!(again.preprocessor(), checkpoint.preprocessor());
        let expected = Expected::read(&fixture(&name));
        let size = expected.sizes()[0];
        let features =
            |checkpoint| load(checkpoint, size, -1, Pool::Default).features(&expected.pixels(size), 2).unwrap();
        assert_eq!(features(&again), features(&checkpoint), "{name}");
    }
}

/// `MODEL_EXPORT=DIR cargo test --release --lib -- --ignored export_families_for_transformers`, then
/// `python tests/reference/open_in_transformers.py DIR/NAME DIR/NAME/logits.json` for each.
#[test]
#[ignore = "writes to MODEL_EXPORT, for a script to read"]
fn export_families_for_transformers() {
    let out = PathBuf::from(std::env::var_os("MODEL_EXPORT").unwrap());
    for name in fixtures() {
        let checkpoint = Checkpoint::open(&fixture(&name)).unwrap();
        if checkpoint.family().classifier_class().is_none() {
            continue;
        }
        super::export_with_logits(&checkpoint, &out.join(&name));
    }
}
