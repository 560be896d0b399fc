//! Support for tests against reference implementations, whose outputs are in `tests/reference`.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

/// Returns the path of a file or folder of `tests/reference`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}

/// Reads an f32 tensor from the content of a safetensors file; `None` if the file has no tensor of that name.
pub(crate) fn read_f32(file: &[u8], name: &str) -> Option<Vec<f32>> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(name).ok()?;
    Some(tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Returns the largest difference relative to the largest expected magnitude; infinite for NaN or another length.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let worst = found.iter().zip(expected).fold(0.0_f32, |worst, (found, expected)| {
        let difference = (found - expected).abs();
        if difference.is_nan() { f32::INFINITY } else { worst.max(difference) }
    });
    worst / largest
}
