//! Compares text towers with vectors that transformers computed (`tests/reference/paired.py`).

use std::path::PathBuf;

use burn::backend::flex::FlexDevice;
use burn::tensor::DType;

use crate::model::text::reference::{embed, read_expected};
use crate::model::text::{CaptionTokenizer, TextCheckpoint, TextEncoder, TextNumerics};
use crate::model::{Any, AnyDevice, Checkpoint, Pairing};
use crate::reference::{self, distance};

fn fixture(name: &str) -> PathBuf {
    reference::fixture("paired").join(name)
}

fn captions() -> Vec<String> {
    let mut reader = csv::Reader::from_path(fixture("captions.csv")).unwrap();
    reader.records().map(|row| row.unwrap()[0].to_owned()).collect()
}

#[test]
fn vectors_match_transformers_for_any_batches() {
    for name in ["altclip", "clip", "metaclip_2", "siglip", "siglip2"] {
        let checkpoint = TextCheckpoint::open_paired(&fixture(name)).unwrap();
        let expected = read_expected(&fixture(name), "embeddings");
        let distance = |batches: (usize, bool), format: DType| {
            distance(&embed(&checkpoint, &captions(), "", batches, format), &expected)
        };
        for batches in [(1, false), (300, true), (100_000, false)] {
            let found = distance(batches, DType::F32);
            assert!(found < 1e-5, "{name}, {batches:?}: {found}");
        }
        let half = distance((300, true), DType::BF16);
        assert!((1e-4..0.1).contains(&half), "{name} in bf16: {half}");
    }
}

#[test]
fn prefix_and_truncation_work_as_for_other_encoders() {
    for name in ["altclip", "siglip"] {
        let whole = TextCheckpoint::open_paired(&fixture(name)).unwrap();
        let vector = |checkpoint: &TextCheckpoint, prefix: &str| {
            let ids = CaptionTokenizer::load(checkpoint, prefix).unwrap().encode(&["a dog"]).unwrap();
            let device = AnyDevice::Flex(FlexDevice);
            let encoder = TextEncoder::<Any>::load(checkpoint, TextNumerics::default(), &device).unwrap();
            encoder.embed(&[&ids[0]], ids[0].len()).unwrap()
        };
        let short = whole.clone().truncated(12);
        assert_eq!((short.dim(), short.full_dim()), (12, whole.dim()));
        assert_eq!(vector(&short, ""), vector(&whole, "")[..12]);
        assert!(distance(&vector(&whole, "photo of "), &vector(&whole, "")) > 0.01, "{name}: a prefix changes nothing");
    }
}

#[test]
fn scale_and_bias_are_those_of_the_checkpoint() {
    let pairing = |name: &str| Checkpoint::open(&fixture(name)).unwrap().pairing().unwrap();
    assert_eq!(pairing("clip"), Some(Pairing { log_scale: 2.5, bias: 0.0 }));
    assert_eq!(pairing("siglip"), Some(Pairing { log_scale: 2.5, bias: -7.0 }));
}

#[test]
fn unusable_scale_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(fixture("siglip").join(file), dir.path().join(file)).unwrap();
    }
    let bytes = std::fs::read(fixture("siglip").join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = |name: &str| header + names[name]["data_offsets"][0].as_u64().unwrap() as usize;
    for (name, value, expected) in [
        ("logit_scale", f32::NAN, "model.safetensors`: `logit_scale` is `NaN`; its exponential"),
        ("logit_scale", 1e4, "model.safetensors`: `logit_scale` is `10000`; its exponential"),
        ("logit_scale", -1e3, "model.safetensors`: `logit_scale` is `-1000`; its exponential"),
        ("logit_scale", f32::NEG_INFINITY, "model.safetensors`: `logit_scale` is `-inf`; its exponential"),
        ("logit_bias", f32::INFINITY, "model.safetensors`: `logit_bias` is `inf`; it must be finite"),
    ] {
        let mut bytes = bytes.clone();
        bytes[at(name)..][..4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap().pairing().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_tensors_and_tokenizers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(fixture("siglip").join(file), dir.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let more = config.replacen("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", 1);
    std::fs::write(dir.path().join("config.json"), more).unwrap();
    let error = TextCheckpoint::open_paired(dir.path()).unwrap_err().to_string();
    assert!(error.contains("missing [`encoder.layers.2."), "{error}");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    // Without its settings the tokenizer pads with the configuration's token.
    let checkpoint = TextCheckpoint::open_paired(dir.path()).unwrap();
    let ids = CaptionTokenizer::load(&checkpoint, "").unwrap().encode(&["a"]).unwrap();
    assert_eq!((ids[0].len(), ids[0].last()), (64, Some(&1)));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(TextCheckpoint::open_paired(dir.path()).unwrap_err().to_string().starts_with("cannot read `"));
}
