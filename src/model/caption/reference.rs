//! Compares generated captions with those of transformers (`tests/reference/captioning.py`).

use std::path::{Path, PathBuf};

use burn::backend::flex::FlexDevice;
use burn::tensor::DType;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::{CaptionCheckpoint, CaptionDecoder, Captioner, Generation};
use crate::model::{Any, AnyDevice, ModelError, Numerics};
use crate::reference;

const CHECKPOINTS: [&str; 4] = ["vit_gpt2", "vit_gpt2_wide", "deit_roberta", "swin_bert"];

fn fixture(name: &str) -> PathBuf {
    reference::fixture("captioning").join(name)
}

/// A setting of generation, and the results of transformers.
struct Case {
    settings: Map<String, Value>,
    ids: Vec<Vec<u32>>,
    texts: Vec<String>,
}

fn cases(dir: &Path) -> Vec<Case> {
    let file: Vec<Value> = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let case = |case: Value| Case {
        settings: case["settings"].as_object().unwrap().clone(),
        ids: serde_json::from_value(case["ids"].clone()).unwrap(),
        texts: serde_json::from_value(case["texts"].clone()).unwrap(),
    };
    file.into_iter().map(case).collect()
}

/// Returns the pixels of the images and their number.
fn pixels(dir: &Path) -> (Vec<u8>, usize) {
    let bytes = std::fs::read(dir.join("pixels.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let pixels = tensors.tensor("pixels").unwrap();
    (pixels.data().to_vec(), pixels.shape()[0])
}

/// Returns the checkpoint with the options of a case, which replace those of its files.
fn with_settings(dir: &Path, settings: &Map<String, Value>) -> CaptionCheckpoint {
    let checkpoint = CaptionCheckpoint::open(dir).unwrap();
    if settings.is_empty() {
        return checkpoint;
    }
    let path = dir.join("generation_config.json");
    let mut options: Map<String, Value> = if let Ok(text) = std::fs::read(&path) {
        serde_json::from_slice(&text).unwrap()
    } else {
        let own = std::fs::read(dir.join("config.json")).unwrap();
        let config: Map<String, Value> = serde_json::from_slice(&own).unwrap();
        let mut kept = super::options::keep(config["decoder"].as_object().unwrap());
        kept.extend(super::options::keep(&config));
        kept
    };
    options.extend(settings.clone());
    let text = serde_json::to_vec(&options).unwrap();
    checkpoint.with_generation(Generation::parse(&text, &path).unwrap()).unwrap()
}

fn load(checkpoint: &CaptionCheckpoint, numerics: Numerics) -> Captioner<Any> {
    let size_px = checkpoint.encoder().image_size_px();
    Captioner::load(checkpoint, size_px, numerics, &AnyDevice::Flex(FlexDevice)).unwrap()
}

/// Compares all cases of a checkpoint whose numbers `chosen` accepts.
fn check(dir: &Path, chosen: impl Fn(usize, &Case) -> bool) {
    let (pixels, rows) = pixels(dir);
    for (number, case) in cases(dir).iter().enumerate().filter(|(number, case)| chosen(*number, case)) {
        let checkpoint = with_settings(dir, &case.settings);
        let found = load(&checkpoint, Numerics::default()).captions(pixels.clone(), rows).unwrap();
        assert_eq!(found, case.ids, "{}, case {number}: {:?}", dir.display(), case.settings);
        let words = CaptionDecoder::load(&checkpoint).unwrap();
        for (ids, text) in found.iter().zip(&case.texts) {
            assert_eq!(words.decode(ids).unwrap(), text.trim());
        }
    }
}

#[test]
fn greedy_captions_equal_those_of_transformers() {
    for name in CHECKPOINTS {
        check(&fixture(name), |_, case| !case.settings.contains_key("num_beams"));
    }
}

#[test]
fn beam_search_equals_that_of_transformers() {
    for name in CHECKPOINTS {
        check(&fixture(name), |_, case| case.settings.contains_key("num_beams"));
    }
}

/// `CAPTION_CHECKPOINT=DIR cargo test --release --lib -- --ignored real_captioning`, after the script wrote
/// `DIR/expected.json`.
#[test]
#[ignore = "needs a checkpoint named by CAPTION_CHECKPOINT"]
fn real_captioning_checkpoint_equals_transformers() {
    check(&PathBuf::from(std::env::var_os("CAPTION_CHECKPOINT").unwrap()), |_, _| true);
}

#[test]
fn batch_size_and_warm_up_do_not_change_captions() {
    for name in ["vit_gpt2_wide", "swin_bert"] {
        let dir = fixture(name);
        let (pixels, rows) = pixels(&dir);
        let image = pixels.len() / rows;
        for case in cases(&dir).iter().step_by(11) {
            let captioner = load(&with_settings(&dir, &case.settings), Numerics::default());
            let padded = Numerics { batch_rows: Some(4), ..Numerics::default() };
            let fixed = load(&with_settings(&dir, &case.settings), padded);
            fixed.warm_up(3).unwrap();
            for (row, ids) in case.ids.iter().enumerate() {
                let one = pixels[row * image..(row + 1) * image].to_vec();
                assert_eq!(captioner.captions(one.clone(), 1).unwrap(), std::slice::from_ref(ids));
                assert_eq!(fixed.captions(one, 1).unwrap(), std::slice::from_ref(ids));
            }
        }
        let captioner = load(&CaptionCheckpoint::open(&dir).unwrap(), Numerics::default());
        assert!(captioner.captions(Vec::new(), 0).unwrap().is_empty());
        assert!(matches!(captioner.captions(vec![0; 5], 1), Err(ModelError::Pixels { .. })));
    }
}

/// Runs the format of a GPU on the CPU. Rounding may change a token, so only the form of the result is known.
#[test]
fn captions_in_bf16_end_like_captions() {
    let dir = fixture("deit_roberta");
    let (pixels, rows) = pixels(&dir);
    let checkpoint = CaptionCheckpoint::open(&dir).unwrap();
    let captioner = load(&checkpoint, Numerics { format: DType::BF16, ..Numerics::default() });
    for ids in captioner.captions(pixels, rows).unwrap() {
        let end = ids.iter().position(|id| *id == 2);
        assert_eq!(end.map_or(checkpoint.generation().max_new_tokens(), |end| end + 1), ids.len());
    }
}

#[test]
fn fingerprint_depends_on_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture("deit_roberta")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let fingerprint = || CaptionCheckpoint::open(dir.path()).unwrap().fingerprint().unwrap();
    let before = fingerprint();
    assert_eq!(before, CaptionCheckpoint::open(&fixture("deit_roberta")).unwrap().fingerprint().unwrap());
    let path = dir.path().join("tokenizer.json");
    let mut text = std::fs::read(&path).unwrap();
    text.push(b'\n');
    std::fs::write(&path, text).unwrap();
    assert_ne!(before, fingerprint());
    std::fs::remove_file(&path).unwrap();
    let error = CaptionCheckpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn damaged_decoders_are_refused_by_tensor_name() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json"] {
        std::fs::copy(fixture("vit_gpt2").join(file), dir.path().join(file)).unwrap();
    }
    let bytes = std::fs::read(fixture("vit_gpt2").join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let write = |skipped: &str, more: &str| {
        let mut kept: Vec<_> = tensors.iter().filter(|(name, _)| *name != skipped).collect();
        kept.extend(tensors.iter().find(|(name, _)| name.ends_with("ln_f.bias")).map(|(_, view)| (more, view)));
        safetensors::serialize_to_file(kept, None, &dir.path().join("model.safetensors")).unwrap();
        CaptionCheckpoint::open(dir.path())
    };
    // Copies of the table of words and stored masks are accepted.
    write("", "decoder.transformer.h.0.attn.masked_bias").unwrap();
    let error = write("decoder.transformer.h.1.ln_2.weight", "decoder.transformer.h.9.x").unwrap_err().to_string();
    assert!(
        error.ends_with("missing [`transformer.h.1.ln_2.weight`], unexpected [`decoder.transformer.h.9.x`]"),
        "{error}"
    );
}
