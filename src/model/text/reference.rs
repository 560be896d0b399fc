//! Compares embeddings with transformers: small encoders of `tests/reference/text.py`, and a real encoder if available.

use std::path::{Path, PathBuf};

use burn::backend::flex::FlexDevice;
use burn::tensor::DType;
use safetensors::SafeTensors;

use super::{CaptionTokenizer, TextCheckpoint, TextEncoder, TextNumerics, batch_by_length};
use crate::model::{Any, AnyDevice};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text").join(name)
}

fn captions() -> Vec<String> {
    serde_json::from_slice(&std::fs::read(fixture("captions.json")).unwrap()).unwrap()
}

fn expected(dir: &Path) -> Vec<f32> {
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor("embeddings").unwrap().data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn encoder(checkpoint: &TextCheckpoint, format: DType) -> TextEncoder<Any> {
    TextEncoder::load(checkpoint, TextNumerics { format }, &AnyDevice::Flex(FlexDevice)).unwrap()
}

/// Embeds the captions of the fixture in batches of at most `budget` tokens.
fn embed(dir: &Path, prefix: &str, budget: usize, fixed: bool, format: DType) -> Vec<f32> {
    let checkpoint = TextCheckpoint::open(dir).unwrap();
    let captions = captions();
    let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
    let ids = CaptionTokenizer::load(&checkpoint, prefix).unwrap().encode(&texts).unwrap();
    let encoder = encoder(&checkpoint, format);
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    let dim = encoder.dim();
    let mut found = vec![f32::NAN; texts.len() * dim];
    for batch in batch_by_length(&lengths, budget, fixed) {
        let rows: Vec<&[u32]> = batch.members.iter().map(|member| ids[*member].as_slice()).collect();
        let tokens = batch.tokens.min(checkpoint.max_tokens());
        let vectors = encoder.embed(&rows, tokens).unwrap();
        for (member, vector) in batch.members.iter().zip(vectors.chunks(dim)) {
            found[member * dim..(member + 1) * dim].copy_from_slice(vector);
        }
    }
    found
}

/// Returns the largest difference relative to the largest value.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let differences = found.iter().zip(expected).map(|(one, other)| (one - other).abs());
    differences.fold(0.0_f32, |worst, now| if now.is_nan() { f32::INFINITY } else { worst.max(now) }) / largest
}

#[test]
fn embeddings_match_transformers_for_any_batches() {
    for name in ["bert", "xlmr", "mini"] {
        let dir = fixture(name);
        let expected = expected(&dir);
        for (budget, fixed) in [(1, false), (300, false), (100_000, false), (300, true)] {
            let found = distance(&embed(&dir, "", budget, fixed, DType::F32), &expected);
            assert!(found < 1e-5, "{name}, {budget}: {found}");
        }
        let half = distance(&embed(&dir, "", 300, true, DType::BF16), &expected);
        assert!((1e-4..0.1).contains(&half), "{name} in bf16: {half}");
        let other = distance(&embed(&dir, "query: ", 300, false, DType::F32), &expected);
        assert!(other > 0.01, "{name}: a prefix changes nothing, {other}");
    }
}

#[test]
#[ignore = "needs an encoder named by TEXT_ENCODER, with the numbers that tests/reference/text.py left in it"]
#[expect(clippy::print_stdout, reason = "the measurement")]
fn real_encoder_matches_transformers() {
    let dir = PathBuf::from(std::env::var_os("TEXT_ENCODER").unwrap());
    let expected = expected(&dir);
    for (format, most) in [(DType::F32, 1e-4), (DType::BF16, 0.1)] {
        let found = distance(&embed(&dir, "", 1024, false, format), &expected);
        println!("{format:?}: {found:.2e}");
        assert!(found < most, "{format:?}: {found}");
    }
}

#[test]
fn invalid_checkpoints_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str| {
        for entry in std::fs::read_dir(fixture(from)).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    };
    let error = || TextCheckpoint::open(dir.path()).unwrap_err().to_string();
    copy("xlmr");
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    std::fs::write(dir.path().join("config.json"), config.replace("\"xlm-roberta\"", "\"gpt2\"")).unwrap();
    assert!(
        error().ends_with("`model_type` is `gpt2`; supported text encoders are `bert`, `xlm-roberta` and `roberta`")
    );
    std::fs::write(
        dir.path().join("config.json"),
        config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
    )
    .unwrap();
    assert!(error().contains("missing [`encoder.layer.2."), "{}", error());
    std::fs::write(dir.path().join("config.json"), &config).unwrap();
    std::fs::write(
        dir.path().join("modules.json"),
        r#"[{"path": "", "type": "a.Transformer"}, {"path": "1", "type": "a.LSTM"}]"#,
    )
    .unwrap();
    assert!(error().contains("`type` is `LSTM` at position 1"), "{}", error());
    std::fs::write(
        dir.path().join("modules.json"),
        r#"[{"path": "", "type": "a.Transformer"}, {"path": "../x", "type": "a.Pooling"}]"#,
    )
    .unwrap();
    assert!(error().contains("which is outside the checkpoint"), "{}", error());
    std::fs::remove_file(dir.path().join("modules.json")).unwrap();
    let checkpoint = TextCheckpoint::open(dir.path()).unwrap();
    assert_eq!((checkpoint.dim(), checkpoint.max_tokens()), (32, 78));
    let fingerprint = checkpoint.fingerprint().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_ne!(TextCheckpoint::open(dir.path()).unwrap().fingerprint().unwrap(), fingerprint);
    let error = CaptionTokenizer::load(&checkpoint, "").err().unwrap().to_string();
    assert!(error.contains("tokenizer.json` cannot be used"), "{error}");
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(TextCheckpoint::open(dir.path()).unwrap_err().to_string().starts_with("cannot read `"));
}
