//! Tests of saving, loading and rejecting checkpoints.

use super::*;
use proptest::prelude::*;

pub(super) fn progress() -> Progress {
    Progress {
        step: 12,
        epoch: 1,
        position: 345,
        seed: u64::MAX,
        best: Some(0.1 + 0.2),
        loss_sum: 1e300 / 3.0,
        loss_count: 77,
        hashes: BTreeMap::from([("checkpoint".to_owned(), "ab12".to_owned())]),
        columns: None,
    }
}

pub(super) fn state() -> HeadState {
    let mut state = HeadState::init(7, 5, 1);
    state.bias = (0..7).map(|i| i as f32 / 3.0).collect();
    state.weight_momentum = HeadState::init(7, 5, 2).weight;
    state.bias_momentum = vec![-0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, 0.1, -1.0, 2.0];
    state
}

pub(super) fn save_sample() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("checkpoints").join("step-12");
    save(&dir, &state(), &progress()).unwrap();
    (root, dir)
}

/// Removes the checksums, which early versions did not write, so that later checks see the damage.
pub(super) fn remove_checksums(dir: &Path) {
    let path = dir.join(STATE_FILE);
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(state.as_object_mut().unwrap().remove("checksums").is_some());
    fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn saved_checkpoint_loads_bit_for_bit() {
    let (_root, dir) = save_sample();
    let (loaded, at) = load(&dir).unwrap();
    assert_eq!(loaded, state());
    assert_eq!(loaded.bias_momentum[0].to_bits(), (-0.0_f32).to_bits());
    assert_eq!(at, progress());
    assert_eq!(at.loss_sum.to_bits(), progress().loss_sum.to_bits());
    assert_eq!(names(&dir), [HEAD_FILE, OPTIMIZER_FILE, STATE_FILE]);
    assert_eq!(names(dir.parent().unwrap()), ["step-12"]);
    assert_eq!(load_head(&dir).unwrap().weight, state().weight);
}

#[test]
fn bytes_are_deterministic_and_valid_safetensors() {
    let ((_a, first), (_b, second)) = (save_sample(), save_sample());
    for name in names(&first) {
        let bytes = fs::read(first.join(&name)).unwrap();
        assert_eq!(bytes, fs::read(second.join(&name)).unwrap(), "{name}");
    }
    let bytes = fs::read(first.join(HEAD_FILE)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weight = file.tensor("classifier.weight").unwrap();
    assert_eq!(weight.shape(), [7, 5]);
    assert_eq!(weight.data()[..4], state().weight[0].to_le_bytes());
}

#[test]
fn incomplete_save_is_replaced() {
    let (_root, dir) = save_sample();
    fs::write(dir.join("left"), "cut").unwrap();
    fs::remove_file(dir.join(HEAD_FILE)).unwrap();
    let mut later = progress();
    later.position = 346;
    save(&dir, &state(), &later).unwrap();
    assert_eq!(names(&dir), FILES);
    assert_eq!(load(&dir).unwrap().1, later);
}

#[test]
fn non_finite_value_is_not_saved() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("step-1");
    let mut broken = state();
    broken.weight_momentum[3] = f32::NAN;
    let error = save(&dir, &broken, &progress()).unwrap_err();
    assert_eq!(error.to_string(), "the head cannot be saved: value `3` of `classifier.weight.momentum` is `NaN`");
    let mut lossy = progress();
    lossy.loss_sum = f64::INFINITY;
    save(&dir, &state(), &lossy).unwrap_err();
    let mut short = state();
    short.bias.pop();
    save(&dir, &short, &progress()).unwrap_err();
    assert!(!dir.is_dir());
}

#[test]
fn non_finite_value_is_not_loaded() {
    let (_root, dir) = save_sample();
    let path = dir.join(HEAD_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = load(&dir).unwrap_err().to_string();
    assert!(error.contains("head.safetensors") && error.contains("its checksum differs"), "{error}");
    remove_checksums(&dir);
    let error = load(&dir).unwrap_err().to_string();
    assert!(error.contains("head.safetensors"), "{error}");
    assert!(error.contains("value `34` of `classifier.weight` is `inf`"), "{error}");
}

#[test]
fn mixed_checkpoints_are_rejected() {
    let (_root, dir) = save_sample();
    let (_other_root, other) = save_sample();
    save(&other, &HeadState::init(7, 6, 1), &progress()).unwrap();
    remove_checksums(&dir);
    fs::copy(other.join(OPTIMIZER_FILE), dir.join(OPTIMIZER_FILE)).unwrap();
    let error = load(&dir).unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors"), "{error}");
    fs::copy(other.join(OPTIMIZER_FILE), dir.join(HEAD_FILE)).unwrap();
    let error = load(&dir).unwrap_err().to_string();
    assert!(error.contains("it holds the tensors `classifier.bias.momentum`"), "{error}");
}

#[test]
fn missing_file_and_other_version_are_named() {
    let (_root, dir) = save_sample();
    let path = dir.join(STATE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let error = load(&dir).unwrap_err().to_string();
    assert!(error.contains("format `2`"), "{error}");
    fs::remove_file(&path).unwrap();
    let error = load(&dir).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }));
    assert!(error.to_string().contains("state.json"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_file_never_panics(
        which in 0usize..3, keep: prop::sample::Index, at: prop::sample::Index, byte: u8,
    ) {
        let (_root, dir) = save_sample();
        let path = dir.join([HEAD_FILE, OPTIMIZER_FILE, STATE_FILE][which]);
        let bytes = fs::read(&path).unwrap();
        let cut = keep.index(bytes.len());
        // The last byte of `state.json` is a newline, which may be absent.
        if which < 2 || cut + 1 < bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            prop_assert!(load(&dir).is_err());
        }
        let mut damaged = bytes.clone();
        damaged[at.index(bytes.len())] = byte;
        fs::write(&path, damaged).unwrap();
        drop(load(&dir));
    }
}
