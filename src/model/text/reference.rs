//! Compares token ids and embeddings with transformers and sentence-transformers: small encoders of
//! `tests/reference/text.py` and `tests/reference/sentence.py`, and a real encoder if available.

use std::path::{Path, PathBuf};

use burn::backend::flex::FlexDevice;
use burn::tensor::DType;

use super::{CaptionTokenizer, TextCheckpoint, TextEncoder, TextNumerics, batch_by_length};
use crate::model::{Any, AnyDevice};
use crate::reference::{self, distance};

fn fixture(name: &str) -> PathBuf {
    reference::fixture("text").join(name)
}

fn captions() -> Vec<String> {
    serde_json::from_slice(&std::fs::read(fixture("captions.json")).unwrap()).unwrap()
}

/// Returns a tensor of the script's outputs for a checkpoint.
pub(super) fn read_expected(dir: &Path, name: &str) -> Vec<f32> {
    reference::read_f32(&std::fs::read(dir.join("expected.safetensors")).unwrap(), name).unwrap()
}

/// Embeds the captions in batches of at most `budget` tokens.
pub(super) fn embed(
    checkpoint: &TextCheckpoint,
    captions: &[String],
    prefix: &str,
    batches: (usize, bool),
    format: DType,
) -> Vec<f32> {
    embed_with(checkpoint, captions, prefix, batches, TextNumerics { format, direct: true })
}

fn embed_with(
    checkpoint: &TextCheckpoint,
    captions: &[String],
    prefix: &str,
    (budget, fixed): (usize, bool),
    numerics: TextNumerics,
) -> Vec<f32> {
    let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
    let ids = CaptionTokenizer::load(checkpoint, prefix).unwrap().encode(&texts).unwrap();
    let device = AnyDevice::Flex(FlexDevice);
    let encoder = TextEncoder::<Any>::load(checkpoint, numerics, &device).unwrap();
    let (lengths, dim): (Vec<usize>, usize) = (ids.iter().map(Vec::len).collect(), encoder.dim());
    assert_eq!(dim, checkpoint.dim());
    let mut found = vec![f32::NAN; texts.len() * dim];
    for batch in batch_by_length(&lengths, budget, fixed) {
        let mut rows: Vec<&[u32]> = batch.members.iter().map(|member| ids[*member].as_slice()).collect();
        if fixed {
            // Empty captions pad a batch to a fixed shape.
            rows.push(&[]);
        }
        let vectors = encoder.embed(&rows, batch.tokens.min(checkpoint.max_tokens())).unwrap();
        for (member, vector) in batch.members.iter().zip(vectors.chunks(dim)) {
            found[member * dim..(member + 1) * dim].copy_from_slice(vector);
        }
    }
    found
}

#[test]
fn embeddings_match_transformers_for_any_batches() {
    for name in ["bert", "xlmr", "mini"] {
        let checkpoint = TextCheckpoint::open(&fixture(name)).unwrap();
        let expected = read_expected(&fixture(name), "embeddings");
        let distance = |prefix: &str, batches: (usize, bool), format: DType| {
            distance(&embed(&checkpoint, &captions(), prefix, batches, format), &expected)
        };
        let mut first: Option<Vec<f32>> = None;
        for batches in [(1, false), (300, false), (100_000, false), (300, true)] {
            let found = distance("", batches, DType::F32);
            assert!(found < 1e-5, "{name}, {batches:?}: {found}");
            let numerics = |direct| TextNumerics { format: DType::F32, direct };
            let found =
                reference::distance(&embed_with(&checkpoint, &captions(), "", batches, numerics(false)), &expected);
            assert!(found < 1e-5, "{name}, {batches:?}, burn's modules: {found}");
            let direct = embed_with(&checkpoint, &captions(), "", batches, numerics(true));
            assert_eq!(first.get_or_insert(direct.clone()), &direct, "{name}: {batches:?} change bits");
        }
        let half = distance("", (300, true), DType::BF16);
        assert!((1e-4..0.1).contains(&half), "{name} in bf16: {half}");
        let other = distance("query: ", (300, false), DType::F32);
        assert!(other > 0.01, "{name}: a prefix changes nothing, {other}");
    }
}

#[test]
fn captions_that_spell_out_padding_match_transformers() {
    #[derive(serde::Deserialize)]
    struct Padded {
        captions: Vec<String>,
        embeddings: Vec<Vec<f32>>,
    }
    let text = std::fs::read(fixture("xlmr").join("padding.json")).unwrap();
    let padded: Padded = serde_json::from_slice(&text).unwrap();
    let checkpoint = TextCheckpoint::open(&fixture("xlmr")).unwrap();
    for direct in [true, false] {
        let numerics = TextNumerics { format: DType::F32, direct };
        let found = embed_with(&checkpoint, &padded.captions, "", (300, false), numerics);
        let found = distance(&found, &padded.embeddings.concat());
        assert!(found < 1e-5, "direct {direct}: {found}");
    }
}

#[test]
fn prompts_truncation_and_case_match_sentence_transformers() {
    let dir = fixture("sentence");
    let checkpoint = TextCheckpoint::open(&dir).unwrap();
    let (name, prompt) = checkpoint.default_prompt().unwrap();
    assert_eq!((name, prompt), ("query", "Query: "));
    let captions = captions();
    let embed = |checkpoint: &TextCheckpoint, prefix| embed(checkpoint, &captions, prefix, (300, false), DType::F32);
    for (name, prefix) in [("default", prompt), ("plain", "")] {
        let found = distance(&embed(&checkpoint, prefix), &read_expected(&dir, name));
        assert!(found < 1e-5, "{name}: {found}");
    }
    let short = checkpoint.clone().truncated(12);
    assert_eq!((short.dim(), short.full_dim()), (12, 16));
    let found = distance(&embed(&short, prompt), &read_expected(&dir, "truncated"));
    assert!(found < 1e-5, "{found}");
    assert_eq!(checkpoint.truncated(99).dim(), 16);
}

#[test]
fn token_ids_match_those_of_each_case_setting() {
    let text = std::fs::read(fixture("sentence").join("expected_ids.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let captions = captions();
    let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
    let ids = |dir: &Path| {
        let checkpoint = TextCheckpoint::open(dir).unwrap();
        serde_json::to_value(CaptionTokenizer::load(&checkpoint, "").unwrap().encode(&texts).unwrap()).unwrap()
    };
    assert_eq!(ids(&fixture("sentence")), expected["sentence"]);
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixture("bert"), dir.path());
    for case in expected["bert"].as_array().unwrap() {
        let config = &case["tokenizer_config"];
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        assert_eq!(ids(dir.path()), case["ids"], "{config}");
    }
}

/// Copies the files of a folder and of its folders.
fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_dir(&path, &target);
        } else {
            std::fs::copy(path, target).unwrap();
        }
    }
}

#[test]
fn damaged_prompts_are_rejected_by_name() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixture("sentence"), dir.path());
    let error = |text: &str| {
        std::fs::write(dir.path().join("config_sentence_transformers.json"), text).unwrap();
        TextCheckpoint::open(dir.path()).unwrap_err().to_string()
    };
    let text = error(r#"{"prompts": {"a": "A: ", "b": null}, "default_prompt_name": "c"}"#);
    assert!(text.ends_with("`default_prompt_name` is `c`, which is not among its prompts (`a`, `b`)"), "{text}");
    let text = error(r#"{"prompts": {"a": 1}}"#);
    assert!(text.contains("config_sentence_transformers.json") && text.contains("prompts.a"), "{text}");
    std::fs::write(dir.path().join("config_sentence_transformers.json"), r#"{"truncate_dim": 8}"#).unwrap();
    assert_eq!(TextCheckpoint::open(dir.path()).unwrap().dim(), 8);
}

#[test]
#[ignore = "needs an encoder named by TEXT_ENCODER, with the numbers that tests/reference/text.py left in it"]
#[expect(clippy::print_stdout, reason = "the measurement")]
fn real_encoder_matches_transformers() {
    let dir = PathBuf::from(std::env::var_os("TEXT_ENCODER").unwrap());
    let checkpoint = TextCheckpoint::open(&dir).unwrap();
    let expected = read_expected(&dir, "embeddings");
    for (format, most) in [(DType::F32, 1e-4), (DType::BF16, 0.1)] {
        let found = distance(&embed(&checkpoint, &captions(), "", (1024, false), format), &expected);
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
